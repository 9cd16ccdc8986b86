package osimage

import (
	"errors"
	"fmt"
)

// Errors of a Verifier, to be told apart with errors.Is.
var (
	// ErrNotVerified says that the quote is not known to be of the image: the
	// image is unknown, or what describes it is invalid, or it does not match
	// the quote (then also a *MismatchError).
	ErrNotVerified = errors.New("OS image not verified")
	// ErrUnavailable says that the image could not be had now: the answer may
	// be another one later.
	ErrUnavailable = errors.New("OS image not available")
	// ErrCacheKey says that a key given to ClearCache names no entry.
	ErrCacheKey = errors.New("invalid cache key")
)

// MismatchError says which register of the quote is not that of the image. It
// is an ErrNotVerified.
type MismatchError struct {
	// Register is "MRTD", "RTMR0", "RTMR1" or "RTMR2".
	Register string
}

func (e *MismatchError) Error() string { return e.Register + " does not match" }

// Unwrap returns ErrNotVerified.
func (e *MismatchError) Unwrap() error { return ErrNotVerified }

func notVerified(err error) error { return fmt.Errorf("%w: %w", ErrNotVerified, err) }
