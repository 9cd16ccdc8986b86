package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"teekms/internal/audit"
	"teekms/internal/registry"
	"teekms/internal/storage"
)

// Bounds of a batch.
const (
	maxHead = 16 << 10
	maxBody = 1 << 20
	// maxNodes is one hash and one more for each bit of Seq.
	maxNodes = 65 * 32
)

// maxStatement bounds the rows of one statement in bytes: servers refuse packets
// that are larger than their limit, 16 MiB where nothing else is said.
const maxStatement = 4 << 20

// maxRowsAtOnce bounds the rows of one statement in number.
const maxRowsAtOnce = 128

// clearPatience is how many Timeouts the removal of everything may take.
const clearPatience = 12

// Commit implements [audit.Store].
func (d *DB) Commit(ctx context.Context, build func(head []byte) (audit.Batch, error)) error {
	waiting := time.NewTimer(d.timeout)
	defer waiting.Stop()
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return d.fault(ctx, ctx.Err())
	case <-waiting.C:
		return d.fault(ctx, context.DeadlineExceeded)
	}
	defer func() { <-d.turn }()
	err := d.retry(ctx, func() error { return d.commit(ctx, build) })
	if f, ok := errors.AsType[final](err); ok {
		return f.error
	}
	return err
}

// patience returns a context that ends when nothing has happened for a while;
// more starts the while anew.
func (d *DB) patience(parent context.Context) (ctx context.Context, more func(timeouts int), stop func()) {
	ctx, cancel := context.WithCancel(parent)
	timer := time.AfterFunc(d.timeout, cancel)
	more = func(timeouts int) { timer.Reset(time.Duration(timeouts) * d.timeout) }
	return ctx, more, func() {
		timer.Stop()
		cancel()
	}
}

// commit is one try. An error of the database that is not final came before
// anything was committed.
func (d *DB) commit(parent context.Context, build func(head []byte) (audit.Batch, error)) error {
	ctx, more, stop := d.patience(parent)
	defer stop()
	tx, err := d.db.BeginTx(ctx, d.dialect.write)
	if err != nil {
		return err
	}
	w := &writer{db: d, tx: tx, more: more}
	batch, err := w.batch(ctx, build)
	if err == nil {
		err = w.write(ctx, batch)
	}
	if err != nil {
		// What went wrong before is what matters; a connection that cannot roll back
		// is closed, which does it too.
		_ = tx.Rollback()
		return d.duplicate(parent, batch, err)
	}
	more(1)
	if err := tx.Commit(); err != nil {
		// Nobody knows whether the batch was written.
		return final{fmt.Errorf("committing to the audit log: %w", d.fault(parent, err))}
	}
	if err := d.place.check(); err != nil {
		return final{err}
	}
	return nil
}

// duplicate tells the row of an event that was written before from a row of the
// same place, which nobody but a tamperer can have left there.
func (d *DB) duplicate(ctx context.Context, batch audit.Batch, err error) error {
	if isOurs(err) {
		return err
	}
	if f := d.asFault(ctx, err); f.kind != unique {
		return f
	}
	for _, row := range batch.Rows {
		_, ok, err := d.Find(ctx, row.EventID)
		if err != nil {
			return final{err}
		}
		if ok {
			return final{audit.ErrDuplicate}
		}
	}
	return final{fmt.Errorf("%w: the audit log has records that its head does not know", storage.ErrIntegrity)}
}

// writer writes one batch in a transaction.
type writer struct {
	db   *DB
	tx   *sql.Tx
	more func(timeouts int)
}

// exec runs a prepared statement.
func (w *writer) exec(ctx context.Context, query string, args ...any) error {
	w.more(1)
	s, err := w.db.prepared(ctx, query)
	if err == nil {
		_, err = w.tx.StmtContext(ctx, s).ExecContext(ctx, args...)
	}
	return err
}

// batch locks the head and asks what to write.
func (w *writer) batch(ctx context.Context, build func(head []byte) (audit.Batch, error)) (audit.Batch, error) {
	s, err := w.db.prepared(ctx, "SELECT head FROM kms_head WHERE id = 1"+w.db.dialect.lockRow)
	if err != nil {
		return audit.Batch{}, err
	}
	var head []byte
	switch err := w.tx.StmtContext(ctx, s).QueryRowContext(ctx).Scan(&head); {
	case errors.Is(err, sql.ErrNoRows):
		return audit.Batch{}, errNoHead()
	case err != nil:
		return audit.Batch{}, err
	}
	batch, err := build(head)
	if err == nil {
		err = checkBatch(batch)
	}
	if err != nil {
		return audit.Batch{}, final{err}
	}
	return batch, nil
}

func errNoHead() error {
	return fmt.Errorf("%w: the head of the audit log was removed", storage.ErrIntegrity)
}

func checkBatch(b audit.Batch) error {
	switch {
	case len(b.Head) == 0 || len(b.Head) > maxHead:
		return fmt.Errorf("writing a batch: its head has %d bytes, not 1 to %d", len(b.Head), maxHead)
	case b.Revision > math.MaxInt64:
		return fmt.Errorf("writing a batch: revision %d is out of range", b.Revision)
	case len(b.Edits) > 0 && b.Revision == 0:
		return errors.New("writing a batch: it has edits without a revision")
	}
	seen := make(map[[audit.IDSize]byte]bool, len(b.Rows))
	for i, row := range b.Rows {
		switch {
		case row.Seq > math.MaxInt64 || row.Seq != b.Rows[0].Seq+uint64(i):
			return fmt.Errorf("writing a batch: record %d is out of order", row.Seq)
		case len(row.Body) == 0 || len(row.Body) > maxBody:
			return fmt.Errorf("writing a batch: record %d has %d bytes, not 1 to %d", row.Seq, len(row.Body), maxBody)
		case len(row.Nodes) == 0 || len(row.Nodes)%32 != 0 || len(row.Nodes) > maxNodes:
			return fmt.Errorf("writing a batch: record %d has %d bytes of hashes", row.Seq, len(row.Nodes))
		case seen[row.EventID]:
			return audit.ErrDuplicate
		}
		seen[row.EventID] = true
	}
	for _, e := range b.Edits {
		if err := checkEdit(e); err != nil {
			return fmt.Errorf("writing a batch: %w", err)
		}
	}
	return nil
}

func checkEdit(e registry.Edit) error {
	switch e.Op {
	case registry.Add, registry.Remove:
		if !canExist(e.Rule) {
			return fmt.Errorf("a rule of kind %q is too long, empty or not UTF-8", e.Rule.Kind)
		}
	case registry.RemoveAll:
		if e.Rule.Value != "" {
			return errors.New("an edit that removes all rules names one")
		}
		if !canExist(registry.Rule{Kind: e.Rule.Kind, Subject: e.Rule.Subject, Value: registry.Any}) {
			return fmt.Errorf("a subject of kind %q is too long or not UTF-8", e.Rule.Kind)
		}
	default:
		return fmt.Errorf("the operation %q of an edit is unknown", e.Op)
	}
	return nil
}

func (w *writer) write(ctx context.Context, b audit.Batch) error {
	if b.Clear {
		for _, query := range []string{"DELETE FROM kms_audit", "DELETE FROM kms_rules"} {
			if err := w.clear(ctx, query); err != nil {
				return err
			}
		}
	}
	if err := w.rows(ctx, b.Rows); err != nil {
		return err
	}
	if err := w.edits(ctx, b); err != nil {
		return err
	}
	query, args := "UPDATE kms_head SET head = ? WHERE id = 1", []any{b.Head}
	if b.Revision > 0 {
		query, args = "UPDATE kms_head SET head = ?, revision = ? WHERE id = 1", []any{b.Head, int64(b.Revision)}
	}
	return w.exec(ctx, query, args...)
}

// clear removes rows, as many at once as can be waited for.
func (w *writer) clear(ctx context.Context, query string, args ...any) error {
	limit := w.db.dialect.clearLimit
	if limit > 0 {
		query += fmt.Sprintf(" LIMIT %d", limit)
	}
	for {
		w.more(clearPatience)
		result, err := w.tx.ExecContext(ctx, w.db.dialect.rebind(query), args...)
		if err != nil || limit == 0 {
			return err
		}
		n, err := result.RowsAffected()
		if err != nil || n < limit {
			return err
		}
	}
}

// values repeats the placeholders of one row.
func values(row string, n int) string { return strings.Repeat(row+", ", n-1) + row }

// atOnce returns how many of n rows the next statement takes: a power of two, so
// that few statements need preparing.
func atOnce(n int) int {
	for size := maxRowsAtOnce; size > 1; size /= 2 {
		if n >= size {
			return size
		}
	}
	return 1
}

func (w *writer) rows(ctx context.Context, rows []audit.Row) error {
	for len(rows) > 0 {
		n := atOnce(fitting(rows))
		args := make([]any, 0, 4*n)
		for _, row := range rows[:n] {
			args = append(args, int64(row.Seq), row.EventID[:], row.Body, row.Nodes)
		}
		query := "INSERT INTO kms_audit (seq, event_id, body, nodes) VALUES " + values("(?, ?, ?, ?)", n)
		if err := w.exec(ctx, query, args...); err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// fitting returns how many rows fit into one statement, one at least.
func fitting(rows []audit.Row) int {
	size := 0
	for i, row := range rows {
		if size += len(row.Body) + len(row.Nodes); size > maxStatement && i > 0 {
			return i
		}
	}
	return len(rows)
}

// edits applies edits in order, adjacent additions together.
func (w *writer) edits(ctx context.Context, b audit.Batch) error {
	for edits := b.Edits; len(edits) > 0; {
		n := 0
		for n < len(edits) && edits[n].Op == registry.Add {
			n++
		}
		var err error
		if n > 0 {
			n = atOnce(n)
			err = w.add(ctx, edits[:n], b.Revision)
		} else {
			n = 1
			err = w.remove(ctx, edits[0])
		}
		if err != nil {
			return err
		}
		edits = edits[n:]
	}
	return nil
}

func (w *writer) add(ctx context.Context, edits []registry.Edit, revision uint64) error {
	args := make([]any, 0, 5*len(edits))
	for _, e := range edits {
		entry := registry.Entry{Rule: e.Rule, Revision: revision}
		args = append(args, string(e.Rule.Kind), e.Rule.Subject, e.Rule.Value, int64(revision), w.db.ruleMAC(entry))
	}
	query := "INSERT INTO kms_rules (kind, subject, value, revision, mac) VALUES " +
		values("(?, ?, ?, ?, ?)", len(edits)) + w.db.dialect.onConflict
	return w.exec(ctx, query, args...)
}

func (w *writer) remove(ctx context.Context, e registry.Edit) error {
	if e.Op == registry.RemoveAll {
		return w.clear(ctx, "DELETE FROM kms_rules WHERE kind = ? AND subject = ?", string(e.Rule.Kind), e.Rule.Subject)
	}
	return w.exec(ctx, "DELETE FROM kms_rules WHERE kind = ? AND subject = ? AND value = ?", string(e.Rule.Kind), e.Rule.Subject, e.Rule.Value)
}
