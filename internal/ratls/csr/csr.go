// Package csr reads and writes the signing requests of dstack guests: what
// shall stand in a certificate, for which key, with the Evidence of who asks.
// Both versions, SCALE-encoded (docs/wire.md#csr).
package csr

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"teekms/internal/attest"
	"teekms/internal/attest/tdx"
	"teekms/internal/attest/versioned"
	"teekms/internal/attest/versioned/scale"
)

// The bounds of a request. One of a real guest has about 15 KB.
const (
	// MaxSize bounds an encoded request, in bytes.
	MaxSize = 1 << 20
	// MaxSANs bounds the alternative names.
	MaxSANs = 128
	// MaxNameSize bounds each name, in bytes.
	MaxNameSize = 1024
	// maxKeySize bounds the public key; one over P-256 has 91 bytes.
	maxKeySize = 1024
	// maxTime is the end of the year 9999, as X.509 has no later time.
	maxTime = 253402300799
)

// The two versions, by the api_version of SignCert.
const (
	Version1 uint32 = 1
	Version2 uint32 = 2
)

// confirmWord begins every request, so that its signature is one of nothing
// else.
const confirmWord = "please sign cert:"

// The refusals of [Request.VerifySignature], with the texts that clients know.
var (
	ErrAlgorithm   = errors.New("Unsupported algorithm") //nolint:staticcheck // on the wire
	ErrSignature   = errors.New("Invalid signature")     //nolint:staticcheck // on the wire
	ErrConfirmWord = errors.New("Invalid confirm word")  //nolint:staticcheck // on the wire
)

// Request is a signing request:
//
//	string confirm | bytes public key | Option<string> org | string subject | Vec<string> SANs
//	| bool server | bool client | bool with Evidence
//	version 1: | bytes quote | bytes event log
//	version 2: | bool with app info | Option<u64> not before | Option<u64> not after
//	           | versioned attestation, up to the end
type Request struct {
	// PublicKey is the DER SubjectPublicKeyInfo to be certified. What it is
	// has been looked at only once the signature is verified.
	PublicKey []byte
	// Subject is the common name, Org the organization, "" for none.
	Subject, Org string
	// SANs are the alternative names: what parses as an IP address is one.
	SANs []string
	// ServerAuth and ClientAuth ask for extended key usages.
	ServerAuth, ClientAuth bool
	// WithEvidence asks for the Evidence in the certificate.
	WithEvidence bool
	// WithAppInfo asks for what is known of the application; version 2 only.
	WithAppInfo bool
	// NotBefore and NotAfter are nil where the request leaves them open;
	// version 2 only. Seconds.
	NotBefore, NotAfter *time.Time
	// Evidence is the requester's, unverified: it must be appraised against
	// PublicKey.
	Evidence *attest.Evidence

	confirm string
}

// Parse reads a request. It is strict: nothing may follow in either version.
// The signature is not verified, and neither is the Evidence: a quote that is
// none is for its appraisal to refuse. What contradicts itself in a versioned
// attestation is an error.
func Parse(version uint32, raw []byte) (*Request, error) {
	r, err := parse(version, raw)
	if err != nil {
		return nil, fmt.Errorf("reading signing request: %w", err)
	}
	return r, nil
}

func parse(version uint32, raw []byte) (*Request, error) {
	if version != Version1 && version != Version2 {
		return nil, fmt.Errorf("version is %d, want 1 or 2", version)
	}
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(raw), MaxSize)
	}
	d := scale.NewDecoder(raw)
	r := new(Request)
	if err := r.readConfig(d); err != nil {
		return nil, err
	}
	if version == Version1 {
		return r, r.readEvidence1(d)
	}
	return r, r.readEvidence2(d)
}

func (r *Request) readConfig(d *scale.Decoder) (err error) {
	if r.confirm, err = text(d); err != nil {
		return fmt.Errorf("confirm word: %w", err)
	}
	if r.PublicKey, err = d.Bytes(); err != nil {
		return fmt.Errorf("public key: %w", err)
	}
	if len(r.PublicKey) > maxKeySize {
		return fmt.Errorf("public key of %d bytes, want at most %d", len(r.PublicKey), maxKeySize)
	}
	hasOrg, err := d.Bool()
	if err == nil && hasOrg {
		r.Org, err = text(d)
	}
	if err != nil {
		return fmt.Errorf("organization: %w", err)
	}
	if r.Subject, err = text(d); err != nil {
		return fmt.Errorf("subject: %w", err)
	}
	if err := r.readSANs(d); err != nil {
		return err
	}
	return readFlags(d, &r.ServerAuth, &r.ClientAuth, &r.WithEvidence)
}

func (r *Request) readSANs(d *scale.Decoder) error {
	n, err := d.Count(1, MaxSANs)
	if err != nil {
		return fmt.Errorf("alternative names: %w", err)
	}
	for i := range n {
		name, err := text(d)
		if err != nil {
			return fmt.Errorf("alternative name %d: %w", i, err)
		}
		r.SANs = append(r.SANs, name)
	}
	return nil
}

func text(d *scale.Decoder) (string, error) {
	s, err := d.Text()
	if err == nil && len(s) > MaxNameSize {
		err = fmt.Errorf("%d bytes, want at most %d", len(s), MaxNameSize)
	}
	return s, err //nolint:wrapcheck // the caller names the field
}

func readFlags(d *scale.Decoder, flags ...*bool) (err error) {
	for i, f := range flags {
		if *f, err = d.Bool(); err != nil {
			return fmt.Errorf("flag %d: %w", i, err)
		}
	}
	return nil
}

func (r *Request) readEvidence1(d *scale.Decoder) error {
	quote, err := d.Bytes()
	if err != nil {
		return fmt.Errorf("quote: %w", err)
	}
	log, err := d.Bytes()
	if err != nil {
		return fmt.Errorf("event log: %w", err)
	}
	if n := len(d.Rest()); n > 0 {
		return fmt.Errorf("%d bytes after the end", n)
	}
	r.Evidence = &attest.Evidence{Quote: unpadded(quote), EventLog: log}
	return nil
}

func (r *Request) readEvidence2(d *scale.Decoder) (err error) {
	if err := readFlags(d, &r.WithAppInfo); err != nil {
		return err
	}
	if r.NotBefore, err = optionalTime(d); err != nil {
		return fmt.Errorf("not before: %w", err)
	}
	if r.NotAfter, err = optionalTime(d); err != nil {
		return fmt.Errorf("not after: %w", err)
	}
	a, err := versioned.Parse(d.Rest())
	if err != nil {
		return err //nolint:wrapcheck // the text says what it is about
	}
	if _, err := tdx.ParseQuote(a.Quote); err != nil {
		r.Evidence = &attest.Evidence{Quote: a.Quote}
		return nil //nolint:nilerr // the appraisal will say so
	}
	r.Evidence, err = a.Evidence()
	return err //nolint:wrapcheck // the text says what it is about
}

// unpadded is a quote without what its host has left behind it.
func unpadded(quote []byte) []byte {
	if q, err := tdx.ParseQuote(quote); err == nil {
		return q.Raw
	}
	return quote
}

func optionalTime(d *scale.Decoder) (*time.Time, error) {
	is, err := d.Bool()
	if err != nil || !is {
		return nil, err //nolint:wrapcheck // the caller names the field
	}
	v, err := d.Uint64()
	if err != nil {
		return nil, err //nolint:wrapcheck // as above
	}
	if v > maxTime {
		return nil, fmt.Errorf("%d seconds are after the year 9999", v)
	}
	t := time.Unix(int64(v), 0).UTC()
	return &t, nil
}

// VerifySignature checks that signature, ECDSA over SHA-256 in ASN.1 DER, is
// by the key in the request over the very bytes that were parsed, and then that
// the request was meant as one. It returns the key.
func (r *Request) VerifySignature(raw, signature []byte) (*ecdsa.PublicKey, error) {
	any, err := x509.ParsePKIXPublicKey(r.PublicKey)
	if err != nil {
		return nil, ErrAlgorithm
	}
	key, ok := any.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, ErrAlgorithm
	}
	digest := sha256.Sum256(raw)
	if !ecdsa.VerifyASN1(key, digest[:], signature) {
		return nil, ErrSignature
	}
	if r.confirm != confirmWord {
		return nil, ErrConfirmWord
	}
	return key, nil
}

// Marshal writes a request as [Parse] reads it, for the requester to sign.
func Marshal(version uint32, r *Request) ([]byte, error) {
	b, err := marshal(version, r)
	if err != nil {
		return nil, fmt.Errorf("writing signing request: %w", err)
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("writing signing request: %d bytes, want at most %d", len(b), MaxSize)
	}
	return b, nil
}

func marshal(version uint32, r *Request) ([]byte, error) {
	if r.Evidence == nil {
		return nil, errors.New("no Evidence")
	}
	if err := r.checkText(); err != nil {
		return nil, err
	}
	switch version {
	case Version1:
		if r.WithAppInfo || r.NotBefore != nil || r.NotAfter != nil {
			return nil, errors.New("version 1 has no app info and no times")
		}
		e := r.config()
		e.Bytes(r.Evidence.Quote)
		e.Bytes(r.Evidence.EventLog)
		return e, nil
	case Version2:
		a, err := versioned.New(r.Evidence)
		if err != nil {
			return nil, err //nolint:wrapcheck // the text says what it is about
		}
		attestation, err := a.Marshal()
		if err != nil {
			return nil, err //nolint:wrapcheck // as above
		}
		return r.marshal2(attestation)
	}
	return nil, fmt.Errorf("version is %d, want 1 or 2", version)
}

func (r *Request) checkText() error {
	if len(r.SANs) > MaxSANs {
		return fmt.Errorf("%d alternative names, want at most %d", len(r.SANs), MaxSANs)
	}
	for _, s := range append([]string{r.Subject, r.Org}, r.SANs...) {
		if len(s) > MaxNameSize || !utf8.ValidString(s) {
			return fmt.Errorf("name of %d bytes, want UTF-8 of at most %d", len(s), MaxNameSize)
		}
	}
	return nil
}

// config writes what both versions begin with.
func (r *Request) config() scale.Encoder {
	var e scale.Encoder
	e.Text(confirmWord)
	e.Bytes(r.PublicKey)
	e.Bool(r.Org != "")
	if r.Org != "" {
		e.Text(r.Org)
	}
	e.Text(r.Subject)
	e.Compact(len(r.SANs))
	for _, s := range r.SANs {
		e.Text(s)
	}
	e.Bool(r.ServerAuth)
	e.Bool(r.ClientAuth)
	e.Bool(r.WithEvidence)
	return e
}

func (r *Request) marshal2(attestation []byte) ([]byte, error) {
	e := r.config()
	e.Bool(r.WithAppInfo)
	for _, t := range []*time.Time{r.NotBefore, r.NotAfter} {
		e.Bool(t != nil)
		if t == nil {
			continue
		}
		if s := t.Unix(); s < 0 || s > maxTime {
			return nil, fmt.Errorf("%v has no place in a request", t)
		}
		e.Uint64(uint64(t.Unix()))
	}
	e.Raw(attestation)
	return e, nil
}
