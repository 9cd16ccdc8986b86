package keys

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"

	"github.com/ethereum/go-ethereum/crypto"
)

const (
	// ScalarSize is the size in bytes of a raw private scalar on P-256 and on
	// secp256k1, and of every symmetric key derived here.
	ScalarSize = 32
	// CAPublicSize is the size in bytes of [Roots.CAPublic].
	CAPublicSize = 91
	// K256PublicSize is the size in bytes of a compressed secp256k1 point.
	K256PublicSize = 33

	pemPrivateKey = "PRIVATE KEY"
	// maxPEM bounds what is handed to a parser; a P-256 key takes 241 bytes.
	maxPEM = 1 << 20
)

// Roots are the two root keys of a KMS: the P-256 key of its certificate
// authority, from which application keys are derived too, and the secp256k1 key
// that derives and signs the Ethereum keys. They never change in the life of a
// KMS. A Roots is immutable and safe for concurrent use.
type Roots struct {
	ca   *ecdsa.PrivateKey
	k256 *ecdsa.PrivateKey
	// caPublic and k256Public are computed once: they are asked for on every
	// request.
	caPublic, k256Public []byte
	caPEM, k256Raw       Secret
}

// NewRoots makes two new root keys from the system's random source.
func NewRoots() (*Roots, error) {
	ca, err := NewKey()
	if err != nil {
		return nil, err
	}
	k256, err := crypto.GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("generating secp256k1 key: %w", err)
	}
	return newRoots(ca, k256)
}

// ParseRoots reads the root keys from their stored forms: PKCS#8 PEM of the
// P-256 key with its public key included, and the 32 big-endian bytes of the
// secp256k1 scalar. Anything else is an error that says which of the two it is.
func ParseRoots(caPEM, k256Raw []byte) (*Roots, error) {
	ca, err := ParseKey(caPEM)
	if err != nil {
		return nil, fmt.Errorf("parsing root CA key: %w", err)
	}
	if len(k256Raw) != ScalarSize {
		return nil, fmt.Errorf("parsing root secp256k1 key: %d bytes, want %d", len(k256Raw), ScalarSize)
	}
	k256, err := crypto.ToECDSA(k256Raw)
	if err != nil {
		// The library's text would tell on which side of the range it lies.
		return nil, errors.New("parsing root secp256k1 key: not a scalar of the curve")
	}
	return newRoots(ca, k256)
}

func newRoots(ca, k256 *ecdsa.PrivateKey) (*Roots, error) {
	public, err := x509.MarshalPKIXPublicKey(&ca.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("encoding root CA public key: %w", err)
	}
	caPEM, err := KeyPEM(ca)
	if err != nil {
		return nil, err
	}
	return &Roots{
		ca:         ca,
		k256:       k256,
		caPublic:   public,
		k256Public: crypto.CompressPubkey(&k256.PublicKey),
		caPEM:      caPEM,
		k256Raw:    NewSecret(crypto.FromECDSA(k256)),
	}, nil
}

// CAPublic returns the CA's public key as DER SubjectPublicKeyInfo, 91 bytes.
func (r *Roots) CAPublic() []byte { return bytes.Clone(r.caPublic) }

// K256Public returns the secp256k1 public key as a compressed point, 33 bytes.
func (r *Roots) K256Public() []byte { return bytes.Clone(r.k256Public) }

// CAPEM returns the CA key as PKCS#8 PEM, the form that [ParseRoots] reads.
func (r *Roots) CAPEM() Secret { return r.caPEM }

// K256Raw returns the 32 bytes of the secp256k1 key, the form that
// [ParseRoots] reads.
func (r *Roots) K256Raw() Secret { return r.k256Raw }

// Equal reports whether both hold the same two private keys.
func (r *Roots) Equal(o *Roots) bool {
	return r.caPEM.Equal(o.caPEM) && r.k256Raw.Equal(o.k256Raw)
}

// Format writes "[redacted]" for every verb and flag.
func (r Roots) Format(f fmt.State, _ rune) {
	// A formatter has no way to report a failed write.
	_, _ = io.WriteString(f, redacted)
}

// NewKey makes a P-256 key from the system's random source.
func NewKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generating P-256 key: %w", err)
	}
	return key, nil
}

// KeyPEM encodes a P-256 key as PKCS#8 PEM with its public key included: the
// only form that existing readers of these files load.
func KeyPEM(key *ecdsa.PrivateKey) (Secret, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Secret{}, fmt.Errorf("encoding P-256 key: %w", err)
	}
	return NewSecret(pem.EncodeToMemory(&pem.Block{Type: pemPrivateKey, Bytes: der})), nil
}

// ParseKey reads the one form that [KeyPEM] writes. It refuses other curves,
// other encodings (SEC1, PKCS#8 without public key or with one that is not the
// key's) and anything before or after the block.
func ParseKey(text []byte) (*ecdsa.PrivateKey, error) {
	der, err := parsePEM(text, pemPrivateKey)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		// Not wrapped: a parser's text may quote what it read.
		return nil, errors.New("not a PKCS#8 private key")
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("not a key on the curve P-256")
	}
	canonical, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding P-256 key: %w", err)
	}
	if !NewSecret(canonical).Equal(NewSecret(der)) {
		return nil, errors.New("not the PKCS#8 form that includes the matching public key")
	}
	return key, nil
}

// parsePEM returns the contents of text, which must be exactly one PEM block of
// the given type without headers; white space around it is passed over.
func parsePEM(text []byte, blockType string) ([]byte, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("%d bytes, more than %d", len(text), maxPEM)
	}
	text = bytes.TrimSpace(text)
	if !bytes.HasPrefix(text, []byte("-----BEGIN "+blockType+"-----")) {
		return nil, fmt.Errorf("does not begin with a PEM block %q", blockType)
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != blockType {
		return nil, fmt.Errorf("not a PEM block %q", blockType)
	}
	if len(block.Headers) != 0 {
		return nil, errors.New("unexpected PEM headers")
	}
	if len(rest) != 0 {
		return nil, errors.New("trailing data after the PEM block")
	}
	return block.Bytes, nil
}
