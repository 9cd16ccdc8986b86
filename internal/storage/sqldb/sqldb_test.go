package sqldb_test

import (
	"bytes"
	"database/sql"
	"encoding/binary"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ncruces/go-sqlite3/driver"
	"go.uber.org/zap"

	"teekms/internal/audit"
	"teekms/internal/keys"
	"teekms/internal/registry"
	"teekms/internal/storage"
	"teekms/internal/storage/sqldb"
)

// config opens SQLite in a directory, unless a change says otherwise.
func config(dir string, changes ...func(*storage.Config)) storage.Config {
	c := storage.Config{
		Type: storage.SQLite, Path: dir, Root: [32]byte{1}, Key: keys.NewSecret(bytes.Repeat([]byte{7}, 32)), Log: zap.NewNop(),
		Timeout: 5 * time.Second,
	}
	for _, change := range changes {
		change(&c)
	}
	return c
}

func encrypted(c *storage.Config) { c.Type = storage.SQLiteEncrypted }

func otherKey(c *storage.Config) { c.Key = keys.NewSecret(bytes.Repeat([]byte{8}, 32)) }

func otherRoot(c *storage.Config) { c.Root = [32]byte{2} }

func masterPassword(password string) func(*storage.Config) {
	return func(c *storage.Config) { c.MasterPassword = keys.NewSecret([]byte(password)) }
}

func open(tb testing.TB, c storage.Config) *sqldb.DB {
	tb.Helper()
	db, err := sqldb.Open(tb.Context(), c)
	if err != nil {
		tb.Fatalf("Open = %v, want nil", err)
	}
	tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			tb.Errorf("Close = %v, want nil", err)
		}
	})
	return db
}

// use opens a database for one thing and closes it.
func use(tb testing.TB, c storage.Config, f func(db *sqldb.DB)) {
	tb.Helper()
	db, err := sqldb.Open(tb.Context(), c)
	if err != nil {
		tb.Fatalf("Open = %v, want nil", err)
	}
	f(db)
	if err := db.Close(); err != nil {
		tb.Fatalf("Close = %v, want nil", err)
	}
}

// tamper runs statements on an SQLite file behind the back of the KMS.
func tamper(tb testing.TB, dir string, statements ...string) {
	tb.Helper()
	raw := rawSQLite(tb, dir)
	for _, statement := range statements {
		if _, err := raw.ExecContext(tb.Context(), statement); err != nil {
			tb.Fatalf("%s: %v", statement, err)
		}
	}
	if err := raw.Close(); err != nil {
		tb.Fatal(err)
	}
}

func rawSQLite(tb testing.TB, dir string) *sql.DB {
	tb.Helper()
	raw, err := driver.Open(filepath.Join(dir, storage.File))
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

// row is a record of a place in the log.
func row(seq uint64, body string) audit.Row {
	r := audit.Row{Seq: seq, EventID: eventID(seq), Body: []byte(body), Nodes: make([]byte, 32)}
	binary.BigEndian.PutUint64(r.Nodes, seq)
	return r
}

func eventID(n uint64) (id [audit.IDSize]byte) {
	binary.BigEndian.PutUint64(id[:], n)
	id[15] = 1
	return id
}

func rows(from, n uint64) []audit.Row {
	var all []audit.Row
	for seq := from; seq < from+n; seq++ {
		all = append(all, row(seq, "body"))
	}
	return all
}

// write returns what commits a batch.
func write(b audit.Batch) func([]byte) (audit.Batch, error) {
	if b.Head == nil {
		b.Head = []byte("head")
	}
	return func([]byte) (audit.Batch, error) { return b, nil }
}

func commit(tb testing.TB, db storage.DB, b audit.Batch) {
	tb.Helper()
	if err := db.Commit(tb.Context(), write(b)); err != nil {
		tb.Fatalf("Commit = %v, want nil", err)
	}
}

func rule(kind registry.Kind, subject, value string) registry.Rule {
	return registry.Rule{Kind: kind, Subject: subject, Value: value}
}

func add(kind registry.Kind, subject, value string) registry.Edit {
	return registry.Edit{Op: registry.Add, Rule: rule(kind, subject, value)}
}

// wantError checks the text of an error and what it is one of, if that is said.
func wantError(tb testing.TB, err error, text string, is error) {
	tb.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		tb.Errorf("error = %v, want %q", err, text)
	}
	if is != nil && !errors.Is(err, is) {
		tb.Errorf("error = %v, want one that is %q", err, is)
	}
}

// contents is all that a database holds.
type contents struct {
	Head  []byte
	Rows  []audit.Row
	Rules []registry.Entry
}

func readAll(tb testing.TB, db storage.DB) contents {
	tb.Helper()
	c, err := tryReadAll(tb, db)
	if err != nil {
		tb.Fatalf("reading everything: %v", err)
	}
	return c
}

func tryReadAll(tb testing.TB, db storage.DB) (c contents, err error) {
	tb.Helper()
	if c.Head, err = db.Head(tb.Context()); err != nil {
		return c, err
	}
	if c.Rows, err = db.Rows(tb.Context(), 0, 1_000_000); err != nil {
		return c, err
	}
	for _, kind := range []registry.Kind{registry.App, registry.Compose} {
		entries, err := db.List(tb.Context(), registry.Query{Kind: kind, Limit: 1_000_000})
		if err != nil {
			return c, err
		}
		c.Rules = append(c.Rules, entries...)
	}
	return c, nil
}

func TestKeepsWhatWasWritten(t *testing.T) {
	for _, change := range []func(*storage.Config){func(*storage.Config) {}, encrypted, func(c *storage.Config) {
		encrypted(c)
		masterPassword("correct horse")(c)
	}} {
		c := config(t.TempDir(), change)
		t.Run(string(c.Type), func(t *testing.T) {
			use(t, c, func(db *sqldb.DB) {
				if head, err := db.Head(t.Context()); head != nil || err != nil {
					t.Errorf("Head of a new database = %q, %v, want nil", head, err)
				}
				commit(t, db, audit.Batch{
					Head: []byte("head 1"), Rows: []audit.Row{row(0, "a"), row(1, "b"), row(2, "c")},
					Edits: []registry.Edit{add(registry.App, "", "x")}, Revision: 1,
				})
				commit(t, db, audit.Batch{Head: []byte("head 2"), Rows: []audit.Row{row(3, "d")}})
			})
			want := contents{
				Head: []byte("head 2"), Rows: []audit.Row{row(0, "a"), row(1, "b"), row(2, "c"), row(3, "d")},
				Rules: []registry.Entry{{Rule: rule(registry.App, "", "x"), Revision: 1}},
			}
			if diff := cmp.Diff(want, readAll(t, open(t, c))); diff != "" {
				t.Errorf("contents differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOpenRefusesConfigurations(t *testing.T) {
	tests := []struct {
		name   string
		change func(*storage.Config)
		want   string
	}{
		{"one that is wrong in itself", func(c *storage.Config) { c.Path = "" }, "no path is given"},
		{"no root key", func(c *storage.Config) { c.Root = [32]byte{} }, "no root key is given"},
		{"no key", func(c *storage.Config) { c.Key = keys.Secret{} }, "the key has 0 bytes, not 32"},
		{"a short key", func(c *storage.Config) { c.Key = keys.NewSecret(make([]byte, 31)) }, "the key has 31 bytes, not 32"},
		{"no logger", func(c *storage.Config) { c.Log = nil }, "no logger is given"},
		{"Redis", func(c *storage.Config) {
			c.Type, c.URL, c.Label = storage.RedisFindex, keys.NewSecret([]byte("redis://localhost")), "label"
			masterPassword("correct horse")(c)
		}, "not an SQL database"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := sqldb.Open(t.Context(), config(t.TempDir(), tt.change))
			wantError(t, err, tt.want, storage.ErrConfig)
		})
	}
}
