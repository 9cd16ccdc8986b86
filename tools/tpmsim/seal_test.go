package tpmsim_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"teekms/internal/keys"
	"teekms/internal/keys/seal"
)

// plain is what the private files of a key directory may hold.
func plain() map[string]keys.Secret {
	files := make(map[string]keys.Secret)
	for _, name := range []string{"root-ca.key", "root-k256.key", "rpc.key", "tmp-ca.key"} {
		files[name] = keys.NewSecret([]byte("content of " + name))
	}
	return files
}

func newSet(t *testing.T, cfg seal.Config) *seal.Set {
	t.Helper()
	set, err := seal.NewSet(cfg)
	if err != nil {
		t.Fatalf("NewSet() = %v", err)
	}
	return set
}

func wantPlain(t *testing.T, set *seal.Set, files map[string][]byte) {
	t.Helper()
	got, err := set.Open(t.Context(), files)
	if err != nil {
		t.Fatalf("Open() = %v", err)
	}
	equal := func(a, b keys.Secret) bool { return a.Equal(b) }
	if want := plain(); !maps.EqualFunc(got, want, equal) {
		t.Errorf("Open() = %d files, want the %d that were sealed", len(got), len(want))
	}
}

// TestEscrowOpensWhatTheTPMDoesNot: four files, sealed to the TPM and to a
// recipient whose key is elsewhere, on the day the kernel changes.
func TestEscrowOpensWhatTheTPMDoesNot(t *testing.T) {
	chip := powerOn(t)
	chip.boot()
	holder, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	escrow, err := seal.NewEscrow([]string{holder.Recipient().String()})
	if err != nil {
		t.Fatalf("NewEscrow() = %v", err)
	}
	seals := []seal.Seal{seal.New(seal.KindTPM, chip.source(7, 11, 14)), escrow}
	set := newSet(t, seal.Config{Seals: seals})
	files, err := set.Seal(t.Context(), plain())
	if err != nil {
		t.Fatalf("Seal() = %v", err)
	}
	wantPlain(t, set, files)
	chip.reset()
	chip.boot()
	wantPlain(t, set, files)

	chip.measure(11, "another kernel")
	_, err = set.Open(t.Context(), files)
	const want = "tpm: TPM policy does not hold (PCR 11 of SHA-256 is not what it was)"
	if refusal, ok := errors.AsType[*seal.OpenError](err); !ok || !strings.Contains(refusal.Error(), want) {
		t.Errorf("Open() = %v, want %q", err, want)
	}
	i := slices.IndexFunc(set.Try(t.Context(), files), func(a seal.Attempt) bool { return a.Kind == seal.KindTPM && !a.Opens })
	if i < 0 {
		t.Error("Try() says that the TPM opens, want that it does not")
	}

	byHolder := newSet(t, seal.Config{Seals: seals, Identities: []age.Identity{holder}})
	wantPlain(t, byHolder, files)
	// Sealed anew in the new state, the TPM opens again.
	anew, err := byHolder.Seal(t.Context(), plain())
	if err != nil {
		t.Fatalf("Seal() = %v", err)
	}
	wantPlain(t, set, anew)
	chip.wantEmpty()
}
