package tdx

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"errors"
)

// verifyRaw checks a signature of r and s, 32 big-endian bytes each. crypto/ecdsa takes
// ASN.1, so they are dressed as such on the stack.
func verifyRaw(key *ecdsa.PublicKey, digest, rs []byte) bool {
	if len(rs) != signatureSize {
		return false
	}
	var buf [72]byte
	der := append(buf[:0], 0x30, 0)
	der = appendInteger(der, rs[:32])
	der = appendInteger(der, rs[32:])
	der[1] = byte(len(der) - 2)
	return ecdsa.VerifyASN1(key, digest, der)
}

// appendInteger appends the shortest ASN.1 INTEGER for a big-endian unsigned
// number of at most 32 bytes.
func appendInteger(der, n []byte) []byte {
	for len(n) > 1 && n[0] == 0 {
		n = n[1:]
	}
	pad := 0
	if n[0]&0x80 != 0 {
		pad = 1
	}
	der = append(der, 0x02, byte(len(n)+pad))
	if pad == 1 {
		der = append(der, 0)
	}
	return append(der, n...)
}

// parsePublicKey reads X and Y, 32 big-endian bytes each.
func parsePublicKey(xy []byte) (*ecdsa.PublicKey, error) {
	if len(xy) != publicKeySize {
		return nil, errors.New("not 64 bytes")
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, xy...))
}

// ecdsaKey is the public key of a certificate.
func ecdsaKey(c *x509.Certificate) (*ecdsa.PublicKey, error) {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.New("public key is not ECDSA")
	}
	return key, nil
}
