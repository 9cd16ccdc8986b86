package tpm_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"teekms/internal/keys/seal/tpm"
	"teekms/internal/keys/seal/tpm/device"
	"teekms/internal/keys/seal/tpm/swtpmtest"
)

func TestUnmeasured(t *testing.T) {
	p := swtpmtest.Start(t)
	// PCR 17 starts with all ones.
	s := newSource(t, tpm.Config{Device: p.Socket(), PCRs: []int{17, 14, 7, 16}})
	want := func(want ...int) {
		t.Helper()
		got, err := s.Unmeasured(t.Context())
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("Unmeasured() = %v, %v, want %v", got, err, want)
		}
	}
	want(7, 14, 16, 17)
	boot(p)
	want(16, 17)
	p.Measure(16, "x")
	want(17)
	p.Restart()
	want(7, 14, 16, 17)
	wantKeyless(t, p)

	nowhere := newSource(t, tpm.Config{Device: t.TempDir() + "/tpm", PCRs: []int{7}})
	got, err := nowhere.Unmeasured(t.Context())
	if got != nil || !errors.Is(err, os.ErrNotExist) || !strings.HasPrefix(err.Error(), "reading the PCRs of the TPM: there is no TPM at ") {
		t.Errorf("Unmeasured() = %v, %v, want that there is no TPM", got, err)
	}
}

// TestPCRsThatGuardNothing: programs can set two of them back, which is why
// Config warns of them, and none of those that are measured into.
func TestPCRsThatGuardNothing(t *testing.T) {
	p := swtpmtest.Start(t)
	for pcr := range tpm.MaxPCR + 1 {
		s := newSource(t, tpm.Config{Device: p.Socket(), PCRs: []int{pcr}})
		key, args := mustMake(t, s)
		onTPM(t, p, func(c *device.Conn) error {
			_, err := tpm2.PCRExtend{
				PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
				Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)}}},
			}.Execute(c)
			if errors.Is(err, tpm2.TPMRCLocality) {
				return nil // of a dynamic launch: not for programs
			}
			if err != nil {
				return err
			}
			_, err = tpm2.PCRReset{
				PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
			}.Execute(c)
			if resettable := pcr == 16 || pcr == 23; resettable != (err == nil) {
				t.Errorf("PCR_Reset(%d) = %v, want resettable %v", pcr, err, resettable)
			}
			return nil
		})
		if pcr < 16 {
			wantRefusal(t, s, args, "TPM policy does not hold")
			continue
		}
		wantKey(t, s, key, args)
	}
}
