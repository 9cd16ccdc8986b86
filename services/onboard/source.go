package onboard

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"teekms/internal/authz"
)

const (
	// dialTime bounds the making of the connection to a peer.
	dialTime = 10 * time.Second
	// maxKeyAnswer bounds the answer of GetKmsKey, in bytes: three keys.
	maxKeyAnswer = 64 << 10
	// maxHeader bounds the header of an answer.
	maxHeader = 64 << 10
	// maxMetaAnswer bounds that of GetMeta: a quote and an event log in hex.
	maxMetaAnswer = 4 << 20
)

// errConnectionClosed ends the asking: there is no second connection.
var errConnectionClosed = errors.New("it closed the connection before it had answered everything")

// source is one connection to a peer KMS, whose key was appraised in the
// handshake. Nothing is asked of the peer on another one, so there is no
// http.Client here, which would make one whenever it likes: what the Evidence of
// one connection says holds for no other.
type source struct {
	base   string
	conn   *tls.Conn
	limit  *io.LimitedReader // of what is read for one answer
	reader *bufio.Reader     // over limit
	closed bool              // by the peer, once it has answered
}

// dialSource connects and shakes hands. tlsConfig decides whether the peer is
// acceptable.
func dialSource(ctx context.Context, u *url.URL, tlsConfig *tls.Config) (*source, error) {
	dialer := net.Dialer{Timeout: dialTime}
	raw, err := dialer.DialContext(ctx, "tcp", hostPort(u))
	if err != nil {
		return nil, &SourceUnreachableError{Reason: unreachable(err), Err: err}
	}
	conn := tls.Client(raw, tlsConfig)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close() // the handshake has failed already
		return nil, handshakeError(err)
	}
	limit := &io.LimitedReader{R: conn}
	return &source{base: u.String(), conn: conn, limit: limit, reader: bufio.NewReader(limit)}, nil
}

// Close ends the connection.
func (s *source) Close() { _ = s.conn.Close() } // nothing more is wanted of it

// call asks for one procedure, in the JSON of prpc (docs/wire.md#prpc). The
// answer may hold keys: what goes wrong with it is never quoted.
func (s *source) call(ctx context.Context, method string, request, answer any, limit int64) error {
	body, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", method, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.base+"/"+method+"?json", bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("asking for %s: %w", method, err)
	}
	req.Header.Set("Content-Type", "application/json")
	status, text, err := s.exchange(req, limit)
	switch {
	case err != nil:
		return callError(method, err)
	case int64(len(text)) > limit:
		return &SourceError{Reason: fmt.Sprintf("its answer to %s is larger than %d bytes", method, limit)}
	case status != http.StatusOK:
		return refusal(method, status, text)
	}
	if json.Unmarshal(text, answer) != nil {
		return &SourceError{Reason: "its answer to " + method + " is not what a KMS answers"}
	}
	return nil
}

// exchange sends a request and reads its answer, within the request's context.
// Of a body that is larger than limit it returns limit+1 bytes.
func (s *source) exchange(req *http.Request, limit int64) (status int, body []byte, err error) {
	if s.closed {
		return 0, nil, errConnectionClosed
	}
	ctx := req.Context()
	defer context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })() // ends what blocks below
	if err := req.Write(s.conn); err != nil {
		return 0, nil, err
	}
	// Header, body, and what chunks add to it.
	s.limit.N = maxHeader + 2*limit
	resp, err := http.ReadResponse(s.reader, req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read to its end, or is given up
	s.closed = resp.Close
	body, err = io.ReadAll(io.LimitReader(resp.Body, limit+1))
	return resp.StatusCode, body, err
}

// refusal reads the error of prpc: 400 and {"error": "..."}.
func refusal(method string, status int, text []byte) error {
	var refused struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(text, &refused) != nil || refused.Error == "" {
		return &SourceError{Reason: fmt.Sprintf("it answered %s with status %d", method, status)}
	}
	return &SourceDeniedError{Reason: authz.PublicReason(refused.Error)}
}

// unreachable says in a few words why there is no connection: the caller may be
// a stranger, who need not learn how this network looks.
func unreachable(err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return "its name does not resolve"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the connection was refused"
	case timedOut(err):
		return "it does not answer in time"
	case errors.Is(err, errConnectionClosed), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errConnectionClosed.Error()
	default:
		return "the connection failed"
	}
}

func timedOut(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return errors.Is(err, context.DeadlineExceeded) || ok && timeout.Timeout()
}

// callError tells apart a peer that is gone and one that refuses this side's
// certificate, which in TLS 1.3 shows with the first answer.
func callError(method string, err error) error {
	if alert, ok := remoteAlert(err); ok {
		return &SourceDeniedError{Reason: alert, Err: err}
	}
	return &SourceUnreachableError{Reason: unreachable(err), Err: fmt.Errorf("asking for %s: %w", method, err)}
}

// remoteAlert returns what a TLS peer said on ending a connection.
func remoteAlert(err error) (string, bool) {
	alert, ok := errors.AsType[*net.OpError](err)
	if !ok || alert.Op != "remote error" {
		return "", false
	}
	return alert.Err.Error(), true
}

// hexBytes are bytes in the JSON of prpc, with or without 0x.
type hexBytes []byte

// UnmarshalText implements encoding.TextUnmarshaler. The error does not quote
// the text, which may be a key.
func (h *hexBytes) UnmarshalText(text []byte) error {
	decoded := make([]byte, hex.DecodedLen(len(text)))
	n, err := hex.Decode(decoded, bytes.TrimPrefix(text, []byte("0x")))
	if err != nil {
		return errors.New("not hex")
	}
	*h = decoded[:n]
	return nil
}
