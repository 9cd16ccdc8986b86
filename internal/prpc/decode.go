package prpc

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"

	"teekms/internal/rpc"
)

// errNotUTF8 is the one thing that encoding/json would let pass, replaced.
var errNotUTF8 = errors.New("request body: not UTF-8")

// decoder reads messages.
type decoder struct {
	// strict refuses keys that are no fields, and repeats nothing of the body but
	// names.
	strict bool
}

// decode reads data, one JSON object and nothing after it, into m.
//
// The syntax of the whole is checked first, without recursion: encoding/json
// keeps its nesting on a stack of its own and stops at 10000. Below that only
// messages of the schema are descended into, so the depth of this code is that
// of the schema.
func (d decoder) decode(data []byte, m protoreflect.Message, plan *message) error {
	if !utf8.Valid(data) {
		return errNotUTF8
	}
	if err := d.checkSyntax(data); err != nil {
		return err
	}
	return d.object(data, m, plan, "")
}

// checkSyntax tells where data stops being one JSON value.
func (d decoder) checkSyntax(data []byte) error {
	var raw json.RawMessage
	err := json.Unmarshal(data, &raw)
	if err == nil {
		return nil
	}
	text := strings.TrimPrefix(err.Error(), "json: ")
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		if d.strict { // the text has a character of the body, which may be of a password
			return fmt.Errorf("request body: not JSON at byte %d", syntax.Offset)
		}
		return fmt.Errorf("request body: not JSON at byte %d: %s", syntax.Offset, text)
	}
	return fmt.Errorf("request body: not JSON: %s", text)
}

// object reads one object, whose syntax is known to be right. path names
// the field that holds it, "" at the top.
func (d decoder) object(data []byte, m protoreflect.Message, plan *message, path string) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return wrong(path, "want a JSON object, not %s", shape(data))
	}
	seen := make(map[string]bool, len(plan.fields))
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return wrong(path, "not JSON")
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return wrong(path, "not JSON")
		}
		name, _ := key.(string)
		f, known := plan.byName[name]
		if !known && d.strict {
			return wrong(path, "unknown field %s", rpc.ShownName(name))
		}
		if !known {
			continue // a newer client's field
		}
		at := join(path, name)
		if seen[name] {
			return wrong(at, "given twice")
		}
		seen[name] = true
		if of := f.fd.ContainingOneof(); of != nil && m.WhichOneof(of) != nil {
			return wrong(at, "excludes %s, which is given too", m.WhichOneof(of).Name())
		}
		if err := d.field(raw, m, f, at); err != nil {
			return err
		}
	}
	return nil
}

func (d decoder) field(raw json.RawMessage, m protoreflect.Message, f *field, path string) error {
	if isNull(raw) {
		if f.fd.HasPresence() && !f.list {
			return nil
		}
		if f.list {
			return wrong(path, "want an array, not null")
		}
		return wrong(path, "want %s, not null", f.want())
	}
	if f.list {
		return d.list(raw, m.Mutable(f.fd).List(), f, path)
	}
	if f.message != nil {
		return d.object(raw, m.Mutable(f.fd).Message(), f.message, path)
	}
	v, err := f.decodeScalar(raw, path)
	if err != nil {
		return err
	}
	m.Set(f.fd, v)
	return nil
}

func (d decoder) list(raw json.RawMessage, list protoreflect.List, f *field, path string) error {
	var items []json.RawMessage
	if raw[0] != '[' || json.Unmarshal(raw, &items) != nil {
		return wrong(path, "want an array, not %s", shape(raw))
	}
	for i, item := range items {
		at := path + "[" + strconv.Itoa(i) + "]"
		if f.message != nil {
			if err := d.object(item, list.AppendMutable().Message(), f.message, at); err != nil {
				return err
			}
			continue
		}
		v, err := f.decodeScalar(item, at)
		if err != nil {
			return err
		}
		list.Append(v)
	}
	return nil
}

// decodeScalar reads a value that is no message. An integer is read from its
// digits alone: 1.0 and 1e3 are refused, as are numbers in strings.
func (f *field) decodeScalar(raw json.RawMessage, path string) (protoreflect.Value, error) {
	none := protoreflect.Value{}
	switch f.kind {
	case protoreflect.BoolKind:
		switch string(raw) {
		case "true", "false":
			return protoreflect.ValueOfBool(raw[0] == 't'), nil
		}
		return none, wrong(path, "want true or false, not %s", shape(raw))
	case protoreflect.StringKind, protoreflect.BytesKind:
		var s string
		if raw[0] != '"' || json.Unmarshal(raw, &s) != nil {
			return none, wrong(path, "want %s, not %s", f.want(), shape(raw))
		}
		return f.parseText(s, path)
	default:
		if raw[0] != '-' && (raw[0] < '0' || raw[0] > '9') {
			return none, wrong(path, "want a number, not %s", shape(raw))
		}
		return f.parseNumber(string(raw), path)
	}
}

// parseText gives a string or bytes field its value.
func (f *field) parseText(s, path string) (protoreflect.Value, error) {
	if f.kind == protoreflect.StringKind {
		return protoreflect.ValueOfString(s), nil
	}
	digits := strings.TrimPrefix(s, "0x")
	if len(digits)%2 != 0 {
		return protoreflect.Value{}, wrong(path, "not hexadecimal: odd number of digits")
	}
	b, err := hex.DecodeString(digits)
	if err != nil {
		return protoreflect.Value{}, wrong(path, "not hexadecimal")
	}
	return protoreflect.ValueOfBytes(b), nil
}

// parseNumber gives an integer field its value.
func (f *field) parseNumber(digits, path string) (protoreflect.Value, error) {
	none := protoreflect.Value{}
	bits := 64
	switch f.kind {
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		bits = 32
	default:
	}
	switch f.kind {
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		n, err := strconv.ParseUint(digits, 10, bits)
		if err != nil {
			return none, wrong(path, "want an integer from 0 to %d", uint64(1)<<(bits-1)-1+uint64(1)<<(bits-1))
		}
		if bits == 32 {
			return protoreflect.ValueOfUint32(uint32(n)), nil
		}
		return protoreflect.ValueOfUint64(n), nil
	default:
		n, err := strconv.ParseInt(digits, 10, bits)
		if err != nil {
			return none, wrong(path, "want an integer of %d bits", bits)
		}
		if bits == 32 {
			return protoreflect.ValueOfInt32(int32(n)), nil
		}
		return protoreflect.ValueOfInt64(n), nil
	}
}

// want says what a field, or an element of a list, takes.
func (f *field) want() string {
	switch f.kind {
	case protoreflect.BytesKind:
		return "a string of hexadecimal digits"
	case protoreflect.StringKind:
		return "a string"
	case protoreflect.BoolKind:
		return "true or false"
	case protoreflect.MessageKind:
		return "an object"
	default:
		return "a number"
	}
}

// shape says what kind of JSON value raw is, without repeating it.
func shape(raw []byte) string {
	raw = bytes.TrimLeft(raw, " \t\r\n")
	switch {
	case len(raw) == 0:
		return "nothing"
	case raw[0] == '{':
		return "an object"
	case raw[0] == '[':
		return "an array"
	case raw[0] == '"':
		return "a string"
	case raw[0] == 't', raw[0] == 'f':
		return "true or false"
	case raw[0] == 'n':
		return "null"
	default:
		return "a number"
	}
}

func isNull(raw []byte) bool { return string(raw) == "null" }

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// wrong is an error at a field, or of the body as a whole.
func wrong(path, format string, args ...any) error {
	if path == "" {
		path = "request body"
	}
	return errors.New(path + ": " + fmt.Sprintf(format, args...))
}
