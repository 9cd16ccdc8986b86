// Package record reads the public record of a bootstrap: two public keys, the
// quote that binds them, and its event log. It reads every form in which the
// record is written (docs/kmsctl.md#records) and believes nothing of it.
package record

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/ethereum/go-ethereum/crypto"
)

// MaxSize is the largest text that [Parse] looks at, in bytes: the largest
// attestation of a peer, in hex, with room for the rest.
const MaxSize = 24 << 20

// Record is the public record of a bootstrap. Its keys are keys, nothing else
// of it is checked.
type Record struct {
	// CAPublic is the DER SubjectPublicKeyInfo of the root CA (P-256).
	CAPublic []byte
	// K256Public is the compressed point of the root secp256k1 key.
	K256Public []byte
	// Quote is the TDX quote, empty when quotes were switched off.
	Quote []byte
	// EventLog is the JSON text of the event log.
	EventLog []byte
	// Encoding is how the bytes were written: "base64" or "hex".
	Encoding string
}

// The keys of a record. A newer peer has the attestation instead of quote and
// event log.
const (
	keyCA          = "ca_pubkey"
	keyK256        = "k256_pubkey"
	keyQuote       = "quote"
	keyEventLog    = "eventlog"
	keyAttestation = "attestation"
)

// Parse reads a record from JSON. A key that it does not know, or that is given
// twice, is an error: readers could differ in which of two they believe.
func Parse(text []byte) (*Record, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("record of %d bytes, want at most %d", len(text), MaxSize)
	}
	fields, err := members(text)
	if err != nil {
		return nil, err
	}
	decode, encoding, err := decoder(fields[keyK256])
	if err != nil {
		return nil, err
	}
	raw := make(map[string][]byte, len(fields))
	for name, value := range fields {
		if raw[name], err = decode(value); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	r := &Record{
		CAPublic: raw[keyCA], K256Public: raw[keyK256],
		Quote: raw[keyQuote], EventLog: raw[keyEventLog], Encoding: encoding,
	}
	if a := raw[keyAttestation]; len(a) > 0 {
		if r.Quote, r.EventLog, err = splitAttestation(a); err != nil {
			return nil, fmt.Errorf("%s: %w", keyAttestation, err)
		}
	}
	if err := r.checkKeys(); err != nil {
		return nil, err
	}
	return r, nil
}

// members reads the object, whose values are all strings.
func members(text []byte) (map[string]string, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	fields := map[string]string{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("not JSON: %w", err)
		}
		name, _ := t.(string) // a key always is
		if _, twice := fields[name]; twice {
			return nil, fmt.Errorf("%s: given twice", name)
		}
		var value *string
		if err := d.Decode(&value); err != nil || value == nil {
			return nil, fmt.Errorf("%s: want a string", name)
		}
		fields[name] = *value
	}
	if _, err := d.Token(); err != nil {
		return nil, errors.New("not JSON: the object has no end")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("text after the object")
	}
	return fields, checkNames(fields)
}

func checkNames(fields map[string]string) error {
	for name := range fields {
		switch name {
		case keyCA, keyK256, keyQuote, keyEventLog, keyAttestation:
		default:
			return fmt.Errorf("unknown key %q", name)
		}
	}
	required := []string{keyCA, keyK256, keyQuote, keyEventLog}
	if _, ok := fields[keyAttestation]; ok {
		required = []string{keyCA, keyK256}
		for _, name := range []string{keyQuote, keyEventLog} {
			if fields[name] != "" {
				return fmt.Errorf("both %s and %s", keyAttestation, name)
			}
		}
	}
	for _, name := range required {
		if _, ok := fields[name]; !ok {
			return fmt.Errorf("%s: missing", name)
		}
	}
	return nil
}

// decoder tells the encoding of a record by the length of its secp256k1 key,
// and by nothing else: any hex text is base64 as well.
func decoder(k256 string) (decode func(string) ([]byte, error), encoding string, err error) {
	switch n := len(k256); {
	case n == 44:
		return base64.StdEncoding.Strict().DecodeString, "base64", nil
	case n == 66, n == 68 && strings.HasPrefix(k256, "0x"):
		return decodeHex, "hex", nil
	default:
		return nil, "", fmt.Errorf("%s: %d characters, want 44 (base64), 66 (hex) or 68 (hex with 0x)", keyK256, n)
	}
}

func decodeHex(s string) ([]byte, error) {
	return hex.DecodeString(strings.TrimPrefix(s, "0x"))
}

// checkKeys checks that both keys are keys, in their only encoding.
func (r *Record) checkKeys() error {
	parsed, err := x509.ParsePKIXPublicKey(r.CAPublic)
	if err != nil {
		return fmt.Errorf("%s: not a public key: %w", keyCA, err)
	}
	ca, ok := parsed.(*ecdsa.PublicKey)
	if !ok || ca.Curve != elliptic.P256() {
		return fmt.Errorf("%s: not a P-256 key", keyCA)
	}
	if again, err := x509.MarshalPKIXPublicKey(ca); err != nil || !bytes.Equal(again, r.CAPublic) {
		return fmt.Errorf("%s: not in its canonical encoding", keyCA)
	}
	if len(r.K256Public) != 33 {
		return fmt.Errorf("%s: %d bytes, want 33", keyK256, len(r.K256Public))
	}
	if _, err := crypto.DecompressPubkey(r.K256Public); err != nil {
		return fmt.Errorf("%s: not a point of secp256k1", keyK256)
	}
	return nil
}
