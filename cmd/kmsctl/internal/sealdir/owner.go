package sealdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"teekms/internal/durable"
)

const (
	// ownerFile is the file whose owner everything new gets that replaces nothing:
	// who reads it is the KMS.
	ownerFile = "root-ca.key"
	// newSuffix ends the name of what has no owner yet.
	newSuffix = ".new"
)

// owned is the file system of the operating system in which what is new has the
// owner of what it replaces. The KMS runs as another user than the one who seals
// its files, and must be able to read them: nothing has its name before it has
// its owner, so that this holds whenever this process ends.
type owned struct {
	durable.OS
	dir string
}

var _ durable.FS = owned{}

// owner is a user and a group.
type owner struct{ uid, gid uint32 }

func ownerOf(info fs.FileInfo) (owner, error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return owner{}, errors.New("the file system does not tell owners")
	}
	return owner{st.Uid, st.Gid}, nil
}

// Create makes a file that must not exist, with the owner of the file of that
// name in the directory.
func (o owned) Create(name string, perm fs.FileMode) (durable.File, error) {
	want, err := o.owner(filepath.Base(name))
	if err != nil {
		return nil, err
	}
	if want.uid == uint32(os.Geteuid()) {
		return o.OS.Create(name, perm)
	}
	early := name + newSuffix
	if err := o.Remove(early); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(early, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return nil, err
	}
	if err := o.hand(f, want, early, name); err != nil {
		// The first error is the one that tells what happened.
		_ = f.Close()
		_ = o.Remove(early)
		return nil, err
	}
	return f, nil
}

// Mkdir makes a directory that must not exist, with the owner of the keys.
func (o owned) Mkdir(name string, perm fs.FileMode) error {
	want, err := o.owner(ownerFile)
	if err != nil {
		return err
	}
	if want.uid == uint32(os.Geteuid()) {
		return o.OS.Mkdir(name, perm)
	}
	early := name + newSuffix
	if err := o.Remove(early); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := o.OS.Mkdir(early, perm); err != nil {
		return err
	}
	// The parent may belong to somebody else, who could put a link there.
	f, err := os.OpenFile(early, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err == nil {
		err = o.hand(f, want, early, name)
		_ = f.Close() // nothing was written
	}
	if err != nil {
		_ = o.Remove(early) // as above
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

// hand gives what is open as early to its owner, and then its name.
func (o owned) hand(f *os.File, to owner, early, name string) error {
	if err := f.Chown(int(to.uid), int(to.gid)); err != nil {
		return fmt.Errorf("giving %s to user %d, who owns the keys: %w", name, to.uid, err)
	}
	return o.RenameNew(early, name)
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
