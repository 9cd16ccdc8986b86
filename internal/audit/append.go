package audit

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/tlog"

	"teekms/internal/registry"
)

// pending is an event on its way into the log.
type pending struct {
	id [IDSize]byte
	// named says that the id is the caller's own: only such can be there twice.
	named    bool
	tail     []byte
	edits    []registry.Edit
	expected *uint64
	// clear is the event of a new log; tail is made when the old one is known.
	clear *Event
	// ctx is the caller's, with a deadline.
	ctx context.Context //nolint:containedctx // a request in a queue carries its caller's context
	// taken is set by whoever comes first: the appender, or a caller who leaves.
	taken  atomic.Bool
	result chan outcome
}

type outcome struct {
	receipt Receipt
	err     error
}

// identify gives an event what it lacks, and says whether it had an id.
func (l *Log) identify(e *Event) (named bool) {
	named = e.ID != [IDSize]byte{}
	if !named {
		_, _ = rand.Read(e.ID[:]) // never fails
	}
	if e.Time.IsZero() {
		e.Time = l.now()
	}
	return named
}

// submit queues an event and waits for what becomes of it.
func (l *Log) submit(ctx context.Context, p *pending) (Receipt, error) {
	start := l.now()
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	p.ctx = ctx
	o := l.wait(ctx, p)
	if o.err != nil {
		if !errors.Is(o.err, ErrRevision) {
			l.metrics.failed()
		}
		return Receipt{}, o.err
	}
	l.metrics.appended(l.now().Sub(start))
	return o.receipt, nil
}

func (l *Log) wait(ctx context.Context, p *pending) outcome {
	select {
	case <-l.closing:
		return outcome{err: ErrClosed}
	default:
	}
	if err := ctx.Err(); err != nil {
		return outcome{err: fmt.Errorf("%w: %w", ErrUnavailable, err)}
	}
	select {
	case l.queue <- p:
	case <-l.closing:
		return outcome{err: ErrClosed}
	case <-ctx.Done():
		return outcome{err: fmt.Errorf("%w: waiting for a place in the queue: %w", ErrUnavailable, ctx.Err())}
	}
	select {
	case o := <-p.result:
		return o
	case <-ctx.Done():
	case <-l.done:
	}
	if !p.taken.Swap(true) { // it never will be
		return outcome{err: fmt.Errorf("%w: waiting for earlier records", leftBecause(ctx))}
	}
	select {
	case o := <-p.result:
		return o
	default:
		return outcome{err: fmt.Errorf("%w: waiting for the record to be durable", leftBecause(ctx))}
	}
}

// leftBecause is why a caller waits no longer.
func leftBecause(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return ErrClosed
}

// run is the appender: what comes while one group is written is the next.
func (l *Log) run() {
	defer close(l.done)
	var held *pending
	for {
		var group []*pending
		if group, held = l.gather(held); len(group) == 0 {
			return
		}
		l.commit(group)
	}
}

// gather waits for an event and takes what else is there. The first that does
// not fit into the group is held for the next. An empty group is the end.
func (l *Log) gather(held *pending) (group []*pending, next *pending) {
	if held == nil {
		if held = l.receive(); held == nil {
			return nil, nil
		}
	}
	group, size := []*pending{held}, len(held.tail)
	edited := len(held.edits) > 0
	for len(group) < maxGroup && held.clear == nil {
		var p *pending
		select {
		case p = <-l.queue:
		default:
			return group, nil
		}
		if p.taken.Swap(true) {
			continue // its caller has left
		}
		size += headerSize + len(p.tail)
		// Rules that a change adds carry its revision, so that there is one change
		// in a group at most.
		if size > maxGroupBytes || p.named && has(group, p.id) || p.clear != nil || edited && len(p.edits) > 0 {
			return group, p
		}
		group, edited = append(group, p), edited || len(p.edits) > 0
	}
	return group, nil
}

func has(group []*pending, id [IDSize]byte) bool {
	return slices.ContainsFunc(group, func(p *pending) bool { return p.id == id })
}

// receive waits for the first event of a group; nil is the end.
func (l *Log) receive() *pending {
	for {
		var p *pending
		select {
		case p = <-l.queue:
		case <-l.closing:
			select {
			case p = <-l.queue:
			default:
				return nil
			}
		}
		if !p.taken.Swap(true) {
			return p
		}
	}
}

// commit writes a group, and tells every caller in it what became of his event.
// It tries again until the last of them has left.
func (l *Log) commit(group []*pending) {
	var deadline time.Time
	for _, p := range group {
		if d, _ := p.ctx.Deadline(); d.After(deadline) {
			deadline = d
		}
	}
	ctx, cancel := context.WithDeadline(l.base, deadline)
	defer cancel()
	for attempt := 0; ; attempt++ {
		left, err := group, error(nil)
		if group[0].clear != nil && attempt > 0 {
			left, err = l.resolve(ctx, group, nil) // else it would clear its own log
		}
		if len(left) > 0 {
			left, err = l.try(ctx, left)
		}
		if len(left) == 0 {
			return
		}
		if attempt == 0 {
			l.log.Warn("the audit log cannot be written, trying again", zap.NamedError("err", err))
		}
		if !pause(ctx, attempt) {
			l.log.Error("the audit log cannot be written", zap.Int("events", len(left)), zap.NamedError("err", err))
			fail(left, fmt.Errorf("%w: %w", ErrUnavailable, err))
			return
		}
		if group = waiting(left); len(group) == 0 {
			return
		}
	}
}

// pause waits before the next attempt; false says that there is no time for
// another.
func pause(ctx context.Context, attempt int) bool {
	d := min(5*time.Millisecond<<min(attempt, 10), 500*time.Millisecond)
	d += time.Duration(mathrand.Int64N(int64(d))) //nolint:gosec // jitter is no secret
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// waiting are those whose caller is still there.
func waiting(group []*pending) []*pending {
	var still []*pending
	for _, p := range group {
		if err := p.ctx.Err(); err != nil {
			fail([]*pending{p}, fmt.Errorf("%w: %w", ErrUnavailable, err))
			continue
		}
		still = append(still, p)
	}
	return still
}

func fail(group []*pending, err error) {
	for _, p := range group {
		p.result <- outcome{err: err}
	}
}

// errNothing ends a transaction that has nothing to write.
var errNothing = errors.New("nothing to write")

// try makes one attempt to write a group. It returns the events of which it is
// not known what became of them, and why.
func (l *Log) try(ctx context.Context, group []*pending) (left []*pending, err error) {
	var d draft
	err = l.store.Commit(ctx, func(sealed []byte) (Batch, error) {
		var err error
		d, err = l.draft(sealed, group)
		return d.batch, err
	})
	switch {
	case err == nil:
		if err := l.observe(ctx, d.seen, d.base, d.next); err != nil {
			return l.give(group, err)
		}
		for i, p := range d.written {
			p.result <- outcome{receipt: d.receipts[i]}
		}
		l.metrics.committed(len(d.written), d.next.tree.size)
		return l.resolve(ctx, d.stale, ErrRevision)
	case errors.Is(err, errNothing):
		return l.resolve(ctx, d.stale, ErrRevision)
	case errors.Is(err, ErrDuplicate):
		return l.resolve(ctx, group, nil)
	default:
		return l.give(group, err)
	}
}

// give tells the callers where an error is final, and else keeps their events.
func (l *Log) give(group []*pending, err error) ([]*pending, error) {
	if errors.Is(err, ErrTampered) || errors.Is(err, ErrForked) || errors.Is(err, ErrRolledBack) {
		l.log.Error("the audit log is not as it was", zap.NamedError("err", err))
		fail(group, err)
		return nil, nil
	}
	return group, err
}

// draft is what one transaction would write.
type draft struct {
	batch Batch
	// seen is what was known of the log when it was continued, base how it was
	// then, next how it is after it.
	seen, base, next *head
	written          []*pending
	receipts         []Receipt
	// stale expected another revision.
	stale []*pending
}

// draft continues the log that ends with a sealed head.
func (l *Log) draft(sealed []byte, group []*pending) (draft, error) {
	if group[0].clear != nil {
		return l.draftClear(sealed, group[0])
	}
	base, err := openHead(sealed, l.identity.Key)
	if err != nil {
		return draft{}, err
	}
	seen := l.lastKnown()
	if err := seen.continues(base); err != nil {
		return draft{}, err
	}
	d := draft{seen: seen, base: base, next: base.clone()}
	for _, p := range group {
		if p.expected != nil && *p.expected != d.next.revision {
			d.stale = append(d.stale, p)
			continue
		}
		if len(p.edits) > 0 {
			d.next.revision++
			d.batch.Edits, d.batch.Revision = p.edits, d.next.revision
		}
		row := d.next.add(p.id, p.tail)
		d.batch.Rows = append(d.batch.Rows, row)
		d.written = append(d.written, p)
		d.receipts = append(d.receipts, Receipt{Seq: row.Seq, Revision: d.next.revision})
	}
	if len(d.written) == 0 {
		return d, errNothing
	}
	if d.next.tree.size > MaxSize {
		return d, fmt.Errorf("%w: it is full", ErrTampered)
	}
	d.next.time = l.now()
	d.batch.Head = d.next.seal(l.identity.Key)
	return d, nil
}

// draftClear begins a new log. The one before need not be readable: who clears
// a database has decided to lose it.
func (l *Log) draftClear(sealed []byte, p *pending) (draft, error) {
	old, err := openHead(sealed, l.identity.Key)
	if err != nil {
		old = &head{}
	}
	// Neither number goes back: who knew the old log must see that this is newer.
	next := &head{generation: old.generation + 1, revision: old.revision + 1, time: l.now()}
	seen := l.lastKnown()
	if seen != nil {
		next.generation = max(next.generation, seen.generation+1)
		next.revision = max(next.revision, seen.revision+1)
	}
	if p.tail, err = clearTail(*p.clear, old, err == nil); err != nil {
		return draft{}, err
	}
	d := draft{seen: seen, base: next.clone(), next: next, written: []*pending{p}, receipts: []Receipt{{Revision: next.revision}}}
	d.batch = Batch{Clear: true, Rows: []Row{next.add(p.id, p.tail)}, Revision: next.revision}
	d.batch.Head = next.seal(l.identity.Key)
	return d, nil
}

// clearTail encodes the first record of a log that replaces another.
func clearTail(e Event, old *head, readable bool) ([]byte, error) {
	fields := maps.Clone(e.Fields)
	if fields == nil {
		fields = map[string]string{}
	}
	if readable {
		fields["old_size"] = strconv.FormatUint(old.tree.size, 10)
		root := old.tree.root()
		fields["old_root"] = base64.StdEncoding.EncodeToString(root[:])
	} else {
		fields["old_size"] = "unreadable"
	}
	return appendTail(nil, e.ID, e.Time, e.Kind, fields, nil)
}

// resolve finds out which events are in the log already. Their callers are told
// so; those that are not there get missing, or are returned where that is nil.
func (l *Log) resolve(ctx context.Context, group []*pending, missing error) (left []*pending, err error) {
	seen := &head{}
	for _, p := range group {
		receipt, found, lookupErr := l.find(ctx, p, &seen)
		switch {
		case errors.Is(lookupErr, ErrDuplicate):
			p.result <- outcome{err: lookupErr}
		case lookupErr != nil:
			rest, giveErr := l.give([]*pending{p}, lookupErr)
			if len(rest) > 0 {
				left, err = append(left, p), giveErr
			}
		case found:
			p.result <- outcome{receipt: receipt}
		case missing != nil:
			p.result <- outcome{err: missing}
		default:
			left, err = append(left, p), ErrDuplicate
		}
	}
	return left, err
}

// find looks for the record of an event and makes sure that it is in the tree:
// whoever has the database can put a row there, but not into the tree. seen is a
// head that was read before; it is read again for a row that came later.
func (l *Log) find(ctx context.Context, p *pending, seen **head) (receipt Receipt, found bool, err error) {
	row, ok, err := l.store.Find(ctx, p.id)
	if err != nil || !ok {
		return Receipt{}, false, err
	}
	r, err := Parse(row.Body)
	if err != nil {
		return Receipt{}, false, fmt.Errorf("%w: record %d: %w", ErrTampered, row.Seq, err)
	}
	same := bytes.Equal(row.Body[headerSize:], p.tail) || p.clear != nil && r.Kind == DatabaseCleared
	switch {
	case !same || r.ID != p.id:
		return Receipt{}, false, fmt.Errorf("%w: record %d, and it is another one", ErrDuplicate, row.Seq)
	case r.Seq != row.Seq:
		return Receipt{}, false, fmt.Errorf("%w: record %d says that it is %d", ErrTampered, row.Seq, r.Seq)
	}
	if row.Seq >= (*seen).tree.size {
		if *seen, err = l.head(ctx); err != nil {
			*seen = &head{}
			return Receipt{}, false, err
		}
	}
	h := *seen
	if row.Seq >= h.tree.size {
		return Receipt{}, false, fmt.Errorf("%w: record %d is beyond its end", ErrTampered, row.Seq)
	}
	proof, err := tlog.ProveRecord(int64(h.tree.size), int64(row.Seq), nodeReader{l.store.Nodes, ctx})
	if err != nil {
		return Receipt{}, false, err
	}
	if err := tlog.CheckRecord(proof, int64(h.tree.size), h.tree.root(), int64(row.Seq), Hash(row.Body)); err != nil {
		return Receipt{}, false, fmt.Errorf("%w: record %d is not in the tree", ErrTampered, row.Seq)
	}
	return Receipt{Seq: row.Seq, Revision: r.Revision}, true, nil
}
