package expect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"

	"github.com/pelletier/go-toml/v2"

	"teekms/cmd/internal/argfile"
)

// maxFile bounds a file of expectations, in bytes.
const maxFile = 1 << 20

// values is one string, or a list of which one must be had.
type values []string

func (v *values) set(raw any) error {
	switch x := raw.(type) {
	case string:
		*v = values{x}
	case []any:
		for _, e := range x {
			s, ok := e.(string)
			if !ok {
				return errors.New("want a string or a list of strings")
			}
			*v = append(*v, s)
		}
	default:
		return errors.New("want a string or a list of strings")
	}
	return nil
}

// AddFile adds the expectations of a file, see [Set.AddText].
func (s *Set) AddFile(ctx context.Context, path string) error {
	text, err := argfile.Read(ctx, path, maxFile)
	if err != nil {
		return fmt.Errorf("reading expectations: %w", err)
	}
	if err := s.AddText(filepath.Base(path), text); err != nil {
		return fmt.Errorf("reading expectations %s: %w", path, err)
	}
	return nil
}

// AddText adds the expectations of a text: an object of JSON if it begins with
// a brace, else a document of TOML, whose keys are names of [Names]. An unknown
// key, a key given twice and an empty text are errors. source says where it is
// from.
func (s *Set) AddText(source string, text []byte) error {
	decode := decodeTOML
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
		decode = decodeJSON
	}
	fields, err := decode(text)
	if err != nil {
		return err
	}
	if len(fields) == 0 {
		return errors.New("nothing is expected there")
	}
	// In the order of Names, so that the first complaint is always the same.
	for _, name := range Names() {
		raw, ok := fields[name]
		if !ok {
			continue
		}
		delete(fields, name)
		var v values
		if err := v.set(raw); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := s.Add(source, name, v...); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		return s.Add(source, name)
	}
	return nil
}

func decodeTOML(text []byte) (map[string]any, error) {
	var fields map[string]any
	if err := toml.Unmarshal(text, &fields); err != nil {
		if de, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, column := de.Position()
			return nil, fmt.Errorf("line %d, column %d: %w", line, column, err)
		}
		return nil, err
	}
	return fields, nil
}

// decodeJSON reads an object key by key: encoding/json would take the last of
// two.
func decodeJSON(text []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	fields := map[string]any{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, _ := t.(string) // a key always is
		if _, twice := fields[name]; twice {
			return nil, fmt.Errorf("%s: given twice", name)
		}
		var v any
		if err := d.Decode(&v); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		fields[name] = v
	}
	if _, err := d.Token(); err != nil {
		return nil, errors.New("the object has no end")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("text after the object")
	}
	return fields, nil
}
