package sealdir_test

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"teekms/cmd/kmsctl/internal/sealdir"
	"teekms/cmd/kmsctl/internal/status"
	"teekms/internal/durable"
	"teekms/internal/keys/keystore"
	"teekms/internal/keys/seal"
)

// worn is a disk that writes nothing over what is there.
type worn struct{ durable.FS }

func (worn) Overwrite(string) error { return syscall.EIO }

// What is sealed stays sealed; that the plain keys are still there is an error.
func TestPlainKeysThatCannotBeOverwrittenAreAnError(t *testing.T) {
	w := newWorld(t)
	pass := passphrase("correct horse")
	d := w.directory(t, []seal.Seal{pass})
	d.Through(worn{sealdir.Owned(w.dir)})
	r, err := d.Add(t.Context(), nil)
	if !errors.Is(err, keystore.ErrNotWiped) || !errors.Is(err, syscall.EIO) || status.Of(err) != status.Failed {
		t.Fatalf("Add() = %v, with status %d, want %v with status %d", err, status.Of(err), keystore.ErrNotWiped, status.Failed)
	}
	if r == nil || !r.Changed || !r.After.Sealed || strings.Contains(strings.Join(r.Notes, " "), "were overwritten") {
		t.Errorf("Add() = %+v, want that it is sealed, and not that anything was overwritten", r)
	}
	if found := plainIn(t, w.dir, w.plain); len(found) == 0 {
		t.Error("no plain key is left, so nothing was shown")
	}
	// The next opening, on a disk that works again, finishes it.
	if s, err := w.directory(t, []seal.Seal{pass}).Status(t.Context()); err != nil || !s.OK {
		t.Errorf("Status() = %+v, %v, want it to be well", s, err)
	}
	w.wantNothingPlain(t)
	w.wantOpen(t, pass)
}
