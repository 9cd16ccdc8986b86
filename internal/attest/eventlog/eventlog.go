// Package eventlog holds the events that were extended into the RTMRs of a
// trust domain: it parses their JSON text, replays it and finds in it what an
// application is (docs/wire.md#event-log).
//
// A log is a claim until [Log.Replay] gives the RTMRs of a verified quote. Only
// then do its digests mean something, and of its names and payloads only those
// of runtime events: a boot event's payload is covered by nothing here.
package eventlog

import (
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"unicode/utf8"

	"teekms/internal/attest"
)

// RuntimeEventType is the event_type of events that software in the trust
// domain extends into RTMR3 by name.
const RuntimeEventType uint32 = 0x08000001

// RuntimeIMR is the index of the register that runtime events go to.
const RuntimeIMR = 3

// The bounds of a log. A log of a real guest has about 30 events and 20 KB, one
// of a firmware about 50 events.
const (
	MaxTextSize    = 4 << 20
	MaxEvents      = 4096
	MaxNameSize    = 1024
	MaxPayloadSize = 1 << 20
	// maxDepth bounds values of keys that are not ours.
	maxDepth = 16
)

// Event is one extension of one RTMR.
type Event struct {
	// IMR is the index of the RTMR, 0 to 3.
	IMR uint32
	// Type is the TCG event type, or [RuntimeEventType].
	Type uint32
	// Digest is what the register was extended with, 48 bytes; empty where a
	// runtime event was stripped of it, as it is recomputed anyway.
	Digest []byte
	// Name names a runtime event; in other events it is a remark.
	Name string
	// Payload is covered by the digest in runtime events only.
	Payload []byte
	// Version is the form of a runtime event's digest: 1 (0 means 1) or 2.
	Version int
}

// Runtime says whether the event's name and payload are what was measured.
func (e *Event) Runtime() bool { return e.Type == RuntimeEventType }

// MeasuredDigest returns what extends the register: for a runtime event the
// digest of its name and payload, which a digest in the log must equal; for
// another event the digest in the log.
func (e *Event) MeasuredDigest() (attest.Measurement, error) {
	var d attest.Measurement
	if !e.Runtime() {
		if len(e.Digest) != len(d) {
			return d, fmt.Errorf("digest of %d bytes, want %d", len(e.Digest), len(d))
		}
		copy(d[:], e.Digest)
		return d, nil
	}
	d = runtimeDigest(e)
	if len(e.Digest) > 0 && string(e.Digest) != string(d[:]) {
		return d, fmt.Errorf("digest of runtime event %q is not that of its name and payload", e.Name)
	}
	return d, nil
}

// Check says whether the event obeys the rules of [Parse].
func (e *Event) Check() error {
	switch {
	case e.IMR > 3:
		return fmt.Errorf("imr is %d, want 0 to 3", e.IMR)
	case e.Runtime() && e.IMR != RuntimeIMR:
		return fmt.Errorf("runtime event on imr %d, want %d", e.IMR, RuntimeIMR)
	case len(e.Digest) != 0 && len(e.Digest) != attest.MeasurementSize:
		return fmt.Errorf("digest of %d bytes, want %d or none", len(e.Digest), attest.MeasurementSize)
	case len(e.Name) > MaxNameSize:
		return fmt.Errorf("event of %d bytes, want at most %d", len(e.Name), MaxNameSize)
	case !utf8.ValidString(e.Name):
		return errors.New("event is not UTF-8")
	case len(e.Payload) > MaxPayloadSize:
		return fmt.Errorf("event_payload of %d bytes, want at most %d", len(e.Payload), MaxPayloadSize)
	case e.Version < 0 || e.Version > 2:
		return fmt.Errorf("version is %d, want 1 or 2", e.Version)
	}
	return nil
}

// runtimeDigest computes the digest of a runtime event in its version's form
// (docs/wire.md#event-log).
func runtimeDigest(e *Event) attest.Measurement {
	if e.Version == 2 {
		text := append([]byte(`{"name":`), canonicalString(e.Name)...)
		text = append(text, `,"payload":"`...)
		text = hex.AppendEncode(text, e.Payload)
		text = append(text, fmt.Sprintf(`","type":%d}`, e.Type)...)
		return sha512.Sum384(text)
	}
	text := binary.LittleEndian.AppendUint32(nil, e.Type)
	text = append(text, ':')
	text = append(text, e.Name...)
	text = append(text, ':')
	return sha512.Sum384(append(text, e.Payload...))
}

// canonicalString writes a JSON string as RFC 8785 §3.2.2.2 wants it: only
// quote, backslash and control characters are escaped, in the shortest way.
func canonicalString(s string) []byte {
	out := []byte{'"'}
	for i := range len(s) {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c == '\b':
			out = append(out, `\b`...)
		case c == '\t':
			out = append(out, `\t`...)
		case c == '\n':
			out = append(out, `\n`...)
		case c == '\f':
			out = append(out, `\f`...)
		case c == '\r':
			out = append(out, `\r`...)
		case c < 0x20:
			out = append(out, fmt.Sprintf(`\u%04x`, c)...)
		default:
			out = append(out, c)
		}
	}
	return append(out, '"')
}

// Log is the events of a trust domain in the order of their extension.
type Log []Event

// RuntimeEvents returns the runtime events in order.
func (l Log) RuntimeEvents() []Event {
	var out []Event
	for _, e := range l {
		if e.Runtime() {
			out = append(out, e)
		}
	}
	return out
}
