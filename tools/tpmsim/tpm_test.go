package tpmsim_test

import (
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"teekms/internal/keys"
	"teekms/internal/keys/seal/tpm"
)

func mustMake(t *testing.T, s *tpm.Source) (keys.Secret, []string) {
	t.Helper()
	key, args, err := s.Make(t.Context())
	if err != nil {
		t.Fatalf("Make() = %v", err)
	}
	return key, args
}

// wantKey fails unless args open and give key.
func wantKey(t *testing.T, s *tpm.Source, key keys.Secret, args []string) {
	t.Helper()
	got, err := s.Find(t.Context(), args)
	if err != nil {
		t.Fatalf("Find() = %v", err)
	}
	if got.Len() != tpm.KeySize || !got.Equal(key) {
		t.Error("Find() = another key than was made")
	}
}

// wantRefusal fails unless args are refused in these words.
func wantRefusal(t *testing.T, s *tpm.Source, args []string, want string) {
	t.Helper()
	key, err := s.Find(t.Context(), args)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Find() = %v, want %q", err, want)
	}
	if key.Len() != 0 {
		t.Error("Find() = a key beside its error")
	}
}

func TestOpensInTheSameState(t *testing.T) {
	chip := powerOn(t)
	chip.boot()
	s := chip.source(7, 11, 14)
	key, args := mustMake(t, s)
	wantKey(t, s, key, args)
	chip.measure(12, "what nothing is sealed to")
	wantKey(t, s, key, args)

	chip.reset()
	const notMeasured = "TPM policy does not hold (PCRs 7, 11, 14 of SHA-256 are not what they were)"
	wantRefusal(t, s, args, notMeasured)
	chip.boot()
	wantKey(t, s, key, args)
	chip.wantEmpty()
}

func TestRefusedAfterAnExtend(t *testing.T) {
	chip := powerOn(t)
	chip.boot()
	s := chip.source(7, 11, 14)
	_, args := mustMake(t, s)
	chip.measure(11, "another kernel")
	wantRefusal(t, s, args, "TPM policy does not hold (PCR 11 of SHA-256 is not what it was)")
	if _, err := s.Find(t.Context(), args); !errors.Is(err, tpm2.TPMRCPolicyFail) {
		t.Errorf("Find() = %v, want %v", err, tpm2.TPMRCPolicyFail)
	}
	chip.wantEmpty()
}

func TestAnotherTPM(t *testing.T) {
	chip := powerOnSeeded(t, 1)
	chip.boot()
	key, args := mustMake(t, chip.source(7, 11, 14))
	chip.powerOff()

	other := powerOnSeeded(t, 2)
	other.boot()
	s := other.source(7, 11, 14)
	wantRefusal(t, s, args, "this is another TPM than the key was sealed to, or it was cleared since")
	// With its own SRK named instead, this TPM does not take the object.
	_, theirs := mustMake(t, s)
	forged := slices.Clone(args)
	forged[2] = theirs[2]
	wantRefusal(t, s, forged, "what was sealed is damaged, or it is of another TPM")
	other.wantEmpty()
	other.powerOff()

	// The first, made again of nothing but its seeds, opens.
	again := powerOnSeeded(t, 1)
	again.boot()
	wantKey(t, again.source(7, 11, 14), key, args)
}

// TestEditedSelection: what is stored is not believed, the TPM holds the policy.
func TestEditedSelection(t *testing.T) {
	chip := powerOn(t)
	chip.boot()
	s := chip.source(7, 11, 14)
	key, args := mustMake(t, s)
	values, err := base64.RawStdEncoding.DecodeString(args[1])
	if err != nil {
		t.Fatal(err)
	}
	smaller, larger := slices.Clone(args), slices.Clone(args)
	smaller[0], smaller[1] = "sha256:7+11", base64.RawStdEncoding.EncodeToString(values[:16])
	larger[0], larger[1] = "sha256:7+11+14+15", base64.RawStdEncoding.EncodeToString(append(values, make([]byte, 8)...))
	wantRefusal(t, s, smaller, "TPM policy does not hold (it is not over PCRs 7, 11 of SHA-256")
	wantRefusal(t, s, larger, "TPM policy does not hold (it is not over PCRs 7, 11, 14, 15 of SHA-256")
	chip.measure(14, "what the smaller set leaves out")
	wantRefusal(t, s, smaller, "TPM policy does not hold")
	chip.wantEmpty()

	chip.reset()
	chip.boot()
	wantKey(t, s, key, args)
}

// TestNoSlotsLeak: three objects are all the room a TPM has.
func TestNoSlotsLeak(t *testing.T) {
	chip := powerOn(t)
	s := chip.source(7)
	key, args := mustMake(t, s)
	damaged := slices.Clone(args)
	private := []byte(args[4])
	private[60] = map[bool]byte{true: 'B', false: 'A'}[private[60] == 'A']
	damaged[4] = string(private)
	for range 5 {
		wantKey(t, s, key, args)
		mustMake(t, s)
		wantRefusal(t, s, damaged, "what was sealed is damaged, or it is of another TPM")
	}
	chip.wantEmpty()
	chip.measure(7, "x")
	for range 5 {
		wantRefusal(t, s, args, "TPM policy does not hold")
	}
	chip.wantEmpty()
}

// TestMakesRoom: what killed programs left does not lock out the living.
func TestMakesRoom(t *testing.T) {
	chip := powerOn(t)
	s := chip.source(7)
	key, args := mustMake(t, s)
	for range 3 {
		_, err := tpm2.CreatePrimary{
			PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
		}.Execute(chip)
		if err != nil {
			t.Fatalf("CreatePrimary() = %v", err)
		}
	}
	if n := len(chip.loaded()); n != 3 {
		t.Fatalf("%d objects are loaded, want 3", n)
	}
	wantKey(t, s, key, args)
	chip.wantEmpty()
}

func TestUnmeasured(t *testing.T) {
	chip := powerOn(t)
	chip.measure(7, "secure boot")
	got, err := chip.source(17, 14, 7).Unmeasured(t.Context())
	if want := []int{14, 17}; err != nil || !slices.Equal(got, want) {
		t.Errorf("Unmeasured() = %v, %v, want %v", got, err, want)
	}
	chip.wantEmpty()
}
