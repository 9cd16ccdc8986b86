package sqldb_test

import (
	"fmt"
	"testing"

	"teekms/internal/audit"
	"teekms/internal/registry"
	"teekms/internal/storage"
)

// BenchmarkMatch asks what a release asks: eight rules, of which half exist.
func BenchmarkMatch(b *testing.B) {
	for _, bench := range []struct {
		change func(*storage.Config)
		rules  int
	}{
		{func(*storage.Config) {}, 10},
		{func(*storage.Config) {}, 10_000},
		{func(*storage.Config) {}, 1_000_000},
		{encrypted, 10},
		{encrypted, 10_000},
	} {
		c := config(b.TempDir(), bench.change)
		b.Run(fmt.Sprintf("%s/rules=%d", c.Type, bench.rules), func(b *testing.B) { benchmarkMatch(b, c, bench.rules) })
	}
}

func benchmarkMatch(b *testing.B, c storage.Config, n int) {
	db := open(b, c)
	const batch = 20_000
	value := func(i int) string { return fmt.Sprintf("%040x", uint64(i)*0x9e3779b97f4a7c15) }
	for from := 0; from < n; from += batch {
		edits := make([]registry.Edit, 0, batch)
		for i := from; i < min(from+batch, n); i++ {
			edits = append(edits, add(registry.App, "", value(i)))
		}
		commit(b, db, audit.Batch{Edits: edits, Revision: 1})
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		app := value(i % n)
		rules := []registry.Rule{
			rule(registry.App, "", app), rule(registry.App, "", registry.Any),
			rule(registry.App, "", value((i+n/2)%n)), rule(registry.Compose, app, registry.Any),
			rule(registry.App, "", value((i+n/3)%n)), rule(registry.Device, app, registry.Any),
			rule(registry.App, "", value((i+n/5)%n)), rule(registry.TCBStatus, "", "UpToDate"),
		}
		found, _, err := db.Match(b.Context(), rules)
		if err != nil || !found[0] || found[1] {
			b.Fatalf("Match = %v, %v, want the first and not the second", found, err)
		}
	}
}
