package versioned

import (
	"errors"
	"fmt"
	"math"

	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/versioned/msgpack"
)

// Version 1 of a TDX guest, in MessagePack:
//
//	{"version": 1,
//	 "platform": {"kind": "tdx", "data": {"quote": ints, "event_log": [event]}},
//	 "stack": {"kind": "dstack", "data": {"report_data": ints, "runtime_events": [runtime], "config": text}}}
//
//	event:   {"imr", "event_type", "digest": bin, "event": text, "event_payload": bin, ["version": 2], ["preimage": bin]}
//	runtime: {"event": text, "payload": bin, ["version": 2]}
//
// ints is an array of integers; their readers refuse binary there. A preimage
// is passed over: it follows from name and payload.
const (
	kindNameTDX    = "tdx"
	kindNameDstack = "dstack"
)

func parse1(b []byte) (*Attestation, error) {
	d := msgpack.NewDecoder(b)
	a := new(Attestation)
	var platform, stack []byte
	err := d.Object(map[string]func() error{
		"version":  func() error { return readVersion(d, 1) },
		"platform": func() (err error) { platform, err = tagged(d, kindNameTDX); return err },
		"stack":    func() (err error) { stack, err = tagged(d, kindNameDstack); return err },
	}, "version", "platform", "stack")
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller says what it is about
	}
	if n := len(d.Rest()); n > 0 {
		return nil, fmt.Errorf("%d bytes after the end", n)
	}
	if err := a.readPlatform(platform); err != nil {
		return nil, fmt.Errorf("platform: %w", err)
	}
	if err := a.readStack(stack); err != nil {
		return nil, fmt.Errorf("stack: %w", err)
	}
	return a, nil
}

func readVersion(d *msgpack.Decoder, want uint64) error {
	v, err := d.Uint(math.MaxUint64)
	if err == nil && v != want {
		err = fmt.Errorf("is %d, want %d", v, want)
	}
	return err
}

// tagged returns the data of {"kind": kind, "data": data}.
func tagged(d *msgpack.Decoder, kind string) (data []byte, err error) {
	var got string
	err = d.Object(map[string]func() error{
		"kind": func() (err error) { got, err = d.Text(); return err },
		"data": func() (err error) { data, err = d.Value(); return err },
	}, "kind", "data")
	if err == nil && got != kind {
		return nil, fmt.Errorf("%q is %w, only %s", clipped(got), ErrUnsupported, kind)
	}
	return data, err //nolint:wrapcheck // the caller names the field
}

// clipped bounds what is repeated of the input.
func clipped(s string) string { return s[:min(len(s), 32)] }

func (a *Attestation) readPlatform(b []byte) error {
	d := msgpack.NewDecoder(b)
	return d.Object(map[string]func() error{ //nolint:wrapcheck // the caller names it
		"quote": func() (err error) { a.Quote, err = d.Bytes(); return err },
		"event_log": func() error {
			return readList(d, func() error {
				e, err := readEvent1(d)
				a.Events = append(a.Events, e)
				return err
			})
		},
	}, "quote", "event_log")
}

func (a *Attestation) readStack(b []byte) error {
	d := msgpack.NewDecoder(b)
	return d.Object(map[string]func() error{ //nolint:wrapcheck // the caller names it
		"report_data": func() error {
			rd, err := d.Bytes()
			if err == nil && len(rd) != len(a.ReportData) {
				err = fmt.Errorf("%d bytes, want %d", len(rd), len(a.ReportData))
			}
			copy(a.ReportData[:], rd)
			return err
		},
		"runtime_events": func() error {
			return readList(d, func() error {
				r, err := readRuntimeEvent1(d)
				a.RuntimeEvents = append(a.RuntimeEvents, r)
				return err
			})
		},
		"config": func() (err error) { a.Config, err = d.Text(); return err },
	}, "report_data", "runtime_events", "config")
}

// readList reads an array of events.
func readList(d *msgpack.Decoder, element func() error) error {
	n, err := d.Array()
	if err != nil {
		return err //nolint:wrapcheck // the caller names the field
	}
	if n > eventlog.MaxEvents {
		return errTooMany
	}
	for i := range n {
		if err := element(); err != nil {
			return fmt.Errorf("%d: %w", i, err)
		}
	}
	return nil
}

func readEvent1(d *msgpack.Decoder) (e eventlog.Event, err error) {
	number := func(dst *uint32) func() error {
		return func() error {
			v, err := d.Uint(math.MaxUint32)
			*dst = uint32(v)
			return err //nolint:wrapcheck // Object names the field
		}
	}
	err = d.Object(map[string]func() error{
		"imr":           number(&e.IMR),
		"event_type":    number(&e.Type),
		"digest":        func() (err error) { e.Digest, err = d.Bytes(); return err },
		"event":         func() (err error) { e.Name, err = d.Text(); return err },
		"event_payload": func() (err error) { e.Payload, err = d.Bytes(); return err },
		"version":       func() (err error) { e.Version, err = readForm(d); return err },
	}, "imr", "event_type", "event", "event_payload")
	if err != nil {
		return e, err //nolint:wrapcheck // the caller names it
	}
	return e, e.Check() //nolint:wrapcheck // as above
}

func readRuntimeEvent1(d *msgpack.Decoder) (r RuntimeEvent, err error) {
	err = d.Object(map[string]func() error{
		"event":   func() (err error) { r.Name, err = d.Text(); return err },
		"payload": func() (err error) { r.Payload, err = d.Bytes(); return err },
		"version": func() (err error) { r.Version, err = readForm(d); return err },
	}, "event", "payload")
	if err != nil {
		return r, err //nolint:wrapcheck // the caller names it
	}
	return r, r.event().Check() //nolint:wrapcheck // as above
}

// readForm reads the form of a digest. The first form has one spelling in
// memory, 0.
func readForm(d *msgpack.Decoder) (int, error) {
	if d.Nil() {
		return 0, nil
	}
	v, err := d.Uint(2)
	switch {
	case err != nil:
		return 0, err //nolint:wrapcheck // the caller names the field
	case v == 0:
		return 0, errors.New("is 0, want 1 or 2")
	case v == 1:
		return 0, nil
	}
	return 2, nil
}

func (a *Attestation) marshal1() []byte {
	var e msgpack.Encoder
	e.Map(3)
	e.Text("version")
	e.Uint(1)
	e.Text("platform")
	tag(&e, kindNameTDX, 2)
	e.Text("quote")
	e.Integers(a.Quote)
	e.Text("event_log")
	e.Array(len(a.Events))
	for i := range a.Events {
		writeEvent1(&e, &a.Events[i])
	}
	e.Text("stack")
	tag(&e, kindNameDstack, 3)
	e.Text("report_data")
	e.Integers(a.ReportData[:])
	e.Text("runtime_events")
	e.Array(len(a.RuntimeEvents))
	for i := range a.RuntimeEvents {
		r := &a.RuntimeEvents[i]
		e.Map(2 + formPairs(r.Version))
		e.Text("event")
		e.Text(r.Name)
		e.Text("payload")
		e.Bytes(r.Payload)
		writeForm(&e, r.Version)
	}
	e.Text("config")
	e.Text(a.Config)
	return e
}

// tag begins {"kind": kind, "data": a map of n pairs}.
func tag(e *msgpack.Encoder, kind string, n int) {
	e.Map(2)
	e.Text("kind")
	e.Text(kind)
	e.Text("data")
	e.Map(n)
}

func writeEvent1(e *msgpack.Encoder, ev *eventlog.Event) {
	e.Map(5 + formPairs(ev.Version))
	e.Text("imr")
	e.Uint(uint64(ev.IMR))
	e.Text("event_type")
	e.Uint(uint64(ev.Type))
	e.Text("digest")
	e.Bytes(ev.Digest)
	e.Text("event")
	e.Text(ev.Name)
	e.Text("event_payload")
	e.Bytes(ev.Payload)
	writeForm(e, ev.Version)
}

// formPairs is how many pairs writeForm writes.
func formPairs(version int) int {
	if version == 2 {
		return 1
	}
	return 0
}

func writeForm(e *msgpack.Encoder, version int) {
	if version == 2 {
		e.Text("version")
		e.Uint(2)
	}
}
