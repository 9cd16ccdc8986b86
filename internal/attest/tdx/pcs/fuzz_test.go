package pcs_test

import (
	"bytes"
	"encoding/hex"
	"net/url"
	"strings"
	"testing"

	"teekms/internal/attest/tdx/pcs"
)

// FuzzDecodeChain holds that PEM comes back however it was escaped.
func FuzzDecodeChain(f *testing.F) {
	const pem = "-----BEGIN CERTIFICATE-----\nMII+/a=\n-----END CERTIFICATE-----\n"
	f.Add(pem)
	f.Add(url.QueryEscape(pem))
	f.Add(url.PathEscape(pem))
	f.Add("%zz")
	f.Fuzz(func(t *testing.T, s string) {
		_, _ = pcs.DecodeChain([]string{s})
		if !strings.HasPrefix(s, "-----BEGIN CERTIFICATE-----") {
			return
		}
		for _, escaped := range []string{url.QueryEscape(s), url.PathEscape(s)} {
			// A body that itself says BEGIN+CERTIFICATE is no PEM.
			if strings.Contains(s, "BEGIN+CERTIFICATE") {
				return
			}
			if got, err := pcs.DecodeChain([]string{escaped}); err != nil || string(got) != s {
				t.Errorf("decodeChain(%q) = %q, %v, want %q", escaped, got, err, s)
			}
		}
	})
}

// FuzzDecodeCRL holds that DER and its hex give the same.
func FuzzDecodeCRL(f *testing.F) {
	f.Add([]byte{0x30, 0x03, 0x02, 0x01, 0x00})
	f.Add([]byte("3003020100\n"))
	f.Add([]byte("-----BEGIN X509 CRL-----\nMAMCAQA=\n-----END X509 CRL-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = pcs.DecodeCRL(b)
		if len(b) == 0 || b[0] != 0x30 || bytes.HasPrefix(b, []byte("30")) {
			return
		}
		if got, err := pcs.DecodeCRL([]byte(hex.EncodeToString(b))); err != nil || !bytes.Equal(got, b) {
			t.Errorf("decodeCRL(hex of %x) = %x, %v", b, got, err)
		}
	})
}
