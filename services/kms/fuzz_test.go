package kms_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"strings"
	"testing"

	"go.uber.org/zap"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/attest/simtd"
	"teekms/internal/audit/audittest"
	"teekms/internal/keys"
	"teekms/internal/ratls/csr"
	"teekms/services/kms"
)

// FuzzSignCert gives SignCert any bytes, signed well: whoever may have a
// certificate may have them signed. What comes out is for the key in the request,
// issues nothing, and has no name of this KMS.
func FuzzSignCert(f *testing.F) {
	td, dir := platform(f)
	w := &world{platform: td, dir: dir, authority: &authority{}, images: &images{}, roots: vectorRoots(f)}
	w.appraiser = newAppraiser(f, td, nil)
	service, err := kms.New(kms.Config{
		Keys: serviceKeys(f, w.roots), Authorizer: w.authority, Images: w.images, Appraiser: w.appraiser, Log: zap.NewNop(),
		Audit: audittest.NewLog(f, audittest.NewStore()),
	})
	if err != nil {
		f.Fatal(err)
	}
	a := newApplicant(f, w.workload(f, simtd.Measurements{}))
	for _, version := range []uint32{csr.Version1, csr.Version2} {
		r := a.csr(f)
		f.Add(version, a.sign(f, version, r).GetCsr(), td.VMConfig())
		r.SANs, r.Org = []string{"*.localhost", "kms.localhost"}, "org"
		f.Add(version, a.sign(f, version, r).GetCsr(), "")
	}
	f.Add(uint32(0), []byte{}, "{}")
	f.Fuzz(func(t *testing.T, version uint32, raw []byte, vmConfig string) {
		digest := sha256.Sum256(raw)
		signature, err := ecdsa.SignASN1(rand.Reader, a.key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		res, err := service.SignCert(context.Background(), &kmsv1.SignCertRequest{
			ApiVersion: version, Csr: raw, Signature: signature, VmConfig: vmConfig,
		})
		if err != nil {
			if _, _, known := kms.Errors().Lookup(err); !known && !isField(err) {
				t.Errorf("SignCert = %v, an error without a public text", err)
			}
			return
		}
		checkIssued(t, a, res)
	})
}

func isField(err error) bool { return strings.HasPrefix(err.Error(), "csr: ") }

func checkIssued(t *testing.T, a *applicant, res *kmsv1.SignCertResponse) {
	t.Helper()
	leaf, err := keys.ParseCertificate([]byte(res.GetCertificateChain()[0]))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(leaf.RawSubjectPublicKeyInfo, a.public) || leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("issued %v for another key, or as a CA", leaf.Subject)
	}
	if leaf.VerifyHostname(domain) == nil {
		t.Errorf("issued for names %v, which say it is this KMS", leaf.DNSNames)
	}
	if string(payload(t, leaf, keys.ArcUsage)) != keys.UsageApp {
		t.Errorf("usage = %s, want app:custom", payload(t, leaf, keys.ArcUsage))
	}
}
