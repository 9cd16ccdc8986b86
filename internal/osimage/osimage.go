// Package osimage decides whether a verified quote is of the operating system
// image that its owner names: the quote's MRTD and RTMRs are compared with what
// an allowlist, a measurement document or the downloaded image says
// (docs/osimage.md).
//
// Make a [Verifier] with [New] and ask [Verifier.Verify] once per release. It
// never decides who may have a key; that is the authority's.
package osimage

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/osimage/boot"
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
	cfg     Config
	allowed *allowlist // nil without a file
	images  *store     // nil when nothing is downloaded
	flights *flights   // of images
}

// New makes a Verifier and reads the allowlist for the first time. Close ends
// it.
func New(cfg Config) (*Verifier, error) {
	cfg.DownloadTimeout = cmp.Or(cfg.DownloadTimeout, 2*time.Minute)
	cfg.MaxDownload = cmp.Or(cfg.MaxDownload, 1<<30)
	cfg.HTTP = cmp.Or(cfg.HTTP, client())
	cfg.Log = cmp.Or(cfg.Log, zap.NewNop())
	if cfg.Now == nil {
		cfg.Now = time.Now //nolint:forbidigo // the documented default of an optional clock
	}
	v := &Verifier{cfg: cfg}
	if !cfg.Verify {
		return v, nil
	}
	if cfg.AllowlistFile != "" {
		v.allowed = &allowlist{name: cfg.AllowlistFile, now: cfg.Now}
		if _, err := v.allowed.images(); err != nil {
			return nil, err
		}
	}
	if cfg.DownloadURL == "" {
		return v, nil
	}
	if err := checkURL(cfg.DownloadURL); err != nil {
		return nil, err
	}
	if cfg.CacheDir == "" || cfg.DownloadTimeout < 0 || cfg.MaxDownload < 0 || cfg.MaxDownload > maxMaxDownload {
		return nil, errors.New("downloading images needs a cache directory, a timeout and a size limit")
	}
	v.images = &store{
		dir: filepath.Join(cfg.CacheDir, "images"), url: cfg.DownloadURL,
		limit: cfg.MaxDownload, http: cfg.HTTP, now: cfg.Now,
	}
	v.flights = newFlights(cfg.DownloadTimeout, cfg.Now, v.images.image)
	return v, nil
}

// maxMaxDownload keeps the size of what an archive holds far from overflow.
const maxMaxDownload = 1 << 40

// Close ends downloads under way and waits for them.
func (v *Verifier) Close() {
	if v.flights != nil {
		v.flights.close()
	}
}

// Verify says what decided that the quote in s is of the image s.OSImageHash. A
// [*MismatchError] says which register does not match, any other error that is
// [ErrNotVerified] why the image could not be verified from what the workload
// gave, and [ErrUnavailable] that the answer could not be had now. It blocks
// while an image is downloaded and obeys ctx.
func (v *Verifier) Verify(ctx context.Context, s Subject) (Result, error) {
	result, err := v.verify(ctx, s)
	if err != nil {
		return Result{}, err
	}
	// What was released says it too, at info.
	v.cfg.Log.Debug("OS image decided on", zap.String("by", result.By),
		zap.String("os_image_hash", hex.EncodeToString(s.OSImageHash)), zap.Strings("registers", result.Registers))
	return result, nil
}

func (v *Verifier) verify(ctx context.Context, s Subject) (Result, error) {
	if !v.cfg.Verify {
		return Result{By: ByUnverified}, nil
	}
	if s.Claims == nil || len(s.OSImageHash) != HashSize {
		return Result{}, notVerified(fmt.Errorf("no Claims, or an OS image hash of %d bytes, want %d", len(s.OSImageHash), HashSize))
	}
	hash := imageHash(s.OSImageHash)
	if listed, result, err := v.byAllowlist(hash, s.Claims); listed || err != nil {
		return result, err
	}
	config, err := parseVMConfig(s.VMConfig)
	if err != nil {
		return Result{}, notVerified(err)
	}
	why := errors.New("not in an allowlist, and without a measurement document")
	if config.Measurement != nil {
		f, err := usableLite(hash, config)
		if err == nil {
			return f.result(ByLite, s, config.MemorySize)
		}
		// A document that cannot be used is as good as none.
		why = err
	}
	if v.images == nil {
		return Result{}, notVerified(why)
	}
	f, err := v.downloaded(ctx, hash, config.MemorySize)
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return f.result(ByDownload, s, config.MemorySize)
}

// byAllowlist decides on images that are listed, for good: another way would
// only soften what the operator wrote.
func (v *Verifier) byAllowlist(hash imageHash, c *attest.Claims) (listed bool, r Result, err error) {
	if v.allowed == nil {
		return false, Result{}, nil
	}
	images, err := v.allowed.images()
	if err != nil {
		return false, Result{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	listed, mismatch := images.find(hash, c)
	if mismatch != "" {
		return true, Result{}, &MismatchError{Register: mismatch}
	}
	return listed, Result{By: ByAllowlist, Registers: []string{registerMRTD, registerRTMR1, registerRTMR2}}, nil
}

func usableLite(hash imageHash, config vmConfig) (*facts, error) {
	if !boot.UsualMemory(config.MemorySize) {
		return nil, fmt.Errorf("measurement document does not cover a memory of %d bytes", config.MemorySize)
	}
	return liteFacts(hash[:], config.Measurement)
}

func (v *Verifier) downloaded(ctx context.Context, hash imageHash, memory uint64) (*facts, error) {
	im, err := v.flights.image(ctx, hash)
	if err != nil {
		return nil, err
	}
	if boot.UsualMemory(memory) {
		return &im.facts, nil
	}
	f := im.facts
	return &f, v.flights.alone(ctx, func() error {
		f.kernel, err = v.images.unusualKernel(hash, im, memory)
		if err != nil {
			// The files are not what they were: have them anew next time.
			v.flights.forget(&hash)
		}
		return err
	})
}

// ClearCache forgets downloaded images. imageHash and configHash are each empty
// (nothing), "all", or hexadecimal; anything else is [ErrCacheKey], and nothing
// is done then. Measurements are not cached by machine, so that configHash has
// no further effect. A download under way goes on, and its image is kept.
func (v *Verifier) ClearCache(_ context.Context, imageHash, configHash string) error {
	for _, key := range []string{imageHash, configHash} {
		if _, err := hex.DecodeString(key); err != nil && key != cacheAll {
			return ErrCacheKey
		}
	}
	if v.images == nil || imageHash == "" {
		return nil
	}
	return v.clear(strings.ToLower(imageHash))
}

const cacheAll = "all"

func (v *Verifier) clear(key string) error {
	if key == cacheAll {
		v.flights.forget(nil)
	} else if raw, _ := hex.DecodeString(key); len(raw) == HashSize {
		hash := imageHash(raw)
		v.flights.forget(&hash)
	}
	entries, err := os.ReadDir(v.images.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("clearing image cache: %w", err)
	}
	for _, e := range entries {
		// Folders being filled begin with a dot and are left alone.
		if e.Name() != key && (key != cacheAll || e.Name()[0] == '.') {
			continue
		}
		if err := os.RemoveAll(filepath.Join(v.images.dir, e.Name())); err != nil {
			return fmt.Errorf("clearing image cache: %w", err)
		}
	}
	return nil
}
