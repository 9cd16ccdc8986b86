package ratls

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"teekms/internal/attest"
	"teekms/internal/attest/tdx"
	"teekms/internal/attest/versioned"
	"teekms/internal/keys"
)

// The bounds of what a peer may present, in bytes and in certificates. Real
// certificates with Evidence have 10 to 20 KiB and come alone. Before these
// apply, crypto/tls reads at most 256 KiB of certificates and parses them.
const (
	MaxCertificateSize = 64 << 10
	MaxChainSize       = 96 << 10
	MaxChain           = 8
	// maxEvidenceSize leaves room for the rest of a certificate.
	maxEvidenceSize = MaxCertificateSize - 4<<10
)

var errMixed = errors.New("certificate has Evidence of both generations")

// FromCertificate returns the Evidence that a certificate carries, nil when it
// carries none. An extension given twice, both generations at once, a quote
// without event log or the other way round, and whatever cannot be read are
// errors. Nothing in the Evidence is verified; of an event log in JSON not even
// the form has been looked at.
func FromCertificate(c *x509.Certificate) (*attest.Evidence, error) {
	ev, err := fromCertificate(c)
	if err != nil {
		return nil, fmt.Errorf("reading Evidence from certificate: %w", err)
	}
	return ev, nil
}

func fromCertificate(c *x509.Certificate) (*attest.Evidence, error) {
	if len(c.Raw) > MaxCertificateSize {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(c.Raw), MaxCertificateSize)
	}
	quote, hasQuote, err := payload(c, keys.ArcQuote)
	if err != nil {
		return nil, err
	}
	log, hasLog, err := payload(c, keys.ArcEventLog)
	if err != nil {
		return nil, err
	}
	attestation, hasAttestation, err := payload(c, keys.ArcAttestation)
	if err != nil {
		return nil, err
	}
	switch {
	case hasAttestation && (hasQuote || hasLog):
		return nil, errMixed
	case hasAttestation:
		return fromAttestation(attestation)
	case hasQuote != hasLog:
		return nil, fmt.Errorf("extensions %d and %d come together or not at all", keys.ArcQuote, keys.ArcEventLog)
	case hasQuote:
		return fromQuote(quote, log)
	}
	return nil, nil //nolint:nilnil // no Evidence is an answer, not an error
}

func fromAttestation(b []byte) (*attest.Evidence, error) {
	a, err := versioned.Parse(b)
	if err != nil {
		return nil, err //nolint:wrapcheck // the caller says what it is about
	}
	return a.Evidence() //nolint:wrapcheck // as above
}

func fromQuote(quote, log []byte) (*attest.Evidence, error) {
	q, err := tdx.ParseQuote(quote)
	if err != nil {
		return nil, fmt.Errorf("quote: %w", err)
	}
	return &attest.Evidence{Quote: q.Raw, EventLog: log}, nil
}

// carriesEvidence says whether a certificate has any Evidence extension, before
// work is spent on it.
func carriesEvidence(c *x509.Certificate) bool {
	for _, e := range c.Extensions {
		for _, arc := range [...]int{keys.ArcQuote, keys.ArcEventLog, keys.ArcAttestation} {
			if e.Id.Equal(keys.ExtensionOID(arc)) {
				return true
			}
		}
	}
	return false
}

// Usage returns the special usage of a certificate ("kms:rpc"), "" when it has
// none. An extension given twice is an error.
func Usage(c *x509.Certificate) (string, error) {
	text, _, err := payload(c, keys.ArcUsage)
	if err != nil {
		return "", fmt.Errorf("reading special usage: %w", err)
	}
	return string(text), nil
}

// payload returns what is in the OCTET STRING of extension arc.
func payload(c *x509.Certificate, arc int) (b []byte, found bool, err error) {
	id := keys.ExtensionOID(arc)
	for _, e := range c.Extensions {
		if !e.Id.Equal(id) {
			continue
		}
		if found {
			return nil, false, fmt.Errorf("extension %d is there twice", arc)
		}
		outer := cryptobyte.String(e.Value)
		var inner cryptobyte.String
		if !outer.ReadASN1(&inner, cbasn1.OCTET_STRING) || !outer.Empty() {
			return nil, false, fmt.Errorf("extension %d is not an OCTET STRING", arc)
		}
		b, found = inner, true
	}
	return b, found, nil
}

// Extensions encodes Evidence for a certificate. Gen8 strips the event log of
// boot events; Gen1 needs all of it, as its readers replay every register. The
// machine's description goes into Gen8 as it is: whoever signs for somebody
// else decides what it says.
func Extensions(ev *attest.Evidence, gen Generation) ([]pkix.Extension, error) {
	out, err := extensions(ev, gen)
	if err != nil {
		return nil, fmt.Errorf("writing Evidence for certificate: %w", err)
	}
	size := 0
	for _, e := range out {
		size += len(e.Value)
	}
	if size > maxEvidenceSize {
		return nil, fmt.Errorf("writing Evidence for certificate: %d bytes, want at most %d", size, maxEvidenceSize)
	}
	return out, nil
}

func extensions(ev *attest.Evidence, gen Generation) ([]pkix.Extension, error) {
	switch gen {
	case Gen8:
		a, err := versioned.New(ev)
		if err != nil {
			return nil, err //nolint:wrapcheck // the caller says what it is about
		}
		b, err := a.Strip().Marshal()
		if err != nil {
			return nil, err //nolint:wrapcheck // as above
		}
		return []pkix.Extension{keys.Extension(keys.ArcAttestation, b)}, nil
	case Gen1:
		log := ev.EventLog
		if len(log) == 0 {
			log = []byte("[]")
		}
		return []pkix.Extension{keys.Extension(keys.ArcQuote, ev.Quote), keys.Extension(keys.ArcEventLog, log)}, nil
	}
	return nil, fmt.Errorf("no generation %d", gen)
}
