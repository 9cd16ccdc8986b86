// Package onboard gives a KMS its root keys, once: it generates them in this
// trust domain, has them quoted, looks at the quote, and commits all of it to
// the key directory; or it takes over those of a peer KMS, after each side has
// appraised the other on one connection. Create a [Service] with [New], mount it with
// [Service.Handlers], and wait for [Service.Finished].
package onboard

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/attest"
	"teekms/internal/authz"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

// keyStore is the key directory as this service needs it.
type keyStore interface {
	// Complete says whether the directory holds the keys of a KMS.
	Complete() bool
	// Commit writes the bundle, all of it or nothing. The error is
	// keystore.ErrAlreadyBootstrapped when the directory is complete by now.
	Commit(ctx context.Context, b *keystore.Bundle) error
}

// verifier checks this TD's own Evidence, with or without collateral.
type verifier interface {
	attest.Verifier
	VerifyOffline(ctx context.Context, e *attest.Evidence) (*attest.Claims, error)
}

// authorizer is an authority on who may be a KMS (authz.Authorizer).
type authorizer interface {
	Authorize(ctx context.Context, r authz.Request) (authz.Decision, error)
}

// Config is what a Service stands on.
type Config struct {
	// Store is the key directory (required).
	Store keyStore
	// Attester makes the quotes; nil switches them off.
	Attester attest.Attester
	// Provider is the name of the attester, shown to users: "guest-agent",
	// "configfs" or "simulator" (required with an Attester).
	Provider string
	// Verifier tells who signed the quotes of this TD (required with an
	// Attester).
	Verifier verifier
	// Authorizer decides whether a peer may be the source of root keys, by what
	// its verified Evidence says. Optional: without one, Evidence that verifies
	// is enough.
	Authorizer authorizer
	// Self describes this TD to the Authorizer, which is then asked before
	// root keys are made. Optional: without it nobody is asked about
	// this TD.
	Self func(ctx context.Context) (authz.BootInfo, error)
	// Receive judges root keys that were received from a source, before they are
	// committed: for an authority that cannot be asked without them. Optional;
	// its text is for the caller where it is one of this package's errors.
	Receive func(ctx context.Context, r Received) error
	// SetupToken is what Bootstrap, Onboard and Finish ask for; empty asks for
	// nothing.
	SetupToken keys.Secret
	// SiteName is shown by GetAttestationInfo (optional).
	SiteName string
	// Version of the binary, shown on the page (optional).
	Version string
	// InsecureSettings are the switches in force that weaken security.
	InsecureSettings []string
	// AttestTimeout bounds the making of one quote (default 2 minutes).
	AttestTimeout time.Duration
	// PeerTimeout bounds the handshake with a peer, and again all that is asked
	// of it, its own appraisal of this trust domain included (default 1 minute).
	PeerTimeout time.Duration
	// Now is the clock (default time.Now).
	Now func() time.Time
	// Log receives state changes (default none).
	Log *zap.Logger
}

// Received is what a source gave.
type Received struct {
	// Roots are the root keys, which are of one pair with the source's
	// certificate.
	Roots *keys.Roots
	// Source is the source, by its verified Evidence.
	Source authz.BootInfo
	// Domain is what this KMS will be called.
	Domain string
}

// Service is the onboarding service. It implements the Onboard service of
// onboard.v1 and lives until Finish.
type Service struct {
	cfg Config

	mu        sync.Mutex                   // guards the four fields below
	running   chan struct{}                // closed when the job under way ends; nil when there is none
	done      bool                         // the key directory is complete
	record    *onboardv1.BootstrapResponse // the answer of the job that succeeded in this process
	requestID string                       // its request_id, "" when it had none

	background sync.WaitGroup // jobs, which outlive their callers
	finish     sync.Once
	finished   chan struct{}

	info infoCache
}

// New returns a service over an empty key directory.
func New(cfg Config) (*Service, error) {
	if cfg.Store == nil {
		return nil, errors.New("onboard: Config.Store is required")
	}
	if cfg.Attester != nil && (cfg.Verifier == nil || cfg.Provider == "") {
		return nil, errors.New("onboard: an Attester needs Config.Verifier and Config.Provider")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now //nolint:forbidigo // the default of an injected clock
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.AttestTimeout <= 0 {
		cfg.AttestTimeout = 2 * time.Minute
	}
	if cfg.PeerTimeout <= 0 {
		cfg.PeerTimeout = time.Minute
	}
	return &Service{cfg: cfg, done: cfg.Store.Complete(), finished: make(chan struct{}), info: newInfoCache()}, nil
}

// Finished is closed when Finish was accepted: the process may end once the
// calls in flight are answered.
func (s *Service) Finished() <-chan struct{} { return s.finished }

// Wait returns when no job is under way. Call it when no new calls can
// arrive and before the process ends.
func (s *Service) Wait() { s.background.Wait() }

// Finish ends the service. It is refused while the key directory is empty.
func (s *Service) Finish(context.Context, *onboardv1.FinishRequest) (*onboardv1.FinishResponse, error) {
	s.mu.Lock()
	done := s.done
	s.mu.Unlock()
	if !done {
		return nil, ErrNotBootstrapped
	}
	s.finish.Do(func() {
		s.cfg.Log.Info("Setup finished")
		close(s.finished)
	})
	return &onboardv1.FinishResponse{}, nil
}
