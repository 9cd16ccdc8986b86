package durable_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"teekms/internal/durable"
	"teekms/internal/durable/durabletest"
)

// onEach runs a test on the real file system, in each way that leads to it, and on
// the model, so that what is proven on the model is about the real one.
func onEach(t *testing.T, test func(t *testing.T, fsys durable.FS, dir string)) {
	onEachUnlocked(t, test)
	t.Run("within a locked directory", func(t *testing.T) {
		fsys, dir := within(t, t.TempDir())
		test(t, fsys, dir)
	})
	t.Run("within a locked directory of others", func(t *testing.T) {
		fsys, dir := within(t, sharedDir(t))
		test(t, fsys, dir)
	})
}

func onEachUnlocked(t *testing.T, test func(t *testing.T, fsys durable.FS, dir string)) {
	t.Run("os", func(t *testing.T) { test(t, durable.OS{}, t.TempDir()) })
	t.Run("within", func(t *testing.T) {
		dir := t.TempDir()
		test(t, durable.NewWithin(dir), dir)
	})
	t.Run("model", func(t *testing.T) {
		test(t, durabletest.NewDisk("/d").FS(durabletest.Plan{}), "/d")
	})
}

// within locks a directory.
func within(t *testing.T, dir string) (fsys *durable.Within, _ string) {
	t.Helper()
	fsys = durable.NewWithin(dir)
	unlock, err := fsys.Lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(unlock)
	return fsys, dir
}

// sharedDir is a directory that everybody can write.
func sharedDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

func read(t *testing.T, fsys durable.FS, name string) string {
	t.Helper()
	b, err := fsys.ReadFile(name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func perm(t *testing.T, fsys durable.FS, name string) fs.FileMode {
	t.Helper()
	info, err := fsys.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestWriteNew(t *testing.T) {
	onEach(t, func(t *testing.T, fsys durable.FS, dir string) {
		name := filepath.Join(dir, "f")
		if err := durable.WriteNew(fsys, name, []byte("one"), 0o640); err != nil {
			t.Fatal(err)
		}
		if got := read(t, fsys, name); got != "one" {
			t.Errorf("contents = %q, want one", got)
		}
		if got := perm(t, fsys, name); got != 0o640 {
			t.Errorf("mode = %o, want 640", got)
		}
		if err := durable.WriteNew(fsys, name, []byte("two"), 0o640); !errors.Is(err, fs.ErrExist) {
			t.Errorf("WriteNew over a file = %v, want ErrExist", err)
		}
		if got := read(t, fsys, name); got != "one" {
			t.Errorf("contents = %q, want one", got)
		}
	})
}

func TestWriteFileReplaces(t *testing.T) {
	onEach(t, func(t *testing.T, fsys durable.FS, dir string) {
		name := filepath.Join(dir, "f")
		// The remainder of a writer that crashed is in the way.
		if err := durable.WriteNew(fsys, filepath.Join(dir, ".f.tmp"), []byte("remains"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"one", "two"} {
			if err := durable.WriteFile(fsys, name, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
			if got := read(t, fsys, name); got != want {
				t.Errorf("contents = %q, want %q", got, want)
			}
		}
		entries, err := fsys.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			t.Errorf("entries = %v, %v, want one", entries, err)
		}
	})
}

func TestMkdirAll(t *testing.T) {
	onEach(t, func(t *testing.T, fsys durable.FS, dir string) {
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "a", "b")
		made, err := durable.MkdirAll(fsys, b, 0o755)
		if diff := cmp.Diff([]string{a, b}, made); err != nil || diff != "" {
			t.Errorf("MkdirAll = %v (-want +got):\n%s", err, diff)
		}
		if got := perm(t, fsys, b); got != 0o755 {
			t.Errorf("mode = %o, want 755", got)
		}
		if made, err = durable.MkdirAll(fsys, b, 0o700); err != nil || len(made) != 0 {
			t.Errorf("MkdirAll again = %v, %v, want nothing made", made, err)
		}
		if got := perm(t, fsys, b); got != 0o755 {
			t.Errorf("mode after MkdirAll again = %o, want 755", got)
		}
		if err := durable.WriteNew(fsys, filepath.Join(b, "f"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := durable.MkdirAll(fsys, filepath.Join(b, "f"), 0o755); err == nil || !strings.Contains(err.Error(), "is not a directory") {
			t.Errorf("MkdirAll of a file = %v, want not a directory", err)
		}
	})
}

func TestRenames(t *testing.T) {
	onEach(t, func(t *testing.T, fsys durable.FS, dir string) {
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		for name, text := range map[string]string{a: "A", b: "B"} {
			if err := durable.WriteNew(fsys, name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := fsys.RenameNew(a, b); !errors.Is(err, fs.ErrExist) {
			t.Errorf("RenameNew over a file = %v, want ErrExist", err)
		}
		if got := read(t, fsys, a) + read(t, fsys, b); got != "AB" {
			t.Errorf("contents = %q, want AB", got)
		}
		if err := fsys.Rename(a, b); err != nil {
			t.Fatal(err)
		}
		if got := read(t, fsys, b); got != "A" {
			t.Errorf("contents = %q, want A", got)
		}
		if err := fsys.RenameNew(b, a); err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{
			"Rename": fsys.Rename(b, a), "RenameNew": fsys.RenameNew(b, a), "Remove": fsys.Remove(b),
		} {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s of nothing = %v, want ErrNotExist", what, err)
			}
		}
	})
}

func TestOverwrite(t *testing.T) {
	onEach(t, func(t *testing.T, fsys durable.FS, dir string) {
		name, text := filepath.Join(dir, "f"), strings.Repeat("secret", 1000)
		if err := durable.WriteNew(fsys, name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := fsys.Overwrite(name); err != nil {
			t.Fatal(err)
		}
		if got := read(t, fsys, name); got != strings.Repeat("\x00", len(text)) {
			t.Errorf("%d bytes that are not all zero, want %d zeros", len(got), len(text))
		}
		if err := fsys.Overwrite(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Overwrite of nothing = %v, want ErrNotExist", err)
		}
		if err := fsys.Overwrite(dir); !errors.Is(err, syscall.EISDIR) {
			t.Errorf("Overwrite of a directory = %v, want EISDIR", err)
		}
	})
}

func TestOwner(t *testing.T) {
	dir := t.TempDir()
	info, err := durable.OS{}.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := durable.Owner(info); got != os.Geteuid() {
		t.Errorf("Owner = %d, want %d", got, os.Geteuid())
	}
	disk := durabletest.NewDisk("/d")
	disk.Own("/d", 990)
	if info, err = disk.FS(durabletest.Plan{}).Stat("/d"); err != nil {
		t.Fatal(err)
	}
	if got := durable.Owner(info); got != 990 {
		t.Errorf("Owner = %d, want 990", got)
	}
	if got := durable.Owner(silent{info}); got != -1 {
		t.Errorf("Owner = %d where it is not told, want -1", got)
	}
}

// silent tells nothing of the system.
type silent struct{ fs.FileInfo }

func (silent) Sys() any { return nil }

func TestOverwriteSparesOtherNames(t *testing.T) {
	dir := t.TempDir()
	name, other, link := filepath.Join(dir, "f"), filepath.Join(dir, "other"), filepath.Join(dir, "link")
	if err := os.WriteFile(name, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	if err := (durable.OS{}).Overwrite(link); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("Overwrite of a link = %v, want ELOOP", err)
	}
	if err := os.Link(name, other); err != nil {
		t.Fatal(err)
	}
	if err := (durable.OS{}).Overwrite(name); err == nil || !strings.Contains(err.Error(), "has another name") {
		t.Errorf("Overwrite of a file with two names = %v, want a refusal", err)
	}
	if got := read(t, durable.OS{}, other); got != "text" {
		t.Errorf("contents = %q, want text", got)
	}
}

func TestErrorsAgree(t *testing.T) {
	onEach(t, func(t *testing.T, fsys durable.FS, dir string) {
		file, sub, none := filepath.Join(dir, "file"), filepath.Join(dir, "sub"), filepath.Join(dir, "none")
		if err := durable.WriteNew(fsys, file, []byte("12345"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := fsys.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := durable.WriteNew(fsys, filepath.Join(sub, "f"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, readNone := fsys.ReadFile(none, 10)
		_, listNone := fsys.ReadDir(none)
		_, listFile := fsys.ReadDir(file)
		_, statNone := fsys.Stat(none)
		_, createIn := fsys.Create(filepath.Join(none, "f"), 0o600)
		_, under := fsys.Stat(filepath.Join(file, "f"))
		tests := []struct {
			name string
			got  error
			want error
		}{
			{"read of nothing", readNone, syscall.ENOENT},
			{"list of nothing", listNone, syscall.ENOENT},
			{"list of a file", listFile, syscall.ENOTDIR},
			{"stat of nothing", statNone, syscall.ENOENT},
			{"stat below a file", under, syscall.ENOTDIR},
			{"create in nothing", createIn, syscall.ENOENT},
			{"mkdir over a file", fsys.Mkdir(file, 0o755), syscall.EEXIST},
			{"removal of a full directory", fsys.Remove(sub), syscall.ENOTEMPTY},
			{"sync of nothing", fsys.SyncDir(none), syscall.ENOENT},
			{"chmod of nothing", fsys.Chmod(none, 0o600), syscall.ENOENT},
		}
		for _, tt := range tests {
			if !errors.Is(tt.got, tt.want) {
				t.Errorf("%s = %v, want %v", tt.name, tt.got, tt.want)
			}
		}
		if _, err := fsys.ReadFile(file, 4); err == nil {
			t.Error("ReadFile of 5 bytes with limit 4 = nil, want an error")
		}
		if b, err := fsys.ReadFile(file, 5); err != nil || string(b) != "12345" {
			t.Errorf("ReadFile with limit 5 = %q, %v, want all", b, err)
		}
	})
}

func TestModesWhateverTheUmask(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	dir := filepath.Join(t.TempDir(), "a", "b")
	if _, err := durable.MkdirAll(durable.OS{}, dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(durable.OS{}, filepath.Join(dir, "f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{dir: 0o755, filepath.Dir(dir): 0o755, filepath.Join(dir, "f"): 0o644} {
		if got := perm(t, durable.OS{}, name); got != want {
			t.Errorf("mode of %s = %o, want %o", name, got, want)
		}
	}
}

func TestReadFileRefusesANamedPipe(t *testing.T) {
	name := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (durable.OS{}).ReadFile(name, 10); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("ReadFile of a pipe = %v, want not a regular file", err)
	}
}

func TestLock(t *testing.T) {
	onEachUnlocked(t, func(t *testing.T, fsys durable.FS, dir string) {
		unlock, err := fsys.Lock(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := fsys.Lock(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Lock of a locked directory = %v, want DeadlineExceeded", err)
		}
		time.AfterFunc(20*time.Millisecond, unlock)
		again, err := fsys.Lock(t.Context(), dir)
		if err != nil {
			t.Fatalf("Lock after unlock = %v, want nil", err)
		}
		again()
		entries, err := fsys.ReadDir(dir)
		if err != nil || len(entries) != 0 {
			t.Errorf("entries = %v, %v, want none left by the lock", entries, err)
		}
	})
}

func TestRelativeNames(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := durable.WriteFile(durable.OS{}, "f", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if made, err := durable.MkdirAll(durable.OS{}, "a/b", 0o755); err != nil || len(made) != 2 {
		t.Errorf("MkdirAll = %v, %v, want two made", made, err)
	}
	if _, err := os.Stat("a/b"); err != nil {
		t.Error(err)
	}
}

// TestWriteFileSurvivesEveryCrash replaces a file and crashes at every call with
// every outcome: the file has the old contents or the new, and the new if the
// write was reported done.
func TestWriteFileSurvivesEveryCrash(t *testing.T) {
	const name = "/d/f"
	disk := durabletest.NewDisk("/d")
	disk.Put(name, []byte("the old text"), 0o600)
	dry := disk.Clone().FS(durabletest.Plan{})
	if err := durable.WriteFile(dry, name, []byte("the new text"), 0o600); err != nil {
		t.Fatal(err)
	}
	outcomes := durabletest.Outcomes(10)
	seen := map[string]int{}
	for step := range len(dry.Trace()) + 1 {
		for _, fault := range []durabletest.Fault{durabletest.CrashBefore, durabletest.CrashAfter, durabletest.CrashTorn} {
			d := disk.Clone()
			err := durable.WriteFile(d.FS(durabletest.Plan{Step: step, Fault: fault}), name, []byte("the new text"), 0o600)
			for _, o := range outcomes {
				got := d.Crash(o).Files("/d")["f"]
				seen[got]++
				if got != "the new text" && (got != "the old text" || err == nil) {
					t.Errorf("step %d, %v, %s: contents = %q after WriteFile = %v", step, fault, o.Name, got, err)
				}
			}
		}
	}
	if seen["the old text"] < 50 || seen["the new text"] < 50 {
		t.Errorf("outcomes = %v, want at least 50 of each", seen)
	}
}

// TestTheModelSeesAMissingSync is the test of the test: a writer that forgets
// one of the two syncs is caught.
func TestTheModelSeesAMissingSync(t *testing.T) {
	writers := map[string]func(fsys durable.FS) error{
		"contents": func(fsys durable.FS) error {
			f, err := fsys.Create("/d/tmp", 0o600)
			if err != nil {
				return err
			}
			_, err = f.Write([]byte("the new text"))
			return errors.Join(err, f.Close(), fsys.Rename("/d/tmp", "/d/f"), fsys.SyncDir("/d"))
		},
		"directory": func(fsys durable.FS) error {
			return errors.Join(durable.WriteNew(fsys, "/d/tmp", []byte("the new text"), 0o600), fsys.Rename("/d/tmp", "/d/f"))
		},
	}
	for name, write := range writers {
		t.Run(name, func(t *testing.T) {
			disk := durabletest.NewDisk("/d")
			if err := write(disk.FS(durabletest.Plan{})); err != nil {
				t.Fatal(err)
			}
			caught := 0
			for _, o := range durabletest.Outcomes(5) {
				if disk.Crash(o).Files("/d")["f"] != "the new text" {
					caught++
				}
			}
			if caught == 0 {
				t.Error("no outcome loses the text, want some")
			}
		})
	}
}
