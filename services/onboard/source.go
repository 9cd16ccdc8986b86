package onboard

import (
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
	"sync/atomic"
	"syscall"
	"time"

	"teekms/internal/authz"
)

const (
	// dialTime bounds the making of the connection to a peer.
	dialTime = 10 * time.Second
	// maxKeyAnswer bounds the answer of GetKmsKey, in bytes: three keys.
	maxKeyAnswer = 64 << 10
	// maxMetaAnswer bounds that of GetMeta: a quote and an event log in hex.
	maxMetaAnswer = 4 << 20
)

// errSecondConnection refuses to leave the connection whose key was appraised.
var errSecondConnection = errors.New("the source closed the connection before it had answered everything")

// source is one connection to a peer KMS, whose key was appraised in the
// handshake. Nothing is asked of the peer on another one: what the Evidence of
// one connection says holds for no other.
type source struct {
	base   string
	conn   *tls.Conn
	client *http.Client
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
	return newSource(u, conn), nil
}

// newSource makes an HTTP client that has this connection and no other.
func newSource(u *url.URL, conn *tls.Conn) *source {
	var taken atomic.Bool
	dial := func(context.Context, string, string) (net.Conn, error) {
		if taken.Swap(true) {
			return nil, errSecondConnection
		}
		return conn, nil
	}
	return &source{base: u.String(), conn: conn, client: &http.Client{
		Transport: &http.Transport{
			DialTLSContext: dial, MaxConnsPerHost: 1, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close ends the connection.
func (s *source) Close() {
	s.client.CloseIdleConnections()
	_ = s.conn.Close() // nothing more is wanted of it
}

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
	resp, err := s.client.Do(req)
	if err != nil {
		return callError(method, err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was read to its end, or is given up
	text, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return callError(method, err)
	case int64(len(text)) > limit:
		return &SourceError{Reason: fmt.Sprintf("its answer to %s is larger than %d bytes", method, limit)}
	case resp.StatusCode != http.StatusOK:
		return refusal(method, resp, text)
	}
	if json.Unmarshal(text, answer) != nil {
		return &SourceError{Reason: "its answer to " + method + " is not what a KMS answers"}
	}
	return nil
}

// refusal reads the error of prpc: 400 and {"error": "..."}.
func refusal(method string, resp *http.Response, text []byte) error {
	var refused struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(text, &refused) != nil || refused.Error == "" {
		return &SourceError{Reason: fmt.Sprintf("it answered %s with status %d", method, resp.StatusCode)}
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
	case errors.Is(err, errSecondConnection):
		return errSecondConnection.Error()
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
