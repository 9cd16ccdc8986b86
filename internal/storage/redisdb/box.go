package redisdb

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"

	"teekms/internal/storage"
)

const (
	// keySize is that of every key here.
	keySize = 32
	// fieldSize is that of a blind name.
	fieldSize = 16
	// boxVersion is the first byte of every value.
	boxVersion = 1
	// tagSize is that of the beginning of a value, version and nonce, by which it
	// is told from every other.
	tagSize = 1 + chacha20poly1305.NonceSizeX
	// padTo is what the length of every plaintext is a multiple of.
	padTo = 256
	// maxSealed bounds a value before anything is done with it: a record of
	// 1 MiB with its nodes, and the padding.
	maxSealed = 2 << 20

	infoEncrypt = "teekms/redis/v1/values"
	infoNames   = "teekms/redis/v1/names"

	// The fields whose names are no secret, shorter than blind ones.
	headerField = "header"
	headField   = "head"

	// keyPattern finds the databases of a server.
	keyPattern = "kms:{*}"
)

// keyName returns the name of the database's key, which shows a hash of the label.
func keyName(label string) string {
	sum := sha256.Sum256([]byte("teekms/redis/v1/label\x00" + label))
	return "kms:{" + hex.EncodeToString(sum[:16]) + "}"
}

// box encrypts values and blinds names:
//
//	value     = 1 | nonce (24) | XChaCha20-Poly1305(length (4) | data | zeros)
//	aad       = length of label (4) | label | key of Redis | 0 | field
//	name      = HMAC-SHA256(names, domain | 0 | data)[:16]
type box struct {
	aead  cipher.AEAD
	names []byte
	aad   []byte // as far as it is the same for every field
}

// newBox derives the keys of a database from its root key.
func newBox(root []byte, label string) (*box, error) {
	encrypt, err := hkdf.Key(sha256.New, root, []byte(label), infoEncrypt, keySize)
	if err != nil {
		return nil, fmt.Errorf("deriving the keys of the Redis database: %w", err)
	}
	names, err := hkdf.Key(sha256.New, root, []byte(label), infoNames, keySize)
	if err != nil {
		return nil, fmt.Errorf("deriving the keys of the Redis database: %w", err)
	}
	aead, err := chacha20poly1305.NewX(encrypt)
	if err != nil {
		return nil, fmt.Errorf("deriving the keys of the Redis database: %w", err)
	}
	aad := binary.BigEndian.AppendUint32(nil, uint32(len(label)))
	aad = append(aad, label...)
	aad = append(aad, keyName(label)...)
	return &box{aead: aead, names: names, aad: append(aad, 0)}, nil
}

// name blinds data, which is of a fixed length in each domain.
func (b *box) name(domain string, data ...[]byte) string {
	mac := hmac.New(sha256.New, b.names)
	mac.Write([]byte(domain))
	mac.Write([]byte{0})
	for _, d := range data {
		mac.Write(d)
	}
	return string(mac.Sum(nil)[:fieldSize])
}

func (b *box) bind(field string) []byte { return append(bytes.Clone(b.aad), field...) }

// seal encrypts data for one field.
func (b *box) seal(data []byte, field string) string {
	plain := make([]byte, 4, paddedSize(len(data)))
	binary.BigEndian.PutUint32(plain, uint32(len(data)))
	plain = append(plain, data...)
	plain = plain[:cap(plain)]
	value := make([]byte, tagSize, tagSize+len(plain)+chacha20poly1305.Overhead)
	value[0] = boxVersion
	_, _ = rand.Read(value[1:]) // crypto/rand never fails.
	return string(b.aead.Seal(value, value[1:], plain, b.bind(field)))
}

// open decrypts the value of one field; its error is storage.ErrIntegrity.
func (b *box) open(value, field string) ([]byte, error) {
	if len(value) < tagSize+padTo+chacha20poly1305.Overhead || len(value) > maxSealed || value[0] != boxVersion {
		return nil, fmt.Errorf("%w: %w", storage.ErrIntegrity, errEncoding)
	}
	raw := []byte(value)
	plain, err := b.aead.Open(nil, raw[1:tagSize], raw[tagSize:], b.bind(field))
	if err != nil {
		return nil, fmt.Errorf("%w: a record does not authenticate", storage.ErrIntegrity)
	}
	return unpad(plain)
}

// paddedSize is the length of the plaintext of n bytes of data.
func paddedSize(n int) int { return (4 + n + padTo - 1) / padTo * padTo }

// unpad takes the data from a plaintext, which has one form only.
func unpad(plain []byte) ([]byte, error) {
	c := cursor{rest: plain}
	data := c.bytes(int(c.uint32()))
	if c.failed || paddedSize(len(data)) != len(plain) {
		return nil, fmt.Errorf("%w: %w", storage.ErrIntegrity, errEncoding)
	}
	for _, zero := range c.rest {
		if zero != 0 {
			return nil, fmt.Errorf("%w: %w", storage.ErrIntegrity, errEncoding)
		}
	}
	return data, nil
}
