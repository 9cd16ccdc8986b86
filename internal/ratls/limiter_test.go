package ratls_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"teekms/internal/ratls"
)

func newLimiter(t *testing.T, cfg ratls.LimiterConfig) *ratls.Limiter {
	t.Helper()
	l, err := ratls.NewLimiter(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// allowed is how many of n tries in a row are.
func allowed(t *testing.T, l *ratls.Limiter, addr string, n int) int {
	t.Helper()
	count := 0
	for range n {
		switch err := l.Allow(netip.MustParseAddr(addr)); {
		case err == nil:
			count++
		case !errors.Is(err, ratls.ErrLimited):
			t.Fatalf("Allow(%s) = %v, want %v", addr, err, ratls.ErrLimited)
		}
	}
	return count
}

func TestLimiterRefills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, ratls.LimiterConfig{PerSecond: 2, Burst: 5})
		for _, step := range []struct {
			wait time.Duration
			want int
		}{{0, 5}, {0, 0}, {499 * time.Millisecond, 0}, {time.Millisecond, 1}, {time.Second, 2}, {time.Hour, 5}} {
			time.Sleep(step.wait)
			if got := allowed(t, l, "192.0.2.1", 10); got != step.want {
				t.Errorf("after %v %d of 10 are allowed, want %d", step.wait, got, step.want)
			}
		}
	})
}

func TestLimiterKeepsAddressesApart(t *testing.T) {
	now := time.Now()
	l := newLimiter(t, ratls.LimiterConfig{PerSecond: 1, Burst: 3, Now: func() time.Time { return now }})
	for _, step := range []struct {
		addr string
		want int
	}{
		{"192.0.2.1", 3},
		{"192.0.2.2", 3},
		{"::ffff:192.0.2.1", 0}, // the same as the first
		{"2001:db8::1", 3},
		{"2001:db8::ffff:2%eth0", 0}, // of the same /64
		{"2001:db8:0:1::1", 3},
	} {
		if got := allowed(t, l, step.addr, 10); got != step.want {
			t.Errorf("%s: %d of 10 are allowed, want %d", step.addr, got, step.want)
		}
	}
	now = now.Add(-time.Hour)
	if got := allowed(t, l, "192.0.2.1", 10); got != 0 {
		t.Errorf("after the clock went back %d of 10 are allowed, want none", got)
	}
	if err := l.Allow(netip.Addr{}); err != nil {
		t.Errorf("Allow(no address) = %v", err)
	}
}

func TestLimiterForgetsTheQuietest(t *testing.T) {
	now := time.Now()
	l := newLimiter(t, ratls.LimiterConfig{PerSecond: 0.001, Burst: 1, MaxAddresses: 8, Now: func() time.Time { return now }})
	for i := range 8 {
		now = now.Add(time.Second)
		if got := allowed(t, l, fmt.Sprintf("192.0.2.%d", i), 2); got != 1 {
			t.Fatalf("address %d: %d allowed, want 1", i, got)
		}
	}
	allowed(t, l, "192.0.2.100", 1) // the first address makes room
	if got := allowed(t, l, "192.0.2.7", 1); got != 0 {
		t.Errorf("the last address is forgotten")
	}
	if got := allowed(t, l, "192.0.2.0", 1); got != 1 {
		t.Errorf("the first address is not forgotten")
	}
}

func TestNewLimiterRefuses(t *testing.T) {
	var zero float64
	for _, cfg := range []ratls.LimiterConfig{{}, {PerSecond: 1}, {Burst: 1}, {PerSecond: -1, Burst: 1}, {PerSecond: zero / zero, Burst: 1}, {PerSecond: 1, Burst: 1, MaxAddresses: -1}} {
		if _, err := ratls.NewLimiter(cfg); err == nil || err.Error() != "making a limiter: rate and burst must be positive" {
			t.Errorf("NewLimiter(%+v) = %v, want its refusal", cfg, err)
		}
	}
}
