package pkcs12_test

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// now is when the certificates of these tests are looked at.
var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const password = "correct horse"

// identity is a certificate and its key.
type identity struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// rsaKey is made once: it is the slow kind.
var rsaKey = sync.OnceValue(func() crypto.Signer { return must(rsa.GenerateKey(rand.Reader, 2048)) })

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func p256() crypto.Signer { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

func ed() crypto.Signer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return must(key, err)
}

// issue makes a certificate for a server; a nil parent signs itself.
func issue(t testing.TB, key crypto.Signer, parent *identity, change func(*x509.Certificate)) *identity {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "kms.example.com"},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.Add(90 * 24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:              []string{"kms.example.com"},
		BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	issuer, signer := template, key
	if parent != nil {
		issuer, signer = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return &identity{must(x509.ParseCertificate(der)), key}
}

// ca makes a template one of a certificate authority.
func ca(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.Subject.CommonName, c.IsCA, c.DNSNames, c.ExtKeyUsage = name, true, nil, nil
		c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	}
}

// chain is a leaf, what issued it, and the root.
func chain(t testing.TB, key crypto.Signer) (leaf, intermediate, root *identity) {
	t.Helper()
	root = issue(t, p256(), nil, ca("Root"))
	intermediate = issue(t, p256(), root, ca("Intermediate"))
	return issue(t, key, intermediate, nil), intermediate, root
}

// export has openssl write a PKCS#12 file, as operators do.
func export(t testing.TB, id *identity, pass string, others []*identity, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, blocks ...*pem.Block) string {
		var text []byte
		for _, b := range blocks {
			text = append(text, pem.EncodeToMemory(b)...)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	out := filepath.Join(dir, "out.p12")
	full := append([]string{"pkcs12", "-export", "-out", out, "-passout", "env:PASS"}, args...)
	if id.key != nil {
		full = append(full, "-inkey", write("key.pem", &pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(id.key))}))
	}
	full = append(full, "-in", write("cert.pem", &pem.Block{Type: "CERTIFICATE", Bytes: id.cert.Raw}))
	if len(others) > 0 {
		var blocks []*pem.Block
		for _, o := range others {
			blocks = append(blocks, &pem.Block{Type: "CERTIFICATE", Bytes: o.cert.Raw})
		}
		full = append(full, "-certfile", write("others.pem", blocks...))
	}
	return openssl(t, out, pass, full...)
}

// openssl runs one command and returns the file that it wrote.
func openssl(t testing.TB, out, pass string, args ...string) []byte {
	t.Helper()
	command := exec.CommandContext(t.Context(), "openssl", args...)
	command.Env = append(os.Environ(), "PASS="+pass)
	if message, err := command.CombinedOutput(); err != nil {
		t.Fatalf("openssl %v: %v\n%s", args, err, message)
	}
	return must(os.ReadFile(out))
}

// Parts of hand-made files.

var (
	oidData          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidEncryptedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 6}
	oidKeyBag        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 1}
	oidShrouded      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 2}
	oidCertBag       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 3}
	oidSafeContents  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 10, 1, 6}
	oidX509          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 22, 1}
	oidPBES2         = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidPBMAC1        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 14}
	oidScrypt        = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 4, 11}
	oidHMACSHA256    = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}
	oidAES256        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
	oidSHA1          = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	oidHMACSHA1      = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 7}
	oidHMACSHA512    = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 11}
	oidSHA256        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oid3DES          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 12, 1, 3}

	explicit0 = cbasn1.Tag(0).ContextSpecific().Constructed()
	implicit0 = cbasn1.Tag(0).ContextSpecific()
)

// node is something that is written as DER.
type node func(*cryptobyte.Builder)

func tagged(tag cbasn1.Tag, children ...node) node {
	return func(b *cryptobyte.Builder) {
		b.AddASN1(tag, func(b *cryptobyte.Builder) {
			for _, c := range children {
				c(b)
			}
		})
	}
}

func seq(children ...node) node { return tagged(cbasn1.SEQUENCE, children...) }

func oid(id asn1.ObjectIdentifier) node {
	return func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(id) }
}

func integer(n int64) node { return func(b *cryptobyte.Builder) { b.AddASN1Int64(n) } }

func octets(v []byte) node { return func(b *cryptobyte.Builder) { b.AddASN1OctetString(v) } }

func raw(v []byte) node { return func(b *cryptobyte.Builder) { b.AddBytes(v) } }

func der(n node) []byte {
	var b cryptobyte.Builder
	n(&b)
	return b.BytesOrPanic()
}

var salt = []byte("12345678")

func kdf(iterations int64) node { return kdfBy(iterations, seq(oid(oidHMACSHA256))) }

// kdfBy ends with the function, or with nothing, which stands for SHA-1.
func kdfBy(iterations int64, prf ...node) node {
	return seq(oid(oidPBKDF2), seq(append([]node{octets(salt), integer(iterations)}, prf...)...))
}

// encrypted writes what stands for plain under a password: algorithm and
// ciphertext, the one it claims to be made with, which need not be true.
func encrypted(plain []byte, iterations, claimed int64) (algorithm node, ciphertext []byte) {
	iv := make([]byte, 16)
	key := must(pbkdf2.Key(sha256.New, password, salt, int(iterations), 32))
	ciphertext = cbc(must(aes.NewCipher(key)), iv, plain)
	return seq(oid(oidPBES2), seq(kdf(claimed), seq(oid(oidAES256), octets(iv)))), ciphertext
}

// cbc pads and encrypts.
func cbc(block cipher.Block, iv, plain []byte) []byte {
	padding := block.BlockSize() - len(plain)%block.BlockSize()
	for range padding {
		plain = append(plain, byte(padding))
	}
	ciphertext := make([]byte, len(plain))
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(ciphertext, plain)
	return ciphertext
}

func bag(id asn1.ObjectIdentifier, value node) node { return seq(oid(id), tagged(explicit0, value)) }

func certBag(id *identity) node {
	return bag(oidCertBag, seq(oid(oidX509), tagged(explicit0, octets(id.cert.Raw))))
}

func keyBag(id *identity) node {
	return bag(oidKeyBag, raw(must(x509.MarshalPKCS8PrivateKey(id.key))))
}

func shroudedBag(id *identity, iterations, claimed int64) node {
	algorithm, ciphertext := encrypted(must(x509.MarshalPKCS8PrivateKey(id.key)), iterations, claimed)
	return bag(oidShrouded, seq(algorithm, octets(ciphertext)))
}

// dataSafe and encryptedSafe are the two kinds of parts of a file.
func dataSafe(bags ...node) node {
	return seq(oid(oidData), tagged(explicit0, octets(der(seq(bags...)))))
}

func encryptedSafe(iterations, claimed int64, bags ...node) node {
	return safeOf(encrypted(der(seq(bags...)), iterations, claimed))
}

func safeOf(algorithm node, ciphertext []byte) node {
	return seq(oid(oidEncryptedData), tagged(explicit0,
		seq(integer(0), seq(oid(oidData), algorithm, tagged(implicit0, raw(ciphertext))))))
}

// pfx is a file with a MAC by PBMAC1 over its parts.
func pfx(safes ...node) []byte {
	content := der(seq(safes...))
	key := must(pbkdf2.Key(sha256.New, password, salt, 1000, 32))
	mac := hmac.New(sha256.New, key)
	mac.Write(content)
	params := seq(seq(oid(oidPBKDF2), seq(octets(salt), integer(1000), integer(32), seq(oid(oidHMACSHA256)))), seq(oid(oidHMACSHA256)))
	return pfxWith(content, seq(seq(seq(oid(oidPBMAC1), params), octets(mac.Sum(nil))), octets([]byte("NOT USED"))))
}

func pfxWith(content []byte, mac ...node) []byte {
	return der(seq(append([]node{integer(3), seq(oid(oidData), tagged(explicit0, octets(content)))}, mac...)...))
}

// oldMAC is the MAC of RFC 7292 with a digest that is not right.
func oldMAC(iterations node) node {
	return seq(seq(seq(oid(oidSHA256)), octets(make([]byte, 32))), octets(salt), iterations)
}
