package sealdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"teekms/internal/durable"
)

// ownerFile is the file whose owner everything new gets that replaces nothing:
// who reads it is the KMS.
const ownerFile = "root-ca.key"

// owned is the file system of the operating system in which what is new has the
// owner of what it replaces, from its first moment. The KMS runs as another user
// than the one who seals its files, and must be able to read them and to finish
// what was begun, whenever this process ends.
type owned struct {
	durable.OS
	dir string
}

var _ durable.FS = owned{}

// owner is a user and a group.
type owner struct{ uid, gid int }

// Create makes a file that must not exist, with the owner of the file of that
// name in the directory.
func (o owned) Create(name string, perm fs.FileMode) (durable.File, error) {
	who, err := o.owner(filepath.Base(name))
	if err != nil {
		return nil, err
	}
	var f *os.File
	create := func() (err error) {
		f, err = os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
		return err
	}
	if who.isThis() {
		err = create()
	} else {
		err = who.do(create)
	}
	switch {
	case err == nil:
		return f, nil
	case who.isThis() || !errors.Is(err, fs.ErrPermission):
		return nil, err
	}
	// A directory that the owner cannot write: it is given away before anything is
	// in it.
	if err := create(); err != nil {
		return nil, err
	}
	if err := who.take(f); err != nil {
		// The first error is the one that tells what happened.
		_ = f.Close()
		_ = o.Remove(name)
		return nil, err
	}
	return f, nil
}

// Mkdir makes a directory that must not exist, with the owner of the keys.
func (o owned) Mkdir(name string, perm fs.FileMode) error {
	who, err := o.owner(ownerFile)
	if err != nil {
		return err
	}
	mkdir := func() error { return o.OS.Mkdir(name, perm) }
	if who.isThis() {
		return mkdir()
	}
	if err := who.do(mkdir); !errors.Is(err, fs.ErrPermission) {
		return err
	}
	// As above.
	if err := mkdir(); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err == nil {
		err = who.take(f)
		_ = f.Close() // nothing was written
	}
	if err != nil {
		_ = o.Remove(name) // as above
	}
	return err
}

// Chmod sets the mode of a file that is no link: in a directory of somebody else,
// it could lead to any file of ours.
func (o owned) Chmod(name string, perm fs.FileMode) error {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	return f.Chmod(perm)
}

// owner returns whose the file of that name in the directory is, else whose the
// keys are, else the directory itself.
func (o owned) owner(name string) (owner, error) {
	for _, path := range []string{filepath.Join(o.dir, name), filepath.Join(o.dir, ownerFile), o.dir} {
		info, err := os.Stat(path)
		if err == nil {
			return ownerOf(info)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return owner{}, err
		}
	}
	return owner{}, &fs.PathError{Op: "stat", Path: o.dir, Err: fs.ErrNotExist}
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

// do calls f as that user as far as files are concerned, where this one may, else
// as this one. It may be denied what that user is denied.
func (w owner) do(f func() error) error {
	// The identity for files is that of a thread. It is not shared with others
	// before it is what it was.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if !become(w) {
		return fs.ErrPermission
	}
	defer become(owner{os.Geteuid(), os.Getegid()})
	return f()
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
