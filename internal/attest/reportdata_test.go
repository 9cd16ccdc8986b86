package attest_test

import (
	"crypto/sha512"
	"errors"
	"testing"

	"golang.org/x/crypto/sha3"

	"teekms/internal/attest"
)

// TestReportData holds the bytes that are hashed (docs/wire.md#report-data).
func TestReportData(t *testing.T) {
	keccak := sha3.NewLegacyKeccak256()
	keccak.Write([]byte("dstack-kms-genereted-keys-v1:3059ff;02aa;"))
	var bootstrap [64]byte
	keccak.Sum(bootstrap[:0])
	tests := []struct {
		name string
		got  attest.ReportData
		want [64]byte
	}{
		{"bootstrap binds both keys", attest.BootstrapReportData([]byte{0x30, 0x59, 0xff}, []byte{0x02, 0xaa}), bootstrap},
		{"RA-TLS binds the certificate's key", attest.RATLSReportData([]byte{1, 2}), sha512.Sum512([]byte("ratls-cert:\x01\x02"))},
		{"nothing is 64 zeros", attest.NoReportData(), [64]byte{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.got.Bytes(); got != tt.want {
				t.Errorf("Bytes() = %x, want %x", got, tt.want)
			}
		})
	}
}

func TestVerifyErrorNamesLinkAndCause(t *testing.T) {
	err := error(&attest.VerifyError{Link: attest.LinkCollateral, Err: attest.ErrNoCollateral})
	if got, want := err.Error(), "collateral: no collateral to be had"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
	if !errors.Is(err, attest.ErrNoCollateral) {
		t.Errorf("errors.Is(%v, ErrNoCollateral) = false, want true", err)
	}
}
