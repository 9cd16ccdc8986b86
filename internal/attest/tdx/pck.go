package tdx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// PCKExtension is what the SGX extension of a PCK certificate says of the
// platform it was issued to (docs/evidence.md#pck-certificate).
type PCKExtension struct {
	// PPID identifies the platform.
	PPID [16]byte
	// Components are the 16 SVNs of the platform's TCB.
	Components [16]uint8
	// PCESVN is the SVN of the provisioning certification enclave.
	PCESVN uint16
	// PCEID identifies that enclave.
	PCEID [2]byte
	// FMSPC is the platform family.
	FMSPC FMSPC
}

// The common names by which Intel tells the roles of its certificates apart.
const (
	commonNamePCK         = "Intel SGX PCK Certificate"
	commonNamePlatformCA  = "Intel SGX PCK Platform CA"
	commonNameProcessorCA = "Intel SGX PCK Processor CA"
	commonNameTCBSigner   = "Intel SGX TCB Signing"
)

// sgxExtension is the OID arc of the SGX extension with arcs below it.
func sgxExtension(below ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}, below...)
}

// ParsePCKExtension reads the value of the SGX extension, a SEQUENCE of
// (OID, value) pairs. PPID, TCB, PCEID, FMSPC and the SGX type must be there;
// nothing may be there twice; what it does not know it skips.
func ParsePCKExtension(der []byte) (*PCKExtension, error) {
	ext := &PCKExtension{}
	seen := make(map[string]bool)
	err := eachPair(der, func(oid asn1.ObjectIdentifier, value *cryptobyte.String) error {
		if seen[oid.String()] {
			return fmt.Errorf("%v is there twice", oid)
		}
		seen[oid.String()] = true
		return ext.set(oid, value)
	})
	if err != nil {
		return nil, fmt.Errorf("reading the SGX extension: %w", err)
	}
	for arc := 1; arc <= 5; arc++ {
		if oid := sgxExtension(arc).String(); !seen[oid] {
			return nil, fmt.Errorf("reading the SGX extension: %s is missing", oid)
		}
	}
	return ext, nil
}

func (e *PCKExtension) set(oid asn1.ObjectIdentifier, value *cryptobyte.String) error {
	switch {
	case oid.Equal(sgxExtension(1)):
		return readOctets(value, oid, e.PPID[:])
	case oid.Equal(sgxExtension(2)):
		return e.setTCB(value)
	case oid.Equal(sgxExtension(3)):
		return readOctets(value, oid, e.PCEID[:])
	case oid.Equal(sgxExtension(4)):
		return readOctets(value, oid, e.FMSPC[:])
	case oid.Equal(sgxExtension(5)):
		var sgxType int
		if !value.ReadASN1Enum(&sgxType) || !value.Empty() {
			return fmt.Errorf("%v is not one ENUMERATED", oid)
		}
		return nil
	default:
		return nil
	}
}

// setTCB reads the 18 members of the TCB: components 1 to 16, PCESVN, CPUSVN.
func (e *PCKExtension) setTCB(value *cryptobyte.String) error {
	members := 0
	seen := [19]bool{}
	err := eachPair(*value, func(oid asn1.ObjectIdentifier, v *cryptobyte.String) error {
		members++
		if len(oid) != 9 || !oid[:8].Equal(sgxExtension(2)) || oid[8] < 1 || oid[8] > 18 || seen[oid[8]] {
			return fmt.Errorf("unexpected member %v", oid)
		}
		arc := oid[8]
		seen[arc] = true
		switch arc {
		case 18:
			return readOctets(v, oid, make([]byte, 16))
		case 17:
			return readSmall(v, oid, &e.PCESVN)
		default:
			return readSmall(v, oid, &e.Components[arc-1])
		}
	})
	if err != nil {
		return fmt.Errorf("TCB: %w", err)
	}
	if members != 18 {
		return fmt.Errorf("TCB: %d members, want 18", members)
	}
	return nil
}

// eachPair calls f for each SEQUENCE{OID, value} of the SEQUENCE der, with the
// value as it stands, tag included.
func eachPair(der []byte, f func(asn1.ObjectIdentifier, *cryptobyte.String) error) error {
	in := cryptobyte.String(der)
	var pairs cryptobyte.String
	if !in.ReadASN1(&pairs, casn1.SEQUENCE) || !in.Empty() {
		return errors.New("not one SEQUENCE")
	}
	for !pairs.Empty() {
		var pair cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !pairs.ReadASN1(&pair, casn1.SEQUENCE) || !pair.ReadASN1ObjectIdentifier(&oid) {
			return errors.New("not a SEQUENCE of an OID and a value")
		}
		if err := f(oid, &pair); err != nil {
			return err
		}
	}
	return nil
}

func readOctets(v *cryptobyte.String, oid asn1.ObjectIdentifier, into []byte) error {
	var b cryptobyte.String
	if !v.ReadASN1(&b, casn1.OCTET_STRING) || !v.Empty() || len(b) != len(into) {
		return fmt.Errorf("%v is not an OCTET STRING of %d bytes", oid, len(into))
	}
	copy(into, b)
	return nil
}

func readSmall[T uint8 | uint16](v *cryptobyte.String, oid asn1.ObjectIdentifier, into *T) error {
	var n uint64
	if !v.ReadASN1Integer(&n) || !v.Empty() || n > uint64(^T(0)) {
		return fmt.Errorf("%v is not an INTEGER from 0 to %d", oid, ^T(0))
	}
	*into = T(n)
	return nil
}

// pckChain is a PCK certificate verified to the trust anchor.
type pckChain struct {
	leaf, issuer *x509.Certificate
	ca           CA
	ext          *PCKExtension
	// The window in which every certificate of the chain is valid.
	notBefore, notAfter time.Time
}

// verifyPCKChain builds the chain of a quote to anchor and reads the SGX
// extension of its leaf. The quote's own copy of the root is not looked at.
func verifyPCKChain(chainPEM []byte, anchor *x509.Certificate, now time.Time) (*pckChain, error) {
	certs, err := parseChain(chainPEM, 3)
	if err != nil {
		return nil, err
	}
	c := &pckChain{leaf: certs[0], issuer: certs[1]}
	if c.ca, err = pckIssuer(c.issuer); err != nil {
		return nil, err
	}
	if cn := c.leaf.Subject.CommonName; cn != commonNamePCK || c.leaf.IsCA {
		return nil, fmt.Errorf("leaf is %q, want an end entity %q", cn, commonNamePCK)
	}
	chain := []*x509.Certificate{c.leaf, c.issuer, anchor}
	if c.notBefore, c.notAfter, err = verifyPath(chain, now); err != nil {
		return nil, err
	}
	for _, e := range c.leaf.Extensions {
		if e.Id.Equal(sgxExtension()) {
			c.ext, err = ParsePCKExtension(e.Value)
			return c, err
		}
	}
	return nil, errors.New("the PCK certificate has no SGX extension")
}

// pckIssuer tells which of Intel's two PCK authorities c is.
func pckIssuer(c *x509.Certificate) (CA, error) {
	switch cn := c.Subject.CommonName; cn {
	case commonNamePlatformCA:
		return PlatformCA, nil
	case commonNameProcessorCA:
		return ProcessorCA, nil
	default:
		return "", fmt.Errorf("PCK issuer is %q, want %q or %q", cn, commonNamePlatformCA, commonNameProcessorCA)
	}
}

// parseChain reads exactly n PEM certificates. A NUL may follow the last, as
// quotes have it; nothing else may stand around them.
func parseChain(b []byte, n int) ([]*x509.Certificate, error) {
	b = bytes.TrimSuffix(b, []byte{0})
	certs := make([]*x509.Certificate, 0, n)
	for len(b) > 0 {
		if len(certs) == n {
			return nil, fmt.Errorf("more than %d certificates", n)
		}
		if !bytes.HasPrefix(b, []byte("-----BEGIN CERTIFICATE-----")) {
			return nil, fmt.Errorf("no PEM certificate where number %d should be", len(certs)+1)
		}
		block, rest := pem.Decode(b)
		if block == nil || block.Type != "CERTIFICATE" || len(block.Headers) != 0 {
			return nil, fmt.Errorf("certificate %d is not PEM", len(certs)+1)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs, b = append(certs, c), rest
	}
	if len(certs) != n {
		return nil, fmt.Errorf("%d certificates, want %d", len(certs), n)
	}
	return certs, nil
}

// verifyPath checks that path, from the leaf up to the trust anchor, is a valid
// chain now, in which every certificate is ECDSA P-256 with SHA-256, and returns the
// window in which it stays one. It takes no other path than this.
func verifyPath(path []*x509.Certificate, now time.Time) (notBefore, notAfter time.Time, err error) {
	opts := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	last := len(path) - 1
	opts.Roots.AddCert(path[last])
	for _, c := range path[1:last] {
		opts.Intermediates.AddCert(c)
	}
	notBefore, notAfter = path[0].NotBefore, path[0].NotAfter
	for _, c := range path {
		if err := checkAlgorithms(c); err != nil {
			return notBefore, notAfter, fmt.Errorf("%q: %w", c.Subject.CommonName, err)
		}
		notBefore, notAfter = later(notBefore, c.NotBefore), earlier(notAfter, c.NotAfter)
	}
	chains, err := path[0].Verify(opts)
	if err != nil {
		return notBefore, notAfter, fmt.Errorf("%q: %w", path[0].Subject.CommonName, err)
	}
	// The window is that of the certificates given, so the chain found must
	// be of just these.
	if len(chains) != 1 || len(chains[0]) != len(path) {
		return notBefore, notAfter, fmt.Errorf("chain of %q is not %d certificates long", path[0].Subject.CommonName, len(path))
	}
	return notBefore, notAfter, nil
}

func checkAlgorithms(c *x509.Certificate) error {
	if c.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		return fmt.Errorf("signature algorithm %v, want %v", c.SignatureAlgorithm, x509.ECDSAWithSHA256)
	}
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return errors.New("public key is not ECDSA P-256")
	}
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
