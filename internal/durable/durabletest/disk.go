// Package durabletest has file systems for proving that what is written with
// package durable survives: [Disk] is a disk with a page cache in memory, which
// loses or tears at a crash what was not synced; [Disk.FS] makes any one call
// fail, tear or be the last; [Observed] tells of each call on a real one.
package durabletest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// Disk is a disk and its page cache. Calls through an [FS] change the cache;
// syncing moves the contents of one file, or the entries of one directory, to
// the disk. [Disk.Crash] gives the disk as the next start finds it.
//
// The model is that of POSIX, harsher than most file systems: directory
// changes that were not synced may survive or not, each by itself and in any
// order; syncing a file says nothing about its entry; a rename between two
// directories may leave both names. What it takes for granted is that a rename
// never loses the file, and that the contents of a synced file stay.
type Disk struct {
	mu      sync.Mutex
	root    *node
	pending []*change
	locks   map[string]chan struct{}
	// files are all that ever were, those without a name too: what was removed
	// stays on the medium.
	files []*node
}

// node is a file or directory: its cached state, and what is on the disk.
type node struct {
	dir     bool
	mode    fs.FileMode
	owner   uint32
	data    []byte
	entries map[string]*node

	stableMode    fs.FileMode
	stable        []byte
	stableEntries map[string]*node
	// written and chmodded say what of it was not synced: contents may be torn,
	// a mode only be lost.
	written, chmodded bool
}

// sync brings contents and mode to the disk.
func (n *node) sync() {
	n.stable, n.stableMode = bytes.Clone(n.data), n.mode
	n.written, n.chmodded = false, false
}

// change is a directory change that is not on the disk yet. A rename has two
// halves, the new name first.
type change struct{ halves []half }

type half struct {
	dir  *node
	name string
	to   *node // nil: the name goes
}

// NewDisk returns an empty disk that has the directory dir and its parents.
func NewDisk(dir string) *Disk {
	d := &Disk{root: newDir(0o755), locks: map[string]chan struct{}{}}
	at := d.root
	for _, name := range split(dir) {
		child := newDir(0o755)
		at.entries[name], at.stableEntries[name] = child, child
		at = child
	}
	return d
}

// Put makes or replaces a file, on the disk at once.
func (d *Disk) Put(name string, data []byte, mode fs.FileMode) {
	d.mu.Lock()
	defer d.mu.Unlock()
	parent, err := d.walk(filepath.Dir(name))
	if err != nil {
		panic(fmt.Sprintf("Put(%q): %v", name, err)) // a mistake in the test
	}
	n := &node{mode: mode, data: bytes.Clone(data), stableMode: mode, stable: bytes.Clone(data)}
	d.forget(parent.entries[filepath.Base(name)])
	d.files = append(d.files, n)
	parent.entries[filepath.Base(name)], parent.stableEntries[filepath.Base(name)] = n, n
}

// Link gives a file a second name, on the disk at once.
func (d *Disk) Link(oldName, newName string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.walk(oldName)
	if err != nil {
		panic(fmt.Sprintf("Link(%q): %v", oldName, err)) // a mistake in the test
	}
	parent, err := d.walk(filepath.Dir(newName))
	if err != nil {
		panic(fmt.Sprintf("Link(%q): %v", newName, err)) // a mistake in the test
	}
	parent.entries[filepath.Base(newName)], parent.stableEntries[filepath.Base(newName)] = n, n
}

// Own gives a file or directory to a user, on the disk at once. All that was not
// given away belongs to user 0.
func (d *Disk) Own(name string, uid uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.walk(name)
	if err != nil {
		panic(fmt.Sprintf("Own(%q): %v", name, err)) // a mistake in the test
	}
	n.owner = uid
}

// Delete removes a file, on the disk at once, its contents too.
func (d *Disk) Delete(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	parent, err := d.walk(filepath.Dir(name))
	if err != nil {
		panic(fmt.Sprintf("Delete(%q): %v", name, err)) // a mistake in the test
	}
	d.forget(parent.entries[filepath.Base(name)])
	delete(parent.entries, filepath.Base(name))
	delete(parent.stableEntries, filepath.Base(name))
}

func (d *Disk) forget(n *node) {
	d.files = slices.DeleteFunc(d.files, func(f *node) bool { return f == n })
}

// Contents returns what can be read from the medium and the cache of every file
// that ever was, removed ones included: what was not overwritten is still there.
// Put and Delete alone leave no traces.
func (d *Disk) Contents() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []string
	for _, n := range d.files {
		all = append(all, string(n.data))
		if n.written {
			all = append(all, string(n.stable))
		}
	}
	return all
}

// Removed is [Disk.Contents] of the files that have no name any more.
func (d *Disk) Removed() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var gone []string
	for _, n := range d.files {
		if d.root.names(n) == 0 {
			gone = append(gone, string(n.data), string(n.stable))
		}
	}
	return gone
}

// names counts the names of a file below a directory.
func (n *node) names(file *node) int {
	count := 0
	for _, child := range n.entries {
		if child == file {
			count++
		} else if child.dir {
			count += child.names(file)
		}
	}
	return count
}

// Files returns the cached contents of every file below dir, by path relative
// to it; directories end in a slash and have none.
func (d *Disk) Files(dir string) map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[string]string{}
	at, err := d.walk(dir)
	if err != nil {
		return out
	}
	list(at, "", out)
	return out
}

func list(n *node, prefix string, out map[string]string) {
	for name, child := range n.entries {
		if child.dir {
			out[prefix+name+"/"] = ""
			list(child, prefix+name+"/", out)
			continue
		}
		out[prefix+name] = string(child.data)
	}
}

// Mode returns the cached permission bits of a file, 0 where there is none.
func (d *Disk) Mode(name string) fs.FileMode {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.walk(name)
	if err != nil {
		return 0
	}
	return n.mode
}

// Fingerprint is equal for two disks whose caches have the same directories and
// files with the same modes and contents.
func (d *Disk) Fingerprint() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := sha256.New()
	fingerprint(h, d.root)
	return string(h.Sum(nil))
}

func fingerprint(h hash.Hash, n *node) {
	h.Write(fmt.Appendf(nil, "%v %o %d %d\n", n.dir, n.mode, len(n.data), len(n.entries)))
	h.Write(n.data)
	for _, name := range slices.Sorted(maps.Keys(n.entries)) {
		h.Write(fmt.Appendf(nil, "%q\n", name))
		fingerprint(h, n.entries[name])
	}
}

// Clone returns an independent disk in the same state, with nothing pending: as
// after a clean shutdown.
func (d *Disk) Clone() *Disk { return d.Crash(Kept()) }

// Crash returns the disk as it is after a crash at this moment with this
// outcome. The original is not changed.
func (d *Disk) Crash(o Outcome) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	stable := map[*node]map[string]*node{}
	entriesOf := func(n *node) map[string]*node {
		if stable[n] == nil {
			stable[n] = maps.Clone(n.stableEntries)
		}
		return stable[n]
	}
	for i, c := range d.pending {
		for _, h := range c.halves[:min(o.halves(i, len(d.pending)), len(c.halves))] {
			if h.to != nil {
				entriesOf(h.dir)[h.name] = h.to
			} else {
				delete(entriesOf(h.dir), h.name)
			}
		}
	}
	next := &Disk{locks: map[string]chan struct{}{}}
	copies := map[*node]*node{}
	next.root = copyNode(d.root, o, entriesOf, copies)
	for _, n := range d.files {
		next.files = append(next.files, copyNode(n, o, entriesOf, copies))
	}
	return next
}

func copyNode(n *node, o Outcome, entriesOf func(*node) map[string]*node, copies map[*node]*node) *node {
	if c, ok := copies[n]; ok {
		return c
	}
	c := &node{dir: n.dir, mode: n.stableMode, owner: n.owner, data: bytes.Clone(n.stable)}
	if n.written {
		c.data = bytes.Clone(o.data(n.stable, n.data))
	}
	if n.chmodded && o.mode() {
		c.mode = n.mode
	}
	c.stableMode, c.stable = c.mode, bytes.Clone(c.data)
	copies[n] = c
	if n.dir {
		c.entries, c.stableEntries = map[string]*node{}, map[string]*node{}
		for _, name := range slices.Sorted(maps.Keys(entriesOf(n))) {
			child := copyNode(entriesOf(n)[name], o, entriesOf, copies)
			c.entries[name], c.stableEntries[name] = child, child
		}
	}
	return c
}

func newDir(mode fs.FileMode) *node {
	return &node{dir: true, mode: mode, stableMode: mode, entries: map[string]*node{}, stableEntries: map[string]*node{}}
}

func split(path string) []string {
	path = strings.Trim(filepath.Clean(path), "/")
	if path == "" || path == "." {
		return nil
	}
	return strings.Split(path, "/")
}

// walk finds a node in the cache.
func (d *Disk) walk(path string) (*node, error) {
	at := d.root
	for _, name := range split(path) {
		if !at.dir {
			return nil, syscall.ENOTDIR
		}
		child, ok := at.entries[name]
		if !ok {
			return nil, syscall.ENOENT
		}
		at = child
	}
	return at, nil
}

// parent finds the directory of a path, which must be one.
func (d *Disk) parent(path string) (*node, string, error) {
	dir, err := d.walk(filepath.Dir(path))
	if err != nil {
		return nil, "", err
	}
	if !dir.dir {
		return nil, "", syscall.ENOTDIR
	}
	return dir, filepath.Base(path), nil
}

func (d *Disk) add(path string, n *node) error {
	dir, name, err := d.parent(path)
	if err != nil {
		return err
	}
	if _, ok := dir.entries[name]; ok {
		return syscall.EEXIST
	}
	dir.entries[name] = n
	if !n.dir {
		d.files = append(d.files, n)
	}
	d.pending = append(d.pending, &change{[]half{{dir, name, n}}})
	return nil
}

func (d *Disk) remove(path string) error {
	dir, name, err := d.parent(path)
	if err != nil {
		return err
	}
	n, ok := dir.entries[name]
	switch {
	case !ok:
		return syscall.ENOENT
	case n.dir && len(n.entries) > 0:
		return syscall.ENOTEMPTY
	}
	delete(dir.entries, name)
	d.pending = append(d.pending, &change{[]half{{dir, name, nil}}})
	return nil
}

func (d *Disk) rename(oldPath, newPath string, replace bool) error {
	from, oldName, err := d.parent(oldPath)
	if err != nil {
		return err
	}
	to, newName, err := d.parent(newPath)
	if err != nil {
		return err
	}
	n, ok := from.entries[oldName]
	if !ok {
		return syscall.ENOENT
	}
	there, exists := to.entries[newName]
	switch {
	case exists && !replace:
		return syscall.EEXIST
	case exists && there == n:
		return nil // POSIX: two names of one file stay as they are
	case exists && there.dir:
		return syscall.EISDIR
	}
	to.entries[newName] = n
	delete(from.entries, oldName)
	d.pending = append(d.pending, &change{[]half{{to, newName, n}, {from, oldName, nil}}})
	return nil
}

// syncDir brings the pending changes of a directory to the disk. The old name of
// a rename never goes before the new one is there, in whatever directory that
// is; what was to happen to that name before is then superseded.
func (d *Disk) syncDir(path string) error {
	dir, err := d.walk(path)
	if err != nil {
		return err
	}
	if !dir.dir {
		return syscall.ENOTDIR
	}
	dir.stableMode, dir.chmodded = dir.mode, false
	var left []*change
	for _, c := range d.pending {
		last := -1
		for i, h := range c.halves {
			if h.dir == dir {
				last = i
			}
		}
		for _, h := range c.halves[:last+1] {
			if h.to != nil {
				h.dir.stableEntries[h.name] = h.to
			} else {
				delete(h.dir.stableEntries, h.name)
			}
			supersede(left, h)
		}
		if c.halves = c.halves[last+1:]; len(c.halves) > 0 {
			left = append(left, c)
		}
	}
	d.pending = slices.DeleteFunc(left, func(c *change) bool { return len(c.halves) == 0 })
	return nil
}

// supersede drops earlier changes of the same name.
func supersede(earlier []*change, by half) {
	for _, c := range earlier {
		c.halves = slices.DeleteFunc(c.halves, func(h half) bool { return h.dir == by.dir && h.name == by.name })
	}
}

// errCrashed is what every call returns after the crash: the process is gone,
// and what its code still does has no effect.
var errCrashed = errors.New("the machine has crashed")
