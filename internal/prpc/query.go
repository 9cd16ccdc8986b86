package prpc

import (
	"net/url"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// queryBody turns the query of a GET into the JSON of the request message:
// name=value for every scalar field, percent-encoded. Names that are no field,
// "json" among them, are ignored.
func queryBody(query string, plan *message) ([]byte, error) {
	if query == "" || len(plan.fields) == 0 {
		return nil, nil
	}
	body := []byte{'{'}
	seen := make(map[string]bool)
	for pair := range strings.SplitSeq(query, "&") {
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(rawName)
		if err != nil {
			return nil, wrong("query", "wrong percent-encoding of a name")
		}
		f, known := plan.byName[name]
		if !known {
			continue
		}
		value, err := url.QueryUnescape(rawValue)
		if err != nil || !utf8.ValidString(value) {
			return nil, wrong(name, "wrong percent-encoding")
		}
		if seen[name] {
			return nil, wrong(name, "given twice")
		}
		seen[name] = true
		if len(body) > 1 {
			body = append(body, ',')
		}
		body = append(body, f.key...)
		if body, err = f.appendQuery(body, name, value); err != nil {
			return nil, err
		}
	}
	return append(body, '}'), nil
}

// appendQuery appends the JSON of one value, which is checked here because the
// text must not become JSON of another kind.
func (f *field) appendQuery(body []byte, name, value string) ([]byte, error) {
	switch {
	case f.list, f.message != nil:
		return nil, wrong(name, "cannot be given in a query: use POST")
	case f.kind == protoreflect.StringKind, f.kind == protoreflect.BytesKind:
		return appendString(body, value), nil
	case f.kind == protoreflect.BoolKind:
		if value != "true" && value != "false" {
			return nil, wrong(name, "want true or false")
		}
		return append(body, value...), nil
	default:
		if _, err := f.parseNumber(value, name); err != nil {
			return nil, err
		}
		if digits := strings.TrimPrefix(value, "-"); len(digits) > 1 && digits[0] == '0' || strings.HasPrefix(value, "+") {
			return nil, wrong(name, "want an integer without leading zeros")
		}
		return append(body, value...), nil
	}
}
