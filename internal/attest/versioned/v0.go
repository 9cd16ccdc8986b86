package versioned

import (
	"fmt"

	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/versioned/scale"
)

// Version 0 of a TDX guest:
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
func parse0(b []byte) (*Attestation, error) {
	if len(b) < 2 {
		return nil, scale.ErrShort
	}
	if b[1] != kindTDX {
		return nil, fmt.Errorf("%s is %w, only TDX", kindName(b[1]), ErrUnsupported)
	}
	d := scale.NewDecoder(b[2:])
	a := new(Attestation)
	var err error
	if a.Quote, err = d.Bytes(); err != nil {
		return nil, fmt.Errorf("quote: %w", err)
	}
	if a.Events, err = readEvents(d); err != nil {
		return nil, err
	}
	if a.RuntimeEvents, err = readRuntimeEvents(d); err != nil {
		return nil, err
	}
	rd, err := d.Take(len(a.ReportData))
	if err != nil {
		return nil, fmt.Errorf("report data: %w", err)
	}
	copy(a.ReportData[:], rd)
	if a.Config, err = d.Text(); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if n := len(d.Rest()); n > 0 {
		return nil, fmt.Errorf("%d bytes after the end", n)
	}
	return a, nil
}

// Smallest encodings, to hold a count against the bytes that are left.
const (
	minEvent        = 4 + 4 + 1 + 1 + 1
	minRuntimeEvent = 1 + 1
)

func readEvents(d *scale.Decoder) (eventlog.Log, error) {
	n, err := d.Count(minEvent, eventlog.MaxEvents)
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

func readEvent(d *scale.Decoder, e *eventlog.Event) (err error) {
	if e.IMR, err = d.Uint32(); err != nil {
		return fmt.Errorf("imr: %w", err)
	}
	if e.Type, err = d.Uint32(); err != nil {
		return fmt.Errorf("event_type: %w", err)
	}
	if e.Digest, err = d.Bytes(); err != nil {
		return fmt.Errorf("digest: %w", err)
	}
	if e.Name, err = d.Text(); err != nil {
		return fmt.Errorf("event: %w", err)
	}
	if e.Payload, err = d.Bytes(); err != nil {
		return fmt.Errorf("event_payload: %w", err)
	}
	return nil
}

func readRuntimeEvents(d *scale.Decoder) ([]RuntimeEvent, error) {
	n, err := d.Count(minRuntimeEvent, eventlog.MaxEvents)
	if err != nil {
		return nil, fmt.Errorf("runtime events: %w", err)
	}
	events := make([]RuntimeEvent, n)
	for i := range events {
		r := &events[i]
		if r.Name, err = d.Text(); err != nil {
			return nil, fmt.Errorf("runtime event %d: event: %w", i, err)
		}
		if r.Payload, err = d.Bytes(); err != nil {
			return nil, fmt.Errorf("runtime event %d: payload: %w", i, err)
		}
		if err := r.event().Check(); err != nil {
			return nil, fmt.Errorf("runtime event %d: %w", i, err)
		}
	}
	return events, nil
}

// marshal0 writes version 0, which has no place for the form of a digest: no
// event may be of version 2.
func (a *Attestation) marshal0() []byte {
	e := scale.Encoder{versionSCALE, kindTDX}
	e.Bytes(a.Quote)
	e.Compact(len(a.Events))
	for i := range a.Events {
		ev := &a.Events[i]
		e.Uint32(ev.IMR)
		e.Uint32(ev.Type)
		e.Bytes(ev.Digest)
		e.Text(ev.Name)
		e.Bytes(ev.Payload)
	}
	e.Compact(len(a.RuntimeEvents))
	for _, r := range a.RuntimeEvents {
		e.Text(r.Name)
		e.Bytes(r.Payload)
	}
	e.Raw(a.ReportData[:])
	e.Text(a.Config)
	return e
}
