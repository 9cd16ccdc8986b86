package authz

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// The defaults of [FactsConfig].
const (
	DefaultFactsLifetime = 30 * time.Second
	DefaultFactsTimeout  = 2 * time.Second
)

// FactsConfig says how facts are fetched and for how long they are good.
type FactsConfig struct {
	// Fetch asks the authority. Required.
	Fetch func(ctx context.Context) (Facts, error)
	// Lifetime is how long an answer, or its absence, is good before the
	// authority is asked again; DefaultFactsLifetime when zero.
	Lifetime time.Duration
	// Timeout bounds one Fetch; DefaultFactsTimeout when zero.
	Timeout time.Duration
	// Log gets a line for every Fetch that failed; required.
	Log *zap.Logger
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// FactsCache keeps an authority's facts for a while, so that GetMeta, which
// anyone may call, costs the authority at most one question at a time and one in
// each lifetime. An authority that does not answer leaves the facts as they
// were, empty at first.
type FactsCache struct {
	cfg FactsConfig
	// kept is nil before the first answer or its absence.
	kept atomic.Pointer[keptFacts]
	// turn holds a token while somebody asks. It is no mutex, because waiting
	// for it obeys a context.
	turn chan struct{}
}

type keptFacts struct {
	facts Facts
	asked time.Time
}

// NewFactsCache returns an empty cache.
func NewFactsCache(cfg FactsConfig) (*FactsCache, error) {
	if cfg.Fetch == nil || cfg.Log == nil {
		return nil, errors.New("facts cache needs Fetch and Log")
	}
	if cfg.Lifetime <= 0 {
		cfg.Lifetime = DefaultFactsLifetime
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultFactsTimeout
	}
	if cfg.Now == nil {
		cfg.Now = time.Now //nolint:forbidigo // the documented default of an optional clock
	}
	return &FactsCache{cfg: cfg, turn: make(chan struct{}, 1)}, nil
}

// Get returns the facts. It waits at most for the Timeout where it asks, and
// not at all for another caller who does, unless nothing is known yet. The error
// is ctx's.
func (c *FactsCache) Get(ctx context.Context) (Facts, error) {
	kept := c.kept.Load()
	if c.fresh(kept) {
		return kept.facts, nil
	}
	if kept != nil {
		select {
		case c.turn <- struct{}{}:
		default:
			return kept.facts, nil
		}
	} else {
		select {
		case c.turn <- struct{}{}:
		case <-ctx.Done():
			return Facts{}, ctx.Err()
		}
	}
	defer func() { <-c.turn }()
	if err := ctx.Err(); err != nil {
		return Facts{}, err
	}
	if kept = c.kept.Load(); c.fresh(kept) {
		return kept.facts, nil // another caller had the turn before
	}
	return c.ask(ctx, kept)
}

func (c *FactsCache) fresh(kept *keptFacts) bool {
	if kept == nil {
		return false
	}
	age := c.cfg.Now().Sub(kept.asked)
	return age >= 0 && age < c.cfg.Lifetime
}

// ask fetches the facts; the caller holds the turn.
func (c *FactsCache) ask(ctx context.Context, old *keptFacts) (Facts, error) {
	asking, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	facts, err := c.cfg.Fetch(asking)
	if err != nil && ctx.Err() != nil {
		return Facts{}, ctx.Err() // the caller went away, which says nothing of the authority
	}
	if err != nil {
		c.cfg.Log.Warn("authorization service gives no facts, keeping what is known", zap.NamedError("err", err))
		facts = Facts{}
		if old != nil {
			facts = old.facts
		}
	}
	c.kept.Store(&keptFacts{facts: facts, asked: c.cfg.Now()})
	return facts, nil
}
