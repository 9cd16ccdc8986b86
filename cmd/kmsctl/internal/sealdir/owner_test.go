package sealdir_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"teekms/cmd/kmsctl/internal/sealdir"
	"teekms/internal/keys/keystore"
	"teekms/internal/keys/seal"
)

const (
	// childEnv names the directory that the test binary opens, as the user who
	// owns it, instead of testing.
	childEnv = "SEALDIR_TEST_OPEN"
	// kms is a user who is not root.
	kms = 65534
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		os.Exit(openChild(dir))
	}
	os.Exit(m.Run())
}

// openChild opens a directory as a KMS does that is not root, and prints how that
// ended.
func openChild(dir string) int {
	if os.Geteuid() == 0 {
		if err := syscall.Setgroups(nil); err != nil {
			panic(err)
		}
		if err := syscall.Setgid(kms); err != nil {
			panic(err)
		}
		if err := syscall.Setuid(kms); err != nil {
			panic(err)
		}
	}
	cfg := keystore.Config{Dir: dir}
	set, err := seal.NewSet(seal.Config{Seals: []seal.Seal{passphrase("correct horse")}})
	if err == nil {
		cfg.Sealer = set
		_, err = keystore.Open(context.Background(), cfg)
	}
	fmt.Println("open:", err)
	return 0
}

// asKMS opens the directory as its owner.
func (w *world) asKMS(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+w.dir)
	out, err := cmd.Output() // standard error may have complaints of the coverage tool
	if err != nil {
		t.Fatalf("child = %s, %v", out, err)
	}
	return strings.TrimSpace(string(out))
}

// giveAway makes the directory that of another user, where this one may.
func (w *world) giveAway(t *testing.T) (uid, gid uint32) {
	t.Helper()
	w.dir = openTempDir(t, w.dir)
	uid, gid = uint32(os.Geteuid()), uint32(os.Getegid())
	if uid == 0 {
		uid, gid = kms, kms
	}
	err := filepath.WalkDir(w.dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(uid), int(gid))
	})
	if err != nil {
		t.Fatal(err)
	}
	return uid, gid
}

// openTempDir moves a directory to where every user can enter: those of the
// testing package are closed.
func openTempDir(t *testing.T, dir string) string {
	t.Helper()
	parent, err := os.MkdirTemp("", "sealdir") //nolint:usetesting // that of testing is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(parent); err != nil {
			t.Error(err)
		}
	})
	moved := filepath.Join(parent, "certs")
	if err := os.Chmod(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	return moved
}

// wantOwned sees that everything in the directory is that user's.
func (w *world) wantOwned(t *testing.T, uid, gid uint32) {
	t.Helper()
	err := filepath.WalkDir(w.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != uid || st.Gid != gid {
			t.Errorf("%s is of user %d and group %d, want %d and %d", path, st.Uid, st.Gid, uid, gid)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Root seals what a KMS reads that is not root.
func TestFilesStayThoseOfTheirOwner(t *testing.T) {
	w := newWorld(t)
	uid, gid := w.giveAway(t)
	pass := passphrase("correct horse")
	verbs := []func(*sealdir.Directory) (*sealdir.Result, error){
		func(d *sealdir.Directory) (*sealdir.Result, error) { return d.Add(t.Context(), nil) },
		func(d *sealdir.Directory) (*sealdir.Result, error) { return d.Rotate(t.Context()) },
		func(d *sealdir.Directory) (*sealdir.Result, error) {
			return d.Remove(t.Context(), []seal.Kind{seal.KindEscrow})
		},
	}
	for _, verb := range verbs {
		r, err := verb(w.directory(t, []seal.Seal{pass, w.escrow(t)}))
		if err != nil {
			t.Fatal(err)
		}
		if told := strings.Contains(strings.Join(r.Notes, " "), fmt.Sprintf("(%d)", uid)); told != (uid != uint32(os.Geteuid())) {
			t.Errorf("notes = %q, want to be told whose the files are if they are somebody else's", r.Notes)
		}
		w.wantOwned(t, uid, gid)
		if got := w.asKMS(t); got != "open: <nil>" {
			t.Errorf("the KMS: %s, want that it opens", got)
		}
	}
}

// What is new has its owner, also where that one may not write the directory.
func TestWhatIsNewHasItsOwner(t *testing.T) {
	for _, closed := range []bool{false, true} {
		w := newWorld(t)
		uid, gid := w.giveAway(t)
		if closed {
			if err := os.Chown(w.dir, os.Geteuid(), os.Getegid()); err != nil {
				t.Fatal(err)
			}
		}
		fsys, stage := sealdir.Owned(w.dir), filepath.Join(w.dir, ".stage")
		if err := fsys.Mkdir(stage, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{filepath.Join(stage, "commit"), filepath.Join(w.dir, "new.key")} {
			f, err := fsys.Create(name, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := fsys.Create(name, 0o600); !errors.Is(err, fs.ErrExist) {
				t.Errorf("Create() of what is there = %v, want %v", err, fs.ErrExist)
			}
		}
		if err := fsys.Mkdir(stage, 0o700); !errors.Is(err, fs.ErrExist) {
			t.Errorf("Mkdir() of what is there = %v, want %v", err, fs.ErrExist)
		}
		if closed {
			if err := os.Chown(w.dir, int(uid), int(gid)); err != nil {
				t.Fatal(err)
			}
		}
		w.wantOwned(t, uid, gid)
	}
}

// The owner of the directory cannot have another file's mode changed.
func TestChmodFollowsNoLinks(t *testing.T) {
	w := newWorld(t)
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(w.dir, "link")
	if err := os.Symlink(other, link); err != nil {
		t.Fatal(err)
	}
	fsys := sealdir.Owned(w.dir)
	if err := fsys.Chmod(link, 0o600); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("Chmod() of a link = %v, want %v", err, syscall.ELOOP)
	}
	if err := fsys.Chmod(filepath.Join(w.dir, "rpc.key"), 0o400); err != nil {
		t.Errorf("Chmod() = %v", err)
	}
	for path, want := range map[string]fs.FileMode{other: 0o644, filepath.Join(w.dir, "rpc.key"): 0o400} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s has the mode %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
}

// exchange swaps two names at one instant.
func exchange(t *testing.T, a, b string) {
	t.Helper()
	if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// Whoever owns the directory cannot have root write or remove anything elsewhere,
// however quickly links come and go: root acts as that user.
func TestLinksLeadRootNowhere(t *testing.T) {
	if os.Geteuid() != 0 {
		// An ordinary user acts as itself: there is nobody to be led.
		if err := sealdir.Owned(t.TempDir()).Mkdir(filepath.Join(t.TempDir(), "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		return
	}
	w := newWorld(t)
	uid, gid := w.giveAway(t)
	victim := t.TempDir() // root's
	for _, name := range []string{"commit", "root-ca.key", "rpc.key", "other"} {
		if err := os.WriteFile(filepath.Join(victim, name), []byte("root's"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stage, link := filepath.Join(w.dir, ".stage"), filepath.Join(w.dir, "link")
	if err := os.Symlink(victim, link); err != nil {
		t.Fatal(err)
	}
	fsys := sealdir.Owned(w.dir)
	acts := map[string]func() error{
		"Create":    func() error { _, err := fsys.Create(filepath.Join(stage, "new"), 0o600); return err },
		"Mkdir":     func() error { return fsys.Mkdir(filepath.Join(stage, "new"), 0o700) },
		"Chmod":     func() error { return fsys.Chmod(filepath.Join(stage, "other"), 0o666) },
		"ReadFile":  func() error { _, err := fsys.ReadFile(filepath.Join(stage, "other"), 100); return err },
		"ReadDir":   func() error { _, err := fsys.ReadDir(stage); return err },
		"Rename":    func() error { return fsys.Rename(filepath.Join(stage, "other"), filepath.Join(w.dir, "other")) },
		"RenameNew": func() error { return fsys.RenameNew(filepath.Join(stage, "other"), filepath.Join(w.dir, "other")) },
		"Overwrite": func() error { return fsys.Overwrite(filepath.Join(stage, "other")) },
		"Remove":    func() error { return fsys.Remove(filepath.Join(stage, "other")) },
		"Sync":      func() error { return fsys.Sync(filepath.Join(stage, "other")) },
	}
	if err := os.Symlink(victim, stage); err != nil {
		t.Fatal(err)
	}
	for name, act := range acts {
		if err := act(); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s through a link into a directory of root = %v, want %v", name, err, fs.ErrPermission)
		}
	}
	if err := os.Remove(stage); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	flipped := make(chan struct{})
	go func() {
		defer close(flipped)
		for {
			select {
			case <-done:
				return
			default:
				// What the owner of the directory can do at any moment.
				if os.Mkdir(stage, 0o700) == nil {
					_ = os.Lchown(stage, int(uid), int(gid))
				}
				exchange(t, stage, link)
				exchange(t, stage, link)
			}
		}
	}()
	for range 150 {
		_, _ = w.directory(t, []seal.Seal{passphrase("correct horse"), w.escrow(t)}).Status(t.Context()) // it may refuse
	}
	close(done)
	<-flipped
	if got := len(list(t, victim)); got != 4 {
		t.Errorf("the directory of root has %d files, want the 4 that were there", got)
	}
}

func list(t *testing.T, dir string) []fs.DirEntry {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// Root refuses to act for a directory whose owner could lead it, with keys that
// only root reads.
func TestKeysOfRootInADirectoryOfOthersAreRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		return // only root can be led
	}
	w := newWorld(t)
	w.giveAway(t)
	if err := os.Lchown(filepath.Join(w.dir, "root-ca.key"), 0, 0); err != nil {
		t.Fatal(err)
	}
	_, err := w.directory(t, []seal.Seal{passphrase("correct horse")}).Status(t.Context())
	if err == nil || !strings.Contains(err.Error(), "belongs to user 65534 and its keys to root") {
		t.Errorf("Status() = %v, want to be told whose the directory is", err)
	}
}
