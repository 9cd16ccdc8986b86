// Package durable writes files so that they are there after a crash: write,
// fsync, rename, fsync the parent. It works over a small [FS], of which [OS] is
// the real one; durabletest has one that forgets what was not synced.
//
// Use [WriteFile] to put a whole file in place, [WriteNew] and the methods of
// FS to build a protocol of your own.
package durable

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
)

// FS is a file system as far as durable writing needs one. Its errors are
// *fs.PathError or wrap one, and satisfy errors.Is with fs.ErrNotExist,
// fs.ErrExist, fs.ErrPermission and the errno of the system. Paths are those of
// the operating system. It may be called from several goroutines.
//
// Nothing is durable until it was synced: the contents and the mode of a file
// by [File.Sync], the entries of a directory by SyncDir.
type FS interface {
	// Create makes a file that must not exist and opens it for writing.
	Create(name string, perm fs.FileMode) (File, error)
	// ReadFile reads a regular file of at most limit bytes, following links.
	ReadFile(name string, limit int64) ([]byte, error)
	// ReadDir lists a directory, links as links, sorted by name.
	ReadDir(name string) ([]fs.DirEntry, error)
	// Stat follows links.
	Stat(name string) (fs.FileInfo, error)
	// Mkdir makes one directory, which must not exist.
	Mkdir(name string, perm fs.FileMode) error
	// Chmod sets the permission bits.
	Chmod(name string, perm fs.FileMode) error
	// Rename puts a file in the place of what has the new name.
	Rename(oldName, newName string) error
	// RenameNew is Rename, but fails with fs.ErrExist where something has the
	// new name.
	RenameNew(oldName, newName string) error
	// Overwrite writes zeros over the whole contents of a regular file, in its
	// place, and syncs them. It does not follow links, and refuses a file that
	// has another name too or is larger than 64 MiB. On an error the file may be
	// overwritten in part.
	// Where the file system or the device writes elsewhere (copy on write,
	// snapshots, wear leveling) the old contents stay on the medium.
	Overwrite(name string) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// Sync makes the contents and the mode of a file durable that another
	// process may have written and not synced.
	Sync(name string) error
	// SyncDir makes the entries of a directory durable.
	SyncDir(name string) error
	// Lock takes the advisory lock of a directory against every other process
	// and every other caller, waiting until ctx is done. The lock ends with
	// unlock or with the process.
	Lock(ctx context.Context, name string) (unlock func(), err error)
}

// Links returns how many names a file has, 0 where the file system does not
// tell.
func Links(info fs.FileInfo) int {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return int(stat.Nlink)
}

// Owner returns the number of the user whom a file belongs to, -1 where the file
// system does not tell.
func Owner(info fs.FileInfo) int {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1
	}
	return int(stat.Uid)
}

// File is a file open for writing.
type File interface {
	Write(b []byte) (int, error)
	Chmod(perm fs.FileMode) error
	Sync() error
	Close() error
}

// WriteNew makes a file with exactly these permissions, whatever the umask, and
// syncs its contents; its directory entry is the caller's to sync. On an error
// the file may be there in part.
func WriteNew(fsys FS, name string, data []byte, perm fs.FileMode) error {
	f, err := fsys.Create(name, perm)
	if err != nil {
		return err
	}
	if err := fill(f, data, perm); err != nil {
		// The first error is the one that tells what happened.
		_ = f.Close()
		return err
	}
	return f.Close()
}

func fill(f File, data []byte, perm fs.FileMode) error {
	if err := f.Chmod(perm); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// Replace writes tmp, renames it to name and syncs the directory of name: after
// a crash name has either the old contents or the new. Both names must be on
// one file system. On an error tmp is removed, and name has either contents.
func Replace(fsys FS, tmp, name string, data []byte, perm fs.FileMode) error {
	err := WriteNew(fsys, tmp, data, perm)
	if err == nil {
		err = fsys.Rename(tmp, name)
	}
	if err != nil {
		// Best effort: what failed first is what matters.
		_ = fsys.Remove(tmp)
		return err
	}
	return fsys.SyncDir(filepath.Dir(name))
}

// WriteFile is [Replace] with a temporary name in the same directory, ".NAME.tmp",
// of which a remainder of a crash is removed first. Two writers of one name must
// not run at once.
func WriteFile(fsys FS, name string, data []byte, perm fs.FileMode) error {
	tmp := filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".tmp")
	if err := fsys.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return Replace(fsys, tmp, name, data, perm)
}

// MkdirAll makes a directory and the parents it lacks with exactly these
// permissions, whatever the umask, and syncs the parents. It returns those it
// made, outermost first; on an error too. A directory that exists is left as it
// is.
func MkdirAll(fsys FS, dir string, perm fs.FileMode) (made []string, err error) {
	info, err := fsys.Stat(dir)
	switch {
	case err == nil && info.IsDir():
		return nil, nil
	case err == nil:
		return nil, fmt.Errorf("%q is not a directory", dir)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if made, err = MkdirAll(fsys, parent, perm); err != nil {
			return made, err
		}
	}
	if err := fsys.Mkdir(dir, perm); err != nil {
		if errors.Is(err, fs.ErrExist) {
			// Another process was faster; a file of this name shows up later.
			return made, nil
		}
		return made, err
	}
	made = append(made, dir)
	if err := fsys.Chmod(dir, perm); err != nil {
		return made, err
	}
	if err := fsys.SyncDir(dir); err != nil {
		return made, err
	}
	return made, fsys.SyncDir(parent)
}
