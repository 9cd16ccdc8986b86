package rpc

import (
	"context"
	"errors"

	"connectrpc.com/connect"
)

// Errors of this package, mapped by every chain.
var (
	// ErrNotListed refuses a procedure that the access table does not know.
	ErrNotListed = errors.New("this procedure is not served here")
	// ErrNoToken says that a call that needs a bearer token came without one.
	ErrNoToken = errors.New("a bearer token is required")
	// ErrWrongToken says that the bearer token is not the right one.
	ErrWrongToken = errors.New("the bearer token is wrong")
	// ErrTooManyTries says that wrong tokens came too fast; no token was
	// looked at.
	ErrTooManyTries = errors.New("too many wrong tokens: try again in a second")
)

// FieldError refuses a request for the value of one field. Its text goes to the
// client, so Reason must hold nothing that a client may not see.
type FieldError struct {
	// Field is the name of the field in the .proto file.
	Field string
	// Reason says what is wrong with its value.
	Reason string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Reason }

// Rule maps one kind of error to a code and the text that a client gets.
type Rule struct {
	lookup func(error) (connect.Code, string, bool)
}

// Is makes a rule for errors that are sentinel. The client gets text, or the
// sentinel's own text when text is empty.
func Is(sentinel error, code connect.Code, text string) Rule {
	if text == "" {
		text = sentinel.Error()
	}
	return Rule{func(err error) (connect.Code, string, bool) { return code, text, errors.Is(err, sentinel) }}
}

// As makes a rule for errors of type E. The client gets what text says of it.
func As[E error](code connect.Code, text func(E) string) Rule {
	return Coded(func(e E) (connect.Code, string) { return code, text(e) })
}

// Coded makes a rule for errors of type E that know their own code.
func Coded[E error](public func(E) (connect.Code, string)) Rule {
	return Rule{func(err error) (connect.Code, string, bool) {
		e, ok := errors.AsType[E](err)
		if !ok {
			return 0, "", false
		}
		code, text := public(e)
		return code, text, true
	}}
}

// Table maps errors to codes and public texts. The first rule that fits is
// taken. An error without a rule becomes an internal error whose cause stays in
// the log.
type Table []Rule

// Lookup returns the code and the public text for err; ok is false when no rule
// fits.
func (t Table) Lookup(err error) (code connect.Code, text string, ok bool) {
	for _, r := range t {
		if code, text, ok := r.lookup(err); ok {
			return code, text, true
		}
	}
	return connect.CodeInternal, "", false
}

// baseRules end every table.
func baseRules() Table {
	return Table{
		As(connect.CodeInvalidArgument, func(e *FieldError) string { return e.Error() }),
		Is(ErrNotListed, connect.CodeUnimplemented, ""),
		Is(ErrNoToken, connect.CodeUnauthenticated, ""),
		Is(ErrWrongToken, connect.CodeUnauthenticated, ""),
		Is(ErrTooManyTries, connect.CodeUnauthenticated, ""),
		Is(ErrBusy, connect.CodeResourceExhausted, ""),
		Is(context.Canceled, connect.CodeCanceled, "the call was canceled"),
		Is(context.DeadlineExceeded, connect.CodeDeadlineExceeded, "the call took too long"),
	}
}
