package osimage_test

import (
	"path/filepath"
	"testing"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/osimage"
	"teekms/internal/osimage/osimagetest"
)

// TestQuotesOfASoftwareTD goes the way of a release: a signed quote of a guest of
// the image is verified, and its Claims are asked for their image.
func TestQuotesOfASoftwareTD(t *testing.T) {
	td, err := simtd.Open(simtd.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := tdx.NewVerifier(tdx.Config{TrustAnchor: td.Root(), Collateral: td})
	if err != nil {
		t.Fatal(err)
	}
	const memory = 8 << 30
	im := osimagetest.New()
	g, hash := im.Boot(memory), im.Hash()
	claims := func(shape simtd.Shape) *attest.Claims {
		t.Helper()
		quote, err := td.Quote([64]byte{}, shape)
		if err != nil {
			t.Fatal(err)
		}
		c, err := verifier.Verify(t.Context(), &attest.Evidence{Quote: quote})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	guest := claims(simtd.Shape{EditSigned: func(b []byte) {
		const header = 48 // then MRTD at 136, RTMR0 at 328
		copy(b[header+136:], g.MRTD[:])
		for i, r := range g.RTMR {
			copy(b[header+328+i*attest.MeasurementSize:], r[:])
		}
	}})
	other := claims(simtd.Shape{}) // of the image that the software TD stands for

	allowed := filepath.Join(t.TempDir(), "images.toml")
	otherHash := [32]byte{7}
	write(t, allowed, entry(osimage.Subject{Claims: other, OSImageHash: otherHash[:]}))
	h := newHost(t, serve(im, im.Archive()))
	cfg := h.config(t)
	cfg.AllowlistFile = allowed
	v := newVerifier(t, cfg)
	tests := []struct {
		name     string
		claims   *attest.Claims
		hash     []byte
		lite     bool
		by       string
		mismatch string
	}{
		{"its guest by its document", guest, hash[:], true, "lite", ""},
		{"its guest by the image", guest, hash[:], false, "download", ""},
		{"a listed guest", other, otherHash[:], false, "allowlist", ""},
		{"another guest by the document", other, hash[:], true, "", "MRTD"},
		{"another guest by the image", other, hash[:], false, "", "MRTD"},
		{"its guest under a listed hash", guest, otherHash[:], true, "", "MRTD"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := v.Verify(t.Context(), osimage.Subject{Claims: tt.claims, Log: g.Log, OSImageHash: tt.hash, VMConfig: im.VMConfig(memory, tt.lite)})
			if tt.mismatch != "" {
				checkMismatch(t, err, tt.mismatch)
				return
			}
			if err != nil || got.By != tt.by {
				t.Errorf("Verify() = %+v, %v, want by %s", got, err, tt.by)
			}
		})
	}
}
