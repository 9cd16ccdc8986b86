package pkcs12_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
	gopkcs12 "software.sslmate.com/src/go-pkcs12"

	"teekms/internal/pkcs12"
)

// hostile is a file that is refused, and whether its shape alone tells why.
type hostile struct {
	name  string
	file  []byte
	shape bool
	want  string
}

func hostileFiles(t testing.TB) []hostile {
	leaf, intermediate, root := chain(t, p256())
	other := issue(t, p256(), root, nil)
	good := pfx(encryptedSafe(2000, 2000, certBag(leaf)), dataSafe(shroudedBag(leaf, 2000, 2000)))
	const bomb = 1 << 31
	content := der(seq(dataSafe(certBag(leaf)), dataSafe(keyBag(leaf))))
	big63 := raw([]byte{2, 9, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	nested := func(depth int) node {
		n := keyBag(leaf)
		for range depth {
			n = bag(oidSafeContents, seq(n))
		}
		return n
	}
	const work = "its iteration count is not from 1 to 2000000"
	const notDER = "it is not a PKCS#12 file in DER"
	return []hostile{
		{"nothing", nil, true, "it is empty"},
		{"text", []byte("-----BEGIN CERTIFICATE-----"), true, notDER},
		{"zeros", make([]byte, 1000), true, notDER},
		{"too large", make([]byte, pkcs12.MaxSize+1), true, "it is larger than 262144 bytes"},
		{"cut off", good[:len(good)-1], true, notDER},
		{"half of it", good[:len(good)/2], true, notDER},
		{"something behind it", append(bytes.Clone(good), 0), true, "something follows the PKCS#12 file"},
		{"twice", append(bytes.Clone(good), good...), true, "something follows the PKCS#12 file"},
		{"a length of four gigabytes", []byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 2, 1, 3}, true, notDER},
		{"indefinite length", append([]byte{0x30, 0x80, 2, 1, 3}, make([]byte, 20)...), true, notDER},
		{"a certificate", leaf.cert.Raw, true, notDER},
		{"version 2", der(seq(integer(2))), true, "it is not of version 3"},
		{"a huge version", der(seq(big63)), true, notDER},
		{"signed instead of authenticated", der(seq(integer(3), seq(oid(oidEncryptedData), tagged(explicit0, seq())))), true, "it is protected by a public key"},
		{"enveloped parts", pfxWith(der(seq(seq(oid(oidX509), tagged(explicit0, seq()))))), true, "it is protected by a public key"},
		{"no MAC", pfxWith(content), false, "it has no MAC"},
		{"an empty MAC", pfxWith(content, seq()), true, notDER},
		{"two MACs", pfxWith(content, oldMAC(integer(1)), oldMAC(integer(1))), true, notDER},
		{"more in the MAC", pfxWith(content, seq(seq(seq(oid(oidSHA256)), octets(nil)), octets(salt), integer(1), integer(2))), true, notDER},
		{"MAC of 2^31 iterations", pfxWith(content, oldMAC(integer(bomb))), true, work},
		{"MAC of 2^63 and more iterations", pfxWith(content, oldMAC(big63)), true, work},
		{"MAC of no iterations", pfxWith(content, oldMAC(integer(0))), true, work},
		{"MAC of negative iterations", pfxWith(content, oldMAC(integer(-1))), true, work},
		{"MAC of one iteration too many", pfxWith(content, oldMAC(integer(pkcs12.MaxIterations+1))), true, work},
		{"MAC with a long salt", pfxWith(content, seq(seq(seq(oid(oidSHA256)), octets(make([]byte, 32))), octets(make([]byte, 1025)), integer(1))), true, "it has a salt of more than 1024 bytes"},
		{"PBMAC1 of 2^31 iterations", pfxWith(content, seq(seq(seq(oid(oidPBMAC1), seq(kdf(bomb), seq(oid(oidHMACSHA256)))), octets(nil)), octets(nil))), true, work},
		{"PBMAC1 without parameters", pfxWith(content, seq(seq(seq(oid(oidPBMAC1)), octets(nil)), octets(nil))), true, notDER},
		{"key of 2^31 iterations", pfx(dataSafe(certBag(leaf)), dataSafe(shroudedBag(leaf, 1, bomb))), true, work},
		{"certificates of 2^31 iterations", pfx(encryptedSafe(1, bomb, certBag(leaf)), dataSafe(keyBag(leaf))), true, work},
		{"old cipher of 2^31 iterations", pfx(dataSafe(certBag(leaf)), dataSafe(bag(oidShrouded, seq(seq(oid(oid3DES), seq(octets(salt), integer(bomb))), octets(make([]byte, 16)))))), true, work},
		{"2^31 iterations in bags within bags", pfx(dataSafe(certBag(leaf), bag(oidSafeContents, seq(shroudedBag(leaf, 1, bomb))))), true, work},
		{"2^31 iterations under the encryption", pfx(encryptedSafe(1, 1, certBag(leaf), shroudedBag(leaf, 1, bomb))), false, work},
		{"2^31 iterations in bags under the encryption", pfx(encryptedSafe(1, 1, bag(oidSafeContents, seq(shroudedBag(leaf, 1, bomb)))), dataSafe(keyBag(leaf), certBag(leaf))), false, work},
		{"many iterations that add up", pfx(dataSafe(
			shroudedBag(leaf, 1, 1_500_000), shroudedBag(leaf, 1, 1_500_000), shroudedBag(leaf, 1, 1_500_000), shroudedBag(leaf, 1, 1_500_000))), true, "add up to more than 6000000"},
		{"scrypt", pfx(dataSafe(bag(oidShrouded, seq(seq(oid(oidPBES2), seq(seq(oid(oidScrypt), seq(octets(salt), integer(1<<40), integer(8), integer(1))), seq(oid(oidAES256), octets(make([]byte, 16))))), octets(nil))))), true, "scrypt, which is not supported"},
		{"a KDF that is none", pfx(dataSafe(bag(oidShrouded, seq(seq(oid(oidPBES2), seq(seq(oid(oidX509)), seq(oid(oidAES256)))), octets(nil))))), true, "its key is derived with 1.2.840.113549.1.9.22.1, which is not supported"},
		{"a cipher that is none", pfx(dataSafe(bag(oidShrouded, seq(seq(oid(oidX509)), octets(nil))))), true, "encrypted with 1.2.840.113549.1.9.22.1, which is not supported"},
		{"Camellia", export(t, leaf, password, nil, "-keypbe", "CAMELLIA-256-CBC", "-certpbe", "CAMELLIA-256-CBC"), true, "encrypted with 1.2.392.200011.61.1.1.1.4, which is not supported"},
		{"HMAC with SHA-384", pfx(dataSafe(bag(oidShrouded, seq(seq(oid(oidPBES2), seq(seq(oid(oidPBKDF2), seq(octets(salt), integer(1), seq(oid(oidX509)))), seq(oid(oidAES256), octets(nil)))), octets(nil))))), true, "the function 1.2.840.113549.1.9.22.1, which is not supported"},
		{"a MAC of SHA-384", export(t, leaf, password, nil, "-macalg", "sha384"), false, "it uses an algorithm that is not supported"},
		{"an initialization vector too short", pfx(dataSafe(certBag(leaf)), dataSafe(bag(oidShrouded, seq(seq(oid(oidPBES2), seq(kdf(1), seq(oid(oidAES256), octets(nil)))), octets(make([]byte, 16)))))), false, "wrong password, or the file was changed"},
		{"bags that nest", pfx(dataSafe(nested(4))), true, "its bags nest too deep"},
		{"bags that nest thousands deep", pfx(dataSafe(nested(3000))), true, "its bags nest too deep"},
		{"a bag that is none", pfx(dataSafe(seq(integer(1)))), true, notDER},
		{"65 bags", pfx(dataSafe(many(certBag(leaf), 65)...)), true, "it has more than 64 bags"},
		{"17 certificates", pfx(dataSafe(many(certBag(leaf), 17)...), dataSafe(keyBag(leaf))), false, "more than 16 certificates"},
		{"three parts", pfx(dataSafe(certBag(leaf)), dataSafe(certBag(root)), dataSafe(keyBag(leaf))), true, "it does not have one or two parts"},
		{"no parts", pfx(), true, "it does not have one or two parts"},
		{"two keys", pfx(dataSafe(certBag(leaf), certBag(other)), dataSafe(keyBag(leaf), keyBag(other))), false, "it holds several keys"},
		{"no key", pfx(dataSafe(certBag(leaf), certBag(intermediate))), false, "it holds no private key"},
		{"no certificate", pfx(dataSafe(keyBag(leaf))), false, "it holds no certificate"},
		{"certificates only, by openssl", export(t, &identity{leaf.cert, nil}, password, nil, "-nokeys"), false, "it holds no private key"},
		{"without a MAC, by openssl", export(t, leaf, password, nil, "-nomac"), false, "it has no MAC"},
		{"the key of another certificate", pfx(dataSafe(certBag(leaf)), dataSafe(keyBag(other))), false, "its key is not that of a certificate in it"},
		{"a certificate that is none", pfx(dataSafe(bag(oidCertBag, seq(oid(oidX509), tagged(explicit0, octets([]byte("x"))))), keyBag(leaf))), false, "its certificate or its key cannot be read"},
		{"a key that is none", pfx(dataSafe(certBag(leaf), bag(oidKeyBag, octets([]byte("x"))))), true, "its private key cannot be read"},
		{"an RSA key without its last numbers, as large as a file", pfx(dataSafe(certBag(leaf), bag(oidKeyBag, raw(hugeRSA(100_000))))), true, "its private key is larger than one of RSA with 8192 bits"},
		{"an RSA key with a large prime", pfx(dataSafe(certBag(leaf), bag(oidKeyBag, raw(hugeRSA(7000))))), true, "its private key is larger than one of RSA with 8192 bits"},
		{"an encrypted RSA key, as large as a file", pfx(dataSafe(certBag(leaf), encryptedBag(hugeRSA(100_000)))), true, "its private key is larger than one of RSA with 8192 bits"},
		{"an encrypted RSA key with a large prime", pfx(dataSafe(certBag(leaf), encryptedBag(hugeRSA(7000)))), false, "its private key is larger than one of RSA with 8192 bits"},
		{"an RSA key with a large prime in bags under the encryption", pfx(encryptedSafe(1, 1, bag(oidSafeContents, seq(encryptedBag(hugeRSA(7000))))), dataSafe(keyBag(leaf), certBag(leaf))), false, "its private key is larger than one of RSA with 8192 bits"},
		{"an issuer with a huge RSA key", pfx(dataSafe(certBag(leaf), certBag(hugeIssuer(root))), dataSafe(keyBag(leaf))), false, "it holds a certificate with an RSA key of more than 8192 bits"},
		{"secp256k1, by openssl", secp256k1(t), false, "on an elliptic curve that is not supported"},
		{"a trust store", must(gopkcs12.Modern2023.EncodeTrustStore([]*x509.Certificate{leaf.cert}, password)), false, "it holds no private key"},
		{"a changed byte in it", flipped(good), false, "wrong password, or the file was changed"},
	}
}

// hugeRSA is a private key in PKCS#8 whose first prime has size bytes. The number
// that is missing is that prime's power of itself.
func hugeRSA(size int) []byte {
	huge := bytes.Repeat([]byte{0x7f}, size)
	number := func(v []byte) node { return tagged(cbasn1.INTEGER, raw(v)) }
	key := der(seq(integer(0), integer(15), integer(65537), integer(7), number(huge), integer(3)))
	return der(seq(integer(0), seq(oid(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}), tagged(cbasn1.NULL)), octets(key)))
}

// encryptedBag holds a private key.
func encryptedBag(pkcs8 []byte) node {
	algorithm, ciphertext := encrypted(pkcs8, 1, 1)
	return bag(oidShrouded, seq(algorithm, octets(ciphertext)))
}

// hugeIssuer is a certificate of a key of 200,000 bits.
func hugeIssuer(parent *identity) *identity {
	n := new(big.Int).SetBit(big.NewInt(1), 200_000, 1)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now, NotAfter: now.Add(time.Hour)}
	raw := must(x509.CreateCertificate(rand.Reader, template, parent.cert, &rsa.PublicKey{N: n, E: 65537}, parent.key))
	return &identity{must(x509.ParseCertificate(raw)), nil}
}

func many(n node, times int) []node {
	out := make([]node, times)
	for i := range out {
		out[i] = n
	}
	return out
}

// flipped changes the last byte of the MAC's digest, which stands 18 bytes from
// the end of what pfx writes.
func flipped(file []byte) []byte {
	file = bytes.Clone(file)
	file[len(file)-len("NOT USED")-2-1] ^= 1
	return file
}

// secp256k1 has openssl make a key that Go cannot read.
func secp256k1(t testing.TB) []byte {
	dir := t.TempDir()
	key, cert, out := filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "out.p12")
	openssl(t, key, "", "ecparam", "-name", "secp256k1", "-genkey", "-noout", "-out", key)
	openssl(t, cert, "", "req", "-x509", "-new", "-key", key, "-subj", "/CN=kms", "-out", cert)
	return openssl(t, out, password, "pkcs12", "-export", "-inkey", key, "-in", cert, "-out", out, "-passout", "env:PASS")
}

// TestHostileFilesAreRefusedAtOnce opens each with the right password. None may
// take the time that it asks for.
func TestHostileFilesAreRefusedAtOnce(t *testing.T) {
	for _, tt := range hostileFiles(t) {
		t.Run(tt.name, func(t *testing.T) {
			begin := time.Now()
			if err := pkcs12.CheckShape(tt.file); tt.shape {
				wantRefusal(t, err, tt.want)
			} else if err != nil {
				t.Errorf("CheckShape = %v, want nil: only opening tells", err)
			}
			// What opens a file by other rules is held back by the same bounds.
			if err := pkcs12.CheckWith(tt.file, secret(password)); tt.shape || strings.Contains(tt.want, "iteration count") {
				wantRefusal(t, err, tt.want)
			}
			_, _, err := pkcs12.Open(tt.file, secret(password), now)
			wantRefusal(t, err, tt.want)
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// CheckWith leaves to others what a server's certificate and key must be like.
func TestCheckWithKnowsNoRulesOfServers(t *testing.T) {
	leaf, intermediate, _ := chain(t, p256())
	for name, file := range map[string][]byte{
		"a client's certificate": export(t, issue(t, p256(), nil, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), password, nil),
		"without a MAC":          export(t, leaf, password, nil, "-nomac"),
		"with a chain":           pfx(encryptedSafe(2000, 2000, certBag(leaf), certBag(intermediate)), dataSafe(shroudedBag(leaf, 2000, 2000))),
		"certificates only":      export(t, &identity{leaf.cert, nil}, password, nil, "-nokeys"),
	} {
		if err := pkcs12.CheckWith(file, secret(password)); err != nil {
			t.Errorf("CheckWith(%s) = %v, want nil", name, err)
		}
		if err := pkcs12.CheckWith(file, secret("another")); !errors.Is(err, pkcs12.ErrPassword) {
			t.Errorf("CheckWith(%s) with another password = %v, want %v", name, err, pkcs12.ErrPassword)
		}
		wantRefusal(t, pkcs12.CheckWith(file, secret("\xff")), "the password has a character that passwords of such files cannot have")
	}
}

func TestFilesWithoutMACAreRefusedWithoutPasswordToo(t *testing.T) {
	leaf, _, _ := chain(t, p256())
	for name, file := range map[string][]byte{
		"openssl":  export(t, leaf, "", nil, "-nomac"),
		"in clear": must(gopkcs12.Passwordless.Encode(leaf.key, leaf.cert, nil, "")),
	} {
		t.Run(name, func(t *testing.T) {
			if err := pkcs12.CheckShape(file); err != nil {
				t.Error(err)
			}
			_, _, err := pkcs12.Open(file, secret(""), now)
			wantRefusal(t, err, "it has no MAC, so nothing tells whether it was changed")
		})
	}
}

func TestPasswordsThatNoFileHas(t *testing.T) {
	leaf, _, _ := chain(t, p256())
	file := export(t, leaf, password, nil)
	for name, pass := range map[string]string{"beyond the plane": "key 🔑", "not UTF-8": "\xff\xfe"} {
		t.Run(name, func(t *testing.T) {
			_, _, err := pkcs12.Open(file, secret(pass), now)
			wantRefusal(t, err, "the password has a character that passwords of such files cannot have")
		})
	}
}

// FuzzOpen has arbitrary bytes opened: nothing may panic, take long, or be
// taken whose shape was refused.
func FuzzOpen(f *testing.F) {
	for _, h := range hostileFiles(f) {
		if len(h.file) < 8<<10 {
			f.Add(h.file)
		}
	}
	leaf, intermediate, _ := chain(f, p256())
	f.Add(pfx(encryptedSafe(10, 10, certBag(leaf), certBag(intermediate)), dataSafe(shroudedBag(leaf, 10, 10))))
	f.Add(export(f, leaf, password, nil, "-iter", "2"))
	f.Add(export(f, leaf, password, nil, "-legacy", "-noiter"))
	f.Fuzz(func(t *testing.T, file []byte) {
		if pkcs12.Work(file) > 10_000 {
			return // allowed, and slow
		}
		shape := pkcs12.CheckShape(file)
		_, _, err := pkcs12.Open(file, secret(password), now)
		if shape != nil && err == nil {
			t.Errorf("opened, although CheckShape = %v", shape)
		}
	})
}

// BenchmarkIterations is what a file costs that asks for as much as it may.
func BenchmarkIterations(b *testing.B) {
	leaf, _, _ := chain(b, p256())
	file := export(b, leaf, password, nil, "-iter", "2000000")
	for b.Loop() {
		if _, _, err := pkcs12.Open(file, secret("wrong"), now); err == nil {
			b.Fatal("opened with a wrong password")
		}
	}
}
