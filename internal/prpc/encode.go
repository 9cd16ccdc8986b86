package prpc

import (
	"encoding/hex"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// appendMessage appends {"field":value,...} with every field.
func (c *Codec) appendMessage(dst []byte, m protoreflect.Message, plan *message) []byte {
	dst = append(dst, '{')
	for i, f := range plan.fields {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, f.key...)
		switch {
		case f.list:
			dst = c.appendList(dst, m.Get(f.fd).List(), f)
		case f.fd.HasPresence() && !m.Has(f.fd):
			dst = append(dst, "null"...)
		default:
			dst = c.appendValue(dst, m.Get(f.fd), f)
		}
	}
	return append(dst, '}')
}

func (c *Codec) appendList(dst []byte, list protoreflect.List, f *field) []byte {
	dst = append(dst, '[')
	for i := range list.Len() {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = c.appendValue(dst, list.Get(i), f)
	}
	return append(dst, ']')
}

func (c *Codec) appendValue(dst []byte, v protoreflect.Value, f *field) []byte {
	switch f.kind {
	case protoreflect.BoolKind:
		return strconv.AppendBool(dst, v.Bool())
	case protoreflect.StringKind:
		return appendString(dst, v.String())
	case protoreflect.BytesKind:
		dst = append(append(dst, '"'), c.prefix...)
		return append(hex.AppendEncode(dst, v.Bytes()), '"')
	case protoreflect.MessageKind:
		return c.appendMessage(dst, v.Message(), f.message)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return strconv.AppendUint(dst, v.Uint(), 10)
	default: // the signed kinds: NewCodec let no other through
		return strconv.AppendInt(dst, v.Int(), 10)
	}
}

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string (RFC 8259 §7). Only what must be
// escaped is; bytes that are not UTF-8 become U+FFFD.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		b := s[i]
		switch {
		case b >= utf8.RuneSelf:
			r, size := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r)
			i += size
			continue
		case b == '"', b == '\\':
			dst = append(dst, '\\', b)
		case b == '\n':
			dst = append(dst, '\\', 'n')
		case b == '\r':
			dst = append(dst, '\\', 'r')
		case b == '\t':
			dst = append(dst, '\\', 't')
		case b < ' ', b == 0x7f:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[b>>4], hexDigits[b&0xf])
		default:
			dst = append(dst, b)
		}
		i++
	}
	return append(dst, '"')
}
