// Package configfs attests on bare TDX guests: it asks the kernel for a quote
// through configfs-tsm (Linux 6.7 and later) and takes the firmware's event log
// from the CCEL table of ACPI (docs/evidence.md#configfs).
package configfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"

	"teekms/internal/attest"
	"teekms/internal/attest/tdx"
)

// DefaultCCEL is where Linux shows the log that the CCEL table points to.
const DefaultCCEL = "/sys/firmware/acpi/tables/data/CCEL"

const (
	reportDir = configfsi.TsmPrefix + "/report"
	provider  = "tdx_guest"
	// A quote takes the host's quoting service milliseconds to seconds, one at
	// a time on a machine.
	defaultTimeout = 30 * time.Second
	firstPause     = 5 * time.Millisecond
	longestPause   = 500 * time.Millisecond
)

// Config says how to reach the kernel. The zero value is right on hardware.
type Config struct {
	// Client is the file system that configfs is in; the real one when nil.
	Client configfsi.Client
	// CCEL is the path of the event log; [DefaultCCEL] when empty. A file that
	// is not there means Evidence without an event log.
	CCEL string
	// Timeout bounds one Attest; 30 seconds when zero.
	Timeout time.Duration
}

// Attester asks the kernel for quotes, one at a time.
type Attester struct {
	client  configfsi.Client
	ccel    string
	timeout time.Duration
	// turn has room for one: who could put something in may quote.
	turn chan struct{}
}

var _ attest.Attester = (*Attester)(nil)

// New makes an Attester. It does not look whether the kernel can quote.
func New(cfg Config) *Attester {
	a := &Attester{client: cfg.Client, ccel: cfg.CCEL, timeout: cfg.Timeout, turn: make(chan struct{}, 1)}
	if a.ccel == "" {
		a.ccel = DefaultCCEL
	}
	if a.timeout <= 0 {
		a.timeout = defaultTimeout
	}
	return a
}

// Attest returns a quote over rd and the firmware's event log. It returns
// [attest.ErrNoAttester] where configfs-tsm is not mounted or no TEE stands
// behind it. A read that the kernel does not end in time is left to end by
// itself, in a goroutine that removes its entry; there is never more than one.
func (a *Attester) Attest(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	raw, err := a.inTurn(ctx, rd.Bytes())
	if err != nil {
		return nil, fmt.Errorf("quoting through configfs: %w", err)
	}
	q, err := tdx.ParseQuote(raw)
	if err != nil {
		return nil, fmt.Errorf("quoting through configfs: %w", err)
	}
	if q.ReportData() != rd.Bytes() {
		return nil, errors.New("quoting through configfs: the quote is over other report data than asked for")
	}
	log, err := readCCEL(a.ccel)
	if err != nil {
		return nil, fmt.Errorf("reading event log of firmware: %w", err)
	}
	return &attest.Evidence{Quote: q.Raw, EventLog: log}, nil
}

// inTurn waits for its turn, quotes, and leaves when ctx is done.
func (a *Attester) inTurn(ctx context.Context, rd [64]byte) ([]byte, error) {
	select {
	case a.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for another quote: %w", ctx.Err())
	}
	type result struct {
		quote []byte
		err   error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-a.turn }()
		quote, err := a.retry(ctx, rd)
		done <- result{quote, err}
	}()
	select {
	case r := <-done:
		return r.quote, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the kernel: %w", ctx.Err())
	}
}

// retry tries until a failure is not one of a busy machine.
func (a *Attester) retry(ctx context.Context, rd [64]byte) ([]byte, error) {
	client := a.client
	if client == nil {
		var err error
		if client, err = linuxtsm.MakeClient(); err != nil {
			return nil, absent(err)
		}
	}
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		quote, err := attempt(client, rd)
		if err == nil || !busy(err) {
			return quote, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		}
	}
}

// errGeneration says that somebody else wrote to our entry in between.
var errGeneration = errors.New("entry was changed by another process")

func busy(err error) bool {
	return errors.Is(err, errGeneration) || errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EINTR) || errors.Is(err, syscall.ETIMEDOUT)
}

// absent adds attest.ErrNoAttester to what the kernel answers where it has no
// configfs-tsm (ENOENT) or nothing behind it (ENXIO).
func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENXIO) {
		return fmt.Errorf("%w: %w", attest.ErrNoAttester, err)
	}
	return err
}

// attempt makes an entry, writes the report data, reads the quote, and removes
// the entry whatever happened.
//
// It speaks to the files itself, as package report of the same library drops
// the errno that tells a busy machine from a broken one.
func attempt(client configfsi.Client, rd [64]byte) (quote []byte, err error) {
	entry, err := client.MkdirTemp(reportDir, "teekms-*")
	if err != nil {
		return nil, absent(fmt.Errorf("making an entry: %w", err))
	}
	defer func() {
		if e := remove(client, entry); e != nil {
			quote, err = nil, errors.Join(err, e)
		}
	}()
	before, err := generation(client, entry)
	if err != nil {
		return nil, err
	}
	if err := client.WriteFile(entry+"/inblob", rd[:]); err != nil {
		return nil, fmt.Errorf("writing inblob: %w", err)
	}
	if quote, err = client.ReadFile(entry + "/outblob"); err != nil {
		return nil, fmt.Errorf("reading outblob: %w", err)
	}
	by, err := client.ReadFile(entry + "/provider")
	if err != nil {
		return nil, fmt.Errorf("reading provider: %w", err)
	}
	if name := strings.TrimSuffix(string(by), "\n"); name != provider {
		return nil, fmt.Errorf("provider is %q, want %q", name, provider)
	}
	after, err := generation(client, entry)
	if err != nil {
		return nil, err
	}
	if after != before+1 {
		return nil, fmt.Errorf("generation is %d, want %d: %w", after, before+1, errGeneration)
	}
	return quote, nil
}

// remove removes an entry. A failure is told without its errno: trying the whole
// again would leave another entry behind.
func remove(client configfsi.Client, entry string) error {
	const tries = 10
	var err error
	for range tries {
		if err = client.RemoveAll(entry); err == nil || !busy(err) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("removing the entry: %v", err) //nolint:errorlint // see above
	}
	return nil
}

// generation reads how often the entry was written to.
func generation(client configfsi.Client, entry string) (uint64, error) {
	b, err := client.ReadFile(entry + "/generation")
	if err != nil {
		return 0, fmt.Errorf("reading generation: %w", err)
	}
	n, err := configfsi.Kstrtouint(b, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading generation: %w", err)
	}
	return n, nil
}
