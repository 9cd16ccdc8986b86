package durable_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"teekms/internal/durable"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

const leadsOut = "is a link that leads out of a directory that others can write"

// TestLinksInALockedDirectory has links to the same text: from the directory
// itself they are followed as far as who can write them may lead, from the
// directory below never.
func TestLinksInALockedDirectory(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.WriteFile(outside, []byte("text"), 0o644))
	layout := func(t *testing.T, dir string) (*durable.Within, string) {
		// As Kubernetes lays out what it mounts.
		must(t, os.Mkdir(filepath.Join(dir, "..2026"), 0o755), os.WriteFile(filepath.Join(dir, "..2026", "key"), []byte("text"), 0o644),
			os.Symlink("..2026", filepath.Join(dir, "..data")), os.Symlink("..data/key", filepath.Join(dir, "inside")),
			os.Symlink(outside, filepath.Join(dir, "outside")), os.Symlink("../../../../../../../../.."+outside, filepath.Join(dir, "relative")),
			os.Symlink(filepath.Dir(outside), filepath.Join(dir, "away")),
			os.Mkdir(filepath.Join(dir, "below"), 0o700), os.Symlink("../..2026/key", filepath.Join(dir, "below", "inside")),
			os.Symlink(outside, filepath.Join(dir, "below", "outside")), os.Symlink("/nowhere", filepath.Join(dir, "nowhere")),
			os.Symlink(filepath.Join(dir, "..2026", "key"), filepath.Join(dir, "absolute")),
			os.Symlink("../"+filepath.Base(dir)+"/..2026/key", filepath.Join(dir, "and in again")))
		return within(t, dir)
	}
	tests := []struct {
		name      string
		own, some string // what own and shared directories say; empty: the text
	}{
		{"inside", "", ""},
		{"outside", "", leadsOut},
		{"relative", "", leadsOut},
		{"nowhere", "no such file", leadsOut},
		{"absolute", "", leadsOut + ": there, only relative ones"},
		{"and in again", "", leadsOut + ": there, only relative ones"},
		{"away/outside", "not a directory", "not a directory"},
		{"below/inside", "too many levels", "too many levels"},
		{"below/outside", "too many levels", "too many levels"},
	}
	for _, where := range []string{"own", "shared"} {
		dir := t.TempDir()
		if where == "shared" {
			dir = sharedDir(t)
		}
		fsys, dir := layout(t, dir)
		for _, tt := range tests {
			t.Run(where+" "+tt.name, func(t *testing.T) {
				want := tt.own
				if where == "shared" {
					want = tt.some
				}
				name := filepath.Join(dir, tt.name)
				text, err := fsys.ReadFile(name, 10)
				info, statErr := fsys.Stat(name)
				errs := map[string]error{"ReadFile": err, "Stat": statErr, "Chmod": fsys.Chmod(name, 0o644), "Sync": fsys.Sync(name)}
				for call, err := range errs {
					if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
						t.Errorf("%s = %v, want %q", call, err, want)
					}
				}
				if want == "" && (string(text) != "text" || info.Size() != 4) {
					t.Errorf("ReadFile, Stat = %q, %v, want the text", text, info)
				}
			})
		}
		for _, name := range []string{"outside", "below/outside"} {
			if err := fsys.Overwrite(filepath.Join(dir, name)); !errors.Is(err, syscall.ELOOP) {
				t.Errorf("Overwrite of the link %s = %v, want %v", name, err, syscall.ELOOP)
			}
		}
	}
	if got, err := os.ReadFile(outside); err != nil || string(got) != "text" {
		t.Errorf("outside = %q, %v, want it untouched", got, err)
	}
}

// TestWhoseLinksLeadOut has directories that others can write, and some that only
// this user and root can.
func TestWhoseLinksLeadOut(t *testing.T) {
	type whose struct {
		mode     fs.FileMode
		uid, gid int
		// list is whether an access control list has what another user may do.
		list, out bool
	}
	me, mine := os.Geteuid(), os.Getegid()
	tests := []whose{
		{0o755, me, mine, false, true},
		{0o770, me, mine, false, true},
		{0o1777, me, mine, false, false},
		{0o702, me, mine, false, false},
		{0o770, me, mine, true, false},
		{0o750, me, mine, true, true}, // who is in the list may read
	}
	if me == 0 { // who alone can give directories away
		groups, err := os.Getgroups()
		must(t, err, syscall.Setgroups([]int{54321}))
		defer func() { must(t, syscall.Setgroups(groups)) }()
		tests = append(tests, whose{0o755, 12345, mine, false, false}, whose{0o755, me, 12345, false, true}, whose{0o775, me, 12345, false, false},
			whose{0o2775, me, 54321, false, true}, whose{0o775, me, 54321, true, false})
	}
	for _, tt := range tests {
		dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
		must(t, os.WriteFile(outside, nil, 0o600), os.Symlink(outside, filepath.Join(dir, "link")), os.Chown(dir, tt.uid, tt.gid), unix.Chmod(dir, uint32(tt.mode)))
		if tt.list {
			if err := list(dir, 12345, tt.mode); errors.Is(err, unix.EOPNOTSUPP) {
				continue // nobody can be in a list here
			} else if err != nil {
				t.Fatal(err)
			}
		}
		fsys, _ := within(t, dir)
		_, err := fsys.ReadFile(filepath.Join(dir, "link"), 10)
		if tt.out && err != nil || !tt.out && (err == nil || !strings.Contains(err.Error(), leadsOut)) {
			t.Errorf("%+v: ReadFile = %v", tt, err)
		}
	}
}

// list gives a directory an access control list with all rights for a user, as far
// as the mode leaves them to the group.
func list(dir string, user uint32, mode fs.FileMode) error {
	type entry struct {
		Tag, Perm uint16
		ID        uint32
	}
	const none = ^uint32(0)
	text, err := binary.Append([]byte{2, 0, 0, 0}, binary.LittleEndian, []entry{
		{0x01, uint16(mode >> 6 & 7), none},
		{0x02, 7, user},
		{0x04, 5, none},
		{0x10, uint16(mode >> 3 & 7), none}, // the mask
		{0x20, uint16(mode & 7), none},
	})
	return errors.Join(err, unix.Setxattr(dir, "system.posix_acl_access", text, 0))
}

// TestWhatIsExchangedWhileLocked has both directories moved away after they were
// opened, with links in their places: everything goes on in them.
func TestWhatIsExchangedWhileLocked(t *testing.T) {
	base := t.TempDir()
	dir, elsewhere := filepath.Join(base, "dir"), filepath.Join(base, "elsewhere")
	below := filepath.Join(dir, "below")
	must(t, os.Mkdir(dir, 0o755), os.Mkdir(elsewhere, 0o755))
	fsys := durable.NewWithin(dir)
	unlock, err := fsys.Lock(t.Context(), dir)
	must(t, err)
	must(t, fsys.Mkdir(below, 0o700))
	made, err := fsys.Stat(below)
	must(t, err)
	must(t, os.Rename(below, filepath.Join(base, "was-below")), os.Symlink(elsewhere, below),
		os.Rename(dir, filepath.Join(base, "was-dir")), os.Symlink(elsewhere, dir))

	must(t, durable.WriteNew(fsys, filepath.Join(below, "f"), []byte("one"), 0o600), fsys.SyncDir(below),
		durable.WriteNew(fsys, filepath.Join(below, "g"), []byte("two"), 0o600), fsys.Overwrite(filepath.Join(below, "g")),
		fsys.RenameNew(filepath.Join(below, "f"), filepath.Join(dir, "f")), fsys.SyncDir(dir))
	if got := read(t, fsys, filepath.Join(dir, "f")) + read(t, fsys, filepath.Join(below, "g")); got != "one\x00\x00\x00" {
		t.Errorf("contents = %q, want one and zeros", got)
	}
	if now, err := fsys.Stat(below); err != nil || !os.SameFile(now, made) {
		t.Errorf("Stat = %v, %v, want the directory that was made", now, err)
	}
	for name, want := range map[string]string{"elsewhere": "", "was-dir": "below f", "was-below": "g"} {
		entries, err := os.ReadDir(filepath.Join(base, name))
		must(t, err)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s has %q, want %q", name, got, want)
		}
	}
	// Without the lock, names are what they lead to, but for what is just made.
	unlock()
	if err := fsys.Chmod(dir, 0o700); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("Chmod of a link = %v, want %v", err, syscall.ELOOP)
	}
	if entries, err := fsys.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("ReadDir after unlock = %v, %v, want what the link leads to", entries, err)
	}
}

// TestTheFirstToLookDecides has many look at once for what is exchanged all the
// time: all see the same.
func TestTheFirstToLookDecides(t *testing.T) {
	fsys, dir := within(t, t.TempDir())
	below, other := filepath.Join(dir, "below"), filepath.Join(dir, "other")
	must(t, os.Mkdir(below, 0o700), os.Mkdir(other, 0o700))
	done := make(chan struct{})
	var exchanging, looking sync.WaitGroup
	exchanging.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				if err := unix.Renameat2(unix.AT_FDCWD, below, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	seen := make([]fs.FileInfo, 16)
	for i := range seen {
		looking.Go(func() {
			var err error
			if seen[i], err = fsys.Stat(below); err != nil {
				t.Error(err)
			}
		})
	}
	looking.Wait()
	close(done)
	exchanging.Wait()
	for _, info := range seen[1:] {
		if !os.SameFile(info, seen[0]) {
			t.Error("two directories were seen under one name, want one")
		}
	}
}

// TestADirectoryMadeAnewIsTheNewOne has a directory below removed, by this process
// or by another one, and made again.
func TestADirectoryMadeAnewIsTheNewOne(t *testing.T) {
	for name, remove := range map[string]func(fsys *durable.Within, name string) error{
		"removed":         func(fsys *durable.Within, name string) error { return fsys.Remove(name) },
		"renamed":         func(fsys *durable.Within, name string) error { return fsys.Rename(name, name+"2") },
		"removed by path": func(_ *durable.Within, name string) error { return os.Remove(name) },
	} {
		t.Run(name, func(t *testing.T) {
			fsys, dir := within(t, t.TempDir())
			below := filepath.Join(dir, "below")
			must(t, fsys.Mkdir(below, 0o700))
			if _, err := fsys.Stat(below); err != nil {
				t.Fatal(err)
			}
			must(t, remove(fsys, below))
			if _, err := fsys.Stat(below); name != "removed by path" && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Stat = %v, want ErrNotExist", err)
			}
			must(t, fsys.Mkdir(below, 0o700), durable.WriteNew(fsys, filepath.Join(below, "f"), nil, 0o600))
			if _, err := os.Stat(filepath.Join(below, "f")); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestOtherNamesAreSpared has a file that somebody else's could be.
func TestOtherNamesAreSpared(t *testing.T) {
	for name, dir := range map[string]string{"own": t.TempDir(), "shared": sharedDir(t)} {
		fsys, _ := within(t, dir)
		file, other := filepath.Join(dir, "f"), filepath.Join(t.TempDir(), "other")
		must(t, os.WriteFile(other, []byte("text"), 0o644), os.Link(other, file))
		if err := fsys.Overwrite(file); err == nil || !strings.Contains(err.Error(), "has another name (hard link)") {
			t.Errorf("%s: Overwrite = %v, want a refusal", name, err)
		}
		err := fsys.Chmod(file, 0o600)
		if shared := name == "shared"; (err != nil) != shared || shared && !strings.Contains(err.Error(), "has another name (hard link)") {
			t.Errorf("%s: Chmod = %v, want a refusal where others can write", name, err)
		}
		must(t, os.Remove(other))
		if err := fsys.Chmod(file, 0o640); err != nil || perm(t, fsys, file) != 0o640 {
			t.Errorf("%s: Chmod of the only name = %v, want it done", name, err)
		}
	}
}

// TestNothingBlocks has what a user can put in the place of a file: each call
// answers.
func TestNothingBlocks(t *testing.T) {
	for name, dir := range map[string]string{"by path": t.TempDir(), "own": t.TempDir(), "shared": sharedDir(t)} {
		t.Run(name, func(t *testing.T) {
			var fsys durable.FS = durable.OS{}
			if name != "by path" {
				fsys, _ = within(t, dir)
			}
			pipe, endless := filepath.Join(dir, "pipe"), filepath.Join(dir, "endless")
			must(t, unix.Mkfifo(pipe, 0o600), os.WriteFile(endless, nil, 0o600), os.Truncate(endless, 1<<40))
			calls := map[string]func() error{
				"ReadFile":  func() error { _, err := fsys.ReadFile(pipe, 10); return err },
				"Sync":      func() error { return fsys.Sync(pipe) },
				"SyncDir":   func() error { return fsys.SyncDir(pipe) },
				"ReadDir":   func() error { _, err := fsys.ReadDir(pipe); return err },
				"Overwrite": func() error { return fsys.Overwrite(pipe) },
				"Create":    func() error { _, err := fsys.Create(pipe, 0o600); return err },
				"endless":   func() error { return fsys.Overwrite(endless) },
				"too large": func() error { _, err := fsys.ReadFile(endless, 1<<20); return err },
				"below":     func() error { _, err := fsys.Stat(filepath.Join(pipe, "f")); return err },
			}
			for call, do := range calls {
				answered := make(chan error, 1)
				go func() { answered <- do() }()
				select {
				case err := <-answered:
					if err == nil {
						t.Errorf("%s = nil, want an error", call)
					}
				case <-time.After(10 * time.Second):
					t.Fatalf("%s blocks", call)
				}
			}
		})
	}
}

// TestUnlockLeavesNothingOpen counts the descriptors of this process.
func TestUnlockLeavesNothingOpen(t *testing.T) {
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(entries)
	}
	dir := t.TempDir()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which would close what was forgotten
	fsys, before := durable.NewWithin(dir), open()
	for range 10 {
		unlock, err := fsys.Lock(t.Context(), dir)
		must(t, err)
		for _, name := range []string{"a", "b", "a/c"} {
			must(t, fsys.Mkdir(filepath.Join(dir, name), 0o700))
			_, err := fsys.Stat(filepath.Join(dir, name, "none"))
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Stat of nothing = %v, want ErrNotExist", err)
			}
		}
		must(t, fsys.Remove(filepath.Join(dir, "a", "c")), fsys.Remove(filepath.Join(dir, "a")))
		unlock()
		unlock() // once more does nothing
		must(t, os.Remove(filepath.Join(dir, "b")))
	}
	unlock, err := durable.OS{}.Lock(t.Context(), dir)
	must(t, err)
	wait, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := fsys.Lock(wait, dir); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "held by another process") {
		t.Errorf("Lock of a locked directory = %v, want it held by another process", err)
	}
	unlock()
	if got := open(); got > before {
		t.Errorf("%d descriptors are open, want %d", got, before)
	}
	if _, err := fsys.Lock(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Lock of nothing = %v, want ErrNotExist", err)
	}
	gone := durable.NewWithin(filepath.Join(dir, "none"))
	if _, err := gone.Lock(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Lock of a directory that is not there = %v, want ErrNotExist", err)
	}
}

// TestTheDirectoryIsTheOneAtTheEndOfTheWait has another directory get the name
// while the lock is waited for: by another process, then by this one.
func TestTheDirectoryIsTheOneAtTheEndOfTheWait(t *testing.T) {
	for name, first := range map[string]func(dir string, fsys *durable.Within) durable.FS{
		"another process": func(string, *durable.Within) durable.FS { return durable.OS{} },
		"this one":        func(_ string, fsys *durable.Within) durable.FS { return fsys },
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			dir, was, is := filepath.Join(base, "dir"), filepath.Join(base, "was"), filepath.Join(base, "is")
			must(t, os.Mkdir(was, 0o700), os.Mkdir(is, 0o700), os.Symlink("was", dir), os.Symlink("is", dir+".new"))
			fsys := durable.NewWithin(dir)
			unlockFirst, err := first(dir, fsys).Lock(t.Context(), dir)
			must(t, err)
			defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which would let go of what was forgotten
			wait, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			locked := make(chan error, 1)
			var unlock func()
			go func() {
				var err error
				unlock, err = fsys.Lock(wait, dir)
				locked <- err
			}()
			select {
			case <-locked:
				t.Fatal("Lock of a locked directory did not wait")
			case <-time.After(100 * time.Millisecond):
			}
			must(t, os.Rename(dir+".new", dir))
			time.Sleep(500 * time.Millisecond) // it is tried every 10 ms, and a machine may stall
			if name == "this one" {
				must(t, durable.WriteNew(fsys, filepath.Join(dir, "first"), nil, 0o600))
				if _, err := os.Stat(filepath.Join(was, "first")); err != nil {
					t.Errorf("%v, want who has the lock to go on in the directory that was locked", err)
				}
			}
			unlockFirst()
			must(t, <-locked)
			must(t, durable.WriteNew(fsys, filepath.Join(dir, "second"), nil, 0o600))
			unlock()
			if _, err := os.Stat(filepath.Join(is, "second")); err != nil {
				t.Errorf("%v, want the file in the directory that has the name", err)
			}
		})
	}
}

// TestWithinRelativeNames locks a directory by a relative name.
func TestWithinRelativeNames(t *testing.T) {
	base := t.TempDir()
	t.Chdir(base)
	for _, dir := range []string{".", "sub", "./sub/"} {
		if _, err := durable.MkdirAll(durable.OS{}, dir, 0o755); err != nil {
			t.Fatal(err)
		}
		fsys := durable.NewWithin(dir)
		unlock, err := fsys.Lock(t.Context(), dir)
		must(t, err)
		real, err := filepath.Abs(dir)
		must(t, err)
		moved := filepath.Join(base, "moved")
		if dir != "." {
			must(t, os.Rename(real, moved))
		} else {
			moved = real
		}
		must(t, durable.WriteNew(fsys, filepath.Join(dir, "f"), nil, 0o600))
		if _, err := os.Stat(filepath.Join(moved, "f")); err != nil {
			t.Errorf("%q: %v, want the file in the locked directory", dir, err)
		}
		unlock()
		must(t, os.Remove(filepath.Join(moved, "f")))
		if dir != "." {
			must(t, os.Remove(moved))
		}
	}
}
