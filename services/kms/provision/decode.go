package provision

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"teekms/internal/rpc"
)

// members are what a JSON body may hold, by name.
type members map[string]*member

// member is one value and where it goes.
type member struct {
	text     *string
	flag     *bool
	required bool
	seen     bool
}

func (m members) text(name string, to *string)         { m[name] = &member{text: to, required: true} }
func (m members) optionalText(name string, to *string) { m[name] = &member{text: to} }
func (m members) optionalFlag(name string, to *bool)   { m[name] = &member{flag: to} }

// decode reads one JSON object of strings and booleans and nothing after it.
// Unlike encoding/json it takes every name as it is written, once, and refuses
// what it would replace: a password must not change on the way. Nothing nests,
// so nothing is descended into.
func (m members) decode(data []byte) error {
	if err := m.object(data); err != nil {
		return refuse(http.StatusBadRequest, err.Error())
	}
	return nil
}

func (m members) object(data []byte) error {
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return errors.New("request body: empty, want a JSON object")
	case !utf8.Valid(data):
		return errors.New("request body: not UTF-8")
	case loneSurrogate(data):
		return errors.New("request body: half of a surrogate pair in a string")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return notObject(err)
	}
	for dec.More() {
		if err := m.next(dec); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil { // the closing brace
		return notObject(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("request body: something follows the JSON object")
	}
	var missing []string
	for name, v := range m {
		if v.required && !v.seen {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return errors.New(slices.Min(missing) + ": is required")
	}
	return nil
}

// notObject is an error at the top. What encoding/json says of a syntax error holds
// one character of the body: too much, where bodies hold passwords.
func notObject(err error) error {
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return errors.New("request body: not JSON at byte " + strconv.FormatInt(syntax.Offset, 10))
	}
	if err != nil {
		return errors.New("request body: not JSON, or cut off")
	}
	return errors.New("request body: want a JSON object")
}

// next reads one member.
func (m members) next(dec *json.Decoder) error {
	key, err := dec.Token()
	name, isName := key.(string)
	if err != nil || !isName {
		return notObject(err)
	}
	v, known := m[name]
	switch {
	case !known:
		return fmt.Errorf("request body: unknown field %s", rpc.ShownName(name))
	case v.seen:
		return errors.New(name + ": given twice")
	}
	v.seen = true
	value, err := dec.Token()
	if err != nil {
		return notObject(err)
	}
	switch got := value.(type) {
	case string:
		if v.text != nil {
			*v.text = got
			return nil
		}
	case bool:
		if v.flag != nil {
			*v.flag = got
			return nil
		}
	default:
	}
	if v.text != nil {
		return errors.New(name + ": want a string")
	}
	return errors.New(name + ": want true or false")
}

// loneSurrogate tells whether an escape in data is half of a surrogate pair,
// which encoding/json replaces by U+FFFD. In JSON a backslash stands nowhere but
// in strings.
func loneSurrogate(data []byte) bool {
	for i := 0; i+1 < len(data); i++ {
		if data[i] != '\\' {
			continue
		}
		i++
		unit, ok := escape(data[i:])
		if !ok || unit < 0xd800 || unit > 0xdfff {
			continue
		}
		if unit > 0xdbff || i+6 >= len(data) || data[i+5] != '\\' {
			return true
		}
		if low, ok := escape(data[i+6:]); !ok || low < 0xdc00 || low > 0xdfff {
			return true
		}
		i += 10
	}
	return false
}

// escape reads uXXXX.
func escape(b []byte) (uint64, bool) {
	if len(b) < 5 || b[0] != 'u' || strings.ContainsAny(string(b[1:5]), "+-_") {
		return 0, false
	}
	unit, err := strconv.ParseUint(string(b[1:5]), 16, 16)
	return unit, err == nil
}
