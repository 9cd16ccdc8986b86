package tdx_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
)

// TestAccessors compares every field with where it stands in a recorded quote.
func TestAccessors(t *testing.T) {
	raw := recordedQuote(t, quoteV5)
	q, err := tdx.ParseQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	const body = 54
	o := offsetsOf(raw)
	le := func(b []byte) string { // a number as the hex of its little-endian bytes
		return hex.EncodeToString(b)
	}
	number := func(v uint64) string {
		var b [8]byte
		for i := range b {
			b[i] = byte(v >> (8 * i))
		}
		return le(b[:])
	}
	r, qe := q.RTMRs(), q.QEReport()
	tests := []struct {
		name string
		got  string
		off  int
	}{
		{"QEVendorID", hexOf(q.QEVendorID()), 12},
		{"UserData", hexOf(q.UserData()), 28},
		{"TEETCBSVN", hexOf(q.TEETCBSVN()), body},
		{"MRSeam", hexOf(q.MRSeam()), body + 16},
		{"MRSignerSeam", hexOf(q.MRSignerSeam()), body + 64},
		{"SeamAttributes", hexOf(q.SeamAttributes()), body + 112},
		{"TDAttributes", number(q.TDAttributes()), body + 120},
		{"XFAM", number(q.XFAM()), body + 128},
		{"MRTD", hexOf(q.MRTD()), body + 136},
		{"MRConfigID", hexOf(q.MRConfigID()), body + 184},
		{"MROwner", hexOf(q.MROwner()), body + 232},
		{"MROwnerConfig", hexOf(q.MROwnerConfig()), body + 280},
		{"RTMR0", hexOf(r[0]), body + 328},
		{"RTMR1", hexOf(r[1]), body + 376},
		{"RTMR2", hexOf(r[2]), body + 424},
		{"RTMR3", hexOf(r[3]), body + 472},
		{"ReportData", hexOf(q.ReportData()), body + 520},
		{"TEETCBSVN2", hexOf(q.TEETCBSVN2()), body + 584},
		{"MRServiceTD", hexOf(q.MRServiceTD()), body + 600},
		{"MiscSelect", hexOf(qe.MiscSelect()), o.qeReport + 16},
		{"Attributes", hexOf(qe.Attributes()), o.qeReport + 48},
		{"MREnclave", hexOf(qe.MREnclave()), o.qeReport + 64},
		{"MRSigner", hexOf(qe.MRSigner()), o.qeReport + 128},
		{"ISVProdID", number(uint64(qe.ISVProdID()))[:4], o.qeReport + 256},
		{"ISVSVN", number(uint64(qe.ISVSVN()))[:4], o.qeReport + 258},
		{"QE ReportData", hexOf(qe.ReportData()), o.qeReport + 320},
		{"AuthData", hex.EncodeToString(q.AuthData()), o.auth},
		{"PCKChain", hex.EncodeToString(q.PCKChain()), o.chain},
	}
	for _, tt := range tests {
		if want := hex.EncodeToString(raw[tt.off : tt.off+len(tt.got)/2]); tt.got != want || tt.got == "" {
			t.Errorf("%s = %s, want %s", tt.name, tt.got, want)
		}
	}
	v4, err := tdx.ParseQuote(recordedQuote(t, quoteSPR))
	if err != nil || v4.TEETCBSVN2() != [16]byte{} || v4.MRServiceTD() != (attest.Measurement{}) {
		t.Errorf("V4: TEETCBSVN2, MRServiceTD = %x, %x, %v, want zeros", v4.TEETCBSVN2(), v4.MRServiceTD(), err)
	}
}

func hexOf[T [4]byte | [8]byte | [16]byte | [20]byte | [32]byte | [64]byte | attest.Measurement](v T) string {
	var b []byte
	switch v := any(v).(type) {
	case [4]byte:
		b = v[:]
	case [8]byte:
		b = v[:]
	case [16]byte:
		b = v[:]
	case [20]byte:
		b = v[:]
	case [32]byte:
		b = v[:]
	case [64]byte:
		b = v[:]
	case attest.Measurement:
		b = v[:]
	}
	return hex.EncodeToString(b)
}

// selfSigned makes a root over a key of the given curve.
func selfSigned(t *testing.T, curve elliptic.Curve, edit func(*x509.Certificate)) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Intel SGX Root CA"}, SubjectKeyId: []byte{1},
		NotBefore: simTime.Add(-day), NotAfter: simTime.Add(day), BasicConstraintsValid: true, IsCA: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	edit(template)
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

func TestNewVerifierRefusesAnchors(t *testing.T) {
	certs := func() []*x509.Certificate {
		q, err := tdx.ParseQuote(recordedQuote(t, quoteV5))
		if err != nil {
			t.Fatal(err)
		}
		certs, err := tdx.ParseChain(q.PCKChain(), 3)
		if err != nil {
			t.Fatal(err)
		}
		return certs
	}()
	noCRL, _ := selfSigned(t, elliptic.P256(), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign })
	p384, _ := selfSigned(t, elliptic.P384(), func(*x509.Certificate) {})
	p384sha256, _ := selfSigned(t, elliptic.P384(), func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA256 })
	tests := []struct {
		name   string
		anchor *x509.Certificate
		want   string
	}{
		{"an intermediate", certs[1], "not self-signed"},
		{"a root that signs no lists", noCRL, "without certificate and CRL signing"},
		{"a root with SHA-384", p384, "signature algorithm ECDSA-SHA384"},
		{"a root over P-384", p384sha256, "not ECDSA P-256"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := tdx.NewVerifier(tdx.Config{TrustAnchor: tt.anchor}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("NewVerifier() = %v, want %q", err, tt.want)
			}
		})
	}
	if got, want := intelVerifier(t, simTime).TrustRoot(), sha256.Sum256(tdx.IntelRootCA().Raw); got != want {
		t.Errorf("TrustRoot() = %x, want %x", got, want)
	}
}

// TestPathIsTheOneGiven has a leaf that the root issued itself, passed off with
// an authority in between.
func TestPathIsTheOneGiven(t *testing.T) {
	root, key := selfSigned(t, elliptic.P256(), func(*x509.Certificate) {})
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := key.Public()
	issue := func(edit func(*x509.Certificate)) *x509.Certificate {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "issued"},
			NotBefore: simTime.Add(-day), NotAfter: simTime.Add(day), BasicConstraintsValid: true,
		}
		edit(template)
		der, err := x509.CreateCertificate(rand.Reader, template, root, public, key)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	leaf := issue(func(*x509.Certificate) {})
	ca := issue(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign })
	if err := tdx.VerifyPath(simTime, leaf, root); err != nil {
		t.Errorf("the true path: %v", err)
	}
	if err := tdx.VerifyPath(simTime, leaf, ca, root); err == nil || !strings.Contains(err.Error(), "not 3 certificates long") {
		t.Errorf("the path with another authority = %v, want a refusal of its length", err)
	}
	public = p384.Public()
	if err := tdx.VerifyPath(simTime, issue(func(*x509.Certificate) {}), root); err == nil || !strings.Contains(err.Error(), "not ECDSA P-256") {
		t.Errorf("the path of a P-384 leaf = %v, want a refusal of its key", err)
	}
}

func TestRevocationListRefusals(t *testing.T) {
	root, key := selfSigned(t, elliptic.P256(), func(*x509.Certificate) {})
	other, _ := selfSigned(t, elliptic.P256(), func(c *x509.Certificate) { c.Subject.CommonName = "Other" })
	namesake, _ := selfSigned(t, elliptic.P256(), func(*x509.Certificate) {})
	list := func(edit func(*x509.RevocationList)) []byte {
		template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: simTime.Add(-time.Hour), NextUpdate: simTime.Add(time.Hour)}
		edit(template)
		der, err := x509.CreateRevocationList(rand.Reader, template, root, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	plain := list(func(*x509.RevocationList) {})
	tests := []struct {
		name   string
		der    []byte
		issuer *x509.Certificate
		want   string // "" = accepted
	}{
		{"a full list", plain, root, ""},
		{"a partial list", list(func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 0}}}
		}), root, "critical extension 2.5.29.28"},
		{"a list of another issuer", plain, other, "issued by"},
		{"a list of a namesake", plain, namesake, "verification failure"},
		{"bytes after the list", append(bytes.Clone(plain), 0), root, "trailing data"},
		{"nothing", nil, root, "malformed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tdx.CRLAt(tt.der, tt.issuer, simTime)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("CRL = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestSignedFrames(t *testing.T) {
	td := openTD(t, simtdConfig())
	c, err := td.Collateral(t.Context(), tdx.FMSPC(fmspcOf(td)), tdx.PlatformCA)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := tdx.SignerAt(c.TCBInfoChain, td.Root(), simTime)
	if err != nil {
		t.Fatal(err)
	}
	body := string(object(t, c.TCBInfo, "tcbInfo"))
	tests := []struct{ name, body, want string }{
		{"no JSON", "x", "invalid character"},
		{"a list", "[]", "cannot unmarshal array"},
		{"no signature", `{"tcbInfo":` + body + `}`, "signature: "},
		{"a number as signature", `{"tcbInfo":` + body + `,"signature":1}`, "signature: "},
		{"a signature not in hex", `{"tcbInfo":` + body + `,"signature":"zz"}`, "signature: "},
		{"a signature of zeros", `{"tcbInfo":` + body + `,"signature":"` + strings.Repeat("0", 128) + `"}`, "does not verify"},
		{"no object", `{"signature":"` + strings.Repeat("1", 128) + `"}`, "does not verify"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := tdx.TCBInfoAt([]byte(tt.body), signer, tdx.FMSPC{}, simTime); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("TCB info = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestTraceDetails(t *testing.T) {
	td := openTD(t, simtd.Config{Shape: simtd.Shape{Version: 5, BodyType: tdx.BodyTDX15}})
	endorse(t, td, simtd.Endorsements{QE: simtd.Level{Status: attest.OutOfDate, Advisories: []string{"INTEL-SA-00001"}}})
	ev := attestBy(t, td)
	var runtime eventlog.Log
	for _, e := range td.EventLog() {
		if e.IMR == eventlog.RuntimeIMR {
			runtime = append(runtime, e)
		}
	}
	stripped, err := runtime.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	v := verifierOf(t, td)
	whole := details(v.Trace(t.Context(), ev))
	short := details(v.Trace(t.Context(), &attest.Evidence{Quote: ev.Quote, EventLog: stripped}))
	none := details(v.Trace(t.Context(), &attest.Evidence{Quote: ev.Quote}))
	v4 := details(v.Trace(t.Context(), quoteOf(t, td, simtd.Shape{})))
	tests := []struct{ name, got, want string }{
		{"TCB", whole[attest.LinkTCB], "OutOfDate (platform UpToDate, TDX module UpToDate, quoting enclave OutOfDate), INTEL-SA-00001"},
		{"service TD in V5", whole[attest.LinkServiceTD], "none (MRSERVICETD is zero)"},
		{"service TD in V4", v4[attest.LinkServiceTD], "this quote has no field for one"},
		{"whole log", whole[attest.LinkEventLog], "replays to RTMR0, RTMR1, RTMR2 and RTMR3"},
		{"stripped log", short[attest.LinkEventLog], "replays to RTMR3; the boot events were left out of the log"},
		{"no log", none[attest.LinkEventLog], "none came with the quote"},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("%s: detail = %q, want %q", tt.name, tt.got, tt.want)
		}
	}
}

func details(trace *tdx.Trace) map[string]string {
	out := make(map[string]string)
	for _, s := range trace.Steps {
		out[s.Link] = s.Detail
	}
	return out
}

func TestDirSourceByPlatform(t *testing.T) {
	dir := t.TempDir()
	write := func(sub, text string) {
		full := filepath.Join(dir, "collateral", sub)
		if err := os.MkdirAll(full, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := (&tdx.Collateral{TCBInfo: []byte(text)}).WriteDir(full); err != nil {
			t.Fatal(err)
		}
	}
	write("", "any")
	write("90c06f000000", "one")
	source, err := tdx.NewDirSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, fmspc := range []tdx.FMSPC{{0x90, 0xc0, 0x6f}, {1}} {
		c, err := source.Collateral(t.Context(), fmspc, tdx.PlatformCA)
		if err != nil {
			t.Fatal(err)
		}
		got[hex.EncodeToString(fmspc[:])] = string(c.TCBInfo)
	}
	if diff := cmp.Diff(map[string]string{"90c06f000000": "one", "010000000000": "any"}, got); diff != "" {
		t.Errorf("TCB info by FMSPC (-want +got):\n%s", diff)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tdx.NewDirSource(file); err == nil || !strings.Contains(err.Error(), "opening collateral directory") {
		t.Errorf("NewDirSource() of a file = %v, want an error", err)
	}
	if err := (&tdx.Collateral{}).WriteDir(file); err == nil || !strings.Contains(err.Error(), "writing collateral") {
		t.Errorf("WriteDir() into a file = %v, want an error", err)
	}
}

func TestBoundedMap(t *testing.T) {
	tests := []struct {
		name  string
		limit int
		keys  []int
		want  int
	}{
		{"has room", 3, []int{1, 2, 3}, 3},
		{"forgets one for another", 3, []int{1, 2, 3, 4, 5}, 3},
		{"replaces without forgetting", 3, []int{1, 2, 3, 3}, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if n, last := tdx.BoundedMapAfter(tt.limit, tt.keys...); n != tt.want || !last {
				t.Errorf("%d entries, last there: %t, want %d, true", n, last, tt.want)
			}
		})
	}
}
