package rpc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
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

// protoCodec is binary protobuf, as Connect's own with a bound on nesting and
// errors that name no Go types.
type protoCodec struct{}

func (protoCodec) Name() string { return "proto" }

func (c protoCodec) Marshal(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

func (protoCodec) MarshalAppend(dst []byte, message any) ([]byte, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, errNotProto
	}
	return proto.MarshalOptions{}.MarshalAppend(dst, m)
}

func (protoCodec) Unmarshal(data []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return errNotProto
	}
	if err := (proto.UnmarshalOptions{RecursionLimit: maxNesting}).Unmarshal(data, m); err != nil {
		return fmt.Errorf("request body: %s", protoText(err))
	}
	return nil
}

// jsonCodec is protobuf JSON, as Connect's own with a bound on nesting, compact
// output and errors that name no Go types.
type jsonCodec struct{ name string }

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

func (jsonCodec) Unmarshal(data []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return errNotProto
	}
	if len(data) == 0 {
		return errEmptyJSON
	}
	// Unknown fields are skipped so that both sides need not be of one version.
	o := protojson.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: maxNesting}
	if err := o.Unmarshal(data, m); err != nil {
		return fmt.Errorf("request body: %s", protoText(err))
	}
	return nil
}

// protoText is the text of an error of the protobuf module without its prefix,
// which ends in either kind of space.
func protoText(err error) string {
	text := strings.TrimPrefix(err.Error(), "proto:")
	return strings.TrimLeft(text, " \u00a0")
}
