package keystore_test

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

// forms are what a private file looks like in the clear, in whole or in part: of
// its secret number 16 bytes in a row raw, 12 bytes in hex, small and capital,
// and in base64, both alphabets. PEM, DER, JSON and dumps of any of them have one
// of these: in the PKCS#8 form the number begins at a multiple of three bytes.
func forms(scalar []byte) []string {
	var all []string
	for at := 0; at+12 <= len(scalar); at += 12 {
		part := scalar[at : at+12]
		small := hex.EncodeToString(part)
		all = append(all, small, strings.ToUpper(small),
			base64.StdEncoding.EncodeToString(part), base64.URLEncoding.EncodeToString(part))
	}
	for at := 0; at+16 <= len(scalar); at += 16 {
		all = append(all, string(scalar[at:at+16]))
	}
	return all
}

// secrets are the forms of each private file.
type secrets map[string][]string

// scalarOf returns the secret number of a plain private file, 32 bytes.
func scalarOf(name string, plain []byte) []byte {
	if name == "root-k256.key" {
		return plain
	}
	key, err := keys.ParseKey(plain)
	if err != nil {
		panic(err) // the file was written by this test
	}
	scalar, err := key.Bytes()
	if err != nil {
		panic(err)
	}
	return scalar
}

func secretsOf(files map[string][]byte) secrets {
	all := secrets{}
	for name, plain := range files {
		all[name] = forms(scalarOf(name, plain))
	}
	return all
}

// whole are the first forms alone, in which the files themselves are found.
func (s secrets) whole() secrets {
	some := secrets{}
	for name, forms := range s {
		some[name] = []string{forms[2], forms[len(forms)-2]}
	}
	return some
}

// in returns the names of the files of which something is in one of the texts.
func (s secrets) in(texts []string) []string {
	var found []string
	for name, forms := range s {
		if slices.ContainsFunc(texts, func(text string) bool {
			return slices.ContainsFunc(forms, func(form string) bool { return strings.Contains(text, form) })
		}) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	return found
}

func TestEveryFormInTheClearIsFound(t *testing.T) {
	files := keystore.PlainFiles(newBundle(t))
	for name, plain := range files {
		s := secretsOf(map[string][]byte{name: plain})
		scalar := scalarOf(name, plain)
		forms := map[string]string{
			"file": string(plain), "first half": string(plain[:len(plain)/2+12]),
			"number": string(scalar), "hex": hex.EncodeToString(scalar), "HEX": strings.ToUpper(hex.EncodeToString(scalar)),
			"base64": base64.StdEncoding.EncodeToString(scalar), "base64url": base64.RawURLEncoding.EncodeToString(scalar),
		}
		if name != "root-k256.key" {
			key, err := keys.ParseKey(plain)
			if err != nil {
				t.Fatal(err)
			}
			der, err := x509.MarshalPKCS8PrivateKey(key)
			if err != nil {
				t.Fatal(err)
			}
			forms["DER"], forms["DER in hex"] = string(der), hex.EncodeToString(der)
			forms["DER in base64"] = base64.StdEncoding.EncodeToString(der)
		}
		for form, text := range forms {
			if got := s.in([]string{"before " + text + " after"}); len(got) != 1 {
				t.Errorf("%s of %s is not found", form, name)
			}
		}
		for other, text := range files {
			if got := s.in([]string{string(text)}); other != name && len(got) != 0 {
				t.Errorf("%s is found in %s", name, other)
			}
		}
	}
}
