package tdx

import (
	"bytes"
	"crypto/x509"
	_ "embed" // Intel's root certificate.
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
)

//go:embed intel-sgx-root-ca.pem
var intelRootPEM string

// maxAnchorFile bounds the file of a trust anchor, in bytes.
const maxAnchorFile = 64 << 10

// IntelRootCA returns Intel's SGX root certificate, the trust anchor of all
// real TDX Evidence. The SHA-256 of its DER is
// 44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3.
func IntelRootCA() *x509.Certificate {
	c, err := parseAnchor([]byte(intelRootPEM))
	if err != nil {
		panic("tdx: embedded root certificate: " + err.Error())
	}
	return c
}

// LoadTrustAnchor reads the one certificate, PEM or DER, in the file at path.
// It must be a self-signed authority over a P-256 key.
func LoadTrustAnchor(path string) (*x509.Certificate, error) {
	b, err := readLimited(path, maxAnchorFile)
	if err != nil {
		return nil, fmt.Errorf("reading trust anchor: %w", err)
	}
	c, err := parseAnchor(b)
	if err != nil {
		return nil, fmt.Errorf("reading trust anchor %s: %w", path, err)
	}
	return c, nil
}

func parseAnchor(b []byte) (*x509.Certificate, error) {
	if block, rest := pem.Decode(b); block != nil {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM of a %s, want a CERTIFICATE", block.Type)
		}
		if len(bytes.TrimSpace(rest)) != 0 {
			return nil, errors.New("more than one certificate")
		}
		b = block.Bytes
	}
	c, err := x509.ParseCertificate(b)
	if err != nil {
		return nil, err
	}
	return c, checkAnchor(c)
}

// checkAnchor refuses certificates that cannot be the root of a PCK hierarchy.
func checkAnchor(c *x509.Certificate) error {
	if !c.BasicConstraintsValid || !c.IsCA {
		return errors.New("not a certificate authority")
	}
	if c.KeyUsage&x509.KeyUsageCertSign == 0 || c.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return errors.New("key usage without certificate and CRL signing")
	}
	if err := checkAlgorithms(c); err != nil {
		return err
	}
	if err := c.CheckSignatureFrom(c); err != nil {
		return fmt.Errorf("not self-signed: %w", err)
	}
	return nil
}

// readLimited reads a file of at most limit bytes.
func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return b, nil
}
