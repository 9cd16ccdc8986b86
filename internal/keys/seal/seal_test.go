package seal_test

import (
	"bytes"
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"teekms/internal/keys"
	"teekms/internal/keys/seal"
)

// plain are four files as a key directory has them.
func plain() map[string]keys.Secret {
	return map[string]keys.Secret{
		"root-ca.key":   keys.NewSecret([]byte("-----BEGIN PRIVATE KEY-----\nthis is the root of all\n-----END PRIVATE KEY-----\n")),
		"root-k256.key": keys.NewSecret(bytes.Repeat([]byte{0, 0xff, '\n', 7}, 8)),
		"rpc.key":       keys.NewSecret([]byte("the key of the listener")),
		"tmp-ca.key":    keys.NewSecret([]byte("the key of nobody")),
	}
}

// passphrase is a seal with that passphrase and a cheap work factor.
func passphrase(text string) seal.Seal {
	return seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{
		Read:       func(context.Context) (keys.Secret, error) { return keys.NewSecret([]byte(text)), nil },
		WorkFactor: 10,
	}))
}

func clock() time.Time { return time.Unix(1_760_000_000, 5).UTC() }

func newSet(t *testing.T, seals ...seal.Seal) *seal.Set {
	t.Helper()
	s, err := seal.NewSet(seal.Config{Seals: seals, Now: clock})
	if err != nil {
		t.Fatalf("NewSet(%v) = %v, want a set", seals, err)
	}
	return s
}

func sealed(t *testing.T, s *seal.Set) map[string][]byte {
	t.Helper()
	out, err := s.Seal(t.Context(), plain())
	if err != nil {
		t.Fatalf("Seal() = %v, want four files", err)
	}
	return out
}

func wantPlain(t *testing.T, got map[string]keys.Secret, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("Open() = %v, want the files", err)
	}
	want := plain()
	if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want))) {
		t.Fatalf("Open() has files %v, want %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
	for name, content := range want {
		if !got[name].Equal(content) {
			t.Errorf("Open()[%s] has other bytes than were sealed", name)
		}
	}
}

func TestPassphraseAndEscrowOpenWhatTheySealed(t *testing.T) {
	holder, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	escrow, err := seal.NewEscrow([]string{holder.Recipient().String()})
	if err != nil {
		t.Fatalf("NewEscrow() = %v, want a seal", err)
	}
	set := newSet(t, passphrase("correct horse"), escrow)
	files := sealed(t, set)
	got, err := set.Open(t.Context(), files)
	wantPlain(t, got, err)
	for name, content := range plain() {
		r, err := age.Decrypt(bytes.NewReader(files[name]), holder)
		if err != nil {
			t.Fatalf("age.Decrypt(%s) = %v, want the file", name, err)
		}
		b, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(b, content.Bytes()) {
			t.Errorf("age.Decrypt(%s) has other bytes than were sealed (%v)", name, err)
		}
	}
	_, err = newSet(t, passphrase("wrong")).Open(t.Context(), files)
	if want := "cannot open root-ca.key: passphrase: wrong passphrase, or the file is damaged"; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("Open(wrong passphrase) = %v, want %q", err, want)
	}
}
