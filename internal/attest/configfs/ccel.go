package configfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
)

// The event log of the firmware is in the crypto-agile format of the TCG PC
// Client Platform Firmware Profile §10.2, little-endian:
//
//	u32 index | u32 type = 3 | 20 zero bytes | u32 size | Spec ID event
//	then events: u32 index | u32 type | u32 n | n × (u16 algorithm | digest) | u32 size | data
//	then 0xff or 0x00 to the end of the area
//
//	Spec ID event: "Spec ID Event03\0" | u32 class | 4 × u8 | u32 n | n × (u16 algorithm | u16 digest size) | u8 size | vendor data
const (
	maxCCEL = 4 << 20
	// maxAlgorithms is far above the three or four that firmwares know.
	maxAlgorithms = 16
	maxDigest     = 64
	// maxEventPayload bounds what is copied into our log. Larger payloads are
	// left out whole, so that a part cannot be taken for all.
	maxEventPayload = 4096

	evNoAction = 3
	algSHA384  = 0x000c
	specID     = "Spec ID Event03\x00"
)

// readCCEL returns the JSON text of the firmware's log, nil when there is none.
func readCCEL(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err //nolint:wrapcheck // it names the path
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxCCEL+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	log, err := ParseCCEL(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	text, err := log.Marshal()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return text, nil
}

// ParseCCEL reads a firmware's log into the events that were extended into the
// RTMRs; register index 1 of the log is RTMR0. Events that are not extended, and
// those of index 0, which is MRTD, are left out.
func ParseCCEL(b []byte) (eventlog.Log, error) {
	if len(b) > maxCCEL {
		return nil, fmt.Errorf("log of more than %d bytes", maxCCEL)
	}
	r := reader{b}
	sizes, err := r.header()
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	log := eventlog.Log{}
	for n := 0; ; n++ {
		end, err := r.padding()
		if err != nil {
			return nil, fmt.Errorf("before event %d: %w", n, err)
		}
		if end {
			return log, nil
		}
		if n == eventlog.MaxEvents {
			return nil, fmt.Errorf("more than %d events", eventlog.MaxEvents)
		}
		e, err := r.event(sizes)
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", n, err)
		}
		if e != nil {
			log = append(log, *e)
		}
	}
}

var errShort = errors.New("ends too early")

// reader reads little-endian integers and byte strings from the front.
type reader struct{ rest []byte }

func (r *reader) take(n uint32) ([]byte, error) {
	if uint64(n) > uint64(len(r.rest)) {
		return nil, errShort
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b, nil
}

func (r *reader) uint32() (uint32, error) {
	b, err := r.take(4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (r *reader) uint16() (uint16, error) {
	b, err := r.take(2)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint16(b), nil
}

// sized reads a byte string that its length goes before.
func (r *reader) sized() ([]byte, error) {
	n, err := r.uint32()
	if err != nil {
		return nil, err
	}
	return r.take(n)
}

// minEvent is the size of an event without digests and data.
const minEvent = 16

// padding says whether the events are over. What looks like fill must be fill
// to the end.
func (r *reader) padding() (bool, error) {
	head := r.rest[:min(len(r.rest), minEvent)]
	if !uniform(head, 0x00) && !uniform(head[:min(len(head), 4)], 0xff) {
		return false, nil
	}
	if len(head) > 0 && !uniform(r.rest, head[0]) {
		return false, errors.New("something follows the fill")
	}
	return true, nil
}

func uniform(b []byte, fill byte) bool {
	for _, c := range b {
		if c != fill {
			return false
		}
	}
	return true
}

// header reads the first event and returns the digest size of each algorithm.
func (r *reader) header() (map[uint16]uint32, error) {
	fixed, err := r.take(4 + 4 + 20)
	if err != nil {
		return nil, err
	}
	if kind := binary.LittleEndian.Uint32(fixed[4:]); kind != evNoAction {
		return nil, fmt.Errorf("type is %d, want %d", kind, evNoAction)
	}
	data, err := r.sized()
	if err != nil {
		return nil, err
	}
	d := reader{data}
	signature, err := d.take(uint32(len(specID)))
	if err != nil {
		return nil, err
	}
	if string(signature) != specID {
		return nil, errors.New("not a log of the crypto-agile format")
	}
	if _, err := d.take(8); err != nil { // platform class, versions, size of an integer
		return nil, err
	}
	return d.algorithms()
}

func (r *reader) algorithms() (map[uint16]uint32, error) {
	n, err := r.uint32()
	if err != nil {
		return nil, err
	}
	if n > maxAlgorithms {
		return nil, fmt.Errorf("%d algorithms, want at most %d", n, maxAlgorithms)
	}
	sizes := make(map[uint16]uint32, n)
	for range n {
		alg, err := r.uint16()
		if err != nil {
			return nil, err
		}
		size, err := r.uint16()
		if err != nil {
			return nil, err
		}
		if _, twice := sizes[alg]; twice || size == 0 || size > maxDigest {
			return nil, fmt.Errorf("algorithm 0x%04x given twice or with a digest of %d bytes", alg, size)
		}
		sizes[alg] = uint32(size)
	}
	if sizes[algSHA384] != attest.MeasurementSize {
		return nil, errors.New("no SHA-384 in it")
	}
	return sizes, nil
}

// event reads one event, nil for one that extended no RTMR.
func (r *reader) event(sizes map[uint16]uint32) (*eventlog.Event, error) {
	index, err := r.uint32()
	if err != nil {
		return nil, err
	}
	kind, err := r.uint32()
	if err != nil {
		return nil, err
	}
	digest, err := r.digests(sizes)
	if err != nil {
		return nil, err
	}
	payload, err := r.sized()
	if err != nil {
		return nil, err
	}
	if kind == evNoAction || index == 0 {
		return nil, nil
	}
	if digest == nil {
		return nil, errors.New("no SHA-384 digest")
	}
	e := &eventlog.Event{IMR: index - 1, Type: kind, Digest: bytes.Clone(digest)}
	if len(payload) <= maxEventPayload {
		e.Payload = bytes.Clone(payload)
	}
	return e, e.Check()
}

// digests reads the digests of an event and returns the one in SHA-384.
func (r *reader) digests(sizes map[uint16]uint32) ([]byte, error) {
	n, err := r.uint32()
	if err != nil {
		return nil, err
	}
	if n > maxAlgorithms {
		return nil, fmt.Errorf("%d digests, want at most %d", n, maxAlgorithms)
	}
	var sha384 []byte
	for range n {
		alg, err := r.uint16()
		if err != nil {
			return nil, err
		}
		size, ok := sizes[alg]
		if !ok {
			return nil, fmt.Errorf("algorithm 0x%04x is not in the header", alg)
		}
		digest, err := r.take(size)
		if err != nil {
			return nil, err
		}
		if alg == algSHA384 {
			if sha384 != nil {
				return nil, errors.New("two SHA-384 digests")
			}
			sha384 = digest
		}
	}
	return sha384, nil
}
