package keys_test

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"testing"

	"teekms/internal/keys"
)

func TestOwnKeysDifferByPurposeAndRoots(t *testing.T) {
	a, err := keys.NewRoots()
	if err != nil {
		t.Fatal(err)
	}
	b, err := keys.NewRoots()
	if err != nil {
		t.Fatal(err)
	}
	own := func(r *keys.Roots, purpose string) keys.Secret {
		s, err := r.Own(purpose)
		if err != nil {
			t.Fatal(err)
		}
		if s.Len() != keys.ScalarSize {
			t.Fatalf("Own(%q) has %d bytes, want %d", purpose, s.Len(), keys.ScalarSize)
		}
		return s
	}
	if !own(a, "audit").Equal(own(a, "audit")) {
		t.Error("Own() differs from call to call")
	}
	if own(a, "audit").Equal(own(a, "storage")) {
		t.Error("Own() is the same for two purposes")
	}
	if own(a, "audit").Equal(own(b, "audit")) {
		t.Error("Own() is the same for two KMSs")
	}
}

func TestSignOwnVerifiesWithCAPublicKey(t *testing.T) {
	r, err := keys.NewRoots()
	if err != nil {
		t.Fatal(err)
	}
	signature, err := r.SignOwn([]byte("a statement\n"))
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.ParsePKIXPublicKey(r.CAPublic())
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("a statement\n"))
	if !ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), digest[:], signature) {
		t.Error("SignOwn() does not verify with CAPublic()")
	}
	digest[0] ^= 1
	if ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), digest[:], signature) {
		t.Error("SignOwn() verifies for another statement")
	}
}
