package registry_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"go.uber.org/zap"

	"teekms/internal/audit"
	"teekms/internal/authz"
	authzregistry "teekms/internal/authz/registry"
	"teekms/internal/keys"
	"teekms/internal/registry"
	"teekms/internal/storage"
	"teekms/internal/storage/sqldb"
)

// BenchmarkAuthorizeSQLite decides with more and more applications in the
// database: the time must not grow with them.
func BenchmarkAuthorizeSQLite(b *testing.B) {
	db, err := sqldb.Open(b.Context(), storage.Config{
		Type: storage.SQLite, Path: b.TempDir(), Root: [32]byte{1}, Key: keys.NewSecret(bytes.Repeat([]byte{1}, 32)), Log: zap.NewNop(),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() })
	p, err := registry.New(registry.Config{Store: db})
	if err != nil {
		b.Fatal(err)
	}
	a, err := authzregistry.New(authzregistry.Config{Policy: p, Log: zap.NewNop()})
	if err != nil {
		b.Fatal(err)
	}
	f := &filler{db: db}
	f.add(b, rules())
	apps := 1
	for _, n := range []int{10, 10_000, 1_000_000} {
		for apps < n {
			var more []registry.Rule
			for ; apps < n && len(more) < registry.MaxEdits; apps++ {
				more = append(more, registry.Rule{Kind: registry.App, Value: fmt.Sprintf("%040x", apps)})
			}
			f.add(b, more)
		}
		b.Run(fmt.Sprintf("apps=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if d, err := a.Authorize(b.Context(), request(authz.App)); err != nil || !d.Allowed {
					b.Fatalf("Authorize() = %+v, %v, want it allowed", d, err)
				}
			}
		})
		b.Run(fmt.Sprintf("apps=%d/denied", n), func(b *testing.B) {
			r := request(authz.App)
			r.BootInfo.AppID = fill(20, 0xff)
			for b.Loop() {
				if d, err := a.Authorize(b.Context(), r); err != nil || d.Reason != registry.ReasonApp {
					b.Fatalf("Authorize() = %+v, %v, want it denied", d, err)
				}
			}
		})
	}
}

// filler adds rules without an audit log.
type filler struct {
	db       *sqldb.DB
	revision uint64
}

func (f *filler) add(b *testing.B, rules []registry.Rule) {
	b.Helper()
	batch := audit.Batch{Head: []byte("head"), Revision: f.revision + 1}
	for _, r := range rules {
		batch.Edits = append(batch.Edits, registry.Edit{Op: registry.Add, Rule: r})
	}
	err := f.db.Commit(context.Background(), func([]byte) (audit.Batch, error) { return batch, nil })
	if err != nil {
		b.Fatal(err)
	}
	f.revision++
}
