package durable

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockPoll is how often a held lock is tried again.
const lockPoll = 10 * time.Millisecond

// maxOverwrite bounds what is overwritten: a sparse file has no end.
const maxOverwrite = 64 << 20

var (
	errNotRegular = errors.New("not a regular file")
	errOtherName  = errors.New("has another name (hard link)")
	errTooLarge   = errors.New("too large to be overwritten")
)

// OS is the file system of the operating system.
type OS struct{}

var _ FS = OS{}

// Create makes a file that must not exist and opens it for writing.
func (OS) Create(name string, perm fs.FileMode) (File, error) {
	return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
}

// ReadFile reads a regular file of at most limit bytes, following links.
func (OS) ReadFile(name string, limit int64) ([]byte, error) {
	// Not blocking: a named pipe in the place of a file must not hang us.
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return readAll(f, limit)
}

func readAll(f *os.File, limit int64) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: f.Name(), Err: errNotRegular}
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, &fs.PathError{Op: "read", Path: f.Name(), Err: fmt.Errorf("more than %d bytes", limit)}
	}
	return data, nil
}

// ReadDir lists a directory, links as links, sorted by name.
func (OS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }

// Stat follows links.
func (OS) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

// Mkdir makes one directory, which must not exist.
func (OS) Mkdir(name string, perm fs.FileMode) error { return os.Mkdir(name, perm) }

// Chmod sets the permission bits.
func (OS) Chmod(name string, perm fs.FileMode) error { return os.Chmod(name, perm) }

// Rename puts a file in the place of what has the new name.
func (OS) Rename(oldName, newName string) error { return os.Rename(oldName, newName) }

// RenameNew is Rename, but fails with fs.ErrExist where something has the new
// name. On file systems that cannot do both at once (NFS) it looks first.
func (OS) RenameNew(oldName, newName string) error {
	if err := renameNewAt(unix.AT_FDCWD, oldName, unix.AT_FDCWD, newName); err != nil {
		return &os.LinkError{Op: "rename", Old: oldName, New: newName, Err: err}
	}
	return nil
}

func renameAt(from int, oldName string, to int, newName string) error {
	for {
		// As os.Rename does, where a signal came in between.
		if err := unix.Renameat(from, oldName, to, newName); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func renameNewAt(from int, oldName string, to int, newName string) error {
	err := unix.Renameat2(from, oldName, to, newName, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	var there unix.Stat_t
	switch err := unix.Fstatat(to, newName, &there, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil:
		return unix.EEXIST
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return renameAt(from, oldName, to, newName)
}

// Overwrite writes zeros over a regular file with one name and at most 64 MiB,
// and syncs them.
func (OS) Overwrite(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return closing(f, overwrite(f))
}

// closing closes a file after what was done with it.
func closing(f *os.File, err error) error {
	if err != nil {
		// The first error is the one that tells what happened.
		_ = f.Close()
		return err
	}
	return f.Close()
}

func overwrite(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var refused error
	switch {
	case !info.Mode().IsRegular():
		refused = errNotRegular
	case Links(info) > 1:
		refused = errOtherName
	case info.Size() > maxOverwrite:
		refused = errTooLarge
	}
	if refused != nil {
		return &fs.PathError{Op: "overwrite", Path: f.Name(), Err: refused}
	}
	zeros := make([]byte, 4096)
	for at := int64(0); at < info.Size(); at += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), info.Size()-at)], at); err != nil {
			return err
		}
	}
	return f.Sync()
}

// Remove removes a file or an empty directory.
func (OS) Remove(name string) error { return os.Remove(name) }

// Sync makes the contents and the mode of a file durable.
func (OS) Sync(name string) error { return sync(name) }

// SyncDir makes the entries of a directory durable.
func (OS) SyncDir(name string) error { return sync(name) }

func sync(name string) error {
	// Not blocking, as in ReadFile.
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return closing(f, f.Sync())
}

// Lock takes flock(2) on the directory itself, so that no lock file is left in
// it, trying every 10 ms until ctx is done.
func (OS) Lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	if err := poll(ctx, name, func() error { return flock(f, name) }); err != nil {
		// The lock's error is the one that tells what happened.
		_ = f.Close()
		return nil, err
	}
	// Closing the only descriptor ends the lock and cannot fail to.
	return func() { _ = f.Close() }, nil
}

// flock takes the lock of an open directory, or fails with EWOULDBLOCK.
func flock(f *os.File, name string) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return &fs.PathError{Op: "flock", Path: name, Err: err}
	}
	return nil
}

// poll tries to take a lock until that does not fail with EWOULDBLOCK.
func poll(ctx context.Context, name string, try func() error) error {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := try()
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return err
		}
		select {
		case <-ctx.Done():
			return &fs.PathError{Op: "flock", Path: name, Err: fmt.Errorf("held by another process: %w", ctx.Err())}
		case <-tick.C:
		}
	}
}
