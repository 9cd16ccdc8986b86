package msgpack

import (
	"encoding/binary"
	"math"
)

// Encoder collects values, each in its shortest form. Lengths must be below
// 2^32.
type Encoder []byte

// Raw writes a value that is encoded already.
func (e *Encoder) Raw(b []byte) { *e = append(*e, b...) }

// Nil writes nil.
func (e *Encoder) Nil() { *e = append(*e, codeNil) }

// Uint writes an unsigned integer.
func (e *Encoder) Uint(v uint64) {
	switch {
	case v < fixMap:
		*e = append(*e, byte(v))
	case v <= math.MaxUint8:
		*e = append(*e, uint8s, byte(v))
	case v <= math.MaxUint16:
		*e = binary.BigEndian.AppendUint16(append(*e, uint8s+1), uint16(v))
	case v <= math.MaxUint32:
		*e = binary.BigEndian.AppendUint32(append(*e, uint8s+2), uint32(v))
	default:
		*e = binary.BigEndian.AppendUint64(append(*e, uint64s), v)
	}
}

// Map begins a map of n pairs.
func (e *Encoder) Map(n int) { e.header(n, fixMap, map16) }

// Array begins an array of n elements.
func (e *Encoder) Array(n int) { e.header(n, fixArray, array16) }

func (e *Encoder) header(n int, fix, short byte) {
	switch {
	case n < 1<<4:
		*e = append(*e, fix|byte(n))
	case n <= math.MaxUint16:
		*e = binary.BigEndian.AppendUint16(append(*e, short), uint16(n))
	default:
		*e = binary.BigEndian.AppendUint32(append(*e, short+1), uint32(n))
	}
}

// Text writes a string.
func (e *Encoder) Text(s string) {
	if len(s) < 1<<5 {
		*e = append(*e, fixText|byte(len(s)))
	} else {
		e.sized(len(s), text8)
	}
	*e = append(*e, s...)
}

// Bytes writes binary.
func (e *Encoder) Bytes(b []byte) {
	e.sized(len(b), bin8)
	*e = append(*e, b...)
}

func (e *Encoder) sized(n int, code byte) {
	switch {
	case n <= math.MaxUint8:
		*e = append(*e, code, byte(n))
	case n <= math.MaxUint16:
		*e = binary.BigEndian.AppendUint16(append(*e, code+1), uint16(n))
	default:
		*e = binary.BigEndian.AppendUint32(append(*e, code+2), uint32(n))
	}
}

// Integers writes bytes as an array of integers.
func (e *Encoder) Integers(b []byte) {
	e.Array(len(b))
	for _, v := range b {
		e.Uint(uint64(v))
	}
}
