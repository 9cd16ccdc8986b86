// Package swtpmtest starts a software TPM for a test and ends it with the test.
package swtpmtest

import (
	"crypto/sha256"
	"os"
	"testing"

	"teekms/internal/keys/seal/tpm/swtpm"
)

// TPM is a running TPM of a test. What fails in it fails the test.
type TPM struct {
	*swtpm.TPM
	tb testing.TB
}

// Start starts a new TPM, with a seed of its own.
func Start(tb testing.TB) *TPM {
	tb.Helper()
	// Not tb.TempDir: the name of a test makes it longer than a socket may be.
	dir, err := os.MkdirTemp("", "swtpm") //nolint:usetesting // see above
	if err != nil {
		tb.Fatal(err)
	}
	t, err := swtpm.Start(dir)
	if err != nil {
		_ = os.RemoveAll(dir) // the test has failed
		tb.Fatalf("swtpm.Start() = %v", err)
	}
	tb.Cleanup(func() {
		t.Stop()
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("RemoveAll(%q) = %v", dir, err)
		}
	})
	return &TPM{TPM: t, tb: tb}
}

// Measure extends a PCR of the SHA-256 bank by the hash of event.
func (t *TPM) Measure(pcr int, event string) {
	t.tb.Helper()
	if err := t.Extend(t.tb.Context(), pcr, sha256.Sum256([]byte(event))); err != nil {
		t.tb.Fatalf("Extend(%d) = %v", pcr, err)
	}
}

// Restart does what a power cycle does: seeds and keys stay, PCRs go back to
// their initial values, to be measured anew.
func (t *TPM) Restart() {
	t.tb.Helper()
	if err := t.Reset(); err != nil {
		t.tb.Fatalf("Reset() = %v", err)
	}
}
