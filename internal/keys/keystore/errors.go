package keystore

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
)

// ErrAlreadyBootstrapped says that the directory has root keys. Its text is
// what an operator is shown.
//
//nolint:staticcheck // the text is part of the interface, capital included
var ErrAlreadyBootstrapped = errors.New("Bootstrap already completed")

// ErrSealed says that the private files are sealed and nothing was configured to
// open them with.
var ErrSealed = errors.New("the private keys are sealed: configure core.seal with one of the seals they have (kmsctl seal status tells which)")

// ErrNotSealed says that the private files are plain though they are to be
// sealed.
var ErrNotSealed = errors.New("the private keys are not sealed, but core.seal is configured: run kmsctl seal add")

// ErrNotWiped says that everything was written, but that the old private files
// could not be overwritten or removed: they stay in the stage, and every opening
// tries again.
var ErrNotWiped = errors.New("the old private keys are still on the disk")

// DomainFileError says that rpc-domain, which another KMS left behind, names
// another domain than the one that is to be bootstrapped.
type DomainFileError struct {
	// Path is the file, Domain the name that was asked for.
	Path, Domain string
}

func (e *DomainFileError) Error() string {
	return fmt.Sprintf("%s names another domain than %s: remove it first", e.Path, e.Domain)
}

// errChanged says that the private files are not those that were opened: another
// process sealed them anew, or somebody replaced them.
var errChanged = errors.New("was written by another process since it was opened; nothing was changed: try again")

// errForeignRoots says that the directory on disk is no longer the one that was
// opened.
var errForeignRoots = errors.New("holds other keys than when it was opened")

// listError says that the key directory itself could not be listed, or that a link
// is in the place of the stage: whether there is one is not known.
type listError struct{ error }

func (e listError) Unwrap() error { return e.error }

// PermissionError says that the operating system denied access to a file of the
// key directory. Path is the file's final path, wherever in making it the
// denial came.
type PermissionError struct {
	// Path is the file's path in the key directory, or the directory's own.
	Path string
	// Err is what the operating system said.
	Err error
}

// Error returns "Permission denied: PATH".
func (e *PermissionError) Error() string { return "Permission denied: " + e.Path }

// Unwrap returns what the operating system said.
func (e *PermissionError) Unwrap() error { return e.Err }

// pathError names the final path of a file in place of whatever path the
// failing call had.
func pathError(activity, path string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return &PermissionError{Path: path, Err: err}
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return fmt.Errorf("%s %s: %w", activity, path, errno)
	}
	return fmt.Errorf("%s %s: %w", activity, path, err)
}

func (s *Store) writeError(name string, err error) error {
	return pathError("writing", s.path(name), err)
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }
