package pkcs12_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/des"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"hash"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	gopkcs12 "software.sslmate.com/src/go-pkcs12"

	"teekms/internal/keys"
	"teekms/internal/pkcs12"
)

func secret(s string) keys.Secret { return keys.NewSecret([]byte(s)) }

// wantRefusal checks that an error is one of this package with these words.
func wantRefusal(t *testing.T, err error, want string) {
	t.Helper()
	var e *pkcs12.Error
	if !errors.As(err, &e) || !strings.HasPrefix(err.Error(), "PKCS#12: ") || !strings.Contains(e.Reason, want) {
		t.Errorf("error = %v, want PKCS#12: %s", err, want)
	}
}

// handshake serves the certificate and connects to it by the root alone.
func handshake(t *testing.T, cert tls.Certificate, root *x509.Certificate) error {
	t.Helper()
	left, right := net.Pipe()
	server := tls.Server(left, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	served := make(chan error, 1)
	go func() { served <- server.HandshakeContext(context.WithoutCancel(t.Context())) }()
	pool := x509.NewCertPool()
	pool.AddCert(root)
	client := tls.Client(right, &tls.Config{RootCAs: pool, ServerName: "kms.example.com", Time: func() time.Time { return now }, MinVersion: tls.VersionTLS12})
	err := client.HandshakeContext(t.Context())
	right.Close()
	<-served
	return err
}

// TestFilesOfOpenSSLServe opens what openssl writes, in all the ways in which
// operators have it write, and has a client connect that knows the root only.
func TestFilesOfOpenSSLServe(t *testing.T) {
	tests := []struct {
		name     string
		key      func() crypto.Signer
		password string
		args     []string
	}{
		{"RSA, as it is by default", rsaKey, password, nil},
		{"P-256", p256, password, nil},
		{"P-384", func() crypto.Signer { return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) }, password, nil},
		{"Ed25519", ed, password, nil},
		{"the old defaults, RC2-40 and 3DES", p256, password, []string{"-legacy"}},
		{"RC2-128", p256, password, []string{"-legacy", "-keypbe", "PBE-SHA1-RC2-128", "-certpbe", "PBE-SHA1-RC2-128"}},
		{"3DES", p256, password, []string{"-legacy", "-keypbe", "PBE-SHA1-3DES", "-certpbe", "PBE-SHA1-3DES"}},
		{"AES-128", p256, password, []string{"-keypbe", "AES-128-CBC", "-certpbe", "AES-128-CBC"}},
		{"AES-192", p256, password, []string{"-keypbe", "AES-192-CBC", "-certpbe", "AES-192-CBC"}},
		{"a MAC of SHA-1", p256, password, []string{"-macalg", "sha1"}},
		{"a MAC of SHA-512", p256, password, []string{"-macalg", "sha512"}},
		{"no password", p256, "", nil},
		{"no password, the old way", p256, "", []string{"-legacy"}},
		{"a password beyond ASCII", p256, "pässwörd – 密码", nil},
		{"a password beyond ASCII, the old way", p256, "pässwörd – 密码", []string{"-legacy"}},
		{"a password of special characters", p256, "a\"b'c\\d e&f?g#h%i/j:k@l;m=n,o<p>{}[]|~`!$^*()+", nil},
		{"bags in clear", p256, password, []string{"-keypbe", "NONE", "-certpbe", "NONE"}},
		{"certificates in clear", p256, password, []string{"-certpbe", "NONE"}},
		{"a friendly name", p256, password, []string{"-name", "KMS – key 1", "-caname", "a CA"}},
		{"one iteration", p256, password, []string{"-noiter"}},
		{"200,000 iterations", p256, password, []string{"-iter", "200000"}},
		{"a CSP name and key identifiers", p256, password, []string{"-CSP", "x", "-keysig"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leaf, intermediate, root := chain(t, tt.key())
			file := export(t, leaf, tt.password, []*identity{root, intermediate}, tt.args...)
			if err := pkcs12.CheckShape(file); err != nil {
				t.Fatal(err)
			}
			cert, warnings, err := pkcs12.Open(file, secret(tt.password), now)
			if err != nil {
				t.Fatal(err)
			}
			if want := [][]byte{leaf.cert.Raw, intermediate.cert.Raw}; !slices.EqualFunc(cert.Certificate, want, bytes.Equal) {
				t.Errorf("served chain has %d certificates, want leaf and intermediate", len(cert.Certificate))
			}
			if ed := strings.Contains(tt.name, "Ed25519"); len(warnings) > 0 != ed {
				t.Errorf("warnings = %q", warnings)
			}
			if err := handshake(t, cert, root.cert); err != nil {
				t.Error(err)
			}
			_, _, err = pkcs12.Open(file, secret("wrong"), now)
			wantRefusal(t, err, "wrong password, or the file was changed")
			if !errors.Is(err, pkcs12.ErrPassword) {
				t.Errorf("error of a wrong password = %v, want ErrPassword", err)
			}
		})
	}
}

// TestFilesOfTheLibraryServe opens what go-pkcs12 writes, PBMAC1 among it.
func TestFilesOfTheLibraryServe(t *testing.T) {
	for name, encoder := range map[string]*gopkcs12.Encoder{
		"RC2": gopkcs12.LegacyRC2, "3DES": gopkcs12.LegacyDES, "2023": gopkcs12.Modern2023, "2026, with PBMAC1": gopkcs12.Modern2026,
	} {
		t.Run(name, func(t *testing.T) {
			leaf, intermediate, root := chain(t, p256())
			file := must(encoder.Encode(leaf.key, leaf.cert, []*x509.Certificate{intermediate.cert, root.cert}, password))
			cert, _, err := pkcs12.Open(file, secret(password), now)
			if err != nil {
				t.Fatal(err)
			}
			if err := handshake(t, cert, root.cert); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestChainsArePutInOrder(t *testing.T) {
	leaf, intermediate, root := chain(t, p256())
	second := issue(t, p256(), intermediate, ca("Second"))
	deep := issue(t, p256(), second, nil)
	stranger := issue(t, p256(), nil, ca("Stranger"))
	alone := issue(t, p256(), nil, nil)
	tests := []struct {
		name    string
		id      *identity
		others  []*identity
		want    []*identity
		warning string
	}{
		{"leaf alone", leaf, nil, []*identity{leaf}, ""},
		{"in order", leaf, []*identity{intermediate, root}, []*identity{leaf, intermediate}, ""},
		{"backwards", deep, []*identity{root, intermediate, second}, []*identity{deep, second, intermediate}, ""},
		{"without the root", deep, []*identity{intermediate, second}, []*identity{deep, second, intermediate}, ""},
		{"a link missing", deep, []*identity{root, second}, []*identity{deep, second}, ""},
		{"twice the same", leaf, []*identity{intermediate, intermediate}, []*identity{leaf, intermediate}, ""},
		{"a stranger in between", leaf, []*identity{stranger, intermediate}, []*identity{leaf, intermediate}, ""},
		{"a stranger alone", leaf, []*identity{stranger}, []*identity{leaf}, "but not that of the issuer"},
		{"self-signed", alone, nil, []*identity{alone}, "is self-signed"},
		{"self-signed, with a stranger", alone, []*identity{stranger}, []*identity{alone}, "is self-signed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bags := []node{}
			for _, o := range tt.others {
				bags = append(bags, certBag(o))
			}
			// The certificate of the key comes last, where most tools write it first.
			bags = append(bags, certBag(tt.id))
			cert, warnings, err := pkcs12.Open(pfx(dataSafe(bags...), dataSafe(keyBag(tt.id))), secret(password), now)
			if err != nil {
				t.Fatal(err)
			}
			var want [][]byte
			for _, id := range tt.want {
				want = append(want, id.cert.Raw)
			}
			if !slices.EqualFunc(cert.Certificate, want, bytes.Equal) {
				t.Errorf("chain of %d certificates, want %d, in order", len(cert.Certificate), len(want))
			}
			if got := strings.Join(warnings, " "); tt.warning == "" != (got == "") || !strings.Contains(got, tt.warning) {
				t.Errorf("warnings = %q, want %q", got, tt.warning)
			}
			if !cert.Leaf.Equal(tt.id.cert) {
				t.Error("the leaf is another")
			}
		})
	}
}

func TestLeavesAreChecked(t *testing.T) {
	root := issue(t, p256(), nil, ca("Root"))
	tests := []struct {
		name   string
		key    func() crypto.Signer
		parent *identity
		change func(*x509.Certificate)
		want   string // refusal
		warn   []string
	}{
		{"expired", p256, root, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }, "its certificate was valid until 2026-03-01", nil},
		{"not yet valid", p256, root, func(c *x509.Certificate) { c.NotBefore = now.Add(48 * time.Hour) }, "its certificate is not valid before 2026-03-03", nil},
		{"for clients only", p256, root, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, "is not meant for servers (no serverAuth", nil},
		{"for any use", p256, root, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, "", nil},
		{"without extended key usage", p256, root, func(c *x509.Certificate) { c.ExtKeyUsage = nil }, "", nil},
		{"for encryption only", p256, root, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, "no digitalSignature", nil},
		{"without key usage", p256, root, func(c *x509.Certificate) { c.KeyUsage = 0 }, "", nil},
		{"a CA under a CA", p256, root, ca("Other"), "that of a certificate authority", nil},
		{"a CA of its own", p256, nil, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }, "", []string{"The certificate in the PKCS#12 file is self-signed."}},
		{"self-signed", p256, nil, nil, "", []string{"The certificate in the PKCS#12 file is self-signed."}},
		{"29 days left", p256, root, func(c *x509.Certificate) { c.NotAfter = now.Add(29 * 24 * time.Hour) }, "", []string{"The certificate in the PKCS#12 file expires on 2026-03-30."}},
		{"without names", p256, root, func(c *x509.Certificate) { c.DNSNames = nil }, "", []string{"The certificate in the PKCS#12 file has no subject alternative name; most clients refuse that."}},
		{"Ed25519", ed, root, nil, "", []string{"The certificate in the PKCS#12 file has an Ed25519 key, which browsers refuse."}},
		{"RSA of 1024 bits", func() crypto.Signer { return weakRSA(t) }, root, nil, "its RSA key has 1024 bits, want 2048 to 8192", nil},
		{"P-224", func() crypto.Signer { return must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)) }, root, nil, "on the elliptic curve P-224, want P-256 or P-384", nil},
		{"P-521", func() crypto.Signer { return must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)) }, root, nil, "on the elliptic curve P-521, want P-256 or P-384", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id := issue(t, tt.key(), tt.parent, tt.change)
			cert, warnings, err := pkcs12.Open(pfx(dataSafe(certBag(id)), dataSafe(keyBag(id))), secret(password), now)
			if tt.want != "" {
				wantRefusal(t, err, tt.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.warn, warnings); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
			if len(cert.Certificate) != 1 || cert.PrivateKey == nil {
				t.Error("want one certificate and its key")
			}
		})
	}
}

// weakRSA makes a key that Go makes for nobody without being asked twice.
func weakRSA(t *testing.T) crypto.Signer {
	t.Setenv("GODEBUG", "rsa1024min=0")
	return must(rsa.GenerateKey(rand.Reader, 1024))
}

// TestFilesOfKeytool opens what Java's tool wrote, once: testdata/README.md.
func TestFilesOfKeytool(t *testing.T) {
	open := func(name string) (tls.Certificate, error) {
		cert, warnings, err := pkcs12.Open(must(os.ReadFile("testdata/keytool-"+name+".p12")), secret("changeit"), now)
		if err == nil && !slices.Contains(warnings, "The certificate in the PKCS#12 file is self-signed.") {
			t.Errorf("%s: warnings = %q", name, warnings)
		}
		return cert, err
	}
	for _, name := range []string{"rsa", "p256", "ed25519", "legacy"} {
		cert, err := open(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := handshake(t, cert, cert.Leaf); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := open("two-keys")
	wantRefusal(t, err, "it holds several keys: export the one of the server")
}

// TestFunctionsOfPBKDF2 opens files whose encrypted part names each of them, or
// none.
func TestFunctionsOfPBKDF2(t *testing.T) {
	leaf, _, _ := chain(t, p256())
	for name, tt := range map[string]struct {
		hash func() hash.Hash
		prf  []node
	}{
		"none, which is SHA-1": {sha1.New, nil},
		"SHA-1":                {sha1.New, []node{seq(oid(oidHMACSHA1))}},
		"SHA-256":              {sha256.New, []node{seq(oid(oidHMACSHA256))}},
		"SHA-512":              {sha512.New, []node{seq(oid(oidHMACSHA512))}},
		"with the key's size":  {sha256.New, []node{integer(32), seq(oid(oidHMACSHA256))}},
	} {
		t.Run(name, func(t *testing.T) {
			iv := make([]byte, 16)
			key := must(pbkdf2.Key(tt.hash, password, salt, 10, 32))
			algorithm := seq(oid(oidPBES2), seq(kdfBy(10, tt.prf...), seq(oid(oidAES256), octets(iv))))
			sealed := cbc(must(aes.NewCipher(key)), iv, der(seq(certBag(leaf), keyBag(leaf))))
			cert, _, err := pkcs12.Open(pfx(safeOf(algorithm, sealed)), secret(password), now)
			if err != nil {
				t.Fatal(err)
			}
			if got := len(cert.Certificate); got != 1 {
				t.Errorf("%d certificates, want the leaf", got)
			}
		})
	}
}

// TestNoPasswordAsNoBytes opens a file of a tool that takes no password for no
// bytes, where others take it for the zero that ends it.
func TestNoPasswordAsNoBytes(t *testing.T) {
	leaf, _, _ := chain(t, p256())
	derive := func(purpose byte, size int) []byte { return pkcs12.LegacyKey(salt, nil, 10, purpose, size) }
	algorithm := seq(oid(oid3DES), seq(octets(salt), integer(10)))
	sealed := cbc(must(des.NewTripleDESCipher(derive(1, 24))), derive(2, 8), der(seq(certBag(leaf), keyBag(leaf))))
	content := der(seq(safeOf(algorithm, sealed)))
	mac := hmac.New(sha1.New, derive(3, 20))
	mac.Write(content)
	file := pfxWith(content, seq(seq(seq(oid(oidSHA1)), octets(mac.Sum(nil))), octets(salt), integer(10)))
	if _, _, err := pkcs12.Open(file, secret(""), now); err != nil {
		t.Error(err)
	}
	_, _, err := pkcs12.Open(file, secret("x"), now)
	wantRefusal(t, err, "wrong password, or the file was changed")
}

// TestAChangedBitAnywhereIsSeen changes every byte of a file in two ways. Only
// what PBMAC1 does not use may change.
func TestAChangedBitAnywhereIsSeen(t *testing.T) {
	leaf, _, _ := chain(t, p256())
	file := pfx(encryptedSafe(1, 1, certBag(leaf)), dataSafe(shroudedBag(leaf, 1, 1)))
	if _, _, err := pkcs12.Open(file, secret(password), now); err != nil {
		t.Fatal(err)
	}
	for i := range len(file) - len("NOT USED") {
		for _, bit := range []byte{1, 0x80} {
			changed := bytes.Clone(file)
			changed[i] ^= bit
			_, _, err := pkcs12.Open(changed, secret(password), now)
			if _, ok := errors.AsType[*pkcs12.Error](err); !ok {
				t.Errorf("byte %d of %d changed by %#x: Open = %v, want a refusal", i, len(file), bit, err)
			}
		}
		_, _, err := pkcs12.Open(file[:i], secret(password), now)
		if _, ok := errors.AsType[*pkcs12.Error](err); !ok {
			t.Errorf("cut off at %d: Open = %v, want a refusal", i, err)
		}
	}
}
