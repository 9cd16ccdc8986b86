package identity_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"golang.org/x/crypto/ssh"

	"teekms/cmd/kmsctl/internal/identity"
	"teekms/internal/keys"
)

func write(t *testing.T, name string, text []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// person answers with a passphrase and counts the questions.
type person struct {
	answer string
	asked  []string
}

func (p *person) reader() identity.Reader {
	return identity.Reader{
		Ask: func(_ context.Context, what string) (keys.Secret, error) {
			p.asked = append(p.asked, what)
			if p.answer == "" {
				return keys.Secret{}, errors.New("nobody is there")
			}
			return keys.NewSecret([]byte(p.answer)), nil
		},
		Tell: func(string) {},
	}
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// locked is an identity file under a passphrase.
func locked(t *testing.T, text, passphrase string, armored bool) []byte {
	t.Helper()
	to := must[*age.ScryptRecipient](t)(age.NewScryptRecipient(passphrase))
	to.SetWorkFactor(10)
	var out bytes.Buffer
	var in io.WriteCloser
	end := func() error { return nil }
	if armored {
		a := armor.NewWriter(&out)
		in, end = must[io.WriteCloser](t)(age.Encrypt(a, to)), a.Close
	} else {
		in = must[io.WriteCloser](t)(age.Encrypt(&out, to))
	}
	if _, err := io.WriteString(in, text); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(in.Close(), end()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestIdentitiesOpen(t *testing.T) {
	classic := must[*age.X25519Identity](t)(age.GenerateX25519Identity())
	quantum := must[*age.HybridIdentity](t)(age.GenerateHybridIdentity())
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sshPublic := must[ssh.PublicKey](t)(ssh.NewPublicKey(public))
	toSSH := must[*agessh.Ed25519Recipient](t)(agessh.NewEd25519Recipient(sshPublic))
	sshKey := pem.EncodeToMemory(must[*pem.Block](t)(ssh.MarshalPrivateKey(private, "")))
	lockedKey := pem.EncodeToMemory(must[*pem.Block](t)(ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte("open sesame"))))
	big := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	toRSA := must[*agessh.RSARecipient](t)(agessh.NewRSARecipient(must[ssh.PublicKey](t)(ssh.NewPublicKey(&big.PublicKey))))
	rsaKey := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(big)})
	comment := "# created: today\n\n"
	tests := []struct {
		name string
		to   age.Recipient
		file []byte
		// asked is how often a passphrase is asked for.
		asked int
	}{
		{"X25519", classic.Recipient(), []byte(comment + classic.String() + "\n"), 0},
		{"post-quantum", quantum.Recipient(), []byte(quantum.String()), 0},
		{"the second of a file", quantum.Recipient(), []byte(classic.String() + "\r\n" + quantum.String()), 0},
		{"under a passphrase", classic.Recipient(), locked(t, comment+classic.String(), "open sesame", false), 1},
		{"armored", classic.Recipient(), append([]byte("\n"), locked(t, classic.String(), "open sesame", true)...), 1},
		{"SSH, Ed25519", toSSH, sshKey, 0},
		{"SSH, under a passphrase", toSSH, lockedKey, 1},
		{"SSH, RSA", toRSA, rsaKey, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var sealed bytes.Buffer
			in := must[io.WriteCloser](t)(age.Encrypt(&sealed, tt.to))
			if err := in.Close(); err != nil {
				t.Fatal(err)
			}
			p := &person{answer: "open sesame"}
			ids, err := p.reader().Read(t.Context(), write(t, "id", tt.file))
			if err != nil || len(p.asked) > 0 {
				t.Fatalf("Read() = %v, and it asked %q, want identities and no question yet", err, p.asked)
			}
			for range 4 { // as many as there are files
				if _, err := age.Decrypt(bytes.NewReader(sealed.Bytes()), ids...); err != nil {
					t.Fatalf("Decrypt() = %v", err)
				}
			}
			if len(p.asked) != tt.asked {
				t.Errorf("it asked %q, want %d questions", p.asked, tt.asked)
			}
		})
	}
}

func TestAPassphraseIsAskedOnce(t *testing.T) {
	id := must[*age.X25519Identity](t)(age.GenerateX25519Identity())
	var sealed bytes.Buffer
	if err := must[io.WriteCloser](t)(age.Encrypt(&sealed, id.Recipient())).Close(); err != nil {
		t.Fatal(err)
	}
	for answer, want := range map[string]string{"wrong": "opens with another passphrase", "": "nobody is there"} {
		p := &person{answer: answer}
		ids := must[[]age.Identity](t)(p.reader().Read(t.Context(), write(t, "id", locked(t, id.String(), "open sesame", false))))
		for range 4 {
			if _, err := age.Decrypt(bytes.NewReader(sealed.Bytes()), ids...); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Decrypt() with the answer %q = %v, want %q", answer, err, want)
			}
		}
		if len(p.asked) != 1 || !strings.HasPrefix(p.asked[0], "Passphrase of /") {
			t.Errorf("it asked %q, want one question that names the file", p.asked)
		}
	}
}

func TestFilesThatAreNoIdentities(t *testing.T) {
	id := must[*age.X25519Identity](t)(age.GenerateX25519Identity())
	secret := id.String()
	damaged := secret[:len(secret)-1] + "Q"
	if strings.HasSuffix(secret, "Q") {
		damaged = secret[:len(secret)-1] + "P"
	}
	other := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	pkcs8 := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must[[]byte](t)(x509.MarshalPKCS8PrivateKey(other))})
	legacy := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	//nolint:staticcheck // what old files are encrypted with
	block := must[*pem.Block](t)(x509.EncryptPEMBlock(rand.Reader, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(legacy), []byte("p"), x509.PEMCipherAES128))
	tests := []struct {
		name string
		file string
		want string
	}{
		{"nothing", "", "no identity in it"},
		{"comments", "# AGE-SECRET-KEY\n", "no identity in it"},
		{"a recipient", id.Recipient().String(), "line 1: a recipient, which only encrypts"},
		{"a damaged key", "\n" + damaged, "line 2: a damaged secret key of age"},
		{"a plugin's without a name", "AGE-PLUGIN-1", "line 1: a damaged identity of an age plugin"},
		{"a passphrase", "correct horse battery staple", "line 1: not an age identity"},
		{"noise", "\xff\xfe", "neither an age identity file nor an SSH private key"},
		{"a key of another kind", string(pkcs8), "not an SSH private key that age can use"},
		{"an old SSH key without its public key", string(pem.EncodeToMemory(block)), "its public key is needed beside it"},
		{"a large file", strings.Repeat("#", 1<<20+1), "has more than 1048576 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := write(t, "id", []byte(tt.file))
			ids, err := (&person{}).reader().Read(t.Context(), path)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) || ids != nil {
				t.Errorf("Read() = %v, %v, want an error with %q that names the file", ids, err, tt.want)
			}
			if err != nil && len(tt.file) > 20 && strings.Contains(err.Error(), tt.file[len(tt.file)-20:]) {
				t.Errorf("Read() = %v, which holds some of the file", err)
			}
		})
	}
	if _, err := (&person{}).reader().Read(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Read() of no file = %v, want %v", err, os.ErrNotExist)
	}
}
