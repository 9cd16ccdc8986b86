package keystore_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"teekms/internal/durable"
	"teekms/internal/durable/durabletest"
	"teekms/internal/keys/keystore"
)

// lure is what somebody who can write the key directory puts in the place of
// names in it, to lead the store elsewhere.
type lure struct {
	name string
	// names are those that are exchanged.
	names []string
	// lay makes what is put in the place of a name; precious is what is not to be
	// touched, a directory with files of all names that the store could look for.
	lay func(t testing.TB, at, precious, name string)
	// mayLook says that what is precious is the attacker's to show.
	mayLook bool
}

func lures() []lure {
	all := []lure{
		{name: "link in the place of the stage", names: []string{".stage"}, lay: func(t testing.TB, at, precious, _ string) {
			must(t, os.Symlink(precious, at))
		}},
		{name: "links in the places of the files", names: eightNames(), lay: func(t testing.TB, at, precious, name string) {
			must(t, os.Symlink(filepath.Join(precious, name), at))
		}},
		{name: "hard links in the places of the files", names: eightNames(), mayLook: true, lay: func(t testing.TB, at, precious, name string) {
			must(t, os.Link(filepath.Join(precious, name), at))
		}},
	}
	if os.Geteuid() == 0 {
		all = append(all, lure{name: "directory of another user in the place of the stage", names: []string{".stage"}, mayLook: true, lay: func(t testing.TB, at, precious, _ string) {
			must(t, os.Chown(precious, 12345, 12345), os.Rename(precious, at))
		}})
	}
	return all
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// trap is a key directory that everybody can write, lures beside it and what they
// lead to.
type trap struct {
	base, dir, lures string
	lure             lure
	// precious is open: it may be moved.
	precious *os.File
	was      map[string]string
	guard    guard
	watch    int
}

// newTrap lays everything below base, which is one file system.
func newTrap(t testing.TB, base string, g guard, l lure, files tree) *trap {
	t.Helper()
	base, err := os.MkdirTemp(base, "trap") //nolint:usetesting // in memory, one file system
	must(t, err)
	p := &trap{base: base, dir: base + "/certs", lures: base + "/lures", lure: l, guard: g}
	precious := base + "/precious"
	must(t, os.Mkdir(p.dir, 0o700), os.Mkdir(p.lures, 0o700), os.Mkdir(precious, 0o755))
	files.plant(t, p.dir)
	must(t, os.Chmod(p.dir, 0o777)) // also a user who is not root works among others here
	for _, name := range append(eightNames(), "commit", "letters") {
		writeFile(t, []byte("precious"), 0o644, precious, name)
	}
	p.precious, err = os.Open(precious)
	must(t, err)
	for _, name := range l.names {
		l.lay(t, filepath.Join(p.lures, name), precious, name)
	}
	p.was = p.state(t)
	p.watch = g.watch(t, p.path())
	return p
}

// path is where the precious files are.
func (p *trap) path() string { return fmt.Sprintf("/proc/self/fd/%d/", p.precious.Fd()) }

// state is what the precious files are.
func (p *trap) state(t testing.TB) map[string]string {
	t.Helper()
	state := map[string]string{}
	for _, name := range append(list(t, p.path()), ".") {
		info, err := os.Lstat(p.path() + name)
		must(t, err)
		state[name] = fmt.Sprint(info.Mode(), " ", durable.Owner(info))
		if info.Mode().IsRegular() {
			state[name] += " " + string(readFile(t, p.path()+name))
		}
	}
	return state
}

// touched says what was done to the precious files: looked at, written, made,
// removed, or their modes changed. It removes the trap.
func (p *trap) touched(t testing.TB) string {
	t.Helper()
	events := p.guard.saw(t, p.watch)
	if p.lure.mayLook {
		events = nil
	}
	diff := cmp.Diff(p.was, p.state(t))
	must(t, p.precious.Close(), os.RemoveAll(p.base))
	return strings.Join(events, ", ") + diff
}

// guard is told by the system of what is done to files.
type guard int

func newGuard(t testing.TB) guard {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Close(fd)) })
	return guard(fd)
}

func (g guard) watch(t testing.TB, dir string) int {
	t.Helper()
	watch, err := unix.InotifyAddWatch(int(g), dir, unix.IN_ALL_EVENTS&^unix.IN_MOVE_SELF)
	must(t, err)
	return watch
}

// saw returns what was done under a watch.
func (g guard) saw(t testing.TB, watch int) []string {
	t.Helper()
	var events []string
	buf := make([]byte, 1<<16)
	for {
		n, err := unix.Read(int(g), buf)
		if errors.Is(err, unix.EAGAIN) {
			return events
		}
		must(t, err)
		for e := buf[:n]; len(e) > 0; {
			next := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(e[12:]))
			if int(binary.NativeEndian.Uint32(e)) == watch {
				name := strings.TrimRight(string(e[unix.SizeofInotifyEvent:next]), "\x00")
				events = append(events, fmt.Sprintf("%q %#x", name, binary.NativeEndian.Uint32(e[4:])))
			}
			e = e[next:]
		}
	}
}

// swap puts the lures in the places of the names, or the names back.
func (p *trap) swap() {
	for _, name := range p.lure.names {
		in, out := filepath.Join(p.dir, name), filepath.Join(p.lures, name)
		// Nothing may be there to be exchanged.
		if unix.Renameat2(unix.AT_FDCWD, out, unix.AT_FDCWD, in, unix.RENAME_EXCHANGE) != nil {
			_ = unix.Renameat2(unix.AT_FDCWD, out, unix.AT_FDCWD, in, unix.RENAME_NOREPLACE)
		}
	}
}

// tree is what is in a key directory, by name.
type tree map[string]string

func grow(t testing.TB, dir string) tree {
	t.Helper()
	files := tree{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		must(t, err)
		files[rel] = string(readFile(t, path))
		return nil
	})
	must(t, err)
	return files
}

// plant writes it elsewhere, with keys that everybody can read.
func (f tree) plant(t testing.TB, dir string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(f)) {
		if err := os.Mkdir(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
		writeFile(t, []byte(f[name]), 0o644, dir, name)
	}
}

// pulled is a file system on which nothing moves any more from the moment that
// root-ca.key gets its place.
type pulled struct {
	durable.FS
	off bool
}

var errPulled = errors.New("the plug is pulled")

func (p *pulled) Rename(from, to string) error {
	if p.off {
		return errPulled
	}
	return p.FS.Rename(from, to)
}

func (p *pulled) RenameNew(from, to string) error {
	if p.off = p.off || filepath.Base(to) == "root-ca.key"; p.off {
		return errPulled
	}
	return p.FS.RenameNew(from, to)
}

func (p *pulled) Remove(name string) error {
	if p.off {
		return errPulled
	}
	return p.FS.Remove(name)
}

// act is something that a store does in a key directory.
type act struct {
	name  string
	start tree
	do    func(dir string, fsys durable.FS) error
}

func acts(t *testing.T) []act {
	t.Helper()
	b, here := newBundle(t), sealTo(t, "here")
	open := func(dir string, fsys durable.FS, sealer keystore.Sealer) (*keystore.Store, error) {
		return keystore.Open(t.Context(), keystore.Config{Dir: dir, FS: fsys, Now: clock, Sealer: sealer})
	}
	commit := func(dir string, fsys durable.FS) error {
		s, err := open(dir, fsys, nil)
		if err != nil {
			return err
		}
		return s.Commit(t.Context(), b)
	}
	reseal := func(dir string, fsys durable.FS) error {
		s, err := open(dir, fsys, nil)
		if err != nil {
			return err
		}
		return s.Reseal(t.Context(), here)
	}
	grown := func(from tree, do func(dir string, fsys durable.FS) error, fsys durable.FS) tree {
		dir := t.TempDir()
		from.plant(t, dir)
		if err := do(dir, fsys); err != nil && !errors.Is(err, errPulled) {
			t.Fatal(err)
		}
		return grow(t, dir)
	}
	whole := grown(nil, commit, nil)
	damaged := maps.Clone(whole)
	delete(damaged, "rpc.key")
	return []act{
		{name: "bootstrap", do: commit},
		{name: "renewal", start: whole, do: func(dir string, fsys durable.FS) error {
			s, err := open(dir, fsys, nil)
			if err != nil {
				return err
			}
			_, err = s.RenewRPC(t.Context())
			return err
		}},
		{name: "sealing", start: whole, do: reseal},
		{name: "repair", start: damaged, do: func(dir string, fsys durable.FS) error { _, err := open(dir, fsys, nil); return err }},
		{
			name: "recovery of a bootstrap", start: grown(nil, commit, &pulled{FS: durable.OS{}}),
			do: func(dir string, fsys durable.FS) error { _, err := open(dir, fsys, nil); return err },
		},
		{
			name: "recovery of a sealing", start: grown(whole, reseal, &pulled{FS: durable.OS{}}),
			do: func(dir string, fsys durable.FS) error { _, err := open(dir, fsys, here); return err },
		},
	}
}

// moments lets the lures be put in place at every so many moments of an act, one
// after the other, to stay or until the next, and returns how many there are and
// in how many something precious was touched.
func moments(t *testing.T, trapped func() *trap, a act, every int, fsys func(dir string) durable.FS, tell func(what string)) (n, led int) {
	t.Helper()
	for at, last := 1, false; !last; at += every {
		for _, stay := range []bool{true, false} {
			p := trapped()
			now, when := 0, ""
			see := func(step string) {
				if now++; now == at {
					when = step
				}
				if now == at || now == at+1 && !stay {
					p.swap()
				}
			}
			err := a.do(p.dir, durabletest.Observed{FS: fsys(p.dir), Before: see, After: see, Looks: see})
			last = now < at
			n++
			if what := p.touched(t); what != "" {
				led++
				tell(fmt.Sprintf("%s, %s at moment %d (%s, stays %v): touched %s; error %v", a.name, p.lure.name, at, when, stay, what, err))
			}
		}
	}
	return n, led
}

func byHandle(dir string) durable.FS { return durable.NewWithin(dir) }

// byPath is the test of the tests: it is led.
func byPath(string) durable.FS { return durable.OS{} }

// TestNothingLeadsAstray has somebody who can write the key directory exchange
// what is in it, at every moment of everything that a store does: nothing
// elsewhere is looked at, written, made, removed or has its mode changed.
func TestNothingLeadsAstray(t *testing.T) {
	base, g := inMemory(t), newGuard(t)
	var count tally
	all := acts(t)
	for _, l := range lures() {
		ledByPath := 0
		for _, a := range all {
			trapped := func() *trap { return newTrap(t, base, g, l, a.start) }
			n, _ := moments(t, trapped, a, 1, byHandle, func(what string) { t.Error(what) })
			count.more("moments", n)
			n, led := moments(t, trapped, a, 6, byPath, func(string) {})
			count.more("moments by path", n)
			count.more("led astray by path", led)
			ledByPath += led
		}
		if ledByPath < 3 {
			t.Errorf("%s: by path led astray %d times, want it seen", l.name, ledByPath)
		}
	}
	count.floor(t, map[string]int{"moments": 3 * 900})
}

// TestNobodyIsFaster has somebody exchange names all the time, as fast as the
// system lets them, while a store does what it does.
func TestNobodyIsFaster(t *testing.T) {
	base, g := inMemory(t), newGuard(t)
	var count tally
	all := acts(t)
	for _, l := range lures() {
		race := func(a act, fsys func(dir string) durable.FS) (touched string, err error) {
			p := newTrap(t, base, g, l, a.start)
			done, ended := make(chan struct{}), make(chan int)
			go func() {
				for n := 0; ; n++ {
					select {
					case <-done:
						ended <- n
						return
					case <-time.After(time.Duration(rand.Int64N(2)) * time.Duration(rand.Int64N(int64(200*time.Microsecond)))):
						p.swap()
					}
				}
			}()
			err = a.do(p.dir, fsys(p.dir))
			close(done)
			count.more("exchanges", <-ended)
			return p.touched(t), err
		}
		for n := range 40 * len(all) {
			a := all[n%len(all)]
			touched, err := race(a, byHandle)
			if touched != "" {
				t.Errorf("%s, %s: touched %s; error %v", a.name, l.name, touched, err)
			}
			if err == nil {
				count.add("done all the same")
			}
		}
		led := false
		for end := time.Now().Add(time.Minute); !led && time.Now().Before(end); {
			for _, a := range all {
				touched, _ := race(a, byPath)
				led = led || touched != ""
			}
		}
		if !led {
			t.Errorf("%s: by path never led astray, want it seen", l.name)
		}
	}
	count.floor(t, map[string]int{"exchanges": 300, "done all the same": 20})
}

// inMemory is a directory in memory where there is one: much is synced.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "keystore") //nolint:usetesting // has to be in memory
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return dir
}
