package kms

import (
	"context"

	"go.uber.org/zap"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/authz"
)

// Facts are facts that never change, for a service that only tells them.
type Facts struct{ Facts authz.Facts }

// DevFacts are the facts of the development authorizer.
func DevFacts(gatewayAppID string) Facts {
	return Facts{authz.Facts{Dev: true, GatewayAppID: gatewayAppID}}
}

type fixedFacts struct{ facts authz.Facts }

func (fixedFacts) Authorize(context.Context, authz.Request) (authz.Decision, error) {
	return authz.Decision{}, authz.ErrUnreachable
}

func (f fixedFacts) Facts(context.Context) (authz.Facts, error) { return f.facts, nil }

// metaOnly is a service without keys: it serves GetMeta until the command that
// makes it gives it everything else.
func metaOnly(c Config) *Service {
	s := &Service{authority: fixedFacts{c.Facts.Facts}, log: zap.NewNop(), keyRelease: ReleaseOff, now: c.Now}
	s.self.describe = func(context.Context) (authz.BootInfo, error) { return authz.BootInfo{}, authz.ErrUnreachable }
	s.meta.fixed = &kmsv1.GetMetaResponse{
		CaCert: string(c.RootCertificate), K256Pubkey: c.K256Public, BootstrapInfo: c.Bootstrap,
		TrustRootSha256: c.TrustRootSHA256, InsecureSettings: c.InsecureSettings,
	}
	return s
}
