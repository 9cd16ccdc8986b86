package client

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/tdx"
	"teekms/internal/attest/tdx/pcs"
)

// Trust says which root Evidence must lead to, and where collateral comes from.
// The zero value is Intel's root and Intel's Provisioning Certification Service.
type Trust struct {
	// RootFile holds another root certificate, PEM or DER. It needs one of the
	// next two: Intel has no collateral for it.
	RootFile string
	// CollateralDir is a directory of collateral, such as that of a software
	// trust domain (docs/evidence.md#collateral-directory).
	CollateralDir string
	// PCCS is the URL of a PCS or PCCS.
	PCCS string
}

// open loads the root and opens the source of collateral.
func (t Trust) open() (*x509.Certificate, tdx.CollateralSource, error) {
	switch {
	case t.CollateralDir != "" && t.PCCS != "":
		return nil, nil, errors.New("CollateralDir and PCCS are both given")
	case t.RootFile != "" && t.CollateralDir == "" && t.PCCS == "":
		return nil, nil, errors.New("a root of one's own needs CollateralDir or PCCS")
	}
	root := tdx.IntelRootCA()
	if t.RootFile != "" {
		var err error
		if root, err = tdx.LoadTrustAnchor(t.RootFile); err != nil {
			return nil, nil, err
		}
	}
	if t.CollateralDir != "" {
		source, err := tdx.NewDirSource(t.CollateralDir)
		return root, source, err
	}
	source, err := pcs.New(pcs.Config{URL: t.PCCS})
	return root, source, err
}

// Policy says which trust domains are good enough for a KMS. All of it must
// hold. A policy without MRTD and Check is for a KMS that is identified by its
// root certificate: without one, [Dial] refuses it unless AnyMeasurement is set.
type Policy struct {
	// MRTD are the acceptable values of the MRTD, 48 bytes each; empty accepts
	// any.
	MRTD [][]byte
	// RTMR are the acceptable values of RTMR0 to RTMR3, 48 bytes each; empty
	// accepts any.
	RTMR [4][][]byte
	// AcceptTCB are the TCB statuses that are good enough, in Intel's words;
	// UpToDate alone where it is empty. Revoked cannot be accepted.
	AcceptTCB []string
	// Check judges everything else; optional. Its error refuses the KMS. It may
	// be called from several goroutines.
	Check func(*Facts) error
	// RequireEvidence refuses a KMS without Evidence. It is implied by every
	// expectation above, by the absence of a root certificate, and by nothing
	// else: existing KMSs may serve without.
	RequireEvidence bool
	// AnyMeasurement accepts every trust domain where no root certificate says
	// who the KMS is. Anyone with a TDX machine can then be the KMS.
	AnyMeasurement bool
}

// identifies says whether the policy can tell one KMS from another. Registers
// that run-time code extends do not: they say nothing without what extended them.
func (p Policy) identifies() bool { return len(p.MRTD) > 0 || p.Check != nil }

// expects says whether the policy needs Evidence to look at.
func (p Policy) expects() bool {
	return p.identifies() || slices.ContainsFunc(p.RTMR[:], func(any [][]byte) bool { return len(any) > 0 })
}

// validate refuses a policy that could not be met, or not be meant.
func (p Policy) validate() error {
	for i, registers := range append([][][]byte{p.MRTD}, p.RTMR[:]...) {
		for _, v := range registers {
			if len(v) != attest.MeasurementSize {
				return fmt.Errorf("%s of %d bytes, want %d", registerName(i), len(v), attest.MeasurementSize)
			}
		}
	}
	if slices.Contains(p.AcceptTCB, string(attest.Revoked)) {
		return errors.New("the TCB status Revoked cannot be accepted")
	}
	return nil
}

func registerName(i int) string {
	if i == 0 {
		return "MRTD"
	}
	return fmt.Sprintf("RTMR%d", i-1)
}

// appraise judges verified facts.
func (p Policy) appraise(f *Facts) error {
	accept := p.AcceptTCB
	if len(accept) == 0 {
		accept = []string{string(attest.UpToDate)}
	}
	if !slices.Contains(accept, f.TCBStatus) {
		return &EvidenceError{fmt.Errorf("TCB status: %s, accepted is %s", f.TCBStatus, strings.Join(accept, ", "))}
	}
	got := [][48]byte{f.MRTD, f.RTMR[0], f.RTMR[1], f.RTMR[2], f.RTMR[3]}
	for i, want := range append([][][]byte{p.MRTD}, p.RTMR[:]...) {
		if len(want) > 0 && !slices.ContainsFunc(want, func(v []byte) bool { return bytes.Equal(v, got[i][:]) }) {
			return &MismatchError{fmt.Errorf("%s is %x, the policy wants %s", registerName(i), got[i], hexes(want))}
		}
	}
	if p.Check != nil {
		if err := p.Check(f); err != nil {
			return &MismatchError{err}
		}
	}
	return nil
}

func hexes(values [][]byte) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = hex.EncodeToString(v)
	}
	return strings.Join(texts, " or ")
}

// Facts are what the verified Evidence of a KMS proves, and the names in its
// certificate.
type Facts struct {
	// TEE is the kind of trusted execution environment, "tdx".
	TEE string
	// MRTD and RTMR measure what the trust domain was built from, and what ran
	// in it.
	MRTD [48]byte
	RTMR [4][48]byte
	// MRConfigID, MROwner and MROwnerConfig were set by whoever built it;
	// MRSeam measures the TDX module.
	MRConfigID, MROwner, MROwnerConfig, MRSeam [48]byte
	// DeviceID is the SHA-256 of the platform's PPID, FMSPC its family.
	DeviceID [32]byte
	FMSPC    []byte
	// TCBStatus is the worst of platform, module and quoting enclave;
	// Advisories are Intel's about them.
	TCBStatus  string
	Advisories []string
	// TrustRoot is the SHA-256 of the root certificate that it leads to.
	TrustRoot [32]byte
	// AppID, ComposeHash, InstanceID, OSImageHash and KeyProvider are of the
	// event log, nil where it does not say.
	AppID, ComposeHash, InstanceID, OSImageHash, KeyProvider []byte
	// MRSystem and MRAggregated are docs/evidence.md#aggregates.
	MRSystem, MRAggregated [32]byte
	// Names are the DNS names and addresses in the certificate.
	Names []string
	// CAPublicKey is the DER SubjectPublicKeyInfo of the root that the
	// certificate leads to, nil where no root was given.
	CAPublicKey []byte
}

func newFacts(c *attest.Claims, log eventlog.Log, leaf *x509.Certificate) (*Facts, error) {
	id, err := log.Identity()
	if err != nil {
		return nil, &EvidenceError{fmt.Errorf("event log: %w", err)}
	}
	f := &Facts{
		TEE: c.TEE, MRTD: c.MRTD,
		MRConfigID: c.MRConfigID, MROwner: c.MROwner, MROwnerConfig: c.MROwnerConfig, MRSeam: c.MRSeam,
		DeviceID: c.DeviceID(), FMSPC: bytes.Clone(c.FMSPC), TCBStatus: string(c.TCB), Advisories: slices.Clone(c.Advisories),
		TrustRoot: c.TrustRoot,
		AppID:     id.AppID, ComposeHash: id.ComposeHash, InstanceID: id.InstanceID, OSImageHash: id.OSImageHash, KeyProvider: id.KeyProvider,
		MRSystem: c.MRSystem(id.KeyProvider), MRAggregated: c.MRAggregated(c.RTMR[3]),
		Names: slices.Clone(leaf.DNSNames),
	}
	for i, r := range c.RTMR {
		f.RTMR[i] = r
	}
	for _, ip := range leaf.IPAddresses {
		f.Names = append(f.Names, ip.String())
	}
	return f, nil
}
