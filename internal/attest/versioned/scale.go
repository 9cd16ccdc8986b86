package versioned

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"teekms/internal/attest/eventlog"
)

var (
	errShort    = errors.New("ends too early")
	errCompact  = errors.New("length not in its shortest form")
	errTooLarge = errors.New("length larger than any attestation")
	errTooMany  = fmt.Errorf("more than %d", eventlog.MaxEvents)
	errNotUTF8  = errors.New("not UTF-8")
)

// decoder reads SCALE: https://docs.polkadot.com, "SCALE codec". Its slices
// alias the input.
type decoder struct{ rest []byte }

func (d *decoder) take(n int) ([]byte, error) {
	if n > len(d.rest) {
		return nil, errShort
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b, nil
}

func (d *decoder) uint32() (uint32, error) {
	b, err := d.take(4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

// compact reads a number whose two lowest bits tell its size: 1, 2 or 4 bytes.
// The fourth form is for numbers from 2^30 on, which no length here reaches.
func (d *decoder) compact() (int, error) {
	if len(d.rest) == 0 {
		return 0, errShort
	}
	mode := d.rest[0] & 3
	if mode == 3 {
		return 0, errTooLarge
	}
	size := 1 << mode
	b, err := d.take(size)
	if err != nil {
		return 0, err
	}
	var wide [4]byte
	copy(wide[:], b)
	n := int(binary.LittleEndian.Uint32(wide[:]) >> 2)
	if mode == 1 && n < 1<<6 || mode == 2 && n < 1<<14 {
		return 0, errCompact
	}
	return n, nil
}

func (d *decoder) bytes() ([]byte, error) {
	n, err := d.compact()
	if err != nil || n == 0 {
		return nil, err
	}
	return d.take(n)
}

func (d *decoder) text() (string, error) {
	b, err := d.bytes()
	if err != nil {
		return "", err
	}
	if !utf8.Valid(b) {
		return "", errNotUTF8
	}
	return string(b), nil
}

// count reads the length of a vector whose elements have at least size bytes.
func (d *decoder) count(size int) (int, error) {
	n, err := d.compact()
	switch {
	case err != nil:
		return 0, err
	case n > eventlog.MaxEvents:
		return 0, errTooMany
	case n > len(d.rest)/size:
		return 0, errShort
	}
	return n, nil
}

// encoder writes SCALE.
type encoder []byte

func (e *encoder) uint32(v uint32) { *e = binary.LittleEndian.AppendUint32(*e, v) }

// compact writes a length in its shortest form. Lengths are below 2^30: what is
// larger fails the caller's check of the whole.
func (e *encoder) compact(n int) {
	switch {
	case n < 1<<6:
		*e = append(*e, byte(n<<2))
	case n < 1<<14:
		*e = binary.LittleEndian.AppendUint16(*e, uint16(n<<2|1))
	default:
		*e = binary.LittleEndian.AppendUint32(*e, uint32(n<<2|2))
	}
}

func (e *encoder) bytes(b []byte) {
	e.compact(len(b))
	*e = append(*e, b...)
}
