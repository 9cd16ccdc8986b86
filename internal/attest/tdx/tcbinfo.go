package tdx

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"teekms/internal/attest"
)

// TCBInfo is Intel's statement on which SVNs of a platform family are how
// trustworthy (docs/evidence.md#tcb-info).
type TCBInfo struct {
	// IssueDate and NextUpdate bound the time in which it holds.
	IssueDate, NextUpdate time.Time
	// FMSPC and PCEID name the platforms it is about.
	FMSPC FMSPC
	PCEID [2]byte
	// EvaluationDataNumber counts Intel's TCB recoveries.
	EvaluationDataNumber int
	// Module is the identity of modules of major version 0.
	Module ModuleIdentity
	// Modules are the identities of the other major versions.
	Modules []ModuleIdentity
	// Levels are the platform's levels, newest first.
	Levels []PlatformLevel
}

// ModuleIdentity says what a TDX module must look like.
type ModuleIdentity struct {
	// ID is "TDX_" and the module's major version in two hex digits; empty
	// for major version 0.
	ID string
	// MRSigner is what MRSIGNERSEAM must be.
	MRSigner attest.Measurement
	// Attributes is what SEAMATTRIBUTES must be where AttributesMask has ones.
	Attributes, AttributesMask [8]byte
	// Levels are the module's levels, newest first.
	Levels []SVNLevel
}

// Level is a verdict on a TCB.
type Level struct {
	// Status is Intel's word for it.
	Status attest.TCBStatus
	// Advisories are the ids of the Intel advisories that speak of it.
	Advisories []string
}

// SVNLevel is the verdict on a module or an enclave of at least this SVN.
type SVNLevel struct {
	ISVSVN uint16
	Level
}

// PlatformLevel is the verdict on a platform of at least these SVNs.
type PlatformLevel struct {
	SGX, TDX [16]uint8
	PCESVN   uint16
	Level
}

// The JSON forms. Numbers are pointers where zero and absent must be told apart.
type (
	levelJSON struct {
		Status     string   `json:"tcbStatus"`
		Advisories []string `json:"advisoryIDs"`
	}
	svnLevelJSON struct {
		TCB struct {
			ISVSVN *uint16 `json:"isvsvn"`
		} `json:"tcb"`
		levelJSON
	}
	componentJSON struct {
		SVN *uint8 `json:"svn"`
	}
	platformLevelJSON struct {
		TCB struct {
			SGX    []componentJSON `json:"sgxtcbcomponents"`
			PCESVN *uint16         `json:"pcesvn"`
			TDX    []componentJSON `json:"tdxtcbcomponents"`
		} `json:"tcb"`
		levelJSON
	}
	moduleJSON struct {
		ID             string         `json:"id"`
		MRSigner       string         `json:"mrsigner"`
		Attributes     string         `json:"attributes"`
		AttributesMask string         `json:"attributesMask"`
		Levels         []svnLevelJSON `json:"tcbLevels"`
	}
	tcbInfoJSON struct {
		ID         string              `json:"id"`
		Version    int                 `json:"version"`
		IssueDate  time.Time           `json:"issueDate"`
		NextUpdate time.Time           `json:"nextUpdate"`
		FMSPC      string              `json:"fmspc"`
		PCEID      string              `json:"pceId"`
		TCBType    *int                `json:"tcbType"`
		Evaluation int                 `json:"tcbEvaluationDataNumber"`
		Module     *moduleJSON         `json:"tdxModule"`
		Modules    []moduleJSON        `json:"tdxModuleIdentities"`
		Levels     []platformLevelJSON `json:"tcbLevels"`
	}
)

// ParseTCBInfo reads the tcbInfo object of a PCS answer: id TDX, version 3,
// TCB type 0. A status that this package does not know is an error.
func ParseTCBInfo(object []byte) (*TCBInfo, error) {
	var in tcbInfoJSON
	if err := json.Unmarshal(object, &in); err != nil {
		return nil, fmt.Errorf("reading TCB info: %w", err)
	}
	if in.ID != "TDX" || in.Version != 3 || in.TCBType == nil || *in.TCBType != 0 {
		return nil, fmt.Errorf("reading TCB info: id %q, version %d, want TDX, 3, and TCB type 0", in.ID, in.Version)
	}
	t := &TCBInfo{IssueDate: in.IssueDate, NextUpdate: in.NextUpdate, EvaluationDataNumber: in.Evaluation}
	if err := t.convert(&in); err != nil {
		return nil, fmt.Errorf("reading TCB info: %w", err)
	}
	return t, nil
}

func (t *TCBInfo) convert(in *tcbInfoJSON) error {
	if in.Module == nil || len(in.Levels) == 0 {
		return errors.New("tdxModule or tcbLevels missing")
	}
	if err := errors.Join(unhex(t.FMSPC[:], in.FMSPC, "fmspc"), unhex(t.PCEID[:], in.PCEID, "pceId"),
		t.Module.convert(in.Module)); err != nil {
		return err
	}
	for i := range in.Modules {
		var m ModuleIdentity
		if err := m.convert(&in.Modules[i]); err != nil {
			return fmt.Errorf("module identity %d: %w", i, err)
		}
		if m.ID == "" || len(m.Levels) == 0 {
			return fmt.Errorf("module identity %d: id or tcbLevels missing", i)
		}
		t.Modules = append(t.Modules, m)
	}
	for i := range in.Levels {
		l, err := in.Levels[i].convert()
		if err != nil {
			return fmt.Errorf("TCB level %d: %w", i, err)
		}
		t.Levels = append(t.Levels, l)
	}
	return nil
}

func (m *ModuleIdentity) convert(in *moduleJSON) (err error) {
	m.ID = in.ID
	if err := errors.Join(unhex(m.MRSigner[:], in.MRSigner, "mrsigner"),
		unhex(m.Attributes[:], in.Attributes, "attributes"),
		unhex(m.AttributesMask[:], in.AttributesMask, "attributesMask")); err != nil {
		return err
	}
	m.Levels, err = convertLevels(in.Levels)
	return err
}

func convertLevels(in []svnLevelJSON) ([]SVNLevel, error) {
	out := make([]SVNLevel, 0, len(in))
	for i := range in {
		l, err := in[i].convert()
		if err != nil {
			return nil, fmt.Errorf("TCB level %d: %w", i, err)
		}
		if in[i].TCB.ISVSVN == nil {
			return nil, fmt.Errorf("TCB level %d: isvsvn missing", i)
		}
		out = append(out, SVNLevel{ISVSVN: *in[i].TCB.ISVSVN, Level: l})
	}
	return out, nil
}

func (in *platformLevelJSON) convert() (l PlatformLevel, err error) {
	if in.TCB.PCESVN == nil {
		return l, errors.New("pcesvn missing")
	}
	l.PCESVN = *in.TCB.PCESVN
	if err := errors.Join(convertComponents(&l.SGX, in.TCB.SGX), convertComponents(&l.TDX, in.TCB.TDX)); err != nil {
		return l, err
	}
	l.Level, err = in.levelJSON.convert()
	return l, err
}

func convertComponents(out *[16]uint8, in []componentJSON) error {
	if len(in) != len(out) {
		return fmt.Errorf("%d TCB components, want %d", len(in), len(out))
	}
	for i, c := range in {
		if c.SVN == nil {
			return fmt.Errorf("TCB component %d has no svn", i)
		}
		out[i] = *c.SVN
	}
	return nil
}

func (in *levelJSON) convert() (Level, error) {
	l := Level{Status: attest.TCBStatus(in.Status), Advisories: in.Advisories}
	if _, ok := flaws(l.Status); !ok {
		return l, fmt.Errorf("unknown TCB status %q", in.Status)
	}
	return l, nil
}

func unhex(dst []byte, s, name string) error {
	if hex.DecodedLen(len(s)) != len(dst) || len(s)%2 != 0 {
		return fmt.Errorf("%s is not %d bytes of hex", name, len(dst))
	}
	if _, err := hex.Decode(dst, []byte(s)); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// module finds the identity for a module of this major version.
func (t *TCBInfo) module(major uint8) (*ModuleIdentity, error) {
	if major == 0 {
		return &t.Module, nil
	}
	id := fmt.Sprintf("TDX_%02x", major)
	for i := range t.Modules {
		if strings.EqualFold(t.Modules[i].ID, id) {
			return &t.Modules[i], nil
		}
	}
	return nil, fmt.Errorf("no identity %s for the TDX module", id)
}

// platformLevel is the first level that the SVNs of the platform reach. The
// first two TDX components are the module's own, which counts by its identity
// unless its major version is 0.
func (t *TCBInfo) platformLevel(pck *PCKExtension, teeTCBSVN [16]byte) (*Level, error) {
	from := 0
	if teeTCBSVN[1] > 0 {
		from = 2
	}
	for i := range t.Levels {
		l := &t.Levels[i]
		if atLeast(pck.Components[:], l.SGX[:]) && pck.PCESVN >= l.PCESVN && atLeast(teeTCBSVN[from:], l.TDX[from:]) {
			return &l.Level, nil
		}
	}
	return nil, errors.New("the platform is below every TCB level")
}

func atLeast(have, want []byte) bool {
	for i := range want {
		if have[i] < want[i] {
			return false
		}
	}
	return true
}

// svnLevel is the first level that svn reaches.
func svnLevel(levels []SVNLevel, svn uint16, what string) (*Level, error) {
	for i := range levels {
		if svn >= levels[i].ISVSVN {
			return &levels[i].Level, nil
		}
	}
	return nil, fmt.Errorf("SVN %d of the %s is below every TCB level", svn, what)
}
