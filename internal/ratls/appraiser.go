package ratls

import (
	"context"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/tdx"
)

// AppraiserConfig says what an [Appraiser] works with.
type AppraiserConfig struct {
	// Verifier verifies Evidence, collateral included. Required.
	Verifier attest.Verifier
	// Limit is asked before anything is verified for a connection from an
	// address, as [Limiter.Allow] is; nil means no limit. Appraisals outside of
	// a connection of a [Server] are not limited.
	Limit func(netip.Addr) error
	// OnResult, if not nil, is told of each appraisal. It must not block.
	OnResult func(Result)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// The outcomes of appraisals that are not the name of a link.
const (
	OutcomeOK           = "ok"
	OutcomeLimited      = "limited"
	OutcomeNoCollateral = "no_collateral"
	OutcomeCanceled     = "canceled"
	OutcomeError        = "error"
)

// Result is how one appraisal went.
type Result struct {
	// Outcome is one of the Outcome constants, or the link that failed, in
	// lower case with underscores ("report_data"): a label for metrics.
	Outcome string
	// Took is how long it took.
	Took time.Duration
	// Err is the cause, nil for OutcomeOK.
	Err error
}

// Appraiser verifies Evidence that is bound to a public key. It may be used
// from several goroutines.
type Appraiser struct {
	cfg  AppraiserConfig
	logs logCache
}

// NewAppraiser makes an Appraiser.
func NewAppraiser(cfg AppraiserConfig) (*Appraiser, error) {
	if cfg.Verifier == nil {
		return nil, errors.New("making an appraiser: no verifier")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now //nolint:forbidigo // the documented default of an optional clock
	}
	return &Appraiser{cfg: cfg}, nil
}

// Appraise verifies ev and that it is bound to the public key spki, a DER
// SubjectPublicKeyInfo. The error is an [*InvalidError] when ev does not hold.
// It is another when nothing can be said of ev: it wraps [ErrLimited],
// [attest.ErrNoCollateral], what is wrong with the collateral, or the error of
// ctx.
func (a *Appraiser) Appraise(ctx context.Context, ev *attest.Evidence, spki []byte) (*Attested, error) {
	return a.observed(ctx, func() (*Attested, error) { return a.appraise(ctx, ev, spki) })
}

// AppraiseCertificate is [Appraiser.Appraise] for the Evidence and the public
// key of a certificate. It returns nil and no error for a certificate that
// carries no Evidence. That the peer holds the certificate's key is for the
// handshake to prove.
func (a *Appraiser) AppraiseCertificate(ctx context.Context, c *x509.Certificate) (*Attested, error) {
	if !carriesEvidence(c) {
		return nil, nil //nolint:nilnil // no Evidence is an answer, not an error
	}
	return a.observed(ctx, func() (*Attested, error) {
		ev, err := FromCertificate(c)
		if err != nil {
			return nil, &attest.VerifyError{Link: attest.LinkFormat, Err: err}
		}
		return a.appraise(ctx, ev, c.RawSubjectPublicKeyInfo)
	})
}

// observed asks the limit, runs f, and reports how it went.
func (a *Appraiser) observed(ctx context.Context, f func() (*Attested, error)) (*Attested, error) {
	start := a.cfg.Now()
	err := a.limit(ctx)
	var peer *Attested
	if err == nil {
		peer, err = f()
	}
	outcome, err := classify(err)
	if a.cfg.OnResult != nil {
		a.cfg.OnResult(Result{Outcome: outcome, Took: a.cfg.Now().Sub(start), Err: err})
	}
	if err != nil {
		return nil, err
	}
	return peer, nil
}

func (a *Appraiser) limit(ctx context.Context) error {
	c, ok := ctx.Value(connKey{}).(*connection)
	if a.cfg.Limit == nil || !ok {
		return nil
	}
	return a.cfg.Limit(c.remote)
}

// classify names an outcome, and makes an InvalidError of what is wrong with
// the Evidence itself.
func classify(err error) (string, error) {
	verify, isVerify := errors.AsType[*attest.VerifyError](err)
	switch {
	case err == nil:
		return OutcomeOK, nil
	case errors.Is(err, ErrLimited):
		return OutcomeLimited, err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return OutcomeCanceled, fmt.Errorf("appraising: %w", err)
	case errors.Is(err, attest.ErrNoCollateral), isVerify && verify.Link == attest.LinkCollateral:
		// Collateral that does not verify is not the peer's fault either.
		return OutcomeNoCollateral, fmt.Errorf("appraising: %w", err)
	case isVerify:
		return strings.ReplaceAll(strings.ToLower(verify.Link), " ", "_"), &InvalidError{Err: verify}
	}
	return OutcomeError, fmt.Errorf("appraising: %w", err)
}

func (a *Appraiser) appraise(ctx context.Context, ev *attest.Evidence, spki []byte) (*Attested, error) {
	if ev == nil {
		return nil, &attest.VerifyError{Link: attest.LinkFormat, Err: errors.New("no Evidence")}
	}
	// Before the cryptography: a quote for another key costs nothing.
	q, err := tdx.ParseQuote(ev.Quote)
	if err != nil {
		return nil, &attest.VerifyError{Link: attest.LinkFormat, Err: err}
	}
	if err := checkBinding(q.ReportData(), spki); err != nil {
		return nil, err
	}
	claims, err := a.cfg.Verifier.Verify(ctx, ev)
	if err != nil {
		return nil, err //nolint:wrapcheck // the text names the link
	}
	if err := checkBinding(claims.ReportData, spki); err != nil {
		return nil, err
	}
	log, err := a.logs.check(ev.EventLog, claims.RTMR[eventlog.RuntimeIMR])
	if err != nil {
		return nil, &attest.VerifyError{Link: attest.LinkEventLog, Err: err}
	}
	return &Attested{Claims: claims, Log: log, VMConfig: ev.VMConfig, PublicKey: spki, Evidence: ev}, nil
}

func checkBinding(got [64]byte, spki []byte) error {
	want := attest.RATLSReportData(spki).Bytes()
	if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		return &attest.VerifyError{Link: attest.LinkReportData, Err: errors.New("report data mismatch: the quote binds another key")}
	}
	return nil
}
