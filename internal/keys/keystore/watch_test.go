package keystore_test

import (
	"context"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/durable"
	"teekms/internal/durable/durabletest"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

// watched collects what there is to read on a disk before and after every change
// of a file system.
type watched struct {
	seen  map[string]bool
	steps int
}

// on returns a file system that is watched through look.
func (w *watched) on(fsys durable.FS, look func() []string) durable.FS {
	if w.seen == nil {
		w.seen = map[string]bool{}
	}
	see := func(string) {
		w.steps++
		for _, text := range look() {
			w.seen[text] = true
		}
	}
	return durabletest.Observed{FS: fsys, Before: see, After: see}
}

func (w *watched) texts() []string { return slices.Collect(maps.Keys(w.seen)) }

// below reads every file below a directory of the real file system.
func below(t *testing.T, dir string) []string {
	t.Helper()
	var texts []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		texts = append(texts, string(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return texts
}

// plainOf opens the private files of a directory with a sealer.
func plainOf(t *testing.T, dir string, fsys durable.FS, sealer keystore.Sealer) map[string][]byte {
	t.Helper()
	raw, err := keystore.ReadPrivate(t.Context(), dir, fsys)
	if err != nil {
		t.Fatal(err)
	}
	if sealer == nil {
		return raw
	}
	opened, err := sealer.Open(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	plain := map[string][]byte{}
	for name, secret := range opened {
		plain[name] = secret.Bytes()
	}
	return plain
}

// place is a file system under watch.
type place struct {
	dir  string
	fsys durable.FS
	look func() []string
	// remove removes a file behind the watcher's back.
	remove func(name string)
}

// watchedLife lets a directory be filled, its certificate be renewed, be
// repaired, sealed to another place and opened, and returns what was seen.
func watchedLife(t *testing.T, p place, b *keystore.Bundle, sealer, then keystore.Sealer) (*watched, secrets) {
	t.Helper()
	w := &watched{}
	fsys := w.on(p.fsys, p.look)
	cfg := keystore.Config{Dir: p.dir, FS: fsys, Now: clock, Sealer: sealer}
	reopen := func() *keystore.Store {
		s, err := keystore.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if err := reopen().Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if _, err := reopen().RenewRPC(t.Context()); err != nil {
		t.Fatal(err)
	}
	all := keystore.PlainFiles(b)
	for _, name := range []string{"rpc.key", "tmp-ca.key", "root-ca.crt"} {
		p.remove(name)
	}
	s := reopen()
	again := plainOf(t, p.dir, p.fsys, sealer)
	if string(again["rpc.key"]) == string(all["rpc.key"]) || string(again["root-ca.key"]) != string(all["root-ca.key"]) {
		t.Fatal("not repaired as it should be")
	}
	for _, name := range []string{"rpc.key", "tmp-ca.key"} {
		all["new "+name] = again[name]
	}
	if then != nil {
		if err := s.Reseal(t.Context(), then); err != nil {
			t.Fatal(err)
		}
		cfg.Sealer = then
	}
	if !reopen().Roots().Equal(b.Roots()) {
		t.Error("other root keys")
	}
	return w, secretsOf(all)
}

func modelPlace() (place, *durabletest.Disk) {
	disk := durabletest.NewDisk("/etc")
	return place{crashDir, disk.FS(durabletest.Plan{}), disk.Contents, func(name string) { disk.Delete(crashDir + "/" + name) }}, disk
}

func osPlace(t *testing.T) place {
	dir := filepath.Join(t.TempDir(), "etc", "certs")
	return place{dir, durable.NewWithin(dir), func() []string { return below(t, filepath.Dir(filepath.Dir(dir))) }, func(name string) { remove(t, dir, name) }}
}

// TestNothingInTheClear looks at all that is on the disk, in the stage, in the
// cache and left by removed files too, around every change of the life of a
// sealed directory.
func TestNothingInTheClear(t *testing.T) {
	places := map[string]func(t *testing.T) place{
		"model": func(*testing.T) place { p, _ := modelPlace(); return p },
		"os":    osPlace,
	}
	for name, make := range places {
		t.Run(name, func(t *testing.T) {
			w, secret := watchedLife(t, make(t), newBundle(t), sealTo(t, "here"), sealTo(t, "there"))
			if found := secret.in(w.texts()); len(found) > 0 {
				t.Errorf("in the clear: %v", found)
			}
			if w.steps < 300 || len(w.seen) < 25 {
				t.Errorf("looked %d times and saw %d texts, want at least 300 and 25", w.steps, len(w.seen))
			}
			t.Logf("looked %d times, saw %d texts", w.steps, len(w.seen))

			// The same without seals: the watcher sees every key.
			w, secret = watchedLife(t, make(t), newBundle(t), nil, nil)
			want := []string{"new rpc.key", "new tmp-ca.key", "root-ca.key", "root-k256.key", "rpc.key", "tmp-ca.key"}
			if diff := cmp.Diff(want, secret.in(w.texts())); diff != "" {
				t.Errorf("without seals, found in the clear (-want +got):\n%s", diff)
			}
		})
	}
}

// TestNoReplicaInTheClear looks in the same way around every change of the commit
// of a replica, whose keys come from another KMS.
func TestNoReplicaInTheClear(t *testing.T) {
	source, b := filled(t)
	replica, err := keystore.NewReplica(keystore.Replica{
		Roots: b.Roots(), TempCAKey: keys.NewSecret(readFile(t, source, "tmp-ca.key")), Domain: testDomain, Info: b.Info(),
	}, clock())
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]place{"model": first(modelPlace()), "os": osPlace(t)} {
		for _, sealer := range []keystore.Sealer{sealTo(t, "here"), nil} {
			w := &watched{}
			p.dir += "-" // a directory of its own
			s, err := keystore.Open(t.Context(), keystore.Config{Dir: p.dir, FS: w.on(p.fsys, p.look), Now: clock, Sealer: sealer})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Commit(t.Context(), replica); err != nil {
				t.Fatal(err)
			}
			var want []string
			if sealer == nil {
				want = privateNames() // the watcher sees every key
			}
			if diff := cmp.Diff(want, secretsOf(keystore.PlainFiles(replica)).in(w.texts())); diff != "" || w.steps < 100 {
				t.Errorf("%s, sealed %v: looked %d times, found in the clear (-want +got):\n%s", name, sealer != nil, w.steps, diff)
			}
		}
	}
}

func first(p place, _ *durabletest.Disk) place { return p }

// TestPlainFilesAreOverwritten seals a plain directory: no file is removed before
// it was overwritten, and at the end nothing is left in the clear.
func TestPlainFilesAreOverwritten(t *testing.T) {
	start, b := filledDisk(t, crashDir)
	secret, overwritten := secretsOf(keystore.PlainFiles(b)), 0
	check := func(step string) {
		if strings.HasPrefix(step, "overwrite") {
			overwritten++
		}
		if found := secret.in(start.Removed()); len(found) > 0 {
			t.Errorf("%s: removed in the clear: %v", step, found)
		}
	}
	fsys := durabletest.Observed{FS: start.FS(durabletest.Plan{}), Before: func(string) {}, After: check}
	if found := secret.in(start.Contents()); len(found) != 4 {
		t.Fatalf("in the clear before: %v, want all four", found)
	}
	if err := open(t, crashDir, fsys).Reseal(t.Context(), sealTo(t, "here")); err != nil {
		t.Fatal(err)
	}
	if found := secret.in(start.Contents()); len(found) > 0 || overwritten != 4 {
		t.Errorf("still in the clear: %v after %d files were overwritten", found, overwritten)
	}

	// The test of the test: a file system that overwrites nothing is caught.
	start, b = filledDisk(t, crashDir)
	if err := open(t, crashDir, lazy{start.FS(durabletest.Plan{})}).Reseal(t.Context(), sealTo(t, "here")); err != nil {
		t.Fatal(err)
	}
	if found := secretsOf(keystore.PlainFiles(b)).in(start.Removed()); len(found) != 4 {
		t.Errorf("found in removed files that were not overwritten: %v, want all four", found)
	}
}

// lazy overwrites nothing.
type lazy struct{ *durabletest.FS }

func (lazy) Overwrite(string) error { return nil }

// TestTheSameBlocksAreOverwritten holds the plain files open while they are
// sealed on the real file system: afterwards they have zeros.
func TestTheSameBlocksAreOverwritten(t *testing.T) {
	dir, b := filled(t)
	held := map[string]*os.File{}
	for _, name := range privateNames() {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		held[name] = f
	}
	if err := open(t, dir, nil).Reseal(context.Background(), sealTo(t, "here")); err != nil {
		t.Fatal(err)
	}
	for name, plain := range keystore.PlainFiles(b) {
		got := make([]byte, len(plain)+1)
		n, _ := held[name].ReadAt(got, 0)
		if string(got[:n]) != string(make([]byte, len(plain))) {
			t.Errorf("what %s was before has %d bytes that are not all zero, want %d zeros", name, n, len(plain))
		}
	}
	if diff := cmp.Diff(eightNames(), list(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}
