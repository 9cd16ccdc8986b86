package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// kind is what a value is in the words of TOML, with its article.
type kind string

const (
	kindString  kind = "a string"
	kindInteger kind = "an integer"
	kindBool    kind = "true or false"
	kindTable   kind = "a table"
	kindArray   kind = "an array"
)

// decoder walks one document. The document was accepted by toml.Unmarshal
// before, which is the judge of syntax, duplicate keys and redefined tables; the
// walk adds what its strict mode lacks: every problem at once, keys compared
// with regard to case, and texts without Go types or values.
type decoder struct {
	schema   *schema
	name     string
	parser   unstable.Parser
	origins  origins
	problems []string
}

// decode sets what data says in the Config that s is bound to, and returns what
// is wrong with it.
func (s *schema) decode(name string, data []byte, o origins) []string {
	var syntax map[string]any
	if err := toml.Unmarshal(data, &syntax); err != nil {
		return []string{syntaxProblem(name, err)}
	}
	d := &decoder{schema: s, name: name, origins: o}
	d.parser.Reset(data)
	d.walk()
	if err := d.parser.Error(); err != nil {
		d.problems = append(d.problems, fmt.Sprintf("%s: %v", name, err))
	}
	return d.problems
}

// syntaxProblem words an error of the TOML library. Its texts quote the document
// by single characters and by key names only, floats excepted.
func syntaxProblem(name string, err error) string {
	text, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "toml: "), "unable to parse float")
	if text == "" {
		text = "not a number that can be represented"
	}
	if e, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, column := e.Position()
		return fmt.Sprintf("%s:%d:%d: %s", name, line, column, text)
	}
	return name + ": " + text
}

// walk goes through the top-level expressions. skip is true inside of a section
// that was already reported.
func (d *decoder) walk() {
	var table []string
	skip := false
	for d.parser.NextExpression() {
		switch e := d.parser.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = keyParts(e)
			skip = !d.header(e, strings.Join(table, "."))
		case unstable.KeyValue:
			if !skip {
				d.keyValue(e, table)
			}
		default:
		}
	}
}

// header checks a [section] line and tells whether its keys are worth a look.
func (d *decoder) header(e *unstable.Node, path string) bool {
	at := d.position(e)
	f, ok := d.schema.lookup(path)
	switch {
	case !ok:
		d.report(at, d.schema.unknown("section", path))
		return false
	case f.ignored():
	case !f.table:
		d.report(at, fmt.Sprintf("%s: expected %s, found a table", path, f.wants()))
		return false
	case e.Kind == unstable.ArrayTable:
		d.report(at, path+": expected one table, found an array of tables")
		return false
	}
	d.origins[path] = at
	return true
}

// keyValue checks and sets one key, or the keys of an inline table.
func (d *decoder) keyValue(e *unstable.Node, table []string) {
	parts := append(slices.Clone(table), keyParts(e)...)
	path := strings.Join(parts, ".")
	at := d.position(e)
	f, ok := d.schema.lookup(path)
	value := e.Value()
	switch {
	case !ok:
		d.report(at, d.schema.unknown("key", path))
	case f.ignored():
		d.origins[path] = at
	case value.Kind == unstable.InlineTable && f.table:
		d.origins[path] = at
		for it := value.Children(); it.Next(); {
			d.keyValue(it.Node(), parts)
		}
	case f.table || kindOf(value) != f.want():
		d.report(at, fmt.Sprintf("%s: expected %s, found %s", path, f.wants(), found(value)))
	case value.Kind == unstable.Array:
		d.setArray(f, at, value)
	default:
		d.set(f, at, string(value.Data))
	}
}

// setArray sets a list of integers or of strings.
func (d *decoder) setArray(f *field, at string, value *unstable.Node) {
	entries := []string{}
	for it := value.Children(); it.Next(); {
		entry := it.Node()
		if kindOf(entry) != f.entry() {
			d.report(at, fmt.Sprintf("%s: expected %s, found %s in it", f.path, f.wants(), found(entry)))
			return
		}
		entries = append(entries, string(entry.Data))
	}
	if err := f.setList(entries); err != nil {
		d.report(at, fmt.Sprintf("%s: %v", f.path, err))
		return
	}
	d.origins[f.path] = at
}

func (d *decoder) set(f *field, at, text string) {
	if err := f.set(text); err != nil {
		d.report(at, fmt.Sprintf("%s: %v", f.path, err))
		return
	}
	d.origins[f.path] = at
}

func (d *decoder) report(at, problem string) {
	d.problems = append(d.problems, at+": "+problem)
}

// position returns "kms.toml:3:1" of the first part of the key of e.
func (d *decoder) position(e *unstable.Node) string {
	it := e.Key()
	it.Next()
	start := d.parser.Shape(it.Node().Raw).Start
	return fmt.Sprintf("%s:%d:%d", d.name, start.Line, start.Column)
}

func keyParts(e *unstable.Node) []string {
	var parts []string
	for it := e.Key(); it.Next(); {
		parts = append(parts, keyPart(string(it.Node().Data)))
	}
	return parts
}

// keyPart quotes a part that could not stand bare in a dotted path, so that
// "a.b" = 1 is not taken for a.b = 1 and no control character gets out.
func keyPart(part string) string {
	bare := part != ""
	for _, r := range part {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", r) {
			bare = false
		}
	}
	if bare {
		return part
	}
	return strings.ReplaceAll(fmt.Sprintf("%q", part), ".", `\u002e`)
}

func kindOf(n *unstable.Node) kind {
	switch n.Kind {
	case unstable.String:
		return kindString
	case unstable.Integer:
		return kindInteger
	case unstable.Bool:
		return kindBool
	case unstable.InlineTable:
		return kindTable
	case unstable.Float:
		return "a float"
	case unstable.Array:
		return kindArray
	default:
		return "a date or time"
	}
}

// found words the kind of a value that is there, want one that should be.
func found(n *unstable.Node) string {
	if k := kindOf(n); k != kindBool {
		return string(k)
	}
	return "a boolean"
}
