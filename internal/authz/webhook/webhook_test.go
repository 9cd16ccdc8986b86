package webhook_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/authz"
	"teekms/internal/authz/webhook"
	"teekms/internal/keys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	unreachable = "authorization service unreachable"
	malformed   = "authorization service gave a malformed answer"
	allow       = `{"isAllowed":true,"gatewayAppId":"any","reason":""}`
)

func bootInfo() authz.BootInfo {
	return authz.BootInfo{
		TEEVariant:      "dstack-tdx",
		AppID:           []byte{0xa1, 0xff},
		ComposeHash:     []byte{0xa2},
		InstanceID:      []byte{0xa3},
		DeviceID:        [32]byte{0xa4},
		MRAggregated:    [32]byte{0xa5},
		MRSystem:        [32]byte{0xa6},
		MRTD:            attest.Measurement{0xa7},
		RTMR:            [4]attest.Measurement{{0xb0}, {0xb1}, {0xb2}, {0xb3}},
		OSImageHash:     []byte{0xa8},
		VMConfig:        "not sent",
		KeyProviderInfo: []byte(`{"name":"kms"}`),
		TCBStatus:       "OutOfDate",
		AdvisoryIDs:     []string{"INTEL-SA-00001"},
		EventLog:        eventlog.Log{{IMR: 3, Type: eventlog.RuntimeEventType, Name: "app-id", Payload: []byte{0xa1, 0xff}}},
	}
}

func open(t *testing.T, cfg webhook.Config) *webhook.Authorizer {
	t.Helper()
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	a, err := webhook.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func write(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }
}

// outcome writes down what became of a question, for comparison.
func outcome(d authz.Decision, err error) string {
	switch {
	case err != nil && errors.Is(err, authz.ErrUnreachable) == errors.Is(err, authz.ErrMalformed):
		return "neither or both: " + err.Error()
	case err != nil && d != authz.Decision{}:
		return "decision beside an error"
	case err != nil:
		return err.Error()
	default:
		return fmt.Sprintf("allowed=%v reason=%q gateway=%q", d.Allowed, d.Reason, d.GatewayAppID)
	}
}

func ask(t *testing.T, a *webhook.Authorizer) string {
	t.Helper()
	return outcome(a.Authorize(t.Context(), authz.Request{Subject: authz.App, BootInfo: bootInfo()}))
}

func TestTheQuestionHasTheFieldsOfBothGenerations(t *testing.T) {
	type question struct {
		Method, Path string
		Header       map[string]string
		Body         map[string]any
	}
	asked := make(chan question, 1)
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		q := question{Method: r.Method, Path: r.URL.RequestURI(), Header: map[string]string{}}
		for _, name := range []string{"Content-Type", "User-Agent", "Authorization", "Accept-Encoding", "Idempotency-Key"} {
			q.Header[name] = r.Header.Get(name)
		}
		if err := json.NewDecoder(r.Body).Decode(&q.Body); err != nil {
			t.Errorf("body: %v", err)
		}
		asked <- q
		_, _ = io.WriteString(w, allow)
	})
	zeros := func(first string, n int) string { return first + strings.Repeat("00", n-1) }
	body := map[string]any{
		"teeVariant": "dstack-tdx", "mrtd": zeros("a7", 48),
		"rtmr0": zeros("b0", 48), "rtmr1": zeros("b1", 48), "rtmr2": zeros("b2", 48), "rtmr3": zeros("b3", 48),
		"mrAggregated": zeros("a5", 32), "osImageHash": "a8", "mrSystem": zeros("a6", 32), "appId": "a1ff", "composeHash": "a2",
		"instanceId": "a3", "deviceId": zeros("a4", 32), "keyProviderInfo": "7b226e616d65223a226b6d73227d",
		"eventLog":  `[{"imr":3,"event_type":134217729,"digest":"","event":"app-id","event_payload":"a1ff"}]`,
		"tcbStatus": "OutOfDate", "advisoryIds": []any{"INTEL-SA-00001"},
	}
	tests := []struct {
		name    string
		url     string
		token   string
		subject authz.Subject
		path    string
	}{
		{"app", "", "", authz.App, "/bootAuth/app"},
		{"kms", "", "", authz.KMS, "/bootAuth/kms"},
		{"slash at the end", "/", "", authz.App, "/bootAuth/app"},
		{"path, query and token", "/a%20b/?tenant=1", "s3cret", authz.App, "/a%20b/bootAuth/app?tenant=1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := open(t, webhook.Config{URL: s.URL + tt.url, Token: keys.NewSecret([]byte(tt.token)), UserAgent: "dstack-kms/1.2"})
			if _, err := a.Authorize(t.Context(), authz.Request{Subject: tt.subject, BootInfo: bootInfo()}); err != nil {
				t.Fatal(err)
			}
			want := question{http.MethodPost, tt.path, map[string]string{
				"Content-Type": "application/json", "User-Agent": "dstack-kms/1.2", "Authorization": "", "Accept-Encoding": "", "Idempotency-Key": "",
			}, body}
			if tt.token != "" {
				want.Header["Authorization"] = "Bearer " + tt.token
			}
			if diff := cmp.Diff(want, <-asked); diff != "" {
				t.Errorf("question (-want +got)\n%s", diff)
			}
		})
	}
	t.Run("nothing there", func(t *testing.T) {
		_, err := open(t, webhook.Config{URL: s.URL}).Authorize(t.Context(), authz.Request{Subject: authz.App})
		if q := <-asked; err != nil || q.Body["eventLog"] != "[]" || !cmp.Equal(q.Body["advisoryIds"], []any{}) || q.Body["osImageHash"] != "" {
			t.Errorf("question = %+v, %v, want empty lists and texts, no null", q, err)
		}
	})
}

func TestWhatIsAnswered(t *testing.T) {
	answer := func(allowed, gateway, reason string) string {
		return `{"isAllowed":` + allowed + `,"gatewayAppId":` + gateway + `,"reason":` + reason + `}`
	}
	redirected := serve(t, write(allow))
	status := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code); _, _ = io.WriteString(w, body) }
	}
	const read = "reading a decision: " + malformed
	const asking = "asking for a decision: "
	tests := []struct {
		name   string
		answer http.HandlerFunc
		want   string
	}{
		{"allowed", write(allow), `allowed=true reason="" gateway="any"`},
		{"allowed with more members", write(`{"isAllowed":true,"gatewayAppId":"0x12","reason":"ok","x":{"isAllowed":false}}`), `allowed=true reason="ok" gateway="0x12"`},
		{"denied", write(answer("false", `""`, `"compose hash not allowed"`)), `allowed=false reason="compose hash not allowed" gateway=""`},
		{"denied without a reason", write(answer("false", `""`, `""`)), `allowed=false reason="" gateway=""`},
		{"reason for a terminal", write(answer("false", `""`, `"a\u001b[31m\nb\u202e"`)), `allowed=false reason="a [31m b" gateway=""`},
		{"endless reason", write(answer("false", `""`, `"`+strings.Repeat("x", 60<<10)+`"`)), `allowed=false reason="` + strings.Repeat("x", 512) + `" gateway=""`},
		{"201", status(201, allow), `allowed=true reason="" gateway="any"`},

		{"true as text", write(answer(`"true"`, `""`, `""`)), read + ": isAllowed: want true or false"},
		{"true as number", write(answer("1", `""`, `""`)), read + ": isAllowed: want true or false"},
		{"null", write(answer("null", `""`, `""`)), read + ": isAllowed: want true or false"},
		{"gateway as number", write(answer("true", `1`, `""`)), read + ": gatewayAppId: want a string"},
		{"gateway as null", write(answer("true", `null`, `""`)), read + ": gatewayAppId: want a string"},
		{"reason as object", write(answer("true", `""`, `{}`)), read + ": reason: want a string"},
		{"no isAllowed", write(`{"gatewayAppId":"","reason":""}`), read + ": isAllowed: missing"},
		{"isAllowed in another case", write(`{"IsAllowed":true,"gatewayAppId":"","reason":""}`), read + ": isAllowed: missing"},
		{"no gateway", write(`{"isAllowed":true,"reason":""}`), read + ": gatewayAppId: missing"},
		{"no reason", write(`{"isAllowed":true,"gatewayAppId":""}`), read + ": reason: missing"},
		{"two answers in one", write(`{"isAllowed":false,"isAllowed":true,"gatewayAppId":"","reason":""}`), read + ": isAllowed: given twice"},
		{"two answers", write(allow + allow), read + ": not JSON"},
		{"gateway for a terminal", write(answer("true", `"\u001b"`, `""`)), read + ": gateway app id is not printable ASCII"},
		{"gateway too long", write(answer("true", `"`+strings.Repeat("a", 257)+`"`, `""`)), read + ": gateway app id of 257 bytes, want at most 256"},
		{"page", write("<html>"), read + ": not JSON"},
		{"nothing", write(""), read + ": not JSON"},
		{"204", status(204, ""), read + ": not JSON"},
		{"list", write("[" + allow + "]"), read + ": want a JSON object"},
		{"huge", write(answer("true", `""`, `"`+strings.Repeat("x", 64<<10)+`"`)), asking + malformed + ": more than 65536 bytes"},
		{"allowed, then endless blanks", write(allow + strings.Repeat(" ", 64<<10)), asking + malformed + ": more than 65536 bytes"},
		{"compressed though nobody asked", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff})
		}, read + ": not UTF-8"},

		{"500 with an allowing body", status(500, allow), asking + unreachable + ": HTTP status 500"},
		{"503", status(503, ""), asking + unreachable + ": HTTP status 503"},
		{"429", status(429, ""), asking + unreachable + ": HTTP status 429"},
		{"400 with an allowing body", status(400, allow), asking + malformed + ": HTTP status 400"},
		{"404", status(404, ""), asking + malformed + ": HTTP status 404"},
		{"redirect to one who allows", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, redirected.URL, http.StatusTemporaryRedirect)
		}, asking + malformed + ": HTTP status 307"},
		{"cut in the header", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, asking + unreachable + ": EOF"},
		{"cut in the body", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, allow)
		}, asking + unreachable + ": unexpected EOF"},
		{"header too large", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 128<<10))
			_, _ = io.WriteString(w, allow)
		}, asking + unreachable + ": net/http: HTTP/1.x transport connection broken: net/http: server response headers exceeded 65536 bytes; aborted"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := open(t, webhook.Config{URL: serve(t, tt.answer).URL})
			if got := ask(t, a); got != tt.want {
				t.Errorf("Authorize() = %s, want %s", got, tt.want)
			}
		})
	}
}

// The answers of the services that come with dstack, as they send them.
func TestShippedServicesAreUnderstood(t *testing.T) {
	tests := []struct{ name, body, want string }{
		{"auth-simple allows", `{"isAllowed":true,"reason":"","gatewayAppId":"any"}`, `allowed=true reason="" gateway="any"`},
		{"auth-simple denies", `{"isAllowed":false,"reason":"OS image is not allowed","gatewayAppId":""}`, `allowed=false reason="OS image is not allowed" gateway=""`},
		{"auth-eth cannot tell", `{"isAllowed":false,"gatewayAppId":"","reason":"authorization backend unavailable"}`, `allowed=false reason="authorization backend unavailable" gateway=""`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := ask(t, open(t, webhook.Config{URL: serve(t, write(tt.body)).URL})); got != tt.want {
				t.Errorf("Authorize() = %s, want %s", got, tt.want)
			}
		})
	}
}

func TestNoDecisionIsRemembered(t *testing.T) {
	var n atomic.Int64
	a := open(t, webhook.Config{URL: serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"isAllowed":%v,"gatewayAppId":"","reason":""}`, n.Add(1) == 1)
	}).URL})
	first, second := ask(t, a), ask(t, a)
	if first != `allowed=true reason="" gateway=""` || second != `allowed=false reason="" gateway=""` || n.Load() != 2 {
		t.Errorf("Authorize() twice = %s, %s with %d questions, want both answers of two", first, second, n.Load())
	}
}

func TestALateAnswerIsNone(t *testing.T) {
	release := make(chan struct{})
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	a := open(t, webhook.Config{URL: s.URL, Timeout: 50 * time.Millisecond})
	got := ask(t, a)
	if got != "asking for a decision: "+unreachable+": context deadline exceeded" {
		t.Errorf("Authorize() = %s, want it out of time", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	a = open(t, webhook.Config{URL: s.URL})
	if _, err := a.Authorize(ctx, authz.Request{Subject: authz.App}); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, authz.ErrUnreachable) {
		t.Errorf("Authorize() = %v, want the caller's deadline", err)
	}
}

func TestASlowBodyIsCutOff(t *testing.T) {
	a := open(t, webhook.Config{URL: serve(t, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			_, _ = io.WriteString(w, " ")
			_ = http.NewResponseController(w).Flush()
			time.Sleep(5 * time.Millisecond)
		}
	}).URL, Timeout: 100 * time.Millisecond})
	if got := ask(t, a); got != "asking for a decision: "+unreachable+": context deadline exceeded" {
		t.Errorf("Authorize() = %s, want it out of time", got)
	}
}

// closed returns an address where nobody listens, and lets one listen there.
func closed(t *testing.T) (address string, listen func(http.HandlerFunc)) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = l.Addr().String()
	_ = l.Close()
	return address, func(h http.HandlerFunc) {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Error(err)
			return
		}
		s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}}
		s.Start()
		t.Cleanup(s.Close)
	}
}

func TestARefusedConnectionIsTriedAgain(t *testing.T) {
	var got string
	for range 5 { // on a busy machine the service may start after the last try
		address, listen := closed(t)
		a := open(t, webhook.Config{URL: "http://" + address})
		timer := time.AfterFunc(100*time.Millisecond, func() { listen(write(allow)) })
		got = ask(t, a)
		timer.Stop()
		if !strings.Contains(got, "connection refused") {
			break
		}
	}
	if got != `allowed=true reason="" gateway="any"` {
		t.Errorf("Authorize() of a service that starts = %s, want its answer", got)
	}
	address, _ := closed(t)
	a := open(t, webhook.Config{URL: "http://user:password@" + address + "/token"})
	before := time.Now()
	got = ask(t, a)
	if !strings.HasPrefix(got, "asking for a decision: "+unreachable+": dial tcp ") || !strings.Contains(got, "connection refused") {
		t.Errorf("Authorize() of nobody = %s, want a refused connection", got)
	}
	if strings.Contains(got, "password") || strings.Contains(got, "/token") {
		t.Errorf("Authorize() = %s, which has the URL's secrets", got)
	}
	if took := time.Since(before); took < 700*time.Millisecond {
		t.Errorf("gave up after %v, want three pauses", took)
	}
	a = open(t, webhook.Config{URL: "http://" + address, Timeout: 20 * time.Millisecond})
	if got := ask(t, a); !strings.Contains(got, unreachable) {
		t.Errorf("Authorize() of nobody in short time = %s, want it unreachable", got)
	}
}

// What failed otherwise is not asked twice.
func TestAFailedQuestionIsNotRepeated(t *testing.T) {
	for _, code := range []int{500, 503, 0} {
		var n atomic.Int64
		a := open(t, webhook.Config{URL: serve(t, func(w http.ResponseWriter, _ *http.Request) {
			n.Add(1)
			if code == 0 {
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(code)
		}).URL})
		if got := ask(t, a); !strings.Contains(got, unreachable) || n.Load() != 1 {
			t.Errorf("Authorize() = %s after %d questions, want it unreachable after one", got, n.Load())
		}
	}
}

// A service may close a kept connection at any time; that is nobody's failure.
func TestAKeptConnectionThatWasClosedIsReplaced(t *testing.T) {
	var n atomic.Int64
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if n.Add(1) == 2 {
			panic(http.ErrAbortHandler) // the connection of the first question
		}
		_, _ = io.WriteString(w, allow)
	})
	a := open(t, webhook.Config{URL: s.URL})
	for range 2 {
		if got := ask(t, a); got != `allowed=true reason="" gateway="any"` {
			t.Errorf("Authorize() = %s, want the answer over a new connection", got)
		}
	}
	if n.Load() != 3 {
		t.Errorf("asked %d times, want 3", n.Load())
	}
}

func TestTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(write(allow))
	s.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	s.StartTLS()
	t.Cleanup(s.Close)
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, open(t, webhook.Config{URL: s.URL, CAFile: file})); got != `allowed=true reason="" gateway="any"` {
		t.Errorf("Authorize() of the right authority = %s, want its answer", got)
	}
	if got := ask(t, open(t, webhook.Config{URL: s.URL})); !strings.Contains(got, unreachable+": tls: failed to verify certificate: x509: certificate signed by unknown authority") {
		t.Errorf("Authorize() of an unknown authority = %s, want it refused", got)
	}
	other := strings.Replace(s.URL, "127.0.0.1", "localhost", 1)
	if got := ask(t, open(t, webhook.Config{URL: other, CAFile: file})); !strings.Contains(got, unreachable+": tls: failed to verify certificate: x509: certificate is valid for example.com, *.example.com, not localhost") {
		t.Errorf("Authorize() of another name = %s, want it refused", got)
	}
}

func TestFacts(t *testing.T) {
	tests := []struct {
		name   string
		answer http.HandlerFunc
		want   authz.Facts
		logged string
	}{
		{
			"everything",
			write(`{"status":"ok","kmsContractAddr":"0xab","gatewayAppId":"any","chainId":8453,"appImplementation":"0xcd","ethRpcUrl":"https://node","x":1}`),
			authz.Facts{ContractAddress: "0xab", GatewayAppID: "any", ChainID: 8453, AppImplementation: "0xcd", EthRPCURL: "https://node"},
			"",
		},
		{
			"older name", write(`{"status":"ok","kmsContractAddr":"","gatewayAppId":"","chainId":0,"appAuthImplementation":"0xef"}`),
			authz.Facts{AppImplementation: "0xef"},
			"",
		},
		{"other types", write(`{"chainId":"1","gatewayAppId":null,"kmsContractAddr":[],"appImplementation":"a\u001b"}`), authz.Facts{AppImplementation: "a"}, ""},
		{"nothing", write(`{}`), authz.Facts{}, ""},
		{"page", write("<html>"), authz.Facts{}, "reading facts: " + malformed + ": not JSON"},
		{"500", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, authz.Facts{}, "asking for facts: " + unreachable + ": HTTP status 500"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var n atomic.Int64
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if n.Add(1); r.Method != http.MethodGet || r.URL.RequestURI() != "/base/?a=b" {
					t.Errorf("asked %s %s, want GET of the URL itself", r.Method, r.URL.RequestURI())
				}
				tt.answer(w, r)
			})
			core, logs := observer.New(zap.DebugLevel)
			a := open(t, webhook.Config{URL: s.URL + "/base/?a=b", Log: zap.New(core)})
			for range 3 {
				if got, err := a.Facts(t.Context()); err != nil || got != tt.want {
					t.Errorf("Facts() = %+v, %v, want %+v", got, err, tt.want)
				}
			}
			if n.Load() != 1 {
				t.Errorf("asked %d times, want once", n.Load())
			}
			var logged string
			for _, l := range logs.All() {
				logged += fmt.Sprint(l.ContextMap()["err"])
			}
			if logged != tt.logged {
				t.Errorf("logged %q, want %q", logged, tt.logged)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		cfg  webhook.Config
		want string
	}{
		{"no URL", webhook.Config{Log: zap.NewNop()}, "URL of the webhook: want http://HOST or https://HOST"},
		{"file", webhook.Config{URL: "file:///etc/passwd", Log: zap.NewNop()}, "URL of the webhook: want http://HOST or https://HOST"},
		{"no host", webhook.Config{URL: "http:///x", Log: zap.NewNop()}, "URL of the webhook: want http://HOST or https://HOST"},
		{"fragment", webhook.Config{URL: "http://host/#x", Log: zap.NewNop()}, "URL of the webhook: want no fragment"},
		{"URL that is none", webhook.Config{URL: "http://user:password\x7f@host", Log: zap.NewNop()}, "URL of the webhook cannot be parsed"},
		{"no log", webhook.Config{URL: "http://host"}, "facts cache needs Fetch and Log"},
		{"CA file there is not", webhook.Config{URL: "https://host", CAFile: "/nonexistent", Log: zap.NewNop()}, "reading CA certificates: open /nonexistent: no such file or directory"},
		{"CA file without certificates", webhook.Config{URL: "https://host", CAFile: empty, Log: zap.NewNop()}, "reading CA certificates: " + empty + " holds none"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := webhook.New(tt.cfg); err == nil || err.Error() != tt.want {
				t.Errorf("New() = %v, want %s", err, tt.want)
			}
		})
	}
}

func TestAQuestionThatCannotBeAsked(t *testing.T) {
	a := open(t, webhook.Config{URL: serve(t, write(allow)).URL})
	if d, err := a.Authorize(t.Context(), authz.Request{}); err == nil || err.Error() != "request for a subject that there is not" || d.Allowed {
		t.Errorf("Authorize(no subject) = %+v, %v, want a refusal", d, err)
	}
	r := authz.Request{Subject: authz.App, BootInfo: authz.BootInfo{EventLog: eventlog.Log{{IMR: 9}}}}
	if d, err := a.Authorize(t.Context(), r); err == nil || err.Error() != "writing boot information: event 0: imr is 9, want 0 to 3" || d.Allowed {
		t.Errorf("Authorize(log that is none) = %+v, %v, want a refusal", d, err)
	}
}
