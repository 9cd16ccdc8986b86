package ratls

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// defaultTimeout bounds the appraisal of a server within a handshake.
const defaultTimeout = 30 * time.Second

// ClientConfig says whom a client talks to. It must identify the server: by
// Roots, by PinnedKey, or by RequireEvidence with a policy.
type ClientConfig struct {
	// Roots are what the server's chain must lead to; nil means that no chain
	// is looked at.
	Roots *x509.CertPool
	// PinnedKey is the DER SubjectPublicKeyInfo that the server must have; nil
	// means any.
	PinnedKey []byte
	// ServerName is the name that the server's certificate must have; "" means
	// any. It needs Roots.
	ServerName string
	// Usage is the special usage that it must have, as keys.UsageRPC; "" means
	// any.
	Usage string
	// Appraiser verifies the server's Evidence. Required.
	Appraiser *Appraiser
	// RequireEvidence refuses a server without Evidence. Evidence that is there
	// must hold in any case.
	RequireEvidence bool
	// Appraise is the policy on verified Evidence: an error refuses the server.
	// Nil accepts any.
	Appraise func(context.Context, *Attested) error
	// Certificate is presented to the server; nil means none.
	Certificate *tls.Certificate
	// Timeout bounds the appraisal; 0 means 30 seconds.
	Timeout time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// ClientTLS returns the configuration of a client: TLS 1.3, no resumption. All
// that c asks for is checked in the handshake of every connection, before a
// byte of a request is sent.
func ClientTLS(c ClientConfig) (*tls.Config, error) {
	switch {
	case c.Appraiser == nil:
		return nil, errors.New("making an RA-TLS client: no appraiser")
	case c.Roots == nil && c.PinnedKey == nil && (!c.RequireEvidence || c.Appraise == nil):
		return nil, errors.New("making an RA-TLS client: neither roots, nor a pinned key, nor required Evidence with a policy: any server would do")
	case c.ServerName != "" && c.Roots == nil:
		return nil, errors.New("making an RA-TLS client: a server name means nothing without roots")
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	if c.Now == nil {
		c.Now = time.Now //nolint:forbidigo // the documented default of an optional clock
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: c.ServerName,
		Time:       c.Now,
		// Replaced, not skipped: see verify. VerifyConnection also runs for
		// resumed sessions, VerifyPeerCertificate would not.
		InsecureSkipVerify:     true, //nolint:gosec // verify does what is asked for
		VerifyConnection:       c.verify,
		SessionTicketsDisabled: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			// Whatever authorities the server names: it will go by the Evidence.
			if c.Certificate == nil {
				return new(tls.Certificate), nil
			}
			return c.Certificate, nil
		},
	}, nil
}

// verify is tls.Config.VerifyConnection: the handshake has proved that the
// server holds the key of the first certificate.
func (c *ClientConfig) verify(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("server presented no certificate")
	}
	if err := checkChain(cs.PeerCertificates); err != nil {
		return fmt.Errorf("server presented a %w", err)
	}
	leaf := cs.PeerCertificates[0]
	if c.PinnedKey != nil && subtle.ConstantTimeCompare(leaf.RawSubjectPublicKeyInfo, c.PinnedKey) != 1 {
		return errors.New("server has another key than the pinned one")
	}
	if err := c.verifyChain(leaf, cs.PeerCertificates[1:]); err != nil {
		return err
	}
	if err := c.verifyUsage(leaf); err != nil {
		return err
	}
	return c.appraise(leaf)
}

func (c *ClientConfig) verifyChain(leaf *x509.Certificate, others []*x509.Certificate) error {
	if c.Roots == nil {
		return nil
	}
	opts := x509.VerifyOptions{
		Roots: c.Roots, Intermediates: x509.NewCertPool(), DNSName: c.ServerName, CurrentTime: c.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // RPC certificates have none
	}
	for _, o := range others {
		opts.Intermediates.AddCert(o)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return fmt.Errorf("verifying the server's certificate: %w", err)
	}
	return nil
}

func (c *ClientConfig) verifyUsage(leaf *x509.Certificate) error {
	if c.Usage == "" {
		return nil
	}
	usage, err := Usage(leaf)
	switch {
	case err != nil:
		return err
	case usage == "":
		return fmt.Errorf("server's certificate has no special usage, want %s", c.Usage)
	case usage != c.Usage:
		return fmt.Errorf("server's certificate has special usage %q, want %s", usage, c.Usage)
	}
	return nil
}

func (c *ClientConfig) appraise(leaf *x509.Certificate) error {
	// crypto/tls gives VerifyConnection no context.
	ctx, cancel := context.WithTimeout(context.Background(), c.Timeout)
	defer cancel()
	peer, err := c.Appraiser.AppraiseCertificate(ctx, leaf)
	switch {
	case err != nil:
		return fmt.Errorf("appraising the server: %w", err)
	case peer == nil && c.RequireEvidence:
		return fmt.Errorf("appraising the server: %w", ErrNoEvidence)
	case peer == nil || c.Appraise == nil:
		return nil
	}
	if err := c.Appraise(ctx, peer); err != nil {
		return fmt.Errorf("appraising the server: %w", err)
	}
	return nil
}
