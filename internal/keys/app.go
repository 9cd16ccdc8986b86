package keys

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"time"
)

// AppRequest says what [IssueApp] issues.
type AppRequest struct {
	// Roots holds the key that signs the application's CA, and from which that
	// CA's key is derived. Required.
	Roots *Roots
	// CA is the root certificate; its key must be that of Roots. Required.
	CA *x509.Certificate
	// AppID is the application, 20 bytes. Required.
	AppID []byte
	// Public is the subject's key, on P-256. Required.
	Public *ecdsa.PublicKey
	// Organization and CommonName are the subject; no organization is written
	// where it is empty.
	Organization, CommonName string
	// Names are subject alternative names: what reads as an IP address is one,
	// the rest are DNS names.
	Names []string
	// ServerAuth and ClientAuth are the extended key usages.
	ServerAuth, ClientAuth bool
	// NotBefore and NotAfter are the validity that is asked for; zero stands
	// for all that the application's CA allows, and more than that is cut.
	NotBefore, NotAfter time.Time
	// Extensions are added after our own; none may repeat one of these.
	Extensions []pkix.Extension
	// Now is the time of issue. Required.
	Now time.Time
}

// ErrNoValidity says that nothing is left of the validity that was asked for.
var ErrNoValidity = errors.New("the certificate would never be valid")

// IssueApp issues a certificate of an application, and the certificate of the
// application's CA that signs it, both in DER (docs/wire.md#certificates). The
// CA's key is that of [Roots.AppCA]; its certificate is made each time.
func IssueApp(req AppRequest) (leaf, ca []byte, err error) {
	if req.Public == nil || req.Public.Curve != elliptic.P256() {
		return nil, nil, errors.New("issuing application certificate: the key is not on the curve P-256")
	}
	key, err := req.Roots.AppCA(req.AppID)
	if err != nil {
		return nil, nil, fmt.Errorf("issuing application certificate: %w", err)
	}
	ca, err = issueAppCA(req, key)
	if err != nil {
		return nil, nil, err
	}
	parent, err := x509.ParseCertificate(ca)
	if err != nil {
		return nil, nil, fmt.Errorf("parsing certificate of the application CA: %w", err)
	}
	template, err := newAppTemplate(req, parent)
	if err != nil {
		return nil, nil, err
	}
	leaf, err = x509.CreateCertificate(rand.Reader, template, parent, req.Public, key)
	if err != nil {
		return nil, nil, fmt.Errorf("signing application certificate: %w", err)
	}
	return leaf, ca, nil
}

func issueAppCA(req AppRequest, key *ecdsa.PrivateKey) ([]byte, error) {
	if !req.Roots.ca.PublicKey.Equal(req.CA.PublicKey) {
		return nil, errors.New("issuing certificate of the application CA: the root certificate is of another key")
	}
	template, err := newCATemplate(&key.PublicKey, appCommonName, 0, req.Now)
	if err != nil {
		return nil, err
	}
	if template.NotAfter.After(req.CA.NotAfter) {
		template.NotAfter = req.CA.NotAfter
	}
	template.ExtraExtensions = []pkix.Extension{
		Extension(ArcAppID, req.AppID), Extension(ArcUsage, []byte(UsageAppCA)),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, req.CA, &key.PublicKey, req.Roots.ca)
	if err != nil {
		return nil, fmt.Errorf("signing certificate of the application CA: %w", err)
	}
	return der, nil
}

func newAppTemplate(req AppRequest, parent *x509.Certificate) (*x509.Certificate, error) {
	template, err := newTemplate(req.Now, CALifetime, req.Organization, req.CommonName)
	if err != nil {
		return nil, err
	}
	if template.NotBefore, template.NotAfter, err = appValidity(req, parent); err != nil {
		return nil, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	if req.ServerAuth {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if req.ClientAuth {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	addNames(template, req.Names...)
	own := []pkix.Extension{Extension(ArcAppID, req.AppID), Extension(ArcUsage, []byte(UsageApp))}
	if template.ExtraExtensions, err = joinExtensions(own, req.Extensions); err != nil {
		return nil, fmt.Errorf("issuing application certificate: %w", err)
	}
	return template, nil
}

// appValidity is what was asked for, as far as the CA is valid. A time that is
// over already is refused: such a certificate serves nobody.
func appValidity(req AppRequest, parent *x509.Certificate) (from, to time.Time, err error) {
	from, to = parent.NotBefore, parent.NotAfter
	if req.NotBefore.After(from) {
		from = req.NotBefore.UTC().Truncate(time.Second)
	}
	if !req.NotAfter.IsZero() && req.NotAfter.Before(to) {
		to = req.NotAfter.UTC().Truncate(time.Second)
	}
	if !to.After(from) || !to.After(req.Now) {
		return from, to, ErrNoValidity
	}
	return from, to, nil
}
