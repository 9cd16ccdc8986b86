package eventlog

import (
	"crypto/sha512"
	"errors"
	"fmt"

	"teekms/internal/attest"
)

// ErrNoEvent says that a log has no runtime event of a name.
var ErrNoEvent = errors.New("no such runtime event")

// Replay extends four registers of zeros with the events in order and returns
// them, to be compared with the RTMRs of a verified quote. Digests of runtime
// events are computed, never taken; one in the log that differs is an error,
// as is a boot event without one.
//
// A log that was stripped for a certificate has no boot events: of its replay
// only register 3 means something.
func (l Log) Replay() ([4]attest.Measurement, error) {
	return l.replay(func(*Event) bool { return false })
}

// ReplayUntil is [Log.Replay] up to the first runtime event called name, which
// is included. It returns [ErrNoEvent] when there is none.
func (l Log) ReplayUntil(name string) ([4]attest.Measurement, error) {
	found := false
	rtmr, err := l.replay(func(e *Event) bool {
		found = e.Runtime() && e.Name == name
		return found
	})
	if err == nil && !found {
		return rtmr, fmt.Errorf("%q: %w", name, ErrNoEvent)
	}
	return rtmr, err
}

func (l Log) replay(last func(*Event) bool) ([4]attest.Measurement, error) {
	var rtmr [4]attest.Measurement
	for i := range l {
		e := &l[i]
		if err := e.Check(); err != nil {
			return [4]attest.Measurement{}, fmt.Errorf("event %d: %w", i, err)
		}
		d, err := e.MeasuredDigest()
		if err != nil {
			return [4]attest.Measurement{}, fmt.Errorf("event %d: %w", i, err)
		}
		rtmr[e.IMR] = Extend(rtmr[e.IMR], d)
		if last(e) {
			break
		}
	}
	return rtmr, nil
}

// Extend returns what a register holds after it was extended with digest:
// SHA-384 of both.
func Extend(register, digest attest.Measurement) attest.Measurement {
	var both [2 * attest.MeasurementSize]byte
	copy(both[:], register[:])
	copy(both[attest.MeasurementSize:], digest[:])
	return sha512.Sum384(both[:])
}
