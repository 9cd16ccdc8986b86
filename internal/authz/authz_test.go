package authz_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"teekms/internal/authz"
	"teekms/internal/authz/dev"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestPublicReason(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"plain", "app not registered", "app not registered"},
		{"empty", "", ""},
		{"lines and tabs", " a\r\n\tb\n", "a b"},
		{"terminal control", "\x1b[2Ja\x00b", "[2Ja b"},
		{"reversed text", "a\u202eb\u200bc", "a b c"},
		{"other scripts", "Ü 漢字 é", "Ü 漢字 é"},
		{"not UTF-8", "a\xff\xfeb", "a b"},
		{"long", strings.Repeat("a", 600), strings.Repeat("a", 512)},
		{"cut between characters", strings.Repeat("a", 511) + "é", strings.Repeat("a", 511)},
		{"nothing but bytes that begin no character", strings.Repeat("\x80", 600), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := authz.PublicReason(tt.text); got != tt.want {
				t.Errorf("PublicReason(%q) = %q, want %q", tt.text, got, tt.want)
			}
		})
	}
}

func FuzzPublicReason(f *testing.F) {
	f.Add("app not registered")
	f.Add("\x1b[31m\n\u202e\xff" + strings.Repeat("é", 300))
	f.Fuzz(func(t *testing.T, text string) {
		got := authz.PublicReason(text)
		if len(got) > authz.MaxReasonSize || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("PublicReason(%q) = %q, want it short and printable", text, got)
		}
		if again := authz.PublicReason(got); again != got {
			t.Errorf("PublicReason(%q) = %q, want it unchanged", got, again)
		}
	})
}

func TestCheckGatewayAppID(t *testing.T) {
	for id, want := range map[string]string{
		"":                       "",
		"any":                    "",
		strings.Repeat("a", 256): "",
		strings.Repeat("a", 257): "gateway app id of 257 bytes, want at most 256",
		"a\n":                    "gateway app id is not printable ASCII",
		"é":                      "gateway app id is not printable ASCII",
	} {
		if err := authz.CheckGatewayAppID(id); (err == nil) != (want == "") || (err != nil && err.Error() != want) {
			t.Errorf("CheckGatewayAppID(%q) = %v, want %q", id, err, want)
		}
	}
}

// fixed answers always the same.
type fixed struct {
	authz.Authorizer
	d   authz.Decision
	err error
}

func (f fixed) Authorize(context.Context, authz.Request) (authz.Decision, error) { return f.d, f.err }

func TestInstrumentCountsOutcomes(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	tests := []struct {
		name string
		a    fixed
		want string
	}{
		{"allowed", fixed{d: authz.Decision{Allowed: true}}, "allowed"},
		{"denied", fixed{}, "denied"},
		{"unreachable", fixed{err: authz.StatusError(503)}, "unreachable"},
		{"malformed", fixed{err: authz.StatusError(404)}, "malformed"},
		{"out of time", fixed{err: authz.TransportError(t.Context(), context.DeadlineExceeded)}, "unreachable"},
		{"caller left", fixed{err: authz.TransportError(canceled, io.EOF)}, "canceled"},
		{"cannot be asked", fixed{err: errors.New("x")}, "unreachable"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			a := authz.Instrument(tt.a, func(r string) { got = append(got, r) })
			d, err := a.Authorize(t.Context(), authz.Request{})
			if d != tt.a.d || !errors.Is(err, tt.a.err) {
				t.Errorf("Authorize() = %+v, %v, want %+v, %v", d, err, tt.a.d, tt.a.err)
			}
			if diff := cmp.Diff([]string{tt.want}, got); diff != "" {
				t.Errorf("counted (-want +got)\n%s", diff)
			}
		})
	}
}

func TestInstrumentKeepsFacts(t *testing.T) {
	a := authz.Instrument(dev.New("any"), func(string) {})
	got, err := a.Facts(t.Context())
	if want := (authz.Facts{Dev: true, GatewayAppID: "any"}); err != nil || got != want {
		t.Errorf("Facts() = %+v, %v, want %+v", got, err, want)
	}
}

func TestTransportErrorNamesNoURL(t *testing.T) {
	request := &url.Error{Op: "Post", URL: "http://user:password@host/token", Err: io.EOF}
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"request", request, "authorization service unreachable: EOF"},
		{"wrapped", fmt.Errorf("x: %w", request), "authorization service unreachable: EOF"},
		{"malformed within", &url.Error{URL: "http://host/token", Err: fmt.Errorf("%w: y", authz.ErrMalformed)}, "authorization service gave a malformed answer: y"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := authz.TransportError(t.Context(), tt.err); got.Error() != tt.want {
				t.Errorf("TransportError() = %v, want %s", got, tt.want)
			}
		})
	}
}

func TestStatusError(t *testing.T) {
	for status, want := range map[int]error{
		500: authz.ErrUnreachable, 502: authz.ErrUnreachable, 599: authz.ErrUnreachable, 408: authz.ErrUnreachable, 429: authz.ErrUnreachable,
		301: authz.ErrMalformed, 400: authz.ErrMalformed, 401: authz.ErrMalformed, 404: authz.ErrMalformed,
	} {
		if err := authz.StatusError(status); !errors.Is(err, want) || !strings.HasSuffix(err.Error(), fmt.Sprintf(": HTTP status %d", status)) {
			t.Errorf("StatusError(%d) = %v, want %v", status, err, want)
		}
	}
}

func TestSubjectHasAName(t *testing.T) {
	for s, want := range map[authz.Subject]string{authz.App: "app", authz.KMS: "kms", 0: "unknown"} {
		if got := s.String(); got != want {
			t.Errorf("String() = %s, want %s", got, want)
		}
	}
}

func newCache(t *testing.T, log *zap.Logger, fetch func(context.Context) (authz.Facts, error)) *authz.FactsCache {
	t.Helper()
	c, err := authz.NewFactsCache(authz.FactsConfig{Fetch: fetch, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFactsAreKeptForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		n, fail := 0, false
		c := newCache(t, zap.New(core), func(context.Context) (authz.Facts, error) {
			n++
			if fail {
				return authz.Facts{GatewayAppID: "of an error"}, authz.StatusError(500)
			}
			return authz.Facts{GatewayAppID: fmt.Sprint(n)}, nil
		})
		get := func(when, want string) {
			t.Helper()
			if f, err := c.Get(t.Context()); err != nil || f.GatewayAppID != want {
				t.Errorf("%s: Get() = %+v, %v, want gateway %q", when, f, err, want)
			}
		}
		fail = true
		get("authority out of order", "")
		get("and not asked again at once", "")
		fail = false
		time.Sleep(authz.DefaultFactsLifetime)
		get("back again", "2")
		time.Sleep(authz.DefaultFactsLifetime - 1)
		get("still fresh", "2")
		fail = true
		time.Sleep(time.Nanosecond)
		get("old facts are better than none", "2")
		fail = false
		get("for another lifetime", "2")
		time.Sleep(authz.DefaultFactsLifetime)
		get("new ones", "4")
		if n != 4 {
			t.Errorf("asked %d times, want 4", n)
		}
		if got := logs.Len(); got != 2 {
			t.Errorf("logged %d lines, want 2: %v", got, logs.All())
		}
	})
}

func TestManyWhoWantFactsAreOneQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		c := newCache(t, zap.NewNop(), func(context.Context) (authz.Facts, error) {
			n.Add(1)
			time.Sleep(time.Second)
			return authz.Facts{GatewayAppID: "any"}, nil
		})
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if f, err := c.Get(t.Context()); err != nil || f.GatewayAppID != "any" {
					t.Errorf("Get() = %+v, %v, want the gateway", f, err)
				}
			})
		}
		wg.Wait()
		if n.Load() != 1 {
			t.Errorf("asked %d times, want once", n.Load())
		}
		// While one asks again, nobody else waits.
		time.Sleep(authz.DefaultFactsLifetime)
		wg.Go(func() { _, _ = c.Get(t.Context()) })
		synctest.Wait()
		before := time.Now()
		if f, err := c.Get(t.Context()); err != nil || f.GatewayAppID != "any" || !time.Now().Equal(before) {
			t.Errorf("Get() = %+v, %v after %v, want old facts at once", f, err, time.Since(before))
		}
		wg.Wait()
	})
}

func TestAnAuthorityThatHangsCostsAFixedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCache(t, zap.NewNop(), func(ctx context.Context) (authz.Facts, error) {
			<-ctx.Done()
			return authz.Facts{}, ctx.Err()
		})
		before := time.Now()
		if f, err := c.Get(t.Context()); err != nil || f != (authz.Facts{}) || time.Since(before) != authz.DefaultFactsTimeout {
			t.Errorf("Get() = %+v, %v after %v, want no facts after %v", f, err, time.Since(before), authz.DefaultFactsTimeout)
		}
	})
}

func TestACallerWhoLeavesLearnsNoFacts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		c := newCache(t, zap.NewNop(), func(ctx context.Context) (authz.Facts, error) {
			asked++
			<-ctx.Done()
			return authz.Facts{}, ctx.Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				if _, err := c.Get(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Get() = %v, want %v", err, context.DeadlineExceeded)
				}
			})
		}
		wg.Wait()
		if _, err := c.Get(t.Context()); err != nil || asked != 2 {
			t.Errorf("Get() = %v after %d questions, want that nothing was kept of the first", err, asked)
		}
	})
}

func TestNewFactsCacheWantsItsParts(t *testing.T) {
	if _, err := authz.NewFactsCache(authz.FactsConfig{Log: zap.NewNop()}); err == nil || err.Error() != "facts cache needs Fetch and Log" {
		t.Errorf("NewFactsCache() = %v, want it to want Fetch", err)
	}
}
