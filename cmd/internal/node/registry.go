package node

import (
	"context"
	"errors"
	"fmt"

	"teekms/internal/authz"
	"teekms/internal/keys"
	"teekms/services/onboard"
)

// Registry is the authority in the database of a KMS.
type Registry interface {
	authz.Authorizer
	// Onboarded records that this machine takes over the root keys, before it
	// does.
	Onboarded(ctx context.Context, r onboard.Received) error
	// Close ends what Open began.
	Close(ctx context.Context) error
}

// OpenRegistry opens the database that the configuration names with root keys
// that are not committed yet. The error is a *[DatabaseRefusedError] where the
// database is of others.
type OpenRegistry func(ctx context.Context, n *Node, roots *keys.Roots) (Registry, error)

// DatabaseRefusedError says that a database does not go with root keys. Its text
// is for who runs the onboarding.
type DatabaseRefusedError struct{ Err error }

// Error returns the cause's text.
func (e *DatabaseRefusedError) Error() string { return e.Err.Error() }

func (e *DatabaseRefusedError) Unwrap() error { return e.Err }

// receiver judges root keys that were received, by the registry that belongs to
// them.
type receiver struct {
	*Node
	self func(context.Context) (authz.BootInfo, error)
}

// receive asks the registry about the source, then about this machine, and
// records that the keys are taken over. After an error they are not.
func (r receiver) receive(ctx context.Context, got onboard.Received) (err error) {
	registry, err := r.registry(ctx, r.Node, got.Roots)
	if err != nil {
		if refused, ok := errors.AsType[*DatabaseRefusedError](err); ok {
			return &onboard.SourceError{Reason: "its root keys do not go with core.database: " + refused.Error(), Err: err}
		}
		return fmt.Errorf("%w: opening the registry: %w", authz.ErrUnreachable, err)
	}
	defer func() { err = errors.Join(err, registry.Close(ctx)) }()
	reason, err := ask(ctx, registry, got.Source)
	if err != nil {
		return fmt.Errorf("authorizing the source: %w", err)
	}
	if reason != nil {
		return &onboard.SourceError{Reason: "Boot denied: " + *reason}
	}
	if err := r.authorizeSelf(ctx, registry); err != nil {
		return err
	}
	if err := registry.Onboarded(ctx, got); err != nil {
		return fmt.Errorf("%w: recording the onboarding: %w", authz.ErrUnreachable, err)
	}
	return nil
}

// authorizeSelf asks whether this machine may be a KMS.
func (r receiver) authorizeSelf(ctx context.Context, registry Registry) error {
	if r.self == nil {
		return nil
	}
	info, err := r.self(ctx)
	if err != nil {
		return &onboard.SelfDeniedError{Reason: "it cannot be described to the authority", Err: err}
	}
	reason, err := ask(ctx, registry, info)
	if err != nil {
		return fmt.Errorf("authorizing this KMS: %w", err)
	}
	if reason != nil {
		return &onboard.SelfDeniedError{Reason: *reason}
	}
	return nil
}

// ask returns the reason of a denial, nil where the authority allows.
func ask(ctx context.Context, authority authz.Authorizer, info authz.BootInfo) (denied *string, err error) {
	decision, err := authority.Authorize(ctx, authz.Request{Subject: authz.KMS, BootInfo: info})
	if err != nil || decision.Allowed {
		return nil, err
	}
	reason := authz.PublicReason(decision.Reason)
	return &reason, nil
}
