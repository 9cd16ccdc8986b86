package keys_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/keys"
)

func issueTime() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 500, time.UTC) }

func parse(t testing.TB, der []byte, err error) *x509.Certificate {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := keys.ParseCertificate(keys.CertificatePEM(der))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func rootCA(t testing.TB, r *keys.Roots) *x509.Certificate {
	t.Helper()
	der, err := keys.NewRootCA(r, issueTime())
	return parse(t, der, err)
}

func issue(t testing.TB, r *keys.Roots, ca *x509.Certificate, domain string, extra ...pkix.Extension) *x509.Certificate {
	t.Helper()
	key, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := keys.IssueRPC(keys.RPCRequest{Roots: r, CA: ca, Public: &key.PublicKey, Domain: domain, Extensions: extra, Now: issueTime()})
	return parse(t, der, err)
}

// bracket is how a client names an IPv6 address in a URL.
func bracket(domain string) string {
	if strings.Contains(domain, ":") {
		return "[" + domain + "]"
	}
	return domain
}

// names lists the attributes of a distinguished name with their string types.
func names(t *testing.T, raw []byte) []string {
	t.Helper()
	var rdn []asn1.RawValue
	if rest, err := asn1.Unmarshal(raw, &rdn); err != nil || len(rest) != 0 {
		t.Fatal(err)
	}
	var out []string
	for _, r := range rdn {
		var attribute struct {
			Type  asn1.ObjectIdentifier
			Value asn1.RawValue
		}
		if _, err := asn1.Unmarshal(r.Bytes, &attribute); err != nil {
			t.Fatal(err)
		}
		kind := map[int]string{asn1.TagUTF8String: "utf8", asn1.TagPrintableString: "printable"}[attribute.Value.Tag]
		out = append(out, attribute.Type.String()+"="+kind+":"+string(attribute.Value.Bytes))
	}
	return out
}

func oids(cert *x509.Certificate) []string {
	var out []string
	for _, e := range cert.Extensions {
		s := e.Id.String()
		if e.Critical {
			s += "!"
		}
		out = append(out, s)
	}
	return out
}

func TestCACertificates(t *testing.T) {
	r := vectorRoots(t)
	tempKey, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	root := rootCA(t, r)
	tempDER, err := keys.NewTempCA(tempKey, issueTime())
	temp := parse(t, tempDER, err)
	tests := []struct {
		name    string
		cert    *x509.Certificate
		subject string
		pathLen int
	}{
		{"root", root, "Dstack KMS CA", 1},
		{"temporary", temp, "Dstack Client Temp CA", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.cert
			want := []string{"2.5.4.10=utf8:Dstack", "2.5.4.3=utf8:" + tt.subject}
			if diff := cmp.Diff(want, names(t, c.RawSubject)); diff != "" {
				t.Errorf("subject (-want +got):\n%s", diff)
			}
			if !bytes.Equal(c.RawIssuer, c.RawSubject) {
				t.Errorf("issuer = %x, want the subject", c.RawIssuer)
			}
			if !c.IsCA || c.MaxPathLen != tt.pathLen || c.MaxPathLen == 0 != c.MaxPathLenZero {
				t.Errorf("CA = %v, path length = %d, want true, %d", c.IsCA, c.MaxPathLen, tt.pathLen)
			}
			if want := x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign | x509.KeyUsageCRLSign; c.KeyUsage != want {
				t.Errorf("key usage = %b, want %b", c.KeyUsage, want)
			}
			if got, want := c.NotAfter, issueTime().Add(3650*24*time.Hour).Truncate(time.Second); !got.Equal(want) {
				t.Errorf("not after = %v, want %v", got, want)
			}
			if diff := cmp.Diff([]string{"2.5.29.15!", "2.5.29.19!", "2.5.29.14"}, oids(c)); diff != "" {
				t.Errorf("extensions (-want +got):\n%s", diff)
			}
			if len(c.SubjectKeyId) != 20 {
				t.Errorf("subject key id = %x, want 20 bytes", c.SubjectKeyId)
			}
			if err := c.CheckSignatureFrom(c); err != nil {
				t.Errorf("self-signature: %v", err)
			}
		})
	}
	public, err := x509.MarshalPKIXPublicKey(root.PublicKey)
	if err != nil || !bytes.Equal(public, r.CAPublic()) {
		t.Errorf("root public key = %x, %v, want CAPublic", public, err)
	}
}

func TestIssueRPC(t *testing.T) {
	r := vectorRoots(t)
	ca := rootCA(t, r)
	evidence := keys.Extension(keys.ArcAttestation, bytes.Repeat([]byte{7}, 20000))
	leaf := issue(t, r, ca, "kms.example.com", evidence)
	if diff := cmp.Diff([]string{"2.5.4.3=utf8:kms.example.com"}, names(t, leaf.RawSubject)); diff != "" {
		t.Errorf("subject (-want +got):\n%s", diff)
	}
	want := []string{"2.5.29.15!", "2.5.29.35", "2.5.29.17", "1.3.6.1.4.1.62397.1.4", "1.3.6.1.4.1.62397.1.8"}
	if diff := cmp.Diff(want, oids(leaf)); diff != "" {
		t.Errorf("extensions (-want +got):\n%s", diff)
	}
	if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("CA = %v, key usage = %b, want a leaf that signs", leaf.IsCA, leaf.KeyUsage)
	}
	if !leaf.NotBefore.Equal(issueTime().Add(-time.Hour).Truncate(time.Second)) ||
		!leaf.NotAfter.Equal(issueTime().Add(90*24*time.Hour).Truncate(time.Second)) {
		t.Errorf("validity = %v to %v, want an hour ago to 90 days ahead", leaf.NotBefore, leaf.NotAfter)
	}
	if got, want := leaf.Extensions[3].Value, unhex(t, "04076b6d733a727063"); !bytes.Equal(got, want) {
		t.Errorf("usage extension = %x, want %x", got, want)
	}
	var inner []byte
	if rest, err := asn1.Unmarshal(leaf.Extensions[4].Value, &inner); err != nil || len(rest) != 0 || len(inner) != 20000 {
		t.Errorf("evidence extension = %d bytes, %d after, %v, want 20000, 0", len(inner), len(rest), err)
	}
	other := issue(t, r, ca, "kms.example.com")
	if leaf.SerialNumber.Cmp(other.SerialNumber) == 0 || leaf.SerialNumber.Sign() <= 0 || leaf.SerialNumber.BitLen() > 159 {
		t.Errorf("serial numbers %v and %v, want positive, random, at most 20 bytes", leaf.SerialNumber, other.SerialNumber)
	}
}

func TestIssueRPCNames(t *testing.T) {
	r := vectorRoots(t)
	ca := rootCA(t, r)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	tests := []struct {
		domain string
		dns    []string
		ip     string
	}{
		{"kms.example.com", []string{"kms.example.com"}, ""},
		{"192.0.2.7", nil, "192.0.2.7"},
		{"2001:db8::7", nil, "2001:db8::7"},
		{"::ffff:192.0.2.7", nil, "192.0.2.7"},
		{strings.Repeat(strings.Repeat("a", 49)+".", 5) + "bcd", []string{strings.Repeat(strings.Repeat("a", 49)+".", 5) + "bcd"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.domain[:min(20, len(tt.domain))], func(t *testing.T) {
			leaf := issue(t, r, ca, tt.domain)
			if diff := cmp.Diff(tt.dns, leaf.DNSNames); diff != "" {
				t.Errorf("DNS names (-want +got):\n%s", diff)
			}
			if tt.ip != "" && (len(leaf.IPAddresses) != 1 || leaf.IPAddresses[0].String() != tt.ip) {
				t.Errorf("addresses = %v, want %s", leaf.IPAddresses, tt.ip)
			}
			if leaf.Subject.CommonName != tt.domain {
				t.Errorf("common name = %q, want the domain", leaf.Subject.CommonName)
			}
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: bracket(tt.domain), CurrentTime: issueTime()}); err != nil {
				t.Errorf("Verify = %v, want nil", err)
			}
			opensslVerify(t, ca, leaf)
		})
	}
}

// opensslVerify is the second opinion: openssl accepts the chain, common names
// of more than 64 bytes included.
func opensslVerify(t *testing.T, ca, leaf *x509.Certificate) {
	t.Helper()
	dir := t.TempDir()
	caFile, leafFile := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "leaf.crt")
	for name, cert := range map[string]*x509.Certificate{caFile: ca, leafFile: leaf} {
		if err := os.WriteFile(name, keys.CertificatePEM(cert.Raw), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := issueTime().Unix()
	out, err := exec.CommandContext(t.Context(), "openssl", "verify", "-x509_strict", "-attime", strconv.FormatInt(at, 10), "-CAfile", caFile, leafFile).CombinedOutput()
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), ": OK") {
		t.Errorf("openssl verify = %s, %v, want OK", out, err)
	}
}

func TestIssueRPCKeepsTheIssuersName(t *testing.T) {
	// The certificate of a CA that another implementation wrote, with its own
	// string type: clients compare issuer and subject byte by byte.
	r := vectorRoots(t)
	block := r.CAPEM().Bytes()
	key, err := keys.ParseKey(block)
	if err != nil {
		t.Fatal(err)
	}
	template := rootCA(t, r)
	template.RawSubject = nil // Go writes PrintableString
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	ca := parse(t, der, err)
	if diff := cmp.Diff([]string{"2.5.4.10=printable:Dstack", "2.5.4.3=printable:Dstack KMS CA"}, names(t, ca.RawSubject)); diff != "" {
		t.Fatalf("subject (-want +got):\n%s", diff)
	}
	if leaf := issue(t, r, ca, "kms.example.com"); !bytes.Equal(leaf.RawIssuer, ca.RawSubject) {
		t.Errorf("issuer = %x, want %x", leaf.RawIssuer, ca.RawSubject)
	}
}

func TestIssueRPCRefuses(t *testing.T) {
	r := vectorRoots(t)
	other, err := keys.NewRoots()
	if err != nil {
		t.Fatal(err)
	}
	key, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	evidence := keys.Extension(keys.ArcAttestation, nil)
	san := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: []byte{0x30, 0}}
	tests := []struct {
		name string
		req  keys.RPCRequest
		want string
	}{
		{"another CA", keys.RPCRequest{CA: rootCA(t, other), Domain: "kms"}, "the CA certificate is of another key"},
		{"bad domain", keys.RPCRequest{CA: rootCA(t, r), Domain: "a..b"}, "domain: has an empty label"},
		{"evidence twice", keys.RPCRequest{CA: rootCA(t, r), Domain: "kms", Extensions: []pkix.Extension{evidence, evidence}}, "extension 1.3.6.1.4.1.62397.1.8 must not be given"},
		{"usage again", keys.RPCRequest{CA: rootCA(t, r), Domain: "kms", Extensions: []pkix.Extension{keys.Extension(keys.ArcUsage, nil)}}, "extension 1.3.6.1.4.1.62397.1.4 must not be given"},
		{"another name", keys.RPCRequest{CA: rootCA(t, r), Domain: "kms", Extensions: []pkix.Extension{san}}, "extension 2.5.29.17 must not be given"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.req.Roots, tt.req.Public, tt.req.Now = r, &key.PublicKey, issueTime()
			if _, err := keys.IssueRPC(tt.req); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("IssueRPC = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestExtensionLengths(t *testing.T) {
	for _, n := range []int{0, 1, 127, 128, 255, 256, 65535, 65536} {
		e := keys.Extension(keys.ArcQuote, make([]byte, n))
		var payload []byte
		rest, err := asn1.Unmarshal(e.Value, &payload)
		if err != nil || len(rest) != 0 || len(payload) != n {
			t.Errorf("Extension of %d bytes = %s… with %d after, %v, want one OCTET STRING", n, hex.EncodeToString(e.Value[:2]), len(rest), err)
		}
	}
}
