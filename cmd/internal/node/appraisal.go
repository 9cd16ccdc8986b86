package node

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"teekms/internal/observe"
	"teekms/internal/ratls"
)

// NewAppraiser returns what appraises the Evidence of others, no faster for one
// address than the configuration allows. metrics may be nil.
func (n *Node) NewAppraiser(metrics *observe.KMS) (*ratls.Appraiser, error) {
	l := n.Config.Core.Limits
	limiter, err := ratls.NewLimiter(ratls.LimiterConfig{
		PerSecond: float64(l.AppraisalsPerSecond), Burst: int(l.AppraisalsBurst), Now: time.Now,
	})
	if err != nil {
		return nil, err
	}
	return ratls.NewAppraiser(ratls.AppraiserConfig{
		Verifier: n.attestation.verifier, Limit: limiter.Allow, Now: time.Now,
		OnResult: func(r ratls.Result) {
			if errors.Is(r.Err, ratls.ErrLimited) {
				metrics.Limited()
				return
			}
			metrics.Appraisal(r.Outcome, r.Took)
		},
	})
}

// RefreshCollateral fetches collateral ahead of its expiry until ctx ends.
func (n *Node) RefreshCollateral(ctx context.Context) { _ = n.attestation.collateral.Run(ctx) } // ctx's error

// RegisterCollateral adds the metrics of the collateral at hand.
func (n *Node) RegisterCollateral() error {
	return observe.RegisterCollateral(n.Metrics, func() []observe.Collateral {
		held := n.attestation.collateral.Held()
		out := make([]observe.Collateral, len(held))
		for i, h := range held {
			out[i] = observe.Collateral{
				FMSPC: hex.EncodeToString(h.FMSPC[:]), CA: string(h.CA), Fetched: h.Fetched, Expires: h.Expires,
			}
		}
		return out
	}, time.Now)
}
