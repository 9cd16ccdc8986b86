package tdx

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// QEIdentity is Intel's statement on what the TD quoting enclave looks like
// (docs/evidence.md#qe-identity).
type QEIdentity struct {
	// IssueDate and NextUpdate bound the time in which it holds.
	IssueDate, NextUpdate time.Time
	// EvaluationDataNumber counts Intel's TCB recoveries.
	EvaluationDataNumber int
	// MiscSelect and Attributes are what the enclave must have where the masks
	// have ones.
	MiscSelect, MiscSelectMask [4]byte
	Attributes, AttributesMask [16]byte
	// MRSigner and ISVProdID are what the enclave must have.
	MRSigner  [32]byte
	ISVProdID uint16
	// Levels are the enclave's levels, newest first.
	Levels []SVNLevel
}

type qeIdentityJSON struct {
	ID             string         `json:"id"`
	Version        int            `json:"version"`
	IssueDate      time.Time      `json:"issueDate"`
	NextUpdate     time.Time      `json:"nextUpdate"`
	Evaluation     int            `json:"tcbEvaluationDataNumber"`
	MiscSelect     string         `json:"miscselect"`
	MiscSelectMask string         `json:"miscselectMask"`
	Attributes     string         `json:"attributes"`
	AttributesMask string         `json:"attributesMask"`
	MRSigner       string         `json:"mrsigner"`
	ISVProdID      *uint16        `json:"isvprodid"`
	Levels         []svnLevelJSON `json:"tcbLevels"`
}

// ParseQEIdentity reads the enclaveIdentity object of a PCS answer: id TD_QE,
// version 2. A status that this package does not know is an error.
func ParseQEIdentity(object []byte) (*QEIdentity, error) {
	var in qeIdentityJSON
	if err := json.Unmarshal(object, &in); err != nil {
		return nil, fmt.Errorf("reading QE identity: %w", err)
	}
	if in.ID != "TD_QE" || in.Version != 2 {
		return nil, fmt.Errorf("reading QE identity: id %q, version %d, want TD_QE, 2", in.ID, in.Version)
	}
	q := &QEIdentity{IssueDate: in.IssueDate, NextUpdate: in.NextUpdate, EvaluationDataNumber: in.Evaluation}
	if err := q.convert(&in); err != nil {
		return nil, fmt.Errorf("reading QE identity: %w", err)
	}
	return q, nil
}

func (q *QEIdentity) convert(in *qeIdentityJSON) (err error) {
	if in.ISVProdID == nil || len(in.Levels) == 0 {
		return errors.New("isvprodid or tcbLevels missing")
	}
	q.ISVProdID = *in.ISVProdID
	if err := errors.Join(
		// The JSON shows MISCSELECT as a number, the report has it little-endian.
		unhexReversed(q.MiscSelect[:], in.MiscSelect, "miscselect"),
		unhexReversed(q.MiscSelectMask[:], in.MiscSelectMask, "miscselectMask"),
		unhex(q.Attributes[:], in.Attributes, "attributes"),
		unhex(q.AttributesMask[:], in.AttributesMask, "attributesMask"),
		unhex(q.MRSigner[:], in.MRSigner, "mrsigner")); err != nil {
		return err
	}
	q.Levels, err = convertLevels(in.Levels)
	return err
}

func unhexReversed(dst []byte, s, name string) error {
	if err := unhex(dst, s, name); err != nil {
		return err
	}
	for i, j := 0, len(dst)-1; i < j; i, j = i+1, j-1 {
		dst[i], dst[j] = dst[j], dst[i]
	}
	return nil
}

// check says whether r is a report of the enclave described. That it is no debug
// enclave was checked with the report itself.
func (q *QEIdentity) check(r QEReport) error {
	miscSelect, attributes := r.MiscSelect(), r.Attributes()
	switch {
	case r.MRSigner() != q.MRSigner:
		return fmt.Errorf("MRSIGNER of the quoting enclave is %x, want %x", r.MRSigner(), q.MRSigner)
	case r.ISVProdID() != q.ISVProdID:
		return fmt.Errorf("ISVPRODID of the quoting enclave is %d, want %d", r.ISVProdID(), q.ISVProdID)
	case !maskedEqual(miscSelect[:], q.MiscSelect[:], q.MiscSelectMask[:]):
		return fmt.Errorf("MISCSELECT of the quoting enclave is %x, want %x under mask %x", miscSelect, q.MiscSelect, q.MiscSelectMask)
	case !maskedEqual(attributes[:], q.Attributes[:], q.AttributesMask[:]):
		return fmt.Errorf("ATTRIBUTES of the quoting enclave are %x, want %x under mask %x", attributes, q.Attributes, q.AttributesMask)
	default:
		return nil
	}
}
