package client

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/attest"
	"teekms/internal/ratls/csr"
)

// maxChain bounds a chain in an answer; it has three certificates.
const maxChain = 8

// CertRequest says what shall stand in a certificate. Who the application is
// stands there without being asked for.
type CertRequest struct {
	// Key is the key to be certified, over P-256. Required.
	Key *ecdsa.PrivateKey
	// Subject is the common name, Organization may be empty.
	Subject, Organization string
	// Names are DNS names and addresses.
	Names []string
	// ServerAuth and ClientAuth ask for extended key usages.
	ServerAuth, ClientAuth bool
	// WithEvidence asks for the Evidence in the certificate (RA-TLS).
	WithEvidence bool
	// WithAppInfo asks for what was verified of the application.
	WithAppInfo bool
	// NotBefore and NotAfter are the KMS's to choose when zero.
	NotBefore, NotAfter time.Time
	// VMConfig is the JSON text that describes the virtual machine; where it is
	// empty, that of the Evidence counts.
	VMConfig string
	// Version is that of the signing request: 2 when 0; 1 is what KMSs before
	// 0.5.6 read, without WithAppInfo and times.
	Version uint32
}

// Certificate is what was issued.
type Certificate struct {
	// PEM are the certificates: leaf, the application's CA, root.
	PEM []string
	// Chain are the same, parsed.
	Chain []*x509.Certificate
}

// SignCert gets a certificate of the application's CA. It makes Evidence over
// the key that is to be certified, whoever the connection belongs to. The chain
// is checked: for this key, to the root that is pinned. The error is a
// [*DeniedError] when the application may not have it.
func (c *Client) SignCert(ctx context.Context, req CertRequest) (*Certificate, error) {
	if c.cfg.Attester == nil {
		return nil, errors.New("SignCert: Config.Attester is required")
	}
	request, err := c.signRequest(ctx, &req)
	if err != nil {
		return nil, fmt.Errorf("SignCert: %w", err)
	}
	var answer kmsv1.SignCertResponse
	if err := c.call(ctx, "SignCert", request, &answer); err != nil {
		return nil, err
	}
	cert := &Certificate{PEM: answer.GetCertificateChain()}
	if err := c.checkChain(cert, &req); err != nil {
		return nil, fmt.Errorf("SignCert: the answer does not hold: %w", err)
	}
	return cert, nil
}

// signRequest makes the signing request and signs it.
func (c *Client) signRequest(ctx context.Context, req *CertRequest) (*kmsv1.SignCertRequest, error) {
	if req.Key == nil {
		return nil, errors.New("CertRequest.Key is required")
	}
	if req.Version == 0 {
		req.Version = csr.Version2
	}
	spki, err := x509.MarshalPKIXPublicKey(&req.Key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("encoding public key: %w", err)
	}
	ev, err := c.cfg.Attester.attester.Attest(ctx, attest.RATLSReportData(spki))
	if err != nil {
		return nil, fmt.Errorf("attesting: %w", err)
	}
	vmConfig := req.VMConfig
	if vmConfig == "" {
		vmConfig = ev.VMConfig
	}
	raw, err := csr.Marshal(req.Version, &csr.Request{
		PublicKey: spki, Subject: req.Subject, Org: req.Organization, SANs: req.Names,
		ServerAuth: req.ServerAuth, ClientAuth: req.ClientAuth, WithEvidence: req.WithEvidence, WithAppInfo: req.WithAppInfo,
		NotBefore: orNil(req.NotBefore), NotAfter: orNil(req.NotAfter), Evidence: ev,
	})
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(raw)
	signature, err := ecdsa.SignASN1(rand.Reader, req.Key, digest[:])
	if err != nil {
		return nil, fmt.Errorf("signing the request: %w", err)
	}
	return &kmsv1.SignCertRequest{ApiVersion: req.Version, Csr: raw, Signature: signature, VmConfig: vmConfig}, nil
}

func orNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// checkChain reads the chain and refuses one that is of no use.
func (c *Client) checkChain(cert *Certificate, req *CertRequest) error {
	if n := len(cert.PEM); n < 2 || n > maxChain {
		return fmt.Errorf("%d certificates, want leaf, CA and root", n)
	}
	for i, text := range cert.PEM {
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
			return fmt.Errorf("certificate %d is not PEM of one certificate", i)
		}
		parsed, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("certificate %d: %w", i, err)
		}
		cert.Chain = append(cert.Chain, parsed)
	}
	last := len(cert.Chain) - 1
	if err := c.checkRoot([]byte(cert.PEM[last])); err != nil {
		return err
	}
	leaf := cert.Chain[0]
	if !req.Key.PublicKey.Equal(leaf.PublicKey) {
		return errors.New("the certificate is for another key")
	}
	for i := range last {
		if err := cert.Chain[i].CheckSignatureFrom(cert.Chain[i+1]); err != nil {
			return fmt.Errorf("certificate %d is not by the next one: %w", i, err)
		}
	}
	return nil
}
