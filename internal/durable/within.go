package durable

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Within is [OS] for one directory that others may be able to write too. From its
// Lock until the unlock, what is in the directory is reached through a handle of
// the one that was locked, and what is in a directory below through a handle of
// the one that was there when it was first asked for: whatever is put in the
// place of either afterwards leads nowhere. All other names, and every name while
// the lock is not held, lead where they lead for OS, but for Chmod.
//
// Links below the directory are never followed. Those in the directory itself are
// by ReadFile, Stat, Chmod and Sync: wherever they lead where only this user, its
// groups and root can write the directory, else to what is in it, by a relative way
// that stays in it, and nowhere else.
type Within struct {
	dir  string
	held atomic.Pointer[held]
}

var _ FS = (*Within)(nil)

// NewWithin returns the file system for a directory. Nothing is opened.
func NewWithin(dir string) *Within { return &Within{dir: filepath.Clean(dir)} }

// find says where an entry is looked up.
func (w *Within) find(name string) (at, error) {
	h, rel := w.below(name)
	if h == nil || rel == "." {
		return at{base: name, name: name}, nil
	}
	dir, err := h.sub(filepath.Dir(rel))
	return at{in: h, dir: dir, rel: rel, base: filepath.Base(rel), name: name}, err
}

// findDir says where a directory is looked up: in itself.
func (w *Within) findDir(name string) (at, error) {
	h, rel := w.below(name)
	if h == nil {
		return at{base: name, name: name}, nil
	}
	dir, err := h.sub(rel)
	return at{in: h, dir: dir, rel: rel, base: ".", name: name}, err
}

// below returns the path of what is in the locked directory.
func (w *Within) below(name string) (*held, string) {
	h := w.held.Load()
	if h == nil {
		return nil, ""
	}
	rel, err := filepath.Rel(w.dir, name)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return nil, ""
	}
	return h, rel
}

// Create makes a file that must not exist and opens it for writing.
func (w *Within) Create(name string, perm fs.FileMode) (File, error) {
	a, err := w.find(name)
	if err != nil {
		return nil, err
	}
	f, err := a.open(unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, perm)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// ReadFile reads a regular file of at most limit bytes.
func (w *Within) ReadFile(name string, limit int64) ([]byte, error) {
	a, err := w.find(name)
	if err != nil {
		return nil, err
	}
	f, err := a.openToRead()
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return readAll(f, limit)
}

// ReadDir lists a directory, links as links, sorted by name.
func (w *Within) ReadDir(name string) ([]fs.DirEntry, error) {
	d, err := w.openDir(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	entries, err := d.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return entries, err
}

func (w *Within) openDir(name string) (*os.File, error) {
	a, err := w.findDir(name)
	if err != nil {
		return nil, err
	}
	return a.open(unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// Stat describes a file or a directory; of a directory below, the one that is
// reached under its name until the lock is let go.
func (w *Within) Stat(name string) (fs.FileInfo, error) {
	h, rel := w.below(name)
	if h == nil {
		return os.Stat(name)
	}
	if rel == "." {
		return h.dir.Stat()
	}
	if d := h.known(rel); d != nil {
		return d.Stat()
	}
	a, err := w.find(name)
	if err != nil {
		return nil, err
	}
	f, err := a.open(unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		return h.keep(rel, f).Stat()
	}
	_ = f.Close() // nothing was written
	if err == nil && info.Mode()&fs.ModeSymlink != 0 {
		return a.statLink()
	}
	return info, err
}

// statLink describes what a link leads to, as far as it may lead.
func (a at) statLink() (fs.FileInfo, error) {
	switch {
	case a.dir != a.in.dir:
		return nil, a.failed("stat", unix.ELOOP)
	case a.in.shared:
		info, err := a.in.root.Stat(a.base)
		return info, a.inside(err)
	}
	f, err := a.open(unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return f.Stat()
}

// Mkdir makes one directory, which must not exist.
func (w *Within) Mkdir(name string, perm fs.FileMode) error {
	a, err := w.find(name)
	if err != nil {
		return err
	}
	err = a.do("mkdir", func() error { return unix.Mkdirat(a.fd(), a.base, uint32(perm.Perm())) })
	if err == nil {
		a.forget() // one that had the name before
	}
	return err
}

// Chmod sets the permission bits. Where others can write the directory, it
// refuses a file that has another name too: that may be one of theirs. Elsewhere it
// follows no link: it is what was just made there, or not meant.
func (w *Within) Chmod(name string, perm fs.FileMode) error {
	a, err := w.find(name)
	if err != nil {
		return err
	}
	open := a.openToRead
	if a.in == nil {
		open = func() (*os.File, error) { return a.open(unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0) }
	}
	f, err := open()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if a.in != nil && a.in.shared && !info.IsDir() && Links(info) > 1 {
		return a.failed("chmod", errOtherName)
	}
	return f.Chmod(perm)
}

// Rename puts a file in the place of what has the new name.
func (w *Within) Rename(oldName, newName string) error { return w.rename(oldName, newName, renameAt) }

// RenameNew is Rename, but fails with fs.ErrExist where something has the new
// name. On file systems that cannot do both at once (NFS) it looks first.
func (w *Within) RenameNew(oldName, newName string) error {
	return w.rename(oldName, newName, renameNewAt)
}

func (w *Within) rename(oldName, newName string, call func(from int, old string, to int, name string) error) error {
	from, err := w.find(oldName)
	if err != nil {
		return err
	}
	to, err := w.find(newName)
	if err != nil {
		return err
	}
	if err := call(from.fd(), from.base, to.fd(), to.base); err != nil {
		return &os.LinkError{Op: "rename", Old: oldName, New: newName, Err: err}
	}
	from.forget()
	return nil
}

func (a at) forget() {
	if a.in != nil {
		a.in.forget(a.rel)
	}
}

// Overwrite writes zeros over a regular file with one name, and syncs them.
func (w *Within) Overwrite(name string) error {
	a, err := w.find(name)
	if err != nil {
		return err
	}
	f, err := a.open(unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return closing(f, overwrite(f))
}

// Remove removes a file or an empty directory.
func (w *Within) Remove(name string) error {
	a, err := w.find(name)
	if err != nil {
		return err
	}
	err = a.do("remove", func() error { return unix.Unlinkat(a.fd(), a.base, 0) })
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		asDir := a.do("remove", func() error { return unix.Unlinkat(a.fd(), a.base, unix.AT_REMOVEDIR) })
		if !errors.Is(asDir, unix.ENOTDIR) {
			err = asDir
		}
	}
	if err == nil {
		a.forget()
	}
	return err
}

// Sync makes the contents and the mode of a file durable.
func (w *Within) Sync(name string) error {
	a, err := w.find(name)
	if err != nil {
		return err
	}
	f, err := a.openToRead()
	if err != nil {
		return err
	}
	return closing(f, f.Sync())
}

// SyncDir makes the entries of a directory durable.
func (w *Within) SyncDir(name string) error {
	d, err := w.openDir(name)
	if err != nil {
		return err
	}
	return closing(d, d.Sync())
}

// Lock takes the lock of the directory, as [OS.Lock] does, and keeps its handle
// until unlock. Several callers wait for each other. What was called in the directory
// has to have returned before unlock.
func (w *Within) Lock(ctx context.Context, name string) (unlock func(), err error) {
	if filepath.Clean(name) != w.dir {
		return OS{}.Lock(ctx, name)
	}
	var h *held
	err = poll(ctx, name, func() (err error) {
		// Opened anew every time: while another one has the lock, the name may
		// become that of another directory.
		if h, err = hold(name); err != nil {
			return err
		}
		if !w.held.CompareAndSwap(nil, h) {
			h.close()
			return unix.EWOULDBLOCK
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return func() {
		if w.held.CompareAndSwap(h, nil) {
			h.close()
		}
	}, nil
}
