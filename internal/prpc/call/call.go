// Package call is the other side of package prpc: it calls methods the way
// existing dstack clients do, POST /prpc/Service.Method?json, and reads answers
// and errors of both generations (docs/wire.md#prpc).
package call

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"google.golang.org/protobuf/proto"

	"teekms/internal/prpc"
)

// MaxAnswer bounds an answer, in bytes: the record of a bootstrap, which
// GetMeta repeats, is the largest thing there is.
const MaxAnswer = 12 << 20

// Service is a service at some address.
type Service struct {
	// Base is where it is, as [ParseBase] returns it. Required.
	Base *url.URL
	// HTTP sends requests; it must not follow redirects. Required.
	HTTP *http.Client
	// Codec is that of the service. Required.
	Codec *prpc.Codec
	// Token is sent as bearer token where it is not empty.
	Token string
}

// Error is the refusal of a server.
type Error struct {
	// Method is what was called.
	Method string
	// Status is the HTTP status, such as 400.
	Status int
	// Text is what the server said, without surrounding space; empty when it
	// was not in the form of the dialect.
	Text string
}

func (e *Error) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("%s is answered with %d %s", e.Method, e.Status, http.StatusText(e.Status))
	}
	return fmt.Sprintf("%s is answered with: %s", e.Method, e.Text)
}

// Denial says whether this is a denial by policy, and returns the reason that
// was given. Everything on the way to the decision is left out.
func (e *Error) Denial() (reason string, denied bool) {
	for _, marker := range []string{"Boot denied", "KMS is not allowed"} {
		if _, rest, ok := strings.Cut(e.Text, marker); ok {
			return strings.TrimPrefix(rest, ": "), true
		}
	}
	// The image is not the one that it should be, unless it could not be had.
	if _, rest, ok := strings.Cut(e.Text, imageRefused); ok && !strings.Contains(rest, "not available") && !strings.Contains(rest, "download") {
		return imageRefused + rest, true
	}
	return "", false
}

const imageRefused = "Failed to verify os image hash"

// ParseBase reads the URL of a service: http or https, a host, and a path that
// may end in /prpc, which is cut off.
func ParseBase(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%q is not a URL", raw)
	}
	if (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%q is not of the form https://HOST[:PORT]", raw)
	}
	u.Path = strings.TrimSuffix(strings.TrimSuffix(u.Path, "/"), "/prpc")
	return u, nil
}

// Call calls a method, "Service.Method", and reads its answer into out. The
// error is an [*Error] when the server refuses.
func (s *Service) Call(ctx context.Context, method string, in, out proto.Message) error {
	body, err := s.Codec.Marshal(in)
	if err != nil {
		return fmt.Errorf("encoding the request: %w", err)
	}
	target := s.Base.JoinPath(prpc.Prefix, method)
	target.RawQuery = "json"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("making the request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	if s.Token != "" {
		req.Header.Set("Authorization", "Bearer "+s.Token)
	}
	answer, status, err := s.send(req)
	if err != nil {
		return fmt.Errorf("calling %s: %w", method, err)
	}
	if status != http.StatusOK {
		return &Error{Method: method, Status: status, Text: errorText(answer)}
	}
	if err := s.Codec.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("reading the answer of %s: %s", method, strings.TrimPrefix(err.Error(), "request body: "))
	}
	return nil
}

func (s *Service) send(req *http.Request) (answer []byte, status int, err error) {
	resp, err := s.HTTP.Do(req)
	if err != nil {
		// Its text begins with the verb and the whole URL.
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return nil, 0, err
	}
	defer resp.Body.Close() //nolint:errcheck // nothing was written
	answer, err = io.ReadAll(io.LimitReader(resp.Body, MaxAnswer+1))
	if err != nil {
		return nil, 0, fmt.Errorf("reading the answer: %w", err)
	}
	if len(answer) > MaxAnswer {
		return nil, 0, fmt.Errorf("the answer has more than %d bytes", MaxAnswer)
	}
	return answer, resp.StatusCode, nil
}

// errorText reads the text of an error answer and puts it on one line: older
// servers write a chain of causes as a paragraph.
func errorText(body []byte) string {
	var answer struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return ""
	}
	outer, causes, ok := strings.Cut(answer.Error, "\n\nCaused by:\n")
	if !ok {
		return strings.Join(strings.Fields(answer.Error), " ")
	}
	parts := []string{outer}
	for line := range strings.SplitSeq(causes, "\n") {
		line = strings.TrimSpace(line)
		if line == "" {
			break // a backtrace may follow
		}
		if number, text, ok := strings.Cut(line, ": "); ok && strings.Trim(number, "0123456789") == "" {
			line = text
		}
		parts = append(parts, line)
	}
	return strings.Join(strings.Fields(strings.Join(parts, ": ")), " ")
}
