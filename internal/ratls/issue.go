package ratls

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"

	"teekms/internal/attest"
)

const (
	// ClientCommonName is the common name of certificates that clients make for
	// themselves.
	ClientCommonName = "RA-TLS TEMP Cert"
	// clientLifetime is how long they are valid. This KMS does not look at it,
	// others do.
	clientLifetime = 30 * 24 * time.Hour
	// backdate allows for servers whose clock is slow.
	backdate = time.Hour
)

// ClientCertConfig says what [NewCertificate] makes.
type ClientCertConfig struct {
	// Attester makes the Evidence. Required.
	Attester attest.Attester
	// Key is the key of the certificate; nil means a new one over P-256.
	Key *ecdsa.PrivateKey
	// CommonName is the subject; "" means ClientCommonName.
	CommonName string
	// Issuer is the temporary CA of a KMS, for servers that want a chain to it;
	// nil means that the certificate signs itself.
	Issuer *Issuer
	// Generation is the form of the Evidence.
	Generation Generation
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Issuer signs certificates.
type Issuer struct {
	// Certificate is that of the CA. Required.
	Certificate *x509.Certificate
	// Key is its private key. Required.
	Key *ecdsa.PrivateKey
}

// NewCertificate makes a certificate that carries Evidence bound to its key. It
// asks the attester for one quote, which may take seconds: keep the certificate
// for as many connections as the key lives.
func NewCertificate(ctx context.Context, c ClientCertConfig) (tls.Certificate, error) {
	cert, err := newCertificate(ctx, c)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making RA-TLS certificate: %w", err)
	}
	return cert, nil
}

func newCertificate(ctx context.Context, c ClientCertConfig) (cert tls.Certificate, err error) {
	if c.Attester == nil {
		return cert, errors.New("no attester")
	}
	key := c.Key
	if key == nil {
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return cert, fmt.Errorf("making key: %w", err)
		}
	}
	template, err := clientTemplate(c)
	if err != nil {
		return cert, err
	}
	if template.ExtraExtensions, err = evidenceFor(ctx, &key.PublicKey, c); err != nil {
		return cert, err
	}
	parent, signer := template, key
	if c.Issuer != nil {
		parent, signer = c.Issuer.Certificate, c.Issuer.Key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return cert, fmt.Errorf("signing: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return cert, fmt.Errorf("reading it back: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

func clientTemplate(c ClientCertConfig) (*x509.Certificate, error) {
	if c.CommonName == "" {
		c.CommonName = ClientCommonName
	}
	if c.Now == nil {
		c.Now = time.Now //nolint:forbidigo // the documented default of an optional clock
	}
	serial := make([]byte, 16)
	if _, err := rand.Read(serial); err != nil {
		return nil, fmt.Errorf("making serial number: %w", err)
	}
	serial[0] = serial[0]&0x3f | 0x40 // positive, and always as long
	now := c.Now().UTC()
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		Subject:      pkix.Name{CommonName: c.CommonName},
		NotBefore:    now.Add(-backdate), NotAfter: now.Add(clientLifetime),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}, nil
}

// evidenceFor has the public key quoted.
func evidenceFor(ctx context.Context, key *ecdsa.PublicKey, c ClientCertConfig) ([]pkix.Extension, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding public key: %w", err)
	}
	ev, err := c.Attester.Attest(ctx, attest.RATLSReportData(spki))
	if err != nil {
		return nil, fmt.Errorf("attesting: %w", err)
	}
	return Extensions(ev, c.Generation)
}
