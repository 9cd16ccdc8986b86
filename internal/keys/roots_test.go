package keys_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"os/exec"
	"strings"
	"testing"

	"teekms/internal/keys"
)

// vectorPKCS8 is the key of a published vector: no secret.
const vectorPKCS8 = "308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420" +
	"f57527cea4ab7ffb49af99b158cdc0e3ec06398f528349ea236b7d2afe19cec1" +
	"a1440342000491f50522407ce29dce3ed7d31a15d80c1c42f13a23552d2b33a0ce09ee11e47b" +
	"ce95936f3e7f80d195f879e28e1b144ef37ac9ab8e36a690cbf930b775897b27"

const vectorK256 = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func pemOf(blockType string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der})
}

func vectorRoots(t testing.TB) *keys.Roots {
	t.Helper()
	r, err := keys.ParseRoots(pemOf("PRIVATE KEY", unhex(t, vectorPKCS8)), unhex(t, vectorK256))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRootsRoundTrip(t *testing.T) {
	r, err := keys.NewRoots()
	if err != nil {
		t.Fatal(err)
	}
	again, err := keys.ParseRoots(r.CAPEM().Bytes(), r.K256Raw().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if !again.Equal(r) {
		t.Error("ParseRoots(stored) has other keys")
	}
	if !bytes.Equal(again.CAPublic(), r.CAPublic()) || !bytes.Equal(again.K256Public(), r.K256Public()) {
		t.Error("ParseRoots(stored) has other public keys")
	}
	other, err := keys.NewRoots()
	if err != nil {
		t.Fatal(err)
	}
	if other.Equal(r) {
		t.Error("two NewRoots are equal")
	}
}

func TestRootsPublicForms(t *testing.T) {
	r := vectorRoots(t)
	if got, want := hex.EncodeToString(r.CAPublic()), "3059301306072a8648ce3d020106082a8648ce3d03010703420004"+vectorPKCS8[len(vectorPKCS8)-128:]; got != want {
		t.Errorf("CAPublic = %s, want %s", got, want)
	}
	if n := len(r.CAPublic()); n != keys.CAPublicSize {
		t.Errorf("CAPublic has %d bytes, want %d", n, keys.CAPublicSize)
	}
	if got, want := hex.EncodeToString(r.K256Public()), "0284bf7562262bbd6940085748f3be6afa52ae317155181ece31b66351ccffa4b0"; got != want {
		t.Errorf("K256Public = %s, want %s", got, want)
	}
	if got := r.CAPEM().Bytes(); !bytes.Equal(got, pemOf("PRIVATE KEY", unhex(t, vectorPKCS8))) {
		t.Error("CAPEM is not the 138-byte PKCS#8 form in PEM")
	}
}

func TestRootsAreNotPrinted(t *testing.T) {
	r := vectorRoots(t)
	scalar := "f57527cea4ab7ffb"
	decimal := new(big.Int).SetBytes(unhex(t, vectorPKCS8[72:136])).String()
	holder := struct{ r *keys.Roots }{r}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, v := range []any{r, *r, holder, &holder} {
			got := strings.ToLower(fmt.Sprintf(format, v))
			if strings.Contains(got, scalar) || strings.Contains(got, vectorK256[:16]) || strings.Contains(got, "private key") || strings.Contains(got, decimal) {
				t.Errorf("Sprintf(%q) = %s shows a key", format, got)
			}
		}
	}
}

func TestParseRootsRefuses(t *testing.T) {
	good := pemOf("PRIVATE KEY", unhex(t, vectorPKCS8))
	goodK256 := unhex(t, vectorK256)
	p256, err := x509.ParsePKCS8PrivateKey(unhex(t, vectorPKCS8))
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(p256.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384DER, err := x509.MarshalPKCS8PrivateKey(p384)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edDER, err := x509.MarshalPKCS8PrivateKey(ed)
	if err != nil {
		t.Fatal(err)
	}
	// Without the [1] publicKey: 67 bytes.
	noPublic := unhex(t, "304102010030"+"1306072a8648ce3d020106082a8648ce3d030107"+"0427"+"3025020101"+"0420"+vectorPKCS8[72:136])
	if _, err := x509.ParsePKCS8PrivateKey(noPublic); err != nil {
		t.Fatalf("the form without public key is not well-formed: %v", err)
	}
	otherPublic := unhex(t, vectorPKCS8)
	otherPublic[len(otherPublic)-1] ^= 1
	zero := unhex(t, vectorPKCS8[:72]+strings.Repeat("00", 32)+vectorPKCS8[136:])
	order := unhex(t, vectorPKCS8[:72]+"ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551"+vectorPKCS8[136:])
	headers := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Headers: map[string]string{"A": "b"}, Bytes: unhex(t, vectorPKCS8)})
	k256Order := unhex(t, "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141")

	tests := []struct {
		name string
		ca   []byte
		k256 []byte
		want string
	}{
		{"no CA key", nil, goodK256, `root CA key: does not begin with a PEM block "PRIVATE KEY"`},
		{"DER", unhex(t, vectorPKCS8), goodK256, "root CA key: does not begin with a PEM block"},
		{"SEC1", pemOf("EC PRIVATE KEY", sec1), goodK256, "root CA key: does not begin with a PEM block"},
		{"SEC1 under the PKCS#8 name", pemOf("PRIVATE KEY", sec1), goodK256, "root CA key: not a PKCS#8 private key"},
		{"P-384", pemOf("PRIVATE KEY", p384DER), goodK256, "root CA key: not a key on the curve P-256"},
		{"Ed25519", pemOf("PRIVATE KEY", edDER), goodK256, "root CA key: not a key on the curve P-256"},
		{"no public key inside", pemOf("PRIVATE KEY", noPublic), goodK256, "root CA key: not the PKCS#8 form that includes the matching public key"},
		{"another public key inside", pemOf("PRIVATE KEY", otherPublic), goodK256, "root CA key: not the PKCS#8 form that includes the matching public key"},
		{"zero scalar", pemOf("PRIVATE KEY", zero), goodK256, "root CA key: not a PKCS#8 private key"},
		{"scalar of the group order", pemOf("PRIVATE KEY", order), goodK256, "root CA key: not a PKCS#8 private key"},
		{"text before", append([]byte("key:\n"), good...), goodK256, "root CA key: does not begin with a PEM block"},
		{"text after", append(bytes.Clone(good), "more"...), goodK256, "root CA key: trailing data after the PEM block"},
		{"two blocks", append(bytes.Clone(good), good...), goodK256, "root CA key: trailing data after the PEM block"},
		{"headers", headers, goodK256, "root CA key: unexpected PEM headers"},
		{"trailing bytes in the DER", pemOf("PRIVATE KEY", append(unhex(t, vectorPKCS8), 0)), goodK256, "root CA key: not the PKCS#8 form"},
		{"torn PEM", good[:len(good)/2], goodK256, "root CA key: not a PEM block"},
		{"huge", bytes.Repeat(good, 10000), goodK256, "root CA key: 2410000 bytes, more than 1048576"},
		{"k256 short", good, goodK256[:31], "root secp256k1 key: 31 bytes, want 32"},
		{"k256 long", good, append(bytes.Clone(goodK256), '\n'), "root secp256k1 key: 33 bytes, want 32"},
		{"k256 zero", good, make([]byte, 32), "root secp256k1 key: not a scalar of the curve"},
		{"k256 group order", good, k256Order, "root secp256k1 key: not a scalar of the curve"},
		{"k256 above the order", good, bytes.Repeat([]byte{0xff}, 32), "root secp256k1 key: not a scalar of the curve"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := keys.ParseRoots(tt.ca, tt.k256)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("ParseRoots = %v, want %q", err, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), "f57527") || strings.Contains(err.Error(), "9fUn")) {
				t.Errorf("ParseRoots = %v shows the key", err)
			}
		})
	}
}

func TestParseKeyAcceptsWhiteSpaceAround(t *testing.T) {
	text := append([]byte("\n "), bytes.ReplaceAll(pemOf("PRIVATE KEY", unhex(t, vectorPKCS8)), []byte("\n"), []byte("\r\n"))...)
	if _, err := keys.ParseKey(append(text, "\n\n"...)); err != nil {
		t.Errorf("ParseKey with CRLF and blank lines = %v, want nil", err)
	}
}

func TestParseKeyAcceptsWhatOpenSSLWrites(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "sh", "-c",
		"openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt").Output()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.ParseKey(out); err != nil {
		t.Errorf("ParseKey = %v, want nil", err)
	}
}

func FuzzParseKey(f *testing.F) {
	good := pemOf("PRIVATE KEY", unhex(f, vectorPKCS8))
	f.Add(good)
	f.Add(good[:40])
	f.Add(append(bytes.Clone(good), good...))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := keys.ParseKey(text)
		if err != nil {
			return
		}
		out, err := keys.KeyPEM(key)
		if err != nil {
			t.Fatal(err)
		}
		again, err := keys.ParseKey(out.Bytes())
		if err != nil || !again.Equal(key) {
			t.Errorf("ParseKey(KeyPEM(key)) = %v, want the same key", err)
		}
	})
}
