package tdx_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
)

func simtdConfig() simtd.Config { return simtd.Config{} }

func pemOf(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// shapes are all quotes there are.
var shapes = []struct {
	name string
	simtd.Shape
}{
	{"V4", simtd.Shape{Version: 4}},
	{"V5 with a TDX 1.0 body", simtd.Shape{Version: 5, BodyType: tdx.BodyTDX10}},
	{"V5 with a TDX 1.5 body", simtd.Shape{Version: 5, BodyType: tdx.BodyTDX15}},
}

func TestVerifySoftwareTD(t *testing.T) {
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			td := openTD(t, simtd.Config{Shape: s.Shape})
			ev := attestBy(t, td)
			v := verifierOf(t, td)
			got, err := v.Verify(t.Context(), ev)
			if err != nil {
				t.Fatalf("Verify() = %v", err)
			}
			q, err := tdx.ParseQuote(ev.Quote)
			if err != nil {
				t.Fatal(err)
			}
			m, fmspc := td.Measurements(), td.Measurements().FMSPC
			rd := attest.BootstrapReportData([]byte("ca"), []byte("k256")).Bytes()
			want := &attest.Claims{
				TEE: "tdx", MRTD: m.MRTD, RTMR: td.RTMR(), MRConfigID: m.MRConfigID, MRSeam: q.MRSeam(),
				ReportData: rd, FMSPC: fmspc[:], PPID: ppid(t, td),
				TCB: attest.UpToDate, PlatformTCB: attest.UpToDate, ModuleTCB: attest.UpToDate, QETCB: attest.UpToDate,
				TrustRoot: sha256.Sum256(td.Root().Raw),
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Verify() (-want +got):\n%s", diff)
			}
			// Again, from the caches.
			if again, err := v.Verify(t.Context(), ev); err != nil || !cmp.Equal(got, again) {
				t.Errorf("second Verify() = %+v, %v, want the same", again, err)
			}
			offline, err := v.VerifyOffline(t.Context(), ev)
			want.TCB, want.PlatformTCB, want.ModuleTCB, want.QETCB = "", "", "", ""
			if diff := cmp.Diff(want, offline); err != nil || diff != "" {
				t.Errorf("VerifyOffline() = %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func ppid(t *testing.T, td *simtd.TD) []byte {
	t.Helper()
	ext, err := tdx.PCKExtensionOf(td.PCK())
	if err != nil {
		t.Fatal(err)
	}
	return ext.PPID[:]
}

func TestVerifyFromDirectory(t *testing.T) {
	dir := t.TempDir()
	td := openTD(t, simtd.Config{Dir: dir})
	source, err := tdx.NewDirSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	root, err := tdx.LoadTrustAnchor(td.RootPath())
	if err != nil {
		t.Fatal(err)
	}
	v := newVerifier(t, tdx.Config{TrustAnchor: root, Collateral: source, Now: (&clock{simTime}).Now})
	if _, err := v.Verify(t.Context(), attestBy(t, td)); err != nil {
		t.Errorf("Verify() with the directory's files = %v", err)
	}
}

var allStatuses = []attest.TCBStatus{
	attest.UpToDate, attest.SWHardeningNeeded, attest.ConfigurationNeeded, attest.ConfigurationAndSWHardeningNeeded,
	attest.OutOfDate, attest.OutOfDateConfigurationNeeded, attest.Revoked,
}

// TestTCBStatus has every status on each of the three levels, the others being
// up to date.
func TestTCBStatus(t *testing.T) {
	td := openTD(t, simtdConfig())
	ev := attestBy(t, td)
	v := verifierOf(t, td)
	levels := []struct {
		name string
		set  func(*simtd.Endorsements, simtd.Level)
		of   func(*attest.Claims) attest.TCBStatus
	}{
		{"platform", func(e *simtd.Endorsements, l simtd.Level) { e.Platform = l }, func(c *attest.Claims) attest.TCBStatus { return c.PlatformTCB }},
		{"module", func(e *simtd.Endorsements, l simtd.Level) { e.Module = l }, func(c *attest.Claims) attest.TCBStatus { return c.ModuleTCB }},
		{"QE", func(e *simtd.Endorsements, l simtd.Level) { e.QE = l }, func(c *attest.Claims) attest.TCBStatus { return c.QETCB }},
	}
	for _, l := range levels {
		for _, status := range allStatuses {
			t.Run(l.name+" "+string(status), func(t *testing.T) {
				var e simtd.Endorsements
				l.set(&e, simtd.Level{Status: status, Advisories: []string{"INTEL-SA-00002", "INTEL-SA-00001"}})
				endorse(t, td, e)
				c, err := v.Verify(t.Context(), ev)
				if status == attest.Revoked {
					wantRefusal(t, err, attest.LinkTCB, "the TCB is revoked")
					return
				}
				if err != nil {
					t.Fatalf("Verify() = %v", err)
				}
				if c.TCB != status || l.of(c) != status || !slices.Equal(c.Advisories, []string{"INTEL-SA-00001", "INTEL-SA-00002"}) {
					t.Errorf("TCB, level, advisories = %s, %s, %q, want %s twice and two sorted advisories", c.TCB, l.of(c), c.Advisories, status)
				}
			})
		}
	}
}

func endorse(t *testing.T, td *simtd.TD, e simtd.Endorsements) {
	t.Helper()
	if err := td.SetEndorsements(e); err != nil {
		t.Fatalf("SetEndorsements() = %v", err)
	}
}

func TestAdvisoriesAreMerged(t *testing.T) {
	td := openTD(t, simtdConfig())
	endorse(t, td, simtd.Endorsements{
		Platform: simtd.Level{Status: attest.SWHardeningNeeded, Advisories: []string{"C", "A"}},
		Module:   simtd.Level{Status: attest.OutOfDate, Advisories: []string{"B", "A"}},
		QE:       simtd.Level{Status: attest.ConfigurationNeeded, Advisories: []string{"D"}},
	})
	c, err := verifierOf(t, td).Verify(t.Context(), attestBy(t, td))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"A", "B", "C", "D"}, c.Advisories); diff != "" || c.TCB != attest.OutOfDateConfigurationNeeded {
		t.Errorf("TCB = %s, advisories (-want +got):\n%s", c.TCB, diff)
	}
}

// TestWorst holds the order of the statuses: no sum is milder than a part, and
// none depends on the order.
func TestWorst(t *testing.T) {
	rank := func(s attest.TCBStatus) int { return slices.Index(allStatuses, s) }
	for _, a := range allStatuses {
		for _, b := range allStatuses {
			got := tdx.Worst(a, b, attest.UpToDate)
			if got != tdx.Worst(attest.UpToDate, b, a) || rank(got) < max(rank(a), rank(b)) {
				t.Errorf("Worst(%s, %s) = %s", a, b, got)
			}
		}
	}
	tests := []struct{ a, b, want attest.TCBStatus }{
		{attest.SWHardeningNeeded, attest.ConfigurationNeeded, attest.ConfigurationAndSWHardeningNeeded},
		{attest.ConfigurationAndSWHardeningNeeded, attest.OutOfDate, attest.OutOfDateConfigurationNeeded},
		{attest.SWHardeningNeeded, attest.OutOfDate, attest.OutOfDate},
		{attest.OutOfDateConfigurationNeeded, attest.Revoked, attest.Revoked},
		{attest.UpToDate, "Splendid", attest.Revoked},
	}
	for _, tt := range tests {
		if got := tdx.Worst(tt.a, tt.b); got != tt.want {
			t.Errorf("Worst(%s, %s) = %s, want %s", tt.a, tt.b, got, tt.want)
		}
	}
}

func TestRevocation(t *testing.T) {
	tests := []struct {
		name   string
		e      simtd.Endorsements
		reason string
	}{
		{"of the PCK", simtd.Endorsements{RevokePCK: true}, `"Intel SGX PCK Certificate"`},
		{"of the PCK authority", simtd.Endorsements{RevokePCKCA: true}, `"Intel SGX PCK Platform CA"`},
		{"of the TCB signer", simtd.Endorsements{RevokeTCBSigner: true}, `"Intel SGX TCB Signing"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			td := openTD(t, simtdConfig())
			ev := attestBy(t, td)
			v := verifierOf(t, td)
			// The enclave is known before it is revoked.
			if _, err := v.Verify(t.Context(), ev); err != nil {
				t.Fatalf("Verify() before = %v", err)
			}
			endorse(t, td, tt.e)
			_, err := v.Verify(t.Context(), ev)
			wantRefusal(t, err, attest.LinkRevocation, tt.reason)
			wantRefusal(t, err, attest.LinkRevocation, "is revoked")
		})
	}
}

// TestRevocationListOfNamesake has two PCK authorities of one name.
func TestRevocationListOfNamesake(t *testing.T) {
	td := openTD(t, simtdConfig())
	ev := attestBy(t, td)
	v := verifierOf(t, td)
	if _, err := v.Verify(t.Context(), ev); err != nil {
		t.Fatal(err)
	}
	v.RelabelCRLs()
	_, err := v.Verify(t.Context(), ev)
	wantRefusal(t, err, attest.LinkRevocation, "not of the authority that issued the PCK")
}

// TestRevocationOfOneOfTwoCertificates has the authority's certificate in the
// quote revoked, and not the one in the collateral.
func TestRevocationOfOneOfTwoCertificates(t *testing.T) {
	td := openTD(t, simtdConfig())
	ev := attestBy(t, td)
	v := verifierOf(t, td)
	if _, err := v.Verify(t.Context(), ev); err != nil {
		t.Fatal(err)
	}
	q, err := tdx.ParseQuote(ev.Quote)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := tdx.ParseChain(q.PCKChain(), 3)
	if err != nil {
		t.Fatal(err)
	}
	v.RevokeAuthority(certs[1])
	_, err = v.Verify(t.Context(), ev)
	wantRefusal(t, err, attest.LinkRevocation, `"Intel SGX PCK Platform CA"`)
}

// TestPlatformLevel has each of the three things that a level asks for be one
// more than the platform has: the next level counts, which is out of date.
func TestPlatformLevel(t *testing.T) {
	td := openTD(t, simtdConfig())
	for _, tt := range []struct{ name, old, with string }{
		{"first SGX component", `"sgxtcbcomponents":[{"svn":5}`, `"sgxtcbcomponents":[{"svn":6}`},
		{"last SGX component", `{"svn":5}],"pcesvn":13`, `{"svn":6}],"pcesvn":13`},
		{"PCESVN", `"pcesvn":13`, `"pcesvn":14`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			endorse(t, td, simtd.Endorsements{EditTCBInfo: func(b []byte) []byte {
				return bytes.Replace(b, []byte(tt.old), []byte(tt.with), 1)
			}})
			c, err := verifierOf(t, td).Verify(t.Context(), attestBy(t, td))
			if err != nil || c.PlatformTCB != attest.OutOfDate {
				t.Errorf("Verify() = %+v, %v, want the platform %s", c, err, attest.OutOfDate)
			}
		})
	}
}

func TestNoEvidence(t *testing.T) {
	v := verifierOf(t, openTD(t, simtdConfig()))
	for _, ev := range []*attest.Evidence{nil, {}} {
		_, err := v.Verify(t.Context(), ev)
		wantRefusal(t, err, attest.LinkFormat, "")
		if trace := v.Trace(t.Context(), ev); trace.Claims != nil || trace.Err() == nil {
			t.Errorf("Trace(%v) = %+v, want a failure", ev, trace)
		}
	}
}

func TestTimes(t *testing.T) {
	year := 365 * 24 * time.Hour
	tests := []struct {
		name         string
		issued       time.Duration // from simTime
		at           time.Duration
		link, reason string
		noCollateral bool
	}{
		{"all is well at the last moment", 0, 30 * 24 * time.Hour, "", "", false},
		{"collateral has expired", 0, 30*24*time.Hour + time.Second, attest.LinkCollateral, "expired at", true},
		{"collateral comes from the future", time.Second, 0, attest.LinkCollateral, "in the future", false},
		{"certificates are not yet valid", 0, -48 * time.Hour, attest.LinkChain, "not yet valid", false},
		{"the PCK has expired", 0, 8 * year, attest.LinkChain, "expired", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			td := openTD(t, simtdConfig())
			endorse(t, td, simtd.Endorsements{IssuedAt: simTime.Add(tt.issued)})
			_, err := verifierAt(t, td, simTime.Add(tt.at)).Verify(t.Context(), attestBy(t, td))
			if tt.link == "" {
				if err != nil {
					t.Errorf("Verify() = %v", err)
				}
				return
			}
			wantRefusal(t, err, tt.link, tt.reason)
			if got := errors.Is(err, attest.ErrNoCollateral); got != tt.noCollateral {
				t.Errorf("errors.Is(%v, ErrNoCollateral) = %t, want %t", err, got, tt.noCollateral)
			}
		})
	}
}

// TestCachesExpire has one verifier live on: what it remembers does not outlive
// what that rests on.
func TestCachesExpire(t *testing.T) {
	td := openTD(t, simtdConfig())
	ev := attestBy(t, td)
	endorse(t, td, simtd.Endorsements{IssuedAt: simTime})
	c := &clock{simTime}
	v := newVerifier(t, tdx.Config{TrustAnchor: td.Root(), Collateral: td, Now: c.Now})
	if _, err := v.Verify(t.Context(), ev); err != nil {
		t.Fatal(err)
	}
	c.t = simTime.Add(31 * 24 * time.Hour)
	_, err := v.Verify(t.Context(), ev)
	wantRefusal(t, err, attest.LinkCollateral, "expired at")
	c.t = simTime.Add(-time.Hour)
	_, err = v.Verify(t.Context(), ev)
	wantRefusal(t, err, attest.LinkCollateral, "in the future")
	c.t = simTime.AddDate(8, 0, 0)
	_, err = v.VerifyOffline(t.Context(), ev)
	wantRefusal(t, err, attest.LinkChain, "expired")
}

func TestTrustAnchor(t *testing.T) {
	td, other := openTD(t, simtdConfig()), openTD(t, simtdConfig())
	ev := attestBy(t, td)
	for name, root := range map[string]*x509.Certificate{"another software TD's root": other.Root(), "Intel's root": tdx.IntelRootCA()} {
		t.Run(name, func(t *testing.T) {
			v := newVerifier(t, tdx.Config{TrustAnchor: root, Collateral: td, Now: (&clock{simTime}).Now})
			_, err := v.Verify(t.Context(), ev)
			wantRefusal(t, err, attest.LinkChain, "certificate")
			if v.Enclaves() != 0 {
				t.Errorf("verifier remembers %d enclaves it did not verify", v.Enclaves())
			}
		})
	}
	tests := []struct {
		name   string
		anchor *x509.Certificate
		want   string
	}{
		{"none", nil, "no trust anchor"},
		{"an end entity", td.PCK(), "not a certificate authority"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := tdx.NewVerifier(tdx.Config{TrustAnchor: tt.anchor}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("NewVerifier() = %v, want %q", err, tt.want)
			}
		})
	}
}

// TestRootCopyIsIgnored has a quote whose chain ends in a foreign root: the
// path is built to the trust anchor, whatever the quote says.
func TestRootCopyIsIgnored(t *testing.T) {
	td, other := openTD(t, simtdConfig()), openTD(t, simtdConfig())
	ev := quoteOf(t, td, simtd.Shape{EditChain: func(chain []byte) []byte {
		certs, err := tdx.ParseChain(chain, 3)
		if err != nil {
			t.Fatal(err)
		}
		return pemOf(certs[0], certs[1], other.Root())
	}})
	if _, err := verifierOf(t, td).Verify(t.Context(), ev); err != nil {
		t.Errorf("Verify() under the trust anchor = %v", err)
	}
	v := newVerifier(t, tdx.Config{TrustAnchor: other.Root(), Collateral: td, Now: (&clock{simTime}).Now})
	_, err := v.Verify(t.Context(), ev)
	wantRefusal(t, err, attest.LinkChain, "certificate")
}

func TestQuoteRefusals(t *testing.T) {
	td := openTD(t, simtdConfig())
	tests := []struct {
		name         string
		shape        simtd.Shape
		link, reason string
	}{
		{"debug TD", simtd.Shape{EditSigned: func(b []byte) { b[168] |= 1 }}, attest.LinkDebug, "bit 0 is debug"},
		{"debug TD in V5", simtd.Shape{Version: 5, EditSigned: func(b []byte) { b[54+120] |= 1 }}, attest.LinkDebug, "bit 0 is debug"},
		{"reserved bit of the same group", simtd.Shape{EditSigned: func(b []byte) { b[168] |= 0x80 }}, attest.LinkDebug, "bits 0 to 7"},
		{"service TD", simtd.Shape{Version: 5, BodyType: tdx.BodyTDX15, EditSigned: func(b []byte) { b[54+647] = 1 }}, attest.LinkServiceTD, "MRSERVICETD"},
		{"another module signer", simtd.Shape{EditSigned: func(b []byte) { b[48+64] = 1 }}, attest.LinkTCB, "MRSIGNERSEAM"},
		{"other module attributes", simtd.Shape{EditSigned: func(b []byte) { b[48+112] = 1 }}, attest.LinkTCB, "SEAMATTRIBUTES"},
		{"module version without identity", simtd.Shape{EditSigned: func(b []byte) { b[48+1] = 9 }}, attest.LinkTCB, "TDX_09"},
		{"module below every level", simtd.Shape{EditSigned: func(b []byte) { b[48] = 0 }}, attest.LinkTCB, "TDX module is below"},
		{"microcode below every level", simtd.Shape{EditSigned: func(b []byte) { b[50] = 0 }}, attest.LinkTCB, "platform is below"},
		{"debug QE", simtd.Shape{EditQEReport: func(r []byte) { r[48] |= 2 }}, attest.LinkQEReport, "debug enclave"},
		{"QE of another signer", simtd.Shape{EditQEReport: func(r []byte) { r[128] ^= 1 }}, attest.LinkTCB, "MRSIGNER of the quoting enclave"},
		{"QE of another product", simtd.Shape{EditQEReport: func(r []byte) { r[256] ^= 1 }}, attest.LinkTCB, "ISVPRODID"},
		{"QE with MISCSELECT", simtd.Shape{EditQEReport: func(r []byte) { r[16] ^= 1 }}, attest.LinkTCB, "MISCSELECT"},
		{"QE with other attributes", simtd.Shape{EditQEReport: func(r []byte) { r[49] ^= 1 }}, attest.LinkTCB, "ATTRIBUTES"},
		{"QE below every level", simtd.Shape{EditQEReport: func(r []byte) { r[258], r[259] = 0, 0 }}, attest.LinkTCB, "quoting enclave is below"},
		{"QE that binds another key", simtd.Shape{EditQEReport: func(r []byte) { r[320] ^= 1 }}, attest.LinkQEReport, "do not bind"},
		{"QE that binds more", simtd.Shape{EditQEReport: func(r []byte) { r[383] ^= 1 }}, attest.LinkQEReport, "do not bind"},
		{"chain of two", simtd.Shape{EditChain: keep(t, 0, 1)}, attest.LinkChain, "2 certificates, want 3"},
		{"chain of four", simtd.Shape{EditChain: keep(t, 0, 1, 2, 2)}, attest.LinkChain, "more than 3"},
		{"chain upside down", simtd.Shape{EditChain: keep(t, 2, 1, 0)}, attest.LinkChain, "leaf is"},
		{"PCK as its own issuer", simtd.Shape{EditChain: keep(t, 0, 0, 2)}, attest.LinkChain, "PCK issuer is"},
		{"authority as leaf", simtd.Shape{EditChain: keep(t, 1, 1, 2)}, attest.LinkChain, "leaf is"},
		{"text in the chain", simtd.Shape{EditChain: func(b []byte) []byte { return append([]byte("x"), b...) }}, attest.LinkChain, "no PEM certificate"},
		{"text after the chain", simtd.Shape{EditChain: func(b []byte) []byte { return append(bytes.TrimRight(b, "\x00"), 'x') }}, attest.LinkChain, "more than 3"},
		{"two NULs after the chain", simtd.Shape{EditChain: func(b []byte) []byte { return append(bytes.TrimRight(b, "\x00"), 0, 0) }}, attest.LinkChain, "more than 3"},
		{"no chain", simtd.Shape{EditChain: func([]byte) []byte { return nil }}, attest.LinkChain, "0 certificates"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := verifierOf(t, td)
			_, err := v.Verify(t.Context(), quoteOf(t, td, tt.shape))
			wantRefusal(t, err, tt.link, tt.reason)
			if v.Enclaves() != 0 {
				t.Errorf("verifier remembers %d enclaves of refused Evidence", v.Enclaves())
			}
		})
	}
}

// keep edits a chain to these of its certificates.
func keep(t *testing.T, which ...int) func([]byte) []byte {
	return func(chain []byte) []byte {
		certs, err := tdx.ParseChain(chain, 3)
		if err != nil {
			t.Error(err)
			return nil
		}
		var out []*x509.Certificate
		for _, i := range which {
			out = append(out, certs[i])
		}
		return pemOf(out...)
	}
}

// TestCertificateProfiles makes PKIs with one certificate wrong.
func TestCertificateProfiles(t *testing.T) {
	tests := []struct {
		name, which  string
		edit         func(*x509.Certificate)
		link, reason string
	}{
		{"PCK that is an authority", simtd.CertificatePCK, func(c *x509.Certificate) { c.IsCA = true }, attest.LinkChain, "want an end entity"},
		{"PCK without SGX extension", simtd.CertificatePCK, func(c *x509.Certificate) { c.ExtraExtensions = nil }, attest.LinkChain, "no SGX extension"},
		{"PCK with a broken SGX extension", simtd.CertificatePCK, func(c *x509.Certificate) { c.ExtraExtensions[0].Value = []byte{0x30, 0} }, attest.LinkChain, "is missing"},
		{"PCK with an unknown critical extension", simtd.CertificatePCK, func(c *x509.Certificate) { c.ExtraExtensions[0].Critical = true }, attest.LinkChain, "unhandled critical extension"},
		{"PCK authority that is none", simtd.CertificatePCKCA, func(c *x509.Certificate) { c.IsCA, c.MaxPathLenZero, c.MaxPathLen = false, false, -1 }, attest.LinkChain, "signed by unknown authority"},
		{"PCK of another name", simtd.CertificatePCK, rename("Other"), attest.LinkChain, `leaf is "Other"`},
		{"TCB signer of another name", simtd.CertificateTCBSigner, rename("Other"), attest.LinkCollateral, `signed by "Other"`},
		{"TCB signer that is an authority", simtd.CertificateTCBSigner, func(c *x509.Certificate) { c.IsCA = true }, attest.LinkCollateral, "want an end entity"},
		{"TCB signer that may not sign", simtd.CertificateTCBSigner, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }, attest.LinkCollateral, "without digital signature"},
		{"TCB signer that expired", simtd.CertificateTCBSigner, func(c *x509.Certificate) { c.NotAfter = simTime.Add(-time.Hour) }, attest.LinkCollateral, "expired"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			td := openTD(t, simtd.Config{EditCertificate: func(which string, c *x509.Certificate) {
				if which == tt.which {
					tt.edit(c)
				}
			}})
			_, err := verifierOf(t, td).Verify(t.Context(), attestBy(t, td))
			wantRefusal(t, err, tt.link, tt.reason)
		})
	}
}

func rename(cn string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.RawSubject, c.Subject = nil, pkix.Name{CommonName: cn} }
}

// processorTD is a software TD whose PCK is issued by the processor CA.
func processorTD(tb testing.TB) *simtd.TD {
	tb.Helper()
	return openTD(tb, simtd.Config{EditCertificate: func(which string, c *x509.Certificate) {
		if which == simtd.CertificatePCKCA {
			rename("Intel SGX PCK Processor CA")(c)
		}
	}})
}

func TestProcessorCA(t *testing.T) {
	td := processorTD(t)
	ev := attestBy(t, td)
	var asked tdx.CA
	source := sourceFunc(func(ctx context.Context, fmspc tdx.FMSPC, ca tdx.CA) (*tdx.Collateral, error) {
		asked = ca
		return td.Collateral(ctx, fmspc, tdx.PlatformCA) // it knows no other
	})
	v := newVerifier(t, tdx.Config{TrustAnchor: td.Root(), Collateral: source, Now: (&clock{simTime}).Now})
	if _, err := v.Verify(t.Context(), ev); err != nil || asked != tdx.ProcessorCA {
		t.Errorf("Verify() = %v after asking for the %q CA, want the %q CA", err, asked, tdx.ProcessorCA)
	}
	// The list of one authority says nothing of the other's certificates.
	platform := openTD(t, simtdConfig())
	_, err := newVerifier(t, tdx.Config{TrustAnchor: platform.Root(), Collateral: edited(platform, func(c *tdx.Collateral) {
		own, err := td.Collateral(t.Context(), tdx.FMSPC(fmspcOf(td)), tdx.PlatformCA)
		if err != nil {
			t.Error(err)
		}
		c.PCKCRL, c.PCKCRLChain = own.PCKCRL, own.PCKCRLChain
	}), Now: (&clock{simTime}).Now}).Verify(t.Context(), attestBy(t, platform))
	wantRefusal(t, err, attest.LinkCollateral, `issued by "Intel SGX PCK Processor CA", want the platform CA`)
}

func TestModuleOfMajorVersionZero(t *testing.T) {
	// Such a module has no identity of its own: the platform's level counts its
	// SVN, and is its status.
	td := openTD(t, simtd.Config{Measurements: simtd.Measurements{TEETCBSVN: [16]byte{5, 0, 4}}})
	endorse(t, td, simtd.Endorsements{Platform: simtd.Level{Status: attest.OutOfDate}})
	v := verifierOf(t, td)
	c, err := v.Verify(t.Context(), attestBy(t, td))
	if err != nil || c.ModuleTCB != attest.OutOfDate {
		t.Fatalf("Verify() = %+v, %v, want the module %s", c, err, attest.OutOfDate)
	}
	_, err = v.Verify(t.Context(), quoteOf(t, td, simtd.Shape{EditSigned: func(b []byte) { b[48] = 4 }}))
	wantRefusal(t, err, attest.LinkTCB, "platform is below every TCB level")
}
