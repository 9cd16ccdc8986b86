// Package device talks to a TPM 2.0 by a character device or a unix socket, and
// waits for neither for ever: [Open] and [Conn.Send].
package device

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

const (
	// grace is how long a command that the caller no longer waits for may take
	// to end, and what follows it to release what it made.
	grace = 2 * time.Second

	headerSize = 10
	// maxResponse is more than any command of TPM 2.0 answers, and what the
	// kernel keeps for one.
	maxResponse = 4096

	firstRetry, lastRetry = 2 * time.Millisecond, 500 * time.Millisecond
)

// ErrSilent says that a TPM did not answer in time.
var ErrSilent = errors.New("the TPM does not answer")

// Conn is an open TPM. It is not safe for concurrent use.
type Conn struct {
	stream stream
	// Managed says that the kernel's resource manager stands between: what the
	// connection made goes with it, and others never see it.
	managed bool
	ctx     context.Context //nolint:containedctx // the life of the connection; transport.TPM passes none
	stop    func() bool

	mu      sync.Mutex // guards what follows; the end of ctx comes from another goroutine
	closing bool       // in grace: only what releases is sent
	broken  error      // an answer is outstanding or not one: nothing more is sent
}

var _ transport.TPMCloser = (*Conn)(nil)

// stream is a connection or a device file.
type stream interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// Open opens the TPM at path: a character device such as /dev/tpmrm0, or a unix
// socket on which commands and answers follow each other, such as swtpm's. A
// socket serves one connection at a time, so it is held until [Conn.Close].
//
// No wait lasts longer than ctx: it needs a deadline. When ctx ends earlier, the
// command under way may end, and no other begins but by [Conn.Release].
func Open(ctx context.Context, path string) (*Conn, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return nil, errors.New("opening TPM: a context without a deadline")
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, explain(path, err)
	}
	c := &Conn{ctx: ctx}
	switch mode := info.Mode(); {
	case mode.Type() == fs.ModeSocket:
		c.stream, err = dial(ctx, path)
	case mode&fs.ModeCharDevice != 0:
		c.stream, err = openFile(path)
		c.managed = true
	default:
		return nil, fmt.Errorf("%s is neither a device nor a unix socket: name a TPM, such as /dev/tpmrm0, or the socket of a software TPM", path)
	}
	if err != nil {
		return nil, explain(path, err)
	}
	if err := c.stream.SetDeadline(deadline); err != nil {
		_ = c.stream.Close() // it says less than what went wrong before
		return nil, worded{path + " is no TPM: name one, such as /dev/tpmrm0, or the socket of a software TPM", err}
	}
	c.stop = context.AfterFunc(ctx, c.canceled)
	return c, nil
}

// dial waits for room in the queue of a socket: a software TPM keeps few waiting.
func dial(ctx context.Context, path string) (stream, error) {
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if !errors.Is(err, syscall.EAGAIN) {
			return conn, err //nolint:wrapcheck // explain does
		}
		if err := pause(ctx, wait); err != nil {
			return nil, silent(err)
		}
	}
}

// pause waits for d, or returns why ctx ended.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err() //nolint:wrapcheck // the caller says what was waited for
	}
}

// explain says what to do about a TPM that does not open.
func explain(path string, err error) error {
	var reason string
	switch {
	case errors.Is(err, fs.ErrNotExist):
		reason = "there is no TPM at " + path + " (no vTPM in this machine, or the unit's PrivateDevices= hides it)"
	case errors.Is(err, fs.ErrPermission):
		reason = path + " may not be opened: put the service's user into the group tss, and the device into the unit's DeviceAllow="
	case errors.Is(err, syscall.EBUSY):
		reason = path + " is in use by another program: name /dev/tpmrm0, which many can use"
	case errors.Is(err, syscall.ECONNREFUSED):
		reason = "nobody listens on " + path + ": the software TPM is not running"
	default:
		return fmt.Errorf("opening TPM %s: %w", path, err)
	}
	return worded{reason, err}
}

// worded is an error in our words, for callers still the one it stands for.
type worded struct {
	words string
	err   error
}

func (w worded) Error() string { return w.words }
func (w worded) Unwrap() error { return w.err }

// canceled lets the command under way end.
func (c *Conn) canceled() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing || errors.Is(c.ctx.Err(), context.DeadlineExceeded) {
		return // its deadline is that of the stream
	}
	c.soon()
}

// soon bounds what is under way by the grace.
func (c *Conn) soon() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), grace)
	defer cancel()
	deadline, _ := ctx.Deadline()
	if err := c.stream.SetDeadline(deadline); err != nil {
		c.broken = fmt.Errorf("setting a deadline: %w", err)
	}
}

// Managed reports whether a resource manager keeps what this connection makes
// from others, and drops it with the connection.
func (c *Conn) Managed() bool { return c.managed }

// Release begins the end of the connection: whatever became of the context,
// commands may be sent for two seconds more, to release what was made.
func (c *Conn) Release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closing = true
	if c.broken == nil {
		c.soon()
	}
}

// Close closes the connection.
func (c *Conn) Close() error {
	c.stop()
	return c.stream.Close() //nolint:wrapcheck // it names the path
}

// Send sends a command and returns the answer, at most 4096 bytes of which the
// header is as it must be. A TPM that is busy is asked again.
func (c *Conn) Send(command []byte) ([]byte, error) {
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		if err := c.ready(); err != nil {
			return nil, err
		}
		answer, err := c.exchange(command)
		if err != nil {
			return nil, c.fail(err)
		}
		switch tpm2.TPMRC(binary.BigEndian.Uint32(answer[6:])) {
		case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting:
		default:
			return answer, nil
		}
		if err := pause(c.ctx, wait); err != nil {
			return nil, fmt.Errorf("the TPM is busy: %w", err)
		}
	}
}

// ready returns why no command may be sent.
func (c *Conn) ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return c.broken
	}
	if err := c.ctx.Err(); err != nil && !c.closing {
		return silent(err)
	}
	return nil
}

// fail makes the connection useless: an answer that comes late would be taken
// for that of the next command.
func (c *Conn) fail(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = context.DeadlineExceeded
		if e := c.ctx.Err(); e != nil {
			err = e
		}
		err = silent(err)
	}
	c.broken = err
	return err
}

func silent(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w (it hangs, or another program holds it): %w", ErrSilent, err)
	}
	return err
}

// exchange sends a command and reads one answer, which may come in pieces.
func (c *Conn) exchange(command []byte) ([]byte, error) {
	if _, err := c.stream.Write(command); err != nil {
		return nil, fmt.Errorf("sending a command to the TPM: %w", err)
	}
	buf := make([]byte, maxResponse)
	for have := 0; ; {
		n, err := c.stream.Read(buf[have:])
		have += n
		if size, ok, bad := responseSize(buf[:have]); bad != nil {
			return nil, bad
		} else if ok && have == size {
			return buf[:size], nil
		}
		if errors.Is(err, io.EOF) && have == 0 {
			return nil, errors.New("the TPM closed the connection without an answer")
		}
		if err != nil {
			return nil, fmt.Errorf("reading the answer of the TPM: %w", err)
		}
	}
}

// responseSize reads the header of an answer: tag, size, code. Not ok means that
// more is wanted for it.
func responseSize(b []byte) (size int, ok bool, err error) {
	if len(b) < headerSize {
		return 0, false, nil
	}
	tag, n := binary.BigEndian.Uint16(b), binary.BigEndian.Uint32(b[2:])
	known := tag == uint16(tpm2.TPMSTNoSessions) || tag == uint16(tpm2.TPMSTSessions)
	switch {
	case tag == tagTPM12:
		return 0, false, errors.New("this is a TPM 1.2: a TPM 2.0 is needed")
	case !known || n < headerSize || n > maxResponse || len(b) > int(n):
		return 0, false, errors.New("what answers is no TPM 2.0")
	}
	return int(n), true, nil
}

// tagTPM12 begins an answer of the version before, also to a command it does not
// know.
const tagTPM12 = 0x00c4
