// Package secondopinion has google/go-tdx-guest verify TDX Evidence, as a check
// on attest/tdx by code of another origin. It is an opinion, not a verifier: it
// says yes to platforms whose TCB is out of date, knows no service TD and
// looks at no event log (docs/evidence.md#second-opinion). Only kmsctl and
// tests use it.
package secondopinion

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/google/go-tdx-guest/verify"

	"teekms/internal/attest"
	"teekms/internal/attest/tdx"
)

// Config says what the opinion is based on, in the words of [tdx.Config].
type Config struct {
	// TrustAnchor is the root certificate. Required.
	TrustAnchor *x509.Certificate
	// Collateral gives the Endorsements. Without one neither TCB nor
	// revocation is looked at.
	Collateral tdx.CollateralSource
	// Now is the clock; time.Now if nil.
	Now func() time.Time
}

// ErrPanicked says that the library panicked, as it does on quotes whose
// lengths lie.
var ErrPanicked = errors.New("go-tdx-guest panicked")

// Verify has go-tdx-guest verify the quote of e. It returns nil if that holds,
// and never panics. Nothing is written to standard output, and no network is
// used but that of cfg.Collateral.
func Verify(ctx context.Context, cfg Config, e *attest.Evidence) (err error) {
	if cfg.TrustAnchor == nil {
		return errors.New("asking for a second opinion: no trust anchor")
	}
	if len(e.Quote) > tdx.MaxQuoteSize {
		return fmt.Errorf("asking for a second opinion: quote of %d bytes, more than %d", len(e.Quote), tdx.MaxQuoteSize)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now //nolint:forbidigo // the documented default of an optional clock
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrPanicked, r)
		}
	}()
	// The library logs only where it falls back to a root of its own, which a
	// pool, even an empty one, prevents. It writes into the options, so each
	// call has its own, and with a member of Now at zero it would not look at
	// expiry at all.
	now := cfg.Now()
	roots := x509.NewCertPool()
	roots.AddCert(cfg.TrustAnchor)
	return verify.RawTdxQuoteContext(ctx, e.Quote, &verify.Options{
		TrustedRoots:     roots,
		GetCollateral:    cfg.Collateral != nil,
		CheckRevocations: cfg.Collateral != nil,
		Getter:           &getter{source: cfg.Collateral},
		Now:              &verify.TimeSet{PckCertChain: now, TcbInfo: now, QeIdentity: now, PckCrl: now, RootCaCrl: now},
	})
}

// getter answers the library's four URLs out of one answer of a source. The
// library asks for the TCB info first, and knows platforms of the platform CA
// only.
type getter struct {
	source     tdx.CollateralSource
	collateral *tdx.Collateral
}

// Get implements trust.HTTPSGetter.
func (g *getter) Get(address string) (header map[string][]string, body []byte, err error) {
	return g.GetContext(context.Background(), address)
}

// GetContext implements trust.ContextHTTPSGetter.
func (g *getter) GetContext(ctx context.Context, address string) (header map[string][]string, body []byte, err error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, nil, err
	}
	if strings.HasSuffix(u.Path, "/tcb") {
		if err := g.fetch(ctx, u.Query().Get("fmspc")); err != nil {
			return nil, nil, err
		}
	}
	if g.collateral == nil {
		return nil, nil, fmt.Errorf("%s is asked for before the TCB info", address)
	}
	c := g.collateral
	switch {
	case strings.HasSuffix(u.Path, "/tcb"):
		return chain("Tcb-Info-Issuer-Chain", c.TCBInfoChain), c.TCBInfo, nil
	case strings.HasSuffix(u.Path, "/qe/identity"):
		return chain("Sgx-Enclave-Identity-Issuer-Chain", c.QEIdentityChain), c.QEIdentity, nil
	case strings.HasSuffix(u.Path, "/pckcrl"):
		return chain("Sgx-Pck-Crl-Issuer-Chain", c.PCKCRLChain), c.PCKCRL, nil
	default:
		return nil, c.RootCRL, nil
	}
}

func (g *getter) fetch(ctx context.Context, fmspcHex string) error {
	b, err := hex.DecodeString(fmspcHex)
	if err != nil || len(b) != len(tdx.FMSPC{}) {
		return fmt.Errorf("FMSPC %q is not six bytes of hex", fmspcHex)
	}
	g.collateral, err = g.source.Collateral(ctx, tdx.FMSPC(b), tdx.PlatformCA)
	return err
}

func chain(name string, pem []byte) map[string][]string {
	// The library wants nothing after the last certificate but its newline.
	return map[string][]string{name: {url.QueryEscape(strings.TrimRight(string(pem), "\x00"))}}
}
