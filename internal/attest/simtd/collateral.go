package simtd

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/tdx"
)

// How Intel issues collateral: anew all the time, good for 30 days.
const (
	reissueAfter    = time.Hour
	defaultValidity = 30 * 24 * time.Hour
)

// Level is the state that collateral gives to one part of a platform.
type Level struct {
	// Status is attest.UpToDate when empty.
	Status attest.TCBStatus
	// Advisories are Intel's advisory ids.
	Advisories []string
}

// Endorsements say what the collateral says. The zero value is a platform that
// is up to date, with nothing revoked.
type Endorsements struct {
	// Platform, Module and QE are the levels that this TD's quotes match.
	Platform, Module, QE Level
	// RevokePCK, RevokePCKCA and RevokeTCBSigner put a certificate on its
	// issuer's list.
	RevokePCK, RevokePCKCA, RevokeTCBSigner bool
	// IssuedAt is when all of it was issued; the current hour when zero.
	IssuedAt time.Time
	// ValidFor is the time from then to the next update; 30 days when zero.
	ValidFor time.Duration
	// EditTCBInfo and EditQEIdentity, when not nil, return another JSON object
	// to be signed.
	EditTCBInfo, EditQEIdentity func(object []byte) []byte
}

// endorsements is the part of a TD that issues collateral.
type endorsements struct {
	emu      sync.Mutex // guards what follows
	set      Endorsements
	issued   *tdx.Collateral
	issuedAt time.Time
}

var _ tdx.CollateralSource = (*TD)(nil)

// SetEndorsements changes what the collateral says from now on, in process,
// over HTTP and in the directory's files. It is not kept when the TD is opened
// again: then the files are good until they are an hour old.
func (t *TD) SetEndorsements(e Endorsements) error {
	t.emu.Lock()
	t.set, t.issued = e, nil
	t.emu.Unlock()
	c, err := t.collateral()
	if err != nil {
		return err
	}
	return t.writeFiles(c)
}

// Collateral implements [tdx.CollateralSource] for this platform alone.
func (t *TD) Collateral(ctx context.Context, fmspc tdx.FMSPC, ca tdx.CA) (*tdx.Collateral, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("issuing collateral: %w", err)
	}
	if ca != tdx.PlatformCA || fmspc != t.m.FMSPC {
		return nil, fmt.Errorf("issuing collateral for FMSPC %x of the %s CA: %w", fmspc[:], ca, attest.ErrNoCollateral)
	}
	return t.collateral()
}

// collateral returns what was issued in this hour, issuing it when needed. The
// caller must not change it.
func (t *TD) collateral() (*tdx.Collateral, error) {
	t.emu.Lock()
	defer t.emu.Unlock()
	at := t.set.IssuedAt
	if at.IsZero() {
		// The certificates are dated back by a day, so that even the first hour
		// began after them.
		at = t.now().Truncate(reissueAfter)
	}
	if t.issued != nil && at.Equal(t.issuedAt) {
		return t.issued, nil
	}
	issued, err := t.issue(t.set, at.UTC())
	if err != nil {
		return nil, fmt.Errorf("issuing collateral: %w", err)
	}
	t.issued, t.issuedAt = issued, at
	return issued, nil
}

func (t *TD) issue(e Endorsements, at time.Time) (*tdx.Collateral, error) {
	if e.ValidFor == 0 {
		e.ValidFor = defaultValidity
	}
	next := at.Add(e.ValidFor)
	p := t.pki
	signer := pemOf(p.tcbSigner.cert, p.root.cert)
	c := &tdx.Collateral{TCBInfoChain: signer, QEIdentityChain: signer, PCKCRLChain: pemOf(p.pckCA.cert, p.root.cert)}
	var err error
	if c.TCBInfo, err = t.signed("tcbInfo", t.tcbInfo(e, at, next), e.EditTCBInfo); err != nil {
		return nil, err
	}
	if c.QEIdentity, err = t.signed("enclaveIdentity", t.qeIdentity(e, at, next), e.EditQEIdentity); err != nil {
		return nil, err
	}
	if c.PCKCRL, err = revocationList(p.pckCA, at, next, revoked{p.pck.cert, e.RevokePCK}); err != nil {
		return nil, err
	}
	c.RootCRL, err = revocationList(p.root, at, next, revoked{p.pckCA.cert, e.RevokePCKCA}, revoked{p.tcbSigner.cert, e.RevokeTCBSigner})
	return c, err
}

// signed wraps an object as a PCS does: the signature is over its exact bytes.
func (t *TD) signed(name string, object any, edit func([]byte) []byte) ([]byte, error) {
	text, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", name, err)
	}
	if edit != nil {
		text = edit(text)
	}
	signature, err := sign(t.pki.tcbSigner.key, text)
	if err != nil {
		return nil, fmt.Errorf("signing %s: %w", name, err)
	}
	return fmt.Appendf(nil, `{"%s":%s,"signature":"%x"}`, name, text, signature), nil
}

// The JSON of TCB info, version 3 (docs/evidence.md#tcb).
type (
	svn struct {
		SVN int `json:"svn"`
	}
	isvSVN struct {
		SVN int `json:"isvsvn"`
	}
	tcbLevel struct {
		TCB        any              `json:"tcb"`
		Date       time.Time        `json:"tcbDate"`
		Status     attest.TCBStatus `json:"tcbStatus"`
		Advisories []string         `json:"advisoryIDs,omitempty"`
	}
	platformTCB struct {
		SGX    [16]svn `json:"sgxtcbcomponents"`
		PCESVN int     `json:"pcesvn"`
		TDX    [16]svn `json:"tdxtcbcomponents"`
	}
	tdxModule struct {
		ID             string     `json:"id,omitempty"`
		MRSigner       string     `json:"mrsigner"`
		Attributes     string     `json:"attributes"`
		AttributesMask string     `json:"attributesMask"`
		Levels         []tcbLevel `json:"tcbLevels,omitempty"`
	}
	tcbInfo struct {
		ID         string      `json:"id"`
		Version    int         `json:"version"`
		IssueDate  time.Time   `json:"issueDate"`
		NextUpdate time.Time   `json:"nextUpdate"`
		FMSPC      string      `json:"fmspc"`
		PCEID      string      `json:"pceId"`
		TCBType    int         `json:"tcbType"`
		Evaluation int         `json:"tcbEvaluationDataNumber"`
		Module     tdxModule   `json:"tdxModule"`
		Identities []tdxModule `json:"tdxModuleIdentities"`
		Levels     []tcbLevel  `json:"tcbLevels"`
	}
	qeIdentity struct {
		ID             string     `json:"id"`
		Version        int        `json:"version"`
		IssueDate      time.Time  `json:"issueDate"`
		NextUpdate     time.Time  `json:"nextUpdate"`
		Evaluation     int        `json:"tcbEvaluationDataNumber"`
		MiscSelect     string     `json:"miscselect"`
		MiscSelectMask string     `json:"miscselectMask"`
		Attributes     string     `json:"attributes"`
		AttributesMask string     `json:"attributesMask"`
		MRSigner       string     `json:"mrsigner"`
		ISVProdID      int        `json:"isvprodid"`
		Levels         []tcbLevel `json:"tcbLevels"`
	}
)

const evaluationNumber = 17

func (t *TD) tcbInfo(e Endorsements, at, next time.Time) tcbInfo {
	module := tdxModule{MRSigner: strings.Repeat("0", 96), Attributes: "0000000000000000", AttributesMask: "FFFFFFFFFFFFFFFF"}
	identity := module
	identity.ID = fmt.Sprintf("TDX_%02x", t.m.TEETCBSVN[1])
	identity.Levels = levels(e.Module, func(newer int) any { return isvSVN{int(t.m.TEETCBSVN[0]) + newer} })
	return tcbInfo{
		ID: "TDX", Version: 3, IssueDate: at, NextUpdate: next, FMSPC: strings.ToUpper(hex.EncodeToString(t.m.FMSPC[:])), PCEID: "0000",
		Evaluation: evaluationNumber, Module: module, Identities: []tdxModule{identity},
		Levels: levels(e.Platform, func(newer int) any {
			tcb := platformTCB{PCESVN: pceSVN + newer}
			for i := range tcb.SGX {
				tcb.SGX[i].SVN = sgxComponentSVN + newer
				tcb.TDX[i].SVN = int(t.m.TEETCBSVN[i])
			}
			return tcb
		}),
	}
}

func (t *TD) qeIdentity(e Endorsements, at, next time.Time) qeIdentity {
	return qeIdentity{
		ID: "TD_QE", Version: 2, IssueDate: at, NextUpdate: next, Evaluation: evaluationNumber,
		MiscSelect: "00000000", MiscSelectMask: "FFFFFFFF",
		Attributes: "11000000000000000000000000000000", AttributesMask: "FBFFFFFFFFFFFFFF0000000000000000",
		MRSigner: strings.ToUpper(qeMRSigner), ISVProdID: qeISVProdID,
		Levels: levels(e.QE, func(newer int) any { return isvSVN{qeISVSVN + newer} }),
	}
}

// levels lists, newest first, the level this TD is at between a newer one that
// it does not reach, where it is not up to date, and an older one.
func levels(l Level, tcb func(newer int) any) []tcbLevel {
	if l.Status == "" {
		l.Status = attest.UpToDate
	}
	day := func(year int) time.Time { return time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) }
	var out []tcbLevel
	if l.Status != attest.UpToDate {
		out = append(out, tcbLevel{TCB: tcb(1), Date: day(2025), Status: attest.UpToDate})
	}
	return append(out,
		tcbLevel{TCB: tcb(0), Date: day(2024), Status: l.Status, Advisories: l.Advisories},
		tcbLevel{TCB: tcb(-1), Date: day(2023), Status: attest.OutOfDate, Advisories: []string{"INTEL-SA-00960"}})
}

type revoked struct {
	cert *x509.Certificate
	is   bool
}

func revocationList(issuer pair, at, next time.Time, certs ...revoked) ([]byte, error) {
	list := &x509.RevocationList{Number: big.NewInt(at.Unix()), ThisUpdate: at, NextUpdate: next}
	for _, r := range certs {
		if r.is {
			list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: r.cert.SerialNumber, RevocationTime: at})
		}
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, issuer.cert, issuer.key)
	if err != nil {
		return nil, fmt.Errorf("making revocation list of %q: %w", issuer.cert.Subject.CommonName, err)
	}
	return der, nil
}
