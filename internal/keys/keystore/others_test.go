package keystore_test

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"teekms/internal/durable"
	"teekms/internal/keys/keystore"
)

// TestAStageThatIsNotOursIsLeftAlone has directories under the name of the stage
// that no commit has made.
func TestAStageThatIsNotOursIsLeftAlone(t *testing.T) {
	tests := []struct {
		name string
		make func(t *testing.T, stage string)
		want string
		// serves says that it is no reason not to serve.
		serves bool
	}{
		{"with other files", func(t *testing.T, stage string) {
			must(t, os.Mkdir(stage, 0o700))
			writeFile(t, []byte("precious"), 0o600, stage, "letters")
			writeFile(t, []byte("precious"), 0o600, stage, "rpc.key")
		}, ".stage/letters is no file of a key directory: put it elsewhere", true},
		{"that everybody can write", func(t *testing.T, stage string) {
			must(t, os.Mkdir(stage, 0o700), os.Chmod(stage, 0o777))
			writeFile(t, []byte("precious"), 0o600, stage, "rpc.key")
		}, ".stage can be written by everybody: set its mode to 0700 if it is of this KMS", true},
		{"that everybody can write, but not remove from, in a directory that is everybody's", func(t *testing.T, stage string) {
			must(t, os.Mkdir(stage, 0o700), os.Chmod(stage, 0o777|os.ModeSticky), os.Chmod(filepath.Dir(stage), 0o777))
			writeFile(t, []byte("precious"), 0o600, stage, "rpc.key")
		}, ".stage can be written by everybody: set its mode to 0700 if it is of this KMS", true},
		{"that everybody can write, in a directory that everybody may add to", func(t *testing.T, stage string) {
			must(t, os.Mkdir(stage, 0o700), os.Chmod(stage, 0o777), os.Chmod(filepath.Dir(stage), 0o777|os.ModeSticky))
			writeFile(t, []byte("precious"), 0o600, stage, "rpc.key")
		}, ".stage can be written by everybody: set its mode to 0700 if it is of this KMS", true},
		{"with a marker that everybody can write", func(t *testing.T, stage string) {
			must(t, os.Mkdir(stage, 0o700), os.Chmod(stage, 0o777))
			writeFile(t, keystore.MarshalMarker(map[string][]byte{"rpc.key": []byte("precious")}), 0o600, stage, "commit")
			writeFile(t, []byte("precious"), 0o600, stage, "rpc.key")
		}, ".stage can be written by everybody: set its mode to 0700 if it is of this KMS", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, b := filled(t)
			stage := filepath.Join(dir, ".stage")
			tt.make(t, stage)
			files := grow(t, dir)
			s, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Now: clock})
			switch {
			case tt.serves && (err != nil || !s.Roots().Equal(b.Roots())):
				t.Errorf("Open = %v, want it served", err)
			case !tt.serves && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("Open = %v, want %s", err, tt.want)
			}
			if tt.serves {
				if err := s.Reseal(t.Context(), sealTo(t, "here")); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("Reseal = %v, want %s", err, tt.want)
				}
			}
			if diff := cmp.Diff(files, grow(t, dir)); diff != "" {
				t.Errorf("files (-before +after):\n%s", diff)
			}
		})
	}
}

// modeless is a file system without modes, as CIFS and FAT may be: everybody can
// do everything in it.
type modeless struct{ durable.FS }

func (m modeless) Stat(name string) (fs.FileInfo, error) {
	info, err := m.FS.Stat(name)
	if err != nil {
		return nil, err
	}
	return everybodys{info}, nil
}

type everybodys struct{ fs.FileInfo }

func (i everybodys) Mode() fs.FileMode { return i.FileInfo.Mode() | 0o777 }

// TestADirectoryWithoutModesIsWritten does all that a store does where everybody
// can write everything, a stage too: by the file system, or after chmod -R 777.
func TestADirectoryWithoutModesIsWritten(t *testing.T) {
	all := acts(t)
	for _, a := range all {
		t.Run(a.name, func(t *testing.T) {
			dir := t.TempDir()
			a.start.plant(t, dir)
			must(t, os.Chmod(dir, 0o777))
			fsys := durable.FS(modeless{durable.NewWithin(dir)})
			if stage := filepath.Join(dir, ".stage"); strings.HasPrefix(a.name, "recovery") {
				must(t, os.Chmod(stage, 0o777))
				fsys = nil
			}
			must(t, a.do(dir, fsys))
			files := grow(t, dir)
			if got := slices.Sorted(maps.Keys(files)); !slices.Equal(got, slices.Sorted(slices.Values(eightNames()))) {
				t.Errorf("files = %v, want the eight and nothing else", got)
			}
			if a.name == "renewal" && files["rpc.crt"] == a.start["rpc.crt"] {
				t.Error("rpc.crt was renewed in memory only")
			}
		})
	}
}

// TestLinksInsideTheDirectoryAreServed has the layout in which Kubernetes mounts
// files, in a directory that everybody can write.
func TestLinksInsideTheDirectoryAreServed(t *testing.T) {
	from, b := filled(t)
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "..2026"), 0o755), os.Symlink("..2026", filepath.Join(dir, "..data")))
	for _, name := range eightNames() {
		writeFile(t, readFile(t, from, name), 0o644, dir, "..2026", name)
		must(t, os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
	}
	must(t, os.Chmod(dir, 0o1777))
	s := open(t, dir, nil)
	if !s.Roots().Equal(b.Roots()) || s.Info() == nil {
		t.Error("other keys or no record, want those that the links lead to")
	}
	for name, mode := range theEight() {
		if info, err := os.Stat(filepath.Join(dir, "..2026", name)); err != nil || info.Mode() != mode {
			t.Errorf("mode of %s = %v, %v, want %v", name, info.Mode(), err, mode)
		}
	}
	if err := s.Reseal(t.Context(), sealTo(t, "here")); err == nil || !strings.Contains(err.Error(), "root-ca.key is a link") {
		t.Errorf("Reseal = %v, want the links refused", err)
	}
	if _, err := s.RenewRPC(t.Context()); err != nil {
		t.Error(err)
	}
	if info, err := os.Lstat(filepath.Join(dir, "rpc.crt")); err != nil || !info.Mode().IsRegular() {
		t.Errorf("the renewed rpc.crt is %v, %v, want a file in the place of the link", info.Mode(), err)
	}
}

// TestLinksOutOfADirectoryOfOthersAreRefused has a key that is another KMS's, who
// would be spoken for.
func TestLinksOutOfADirectoryOfOthersAreRefused(t *testing.T) {
	elsewhere, b := filled(t)
	dir, _ := filled(t)
	for name := range theEight() {
		must(t, os.Remove(filepath.Join(dir, name)), os.Symlink(filepath.Join(elsewhere, name), filepath.Join(dir, name)))
	}
	if !open(t, dir, nil).Roots().Equal(b.Roots()) {
		t.Error("other keys, want those that this user's links lead to")
	}
	must(t, os.Chmod(dir, 0o777))
	want := "is a link that leads out of a directory that others can write"
	if _, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Now: clock}); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Open = %v, want %q", err, want)
	}
}

// TestPipesInTheDirectoryDoNotBlock has named pipes in the places of files: every
// opening ends.
func TestPipesInTheDirectoryDoNotBlock(t *testing.T) {
	names := append(eightNames(), "rpc-domain", ".stage", ".stage/commit", ".stage/root-ca.key", ".stage/root-ca.key.old")
	for _, a := range acts(t) {
		for _, name := range names {
			dir := t.TempDir()
			a.start.plant(t, dir)
			at := filepath.Join(dir, name)
			if err := os.Mkdir(filepath.Dir(at), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
				t.Fatal(err)
			}
			must(t, os.RemoveAll(at), unix.Mkfifo(at, 0o600))
			ended := make(chan error, 1)
			go func() { ended <- a.do(dir, nil) }()
			select {
			case <-ended: // with or without an error
			case <-time.After(20 * time.Second):
				t.Fatalf("%s with a pipe as %s does not end", a.name, name)
			}
			// Nobody is left who has the lock.
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			if _, err := keystore.ReadPrivate(ctx, dir, nil); errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s with a pipe as %s: the lock is still held", a.name, name)
			}
			cancel()
		}
	}
}
