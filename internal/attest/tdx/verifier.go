package tdx

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"teekms/internal/attest"
)

// Bounds of a Verifier's caches. A quoting enclave takes about 5 KB.
const (
	maxEnclaves       = 1024
	maxEnclaveBytes   = 16 << 10
	maxPlatformsKnown = 256
	maxLogs           = 128
	maxLogBytes       = 64 << 10
)

// Config says what a [Verifier] trusts.
type Config struct {
	// TrustAnchor is the root certificate to which every chain must lead.
	// Required: see [IntelRootCA] and [LoadTrustAnchor].
	TrustAnchor *x509.Certificate
	// Collateral gives the Endorsements. It is asked at every verification,
	// so a slow source belongs into a [CachedSource]. Without one, only
	// [Verifier.VerifyOffline] can succeed.
	Collateral CollateralSource
	// Now is the clock; time.Now if nil.
	Now func() time.Time
}

// Verifier verifies TDX Evidence to one trust anchor. It may be used from
// several goroutines. It remembers which quoting enclaves and which collateral
// it has verified, each until the first thing they rest on expires, so that
// verifying another quote of a known enclave costs one P-256 verification
// (docs/evidence.md#caches).
type Verifier struct {
	anchor *x509.Certificate
	root   [32]byte
	source CollateralSource
	now    func() time.Time

	// enclaves are keyed by the very bytes they were verified from.
	enclaves  *boundedMap[string, *enclave]
	platforms *boundedMap[platformKey, *heldCollateral]
	// logs are keyed by the text they were replayed from.
	logs *boundedMap[string, replayedLog]
}

var _ attest.Verifier = (*Verifier)(nil)

// enclave is a quoting enclave whose chain and report have been verified.
type enclave struct {
	pck *pckChain
	// key is the attestation key that it vouches for.
	key *ecdsa.PublicKey
}

type platformKey struct {
	fmspc FMSPC
	ca    CA
}

// heldCollateral is collateral and what its verification gave.
type heldCollateral struct {
	raw      *Collateral
	verified *endorsements
}

// NewVerifier makes a Verifier. It refuses a trust anchor that is no
// self-signed authority.
func NewVerifier(cfg Config) (*Verifier, error) {
	if cfg.TrustAnchor == nil {
		return nil, errors.New("making a TDX verifier: no trust anchor")
	}
	if err := checkAnchor(cfg.TrustAnchor); err != nil {
		return nil, fmt.Errorf("making a TDX verifier: trust anchor: %w", err)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now //nolint:forbidigo // the documented default of an optional clock
	}
	return &Verifier{
		anchor:    cfg.TrustAnchor,
		root:      sha256.Sum256(cfg.TrustAnchor.Raw),
		source:    cfg.Collateral,
		now:       cfg.Now,
		enclaves:  newBoundedMap[string, *enclave](maxEnclaves),
		platforms: newBoundedMap[platformKey, *heldCollateral](maxPlatformsKnown),
		logs:      newBoundedMap[string, replayedLog](maxLogs),
	}, nil
}

// TrustRoot is the SHA-256 of the DER of the trust anchor.
func (v *Verifier) TrustRoot() [32]byte { return v.root }

// Verify checks every link of the chain from e to the trust anchor, and
// returns what e then proves. The error is an *attest.VerifyError for the
// first link that does not hold; it wraps attest.ErrNoCollateral when that is
// for want of (unexpired) collateral. The TCB status is a claim and not judged,
// except that a revoked TCB fails. The event log is replayed if there is one.
func (v *Verifier) Verify(ctx context.Context, e *attest.Evidence) (*attest.Claims, error) {
	r := v.begin(ctx, e, false)
	return r.first()
}

// VerifyOffline is Verify without the links that need collateral: a TD uses it
// on its own Evidence. The TCB statuses and advisories of the Claims are empty.
func (v *Verifier) VerifyOffline(ctx context.Context, e *attest.Evidence) (*attest.Claims, error) {
	r := v.begin(ctx, e, true)
	return r.first()
}

// endorsements returns verified collateral for a platform family.
func (v *Verifier) endorsements(ctx context.Context, k platformKey, now time.Time) (*endorsements, error) {
	if v.source == nil {
		return nil, fmt.Errorf("%w: no source of it is configured", attest.ErrNoCollateral)
	}
	// A cache with the same trust anchor has verified what it gives.
	if cache, ok := v.source.(*CachedSource); ok && cache.cfg.TrustAnchor.Equal(v.anchor) {
		held, err := cache.get(ctx, k)
		if err != nil {
			return nil, noCollateral(err)
		}
		if held.verified.validAt(now) {
			return held.verified, nil
		}
	}
	raw, err := v.source.Collateral(ctx, k.fmspc, k.ca)
	if err != nil {
		return nil, noCollateral(err)
	}
	if held, ok := v.platforms.load(k); ok && held.verified.validAt(now) && held.raw.equal(raw) {
		return held.verified, nil
	}
	e, err := endorser{anchor: v.anchor, now: now}.verify(raw, k.fmspc, k.ca)
	if err != nil {
		return nil, err
	}
	v.platforms.store(k, &heldCollateral{raw: raw, verified: e})
	return e, nil
}

// noCollateral makes err be attest.ErrNoCollateral.
func noCollateral(err error) error {
	if errors.Is(err, attest.ErrNoCollateral) {
		return err
	}
	return fmt.Errorf("%w: %w", attest.ErrNoCollateral, err)
}

func (c *Collateral) equal(o *Collateral) bool {
	return c == o || o != nil &&
		bytes.Equal(c.TCBInfo, o.TCBInfo) && bytes.Equal(c.TCBInfoChain, o.TCBInfoChain) &&
		bytes.Equal(c.QEIdentity, o.QEIdentity) && bytes.Equal(c.QEIdentityChain, o.QEIdentityChain) &&
		bytes.Equal(c.PCKCRL, o.PCKCRL) && bytes.Equal(c.PCKCRLChain, o.PCKCRLChain) &&
		bytes.Equal(c.RootCRL, o.RootCRL)
}
