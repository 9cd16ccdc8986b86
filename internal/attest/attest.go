// Package attest holds the nouns of remote attestation (RFC 9334): Evidence,
// Claims, Attester, Verifier, ReportData. It knows no vendor: attest/tdx makes
// and verifies TDX Evidence, attest/guestagent asks a dstack guest agent,
// attest/simtd is a software trust domain.
//
// Make Evidence with an [Attester] over one of the typed report data of this
// package, check it with a [Verifier], and decide on the [Claims] it returns.
package attest

import (
	"context"
	"errors"
)

// MeasurementSize is the size in bytes of MRTD and of every RTMR (SHA-384).
const MeasurementSize = 48

// Measurement is one TDX measurement register.
type Measurement [MeasurementSize]byte

// Evidence is what an attester says about itself: a signed quote and what is
// needed to interpret it.
type Evidence struct {
	// Quote is the raw TDX quote, without trailing padding.
	Quote []byte
	// EventLog is the JSON text of the events that were extended into the
	// RTMRs (docs/wire.md#event-log), nil when the attester has none.
	EventLog []byte
	// VMConfig is the JSON text in which the guest agent describes the virtual
	// machine; empty without an agent. It is not covered by the quote.
	VMConfig string
}

// ErrNoAttester says that this machine has nothing to attest with.
var ErrNoAttester = errors.New("no attester found")

// Attester makes Evidence over report data. Attest blocks for as long as the
// platform needs (milliseconds to seconds) and obeys ctx. It may be called from
// several goroutines. It returns an error that is [ErrNoAttester] when the
// facility it speaks to is not there.
type Attester interface {
	Attest(ctx context.Context, rd ReportData) (*Evidence, error)
}

// Verifier checks Evidence against a trust anchor and endorsements. The error
// says which link of the chain failed, as a [*VerifyError]; the Claims are nil
// then.
type Verifier interface {
	Verify(ctx context.Context, e *Evidence) (*Claims, error)
}

// TCBStatus is Intel's word for the state of a platform, a module or a quoting
// enclave (docs/evidence.md#tcb).
type TCBStatus string

// The statuses that Intel publishes.
const (
	UpToDate                          TCBStatus = "UpToDate"
	SWHardeningNeeded                 TCBStatus = "SWHardeningNeeded"
	ConfigurationNeeded               TCBStatus = "ConfigurationNeeded"
	ConfigurationAndSWHardeningNeeded TCBStatus = "ConfigurationAndSWHardeningNeeded"
	OutOfDate                         TCBStatus = "OutOfDate"
	OutOfDateConfigurationNeeded      TCBStatus = "OutOfDateConfigurationNeeded"
	Revoked                           TCBStatus = "Revoked"
)

// Claims are the facts that verified Evidence holds.
type Claims struct {
	// TEE is the kind of trusted execution environment, "tdx".
	TEE string
	// MRTD measures the trust domain as it was built.
	MRTD Measurement
	// RTMR are the four run-time measurement registers.
	RTMR [4]Measurement
	// MRConfigID, MROwner and MROwnerConfig are set by whoever built the TD.
	MRConfigID, MROwner, MROwnerConfig Measurement
	// MRSeam measures the TDX module.
	MRSeam Measurement
	// ReportData are the 64 bytes the attester bound to the quote.
	ReportData [64]byte
	// Debug says that the TD can be looked into by its host. A Verifier
	// refuses such Evidence.
	Debug bool
	// FMSPC is the platform family (6 bytes), PPID the platform (16 bytes).
	FMSPC, PPID []byte
	// TCB is the worst of the three statuses below; empty when collateral was
	// not asked for.
	TCB TCBStatus
	// PlatformTCB, ModuleTCB and QETCB are the statuses it is the worst of.
	PlatformTCB, ModuleTCB, QETCB TCBStatus
	// Advisories are Intel's advisory ids for these three, sorted.
	Advisories []string
	// TrustRoot is the SHA-256 of the DER of the trust anchor.
	TrustRoot [32]byte
}

// VerifyError tells which link of the chain did not hold.
type VerifyError struct {
	// Link names the part that failed, one of the Link constants.
	Link string
	// Err is the cause.
	Err error
}

// The links of the chain, in the order in which they are checked.
const (
	LinkFormat     = "quote format"
	LinkChain      = "PCK certificate chain"
	LinkQEReport   = "QE report"
	LinkSignature  = "quote signature"
	LinkDebug      = "debug bit"
	LinkServiceTD  = "service TD"
	LinkCollateral = "collateral"
	LinkRevocation = "revocation"
	LinkTCB        = "TCB status"
	LinkReportData = "report data"
	LinkEventLog   = "event log"
)

func (e *VerifyError) Error() string { return e.Link + ": " + e.Err.Error() }

func (e *VerifyError) Unwrap() error { return e.Err }

// ErrNoCollateral says that endorsements could not be had, or that those at
// hand have expired: the Evidence is neither good nor bad.
var ErrNoCollateral = errors.New("no collateral to be had")
