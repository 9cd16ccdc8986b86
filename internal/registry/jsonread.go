package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// reader reads JSON of a known shape: names match exactly and come once, a value
// of another type is an error, null included, and nothing follows the end. Every
// error names the place.
type reader struct {
	d *json.Decoder
	// left is how many more values may be read.
	left int
}

func newReader(text []byte, values int) (*reader, error) {
	if !utf8.Valid(text) {
		return nil, errors.New("not UTF-8") // encoding/json would replace it
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	return &reader{d: d, left: values}, nil
}

func (r *reader) token(at string) (json.Token, error) {
	if r.left--; r.left < 0 {
		return nil, errors.New("too many values")
	}
	t, err := r.d.Token()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("%snot JSON: %w", place(at), err)
	}
	return t, nil
}

func place(at string) string {
	if at == "" {
		return ""
	}
	return at + ": "
}

func below(at, name string) string {
	if at == "" {
		return name
	}
	return at + "." + name
}

// object reads an object; member reads the value of each name.
func (r *reader) object(at string, member func(at, name string) error) error {
	t, err := r.token(at)
	if err != nil {
		return err
	}
	if t != json.Delim('{') {
		return fmt.Errorf("%swant an object", place(at))
	}
	seen := map[string]bool{}
	for r.d.More() {
		t, err := r.token(at)
		if err != nil {
			return err
		}
		name, _ := t.(string) // the decoder takes nothing else for a name
		if seen[name] {
			return fmt.Errorf("%s%s is given twice", place(at), quoted(name))
		}
		seen[name] = true
		if err := member(below(at, name), name); err != nil {
			return err
		}
	}
	_, err = r.token(at)
	return err
}

// texts reads a list of strings; item gets each.
func (r *reader) texts(at string, item func(text string) error) error {
	t, err := r.token(at)
	if err != nil {
		return err
	}
	if t != json.Delim('[') {
		return fmt.Errorf("%s: want a list of strings", at)
	}
	for i := 0; r.d.More(); i++ {
		if t, err = r.token(at); err != nil {
			return err
		}
		text, ok := t.(string)
		if !ok {
			return fmt.Errorf("%s[%d]: want a string", at, i)
		}
		if err := item(text); err != nil {
			return fmt.Errorf("%s[%d]: %w", at, i, err)
		}
	}
	_, err = r.token(at)
	return err
}

func (r *reader) text(at string) (string, error) {
	t, err := r.token(at)
	if err != nil {
		return "", err
	}
	text, ok := t.(string)
	if !ok {
		return "", fmt.Errorf("%s: want a string", at)
	}
	return text, nil
}

func (r *reader) bool(at string) (bool, error) {
	t, err := r.token(at)
	if err != nil {
		return false, err
	}
	b, ok := t.(bool)
	if !ok {
		return false, fmt.Errorf("%s: want true or false", at)
	}
	return b, nil
}

// scalar reads a value that is no list and no object.
func (r *reader) scalar(at string) error {
	t, err := r.token(at)
	if _, nested := t.(json.Delim); err == nil && nested {
		return fmt.Errorf("%s: want a single value", at)
	}
	return err
}

// end checks that nothing follows.
func (r *reader) end() error {
	if _, err := r.d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the object")
	}
	return nil
}
