package seal_test

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"testing"

	"filippo.io/age"
	"golang.org/x/crypto/chacha20poly1305"

	"teekms/internal/keys"
	"teekms/internal/keys/seal"
)

// byTheBook wraps the file key in the stanza of a TPM as docs/seal.md#format
// says, from nothing of this package.
type byTheBook struct {
	key  string
	args []string
	info string
	more string // after the file key
}

func (r byTheBook) Wrap(fileKey []byte) ([]*age.Stanza, error) {
	salt := bytes.Repeat([]byte{7}, 16)
	k, err := hkdf.Key(sha256.New, []byte(r.key), salt, r.info, 32)
	if err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.New(k)
	if err != nil {
		return nil, err
	}
	args := append([]string{"v1"}, r.args...)
	return []*age.Stanza{{
		Type: "teekms-tpm",
		Args: append(args, base64.RawStdEncoding.EncodeToString(salt)),
		Body: aead.Seal(nil, make([]byte, 12), append(bytes.Clone(fileKey), r.more...), nil),
	}}, nil
}

func TestTheFormatIsWhatTheDocumentSays(t *testing.T) {
	same := fixed{strings.Repeat("k", 32), []string{"a", "b"}}
	set := newSet(t, seal.New(seal.KindTPM, same))
	const misfit = "cannot open rpc.key: tpm: the key does not fit: the file was changed, or is damaged"
	tests := []struct {
		name string
		by   byTheBook
		want string
	}{
		{"by the book", byTheBook{key: same.key, args: same.args, info: "teekms/v1/seal/tpm"}, ""},
		{"another label", byTheBook{key: same.key, args: same.args, info: "teekms/v1/seal/guest-agent"}, misfit},
		{"another key", byTheBook{key: strings.Repeat("l", 32), args: same.args, info: "teekms/v1/seal/tpm"}, misfit},
		{"a longer file key", byTheBook{key: same.key, args: same.args, info: "teekms/v1/seal/tpm", more: "more"}, misfit},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var buf bytes.Buffer
			w, err := age.Encrypt(&buf, ourFile("rpc.key"), tt.by)
			if err != nil {
				t.Fatal(err)
			}
			w.Write([]byte("the key of the listener"))
			w.Close()
			files := map[string][]byte{"rpc.key": buf.Bytes()}
			if tt.want != "" {
				wantRefusal(t, set, files, tt.want)
				return
			}
			got, err := set.Open(t.Context(), files)
			if err != nil || !got["rpc.key"].Equal(plain()["rpc.key"]) {
				t.Errorf("Open() = %v, want what was written by the book", err)
			}
		})
	}
}

// meddling changes the files while the key is looked for.
type meddling struct {
	fixed
	meddle func()
}

func (m meddling) Find(ctx context.Context, args []string) (keys.Secret, error) {
	m.meddle()
	return m.fixed.Find(ctx, args)
}

// TestFilesThatChangeWhileTheyAreOpenedAreRefused has one replaced by its
// namesake of another sealing, which the same key opens, after the headers were
// compared.
func TestFilesThatChangeWhileTheyAreOpenedAreRefused(t *testing.T) {
	same := fixed{strings.Repeat("k", 32), []string{"a"}}
	set := newSet(t, seal.New(seal.KindTPM, same))
	files, older := sealed(t, set), sealed(t, set)
	if len(files["rpc.key"]) != len(older["rpc.key"]) {
		t.Fatalf("two sealings of a file have %d and %d bytes, want the same", len(files["rpc.key"]), len(older["rpc.key"]))
	}
	set = newSet(t, seal.New(seal.KindTPM, meddling{same, func() { copy(files["rpc.key"], older["rpc.key"]) }}))
	wantRefusal(t, set, files, "cannot open rpc.key: it was changed while it was opened")

	files = sealed(t, newSet(t, seal.New(seal.KindTPM, same)))
	set = newSet(t, seal.New(seal.KindTPM, meddling{same, func() {
		copy(files["rpc.key"], bytes.Replace(files["rpc.key"], []byte(" v1 rpc.key "), []byte(" v1 cpr.key "), 1))
	}}))
	wantRefusal(t, set, files, "cannot open rpc.key: it holds cpr.key: files were mixed up")
}
