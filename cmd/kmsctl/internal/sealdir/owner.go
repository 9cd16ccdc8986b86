package sealdir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"teekms/internal/durable"
)

// ownerFile is the file whose owner everything new gets that replaces nothing:
// who reads it is the KMS.
const ownerFile = "root-ca.key"

// othersWrite are the permissions by which others than the owner change a
// directory; those of an access control list show in them too.
const othersWrite fs.FileMode = 0o022

// owned is the file system of the operating system for a directory that may be
// another user's. The KMS runs as a user of its own; root, who seals its files,
// does to them only what that user may do, as that user: whoever can write into
// the directory can put links into it at any moment, and no look at a path
// before its use would hold. What is new is thereby the KMS's from its first
// moment, and can be read and finished by it whenever this process ends.
//
// Where only root can write, in the directory and on the way to it, root acts as
// itself, and gives what is new to the owner of what it replaces.
type owned struct {
	os  durable.OS
	dir string

	once sync.Once
	who  owner
	how  manner
	err  error
}

var _ durable.FS = (*owned)(nil)

// manner is how the files of an owner are changed.
type manner int

const (
	asThis  manner = iota // by the user who runs this, whose they are or who is not root
	asOwner               // by root, with the rights of the owner alone
	forThem               // by root, and given to the owner
)

// owner is a user and a group.
type owner struct{ uid, gid int }

// decide says once how the directory is written.
func (o *owned) decide() error {
	o.once.Do(func() { o.who, o.how, o.err = mannerOf(o.dir) })
	return o.err
}

func mannerOf(dir string) (owner, manner, error) {
	info, err := os.Stat(dir)
	if os.Geteuid() != 0 || errors.Is(err, fs.ErrNotExist) {
		return owner{}, asThis, nil
	}
	if err != nil {
		return owner{}, asThis, err
	}
	of, err := ownerOf(info)
	if err != nil {
		return owner{}, asThis, err
	}
	keys := of
	if file, err := os.Lstat(filepath.Join(dir, ownerFile)); err == nil {
		if keys, err = ownerOf(file); err != nil {
			return owner{}, asThis, err
		}
	}
	switch {
	case keys.uid == 0 && of.uid == 0:
		return keys, asThis, nil
	case keys.uid == 0:
		return keys, asThis, fmt.Errorf("%s belongs to user %d and its keys to root: chown the keys to that user, or the directory to root", dir, of.uid)
	case of.uid == 0 && info.Mode()&othersWrite == 0 && rootAlone(dir):
		return keys, forThem, nil
	}
	return keys, asOwner, nil
}

// rootAlone reports whether nobody but root can change what a path leads to.
func rootAlone(dir string) bool {
	path, err := filepath.Abs(dir)
	if err != nil {
		return false
	}
	if real, err := filepath.EvalSymlinks(path); err != nil || real != path {
		return false
	}
	for path != "/" {
		path = filepath.Dir(path)
		info, err := os.Lstat(path)
		if err != nil {
			return false
		}
		of, err := ownerOf(info)
		if err != nil || of.uid != 0 || info.Mode()&othersWrite != 0 && info.Mode()&fs.ModeSticky == 0 {
			return false
		}
	}
	return true
}

// do calls f in the manner that the directory asks for.
func (o *owned) do(f func() error) error {
	if err := o.decide(); err != nil {
		return err
	}
	if o.how == asOwner {
		return o.who.do(f)
	}
	return f()
}

// of is do for what has a result.
func of[T any](o *owned, f func() (T, error)) (result T, err error) {
	err = o.do(func() error {
		var err error
		result, err = f()
		return err
	})
	return result, err
}

// Create makes a file that must not exist, for the owner of the file of that name
// in the directory.
func (o *owned) Create(name string, perm fs.FileMode) (durable.File, error) {
	if err := o.decide(); err != nil {
		return nil, err
	}
	who, err := o.replaced(filepath.Base(name))
	if err != nil {
		return nil, err
	}
	f, err := of(o, func() (*os.File, error) { return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm) })
	if err != nil {
		return nil, err
	}
	if o.how != forThem {
		return f, nil
	}
	// It is given away before anything is in it.
	if err := who.take(f); err != nil {
		// The first error is the one that tells what happened.
		_ = f.Close()
		_ = o.os.Remove(name)
		return nil, err
	}
	return f, nil
}

// Mkdir makes a directory that must not exist, for the owner of the keys.
func (o *owned) Mkdir(name string, perm fs.FileMode) error {
	if err := o.do(func() error { return o.os.Mkdir(name, perm) }); err != nil || o.how != forThem {
		return err
	}
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err == nil {
		err = o.who.take(f)
		_ = f.Close() // nothing was written
	}
	if err != nil {
		_ = o.os.Remove(name) // as above
	}
	return err
}

// Chmod sets the mode of a file that is no link.
func (o *owned) Chmod(name string, perm fs.FileMode) error {
	return o.do(func() error {
		f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer f.Close() //nolint:errcheck // nothing was written
		return f.Chmod(perm)
	})
}

// The others are those of the operating system.

// ReadFile reads a regular file.
func (o *owned) ReadFile(name string, limit int64) ([]byte, error) {
	return of(o, func() ([]byte, error) { return o.os.ReadFile(name, limit) })
}

// ReadDir lists a directory.
func (o *owned) ReadDir(name string) ([]fs.DirEntry, error) {
	return of(o, func() ([]fs.DirEntry, error) { return o.os.ReadDir(name) })
}

// Stat follows links.
func (o *owned) Stat(name string) (fs.FileInfo, error) {
	return of(o, func() (fs.FileInfo, error) { return o.os.Stat(name) })
}

// Rename puts a file in the place of another.
func (o *owned) Rename(oldName, newName string) error {
	return o.do(func() error { return o.os.Rename(oldName, newName) })
}

// RenameNew is Rename where nothing is in the place.
func (o *owned) RenameNew(oldName, newName string) error {
	return o.do(func() error { return o.os.RenameNew(oldName, newName) })
}

// Overwrite writes zeros over a file.
func (o *owned) Overwrite(name string) error {
	return o.do(func() error { return o.os.Overwrite(name) })
}

// Remove removes a file or an empty directory.
func (o *owned) Remove(name string) error {
	return o.do(func() error { return o.os.Remove(name) })
}

// Sync makes a file durable.
func (o *owned) Sync(name string) error {
	return o.do(func() error { return o.os.Sync(name) })
}

// SyncDir makes the entries of a directory durable.
func (o *owned) SyncDir(name string) error {
	return o.do(func() error { return o.os.SyncDir(name) })
}

// Lock takes the lock of a directory.
func (o *owned) Lock(ctx context.Context, name string) (unlock func(), err error) {
	return of(o, func() (func(), error) { return o.os.Lock(ctx, name) })
}

// replaced returns whose the file of that name in the directory is, else whose
// the keys are.
func (o *owned) replaced(name string) (owner, error) {
	if o.how != forThem {
		return o.who, nil
	}
	info, err := os.Lstat(filepath.Join(o.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return o.who, nil
	}
	if err != nil {
		return owner{}, err
	}
	return ownerOf(info)
}

func ownerOf(info fs.FileInfo) (owner, error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return owner{}, errors.New("the file system does not tell owners")
	}
	return owner{int(st.Uid), int(st.Gid)}, nil
}

// isThis says whether it is the user who runs this.
func (w owner) isThis() bool { return w.uid == os.Geteuid() }

// do calls f as that user as far as files are concerned, without root's rights
// and groups.
func (w owner) do(f func() error) error {
	groups, err := unix.Getgroups()
	if err != nil {
		return fmt.Errorf("reading the groups of this process: %w", err)
	}
	// The identity for files is that of a thread. One that could not be given back
	// ends with its goroutine, locked.
	runtime.LockOSThread()
	back := func() {
		if setGroups(groups) == nil && become(owner{os.Geteuid(), os.Getegid()}) {
			runtime.UnlockOSThread()
		}
	}
	defer back()
	if err := setGroups(nil); err != nil {
		return fmt.Errorf("leaving the groups of root: %w", err)
	}
	if !become(w) {
		return fmt.Errorf("acting as user %d, who owns the keys: %w", w.uid, fs.ErrPermission)
	}
	return f()
}

// setGroups sets the supplementary groups of this thread alone: the library sets
// those of the whole process.
func setGroups(groups []int) error {
	list := make([]uint32, len(groups)+1)
	for i, g := range groups {
		list[i] = uint32(g)
	}
	_, _, errno := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&list[0])), 0) //nolint:gosec // the system reads len(groups) of them
	if errno != 0 {
		return errno
	}
	return nil
}

// become changes the identity for files of this thread. The system tells only
// what it was before, of a change that it refused too.
func become(w owner) bool {
	const none = -1 // changes nothing
	_, _ = unix.SetfsgidRetGid(w.gid)
	_, _ = unix.SetfsuidRetUid(w.uid)
	uid, _ := unix.SetfsuidRetUid(none)
	gid, _ := unix.SetfsgidRetGid(none)
	return uid == w.uid && gid == w.gid
}

// take makes what is open that user's.
func (w owner) take(f *os.File) error {
	if err := f.Chown(w.uid, w.gid); err != nil {
		return fmt.Errorf("giving %s to user %d, who owns the keys: %w", f.Name(), w.uid, err)
	}
	return nil
}
