package keystore

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"teekms/internal/attest/versioned"
	"teekms/internal/keys"
)

// Info is the public record of a bootstrap, bootstrap-info.json.
type Info struct {
	// CAPublic is the root CA's public key, DER SubjectPublicKeyInfo, 91 bytes.
	CAPublic []byte
	// K256Public is the secp256k1 root public key, a compressed point, 33
	// bytes.
	K256Public []byte
	// Quote is the TDX quote over both keys; empty if none was made.
	Quote []byte
	// EventLog is the JSON text of the event log; empty if none was made.
	EventLog []byte
}

// The lengths of k256_pubkey, and nothing else, tell how a record is encoded.
const (
	hexK256Len    = 66
	base64K256Len = 44
)

// storedInfo is the form on disk. Ours has the first four, in standard base64;
// other KMSs write hex, the newer of them a versioned attestation in the place
// of quote and eventlog.
type storedInfo struct {
	CAPublic    string  `json:"ca_pubkey"`
	K256Public  string  `json:"k256_pubkey"`
	Quote       string  `json:"quote"`
	EventLog    string  `json:"eventlog"`
	Attestation *string `json:"attestation,omitempty"`
}

func (i *Info) clone() *Info {
	if i == nil {
		return nil
	}
	return &Info{
		CAPublic:   bytes.Clone(i.CAPublic),
		K256Public: bytes.Clone(i.K256Public),
		Quote:      bytes.Clone(i.Quote),
		EventLog:   bytes.Clone(i.EventLog),
	}
}

func (i *Info) matches(r *keys.Roots) bool {
	return bytes.Equal(i.CAPublic, r.CAPublic()) && bytes.Equal(i.K256Public, r.K256Public())
}

// marshal returns exactly four keys in their order, in standard base64.
func (i *Info) marshal() ([]byte, error) {
	encode := base64.StdEncoding.EncodeToString
	return json.Marshal(storedInfo{
		CAPublic:   encode(i.CAPublic),
		K256Public: encode(i.K256Public),
		Quote:      encode(i.Quote),
		EventLog:   encode(i.EventLog),
	})
}

// ParseInfo reads a record of ours or of another KMS: bootstrap-info.json, or
// bootstrap_info of GetMeta in the JSON of prpc. Where only the Evidence in it
// cannot be read, it returns the public keys with the error.
func ParseInfo(text []byte) (*Info, error) {
	var stored storedInfo
	if err := json.Unmarshal(text, &stored); err != nil {
		return nil, fmt.Errorf("not a bootstrap record: %w", err)
	}
	var decode func(string) ([]byte, error)
	switch len(stored.K256Public) {
	case hexK256Len:
		decode = hex.DecodeString
	case base64K256Len:
		decode = base64.StdEncoding.Strict().DecodeString
	default:
		return nil, fmt.Errorf("k256_pubkey has %d characters, want %d (hex) or %d (base64)",
			len(stored.K256Public), hexK256Len, base64K256Len)
	}
	info := &Info{}
	fields := []struct {
		name string
		from string
		to   *[]byte
	}{
		{"ca_pubkey", stored.CAPublic, &info.CAPublic},
		{"k256_pubkey", stored.K256Public, &info.K256Public},
		{"quote", stored.Quote, &info.Quote},
		{"eventlog", stored.EventLog, &info.EventLog},
	}
	for _, f := range fields {
		b, err := decode(f.from)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		*f.to = b
	}
	if stored.Attestation == nil || *stored.Attestation == "" {
		return info, nil
	}
	if err := info.split(*stored.Attestation, decode); err != nil {
		return &Info{CAPublic: info.CAPublic, K256Public: info.K256Public}, err
	}
	return info, nil
}

// split takes quote and event log out of a versioned attestation.
func (i *Info) split(attestation string, decode func(string) ([]byte, error)) error {
	if len(i.Quote) != 0 || len(i.EventLog) != 0 {
		return errors.New("has both quote and attestation")
	}
	wire, err := decode(attestation)
	if err != nil {
		return fmt.Errorf("attestation: %w", err)
	}
	if i.Quote, i.EventLog, err = splitAttestation(wire); err != nil {
		return fmt.Errorf("attestation: %w", err)
	}
	return nil
}

// splitAttestation reads the versioned attestation of a newer KMS.
func splitAttestation(wire []byte) (quote, eventLog []byte, err error) {
	parsed, err := versioned.Parse(wire)
	if err != nil {
		return nil, nil, err
	}
	evidence, err := parsed.Evidence()
	if err != nil {
		return nil, nil, err
	}
	return evidence.Quote, evidence.EventLog, nil
}
