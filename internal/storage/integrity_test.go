package storage_test

import (
	"errors"
	"fmt"
	"testing"

	"teekms/internal/audit"
	"teekms/internal/storage"
)

// The audit log must not try again for its whole patience what cannot get better.
func TestIntegrityIsTampering(t *testing.T) {
	err := fmt.Errorf("reading rule: %w", storage.ErrIntegrity)
	if !errors.Is(err, audit.ErrTampered) || !errors.Is(err, storage.ErrIntegrity) {
		t.Errorf("%v is not both ErrTampered and ErrIntegrity", err)
	}
	if errors.Is(storage.ErrWrongKey, audit.ErrTampered) {
		t.Error("a wrong key is taken for tampering")
	}
}
