package onboard

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/tdx"
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
	for {
		attempt, wait, err := s.begin(req)
		switch {
		case err != nil:
			return nil, err
		case wait == nil && attempt == nil:
			return s.replay(req)
		case attempt != nil:
			return s.await(ctx, attempt, req)
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// outcome carries the result of one bootstrap to the caller that began it.
type outcome struct {
	response *onboardv1.BootstrapResponse
	err      error
}

// begin decides under the lock what a call is: a repetition (nil, nil), one
// that has to wait, or the next attempt, whose place it takes.
func (s *Service) begin(req *onboardv1.BootstrapRequest) (attempt chan outcome, wait <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return nil, nil, nil
	}
	if err := validate(req); err != nil {
		return nil, nil, err
	}
	if s.running != nil {
		return nil, s.running, nil
	}
	s.running = make(chan struct{})
	return make(chan outcome, 1), nil, nil
}

// replay answers a call that comes after the bootstrap.
func (s *Service) replay(req *onboardv1.BootstrapRequest) (*onboardv1.BootstrapResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.record != nil && s.requestID != "" && s.requestID == req.GetRequestId() {
		return s.record, nil
	}
	return nil, ErrAlreadyBootstrapped
}

// await runs the attempt on a goroutine of the service's own and waits for it
// as long as the caller does.
func (s *Service) await(ctx context.Context, attempt chan outcome, req *onboardv1.BootstrapRequest) (*onboardv1.BootstrapResponse, error) {
	s.background.Go(func() {
		response, err := s.attempt(context.WithoutCancel(ctx), req.GetDomain())
		s.conclude(req.GetRequestId(), response, err)
		attempt <- outcome{response, err}
	})
	select {
	case o := <-attempt:
		return o.response, o.err
	case <-ctx.Done():
		s.cfg.Log.Warn("the caller of Bootstrap left; the bootstrap goes on")
		return nil, ctx.Err()
	}
}

// conclude publishes the outcome and lets the next caller in.
func (s *Service) conclude(requestID string, response *onboardv1.BootstrapResponse, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.done, s.record, s.requestID = true, response, requestID
	case errors.Is(err, ErrAlreadyBootstrapped):
		s.done = true // by another process
	}
	close(s.running)
	s.running = nil
}

// attempt is one bootstrap. A panic in it is an error like any other: the
// service must let the next caller in.
func (s *Service) attempt(ctx context.Context, domain string) (response *onboardv1.BootstrapResponse, err error) {
	defer func() {
		if p := recover(); p != nil {
			response, err = nil, fmt.Errorf("bootstrapping: panic: %v", p)
		}
	}()
	s.cfg.Log.Info("Bootstrapping", zap.String("domain", domain))
	response, err = s.bootstrap(ctx, domain)
	if err != nil {
		s.cfg.Log.Error("Bootstrap failed", zap.NamedError("err", err))
		return nil, err
	}
	s.cfg.Log.Info("Bootstrap completed", zap.String("domain", domain))
	return response, nil
}

// bootstrap makes keys, has them quoted, checks the quote and commits.
func (s *Service) bootstrap(ctx context.Context, domain string) (*onboardv1.BootstrapResponse, error) {
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
