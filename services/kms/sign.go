package kms

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/audit"
	"teekms/internal/authz"
	"teekms/internal/keys"
	"teekms/internal/ratls"
	"teekms/internal/ratls/csr"
)

// SignCert issues a certificate for the key that the Evidence in a signing
// request is bound to. Who asks is told by that Evidence, not by the
// connection. What stands in the certificate about the application is what was
// verified; the request only chooses what of it stands there.
func (s *Service) SignCert(ctx context.Context, r *kmsv1.SignCertRequest) (*kmsv1.SignCertResponse, error) {
	if err := s.authorizeSelf(ctx); err != nil {
		return nil, err
	}
	request, public, err := s.readRequest(r)
	if err != nil {
		return nil, err
	}
	attested, err := s.appraiser.Appraise(ctx, request.Evidence, request.PublicKey)
	if err != nil {
		return nil, quoteRefusal(err)
	}
	g, err := s.decide(ctx, question{subject: authz.App, attested: attested, vmConfig: r.GetVmConfig(), bootTime: true})
	if err != nil {
		return nil, err
	}
	extensions, err := s.extensions(r.GetApiVersion(), request, attested, g)
	if err != nil {
		return nil, err
	}
	return s.issue(ctx, request, public, extensions, g)
}

// readRequest reads a signing request, and refuses what no certificate of an
// application may say. All of it costs less than an appraisal.
func (s *Service) readRequest(r *kmsv1.SignCertRequest) (*csr.Request, *ecdsa.PublicKey, error) {
	version := r.GetApiVersion()
	if version != csr.Version1 && version != csr.Version2 {
		return nil, nil, unsupported(version)
	}
	request, err := csr.Parse(version, r.GetCsr())
	if err != nil {
		return nil, nil, invalid("Failed to parse csr: "+strings.TrimPrefix(err.Error(), "reading signing request: "), nil)
	}
	public, err := request.VerifySignature(r.GetCsr(), r.GetSignature())
	if err != nil {
		return nil, nil, invalid("Failed to verify csr signature: "+err.Error(), nil)
	}
	if err := checkSubject(request, s.domain); err != nil {
		return nil, nil, err
	}
	return request, public, nil
}

// quoteRefusal says what is wrong with the Evidence of a signing request. That
// nothing can be said of it has texts of its own.
func quoteRefusal(err error) error {
	if bad, ok := errors.AsType[*ratls.InvalidError](err); ok {
		return denied("Quote verification failed: "+bad.Err.Error(), nil)
	}
	return err
}

// extensions are those that the request asks for.
func (s *Service) extensions(version uint32, r *csr.Request, a *ratls.Attested, g *grant) ([]pkix.Extension, error) {
	var out []pkix.Extension
	if r.WithAppInfo {
		info, err := appInfo(a, g)
		if err != nil {
			return nil, err
		}
		out = append(out, keys.Extension(keys.ArcAppInfo, info))
	}
	if !r.WithEvidence {
		return out, nil
	}
	generation := ratls.Gen8
	if version == csr.Version1 {
		generation = ratls.Gen1
	}
	evidence, err := signedEvidence(a, g)
	if err != nil {
		return nil, err
	}
	more, err := ratls.Extensions(evidence, generation)
	if err != nil {
		return nil, invalid("Failed to write the attestation into the certificate", err)
	}
	return append(out, more...), nil
}

// signedEvidence is the Evidence as it is put under our signature: quote and
// events as they were verified, and of the machine's description nothing but
// the image that was authorized.
func signedEvidence(a *ratls.Attested, g *grant) (*attest.Evidence, error) {
	log := make(eventlog.Log, len(a.Log))
	for i, e := range a.Log {
		if e.Runtime() { // older readers do not compute what was left out
			digest, err := e.MeasuredDigest()
			if err != nil {
				return nil, fmt.Errorf("encoding event log: %w", err)
			}
			e.Digest = digest[:]
		}
		log[i] = e
	}
	text, err := log.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encoding event log: %w", err)
	}
	config, err := json.Marshal(struct {
		OSImageHash string `json:"os_image_hash"`
	}{hex.EncodeToString(g.info.OSImageHash)})
	if err != nil {
		return nil, fmt.Errorf("encoding VM config: %w", err)
	}
	return &attest.Evidence{Quote: a.Evidence.Quote, EventLog: text, VMConfig: string(config)}, nil
}

// issue makes the chain and releases it.
func (s *Service) issue(ctx context.Context, r *csr.Request, public *ecdsa.PublicKey, extensions []pkix.Extension, g *grant) (*kmsv1.SignCertResponse, error) {
	request := keys.AppRequest{
		Roots: s.roots, CA: s.rootCertificate, AppID: g.info.AppID, Public: public,
		Organization: r.Org, CommonName: r.Subject, Names: r.SANs, ServerAuth: r.ServerAuth, ClientAuth: r.ClientAuth,
		Extensions: extensions, Now: s.now(),
	}
	if r.NotBefore != nil {
		request.NotBefore = *r.NotBefore
	}
	if r.NotAfter != nil {
		request.NotAfter = *r.NotAfter
	}
	leaf, ca, err := keys.IssueApp(request)
	if errors.Is(err, keys.ErrNoValidity) {
		return nil, invalid("csr: "+keys.ErrNoValidity.Error(), err)
	}
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(leaf)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate back: %w", err)
	}
	if err := s.release(ctx, event{kind: audit.Certificate, grant: g, certificate: parsed}); err != nil {
		return nil, err
	}
	return &kmsv1.SignCertResponse{CertificateChain: []string{
		string(keys.CertificatePEM(leaf)), string(keys.CertificatePEM(ca)), s.rootPEM,
	}}, nil
}
