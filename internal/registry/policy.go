package registry

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
)

// Decision is the answer of the registry.
type Decision struct {
	// Allowed is the answer. The zero Decision denies.
	Allowed bool
	// Reason is one of the Reason constants; empty where it is allowed.
	Reason string
	// GatewayAppID is what an application that is allowed may speak to: an
	// application id in hexadecimal, Any, or empty where no gateway is set.
	GatewayAppID string
	// Revision is that of the rules that were looked at.
	Revision uint64
}

// Committer appends a change to the audit log, and applies it to the rules in
// the same transaction. The change is normalized. It returns when both are
// durable. Where ExpectedRevision is not met nothing is written, and the error
// says so.
type Committer interface {
	CommitChange(ctx context.Context, c Change) (Receipt, error)
}

// Config configures a [Policy].
type Config struct {
	// Store has the rules. Required.
	Store Store
	// Committer changes them; a Policy without one only reads.
	Committer Committer
}

// Policy decides by the rules of a store. Nothing is kept between decisions: a
// change works with the next one, on every KMS that shares the store. Its
// methods may be called from several goroutines.
type Policy struct {
	store     Store
	committer Committer
	// known is the gateway as it was seen last. It is believed only where the
	// read that the decision rests on confirms it: it saves a question, not an
	// answer.
	known atomic.Pointer[knownGateway]
}

// knownGateway is a gateway, empty for none, that was read after the rules had
// that revision.
type knownGateway struct {
	value    string
	revision uint64
}

// New returns the policy of a store.
func New(c Config) (*Policy, error) {
	if c.Store == nil {
		return nil, errors.New("making a registry: Store is required")
	}
	return &Policy{store: c.Store, committer: c.Committer}, nil
}

// Errors of a [Policy].
var (
	// ErrSubject says that a workload is neither an application nor a KMS.
	ErrSubject = errors.New("a workload is an app or a kms")
	// ErrReadOnly says that there is nothing to record a change with.
	ErrReadOnly = errors.New("the registry cannot be changed here")
	// ErrGateways says that the store has more than one gateway, which no change
	// leads to.
	ErrGateways = errors.New("the registry has more than one gateway")
)

// Decide answers by one consistent read of the rules. A denial is no error;
// after an error nobody has decided, and the Decision denies.
func (p *Policy) Decide(ctx context.Context, w Workload) (Decision, error) {
	if w.Subject != SubjectApp && w.Subject != SubjectKMS {
		return Decision{}, ErrSubject
	}
	checks := w.checks()
	m, err := p.match(ctx, checks, w.Subject == SubjectApp)
	if err != nil {
		return Decision{}, err
	}
	for i := range checks {
		if _, ok := checks[i].passedBy(m.exists); !ok {
			return Decision{Reason: checks[i].reason, Revision: m.revision}, nil
		}
	}
	d := Decision{Allowed: true, Revision: m.revision}
	if w.Subject == SubjectApp {
		if d.GatewayAppID, err = p.gatewayOf(ctx, m); err != nil {
			return Decision{}, err
		}
	}
	return d, nil
}

// matched is what of some rules there is.
type matched struct {
	rules    []Rule
	found    []bool
	revision uint64
	// gateway is the one that was confirmed, nil where none was.
	gateway *knownGateway
}

func (m *matched) exists(r Rule) bool {
	for i, rule := range m.rules {
		if rule == r {
			return m.found[i]
		}
	}
	return false
}

// match asks for all rules of the checks at once, and with them whether the
// gateway is still what it was, or any.
func (p *Policy) match(ctx context.Context, checks []check, withGateway bool) (*matched, error) {
	m := &matched{rules: rulesOf(checks)}
	known := p.known.Load()
	if withGateway && known != nil && known.value != "" {
		m.rules = append(m.rules, Rule{Kind: Gateway, Value: known.value})
	}
	var err error
	if m.found, m.revision, err = p.store.Match(ctx, m.rules); err != nil {
		return nil, fmt.Errorf("reading rules of the registry: %w", err)
	}
	if len(m.found) != len(m.rules) {
		return nil, fmt.Errorf("reading rules of the registry: %d answers to %d questions", len(m.found), len(m.rules))
	}
	switch {
	case !withGateway || known == nil:
	case known.revision == m.revision:
		// Revisions only grow: nothing has changed since before it was read.
		m.gateway = known
	case known.value != "" && m.exists(Rule{Kind: Gateway, Value: known.value}):
		m.gateway = &knownGateway{known.value, m.revision}
		p.known.Store(m.gateway)
	}
	return m, nil
}

// gatewayOf returns the gateway of a decision. Where the read that it rests on
// did not confirm one, it asks.
func (p *Policy) gatewayOf(ctx context.Context, m *matched) (string, error) {
	if m.gateway != nil {
		return m.gateway.value, nil
	}
	value, err := p.Gateway(ctx)
	if err != nil {
		return "", err
	}
	p.known.Store(&knownGateway{value, m.revision})
	return value, nil
}

// Gateway returns the application id of the gateway, Any, or empty where none is
// set.
func (p *Policy) Gateway(ctx context.Context) (string, error) {
	entries, err := p.store.List(ctx, Query{Kind: Gateway, Limit: 2})
	switch {
	case err != nil:
		return "", fmt.Errorf("reading the gateway of the registry: %w", err)
	case len(entries) > 1:
		return "", ErrGateways
	case len(entries) == 0:
		return "", nil
	}
	return entries[0].Value, nil
}

// Revision returns the revision of the rules, 0 before the first change.
func (p *Policy) Revision(ctx context.Context) (uint64, error) {
	_, revision, err := p.store.Match(ctx, []Rule{{Kind: Gateway, Value: Any}})
	if err != nil {
		return 0, fmt.Errorf("reading the revision of the registry: %w", err)
	}
	return revision, nil
}

// List returns a page of entries.
func (p *Policy) List(ctx context.Context, q Query) ([]Entry, error) {
	entries, err := p.store.List(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("listing rules of the registry: %w", err)
	}
	return entries, nil
}

// Update changes the rules: all edits, or none. The error is an [*EditError],
// [ErrNoEdits], [ErrTooManyEdits] or [ErrComment] where the change is at fault,
// and otherwise that of the Committer.
func (p *Policy) Update(ctx context.Context, c Change) (Receipt, error) {
	if p.committer == nil {
		return Receipt{}, ErrReadOnly
	}
	c, err := c.normalize()
	if err != nil {
		return Receipt{}, err
	}
	r, err := p.committer.CommitChange(ctx, c)
	if err != nil {
		return Receipt{}, fmt.Errorf("changing the registry: %w", err)
	}
	return r, nil
}
