package tdx

import (
	"crypto/x509"
	"errors"
	"time"

	"teekms/internal/attest"
)

// The recorded collateral in go-tdx-guest was not all valid on one day, so no
// clock lets it pass as a whole. The tests check it part by part, each on a day
// of its own.

// CRLAt verifies a revocation list and counts what is on it.
func CRLAt(der []byte, issuer *x509.Certificate, at time.Time) (int, error) {
	e := &endorsements{notAfter: at.AddDate(100, 0, 0)}
	serials, err := endorser{anchor: issuer, now: at}.crl(e, der, issuer)
	return len(serials), err
}

// SignerAt verifies the chain of a TCB signer.
func SignerAt(chain []byte, anchor *x509.Certificate, at time.Time) (*x509.Certificate, error) {
	return endorser{anchor: anchor, now: at}.signer(&endorsements{}, chain)
}

// TCBInfoAt verifies a TCB info by its signer.
func TCBInfoAt(body []byte, signer *x509.Certificate, fmspc FMSPC, at time.Time) (*TCBInfo, error) {
	e := &endorsements{notAfter: at.AddDate(100, 0, 0)}
	err := endorser{now: at}.tcbInfo(e, body, signer, fmspc)
	return e.tcb, err
}

// QEIdentityAt verifies a QE identity by its signer.
func QEIdentityAt(body []byte, signer *x509.Certificate, at time.Time) (*QEIdentity, error) {
	e := &endorsements{notAfter: at.AddDate(100, 0, 0)}
	err := endorser{now: at}.qeIdentity(e, body, signer)
	return e.qe, err
}

// Judge finds the three statuses of a quote, whose PCK chain is only read.
func Judge(tcb *TCBInfo, qe *QEIdentity, q *Quote) (platform, module, enclave attest.TCBStatus, err error) {
	certs, err := parseChain(q.chain, 3)
	if err != nil {
		return "", "", "", err
	}
	ext, err := PCKExtensionOf(certs[0])
	if err != nil {
		return "", "", "", err
	}
	v, err := (&endorsements{tcb: tcb, qe: qe}).judge(q, ext)
	if err != nil {
		return "", "", "", err
	}
	return v.platform.Status, v.module.Status, v.qe.Status, nil
}

// PCKExtensionOf reads the SGX extension of a certificate.
func PCKExtensionOf(c *x509.Certificate) (*PCKExtension, error) {
	for _, e := range c.Extensions {
		if e.Id.Equal(sgxExtension()) {
			return ParsePCKExtension(e.Value)
		}
	}
	return nil, errors.New("no SGX extension")
}

// Worst is the status that three give together.
func Worst(statuses ...attest.TCBStatus) attest.TCBStatus { return worst(statuses...) }

// ParseChain reads a chain of n certificates.
func ParseChain(b []byte, n int) ([]*x509.Certificate, error) { return parseChain(b, n) }

// VerifyCollateral verifies collateral as a whole.
func VerifyCollateral(c *Collateral, anchor *x509.Certificate, fmspc FMSPC, ca CA, at time.Time) error {
	_, err := endorser{anchor: anchor, now: at}.verify(c, fmspc, ca)
	return err
}

// Enclaves counts the quoting enclaves that v remembers.
func (v *Verifier) Enclaves() int { return len(v.enclaves.m) }

// Forget empties the caches of v.
func (v *Verifier) Forget() {
	clear(v.enclaves.m)
	clear(v.platforms.m)
	clear(v.logs.m)
}

// Forget empties the cache.
func (s *CachedSource) Forget() {
	clear(s.entries)
	s.bytes = 0
}

// RelabelCRLs makes the PCK lists that v holds be those of another key, as of a
// second authority of the same name.
func (v *Verifier) RelabelCRLs() {
	for _, held := range v.platforms.m {
		held.verified.crlIssuerKey = []byte("another key")
	}
}

// BoundedMapAfter stores the keys in turn and counts what is left.
func BoundedMapAfter(limit int, keys ...int) (n int, hasLast bool) {
	b := newBoundedMap[int, bool](limit)
	for _, k := range keys {
		b.store(k, true)
	}
	_, hasLast = b.load(keys[len(keys)-1])
	return len(b.m), hasLast
}

// VerifyPath verifies a path from leaf to anchor.
func VerifyPath(at time.Time, path ...*x509.Certificate) error {
	_, _, err := verifyPath(path, at)
	return err
}

// RevokeAuthority puts the serial number of c on the root lists that v holds, as
// where an authority has two certificates over one key.
func (v *Verifier) RevokeAuthority(c *x509.Certificate) {
	for _, held := range v.platforms.m {
		held.verified.revokedByRoot[serialKey(c.SerialNumber)] = true
	}
}
