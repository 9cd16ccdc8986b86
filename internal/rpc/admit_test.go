package rpc_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/gen/onboard/v1/onboardv1connect"
	"teekms/internal/rpc"
)

type callerKey struct{}

// whoAmI answers who was admitted.
type whoAmI struct {
	onboardv1connect.UnimplementedOnboardHandler
}

func (whoAmI) Bootstrap(ctx context.Context, _ *onboardv1.BootstrapRequest) (*onboardv1.BootstrapResponse, error) {
	caller, _ := ctx.Value(callerKey{}).(string)
	return &onboardv1.BootstrapResponse{Quote: []byte(caller)}, nil
}

var errStranger = errors.New("invalid quote: a stranger")

func TestAdmit(t *testing.T) {
	tests := []struct {
		name  string
		admit func(context.Context) (context.Context, error)
		want  string
		code  connect.Code
		text  string
	}{
		{"tells the service who calls", func(ctx context.Context) (context.Context, error) {
			return context.WithValue(ctx, callerKey{}, "peer"), nil
		}, "peer", 0, ""},
		{"ends the call with a public text", func(context.Context) (context.Context, error) {
			return nil, errors.Join(errors.New("secret cause"), errStranger)
		}, "", connect.CodePermissionDenied, "invalid quote: a stranger"},
		{"obeys the deadline of the call", func(ctx context.Context) (context.Context, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, "", connect.CodeDeadlineExceeded, "the call took too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			timeout := time.Minute
			if tt.code == connect.CodeDeadlineExceeded {
				timeout = 50 * time.Millisecond
			}
			chain, err := rpc.New(rpc.Config{
				Log: zap.NewNop(), Timeout: timeout, Admit: tt.admit,
				Access: rpc.Access{onboardv1connect.OnboardBootstrapProcedure: nil},
				Errors: rpc.Table{rpc.Is(errStranger, connect.CodePermissionDenied, "")},
			})
			if err != nil {
				t.Fatal(err)
			}
			_, h := onboardv1connect.NewOnboardHandler(whoAmI{}, chain.Options(nil)...)
			s := httptest.NewServer(chain.Wrap(h))
			t.Cleanup(s.Close)
			res, err := onboardv1connect.NewOnboardClient(s.Client(), s.URL).Bootstrap(t.Context(), &onboardv1.BootstrapRequest{})
			if string(res.GetQuote()) != tt.want {
				t.Errorf("caller = %q, want %q", res.GetQuote(), tt.want)
			}
			e := new(connect.Error)
			if errors.As(err, &e) != (tt.code != 0) || tt.code != 0 && (e.Code() != tt.code || e.Message() != tt.text) {
				t.Errorf("error = %v, want %v %q", err, tt.code, tt.text)
			}
		})
	}
}

func TestAdmitIsNotReached(t *testing.T) {
	r := newRig(t, func(c *rpc.Config) {
		c.Admit = func(context.Context) (context.Context, error) { return nil, errStranger }
	})
	client := onboardv1connect.NewOnboardClient(r.http, r.url)
	_, err := client.Finish(t.Context(), &onboardv1.FinishRequest{})
	if got := connect.CodeOf(err); got != connect.CodeUnauthenticated {
		t.Errorf("Finish without a token = %v, want unauthenticated before anything is appraised", err)
	}
}

func TestAdmitThatPanics(t *testing.T) {
	r := newRig(t, func(c *rpc.Config) {
		c.Admit = func(context.Context) (context.Context, error) { panic("secret cause") }
	})
	_, err := onboardv1connect.NewOnboardClient(r.http, r.url).Bootstrap(t.Context(), &onboardv1.BootstrapRequest{})
	if got := connect.CodeOf(err); got != connect.CodeInternal {
		t.Errorf("Bootstrap = %v, want internal", err)
	}
}

// TestKeptAnswers holds who gets an answer that was made before.
func TestKeptAnswers(t *testing.T) {
	const procedure = onboardv1connect.OnboardGetAttestationInfoProcedure
	began := time.Unix(1000, 0)
	tests := []struct {
		name    string
		admit   bool
		wrapped bool
		until   time.Time
		want    bool
	}{
		{"is given", false, true, time.Time{}, true},
		{"is given to clients without a certificate", true, true, time.Time{}, true},
		{"is not given where nothing is known of the client", true, false, time.Time{}, false},
		{"is given before its end", false, true, began.Add(time.Second), true},
		{"is not given at its end", false, true, began, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := rpc.Config{Log: zap.NewNop(), Access: rpc.Access{procedure: nil}, Now: func() time.Time { return began }}
			if tt.admit {
				c.Admit = func(ctx context.Context) (context.Context, error) { return ctx, nil }
			}
			chain, err := rpc.New(c)
			if err != nil {
				t.Fatal(err)
			}
			var enc rpc.Encodings
			m := &onboardv1.GetAttestationInfoResponse{}
			enc.KeepUntil(procedure, m, tt.until)
			codec := enc.Codec(&counted{})
			if _, err := codec.Marshal(m); err != nil {
				t.Fatal(err)
			}
			var got bool
			h := http.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				_, got = chain.Kept(r.Context(), &enc, procedure, codec.Name())
			}))
			if tt.wrapped {
				h = chain.Wrap(h)
			}
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", http.NoBody))
			if got != tt.want {
				t.Errorf("Kept = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestKeepUntilKeepsTheEncodings(t *testing.T) {
	var enc rpc.Encodings
	inner := &counted{}
	codec := enc.Codec(inner)
	m := &onboardv1.GetAttestationInfoResponse{}
	for range 3 {
		enc.KeepUntil("/p", m, time.Unix(1, 0))
		if _, err := codec.Marshal(m); err != nil {
			t.Fatal(err)
		}
	}
	if got := inner.calls; got != 1 {
		t.Errorf("the same message was encoded %d times, want once", got)
	}
}

func TestObserve(t *testing.T) {
	type ended struct {
		Procedure string
		Failed    bool
	}
	var mu sync.Mutex
	var got []ended
	r := newRig(t, func(c *rpc.Config) {
		c.Observe = func(procedure string, failed bool) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, ended{procedure, failed})
		}
	})
	client := onboardv1connect.NewOnboardClient(r.http, r.url)
	for _, d := range []string{"", "taken"} {
		_, _ = client.Bootstrap(t.Context(), &onboardv1.BootstrapRequest{Domain: d})
	}
	r.post(t, "/elsewhere", "application/json", http.NoBody, "")
	mu.Lock()
	defer mu.Unlock()
	const p = onboardv1connect.OnboardBootstrapProcedure
	if diff := cmp.Diff([]ended{{p, false}, {p, true}}, got); diff != "" {
		t.Errorf("observed calls (-want +got):\n%s", diff)
	}
}
