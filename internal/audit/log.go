package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"teekms/internal/registry"
)

// Errors of a [Log].
var (
	// ErrRevision says that the registry has another revision than expected.
	ErrRevision = errors.New("the registry has another revision than expected")
	// ErrUnavailable says that nobody knows whether the record was written.
	ErrUnavailable = errors.New("the audit log is not available")
	// ErrClosed says that the log was closed; nothing was written.
	ErrClosed = errors.New("the audit log is closed")
	// ErrTampered says that the log was not written by a KMS of these root keys,
	// or was changed since.
	ErrTampered = errors.New("the audit log was tampered with")
	// ErrRolledBack says that the log is shorter than it was: the database was
	// set back.
	ErrRolledBack = errors.New("the audit log was rolled back")
	// ErrForked says that the log does not begin with what it was before.
	ErrForked = errors.New("the audit log was forked")
	// ErrRange says that the log has no such record, or no such size.
	ErrRange = errors.New("beyond the end of the audit log")
)

// The bounds of one transaction and of what waits for one.
const (
	maxGroup      = 256
	maxGroupBytes = 1 << 20
	maxQueue      = 4096
	// usualTail has room for what is recorded of a release.
	usualTail = 1 << 10
)

// defaultTimeout bounds an append where Config does not.
const defaultTimeout = 10 * time.Second

// Config of a [Log].
type Config struct {
	// Store keeps the rows. Required.
	Store Store
	// Identity says whose log it is. Required; KeySignature may be missing.
	Identity
	// Log gets a line when the log cannot be written, or is not as it was.
	// Required.
	Log *zap.Logger
	// Metrics receives the counters; nil means none are kept.
	Metrics prometheus.Registerer
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Timeout bounds every append, whatever the caller's context allows; 0 is
	// 10 s.
	Timeout time.Duration
}

// Log is an audit log. Its methods may be called from several goroutines, and
// other processes may append to the same store.
type Log struct {
	store    Store
	identity Identity
	signer   signer
	vkey     string
	log      *zap.Logger
	metrics  *metrics
	now      func() time.Time
	timeout  time.Duration

	queue chan *pending
	// closing is closed when nothing more is taken in, done when the appender
	// has ended; stop makes it give up what it is at.
	closing, done chan struct{}
	closeOnce     sync.Once
	base          context.Context //nolint:containedctx // the life of the appender, which is not that of any caller
	stop          context.CancelFunc

	mu sync.Mutex
	// known is the last head that was seen and found to continue the one before.
	known *head
}

// New returns a log and starts its appender, which runs until Close. It does
// not use the store: [Log.Check] does.
func New(c Config) (*Log, error) {
	if c.Now == nil {
		c.Now = time.Now //nolint:forbidigo // the default of an injected clock
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	switch {
	case c.Store == nil:
		return nil, errors.New("opening audit log: Store is required")
	case c.Key.Len() != 32:
		return nil, fmt.Errorf("opening audit log: Key has %d bytes, want 32", c.Key.Len())
	case c.Log == nil:
		return nil, errors.New("opening audit log: Log is required")
	}
	s, err := c.signer()
	if err != nil {
		return nil, fmt.Errorf("opening audit log: %w", err)
	}
	vkey, err := c.VerifierKey()
	if err != nil {
		return nil, fmt.Errorf("opening audit log: %w", err)
	}
	m, err := newMetrics(c.Metrics)
	if err != nil {
		return nil, fmt.Errorf("opening audit log: %w", err)
	}
	l := &Log{
		store: c.Store, identity: c.Identity, signer: s, vkey: vkey, log: c.Log, metrics: m, now: c.Now, timeout: c.Timeout,
		queue: make(chan *pending, maxQueue), closing: make(chan struct{}), done: make(chan struct{}),
	}
	l.base, l.stop = context.WithCancel(context.Background())
	go l.run()
	return l, nil
}

// VerifierKey is the public key of checkpoints, and the root CA key's signature
// over its [KeyStatement]; nil where Identity had none.
func (l *Log) VerifierKey() (key string, signature []byte) {
	return l.vkey, l.identity.KeySignature
}

// Close takes in nothing more, waits for what was taken in to be written, and
// ends the appender. When ctx ends before, what is left is given up.
func (l *Log) Close(ctx context.Context) error {
	l.closeOnce.Do(func() { close(l.closing) })
	defer l.stop()
	select {
	case <-l.done:
		return nil
	case <-ctx.Done():
	}
	l.stop()
	return fmt.Errorf("closing audit log: %w", ctx.Err())
}

// Append records an event. See [Recorder].
func (l *Log) Append(ctx context.Context, e Event) (Receipt, error) {
	named := l.identify(&e)
	tail, err := appendTail(make([]byte, 0, usualTail), e.ID, e.Time, e.Kind, e.Fields, e.Edits)
	if err == nil && headerSize+len(tail) > MaxBody {
		err = fmt.Errorf("%w: more than %d bytes", ErrInvalid, MaxBody)
	}
	if err != nil {
		return Receipt{}, err
	}
	return l.submit(ctx, &pending{
		id: e.ID, named: named, tail: tail, edits: e.Edits, expected: e.ExpectedRevision, result: make(chan outcome, 1),
	})
}

// Clear begins a new log and an empty registry, where the store held others.
// The event is the first record, of the kind [DatabaseCleared] and with the
// size and the root hash of the log that was there.
func (l *Log) Clear(ctx context.Context, e Event) (Receipt, error) {
	l.identify(&e)
	e.Kind, e.Edits = DatabaseCleared, []registry.Edit(nil)
	if _, err := clearTail(e, &head{}, false); err != nil {
		return Receipt{}, err
	}
	return l.submit(ctx, &pending{id: e.ID, clear: &e, result: make(chan outcome, 1)})
}
