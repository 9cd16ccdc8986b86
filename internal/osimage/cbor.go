package osimage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// The bounds of a CBOR document.
const (
	maxCBORDepth = 4
	maxCBORItems = 64
)

// cborMap is what decodeCBOR returns of a map: its values are uint64, []byte,
// string or cborMap.
type cborMap map[string]any

// cborDecoder reads the part of CBOR (RFC 8949) that measurement documents use:
// unsigned numbers, byte and text strings of known length, and maps whose keys
// are text. Arguments are in their shortest form.
type cborDecoder struct {
	rest  []byte
	items int
}

// decodeCBOR reads one map that is the whole of b. Byte strings alias b.
func decodeCBOR(b []byte) (cborMap, error) {
	d := &cborDecoder{rest: b}
	v, err := d.value(0)
	if err != nil {
		return nil, err
	}
	if len(d.rest) != 0 {
		return nil, errors.New("bytes after the document")
	}
	m, ok := v.(cborMap)
	if !ok {
		return nil, errors.New("not a map")
	}
	return m, nil
}

func (d *cborDecoder) value(depth int) (any, error) {
	if d.items++; depth > maxCBORDepth || d.items > maxCBORItems {
		return nil, errors.New("too deep or too many items")
	}
	major, arg, err := d.head()
	if err != nil {
		return nil, err
	}
	switch major {
	case 0:
		return arg, nil
	case 2, 3:
		if arg > uint64(len(d.rest)) {
			return nil, errors.New("ends too early")
		}
		b := d.rest[:arg:arg]
		d.rest = d.rest[arg:]
		if major == 2 {
			return b, nil
		}
		if !utf8.Valid(b) {
			return nil, errors.New("text that is not UTF-8")
		}
		return string(b), nil
	case 5:
		return d.pairs(arg, depth)
	default:
		return nil, fmt.Errorf("item of type %d", major)
	}
}

func (d *cborDecoder) pairs(n uint64, depth int) (any, error) {
	if n > maxCBORItems {
		return nil, errors.New("too many items")
	}
	m := cborMap{}
	for range n {
		k, err := d.value(depth + 1)
		if err != nil {
			return nil, err
		}
		key, ok := k.(string)
		if _, twice := m[key]; !ok || twice {
			return nil, errors.New("key that is no text or is there twice")
		}
		if m[key], err = d.value(depth + 1); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// head reads the type of an item, 3 bits, and its argument: 5 bits, or the 1, 2,
// 4 or 8 bytes that follow.
func (d *cborDecoder) head() (major byte, arg uint64, err error) {
	if len(d.rest) == 0 {
		return 0, 0, errors.New("ends too early")
	}
	major, arg = d.rest[0]>>5, uint64(d.rest[0]&31)
	d.rest = d.rest[1:]
	if arg < 24 {
		return major, arg, nil
	}
	if arg > 27 {
		return 0, 0, errors.New("item of unknown length")
	}
	size := 1 << (arg - 24)
	if size > len(d.rest) {
		return 0, 0, errors.New("ends too early")
	}
	var wide [8]byte
	copy(wide[8-size:], d.rest)
	d.rest = d.rest[size:]
	arg = binary.BigEndian.Uint64(wide[:])
	if arg < 24 || size > 1 && arg>>(4*size) == 0 {
		return 0, 0, errors.New("number not in its shortest form")
	}
	return major, arg, nil
}
