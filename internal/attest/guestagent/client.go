package guestagent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// Bounds of an answer. A real one has about 40 KB.
const (
	maxBody   = 8 << 20
	maxHeader = 64 << 10
	// maxShown is how much of a refusal's text goes into our error.
	maxShown = 200
)

// StatusError is an answer of an agent other than 200.
type StatusError struct {
	// Method is what was asked, such as "GetQuote".
	Method string
	// Status is the HTTP status.
	Status int
	// Text is the beginning of what the agent said.
	Text string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%s: status %d: %q", e.Method, e.Status, e.Text)
}

// client speaks HTTP/1.1 with JSON to one endpoint, a connection per call:
// quotes are rare, and a kept connection outlives an agent's restart badly.
type client struct{ endpoint }

// call posts a request to a method and returns the body of a good answer.
func (c client) call(ctx context.Context, method string, request any) ([]byte, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("%s: encoding the request: %w", method, err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url(method), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s: making the request: %w", method, err)
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := c.http().Do(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", method, plain(err))
	}
	defer func() { _ = resp.Body.Close() }()
	limit := int64(maxBody)
	if resp.StatusCode != http.StatusOK {
		limit = maxShown
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: reading the answer: %w", method, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &StatusError{Method: method, Status: resp.StatusCode, Text: strings.ToValidUTF8(string(b[:min(len(b), maxShown)]), "?")}
	}
	if len(b) > maxBody {
		return nil, fmt.Errorf("%s: answer of more than %d bytes", method, maxBody)
	}
	return b, nil
}

// plain leaves out of an error of [http.Client.Do] the URL, in which the agent has
// no name, and the address, which [Agent.each] says.
func plain(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return dialError{op}
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the connection ended without an answer: %w", err)
	}
	return err
}

// dialError says that nobody answers at an address.
type dialError struct{ op *net.OpError }

func (e dialError) Error() string { return "cannot connect: " + e.op.Err.Error() }
func (e dialError) Unwrap() error { return e.op }

func decode(body []byte, answer any) error {
	if err := json.Unmarshal(body, answer); err != nil {
		return fmt.Errorf("reading the answer: %w", errNotJSON(err))
	}
	return nil
}

// errNotJSON keeps the position or the field and drops the rest, which would
// name our own types.
func errNotJSON(err error) error {
	if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("field %q has type %s", t.Field, t.Value)
	}
	return errors.New("not the JSON that was expected")
}

func (c client) url(method string) string {
	host := c.address
	if c.network == "unix" {
		host = "localhost"
	}
	if c.tappd {
		return "http://" + host + "/prpc/Tappd." + method + "?json"
	}
	return "http://" + host + "/" + method + "?json"
}

func (c client) http() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, c.network, c.address)
			},
			DisableKeepAlives:      true,
			DisableCompression:     true, // or the bound of the body would not be one
			MaxResponseHeaderBytes: maxHeader,
		},
		// An agent that sends us elsewhere is not the agent.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
