// Package storagetest is the suite that every database of a KMS passes, against
// real servers: [Run] what storage.DB promises, [Kill] what becomes of it when
// clients and servers are killed.
//
// The tests of a back end have a TestMain that serves as the client processes of
// [Kill] too:
//
//	var servers server.Group
//
//	func TestMain(m *testing.M) {
//		if code, ok := storagetest.Client(open); ok {
//			os.Exit(code)
//		}
//		goleak.VerifyTestMain(servers.Main(m))
//	}
package storagetest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"teekms/internal/keys"
	"teekms/internal/storage"
	"teekms/internal/storage/storagetest/server"
)

// Open opens a database: what is tested.
type Open func(ctx context.Context, c storage.Config) (storage.DB, error)

// Backend is a kind of database and how a test comes by an empty one.
type Backend struct {
	// Name is what tests and counts call it.
	Name string
	// Open opens it.
	Open Open
	// Type is what its Configs have.
	Type storage.Type
	// Group starts servers of this Kind; nil for SQLite.
	Group *server.Group
	Kind  server.Kind
}

// SQLite is a file, encrypted or not.
func SQLite(t storage.Type, open Open) Backend { return Backend{Name: string(t), Open: open, Type: t} }

// Served is a database on servers of the group.
func Served(g *server.Group, kind server.Kind, open Open) Backend {
	b := Backend{Name: string(kind), Open: open, Group: g, Kind: kind}
	switch kind {
	case server.PostgreSQL:
		b.Type = storage.PostgreSQL
	case server.MariaDB:
		b.Type = storage.MySQL
	case server.Redis:
		b.Type = storage.RedisFindex
	}
	return b
}

// Markers of the secrets in the Configs, which no error and no log line may hold.
const masterPassword = server.Marker + " of the master password"

// Config returns what opens an empty database, on the shared server where it is
// on one.
func (b Backend) Config(tb testing.TB) storage.Config {
	tb.Helper()
	if b.Group == nil {
		c := b.config()
		c.Path = tb.TempDir()
		return c
	}
	return b.configOn(tb, b.Group.Shared(tb, b.Kind), false)
}

// Own returns an empty database on a server of the test's own, which is nil for
// SQLite.
func (b Backend) Own(tb testing.TB, o server.Options) (*server.Server, storage.Config) {
	tb.Helper()
	if b.Group == nil {
		return nil, b.Config(tb)
	}
	s := b.Group.Own(tb, b.Kind, o)
	return s, b.configOn(tb, s, false)
}

func (b Backend) configOn(tb testing.TB, s *server.Server, tls bool) storage.Config {
	tb.Helper()
	c := b.config()
	database := s.NewDatabase(tb)
	c.URL = keys.NewSecret([]byte(s.URL(database)))
	if tls {
		c.URL, c.CAFile = keys.NewSecret([]byte(s.TLSURL(database))), s.CAFile()
	}
	return c
}

func (b Backend) config() storage.Config {
	c := storage.Config{Type: b.Type, Root: sha256.Sum256([]byte("root key")), Key: key("a key"), Log: zap.NewNop(), Timeout: 30 * time.Second}
	if b.Type == storage.RedisFindex {
		c.MasterPassword, c.Label = keys.NewSecret([]byte(masterPassword)), "label"
	}
	return c
}

func key(name string) keys.Secret {
	sum := sha256.Sum256([]byte(name))
	return keys.NewSecret(sum[:])
}

// suite is a run of the cases.
type suite struct {
	Backend
	passed *atomic.Int64
}

// testCase is one of them.
type testCase struct {
	name string
	run  func(s suite, t *testing.T)
}

// Run runs the suite. It ends with a line of the log that says how many cases the
// back end passed.
func Run(t *testing.T, b Backend) {
	s := suite{Backend: b, passed: new(atomic.Int64)}
	var cases []testCase
	cases = append(cases, logCases()...)
	cases = append(cases, concurrentCases()...)
	cases = append(cases, ruleCases()...)
	cases = append(cases, openCases()...)
	if b.Group != nil {
		cases = append(cases, serverCases()...)
	}
	t.Cleanup(func() { t.Logf("conformance: %s: %d cases passed", b.Name, s.passed.Load()) })
	for _, c := range cases {
		s.sub(t, c.name, func(t *testing.T) { c.run(s, t) })
	}
}

// sub runs a case beside others and counts it; one that has cases of its own
// counts too.
func (s suite) sub(t *testing.T, name string, run func(t *testing.T)) {
	s.in(t, name, func(t *testing.T) {
		t.Parallel()
		run(t)
	})
}

// in runs a case of a case and counts it.
func (s suite) in(t *testing.T, name string, run func(t *testing.T)) {
	t.Run(name, func(t *testing.T) {
		t.Cleanup(func() {
			if !t.Failed() {
				s.passed.Add(1)
			}
		})
		run(t)
	})
}

// open opens a database that is closed with the test.
func (s suite) open(t *testing.T, c storage.Config) storage.DB {
	t.Helper()
	db, err := s.Open(t.Context(), c)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	// Closing twice is no error: tests do it themselves too.
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return db
}

// fresh opens an empty database.
func (s suite) fresh(t *testing.T) storage.DB {
	t.Helper()
	return s.open(t, s.Config(t))
}

// within runs f and fails where it takes longer than limit; then f is left
// behind.
func within(t *testing.T, limit time.Duration, what string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		t.Fatalf("%s took longer than %v", what, limit)
		return nil
	}
}

// hexOf is a value of rules: 64 hex digits that depend on name.
func hexOf(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}
