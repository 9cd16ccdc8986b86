package pkcs12

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/des" //nolint:gosec // what old files are encrypted with
	"crypto/pbkdf2"
	"crypto/sha1" //nolint:gosec // as above
	"crypto/sha256"
	"crypto/sha512"
	"encoding/asn1"
	"encoding/binary"
	"hash"
	"unicode/utf16"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// An encrypted safe may hold shrouded keys with iteration counts of their own.
// They are looked at before the library, which would run whatever they say, sees
// the file: this is why there is a second decryption here.

// sealed is an encryption by password, as far as it is needed to undo it.
type sealed struct {
	id         asn1.ObjectIdentifier
	salt       []byte
	iterations int
	// prf and scheme are those of PBES2.
	prf    asn1.ObjectIdentifier
	scheme algorithm
}

// open decrypts a sequence; under a wrong password ok is false. encoded is the
// password as the older ciphers take it.
func (s *sealed) open(ciphertext []byte, password string, encoded []byte) (plain []byte, ok bool) {
	block, iv := s.cipher(password, encoded)
	if block == nil || len(iv) != block.BlockSize() || len(ciphertext) == 0 || len(ciphertext)%block.BlockSize() != 0 {
		return nil, false
	}
	plain = make([]byte, len(ciphertext))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, ciphertext)
	padding := int(plain[len(plain)-1])
	if padding == 0 || padding > block.BlockSize() {
		return nil, false
	}
	plain = plain[:len(plain)-padding]
	var all cryptobyte.String
	rest := cryptobyte.String(plain)
	return plain, rest.ReadASN1(&all, cbasn1.SEQUENCE) && rest.Empty()
}

// cipher derives the key; nil stands for parameters that cannot be.
func (s *sealed) cipher(password string, encoded []byte) (block cipher.Block, iv []byte) {
	if s.id.Equal(oidPBES2) {
		return s.pbes2(password)
	}
	derive := func(purpose byte, size int) []byte { return legacyKey(s.salt, encoded, s.iterations, purpose, size) }
	switch {
	case s.id.Equal(oid3DES):
		block, _ = des.NewTripleDESCipher(derive(1, 24)) //nolint:gosec // what old files are encrypted with
	case s.id.Equal(oidRC2128):
		block = newRC2(derive(1, 16))
	default:
		block = newRC2(derive(1, 5))
	}
	return block, derive(2, block.BlockSize())
}

func (s *sealed) pbes2(password string) (block cipher.Block, iv []byte) {
	size := 32
	switch {
	case s.scheme.id.Equal(oidAES128):
		size = 16
	case s.scheme.id.Equal(oidAES192):
		size = 24
	}
	var vector cryptobyte.String
	params := s.scheme.params
	prf, known := prfOf(s.prf)
	if !known || !params.ReadASN1(&vector, cbasn1.OCTET_STRING) || !params.Empty() {
		return nil, nil
	}
	key, err := pbkdf2.Key(prf, password, s.salt, s.iterations, size)
	if err != nil {
		return nil, nil
	}
	block, err = aes.NewCipher(key)
	if err != nil {
		return nil, nil
	}
	return block, vector
}

// prfOf returns the hash of a PBKDF2 function; none named is SHA-1.
func prfOf(id asn1.ObjectIdentifier) (func() hash.Hash, bool) {
	switch {
	case id == nil, id.Equal(oidHMACSHA1):
		return sha1.New, true
	case id.Equal(oidHMACSHA256):
		return sha256.New, true
	case id.Equal(oidHMACSHA512):
		return sha512.New, true
	}
	return nil, false
}

// bmp encodes a password as RFC 7292 §B.1 wants it: UTF-16 in big endian with a
// zero at the end.
func bmp(password string) []byte {
	out := make([]byte, 0, 2*len(password)+2)
	for _, unit := range utf16.Encode([]rune(password)) {
		out = binary.BigEndian.AppendUint16(out, unit)
	}
	return append(out, 0, 0)
}

// legacyKey derives size bytes by RFC 7292 §B.2 with SHA-1. purpose is 1 for a
// key, 2 for an initialization vector, 3 for a MAC key.
func legacyKey(salt, password []byte, iterations int, purpose byte, size int) []byte {
	const v = 64 // bytes in a block of SHA-1
	input := make([]byte, v, v+2*v)
	for i := range input {
		input[i] = purpose
	}
	input = append(append(input, filled(salt, v)...), filled(password, v)...)
	var out []byte
	for {
		a := sha1.Sum(input) //nolint:gosec // what old files are made with
		for range iterations - 1 {
			a = sha1.Sum(a[:]) //nolint:gosec // as above
		}
		out = append(out, a[:]...)
		if len(out) >= size {
			return out[:size]
		}
		b := filled(a[:], v)[:v]
		for block := input[v:]; len(block) > 0; block = block[v:] {
			addOne(block[:v], b)
		}
	}
}

// filled repeats b to a multiple of v bytes.
func filled(b []byte, v int) []byte {
	if len(b) == 0 {
		return nil
	}
	out := make([]byte, (len(b)+v-1)/v*v)
	for i := range out {
		out[i] = b[i%len(b)]
	}
	return out
}

// addOne adds b and one to a, numbers in big endian of one length.
func addOne(a, b []byte) {
	carry := uint16(1)
	for i := len(a) - 1; i >= 0; i-- {
		carry += uint16(a[i]) + uint16(b[i])
		a[i] = byte(carry)
		carry >>= 8
	}
}
