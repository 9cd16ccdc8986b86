package audit

import (
	"context"
	"fmt"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// The bounds of one reading.
const (
	maxRecords      = 1024
	maxRecordsBytes = 2 << 20
	// rowsAtOnce bounds what is read at once: rows can be a mebibyte each.
	rowsAtOnce = 64
)

// Check tells whether the log can be read, continues what was seen of it
// before, and ends with the record that its head names. A KMS is not ready
// while it does not.
func (l *Log) Check(ctx context.Context) error {
	h, err := l.head(ctx)
	if err != nil {
		return err
	}
	if h.tree.size == 0 {
		return l.checkEmpty(ctx)
	}
	rows, err := l.store.Rows(ctx, h.tree.size-1, 1)
	if err != nil {
		return fmt.Errorf("reading the audit log: %w", err)
	}
	if len(rows) != 1 || rows[0].Seq != h.tree.size-1 || Hash(rows[0].Body) != h.last {
		return fmt.Errorf("%w: record %d is not the one that was written", ErrTampered, h.tree.size-1)
	}
	return nil
}

// checkEmpty refuses records under a head that knows of none.
func (l *Log) checkEmpty(ctx context.Context) error {
	rows, err := l.store.Rows(ctx, 0, 1)
	if err != nil {
		return fmt.Errorf("reading the audit log: %w", err)
	}
	if len(rows) == 0 {
		return nil
	}
	// Another replica may have begun the log meanwhile.
	h, err := l.head(ctx)
	if err == nil && h.tree.size == 0 {
		err = fmt.Errorf("%w: it has records, and its head was removed", ErrTampered)
	}
	return err
}

// Size returns the number of records.
func (l *Log) Size(ctx context.Context) (uint64, error) {
	h, err := l.head(ctx)
	if err != nil {
		return 0, err
	}
	return h.tree.size, nil
}

// Revision returns the registry's revision, as the log has it.
func (l *Log) Revision(ctx context.Context) (uint64, error) {
	h, err := l.head(ctx)
	if err != nil {
		return 0, err
	}
	return h.revision, nil
}

// Checkpoint returns the head of the log as a signed note.
func (l *Log) Checkpoint(ctx context.Context) (string, error) {
	h, err := l.head(ctx)
	if err != nil {
		return "", err
	}
	c := Checkpoint{
		Origin: l.identity.Origin, Size: h.tree.size, Root: h.tree.root(), Generation: h.generation, Time: l.now(),
	}
	signed, err := note.Sign(&note.Note{Text: c.Text()}, l.signer)
	if err != nil {
		return "", fmt.Errorf("signing checkpoint: %w", err)
	}
	return string(signed), nil
}

// Records returns rows from a place on, in order and without gaps, and the size
// of the log: at most limit rows, at most 1024, and fewer where they are large;
// none only where from is the end. The error is [ErrRange] beyond it.
func (l *Log) Records(ctx context.Context, from uint64, limit int) (rows []Row, size uint64, err error) {
	h, err := l.head(ctx)
	if err != nil {
		return nil, 0, err
	}
	size = h.tree.size
	if from > size {
		return nil, size, fmt.Errorf("%w: it has %d records", ErrRange, size)
	}
	limit = int(min(uint64(max(0, min(limit, maxRecords))), size-from))
	for total := 0; len(rows) < limit && total < maxRecordsBytes; {
		next, err := l.store.Rows(ctx, from+uint64(len(rows)), min(rowsAtOnce, limit-len(rows)))
		if err != nil {
			return nil, size, fmt.Errorf("reading the audit log: %w", err)
		}
		if len(next) == 0 {
			return nil, size, fmt.Errorf("%w: record %d is missing", ErrTampered, from+uint64(len(rows)))
		}
		for _, r := range next {
			if r.Seq != from+uint64(len(rows)) || len(r.Body) > MaxBody {
				return nil, size, fmt.Errorf("%w: record %d is missing", ErrTampered, from+uint64(len(rows)))
			}
			if total += len(r.Body); total > maxRecordsBytes && len(rows) > 0 {
				break
			}
			rows = append(rows, r)
		}
	}
	return rows, size, nil
}

// ProveRecord returns a record and the proof that the tree of the given size has
// it (RFC 6962 section 2.1.1). Size 0 is the whole log. The error is [ErrRange]
// for a record or a size that the log does not have.
func (l *Log) ProveRecord(ctx context.Context, seq, size uint64) (row Row, ofSize uint64, proof []tlog.Hash, err error) {
	h, err := l.head(ctx)
	if err != nil {
		return Row{}, 0, nil, err
	}
	if size == 0 {
		size = h.tree.size
	}
	if size > h.tree.size || seq >= size {
		return Row{}, 0, nil, fmt.Errorf("%w: it has %d records", ErrRange, h.tree.size)
	}
	rows, err := l.store.Rows(ctx, seq, 1)
	if err != nil {
		return Row{}, 0, nil, fmt.Errorf("reading the audit log: %w", err)
	}
	if len(rows) != 1 || rows[0].Seq != seq {
		return Row{}, 0, nil, fmt.Errorf("%w: record %d is missing", ErrTampered, seq)
	}
	proof, err = tlog.ProveRecord(int64(size), int64(seq), nodeReader{l.store.Nodes, ctx})
	if err != nil {
		return Row{}, 0, nil, fmt.Errorf("proving record %d: %w", seq, err)
	}
	if size == h.tree.size && tlog.CheckRecord(proof, int64(size), h.tree.root(), int64(seq), Hash(rows[0].Body)) != nil {
		return Row{}, 0, nil, fmt.Errorf("%w: record %d is not in the tree", ErrTampered, seq)
	}
	return rows[0], size, proof, nil
}

// ProveTree returns the proof that the tree of size begins with the one of
// oldSize (RFC 6962 section 2.1.2), which is at least 1. Size 0 is the whole
// log. The error is [ErrRange] for sizes that the log does not have.
func (l *Log) ProveTree(ctx context.Context, oldSize, size uint64) (ofSize uint64, proof []tlog.Hash, err error) {
	h, err := l.head(ctx)
	if err != nil {
		return 0, nil, err
	}
	if size == 0 {
		size = h.tree.size
	}
	if oldSize == 0 || oldSize > size || size > h.tree.size {
		return 0, nil, fmt.Errorf("%w: it has %d records", ErrRange, h.tree.size)
	}
	proof, err = tlog.ProveTree(int64(size), int64(oldSize), nodeReader{l.store.Nodes, ctx})
	if err != nil {
		return 0, nil, fmt.Errorf("proving %d records: %w", oldSize, err)
	}
	return size, proof, nil
}
