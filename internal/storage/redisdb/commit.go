package redisdb

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"go.uber.org/zap"

	"teekms/internal/audit"
	"teekms/internal/storage"
)

const (
	// Pauses after a commit of another process came first: doubled each time,
	// jittered.
	minBackoff = 500 * time.Microsecond
	maxBackoff = 50 * time.Millisecond
	// maxRows bounds the rows of a batch, for the script's sake.
	maxRows = 1024
	// fieldsAtOnce bounds the names and values of one command.
	fieldsAtOnce = 2048
)

// write is a commit ready to be sent.
type write struct {
	expected string // tag of the head it builds on
	head     *head  // the new one, with its tag
	clear    bool
	rows     []audit.Row
	events   []string // blind names that must not be there
	fields   []any    // name, value, ... of the rows and the head
	nodes    []any    // the same of what is new of the rules
	draft    *draft   // what changes of the rules, nil where nothing does
}

// Commit writes what build returns for the current head, and tries again with
// the next head where another process came first, until ctx or the database's
// timeout ends. Where the connection breaks it looks whether the batch was
// written before it says so.
func (db *DB) Commit(ctx context.Context, build func(head []byte) (audit.Batch, error)) error {
	ctx, cancel := context.WithTimeout(ctx, db.timeout)
	defer cancel()
	select {
	case db.writing <- struct{}{}:
		defer func() { <-db.writing }()
	case <-ctx.Done():
		return fmt.Errorf("waiting for an earlier commit: %w", describe(ctx.Err()))
	}
	for backoff := minBackoff; ; backoff = min(2*backoff, maxBackoff) {
		again, err := db.attempt(ctx, build)
		if !again {
			return err
		}
		if !pause(ctx, backoff/2+mathrand.N(backoff)) { //nolint:gosec // Jitter is no secret.
			return fmt.Errorf("%w: other processes kept coming first", storage.ErrUnavailable)
		}
	}
}

// attempt builds a commit on the head as it is now; again says that the head has
// changed meanwhile.
func (db *DB) attempt(ctx context.Context, build func(head []byte) (audit.Batch, error)) (again bool, err error) {
	h, err := db.readHead(ctx)
	if err != nil {
		return false, err
	}
	batch, err := build(bytes.Clone(h.log))
	if err != nil {
		return false, err
	}
	w, err := db.prepare(ctx, h, batch)
	if errors.Is(err, errMoved) {
		return db.movedFrom(ctx, h)
	}
	if err != nil {
		return false, err
	}
	outcome, err := db.send(ctx, w)
	if err != nil {
		return false, err
	}
	switch outcome {
	case commitDone:
		db.observe(w.head)
		return false, nil
	case commitDuplicate:
		return false, audit.ErrDuplicate
	default:
		return true, nil
	}
}

// movedFrom tells a head that moved on from a record that was removed.
func (db *DB) movedFrom(ctx context.Context, h *head) (bool, error) {
	now, err := db.readHead(ctx)
	if err != nil {
		return false, err
	}
	if now.tag == h.tag {
		return false, fmt.Errorf("%w: a record is missing", storage.ErrIntegrity)
	}
	return true, nil
}

// prepare makes of a batch what the script writes.
func (db *DB) prepare(ctx context.Context, old *head, b audit.Batch) (*write, error) {
	if err := checkBatch(b); err != nil {
		return nil, err
	}
	next := *old
	next.version++
	next.log = append([]byte{}, b.Head...)
	if b.Clear {
		next.epoch, next.first, next.next, next.root = newEpoch(), 0, 0, nodeID{}
	}
	if len(b.Edits) > 0 || b.Revision != 0 {
		next.revision = b.Revision
	}
	w := &write{expected: old.tag, head: &next, clear: b.Clear, rows: b.Rows}
	if err := db.prepareRows(ctx, w, old); err != nil {
		return nil, err
	}
	if len(b.Edits) > 0 {
		var err error
		if w.draft, err = db.edit(ctx, next.root, b.Edits, b.Revision); err != nil {
			return nil, err
		}
		next.root = w.draft.root
		for id, n := range w.draft.fresh {
			w.nodes = append(w.nodes, string(id[:]), db.sealNode(id, n))
		}
	}
	sealed := db.box.seal(next.marshal(), headField)
	next.tag = sealed[:tagSize]
	w.fields = append(w.fields, headField, sealed)
	return w, nil
}

// checkBatch refuses what could not be read again.
func checkBatch(b audit.Batch) error {
	if len(b.Head) > maxHead {
		return fmt.Errorf("a head of %d bytes is more than %d", len(b.Head), maxHead)
	}
	if len(b.Edits) > 0 && b.Revision == 0 {
		return errors.New("edits of the rules have no revision")
	}
	for _, e := range b.Edits {
		if err := checkEdit(e); err != nil {
			return err
		}
	}
	return checkRows(b.Rows)
}

func checkRows(rows []audit.Row) error {
	if len(rows) > maxRows {
		return fmt.Errorf("a batch of %d rows is more than %d", len(rows), maxRows)
	}
	seen := make(map[[audit.IDSize]byte]bool, len(rows))
	for i, r := range rows {
		switch {
		case r.Seq != rows[0].Seq+uint64(i):
			return fmt.Errorf("row %d does not follow row %d", r.Seq, rows[i-1].Seq)
		case len(r.Body) > maxBody:
			return fmt.Errorf("a record of %d bytes is more than %d", len(r.Body), maxBody)
		case len(r.Nodes) == 0 || len(r.Nodes) > maxNodes || len(r.Nodes)%sha256.Size != 0:
			return fmt.Errorf("row %d has %d bytes of nodes", r.Seq, len(r.Nodes))
		case seen[r.EventID]:
			return audit.ErrDuplicate
		}
		seen[r.EventID] = true
	}
	return nil
}

// prepareRows names and encrypts the rows, which follow those that are there.
func (db *DB) prepareRows(ctx context.Context, w *write, old *head) error {
	if len(w.rows) == 0 {
		return nil
	}
	h := w.head
	if w.rows[0].Seq != h.next {
		if h.first != h.next {
			return db.misplaced(ctx, w, old)
		}
		h.first = w.rows[0].Seq
	}
	h.next = w.rows[0].Seq + uint64(len(w.rows))
	for _, r := range w.rows {
		event, row := h.eventName(db.box, r.EventID), h.rowName(db.box, r.Seq)
		if !w.clear {
			w.events = append(w.events, event)
		}
		pointer := binary.BigEndian.AppendUint64(nil, r.Seq)
		w.fields = append(w.fields,
			event, db.box.seal(pointer, event),
			row, db.box.seal(marshalRow(r), row))
	}
	return nil
}

// misplaced explains rows that do not follow the last: they may be there.
func (db *DB) misplaced(ctx context.Context, w *write, old *head) error {
	for _, r := range w.rows {
		if _, ok, err := db.findIn(ctx, old, r.EventID); err != nil {
			return err
		} else if ok {
			return audit.ErrDuplicate
		}
	}
	return fmt.Errorf("row %d does not follow the %d rows of the log", w.rows[0].Seq, old.next)
}

// send writes a commit. The nodes of the rules come first, for nothing leads to
// them before the head does; what the new head does not lead to goes last.
func (db *DB) send(ctx context.Context, w *write) (int, error) {
	place := db.key
	fields := w.nodes
	if w.clear {
		place += ":" + rand.Text()
		fields = slices.Concat([]any{headerField, db.header}, w.nodes, w.fields)
	}
	if err := db.put(ctx, place, fields); err != nil {
		return 0, err
	}
	outcome, err := db.sendHead(ctx, w, place)
	if err != nil {
		// Not knowing what was written, remove nothing.
		return 0, err
	}
	db.tidy(ctx, w, place, outcome == commitDone)
	return outcome, nil
}

// put writes fields that nothing leads to.
func (db *DB) put(ctx context.Context, key string, fields []any) error {
	for len(fields) > 0 {
		part := fields[:min(len(fields), fieldsAtOnce)]
		err := db.ask(ctx, "writing to", func(ctx context.Context) error { return db.client.HSet(ctx, key, part...).Err() })
		if err != nil {
			return err
		}
		fields = fields[len(part):]
	}
	return nil
}

// tidy removes the nodes that nothing leads to any more, or never did. What it
// cannot remove stays until the next clearing, of use to nobody.
func (db *DB) tidy(ctx context.Context, w *write, place string, done bool) {
	var err error
	switch {
	case w.clear && !done:
		err = db.client.Unlink(ctx, place).Err()
	case w.draft == nil || w.clear:
	case done:
		w.draft.remember(db.cache)
		err = db.removeNodes(ctx, w.draft.gone)
	default:
		err = db.removeNodes(ctx, slices.Collect(maps.Keys(w.draft.fresh)))
	}
	if err != nil {
		db.log.Warn("old nodes of the rules stay in Redis", zap.NamedError("err", describe(err)))
	}
}

func (db *DB) removeNodes(ctx context.Context, ids []nodeID) error {
	for part := range slices.Chunk(fieldsOf(ids), fieldsAtOnce) {
		if err := db.client.HDel(ctx, db.key, part...).Err(); err != nil {
			return err
		}
	}
	return nil
}

// sendHead runs the script that decides. Where its answer is lost, it is sent
// again, which is safe because only one of two can find the head that both
// expect, and settle finds out which it was.
func (db *DB) sendHead(ctx context.Context, w *write, place string) (outcome int, err error) {
	run := func() (int, error) {
		args := []any{w.expected, len(w.events)}
		for _, e := range w.events {
			args = append(args, e)
		}
		return commitScript().Run(ctx, db.client, []string{db.key}, append(args, w.fields...)...).Int()
	}
	if w.clear {
		run = func() (int, error) {
			return clearScript().Run(ctx, db.client, []string{db.key, place}, w.expected).Int()
		}
	}
	lost := false
	for tries := newPauses(db.patience); ; {
		outcome, err = run()
		if err == nil && lost && outcome != commitDone {
			return db.settle(ctx, w)
		}
		if err == nil {
			return outcome, nil
		}
		lost = lost || replyCode(err) == ""
		if !isTransient(err) || !tries.again(ctx) {
			return 0, fmt.Errorf("committing to the Redis database: %w", describe(err))
		}
	}
}

// settle tells the outcome of a script that was sent more than once and did not
// come first the last time.
func (db *DB) settle(ctx context.Context, w *write) (int, error) {
	now, err := db.readHead(ctx)
	if err != nil {
		return 0, err
	}
	if now.tag == w.head.tag {
		db.log.Warn("the answer to a commit was lost, the commit was not")
		return commitDone, nil
	}
	if now.version > w.head.version && len(w.rows) == 0 {
		// It may lie below another's commit, and nothing of it could be found.
		return 0, fmt.Errorf("%w: it is not known whether a commit was written", storage.ErrUnavailable)
	}
	if len(w.rows) > 0 && now.epoch == w.head.epoch {
		found, ok, err := db.findIn(ctx, now, w.rows[0].EventID)
		if err != nil {
			return 0, err
		}
		if ok && found.Seq == w.rows[0].Seq && bytes.Equal(found.Body, w.rows[0].Body) {
			db.log.Warn("the answer to a commit was lost, the commit was not", zap.Uint64("seq", found.Seq))
			return commitDone, nil
		}
	}
	return commitConflict, nil
}
