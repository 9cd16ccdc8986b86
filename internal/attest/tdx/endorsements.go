package tdx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"time"

	"teekms/internal/attest"
)

// endorsements are collateral that was verified to a trust anchor.
type endorsements struct {
	tcb *TCBInfo
	qe  *QEIdentity
	// crlIssuerKey is the SubjectPublicKeyInfo of the PCK authority whose
	// list revokedPCK is.
	crlIssuerKey []byte
	// revokedPCK and revokedByRoot hold serial numbers, see serialKey.
	revokedPCK, revokedByRoot map[string]bool
	// revoked says which of their own signers the lists name, nil if none.
	revoked error
	// The window in which everything they rest on is valid.
	notBefore, notAfter time.Time
}

func (e *endorsements) validAt(t time.Time) bool {
	return !t.Before(e.notBefore) && !t.After(e.notAfter)
}

// rest narrows the window to that of one more thing they rest on.
func (e *endorsements) rest(notBefore, notAfter time.Time) {
	e.notBefore, e.notAfter = later(e.notBefore, notBefore), earlier(e.notAfter, notAfter)
}

// refuseRevoked remembers it if the root has revoked c.
func (e *endorsements) refuseRevoked(c *x509.Certificate) {
	if e.revoked == nil && e.revokedByRoot[serialKey(c.SerialNumber)] {
		e.revoked = fmt.Errorf("%q, serial %x, is revoked", c.Subject.CommonName, c.SerialNumber)
	}
}

// endorser verifies collateral: what it needs besides the bytes.
type endorser struct {
	anchor *x509.Certificate
	now    time.Time
}

// verify checks all of c. That a list names a signer of c is no error here but
// in the result: it is another link of the chain.
func (r endorser) verify(c *Collateral, fmspc FMSPC, ca CA) (*endorsements, error) {
	if c == nil {
		return nil, fmt.Errorf("%w: the source gave none and no error", attest.ErrNoCollateral)
	}
	e := &endorsements{notBefore: r.anchor.NotBefore, notAfter: r.anchor.NotAfter}
	if err := r.revocations(e, c, ca); err != nil {
		return nil, err
	}
	tcbSigner, err := r.signer(e, c.TCBInfoChain)
	if err != nil {
		return nil, fmt.Errorf("TCB info signer: %w", err)
	}
	if err := r.tcbInfo(e, c.TCBInfo, tcbSigner, fmspc); err != nil {
		return nil, fmt.Errorf("TCB info: %w", err)
	}
	qeSigner := tcbSigner
	if !bytes.Equal(c.QEIdentityChain, c.TCBInfoChain) {
		if qeSigner, err = r.signer(e, c.QEIdentityChain); err != nil {
			return nil, fmt.Errorf("QE identity signer: %w", err)
		}
	}
	if err := r.qeIdentity(e, c.QEIdentity, qeSigner); err != nil {
		return nil, fmt.Errorf("QE identity: %w", err)
	}
	return e, nil
}

// revocations checks both lists and that their issuers may issue them.
func (r endorser) revocations(e *endorsements, c *Collateral, ca CA) error {
	root, err := r.crl(e, c.RootCRL, r.anchor)
	if err != nil {
		return fmt.Errorf("root CRL: %w", err)
	}
	e.revokedByRoot = root
	certs, err := parseChain(c.PCKCRLChain, 2)
	if err != nil {
		return fmt.Errorf("chain of the PCK CRL: %w", err)
	}
	issuer := certs[0]
	if got, err := pckIssuer(issuer); err != nil || got != ca {
		return fmt.Errorf("PCK CRL is issued by %q, want the %s CA", issuer.Subject.CommonName, ca)
	}
	notBefore, notAfter, err := verifyPath([]*x509.Certificate{issuer, r.anchor}, r.now)
	if err != nil {
		return fmt.Errorf("chain of the PCK CRL: %w", r.whenExpired(err, notAfter))
	}
	e.rest(notBefore, notAfter)
	e.refuseRevoked(issuer)
	e.crlIssuerKey = issuer.RawSubjectPublicKeyInfo
	if e.revokedPCK, err = r.crl(e, c.PCKCRL, issuer); err != nil {
		return fmt.Errorf("PCK CRL: %w", err)
	}
	return nil
}

// crl returns the serial numbers on a full list that issuer signed.
func (r endorser) crl(e *endorsements, der []byte, issuer *x509.Certificate) (map[string]bool, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	if n := len(der) - len(list.Raw); n != 0 { // crypto/x509 lets them pass
		return nil, fmt.Errorf("%d bytes of trailing data", n)
	}
	if !bytes.Equal(list.RawIssuer, issuer.RawSubject) {
		return nil, fmt.Errorf("issued by %q, want %q", list.Issuer, issuer.Subject)
	}
	if list.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		return nil, fmt.Errorf("signature algorithm %v, want %v", list.SignatureAlgorithm, x509.ECDSAWithSHA256)
	}
	if err := list.CheckSignatureFrom(issuer); err != nil {
		return nil, err
	}
	// A critical extension narrows what the list speaks of (RFC 5280 §5.2).
	for _, x := range list.Extensions {
		if x.Critical {
			return nil, fmt.Errorf("critical extension %v", x.Id)
		}
	}
	if err := r.window(e, list.ThisUpdate, list.NextUpdate); err != nil {
		return nil, err
	}
	serials := make(map[string]bool, len(list.RevokedCertificateEntries))
	for i := range list.RevokedCertificateEntries {
		serials[serialKey(list.RevokedCertificateEntries[i].SerialNumber)] = true
	}
	return serials, nil
}

// serialKey is a map key for a serial number. Serial numbers in certificates
// are positive here: x509.ParseCertificate refuses others.
func serialKey(n *big.Int) string { return string(n.Bytes()) }

// window checks that now lies between two updates and narrows e to them.
func (r endorser) window(e *endorsements, from, until time.Time) error {
	if from.IsZero() || until.IsZero() {
		return errors.New("issue date or next update missing")
	}
	if r.now.Before(from) {
		return fmt.Errorf("issued at %s, which is in the future", from.UTC().Format(time.RFC3339))
	}
	if r.now.After(until) {
		return fmt.Errorf("%w: expired at %s", attest.ErrNoCollateral, until.UTC().Format(time.RFC3339))
	}
	e.rest(from, until)
	return nil
}

// whenExpired adds ErrNoCollateral to err if it is a matter of having expired.
func (r endorser) whenExpired(err error, notAfter time.Time) error {
	if r.now.After(notAfter) {
		return fmt.Errorf("%w: %w", attest.ErrNoCollateral, err)
	}
	return err
}

// signer returns the TCB signing certificate of a chain, which the trust
// anchor must have issued itself.
func (r endorser) signer(e *endorsements, chainPEM []byte) (*x509.Certificate, error) {
	certs, err := parseChain(chainPEM, 2)
	if err != nil {
		return nil, err
	}
	s := certs[0]
	if cn := s.Subject.CommonName; cn != commonNameTCBSigner || s.IsCA {
		return nil, fmt.Errorf("signed by %q, want an end entity %q", cn, commonNameTCBSigner)
	}
	if s.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return nil, errors.New("key usage of the signer is without digital signature")
	}
	notBefore, notAfter, err := verifyPath([]*x509.Certificate{s, r.anchor}, r.now)
	if err != nil {
		return nil, r.whenExpired(err, notAfter)
	}
	e.rest(notBefore, notAfter)
	e.refuseRevoked(s)
	return s, nil
}

func (r endorser) tcbInfo(e *endorsements, body []byte, signer *x509.Certificate, fmspc FMSPC) error {
	object, err := signedObject(body, "tcbInfo", signer)
	if err != nil {
		return err
	}
	if e.tcb, err = ParseTCBInfo(object); err != nil {
		return err
	}
	if e.tcb.FMSPC != fmspc {
		return fmt.Errorf("is for FMSPC %x, want %x", e.tcb.FMSPC, fmspc)
	}
	return r.window(e, e.tcb.IssueDate, e.tcb.NextUpdate)
}

func (r endorser) qeIdentity(e *endorsements, body []byte, signer *x509.Certificate) error {
	object, err := signedObject(body, "enclaveIdentity", signer)
	if err != nil {
		return err
	}
	if e.qe, err = ParseQEIdentity(object); err != nil {
		return err
	}
	return r.window(e, e.qe.IssueDate, e.qe.NextUpdate)
}

// signedObject takes {name: object, "signature": hex} apart and returns the
// bytes of the object as they were sent, if signer signed just these.
func signedObject(body []byte, name string, signer *x509.Certificate) ([]byte, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(body, &members); err != nil {
		return nil, err
	}
	var signatureHex string
	if err := json.Unmarshal(members["signature"], &signatureHex); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	signature, err := hex.DecodeString(signatureHex)
	if err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	key, ok := signer.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.New("signer's key is not ECDSA")
	}
	digest := sha256.Sum256(members[name])
	if !verifyRaw(key, digest[:], signature) {
		return nil, errors.New("signature does not verify")
	}
	return members[name], nil
}
