package attest_test

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"testing"

	"teekms/internal/attest"
)

// filled returns a measurement of 48 equal bytes.
func filled(b byte) (m attest.Measurement) {
	for i := range m {
		m[i] = b
	}
	return m
}

func repeated(bytes ...byte) []byte {
	var out []byte
	for _, b := range bytes {
		out = append(out, slices.Repeat([]byte{b}, attest.MeasurementSize)...)
	}
	return out
}

func TestDeviceID(t *testing.T) {
	tests := []struct {
		name, ppid, want string
	}{
		{"is the hash of the PPID", "000102030405060708090a0b0c0d0e0f", "be45cb2605bf36bebde684841a28f0fd43c69850a3dce5fedba69928ee3a8991"},
		{"is zero without a PPID", "", "0000000000000000000000000000000000000000000000000000000000000000"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ppid, err := hex.DecodeString(tt.ppid)
			if err != nil {
				t.Fatal(err)
			}
			got := (&attest.Claims{PPID: ppid}).DeviceID()
			if hex.EncodeToString(got[:]) != tt.want {
				t.Errorf("DeviceID() of PPID %q = %x, want %s", tt.ppid, got, tt.want)
			}
		})
	}
}

func TestMRSystem(t *testing.T) {
	c := &attest.Claims{MRTD: filled(1), RTMR: [4]attest.Measurement{filled(2), filled(3), filled(4), filled(5)}}
	info := []byte(`{"name":"kms","id":"aa"}`)
	infoHash := sha256.Sum256(info)
	tests := []struct {
		name     string
		info     []byte
		preimage []byte
	}{
		{"takes zeros for no key provider", nil, append(repeated(1, 2, 3, 4), make([]byte, 32)...)},
		{"takes the hash of the key provider", info, append(repeated(1, 2, 3, 4), infoHash[:]...)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, want := c.MRSystem(tt.info), sha256.Sum256(tt.preimage); got != want {
				t.Errorf("MRSystem(%q) = %x, want %x", tt.info, got, want)
			}
		})
	}
}

func TestMRAggregated(t *testing.T) {
	base := attest.Claims{MRTD: filled(1), RTMR: [4]attest.Measurement{filled(2), filled(3), filled(4), filled(5)}}
	tests := []struct {
		name     string
		edit     func(*attest.Claims)
		rtmr3    attest.Measurement
		preimage []byte
	}{
		{"leaves the builder's registers out when all are zero", func(*attest.Claims) {}, filled(5), repeated(1, 2, 3, 4, 5)},
		{"takes the RTMR3 it is given", func(*attest.Claims) {}, filled(9), repeated(1, 2, 3, 4, 9)},
		{"takes all three when MRCONFIGID is set", func(c *attest.Claims) { c.MRConfigID = filled(6) }, filled(5), repeated(1, 2, 3, 4, 5, 6, 0, 0)},
		{"takes all three when MROWNER is set", func(c *attest.Claims) { c.MROwner = filled(7) }, filled(5), repeated(1, 2, 3, 4, 5, 0, 7, 0)},
		{"takes all three when MROWNERCONFIG is set", func(c *attest.Claims) { c.MROwnerConfig = filled(8) }, filled(5), repeated(1, 2, 3, 4, 5, 0, 0, 8)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := base
			tt.edit(&c)
			if got, want := c.MRAggregated(tt.rtmr3), sha256.Sum256(tt.preimage); got != want {
				t.Errorf("MRAggregated(%x) = %x, want %x", tt.rtmr3[:4], got, want)
			}
		})
	}
}
