package keys

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/ethereum/go-ethereum/crypto"
)

// The labels of the wire format. They carry no version and no separator: they
// are fixed by the keys that exist (docs/wire.md#derivation). No two uses
// share one.
const (
	hkdfSalt = "RATLS"

	labelAppCA   = "app-ca"
	labelAppDisk = "app-disk-crypt-key"
	labelEnv     = "env-encrypt-key"
	labelAppK256 = "app-key"

	prefixAppK256 = "dstack-kms-issued"
	prefixEnv     = "dstack-env-encrypt-pubkey"
)

const (
	// AppIDSize is the size in bytes of an application's id.
	AppIDSize = 20
	// InstanceIDSize is the size in bytes of an instance's id, where it has one.
	InstanceIDSize = 20
	// SignatureSize is the size in bytes of a secp256k1 signature: r, s and the
	// recovery id, which is 0 or 1.
	SignatureSize = 65
)

// EnvKey is the X25519 key to which the environment of an application is
// encrypted.
type EnvKey struct {
	// Private is the 32-byte secret, not clamped.
	Private Secret
	// Public is the 32-byte point.
	Public []byte
}

// AppK256Key is the secp256k1 key of an application with the KMS's signature
// over it.
type AppK256Key struct {
	// Private is the 32-byte big-endian scalar.
	Private Secret
	// Public is the compressed point, 33 bytes.
	Public []byte
	// Signature is the root key's signature over app id and Public, 65 bytes.
	Signature []byte
}

// AppCA derives the P-256 key of the certificate authority of an application.
func (r *Roots) AppCA(appID []byte) (*ecdsa.PrivateKey, error) {
	if err := checkAppID(appID); err != nil {
		return nil, err
	}
	return deriveP256(r.ca, string(appID), labelAppCA)
}

// AppDisk derives the 32-byte disk key of an instance of an application.
// instanceID is empty for an application whose instances share one.
func (r *Roots) AppDisk(appID, instanceID []byte) (Secret, error) {
	if err := checkAppID(appID); err != nil {
		return Secret{}, err
	}
	if n := len(instanceID); n != 0 && n != InstanceIDSize {
		return Secret{}, fmt.Errorf("instance id: %d bytes, want none or %d", n, InstanceIDSize)
	}
	return deriveDH(r.ca, string(appID), string(instanceID), labelAppDisk)
}

// EnvSecret derives the private half of [Roots.Env] alone, 32 bytes.
func (r *Roots) EnvSecret(appID []byte) (Secret, error) {
	if err := checkAppID(appID); err != nil {
		return Secret{}, err
	}
	return deriveDH(r.ca, string(appID), labelEnv)
}

// Env derives the key to which the environment of an application is encrypted.
func (r *Roots) Env(appID []byte) (*EnvKey, error) {
	secret, err := r.EnvSecret(appID)
	if err != nil {
		return nil, err
	}
	private, err := ecdh.X25519().NewPrivateKey(secret.view())
	if err != nil {
		return nil, fmt.Errorf("deriving X25519 key: %w", err)
	}
	return &EnvKey{Private: secret, Public: private.PublicKey().Bytes()}, nil
}

// AppK256 derives the secp256k1 key of an application and signs it.
func (r *Roots) AppK256(appID []byte) (*AppK256Key, error) {
	if err := checkAppID(appID); err != nil {
		return nil, err
	}
	okm, err := kdf(r.k256Raw.view(), string(appID), labelAppK256)
	if err != nil {
		return nil, err
	}
	key, err := crypto.ToECDSA(okm)
	if err != nil {
		return nil, errors.New("deriving secp256k1 key: not a scalar of the curve")
	}
	public := crypto.CompressPubkey(&key.PublicKey)
	signature, err := r.sign(prefixAppK256, appID, public)
	if err != nil {
		return nil, err
	}
	return &AppK256Key{Private: NewSecret(okm), Public: public, Signature: signature}, nil
}

// SignEnvPublic signs the public half of [Roots.Env], 65 bytes. The signature
// holds for ever; [Roots.SignEnvPublicAt] makes one that clients see age.
func (r *Roots) SignEnvPublic(appID, public []byte) ([]byte, error) {
	if err := checkAppID(appID); err != nil {
		return nil, err
	}
	return r.sign(prefixEnv, appID, public)
}

// SignEnvPublicAt signs the public half of [Roots.Env] together with a time in
// seconds since 1970, 65 bytes. Clients call it signature_v1.
func (r *Roots) SignEnvPublicAt(appID, public []byte, unixSeconds uint64) ([]byte, error) {
	if err := checkAppID(appID); err != nil {
		return nil, err
	}
	return r.sign(prefixEnv, appID, binary.BigEndian.AppendUint64(nil, unixSeconds), public)
}

// sign signs Keccak-256(prefix ":" appID parts...) with the secp256k1 root key:
// deterministic (RFC 6979), low S, recovery id 0 or 1 as the last byte.
func (r *Roots) sign(prefix string, appID []byte, parts ...[]byte) ([]byte, error) {
	message := append([][]byte{[]byte(prefix + ":"), appID}, parts...)
	signature, err := crypto.Sign(crypto.Keccak256(message...), r.k256)
	if err != nil {
		return nil, fmt.Errorf("signing with the secp256k1 root key: %w", err)
	}
	return signature, nil
}

// kdf is HKDF-SHA256 with a fixed salt; its info is the plain concatenation of
// the pieces, which is ambiguous unless all but one have fixed sizes: hence the
// size checks above.
func kdf(ikm []byte, info ...string) ([]byte, error) {
	okm, err := hkdf.Key(sha256.New, ikm, []byte(hkdfSalt), strings.Join(info, ""), ScalarSize)
	if err != nil {
		return nil, fmt.Errorf("deriving key: %w", err)
	}
	return okm, nil
}

// deriveP256 uses the derived bytes as they are as the child's scalar, without
// reduction; one in 2^32 derivations has no key.
func deriveP256(parent *ecdsa.PrivateKey, info ...string) (*ecdsa.PrivateKey, error) {
	scalar, err := parent.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding P-256 key: %w", err)
	}
	okm, err := kdf(scalar, info...)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), okm)
	if err != nil {
		return nil, errors.New("deriving P-256 key: not a scalar of the curve")
	}
	return key, nil
}

// The fixed parts of the PKCS#8 DER of a P-256 key with its public key: what
// stands before the 32 bytes of the scalar, and between these and the 65 bytes
// of the uncompressed point (docs/wire.md#derivation).
const (
	pkcs8Head = "\x30\x81\x87\x02\x01\x00\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01" +
		"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x04\x6d\x30\x6b\x02\x01\x01\x04\x20"
	pkcs8Middle = "\xa1\x44\x03\x42\x00"
)

// deriveDH hashes the PKCS#8 DER of a derived key: exactly 138 bytes, public
// key included. That it is no Diffie-Hellman is history; the keys depend on it.
// The DER is put together here, which takes a fifth of the time of
// crypto/x509.
func deriveDH(parent *ecdsa.PrivateKey, info ...string) (Secret, error) {
	key, err := deriveP256(parent, info...)
	if err != nil {
		return Secret{}, err
	}
	scalar, err := key.Bytes()
	if err != nil {
		return Secret{}, fmt.Errorf("encoding derived key: %w", err)
	}
	public, err := key.PublicKey.Bytes()
	if err != nil {
		return Secret{}, fmt.Errorf("encoding derived key: %w", err)
	}
	der := make([]byte, 0, 138)
	der = append(append(der, pkcs8Head...), scalar...)
	der = append(append(der, pkcs8Middle...), public...)
	sum := sha256.Sum256(der)
	return NewSecret(sum[:]), nil
}

func checkAppID(appID []byte) error {
	if len(appID) != AppIDSize {
		return fmt.Errorf("app id: %d bytes, want %d", len(appID), AppIDSize)
	}
	return nil
}
