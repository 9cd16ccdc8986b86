package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"strings"

	"teekms/internal/audit"
	"teekms/internal/storage"
)

// Head implements [audit.Store].
func (d *DB) Head(ctx context.Context) ([]byte, error) {
	var head []byte
	err := d.read(ctx, func(ctx context.Context) error {
		s, err := d.prepared(ctx, "SELECT head FROM kms_head WHERE id = 1")
		if err != nil {
			return err
		}
		err = s.QueryRowContext(ctx).Scan(&head)
		if errors.Is(err, sql.ErrNoRows) {
			return errNoHead()
		}
		return err
	})
	if err == nil { // else it may have been closed, which ends the file's log
		err = d.place.check()
	}
	return head, err
}

// scanner is *sql.Row or *sql.Rows.
type scanner interface {
	Scan(dest ...any) error
}

func scanRow(s scanner) (audit.Row, error) {
	var seq int64
	var id []byte
	var row audit.Row
	if err := s.Scan(&seq, &id, &row.Body, &row.Nodes); err != nil {
		return audit.Row{}, err
	}
	if seq < 0 || len(id) != audit.IDSize || len(row.Body) > maxBody || len(row.Nodes) > maxNodes {
		return audit.Row{}, fmt.Errorf("%w: record %d of the audit log is malformed", storage.ErrIntegrity, seq)
	}
	row.Seq, row.EventID = uint64(seq), [audit.IDSize]byte(id)
	return row, nil
}

// each runs a prepared query and calls f with every row of its answer.
func (d *DB) each(ctx context.Context, query string, args []any, f func(rows *sql.Rows) error) error {
	s, err := d.prepared(ctx, query)
	if err != nil {
		return err
	}
	rows, err := s.QueryContext(ctx, args...)
	if err != nil {
		return err
	}
	for err == nil && rows.Next() {
		err = f(rows)
	}
	// Rows that ended with an error are closed already.
	return errors.Join(err, rows.Err(), rows.Close())
}

// errNotAsked says that an answer has more than the question, or in another
// order: a database that lies is not to fill the memory, nor to lead in circles.
func errNotAsked() error {
	return fmt.Errorf("%w: it answered what it was not asked", storage.ErrIntegrity)
}

// Rows implements [audit.Store].
func (d *DB) Rows(ctx context.Context, from uint64, limit int) ([]audit.Row, error) {
	if limit <= 0 || from > math.MaxInt64 {
		return nil, nil
	}
	var found []audit.Row
	err := d.read(ctx, func(ctx context.Context) error {
		found = nil
		query := "SELECT seq, event_id, body, nodes FROM kms_audit WHERE seq >= ? ORDER BY seq LIMIT ?"
		return d.each(ctx, query, []any{int64(from), limit}, func(rows *sql.Rows) error {
			row, err := scanRow(rows)
			if err == nil && (row.Seq < from || len(found) == limit || len(found) > 0 && row.Seq <= found[len(found)-1].Seq) {
				err = errNotAsked()
			}
			found = append(found, row)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// Find implements [audit.Store].
func (d *DB) Find(ctx context.Context, id [audit.IDSize]byte) (row audit.Row, ok bool, err error) {
	err = d.read(ctx, func(ctx context.Context) error {
		s, err := d.prepared(ctx, "SELECT seq, event_id, body, nodes FROM kms_audit WHERE event_id = ?")
		if err != nil {
			return err
		}
		row, err = scanRow(s.QueryRowContext(ctx, id[:]))
		ok = err == nil
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return nil
		case err == nil && row.EventID != id:
			return errNotAsked()
		}
		return err
	})
	if err != nil {
		return audit.Row{}, false, err
	}
	return row, ok, nil
}

// maxNodesAtOnce bounds the places that one statement asks for.
const maxNodesAtOnce = 128

// Nodes implements [audit.Store].
func (d *DB) Nodes(ctx context.Context, seqs []uint64) ([][]byte, error) {
	found := make(map[uint64][]byte, len(seqs))
	for rest := seqs; len(rest) > 0; {
		n := min(len(rest), maxNodesAtOnce)
		if err := d.nodes(ctx, rest[:n], found); err != nil {
			return nil, err
		}
		rest = rest[n:]
	}
	nodes := make([][]byte, len(seqs))
	for i, seq := range seqs {
		var ok bool
		if nodes[i], ok = found[seq]; !ok {
			return nil, fmt.Errorf("%w: the audit log has no record %d", storage.ErrIntegrity, seq)
		}
	}
	return nodes, nil
}

// nodes asks for some places at once: their number is rounded up to a power of
// two by asking for the last several times, so that few statements need
// preparing.
func (d *DB) nodes(ctx context.Context, seqs []uint64, found map[uint64][]byte) error {
	n := 1
	for n < len(seqs) {
		n *= 2
	}
	args, asked := make([]any, 0, n), make(map[int64]bool, n)
	for i := range n {
		seq := seqs[min(i, len(seqs)-1)]
		if seq > math.MaxInt64 {
			return fmt.Errorf("%w: the audit log has no record %d", storage.ErrIntegrity, seq)
		}
		args = append(args, int64(seq))
		asked[int64(seq)] = true
	}
	query := "SELECT seq, nodes FROM kms_audit WHERE seq IN (" + strings.Repeat("?, ", n-1) + "?)"
	return d.read(ctx, func(ctx context.Context) error {
		return d.each(ctx, query, args, func(rows *sql.Rows) error {
			var seq int64
			var nodes []byte
			err := rows.Scan(&seq, &nodes)
			if err == nil && (!asked[seq] || len(nodes) > maxNodes) {
				err = errNotAsked()
			}
			found[uint64(seq)] = nodes
			return err
		})
	})
}
