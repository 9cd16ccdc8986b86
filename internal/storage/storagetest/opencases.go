package storagetest

import (
	"context"
	"crypto/sha256"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"teekms/internal/keys"
	"teekms/internal/registry"
	"teekms/internal/storage"
	"teekms/internal/storage/storagetest/server"
)

// openCases are about whose a database is, and its beginning and end.
func openCases() []testCase {
	return []testCase{
		{"what is there is there when opened again", suite.reopens},
		{"three open an empty database at once", suite.openedAtOnce},
		{"a KMS of other root keys is refused by name and writes nothing", suite.otherRoot},
		{"a KMS of other root keys with the same key is refused too", suite.otherRootSameKey},
		{"another key does not pass", suite.otherKey},
		{"another password does not open it", suite.otherPassword},
		{"databases are apart", suite.apart},
		{"a closed database gives errors", suite.closed},
		{"a canceled context opens nothing", suite.openCanceled},
		{"what is required is asked for", suite.required},
	}
}

func (s suite) reopens(t *testing.T) {
	c := s.Config(t)
	var want state
	for i := range 3 {
		db, err := s.Open(t.Context(), c)
		if err != nil {
			t.Fatalf("Open number %d: %v", i, err)
		}
		if i > 0 {
			if diff := cmp.Diff(want, stateOf(t, db)); diff != "" {
				t.Errorf("opened again (-want +got):\n%s", diff)
			}
		}
		mustCommit(t, db, newRecords(10, 100), add(rule(registry.App, hexOf(string(rune('a' + i)))[:40]))...)
		want = stateOf(t, db)
		if err := db.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
}

func (s suite) openedAtOnce(t *testing.T) {
	c := s.Config(t)
	dbs := make([]storage.DB, 3)
	var g errgroup.Group
	for i := range dbs {
		g.Go(func() (err error) {
			dbs[i], err = s.Open(t.Context(), c)
			return err
		})
	}
	err := g.Wait()
	for _, db := range dbs {
		if db != nil {
			t.Cleanup(func() { _ = db.Close() })
		}
	}
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	records := newRecords(6, 10)
	for i := range records {
		mustCommit(t, dbs[i%3], records[i:i+1])
	}
	for _, db := range dbs {
		hasExactly(t, db, records)
	}
}

// refused checks that a Config does not open the database and changes nothing of
// it.
func (s suite) refused(t *testing.T, change func(c *storage.Config), check func(t *testing.T, err error)) {
	t.Helper()
	c := s.Config(t)
	db := s.open(t, c)
	mustCommit(t, db, newRecords(5, 100), add(rule(registry.App, "a"))...)
	before := stateOf(t, db)
	// With the database in use, and alone.
	for range 2 {
		other := c
		change(&other)
		stranger, err := s.Open(t.Context(), other)
		if err == nil {
			_ = stranger.Close()
			t.Fatal("Open succeeded")
		}
		check(t, err)
		if diff := cmp.Diff(before, stateOf(t, db)); diff != "" {
			t.Errorf("the database changed (-before +after):\n%s", diff)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db = s.open(t, c)
	}
	mustCommit(t, db, newRecords(1, 1))
}

func wantOtherRoot(c storage.Config, other [32]byte) func(t *testing.T, err error) {
	return func(t *testing.T, err error) {
		t.Helper()
		e, ok := errors.AsType[*storage.OtherRootError](err)
		if !ok || e.Database != c.Root || e.KMS != other {
			t.Errorf("Open = %v, want the two root keys named", err)
		}
	}
}

func (s suite) otherRoot(t *testing.T) {
	other := sha256.Sum256([]byte("another root key"))
	check := wantOtherRoot(s.config(), other)
	if s.Type == storage.SQLiteEncrypted {
		// Whose it is cannot be read.
		check = wantError(storage.ErrWrongKey)
	}
	s.refused(t, func(c *storage.Config) { c.Root, c.Key = other, key("another key") }, check)
}

func (s suite) otherRootSameKey(t *testing.T) {
	other := sha256.Sum256([]byte("another root key"))
	s.refused(t, func(c *storage.Config) { c.Root = other }, wantOtherRoot(s.config(), other))
}

func wantError(want ...error) func(t *testing.T, err error) {
	return func(t *testing.T, err error) {
		t.Helper()
		for _, w := range want {
			if errors.Is(err, w) {
				return
			}
		}
		t.Errorf("Open = %v, want %v", err, want)
	}
}

// otherKey: the keys of a KMS follow from its root keys, so another key for the
// same root is none of its own.
func (s suite) otherKey(t *testing.T) {
	s.refused(t, func(c *storage.Config) { c.Key = key("another key") }, wantError(storage.ErrIntegrity, storage.ErrWrongKey))
}

// otherPassword is about databases that are encrypted with one.
func (s suite) otherPassword(t *testing.T) {
	if s.Type != storage.RedisFindex && s.Type != storage.SQLiteEncrypted {
		// The others have the server's password, which is among the refusals.
		c := s.Config(t)
		c.MasterPassword = keys.NewSecret([]byte(masterPassword))
		if db, err := s.Open(t.Context(), c); err == nil {
			// A password that has no effect is no harm.
			_ = db.Close()
		} else if !errors.Is(err, storage.ErrConfig) {
			t.Errorf("Open with a master password that is not used = %v", err)
		}
		return
	}
	s.refused(t, func(c *storage.Config) { c.MasterPassword = keys.NewSecret([]byte(server.Marker + " another")) }, wantError(storage.ErrWrongKey))
}

func (s suite) apart(t *testing.T) {
	one, two := s.Config(t), s.Config(t)
	if s.Type == storage.RedisFindex {
		// The label is what separates them; the second has the first's address.
		two = one
		two.Label = "another label"
	}
	first, second := s.open(t, one), s.open(t, two)
	records := newRecords(3, 10)
	mustCommit(t, first, records, add(rule(registry.App, "a"))...)
	if rows := allRows(t, second); len(rows) != 0 {
		t.Errorf("the second database has %d rows of the first", len(rows))
	}
	if found, revision := match(t, second, rule(registry.App, "a")); found[0] || revision != 0 {
		t.Errorf("the second database has the rules of the first")
	}
	// An event of the one is new to the other.
	mustCommit(t, second, records[1:2])
	hasExactly(t, first, records)
	hasExactly(t, second, records[1:2])
}

// calls are the methods that ask the database, by name.
func calls(db storage.DB) map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"Head":   func(ctx context.Context) error { _, err := db.Head(ctx); return err },
		"Commit": func(ctx context.Context) error { return db.Commit(ctx, appending(newRecords(1, 10))) },
		"Rows":   func(ctx context.Context) error { _, err := db.Rows(ctx, 0, 10); return err },
		"Find":   func(ctx context.Context) error { _, _, err := db.Find(ctx, newRecords(1, 0)[0].id); return err },
		"Nodes":  func(ctx context.Context) error { _, err := db.Nodes(ctx, []uint64{0}); return err },
		"Match": func(ctx context.Context) error {
			_, _, err := db.Match(ctx, []registry.Rule{rule(registry.App, "a")})
			return err
		},
		"List": func(ctx context.Context) error {
			_, err := db.List(ctx, registry.Query{Kind: registry.App})
			return err
		},
		"Ping": db.Ping,
	}
}

func (s suite) closed(t *testing.T) {
	c := s.Config(t)
	db := s.open(t, c)
	records := newRecords(1, 10)
	mustCommit(t, db, records)
	for range 2 {
		if err := db.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
	}
	for name, call := range calls(db) {
		if err := within(t, slack, name, func() error { return call(t.Context()) }); err == nil {
			t.Errorf("%s of a closed database succeeded", name)
		}
	}
	hasExactly(t, s.open(t, c), records)
}

func (s suite) openCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	db, err := s.Open(ctx, s.Config(t))
	if err == nil {
		_ = db.Close()
		t.Error("Open with a canceled context succeeded")
	}
}

func (s suite) required(t *testing.T) {
	tests := map[string]func(c *storage.Config){
		"type":      func(c *storage.Config) { c.Type = "" },
		"root":      func(c *storage.Config) { c.Root = [32]byte{} },
		"key":       func(c *storage.Config) { c.Key = keys.Secret{} },
		"whole key": func(c *storage.Config) { c.Key = keys.NewSecret(c.Key.Bytes()[:31]) },
		"log":       func(c *storage.Config) { c.Log = nil },
		"place":     func(c *storage.Config) { c.Path, c.URL = "", keys.Secret{} },
	}
	if s.Type == storage.RedisFindex {
		tests["master password"] = func(c *storage.Config) { c.MasterPassword = keys.Secret{} }
		tests["label"] = func(c *storage.Config) { c.Label = "" }
	}
	for name, change := range tests {
		c := s.Config(t)
		change(&c)
		db, err := s.Open(t.Context(), c)
		if err == nil {
			_ = db.Close()
		}
		if !errors.Is(err, storage.ErrConfig) {
			t.Errorf("Open without a %s = %v, want %v", name, err, storage.ErrConfig)
		}
	}
}
