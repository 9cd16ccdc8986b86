// Package evidence reads the Evidence of a workload from a file, in every form
// in which it is kept, and verifies it.
package evidence

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"teekms/cmd/internal/argfile"
	"teekms/cmd/kmsctl/internal/record"
	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/tdx"
	"teekms/internal/attest/versioned"
	"teekms/internal/keys"
	"teekms/internal/ratls"
)

// MaxSize is the largest file that [Read] looks at, in bytes.
const MaxSize = record.MaxSize

// File is what a file holds. Nothing of it is verified.
type File struct {
	// Evidence is what it holds, never nil.
	Evidence *attest.Evidence
	// Certificate is the certificate that carries the Evidence, nil where the
	// file is none.
	Certificate *x509.Certificate
	// OfKMS says that it is the Evidence of a KMS: a record of its bootstrap, or
	// its certificate.
	OfKMS bool
}

// Read reads a file: the record of a bootstrap, the JSON answer of a guest agent
// with quote and event_log or with attestation, a certificate (PEM or DER), or an
// attestation (binary or hex).
func Read(ctx context.Context, path string) (*File, error) {
	text, err := argfile.Read(ctx, path, MaxSize)
	if err != nil {
		return nil, fmt.Errorf("reading Evidence: %w", err)
	}
	file, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("reading Evidence: %s: %w", path, err)
	}
	return file, nil
}

// Parse tells the forms of [Read] apart by their first bytes.
func Parse(text []byte) (*File, error) {
	trimmed := bytes.TrimSpace(text)
	switch {
	case bytes.HasPrefix(trimmed, []byte("{")):
		return parseJSON(trimmed)
	case bytes.HasPrefix(trimmed, []byte("-----BEGIN CERTIFICATE")):
		block, _ := pem.Decode(trimmed)
		if block == nil {
			return nil, errors.New("not a PEM certificate")
		}
		return parseCertificate(block.Bytes)
	}
	if b, err := unhex(string(trimmed)); err == nil && len(b) > 0 {
		text = b
	}
	if len(text) > 1 && text[0] == 0x30 && text[1] == 0x82 { // a SEQUENCE of 256 bytes and more
		return parseCertificate(text)
	}
	if _, err := tdx.ParseQuote(text); err == nil {
		return nil, errors.New("a quote alone does not say what the workload is: its event log is missing")
	}
	ev, err := fromAttestation(text)
	if err != nil {
		return nil, fmt.Errorf("neither JSON, nor a certificate, nor an attestation: %w", err)
	}
	return &File{Evidence: ev}, nil
}

func unhex(s string) ([]byte, error) { return hex.DecodeString(strings.TrimPrefix(s, "0x")) }

func fromAttestation(b []byte) (*attest.Evidence, error) {
	a, err := versioned.Parse(b)
	if err != nil {
		return nil, err
	}
	return a.Evidence()
}

func parseCertificate(der []byte) (*File, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	ev, err := ratls.FromCertificate(c)
	if err != nil {
		return nil, err
	}
	if ev == nil {
		return nil, errors.New("the certificate carries no Evidence")
	}
	usage, err := ratls.Usage(c)
	if err != nil {
		return nil, err
	}
	return &File{Evidence: ev, Certificate: c, OfKMS: usage == keys.UsageRPC}, nil
}

// parseJSON reads a record, or what a guest agent answers. Names that neither
// has mean nothing.
func parseJSON(text []byte) (*File, error) {
	var answer struct {
		CAPublic    *string         `json:"ca_pubkey"`
		Quote       string          `json:"quote"`
		EventLog    json.RawMessage `json:"event_log"`
		VMConfig    string          `json:"vm_config"`
		Attestation string          `json:"attestation"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, err
	}
	if answer.CAPublic != nil {
		r, err := record.Parse(text)
		if err != nil {
			return nil, err
		}
		return &File{Evidence: &attest.Evidence{Quote: r.Quote, EventLog: r.EventLog}, OfKMS: true}, nil
	}
	if answer.Attestation != "" {
		b, err := unhex(answer.Attestation)
		if err != nil {
			return nil, fmt.Errorf("attestation: %w", err)
		}
		ev, err := fromAttestation(b)
		if err != nil {
			return nil, fmt.Errorf("attestation: %w", err)
		}
		return &File{Evidence: ev}, nil
	}
	quote, err := unhex(answer.Quote)
	if err != nil {
		return nil, fmt.Errorf("quote: %w", err)
	}
	q, err := tdx.ParseQuote(quote)
	if err != nil {
		return nil, fmt.Errorf("quote: %w", err)
	}
	log, err := logText(answer.EventLog)
	if err != nil {
		return nil, fmt.Errorf("event_log: %w", err)
	}
	return &File{Evidence: &attest.Evidence{Quote: q.Raw, EventLog: log, VMConfig: answer.VMConfig}}, nil
}

// logText is the event log, which agents write as JSON in a string; the same
// without the string around it will do.
func logText(raw json.RawMessage) ([]byte, error) {
	if !bytes.HasPrefix(raw, []byte(`"`)) {
		return raw, nil
	}
	var text string
	err := json.Unmarshal(raw, &text)
	return []byte(text), err
}

// Verify verifies the Evidence: that it binds the key, where it is in a
// certificate, and otherwise for itself. The error has a link of the chain as
// [*attest.VerifyError].
func (f *File) Verify(ctx context.Context, v *tdx.Verifier) (*ratls.Attested, error) {
	if f.Certificate != nil {
		a, err := ratls.NewAppraiser(ratls.AppraiserConfig{Verifier: v})
		if err != nil {
			return nil, err
		}
		return a.AppraiseCertificate(ctx, f.Certificate)
	}
	if len(f.Evidence.Quote) == 0 {
		return nil, &attest.VerifyError{Link: attest.LinkFormat, Err: errors.New("there is no quote")}
	}
	claims, err := v.Verify(ctx, f.Evidence)
	if err != nil {
		return nil, err
	}
	if len(f.Evidence.EventLog) == 0 {
		return nil, &attest.VerifyError{Link: attest.LinkEventLog, Err: errors.New("there is none, so nothing says what the workload is")}
	}
	log, err := eventlog.Parse(f.Evidence.EventLog)
	if err != nil {
		return nil, &attest.VerifyError{Link: attest.LinkEventLog, Err: err}
	}
	return &ratls.Attested{Claims: claims, Log: log, VMConfig: f.Evidence.VMConfig, Evidence: f.Evidence}, nil
}
