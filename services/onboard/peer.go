package onboard

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/attest"
	"teekms/internal/authz"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
	"teekms/internal/ratls"
)

// Onboard takes over the root keys of a peer KMS, once; in all that
// [Service.Bootstrap] says of calls it is the same. Each side appraises the
// other in one TLS handshake, and everything is asked for on that connection.
// Nothing is written unless all of it holds.
func (s *Service) Onboard(ctx context.Context, req *onboardv1.OnboardRequest) (*onboardv1.OnboardResponse, error) {
	var peer *url.URL
	response, err := s.once(ctx, job{
		name: "Onboard", domain: req.GetDomain(),
		validate: func() (err error) {
			if peer, err = parseSourceURL(req.GetSourceUrl()); err != nil {
				return err
			}
			if err := keys.ValidateDomain(req.GetDomain()); err != nil {
				return domainError(err)
			}
			if s.cfg.Attester == nil {
				return errNoQuotes
			}
			return nil
		},
		fill: func(ctx context.Context) (*onboardv1.BootstrapResponse, error) {
			return s.replicate(ctx, peer, req.GetDomain())
		},
	})
	if err != nil {
		return nil, err
	}
	return &onboardv1.OnboardResponse{K256Pubkey: response.GetK256Pubkey()}, nil
}

// replicate fetches, checks and commits.
func (s *Service) replicate(ctx context.Context, peer *url.URL, domain string) (*onboardv1.BootstrapResponse, error) {
	replica, source, err := s.fetchFrom(ctx, peer)
	if err != nil {
		return nil, err
	}
	if s.cfg.Receive != nil {
		if err := s.cfg.Receive(ctx, Received{Roots: replica.Roots, Source: source, Domain: domain}); err != nil {
			return nil, err
		}
	}
	replica.Domain = domain
	bundle, err := keystore.NewReplica(replica, s.cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("issuing certificates: %w", err)
	}
	if err := s.cfg.Store.Commit(ctx, bundle); err != nil {
		return nil, fmt.Errorf("committing the key directory: %w", err)
	}
	return &onboardv1.BootstrapResponse{CaPubkey: replica.Roots.CAPublic(), K256Pubkey: replica.Roots.K256Public()}, nil
}

// fetchFrom brings the keys of the peer, and what the peer is where somebody
// will judge it.
func (s *Service) fetchFrom(ctx context.Context, peer *url.URL) (keystore.Replica, authz.BootInfo, error) {
	own := &witness{attester: s.cfg.Attester, timeout: s.cfg.AttestTimeout}
	cert := ratls.ClientCertConfig{Attester: own, Now: s.cfg.Now}
	src, err := s.connect(ctx, peer, cert, own)
	if errors.Is(err, errWantsIssuer) {
		if cert.Issuer, err = s.temporaryCA(ctx, peer); err == nil {
			src, err = s.connect(ctx, peer, cert, own)
		}
	}
	if err != nil {
		return keystore.Replica{}, authz.BootInfo{}, err
	}
	defer src.Close()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.PeerTimeout)
	defer cancel()
	replica, err := s.fetch(ctx, src, own.evidence.VMConfig)
	return replica, own.source, err
}

// connect makes this side's certificate and the connection.
func (s *Service) connect(ctx context.Context, peer *url.URL, cert ratls.ClientCertConfig, own *witness) (*source, error) {
	certificate, err := ratls.NewCertificate(ctx, cert)
	if err != nil {
		return nil, fmt.Errorf("quoting the key of the client certificate: %w", err)
	}
	tlsConfig, err := s.peerTLS(&certificate, cert.Issuer != nil, own)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.PeerTimeout)
	defer cancel()
	return dialSource(ctx, peer, tlsConfig)
}

// witness is an attester that looks at what it made, and keeps it; so does it with
// what the peer showed.
type witness struct {
	attester attest.Attester
	timeout  time.Duration
	evidence *attest.Evidence
	// source describes the peer, once its handshake is over.
	source authz.BootInfo
}

// Attest implements attest.Attester.
func (w *witness) Attest(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	evidence, err := w.attester.Attest(ctx, rd)
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller says what for
	}
	if err := checkOwnEvidence(evidence, rd); err != nil {
		return nil, &OwnQuoteError{Err: err}
	}
	w.evidence = evidence
	return evidence, nil
}
