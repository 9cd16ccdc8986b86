package sqldb_test

import (
	"context"
	"testing"

	"go.uber.org/zap"

	"teekms/internal/audit"
	"teekms/internal/keys"
	"teekms/internal/registry"
	"teekms/internal/storage"
	"teekms/internal/storage/sqldb"
)

func config(dir string, change ...func(*storage.Config)) storage.Config {
	c := storage.Config{
		Type: storage.SQLite, Path: dir, Root: [32]byte{1}, Key: keys.NewSecret(make([]byte, 32)), Log: zap.NewNop(),
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

func encrypted(c *storage.Config) { c.Type = storage.SQLiteEncrypted }

func open(t *testing.T, c storage.Config) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(t.Context(), c)
	if err != nil {
		t.Fatalf("Open = %v, want nil", err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("Close = %v, want nil", err)
		}
	})
	return db
}

// row is the record of a place in the log.
func row(seq uint64, body string) audit.Row {
	return audit.Row{Seq: seq, EventID: [audit.IDSize]byte{byte(seq), byte(seq >> 8), 1}, Body: []byte(body), Nodes: make([]byte, 32)}
}

func commit(t *testing.T, db storage.DB, b audit.Batch) {
	t.Helper()
	if b.Head == nil {
		b.Head = []byte("head")
	}
	if err := db.Commit(t.Context(), func([]byte) (audit.Batch, error) { return b, nil }); err != nil {
		t.Fatalf("Commit = %v, want nil", err)
	}
}

func add(kind registry.Kind, subject, value string) registry.Edit {
	return registry.Edit{Op: registry.Add, Rule: registry.Rule{Kind: kind, Subject: subject, Value: value}}
}

func TestRoundTrip(t *testing.T) {
	for _, change := range []func(*storage.Config){func(*storage.Config) {}, encrypted} {
		c := config(t.TempDir(), change)
		t.Run(string(c.Type), func(t *testing.T) {
			db := open(t, c)
			commit(t, db, audit.Batch{Rows: []audit.Row{row(0, "a"), row(1, "b"), row(2, "c")}, Edits: []registry.Edit{add(registry.App, "", "x")}, Revision: 1})
			again := open(t, c)
			head, err := again.Head(context.Background())
			if err != nil || string(head) != "head" {
				t.Errorf("Head = %q, %v, want head", head, err)
			}
			rows, err := again.Rows(t.Context(), 1, 10)
			if err != nil || len(rows) != 2 || string(rows[1].Body) != "c" {
				t.Errorf("Rows = %v, %v, want two", rows, err)
			}
			found, revision, err := again.Match(t.Context(), []registry.Rule{{Kind: registry.App, Value: "y"}, {Kind: registry.App, Value: "x"}})
			if err != nil || revision != 1 || found[0] || !found[1] {
				t.Errorf("Match = %v, %d, %v, want the second", found, revision, err)
			}
		})
	}
}
