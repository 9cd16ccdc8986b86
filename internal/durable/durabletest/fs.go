package durabletest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"teekms/internal/durable"
)

// Fault is what happens at the step of a [Plan].
type Fault int

const (
	// None lets every call succeed.
	None Fault = iota
	// CrashBefore ends the process before the call.
	CrashBefore
	// CrashAfter ends the process after the call.
	CrashAfter
	// CrashTorn ends the process in the middle of a write; with any other call
	// it is CrashAfter.
	CrashTorn
	// FailBefore returns the error without doing the call.
	FailBefore
	// FailAfter does the call and returns the error.
	FailAfter
	// FailTorn does half of a write and returns the error; with any other call
	// it is FailAfter.
	FailTorn
	// FailOn is FailBefore for this and every later call that changes
	// something, as on a disk that has become read-only.
	FailOn
)

// String returns the fault in words.
func (f Fault) String() string {
	return [...]string{"none", "crash before", "crash after", "crash within", "failure before", "failure after", "failure within", "failure from"}[f]
}

// Crashes reports whether the fault ends the process.
func (f Fault) Crashes() bool { return f == CrashBefore || f == CrashAfter || f == CrashTorn }

// Plan says which call fails how.
type Plan struct {
	// Step is the number of the call, from 1; 0 is none.
	Step int
	// Fault is what happens there.
	Fault Fault
	// Err is the error of a failure.
	Err error
	// CrashAt is the number of a later call after which the process ends; 0 is
	// none. It makes a crash while a failure is being undone.
	CrashAt int
}

// FS is a process's view of a [Disk]. It counts its calls, and lets one go wrong.
type FS struct {
	disk *Disk
	plan Plan

	mu      sync.Mutex
	trace   []string
	crashed bool
}

var _ durable.FS = (*FS)(nil)

// FS returns a view of the disk in which the plan happens.
func (d *Disk) FS(p Plan) *FS { return &FS{disk: d, plan: p} }

// Trace returns the calls so far, those after a crash not included.
func (f *FS) Trace() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.trace)
}

// Crashed reports whether the plan has ended the process.
func (f *FS) Crashed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.crashed
}

// do counts a call and lets the plan happen. half does half of it, nil where
// there are no halves.
func (f *FS) do(op, path string, changes bool, whole, half func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.crashed {
		return &fs.PathError{Op: op, Path: path, Err: errCrashed}
	}
	f.trace = append(f.trace, fmt.Sprintf("%s %s", op, path))
	fault := None
	switch n := len(f.trace); {
	case f.plan.Step == 0 || n < f.plan.Step:
	case n == f.plan.Step, f.plan.Fault == FailOn && changes:
		fault = f.plan.Fault
	case n == f.plan.CrashAt:
		fault = CrashAfter
	}
	if half == nil {
		half = whole
	}
	err := f.happen(fault, whole, half)
	if err != nil {
		return &fs.PathError{Op: op, Path: path, Err: err}
	}
	return nil
}

func (f *FS) happen(fault Fault, whole, half func() error) error {
	var err error
	switch fault {
	case CrashAfter, FailAfter, None:
		err = whole()
	case CrashTorn, FailTorn:
		err = half()
	case CrashBefore, FailBefore, FailOn:
		// The call does not happen.
	}
	f.crashed = fault.Crashes()
	switch {
	case f.crashed:
		return errCrashed
	case fault != None:
		return f.plan.Err
	}
	return err
}

// Create makes a file that must not exist.
func (f *FS) Create(name string, perm fs.FileMode) (durable.File, error) {
	n := &node{mode: perm, stableMode: perm}
	err := f.do("create", name, true, func() error { return f.disk.add(name, n) }, nil)
	if err != nil {
		return nil, err
	}
	return &file{fs: f, node: n, name: name}, nil
}

// ReadFile reads a file of at most limit bytes.
func (f *FS) ReadFile(name string, limit int64) (data []byte, err error) {
	err = f.do("read", name, false, func() error {
		n, err := f.disk.walk(name)
		switch {
		case err != nil:
			return err
		case n.dir:
			return syscall.EISDIR
		case int64(len(n.data)) > limit:
			return errors.New("too large")
		}
		data = bytes.Clone(n.data)
		return nil
	}, nil)
	if err != nil {
		return nil, err
	}
	return data, nil
}

// ReadDir lists a directory.
func (f *FS) ReadDir(name string) (list []fs.DirEntry, err error) {
	err = f.do("readdir", name, false, func() error {
		n, err := f.disk.walk(name)
		switch {
		case err != nil:
			return err
		case !n.dir:
			return syscall.ENOTDIR
		}
		for _, name := range slices.Sorted(maps.Keys(n.entries)) {
			list = append(list, fs.FileInfoToDirEntry(f.disk.newInfo(name, n.entries[name])))
		}
		return nil
	}, nil)
	if err != nil {
		return nil, err
	}
	return list, nil
}

// Stat describes a file or directory.
func (f *FS) Stat(name string) (info fs.FileInfo, err error) {
	err = f.do("stat", name, false, func() error {
		n, err := f.disk.walk(name)
		if err == nil {
			info = f.disk.newInfo(filepath.Base(name), n)
		}
		return err
	}, nil)
	if err != nil {
		return nil, err
	}
	return info, nil
}

// Mkdir makes a directory that must not exist.
func (f *FS) Mkdir(name string, perm fs.FileMode) error {
	return f.do("mkdir", name, true, func() error { return f.disk.add(name, newDir(perm)) }, nil)
}

// Chmod sets permission bits.
func (f *FS) Chmod(name string, perm fs.FileMode) error {
	return f.do("chmod", name, true, func() error {
		n, err := f.disk.walk(name)
		if err == nil {
			n.mode, n.chmodded = perm, true
		}
		return err
	}, nil)
}

// Rename renames, replacing what has the new name.
func (f *FS) Rename(oldName, newName string) error {
	return f.do("rename", newName, true, func() error { return f.disk.rename(oldName, newName, true) }, nil)
}

// RenameNew renames to a name that must be free.
func (f *FS) RenameNew(oldName, newName string) error {
	return f.do("rename", newName, true, func() error { return f.disk.rename(oldName, newName, false) }, nil)
}

// Overwrite writes zeros over a file with one name that its owner may write, and
// syncs them. Torn, half of them are in the cache and none was synced.
func (f *FS) Overwrite(name string) error {
	zeros := func(whole bool) func() error {
		return func() error {
			n, err := f.disk.walk(name)
			switch {
			case err != nil:
				return err
			case n.dir:
				return syscall.EISDIR
			case f.disk.root.names(n) > 1:
				return errors.New("has another name")
			case n.mode&0o200 == 0:
				return syscall.EACCES
			case whole:
				n.data = make([]byte, len(n.data))
				n.stable, n.written = bytes.Clone(n.data), false
				return nil
			}
			n.data, n.written = bytes.Clone(n.data), true
			clear(n.data[:len(n.data)/2])
			return nil
		}
	}
	return f.do("overwrite", name, true, zeros(true), zeros(false))
}

// Remove removes a file or an empty directory.
func (f *FS) Remove(name string) error {
	return f.do("remove", name, true, func() error { return f.disk.remove(name) }, nil)
}

// Sync brings the contents and the mode of a file to the disk.
func (f *FS) Sync(name string) error {
	return f.do("sync", name, true, func() error {
		n, err := f.disk.walk(name)
		switch {
		case err != nil:
			return err
		case n.dir:
			return syscall.EISDIR
		}
		n.sync()
		return nil
	}, nil)
}

// SyncDir brings the entries of a directory to the disk.
func (f *FS) SyncDir(name string) error {
	return f.do("syncdir", name, true, func() error { return f.disk.syncDir(name) }, nil)
}

// Lock takes a lock that ends with unlock or with the view's crash.
func (f *FS) Lock(ctx context.Context, name string) (unlock func(), err error) {
	var lock chan struct{}
	err = f.do("lock", name, false, func() error {
		if _, err := f.disk.walk(name); err != nil {
			return err
		}
		if f.disk.locks[name] == nil {
			f.disk.locks[name] = make(chan struct{}, 1)
		}
		lock = f.disk.locks[name]
		return nil
	}, nil)
	if err != nil {
		return nil, err
	}
	select {
	case lock <- struct{}{}:
		return func() { <-lock }, nil
	case <-ctx.Done():
		return nil, &fs.PathError{Op: "lock", Path: name, Err: ctx.Err()}
	}
}

// file is a node open for writing.
type file struct {
	fs   *FS
	node *node
	name string
}

func (f *file) Write(b []byte) (n int, err error) {
	write := func(part []byte) func() error {
		return func() error {
			f.node.data = append(bytes.Clone(f.node.data), part...)
			f.node.written = true
			n = len(part)
			return nil
		}
	}
	err = f.fs.do("write", f.name, true, write(b), write(b[:len(b)/2]))
	return n, err
}

func (f *file) Chmod(perm fs.FileMode) error {
	return f.fs.do("fchmod", f.name, true, func() error {
		f.node.mode, f.node.chmodded = perm, true
		return nil
	}, nil)
}

func (f *file) Sync() error {
	return f.fs.do("fsync", f.name, true, func() error {
		f.node.sync()
		return nil
	}, nil)
}

func (f *file) Close() error {
	return f.fs.do("close", f.name, false, func() error { return nil }, nil)
}

// info is a snapshot: a node's lock is not held when it is read.
type info struct {
	name string
	size int64
	mode fs.FileMode
	sys  *syscall.Stat_t
}

func (d *Disk) newInfo(name string, n *node) info {
	i := info{name: name, size: int64(len(n.data)), mode: n.mode, sys: &syscall.Stat_t{Nlink: 1, Uid: n.owner}}
	if n.dir {
		i.mode |= fs.ModeDir
		return i
	}
	for range d.root.names(n) - 1 {
		i.sys.Nlink++
	}
	return i
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) Mode() fs.FileMode  { return i.mode }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.mode.IsDir() }
func (i info) Sys() any           { return i.sys }
