package redisdb

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"teekms/internal/storage"
)

// maxHead bounds the head of the audit log that a batch brings, in bytes.
const maxHead = 16 << 10

// epochSize is that of the random number that each beginning of the log has.
const epochSize = 16

// head is the record that everything else hangs on:
//
//	version (8) | epoch (16) | first (8) | next (8) | revision (8)
//	| root of the rules (16, zero where there are none)
//	| log: 0, or 1 | length (4) | bytes
type head struct {
	// version counts commits and never goes back.
	version uint64
	// epoch names the rows: a cleared log begins another, so that no row of the
	// old one passes for one of the new.
	epoch [epochSize]byte
	// first and next are the Seq of the first row and of the next to come.
	first, next uint64
	// revision is that of the policy.
	revision uint64
	// root is the root of the tree of rules.
	root nodeID
	// log is the audit log's own head, nil before the first commit.
	log []byte

	// tag is the beginning of the stored value. It is not stored in it.
	tag string
}

// position is how far a head is, to notice when the server goes back.
type position struct {
	version uint64
	tag     string
}

func newEpoch() (e [epochSize]byte) {
	_, _ = rand.Read(e[:]) // crypto/rand never fails.
	return e
}

func (h *head) marshal() []byte {
	b := make([]byte, 0, 69+len(h.log))
	b = binary.BigEndian.AppendUint64(b, h.version)
	b = append(b, h.epoch[:]...)
	b = binary.BigEndian.AppendUint64(b, h.first)
	b = binary.BigEndian.AppendUint64(b, h.next)
	b = binary.BigEndian.AppendUint64(b, h.revision)
	b = append(b, h.root[:]...)
	if h.log == nil {
		return append(b, 0)
	}
	b = append(b, 1)
	b = binary.BigEndian.AppendUint32(b, uint32(len(h.log)))
	return append(b, h.log...)
}

func parseHead(b []byte) (*head, error) {
	c := cursor{rest: b}
	h := &head{version: c.uint64()}
	copy(h.epoch[:], c.bytes(epochSize))
	h.first, h.next, h.revision = c.uint64(), c.uint64(), c.uint64()
	copy(h.root[:], c.bytes(len(h.root)))
	switch c.uint8() {
	case 0:
	case 1:
		h.log = append([]byte{}, c.bytes(int(c.uint32()))...)
	default:
		c.failed = true
	}
	if err := c.done(); err != nil || h.first > h.next || len(h.log) > maxHead {
		return nil, fmt.Errorf("%w: head: %w", storage.ErrIntegrity, errEncoding)
	}
	return h, nil
}

// openHead decrypts a stored head.
func (db *DB) openHead(value string) (*head, error) {
	plain, err := db.box.open(value, headField)
	if err != nil {
		return nil, fmt.Errorf("opening the head record: %w", err)
	}
	h, err := parseHead(plain)
	if err != nil {
		return nil, err
	}
	h.tag = value[:tagSize]
	return h, nil
}

// readHead returns the head as it is now.
func (db *DB) readHead(ctx context.Context) (*head, error) {
	h, _, err := db.readHeadAnd(ctx, nil)
	return h, err
}

// readHeadAnd returns the head and, as they are at that moment, some other
// fields: nil where one is missing.
func (db *DB) readHeadAnd(ctx context.Context, fields []string) (*head, []any, error) {
	before := db.newest.Load()
	values, err := db.fetch(ctx, append([]string{headField}, fields...))
	if err != nil {
		return nil, nil, err
	}
	value, ok := values[0].(string)
	if !ok {
		return nil, nil, fmt.Errorf("%w: the head record is missing", storage.ErrIntegrity)
	}
	h, err := db.openHead(value)
	if err != nil {
		return nil, nil, err
	}
	if before != nil && (h.version < before.version || h.version == before.version && h.tag != before.tag) {
		return nil, nil, fmt.Errorf("%w: commits that were there are gone", storage.ErrIntegrity)
	}
	db.observe(h)
	return h, values[1:], nil
}

// observe remembers the newest head. Only what was seen before a request was sent
// binds its answer: answers overtake each other.
func (db *DB) observe(h *head) {
	p := &position{version: h.version, tag: h.tag}
	for {
		old := db.newest.Load()
		if old != nil && old.version >= p.version || db.newest.CompareAndSwap(old, p) {
			return
		}
	}
}
