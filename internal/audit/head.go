package audit

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"teekms/internal/keys"
)

// head is the state of a log after its last record.
type head struct {
	// generation counts how often the log was cleared.
	generation uint64
	// revision is the registry's.
	revision uint64
	// time is when the head was written.
	time time.Time
	// last is the hash of the last record, zeros in an empty log.
	last tlog.Hash
	tree tree
}

// A sealed head is, with integers big-endian:
//
//	magic      "teekms audit head v1\n"
//	generation 8 bytes
//	size       8 bytes
//	revision   8 bytes
//	time       8 bytes, microseconds since 1970, signed
//	last       32 bytes
//	edge       32 bytes for each one bit of size
//	seal       32 bytes, HMAC-SHA256 over all before
const (
	headMagic = "teekms audit head v1\n"
	headFixed = len(headMagic) + 4*8 + tlog.HashSize
)

// seal encodes a head so that it cannot be changed without the key.
func (h *head) seal(key keys.Secret) []byte {
	b := make([]byte, 0, headFixed+(len(h.tree.edge)+1)*tlog.HashSize)
	b = append(b, headMagic...)
	for _, v := range []uint64{h.generation, h.tree.size, h.revision, uint64(h.time.UnixMicro())} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = append(b, h.last[:]...)
	for _, e := range h.tree.edge {
		b = append(b, e[:]...)
	}
	return append(b, headMAC(key, b)...)
}

func headMAC(key keys.Secret, b []byte) []byte {
	mac := hmac.New(sha256.New, key.Bytes())
	mac.Write(b)
	return mac.Sum(nil)
}

// openHead reads a sealed head; nil is the head of a log that has not begun.
// The error is ErrTampered.
func openHead(b []byte, key keys.Secret) (*head, error) {
	if b == nil {
		return &head{}, nil
	}
	if len(b) < headFixed+tlog.HashSize || len(b) > headFixed+65*tlog.HashSize || string(b[:len(headMagic)]) != headMagic {
		return nil, fmt.Errorf("%w: its head is none", ErrTampered)
	}
	sealed, mac := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if !hmac.Equal(mac, headMAC(key, sealed)) {
		return nil, fmt.Errorf("%w: its head was not written by a KMS of these root keys", ErrTampered)
	}
	d := decoder{rest: sealed[len(headMagic):]}
	var h head
	h.generation, h.tree.size, h.revision = d.uint64(), d.uint64(), d.uint64()
	h.time = time.UnixMicro(int64(d.uint64())).UTC()
	copy(h.last[:], d.take(tlog.HashSize))
	if h.tree.size > MaxSize || len(d.rest) != bits.OnesCount64(h.tree.size)*tlog.HashSize {
		return nil, fmt.Errorf("%w: its head contradicts itself", ErrTampered)
	}
	h.tree.edge = make([]tlog.Hash, len(d.rest)/tlog.HashSize)
	for i := range h.tree.edge {
		copy(h.tree.edge[i][:], d.take(tlog.HashSize))
	}
	return &h, nil
}

// add appends an event with the given tail to the log that ends with h.
func (h *head) add(id [IDSize]byte, tail []byte) Row {
	row := Row{Seq: h.tree.size, EventID: id, Body: make([]byte, headerSize+len(tail))}
	copy(row.Body[headerSize:], tail)
	putHeader(row.Body, row.Seq, h.last, h.revision)
	h.last = Hash(row.Body)
	row.Nodes = h.tree.append(h.last, make([]byte, 0, NodeCount(row.Seq)*tlog.HashSize))
	return row
}

func (h *head) clone() *head {
	c := *h
	c.tree = h.tree.clone()
	return &c
}
