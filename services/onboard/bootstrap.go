package onboard

import (
	"context"
	"errors"
	"fmt"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/tdx"
	"teekms/internal/authz"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

// maxRequestID bounds BootstrapRequest.request_id, in bytes.
const maxRequestID = 128

// debugAttributes are the TD attributes that put a TD under the eyes of its
// host (docs/evidence.md#quote).
const debugAttributes = 0xff

// Bootstrap makes the root keys, once. A call that finds another one under way
// waits for it: if that succeeds the answer is [ErrAlreadyBootstrapped], if it
// fails this call is the next to try. A bootstrap once begun goes on when its
// caller leaves. The request_id of the one that succeeded gets its answer
// again.
func (s *Service) Bootstrap(ctx context.Context, req *onboardv1.BootstrapRequest) (*onboardv1.BootstrapResponse, error) {
	return s.once(ctx, job{
		name: "Bootstrap", domain: req.GetDomain(), requestID: req.GetRequestId(),
		validate: func() error { return validate(req) },
		fill: func(ctx context.Context) (*onboardv1.BootstrapResponse, error) {
			return s.bootstrap(ctx, req.GetDomain())
		},
	})
}

// bootstrap makes keys, has them quoted, checks the quote and commits.
func (s *Service) bootstrap(ctx context.Context, domain string) (*onboardv1.BootstrapResponse, error) {
	if err := s.authorizeSelf(ctx); err != nil {
		return nil, err
	}
	roots, err := keys.NewRoots()
	if err != nil {
		return nil, fmt.Errorf("making root keys: %w", err)
	}
	info := &keystore.Info{CAPublic: roots.CAPublic(), K256Public: roots.K256Public()}
	if err := s.quote(ctx, info); err != nil {
		return nil, err
	}
	bundle, err := keystore.NewBundle(roots, domain, info, s.cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("issuing certificates: %w", err)
	}
	if err := s.cfg.Store.Commit(ctx, bundle); err != nil {
		return nil, fmt.Errorf("committing the key directory: %w", err)
	}
	return &onboardv1.BootstrapResponse{
		CaPubkey: info.CAPublic, K256Pubkey: info.K256Public, Quote: info.Quote, Eventlog: info.EventLog,
	}, nil
}

// authorizeSelf asks the authority whether this trust domain may be a KMS, where
// one is configured for that.
func (s *Service) authorizeSelf(ctx context.Context) error {
	if s.cfg.Authorizer == nil || s.cfg.Self == nil {
		return nil
	}
	info, err := s.cfg.Self(ctx)
	switch {
	case errors.Is(err, attest.ErrNoAttester):
		return err
	case errors.Is(err, attest.ErrNoCollateral):
		return &SelfDeniedError{Reason: "there is no collateral to appraise it with", Err: err}
	case err != nil:
		return &SelfDeniedError{Reason: "it cannot be described to the authority", Err: err}
	}
	decision, err := s.cfg.Authorizer.Authorize(ctx, authz.Request{Subject: authz.KMS, BootInfo: info})
	switch {
	case err != nil:
		return fmt.Errorf("authorizing this KMS: %w", err)
	case !decision.Allowed:
		return &SelfDeniedError{Reason: authz.PublicReason(decision.Reason)}
	}
	return nil
}

// quote has the two public keys quoted and refuses a quote that would not
// convince anybody later. Without an attester there is none.
func (s *Service) quote(ctx context.Context, info *keystore.Info) error {
	if s.cfg.Attester == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.AttestTimeout)
	defer cancel()
	rd := attest.BootstrapReportData(info.CAPublic, info.K256Public)
	evidence, err := s.cfg.Attester.Attest(ctx, rd)
	if err != nil {
		return fmt.Errorf("quoting the root keys: %w", err)
	}
	if err := checkOwnEvidence(evidence, rd); err != nil {
		return &OwnQuoteError{Err: err}
	}
	info.Quote, info.EventLog = evidence.Quote, evidence.EventLog
	return nil
}

// checkOwnEvidence looks at this TD's own Evidence: it parses, binds what was
// asked, is no debug TD's, and its event log replays to its RTMRs. Who signed
// it is for others to judge, who trust this TD less than it does itself.
func checkOwnEvidence(e *attest.Evidence, rd attest.ReportData) error {
	q, err := tdx.ParseQuote(e.Quote)
	if err != nil {
		return fmt.Errorf("parsing it: %w", err)
	}
	switch {
	case q.ReportData() != rd.Bytes():
		return errors.New("its report data is not the digest of the keys")
	case q.TDAttributes()&debugAttributes != 0:
		return errors.New("it is the quote of a debug TD, which its host can look into")
	case len(e.EventLog) == 0:
		return errors.New("it came without an event log")
	}
	log, err := eventlog.Parse(e.EventLog)
	if err != nil {
		return fmt.Errorf("reading its event log: %w", err)
	}
	rtmrs, err := log.Replay()
	if err != nil {
		return fmt.Errorf("replaying its event log: %w", err)
	}
	for i, quoted := range q.RTMRs() {
		if rtmrs[i] != quoted {
			return fmt.Errorf("its event log does not replay to RTMR%d", i)
		}
	}
	return nil
}
