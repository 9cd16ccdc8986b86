package keys_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/keys"
)

func appID() []byte { return bytes.Repeat([]byte{7}, keys.AppIDSize) }

// appRequest is a request that is granted.
func appRequest(t testing.TB) keys.AppRequest {
	t.Helper()
	r := vectorRoots(t)
	key, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return keys.AppRequest{
		Roots: r, CA: rootCA(t, r), AppID: appID(), Public: &key.PublicKey, CommonName: "app", Now: issueTime(),
	}
}

func TestIssueApp(t *testing.T) {
	req := appRequest(t)
	req.Organization, req.Names, req.ServerAuth = "Example", []string{"app.example.com", "2001:db8::7"}, true
	req.Extensions = []pkix.Extension{keys.Extension(keys.ArcAttestation, bytes.Repeat([]byte{7}, 20000))}
	leafDER, caDER, err := keys.IssueApp(req)
	leaf, ca := parse(t, leafDER, err), parse(t, caDER, err)
	if diff := cmp.Diff([]string{"2.5.4.10=utf8:Example", "2.5.4.3=utf8:app"}, names(t, leaf.RawSubject)); diff != "" {
		t.Errorf("subject (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"2.5.4.10=utf8:Dstack", "2.5.4.3=utf8:Dstack App CA"}, names(t, ca.RawSubject)); diff != "" {
		t.Errorf("subject of the CA (-want +got):\n%s", diff)
	}
	if !bytes.Equal(leaf.RawIssuer, ca.RawSubject) || !bytes.Equal(ca.RawIssuer, req.CA.RawSubject) {
		t.Error("issuers are not the subjects above them, byte by byte")
	}
	want := []string{"2.5.29.15!", "2.5.29.37", "2.5.29.35", "2.5.29.17", "1.3.6.1.4.1.62397.1.3", "1.3.6.1.4.1.62397.1.4", "1.3.6.1.4.1.62397.1.8"}
	if diff := cmp.Diff(want, oids(leaf)); diff != "" {
		t.Errorf("extensions (-want +got):\n%s", diff)
	}
	want = []string{"2.5.29.15!", "2.5.29.19!", "2.5.29.14", "2.5.29.35", "1.3.6.1.4.1.62397.1.3", "1.3.6.1.4.1.62397.1.4"}
	if diff := cmp.Diff(want, oids(ca)); diff != "" {
		t.Errorf("extensions of the CA (-want +got):\n%s", diff)
	}
	key, err := req.Roots.AppCA(appID())
	if err != nil || !key.PublicKey.Equal(ca.PublicKey) {
		t.Errorf("key of the CA = %v, %v, want the derived one", ca.PublicKey, err)
	}
	if !ca.IsCA || ca.MaxPathLen != 0 || !ca.MaxPathLenZero || leaf.IsCA || leaf.BasicConstraintsValid {
		t.Errorf("CA = %v with path length %d, leaf = %v, want true, 0, false", ca.IsCA, ca.MaxPathLen, leaf.IsCA)
	}
	if len(leaf.DNSNames) != 1 || len(leaf.IPAddresses) != 1 {
		t.Errorf("names = %v, %v, want one of each kind", leaf.DNSNames, leaf.IPAddresses)
	}
	roots, above := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(req.CA)
	above.AddCert(ca)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: above, DNSName: "app.example.com", CurrentTime: issueTime()}); err != nil {
		t.Errorf("Verify = %v, want nil", err)
	}
}

// TestAppCertificateIssuesNothing holds that a certificate of an application is
// no CA for whoever reads the chain.
func TestAppCertificateIssuesNothing(t *testing.T) {
	req := appRequest(t)
	key, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	req.Public = &key.PublicKey
	leafDER, caDER, err := keys.IssueApp(req)
	leaf, ca := parse(t, leafDER, err), parse(t, caDER, err)
	below := &x509.Certificate{SerialNumber: leaf.SerialNumber, Subject: pkix.Name{CommonName: "below"}, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}
	der, err := x509.CreateCertificate(rand.Reader, below, leaf, &key.PublicKey, key)
	forged := parse(t, der, err)
	roots, above := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(req.CA)
	above.AddCert(ca)
	above.AddCert(leaf)
	_, err = forged.Verify(x509.VerifyOptions{Roots: roots, Intermediates: above, CurrentTime: issueTime()})
	if err == nil || !strings.Contains(err.Error(), "parent certificate cannot sign this kind of certificate") {
		t.Errorf("Verify of what an application issued = %v, want that it cannot sign", err)
	}
}

func TestIssueAppRefusals(t *testing.T) {
	other, err := keys.NewRoots()
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		change func(*keys.AppRequest)
		want   string
	}{
		{"app id of 19 bytes", func(r *keys.AppRequest) { r.AppID = r.AppID[1:] }, "app id: 19 bytes, want 20"},
		{"no key", func(r *keys.AppRequest) { r.Public = nil }, "the key is not on the curve P-256"},
		{"another curve", func(r *keys.AppRequest) { r.Public = &p384.PublicKey }, "the key is not on the curve P-256"},
		{"root of other keys", func(r *keys.AppRequest) { r.CA = rootCA(t, other) }, "the root certificate is of another key"},
		{"our own extension", func(r *keys.AppRequest) {
			r.Extensions = []pkix.Extension{keys.Extension(keys.ArcUsage, []byte("kms:rpc"))}
		}, "extension 1.3.6.1.4.1.62397.1.4 must not be given"},
		{"basic constraints", func(r *keys.AppRequest) {
			r.Extensions = []pkix.Extension{{Id: []int{2, 5, 29, 19}, Value: []byte{0x30, 3, 1, 1, 0xff}}}
		}, "extension 2.5.29.19 must not be given"},
		{"end before the beginning", func(r *keys.AppRequest) {
			r.NotBefore, r.NotAfter = issueTime().Add(2*time.Hour), issueTime().Add(time.Hour)
		}, keys.ErrNoValidity.Error()},
		{"end in the past", func(r *keys.AppRequest) { r.NotAfter = issueTime().Add(-time.Minute) }, keys.ErrNoValidity.Error()},
		{"beginning after the CA's end", func(r *keys.AppRequest) { r.NotBefore = issueTime().Add(11 * 365 * 24 * time.Hour) }, keys.ErrNoValidity.Error()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := appRequest(t)
			tt.change(&req)
			leaf, ca, err := keys.IssueApp(req)
			if leaf != nil || ca != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("IssueApp = %x, %x, %v, want %s", leaf, ca, err, tt.want)
			}
		})
	}
	req := appRequest(t)
	req.NotAfter = issueTime()
	if _, _, err := keys.IssueApp(req); !errors.Is(err, keys.ErrNoValidity) {
		t.Errorf("IssueApp until now = %v, want ErrNoValidity", err)
	}
}

// TestAppValidityEndsWithTheRoot holds that no certificate outlives its issuer.
func TestAppValidityEndsWithTheRoot(t *testing.T) {
	req := appRequest(t)
	req.Now = issueTime().Add(9 * 365 * 24 * time.Hour)
	leafDER, caDER, err := keys.IssueApp(req)
	leaf, ca := parse(t, leafDER, err), parse(t, caDER, err)
	if !leaf.NotAfter.Equal(req.CA.NotAfter) || !ca.NotAfter.Equal(req.CA.NotAfter) {
		t.Errorf("not after = %v, %v, want the root's %v", leaf.NotAfter, ca.NotAfter, req.CA.NotAfter)
	}
}

func TestEnvSecretIsThatOfEnv(t *testing.T) {
	r := vectorRoots(t)
	secret, err := r.EnvSecret(appID())
	if err != nil {
		t.Fatal(err)
	}
	env, err := r.Env(appID())
	if err != nil || !env.Private.Equal(secret) {
		t.Errorf("EnvSecret is not the private half of Env (%v)", err)
	}
	if _, err := r.EnvSecret(appID()[1:]); err == nil || err.Error() != "app id: 19 bytes, want 20" {
		t.Errorf("EnvSecret of 19 bytes = %v, want a refusal", err)
	}
}
