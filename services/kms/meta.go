package kms

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/gen/kms/v1/kmsv1connect"
	"teekms/internal/authz"
)

// metaLife is how long an answer of GetMeta is given without looking at the
// facts again. The authority is asked less often than that.
const metaLife = 5 * time.Second

// meta holds the answer of GetMeta.
type meta struct {
	// fixed is the part that never changes.
	fixed  *kmsv1.GetMetaResponse
	answer atomic.Pointer[metaAnswer]
}

// metaAnswer is an answer and the facts it was made from.
type metaAnswer struct {
	facts   authz.Facts
	message *kmsv1.GetMetaResponse
	// until is when to look at the facts again; zero means never.
	until time.Time
}

// GetMeta returns the public facts of this KMS. What the authority says of
// itself may be old or missing; it never makes the call fail.
func (s *Service) GetMeta(ctx context.Context, _ *kmsv1.GetMetaRequest) (*kmsv1.GetMetaResponse, error) {
	last := s.meta.answer.Load()
	if last != nil && (last.until.IsZero() || s.now().Before(last.until)) {
		return last.message, nil
	}
	facts, err := s.authority.Facts(ctx)
	switch {
	case err != nil && last != nil:
		return last.message, nil // what is known is better than nothing
	case err != nil:
		return factual(s.meta.fixed, authz.Facts{}), nil //nolint:nilerr // facts never make it fail
	}
	next := &metaAnswer{facts: facts}
	if last != nil && last.facts == facts {
		next.message = last.message
	} else {
		next.message = factual(s.meta.fixed, facts)
	}
	if !facts.Dev { // those of the development authorizer never change
		next.until = s.now().Add(metaLife)
	}
	s.meta.answer.Store(next)
	s.encodings.KeepUntil(kmsv1connect.KMSGetMetaProcedure, next.message, next.until)
	return next.message, nil
}

// factual returns a copy of fixed with the facts in it. Without an authority
// that knows a contract, existing clients expect the contract's fields unset;
// with one, set, even where it did not say.
func factual(fixed *kmsv1.GetMetaResponse, facts authz.Facts) *kmsv1.GetMetaResponse {
	m := proto.CloneOf(fixed)
	m.AllowAnyUpgrade, m.IsDev = facts.Dev, facts.Dev
	m.GatewayAppId = &facts.GatewayAppID
	if !facts.Dev {
		m.KmsContractAddress = &facts.ContractAddress
		m.ChainId = &facts.ChainID
		m.AppAuthImplementation = &facts.AppImplementation
	}
	return m
}
