package durabletest

import (
	"io/fs"
	"path/filepath"

	"teekms/internal/durable"
)

// Observed passes calls on to the FS inside and tells of those that change
// something: before and after each, as "write rpc.crt".
type Observed struct {
	durable.FS
	// Before and After are called with the operation and the last element of
	// the path. Required.
	Before, After func(step string)
	// Looks is called before each call that only reads, as "stat rpc.crt".
	// Optional.
	Looks func(step string)
}

func (o Observed) look(op, name string) {
	if o.Looks != nil {
		o.Looks(op + " " + filepath.Base(name))
	}
}

// ReadFile tells of "read NAME".
func (o Observed) ReadFile(name string, limit int64) ([]byte, error) {
	o.look("read", name)
	return o.FS.ReadFile(name, limit)
}

// ReadDir tells of "readdir NAME".
func (o Observed) ReadDir(name string) ([]fs.DirEntry, error) {
	o.look("readdir", name)
	return o.FS.ReadDir(name)
}

// Stat tells of "stat NAME".
func (o Observed) Stat(name string) (fs.FileInfo, error) {
	o.look("stat", name)
	return o.FS.Stat(name)
}

func (o Observed) tell(op, name string, do func() error) error {
	step := op + " " + filepath.Base(name)
	o.Before(step)
	err := do()
	o.After(step)
	return err
}

// Create tells of "create NAME" and of the file's own calls.
func (o Observed) Create(name string, perm fs.FileMode) (f durable.File, err error) {
	err = o.tell("create", name, func() error { f, err = o.FS.Create(name, perm); return err })
	if err != nil {
		return nil, err
	}
	return observedFile{o, f, name}, nil
}

// Mkdir tells of "mkdir NAME".
func (o Observed) Mkdir(name string, perm fs.FileMode) error {
	return o.tell("mkdir", name, func() error { return o.FS.Mkdir(name, perm) })
}

// Chmod tells of "chmod NAME".
func (o Observed) Chmod(name string, perm fs.FileMode) error {
	return o.tell("chmod", name, func() error { return o.FS.Chmod(name, perm) })
}

// Rename tells of "rename NEWNAME".
func (o Observed) Rename(oldName, newName string) error {
	return o.tell("rename", newName, func() error { return o.FS.Rename(oldName, newName) })
}

// RenameNew tells of "rename NEWNAME".
func (o Observed) RenameNew(oldName, newName string) error {
	return o.tell("rename", newName, func() error { return o.FS.RenameNew(oldName, newName) })
}

// Overwrite tells of "overwrite NAME".
func (o Observed) Overwrite(name string) error {
	return o.tell("overwrite", name, func() error { return o.FS.Overwrite(name) })
}

// Remove tells of "remove NAME".
func (o Observed) Remove(name string) error {
	return o.tell("remove", name, func() error { return o.FS.Remove(name) })
}

// Sync tells of "sync NAME".
func (o Observed) Sync(name string) error {
	return o.tell("sync", name, func() error { return o.FS.Sync(name) })
}

// SyncDir tells of "syncdir NAME".
func (o Observed) SyncDir(name string) error {
	return o.tell("syncdir", name, func() error { return o.FS.SyncDir(name) })
}

type observedFile struct {
	o    Observed
	f    durable.File
	name string
}

func (f observedFile) Write(b []byte) (n int, err error) {
	err = f.o.tell("write", f.name, func() error { n, err = f.f.Write(b); return err })
	return n, err
}

func (f observedFile) Chmod(perm fs.FileMode) error {
	return f.o.tell("fchmod", f.name, func() error { return f.f.Chmod(perm) })
}

func (f observedFile) Sync() error {
	return f.o.tell("fsync", f.name, f.f.Sync)
}

func (f observedFile) Close() error { return f.f.Close() }
