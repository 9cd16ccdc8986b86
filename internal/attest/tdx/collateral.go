package tdx

import "context"

// FMSPC identifies a platform family: the six bytes of that name in the SGX
// extension of a PCK certificate.
type FMSPC [6]byte

// CA names the intermediate that issued a PCK certificate, as Intel's PCS
// spells it in its URLs.
type CA string

// The two PCK issuers. TDX servers use the platform CA.
const (
	PlatformCA  CA = "platform"
	ProcessorCA CA = "processor"
)

// Collateral are the Endorsements of one platform family, byte for byte as a
// PCS gives them. Nothing in it is trusted before [Verifier.Verify] has checked
// it.
type Collateral struct {
	// TCBInfo and QEIdentity are the JSON bodies of /tcb and /qe/identity,
	// each an object and a signature over its exact bytes.
	TCBInfo, QEIdentity []byte
	// TCBInfoChain and QEIdentityChain are PEM: signer, then root.
	TCBInfoChain, QEIdentityChain []byte
	// PCKCRL and RootCRL are DER.
	PCKCRL, RootCRL []byte
	// PCKCRLChain is PEM: the issuer of PCKCRL, then root.
	PCKCRLChain []byte
}

// CollateralSource gives the collateral for a platform family. An error means
// that there is none to be had now; a source does not judge what it hands out.
// It may be called from several goroutines and obeys ctx.
type CollateralSource interface {
	Collateral(ctx context.Context, fmspc FMSPC, ca CA) (*Collateral, error)
}
