package keystore_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"teekms/internal/durable"
	"teekms/internal/durable/durabletest"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

const testDomain = "kms.example.com"

func clock() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

// theEight are the files of a key directory with their modes.
func theEight() map[string]fs.FileMode {
	return map[string]fs.FileMode{
		"bootstrap-info.json": 0o644,
		"root-ca.crt":         0o644, "root-ca.key": 0o600, "root-k256.key": 0o600,
		"rpc.crt": 0o644, "rpc.key": 0o600, "tmp-ca.crt": 0o644, "tmp-ca.key": 0o600,
	}
}

func newRoots(t testing.TB) *keys.Roots {
	t.Helper()
	roots, err := keys.NewRoots()
	if err != nil {
		t.Fatal(err)
	}
	return roots
}

// newBundle makes a bundle with a record, as a bootstrap does.
func newBundle(t testing.TB) *keystore.Bundle {
	t.Helper()
	roots := newRoots(t)
	info := &keystore.Info{
		CAPublic: roots.CAPublic(), K256Public: roots.K256Public(),
		Quote: bytes.Repeat([]byte("quote "), 20), EventLog: []byte(`[{"imr":3}]`),
	}
	b, err := keystore.NewBundle(roots, testDomain, info, clock())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func open(t testing.TB, dir string, fsys durable.FS) *keystore.Store {
	t.Helper()
	s, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, FS: fsys, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// filled returns a complete directory on the real file system.
func filled(t testing.TB) (dir string, b *keystore.Bundle) {
	t.Helper()
	dir, b = t.TempDir(), newBundle(t)
	if err := open(t, dir, nil).Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return dir, b
}

// filledDisk returns the same on the model.
func filledDisk(t testing.TB, dir string) (*durabletest.Disk, *keystore.Bundle) {
	t.Helper()
	d, b := durabletest.NewDisk(dir), newBundle(t)
	if err := open(t, dir, d.FS(durabletest.Plan{})).Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return d.Clone(), b
}

func readFile(t testing.TB, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t testing.TB, data []byte, mode fs.FileMode, elem ...string) {
	t.Helper()
	name := filepath.Join(elem...)
	if err := os.WriteFile(name, data, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, elem ...string) {
	t.Helper()
	if err := os.Remove(filepath.Join(elem...)); err != nil {
		t.Fatal(err)
	}
}

func list(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func eightNames() []string { return slices.Sorted(maps.Keys(theEight())) }

// tally counts what a test has tried, from several goroutines.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *tally) add(format string, args ...any) { c.more(fmt.Sprintf(format, args...), 1) }

func (c *tally) more(what string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[what] += n
}

func (c *tally) get(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[name]
}

// floor prints the counts and fails the test below the floors.
func (c *tally) floor(t *testing.T, floors map[string]int) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(c.n)) {
		t.Logf("%6d %s", c.n[name], name)
	}
	for name, floor := range floors {
		if c.n[name] < floor {
			t.Errorf("%d times %s, want at least %d", c.n[name], name, floor)
		}
	}
}
