package redisdb

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"teekms/internal/audit"
	"teekms/internal/storage"
)

const (
	domainRow   = "row"
	domainEvent = "event"

	// maxBody bounds the body of a row, in bytes.
	maxBody = 1 << 20
	// maxNodes bounds the hashes of a row: a leaf and one for each bit of Seq.
	maxNodes = 65 * sha256.Size
	// rowsAtOnce is how many rows one request asks for.
	rowsAtOnce = 64
	// maxMoves is how often a read starts over because the head moved on.
	maxMoves = 16
)

// errMoved says that a record is gone which was there by the head that was read:
// the head has moved on, or the record was removed.
var errMoved = errors.New("the database changed while it was read")

// errAnswer says that the server answered another number of fields than asked.
var errAnswer = fmt.Errorf("%w: an answer of another length", storage.ErrIntegrity)

// marshalRow encodes a row:
//
//	seq (8) | event id (16) | length of nodes (4) | nodes | body
func marshalRow(r audit.Row) []byte {
	b := make([]byte, 0, 28+len(r.Nodes)+len(r.Body))
	b = binary.BigEndian.AppendUint64(b, r.Seq)
	b = append(b, r.EventID[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Nodes)))
	b = append(b, r.Nodes...)
	return append(b, r.Body...)
}

func parseRow(b []byte) (audit.Row, error) {
	c := cursor{rest: b}
	r := audit.Row{Seq: c.uint64()}
	copy(r.EventID[:], c.bytes(audit.IDSize))
	r.Nodes = c.bytes(int(c.uint32()))
	r.Body = c.rest
	if c.failed || len(r.Nodes) > maxNodes || len(r.Body) > maxBody {
		return audit.Row{}, fmt.Errorf("%w: row: %w", storage.ErrIntegrity, errEncoding)
	}
	return r, nil
}

func (h *head) rowName(b *box, seq uint64) string {
	return b.name(domainRow, h.epoch[:], binary.BigEndian.AppendUint64(nil, seq))
}

func (h *head) eventName(b *box, id [audit.IDSize]byte) string {
	return b.name(domainEvent, h.epoch[:], id[:])
}

// fetch returns fields, in the order asked: nil where one is missing.
func (db *DB) fetch(ctx context.Context, fields []string) ([]any, error) {
	var values []any
	err := db.ask(ctx, "reading", func(ctx context.Context) error {
		var err error
		values, err = db.client.HMGet(ctx, db.key, fields...).Result()
		return err
	})
	if err == nil && len(values) != len(fields) {
		err = errAnswer
	}
	return values, err
}

// rowsOf reads rows that are there by h.
func (db *DB) rowsOf(ctx context.Context, h *head, seqs []uint64) ([]audit.Row, error) {
	fields := make([]string, len(seqs))
	for i, seq := range seqs {
		fields[i] = h.rowName(db.box, seq)
	}
	values, err := db.fetch(ctx, fields)
	if err != nil {
		return nil, err
	}
	rows := make([]audit.Row, len(seqs))
	for i, seq := range seqs {
		if rows[i], err = db.openRow(values[i], fields[i], seq); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

func (db *DB) openRow(value any, field string, seq uint64) (audit.Row, error) {
	sealed, ok := value.(string)
	if !ok {
		return audit.Row{}, fmt.Errorf("row %d: %w", seq, errMoved)
	}
	plain, err := db.box.open(sealed, field)
	if err != nil {
		return audit.Row{}, fmt.Errorf("row %d: %w", seq, err)
	}
	r, err := parseRow(plain)
	if err == nil && r.Seq != seq {
		err = fmt.Errorf("%w: row %d is in the place of %d", storage.ErrIntegrity, r.Seq, seq)
	}
	return r, err
}

// settled runs read with the head until it finds all that the head leads to. A
// record that is missing while the head stands still was removed.
func (db *DB) settled(ctx context.Context, read func(*head) error) error {
	h, err := db.readHead(ctx)
	if err != nil {
		return err
	}
	for range maxMoves {
		if err = read(h); !errors.Is(err, errMoved) {
			return err
		}
		now, errHead := db.readHead(ctx)
		if errHead != nil {
			return errHead
		}
		if now.tag == h.tag {
			return fmt.Errorf("%w: a record is missing", storage.ErrIntegrity)
		}
		h = now
	}
	return fmt.Errorf("%w: %w", storage.ErrUnavailable, err)
}

// Head returns the audit log's head, nil before the first commit.
func (db *DB) Head(ctx context.Context) ([]byte, error) {
	h, err := db.readHead(ctx)
	if err != nil {
		return nil, err
	}
	return h.log, nil
}

// Rows returns at most limit rows from Seq from on, in order. A row that is
// missing below the end of the log is storage.ErrIntegrity.
func (db *DB) Rows(ctx context.Context, from uint64, limit int) ([]audit.Row, error) {
	var rows []audit.Row
	err := db.settled(ctx, func(h *head) error {
		rows = nil
		start := max(from, h.first)
		for start < h.next && len(rows) < limit {
			count := min(h.next-start, uint64(limit-len(rows)), rowsAtOnce)
			seqs := make([]uint64, count)
			for i := range seqs {
				seqs[i] = start + uint64(i)
			}
			part, err := db.rowsOf(ctx, h, seqs)
			if err != nil {
				return err
			}
			rows, start = append(rows, part...), start+count
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return rows, nil
}

// Find returns the row of an event, ok false where there is none.
func (db *DB) Find(ctx context.Context, id [audit.IDSize]byte) (row audit.Row, ok bool, err error) {
	err = db.settled(ctx, func(h *head) error {
		row, ok, err = db.findIn(ctx, h, id)
		return err
	})
	if err != nil {
		return audit.Row{}, false, err
	}
	return row, ok, nil
}

func (db *DB) findIn(ctx context.Context, h *head, id [audit.IDSize]byte) (audit.Row, bool, error) {
	name := h.eventName(db.box, id)
	values, err := db.fetch(ctx, []string{name})
	if err != nil {
		return audit.Row{}, false, err
	}
	sealed, ok := values[0].(string)
	if !ok {
		return audit.Row{}, false, nil
	}
	plain, err := db.box.open(sealed, name)
	if err != nil {
		return audit.Row{}, false, fmt.Errorf("event %x: %w", id, err)
	}
	c := cursor{rest: plain}
	seq := c.uint64()
	if err := c.done(); err != nil {
		return audit.Row{}, false, fmt.Errorf("%w: event %x: %w", storage.ErrIntegrity, id, err)
	}
	if seq >= h.next {
		// Written after h was read, or left by nobody.
		return audit.Row{}, false, fmt.Errorf("event %x: %w", id, errMoved)
	}
	rows, err := db.rowsOf(ctx, h, []uint64{seq})
	if err != nil {
		return audit.Row{}, false, err
	}
	if rows[0].EventID != id {
		return audit.Row{}, false, fmt.Errorf("%w: event %x leads to another's row", storage.ErrIntegrity, id)
	}
	return rows[0], true, nil
}

// Nodes returns the Nodes of the rows with these Seq, in the order asked.
func (db *DB) Nodes(ctx context.Context, seqs []uint64) ([][]byte, error) {
	var nodes [][]byte
	err := db.settled(ctx, func(h *head) error {
		nodes = make([][]byte, 0, len(seqs))
		for rest := seqs; len(rest) > 0; {
			part := rest[:min(len(rest), rowsAtOnce)]
			for _, seq := range part {
				if seq < h.first || seq >= h.next {
					return fmt.Errorf("the log has no row %d", seq)
				}
			}
			rows, err := db.rowsOf(ctx, h, part)
			if err != nil {
				return err
			}
			for _, r := range rows {
				nodes = append(nodes, r.Nodes)
			}
			rest = rest[len(part):]
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return nodes, nil
}
