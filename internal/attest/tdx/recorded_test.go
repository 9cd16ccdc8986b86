package tdx_test

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	guesttesting "github.com/google/go-tdx-guest/testing"

	"teekms/internal/attest"
	"teekms/internal/attest/tdx"
)

func TestIntelRootCA(t *testing.T) {
	const want = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
	if got := sha256.Sum256(tdx.IntelRootCA().Raw); hex.EncodeToString(got[:]) != want {
		t.Errorf("SHA-256 of IntelRootCA() = %x, want %s", got, want)
	}
}

// TestRecordedQuotes has real quotes verified to Intel's root, on a day in the
// middle of their certificates' lives.
func TestRecordedQuotes(t *testing.T) {
	tests := []struct {
		name     string
		at       time.Time
		version  uint16
		body     uint16
		size     int
		fmspc    string
		tcb      string
		mrtd     string
		notAfter time.Time
	}{
		{quoteSPR, date(2024, 1, 1), 4, tdx.BodyTDX10, 4935, "50806f000000", "030004", "6363b8043668", date(2029, 9, 21)},
		{quoteCOS, date(2025, 1, 1), 4, tdx.BodyTDX10, 4935, "00806f050000", "040107", "dae67181d3d6", date(2031, 7, 3)},
		{quoteV5, date(2026, 6, 1), 5, tdx.BodyTDX15, 5006, "90c06f000000", "0b0104", "7348651a34b2", date(2033, 1, 28)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			raw := recordedQuote(t, tt.name)
			q, err := tdx.ParseQuote(raw)
			if err != nil {
				t.Fatalf("ParseQuote() = %v", err)
			}
			svn := q.TEETCBSVN()
			if q.Version() != tt.version || q.BodyType() != tt.body || len(q.Raw) != tt.size || hex.EncodeToString(svn[:3]) != tt.tcb {
				t.Errorf("version, body, size, TCB = %d, %d, %d, %x, want %d, %d, %d, %s", q.Version(), q.BodyType(), len(q.Raw), svn[:3], tt.version, tt.body, tt.size, tt.tcb)
			}
			ev := &attest.Evidence{Quote: raw}
			c, err := intelVerifier(t, tt.at).VerifyOffline(t.Context(), ev)
			if err != nil {
				t.Fatalf("VerifyOffline() = %v", err)
			}
			if hex.EncodeToString(c.FMSPC) != tt.fmspc || hex.EncodeToString(c.MRTD[:6]) != tt.mrtd || len(c.PPID) != 16 || c.TCB != "" {
				t.Errorf("FMSPC, MRTD, PPID, TCB = %x, %x, %x, %q, want %s, %s..., 16 bytes, none", c.FMSPC, c.MRTD[:6], c.PPID, c.TCB, tt.fmspc, tt.mrtd)
			}
			_, err = intelVerifier(t, tt.notAfter).VerifyOffline(t.Context(), ev)
			wantRefusal(t, err, attest.LinkChain, "expired")
			_, err = intelVerifier(t, date(2019, 1, 1)).VerifyOffline(t.Context(), ev)
			wantRefusal(t, err, attest.LinkChain, "not yet valid")
			_, err = intelVerifier(t, tt.at).Verify(t.Context(), ev)
			wantRefusal(t, err, attest.LinkCollateral, attest.ErrNoCollateral.Error())
		})
	}
}

func date(year int, month time.Month, day int) time.Time {
	return time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
}

func TestRecordedTextAfterQuoteIsNoPadding(t *testing.T) {
	_, err := tdx.ParseQuote(recorded(t, quoteSPR))
	if err == nil || !strings.Contains(err.Error(), "other than zero padding") {
		t.Errorf("ParseQuote() = %v, want a refusal of the text after the quote", err)
	}
}

// chainOf takes a recorded chain out of the headers of the recorded answers.
func chainOf(t *testing.T, header map[string][]string) []byte {
	t.Helper()
	for _, values := range header {
		pem, err := url.PathUnescape(values[0])
		if err != nil {
			t.Fatal(err)
		}
		return []byte(pem)
	}
	t.Fatal("no chain recorded")
	return nil
}

// TestRecordedCollateral verifies Intel's own collateral for the V5 quote, each
// part on a day on which it was valid: no single day had all.
func TestRecordedCollateral(t *testing.T) {
	root := tdx.IntelRootCA()
	signer, err := tdx.SignerAt(chainOf(t, guesttesting.TcbInfoHeader), root, date(2025, 2, 20))
	if err != nil {
		t.Fatalf("TCB signer on 2025-02-20: %v", err)
	}
	tcb, err := tdx.TCBInfoAt(recorded(t, "sample_tcbinfo_response_v5"), signer, tdx.FMSPC{0x90, 0xc0, 0x6f}, date(2026, 2, 20))
	if err != nil {
		t.Fatalf("TCB info on 2026-02-20: %v", err)
	}
	qe, err := tdx.QEIdentityAt(recorded(t, "sample_qeIdentity_response"), signer, date(2023, 7, 1))
	if err != nil {
		t.Fatalf("QE identity on 2023-07-01: %v", err)
	}
	q, err := tdx.ParseQuote(recordedQuote(t, quoteV5))
	if err != nil {
		t.Fatal(err)
	}
	platform, module, enclave, err := tdx.Judge(tcb, qe, q)
	if err != nil || platform != attest.UpToDate || module != attest.UpToDate || enclave != attest.UpToDate {
		t.Errorf("statuses = %s, %s, %s, %v, want three times %s", platform, module, enclave, err, attest.UpToDate)
	}
}

// TestRecordedPlatformBelowEveryLevel has a real quote that its recorded TCB
// info is too new for.
func TestRecordedPlatformBelowEveryLevel(t *testing.T) {
	signer, err := tdx.SignerAt(chainOf(t, guesttesting.TcbInfoHeader), tdx.IntelRootCA(), date(2023, 7, 1))
	if err != nil {
		t.Fatal(err)
	}
	tcb, err := tdx.TCBInfoAt(recorded(t, "sample_tcbInfo_response"), signer, tdx.FMSPC{0x50, 0x80, 0x6f}, date(2023, 7, 1))
	if err != nil {
		t.Fatal(err)
	}
	q, err := tdx.ParseQuote(recordedQuote(t, quoteSPR))
	if err != nil {
		t.Fatal(err)
	}
	_, _, _, err = tdx.Judge(tcb, nil, q)
	if err == nil || !strings.Contains(err.Error(), "below every TCB level") {
		t.Errorf("judging = %v, want below every TCB level", err)
	}
}

func TestRecordedRevocationLists(t *testing.T) {
	root := tdx.IntelRootCA()
	certs, err := tdx.ParseChain(chainOf(t, guesttesting.PckCrlHeader), 2)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		der    []byte
		issuer *x509.Certificate
		want   int
	}{
		{"of the root", recorded(t, "rootcrl.der"), root, 0},
		{"of the platform CA", recorded(t, "pckcrl"), certs[0], 44},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n, err := tdx.CRLAt(tt.der, tt.issuer, date(2023, 7, 1))
			if err != nil || n != tt.want {
				t.Errorf("revocation list on 2023-07-01 = %d entries, %v, want %d", n, err, tt.want)
			}
			for _, bad := range []struct {
				at   time.Time
				want string
			}{{date(2023, 1, 1), "in the future"}, {date(2025, 1, 1), "expired at"}} {
				if _, err := tdx.CRLAt(tt.der, tt.issuer, bad.at); err == nil || !strings.Contains(err.Error(), bad.want) {
					t.Errorf("revocation list on %v = %v, want %q", bad.at, err, bad.want)
				}
			}
		})
	}
}

func TestRecordedPCKExtension(t *testing.T) {
	q, err := tdx.ParseQuote(recordedQuote(t, quoteV5))
	if err != nil {
		t.Fatal(err)
	}
	certs, err := tdx.ParseChain(q.PCKChain(), 3)
	if err != nil {
		t.Fatal(err)
	}
	ext, err := tdx.PCKExtensionOf(certs[0])
	if err != nil {
		t.Fatal(err)
	}
	if ext.FMSPC != (tdx.FMSPC{0x90, 0xc0, 0x6f}) || ext.PCEID != [2]byte{} || ext.PCESVN != 13 {
		t.Errorf("FMSPC, PCEID, PCESVN = %x, %x, %d, want 90c06f000000, 0000, 13", ext.FMSPC, ext.PCEID, ext.PCESVN)
	}
}

func TestLoadTrustAnchor(t *testing.T) {
	td := openTD(t, simtdConfig())
	leaf, root := td.PCK(), td.Root()
	intel := pemOf(tdx.IntelRootCA())
	tests := []struct {
		name    string
		content []byte
		want    string // "" = accepted
	}{
		{"PEM", pemOf(root), ""},
		{"DER", root.Raw, ""},
		{"PEM with text before", append([]byte("the root:\n"), intel...), ""},
		{"two certificates", append(pemOf(root), intel...), "more than one certificate"},
		{"an end entity", pemOf(leaf), "not a certificate authority"},
		{"an empty file", nil, "malformed certificate"},
		{"a private key", []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), "want a CERTIFICATE"},
		{"a large file", make([]byte, 1<<20), "more than 65536 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "root")
			if err := os.WriteFile(path, tt.content, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := tdx.LoadTrustAnchor(path)
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("LoadTrustAnchor() = %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("LoadTrustAnchor() = %v, want %q", err, tt.want)
			}
		})
	}
}
