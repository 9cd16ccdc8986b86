package tpm_test

import (
	"context"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"teekms/internal/keys"
	"teekms/internal/keys/seal/tpm"
	"teekms/internal/keys/seal/tpm/swtpmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newSource(t testing.TB, cfg tpm.Config) *tpm.Source {
	t.Helper()
	s, err := tpm.New(cfg)
	if err != nil {
		t.Fatalf("New() = %v", err)
	}
	return s
}

// boot measures what the sealed state consists of.
func boot(p *swtpmtest.TPM) {
	p.Measure(7, "secure boot")
	p.Measure(11, "kernel")
	p.Measure(14, "machine owner keys")
}

func mustMake(t testing.TB, s *tpm.Source) (keys.Secret, []string) {
	t.Helper()
	key, args, err := s.Make(t.Context())
	if err != nil {
		t.Fatalf("Make() = %v", err)
	}
	if key.Len() != tpm.KeySize {
		t.Fatalf("Make() = key of %d bytes, want %d", key.Len(), tpm.KeySize)
	}
	return key, args
}

// wantKey fails unless args open and give key.
func wantKey(t testing.TB, s *tpm.Source, key keys.Secret, args []string) {
	t.Helper()
	got, err := s.Find(t.Context(), args)
	if err != nil {
		t.Fatalf("Find() = %v", err)
	}
	if !got.Equal(key) {
		t.Error("Find() = another key than was made")
	}
}

// wantRefusal fails unless args are refused in these words.
func wantRefusal(t testing.TB, s *tpm.Source, args []string, want string) {
	t.Helper()
	key, err := s.Find(t.Context(), args)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Find() = %v, want %q", err, want)
	}
	if key.Len() != 0 {
		t.Error("Find() = a key beside its error")
	}
}

func TestLife(t *testing.T) {
	p := swtpmtest.Start(t)
	boot(p)
	s := newSource(t, tpm.Config{Device: p.Socket(), PCRs: []int{14, 7, 11}})
	key, args := mustMake(t, s)
	t.Log(args)
	if got, want := s.Describe(args), "PCRs 7, 11, 14 of SHA-256"; got != want {
		t.Errorf("Describe() = %q, want %q", got, want)
	}
	wantKey(t, s, key, args)
	p.Restart()
	boot(p)
	wantKey(t, s, key, args)
	p.Measure(14, "another key")
	wantRefusal(t, s, args, "TPM policy does not hold (PCR 14 of SHA-256 is not what it was)")
	_ = context.Background()
}
