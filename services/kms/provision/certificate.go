package provision

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"time"

	"teekms/internal/keys"
)

const (
	// DefaultCommonName is the common name of the server's certificate.
	DefaultCommonName = "cosmian.kms"
	// DefaultLifetime is how long that certificate is valid.
	DefaultLifetime = 365 * 24 * time.Hour
	// backdate allows for clients whose clock is slow.
	backdate = time.Hour
	// maxCommonName is X.520's bound, in characters.
	maxCommonName = 64
)

// CertificateConfig says what [NewCertificate] makes.
type CertificateConfig struct {
	// CommonName is the subject's; "" means [DefaultCommonName]. Where it is a
	// DNS name it is a subject alternative name too.
	CommonName string
	// Names are further subject alternative names, DNS names and IP addresses:
	// host name and addresses of the machine. Those that are neither, as host
	// names often are, and 0.0.0.0 are left out. localhost, 127.0.0.1 and ::1 are
	// always there.
	Names []string
	// Evidence makes the extensions that tie Evidence to the certificate's key,
	// given in DER (SubjectPublicKeyInfo); nil makes a certificate without.
	Evidence func(ctx context.Context, spki []byte) ([]pkix.Extension, error)
	// Lifetime is how long the certificate is valid; 0 means [DefaultLifetime].
	Lifetime time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// NewCertificate makes the self-signed certificate of the configuration server:
// a new P-256 key, a random serial number, for servers only and no CA.
func NewCertificate(ctx context.Context, c CertificateConfig) (tls.Certificate, error) {
	cert, err := newCertificate(ctx, c)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making the certificate of the configuration server: %w", err)
	}
	return cert, nil
}

func newCertificate(ctx context.Context, c CertificateConfig) (cert tls.Certificate, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return cert, fmt.Errorf("making key: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return cert, fmt.Errorf("encoding public key: %w", err)
	}
	template, err := template(c, spki)
	if err != nil {
		return cert, err
	}
	if c.Evidence != nil {
		if template.ExtraExtensions, err = c.Evidence(ctx, spki); err != nil {
			return cert, err
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return cert, fmt.Errorf("signing: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return cert, fmt.Errorf("reading it back: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

func template(c CertificateConfig, spki []byte) (*x509.Certificate, error) {
	if c.CommonName == "" {
		c.CommonName = DefaultCommonName
	}
	if len([]rune(c.CommonName)) > maxCommonName {
		return nil, fmt.Errorf("the common name has more than %d characters", maxCommonName)
	}
	if c.Lifetime < 0 {
		return nil, errors.New("the lifetime is negative")
	}
	if c.Lifetime == 0 {
		c.Lifetime = DefaultLifetime
	}
	if c.Now == nil {
		c.Now = time.Now //nolint:forbidigo // the documented default of an optional clock
	}
	serial := make([]byte, 16)
	if _, err := rand.Read(serial); err != nil {
		return nil, fmt.Errorf("making serial number: %w", err)
	}
	serial[0] = serial[0]&0x3f | 0x40 // positive, and always as long
	id := sha256.Sum256(spki)
	now := c.Now().UTC()
	t := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), SubjectKeyId: id[:20],
		Subject:   pkix.Name{CommonName: c.CommonName},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(c.Lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	addNames(t, append([]string{c.CommonName, "localhost", "127.0.0.1", "::1"}, c.Names...))
	return t, nil
}

// addNames adds each name once, as what it is.
func addNames(t *x509.Certificate, names []string) {
	for _, name := range names {
		if addr, err := netip.ParseAddr(name); err == nil {
			if addr.IsUnspecified() {
				continue // to listen on, not to be reached at
			}
			ip := net.IP(addr.Unmap().WithZone("").AsSlice())
			if !slices.ContainsFunc(t.IPAddresses, func(known net.IP) bool { return known.Equal(ip) }) {
				t.IPAddresses = append(t.IPAddresses, ip)
			}
			continue
		}
		if keys.ValidateDomain(name) == nil && !slices.Contains(t.DNSNames, name) {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
}
