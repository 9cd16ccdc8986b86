package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/tlog"

	"teekms/internal/registry"
)

// Bounds of a record.
const (
	// MaxBody is the most bytes of an encoded record.
	MaxBody = 1 << 20
	// MaxFields is the most fields, MaxValue the most bytes of a value.
	MaxFields = 64
	MaxValue  = 64 << 10
	// MaxEdits is the most edits of one event.
	MaxEdits = 4096

	maxName     = 64
	maxKind     = 32
	maxEditText = 256
)

// ErrInvalid says that an event cannot be recorded as it is.
var ErrInvalid = errors.New("the event cannot be recorded")

// errMalformed says that bytes are no record.
var errMalformed = errors.New("not a record of the audit log")

// Record is an event in its place in the log.
type Record struct {
	// Seq is its place, from 0.
	Seq uint64
	// Prev is the hash of the record before, zeros for the first.
	Prev tlog.Hash
	// Revision is the registry's after this record.
	Revision uint64
	// ID is the event's, never zero.
	ID [IDSize]byte
	// Time is when it happened, UTC, in microseconds.
	Time time.Time
	// Kind is what happened.
	Kind Kind
	// Fields say more about it; no value is empty. nil where there are none.
	Fields map[string]string
	// Edits are what changed in the registry with it. nil where there are none.
	Edits []registry.Edit
}

// An encoded record is, with integers big-endian and every text after its
// length:
//
//	magic    "teekms audit record v1\n"
//	seq      8 bytes
//	prev     32 bytes
//	revision 8 bytes
//	id       16 bytes                              from here on: the tail
//	time     8 bytes, microseconds since 1970, signed
//	kind     1 + n bytes
//	fields   2 bytes, then for each, sorted by name: 1 + n bytes, 4 + n bytes
//	edits    2 bytes, then for each: op 1 + n bytes, kind 1 + n bytes,
//	         subject 2 + n bytes, value 2 + n bytes
const (
	recordMagic = "teekms audit record v1\n"
	headerSize  = len(recordMagic) + 8 + tlog.HashSize + 8
)

// Hash is the leaf hash of an encoded record in the tree (RFC 6962 section 2.1),
// and what the next record names as the one before.
func Hash(body []byte) tlog.Hash { return tlog.RecordHash(body) }

// Marshal encodes a record. The error is [ErrInvalid] where it is out of
// bounds.
func (r *Record) Marshal() ([]byte, error) {
	tail, err := appendTail(make([]byte, headerSize, headerSize+256), r.ID, r.Time, r.Kind, r.Fields, r.Edits)
	if err != nil {
		return nil, err
	}
	putHeader(tail, r.Seq, r.Prev, r.Revision)
	return tail, nil
}

// putHeader fills the first headerSize bytes of body.
func putHeader(body []byte, seq uint64, prev tlog.Hash, revision uint64) {
	n := copy(body, recordMagic)
	binary.BigEndian.PutUint64(body[n:], seq)
	n += 8
	n += copy(body[n:], prev[:])
	binary.BigEndian.PutUint64(body[n:], revision)
}

// appendTail appends what an event is, without its place.
func appendTail(b []byte, id [IDSize]byte, at time.Time, kind Kind, fields map[string]string, edits []registry.Edit) ([]byte, error) {
	switch {
	case id == [IDSize]byte{}:
		return nil, fmt.Errorf("%w: it has no id", ErrInvalid)
	case !isName(string(kind), maxKind):
		return nil, fmt.Errorf("%w: its kind is no word", ErrInvalid)
	case len(edits) > MaxEdits:
		return nil, fmt.Errorf("%w: %d edits, want at most %d", ErrInvalid, len(edits), MaxEdits)
	}
	b = append(b, id[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(at.UnixMicro()))
	b = append(append(b, byte(len(kind))), kind...)
	b, err := appendFields(b, fields)
	if err != nil {
		return nil, err
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(edits)))
	for _, e := range edits {
		if b, err = appendEdit(b, e); err != nil {
			return nil, err
		}
	}
	if len(b) > MaxBody {
		return nil, fmt.Errorf("%w: %d bytes, want at most %d", ErrInvalid, len(b), MaxBody)
	}
	return b, nil
}

func appendFields(b []byte, fields map[string]string) ([]byte, error) {
	at, n := len(b), 0
	b = append(b, 0, 0)
	var sorted [16]string
	names := slices.AppendSeq(sorted[:0], maps.Keys(fields))
	slices.Sort(names)
	for _, name := range names {
		value := fields[name]
		switch {
		case value == "":
			continue
		case !isName(name, maxName):
			return nil, fmt.Errorf("%w: field %.70q has no name", ErrInvalid, name)
		case len(value) > MaxValue || !utf8.ValidString(value):
			return nil, fmt.Errorf("%w: field %s is not UTF-8 of at most %d bytes", ErrInvalid, name, MaxValue)
		}
		b = append(append(b, byte(len(name))), name...)
		b = binary.BigEndian.AppendUint32(b, uint32(len(value)))
		b = append(b, value...)
		n++
	}
	if n > MaxFields {
		return nil, fmt.Errorf("%w: %d fields, want at most %d", ErrInvalid, n, MaxFields)
	}
	binary.BigEndian.PutUint16(b[at:], uint16(n))
	return b, nil
}

func appendEdit(b []byte, e registry.Edit) ([]byte, error) {
	if !isName(string(e.Op), maxKind) || !isName(string(e.Rule.Kind), maxKind) {
		return nil, fmt.Errorf("%w: an edit without operation or kind", ErrInvalid)
	}
	b = append(append(b, byte(len(e.Op))), e.Op...)
	b = append(append(b, byte(len(e.Rule.Kind))), e.Rule.Kind...)
	for _, text := range []string{e.Rule.Subject, e.Rule.Value} {
		if len(text) > maxEditText || !utf8.ValidString(text) {
			return nil, fmt.Errorf("%w: a rule that is not UTF-8 of at most %d bytes", ErrInvalid, maxEditText)
		}
		b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
		b = append(b, text...)
	}
	return b, nil
}

// isName takes words of a-z, 0-9 and _.
func isName(s string, most int) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return s != "" && len(s) <= most
}

// Parse reads a record and takes it in the one way that [Record.Marshal] writes
// it only.
func Parse(body []byte) (*Record, error) {
	if len(body) > MaxBody {
		return nil, fmt.Errorf("%w: more than %d bytes", errMalformed, MaxBody)
	}
	d := decoder{rest: body}
	if string(d.take(len(recordMagic))) != recordMagic {
		return nil, fmt.Errorf("%w: it begins otherwise", errMalformed)
	}
	var r Record
	r.Seq = d.uint64()
	copy(r.Prev[:], d.take(tlog.HashSize))
	r.Revision = d.uint64()
	copy(r.ID[:], d.take(IDSize))
	r.Time = time.UnixMicro(int64(d.uint64())).UTC()
	r.Kind = Kind(d.name(maxKind))
	r.Fields = d.fields()
	r.Edits = d.edits()
	switch {
	case d.bad:
		return nil, fmt.Errorf("%w: cut short, or out of bounds", errMalformed)
	case len(d.rest) > 0:
		return nil, fmt.Errorf("%w: %d bytes too many", errMalformed, len(d.rest))
	case r.ID == [IDSize]byte{}:
		return nil, fmt.Errorf("%w: it has no id", errMalformed)
	}
	return &r, nil
}

// decoder takes a record apart. After the first mistake everything is empty.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || n > len(d.rest) {
		d.bad = true
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

// uint reads an integer of n bytes.
func (d *decoder) uint(n int) uint64 {
	var v uint64
	for _, c := range d.take(n) {
		v = v<<8 | uint64(c)
	}
	return v
}

func (d *decoder) uint64() uint64 { return d.uint(8) }

// text reads UTF-8 after its length in n bytes.
func (d *decoder) text(n, most int) string {
	size := d.uint(n)
	if size > uint64(most) {
		d.bad = true
	}
	s := string(d.take(int(min(size, math.MaxInt32))))
	if !utf8.ValidString(s) {
		d.bad = true
	}
	return s
}

func (d *decoder) name(most int) string {
	s := d.text(1, most)
	if !isName(s, most) {
		d.bad = true
	}
	return s
}

func (d *decoder) fields() map[string]string {
	n := d.uint(2)
	if d.bad = d.bad || n > MaxFields; d.bad || n == 0 {
		return nil
	}
	fields := make(map[string]string, n)
	for before := ""; n > 0 && !d.bad; n-- {
		name := d.name(maxName)
		value := d.text(4, MaxValue)
		d.bad = d.bad || name <= before || value == ""
		fields[name], before = value, name
	}
	return fields
}

func (d *decoder) edits() []registry.Edit {
	n := d.uint(2)
	if d.bad = d.bad || n > MaxEdits; d.bad || n == 0 {
		return nil
	}
	edits := make([]registry.Edit, 0, min(n, 64))
	for ; n > 0 && !d.bad; n-- {
		edits = append(edits, registry.Edit{
			Op: registry.Op(d.name(maxKind)),
			Rule: registry.Rule{
				Kind: registry.Kind(d.name(maxKind)), Subject: d.text(2, maxEditText), Value: d.text(2, maxEditText),
			},
		})
	}
	return edits
}
