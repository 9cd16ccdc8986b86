package seal

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNoOpener is returned by [NewSet] when none of the seals opens: what is
// sealed with them would be lost to this program.
var ErrNoOpener = errors.New("none of the seals can open: configure passphrase, tpm or guest_agent")

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
	return fmt.Errorf("cannot open %s: %w", file, fmt.Errorf(format, args...))
}
