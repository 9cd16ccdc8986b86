package kms_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/authz"
	"teekms/internal/keys"
	"teekms/internal/ratls"
	"teekms/internal/ratls/csr"
)

// applicant is a workload that asks for certificates.
type applicant struct {
	td     *simtd.TD
	key    *ecdsa.PrivateKey
	public []byte
}

func newApplicant(tb testing.TB, td *simtd.TD) *applicant {
	tb.Helper()
	key, err := keys.NewKey()
	if err != nil {
		tb.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		tb.Fatal(err)
	}
	return &applicant{td: td, key: key, public: public}
}

// csr is a request with Evidence for the applicant's key.
func (a *applicant) csr(tb testing.TB) *csr.Request {
	tb.Helper()
	ev, err := a.td.Attest(tb.Context(), attest.RATLSReportData(a.public))
	if err != nil {
		tb.Fatal(err)
	}
	return &csr.Request{
		PublicKey: a.public, Subject: "app.example.com", SANs: []string{"app.example.com", "192.0.2.7", "*.app.example.com"},
		ServerAuth: true, ClientAuth: true, WithEvidence: true, Evidence: ev,
	}
}

// sign makes the message of SignCert.
func (a *applicant) sign(tb testing.TB, version uint32, r *csr.Request) *kmsv1.SignCertRequest {
	tb.Helper()
	raw, err := csr.Marshal(version, r)
	if err != nil {
		tb.Fatal(err)
	}
	return &kmsv1.SignCertRequest{ApiVersion: version, Csr: raw, Signature: a.signature(tb, raw), VmConfig: a.td.VMConfig()}
}

func (a *applicant) signature(tb testing.TB, raw []byte) []byte {
	tb.Helper()
	digest := sha256.Sum256(raw)
	signature, err := ecdsa.SignASN1(rand.Reader, a.key, digest[:])
	if err != nil {
		tb.Fatal(err)
	}
	return signature
}

func signCert(tb testing.TB, w *world, protocol string, req *kmsv1.SignCertRequest) (*kmsv1.SignCertResponse, outcome) {
	tb.Helper()
	return invoke[kmsv1.SignCertRequest, kmsv1.SignCertResponse](tb, w.client(tb, nil), w.url, protocol, "SignCert", req)
}

// chain parses an answer and checks what all answers have in common.
func chain(t *testing.T, w *world, res *kmsv1.SignCertResponse) (leaf, ca *x509.Certificate) {
	t.Helper()
	texts := res.GetCertificateChain()
	if len(texts) != 3 || texts[2] != string(w.config.Keys.RootCertificate) {
		t.Fatalf("chain of %d certificates, want leaf, application CA and the root as it is on disk", len(texts))
	}
	var parsed []*x509.Certificate
	for _, text := range texts {
		c, err := keys.ParseCertificate([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, c)
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(parsed[2])
	intermediates.AddCert(parsed[1])
	_, err := parsed[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		t.Errorf("Verify = %v, want a chain to the root", err)
	}
	return parsed[0], parsed[1]
}

// arcs are the last arcs of the extensions of the wire format.
func arcs(c *x509.Certificate) []int {
	var out []int
	for _, e := range c.Extensions {
		if prefix := keys.ExtensionOID(0); len(e.Id) == len(prefix) && e.Id[:len(prefix)-1].Equal(prefix[:len(prefix)-1]) {
			out = append(out, e.Id[len(prefix)-1])
		}
	}
	return out
}

// payload is what an extension of the wire format holds.
func payload(t *testing.T, c *x509.Certificate, arc int) []byte {
	t.Helper()
	for _, e := range c.Extensions {
		if e.Id.Equal(keys.ExtensionOID(arc)) {
			want := keys.Extension(arc, nil).Value[:1]
			if !bytes.HasPrefix(e.Value, want) {
				t.Fatalf("extension %d = %x, want an OCTET STRING inside", arc, e.Value)
			}
			n := 2
			if e.Value[1] >= 0x80 {
				n += int(e.Value[1] & 0x7f)
			}
			return e.Value[n:]
		}
	}
	t.Fatalf("no extension %d", arc)
	return nil
}

func TestSignCert(t *testing.T) {
	w := newWorld(t)
	a := newApplicant(t, w.workload(t, vectorApp(t)))
	tests := []struct {
		name    string
		version uint32
		change  func(*csr.Request)
		arcs    []int
	}{
		{"version 1", 1, func(*csr.Request) {}, []int{3, 4, 1, 2}},
		{"version 1 without Evidence", 1, func(r *csr.Request) { r.WithEvidence = false }, []int{3, 4}},
		{"version 2", 2, func(*csr.Request) {}, []int{3, 4, 8}},
		{"version 2 with app info", 2, func(r *csr.Request) { r.WithAppInfo = true }, []int{3, 4, 9, 8}},
		{"version 2 without Evidence", 2, func(r *csr.Request) { r.WithEvidence = false }, []int{3, 4}},
	}
	for _, tt := range tests {
		for _, protocol := range protocols() {
			t.Run(tt.name+"/"+protocol, func(t *testing.T) {
				r := a.csr(t)
				tt.change(r)
				res, end := signCert(t, w, protocol, a.sign(t, tt.version, r))
				end.expect(t, protocol, outcome{})
				leaf, ca := chain(t, w, res)
				checkLeaf(t, a, leaf)
				if diff := cmp.Diff(tt.arcs, arcs(leaf)); diff != "" {
					t.Errorf("extensions (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff([]int{3, 4}, arcs(ca)); diff != "" {
					t.Errorf("extensions of the CA (-want +got):\n%s", diff)
				}
				id := vectorApp(t).AppID
				if !bytes.Equal(payload(t, leaf, 3), id) || !bytes.Equal(payload(t, ca, 3), id) {
					t.Errorf("app ids = %x, %x, want %x", payload(t, leaf, 3), payload(t, ca, 3), id)
				}
				if string(payload(t, leaf, 4)) != "app:custom" || string(payload(t, ca, 4)) != "app:ca" {
					t.Errorf("usages = %s, %s, want app:custom, app:ca", payload(t, leaf, 4), payload(t, ca, 4))
				}
				if !r.WithEvidence {
					return
				}
				peer, err := w.appraiser.AppraiseCertificate(t.Context(), leaf)
				if err != nil || peer == nil {
					t.Fatalf("AppraiseCertificate = %v, %v, want the Evidence to hold in the new certificate", peer, err)
				}
			})
		}
	}
}

func checkLeaf(t *testing.T, a *applicant, leaf *x509.Certificate) {
	t.Helper()
	if !bytes.Equal(leaf.RawSubjectPublicKeyInfo, a.public) {
		t.Error("the certificate is of another key")
	}
	if leaf.Subject.String() != "CN=app.example.com" || leaf.Issuer.String() != "CN=Dstack App CA,O=Dstack" {
		t.Errorf("subject = %s, issuer = %s", leaf.Subject, leaf.Issuer)
	}
	if diff := cmp.Diff([]string{"app.example.com", "*.app.example.com"}, leaf.DNSNames); diff != "" {
		t.Errorf("DNS names (-want +got):\n%s", diff)
	}
	if len(leaf.IPAddresses) != 1 || leaf.IPAddresses[0].String() != "192.0.2.7" {
		t.Errorf("IP addresses = %v, want 192.0.2.7", leaf.IPAddresses)
	}
	if leaf.IsCA || leaf.BasicConstraintsValid || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("CA = %v, key usage = %b, want a leaf that signs", leaf.IsCA, leaf.KeyUsage)
	}
	if diff := cmp.Diff([]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, leaf.ExtKeyUsage); diff != "" {
		t.Errorf("extended key usages (-want +got):\n%s", diff)
	}
	if years := leaf.NotAfter.Sub(now()).Hours() / 24 / 365; years < 9.9 || years > 10.1 {
		t.Errorf("valid for %.2f years, want 10: guests never ask again", years)
	}
}

// TestAppCAKey holds the key of an application's CA to the known answer.
func TestAppCAKey(t *testing.T) {
	w := newWorld(t)
	a := newApplicant(t, w.workload(t, vectorApp(t)))
	res, end := signCert(t, w, "grpc", a.sign(t, 2, a.csr(t)))
	end.expect(t, "grpc", outcome{})
	_, ca := chain(t, w, res)
	spki := hex.EncodeToString(ca.RawSubjectPublicKeyInfo)
	if tail := spki[len(spki)-130:]; tail[:10] != "0449bb3159" || tail[len(tail)-6:] != "2bcda8" {
		t.Errorf("key of the application CA = %s, want 0449bb3159...2bcda8", tail)
	}
	if !ca.IsCA || ca.MaxPathLen != 0 || !ca.MaxPathLenZero {
		t.Errorf("CA = %v, path length = %d, want true, 0", ca.IsCA, ca.MaxPathLen)
	}
}

func TestWhatTheAuthorityIsAskedBySignCert(t *testing.T) {
	w := newWorld(t)
	td := w.workload(t, vectorApp(t))
	if err := td.Extend("app-event", []byte("later")); err != nil {
		t.Fatal(err)
	}
	a := newApplicant(t, td)
	r := a.csr(t)
	r.WithAppInfo = true
	w.authority.set(nil)
	res, end := signCert(t, w, "grpc", a.sign(t, 2, r))
	end.expect(t, "grpc", outcome{})
	asked := w.authority.requests()
	if len(asked) != 1 || asked[0].Subject != authz.App {
		t.Fatalf("the authority was asked %d times, want once about an app", len(asked))
	}
	peer, err := w.appraiser.Appraise(t.Context(), r.Evidence, a.public)
	if err != nil {
		t.Fatal(err)
	}
	want, err := authz.Describe(peer, authz.DescribeOptions{BootTime: true})
	if err != nil {
		t.Fatal(err)
	}
	info := asked[0].BootInfo
	if len(info.KeyProviderInfo) != 0 || info.MRAggregated != want.MRAggregated || info.MRSystem != want.MRSystem {
		t.Errorf("boot info = %+v, want that of the end of the boot", info)
	}
	full, err := authz.Describe(peer, authz.DescribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if full.MRAggregated == want.MRAggregated || full.MRSystem == want.MRSystem {
		t.Fatal("this application has the same measurements at boot: the test shows nothing")
	}
	leaf, _ := chain(t, w, res)
	if diff := cmp.Diff(appInfo(full), payload(t, leaf, 9)); diff != "" {
		t.Errorf("app info (-want +got):\n%s", diff)
	}
}

// appInfo is extension 9, written down here once more: an array of nine.
func appInfo(b authz.BootInfo) []byte {
	out := []byte{0x99}
	for _, f := range [][]byte{b.AppID, b.ComposeHash, b.InstanceID, b.DeviceID[:], b.MRSystem[:], b.MRAggregated[:], b.OSImageHash, b.KeyProviderInfo} {
		out = append(append(out, 0xc4, byte(len(f))), f...)
	}
	return append(out, 0xc0)
}

func TestInitScriptsInAppInfo(t *testing.T) {
	w := newWorld(t)
	m := vectorApp(t)
	m.Runtime = []simtd.RuntimeEvent{
		{Name: "app-id", Payload: m.AppID},
		{Name: "compose-hash", Payload: fill(32, 9)},
		{Name: "init-script-hash", Payload: fill(32, 1)},
		{Name: "init-script-hash", Payload: fill(32, 2)},
		{Name: "boot-mr-done"},
		{Name: "init-script-hash", Payload: fill(32, 3)},
	}
	a := newApplicant(t, w.workload(t, m))
	r := a.csr(t)
	r.WithAppInfo = true
	res, end := signCert(t, w, "grpc", a.sign(t, 2, r))
	end.expect(t, "grpc", outcome{})
	leaf, _ := chain(t, w, res)
	want := append([]byte{0x92, 0xc4, 32}, fill(32, 1)...)
	want = append(append(want, 0xc4, 32), fill(32, 2)...)
	if got := payload(t, leaf, 9); !bytes.HasSuffix(got, want) {
		t.Errorf("app info = %x, want the two scripts that ran before the boot was done at its end: %x", got, want)
	}
}

// TestUnverifiedFieldsAreNotSigned holds that what the request says of its
// machine is not repeated in a certificate.
func TestUnverifiedFieldsAreNotSigned(t *testing.T) {
	w := newWorld(t)
	a := newApplicant(t, w.workload(t, vectorApp(t)))
	r := a.csr(t)
	image := hex.EncodeToString(fill(32, 7))
	r.Evidence.VMConfig = `{"os_image_hash":"` + image + `","owner":"somebody else"}`
	req := a.sign(t, 2, r)
	req.VmConfig = ""
	res, end := signCert(t, w, "grpc", req)
	end.expect(t, "grpc", outcome{})
	leaf, _ := chain(t, w, res)
	ev, err := ratls.FromCertificate(leaf)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"os_image_hash":"` + image + `"}`; ev.VMConfig != want {
		t.Errorf("VM config in the certificate = %s, want %s", ev.VMConfig, want)
	}
}

func TestValidity(t *testing.T) {
	at := func(d time.Duration) *time.Time {
		v := now().Add(d).Truncate(time.Second)
		return &v
	}
	w := newWorld(t)
	a := newApplicant(t, w.workload(t, vectorApp(t)))
	const day = 24 * time.Hour
	far := time.Unix(253402300799, 0)
	tests := []struct {
		name     string
		from, to *time.Time
		wantFrom func(ca *x509.Certificate) time.Time
		wantTo   func(ca *x509.Certificate) time.Time
	}{
		{
			"as asked for", at(day), at(2 * day),
			func(*x509.Certificate) time.Time { return *at(day) }, func(*x509.Certificate) time.Time { return *at(2 * day) },
		},
		{
			"cut to the CA's", at(-20 * 365 * day), &far,
			func(ca *x509.Certificate) time.Time { return ca.NotBefore }, func(ca *x509.Certificate) time.Time { return ca.NotAfter },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := a.csr(t)
			r.NotBefore, r.NotAfter = tt.from, tt.to
			res, end := signCert(t, w, "grpc", a.sign(t, 2, r))
			end.expect(t, "grpc", outcome{})
			block, ca := res.GetCertificateChain(), (*x509.Certificate)(nil)
			leaf, err := keys.ParseCertificate([]byte(block[0]))
			if err != nil {
				t.Fatal(err)
			}
			if ca, err = keys.ParseCertificate([]byte(block[1])); err != nil {
				t.Fatal(err)
			}
			near := func(got, want time.Time) bool { return got.Sub(want).Abs() <= 5*time.Second }
			if !near(leaf.NotBefore, tt.wantFrom(ca)) || !near(leaf.NotAfter, tt.wantTo(ca)) {
				t.Errorf("valid from %v to %v, want %v to %v", leaf.NotBefore, leaf.NotAfter, tt.wantFrom(ca), tt.wantTo(ca))
			}
			if ca.NotAfter.After(w.root.NotAfter) {
				t.Errorf("the CA is valid until %v, longer than the root (%v)", ca.NotAfter, w.root.NotAfter)
			}
		})
	}
}

// TestSubjects holds the subjects that guests ask for.
func TestSubjects(t *testing.T) {
	w := newWorld(t)
	a := newApplicant(t, w.workload(t, vectorApp(t)))
	r := a.csr(t)
	r.Subject, r.Org, r.SANs, r.ServerAuth, r.ClientAuth = "", "Grünwald & Söhne", []string{"a_b.localhost", "::1", "*.kms.localhost"}, false, false
	res, end := signCert(t, w, "grpc", a.sign(t, 2, r))
	end.expect(t, "grpc", outcome{})
	leaf, _ := chain(t, w, res)
	if diff := cmp.Diff([]string{"Grünwald & Söhne"}, leaf.Subject.Organization); diff != "" || leaf.Subject.CommonName != "" {
		t.Errorf("subject = %v", leaf.Subject)
	}
	if diff := cmp.Diff([]string{"a_b.localhost", "*.kms.localhost"}, leaf.DNSNames); diff != "" || len(leaf.ExtKeyUsage) != 0 {
		t.Errorf("DNS names %v, usages %v", leaf.DNSNames, leaf.ExtKeyUsage)
	}
}
