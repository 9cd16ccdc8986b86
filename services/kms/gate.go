package kms

import (
	"context"
	"sync/atomic"

	"connectrpc.com/connect"

	"teekms/internal/authz"
	"teekms/internal/osimage"
	"teekms/internal/ratls"
)

// question is what has to be decided before anything leaves.
type question struct {
	subject authz.Subject
	// attested is the workload that asks.
	attested *ratls.Attested
	// vmConfig is what the request says of its machine.
	vmConfig string
	// bootTime asks about the workload as it was at the end of its boot.
	bootTime bool
}

// grant is the answer yes, and what it rests on.
type grant struct {
	subject  authz.Subject
	info     authz.BootInfo
	decision authz.Decision
	image    osimage.Result
}

// decide asks the authority, and then whether the image is the one that the
// authority was told of. The order is that of existing KMSs: an operator who
// looks at the refusals sees the same one first (docs/wire.md#release).
func (s *Service) decide(ctx context.Context, q question) (*grant, error) {
	info, err := authz.Describe(q.attested, authz.DescribeOptions{VMConfig: q.vmConfig, BootTime: q.bootTime})
	if err != nil {
		return nil, describeRefusal(err)
	}
	decision, err := s.authority.Authorize(ctx, authz.Request{Subject: q.subject, BootInfo: info})
	if err != nil {
		return nil, err
	}
	if !decision.Allowed {
		return nil, s.recordDenial(ctx, q.subject, &info, denied(withReason("Boot denied", decision.Reason), nil))
	}
	image, err := s.images.Verify(ctx, osimage.Subject{
		Claims: q.attested.Claims, Log: q.attested.Log, OSImageHash: info.OSImageHash, VMConfig: info.VMConfig,
	})
	if err != nil {
		return nil, s.recordDenial(ctx, q.subject, &info, imageRefusal(err))
	}
	return &grant{subject: q.subject, info: info, decision: decision, image: image}, nil
}

// withReason appends the authority's own words, if it gave any.
func withReason(text, reason string) string {
	if reason == "" {
		return text
	}
	return text + ": " + reason
}

// self is the description of this KMS that authorities are asked about. What it
// is made from is attested once: a process does not change what it runs in.
type self struct {
	describe func(context.Context) (authz.BootInfo, error)
	known    atomic.Pointer[authz.BootInfo]
	// turn holds a token while somebody attests. It is no mutex, because
	// waiting for it obeys a context.
	turn chan struct{}
}

func newSelf(describe func(context.Context) (authz.BootInfo, error)) *self {
	return &self{describe: describe, turn: make(chan struct{}, 1)}
}

// get returns the description, made by the first call that succeeds.
func (s *self) get(ctx context.Context) (*authz.BootInfo, error) {
	if info := s.known.Load(); info != nil {
		return info, nil
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if info := s.known.Load(); info != nil {
		return info, nil // another caller had the turn before
	}
	info, err := s.describe(ctx)
	if err != nil {
		return nil, err
	}
	s.known.Store(&info)
	return &info, nil
}

// authorizeSelf asks the authority whether this KMS may still serve. The answer
// is not kept: an authority that withdraws it is obeyed with the next call.
func (s *Service) authorizeSelf(ctx context.Context) error {
	if s.self.describe == nil {
		return nil
	}
	const what = "KMS self authorization failed"
	info, err := s.self.get(ctx)
	if err != nil {
		return &refusal{code: connect.CodeUnavailable, text: what, cause: err}
	}
	decision, err := s.authority.Authorize(ctx, authz.Request{Subject: authz.KMS, BootInfo: *info})
	if err != nil {
		return err
	}
	if !decision.Allowed {
		return s.recordSelfDenial(ctx, info, denied(what+": "+withReason("KMS is not allowed", decision.Reason), nil))
	}
	return nil
}

// peer returns the attested caller.
func peer(ctx context.Context) (*ratls.Attested, error) {
	if a := ratls.PeerFrom(ctx); a != nil {
		return a, nil
	}
	return nil, errNoAttestation
}
