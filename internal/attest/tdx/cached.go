package tdx

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Defaults of [CachedConfig].
const (
	defaultMaxPlatforms = 64
	defaultMaxBytes     = 32 << 20
	defaultRefreshEvery = time.Hour
	defaultRetryAfter   = 10 * time.Second
	defaultFetchTimeout = 30 * time.Second
)

// CachedConfig says how a [CachedSource] works.
type CachedConfig struct {
	// Source is where collateral comes from. Required.
	Source CollateralSource
	// TrustAnchor is what collateral must verify to before it is kept, so
	// that a source gone bad cannot displace good collateral. Required.
	TrustAnchor *x509.Certificate
	// RefreshEvery is the age at which Run fetches anew; 1 hour if zero.
	RefreshEvery time.Duration
	// RetryAfter is how long a failed fetch is not repeated; 10 seconds if zero.
	RetryAfter time.Duration
	// FetchTimeout bounds one fetch; 30 seconds if zero.
	FetchTimeout time.Duration
	// MaxPlatforms and MaxBytes bound what is kept; 64 and 32 MiB if zero.
	MaxPlatforms, MaxBytes int
	// OnFetch, if not nil, is told of each fetch. It must not block.
	OnFetch func(Fetch)
	// Now is the clock; time.Now if nil.
	Now func() time.Time
}

// Fetch is one fetch of collateral.
type Fetch struct {
	FMSPC FMSPC
	CA    CA
	// Took is how long it took; Err why it gave nothing that verifies.
	Took time.Duration
	Err  error
	// Expires is when what is now kept ends to be valid, zero if nothing is.
	Expires time.Time
}

// CachedSource is a CollateralSource that keeps what another one gave until it
// expires. It verifies collateral before it keeps it; while Run runs it fetches
// anew ahead of expiry, and goes on serving what it has where that fails, until
// that expires: then it has none. At most one fetch per platform family runs at
// a time, its callers wait for it. It is safe for use by several goroutines.
type CachedSource struct {
	cfg CachedConfig

	mu      sync.Mutex
	entries map[platformKey]*cachedEntry // guarded by mu
	bytes   int                          // guarded by mu: of all collateral in entries
}

var _ CollateralSource = (*CachedSource)(nil)

// cachedEntry is what is known of one platform family. It is guarded by the
// mutex of its source.
type cachedEntry struct {
	// held is nil when there is none.
	held          *heldCollateral
	fetched, used time.Time
	// inFlight is closed when the fetch under way ends, nil without one.
	inFlight chan struct{}
	// err is how the last fetch failed, and retry when to try again.
	err   error
	retry time.Time
}

// NewCachedSource makes a CachedSource.
func NewCachedSource(cfg CachedConfig) (*CachedSource, error) {
	if cfg.Source == nil || cfg.TrustAnchor == nil {
		return nil, errors.New("making a collateral cache: no source or no trust anchor")
	}
	if err := checkAnchor(cfg.TrustAnchor); err != nil {
		return nil, fmt.Errorf("making a collateral cache: trust anchor: %w", err)
	}
	cfg.RefreshEvery = orDefault(cfg.RefreshEvery, defaultRefreshEvery)
	cfg.RetryAfter = orDefault(cfg.RetryAfter, defaultRetryAfter)
	cfg.FetchTimeout = orDefault(cfg.FetchTimeout, defaultFetchTimeout)
	cfg.MaxPlatforms = orDefault(cfg.MaxPlatforms, defaultMaxPlatforms)
	cfg.MaxBytes = orDefault(cfg.MaxBytes, defaultMaxBytes)
	if cfg.Now == nil {
		cfg.Now = time.Now //nolint:forbidigo // the documented default of an optional clock
	}
	return &CachedSource{cfg: cfg, entries: make(map[platformKey]*cachedEntry)}, nil
}

func orDefault[T int | time.Duration](v, otherwise T) T {
	if v <= 0 {
		return otherwise
	}
	return v
}

// Collateral returns what is kept if it is valid now, the same pointer until
// it is replaced; it must not be changed. Else it fetches, or waits for whoever
// is fetching. The error is an attest.ErrNoCollateral.
func (s *CachedSource) Collateral(ctx context.Context, fmspc FMSPC, ca CA) (*Collateral, error) {
	h, err := s.get(ctx, platformKey{fmspc, ca})
	if err != nil {
		return nil, err
	}
	return h.raw, nil
}

// get is Collateral with the result of its verification.
func (s *CachedSource) get(ctx context.Context, k platformKey) (*heldCollateral, error) {
	for {
		h, wait, err := s.lookup(k)
		if h != nil || err != nil {
			return h, err
		}
		if wait == nil {
			// This caller is the one to fetch. When its own context ends, the
			// others find no error to share and one of them goes on.
			s.fetch(ctx, k)
			if err := ctx.Err(); err != nil {
				return nil, noCollateral(err)
			}
			continue
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, noCollateral(ctx.Err())
		}
	}
}

// lookup returns valid collateral, or the error of a fetch too recent to be
// repeated, or what to wait for. With none of these the caller must call fetch.
func (s *CachedSource) lookup(k platformKey) (*heldCollateral, <-chan struct{}, error) {
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.entries[k]
	if !ok {
		e = &cachedEntry{}
		s.makeRoom(1, 0, k)
		s.entries[k] = e
	}
	e.used = now
	switch {
	case e.validAt(now):
		return e.held, nil, nil
	case e.inFlight != nil:
		return nil, e.inFlight, nil
	case e.err != nil && now.Before(e.retry):
		return nil, nil, e.err
	default:
		e.inFlight = make(chan struct{})
		return nil, nil, nil
	}
}

func (e *cachedEntry) validAt(t time.Time) bool {
	return e.held != nil && e.held.verified.validAt(t)
}

// size and expires are zero where nothing is held.
func (e *cachedEntry) size() int {
	if e.held == nil {
		return 0
	}
	return e.held.raw.size()
}

func (e *cachedEntry) expires() time.Time {
	if e.held == nil {
		return time.Time{}
	}
	return e.held.verified.notAfter
}

// fetch asks the source, verifies and keeps the answer. The entry of k must
// have been marked as in flight by this caller.
func (s *CachedSource) fetch(ctx context.Context, k platformKey) {
	fetchCtx, cancel := context.WithTimeout(ctx, s.cfg.FetchTimeout)
	defer cancel()
	start := s.cfg.Now()
	c, err := s.cfg.Source.Collateral(fetchCtx, k.fmspc, k.ca)
	now := s.cfg.Now()
	var verified *endorsements
	if err == nil {
		verified, err = s.verify(c, k, now)
	}

	s.mu.Lock()
	e := s.entries[k]
	close(e.inFlight)
	e.inFlight = nil
	switch {
	case err == nil:
		s.keep(k, e, &heldCollateral{raw: c, verified: verified})
		e.fetched, e.err = now, nil
	case ctx.Err() != nil:
		// The caller left: that says nothing of the source.
		e.err = nil
	default:
		e.err, e.retry = noCollateral(err), now.Add(s.cfg.RetryAfter)
	}
	expires := e.expires()
	s.mu.Unlock()
	if s.cfg.OnFetch != nil {
		s.cfg.OnFetch(Fetch{FMSPC: k.fmspc, CA: k.ca, Took: now.Sub(start), Err: err, Expires: expires})
	}
}

func (s *CachedSource) verify(c *Collateral, k platformKey, now time.Time) (*endorsements, error) {
	if n := c.size(); n > s.cfg.MaxBytes {
		return nil, fmt.Errorf("collateral of %d bytes, more than %d", n, s.cfg.MaxBytes)
	}
	return endorser{anchor: s.cfg.TrustAnchor, now: now}.verify(c, k.fmspc, k.ca)
}

// keep puts h into e, whose key is k. The caller holds mu.
func (s *CachedSource) keep(k platformKey, e *cachedEntry, h *heldCollateral) {
	s.bytes -= e.size()
	e.held = nil
	s.makeRoom(0, h.raw.size(), k)
	e.held = h
	s.bytes += h.raw.size()
}

// size counts the bytes of c, none if it is nil.
func (c *Collateral) size() int {
	if c == nil {
		return 0
	}
	return len(c.TCBInfo) + len(c.TCBInfoChain) + len(c.QEIdentity) + len(c.QEIdentityChain) +
		len(c.PCKCRL) + len(c.PCKCRLChain) + len(c.RootCRL)
}

// makeRoom forgets the entries not used for longest until more entries and
// more bytes fit, sparing that of k and those in flight. The caller holds mu.
func (s *CachedSource) makeRoom(moreEntries, moreBytes int, k platformKey) {
	for len(s.entries)+moreEntries > s.cfg.MaxPlatforms || s.bytes+moreBytes > s.cfg.MaxBytes {
		var oldest *platformKey
		for key, e := range s.entries {
			if key == k || e.inFlight != nil || oldest != nil && !e.used.Before(s.entries[*oldest].used) {
				continue
			}
			oldest = &key
		}
		if oldest == nil {
			return
		}
		s.bytes -= s.entries[*oldest].size()
		delete(s.entries, *oldest)
	}
}

// Run refreshes what is kept ahead of its expiry until ctx ends, and returns
// nil then. It leaves nothing running behind.
func (s *CachedSource) Run(ctx context.Context) error {
	// Looking more often than refreshing lets a failed refresh be retried.
	tick := time.NewTicker(max(s.cfg.RefreshEvery/10, time.Second))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.refresh(ctx)
		}
	}
}

// refresh fetches what is due. An entry that failed is not due again at once.
func (s *CachedSource) refresh(ctx context.Context) {
	for ctx.Err() == nil {
		k, ok := s.due()
		if !ok {
			return
		}
		s.fetch(ctx, k)
	}
}

// due finds an entry to be refreshed, marks it as in flight and returns its
// key. That holds no caller up: each gets what is kept while it is valid.
func (s *CachedSource) due() (k platformKey, ok bool) {
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, e := range s.entries {
		old := e.held != nil && now.Sub(e.fetched) >= s.cfg.RefreshEvery
		if old && e.inFlight == nil && (e.err == nil || !now.Before(e.retry)) {
			e.inFlight = make(chan struct{})
			return k, true
		}
	}
	return k, false
}

// Held is the state of the collateral of one platform family.
type Held struct {
	FMSPC FMSPC
	CA    CA
	// Fetched is when it was last fetched, Expires when it ends to be valid;
	// zero while there is none.
	Fetched, Expires time.Time
	// Err is how the last fetch failed, nil if it did not.
	Err error
}

// Held tells what is kept, in no order, for metrics and for operators.
func (s *CachedSource) Held() []Held {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Held, 0, len(s.entries))
	for k, e := range s.entries {
		out = append(out, Held{FMSPC: k.fmspc, CA: k.ca, Fetched: e.fetched, Expires: e.expires(), Err: e.err})
	}
	return out
}
