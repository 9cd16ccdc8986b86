package serve_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/gen/onboard/v1/onboardv1connect"
	"teekms/internal/rpc"
	"teekms/internal/serve"
)

type onboard struct {
	onboardv1connect.UnimplementedOnboardHandler
}

func (onboard) Bootstrap(_ context.Context, req *onboardv1.BootstrapRequest) (*onboardv1.BootstrapResponse, error) {
	return &onboardv1.BootstrapResponse{Quote: []byte(req.GetDomain())}, nil
}

func (onboard) Finish(context.Context, *onboardv1.FinishRequest) (*onboardv1.FinishResponse, error) {
	return &onboardv1.FinishResponse{}, nil
}

// muxConfig is a mux for [onboard] with everything in it.
func muxConfig(t *testing.T, ready *atomic.Pointer[error]) serve.MuxConfig {
	t.Helper()
	registry := prometheus.NewRegistry()
	chain, err := rpc.New(rpc.Config{
		Log: zap.NewNop(), Registry: registry, ReadMaxBytes: 64 << 10,
		Access: rpc.Access{
			onboardv1connect.OnboardBootstrapProcedure: nil,
			onboardv1connect.OnboardFinishProcedure:    rpc.NewBearer(rpc.BearerConfig{Token: "right"}),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return serve.MuxConfig{
		Chain: chain,
		Service: serve.Service{
			Descriptor: onboardv1.File_onboard_v1_onboard_proto.Services().ByName("Onboard"),
			New: func(o ...connect.HandlerOption) (string, http.Handler) {
				return onboardv1connect.NewOnboardHandler(onboard{}, o...)
			},
			HexPrefix: "0x",
		},
		Ready: func() error {
			if p := ready.Load(); p != nil {
				return *p
			}
			return nil
		},
		Metrics:   promhttp.HandlerFor(registry, promhttp.HandlerOpts{}),
		Pages:     map[string]http.Handler{"/{$}": text("page"), "GET /finish": text("OK")},
		GetAsPost: []string{"/finish"},
		Header:    map[string]string{"x-app-version": "v1.2.3 (git:abc)"},
	}
}

func text(s string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, s) })
}

func startMux(t *testing.T, ready *atomic.Pointer[error]) *server {
	t.Helper()
	h, err := serve.NewMux(muxConfig(t, ready))
	if err != nil {
		t.Fatal(err)
	}
	return start(t, h)
}

func TestMuxRoutes(t *testing.T) {
	s := startMux(t, new(atomic.Pointer[error]))
	defer http.DefaultClient.CloseIdleConnections()
	tests := []struct {
		name, method, path, contentType, body string
		header                                string
		status                                int
		want                                  string
	}{
		{"page", "GET", "/", "", "", "", 200, "page"},
		{"finish", "GET", "/finish", "", "", "", 200, "OK"},
		{"finish from another site", "GET", "/finish", "", "", "Sec-Fetch-Site: cross-site", 403, `{"error": "cross-origin request refused"}`},
		{"prpc from another site", "POST", "/prpc/Onboard.Bootstrap?json", "", `{}`, "Origin: http://evil.example", 403, `{"error": "cross-origin request refused"}`},
		{"connect from another site", "POST", "/onboard.v1.Onboard/Bootstrap", "application/json", `{}`, "Origin: http://evil.example", 403, `{"error": "cross-origin request refused"}`},
		{"prpc", "POST", "/prpc/Onboard.Bootstrap?json", "", `{"domain":"a"}`, "", 200, `{"ca_pubkey":"0x","k256_pubkey":"0x","quote":"0x61","eventlog":"0x"}`},
		{"connect", "POST", "/onboard.v1.Onboard/Bootstrap", "application/json", `{"domain":"a"}`, "", 200, `{"quote":"YQ=="}`},
		{"health", "GET", "/health", "", "", "", 200, "OK"},
		{"ready", "GET", "/ready", "", "", "", 200, "OK"},
		{"gRPC health as Connect", "POST", "/grpc.health.v1.Health/Check", "application/json", `{}`, "", 200, `{"status":"SERVING_STATUS_SERVING"}`},
		{"gRPC health of the service", "POST", "/grpc.health.v1.Health/Check", "application/json", `{"service":"onboard.v1.Onboard"}`, "", 200, `{"status":"SERVING_STATUS_SERVING"}`},
		{"gRPC health of another", "POST", "/grpc.health.v1.Health/Check", "application/json", `{"service":"x"}`, "", 404, "unknown service"},
		{"metrics", "GET", "/metrics", "", "", "", 200, "teekms_rpc_requests_total"},
		{"nothing", "GET", "/nothing", "", "", "", 404, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, header, body := fetch(t, tt.method, "http://"+s.addr+tt.path, tt.contentType, tt.body, tt.header)
			if status != tt.status || !strings.Contains(body, tt.want) {
				t.Errorf("%s %s = %d %s, want %d %s", tt.method, tt.path, status, body, tt.status, tt.want)
			}
			if got := header.Get("X-App-Version"); status != http.StatusForbidden && got != "v1.2.3 (git:abc)" {
				t.Errorf("X-App-Version = %q, want v1.2.3 (git:abc)", got)
			}
		})
	}
}

func fetch(t *testing.T, method, url, contentType, body, header string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if k, v, ok := strings.Cut(header, ": "); ok {
		req.Header.Set(k, v)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(b)
}

func TestNotReady(t *testing.T) {
	var ready atomic.Pointer[error]
	s := startMux(t, &ready)
	defer http.DefaultClient.CloseIdleConnections()
	reason := errors.New("the key directory is being opened")
	ready.Store(&reason)
	status, _, body := fetch(t, "GET", "http://"+s.addr+"/ready", "", "", "")
	if status != http.StatusServiceUnavailable || body != reason.Error() {
		t.Errorf("/ready = %d %s, want 503 %s", status, body, reason)
	}
	_, _, body = fetch(t, "POST", "http://"+s.addr+"/grpc.health.v1.Health/Check", "application/json", "{}", "")
	if !strings.Contains(body, "NOT_SERVING") {
		t.Errorf("gRPC health = %s, want NOT_SERVING", body)
	}
	if status, _, _ = fetch(t, "GET", "http://"+s.addr+"/health", "", "", ""); status != http.StatusOK {
		t.Errorf("/health = %d, want 200: the process lives", status)
	}
}

func TestReflection(t *testing.T) {
	s := startMux(t, new(atomic.Pointer[error]))
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	client := grpcreflect.NewClient(&http.Client{Transport: tr}, "http://"+s.addr, connect.WithGRPC())
	stream := client.NewStream(t.Context())
	names, err := stream.ListServices()
	if _, closeErr := stream.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(names, "onboard.v1.Onboard") {
		t.Errorf("services = %v, want onboard.v1.Onboard among them", names)
	}
}

func TestBodyBoundIsOnePlace(t *testing.T) {
	s := startMux(t, new(atomic.Pointer[error]))
	defer http.DefaultClient.CloseIdleConnections()
	body := `{"domain":"` + strings.Repeat("a", 64<<10) + `"}`
	status, _, got := fetch(t, "POST", "http://"+s.addr+"/prpc/Bootstrap?json", "", body, "")
	if want := `{"error": "request body: larger than 65536 bytes"}`; status != 400 || got != want {
		t.Errorf("prpc = %d %s, want 400 %s", status, got, want)
	}
	status, _, got = fetch(t, "POST", "http://"+s.addr+"/onboard.v1.Onboard/Bootstrap", "application/json", body, "")
	if status != http.StatusTooManyRequests || !strings.Contains(got, `"code":"resource_exhausted"`) {
		t.Errorf("connect = %d %s, want resource_exhausted", status, got)
	}
}

func TestTokenByPRPC(t *testing.T) {
	s := startMux(t, new(atomic.Pointer[error]))
	defer http.DefaultClient.CloseIdleConnections()
	tests := []struct {
		header string
		status int
		want   string
	}{
		{"", 401, `{"error": "a bearer token is required"}`},
		{"Authorization: Bearer wrong", 401, `{"error": "the bearer token is wrong"}`},
		{"Authorization: Bearer right", 200, `null`},
	}
	for _, tt := range tests {
		status, header, body := fetch(t, "POST", "http://"+s.addr+"/prpc/Onboard.Finish?json", "", "null", tt.header)
		if status != tt.status || body != tt.want {
			t.Errorf("Finish with %q = %d %s, want %d %s", tt.header, status, body, tt.status, tt.want)
		}
		if got := header.Get("WWW-Authenticate"); (got == "Bearer") != (tt.status == 401) {
			t.Errorf("Finish with %q: WWW-Authenticate = %q", tt.header, got)
		}
	}
}

func TestNewMuxRefusesAnIncompleteConfig(t *testing.T) {
	if _, err := serve.NewMux(serve.MuxConfig{}); err == nil || !strings.Contains(err.Error(), "Chain, Service.Descriptor and Service.New are required") {
		t.Errorf("NewMux(zero) = %v, want what is required", err)
	}
}
