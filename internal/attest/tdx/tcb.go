package tdx

import (
	"errors"
	"fmt"
	"slices"

	"teekms/internal/attest"
)

// flaw is one thing that may be wrong with a TCB; a status is a set of them.
type flaw uint8

const (
	needsSWHardening flaw = 1 << iota
	needsConfiguration
	isOutOfDate
	isRevoked
)

// flaws takes a status apart. It reports false for a status nobody knows.
func flaws(s attest.TCBStatus) (flaw, bool) {
	switch s {
	case attest.UpToDate:
		return 0, true
	case attest.SWHardeningNeeded:
		return needsSWHardening, true
	case attest.ConfigurationNeeded:
		return needsConfiguration, true
	case attest.ConfigurationAndSWHardeningNeeded:
		return needsConfiguration | needsSWHardening, true
	case attest.OutOfDate:
		return isOutOfDate, true
	case attest.OutOfDateConfigurationNeeded:
		return isOutOfDate | needsConfiguration, true
	case attest.Revoked:
		return isRevoked, true
	default:
		return 0, false
	}
}

// worst is the status that has every flaw of the given ones: the worst of
// them, or one still worse where two are wrong in different ways. What cannot
// be said of both (out of date, and hardening needed) is said of the graver.
func worst(statuses ...attest.TCBStatus) attest.TCBStatus {
	var all flaw
	for _, s := range statuses {
		f, ok := flaws(s)
		if !ok {
			return attest.Revoked
		}
		all |= f
	}
	switch {
	case all&isRevoked != 0:
		return attest.Revoked
	case all&isOutOfDate != 0 && all&needsConfiguration != 0:
		return attest.OutOfDateConfigurationNeeded
	case all&isOutOfDate != 0:
		return attest.OutOfDate
	case all == needsConfiguration|needsSWHardening:
		return attest.ConfigurationAndSWHardeningNeeded
	case all == needsConfiguration:
		return attest.ConfigurationNeeded
	case all == needsSWHardening:
		return attest.SWHardeningNeeded
	default:
		return attest.UpToDate
	}
}

// verdict are the three levels of one platform, its module and its quoting
// enclave.
type verdict struct {
	platform, module, qe *Level
}

// judge finds the levels of what a quote was made with, and checks that the
// module and the quoting enclave are the ones that Intel describes.
func (e *endorsements) judge(q *Quote, pck *PCKExtension) (verdict, error) {
	var v verdict
	if e.tcb.PCEID != pck.PCEID {
		return v, fmt.Errorf("TCB info is for PCE %x, the PCK certificate has %x", e.tcb.PCEID, pck.PCEID)
	}
	svn := q.TEETCBSVN()
	identity, err := e.tcb.module(svn[1])
	if err != nil {
		return v, err
	}
	if err := identity.check(q); err != nil {
		return v, err
	}
	if v.platform, err = e.tcb.platformLevel(pck, svn); err != nil {
		return v, err
	}
	// A module of major version 0 has no level but the platform's.
	v.module = v.platform
	if svn[1] > 0 {
		if v.module, err = svnLevel(identity.Levels, uint16(svn[0]), "TDX module"); err != nil {
			return v, err
		}
	}
	if err := e.qe.check(q.qeReport); err != nil {
		return v, err
	}
	if v.qe, err = svnLevel(e.qe.Levels, q.qeReport.ISVSVN(), "quoting enclave"); err != nil {
		return v, err
	}
	if v.status() == attest.Revoked {
		return v, fmt.Errorf("the TCB is revoked: platform %s, TDX module %s, quoting enclave %s", v.platform.Status, v.module.Status, v.qe.Status)
	}
	return v, nil
}

func (v verdict) status() attest.TCBStatus {
	return worst(v.platform.Status, v.module.Status, v.qe.Status)
}

// advisories are the ids of all three, each once, sorted; nil when there are
// none.
func (v verdict) advisories() []string {
	if len(v.platform.Advisories)+len(v.module.Advisories)+len(v.qe.Advisories) == 0 {
		return nil
	}
	all := slices.Concat(v.platform.Advisories, v.module.Advisories, v.qe.Advisories)
	slices.Sort(all)
	return slices.Compact(all)
}

func (m *ModuleIdentity) check(q *Quote) error {
	if q.MRSignerSeam() != m.MRSigner {
		return errors.New("MRSIGNERSEAM is not that of the TDX module's identity")
	}
	attributes := q.SeamAttributes()
	if !maskedEqual(attributes[:], m.Attributes[:], m.AttributesMask[:]) {
		return fmt.Errorf("SEAMATTRIBUTES %x, want %x under mask %x", attributes, m.Attributes, m.AttributesMask)
	}
	return nil
}

// maskedEqual compares the bits of have that mask selects with those of want.
func maskedEqual(have, want, mask []byte) bool {
	for i := range mask {
		if have[i]&mask[i] != want[i]&mask[i] {
			return false
		}
	}
	return true
}
