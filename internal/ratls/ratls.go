// Package ratls ties Evidence to TLS: it writes Evidence into certificates and
// reads it from them, in both generations of the wire format, appraises it
// against the key that the handshake proved, and hands the attested peer to
// whoever serves the call (docs/wire.md#certificates).
//
// A server takes its tls.Config, its ConnContext and its Admit from a [Server];
// a client makes a certificate with [NewCertificate] and a tls.Config with
// [ClientTLS]. Both appraise with an [Appraiser].
package ratls

import (
	"context"
	"errors"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
)

// Attested is what verified Evidence says about the holder of a key.
type Attested struct {
	// Claims are the facts that the quote proves.
	Claims *attest.Claims
	// Log is the event log. Its RTMR3 replays to that of Claims; its boot
	// events may have been left out. No application id, compose hash or
	// instance id stands in it twice. It may be shared: it must not be changed.
	Log eventlog.Log
	// VMConfig is the JSON text in which the host describes the machine, ""
	// when there is none. Nothing vouches for it.
	VMConfig string
	// PublicKey is the DER SubjectPublicKeyInfo that the quote binds.
	PublicKey []byte
	// Evidence is what was verified.
	Evidence *attest.Evidence
}

// Generation is a form of Evidence in a certificate.
type Generation int

const (
	// Gen8 is extension 8, a versioned attestation, stripped.
	Gen8 Generation = iota
	// Gen1 is extensions 1 and 2, quote and event log, for older peers.
	Gen1
)

var (
	// ErrLimited says that an address asked for more appraisals than it may.
	ErrLimited = errors.New("too many attestations from this address: try again later")
	// ErrNoCertificate says that a client came without the certificate that
	// this server insists on.
	ErrNoCertificate = errors.New("a client certificate is required")
	// ErrNoEvidence says that a certificate has none, where it is required.
	ErrNoEvidence = errors.New("certificate does not contain attestation")
)

// InvalidError says that Evidence was presented and does not hold. Its text is
// for the peer that presented it.
type InvalidError struct {
	// Err names the link of the chain that failed, and why.
	Err *attest.VerifyError
}

func (e *InvalidError) Error() string { return "invalid quote: " + e.Err.Error() }

func (e *InvalidError) Unwrap() error { return e.Err }

type peerKey struct{}

// PeerFrom returns the attested peer of the call that ctx belongs to; nil means
// that the peer has not attested itself.
func PeerFrom(ctx context.Context) *Attested {
	peer, _ := ctx.Value(peerKey{}).(*Attested)
	return peer
}
