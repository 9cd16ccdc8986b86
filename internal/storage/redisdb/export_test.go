package redisdb

import (
	"teekms/internal/audit"
	"teekms/internal/registry"
)

// HeaderSize is that of every header.
const HeaderSize = headerSize

// ReparseHeader parses a header and writes it again.
func ReparseHeader(b []byte) ([]byte, error) {
	h, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	return h.marshal(), nil
}

// SampleHeader is a header that parses.
func SampleHeader() []byte { return (&header{cost: newCost()}).marshal() }

// ReparseHead parses a head record and writes it again.
func ReparseHead(b []byte) ([]byte, error) {
	h, err := parseHead(b)
	if err != nil {
		return nil, err
	}
	return h.marshal(), nil
}

// SampleHead is a head record that parses.
func SampleHead(log []byte) []byte {
	return (&head{version: 3, epoch: newEpoch(), first: 1, next: 9, revision: 2, root: newNodeID(), log: log}).marshal()
}

// ReparseNode parses a node of the rules and writes it again.
func ReparseNode(b []byte) ([]byte, error) {
	n, err := parseNode(b)
	if err != nil {
		return nil, err
	}
	return n.marshal(), nil
}

// SampleNodes are a leaf and an inner node.
func SampleNodes(entries []registry.Entry) [][]byte {
	inner := &node{level: 1}
	for _, e := range entries {
		inner.children = append(inner.children, child{low: e.Rule, id: newNodeID()})
	}
	return [][]byte{(&node{entries: entries}).marshal(), inner.marshal()}
}

// MarshalRow and ParseRow are the codec of rows.
func MarshalRow(r audit.Row) []byte { return marshalRow(r) }

// ParseRow is the other half.
func ParseRow(b []byte) (audit.Row, error) { return parseRow(b) }

// Box encrypts with a fixed root key.
func Box(label string) (seal func(data []byte, field string) string, open func(value, field string) ([]byte, error)) {
	b, err := newBox(make([]byte, keySize), label)
	if err != nil {
		panic(err) // A key of the right size is taken.
	}
	return b.seal, b.open
}

// Unpad is what Box's open does after it has decrypted.
func Unpad(plain []byte) ([]byte, error) { return unpad(plain) }

// Judge says what is thought of a server's settings.
func Judge(appendOnly, appendFsync, eviction string) ([]string, error) {
	return settings{appendOnly, appendFsync, eviction}.judge()
}

// FromInfo reads settings from INFO's text.
func FromInfo(info string) (appendOnly, eviction string) {
	var s settings
	s.fromInfo(info)
	return s.appendOnly, s.eviction
}
