package config

import (
	"errors"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"teekms/internal/keys"
)

// field is one key or one section of the schema, bound to its place in a Config.
type field struct {
	path  string
	value reflect.Value
	table bool
	idle  bool
}

// schema is every key and section of a Config, by path and in the order of the
// declarations.
type schema struct {
	byPath map[string]*field
	order  []*field
}

// newSchema binds the schema to c: setting a field sets c.
func newSchema(c *Config) *schema {
	s := &schema{byPath: map[string]*field{}}
	s.collect(reflect.ValueOf(c).Elem(), "", false)
	return s
}

func (s *schema) collect(v reflect.Value, prefix string, idle bool) {
	t := v.Type()
	for i := range t.NumField() {
		sf := t.Field(i)
		name := sf.Tag.Get("toml")
		switch {
		case sf.Anonymous:
			s.collect(v.Field(i), prefix, idle)
		case name == "":
		default:
			s.add(&field{
				path:  prefix + name,
				value: v.Field(i),
				table: isTable(sf.Type),
				idle:  idle || sf.Tag.Get("kms") == "idle" || sf.Type == reflect.TypeFor[Ignored](),
			})
		}
	}
}

func (s *schema) add(f *field) {
	s.byPath[f.path] = f
	s.order = append(s.order, f)
	if f.table {
		s.collect(f.value, f.path+".", f.idle)
	}
}

func isTable(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t != reflect.TypeFor[Ignored]() && t != reflect.TypeFor[keys.Secret]()
}

// lookup finds the field that takes path: the one of that name, or the Ignored
// one above it.
func (s *schema) lookup(path string) (*field, bool) {
	if f, ok := s.byPath[path]; ok {
		return f, true
	}
	for p := path; ; {
		i := strings.LastIndexByte(p, '.')
		if i < 0 {
			return nil, false
		}
		p = p[:i]
		if f, ok := s.byPath[p]; ok {
			return f, f.ignored()
		}
	}
}

// idle tells whether path is a key, not a section, that has no effect.
func (s *schema) idle(path string) bool {
	f, ok := s.lookup(path)
	return ok && f.idle && !f.table
}

func (f *field) ignored() bool { return f.value.Type() == reflect.TypeFor[Ignored]() }

// want says what the field takes, for error texts and for the kind check.
func (f *field) want() kind {
	switch f.value.Interface().(type) {
	case bool:
		return kindBool
	case int64, uint16:
		return kindInteger
	case []int, []string:
		return kindArray
	default:
		return kindString
	}
}

// entry says what the entries of a list are.
func (f *field) entry() kind {
	if f.value.Type() == reflect.TypeFor[[]int]() {
		return kindInteger
	}
	return kindString
}

// wants words what the field takes.
func (f *field) wants() string {
	switch f.value.Interface().(type) {
	case []int:
		return "an array of integers"
	case []string:
		return "an array of strings"
	}
	if f.table {
		return string(kindTable)
	}
	return string(f.want())
}

// set parses text into the field. Its errors never quote text, which may be a
// secret in the wrong place.
func (f *field) set(text string) error {
	switch p := f.value.Addr().Interface().(type) {
	case *Ignored:
		return nil
	case *string:
		*p = text
		return nil
	case *keys.Secret:
		*p = keys.NewSecret([]byte(text))
		return nil
	case *bool:
		return setBool(p, text)
	case *uint16:
		n, err := parseInteger(text)
		if err != nil || n < 0 || n > math.MaxUint16 {
			return errors.New("expected an integer from 0 to 65535")
		}
		*p = uint16(n)
		return nil
	case *int64:
		n, err := parseInteger(text)
		if err != nil {
			return errors.New("expected an integer")
		}
		*p = n
		return nil
	case *time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return errors.New(`expected a duration like "90s", "2m" or "1h30m"`)
		}
		*p = d
		return nil
	default:
		return f.setList(splitList(text))
	}
}

// setList parses the entries of a list into the field.
func (f *field) setList(entries []string) error {
	switch p := f.value.Addr().Interface().(type) {
	case *[]string:
		*p = entries
		return nil
	case *[]int:
		list := make([]int, 0, len(entries))
		for _, text := range entries {
			n, err := parseInteger(text)
			if err != nil || n < math.MinInt32 || n > math.MaxInt32 {
				return errors.New("expected integers")
			}
			list = append(list, int(n))
		}
		*p = list
		return nil
	default:
		return errors.New("no value can be set here")
	}
}

// splitList cuts the value of an environment variable at commas and line feeds.
// Spaces around an entry do not count, and an empty value is an empty list.
func splitList(text string) []string {
	if strings.TrimSpace(text) == "" {
		return []string{}
	}
	entries := strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == '\n' })
	for i, entry := range entries {
		entries[i] = strings.TrimSpace(entry)
	}
	return entries
}

// parseInteger reads the integers of TOML: sign, underscores, 0x, 0o, 0b; no
// leading zeros, which are octal elsewhere.
func parseInteger(text string) (int64, error) {
	if len(text) > 1 && text[0] == '0' && text[1] >= '0' && text[1] <= '9' {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseInt(text, 0, 64)
}

func setBool(p *bool, text string) error {
	if text != "true" && text != "false" {
		return errors.New("expected true or false")
	}
	*p = text == "true"
	return nil
}
