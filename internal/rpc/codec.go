package rpc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
)

// Codec is a Connect codec that can append to a buffer. Connect recycles what
// Marshal returns, so only MarshalAppend may be given bytes that are kept.
type Codec interface {
	connect.Codec
	MarshalAppend(dst []byte, message any) ([]byte, error)
}

var (
	errNotProto  = errors.New("not a protobuf message")
	errEmptyJSON = errors.New("request body: empty, want a JSON object")
)

// maxNesting bounds how deep messages nest in a request; ours nest three deep.
const maxNesting = 32

// RefuseUnknown has a handler refuse messages with a field that their type does
// not have, in the encodings of [Chain.Options], which it must come after. It is
// for services where a setting that is misspelled must not pass for one that is
// absent; others take such fields for those of newer clients. Settings are secrets
// too, so that no refusal repeats a value.
func RefuseUnknown() connect.HandlerOption {
	return connect.WithHandlerOptions(
		connect.WithCodec(protoCodec{strict: true}),
		connect.WithCodec(jsonCodec{name: "json", strict: true}),
		connect.WithCodec(jsonCodec{name: "json; charset=utf-8", strict: true}),
	)
}

// protoCodec is binary protobuf, as Connect's own with a bound on nesting and
// errors that name no Go types.
type protoCodec struct {
	// strict refuses unknown fields.
	strict bool
}

func (protoCodec) Name() string { return "proto" }

func (c protoCodec) Marshal(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

func (protoCodec) MarshalAppend(dst []byte, message any) ([]byte, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, errNotProto
	}
	return proto.MarshalOptions{}.MarshalAppend(dst, m)
}

func (c protoCodec) Unmarshal(data []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return errNotProto
	}
	if err := (proto.UnmarshalOptions{RecursionLimit: maxNesting}).Unmarshal(data, m); err != nil {
		return fmt.Errorf("request body: %s", protoText(err))
	}
	if c.strict {
		return unknownField(m)
	}
	return nil
}

// unknownField returns an error that names the first field that m, or a message in
// it, does not know; nil where there is none. A field whose value is encoded in
// another way than its type says counts as unknown.
func unknownField(m proto.Message) error {
	return protorange.Range(m.ProtoReflect(), func(v protopath.Values) error {
		last := v.Index(-1)
		if last.Step.Kind() != protopath.UnknownAccessStep {
			return nil
		}
		path := "request body"
		if fields := v.Path[1 : len(v.Path)-1]; len(fields) > 0 {
			path = strings.TrimPrefix(fields.String(), ".")
		}
		number, _, _ := protowire.ConsumeTag(last.Value.Bytes()) // proto.Unmarshal has read it
		return fmt.Errorf("%s: unknown field %d", path, number)
	})
}

// jsonCodec is protobuf JSON, as Connect's own with a bound on nesting, compact
// output and errors that name no Go types.
type jsonCodec struct {
	name string
	// strict refuses unknown fields, and repeats no value.
	strict bool
}

func (c jsonCodec) Name() string { return c.name }

func (c jsonCodec) Marshal(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

func (jsonCodec) MarshalAppend(dst []byte, message any) ([]byte, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, errNotProto
	}
	b, err := protojson.Marshal(m)
	if err != nil {
		return nil, err
	}
	// protojson varies its white space on purpose.
	buf := bytes.NewBuffer(dst)
	err = json.Compact(buf, b)
	return buf.Bytes(), err
}

func (c jsonCodec) Unmarshal(data []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return errNotProto
	}
	if len(data) == 0 {
		return errEmptyJSON
	}
	// Unknown fields are skipped so that both sides need not be of one version.
	o := protojson.UnmarshalOptions{DiscardUnknown: !c.strict, RecursionLimit: maxNesting}
	if err := o.Unmarshal(data, m); err != nil {
		text := protoText(err)
		if c.strict {
			text = withoutValue(text)
		}
		return fmt.Errorf("request body: %s", text)
	}
	return nil
}

// Bounds of what is repeated of a request, in bytes.
const (
	maxShownName = 32
	maxShownText = 160
)

// ShownName is a name in a request as an error may repeat it: quoted, printable
// and not at length.
func ShownName(name string) string { return strconv.QuoteToASCII(name[:min(len(name), maxShownName)]) }

// protoText is the text of an error of the protobuf module without its prefix,
// which ends in either kind of space. It repeats what stood in the request, so
// that it is made printable and cut.
func protoText(err error) string {
	text := strings.TrimLeft(strings.TrimPrefix(err.Error(), "proto:"), " \u00a0")
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text[:min(len(text), maxShownText)])
	return text
}

// withoutValue cuts a text of [protoText] where it begins to repeat what stood in
// JSON: after the place of a syntax error, or after the field that cannot have that
// value.
func withoutValue(text string) string {
	const place, value = "): ", "invalid value for "
	if before, _, found := strings.Cut(text, place); found && strings.HasPrefix(before, "syntax error ") {
		return before + ")"
	}
	if before, after, found := strings.Cut(text, value); found {
		field, _, _ := strings.Cut(after, ": ")
		return before + value + field
	}
	return text
}
