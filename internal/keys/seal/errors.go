package seal

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNoOpener is returned by [NewSet] when none of the seals opens: what is
// sealed with them would be lost to this program.
var ErrNoOpener = errors.New("none of the seals can open: configure passphrase, tpm or guest_agent")

// ErrWrongPassphrase is the [Reason] of a passphrase that was there and does not
// open the file. Nothing tells it from a stanza that was changed.
var ErrWrongPassphrase = errors.New("wrong passphrase, or the file is damaged")

// WorkFactorError is the [Reason] of a passphrase that was not tried: to stretch
// it as the file says costs more than may be spent.
type WorkFactorError struct {
	// Factor is the file's, Limit the most that is read.
	Factor, Limit int
	// Raised says that Limit is more than the configuration allows
	// ([PassphraseConfig]).
	Raised bool
}

// Error names both.
func (e *WorkFactorError) Error() string {
	if e.Raised {
		return fmt.Sprintf("work factor %d is above the %d up to which files are read this time", e.Factor, e.Limit)
	}
	return fmt.Sprintf("work factor %d is above the %d that core.seal.passphrase.work_factor allows", e.Factor, e.Limit)
}

// FileError says that a file is not what it should be, so that no seal opens it:
// it is damaged, in the place of another, or of another sealing.
type FileError struct {
	// File is the name of the file.
	File string
	// Err says what is wrong with it.
	Err error
}

// Error names the file, then what is wrong.
func (e *FileError) Error() string { return "cannot open " + e.File + ": " + e.Err.Error() }

// Unwrap returns what is wrong.
func (e *FileError) Unwrap() error { return e.Err }

// SealingError says which seal cannot be sealed to.
type SealingError struct {
	Kind Kind
	// Recipients are those of an escrow that cannot be encrypted to, as text.
	Recipients []string
	// Err says why, and names the seal.
	Err error
}

// Error is that of Err.
func (e *SealingError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *SealingError) Unwrap() error { return e.Err }

// Reason says why one seal does not open a file.
type Reason struct {
	Kind Kind
	Err  error
}

// OpenError says that no seal opens a file, and for each why.
type OpenError struct {
	// File is the name of the file.
	File string
	// Reasons are in the order in which the seals were tried.
	Reasons []Reason
}

// Error names the file, then each seal with its reason.
func (e *OpenError) Error() string {
	parts := make([]string, 0, len(e.Reasons))
	for _, r := range e.Reasons {
		parts = append(parts, fmt.Sprintf("%s: %v", r.Kind, r.Err))
	}
	if len(parts) == 0 {
		parts = append(parts, "it has no seal")
	}
	return "cannot open " + e.File + ": " + strings.Join(parts, "; ")
}

// Unwrap returns the errors of all reasons.
func (e *OpenError) Unwrap() []error {
	errs := make([]error, 0, len(e.Reasons))
	for _, r := range e.Reasons {
		errs = append(errs, r.Err)
	}
	return errs
}

// refused is the error of a file that is not what it should be.
func refused(file, format string, args ...any) error {
	return &FileError{File: file, Err: fmt.Errorf(format, args...)}
}
