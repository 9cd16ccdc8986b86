package kms

import (
	"context"
	"errors"
	"sync"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	"teekms/internal/audit"
	"teekms/internal/authz"
	"teekms/internal/ratls"
	"teekms/internal/rpc"
)

// Denials that are recorded: this many at once, and this many a second in the
// long run. Anybody who owns a trust domain can have himself denied, and must
// not fill the database with it.
const (
	denialBurst     = 256
	denialPerSecond = 16
	// denialPatience is how long a denial waits for its record.
	denialPatience = 2 * time.Second
)

// denialBudget says whether one more denial may be recorded.
type denialBudget struct {
	now func() time.Time

	mu     sync.Mutex
	tokens float64   // guarded by mu
	at     time.Time // guarded by mu
}

func newDenialBudget(now func() time.Time) *denialBudget {
	return &denialBudget{now: now, tokens: denialBurst, at: now()}
}

func (b *denialBudget) take() bool {
	now := b.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	// A clock that went back refills nothing.
	b.tokens = min(denialBurst, b.tokens+max(0, now.Sub(b.at).Seconds())*denialPerSecond)
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// recordDenial records that a workload was refused by policy, with what was
// seen of it. Refusals for other reasons, and those of nobody in particular,
// are not recorded. It returns err: who is denied is denied, whether that can be
// recorded or not.
func (s *Service) recordDenial(ctx context.Context, subject authz.Subject, info *authz.BootInfo, err error) error {
	r, ok := errors.AsType[*refusal](err)
	if !ok || r.code != connect.CodePermissionDenied {
		return err
	}
	if !s.denials.take() {
		s.unrecorded("too many denials to record them all", nil)
		return err
	}
	fields := bootFields(subject, info)
	fields["reason"] = recordable(r.text)
	fields["request_id"] = recordable(rpc.RequestID(ctx))
	// Who hangs up is recorded all the same, and nobody is kept waiting for long.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), denialPatience)
	defer cancel()
	if _, appendErr := s.audit.Append(ctx, audit.Event{Kind: audit.Denial, Fields: fields}); appendErr != nil {
		s.unrecorded("denial not recorded", appendErr)
	}
	return err
}

// recordSelfDenial is recordDenial for this KMS itself, where the caller is
// attested: others may ask as often as they like.
func (s *Service) recordSelfDenial(ctx context.Context, info *authz.BootInfo, err error) error {
	if ratls.PeerFrom(ctx) == nil {
		return err
	}
	return s.recordDenial(ctx, authz.KMS, info, err)
}

func (s *Service) unrecorded(message string, err error) {
	s.log.Warn(message, zap.NamedError("err", err))
	s.metrics.unrecorded()
}
