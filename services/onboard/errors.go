package onboard

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"connectrpc.com/connect"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/attest"
	"teekms/internal/authz"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
	"teekms/internal/rpc"
)

// ErrAlreadyBootstrapped is the answer to every bootstrap after the first.
var ErrAlreadyBootstrapped = keystore.ErrAlreadyBootstrapped

// ErrNotBootstrapped refuses Finish while there is nothing to finish.
var ErrNotBootstrapped = errors.New("not bootstrapped yet: there is nothing to finish")

// errNoQuotes refuses Onboard where this trust domain could not prove itself to
// its source.
var errNoQuotes = errors.New("onboarding from a peer needs quotes: core.onboard.quote_enabled is false")

// noAttesterText is what operators know this failure by.
const noAttesterText = "tappd socket not found"

// OwnQuoteError refuses to found a KMS on a quote that would not convince
// anybody later. Its text is for the caller.
type OwnQuoteError struct {
	// Err says what is wrong with the quote.
	Err error
}

func (e *OwnQuoteError) Error() string {
	return "the quote of this trust domain is refused: " + e.Err.Error()
}

func (e *OwnQuoteError) Unwrap() error { return e.Err }

// SourceError refuses a peer as the source of root keys, or what it answered.
// Its text is for the caller.
type SourceError struct {
	// Reason says what is wrong with the peer.
	Reason string
	// Err is the cause, for the log; it may be nil.
	Err error
}

// Error returns "source KMS refused: REASON".
func (e *SourceError) Error() string { return "source KMS refused: " + e.Reason }

func (e *SourceError) Unwrap() error { return e.Err }

// SelfDeniedError says that the authority does not let this trust domain be a
// KMS, or that it could not be described to it. Its text is for the caller.
type SelfDeniedError struct {
	// Reason is the authority's, or why it was not asked.
	Reason string
	// Err is the cause, nil for a denial.
	Err error
}

func (e *SelfDeniedError) Error() string { return "KMS is not allowed to bootstrap: " + e.Reason }

func (e *SelfDeniedError) Unwrap() error { return e.Err }

// SourceDeniedError says that the peer gives this trust domain no keys. Its text
// is for the caller.
type SourceDeniedError struct {
	// Reason is the peer's own.
	Reason string
	// Err is the cause, for the log; it may be nil.
	Err error
}

// Error returns "source KMS denied: REASON".
func (e *SourceDeniedError) Error() string { return "source KMS denied: " + e.Reason }

func (e *SourceDeniedError) Unwrap() error { return e.Err }

// SourceUnreachableError says that there is no connection to the peer, or no
// more. Its text is for the caller.
type SourceUnreachableError struct {
	// Reason is a word about why, without addresses.
	Reason string
	// Err is the cause, for the log; it may be nil.
	Err error
}

// Error returns "source KMS unreachable: REASON".
func (e *SourceUnreachableError) Error() string { return "source KMS unreachable: " + e.Reason }

func (e *SourceUnreachableError) Unwrap() error { return e.Err }

// Errors is the table from the errors of this service to what callers see.
func Errors() rpc.Table {
	return rpc.Table{
		rpc.Is(ErrAlreadyBootstrapped, connect.CodeAlreadyExists, ""),
		rpc.Is(ErrNotBootstrapped, connect.CodeFailedPrecondition, ""),
		rpc.Is(errNoQuotes, connect.CodeFailedPrecondition, ""),
		rpc.Is(errNoSourceEvidence, connect.CodeFailedPrecondition, ""),
		rpc.Is(attest.ErrNoAttester, connect.CodeFailedPrecondition, noAttesterText),
		rpc.As(connect.CodeFailedPrecondition, func(e *OwnQuoteError) string { return e.Error() }),
		rpc.As(connect.CodeFailedPrecondition, func(e *SourceError) string { return e.Error() }),
		rpc.As(connect.CodePermissionDenied, func(e *SourceDeniedError) string { return e.Error() }),
		rpc.As(connect.CodeUnavailable, func(e *SourceUnreachableError) string { return e.Error() }),
		rpc.As(connect.CodePermissionDenied, func(e *SelfDeniedError) string { return e.Error() }),
		rpc.Is(authz.ErrUnreachable, connect.CodeUnavailable, ""),
		rpc.Is(authz.ErrMalformed, connect.CodeUnavailable, ""),
		rpc.As(connect.CodeFailedPrecondition, func(e *keystore.PermissionError) string { return e.Error() }),
		rpc.As(connect.CodeFailedPrecondition, func(e *keystore.DomainFileError) string { return e.Error() }),
		rpc.Is(syscall.ENOSPC, connect.CodeResourceExhausted, "no space left for the key directory"),
		rpc.Is(syscall.EDQUOT, connect.CodeResourceExhausted, "the disk quota of the key directory is used up"),
		rpc.Is(syscall.EROFS, connect.CodeFailedPrecondition, "the key directory is on a read-only file system"),
	}
}

// Public returns what the command line says of err: the text that operators
// know it by, else all of it, paths and causes included.
func Public(err error) string {
	if e, ok := errors.AsType[*keystore.PermissionError](err); ok {
		return e.Error()
	}
	for _, known := range []struct {
		err  error
		text string
	}{
		{attest.ErrNoAttester, noAttesterText},
		{ErrAlreadyBootstrapped, ErrAlreadyBootstrapped.Error()},
	} {
		if errors.Is(err, known.err) {
			return known.text
		}
	}
	return err.Error()
}

// validate checks the shape of a request.
func validate(req *onboardv1.BootstrapRequest) error {
	if n := len(req.GetRequestId()); n > maxRequestID {
		return &rpc.FieldError{Field: "request_id", Reason: fmt.Sprintf("has %d bytes, at most %d are allowed", n, maxRequestID)}
	}
	if err := keys.ValidateDomain(req.GetDomain()); err != nil {
		return domainError(err)
	}
	return nil
}

// domainError makes a refusal of the field of what keys.ValidateDomain says.
func domainError(err error) error {
	return &rpc.FieldError{Field: "domain", Reason: strings.TrimPrefix(err.Error(), "domain: ")}
}
