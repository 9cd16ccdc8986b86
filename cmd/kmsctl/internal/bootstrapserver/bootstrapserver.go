// Package bootstrapserver speaks to a configuration bootstrap server
// (docs/configuration.md): it knows whom it speaks to before a byte of the
// configuration is written, on every connection, and posts the configuration
// over it.
package bootstrapserver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"teekms/cmd/kmsctl/internal/status"
	"teekms/internal/keys"
	"teekms/internal/ratls"
)

// Config says which server is meant and how it is known.
type Config struct {
	// URL is where the server is, as [ParseURL] returns it. Required.
	URL *url.URL
	// Identity says how the server is known. Required.
	Identity Identity
	// Token is sent as bearer token where it is not empty.
	Token keys.Secret
	// Certificate is presented to the server where it asks; nil means none.
	Certificate *tls.Certificate
	// Timeout bounds the verification within a handshake. Required.
	Timeout time.Duration
	// Now is the clock. Required.
	Now func() time.Time
}

// Client is a connection to a server that was verified. Make it with [Dial], end
// it with [Client.Close]. It is for one goroutine.
type Client struct {
	cfg       Config
	appraiser *ratls.Appraiser
	http      *http.Client
	transport *http.Transport

	mu sync.Mutex // guards what follows: connections are made by the transport
	// first is the connection that Dial made, until the first call takes it.
	first *tls.Conn
	// met is the key of the server that was verified first, DER
	// SubjectPublicKeyInfo. Every other connection must be to the same.
	met  []byte
	peer *Peer
}

// ParseURL reads the URL of a server: https, a host, maybe a port, nothing else.
func ParseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	// What is wrong may hold a password, so it is not repeated.
	if err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return nil, errors.New("not of the form https://HOST[:PORT]")
	}
	if u.Scheme != "https" {
		return nil, errors.New("a bootstrap server is reached by https:// alone")
	}
	u.Path = ""
	return u, nil
}

// Dial connects and verifies the server. Nothing has been sent when it returns.
// An error carries the exit code of what did not hold (package status).
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	c := &Client{cfg: cfg}
	if err := c.prepare(); err != nil {
		return nil, err
	}
	conn, err := c.handshake(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", cfg.URL.Host, err)
	}
	c.first = conn
	return c, nil
}

func (c *Client) prepare() error {
	if err := c.cfg.Identity.check(); err != nil {
		return err
	}
	if !c.cfg.Identity.NoAttestation {
		var err error
		if c.appraiser, err = c.cfg.Identity.appraiser(c.cfg.Now); err != nil {
			return err
		}
	}
	c.transport = &http.Transport{
		// No proxy of the environment: a detour for secrets is nobody's surprise.
		DialTLSContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return c.connection(ctx) },
		MaxConnsPerHost:        1,
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true,
	}
	c.http = &http.Client{
		Transport: c.transport,
		// Another place is another server.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return nil
}

// Close ends the connection.
func (c *Client) Close() {
	c.mu.Lock()
	if c.first != nil {
		_ = c.first.Close() // nothing was sent
		c.first = nil
	}
	c.mu.Unlock()
	c.transport.CloseIdleConnections()
}

// Peer returns what is known of the server.
func (c *Client) Peer() *Peer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peer
}

// connection gives the transport the connection that Dial made, or a new one.
func (c *Client) connection(ctx context.Context) (net.Conn, error) {
	c.mu.Lock()
	first := c.first
	c.first = nil
	c.mu.Unlock()
	if first != nil {
		return first, nil
	}
	return c.handshake(ctx)
}

// handshake connects, and verifies the server before it returns.
func (c *Client) handshake(ctx context.Context) (*tls.Conn, error) {
	port := c.cfg.URL.Port()
	if port == "" {
		port = "443"
	}
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", net.JoinHostPort(c.cfg.URL.Hostname(), port))
	if err != nil {
		return nil, err
	}
	verified := false
	conn := tls.Client(raw, c.tlsConfig(&verified))
	err = conn.HandshakeContext(ctx)
	if err == nil {
		return conn, nil
	}
	_ = raw.Close() // it was of no use
	// The certificate is looked at before its key is proved.
	if _, network := errors.AsType[net.Error](err); verified && !network && ctx.Err() == nil {
		err = status.WithCode(status.NotVerified, fmt.Errorf("the server does not prove that the certificate it shows is its own: %w", err))
	}
	return nil, err
}

func (c *Client) tlsConfig(verified *bool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
		ServerName: c.cfg.URL.Hostname(), // for SNI alone
		Time:       c.cfg.Now,
		// Replaced, not skipped: see verify. No server of this kind has a
		// certificate that an authority signed.
		InsecureSkipVerify:     true, //nolint:gosec // verify does what is asked for
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			err := c.verify(cs.PeerCertificates)
			*verified = err == nil
			return err
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if c.cfg.Certificate == nil {
				return new(tls.Certificate), nil
			}
			return c.cfg.Certificate, nil
		},
	}
}

// remember keeps who was verified first.
func (c *Client) remember(leaf *x509.Certificate, peer *Peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.met == nil {
		c.met, c.peer = leaf.RawSubjectPublicKeyInfo, peer
	}
}
