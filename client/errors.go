package client

import (
	"errors"
	"fmt"

	"teekms/internal/attest"
	"teekms/internal/prpc/call"
)

// ErrNoCollateral says that the Evidence of the KMS can be called neither good
// nor bad, because no valid collateral is to be had.
var ErrNoCollateral = attest.ErrNoCollateral

// DeniedError says that the KMS understood and refuses: the application, or the
// KMS itself, is not allowed.
type DeniedError struct {
	// Reason is what whoever decides gave as reason.
	Reason string
}

func (e *DeniedError) Error() string {
	if e.Reason == "" {
		return "denied by the KMS, without a reason"
	}
	return "denied by the KMS: " + e.Reason
}

// ServerError says that the KMS refuses for another reason than policy.
type ServerError struct {
	// Method is the name of the RPC.
	Method string
	// Message is what the KMS said, or the HTTP status where it said nothing.
	Message string
}

func (e *ServerError) Error() string {
	return fmt.Sprintf("%s: the KMS answers: %s", e.Method, e.Message)
}

// EvidenceError says that the KMS cannot be who it should be: its Evidence does
// not verify, there is none where there must be, or its certificate is not under
// the root that was given. It wraps [ErrNoCollateral] when that is the reason.
type EvidenceError struct {
	// Err is the cause.
	Err error
}

func (e *EvidenceError) Error() string { return "the KMS does not verify: " + e.Err.Error() }

func (e *EvidenceError) Unwrap() error { return e.Err }

// MismatchError says that the Evidence of the KMS verifies, and that the policy
// wants something else.
type MismatchError struct {
	// Err says what differs; it is the error of [Policy].Check where that
	// refused.
	Err error
}

func (e *MismatchError) Error() string { return "the KMS is not what was expected: " + e.Err.Error() }

func (e *MismatchError) Unwrap() error { return e.Err }

// refusal makes an error of the KMS one of this package.
func refusal(method string, err error) error {
	refused, ok := errors.AsType[*call.Error](err)
	if !ok {
		return err
	}
	if reason, denied := refused.Denial(); denied {
		return &DeniedError{Reason: reason}
	}
	message := refused.Text
	if message == "" {
		message = fmt.Sprintf("HTTP status %d", refused.Status)
	}
	return &ServerError{Method: method, Message: message}
}
