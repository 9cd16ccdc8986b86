package onchain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/ethereum/go-ethereum/rpc"

	"teekms/internal/authz"
)

// bounded is a transport that cuts answers at MaxAnswerSize.
type bounded struct{ *http.Transport }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	// The header is not sent as it has no value: it tells net/http that a
	// question, which is all this client asks, may go again over a new
	// connection when a kept one was closed under it.
	req = req.Clone(req.Context())
	req.Header["Idempotency-Key"] = nil
	resp, err := b.Transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = &boundedBody{ReadCloser: resp.Body, left: MaxAnswerSize}
	return resp, nil
}

type boundedBody struct {
	io.ReadCloser
	left int
}

// Read implements io.Reader; what is left over at the bound is an error, since
// a cut answer may look like a whole one.
func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("%w: more than %d bytes", authz.ErrMalformed, MaxAnswerSize)
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// codeReverted is the JSON-RPC error code of a call that the contract refused.
const codeReverted = 3

// callError tells what a failed call of the node means.
func callError(ctx context.Context, err error) error {
	var status rpc.HTTPError
	if errors.As(err, &status) {
		return authz.StatusError(status.StatusCode)
	}
	var answer rpc.Error
	if errors.As(err, &answer) {
		text := authz.PublicReason(answer.Error())
		if answer.ErrorCode() == codeReverted {
			return fmt.Errorf("%w: the contract reverted: %s", authz.ErrMalformed, text)
		}
		// The node is in no state to answer, or not of a kind that can.
		return fmt.Errorf("%w: node answers error %d: %s", authz.ErrUnreachable, answer.ErrorCode(), text)
	}
	if ctx.Err() != nil || isTransport(err) {
		return authz.TransportError(ctx, err)
	}
	// What is left is an answer that is none: no JSON, no result, another type.
	if errors.Is(err, authz.ErrMalformed) {
		return err
	}
	return fmt.Errorf("%w: %w", authz.ErrMalformed, err)
}

// isTransport says whether err is of the connection and not of what came over
// it.
func isTransport(err error) bool {
	var request *url.Error
	var network net.Error
	return errors.As(err, &request) || errors.As(err, &network)
}
