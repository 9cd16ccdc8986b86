package prpc

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// codecName is the content subtype under which the Connect handler knows the
// codec; clients never see it.
const codecName = "prpc-json"

// Codec codes the messages of one service as JSON the way existing dstack
// clients read and write it (docs/wire.md#json): snake_case names, every field
// present, 64-bit integers as numbers, bytes in hexadecimal, null for an unset
// optional field. Make it with [NewCodec]. It may be used from several
// goroutines.
type Codec struct {
	prefix   string
	messages map[protoreflect.FullName]*message
	// strict refuses keys that are no fields.
	strict bool
}

// message is the plan of one message type: its fields in the order in which
// they are written, by number.
type message struct {
	fields []*field
	byName map[string]*field
}

// field is the plan of one field.
type field struct {
	fd   protoreflect.FieldDescriptor
	name string
	// key is `"name":`, as it is written.
	key     string
	kind    protoreflect.Kind
	list    bool
	message *message
}

// NewCodec returns the codec of a service. hexPrefix is what bytes are written
// with, "0x" or nothing; they are read with or without it. A service whose
// messages hold a map, a float, an enum or a group has no form in this dialect
// and is an error.
func NewCodec(service protoreflect.ServiceDescriptor, hexPrefix string) (*Codec, error) {
	c := &Codec{prefix: hexPrefix, messages: make(map[protoreflect.FullName]*message)}
	all := service.Methods()
	for i := range all.Len() {
		for _, md := range []protoreflect.MessageDescriptor{all.Get(i).Input(), all.Get(i).Output()} {
			if _, err := c.plan(md); err != nil {
				return nil, fmt.Errorf("planning the JSON of %s: %w", md.FullName(), err)
			}
		}
	}
	return c, nil
}

// RefuseUnknown returns a codec like c that refuses an object with a key that is
// no field, which c takes for the field of a newer client.
func (c *Codec) RefuseUnknown() *Codec {
	return &Codec{prefix: c.prefix, messages: c.messages, strict: true}
}

// plan returns the plan of a message type, made once.
func (c *Codec) plan(md protoreflect.MessageDescriptor) (*message, error) {
	if m, ok := c.messages[md.FullName()]; ok {
		return m, nil
	}
	m := &message{byName: make(map[string]*field)}
	c.messages[md.FullName()] = m // before its fields: a message may hold itself
	for i := range md.Fields().Len() {
		f, err := c.planField(md.Fields().Get(i))
		if err != nil {
			return nil, err
		}
		m.fields = append(m.fields, f)
		m.byName[f.name] = f
	}
	slices.SortFunc(m.fields, func(a, b *field) int { return int(a.fd.Number()) - int(b.fd.Number()) })
	return m, nil
}

func (c *Codec) planField(fd protoreflect.FieldDescriptor) (*field, error) {
	f := &field{fd: fd, name: string(fd.Name()), kind: fd.Kind(), list: fd.IsList()}
	f.key = `"` + f.name + `":`
	switch fd.Kind() {
	case protoreflect.BoolKind, protoreflect.StringKind, protoreflect.BytesKind,
		protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind,
		protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind,
		protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return f, nil
	case protoreflect.MessageKind:
		if fd.IsMap() {
			return nil, fmt.Errorf("field %s: maps have no form in prpc", f.name)
		}
		m, err := c.plan(fd.Message())
		f.message = m
		return f, err
	default:
		return nil, fmt.Errorf("field %s: kind %s has no form in prpc", f.name, fd.Kind())
	}
}

// Name implements connect.Codec.
func (*Codec) Name() string { return codecName }

// Marshal implements connect.Codec.
func (c *Codec) Marshal(v any) ([]byte, error) { return c.MarshalAppend(nil, v) }

// MarshalAppend appends the JSON of a message of the service to dst.
func (c *Codec) MarshalAppend(dst []byte, v any) ([]byte, error) {
	m, plan, err := c.planOf(v)
	if err != nil {
		return nil, err
	}
	if len(plan.fields) == 0 {
		return append(dst, "null"...), nil
	}
	return c.appendMessage(dst, m, plan), nil
}

// Unmarshal implements connect.Codec. No bytes at all read as {}. A message
// type without fields is not looked at. The error is one sentence that names
// the field.
func (c *Codec) Unmarshal(data []byte, v any) error {
	m, plan, err := c.planOf(v)
	if err != nil {
		return err
	}
	if len(data) == 0 || len(plan.fields) == 0 {
		return nil
	}
	return decoder{strict: c.strict}.decode(data, m, plan)
}

func (c *Codec) planOf(v any) (protoreflect.Message, *message, error) {
	pm, ok := v.(proto.Message)
	if !ok {
		return nil, nil, fmt.Errorf("a %T is not a message", v)
	}
	m := pm.ProtoReflect()
	plan, ok := c.messages[m.Descriptor().FullName()]
	if !ok {
		return nil, nil, fmt.Errorf("%s is not a message of this service", m.Descriptor().FullName())
	}
	return m, plan, nil
}
