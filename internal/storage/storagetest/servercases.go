package storagetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"teekms/internal/registry"
	"teekms/internal/storage"
	"teekms/internal/storage/storagetest/server"
)

// serverCases are about a server that is elsewhere, and may fail.
func serverCases() []testCase {
	return []testCase{
		{"TLS with the CA that is named", suite.encrypted},
		{"a server that does not write durably is warned of", suite.warnings},
		{"nobody waits for a server that hangs", suite.hangs},
		{"a server that ends under load loses and doubles nothing", suite.restarts},
		{"refusals say why, in time, and hold no secret", suite.refusals},
	}
}

func (s suite) encrypted(t *testing.T) {
	db := s.open(t, s.configOn(t, s.Group.Shared(t, s.Kind), true))
	records := newRecords(3, 100)
	mustCommit(t, db, records)
	hasExactly(t, db, records)
}

func (s suite) warnings(t *testing.T) {
	_, durable := s.Own(t, server.Options{Durable: true})
	if got := s.open(t, durable).Warnings(); len(got) != 0 {
		t.Errorf("Warnings() of a server that writes durably = %q, want none", got)
	}
	if got := s.fresh(t).Warnings(); len(got) == 0 {
		t.Error("Warnings() of a server that does not write durably = none")
	}
}

// slack is what a machine that is busy with other tests may add to a deadline.
const slack = 30 * time.Second

func (s suite) hangs(t *testing.T) {
	srv, c := s.Own(t, server.Options{})
	c.Timeout = 2 * time.Minute
	patient := s.open(t, c)
	// Deriving a key from a password is within it.
	c.Timeout = 8 * time.Second
	impatient := s.open(t, c)
	records := newRecords(2, 10)
	mustCommit(t, patient, records)
	if err := patient.Ping(t.Context()); err != nil {
		t.Fatalf("Ping: %v", err)
	}

	srv.Pause()
	var wg sync.WaitGroup
	ask := func(what string, limit time.Duration, call func(ctx context.Context) error, ctx context.Context) {
		wg.Go(func() {
			done := make(chan error, 1)
			go func() { done <- call(ctx) }()
			select {
			case err := <-done:
				if !errors.Is(err, storage.ErrUnavailable) {
					t.Errorf("%s = %v, want %v", what, err, storage.ErrUnavailable)
				}
			case <-time.After(limit + slack):
				t.Errorf("%s took longer than %v", what, limit)
			}
		})
	}
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	for name, call := range calls(patient) {
		ask(name+" with a deadline", 500*time.Millisecond, call, short)
	}
	for name, call := range calls(impatient) {
		ask(name+" with a timeout", c.Timeout, call, t.Context())
	}
	ask("Open", c.Timeout, func(ctx context.Context) error {
		db, err := s.Open(ctx, c)
		if err == nil {
			_ = db.Close()
		}
		return err
	}, t.Context())
	wg.Wait()
	srv.Resume()

	after := newRecords(1, 10)
	if err := settle(t.Context(), impatient, after); err != nil {
		t.Fatalf("Commit after the server answers again: %v", err)
	}
	// The commits that nobody waited for may have come through.
	if rows := allRows(t, patient); len(rows) < 3 || len(rows) > 5 {
		t.Errorf("%d rows, want 3 to 5", len(rows))
	}
}

func (s suite) restarts(t *testing.T) {
	srv, c := s.Own(t, server.Options{Durable: true})
	c.Timeout = 5 * time.Second
	dbs := []storage.DB{s.open(t, c), s.open(t, c)}
	const writers, restarts = 6, 3
	stop := make(chan struct{})
	written := make([][]record, writers)
	var g errgroup.Group
	for w := range writers {
		g.Go(func() error {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return nil
				default:
				}
				batch := newRecords(1+i%3, 100)
				err := settle(t.Context(), dbs[w%2], batch, add(rule(registry.App, fmt.Sprintf("%d-%d", w, i)))...)
				if err != nil {
					return err
				}
				written[w] = append(written[w], batch...)
			}
		})
	}
	for range restarts {
		time.Sleep(200 * time.Millisecond)
		srv.Kill()
		if err := dbs[0].Ping(t.Context()); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("Ping of a server that is not there = %v, want %v", err, storage.ErrUnavailable)
		}
		if err := srv.Start(); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(200 * time.Millisecond)
	close(stop)
	if err := g.Wait(); err != nil {
		t.Fatalf("%v\nthe server's log: %s", err, srv.Log())
	}
	var all []record
	for _, records := range written {
		all = append(all, records...)
	}
	for _, db := range dbs {
		if err := db.Ping(t.Context()); err != nil {
			t.Errorf("Ping after the server was started again: %v", err)
		}
		hasExactly(t, db, all)
	}
	t.Logf("%d records through %d restarts", len(all), restarts)
}
