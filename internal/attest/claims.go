package attest

import "crypto/sha256"

// DeviceID names the machine: SHA-256 of the PPID. It is all zeros for Claims
// without a PPID, since the hash of nothing would name many machines as one.
func (c *Claims) DeviceID() [32]byte {
	if len(c.PPID) == 0 {
		return [32]byte{}
	}
	return sha256.Sum256(c.PPID)
}

// MRSystem measures the system below the application, as dstack computes it:
// SHA-256 of MRTD, RTMR0, RTMR1, RTMR2 and the SHA-256 of keyProviderInfo, the
// payload of the key-provider event, or 32 zero bytes if that is empty
// (docs/evidence.md#aggregates).
func (c *Claims) MRSystem(keyProviderInfo []byte) [32]byte {
	var provider [32]byte
	if len(keyProviderInfo) != 0 {
		provider = sha256.Sum256(keyProviderInfo)
	}
	return sum(c.MRTD[:], c.RTMR[0][:], c.RTMR[1][:], c.RTMR[2][:], provider[:])
}

// MRAggregated measures the system and the application, as dstack computes it:
// SHA-256 of MRTD, RTMR0, RTMR1, RTMR2 and rtmr3, then of MRCONFIGID, MROWNER
// and MROWNERCONFIG if any of these is not zero. rtmr3 is that of the Claims, or
// what the event log replays to at the end of boot
// (docs/evidence.md#aggregates).
func (c *Claims) MRAggregated(rtmr3 Measurement) [32]byte {
	parts := [][]byte{c.MRTD[:], c.RTMR[0][:], c.RTMR[1][:], c.RTMR[2][:], rtmr3[:]}
	zero := Measurement{}
	if c.MRConfigID != zero || c.MROwner != zero || c.MROwnerConfig != zero {
		parts = append(parts, c.MRConfigID[:], c.MROwner[:], c.MROwnerConfig[:])
	}
	return sum(parts...)
}

func sum(parts ...[]byte) (digest [32]byte) {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	h.Sum(digest[:0])
	return digest
}
