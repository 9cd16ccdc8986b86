package simtd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"
)

// The certificates of the PKI, as [Config.EditCertificate] is told them.
const (
	CertificateRoot      = "root"
	CertificatePCKCA     = "pck-ca"
	CertificatePCK       = "pck"
	CertificateTCBSigner = "tcb-signer"
)

const (
	rootCRLURL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
	pckCRLURL  = "https://api.trustedservices.intel.com/sgx/certification/v4/pckcrl?ca=platform&encoding=der"
)

// pair is a certificate and its key.
type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// pki is Intel's hierarchy under names of its own keys: root, platform CA and
// PCK for the quotes, the TCB signer for collateral, and the attestation key
// that only the QE report vouches for.
type pki struct {
	root, pckCA, pck, tcbSigner pair
	attestation                 *ecdsa.PrivateKey
}

// chain is the chain inside a quote: leaf, CA, root, one NUL after.
func (p *pki) chain() []byte {
	return append(pemOf(p.pck.cert, p.pckCA.cert, p.root.cert), 0)
}

func pemOf(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// issuing is one certificate to be made.
type issuing struct {
	which, cn string
	lifetime  int // years; 0 = to the end of 2049, as Intel's root
	edit      func(*x509.Certificate)
}

// newPKI makes keys and certificates, long-lived as Intel's.
func newPKI(cfg Config, platform platform) (*pki, error) {
	sgx, err := platform.extension()
	if err != nil {
		return nil, err
	}
	ca := x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	leaf := x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment
	p := new(pki)
	steps := []struct {
		out, parent *pair
		issuing
	}{
		{&p.root, &p.root, issuing{CertificateRoot, "Intel SGX Root CA", 0, func(c *x509.Certificate) {
			c.IsCA, c.MaxPathLen, c.KeyUsage, c.CRLDistributionPoints = true, 1, ca, []string{rootCRLURL}
		}}},
		{&p.pckCA, &p.root, issuing{CertificatePCKCA, "Intel SGX PCK Platform CA", 15, func(c *x509.Certificate) {
			c.IsCA, c.MaxPathLenZero, c.KeyUsage, c.CRLDistributionPoints = true, true, ca, []string{rootCRLURL}
		}}},
		{&p.pck, &p.pckCA, issuing{CertificatePCK, "Intel SGX PCK Certificate", 7, func(c *x509.Certificate) {
			c.KeyUsage, c.CRLDistributionPoints, c.ExtraExtensions = leaf, []string{pckCRLURL}, []pkix.Extension{sgx}
		}}},
		{&p.tcbSigner, &p.root, issuing{CertificateTCBSigner, "Intel SGX TCB Signing", 7, func(c *x509.Certificate) {
			c.KeyUsage, c.CRLDistributionPoints = leaf, []string{rootCRLURL}
		}}},
	}
	for _, s := range steps {
		if err := issue(cfg, s.out, s.parent, s.issuing); err != nil {
			return nil, fmt.Errorf("issuing %s certificate: %w", s.which, err)
		}
	}
	if p.attestation, err = newKey(); err != nil {
		return nil, err
	}
	return p, nil
}

// issue makes a key and a certificate under parent, which is out itself for the
// root.
func issue(cfg Config, out, parent *pair, i issuing) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	out.key = key
	subject, err := intelName(i.cn)
	if err != nil {
		return err
	}
	serial := make([]byte, 20)
	_, _ = rand.Read(serial) // never fails
	serial[0] = serial[0]&0x7f | 1
	point, err := key.PublicKey.Bytes()
	if err != nil {
		return fmt.Errorf("encoding key: %w", err)
	}
	keyID := sha256.Sum256(point)
	now := cfg.Now().UTC().Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), RawSubject: subject, SubjectKeyId: keyID[:20],
		// Yesterday, for clocks that differ.
		NotBefore: now.AddDate(0, 0, -1), NotAfter: time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC),
		BasicConstraintsValid: true,
	}
	if i.lifetime > 0 {
		template.NotAfter = now.AddDate(i.lifetime, 0, 0)
	}
	i.edit(template)
	if cfg.EditCertificate != nil {
		cfg.EditCertificate(i.which, template)
	}
	issuer := template
	if parent != out {
		issuer = parent.cert
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, &key.PublicKey, parent.key)
	if err != nil {
		return fmt.Errorf("signing: %w", err)
	}
	if out.cert, err = x509.ParseCertificate(der); err != nil {
		return fmt.Errorf("reading it back: %w", err)
	}
	return nil
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making key: %w", err)
	}
	return key, nil
}

// intelName gives the name the order and the string types of Intel's:
// crypto/x509 would sort the country first.
func intelName(cn string) ([]byte, error) {
	attribute := func(id int, tag int, value string) pkix.RelativeDistinguishedNameSET {
		return pkix.RelativeDistinguishedNameSET{{
			Type:  asn1.ObjectIdentifier{2, 5, 4, id},
			Value: asn1.RawValue{Tag: tag, Bytes: []byte(value)},
		}}
	}
	der, err := asn1.Marshal(pkix.RDNSequence{
		attribute(3, asn1.TagUTF8String, cn),
		attribute(10, asn1.TagUTF8String, "Intel Corporation"),
		attribute(7, asn1.TagUTF8String, "Santa Clara"),
		attribute(8, asn1.TagUTF8String, "CA"),
		attribute(6, asn1.TagPrintableString, "US"),
	})
	if err != nil {
		return nil, fmt.Errorf("encoding name: %w", err)
	}
	return der, nil
}

// platform is what the SGX extension of the PCK certificate says.
type platform struct {
	ppid     [16]byte
	fmspc    [6]byte
	instance [16]byte
}

// The TCB of the simulated platform.
const (
	sgxComponentSVN = 5
	pceSVN          = 13
)

func sgxOID(suffix ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}, suffix...)
}

// extension encodes the SGX extension (docs/evidence.md#pck-certificate).
func (p platform) extension() (pkix.Extension, error) {
	type entry struct {
		ID    asn1.ObjectIdentifier
		Value any
	}
	var tcb []entry
	cpuSVN := make([]byte, 16)
	for i := range 16 {
		tcb = append(tcb, entry{sgxOID(2, i+1), sgxComponentSVN})
		cpuSVN[i] = sgxComponentSVN
	}
	tcb = append(tcb, entry{sgxOID(2, 17), pceSVN}, entry{sgxOID(2, 18), cpuSVN})
	der, err := asn1.Marshal([]entry{
		{sgxOID(1), p.ppid[:]},
		{sgxOID(2), tcb},
		{sgxOID(3), []byte{0, 0}},
		{sgxOID(4), p.fmspc[:]},
		{sgxOID(5), asn1.Enumerated(1)},
		{sgxOID(6), p.instance[:]},
		{sgxOID(7), []entry{{sgxOID(7, 1), true}, {sgxOID(7, 2), true}, {sgxOID(7, 3), true}}},
	})
	if err != nil {
		return pkix.Extension{}, fmt.Errorf("encoding SGX extension: %w", err)
	}
	return pkix.Extension{Id: sgxOID(), Value: der}, nil
}
