// Package status holds the exit codes of kmsctl and the error that carries one.
package status

import "errors"

// The exit codes (docs/kmsctl.md#exit-codes).
const (
	// OK says that all was done, and that Evidence verifies as expected.
	OK = 0
	// Failed is an error of the tool's surroundings: a file, a network.
	Failed = 1
	// Usage is a command line that means nothing.
	Usage = 2
	// Denied says that a KMS understood and refuses by policy.
	Denied = 3
	// NotVerified says that Evidence does not verify, or that there is none.
	NotVerified = 4
	// Unexpected says that Evidence verifies and is not what was expected.
	Unexpected = 5
	// NoCollateral says that nothing can be told about the Evidence, because
	// no valid collateral is to be had.
	NoCollateral = 6
)

// Error is an error that ends the tool with a code of its own.
type Error struct {
	// Code is the exit code.
	Code int
	// Err is the cause.
	Err error
}

func (e *Error) Error() string { return e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// WithCode returns err with an exit code, nil for nil.
func WithCode(code int, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Code: code, Err: err}
}

// Of returns the exit code of err: that of an [Error] in it, else [Failed].
func Of(err error) int {
	if err == nil {
		return OK
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return Failed
}
