package audit

import (
	"context"
	"fmt"

	"go.uber.org/zap"
)

func (l *Log) lastKnown() *head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.known
}

// replace makes next the last head that is known, unless it is not was any
// more.
func (l *Log) replace(was, next *head) (now *head, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known != was {
		return l.known, false
	}
	l.known = next
	return next, true
}

// continues refuses a head that is older than h, or another of the same size.
// Nothing is known where h is nil.
func (h *head) continues(next *head) error {
	switch {
	case h == nil:
		return nil
	case next.generation < h.generation:
		return fmt.Errorf("%w: it was cleared %d times, and now %d", ErrRolledBack, h.generation, next.generation)
	case next.generation > h.generation:
		return nil
	case next.tree.size < h.tree.size:
		return fmt.Errorf("%w: it had %d records, and now %d", ErrRolledBack, h.tree.size, next.tree.size)
	case next.tree.size == h.tree.size && !next.tree.equal(&h.tree):
		return fmt.Errorf("%w: its %d records are not those from before", ErrForked, h.tree.size)
	default:
		return nil
	}
}

// observe takes note of a head that was read and, as next, written after it. It
// refuses one that does not continue what was known before it was read, or what
// others saw meanwhile.
func (l *Log) observe(ctx context.Context, known, read, next *head) error {
	if err := l.extends(ctx, known, read); err != nil {
		return err
	}
	for {
		now, ok := l.replace(known, next)
		if ok {
			return nil
		}
		if now.generation > next.generation || now.generation == next.generation && now.tree.size >= next.tree.size {
			return l.extends(ctx, next, now)
		}
		if err := l.extends(ctx, now, next); err != nil {
			return err
		}
		known = now
	}
}

// extends makes sure that the log which ends with h begins with the one that
// ended with known: from the hashes between the two, whose number grows with
// the logarithm of the difference.
func (l *Log) extends(ctx context.Context, known, h *head) error {
	if known == nil {
		return nil
	}
	if err := known.continues(h); err != nil {
		return err
	}
	if h.generation > known.generation {
		l.log.Warn("the database was cleared", zap.Uint64("records_before", known.tree.size))
		return nil
	}
	if h.tree.size == known.tree.size {
		return nil
	}
	hashes, err := nodeReader{l.store.Nodes, ctx}.read(between(known.tree.size, h.tree.size))
	if err != nil {
		return fmt.Errorf("reading hashes of the audit log: %w", err)
	}
	grown := known.tree.grow(h.tree.size, hashes)
	if !grown.equal(&h.tree) {
		return fmt.Errorf("%w: its %d records do not begin with the %d from before", ErrForked, h.tree.size, known.tree.size)
	}
	return nil
}

// head reads the head and takes note of it.
func (l *Log) head(ctx context.Context) (*head, error) {
	known := l.lastKnown() // before reading: what others see meanwhile may be newer
	sealed, err := l.store.Head(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the head of the audit log: %w", err)
	}
	h, err := openHead(sealed, l.identity.Key)
	if err != nil {
		return nil, err
	}
	if err := l.observe(ctx, known, h, h); err != nil {
		return nil, err
	}
	return h, nil
}
