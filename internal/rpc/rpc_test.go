package rpc_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/gen/onboard/v1/onboardv1connect"
	"teekms/internal/rpc"
)

var errTaken = errors.New("Bootstrap already completed")

// service does what the domain of a Bootstrap request says.
type service struct {
	onboardv1connect.UnimplementedOnboardHandler
	slow chan<- struct{} // is told of calls that are slow
}

func (s service) Bootstrap(ctx context.Context, req *onboardv1.BootstrapRequest) (*onboardv1.BootstrapResponse, error) {
	switch req.GetDomain() {
	case "taken":
		return nil, errors.Join(errors.New("secret cause"), errTaken)
	case "field":
		return nil, &rpc.FieldError{Field: "domain", Reason: "a label is too long"}
	case "unmapped":
		return nil, errors.New("secret cause")
	case "made elsewhere":
		return nil, connect.NewError(connect.CodeNotFound, errors.New("secret cause"))
	case "panic":
		panic("secret cause")
	case "slow":
		s.slow <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &onboardv1.BootstrapResponse{Quote: []byte(rpc.RequestID(ctx))}, nil
}

func (service) GetAttestationInfo(context.Context, *onboardv1.GetAttestationInfoRequest) (*onboardv1.GetAttestationInfoResponse, error) {
	return &onboardv1.GetAttestationInfoResponse{}, nil
}

// rig is a server with everything of the package around [service].
type rig struct {
	url      string
	log      *observer.ObservedLogs
	registry *prometheus.Registry
	http     *http.Client
	slow     chan struct{} // has an item for every slow call that came to the service
}

func newRig(t *testing.T, change ...func(*rpc.Config)) *rig {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	r := &rig{log: logs, registry: prometheus.NewRegistry(), slow: make(chan struct{}, 10)}
	c := rpc.Config{
		Log: zap.New(core), Registry: r.registry, ReadMaxBytes: 4096, Timeout: time.Minute,
		Errors: rpc.Table{rpc.Is(errTaken, connect.CodeFailedPrecondition, "")},
		Access: rpc.Access{
			onboardv1connect.OnboardBootstrapProcedure:          nil,
			onboardv1connect.OnboardGetAttestationInfoProcedure: nil,
			onboardv1connect.OnboardFinishProcedure:             rpc.NewBearer(rpc.BearerConfig{Token: "right", Log: zap.New(core)}),
		},
	}
	for _, f := range change {
		f(&c)
	}
	chain, err := rpc.New(c)
	if err != nil {
		t.Fatal(err)
	}
	_, h := onboardv1connect.NewOnboardHandler(service{slow: r.slow}, chain.Options(nil)...)
	s := httptest.NewUnstartedServer(chain.Wrap(h))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	r.url, r.http = s.URL, s.Client()
	return r
}

// protocols are the ways in which a Go client can call.
func protocols() map[string][]connect.ClientOption {
	return map[string][]connect.ClientOption{
		"connect proto": nil,
		"connect json":  {connect.WithProtoJSON()},
		"grpc":          {connect.WithGRPC()},
		"grpc-web":      {connect.WithGRPCWeb()},
	}
}

func TestErrorsOnEveryProtocol(t *testing.T) {
	tests := []struct {
		name, domain string
		code         connect.Code
		text         string
	}{
		{"sentinel", "taken", connect.CodeFailedPrecondition, "Bootstrap already completed"},
		{"field", "field", connect.CodeInvalidArgument, "domain: a label is too long"},
		{"unmapped error", "unmapped", connect.CodeInternal, "internal error (id ID)"},
		{"connect error of a service", "made elsewhere", connect.CodeInternal, "internal error (id ID)"},
		{"panic", "panic", connect.CodeInternal, "internal error (id ID)"},
		{"deadline", "slow", connect.CodeDeadlineExceeded, "the call took too long"},
	}
	for protocol, options := range protocols() {
		for _, tt := range tests {
			t.Run(protocol+"/"+tt.name, func(t *testing.T) {
				r := newRig(t, func(c *rpc.Config) {
					if tt.domain == "slow" {
						c.Timeout = 50 * time.Millisecond
					}
				})
				client := onboardv1connect.NewOnboardClient(r.http, r.url, options...)
				_, err := client.Bootstrap(t.Context(), &onboardv1.BootstrapRequest{Domain: tt.domain})
				e, ok := errors.AsType[*connect.Error](err)
				if !ok {
					t.Fatalf("Bootstrap(%s) = %v, want a connect error", tt.domain, err)
				}
				id := e.Meta().Get("X-Request-Id")
				if want := strings.Replace(tt.text, "ID", id, 1); id == "" || e.Code() != tt.code || e.Message() != want {
					t.Errorf("Bootstrap(%s) = %v %q (id %q), want %v %q", tt.domain, e.Code(), e.Message(), id, tt.code, want)
				}
				if tt.code == connect.CodeInternal {
					r.wantCauseLogged(t, id)
				}
			})
		}
	}
}

// wantCauseLogged looks for the cause beside the id that the client got.
func (r *rig) wantCauseLogged(t *testing.T, id string) {
	t.Helper()
	for _, entry := range r.log.All() {
		fields := entry.ContextMap()
		cause, _ := fields["err"].(string)
		if fields["request_id"] == id && entry.Level == zapcore.ErrorLevel && strings.Contains(cause, "secret cause") {
			return
		}
	}
	t.Errorf("no error line with the cause for id %q in %v", id, r.log.All())
}

func TestSuccessHasARequestIDInside(t *testing.T) {
	r := newRig(t)
	client := onboardv1connect.NewOnboardClient(r.http, r.url)
	res, err := client.Bootstrap(t.Context(), &onboardv1.BootstrapRequest{})
	if err != nil {
		t.Fatal(err)
	}
	id := string(res.GetQuote())
	entries := r.log.FilterMessage("call").All()
	if len(entries) != 1 {
		t.Fatalf("%d access lines, want 1", len(entries))
	}
	got := entries[0].ContextMap()
	if got["request_id"] != id || got["code"] != "ok" || got["procedure"] != onboardv1connect.OnboardBootstrapProcedure ||
		!strings.HasPrefix(got["peer"].(string), "127.0.0.1:") || entries[0].Level != zapcore.InfoLevel {
		t.Errorf("access line %v at %v, want id %q, ok, the procedure, the peer, at info", got, entries[0].Level, id)
	}
	if _, ok := got["duration"]; !ok {
		t.Errorf("access line %v has no duration", got)
	}
}

func TestRefusedCallIsLoggedOnceWithItsCause(t *testing.T) {
	r := newRig(t)
	client := onboardv1connect.NewOnboardClient(r.http, r.url)
	if _, err := client.Bootstrap(t.Context(), &onboardv1.BootstrapRequest{Domain: "taken"}); err == nil {
		t.Fatal("Bootstrap succeeded")
	}
	if r.log.Len() != 1 {
		t.Fatalf("%d lines, want 1: %v", r.log.Len(), r.log.All())
	}
	got := r.log.All()[0].ContextMap()
	if cause, _ := got["err"].(string); got["code"] != "failed_precondition" || !strings.Contains(cause, "secret cause") {
		t.Errorf("access line %v, want the code and the cause", got)
	}
}

func TestReadsAreLoggedAtDebug(t *testing.T) {
	r := newRig(t)
	client := onboardv1connect.NewOnboardClient(r.http, r.url)
	if _, err := client.GetAttestationInfo(t.Context(), &onboardv1.GetAttestationInfoRequest{}); err != nil {
		t.Fatal(err)
	}
	if got := r.log.FilterMessage("call").All()[0].Level; got != zapcore.DebugLevel {
		t.Errorf("level = %v, want debug", got)
	}
}

func TestTokens(t *testing.T) {
	tests := []struct {
		name, header, text string
	}{
		{"none", "", "a bearer token is required"},
		{"another scheme", "Basic cmlnaHQ=", "a bearer token is required"},
		{"empty", "Bearer ", "a bearer token is required"},
		{"wrong", "Bearer wrong", "the bearer token is wrong"},
		{"prefix of the right one", "Bearer righ", "the bearer token is wrong"},
		{"right", "bearer right", ""},
	}
	for protocol, options := range protocols() {
		for _, tt := range tests {
			t.Run(protocol+"/"+tt.name, func(t *testing.T) {
				r := newRig(t)
				client := onboardv1connect.NewOnboardClient(r.http, r.url, options...)
				ctx, info := connect.NewClientContext(t.Context())
				if tt.header != "" {
					info.RequestHeader().Set("Authorization", tt.header)
				}
				_, err := client.Finish(ctx, &onboardv1.FinishRequest{})
				if tt.text == "" {
					// The service behind it does not implement Finish: it was reached.
					if got := connect.CodeOf(err); got != connect.CodeInternal {
						t.Errorf("Finish = %v, want the service to be reached", err)
					}
					return
				}
				e, ok := errors.AsType[*connect.Error](err)
				if !ok || e.Code() != connect.CodeUnauthenticated || e.Message() != tt.text {
					t.Errorf("Finish = %v, want unauthenticated: %s", err, tt.text)
				}
			})
		}
	}
}

func TestLostDataIsLoggedAsAnError(t *testing.T) {
	for code, want := range map[connect.Code]int{connect.CodeDataLoss: 1, connect.CodeFailedPrecondition: 0} {
		r := newRig(t, func(c *rpc.Config) { c.Errors = rpc.Table{rpc.Is(errTaken, code, "")} })
		_, err := onboardv1connect.NewOnboardClient(r.http, r.url).Bootstrap(t.Context(), &onboardv1.BootstrapRequest{Domain: "taken"})
		if connect.CodeOf(err) != code {
			t.Errorf("Bootstrap = %v, want %v", err, code)
		}
		if got := r.log.FilterMessage("call failed").FilterLevelExact(zapcore.ErrorLevel).Len(); got != want {
			t.Errorf("%d errors logged of a call that ended with %v, want %d", got, code, want)
		}
	}
}

func TestTokenIsAskedForBeforeTheMessageIsRead(t *testing.T) {
	r := newRig(t)
	status, body := r.post(t, onboardv1connect.OnboardFinishProcedure, "application/json", strings.NewReader("{broken"), "")
	if status != http.StatusUnauthorized || !strings.Contains(body, "a bearer token is required") {
		t.Errorf("answer = %d %s, want 401 and the token asked for", status, body)
	}
}

func TestProcedureThatIsNotListedIsRefused(t *testing.T) {
	r := newRig(t)
	client := onboardv1connect.NewOnboardClient(r.http, r.url)
	_, err := client.Onboard(t.Context(), &onboardv1.OnboardRequest{})
	if want := "unimplemented: this procedure is not served here"; err == nil || err.Error() != want {
		t.Errorf("Onboard = %v, want %s", err, want)
	}
}

func TestMalformedRequests(t *testing.T) {
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, _ = w.Write(make([]byte, 1<<20))
	_ = w.Close()
	tests := []struct {
		name, contentType, encoding string
		body                        io.Reader
		status                      int
		want, code                  string
	}{
		{"empty JSON", "application/json", "", strings.NewReader(""), 400, "request body: empty, want a JSON object", "invalid_argument"},
		{"wrong type", "application/json", "", strings.NewReader(`{"domain":1}`), 400, "invalid value for string field domain: 1", "invalid_argument"},
		{"deep JSON", "application/json", "", strings.NewReader(`{"x":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`), 400, "recursion", "invalid_argument"},
		{"not protobuf", "application/proto", "", strings.NewReader("\xff\xff"), 400, "request body: ", "invalid_argument"},
		{"too large", "application/json", "", strings.NewReader(`{"domain":"` + strings.Repeat("a", 5000) + `"}`), 429, "larger than configured max 4096", "resource_exhausted"},
		{"endless", "application/json", "", &endless{}, 429, "unable to determine message size", "resource_exhausted"},
		{"compressed", "application/json", "gzip", &zipped, 501, `unknown compression`, "unimplemented"},
		{"unknown content type", "text/plain", "", strings.NewReader("{}"), 415, "", "unimplemented"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			status, body := r.post(t, onboardv1connect.OnboardBootstrapProcedure, tt.contentType, tt.body, tt.encoding)
			if status != tt.status || !strings.Contains(body, tt.want) {
				t.Errorf("answer = %d %s, want %d and %q", status, body, tt.status, tt.want)
			}
			if strings.Contains(body, "onboardv1") {
				t.Errorf("answer %s names a Go type", body)
			}
			if got := r.log.FilterMessage("call").All()[0].ContextMap()["code"]; got != tt.code {
				t.Errorf("logged code %v, want %s", got, tt.code)
			}
		})
	}
}

// endless is a body without an end: reading on to keep the connection must stop.
type endless struct{}

func (*endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func (r *rig) post(t *testing.T, path, contentType string, body io.Reader, encoding string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	if encoding != "" {
		req.Header.Set("Content-Encoding", encoding)
	}
	res, err := r.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func TestAnswersAreNotCompressed(t *testing.T) {
	r := newRig(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+onboardv1connect.OnboardBootstrapProcedure, strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept-Encoding", "gzip")
	res, err := r.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got := res.Header.Get("Content-Encoding"); res.StatusCode != http.StatusOK || got != "" {
		t.Errorf("answer = %d with Content-Encoding %q, want 200 without", res.StatusCode, got)
	}
}

func TestMetrics(t *testing.T) {
	r := newRig(t)
	client := onboardv1connect.NewOnboardClient(r.http, r.url)
	for _, domain := range []string{"", "taken", "taken"} {
		_, _ = client.Bootstrap(t.Context(), &onboardv1.BootstrapRequest{Domain: domain})
	}
	r.post(t, "/no/such/path", "text/plain", strings.NewReader(""), "")
	want := map[string]float64{
		onboardv1connect.OnboardBootstrapProcedure + " ok":                  1,
		onboardv1connect.OnboardBootstrapProcedure + " failed_precondition": 2,
		"other not_found": 1,
	}
	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	var observed uint64
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if v := m.GetCounter().GetValue(); v > 0 {
				got[m.GetLabel()[1].GetValue()+" "+m.GetLabel()[0].GetValue()] = v
			}
			observed += m.GetHistogram().GetSampleCount()
		}
	}
	for series, n := range want {
		if got[series] != n {
			t.Errorf("%s = %v, want %v (all: %v)", series, got[series], n, got)
		}
	}
	if observed != 4 {
		t.Errorf("%d durations observed, want 4", observed)
	}
}

func TestTwoChainsShareOneRegistry(t *testing.T) {
	registry := prometheus.NewRegistry()
	c := rpc.Config{Log: zap.NewNop(), Access: rpc.Access{"/a.B/C": nil}, Registry: registry}
	for range 2 {
		if _, err := rpc.New(c); err != nil {
			t.Errorf("New = %v, want nil", err)
		}
	}
}

func TestNewRefusesAnIncompleteConfig(t *testing.T) {
	tests := []struct {
		config rpc.Config
		want   string
	}{
		{rpc.Config{}, "Log is required"},
		{rpc.Config{Log: zap.NewNop()}, "Access is required"},
	}
	for _, tt := range tests {
		if _, err := rpc.New(tt.config); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("New = %v, want %s", err, tt.want)
		}
	}
}
