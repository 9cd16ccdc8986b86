package keys_test

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/crypto"

	"teekms/internal/keys"
)

const (
	vectorAppID      = "000102030405060708090a0b0c0d0e0f10111213"
	vectorInstanceID = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff00010203"
)

func checkHex(t *testing.T, what string, got []byte, want string) {
	t.Helper()
	if hex.EncodeToString(got) != want {
		t.Errorf("%s = %x, want %s", what, got, want)
	}
}

func TestDeriveDHPublishedVector(t *testing.T) {
	scalar, dh, err := keys.DeriveDH(vectorRoots(t), "context one", "context two")
	if err != nil {
		t.Fatal(err)
	}
	checkHex(t, "scalar", scalar, "b60ac47b8fcfbdf96031b9e94f0b60cfe9de05eccb5a1dca41a26f757833c0e7")
	checkHex(t, "DH", dh.Bytes(), "663afd58820be8ad645f9c035e93199d114ab16f738db62393bc1d7d623e8813")
}

func TestPublishedEnvSignatureRecovers(t *testing.T) {
	// A signature that existing clients test against: the recovered key must be
	// the published signer, by the digest that Sign computes.
	public := unhex(t, "e33a1832c6562067ff8f844a61e51ad051f1180b66ec2551fb0251735f3ee90a")
	signature := unhex(t, "8542c49081fbf4e03f62034f13fbf70630bdf256a53032e38465a27c36fd6bed7a5e7111652004aef37f7fd92fbfc1285212c4ae6a6154203a48f5e16cad2cef00")
	digest := crypto.Keccak256([]byte("dstack-env-encrypt-pubkey:"), make([]byte, 20), public)
	signer, err := crypto.SigToPub(digest, signature)
	if err != nil {
		t.Fatal(err)
	}
	checkHex(t, "signer", crypto.CompressPubkey(signer), "0217610d74cbd39b6143842c6d8bc310d79da1d82cc9d17f8876376221eda0c38f")

	r := vectorRoots(t)
	ours, err := r.SignEnvPublic(make([]byte, 20), public)
	if err != nil {
		t.Fatal(err)
	}
	signer, err = crypto.SigToPub(digest, ours)
	if err != nil {
		t.Fatal(err)
	}
	checkHex(t, "our signer over the same digest", crypto.CompressPubkey(signer), hex.EncodeToString(r.K256Public()))
}

func TestAppKeys(t *testing.T) {
	r := vectorRoots(t)
	appID, instanceID := unhex(t, vectorAppID), unhex(t, vectorInstanceID)

	disk, err := r.AppDisk(appID, instanceID)
	if err != nil {
		t.Fatal(err)
	}
	checkHex(t, "disk key", disk.Bytes(), "5d3df11a5f50e3d19c2ff41fdfa0b3ef61f989933935d33c739dca202c7d5c2a")
	shared, err := r.AppDisk(appID, nil)
	if err != nil {
		t.Fatal(err)
	}
	checkHex(t, "disk key without instance", shared.Bytes(), "dec15ef21ec90508f9c4b954d106bfea89fc4a47832afce48d4a01845b7189db")

	env, err := r.Env(appID)
	if err != nil {
		t.Fatal(err)
	}
	checkHex(t, "env secret", env.Private.Bytes(), "23c369b81c99eb4031520ff5627b8243607ae43ff0befafab62bf142d3d709a2")
	checkHex(t, "env public", env.Public, "d91e3f8d29423e75315020c59144cc7b2ca05777066b7d490f4208d54635e120")

	ca, err := r.AppCA(appID)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := ca.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	checkHex(t, "app CA scalar", scalar, "f562b104a3513a1894c24ebe16d7286550aedf9017373e96fc35a2d0c21a1da9")
	spki, err := x509.MarshalPKIXPublicKey(&ca.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	point := hex.EncodeToString(spki[26:])
	if !strings.HasPrefix(point, "0449bb3159") || !strings.HasSuffix(point, "2bcda8") {
		t.Errorf("app CA point = %s, want 0449bb3159…2bcda8", point)
	}
}

func TestAppK256(t *testing.T) {
	key, err := vectorRoots(t).AppK256(unhex(t, vectorAppID))
	if err != nil {
		t.Fatal(err)
	}
	checkHex(t, "app key", key.Private.Bytes(), "b9717d48c557a952466ade9d6fd1848385de73ae256ade618fd9a472c56a5a66")
	checkHex(t, "app public", key.Public, "02c7d889de0ac3174588521b7e4fd430e586ca38a505dfa60f895a8b2353db9981")
	checkHex(t, "signature", key.Signature, "cd2e1cac2363a2075e5627fff679db7477b7ca9dda3f084a05af2f555b66179c432c29320c7c1a702e6da0329e7a8ed625916968b3fec42872d30e1ae893f84c00")
}

func TestSignEnvPublic(t *testing.T) {
	r := vectorRoots(t)
	appID := unhex(t, vectorAppID)
	env, err := r.Env(appID)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := r.SignEnvPublic(appID, env.Public)
	if err != nil {
		t.Fatal(err)
	}
	checkHex(t, "signature", signature, "b5dbf46222fc0ddbe482415d8d5916d1e313cb079378be92869ae7a3172944f96ec5097d735dd266353c089a81d3d1c2d07f95913fb67edad10c2825280bde1d00")
	signature, err = r.SignEnvPublicAt(appID, env.Public, 1700000000)
	if err != nil {
		t.Fatal(err)
	}
	checkHex(t, "signature with time", signature, "b2f8ad5e49b62c9266ae7d4a0d3ad9ac1a41698c4633cb50de2af47c12fe167a27c9c914b52aa4386ddea4973cb96cc35b5fa23b8d5fa0ba34e5b095cd020c9000")
}

func TestSignaturesAreLowSAndRecoverable(t *testing.T) {
	r := vectorRoots(t)
	halfOrder := unhex(t, "7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0")
	seen := map[byte]int{}
	for i := range 64 {
		message := []byte{byte(i)}
		appID := bytes.Repeat([]byte{byte(i)}, 20)
		signature, err := keys.Sign(r, "p", appID, message)
		if err != nil {
			t.Fatal(err)
		}
		if len(signature) != keys.SignatureSize {
			t.Fatalf("signature has %d bytes, want %d", len(signature), keys.SignatureSize)
		}
		if bytes.Compare(signature[32:64], halfOrder) > 0 {
			t.Errorf("signature %x has a high S", signature)
		}
		seen[signature[64]]++
		public, err := crypto.SigToPub(crypto.Keccak256([]byte("p:"), appID, message), signature)
		if err != nil || !bytes.Equal(crypto.CompressPubkey(public), r.K256Public()) {
			t.Errorf("signature %x does not recover to the root key: %v", signature, err)
		}
		again, err := keys.Sign(r, "p", appID, message)
		if err != nil || !bytes.Equal(again, signature) {
			t.Errorf("signing again = %x, %v, want %x", again, err, signature)
		}
	}
	if seen[0] == 0 || seen[1] == 0 || seen[0]+seen[1] != 64 {
		t.Errorf("recovery ids = %v, want only 0 and 1, both of them", seen)
	}
}

func TestDerivationsRefuseWrongSizes(t *testing.T) {
	r := vectorRoots(t)
	good := unhex(t, vectorAppID)
	for _, appID := range [][]byte{nil, good[:19], append(bytes.Clone(good), 0)} {
		calls := map[string]func() error{
			"AppCA":           func() error { _, err := r.AppCA(appID); return err },
			"AppDisk":         func() error { _, err := r.AppDisk(appID, nil); return err },
			"Env":             func() error { _, err := r.Env(appID); return err },
			"AppK256":         func() error { _, err := r.AppK256(appID); return err },
			"SignEnvPublic":   func() error { _, err := r.SignEnvPublic(appID, nil); return err },
			"SignEnvPublicAt": func() error { _, err := r.SignEnvPublicAt(appID, nil, 0); return err },
		}
		for name, call := range calls {
			if err := call(); err == nil || !strings.HasPrefix(err.Error(), "app id: ") {
				t.Errorf("%s with %d bytes = %v, want an app id error", name, len(appID), err)
			}
		}
	}
	for _, n := range []int{1, 19, 21} {
		if _, err := r.AppDisk(good, make([]byte, n)); err == nil || !strings.HasPrefix(err.Error(), "instance id: ") {
			t.Errorf("AppDisk with an instance id of %d bytes = %v, want an instance id error", n, err)
		}
	}
}

func BenchmarkDeriveAppKeys(b *testing.B) {
	r := vectorRoots(b)
	appID, instanceID := unhex(b, vectorAppID), unhex(b, vectorInstanceID)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.AppDisk(appID, instanceID); err != nil {
			b.Fatal(err)
		}
		if _, err := r.Env(appID); err != nil {
			b.Fatal(err)
		}
		if _, err := r.AppK256(appID); err != nil {
			b.Fatal(err)
		}
	}
}
