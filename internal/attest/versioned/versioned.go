// Package versioned reads and writes the dstack VersionedAttestation: Evidence
// in one byte string, as a guest agent answers it and as certificates and
// signing requests carry it. It does version 0, which is SCALE-encoded, and
// version 1, which is MessagePack, both for TDX
// (docs/wire.md#versioned-attestation).
package versioned

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/tdx"
	"teekms/internal/attest/versioned/scale"
)

// MaxSize bounds an encoded attestation, in bytes.
const MaxSize = 10 << 20

// ErrUnsupported says that an attestation is of a version or a kind that this
// package does not read. It may be a good one all the same.
var ErrUnsupported = errors.New("not supported")

var errTooMany = fmt.Errorf("more than %d", eventlog.MaxEvents)

// Attestation is an attestation of a TDX guest, in either version.
type Attestation struct {
	// Quote is the quote, with whatever padding its host left behind it.
	Quote []byte
	// Events is the event log; parts of it may have been stripped.
	Events eventlog.Log
	// RuntimeEvents are the runtime events in order. They are all in Events
	// too, unless those were stripped away.
	RuntimeEvents []RuntimeEvent
	// ReportData says what the quote binds.
	ReportData [64]byte
	// Config is JSON text about the virtual machine.
	Config string
}

// RuntimeEvent is a named event of RTMR3.
type RuntimeEvent struct {
	Name    string
	Payload []byte
	// Version is the form of its digest: 1 (0 means 1) or 2.
	Version int
}

// The first byte, and the second in version 0.
const (
	versionSCALE = 0x00
	kindTDX      = 0
)

// kindName names what a guest of another kind attests with.
func kindName(kind byte) string {
	names := [...]string{"TDX", "GCP TDX with a TPM", "Nitro enclave", "SEV-SNP", "AWS NitroTPM"}
	if int(kind) < len(names) {
		return names[kind]
	}
	return fmt.Sprintf("kind %d", kind)
}

// Parse reads an attestation. It is strict: nothing may follow, and events obey
// the rules of package eventlog. In version 0 lengths must be in their shortest
// form, so that what it accepts has one encoding. Nothing in it is verified.
func Parse(b []byte) (*Attestation, error) {
	a, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("reading attestation: %w", err)
	}
	return a, nil
}

// parse tells the formats apart by the first byte.
func parse(b []byte) (*Attestation, error) {
	switch {
	case len(b) > MaxSize:
		return nil, fmt.Errorf("%d bytes, want at most %d", len(b), MaxSize)
	case len(b) == 0:
		return nil, scale.ErrShort
	case b[0] == versionSCALE:
		return parse0(b)
	case b[0] >= 0x80 && b[0] <= 0x8f, b[0] == 0xde, b[0] == 0xdf: // a map
		return parse1(b)
	}
	return nil, fmt.Errorf("unknown format 0x%02x", b[0])
}

func (r *RuntimeEvent) event() *eventlog.Event {
	return &eventlog.Event{IMR: eventlog.RuntimeIMR, Type: eventlog.RuntimeEventType, Name: r.Name, Payload: r.Payload, Version: r.Version}
}

// Marshal writes the attestation as [Parse] reads it: in version 1 if the
// digest of an event has the second form, which version 0 does not know, and in
// version 0 otherwise.
func (a *Attestation) Marshal() ([]byte, error) {
	if err := a.check(); err != nil {
		return nil, fmt.Errorf("writing attestation: %w", err)
	}
	b := a.marshal0
	if a.needsVersion1() {
		b = a.marshal1
	}
	out := b()
	if len(out) > MaxSize {
		return nil, fmt.Errorf("writing attestation: %d bytes, want at most %d", len(out), MaxSize)
	}
	return out, nil
}

func (a *Attestation) check() error {
	if len(a.Events) > eventlog.MaxEvents || len(a.RuntimeEvents) > eventlog.MaxEvents || len(a.Quote) > MaxSize || len(a.Config) > MaxSize {
		return fmt.Errorf("%d events and a quote of %d bytes, want at most %d in %d", len(a.Events), len(a.Quote), eventlog.MaxEvents, MaxSize)
	}
	for i := range a.Events {
		if err := a.Events[i].Check(); err != nil {
			return fmt.Errorf("event %d: %w", i, err)
		}
	}
	for i := range a.RuntimeEvents {
		if err := a.RuntimeEvents[i].event().Check(); err != nil {
			return fmt.Errorf("runtime event %d: %w", i, err)
		}
	}
	if !utf8.ValidString(a.Config) {
		return errors.New("config is not UTF-8")
	}
	return nil
}

func (a *Attestation) needsVersion1() bool {
	return slices.ContainsFunc(a.Events, func(e eventlog.Event) bool { return e.Version == 2 }) ||
		slices.ContainsFunc(a.RuntimeEvents, func(r RuntimeEvent) bool { return r.Version == 2 })
}

// New makes an attestation of Evidence.
func New(ev *attest.Evidence) (*Attestation, error) {
	q, err := tdx.ParseQuote(ev.Quote)
	if err != nil {
		return nil, fmt.Errorf("making attestation: %w", err)
	}
	a := &Attestation{Quote: ev.Quote, ReportData: q.ReportData(), Config: ev.VMConfig}
	if len(ev.EventLog) == 0 {
		return a, nil
	}
	if a.Events, err = eventlog.Parse(ev.EventLog); err != nil {
		return nil, fmt.Errorf("making attestation: %w", err)
	}
	for _, e := range a.Events.RuntimeEvents() {
		a.RuntimeEvents = append(a.RuntimeEvents, RuntimeEvent{e.Name, e.Payload, e.Version})
	}
	return a, nil
}

// Evidence returns what is to be verified: the quote without its padding, the
// log of [Attestation.Log], and the machine's description. It refuses an
// attestation whose report data are not the quote's.
func (a *Attestation) Evidence() (*attest.Evidence, error) {
	q, err := tdx.ParseQuote(a.Quote)
	if err != nil {
		return nil, fmt.Errorf("attestation: %w", err)
	}
	if q.ReportData() != a.ReportData {
		return nil, errors.New("attestation: report data is not that of the quote")
	}
	log, err := a.Log()
	if err != nil {
		return nil, err
	}
	ev := &attest.Evidence{Quote: q.Raw, VMConfig: vmConfig(a.Config)}
	if len(log) > 0 {
		if ev.EventLog, err = log.Marshal(); err != nil {
			return nil, fmt.Errorf("attestation: %w", err)
		}
	}
	return ev, nil
}

// Log returns the whole event log. RTMR3 stands twice in an attestation: where
// both lists have runtime events they must be the same, or else one could be
// replayed and the other believed.
func (a *Attestation) Log() (eventlog.Log, error) {
	inLog := a.Events.RuntimeEvents()
	if len(inLog) == 0 {
		log := append(eventlog.Log(nil), a.Events...)
		for i := range a.RuntimeEvents {
			log = append(log, *a.RuntimeEvents[i].event())
		}
		return log, nil
	}
	if len(inLog) != len(a.RuntimeEvents) {
		return nil, fmt.Errorf("attestation: event log has %d runtime events, the list of them %d", len(inLog), len(a.RuntimeEvents))
	}
	for i, r := range a.RuntimeEvents {
		if inLog[i].Name != r.Name || string(inLog[i].Payload) != string(r.Payload) || (inLog[i].Version == 2) != (r.Version == 2) {
			return nil, fmt.Errorf("attestation: runtime event %d of the event log is not that of the list", i)
		}
	}
	return a.Events, nil
}

// vmConfig finds the machine's description in the config: guests have been seen
// to put it as a string into their whole system configuration.
func vmConfig(config string) string {
	var system struct {
		VMConfig *string `json:"vm_config"`
	}
	if json.Unmarshal([]byte(config), &system) == nil && system.VMConfig != nil {
		return *system.VMConfig
	}
	return config
}
