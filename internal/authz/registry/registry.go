// Package registry is the authority that is built in: the rules in the KMS's own
// database decide (docs/registry.md).
package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"teekms/internal/authz"
	"teekms/internal/registry"
)

// factsLifetime is how long the gateway in GetMeta may be an old one.
const factsLifetime = time.Second

// policy decides; *registry.Policy is one.
type policy interface {
	Decide(ctx context.Context, w registry.Workload) (registry.Decision, error)
	Gateway(ctx context.Context) (string, error)
}

// Config configures an [Authorizer].
type Config struct {
	// Policy decides. Required.
	Policy policy
	// Log gets a line when the gateway cannot be read for GetMeta. Required.
	Log *zap.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Authorizer asks the registry. Decisions are never kept.
type Authorizer struct {
	policy policy
	facts  *authz.FactsCache
}

var _ authz.Authorizer = (*Authorizer)(nil)

// New returns the authority of a policy.
func New(c Config) (*Authorizer, error) {
	if c.Policy == nil {
		return nil, errors.New("making the registry's authority: Policy is required")
	}
	facts, err := authz.NewFactsCache(authz.FactsConfig{
		Lifetime: factsLifetime, Log: c.Log, Now: c.Now,
		Fetch: func(ctx context.Context) (authz.Facts, error) {
			gateway, err := c.Policy.Gateway(ctx)
			return authz.Facts{GatewayAppID: gateway}, err
		},
	})
	if err != nil {
		return nil, fmt.Errorf("making the registry's authority: %w", err)
	}
	return &Authorizer{policy: c.Policy, facts: facts}, nil
}

// Authorize decides by the rules as they are now. The error is
// [authz.ErrUnreachable] where the database does not answer, or answers with
// something that this KMS has not written.
func (a *Authorizer) Authorize(ctx context.Context, r authz.Request) (authz.Decision, error) {
	d, err := a.policy.Decide(ctx, Workload(r))
	if err != nil {
		return authz.Decision{}, fmt.Errorf("%w: %w", authz.ErrUnreachable, err)
	}
	return authz.Decision{Allowed: d.Allowed, Reason: d.Reason, GatewayAppID: d.GatewayAppID}, nil
}

// Facts returns the gateway, at most a second old.
func (a *Authorizer) Facts(ctx context.Context) (authz.Facts, error) { return a.facts.Get(ctx) }

// Workload is what the registry is told of a request.
func Workload(r authz.Request) registry.Workload {
	b := r.BootInfo
	return registry.Workload{
		Subject: registry.Subject(r.Subject.String()), AppID: b.AppID, ComposeHash: b.ComposeHash, OSImageHash: b.OSImageHash,
		MRAggregated: b.MRAggregated[:], DeviceID: b.DeviceID[:], TCBStatus: b.TCBStatus, AdvisoryIDs: b.AdvisoryIDs,
	}
}
