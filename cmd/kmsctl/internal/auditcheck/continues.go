package auditcheck

import (
	"context"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// Current returns the newest head of a log, and the number of records under it,
// after a look at its signatures alone.
func Current(ctx context.Context, s Source, o Options) (Head, uint64, error) {
	h, err := s.Head(ctx)
	if err != nil {
		return Head{}, 0, err
	}
	c, _, err := openHead(h, o)
	return h, c.Size, err
}

// Continues returns the newest head of a log. Where o has an older checkpoint,
// prove gets the proof that the log begins with it: hashes of RFC 6962 section
// 2.1.2 for the two sizes.
func Continues(ctx context.Context, s Source, prove func(ctx context.Context, from, to uint64) ([]tlog.Hash, error), o Options) (Head, error) {
	h, err := s.Head(ctx)
	if err != nil {
		return Head{}, err
	}
	c, v, err := openHead(h, o)
	if err != nil || o.Older == "" {
		return h, err
	}
	before, err := openOlder(o.Older, v, c)
	if err != nil || before.Size == 0 || before.Size == c.Size {
		return h, err
	}
	proof, err := prove(ctx, before.Size, c.Size)
	if err != nil {
		return Head{}, err
	}
	if tlog.CheckTree(proof, int64(c.Size), c.Root, int64(before.Size), before.Root) != nil {
		return Head{}, findingf(Forked, "its first %d records are not those that the older checkpoint of %s is over", before.Size, before.Time.Format(time.RFC3339))
	}
	return h, nil
}
