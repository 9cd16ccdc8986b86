// Package strictjson reads members of a JSON object the way a security decision
// needs it: names match exactly, a name given twice is an error, a value of
// another type is an error, null included, and nothing may follow the object.
// (encoding/json matches names in any case, takes the last of two and null for
// everything.) Members nobody asks for are skipped.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"
)

// maxDepth bounds the nesting of what is read. encoding/json has a bound of its
// own, 10,000, which is too much for input of a stranger.
const maxDepth = 32

// Object is the members of a JSON object that were asked for.
type Object map[string]json.RawMessage

// Parse reads the text of one object and keeps the members called names.
func Parse(text []byte, names ...string) (Object, error) {
	if err := check(text); err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("want a JSON object")
	}
	o := make(Object, len(names))
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("reading a name: %w", err)
		}
		name, _ := t.(string) // check has seen to it
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, fmt.Errorf("reading a value: %w", err)
		}
		if !slices.Contains(names, name) {
			continue
		}
		if o.Has(name) {
			return nil, fmt.Errorf("%s: given twice", name)
		}
		o[name] = value
	}
	return o, nil
}

// check sees that text is JSON and that reading it costs no more than it should.
func check(text []byte) error {
	if !utf8.Valid(text) {
		// encoding/json would replace what is not UTF-8 without a word.
		return errors.New("not UTF-8")
	}
	if deep(text) {
		return fmt.Errorf("nested deeper than %d", maxDepth)
	}
	if !json.Valid(text) {
		return errors.New("not JSON")
	}
	return nil
}

// deep says whether text nests deeper than maxDepth. What it says of text that
// is not JSON does not matter.
func deep(text []byte) bool {
	depth, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			quoted = !quoted
		case quoted && c == '\\':
			i++ // whatever follows is no end of the string
		case quoted:
		case c == '{' || c == '[':
			depth++
		case c == '}' || c == ']':
			depth--
		}
		if depth > maxDepth {
			return true
		}
	}
	return false
}

// Has says whether the object has the member, of whatever type.
func (o Object) Has(name string) bool {
	_, ok := o[name]
	return ok
}

// Text returns a member that must be there and be a string.
func (o Object) Text(name string) (string, error) {
	var v string
	err := o.value(name, '"', "a string", &v)
	return v, err
}

// Bool returns a member that must be there and be true or false.
func (o Object) Bool(name string) (bool, error) {
	switch string(o[name]) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	case "":
		return false, fmt.Errorf("%s: missing", name)
	default:
		return false, fmt.Errorf("%s: want true or false", name)
	}
}

// Uint64 returns a member that must be there and be an integer from 0 to
// 2⁶⁴−1, written without fraction or exponent.
func (o Object) Uint64(name string) (uint64, error) {
	var v uint64
	err := o.value(name, 0, "an integer of 64 bits without sign", &v)
	return v, err
}

// value decodes a member into v. first is what its text must begin with, 0 for
// a digit: this keeps null out, which decodes into everything.
func (o Object) value(name string, first byte, want string, v any) error {
	raw := o[name]
	if len(raw) == 0 {
		return fmt.Errorf("%s: missing", name)
	}
	digit := raw[0] >= '0' && raw[0] <= '9'
	if (first == 0 && !digit) || (first != 0 && raw[0] != first) {
		return fmt.Errorf("%s: want %s", name, want)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s: want %s", name, want)
	}
	return nil
}
