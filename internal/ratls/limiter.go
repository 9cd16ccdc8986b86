package ratls

import (
	"errors"
	"net/netip"
	"sync"
	"time"
)

// LimiterConfig says how much a [Limiter] allows.
type LimiterConfig struct {
	// PerSecond is how many appraisals an address gets in the long run.
	// Required, more than 0.
	PerSecond float64
	// Burst is how many it may have at once. Required, at least 1.
	Burst int
	// MaxAddresses bounds the addresses that are remembered; 0 means 16384.
	MaxAddresses int
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

const (
	defaultMaxAddresses = 16384
	// evictionSample is how many addresses are looked at to forget one.
	evictionSample = 8
	// An IPv6 network of this many bits belongs to one customer.
	ipv6Prefix = 64
)

// Limiter is a token bucket for each address; an IPv6 address shares that of
// its /64. It may be used from several goroutines. Its memory is bounded: of
// more addresses than it remembers, those that have been quiet for longest
// start anew.
type Limiter struct {
	perSecond, burst float64
	max              int
	now              func() time.Time

	mu      sync.Mutex
	buckets map[netip.Addr]bucket // guarded by mu
}

// bucket holds tokens as of a time.
type bucket struct {
	tokens float64
	at     time.Time
}

// NewLimiter makes a Limiter.
func NewLimiter(cfg LimiterConfig) (*Limiter, error) {
	if !(cfg.PerSecond > 0) || cfg.Burst < 1 || cfg.MaxAddresses < 0 { // also refuses NaN
		return nil, errors.New("making a limiter: rate and burst must be positive")
	}
	if cfg.MaxAddresses == 0 {
		cfg.MaxAddresses = defaultMaxAddresses
	}
	if cfg.Now == nil {
		cfg.Now = time.Now //nolint:forbidigo // the documented default of an optional clock
	}
	return &Limiter{
		perSecond: cfg.PerSecond, burst: float64(cfg.Burst), max: cfg.MaxAddresses, now: cfg.Now,
		buckets: make(map[netip.Addr]bucket),
	}, nil
}

// Allow takes a token from the bucket of addr. It returns [ErrLimited] when
// there is none.
func (l *Limiter) Allow(addr netip.Addr) error {
	key := addr.Unmap().WithZone("")
	if key.Is6() {
		key = netip.PrefixFrom(key, ipv6Prefix).Masked().Addr()
	}
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.buckets[key]
	if !ok {
		l.makeRoom()
		b = bucket{tokens: l.burst, at: now}
	}
	// A clock that went back refills nothing.
	b.tokens = min(l.burst, b.tokens+max(0, now.Sub(b.at).Seconds())*l.perSecond)
	b.at = now
	allowed := b.tokens >= 1
	if allowed {
		b.tokens--
	}
	l.buckets[key] = b
	if !allowed {
		return ErrLimited
	}
	return nil
}

// makeRoom forgets the quietest of a few addresses when there are too many. The
// caller holds mu.
func (l *Limiter) makeRoom() {
	if len(l.buckets) < l.max {
		return
	}
	var oldest netip.Addr
	var at time.Time
	seen := 0
	for key, b := range l.buckets { // in random order
		if seen == 0 || b.at.Before(at) {
			oldest, at = key, b.at
		}
		if seen++; seen == evictionSample {
			break
		}
	}
	delete(l.buckets, oldest)
}
