package authz

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

// StatusError tells what an HTTP status that is no success means: that there is
// no answer now (5xx, 408, 429: [ErrUnreachable]), or that the answer is no
// decision (all others, redirects too, which are never followed:
// [ErrMalformed]).
func StatusError(status int) error {
	kind := ErrMalformed
	if status >= http.StatusInternalServerError || status == http.StatusRequestTimeout || status == http.StatusTooManyRequests {
		kind = ErrUnreachable
	}
	return fmt.Errorf("%w: HTTP status %d", kind, status)
}

// TransportError wraps the failure of a request as [ErrUnreachable], unless it
// is [ErrMalformed] already. It leaves the URL out, which may hold a
// credential, and makes ctx's end visible to errors.Is.
func TransportError(ctx context.Context, err error) error {
	if errors.Is(err, ErrMalformed) {
		return withoutURL(err)
	}
	err = withoutURL(err)
	if cause := ctx.Err(); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w: %w", ErrUnreachable, cause, err)
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

func withoutURL(err error) error {
	var e *url.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}
