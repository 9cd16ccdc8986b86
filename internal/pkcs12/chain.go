package pkcs12

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

const (
	minRSA = 2048
	maxRSA = 8192
	// maxCerts bounds the certificates of a file.
	maxCerts = 16
	// soon is when the end of a certificate is worth a word.
	soon = 30 * 24 * time.Hour
)

// serverCertificate checks what was found in a file and puts it in order.
func serverCertificate(key any, first *x509.Certificate, others []*x509.Certificate, now time.Time) (tls.Certificate, []string, error) {
	var none tls.Certificate
	certs := append([]*x509.Certificate{first}, others...)
	if len(certs) > maxCerts {
		return none, nil, refused(fmt.Sprintf("it holds more than %d certificates", maxCerts))
	}
	if slices.ContainsFunc(certs, tooLarge) {
		return none, nil, refused(fmt.Sprintf("it holds a certificate with an RSA key of more than %d bits", maxRSA))
	}
	signer, err := checkKey(key)
	if err != nil {
		return none, nil, err
	}
	leaf := ofKey(certs, signer.Public())
	if leaf == nil {
		return none, nil, refused("its key is not that of a certificate in it")
	}
	warnings, err := checkLeaf(leaf, now)
	if err != nil {
		return none, nil, err
	}
	chain, more := order(leaf, certs, now)
	out := tls.Certificate{PrivateKey: signer, Leaf: leaf}
	for _, c := range chain {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out, append(warnings, more...), nil
}

// tooLarge tells a certificate with a key that takes seconds to verify anything
// with.
func tooLarge(c *x509.Certificate) bool {
	key, ok := c.PublicKey.(*rsa.PublicKey)
	return ok && key.N.BitLen() > maxRSA
}

// checkKey takes the kinds of keys that TLS clients understand.
func checkKey(key any) (crypto.Signer, error) {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if bits := k.N.BitLen(); bits < minRSA || bits > maxRSA {
			return nil, refused(fmt.Sprintf("its RSA key has %d bits, want %d to %d", bits, minRSA, maxRSA))
		}
		return k, nil
	case *ecdsa.PrivateKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return nil, refused("its key is on the elliptic curve " + k.Curve.Params().Name + ", want P-256 or P-384")
		}
		return k, nil
	case ed25519.PrivateKey:
		return k, nil
	}
	return nil, refused("its key is neither RSA, P-256, P-384 nor Ed25519")
}

// ofKey returns the certificate of a public key; files need not begin with it.
func ofKey(certs []*x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	known, ok := public.(interface{ Equal(x crypto.PublicKey) bool })
	if !ok {
		return nil
	}
	for _, c := range certs {
		if known.Equal(c.PublicKey) {
			return c
		}
	}
	return nil
}

// checkLeaf refuses a certificate that no client would take from a server.
func checkLeaf(leaf *x509.Certificate, now time.Time) (warnings []string, err error) {
	switch {
	case now.Before(leaf.NotBefore):
		return nil, refused("its certificate is not valid before " + day(leaf.NotBefore))
	case now.After(leaf.NotAfter):
		return nil, refused("its certificate was valid until " + day(leaf.NotAfter))
	case len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) > 0 &&
		!slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny):
		return nil, refused("its certificate is not meant for servers (no serverAuth in its extended key usage)")
	case leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 && !selfSigned(leaf):
		return nil, refused("its certificate is not meant for signatures (no digitalSignature in its key usage)")
	case leaf.IsCA && !selfSigned(leaf):
		return nil, refused("its certificate is that of a certificate authority")
	}
	if left := leaf.NotAfter.Sub(now); left < soon {
		warnings = append(warnings, fmt.Sprintf("The certificate in the PKCS#12 file expires on %s.", day(leaf.NotAfter)))
	}
	if selfSigned(leaf) {
		warnings = append(warnings, "The certificate in the PKCS#12 file is self-signed.")
	}
	if leaf.PublicKeyAlgorithm == x509.Ed25519 {
		warnings = append(warnings, "The certificate in the PKCS#12 file has an Ed25519 key, which browsers refuse.")
	}
	if len(leaf.DNSNames)+len(leaf.IPAddresses) == 0 {
		warnings = append(warnings, "The certificate in the PKCS#12 file has no subject alternative name; most clients refuse that.")
	}
	return warnings, nil
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

// order returns the leaf and the certificates that lead from it towards its
// root, each signed by the next. The root itself and certificates of no use
// are left out: clients have the one and are not helped by the others.
func order(leaf *x509.Certificate, certs []*x509.Certificate, now time.Time) (chain []*x509.Certificate, warnings []string) {
	chain = []*x509.Certificate{leaf}
	for last := leaf; !selfSigned(last) && len(chain) <= len(certs); {
		issuer := issuerOf(last, certs)
		if issuer == nil {
			if last == leaf && len(certs) > 1 {
				warnings = append(warnings, "The PKCS#12 file holds other certificates, but not that of the issuer.")
			}
			break
		}
		if selfSigned(issuer) {
			break
		}
		if now.After(issuer.NotAfter) || now.Before(issuer.NotBefore) {
			warnings = append(warnings, "A certificate in the chain of the PKCS#12 file is not valid today.")
		}
		chain, last = append(chain, issuer), issuer
	}
	return chain, warnings
}

func issuerOf(c *x509.Certificate, certs []*x509.Certificate) *x509.Certificate {
	for _, candidate := range certs {
		if candidate != c && bytes.Equal(c.RawIssuer, candidate.RawSubject) && c.CheckSignatureFrom(candidate) == nil {
			return candidate
		}
	}
	return nil
}
