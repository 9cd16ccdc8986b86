package tdx_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
)

const day = 24 * time.Hour

// flaky is a source whose answers a test decides on. It counts what it is asked.
type flaky struct {
	td *simtd.TD

	mu      sync.Mutex // guards what follows
	fetches int
	err     error
	edit    func(*tdx.Collateral)
	delay   time.Duration
}

func (f *flaky) Collateral(ctx context.Context, fmspc tdx.FMSPC, ca tdx.CA) (*tdx.Collateral, error) {
	f.mu.Lock()
	f.fetches++
	err, edit, delay := f.err, f.edit, f.delay
	f.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	c, err := f.td.Collateral(ctx, fmspc, ca)
	if err == nil && edit != nil {
		changed := *c
		edit(&changed)
		c = &changed
	}
	return c, err
}

func (f *flaky) set(err error, edit func(*tdx.Collateral)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err, f.edit = err, edit
}

func (f *flaky) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fetches
}

// inBubble runs a test of a cache over a software TD on a clock of its own.
func inBubble(t *testing.T, cfg tdx.CachedConfig, test func(*testing.T, *flaky, *tdx.CachedSource)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		td, err := simtd.Open(simtd.Config{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		source := &flaky{td: td}
		cfg.Source, cfg.TrustAnchor = source, td.Root()
		cached, err := tdx.NewCachedSource(cfg)
		if err != nil {
			t.Fatal(err)
		}
		test(t, source, cached)
	})
}

func ask(t *testing.T, f *flaky, s *tdx.CachedSource) (*tdx.Collateral, error) {
	t.Helper()
	return s.Collateral(t.Context(), tdx.FMSPC(fmspcOf(f.td)), tdx.PlatformCA)
}

func mustAsk(t *testing.T, f *flaky, s *tdx.CachedSource) *tdx.Collateral {
	t.Helper()
	c, err := ask(t, f, s)
	if err != nil {
		t.Fatalf("Collateral() = %v", err)
	}
	return c
}

func wantNone(t *testing.T, f *flaky, s *tdx.CachedSource, reason string) {
	t.Helper()
	if _, err := ask(t, f, s); !errors.Is(err, attest.ErrNoCollateral) || !strings.Contains(err.Error(), reason) {
		t.Errorf("Collateral() = %v, want ErrNoCollateral and %q", err, reason)
	}
}

func wantFetches(t *testing.T, f *flaky, want int) {
	t.Helper()
	if got := f.count(); got != want {
		t.Errorf("%d fetches, want %d", got, want)
	}
}

func TestCachedSourceKeeps(t *testing.T) {
	inBubble(t, tdx.CachedConfig{}, func(t *testing.T, f *flaky, s *tdx.CachedSource) {
		first := mustAsk(t, f, s)
		time.Sleep(10 * day)
		if again := mustAsk(t, f, s); again != first {
			t.Error("second Collateral() is another, want the same pointer")
		}
		wantFetches(t, f, 1)
	})
}

func TestCachedSourceIsSingleFlight(t *testing.T) {
	inBubble(t, tdx.CachedConfig{}, func(t *testing.T, f *flaky, s *tdx.CachedSource) {
		f.delay = time.Second
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { mustAsk(t, f, s) })
		}
		wg.Wait()
		wantFetches(t, f, 1)
	})
}

func TestCachedSourceSurvivesItsFetcherLeaving(t *testing.T) {
	inBubble(t, tdx.CachedConfig{}, func(t *testing.T, f *flaky, s *tdx.CachedSource) {
		f.delay = time.Second
		leaver, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := s.Collateral(leaver, tdx.FMSPC(fmspcOf(f.td)), tdx.PlatformCA)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Collateral() of who left = %v, want %v", err, context.Canceled)
			}
		})
		synctest.Wait()
		wg.Go(func() { mustAsk(t, f, s) })
		synctest.Wait()
		leave()
		wg.Wait()
		wantFetches(t, f, 2)
	})
}

func TestCachedSourceWaiterLeaves(t *testing.T) {
	inBubble(t, tdx.CachedConfig{}, func(t *testing.T, f *flaky, s *tdx.CachedSource) {
		f.delay = time.Second
		var wg sync.WaitGroup
		wg.Go(func() { mustAsk(t, f, s) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		start := time.Now()
		_, err := s.Collateral(ctx, tdx.FMSPC(fmspcOf(f.td)), tdx.PlatformCA)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 10*time.Millisecond {
			t.Errorf("Collateral() = %v after %v, want its own deadline", err, time.Since(start))
		}
		wg.Wait()
	})
}

func TestCachedSourceFailsClosed(t *testing.T) {
	inBubble(t, tdx.CachedConfig{RetryAfter: time.Minute}, func(t *testing.T, f *flaky, s *tdx.CachedSource) {
		f.set(errors.New("network is down"), nil)
		wantNone(t, f, s, "network is down")
		wantNone(t, f, s, "network is down")
		wantFetches(t, f, 1) // not again at once
		time.Sleep(time.Minute)
		f.set(nil, nil)
		mustAsk(t, f, s)
		f.set(errors.New("network is down again"), nil)
		time.Sleep(29 * day)
		mustAsk(t, f, s)
		time.Sleep(2 * day)
		wantNone(t, f, s, "network is down again")
	})
}

func TestCachedSourceKeepsNothingThatDoesNotVerify(t *testing.T) {
	inBubble(t, tdx.CachedConfig{}, func(t *testing.T, f *flaky, s *tdx.CachedSource) {
		f.set(nil, func(c *tdx.Collateral) {
			c.TCBInfo = bytes.Replace(c.TCBInfo, []byte("UpToDate"), []byte("OutOfDate"), 1)
		})
		wantNone(t, f, s, "TCB info: signature does not verify")
	})
}

func TestCachedSourceRefreshesAhead(t *testing.T) {
	var mu sync.Mutex
	var told []tdx.Fetch
	cfg := tdx.CachedConfig{RefreshEvery: time.Hour, RetryAfter: 10 * time.Minute, OnFetch: func(f tdx.Fetch) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, f)
	}}
	inBubble(t, cfg, func(t *testing.T, f *flaky, s *tdx.CachedSource) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := s.Run(ctx); err != nil {
				t.Errorf("Run() = %v", err)
			}
		})
		first := mustAsk(t, f, s)
		time.Sleep(61*time.Minute + 6*time.Minute)
		if mustAsk(t, f, s) == first {
			t.Error("collateral was not refreshed within the hour")
		}
		// Now the source goes bad in both ways; what is there stays.
		f.set(nil, func(c *tdx.Collateral) { c.RootCRL = nil })
		kept := mustAsk(t, f, s)
		before := f.count()
		time.Sleep(2 * time.Hour)
		f.set(errors.New("network is down"), nil)
		time.Sleep(20 * day)
		if mustAsk(t, f, s) != kept {
			t.Error("a failed refresh displaced good collateral")
		}
		if n := f.count() - before; n < 100 {
			t.Errorf("%d attempts to refresh in 20 days, want many", n)
		}
		held := s.Held()
		if len(held) != 1 || held[0].Err == nil || held[0].Expires.Before(time.Now()) {
			t.Errorf("Held() = %+v, want one that failed and has not expired", held)
		}
		time.Sleep(11 * day)
		wantNone(t, f, s, "network is down")
		f.set(nil, nil)
		time.Sleep(20 * time.Minute)
		mustAsk(t, f, s)
		cancel()
		wg.Wait()
	})
	mu.Lock()
	defer mu.Unlock()
	if len(told) < 100 || told[0].Err != nil || told[0].Expires.IsZero() || told[0].CA != tdx.PlatformCA {
		t.Errorf("OnFetch was told %d fetches, the first %+v", len(told), told[:min(1, len(told))])
	}
}

func TestCachedSourceFetchTimeout(t *testing.T) {
	inBubble(t, tdx.CachedConfig{FetchTimeout: time.Second}, func(t *testing.T, f *flaky, s *tdx.CachedSource) {
		f.delay = time.Hour
		start := time.Now()
		wantNone(t, f, s, "deadline exceeded")
		if took := time.Since(start); took != time.Second {
			t.Errorf("Collateral() took %v, want 1s", took)
		}
	})
}

// manyPlatforms gives collateral for whatever family is asked for.
type manyPlatforms struct {
	td      *simtd.TD
	fetches map[tdx.FMSPC]int
}

func (m *manyPlatforms) Collateral(ctx context.Context, fmspc tdx.FMSPC, ca tdx.CA) (*tdx.Collateral, error) {
	m.fetches[fmspc]++
	own := strings.ToUpper(hex.EncodeToString(fmspcOf(m.td)))
	edit := func(b []byte) []byte {
		return bytes.ReplaceAll(b, []byte(own), []byte(hex.EncodeToString(fmspc[:])))
	}
	if err := m.td.SetEndorsements(simtd.Endorsements{EditTCBInfo: edit}); err != nil { //nolint:contextcheck // it takes none
		return nil, err
	}
	return m.td.Collateral(ctx, tdx.FMSPC(fmspcOf(m.td)), ca)
}

func TestCachedSourceIsBounded(t *testing.T) {
	td := openTD(t, simtdConfig())
	one, err := td.Collateral(t.Context(), tdx.FMSPC(fmspcOf(td)), tdx.PlatformCA)
	if err != nil {
		t.Fatal(err)
	}
	size := len(one.TCBInfo) + len(one.TCBInfoChain) + len(one.QEIdentity) + len(one.QEIdentityChain) + len(one.PCKCRL) + len(one.PCKCRLChain) + len(one.RootCRL)
	tests := []struct {
		name string
		cfg  tdx.CachedConfig
	}{
		{"in platforms", tdx.CachedConfig{MaxPlatforms: 3}},
		{"in bytes", tdx.CachedConfig{MaxBytes: 3*size + size/2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			source := &manyPlatforms{td: td, fetches: map[tdx.FMSPC]int{}}
			c := &clock{simTime}
			tt.cfg.Source, tt.cfg.TrustAnchor, tt.cfg.Now = source, td.Root(), c.Now
			s, err := tdx.NewCachedSource(tt.cfg)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range []byte{1, 2, 3, 1, 4, 1, 3, 2} {
				c.t = c.t.Add(time.Second)
				if _, err := s.Collateral(t.Context(), tdx.FMSPC{b}, tdx.PlatformCA); err != nil {
					t.Fatalf("Collateral(%d) = %v", b, err)
				}
			}
			// 4 displaced 2, which had not been used for longest.
			if f := source.fetches; f[tdx.FMSPC{1}] != 1 || f[tdx.FMSPC{2}] != 2 || f[tdx.FMSPC{3}] != 1 || f[tdx.FMSPC{4}] != 1 {
				t.Errorf("fetches = %v, want one each but two of 02", f)
			}
			if n := len(s.Held()); n != 3 {
				t.Errorf("%d platforms held, want 3", n)
			}
		})
	}
	t.Run("by one that is too large", func(t *testing.T) {
		s, err := tdx.NewCachedSource(tdx.CachedConfig{Source: td, TrustAnchor: td.Root(), MaxBytes: 100, Now: (&clock{simTime}).Now})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Collateral(t.Context(), tdx.FMSPC(fmspcOf(td)), tdx.PlatformCA); err == nil || !strings.Contains(err.Error(), "more than 100") {
			t.Errorf("Collateral() = %v, want a refusal", err)
		}
	})
}

func TestNewCachedSourceRefuses(t *testing.T) {
	td := openTD(t, simtdConfig())
	tests := []struct {
		name string
		cfg  tdx.CachedConfig
		want string
	}{
		{"no source", tdx.CachedConfig{TrustAnchor: td.Root()}, "no source or no trust anchor"},
		{"no trust anchor", tdx.CachedConfig{Source: td}, "no source or no trust anchor"},
		{"an end entity as trust anchor", tdx.CachedConfig{Source: td, TrustAnchor: td.PCK()}, "not a certificate authority"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := tdx.NewCachedSource(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("NewCachedSource() = %v, want %q", err, tt.want)
			}
		})
	}
}

// TestRefreshReachesTheVerifier has a PCK revoked while a verifier knows its
// enclave: the next refresh tells.
func TestRefreshReachesTheVerifier(t *testing.T) {
	inBubble(t, tdx.CachedConfig{RefreshEvery: time.Hour}, func(t *testing.T, f *flaky, s *tdx.CachedSource) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = s.Run(ctx) })
		v := newVerifier(t, tdx.Config{TrustAnchor: f.td.Root(), Collateral: s})
		ev := attestBy(t, f.td)
		if _, err := v.Verify(ctx, ev); err != nil {
			t.Fatalf("Verify() before = %v", err)
		}
		endorse(t, f.td, simtd.Endorsements{RevokePCK: true})
		if _, err := v.Verify(ctx, ev); err != nil {
			t.Errorf("Verify() before the refresh = %v", err)
		}
		time.Sleep(2 * time.Hour)
		_, err := v.Verify(ctx, ev)
		wantRefusal(t, err, attest.LinkRevocation, "is revoked")
		cancel()
		wg.Wait()
	})
}

// TestCacheOfAnotherTrustAnchor holds that a verifier takes nothing as verified
// that was verified to another root than its own.
func TestCacheOfAnotherTrustAnchor(t *testing.T) {
	td, other := openTD(t, simtdConfig()), openTD(t, simtdConfig())
	now := (&clock{simTime}).Now
	source := sourceFunc(func(ctx context.Context, _ tdx.FMSPC, ca tdx.CA) (*tdx.Collateral, error) {
		return other.Collateral(ctx, tdx.FMSPC(fmspcOf(other)), ca)
	})
	cache, err := tdx.NewCachedSource(tdx.CachedConfig{Source: source, TrustAnchor: other.Root(), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	v := newVerifier(t, tdx.Config{TrustAnchor: td.Root(), Collateral: cache, Now: now})
	_, err = v.Verify(t.Context(), attestBy(t, td))
	wantRefusal(t, err, attest.LinkCollateral, "root CRL")
}

// TestCacheOfAnotherClock has the verifier's own clock count.
func TestCacheOfAnotherClock(t *testing.T) {
	td := openTD(t, simtdConfig())
	endorse(t, td, simtd.Endorsements{IssuedAt: simTime})
	cache, err := tdx.NewCachedSource(tdx.CachedConfig{Source: td, TrustAnchor: td.Root(), Now: (&clock{simTime}).Now})
	if err != nil {
		t.Fatal(err)
	}
	v := newVerifier(t, tdx.Config{TrustAnchor: td.Root(), Collateral: cache, Now: (&clock{simTime.Add(31 * day)}).Now})
	_, err = v.Verify(t.Context(), attestBy(t, td))
	wantRefusal(t, err, attest.LinkCollateral, "expired at")
}

func TestSourceThatGivesNothing(t *testing.T) {
	td := openTD(t, simtdConfig())
	nothing := sourceFunc(func(context.Context, tdx.FMSPC, tdx.CA) (*tdx.Collateral, error) { return nil, nil })
	now := (&clock{simTime}).Now
	cache, err := tdx.NewCachedSource(tdx.CachedConfig{Source: nothing, TrustAnchor: td.Root(), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	for _, source := range []tdx.CollateralSource{nothing, cache} {
		v := newVerifier(t, tdx.Config{TrustAnchor: td.Root(), Collateral: source, Now: now})
		_, err := v.Verify(t.Context(), attestBy(t, td))
		wantRefusal(t, err, attest.LinkCollateral, "the source gave none")
	}
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	td := openTD(t, simtdConfig())
	now := (&clock{simTime}).Now
	cache, err := tdx.NewCachedSource(tdx.CachedConfig{Source: td, TrustAnchor: td.Root(), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	v := newVerifier(t, tdx.Config{TrustAnchor: td.Root(), Collateral: cache, Now: now})
	good := attestBy(t, td)
	bad := &attest.Evidence{Quote: bytes.Clone(good.Quote), EventLog: good.EventLog}
	bad.Quote[100] ^= 1
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if _, err := v.Verify(t.Context(), good); err != nil {
					t.Errorf("Verify() of good Evidence = %v", err)
				}
				if _, err := v.Verify(t.Context(), bad); err == nil {
					t.Error("Verify() accepts bad Evidence")
				}
			}
		})
	}
	wg.Wait()
}
