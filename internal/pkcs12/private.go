package pkcs12

import (
	"encoding/asn1"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const (
	// maxPKCS8 bounds a private key, in bytes: one of RSA with maxRSA bits has
	// less than 5 KiB.
	maxPKCS8 = 8 << 10
	// maxInteger bounds a number in it: maxRSA bits, and the zero that keeps them
	// positive.
	maxInteger = maxRSA/8 + 1
)

//nolint:gochecknoglobals // a constant in all but name
var oidRSA = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}

// shroudedKey reads SEQUENCE { algorithm, encryptedData OCTET STRING }.
func (w *walker) shroudedKey(value cryptobyte.String) error {
	var seq, ciphertext cryptobyte.String
	if !value.ReadASN1(&seq, cbasn1.SEQUENCE) || !value.Empty() {
		return refused(reasonDER)
	}
	a, ok := readAlgorithm(&seq)
	if !ok {
		return refused(reasonDER)
	}
	how, err := w.encryption(a)
	switch {
	case err != nil:
		return err
	case !seq.ReadASN1(&ciphertext, cbasn1.OCTET_STRING) || !seq.Empty():
		return refused(reasonDER)
	case len(ciphertext) > maxPKCS8:
		return keyTooLarge()
	case w.password == nil:
		return nil
	}
	w.keys = append(w.keys, func() error {
		plain, err := w.decrypt(how, ciphertext)
		if err != nil {
			return err
		}
		return checkPKCS8(plain)
	})
	return nil
}

const reasonKey = "its private key cannot be read"

func keyTooLarge() error {
	return refused(fmt.Sprintf("its private key is larger than one of RSA with %d bits", maxRSA))
}

// checkPKCS8 looks at a private key before it is parsed: of an RSA key without
// all its numbers the missing ones are computed, which takes hours where the
// others are as large as a file may be.
//
//	SEQUENCE { version INTEGER, algorithm, privateKey OCTET STRING, ... }
func checkPKCS8(value cryptobyte.String) error {
	var info, key cryptobyte.String
	if len(value) > maxPKCS8 {
		return keyTooLarge()
	}
	if !value.ReadASN1(&info, cbasn1.SEQUENCE) || !value.Empty() || !info.SkipASN1(cbasn1.INTEGER) {
		return refused(reasonKey)
	}
	a, ok := readAlgorithm(&info)
	if !ok || !info.ReadASN1(&key, cbasn1.OCTET_STRING) {
		return refused(reasonKey)
	}
	if !a.id.Equal(oidRSA) {
		return nil // its curve says how large it is
	}
	var numbers cryptobyte.String
	if !key.ReadASN1(&numbers, cbasn1.SEQUENCE) || !key.Empty() {
		return refused(reasonKey)
	}
	for !numbers.Empty() {
		var number cryptobyte.String
		var tag cbasn1.Tag
		if !numbers.ReadAnyASN1(&number, &tag) {
			return refused(reasonKey)
		}
		if tag == cbasn1.INTEGER && len(number) > maxInteger {
			return keyTooLarge()
		}
	}
	return nil
}
