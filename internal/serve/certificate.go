package serve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// errNoCertificate says that a handshake came before the first certificate.
var errNoCertificate = errors.New("no certificate yet")

// Certificate holds the certificate that new handshakes get. It can be replaced
// while connections are open; they keep the one they began with. The zero value
// holds none. Its methods may be called from several goroutines.
type Certificate struct {
	current atomic.Pointer[held]
}

// held is a certificate and from when its life is counted.
type held struct {
	tls    tls.Certificate
	issued time.Time
}

// Set replaces the certificate.
func (c *Certificate) Set(cert tls.Certificate) { c.current.Store(&held{tls: cert}) }

// Get is tls.Config.GetCertificate.
func (c *Certificate) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if h := c.current.Load(); h != nil {
		return &h.tls, nil
	}
	return nil, errNoCertificate
}

// TLSConfig returns a configuration that serves whatever c holds, TLS 1.3 only.
func (c *Certificate) TLSConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: c.Get}
}

// RenewConfig configures [Certificate.Renew] and [Certificate.RenewLoop].
type RenewConfig struct {
	// Issue makes a certificate. Required.
	Issue func(context.Context) (tls.Certificate, error)
	// Log gets a line for every renewal and every failure. Required.
	Log *zap.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Bounds of the wait between two renewals.
const (
	firstRetry = time.Minute
	lastRetry  = time.Hour
)

// Renew issues one certificate and holds it.
func (c *Certificate) Renew(ctx context.Context, rc RenewConfig) error {
	cert, err := rc.Issue(ctx)
	if err != nil {
		return fmt.Errorf("issuing the TLS certificate: %w", err)
	}
	if cert.Leaf == nil {
		if len(cert.Certificate) == 0 {
			return errors.New("issuing the TLS certificate: it is empty")
		}
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return fmt.Errorf("reading the TLS certificate: %w", err)
		}
	}
	c.current.Store(&held{tls: cert, issued: rc.now()})
	rc.Log.Info("TLS certificate issued", zap.Time("not_after", cert.Leaf.NotAfter))
	return nil
}

// RenewLoop renews the certificate at two thirds of its life until ctx ends.
// Call [Certificate.Renew] before it, so that there is one to begin with. A
// failure is logged and tried again after a minute, then after twice as long
// each time, up to an hour; the certificate at hand goes on being served.
func (c *Certificate) RenewLoop(ctx context.Context, rc RenewConfig) {
	due, retry := rc.now().Add(c.untilRenewal(rc.now())), firstRetry
	for sleepUntil(ctx, due, rc.now) {
		err := c.Renew(ctx, rc)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			// Never sooner than the first retry, whatever its dates say.
			due, retry = rc.now().Add(max(c.untilRenewal(rc.now()), firstRetry)), firstRetry
			continue
		}
		rc.Log.Error("renewing the TLS certificate", zap.NamedError("err", err), zap.Duration("retry_in", retry))
		due, retry = rc.now().Add(retry), min(2*retry, lastRetry)
	}
}

// sleepUntil waits until the clock shows due and returns false when ctx ends
// before. It looks at the clock once an hour, because timers stand still while
// a virtual machine is paused and dates do not.
func sleepUntil(ctx context.Context, due time.Time, now func() time.Time) bool {
	for {
		wait := due.Round(0).Sub(now())
		if wait <= 0 {
			return ctx.Err() == nil
		}
		timer := time.NewTimer(min(wait, time.Hour))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
}

// untilRenewal is how long the certificate at hand has until two thirds of its
// life are over. Its life begins when it was issued: notBefore may lie far back.
func (c *Certificate) untilRenewal(now time.Time) time.Duration {
	h := c.current.Load()
	if h == nil || h.tls.Leaf == nil {
		return 0
	}
	begin := h.tls.Leaf.NotBefore
	if h.issued.After(begin) {
		begin = h.issued
	}
	return max(begin.Add(h.tls.Leaf.NotAfter.Sub(begin)/3*2).Sub(now), 0)
}

func (rc RenewConfig) now() time.Time {
	if rc.Now == nil {
		return time.Now() //nolint:forbidigo // the default of an injected clock
	}
	return rc.Now()
}
