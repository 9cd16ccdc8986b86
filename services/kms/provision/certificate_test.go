package provision_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/ratls"
	"teekms/services/kms/provision"
)

func TestNewCertificate(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	cert, err := provision.NewCertificate(t.Context(), provision.CertificateConfig{
		Names: []string{"kms-host", "my_host", "10.1.2.3", "fe80::1%eth0", "::ffff:10.1.2.3", "localhost", "0.0.0.0", "::"}, Now: func() time.Time { return at },
	})
	if err != nil {
		t.Fatal(err)
	}
	leaf := cert.Leaf
	if leaf.Subject.String() != "CN=cosmian.kms" || leaf.Issuer.String() != "CN=cosmian.kms" {
		t.Errorf("subject %s, issuer %s", leaf.Subject, leaf.Issuer)
	}
	if diff := cmp.Diff([]string{"cosmian.kms", "localhost", "kms-host"}, leaf.DNSNames); diff != "" {
		t.Errorf("DNS names (-want +got):\n%s", diff)
	}
	var addresses []string
	for _, ip := range leaf.IPAddresses {
		addresses = append(addresses, ip.String())
	}
	if diff := cmp.Diff([]string{"127.0.0.1", "::1", "10.1.2.3", "fe80::1"}, addresses); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if key, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Error("want a key over P-256")
	}
	if leaf.IsCA || !leaf.BasicConstraintsValid || leaf.KeyUsage != x509.KeyUsageDigitalSignature || len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth {
		t.Error("want a certificate for servers that is no CA")
	}
	if !leaf.NotAfter.Equal(at.Add(365*24*time.Hour)) || !leaf.NotBefore.Before(at) {
		t.Errorf("valid from %s to %s", leaf.NotBefore, leaf.NotAfter)
	}
	if err := leaf.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature); err != nil {
		t.Error(err)
	}
	again := must(provision.NewCertificate(t.Context(), provision.CertificateConfig{Lifetime: time.Hour, CommonName: "a name, no host"}))
	if again.Leaf.SerialNumber.Cmp(leaf.SerialNumber) == 0 || again.Leaf.SerialNumber.BitLen() < 120 {
		t.Errorf("serial numbers %x and %x, want random ones", again.Leaf.SerialNumber, leaf.SerialNumber)
	}
	if diff := cmp.Diff([]string{"localhost"}, again.Leaf.DNSNames); diff != "" {
		t.Errorf("a common name that is no DNS name (-want +got):\n%s", diff)
	}
}

func TestNewCertificateCarriesEvidenceOfItsKey(t *testing.T) {
	td := must(simtd.Open(simtd.Config{Dir: filepath.Join(t.TempDir(), "td")}))
	cert, err := provision.NewCertificate(t.Context(), provision.CertificateConfig{
		Evidence: func(ctx context.Context, spki []byte) ([]pkix.Extension, error) {
			ev, err := td.Attest(ctx, attest.RATLSReportData(spki))
			if err != nil {
				return nil, err
			}
			return ratls.Extensions(ev, ratls.Gen8)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ev, err := ratls.FromCertificate(cert.Leaf)
	if err != nil || ev == nil {
		t.Fatalf("FromCertificate = %v, %v", ev, err)
	}
	claims, err := newVerifier(t, td).Verify(t.Context(), ev)
	if err != nil {
		t.Fatal(err)
	}
	if want := attest.RATLSReportData(cert.Leaf.RawSubjectPublicKeyInfo); claims.ReportData != want.Bytes() {
		t.Errorf("report data = %x, want that of the key", claims.ReportData)
	}
}

func TestNewCertificateFails(t *testing.T) {
	tests := []struct {
		name string
		c    provision.CertificateConfig
		want string
	}{
		{"a long name", provision.CertificateConfig{CommonName: strings.Repeat("x", 65)}, "the common name has more than 64 characters"},
		{"a negative lifetime", provision.CertificateConfig{Lifetime: -1}, "the lifetime is negative"},
		{"no Evidence", provision.CertificateConfig{Evidence: func(context.Context, []byte) ([]pkix.Extension, error) {
			return nil, attest.ErrNoAttester
		}}, attest.ErrNoAttester.Error()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := provision.NewCertificate(t.Context(), tt.c)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "making the certificate of the configuration server: ") {
				t.Errorf("NewCertificate = %v, want %s", err, tt.want)
			}
		})
	}
	_, err := provision.NewCertificate(t.Context(), tests[2].c)
	if !errors.Is(err, attest.ErrNoAttester) {
		t.Errorf("error = %v, want ErrNoAttester in it", err)
	}
}
