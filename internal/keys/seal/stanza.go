package seal

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"filippo.io/age"
	"golang.org/x/crypto/chacha20poly1305"

	"teekms/internal/keys"
)

// Names of stanzas: docs/seal.md#format. A seal's stanza is the prefix and its
// kind.
const (
	stanzaPrefix  = "teekms-"
	stanzaFile    = "teekms-file"
	stanzaEscrow  = "teekms-escrow"
	stanzaVersion = "v1"
)

// labelPrefix and the kind are the HKDF info of a seal's wrapping key.
const labelPrefix = "teekms/v1/seal/"

const (
	// keySize is the size in bytes of the key of a [KeySource].
	keySize = 32
	// fileKeySize is the size in bytes of age's file key.
	fileKeySize = 16
	// saltSize is the size in bytes of every salt of ours.
	saltSize = 16
)

// errUnwrap says that a key does not open a stanza. What that means is for
// [misfit] to say.
var errUnwrap = errors.New("the key does not fit")

// misfit says what it means that the key of a source does not open a stanza.
func misfit(kind Kind) error {
	switch kind {
	case KindPassphrase:
		return ErrWrongPassphrase
	case KindGuestAgent:
		return fmt.Errorf("%w: the file was sealed with another (another application, or another KMS above it), or is damaged", errUnwrap)
	case KindTPM, KindEscrow:
	}
	// The TPM has opened what the file holds for it.
	return fmt.Errorf("%w: the file was changed, or is damaged", errUnwrap)
}

// encoding is that of age: base64 without padding, one text for one value.
func encoding() *base64.Encoding { return base64.RawStdEncoding.Strict() }

// ownStanza is the stanza of a seal with a key source, read.
type ownStanza struct {
	// args are those of the key source.
	args []string
	salt []byte
	body []byte
	// err says why the stanza cannot be used: it is of another version.
	err error
}

// wrap returns the stanza by which key opens fileKey:
//
//	-> teekms-KIND v1 ARGS… SALT
//	ChaCha20-Poly1305(HKDF-SHA256(key, SALT, "teekms/v1/seal/KIND"), fileKey)
func wrap(kind Kind, key keys.Secret, args []string, fileKey []byte) (*age.Stanza, error) {
	salt := make([]byte, saltSize)
	rand.Read(salt) // never fails: crypto/rand ends the program instead
	aead, err := wrapping(kind, key, salt)
	if err != nil {
		return nil, err
	}
	all := append([]string{stanzaVersion}, args...)
	return &age.Stanza{
		Type: stanzaPrefix + string(kind),
		Args: append(all, encoding().EncodeToString(salt)),
		Body: aead.Seal(nil, make([]byte, aead.NonceSize()), fileKey, nil),
	}, nil
}

// unwrap returns the file key of a stanza that wrap made.
func unwrap(kind Kind, key keys.Secret, s ownStanza) ([]byte, error) {
	aead, err := wrapping(kind, key, s.salt)
	if err != nil {
		return nil, err
	}
	// One size only: a longer text could be made to open under many keys.
	if len(s.body) != fileKeySize+aead.Overhead() {
		return nil, errUnwrap
	}
	fileKey, err := aead.Open(nil, make([]byte, aead.NonceSize()), s.body, nil)
	if err != nil {
		return nil, errUnwrap
	}
	return fileKey, nil
}

// wrapping returns the cipher of one stanza. Its key is used for one message,
// so the nonce is zero.
func wrapping(kind Kind, key keys.Secret, salt []byte) (cipher.AEAD, error) {
	if key.Len() != keySize {
		return nil, fmt.Errorf("the key has %d bytes, not %d", key.Len(), keySize)
	}
	k, err := hkdf.Key(sha256.New, key.Bytes(), salt, labelPrefix+string(kind), chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("deriving the wrapping key: %w", err)
	}
	aead, err := chacha20poly1305.New(k)
	if err != nil {
		return nil, fmt.Errorf("making the wrapping cipher: %w", err)
	}
	return aead, nil
}
