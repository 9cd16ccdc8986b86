package redisdb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
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
	// sureTries is how often a commit whose answer was lost is looked after.
	sureTries = 6
)

// write is a commit ready to be sent.
type write struct {
	expected string // tag of the head it builds on
	head     *head  // the new one, with its tag
	sealed   string // the new head's value
	clear    bool
	rows     []audit.Row
	events   []string // blind names that must not be there
	pairs    []string // name, value, ... for the rows
	draft    *draft   // what changes of the rules, nil where nothing does
}

// args are the script's.
func (w *write) args() []any {
	cleared := 0
	if w.clear {
		cleared = 1
	}
	var nodes, removed []string
	if w.draft != nil {
		nodes, removed = w.draft.sealed, w.draft.removed()
	}
	args := []any{w.expected, w.sealed, cleared, len(w.events), len(w.pairs) / 2, len(nodes) / 2, len(removed)}
	for _, list := range [][]string{w.events, w.pairs, nodes, removed} {
		for _, s := range list {
			args = append(args, s)
		}
	}
	return args
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
		if !pause(ctx, backoff/2+rand.N(backoff)) { //nolint:gosec // Jitter is no secret.
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
		if w.draft != nil {
			w.draft.remember(db.cache)
		}
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
	}
	w.sealed = db.box.seal(next.marshal(), db.keys.head, "")
	next.tag = w.sealed[:tagSize]
	return w, nil
}

// checkBatch refuses what could not be read again.
func checkBatch(b audit.Batch) error {
	if len(b.Head) > maxHead {
		return fmt.Errorf("a head of %d bytes is more than %d", len(b.Head), maxHead)
	}
	seen := make(map[[audit.IDSize]byte]bool, len(b.Rows))
	for i, r := range b.Rows {
		switch {
		case r.Seq != b.Rows[0].Seq+uint64(i):
			return fmt.Errorf("row %d does not follow row %d", r.Seq, b.Rows[i-1].Seq)
		case len(r.Body) > maxBody:
			return fmt.Errorf("a record of %d bytes is more than %d", len(r.Body), maxBody)
		case len(r.Nodes) > maxNodes || len(r.Nodes)%sha256.Size != 0:
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
		w.pairs = append(w.pairs,
			event, db.box.seal(pointer, db.keys.rows, event),
			row, db.box.seal(marshalRow(r), db.keys.rows, row))
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

// send runs the script. Where its answer is lost, send sends it again, which is
// safe because only one of two can find the head that both expect, and finds out
// which it was.
func (db *DB) send(ctx context.Context, w *write) (outcome int, err error) {
	args := w.args()
	lost := false
	for try := range sureTries {
		outcome, err = db.run(ctx, args)
		if err == nil && lost && outcome != commitDone {
			return db.settle(ctx, w)
		}
		if err == nil {
			return outcome, nil
		}
		lost = lost || replyCode(err) == ""
		if !isTransient(err) || !pause(ctx, retryPauses[0]<<try) {
			break
		}
	}
	return 0, fmt.Errorf("committing to the Redis database: %w", describe(err))
}

func (db *DB) run(ctx context.Context, args []any) (int, error) {
	return commitScript().Run(ctx, db.client, []string{db.keys.head, db.keys.rows, db.keys.rules}, args...).Int()
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
