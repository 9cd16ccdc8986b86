// Package msgpack reads and writes the part of MessagePack that dstack's formats
// use (https://github.com/msgpack/msgpack/blob/master/spec.md): maps with text
// keys, arrays, unsigned integers, text, binary, nil. Every length is held
// against the bytes that are left before anything is made of it.
package msgpack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"
)

var (
	// ErrShort says that the input ends before the value does.
	ErrShort = errors.New("ends too early")

	errNotUTF8 = errors.New("not UTF-8")
	errDepth   = fmt.Errorf("nested deeper than %d", maxDepth)
)

// maxDepth bounds values that are passed over.
const maxDepth = 16

// The first bytes of values. Those of the fix forms hold a number as well.
const (
	fixMap   = 0x80
	fixArray = 0x90
	fixText  = 0xa0
	codeNil  = 0xc0
	bin8     = 0xc4
	bin16    = 0xc5
	bin32    = 0xc6
	ext8     = 0xc7
	ext32    = 0xc9
	float32s = 0xca
	uint8s   = 0xcc
	uint64s  = 0xcf
	int64s   = 0xd3
	fixExt1  = 0xd4
	fixExt16 = 0xd8
	text8    = 0xd9
	text32   = 0xdb
	array16  = 0xdc
	array32  = 0xdd
	map16    = 0xde
	map32    = 0xdf
	negative = 0xe0
)

// Decoder reads values one after the other. Lengths and integers may be written
// longer than they need be. Its slices alias the input.
type Decoder struct{ rest []byte }

// NewDecoder reads from b.
func NewDecoder(b []byte) *Decoder { return &Decoder{b} }

// Rest returns what has not been read.
func (d *Decoder) Rest() []byte { return d.rest }

func (d *Decoder) take(n uint64) ([]byte, error) {
	if n > uint64(len(d.rest)) {
		return nil, ErrShort
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b, nil
}

func (d *Decoder) code() (byte, error) {
	b, err := d.take(1)
	if err != nil {
		return 0, err
	}
	return b[0], nil
}

// number reads size bytes, big-endian.
func (d *Decoder) number(size uint64) (uint64, error) {
	b, err := d.take(size)
	if err != nil {
		return 0, err
	}
	var wide [8]byte
	copy(wide[8-size:], b)
	return binary.BigEndian.Uint64(wide[:]), nil
}

// Uint reads an unsigned integer of at most limit.
func (d *Decoder) Uint(limit uint64) (uint64, error) {
	c, err := d.code()
	if err != nil {
		return 0, err
	}
	v := uint64(c)
	switch {
	case c < fixMap:
	case c >= uint8s && c <= uint64s:
		if v, err = d.number(1 << (c - uint8s)); err != nil {
			return 0, err
		}
	default:
		return 0, fmt.Errorf("begins with 0x%02x, want an unsigned integer", c)
	}
	if v > limit {
		return 0, fmt.Errorf("is %d, want at most %d", v, limit)
	}
	return v, nil
}

// Map reads the number of pairs of a map.
func (d *Decoder) Map() (int, error) { return d.header("a map", fixMap, map16, map32, 2) }

// Array reads the number of elements of an array.
func (d *Decoder) Array() (int, error) { return d.header("an array", fixArray, array16, array32, 1) }

// header reads the length of a container whose elements have at least size
// bytes.
func (d *Decoder) header(what string, fix, short, long byte, size int) (int, error) {
	c, err := d.code()
	if err != nil {
		return 0, err
	}
	n := uint64(c & 0x0f)
	switch {
	case c&0xf0 == fix:
	case c == short:
		n, err = d.number(2)
	case c == long:
		n, err = d.number(4)
	default:
		return 0, fmt.Errorf("begins with 0x%02x, want %s", c, what)
	}
	if err != nil {
		return 0, err
	}
	if n > uint64(len(d.rest)/size) {
		return 0, ErrShort
	}
	return int(n), nil
}

// Text reads a string, UTF-8.
func (d *Decoder) Text() (string, error) {
	c, err := d.code()
	if err != nil {
		return "", err
	}
	n := uint64(c & 0x1f)
	switch {
	case c&0xe0 == fixText:
	case c >= text8 && c <= text32:
		if n, err = d.number(1 << (c - text8)); err != nil {
			return "", err
		}
	default:
		return "", fmt.Errorf("begins with 0x%02x, want text", c)
	}
	b, err := d.take(n)
	if err != nil {
		return "", err
	}
	if !utf8.Valid(b) {
		return "", errNotUTF8
	}
	return string(b), nil
}

// Bytes reads binary, or an array of integers up to 255, as which some writers
// put bytes. It is nil when there are none.
func (d *Decoder) Bytes() ([]byte, error) {
	if len(d.rest) == 0 {
		return nil, ErrShort
	}
	c := d.rest[0]
	if c < bin8 || c > bin32 {
		return d.integers()
	}
	d.rest = d.rest[1:]
	n, err := d.number(1 << (c - bin8))
	if err != nil || n == 0 {
		return nil, err
	}
	return d.take(n)
}

func (d *Decoder) integers() ([]byte, error) {
	n, err := d.header("bytes", fixArray, array16, array32, 1)
	if err != nil || n == 0 {
		return nil, err
	}
	out := make([]byte, n)
	for i := range out {
		v, err := d.Uint(math.MaxUint8)
		if err != nil {
			return nil, err
		}
		out[i] = byte(v)
	}
	return out, nil
}

// Nil reads a nil, if there is one.
func (d *Decoder) Nil() bool {
	is := len(d.rest) > 0 && d.rest[0] == codeNil
	if is {
		d.rest = d.rest[1:]
	}
	return is
}

// Value passes over one value of any kind and returns its bytes.
func (d *Decoder) Value() ([]byte, error) {
	start := d.rest
	if err := d.skip(0); err != nil {
		return nil, err
	}
	n := len(start) - len(d.rest)
	return start[:n:n], nil
}

func (d *Decoder) skip(depth int) error {
	if depth > maxDepth {
		return errDepth
	}
	if len(d.rest) == 0 {
		return ErrShort
	}
	elements := 0
	var err error
	switch c := d.rest[0]; {
	case c&0xf0 == fixMap || c == map16 || c == map32:
		elements, err = d.Map()
		elements *= 2
	case c&0xf0 == fixArray || c == array16 || c == array32:
		elements, err = d.Array()
	default:
		err = d.skipScalar()
	}
	for range elements {
		if err == nil {
			err = d.skip(depth + 1)
		}
	}
	return err
}

// skipScalar passes over a value that holds no others.
func (d *Decoder) skipScalar() error {
	c, err := d.code()
	if err != nil {
		return err
	}
	var size uint64
	switch {
	case c < fixMap || c >= negative || c == codeNil || c == 0xc2 || c == 0xc3: // integers, nil, false, true
	case c&0xe0 == fixText:
		size = uint64(c & 0x1f)
	case c >= bin8 && c <= bin32:
		size, err = d.number(1 << (c - bin8))
	case c >= text8 && c <= text32:
		size, err = d.number(1 << (c - text8))
	case c >= ext8 && c <= ext32:
		size, err = d.number(1 << (c - ext8))
		size++ // the type
	case c >= fixExt1 && c <= fixExt16:
		size = 1<<(c-fixExt1) + 1
	case c >= float32s && c < uint8s:
		size = 4 << (c - float32s)
	case c >= uint8s && c <= int64s:
		size = 1 << ((c - uint8s) % 4)
	default:
		return fmt.Errorf("0x%02x begins no value", c)
	}
	if err != nil {
		return err
	}
	_, err = d.take(size)
	return err
}

// Object reads a map whose keys are text. It calls the field of each key, which
// reads the value, and passes over the values of other keys. A field that is
// there twice is an error, and so is one of required that is not there.
func (d *Decoder) Object(fields map[string]func() error, required ...string) error {
	n, err := d.Map()
	if err != nil {
		return err
	}
	seen := make(map[string]bool, len(fields))
	for range n {
		key, err := d.Text()
		if err != nil {
			return fmt.Errorf("key: %w", err)
		}
		field, known := fields[key]
		if !known {
			if _, err := d.Value(); err != nil {
				return fmt.Errorf("value of an unknown key: %w", err)
			}
			continue
		}
		if seen[key] {
			return fmt.Errorf("%s: given twice", key)
		}
		seen[key] = true
		if err := field(); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	for _, key := range required {
		if !seen[key] {
			return fmt.Errorf("%s: missing", key)
		}
	}
	return nil
}
