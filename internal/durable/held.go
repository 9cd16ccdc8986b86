package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	gosync "sync"
	"syscall"

	"golang.org/x/sys/unix"
)

var errLeadsOut = errors.New("is a link that leads out of a directory that others can write: there, only relative ones that stay in it are followed")

// held are the handles of a locked directory.
type held struct {
	// root follows links that stay in the directory.
	root *os.Root
	// dir has the lock.
	dir *os.File
	// shared says that others can change what is in the directory.
	shared bool

	// mu guards below.
	mu gosync.Mutex
	// below are handles of the directories below, by their path from here.
	below map[string]*os.File
}

// hold opens and locks a directory; it does not wait for the lock.
func hold(name string) (*held, error) {
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	dir, err := root.Open(".")
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	h := &held{root: root, dir: dir, below: map[string]*os.File{}}
	if h.shared, err = shared(dir); err == nil {
		err = flock(dir, name)
	}
	if err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

// close ends the lock: closing its only descriptor cannot fail to.
func (h *held) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.below {
		_ = d.Close()
	}
	_ = h.root.Close()
	_ = h.dir.Close()
}

// shared reports whether others than this user, its groups and root can change
// what is in a directory.
func shared(dir *os.File) (bool, error) {
	info, err := dir.Stat()
	if err != nil {
		return false, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return true, nil
	}
	const group, others = 0o020, 0o002
	switch mode, owner := info.Mode(), int(stat.Uid); {
	case owner != 0 && owner != os.Geteuid(), mode&others != 0:
		return true, nil
	case mode&group == 0: // which bounds an access control list too
		return false, nil
	}
	groups, err := os.Getgroups()
	if err != nil {
		return false, err
	}
	ours := slices.Contains(append(groups, os.Getegid()), int(stat.Gid))
	return !ours || hasACL(dir), nil
}

// hasACL reports whether there is an access control list: the bits of the group
// are then those of whoever is in it.
func hasACL(dir *os.File) bool {
	_, err := unix.Fgetxattr(int(dir.Fd()), "system.posix_acl_access", nil)
	return !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS)
}

// sub returns the handle of the directory with that path from here.
func (h *held) sub(rel string) (*os.File, error) {
	if rel == "." {
		return h.dir, nil
	}
	if d := h.known(rel); d != nil {
		return d, nil
	}
	parent, err := h.sub(filepath.Dir(rel))
	if err != nil {
		return nil, err
	}
	a := at{in: h, dir: parent, base: filepath.Base(rel), name: filepath.Join(h.root.Name(), rel)}
	d, err := a.open(unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return h.keep(rel, d), nil
}

func (h *held) known(rel string) *os.File {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.below[rel]
}

// keep returns the handle that counts from now on: of two, the first.
func (h *held) keep(rel string, d *os.File) *os.File {
	h.mu.Lock()
	defer h.mu.Unlock()
	if first := h.below[rel]; first != nil {
		_ = d.Close()
		return first
	}
	h.below[rel] = d
	return d
}

// forget lets go of a directory that has its name no more.
func (h *held) forget(rel string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.below[rel]; d != nil {
		_ = d.Close()
		delete(h.below, rel)
	}
}

// at is where a name is looked up: in a directory that is open or, where dir is
// nil, from the working directory.
type at struct {
	in   *held
	dir  *os.File
	rel  string // from the locked directory
	base string
	name string // as it was asked for
}

func (a at) fd() int {
	if a.dir == nil {
		return unix.AT_FDCWD
	}
	return int(a.dir.Fd())
}

// do makes a system call, and again where a signal came in between.
func (a at) do(op string, call func() error) error {
	for {
		err := call()
		if err == nil || !errors.Is(err, unix.EINTR) {
			return a.failed(op, err)
		}
	}
}

func (a at) failed(op string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: a.name, Err: err}
}

func (a at) open(flag int, perm fs.FileMode) (*os.File, error) {
	var fd int
	err := a.do("open", func() (err error) {
		fd, err = unix.Openat(a.fd(), a.base, flag|unix.O_CLOEXEC, uint32(perm.Perm()))
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), a.name), nil
}

// openToRead opens what may be a link, as far as it may lead. It does not block:
// a named pipe in the place of a file must not hang us.
func (a at) openToRead() (*os.File, error) {
	const flag = unix.O_RDONLY | unix.O_NONBLOCK
	switch {
	case a.in != nil && a.dir != a.in.dir:
		return a.open(flag|unix.O_NOFOLLOW, 0)
	case a.in != nil && a.in.shared:
		f, err := a.in.root.OpenFile(a.base, flag, 0)
		return f, a.inside(err)
	}
	return a.open(flag, 0)
}

// inside says what is meant where a link leads out.
func (a at) inside(err error) error {
	if err == nil {
		return nil
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return a.failed("open", errno)
	}
	return a.failed("open", errLeadsOut)
}
