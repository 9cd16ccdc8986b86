package authz

import (
	"context"
	"errors"
)

// The results that [Instrument] counts.
const (
	ResultAllowed     = "allowed"
	ResultDenied      = "denied"
	ResultUnreachable = "unreachable"
	ResultMalformed   = "malformed"
	// ResultCanceled is a caller that went away before the answer.
	ResultCanceled = "canceled"
)

// Instrument returns an Authorizer that calls count with one of the Result
// constants after each decision of a. count must not block.
func Instrument(a Authorizer, count func(result string)) Authorizer {
	return &instrumented{Authorizer: a, count: count}
}

type instrumented struct {
	Authorizer
	count func(string)
}

func (i *instrumented) Authorize(ctx context.Context, r Request) (Decision, error) {
	d, err := i.Authorizer.Authorize(ctx, r)
	i.count(result(d, err))
	return d, err
}

func result(d Decision, err error) string {
	switch {
	case errors.Is(err, context.Canceled):
		return ResultCanceled
	case errors.Is(err, ErrMalformed):
		return ResultMalformed
	case err != nil:
		return ResultUnreachable
	case d.Allowed:
		return ResultAllowed
	default:
		return ResultDenied
	}
}
