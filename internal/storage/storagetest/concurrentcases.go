package storagetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"teekms/internal/audit"
	"teekms/internal/registry"
	"teekms/internal/storage"
)

// concurrentCases are about several goroutines and several handles, which stand
// for replicas.
func concurrentCases() []testCase {
	return []testCase{
		{"commits of many goroutines over two handles are all there once", suite.manyWriters},
		{"the same event from two replicas is recorded once", suite.sameEvent},
		{"a commit waits for another no longer than it may", suite.waitsForBuild},
		{"rules and revision are read at one moment", suite.consistentMatch},
		{"a change is seen by every replica at once", suite.seenAtOnce},
		{"nothing half cleared is read", suite.consistentClear},
		{"rows are read in order while they are appended", suite.readWhileAppending},
	}
}

// handles opens n handles of one empty database.
func (s suite) handles(t *testing.T, n int) []storage.DB {
	t.Helper()
	c := s.Config(t)
	var dbs []storage.DB
	for range n {
		dbs = append(dbs, s.open(t, c))
	}
	return dbs
}

func (s suite) manyWriters(t *testing.T) {
	dbs := s.handles(t, 2)
	const writers, commits = 16, 8
	var all []record
	batches := make([][][]record, writers)
	for w := range writers {
		for range commits {
			batch := newRecords(1+rand.IntN(5), 100) //nolint:gosec // a size, not a secret
			batches[w], all = append(batches[w], batch), append(all, batch...)
		}
	}
	var g errgroup.Group
	for w := range writers {
		g.Go(func() error {
			for i, batch := range batches[w] {
				err := dbs[w%len(dbs)].Commit(t.Context(), appending(batch, add(rule(registry.App, fmt.Sprintf("%d-%d", w, i)))...))
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	for _, db := range dbs {
		hasExactly(t, db, all)
	}
	// Every batch had an edit: each has a revision of its own, none is left out.
	var revisions []uint64
	for _, e := range list(t, dbs[0], registry.Query{Kind: registry.App}) {
		revisions = append(revisions, e.Revision)
	}
	slices.Sort(revisions)
	for i, revision := range revisions {
		if revision != uint64(i+1) {
			t.Fatalf("revision %d is missing or there twice", i+1)
		}
	}
	if len(revisions) != writers*commits {
		t.Fatalf("%d rules, want %d", len(revisions), writers*commits)
	}
}

func (s suite) sameEvent(t *testing.T) {
	dbs := s.handles(t, 2)
	for range 10 {
		records := newRecords(1, 10)
		errs := make([]error, 6)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { errs[i] = dbs[i%2].Commit(t.Context(), appending(records)) })
		}
		wg.Wait()
		succeeded := 0
		for _, err := range errs {
			switch {
			case err == nil:
				succeeded++
			case !errors.Is(err, audit.ErrDuplicate):
				t.Errorf("Commit = %v, want %v", err, audit.ErrDuplicate)
			}
		}
		if succeeded != 1 {
			t.Fatalf("%d commits of one event succeeded", succeeded)
		}
	}
	if rows := allRows(t, dbs[0]); len(rows) != 10 {
		t.Errorf("%d rows, want 10", len(rows))
	}
}

// waitsForBuild: one writer sits in build, the others end by their deadline. A
// database that does not make writers wait, but try again, may commit.
func (s suite) waitsForBuild(t *testing.T) {
	dbs := s.handles(t, 2)
	mustCommit(t, dbs[0], newRecords(1, 10))
	inside, leave := make(chan struct{}), make(chan struct{})
	var once sync.Once
	slow := newRecords(1, 10)
	done := make(chan error, 1)
	go func() {
		done <- settle(t.Context(), hooked{dbs[0], func() {
			once.Do(func() { close(inside) })
			<-leave
		}}, slow)
	}()
	<-inside
	var committed []record
	for i, db := range dbs {
		batch := newRecords(1, 10)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := within(t, slack, fmt.Sprintf("Commit of handle %d while another is in build", i), func() error { return db.Commit(ctx, appending(batch)) })
		cancel()
		if err == nil {
			committed = append(committed, batch...)
		}
		readCtx, cancel := context.WithTimeout(t.Context(), slack)
		if _, _, err := db.Match(readCtx, []registry.Rule{rule(registry.App, "a")}); err != nil {
			t.Errorf("Match of handle %d while another is in build: %v", i, err)
		}
		cancel()
	}
	close(leave)
	if err := <-done; err != nil {
		t.Fatalf("Commit of the slow writer: %v", err)
	}
	rows := allRows(t, dbs[1])
	if want := 2 + len(committed); len(rows) != want {
		t.Errorf("%d rows, want %d", len(rows), want)
	}
}

// hooked calls hook in every build.
type hooked struct {
	storage.DB
	hook func()
}

func (h hooked) Commit(ctx context.Context, build func([]byte) (audit.Batch, error)) error {
	return h.DB.Commit(ctx, func(head []byte) (audit.Batch, error) {
		h.hook()
		return build(head)
	})
}

// readers runs read on every handle over and over until write is done.
func readers(t *testing.T, dbs []storage.DB, read func(db storage.DB) error, write func() error) {
	t.Helper()
	stop := make(chan struct{})
	var reading errgroup.Group
	for _, db := range dbs {
		for range 2 {
			reading.Go(func() error {
				for {
					select {
					case <-stop:
						return nil
					default:
					}
					if err := read(db); err != nil {
						return err
					}
				}
			})
		}
	}
	writeErr := write()
	close(stop)
	if err := errors.Join(writeErr, reading.Wait()); err != nil {
		t.Fatal(err)
	}
}

// consistentMatch: of two rules, one is there at odd revisions, the other at even
// ones.
func (s suite) consistentMatch(t *testing.T) {
	dbs := s.handles(t, 2)
	odd, even := rule(registry.App, "odd"), rule(registry.App, "even")
	seen := make(map[uint64]bool)
	var mu sync.Mutex
	read := func(db storage.DB) error {
		found, revision, err := db.Match(t.Context(), []registry.Rule{odd, even})
		if err != nil {
			return fmt.Errorf("matching: %w", err)
		}
		mu.Lock()
		seen[revision] = true
		mu.Unlock()
		if found[0] != (revision%2 == 1) || found[1] != (revision > 0 && revision%2 == 0) {
			return fmt.Errorf("found %v at revision %d", found, revision)
		}
		return nil
	}
	// On a busy machine the readers may sleep while others write.
	over := make(chan struct{})
	patience := time.AfterFunc(20*time.Second, func() { close(over) })
	defer patience.Stop()
	few := func() bool {
		select {
		case <-over:
			return false
		default:
		}
		mu.Lock()
		defer mu.Unlock()
		return len(seen) < 10
	}
	readers(t, dbs, read, func() error {
		for i := 0; i < 60 || few(); i++ {
			come, leave := odd, even
			if i%2 == 1 {
				come, leave = even, odd
			}
			edits := append(add(come), registry.Edit{Op: registry.Remove, Rule: leave})
			if err := dbs[i%2].Commit(t.Context(), appending(newRecords(1, 10), edits...)); err != nil {
				return err
			}
		}
		return nil
	})
	if len(seen) < 3 {
		t.Errorf("the readers saw %d revisions only: nothing was shown", len(seen))
	}
}

func (s suite) seenAtOnce(t *testing.T) {
	dbs := s.handles(t, 3)
	for i := range 20 {
		r := rule(registry.App, hexOf(fmt.Sprint(i))[:40])
		mustCommit(t, dbs[i%3], newRecords(1, 10), add(r)...)
		for j, db := range dbs {
			found, revision := match(t, db, r)
			if !found[0] || revision != uint64(i+1) {
				t.Fatalf("handle %d sees the change of handle %d as %v at revision %d, want %d", j, i%3, found, revision, i+1)
			}
			if h := mustHead(t, db); h.Size != uint64(i+1) {
				t.Fatalf("handle %d sees %d rows, want %d", j, h.Size, i+1)
			}
		}
	}
}

func (s suite) consistentClear(t *testing.T) {
	dbs := s.handles(t, 2)
	a, b := rule(registry.App, "a"), rule(registry.KMS, "b")
	mustCommit(t, dbs[0], newRecords(3, 100), add(a, b)...)
	read := func(db storage.DB) error {
		found, revision, err := db.Match(t.Context(), []registry.Rule{a, b})
		if err != nil {
			return fmt.Errorf("matching: %w", err)
		}
		if !found[0] || !found[1] || revision == 0 {
			return fmt.Errorf("found %v at revision %d while both are always there", found, revision)
		}
		rows, err := db.Rows(t.Context(), 0, 10)
		if err != nil {
			return fmt.Errorf("reading rows: %w", err)
		}
		if len(rows) != 3 {
			return fmt.Errorf("%d rows while there are always 3", len(rows))
		}
		return nil
	}
	readers(t, dbs, read, func() error {
		for i := range 20 {
			if err := dbs[i%2].Commit(t.Context(), clearing(newRecords(3, 100), add(a, b)...)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s suite) readWhileAppending(t *testing.T) {
	dbs := s.handles(t, 2)
	read := func(db storage.DB) error {
		rows, err := db.Rows(t.Context(), 0, 1000)
		if err != nil {
			return fmt.Errorf("reading rows: %w", err)
		}
		for i, row := range rows {
			if row.Seq != uint64(i) {
				return fmt.Errorf("row %d has Seq %d", i, row.Seq)
			}
		}
		b, err := db.Head(t.Context())
		if err != nil {
			return fmt.Errorf("reading the head: %w", err)
		}
		if h, err := parseHead(b); err != nil || h.Size < uint64(len(rows)) {
			return fmt.Errorf("the head counts %d rows after %d were read (%w)", h.Size, len(rows), err)
		}
		return nil
	}
	readers(t, dbs, read, func() error {
		for i := range 30 {
			if err := dbs[i%2].Commit(t.Context(), appending(newRecords(1+i%4, 50))); err != nil {
				return err
			}
		}
		return nil
	})
}
