package keystore_test

import (
	"path/filepath"
	"testing"
	"time"

	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

func TestCommitThenOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etc", "certs")
	s, err := keystore.Open(keystore.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	roots, err := keys.NewRoots()
	if err != nil {
		t.Fatal(err)
	}
	info := &keystore.Info{CAPublic: roots.CAPublic(), K256Public: roots.K256Public()}
	b, err := keystore.NewBundle(roots, "kms.example.com", info, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	again, err := keystore.Open(keystore.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if !again.Complete() || !again.Roots().Equal(roots) {
		t.Fatalf("Open after Commit: complete = %v, want the committed roots", again.Complete())
	}
	if _, err := again.RenewRPC(t.Context()); err != nil {
		t.Fatal(err)
	}
}
