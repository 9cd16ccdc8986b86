package guestagent_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/guestagent"
	"teekms/internal/attest/guestagent/guestagenttest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openTD(t testing.TB) *simtd.TD {
	t.Helper()
	td, err := simtd.Open(simtd.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return td
}

func newAgent(t testing.TB, cfg guestagent.Config) *guestagent.Agent {
	t.Helper()
	a, err := guestagent.New(cfg)
	if err != nil {
		t.Fatalf("New() = %v", err)
	}
	return a
}

// nowhere is a list of sockets that are not there.
func nowhere() []string { return []string{"/nonexistent/agent.sock"} }

var reportData = attest.BootstrapReportData([]byte{1}, []byte{2})

func TestAttestThroughEveryGeneration(t *testing.T) {
	td := openTD(t)
	verifier, err := tdx.NewVerifier(tdx.Config{TrustAnchor: td.Root(), Collateral: td})
	if err != nil {
		t.Fatal(err)
	}
	onTCP := httptest.NewServer(guestagenttest.Handler(td, guestagenttest.Current))
	defer onTCP.Close()
	listen := func(g guestagenttest.Generation) string {
		return guestagenttest.Listen(t, guestagenttest.Handler(td, g))
	}
	stale := filepath.Join(t.TempDir(), "stale.sock")
	l, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	current := listen(guestagenttest.Current)
	tests := []struct {
		name     string
		cfg      guestagent.Config
		vmConfig string
	}{
		{"attestation", guestagent.Config{Sockets: []string{current}}, td.VMConfig()},
		{"quote of an agent without Attest", guestagent.Config{Sockets: []string{listen(guestagenttest.WithoutAttest)}}, td.VMConfig()},
		{"tappd", guestagent.Config{Sockets: nowhere(), TappdSockets: []string{listen(guestagenttest.Tappd)}}, ""},
		{"address of a socket", guestagent.Config{Address: "unix:" + current}, td.VMConfig()},
		{"address of a socket as a URL", guestagent.Config{Address: "unix://" + current}, td.VMConfig()},
		{"address of a TCP port", guestagent.Config{Address: onTCP.URL}, td.VMConfig()},
		{"second socket where the first is a directory", guestagent.Config{Sockets: []string{t.TempDir(), current}}, td.VMConfig()},
		{"second socket where nobody listens on the first", guestagent.Config{Sockets: []string{stale, current}}, td.VMConfig()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ev, err := newAgent(t, tt.cfg).Attest(t.Context(), reportData)
			if err != nil {
				t.Fatalf("Attest() = %v", err)
			}
			claims, err := verifier.Verify(t.Context(), ev)
			if err != nil {
				t.Fatalf("Verify() = %v", err)
			}
			if claims.ReportData != reportData.Bytes() {
				t.Errorf("ReportData = %x, want %x", claims.ReportData, reportData.Bytes())
			}
			if len(ev.EventLog) == 0 {
				t.Error("EventLog is empty")
			}
			if ev.VMConfig != tt.vmConfig {
				t.Errorf("VMConfig = %q, want %q", ev.VMConfig, tt.vmConfig)
			}
		})
	}
}

func TestAttestKeepsAStrippedLogAsItIs(t *testing.T) {
	td := openTD(t)
	// Attest in a format that we do not read makes the agent's GetQuote count.
	mux := http.NewServeMux()
	mux.Handle("/", guestagenttest.Handler(td, guestagenttest.Current))
	mux.HandleFunc("POST /Attest", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"attestation":"0003"}`) })
	ev, err := newAgent(t, guestagent.Config{Sockets: []string{guestagenttest.Listen(t, mux)}}).Attest(t.Context(), reportData)
	if err != nil {
		t.Fatal(err)
	}
	log, err := eventlog.Parse(ev.EventLog)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range log.RuntimeEvents() {
		if len(e.Digest) != 0 {
			t.Errorf("event %q has digest %x, want none", e.Name, e.Digest)
		}
	}
	if got, err := log.Replay(); err != nil || got != td.RTMR() {
		t.Errorf("Replay() = %x, %v, want %x", got, err, td.RTMR())
	}
}

func TestNoAgentIsSaidInTheWordsOperatorsKnow(t *testing.T) {
	if got, want := guestagent.ErrSocketNotFound.Error(), "tappd socket not found"; got != want {
		t.Errorf("ErrSocketNotFound.Error() = %q, want %q", got, want)
	}
	for name, cfg := range map[string]guestagent.Config{
		"no sockets":               {Sockets: nowhere(), TappdSockets: nowhere()},
		"empty lists":              {Sockets: []string{}, TappdSockets: []string{}},
		"directory for a socket":   {Sockets: []string{t.TempDir()}, TappdSockets: nowhere()},
		"address without a socket": {Address: "unix:/nonexistent/agent.sock"},
		"device for a socket":      {Sockets: nowhere(), TappdSockets: []string{os.DevNull}},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAgent(t, cfg)
			_, err := a.Attest(t.Context(), reportData)
			if !errors.Is(err, guestagent.ErrSocketNotFound) || !errors.Is(err, attest.ErrNoAttester) {
				t.Errorf("Attest() = %v, want %v", err, guestagent.ErrSocketNotFound)
			}
			if _, err := a.Info(t.Context()); !errors.Is(err, guestagent.ErrSocketNotFound) {
				t.Errorf("Info() = %v, want %v", err, guestagent.ErrSocketNotFound)
			}
		})
	}
}

func TestNewRefusesAddresses(t *testing.T) {
	for address, want := range map[string]string{
		"vsock:2:1234":             "vsock is not supported, only unix and http",
		"vsock://2:1234":           "vsock is not supported, only unix and http",
		"unix:relative.sock":       "want unix: and an absolute path",
		"unix:":                    "want unix: and an absolute path",
		"https://localhost":        "want unix:/path or http://host:port",
		"/var/run/dstack.sock":     "want unix:/path or http://host:port",
		"http://":                  "want http://host:port",
		"http://localhost/prpc":    "want http://host:port with nothing after",
		"http://user@localhost":    "want http://host:port with nothing after",
		"http://localhost:80?json": "want http://host:port with nothing after",
	} {
		_, err := guestagent.New(guestagent.Config{Address: address})
		if want := fmt.Sprintf("guest agent address %q: %s", address, want); err == nil || err.Error() != want {
			t.Errorf("New(%q) = %v, want %q", address, err, want)
		}
	}
}

// respond answers every method but those given with text and status.
func respond(status int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, text)
	}
}

func TestAttestRefusesBadAnswers(t *testing.T) {
	td := openTD(t)
	otherQuote, err := td.Quote([64]byte{9}, simtd.Shape{})
	if err != nil {
		t.Fatal(err)
	}
	other := fmt.Sprintf(`{"quote":"%x","event_log":"[]"}`, otherQuote)
	right, err := td.Quote(reportData.Bytes(), simtd.Shape{})
	if err != nil {
		t.Fatal(err)
	}
	otherAttestation := func(w http.ResponseWriter, _ *http.Request) {
		r := httptest.NewRequest(http.MethodPost, "/Attest?json", strings.NewReader(`{"report_data":"09"}`))
		guestagenttest.Handler(td, guestagenttest.Current).ServeHTTP(w, r)
	}
	notFound := respond(http.StatusNotFound, "no such method")
	tests := []struct {
		name             string
		attest, getQuote http.HandlerFunc
		want             string
	}{
		{"neither method", notFound, notFound, `GetQuote: status 404: "no such method"; before that, Attest: status 404: "no such method"`},
		{"both fail", respond(400, `{"error":"a"}`), respond(500, `{"error":"b"}`), `GetQuote: status 500: "{\"error\":\"b\"}"; before that, Attest: status 400`},
		{"redirect", notFound, respond(http.StatusFound, ""), "GetQuote: status 302"},
		{"attestation not JSON", respond(200, "<html>"), nil, "Attest: reading the answer: not the JSON that was expected"},
		{"attestation of another type", respond(200, `{"attestation":1}`), nil, `Attest: reading the answer: field "attestation" has type number`},
		{"attestation missing", respond(200, `{}`), nil, "Attest: reading attestation: ends too early"},
		{"attestation not hex", respond(200, `{"attestation":"zz"}`), nil, "Attest: attestation: want hex"},
		{"attestation truncated", respond(200, `{"attestation":"0000"}`), nil, "Attest: reading attestation: quote: ends too early"},
		{"attestation over other report data", otherAttestation, nil, "Attest: the quote is over other report data than asked for"},
		{"attestation of another kind, and no quote", respond(200, `{"attestation":"0003"}`), respond(200, `{"quote":""}`), "before that, Attest: reading attestation: SEV-SNP is not supported"},
		{"quote over other report data", notFound, respond(200, other), "GetQuote: the quote is over other report data than asked for"},
		{"quote truncated", notFound, respond(200, fmt.Sprintf(`{"quote":"%x"}`, right[:700])), "GetQuote: quote: "},
		{"quote not hex", notFound, respond(200, `{"quote":"0"}`), "GetQuote: quote: want hex"},
		{"event log not JSON", notFound, respond(200, fmt.Sprintf(`{"quote":"%x","event_log":"{"}`, right)), "GetQuote: event log is not JSON"},
		{"event log as an array", notFound, respond(200, fmt.Sprintf(`{"quote":"%x","event_log":[]}`, right)), `GetQuote: reading the answer: field "event_log" has type array`},
		{"endless answer", func(w http.ResponseWriter, _ *http.Request) {
			for range 9 << 10 {
				io.WriteString(w, strings.Repeat(" ", 1<<10))
			}
		}, nil, "Attest: answer of more than 8388608 bytes"},
		{"endless refusal", respond(400, strings.Repeat("x", 1000)), respond(400, strings.Repeat("y", 1000)), `"` + strings.Repeat("y", 200) + `"`},
		{"endless header", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 1<<20)) }, nil, "response headers exceeded 65536 bytes"},
		{"connection cut", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, nil, "Attest: the connection ended without an answer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mux := http.NewServeMux()
			mux.HandleFunc("POST /Attest", tt.attest)
			if tt.getQuote != nil {
				mux.HandleFunc("POST /GetQuote", tt.getQuote)
			}
			ev, err := newAgent(t, guestagent.Config{Sockets: []string{guestagenttest.Listen(t, mux)}}).Attest(t.Context(), reportData)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Attest() = %v, %v, want error %q", ev, err, tt.want)
			}
			if errors.Is(err, attest.ErrNoAttester) {
				t.Errorf("Attest() = %v, which says that there is no agent", err)
			}
		})
	}
}

func TestSlowAgentMeetsTheDeadline(t *testing.T) {
	release := make(chan struct{})
	path := guestagenttest.Listen(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer close(release)
	_, err := newAgent(t, guestagent.Config{Sockets: []string{path}, Timeout: 20 * time.Millisecond}).Attest(t.Context(), reportData)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "Attest") {
		t.Errorf("Attest() = %v, want %v of Attest", err, context.DeadlineExceeded)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newAgent(t, guestagent.Config{Sockets: []string{path}}).Attest(ctx, reportData); !errors.Is(err, context.Canceled) {
		t.Errorf("Attest(canceled) = %v, want %v", err, context.Canceled)
	}
}

func TestUnreachableAgentIsAnErrorOfItsOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stale.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	_, err = newAgent(t, guestagent.Config{Sockets: []string{path}, TappdSockets: nowhere()}).Attest(t.Context(), reportData)
	if err == nil || errors.Is(err, attest.ErrNoAttester) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("Attest() = %v, want connection refused", err)
	}
}

func TestInfo(t *testing.T) {
	td := openTD(t)
	m := td.Measurements()
	answer := func(text string) http.Handler { return respond(200, text) }
	hash := strings.Repeat("ab", 32)
	tests := []struct {
		name string
		h    http.Handler
		want *guestagent.Info
	}{
		{
			"agent", guestagenttest.Handler(td, guestagenttest.Current),
			&guestagent.Info{VMConfig: td.VMConfig(), OSImageHash: m.OSImageHash, AppID: m.AppID, InstanceID: m.InstanceID, ComposeHash: m.ComposeHash},
		},
		{"hash in the machine's description", answer(`{"vm_config":"{\"os_image_hash\":\"` + hash + `\"}"}`), &guestagent.Info{VMConfig: `{"os_image_hash":"` + hash + `"}`, OSImageHash: unhex(hash)}},
		{"description as an object", answer(`{"vm_config":{"os_image_hash":"` + hash + `"}}`), &guestagent.Info{VMConfig: `{"os_image_hash":"` + hash + `"}`, OSImageHash: unhex(hash)}},
		{"hash in the TCB info", answer(`{"vm_config":"","tcb_info":"{\"os_image_hash\":\"` + hash + `\"}"}`), &guestagent.Info{OSImageHash: unhex(hash)}},
		{"hash with 0x", answer(`{"os_image_hash":"0x` + hash + `"}`), &guestagent.Info{OSImageHash: unhex(hash)}},
		{"nothing known", answer(`{"vm_config":null,"tcb_info":"no JSON"}`), &guestagent.Info{}},
	}
	empty := cmp.Comparer(func(a, b []byte) bool { return string(a) == string(b) })
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := newAgent(t, guestagent.Config{Sockets: []string{guestagenttest.Listen(t, tt.h)}}).Info(t.Context())
			if diff := cmp.Diff(tt.want, got, empty); err != nil || diff != "" {
				t.Errorf("Info() = %v, (-want +got)\n%s", err, diff)
			}
		})
	}
	for text, want := range map[string]string{
		`{"os_image_hash":"xx"}`: "Info: os_image_hash: want hex",
		`[]`:                     "Info: reading the answer",
	} {
		_, err := newAgent(t, guestagent.Config{Sockets: []string{guestagenttest.Listen(t, answer(text))}}).Info(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Info(%s) = %v, want %q", text, err, want)
		}
	}
	tappd := newAgent(t, guestagent.Config{Sockets: nowhere(), TappdSockets: []string{guestagenttest.Listen(t, guestagenttest.Handler(td, guestagenttest.Tappd))}})
	if got, err := tappd.Info(t.Context()); err != nil || string(got.AppID) != string(m.AppID) {
		t.Errorf("Info() of tappd = %+v, %v, want app id %x", got, err, m.AppID)
	}
}

func unhex(s string) []byte {
	b, _ := hex.DecodeString(s)
	return b
}
