// Package versioned reads and writes the dstack VersionedAttestation: Evidence
// in one byte string, as a guest agent answers it and as certificates and
// signing requests carry it. It does version 0, which is SCALE-encoded, for TDX
// (docs/wire.md#versioned-attestation).
package versioned

import (
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/tdx"
)

// MaxSize bounds an encoded attestation, in bytes.
const MaxSize = 10 << 20

// ErrUnsupported says that an attestation is of a version or a kind that this
// package does not read. It may be a good one all the same.
var ErrUnsupported = errors.New("not supported")

// Attestation is a version 0 attestation of a TDX guest:
//
//	00                 version 0
//	00                 TDX
//	bytes              quote
//	vector             events: u32 imr, u32 event_type, bytes digest, string event, bytes event_payload
//	vector             runtime events: string event, bytes payload
//	[64]byte           report data
//	string             config
//
// bytes, string and vector start with a compact length; u32 is little-endian.
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

// RuntimeEvent is a named event of RTMR3, in the first form of its digest.
type RuntimeEvent struct {
	Name    string
	Payload []byte
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

// checkVersion tells the formats apart by the first byte.
func checkVersion(b byte) error {
	switch {
	case b == versionSCALE:
		return nil
	case b >= 0x80 && b <= 0x8f, b == 0xde, b == 0xdf:
		return fmt.Errorf("version 1 (MessagePack) is %w", ErrUnsupported)
	}
	return fmt.Errorf("unknown format 0x%02x", b)
}

// Parse reads an attestation. It is strict: nothing may follow, lengths must be
// in their shortest form, and events obey the rules of package eventlog, so that
// what it accepts has one encoding. Nothing in it is verified.
func Parse(b []byte) (*Attestation, error) {
	a, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("reading attestation: %w", err)
	}
	return a, nil
}

func parse(b []byte) (*Attestation, error) {
	switch {
	case len(b) > MaxSize:
		return nil, fmt.Errorf("%d bytes, want at most %d", len(b), MaxSize)
	case len(b) < 2:
		return nil, errShort
	}
	if err := checkVersion(b[0]); err != nil {
		return nil, err
	}
	if b[1] != kindTDX {
		return nil, fmt.Errorf("%s is %w, only TDX", kindName(b[1]), ErrUnsupported)
	}
	d := decoder{b[2:]}
	a := new(Attestation)
	var err error
	if a.Quote, err = d.bytes(); err != nil {
		return nil, fmt.Errorf("quote: %w", err)
	}
	if a.Events, err = readEvents(&d); err != nil {
		return nil, err
	}
	if a.RuntimeEvents, err = readRuntimeEvents(&d); err != nil {
		return nil, err
	}
	rd, err := d.take(len(a.ReportData))
	if err != nil {
		return nil, fmt.Errorf("report data: %w", err)
	}
	copy(a.ReportData[:], rd)
	if a.Config, err = d.text(); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if len(d.rest) > 0 {
		return nil, fmt.Errorf("%d bytes after the end", len(d.rest))
	}
	return a, nil
}

// Smallest encodings, to hold a count against the bytes that are left.
const (
	minEvent        = 4 + 4 + 1 + 1 + 1
	minRuntimeEvent = 1 + 1
)

func readEvents(d *decoder) (eventlog.Log, error) {
	n, err := d.count(minEvent)
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	log := make(eventlog.Log, n)
	for i := range log {
		e := &log[i]
		if err := readEvent(d, e); err != nil {
			return nil, fmt.Errorf("event %d: %w", i, err)
		}
		if err := e.Check(); err != nil {
			return nil, fmt.Errorf("event %d: %w", i, err)
		}
	}
	return log, nil
}

func readEvent(d *decoder, e *eventlog.Event) (err error) {
	if e.IMR, err = d.uint32(); err != nil {
		return fmt.Errorf("imr: %w", err)
	}
	if e.Type, err = d.uint32(); err != nil {
		return fmt.Errorf("event_type: %w", err)
	}
	if e.Digest, err = d.bytes(); err != nil {
		return fmt.Errorf("digest: %w", err)
	}
	if e.Name, err = d.text(); err != nil {
		return fmt.Errorf("event: %w", err)
	}
	if e.Payload, err = d.bytes(); err != nil {
		return fmt.Errorf("event_payload: %w", err)
	}
	return nil
}

func readRuntimeEvents(d *decoder) ([]RuntimeEvent, error) {
	n, err := d.count(minRuntimeEvent)
	if err != nil {
		return nil, fmt.Errorf("runtime events: %w", err)
	}
	events := make([]RuntimeEvent, n)
	for i := range events {
		r := &events[i]
		if r.Name, err = d.text(); err != nil {
			return nil, fmt.Errorf("runtime event %d: event: %w", i, err)
		}
		if r.Payload, err = d.bytes(); err != nil {
			return nil, fmt.Errorf("runtime event %d: payload: %w", i, err)
		}
		if err := r.event().Check(); err != nil {
			return nil, fmt.Errorf("runtime event %d: %w", i, err)
		}
	}
	return events, nil
}

func (r RuntimeEvent) event() *eventlog.Event {
	return &eventlog.Event{IMR: eventlog.RuntimeIMR, Type: eventlog.RuntimeEventType, Name: r.Name, Payload: r.Payload}
}

// Marshal writes the attestation as [Parse] reads it. Events whose digest has
// the second form cannot be written, as version 0 does not carry the form.
func (a *Attestation) Marshal() ([]byte, error) {
	e := encoder{versionSCALE, kindTDX}
	e.bytes(a.Quote)
	e.compact(len(a.Events))
	for i := range a.Events {
		ev := &a.Events[i]
		if ev.Version == 2 {
			return nil, fmt.Errorf("writing attestation: event %d: version 2 has no place in it", i)
		}
		if err := ev.Check(); err != nil {
			return nil, fmt.Errorf("writing attestation: event %d: %w", i, err)
		}
		e.uint32(ev.IMR)
		e.uint32(ev.Type)
		e.bytes(ev.Digest)
		e.bytes([]byte(ev.Name))
		e.bytes(ev.Payload)
	}
	e.compact(len(a.RuntimeEvents))
	for i, r := range a.RuntimeEvents {
		if err := r.event().Check(); err != nil {
			return nil, fmt.Errorf("writing attestation: runtime event %d: %w", i, err)
		}
		e.bytes([]byte(r.Name))
		e.bytes(r.Payload)
	}
	e = append(e, a.ReportData[:]...)
	if !utf8.ValidString(a.Config) {
		return nil, errors.New("writing attestation: config is not UTF-8")
	}
	e.bytes([]byte(a.Config))
	if len(a.Events) > eventlog.MaxEvents || len(a.RuntimeEvents) > eventlog.MaxEvents || len(e) > MaxSize {
		return nil, fmt.Errorf("writing attestation: %d events in %d bytes, want at most %d in %d", len(a.Events), len(e), eventlog.MaxEvents, MaxSize)
	}
	return e, nil
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
		if e.Version == 2 {
			return nil, errors.New("making attestation: runtime event of version 2 has no place in version 0")
		}
		a.RuntimeEvents = append(a.RuntimeEvents, RuntimeEvent{e.Name, e.Payload})
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
		for _, r := range a.RuntimeEvents {
			log = append(log, *r.event())
		}
		return log, nil
	}
	if len(inLog) != len(a.RuntimeEvents) {
		return nil, fmt.Errorf("attestation: event log has %d runtime events, the list of them %d", len(inLog), len(a.RuntimeEvents))
	}
	for i, r := range a.RuntimeEvents {
		if inLog[i].Name != r.Name || string(inLog[i].Payload) != string(r.Payload) {
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
