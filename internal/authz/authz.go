// Package authz answers who may have a key: it describes an attested workload
// the way authorities know it, and asks one of them. The authorities are
// authz/dev, authz/webhook and authz/onchain (docs/authz.md).
//
// There are three outcomes, and they are kept apart everywhere: a [Decision],
// which allows or denies; [ErrUnreachable], nobody decided; [ErrMalformed],
// somebody answered, but not with a decision. Only an allowing decision allows.
package authz

import (
	"context"
	"errors"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
)

// Subject is what kind of workload asks, and so which rules it is under.
type Subject int

// The subjects.
const (
	// App asks for keys of its own.
	App Subject = iota + 1
	// KMS asks for the root keys, or is this KMS itself.
	KMS
)

// String returns "app" or "kms".
func (s Subject) String() string {
	switch s {
	case App:
		return "app"
	case KMS:
		return "kms"
	default:
		return "unknown"
	}
}

// BootInfo is what an authority is told of a workload: all of it from verified
// Claims and measured events, except OSImageHash and VMConfig
// (docs/authz.md#boot-info). Make one with [Describe].
type BootInfo struct {
	// TEEVariant is "dstack-tdx".
	TEEVariant string
	// AppID has 20 bytes.
	AppID []byte
	// ComposeHash (32 bytes in real guests) and InstanceID (20) are as the
	// guest measured them; empty where it did not.
	ComposeHash, InstanceID []byte
	// DeviceID is the SHA-256 of the platform's PPID.
	DeviceID [32]byte
	// MRAggregated and MRSystem are the aggregates of docs/evidence.md#aggregates.
	MRAggregated, MRSystem [32]byte
	// MRTD and RTMR are the registers of the quote.
	MRTD attest.Measurement
	RTMR [4]attest.Measurement
	// OSImageHash (32 bytes in real guests) is what VMConfig says: a statement
	// of the caller, until internal/osimage has compared it with the registers.
	// Empty where VMConfig says nothing.
	OSImageHash []byte
	// VMConfig is the description of the machine that OSImageHash is from, JSON
	// text of an object. It is not sent to authorities.
	VMConfig string
	// KeyProviderInfo is the JSON payload of the key-provider event; empty
	// where there is none.
	KeyProviderInfo []byte
	// TCBStatus is Intel's word for the platform, empty when collateral was not
	// asked for; AdvisoryIDs are Intel's advisories for it.
	TCBStatus   string
	AdvisoryIDs []string
	// EventLog holds the events that were replayed against RTMR.
	EventLog eventlog.Log
}

// Request asks whether a workload may have keys.
type Request struct {
	Subject  Subject
	BootInfo BootInfo
}

// Decision is an authority's answer.
type Decision struct {
	// Allowed is the answer. The zero Decision denies.
	Allowed bool
	// Reason is the authority's reason, fit for a caller to see: printable, and
	// at most [MaxReasonSize] bytes. It may be empty.
	Reason string
	// GatewayAppID names the gateway that the application may speak to; "any"
	// is every one.
	GatewayAppID string
}

// Facts are what an authority says of itself, for GetMeta. Every field may be
// empty.
type Facts struct {
	// Dev says that this authority allows everything.
	Dev bool
	// GatewayAppID is as in Decision.
	GatewayAppID string
	// ContractAddress and AppImplementation are addresses on the chain ChainID.
	ContractAddress   string
	ChainID           uint64
	AppImplementation string
	// EthRPCURL is a node to reach the chain by.
	EthRPCURL string
}

// Authorizer is an authority. Its methods may be called from several
// goroutines, and obey ctx.
type Authorizer interface {
	// Authorize decides on a request. A denial is no error. The error is
	// [ErrUnreachable] or [ErrMalformed], and the Decision denies then; it also
	// is ctx's error where that ended first.
	Authorize(ctx context.Context, r Request) (Decision, error)
	// Facts returns what the authority says of itself. An authority that cannot
	// be asked is no error: the Facts are old or empty then.
	Facts(ctx context.Context) (Facts, error)
}

var (
	// ErrUnreachable says that the authority gave no answer: no connection, no
	// time left, or out of order by its own account.
	ErrUnreachable = errors.New("authorization service unreachable")
	// ErrMalformed says that there was an answer, but no decision in it.
	ErrMalformed = errors.New("authorization service gave a malformed answer")
	// ErrAppID says that the measured app id is not one.
	ErrAppID = errors.New("app_id must be 20 bytes")
	// ErrVMConfig says that a description of a machine cannot be read.
	ErrVMConfig = errors.New("failed to decode VM config")
)
