// Package scale reads and writes the part of the SCALE codec that dstack's
// formats use: https://docs.polkadot.com, "SCALE codec". It reads only what has
// been written in the one way there is, so that what it accepts has one
// encoding.
package scale

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

var (
	// ErrShort says that the input ends before the value does.
	ErrShort = errors.New("ends too early")

	errCompact  = errors.New("length not in its shortest form")
	errTooLarge = errors.New("length larger than any attestation")
	errNotUTF8  = errors.New("not UTF-8")
)

// Decoder reads values one after the other. Its slices alias the input.
type Decoder struct{ rest []byte }

// NewDecoder reads from b.
func NewDecoder(b []byte) *Decoder { return &Decoder{b} }

// Rest returns what has not been read.
func (d *Decoder) Rest() []byte { return d.rest }

// Take reads n bytes.
func (d *Decoder) Take(n int) ([]byte, error) {
	if n > len(d.rest) {
		return nil, ErrShort
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b, nil
}

// Uint32 reads four bytes, little-endian.
func (d *Decoder) Uint32() (uint32, error) {
	b, err := d.Take(4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

// Uint64 reads eight bytes, little-endian.
func (d *Decoder) Uint64() (uint64, error) {
	b, err := d.Take(8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// Bool reads one byte, 0 or 1. An Option begins with one, too.
func (d *Decoder) Bool() (bool, error) {
	b, err := d.Take(1)
	if err != nil {
		return false, err
	}
	if b[0] > 1 {
		return false, fmt.Errorf("is 0x%02x, want 00 or 01", b[0])
	}
	return b[0] == 1, nil
}

// Compact reads a number whose two lowest bits tell its size: 1, 2 or 4 bytes.
// The fourth form is for numbers from 2^30 on, which no length here reaches.
func (d *Decoder) Compact() (int, error) {
	if len(d.rest) == 0 {
		return 0, ErrShort
	}
	mode := d.rest[0] & 3
	if mode == 3 {
		return 0, errTooLarge
	}
	b, err := d.Take(1 << mode)
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

// Bytes reads a length and as many bytes; nil when there are none.
func (d *Decoder) Bytes() ([]byte, error) {
	n, err := d.Compact()
	if err != nil || n == 0 {
		return nil, err
	}
	return d.Take(n)
}

// Text reads [Decoder.Bytes] that are UTF-8.
func (d *Decoder) Text() (string, error) {
	b, err := d.Bytes()
	if err != nil {
		return "", err
	}
	if !utf8.Valid(b) {
		return "", errNotUTF8
	}
	return string(b), nil
}

// Count reads the length of a vector of at most limit elements that have at
// least size bytes each.
func (d *Decoder) Count(size, limit int) (int, error) {
	n, err := d.Compact()
	switch {
	case err != nil:
		return 0, err
	case n > limit:
		return 0, fmt.Errorf("more than %d", limit)
	case n > len(d.rest)/size:
		return 0, ErrShort
	}
	return n, nil
}

// Encoder collects values. Lengths must be below 2^30.
type Encoder []byte

// Raw writes b without a length.
func (e *Encoder) Raw(b []byte) { *e = append(*e, b...) }

// Uint32 writes four bytes, little-endian.
func (e *Encoder) Uint32(v uint32) { *e = binary.LittleEndian.AppendUint32(*e, v) }

// Uint64 writes eight bytes, little-endian.
func (e *Encoder) Uint64(v uint64) { *e = binary.LittleEndian.AppendUint64(*e, v) }

// Bool writes one byte.
func (e *Encoder) Bool(v bool) {
	var b byte
	if v {
		b = 1
	}
	*e = append(*e, b)
}

// Compact writes a length in its shortest form.
func (e *Encoder) Compact(n int) {
	switch {
	case n < 1<<6:
		*e = append(*e, byte(n<<2))
	case n < 1<<14:
		*e = binary.LittleEndian.AppendUint16(*e, uint16(n<<2|1))
	default:
		*e = binary.LittleEndian.AppendUint32(*e, uint32(n<<2|2))
	}
}

// Bytes writes a length and b.
func (e *Encoder) Bytes(b []byte) {
	e.Compact(len(b))
	*e = append(*e, b...)
}

// Text writes a length and s.
func (e *Encoder) Text(s string) {
	e.Compact(len(s))
	*e = append(*e, s...)
}
