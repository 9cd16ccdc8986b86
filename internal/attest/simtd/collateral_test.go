package simtd_test

import (
	"bytes"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
)

func TestEndorsementsReachTheVerifiers(t *testing.T) {
	outOfDate := simtd.Level{Status: attest.OutOfDate, Advisories: []string{"INTEL-SA-00001"}}
	tests := []struct {
		name   string
		set    simtd.Endorsements
		claims *attest.Claims // nil where our verifier refuses, too
		link   string
		// opinion is in the error of go-tdx-guest, which takes only UpToDate.
		opinion string
	}{
		{"all up to date", simtd.Endorsements{}, &attest.Claims{PlatformTCB: attest.UpToDate, ModuleTCB: attest.UpToDate, QETCB: attest.UpToDate}, "", ""},
		// go-tdx-guest does not look at the platform where there is a module
		// identity (docs/evidence.md#second-opinion).
		{"platform out of date", simtd.Endorsements{Platform: outOfDate}, &attest.Claims{PlatformTCB: attest.OutOfDate, ModuleTCB: attest.UpToDate, QETCB: attest.UpToDate}, "", ""},
		{"module out of date", simtd.Endorsements{Module: outOfDate}, &attest.Claims{PlatformTCB: attest.UpToDate, ModuleTCB: attest.OutOfDate, QETCB: attest.UpToDate}, "", "OutOfDate"},
		{"QE out of date", simtd.Endorsements{QE: outOfDate}, &attest.Claims{PlatformTCB: attest.UpToDate, ModuleTCB: attest.UpToDate, QETCB: attest.OutOfDate}, "", "OutOfDate"},
		{"platform needs configuration", simtd.Endorsements{Platform: simtd.Level{Status: attest.ConfigurationNeeded}}, &attest.Claims{PlatformTCB: attest.ConfigurationNeeded, ModuleTCB: attest.UpToDate, QETCB: attest.UpToDate}, "", ""},
		{"PCK revoked", simtd.Endorsements{RevokePCK: true}, nil, attest.LinkRevocation, "was revoked"},
		{"PCK CA revoked", simtd.Endorsements{RevokePCKCA: true}, nil, attest.LinkRevocation, "was revoked"},
		{"TCB signer revoked", simtd.Endorsements{RevokeTCBSigner: true}, nil, attest.LinkRevocation, "was revoked"},
		{"issued long ago", simtd.Endorsements{IssuedAt: time.Now().Add(-40 * 24 * time.Hour)}, nil, attest.LinkCollateral, "expired"},
		{"valid for a minute of long ago", simtd.Endorsements{IssuedAt: time.Now().Add(-time.Hour), ValidFor: time.Minute}, nil, attest.LinkCollateral, "expired"},
		{
			"TCB info of another family",
			simtd.Endorsements{EditTCBInfo: func(b []byte) []byte { return bytes.Replace(b, []byte("50806F000000"), []byte("60806F000000"), 1) }},
			nil, attest.LinkCollateral, "FMSPC",
		},
		{
			"QE identity of another signer",
			simtd.Endorsements{EditQEIdentity: func(b []byte) []byte { return bytes.Replace(b, []byte("DC9E"), []byte("DC9F"), 1) }},
			nil, attest.LinkTCB, "MRSIGNER",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			td := open(t, simtd.Config{Dir: dir})
			if err := td.SetEndorsements(tt.set); err != nil {
				t.Fatal(err)
			}
			files, err := simtd.OpenCollateral(dir)
			if err != nil {
				t.Fatal(err)
			}
			ev, err := td.Attest(t.Context(), attest.NoReportData())
			if err != nil {
				t.Fatal(err)
			}
			for name, source := range map[string]tdx.CollateralSource{"in process": td, "in files": files} {
				checkClaims(t, name, td, source, ev, tt.claims, tt.link)
			}
			err = secondOpinion(t, td, ev.Quote, time.Now())
			if (err == nil) != (tt.opinion == "") || err != nil && !strings.Contains(strings.ToUpper(err.Error()), strings.ToUpper(tt.opinion)) {
				t.Errorf("RawTdxQuote() = %v, want %q", err, tt.opinion)
			}
		})
	}
}

// checkClaims verifies with our verifier and compares the TCB, or the link that
// does not hold.
func checkClaims(t *testing.T, name string, td *simtd.TD, source tdx.CollateralSource, ev *attest.Evidence, want *attest.Claims, link string) {
	t.Helper()
	v, err := tdx.NewVerifier(tdx.Config{TrustAnchor: td.Root(), Collateral: source})
	if err != nil {
		t.Fatal(err)
	}
	got, err := v.Verify(t.Context(), ev)
	if want == nil {
		if ve, ok := errors.AsType[*attest.VerifyError](err); !ok || ve.Link != link {
			t.Errorf("%s: Verify() = %v, want the link %q to fail", name, err, link)
		}
		return
	}
	if err != nil {
		t.Errorf("%s: Verify() = %v", name, err)
		return
	}
	if got.PlatformTCB != want.PlatformTCB || got.ModuleTCB != want.ModuleTCB || got.QETCB != want.QETCB {
		t.Errorf("%s: platform %s, module %s, QE %s, want %s, %s, %s", name, got.PlatformTCB, got.ModuleTCB, got.QETCB, want.PlatformTCB, want.ModuleTCB, want.QETCB)
	}
}

func TestSecondOpinionSeesThePlatformWithoutAModuleIdentity(t *testing.T) {
	td := open(t, simtd.Config{Measurements: simtd.Measurements{TEETCBSVN: [16]byte{3, 0, 4}}})
	quote, err := td.Quote([64]byte{}, simtd.Shape{})
	if err != nil {
		t.Fatal(err)
	}
	if err := secondOpinion(t, td, quote, time.Now()); err != nil {
		t.Errorf("RawTdxQuote() = %v, want nil", err)
	}
	if err := td.SetEndorsements(simtd.Endorsements{Platform: simtd.Level{Status: attest.OutOfDate}}); err != nil {
		t.Fatal(err)
	}
	if err := secondOpinion(t, td, quote, time.Now()); err == nil || !strings.Contains(err.Error(), "OutOfDate") {
		t.Errorf("RawTdxQuote() = %v, want OutOfDate", err)
	}
}

func TestCollateralIsIssuedEveryHour(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 10, 0, 0, time.UTC)
	td := open(t, simtd.Config{Now: func() time.Time { return now }})
	get := func() *tdx.Collateral {
		t.Helper()
		c, err := td.Collateral(t.Context(), td.Measurements().FMSPC, tdx.PlatformCA)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := get()
	now = now.Add(45 * time.Minute)
	if get() != first {
		t.Error("collateral was issued anew within the hour")
	}
	now = now.Add(10 * time.Minute)
	if second := get(); second == first || !strings.Contains(string(second.TCBInfo), `"issueDate":"2026-05-01T13:00:00Z","nextUpdate":"2026-05-31T13:00:00Z"`) {
		t.Errorf("TCB info of the next hour = %s, want its dates", second.TCBInfo)
	}
}

func TestCollateralIsForOnePlatform(t *testing.T) {
	td := open(t, simtd.Config{})
	for name, ask := range map[string]struct {
		fmspc tdx.FMSPC
		ca    tdx.CA
	}{"another family": {tdx.FMSPC{1}, tdx.PlatformCA}, "another CA": {td.Measurements().FMSPC, tdx.ProcessorCA}} {
		if _, err := td.Collateral(t.Context(), ask.fmspc, ask.ca); !errors.Is(err, attest.ErrNoCollateral) {
			t.Errorf("Collateral(%s) = %v, want %v", name, err, attest.ErrNoCollateral)
		}
	}
}

func TestHandlerSpeaksAsAPCS(t *testing.T) {
	td := open(t, simtd.Config{})
	want, err := td.Collateral(t.Context(), td.Measurements().FMSPC, tdx.PlatformCA)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(td.Handler())
	defer server.Close()
	tests := []struct {
		path   string
		status int
		header string // that carries the chain
		chain  []byte
		body   []byte
	}{
		{"/tdx/certification/v4/tcb?fmspc=50806f000000", 200, "TCB-Info-Issuer-Chain", want.TCBInfoChain, want.TCBInfo},
		{"/tdx/certification/v4/tcb?fmspc=50806F000000", 200, "TCB-Info-Issuer-Chain", want.TCBInfoChain, want.TCBInfo},
		{"/tdx/certification/v4/tcb?fmspc=000000000000", 404, "", nil, []byte("no TCB information for this FMSPC\n")},
		{"/tdx/certification/v4/tcb?fmspc=50806f", 400, "", nil, []byte("fmspc: want 12 hex digits\n")},
		{"/tdx/certification/v4/tcb", 400, "", nil, []byte("fmspc: want 12 hex digits\n")},
		{"/tdx/certification/v4/qe/identity", 200, "SGX-Enclave-Identity-Issuer-Chain", want.QEIdentityChain, want.QEIdentity},
		{"/sgx/certification/v4/pckcrl?ca=platform&encoding=der", 200, "SGX-PCK-CRL-Issuer-Chain", want.PCKCRLChain, want.PCKCRL},
		{"/sgx/certification/v4/pckcrl?ca=platform", 200, "SGX-PCK-CRL-Issuer-Chain", want.PCKCRLChain, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: want.PCKCRL})},
		{"/sgx/certification/v4/pckcrl?ca=processor", 404, "", nil, []byte("no such CA here\n")},
		{"/sgx/certification/v4/pckcrl", 400, "", nil, []byte("ca: want platform or processor\n")},
		{"/sgx/certification/v4/pckcrl?ca=platform&encoding=x", 400, "", nil, []byte("encoding: want pem or der\n")},
		{"/sgx/certification/v4/rootcacrl", 200, "", nil, hex.AppendEncode(nil, want.RootCRL)},
		{"/IntelSGXRootCA.der", 200, "", nil, want.RootCRL},
		{"/other", 404, "", nil, []byte("404 page not found\n")},
	}
	for _, tt := range tests {
		t.Run(tt.path, func(t *testing.T) {
			resp, err := http.Get(server.URL + tt.path)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != tt.status || !bytes.Equal(body, tt.body) {
				t.Errorf("GET = %d %.100q, %v, want %d %.100q", resp.StatusCode, body, err, tt.status, tt.body)
			}
			if tt.header == "" {
				return
			}
			// Both readings of percent-encoding must give the chain back.
			value := resp.Header.Get(tt.header)
			query, err1 := url.QueryUnescape(value)
			path, err2 := url.PathUnescape(value)
			if err1 != nil || err2 != nil || query != string(tt.chain) || path != string(tt.chain) {
				t.Errorf("%s = %.100q, want the chain", tt.header, value)
			}
		})
	}
	resp, err := http.Post(server.URL+"/tdx/certification/v4/qe/identity", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST = %d, want %d", resp.StatusCode, http.StatusMethodNotAllowed)
	}
	http.DefaultClient.CloseIdleConnections()
}
