package keys

import (
	"crypto/ecdsa"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
)

// ownSalt keeps what a KMS derives for itself apart from every application's
// keys, which are derived under another salt.
const ownSalt = "teekms own keys v1"

// Own derives a 32-byte key that this KMS uses itself: one per purpose, the same
// at every replica, and never an application's (docs/wire.md#derivation).
func (r *Roots) Own(purpose string) (Secret, error) {
	caScalar, err := r.ca.Bytes()
	if err != nil {
		return Secret{}, fmt.Errorf("deriving key for %s: %w", purpose, err)
	}
	okm, err := hkdf.Key(sha256.New, append(caScalar, r.k256Raw.view()...), []byte(ownSalt), purpose, ScalarSize)
	if err != nil {
		return Secret{}, fmt.Errorf("deriving key for %s: %w", purpose, err)
	}
	return NewSecret(okm), nil
}

// SignOwn signs a statement of this KMS with the root CA key: ASN.1 ECDSA over
// its SHA-256. Statements begin with a line that says what they are, so that
// none reads as a certificate.
func (r *Roots) SignOwn(statement []byte) ([]byte, error) {
	digest := sha256.Sum256(statement)
	signature, err := ecdsa.SignASN1(rand.Reader, r.ca, digest[:])
	if err != nil {
		return nil, fmt.Errorf("signing with the root CA key: %w", err)
	}
	return signature, nil
}
