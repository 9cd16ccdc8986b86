package keys

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"time"
)

// The names in the certificates of a KMS. Existing clients compare them.
const (
	organization   = "Dstack"
	rootCommonName = "Dstack KMS CA"
	tempCommonName = "Dstack Client Temp CA"

	appCommonName = "Dstack App CA"

	// UsageRPC is the special usage of the RPC certificate of a KMS.
	UsageRPC = "kms:rpc"
	// UsageAppCA is the special usage of the CA certificate of an application.
	UsageAppCA = "app:ca"
	// UsageApp is the special usage of a certificate of an application.
	UsageApp = "app:custom"
)

// The last arcs of the extensions under 1.3.6.1.4.1.62397.1. Each holds an
// OCTET STRING of its own: see [Extension].
const (
	// ArcQuote is a raw TDX quote, written by older peers.
	ArcQuote = 1
	// ArcEventLog is the JSON event log, written by older peers.
	ArcEventLog = 2
	// ArcAppID is the 20-byte application id.
	ArcAppID = 3
	// ArcUsage is the special usage, ASCII.
	ArcUsage = 4
	// ArcAttestation is a versioned attestation.
	ArcAttestation = 8
	// ArcAppInfo is what is known of an application.
	ArcAppInfo = 9
)

const (
	// CALifetime is how long a CA certificate is valid.
	CALifetime = 3650 * 24 * time.Hour
	// RPCLifetime is how long an RPC certificate is valid.
	RPCLifetime = 90 * 24 * time.Hour
	// backdate allows for clients whose clock is slow.
	backdate = time.Hour

	pemCertificate = "CERTIFICATE"
)

// RPCRequest says what [IssueRPC] issues.
type RPCRequest struct {
	// Roots holds the key that signs. Required.
	Roots *Roots
	// CA is the root certificate; its key must be that of Roots. Required.
	CA *x509.Certificate
	// Public is the subject's key. Required.
	Public *ecdsa.PublicKey
	// Domain is common name and subject alternative name. Required.
	Domain string
	// Extensions are added after our own; none may repeat one of these.
	Extensions []pkix.Extension
	// Now is the time of issue. Required.
	Now time.Time
}

// Extension returns the certificate extension 1.3.6.1.4.1.62397.1.arc with the
// payload wrapped in an OCTET STRING, which makes two of them nested: X.509's
// and the wire format's. It is not critical.
func Extension(arc int, payload []byte) pkix.Extension {
	return pkix.Extension{Id: ExtensionOID(arc), Value: octetString(payload)}
}

// ExtensionOID returns 1.3.6.1.4.1.62397.1.arc.
func ExtensionOID(arc int) asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 62397, 1, arc}
}

// NewRootCA makes the self-signed certificate of the root CA key, in DER:
// "O=Dstack, CN=Dstack KMS CA", path length 1, ten years.
func NewRootCA(r *Roots, now time.Time) ([]byte, error) {
	return selfSigned(r.ca, rootCommonName, 1, now)
}

// NewTempCA makes the self-signed certificate of the temporary CA, in DER:
// "O=Dstack, CN=Dstack Client Temp CA", path length 0, ten years. It vouches
// for nobody: clients use it to make certificates that carry their Evidence.
func NewTempCA(key *ecdsa.PrivateKey, now time.Time) ([]byte, error) {
	return selfSigned(key, tempCommonName, 0, now)
}

func selfSigned(key *ecdsa.PrivateKey, commonName string, pathLen int, now time.Time) ([]byte, error) {
	template, err := newCATemplate(&key.PublicKey, commonName, pathLen, now)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("signing certificate %q: %w", commonName, err)
	}
	return der, nil
}

func newCATemplate(public *ecdsa.PublicKey, commonName string, pathLen int, now time.Time) (*x509.Certificate, error) {
	template, err := newTemplate(now, CALifetime, organization, commonName)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("encoding public key: %w", err)
	}
	id := sha256.Sum256(der)
	template.SubjectKeyId = id[:20]
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.MaxPathLen = pathLen
	template.MaxPathLenZero = pathLen == 0
	template.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	return template, nil
}

// IssueRPC issues the certificate of the RPC listener, in DER: the domain as
// common name and as subject alternative name of the right type, the usage
// "kms:rpc", 90 days. The common name is the whole domain even where that is
// longer than the 64 bytes of X.520: clients show it and none enforces the
// bound.
func IssueRPC(req RPCRequest) ([]byte, error) {
	if err := ValidateDomain(req.Domain); err != nil {
		return nil, err
	}
	if !req.Roots.ca.PublicKey.Equal(req.CA.PublicKey) {
		return nil, errors.New("issuing RPC certificate: the CA certificate is of another key")
	}
	template, err := newTemplate(req.Now, RPCLifetime, "", req.Domain)
	if err != nil {
		return nil, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	addNames(template, req.Domain)
	template.ExtraExtensions, err = joinExtensions([]pkix.Extension{Extension(ArcUsage, []byte(UsageRPC))}, req.Extensions)
	if err != nil {
		return nil, fmt.Errorf("issuing RPC certificate: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, req.CA, req.Public, req.Roots.ca)
	if err != nil {
		return nil, fmt.Errorf("issuing RPC certificate: %w", err)
	}
	return der, nil
}

// addNames adds subject alternative names of the right type: what reads as an
// IP address is one, the rest are DNS names.
func addNames(template *x509.Certificate, names ...string) {
	for _, name := range names {
		if addr, err := netip.ParseAddr(name); err == nil {
			template.IPAddresses = append(template.IPAddresses, addr.Unmap().AsSlice())
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
}

// CertificatePEM encodes one certificate in DER as PEM.
func CertificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der})
}

// ParseCertificate reads exactly one certificate in PEM.
func ParseCertificate(text []byte) (*x509.Certificate, error) {
	der, err := parsePEM(text, pemCertificate)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parsing certificate: %w", err)
	}
	return cert, nil
}

// joinExtensions refuses an extension that is given twice or that the template
// makes itself: readers differ in which of two they believe.
func joinExtensions(own, extra []pkix.Extension) ([]pkix.Extension, error) {
	all := slices.Clone(own)
	for _, e := range extra {
		twice := slices.ContainsFunc(all, func(o pkix.Extension) bool { return o.Id.Equal(e.Id) })
		standard := len(e.Id) == 4 && e.Id[0] == 2 && e.Id[1] == 5 && e.Id[2] == 29
		if twice || standard {
			return nil, fmt.Errorf("extension %v must not be given", e.Id)
		}
		all = append(all, e)
	}
	return all, nil
}

func newTemplate(now time.Time, lifetime time.Duration, org, commonName string) (*x509.Certificate, error) {
	serial := make([]byte, 16)
	if _, err := rand.Read(serial); err != nil {
		return nil, fmt.Errorf("making serial number: %w", err)
	}
	// RFC 5280 §4.1.2.2: positive and not zero; the first bits keep the length
	// constant.
	serial[0] = serial[0]&0x3f | 0x40
	subject, err := distinguishedName(org, commonName)
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		RawSubject:   subject,
		NotBefore:    now.Add(-backdate).UTC().Truncate(time.Second),
		NotAfter:     now.Add(lifetime).UTC().Truncate(time.Second),
	}, nil
}

// distinguishedName encodes O (if any) and CN as UTF8String. Existing KMSs do
// too, and clients compare issuer and subject byte by byte: a CA certificate
// that is made again over adopted keys keeps its name.
func distinguishedName(org, commonName string) ([]byte, error) {
	var name pkix.RDNSequence
	add := func(arc int, value string) {
		name = append(name, pkix.RelativeDistinguishedNameSET{{
			Type:  asn1.ObjectIdentifier{2, 5, 4, arc},
			Value: asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(value)},
		}})
	}
	if org != "" {
		add(10, org)
	}
	add(3, commonName)
	der, err := asn1.Marshal(name)
	if err != nil {
		return nil, fmt.Errorf("encoding name %q: %w", commonName, err)
	}
	return der, nil
}

// octetString encodes payload as a DER OCTET STRING.
func octetString(payload []byte) []byte {
	n := len(payload)
	header := []byte{asn1.TagOctetString}
	if n < 0x80 {
		header = append(header, byte(n))
	} else {
		length := big.NewInt(int64(n)).Bytes()
		header = append(append(header, 0x80|byte(len(length))), length...)
	}
	return append(header, payload...)
}
