// Package auditcheck verifies the audit log of a KMS without believing the one
// who shows it: that every record follows from the one before, that all of them
// are what a checkpoint was signed over, and that the log still begins with what
// an older checkpoint was signed over (docs/audit.md#verification).
package auditcheck

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"teekms/internal/audit"
)

// Head is what a KMS says that its log is.
type Head struct {
	// Checkpoint is the signed note.
	Checkpoint string
	// Key is its verifier key, KeySignature the root CA key's over it.
	Key          string
	KeySignature []byte
}

// Source shows a log.
type Source interface {
	// Head returns the newest checkpoint. Records returns what comes after it
	// too, so that it is asked first.
	Head(ctx context.Context) (Head, error)
	// Records returns encoded records from a place on, in order: as many as it
	// likes, none where there are no more.
	Records(ctx context.Context, from uint64) ([][]byte, error)
}

// Finding is what is wrong with a log.
type Finding string

// The findings.
const (
	// Uncertified: who signs the checkpoint is not the KMS.
	Uncertified Finding = "not certified"
	// Malformed: something is not what it should be, by its form.
	Malformed Finding = "malformed"
	// Rewritten: records are not those that were signed.
	Rewritten Finding = "rewritten"
	// Reordered: records are there, in other places.
	Reordered Finding = "reordered"
	// Truncated: records are missing at the end.
	Truncated Finding = "truncated"
	// Forked: there are two signed logs, and this is not the one of the older
	// checkpoint.
	Forked Finding = "forked"
	// Cleared: the log of the older checkpoint was ended, and a new one begun.
	Cleared Finding = "cleared"
)

// Error says that a log does not verify.
type Error struct {
	// Finding is the kind of what is wrong.
	Finding Finding
	// Text says what was found.
	Text string
}

func (e *Error) Error() string {
	return fmt.Sprintf("the audit log does not verify: %s: %s", e.Finding, e.Text)
}

func findingf(f Finding, format string, args ...any) error {
	return &Error{Finding: f, Text: fmt.Sprintf(format, args...)}
}

// Options say what a log is compared with.
type Options struct {
	// Root is the root CA public key of the KMS, and SPKI its DER
	// SubjectPublicKeyInfo. Required.
	Root *ecdsa.PublicKey
	SPKI []byte
	// Older is a checkpoint from before; empty compares with none.
	Older string
	// Each is called for every record, in order; nil is not.
	Each func(body []byte, r *audit.Record) error
	// Progress is told how far it is; nil is not.
	Progress func(done, total uint64)
}

// Report is what holds.
type Report struct {
	// Head is what was verified, Checkpoint what is in it.
	Head       Head
	Checkpoint audit.Checkpoint
	// Older is the older checkpoint that the log was compared with, nil without
	// one.
	Older *audit.Checkpoint
	// First and Last are the times of the first and the last record.
	First, Last time.Time
	// Kinds counts the records by kind.
	Kinds map[audit.Kind]uint64
}

// Verify verifies a whole log. The error is an [Error] where the log does not
// verify.
func Verify(ctx context.Context, s Source, o Options) (*Report, error) {
	h, err := s.Head(ctx)
	if err != nil {
		return nil, err
	}
	c, v, err := openHead(h, o)
	if err != nil {
		return nil, err
	}
	r := &Report{Head: h, Checkpoint: c, Kinds: map[audit.Kind]uint64{}}
	if o.Older != "" {
		if r.Older, err = openOlder(o.Older, v, c); err != nil {
			return nil, err
		}
	}
	w := walk{options: o, report: r}
	if err := w.all(ctx, s); err != nil {
		return nil, err
	}
	return r, nil
}

// openHead checks that the KMS signed a checkpoint.
func openHead(h Head, o Options) (audit.Checkpoint, note.Verifier, error) {
	v, err := audit.VerifyKey(o.Root, o.SPKI, h.Key, h.KeySignature)
	if err != nil {
		return audit.Checkpoint{}, nil, findingf(Uncertified, "%v", err)
	}
	c, err := audit.OpenCheckpoint(h.Checkpoint, v)
	if err != nil {
		return audit.Checkpoint{}, nil, findingf(Uncertified, "%v", err)
	}
	return c, v, nil
}

// openOlder checks what the two checkpoints alone can tell.
func openOlder(text string, v note.Verifier, now audit.Checkpoint) (*audit.Checkpoint, error) {
	older, err := audit.OpenCheckpoint(text, v)
	if err != nil {
		_, foreign := errors.AsType[*note.UnverifiedNoteError](err)
		if _, wrong := errors.AsType[*note.InvalidSignatureError](err); foreign || wrong {
			return nil, findingf(Uncertified, "the older checkpoint: %v", err)
		}
		return nil, findingf(Malformed, "the older checkpoint: %v", err)
	}
	switch {
	case older.Generation > now.Generation:
		return nil, findingf(Forked, "the older checkpoint is of a log that was begun anew %d times, this one %d times: an older state was put in its place", older.Generation, now.Generation)
	case older.Generation < now.Generation:
		return nil, findingf(Cleared, "the log of the older checkpoint was cleared, and another begun; its %d records are not in this one", older.Size)
	case older.Size > now.Size:
		return nil, findingf(Truncated, "it had %d records at %s, and has %d", older.Size, older.Time.Format(time.RFC3339), now.Size)
	case older.Size == now.Size && older.Root != now.Root:
		return nil, findingf(Forked, "its %d records are signed, and are not those of the older checkpoint, which is signed too", now.Size)
	}
	return &older, nil
}

// walk goes through the records of a log.
type walk struct {
	options Options
	report  *Report
	tree    audit.Tree
	last    tlog.Hash
}

func (w *walk) all(ctx context.Context, s Source) error {
	size := w.report.Checkpoint.Size
	if err := w.milestone(); err != nil {
		return err
	}
	for w.tree.Size() < size {
		if err := ctx.Err(); err != nil {
			return err
		}
		bodies, err := s.Records(ctx, w.tree.Size())
		if err != nil {
			return err
		}
		if len(bodies) == 0 {
			return findingf(Truncated, "record %d is missing; the checkpoint is over %d", w.tree.Size(), size)
		}
		for _, body := range bodies[:min(uint64(len(bodies)), size-w.tree.Size())] {
			if err := w.step(body); err != nil {
				return err
			}
		}
		if w.options.Progress != nil {
			w.options.Progress(w.tree.Size(), size)
		}
	}
	if w.tree.Root() != w.report.Checkpoint.Root {
		return findingf(Rewritten, "the %d records follow from each other, and are not those that the checkpoint is over", size)
	}
	return nil
}

// step takes the next record.
func (w *walk) step(body []byte) error {
	i := w.tree.Size()
	r, err := audit.Parse(body)
	if err != nil {
		return findingf(Malformed, "record %d: %v", i, err)
	}
	switch {
	case r.Seq != i:
		return findingf(Reordered, "where record %d belongs there is record %d", i, r.Seq)
	case r.Prev != w.last:
		return findingf(Rewritten, "record %d does not follow from record %d: one of the two was changed", i, int64(i)-1)
	case i == 0 && (r.Kind == audit.DatabaseCleared) != (w.report.Checkpoint.Generation > 0):
		return findingf(Rewritten, "the log was begun anew %d times, which its first record (%s) contradicts", w.report.Checkpoint.Generation, r.Kind)
	}
	if i == 0 {
		w.report.First = r.Time
	}
	w.report.Last = r.Time
	w.report.Kinds[r.Kind]++
	w.last = audit.Hash(body)
	w.tree.Append(w.last)
	if w.options.Each != nil {
		if err := w.options.Each(body, r); err != nil {
			return err
		}
	}
	return w.milestone()
}

// milestone compares with the older checkpoint when the log is as long as it
// was then.
func (w *walk) milestone() error {
	if o := w.report.Older; o == nil || o.Size != w.tree.Size() || o.Root == w.tree.Root() {
		return nil
	}
	return findingf(Forked, "its first %d records are not those that the older checkpoint of %s is over", w.report.Older.Size, w.report.Older.Time.Format(time.RFC3339))
}

// IsFinding says whether err means that a log does not verify.
func IsFinding(err error) bool {
	_, ok := errors.AsType[*Error](err)
	return ok
}
