package onboard_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"google.golang.org/protobuf/testing/protocmp"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/gen/onboard/v1/onboardv1connect"
	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
	"teekms/internal/rpc"
	"teekms/internal/serve"
	"teekms/services/onboard"
)

// attesterFunc is an attester made of a function.
type attesterFunc func(context.Context, attest.ReportData) (*attest.Evidence, error)

func (f attesterFunc) Attest(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
	return f(ctx, rd)
}

func newVerifier(t testing.TB, root *x509.Certificate, source tdx.CollateralSource) *tdx.Verifier {
	t.Helper()
	v, err := tdx.NewVerifier(tdx.Config{TrustAnchor: root, Collateral: source})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// fixture is a service over a software TD and an empty key directory.
type fixture struct {
	*onboard.Service
	td     *simtd.TD
	dir    string
	client onboardv1connect.OnboardClient
	server *httptest.Server
}

func newFixture(t *testing.T, change func(*onboard.Config, *simtd.TD)) *fixture {
	t.Helper()
	td, err := simtd.Open(simtd.Config{Dir: filepath.Join(t.TempDir(), "td")})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "certs")
	store, err := keystore.Open(t.Context(), keystore.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	cfg := onboard.Config{Store: store, Attester: td, Provider: "simulator", Verifier: newVerifier(t, td.Root(), td)}
	if change != nil {
		change(&cfg, td)
	}
	s, err := onboard.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	mount, err := s.Mount(rpc.Config{Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	handler, err := serve.NewMux(mount)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	t.Cleanup(s.Wait)
	return &fixture{s, td, dir, onboardv1connect.NewOnboardClient(server.Client(), server.URL), server}
}

func request(domain, id string) *onboardv1.BootstrapRequest {
	return &onboardv1.BootstrapRequest{Domain: domain, RequestId: id}
}

// wantError checks code and text of a refusal.
func wantError(t *testing.T, err error, code connect.Code, text string) {
	t.Helper()
	var e *connect.Error
	if !errors.As(err, &e) || e.Code() != code || !strings.Contains(e.Message(), text) {
		t.Errorf("error = %v, want %v: %s", err, code, text)
	}
}

func TestBootstrapHappensOnce(t *testing.T) {
	f := newFixture(t, nil)
	first, err := f.client.Bootstrap(t.Context(), request("kms.example.com", "one"))
	if err != nil {
		t.Fatal(err)
	}
	stored, err := keystore.Open(t.Context(), keystore.Config{Dir: f.dir})
	if err != nil {
		t.Fatal(err)
	}
	if got := stored.Roots().CAPublic(); !bytes.Equal(got, first.GetCaPubkey()) {
		t.Errorf("stored root = %x, answered %x", got, first.GetCaPubkey())
	}
	if got := stored.Info().Quote; !bytes.Equal(got, first.GetQuote()) {
		t.Error("the quote on disk is not the one answered")
	}

	again, err := f.client.Bootstrap(t.Context(), request("other.example.com", "one"))
	if err != nil {
		t.Fatalf("the same request_id again: %v", err)
	}
	if diff := cmp.Diff(first, again, protocmp.Transform()); diff != "" {
		t.Errorf("the same request_id got another answer:\n%s", diff)
	}
	_, err = f.client.Bootstrap(t.Context(), request("kms.example.com", "two"))
	wantError(t, err, connect.CodeAlreadyExists, "Bootstrap already completed")
	_, err = f.client.Bootstrap(t.Context(), request("kms.example.com", ""))
	wantError(t, err, connect.CodeAlreadyExists, "Bootstrap already completed")
}

func TestAnEmptyRequestIDIsNoID(t *testing.T) {
	f := newFixture(t, nil)
	if _, err := f.client.Bootstrap(t.Context(), request("kms.example.com", "")); err != nil {
		t.Fatal(err)
	}
	_, err := f.client.Bootstrap(t.Context(), request("kms.example.com", ""))
	wantError(t, err, connect.CodeAlreadyExists, "Bootstrap already completed")
}

func TestConcurrentBootstrapsMakeOneSetOfKeys(t *testing.T) {
	f := newFixture(t, nil)
	const callers = 16
	var wg sync.WaitGroup
	errs := make([]error, callers)
	for i := range callers {
		wg.Go(func() { _, errs[i] = f.client.Bootstrap(context.Background(), request("kms.example.com", "")) })
	}
	wg.Wait()
	succeeded := 0
	for _, err := range errs {
		if err == nil {
			succeeded++
			continue
		}
		wantError(t, err, connect.CodeAlreadyExists, "Bootstrap already completed")
	}
	if succeeded != 1 {
		t.Errorf("%d of %d callers bootstrapped, want 1", succeeded, callers)
	}
}

// TestBootstrapOutlivesItsCaller cancels the caller while the quote is made.
func TestBootstrapOutlivesItsCaller(t *testing.T) {
	quoting, proceed := make(chan struct{}), make(chan struct{})
	f := newFixture(t, func(c *onboard.Config, td *simtd.TD) {
		c.Attester = attesterFunc(func(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
			close(quoting)
			<-proceed
			return td.Attest(ctx, rd)
		})
	})
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := f.client.Bootstrap(ctx, request("kms.example.com", "mine"))
		gone <- err
	}()
	<-quoting
	leave()
	if err := <-gone; err == nil {
		t.Fatal("the caller that left got an answer")
	}
	close(proceed)
	// The reply was lost; the same request_id gets it.
	response, err := f.client.Bootstrap(t.Context(), request("kms.example.com", "mine"))
	if err != nil {
		t.Fatal(err)
	}
	if len(response.GetQuote()) == 0 {
		t.Error("the answer holds no quote")
	}
}

func TestAFailedBootstrapLeavesTheNextFree(t *testing.T) {
	fail := true
	f := newFixture(t, func(c *onboard.Config, td *simtd.TD) {
		c.Attester = attesterFunc(func(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
			if fail {
				fail = false
				return nil, attest.ErrNoAttester
			}
			return td.Attest(ctx, rd)
		})
	})
	_, err := f.client.Bootstrap(t.Context(), request("kms.example.com", ""))
	wantError(t, err, connect.CodeFailedPrecondition, "tappd socket not found")
	if _, err := os.Stat(f.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the failed bootstrap left %s behind", f.dir)
	}
	if _, err := f.client.Bootstrap(t.Context(), request("kms.example.com", "")); err != nil {
		t.Fatal(err)
	}
}

// TestAWaiterTakesOverFromAFailure has two callers at once, the first of which
// fails.
func TestAWaiterTakesOverFromAFailure(t *testing.T) {
	quoting, proceed := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f := newFixture(t, func(c *onboard.Config, td *simtd.TD) {
		c.Attester = attesterFunc(func(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
			failing := false
			once.Do(func() {
				failing = true
				close(quoting)
				<-proceed
			})
			if failing {
				return nil, errors.New("the quoting service is busy")
			}
			return td.Attest(ctx, rd)
		})
	})
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := f.client.Bootstrap(context.Background(), request("a.example.com", ""))
		first <- err
	}()
	<-quoting
	go func() {
		_, err := f.client.Bootstrap(context.Background(), request("b.example.com", ""))
		second <- err
	}()
	time.Sleep(20 * time.Millisecond) // most likely it waits by now; either way the outcome is the same
	close(proceed)
	err := <-first
	wantError(t, err, connect.CodeInternal, "internal error (id ")
	if strings.Contains(err.Error(), "busy") {
		t.Errorf("the cause reached the client: %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("the waiter: %v", err)
	}
}

func TestAPanickingAttesterIsAnErrorAndLeavesTheNextFree(t *testing.T) {
	panics := true
	f := newFixture(t, func(c *onboard.Config, td *simtd.TD) {
		c.Attester = attesterFunc(func(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
			if panics {
				panics = false
				panic("boom")
			}
			return td.Attest(ctx, rd)
		})
	})
	_, err := f.client.Bootstrap(t.Context(), request("kms.example.com", ""))
	wantError(t, err, connect.CodeInternal, "internal error (id ")
	if _, err := f.client.Bootstrap(t.Context(), request("kms.example.com", "")); err != nil {
		t.Fatal(err)
	}
}

func TestBootstrapRefusesItsOwnBadQuote(t *testing.T) {
	tests := []struct {
		name   string
		attest func(ctx context.Context, td *simtd.TD, rd attest.ReportData) (*attest.Evidence, error)
		reason string
	}{
		{"report data of another use", func(ctx context.Context, td *simtd.TD, _ attest.ReportData) (*attest.Evidence, error) {
			return td.Attest(ctx, attest.NoReportData())
		}, "its report data is not the digest of the keys"},
		{"a debug TD", func(ctx context.Context, td *simtd.TD, rd attest.ReportData) (*attest.Evidence, error) {
			e, err := td.Attest(ctx, rd)
			if err != nil {
				return nil, err
			}
			e.Quote, err = td.Quote(rd.Bytes(), simtd.Shape{EditSigned: func(b []byte) { b[0xa8] |= 1 }})
			return e, err
		}, "debug TD"},
		{"no event log", func(ctx context.Context, td *simtd.TD, rd attest.ReportData) (*attest.Evidence, error) {
			e, err := td.Attest(ctx, rd)
			if err == nil {
				e.EventLog = nil
			}
			return e, err
		}, "without an event log"},
		{"an event log of another TD", func(ctx context.Context, td *simtd.TD, rd attest.ReportData) (*attest.Evidence, error) {
			e, err := td.Attest(ctx, rd)
			if err == nil {
				e.EventLog = []byte("[]")
			}
			return e, err
		}, "does not replay to RTMR0"},
		{"an event log that is none", func(ctx context.Context, td *simtd.TD, rd attest.ReportData) (*attest.Evidence, error) {
			e, err := td.Attest(ctx, rd)
			if err == nil {
				e.EventLog = []byte("{")
			}
			return e, err
		}, "reading its event log"},
		{"a truncated quote", func(ctx context.Context, td *simtd.TD, rd attest.ReportData) (*attest.Evidence, error) {
			e, err := td.Attest(ctx, rd)
			if err == nil {
				e.Quote = e.Quote[:1000]
			}
			return e, err
		}, "parsing it"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, func(c *onboard.Config, td *simtd.TD) {
				c.Attester = attesterFunc(func(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
					return tt.attest(ctx, td, rd)
				})
			})
			_, err := f.client.Bootstrap(t.Context(), request("kms.example.com", ""))
			wantError(t, err, connect.CodeFailedPrecondition, tt.reason)
			if _, err := os.Stat(f.dir); !errors.Is(err, os.ErrNotExist) {
				t.Error("something was written")
			}
		})
	}
}

func TestWithoutAnAttesterThereIsNoQuote(t *testing.T) {
	f := newFixture(t, func(c *onboard.Config, _ *simtd.TD) { c.Attester, c.Provider, c.Verifier = nil, "", nil })
	response, err := f.client.Bootstrap(t.Context(), request("kms.example.com", ""))
	if err != nil {
		t.Fatal(err)
	}
	if len(response.GetQuote())+len(response.GetEventlog()) != 0 {
		t.Errorf("quote = %x, eventlog = %q, want none", response.GetQuote(), response.GetEventlog())
	}
	info, err := f.client.GetAttestationInfo(t.Context(), &onboardv1.GetAttestationInfoRequest{})
	if err != nil || info.GetProvider() != "none" {
		t.Errorf("provider = %q, %v, want none", info.GetProvider(), err)
	}
}

func TestRequestsAreValidated(t *testing.T) {
	f := newFixture(t, nil)
	tests := []struct{ name, domain, id, text string }{
		{"no domain", "", "", "domain: must not be empty"},
		{"a trailing dot", "kms.example.com.", "", "domain: must not end with a dot"},
		{"a wildcard", "*.example.com", "", "domain: wildcards are not allowed"},
		{"a space", "kms example.com", "", "domain: character ' ' is not allowed"},
		{"a URL", "https://kms.example.com", "", "domain: character ':' is not allowed"},
		{"a long label", strings.Repeat("a", 64) + ".com", "", "is longer than 63 bytes"},
		{"a long name", strings.Repeat("a.", 127) + "com", "", "is longer than 253 bytes"},
		{"a long request_id", "kms.example.com", strings.Repeat("x", 129), "request_id: has 129 bytes, at most 128 are allowed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := f.client.Bootstrap(t.Context(), request(tt.domain, tt.id))
			wantError(t, err, connect.CodeInvalidArgument, tt.text)
		})
	}
	if _, err := os.Stat(f.dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("something was written")
	}
}

func TestFinishNeedsABootstrap(t *testing.T) {
	f := newFixture(t, nil)
	_, err := f.client.Finish(t.Context(), &onboardv1.FinishRequest{})
	wantError(t, err, connect.CodeFailedPrecondition, "nothing to finish")
	if status, body := f.get(t, http.MethodGet, "/finish", nil); status != 400 || !strings.Contains(body, "nothing to finish") {
		t.Errorf("GET /finish = %d %s, want 400 and the reason", status, body)
	}
	select {
	case <-f.Finished():
		t.Fatal("a refused Finish ended the service")
	default:
	}
	if _, err := f.client.Bootstrap(t.Context(), request("kms.example.com", "")); err != nil {
		t.Fatal(err)
	}
	if status, _ := f.get(t, http.MethodHead, "/finish", nil); status != 405 {
		t.Errorf("HEAD /finish = %d, want 405", status)
	}
	for _, header := range []http.Header{
		{"Sec-Fetch-Site": {"cross-site"}},
		{"Sec-Fetch-Site": {"same-site"}},
		{"Origin": {"https://evil.example"}},
		{"Referer": {"https://evil.example/page"}},
	} {
		if status, body := f.get(t, http.MethodGet, "/finish", header); status != 403 || !strings.Contains(body, "cross-origin") {
			t.Errorf("GET /finish with %v = %d %s, want 403", header, status, body)
		}
	}
	select {
	case <-f.Finished():
		t.Fatal("a refused GET /finish ended the service")
	default:
	}
	if status, body := f.get(t, http.MethodGet, "/finish", nil); status != 200 || body != "OK" {
		t.Errorf("GET /finish = %d %q, want 200 OK", status, body)
	}
	select {
	case <-f.Finished():
	case <-time.After(time.Minute):
		t.Fatal("Finish did not end the service")
	}
}

// get sends a request without a body.
func (f *fixture) get(t *testing.T, method, path string, header http.Header) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, f.server.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := f.server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestSetupTokenGuardsBootstrapAndFinish(t *testing.T) {
	f := newFixture(t, func(c *onboard.Config, _ *simtd.TD) { c.SetupToken = keys.NewSecret([]byte("right horse")) })
	info, err := f.client.GetAttestationInfo(t.Context(), &onboardv1.GetAttestationInfoRequest{})
	if err != nil || !info.GetSetupTokenRequired() {
		t.Errorf("setup_token_required = %v, %v, want true", info.GetSetupTokenRequired(), err)
	}
	_, err = f.client.Bootstrap(t.Context(), request("kms.example.com", ""))
	wantError(t, err, connect.CodeUnauthenticated, "token")
	wrong := http.Header{"Authorization": {"Bearer wrong"}}
	for _, path := range []string{"/finish"} {
		for _, header := range []http.Header{nil, wrong} {
			if status, body := f.get(t, http.MethodGet, path, header); status != 401 || !strings.Contains(body, "token") {
				t.Errorf("GET %s with %v = %d %s, want 401", path, header, status, body)
			}
		}
	}
	if _, err := os.Stat(f.dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("something was written")
	}
	withToken := connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			req.Header().Set("Authorization", "Bearer right horse")
			return next(ctx, req)
		}
	}))
	client := onboardv1connect.NewOnboardClient(f.server.Client(), f.server.URL, withToken)
	if _, err := client.Bootstrap(t.Context(), request("kms.example.com", "")); err != nil {
		t.Fatal(err)
	}
	right := http.Header{"Authorization": {"Bearer right horse"}}
	if status, body := f.get(t, http.MethodGet, "/finish", right); status != 200 {
		t.Errorf("GET /finish with the token = %d %s, want 200", status, body)
	}
}

func TestAttestationInfoTellsWhatThisTDIs(t *testing.T) {
	quotes := 0
	f := newFixture(t, func(c *onboard.Config, td *simtd.TD) {
		c.SiteName, c.InsecureSettings = "lab", []string{"core.attestation.insecure_allow_external_trust_anchors"}
		c.Attester = attesterFunc(func(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
			quotes++
			return td.Attest(ctx, rd)
		})
	})
	for range 3 {
		info, err := f.client.GetAttestationInfo(t.Context(), &onboardv1.GetAttestationInfoRequest{})
		if err != nil {
			t.Fatal(err)
		}
		rtmr := f.td.RTMR()
		switch {
		case info.GetProvider() != "simulator", info.GetTrustRootIsIntel(), info.GetTeeVariant() != "dstack-tdx",
			info.GetSiteName() != "lab", len(info.GetInsecureSettings()) != 1, len(info.GetTrustRootSha256()) != 32,
			len(info.GetDeviceId()) != 32, len(info.GetMrAggregated()) != 32, len(info.GetPpid()) != 16,
			len(info.GetOsImageHash()) != 32, len(info.GetRtmrs()) != 4,
			!bytes.Equal(info.GetRtmrs()[3], rtmr[3][:]), !bytes.Equal(info.GetReportData(), make([]byte, 64)),
			info.GetSetupTokenRequired(), info.GetTcbStatus() != "UpToDate":
			t.Fatalf("GetAttestationInfo = %v", info)
		}
	}
	if quotes != 1 {
		t.Errorf("three calls cost %d quotes, want 1", quotes)
	}
}

// noCollateral is a source while the network is away.
type noCollateral struct{}

func (n *noCollateral) Collateral(context.Context, tdx.FMSPC, tdx.CA) (*tdx.Collateral, error) {
	return nil, errors.New("the network is away")
}

func TestAttestationInfoNeedsNoCollateral(t *testing.T) {
	f := newFixture(t, func(c *onboard.Config, td *simtd.TD) { c.Verifier = newVerifier(t, td.Root(), &noCollateral{}) })
	info, err := f.client.GetAttestationInfo(t.Context(), &onboardv1.GetAttestationInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if info.GetTcbStatus() != "" || len(info.GetMrtd()) != 48 {
		t.Errorf("tcb_status = %q, mrtd = %x, want none and 48 bytes", info.GetTcbStatus(), info.GetMrtd())
	}
}

func TestAttestationInfoTellsAPoorTCBStatus(t *testing.T) {
	f := newFixture(t, func(_ *onboard.Config, td *simtd.TD) {
		err := td.SetEndorsements(simtd.Endorsements{Platform: simtd.Level{Status: attest.OutOfDate, Advisories: []string{"INTEL-SA-00001"}}})
		if err != nil {
			t.Fatal(err)
		}
	})
	info, err := f.client.GetAttestationInfo(t.Context(), &onboardv1.GetAttestationInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if info.GetTcbStatus() != "OutOfDate" || len(info.GetAdvisoryIds()) != 1 {
		t.Errorf("tcb_status = %q, advisory_ids = %q, want OutOfDate and one", info.GetTcbStatus(), info.GetAdvisoryIds())
	}
}

func TestAttestationInfoRefusesAQuoteOfAnotherRoot(t *testing.T) {
	f := newFixture(t, func(c *onboard.Config, _ *simtd.TD) {
		other, err := simtd.Open(simtd.Config{Dir: filepath.Join(t.TempDir(), "other")})
		if err != nil {
			t.Fatal(err)
		}
		c.Verifier = newVerifier(t, other.Root(), other)
	})
	_, err := f.client.GetAttestationInfo(t.Context(), &onboardv1.GetAttestationInfoRequest{})
	wantError(t, err, connect.CodeFailedPrecondition, "the quote of this trust domain is refused")
}
