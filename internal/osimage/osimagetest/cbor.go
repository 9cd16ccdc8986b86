package osimagetest

import (
	"encoding/binary"
	"fmt"
)

// Map is a CBOR map: keys and values by turns.
type Map []any

// CBOR encodes a value: uint64, []byte, string or Map.
func CBOR(v any) []byte { return appendCBOR(nil, v) }

func appendCBOR(b []byte, v any) []byte {
	switch v := v.(type) {
	case uint64:
		return appendHead(b, 0, v)
	case []byte:
		return append(appendHead(b, 2, uint64(len(v))), v...)
	case string:
		return append(appendHead(b, 3, uint64(len(v))), v...)
	case Map:
		b = appendHead(b, 5, uint64(len(v)/2))
		for _, item := range v {
			b = appendCBOR(b, item)
		}
		return b
	default:
		panic(fmt.Sprintf("no CBOR for %T", v))
	}
}

func appendHead(b []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(b, major<<5|byte(n))
	case n < 1<<8:
		return append(b, major<<5|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major<<5|25), uint16(n))
	default:
		return binary.BigEndian.AppendUint64(append(b, major<<5|27), n)
	}
}
