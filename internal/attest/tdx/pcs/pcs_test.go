package pcs_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/attest/tdx/pcs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// softwareTD is a software TD; its service speaks the real protocol.
func softwareTD(t *testing.T) *simtd.TD {
	t.Helper()
	td, err := simtd.Open(simtd.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return td
}

func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

func client(t *testing.T, cfg pcs.Config) *pcs.Client {
	t.Helper()
	c, err := pcs.New(cfg)
	if err != nil {
		t.Fatalf("New(%+v) = %v", cfg, err)
	}
	t.Cleanup(c.Close)
	return c
}

// own is the collateral of td as it gives it in process.
func own(t *testing.T, td *simtd.TD) *tdx.Collateral {
	t.Helper()
	c, err := td.Collateral(t.Context(), tdx.FMSPC(td.Measurements().FMSPC), tdx.PlatformCA)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCollateralOfSoftwareTD(t *testing.T) {
	td := softwareTD(t)
	base := serve(t, td.Handler())
	for _, suffix := range []string{"", "/", "/sgx/certification/v4/"} {
		t.Run("base URL with "+suffix, func(t *testing.T) {
			got, err := client(t, pcs.Config{URL: base + suffix}).Collateral(t.Context(), tdx.FMSPC(td.Measurements().FMSPC), tdx.PlatformCA)
			if err != nil {
				t.Fatalf("Collateral() = %v", err)
			}
			if diff := cmp.Diff(own(t, td), got); diff != "" {
				t.Errorf("Collateral() over HTTP differs (-in process +HTTP):\n%s", diff)
			}
		})
	}
}

func TestVerifyOverHTTP(t *testing.T) {
	td := softwareTD(t)
	source := client(t, pcs.Config{URL: serve(t, td.Handler())})
	v, err := tdx.NewVerifier(tdx.Config{TrustAnchor: td.Root(), Collateral: source})
	if err != nil {
		t.Fatal(err)
	}
	ev, err := td.Attest(t.Context(), attest.NoReportData())
	if err != nil {
		t.Fatal(err)
	}
	claims, err := v.Verify(t.Context(), ev)
	if err != nil || claims.TCB != attest.UpToDate {
		t.Errorf("Verify() = %+v, %v, want TCB %s", claims, err, attest.UpToDate)
	}
}

// TestEncodings has services answer in the ways that differ between them.
func TestEncodings(t *testing.T) {
	td := softwareTD(t)
	want := own(t, td)
	escape := func(how func(string) string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rec := httptest.NewRecorder()
			td.Handler().ServeHTTP(rec, r)
			for name, values := range rec.Header() {
				if !strings.HasSuffix(name, "-Chain") {
					continue
				}
				chain, err := url.PathUnescape(values[0])
				if err != nil {
					t.Errorf("unescaping: %v", err)
				}
				// A header name in lower case, as HTTP/2 has it.
				w.Header()[strings.ToLower(name)] = []string{how(chain)}
			}
			_, _ = w.Write(rec.Body.Bytes())
		})
	}
	crl := func(encode func([]byte) []byte) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/rootcacrl") {
				_, _ = w.Write(encode(want.RootCRL))
				return
			}
			td.Handler().ServeHTTP(w, r)
		})
	}
	tests := []struct {
		name    string
		handler http.Handler
	}{
		{"plus signs are spaces", escape(url.QueryEscape)},
		{"plus signs are plus signs", escape(func(s string) string {
			return strings.ReplaceAll(strings.ReplaceAll(s, "\n", "%0A"), " ", "%20")
		})},
		{"root CRL in DER", crl(bytes.Clone)},
		{"root CRL in hex, upper case, with a newline", crl(func(b []byte) []byte { return []byte(strings.ToUpper(hex.EncodeToString(b)) + "\n") })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := client(t, pcs.Config{URL: serve(t, tt.handler)}).Collateral(t.Context(), tdx.FMSPC(td.Measurements().FMSPC), tdx.PlatformCA)
			if err != nil {
				t.Fatalf("Collateral() = %v", err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Collateral() differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	td := softwareTD(t)
	// instead answers one path in its own way.
	instead := func(path string, h http.HandlerFunc) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, path) {
				h(w, r)
				return
			}
			td.Handler().ServeHTTP(w, r)
		})
	}
	tests := []struct {
		name    string
		handler http.Handler
		want    []string
	}{
		{"a status that is not 200", instead("/tdx/certification/v4/tcb", http.NotFound), []string{"/tdx/certification/v4/tcb?fmspc=", "status 404 Not Found"}},
		{"a service that stays busy", instead("/tdx/certification/v4/qe", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }), []string{"/qe/identity", "status 503"}},
		{"a missing chain", instead("/sgx/certification/v4/pckcrl", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("x")) }), []string{"/pckcrl?ca=platform&encoding=der", "SGX-PCK-CRL-Issuer-Chain", "0 values, want 1"}},
		{"a chain with bad escapes", instead("/tdx/certification/v4/qe", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("SGX-Enclave-Identity-Issuer-Chain", "%zz")
		}), []string{"/qe/identity", "invalid URL escape"}},
		{"a body without end", instead("/sgx/certification/v4/rootcacrl", func(w http.ResponseWriter, _ *http.Request) {
			chunk := make([]byte, 1<<20)
			for range pcs.MaxBodySize/len(chunk) + 1 {
				_, _ = w.Write(chunk)
			}
		}), []string{"/rootcacrl", "answer of more than 4194304 bytes"}},
		{"a root CRL that is half hex", instead("/sgx/certification/v4/rootcacrl", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("30zz")) }), []string{"/rootcacrl", "revocation list in hex"}},
		{"headers without end", instead("/tdx/certification/v4/tcb", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("TCB-Info-Issuer-Chain", strings.Repeat("A", 200<<10))
		}), []string{"/tcb?fmspc=", "exceeded"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := client(t, pcs.Config{URL: serve(t, tt.handler)}).Collateral(t.Context(), tdx.FMSPC(td.Measurements().FMSPC), tdx.PlatformCA)
			if err == nil {
				t.Fatal("Collateral() = nil error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Collateral() = %q, want it to say %q", err, want)
				}
			}
		})
	}
}

func TestRetriesWhenBusy(t *testing.T) {
	td := softwareTD(t)
	var mu sync.Mutex
	seen := map[string]int{}
	base := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen[r.URL.Path]++
		first := seen[r.URL.Path] == 1
		mu.Unlock()
		if first {
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		td.Handler().ServeHTTP(w, r)
	}))
	if _, err := client(t, pcs.Config{URL: base}).Collateral(t.Context(), tdx.FMSPC(td.Measurements().FMSPC), tdx.PlatformCA); err != nil {
		t.Errorf("Collateral() = %v, want the second attempts to succeed", err)
	}
}

func TestDeadline(t *testing.T) {
	var asked atomic.Int32
	base := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		<-r.Context().Done()
	}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	start := time.Now()
	_, err := client(t, pcs.Config{URL: base}).Collateral(ctx, tdx.FMSPC{}, tdx.PlatformCA)
	if err == nil || !strings.Contains(err.Error(), "deadline exceeded") {
		t.Errorf("Collateral() = %v, want a deadline exceeded", err)
	}
	if took := time.Since(start); took > 8*time.Second { // a fetch may take ten where nothing else ends it
		t.Errorf("Collateral() took %v after its deadline", took)
	}
	if asked.Load() == 0 {
		t.Error("the service was never asked")
	}
}

func TestNewRefuses(t *testing.T) {
	tests := []struct {
		name string
		cfg  pcs.Config
		want string
	}{
		{"another scheme", pcs.Config{URL: "file:///etc"}, "neither http nor https"},
		{"no host", pcs.Config{URL: "https://"}, "has no host"},
		{"a password", pcs.Config{URL: "https://user:secret@host"}, "carries a user name"},
		{"a password and a bad port", pcs.Config{URL: "https://user:secret@host:port"}, "not a URL"},
		{"a query", pcs.Config{URL: "https://host/?a=b"}, "has a query"},
		{"a root CRL of another scheme", pcs.Config{RootCRL: "ftp://host/crl"}, "root CRL"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := pcs.New(tt.cfg)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("New(%+v) = %v, want it to say %q", tt.cfg, err, tt.want)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("New(%+v) = %q prints the password", tt.cfg, err)
			}
		})
	}
}

// TestIntel checks which URLs a client of Intel's service asks, without asking
// them.
func TestIntel(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]bool{}
	c := client(t, pcs.Config{HTTP: &http.Client{Transport: transport(func(r *http.Request) (*http.Response, error) {
		mu.Lock()
		asked[r.URL.String()] = true
		mu.Unlock()
		rec := httptest.NewRecorder()
		for _, h := range []string{"TCB-Info-Issuer-Chain", "SGX-Enclave-Identity-Issuer-Chain", "SGX-PCK-CRL-Issuer-Chain"} {
			rec.Header().Set(h, "x")
		}
		return rec.Result(), nil
	})}})
	if _, err := c.Collateral(t.Context(), tdx.FMSPC{0x90, 0xc0, 0x6f}, tdx.ProcessorCA); err != nil {
		t.Fatalf("Collateral() = %v", err)
	}
	want := map[string]bool{
		"https://api.trustedservices.intel.com/tdx/certification/v4/tcb?fmspc=90c06f000000":           true,
		"https://api.trustedservices.intel.com/tdx/certification/v4/qe/identity":                      true,
		"https://api.trustedservices.intel.com/sgx/certification/v4/pckcrl?ca=processor&encoding=der": true,
		"https://certificates.trustedservices.intel.com/IntelSGXRootCA.der":                           true,
	}
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
