package ratls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// defaultMaxAge is how long an appraisal counts on a connection that stays open.
const defaultMaxAge = time.Hour

// ServerConfig says how a [Server] works.
type ServerConfig struct {
	// Appraiser appraises the peers. Required.
	Appraiser *Appraiser
	// Certificates gives the server's certificate, as tls.Config.GetCertificate
	// does. Required where [Server.TLSConfig] is used.
	Certificates func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Mandatory refuses clients without a certificate. It asks for no
	// Evidence.
	Mandatory bool
	// MaxAge is how long an appraisal counts on a connection that stays open;
	// after it the next call appraises again. 0 means one hour.
	MaxAge time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Server attests the peers of a listener. It may be used from several
// goroutines.
type Server struct{ cfg ServerConfig }

// NewServer makes a Server.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Appraiser == nil {
		return nil, errors.New("making an RA-TLS server: no appraiser")
	}
	if cfg.MaxAge <= 0 {
		cfg.MaxAge = defaultMaxAge
	}
	if cfg.Now == nil {
		cfg.Now = time.Now //nolint:forbidigo // the documented default of an optional clock
	}
	return &Server{cfg: cfg}, nil
}

// TLSConfig returns the configuration of the listener: TLS 1.3, no resumption, a
// client certificate is asked for, and whatever key it has the client proves to
// hold it. Nobody's signature on it counts: [Server.Admit] judges it by its Evidence.
func (s *Server) TLSConfig() *tls.Config {
	auth := tls.RequestClientCert
	if s.cfg.Mandatory {
		auth = tls.RequireAnyClientCert
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		ClientAuth:     auth,
		GetCertificate: s.cfg.Certificates,
		// A ticket would hold the client's certificate, 10 KiB and more, and come
		// back in a ClientHello too large for proxies that look for the server
		// name in it. It would save one signature: a resumed session is another
		// connection, to be appraised anew.
		SessionTicketsDisabled: true,
		// Unlike VerifyPeerCertificate it would run for resumed sessions too.
		VerifyConnection: func(cs tls.ConnectionState) error { return checkChain(cs.PeerCertificates) },
	}
}

// checkChain bounds what is kept of a peer. Only the first certificate is ever
// looked at by a server.
func checkChain(chain []*x509.Certificate) error {
	if len(chain) > MaxChain {
		return fmt.Errorf("chain of %d certificates, want at most %d", len(chain), MaxChain)
	}
	size := 0
	for _, c := range chain {
		if len(c.Raw) > MaxCertificateSize {
			return fmt.Errorf("certificate of %d bytes, want at most %d", len(c.Raw), MaxCertificateSize)
		}
		size += len(c.Raw)
	}
	if size > MaxChainSize {
		return fmt.Errorf("chain of %d bytes, want at most %d", size, MaxChainSize)
	}
	return nil
}

// connection is what is known of the peer of one connection.
type connection struct {
	conn   *tls.Conn // nil without TLS
	remote netip.Addr

	mu sync.Mutex
	// inFlight is closed when the appraisal under way ends, nil without one;
	// guarded by mu.
	inFlight chan struct{}
	// last is how the last appraisal that says something of the peer went;
	// guarded by mu.
	last *appraisal
}

// appraisal is what a call is told: a peer, or none and no error for a
// certificate without Evidence, or an error.
type appraisal struct {
	peer *Attested
	err  error
	at   time.Time
}

type connKey struct{}

// ConnContext is http.Server.ConnContext: it lets [Server.Admit] find the
// connection that a call came on.
func (s *Server) ConnContext(ctx context.Context, c net.Conn) context.Context {
	conn := &connection{}
	conn.conn, _ = c.(*tls.Conn)
	if addr, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		conn.remote = addr.Addr()
	}
	return context.WithValue(ctx, connKey{}, conn)
}

var errNoConnection = errors.New("admitting a call: its connection is not known")

// Admit is called once for each RPC. The first call on a connection appraises
// the certificate of the client, within ctx; calls that come meanwhile wait, each
// as long as its own ctx allows, and later ones get the same answer. [PeerFrom]
// tells of the returned context who the peer is: nobody without a certificate
// or without Evidence in it. Evidence that does not hold is an [*InvalidError]
// for every call of the connection. An appraisal that could not be finished
// fails this call and says nothing to the next, which tries again.
func (s *Server) Admit(ctx context.Context) (context.Context, error) {
	c, ok := ctx.Value(connKey{}).(*connection)
	if !ok {
		return nil, errNoConnection
	}
	leaf := c.leaf()
	if leaf == nil {
		if s.cfg.Mandatory {
			return nil, ErrNoCertificate
		}
		return ctx, nil
	}
	peer, err := s.admit(ctx, c, leaf)
	if err != nil {
		return nil, err
	}
	if peer == nil {
		return ctx, nil
	}
	return context.WithValue(ctx, peerKey{}, peer), nil
}

// leaf returns the certificate of the client, nil without one.
func (c *connection) leaf() *x509.Certificate {
	if c.conn == nil {
		return nil
	}
	if chain := c.conn.ConnectionState().PeerCertificates; len(chain) > 0 {
		return chain[0]
	}
	return nil
}

func (s *Server) admit(ctx context.Context, c *connection, leaf *x509.Certificate) (*Attested, error) {
	for {
		c.mu.Lock()
		if a := c.last; a != nil && s.cfg.Now().Sub(a.at) < s.cfg.MaxAge {
			c.mu.Unlock()
			return a.peer, a.err
		}
		wait := c.inFlight
		if wait == nil {
			c.inFlight = make(chan struct{})
			c.mu.Unlock()
			return s.appraise(ctx, c, leaf)
		}
		c.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for an appraisal: %w", ctx.Err())
		}
	}
}

// appraise is run by the one caller that has marked c as in flight.
func (s *Server) appraise(ctx context.Context, c *connection, leaf *x509.Certificate) (*Attested, error) {
	var last *appraisal // stays nil for what says nothing of the peer
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.last = last
		close(c.inFlight)
		c.inFlight = nil
	}()
	peer, err := s.cfg.Appraiser.AppraiseCertificate(ctx, leaf)
	if _, invalid := errors.AsType[*InvalidError](err); err == nil || invalid {
		last = &appraisal{peer: peer, err: err, at: s.cfg.Now()}
	}
	return peer, err
}
