package tpm_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"teekms/internal/keys/seal/tpm"
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
