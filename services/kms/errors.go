package kms

import (
	"errors"

	"connectrpc.com/connect"

	"teekms/internal/attest"
	"teekms/internal/authz"
	"teekms/internal/osimage"
	"teekms/internal/ratls"
	"teekms/internal/rpc"
)

// refusal is an error whose text is for the caller. Its cause is for the log
// alone.
type refusal struct {
	code  connect.Code
	text  string
	cause error
}

func (e *refusal) Error() string {
	if e.cause == nil {
		return e.text
	}
	return e.text + ": " + e.cause.Error()
}

func (e *refusal) Unwrap() error { return e.cause }

// errNoAttestation refuses a caller that proved nothing.
var errNoAttestation = errors.New("No attestation provided") //nolint:staticcheck // existing clients know this text

// Errors maps the errors of the service. Texts are those that existing clients
// and operators know (docs/wire.md#release).
func Errors() rpc.Table {
	return rpc.Table{
		rpc.Coded(func(e *refusal) (connect.Code, string) { return e.code, e.text }),
		rpc.Is(errNoAttestation, connect.CodePermissionDenied, ""),
		rpc.Is(authz.ErrUnreachable, connect.CodeUnavailable, ""),
		rpc.Is(authz.ErrMalformed, connect.CodeUnavailable, ""),
		rpc.As(connect.CodePermissionDenied, func(e *ratls.InvalidError) string { return e.Error() }),
		rpc.Is(ratls.ErrNoCertificate, connect.CodePermissionDenied, ""),
		rpc.Is(ratls.ErrLimited, connect.CodeResourceExhausted, ""),
		rpc.Is(attest.ErrNoCollateral, connect.CodeUnavailable, "no collateral to be had"),
	}
}

// denied is a refusal by policy.
func denied(text string, cause error) *refusal {
	return &refusal{code: connect.CodePermissionDenied, text: text, cause: cause}
}

// invalid is a refusal of what the request says.
func invalid(text string, cause error) *refusal {
	return &refusal{code: connect.CodeInvalidArgument, text: text, cause: cause}
}

// within puts what was being done before the text of a refusal, on the same
// line. Other errors have fixed texts and stay as they are.
func within(what string, err error) error {
	r, ok := errors.AsType[*refusal](err)
	if !ok {
		return err
	}
	return &refusal{code: r.code, text: what + ": " + r.text, cause: r.cause}
}

// imageRefusal tells which register is not that of the image. What else was
// wrong names files and addresses of the operator's, and stays in the log.
func imageRefusal(err error) error {
	const what = "Failed to verify os image hash"
	if mismatch, ok := errors.AsType[*osimage.MismatchError](err); ok {
		return denied(what+": "+mismatch.Error(), err)
	}
	switch {
	case errors.Is(err, osimage.ErrNotVerified):
		return denied(what+": "+osimage.ErrNotVerified.Error(), err)
	case errors.Is(err, osimage.ErrUnavailable):
		return &refusal{code: connect.CodeUnavailable, text: what + ": " + osimage.ErrUnavailable.Error(), cause: err}
	default:
		return err
	}
}

// describeRefusal tells why no authority can be asked about a workload.
func describeRefusal(err error) error {
	for _, known := range []error{authz.ErrAppID, authz.ErrVMConfig} {
		if errors.Is(err, known) {
			return denied(known.Error(), err)
		}
	}
	return denied("the event log does not say what the workload is", err)
}
