package onboard

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"

	"go.uber.org/zap"

	"teekms/internal/attest"
	"teekms/internal/authz"
	"teekms/internal/keys"
	"teekms/internal/ratls"
)

// errWantsIssuer says that the source takes client certificates of its
// temporary CA only, as older ones do.
var errWantsIssuer = errors.New("the source wants a certificate of its temporary CA")

// errNoSourceEvidence refuses a source that does not prove itself. Its text is
// the one that existing tools know.
//
//nolint:staticcheck // capital included
var errNoSourceEvidence = errors.New("Source KMS certificate does not contain attestation")

// unacceptable is the reason of a handshake that this side broke off.
type unacceptable struct{ err error }

func (u *unacceptable) Error() string { return u.err.Error() }

func (u *unacceptable) Unwrap() error { return u.err }

// peerTLS is the handshake with a source: it must hold Evidence for its key, be
// a KMS by its certificate, and be authorized where there is an authority. No
// chain is looked at yet: its root is not known before it has handed over the
// root key.
func (s *Service) peerTLS(certificate *tls.Certificate, issued bool, own *witness) (*tls.Config, error) {
	appraiser, err := ratls.NewAppraiser(ratls.AppraiserConfig{Verifier: s.cfg.Verifier, Now: s.cfg.Now})
	if err != nil {
		return nil, fmt.Errorf("connecting to the source: %w", err)
	}
	c, err := ratls.ClientTLS(ratls.ClientConfig{
		Usage: keys.UsageRPC, Appraiser: appraiser, RequireEvidence: true, Timeout: s.cfg.PeerTimeout, Now: s.cfg.Now,
		Appraise: func(ctx context.Context, peer *ratls.Attested) error { return s.authorize(ctx, peer, own) },
	})
	if err != nil {
		return nil, fmt.Errorf("connecting to the source: %w", err)
	}
	verify := c.VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verify(cs); err != nil {
			return &unacceptable{err}
		}
		return nil
	}
	c.GetClientCertificate = func(request *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if len(request.AcceptableCAs) > 0 && !issued {
			return nil, errWantsIssuer
		}
		return certificate, nil
	}
	return c, nil
}

// authorize asks the authority about the source. Older sources tell no machine
// description: they are taken to run this machine's image, as other KMSs do.
func (s *Service) authorize(ctx context.Context, peer *ratls.Attested, own *witness) error {
	if s.cfg.Authorizer == nil && s.cfg.Receive == nil {
		s.cfg.Log.Warn("any KMS whose Evidence verifies is taken as a source: core.auth_api names no authority",
			zap.String("tcb_status", string(peer.Claims.TCB)))
		return nil
	}
	options := authz.DescribeOptions{}
	if peer.VMConfig == "" {
		options.VMConfig = own.evidence.VMConfig
	}
	info, err := authz.Describe(peer, options)
	if err != nil {
		return &SourceError{Reason: err.Error(), Err: err}
	}
	own.source = info
	if s.cfg.Authorizer == nil {
		return nil // [Config.Receive] judges it, with the keys that it gives
	}
	decision, err := s.cfg.Authorizer.Authorize(ctx, authz.Request{Subject: authz.KMS, BootInfo: info})
	switch {
	case err != nil:
		return fmt.Errorf("authorizing the source: %w", err)
	case !decision.Allowed:
		return &SourceError{Reason: "Boot denied: " + authz.PublicReason(decision.Reason)}
	}
	return nil
}

// handshakeError tells a peer that was refused from one that refuses, and from
// one that is gone.
func handshakeError(err error) error {
	if refused, ok := errors.AsType[*unacceptable](err); ok {
		return refusedHandshake(refused.err)
	}
	if errors.Is(err, errWantsIssuer) {
		return errWantsIssuer
	}
	if alert, ok := remoteAlert(err); ok {
		return &SourceDeniedError{Reason: alert, Err: err}
	}
	if timedOut(err) {
		return &SourceUnreachableError{Reason: unreachable(err), Err: err}
	}
	return &SourceUnreachableError{Reason: "the TLS handshake failed", Err: err}
}

// refusedHandshake gives the reason that this side had.
func refusedHandshake(err error) error {
	if known, ok := errors.AsType[*SourceError](err); ok {
		return known
	}
	if invalid, ok := errors.AsType[*ratls.InvalidError](err); ok {
		return &SourceError{Reason: invalid.Error(), Err: err}
	}
	switch {
	case errors.Is(err, ratls.ErrNoEvidence):
		return errNoSourceEvidence
	case errors.Is(err, authz.ErrUnreachable), errors.Is(err, authz.ErrMalformed):
		return err
	case errors.Is(err, attest.ErrNoCollateral):
		return &SourceError{Reason: "there is no collateral to verify its quote with", Err: err}
	case timedOut(err):
		return &SourceError{Reason: "its appraisal took too long", Err: err}
	default:
		return &SourceError{Reason: err.Error(), Err: err}
	}
}

// temporaryCA fetches the CA that an older source wants client certificates
// from. It hands it to anybody and it vouches for nobody: neither side trusts
// the other for it, so that this connection needs no appraisal. It is closed
// before the one that counts is made.
func (s *Service) temporaryCA(ctx context.Context, peer *url.URL) (*ratls.Issuer, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.PeerTimeout)
	defer cancel()
	src, err := dialSource(ctx, peer, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, //nolint:gosec // nothing that comes over it is trusted
	})
	if err != nil {
		return nil, err
	}
	defer src.Close()
	var answer struct {
		Certificate string `json:"temp_ca_cert"`
		Key         string `json:"temp_ca_key"`
	}
	if err := src.call(ctx, "GetTempCaCert", struct{}{}, &answer, maxKeyAnswer); err != nil {
		return nil, err
	}
	issuer := &ratls.Issuer{}
	if issuer.Certificate, err = keys.ParseCertificate([]byte(answer.Certificate)); err == nil {
		issuer.Key, err = keys.ParseKey([]byte(answer.Key))
	}
	if err != nil {
		return nil, &SourceError{Reason: "Invalid temporary CA", Err: err}
	}
	return issuer, nil
}
