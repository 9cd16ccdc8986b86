// Package rpc is what every call of every service passes through: the access
// table, the bearer tokens, the deadline, the request id, the access log, the
// metrics, and the one place where an error becomes a code and a public text.
//
// Make a [Chain] per listener with [New], give [Chain.Options] to the Connect
// handlers and put [Chain.Wrap] around everything the listener serves.
package rpc

import (
	"context"
	"errors"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Defaults of [Config].
const (
	// DefaultReadMaxBytes bounds a request message, in bytes.
	DefaultReadMaxBytes = 1 << 20
	// DefaultTimeout bounds one call.
	DefaultTimeout = 60 * time.Second
	// DefaultConcurrency bounds the calls in work at once.
	DefaultConcurrency = 256
)

// Access is the access table: which bearer token a procedure asks for. The key
// is the Connect procedure ("/kms.v1.KMS/GetMeta"), a nil *Bearer means that
// the procedure is open. A procedure that is not listed is refused.
type Access map[string]*Bearer

// smallMessage bounds the messages of health and reflection, in bytes.
const smallMessage = 16 << 10

// Config of a [Chain].
type Config struct {
	// Log gets the access log and the causes of errors. Required.
	Log *zap.Logger
	// Access lists the procedures that are served. Required.
	Access Access
	// Admit tells who calls: it runs in every call of a listed procedure, after
	// the token was checked and the message read and before the service sees
	// it, within the deadline and the turn of the call. Its context is what the
	// service gets; its error ends the call and goes through the table. nil
	// admits everybody.
	Admit func(ctx context.Context) (context.Context, error)
	// Errors maps the errors of the services. Rules of this package for
	// canceled calls, expired deadlines, bad fields and tokens come after it.
	Errors Table
	// Registry receives the metrics; nil means none are kept.
	Registry prometheus.Registerer
	// Observe is told how every call of a listed procedure ended, for counters
	// of a service's own; nil is told nothing.
	Observe func(procedure string, failed bool)
	// ReadMaxBytes bounds a request message; 0 means DefaultReadMaxBytes.
	ReadMaxBytes int
	// Timeout bounds one call; 0 means DefaultTimeout.
	Timeout time.Duration
	// Concurrency bounds the calls in work at once; more wait for their turn,
	// within Timeout. 0 means DefaultConcurrency.
	Concurrency int
	// Pending bounds what calls hold until they have their turn, in bytes: their
	// messages as these arrive, and what a call itself takes. Beyond it the
	// connection that holds the most loses its calls that wait, with ErrBusy. 0
	// means DefaultPending, or eight messages where that is more.
	Pending int
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Chain is made by [New]. Its methods may be called from several goroutines.
type Chain struct {
	log     *zap.Logger
	access  Access
	admit   func(ctx context.Context) (context.Context, error)
	errors  Table
	metrics *metrics
	observe func(procedure string, failed bool)
	max     int
	timeout time.Duration
	slots   chan struct{} // holds a token per call in work
	intake  *intake
	now     func() time.Time
	ids     *idSource
}

// New returns a chain, or an error when the configuration misses a required
// field or the metrics are already registered.
func New(c Config) (*Chain, error) {
	if c.Log == nil {
		return nil, errors.New("making the call chain: Log is required")
	}
	if len(c.Access) == 0 {
		return nil, errors.New("making the call chain: Access is required")
	}
	m, err := newMetrics(c.Registry, c.Access)
	if err != nil {
		return nil, err
	}
	ch := &Chain{
		log: c.Log, access: c.Access, admit: c.Admit, metrics: m, observe: c.Observe,
		errors: append(append(Table{}, c.Errors...), baseRules()...),
		max:    c.ReadMaxBytes, timeout: c.Timeout, now: c.Now, ids: newIDSource(),
	}
	if ch.max <= 0 {
		ch.max = DefaultReadMaxBytes
	}
	if ch.timeout <= 0 {
		ch.timeout = DefaultTimeout
	}
	if c.Concurrency <= 0 {
		c.Concurrency = DefaultConcurrency
	}
	ch.slots = make(chan struct{}, c.Concurrency)
	if c.Pending <= 0 {
		c.Pending = max(DefaultPending, minPending*ch.max)
	}
	ch.intake = &intake{limit: c.Pending, holders: make(map[string]*holder)}
	if ch.now == nil {
		ch.now = time.Now //nolint:forbidigo // the default of an injected clock
	}
	return ch, nil
}

// ReadMaxBytes is the bound on a request message that is in force, in bytes.
func (c *Chain) ReadMaxBytes() int { return c.max }

// Options returns what the Connect handlers of a listener are made with. enc
// remembers the encodings of messages that do not change; nil is allowed.
//
// Compression is off in both directions: replies hold secrets beside bytes that
// a caller chose, and a compressed request is a bomb waiting to be unpacked.
func (c *Chain) Options(enc *Encodings) []connect.HandlerOption {
	return []connect.HandlerOption{
		connect.WithCompression("gzip", nil, nil),
		connect.WithReadMaxBytes(c.max),
		connect.WithCodec(enc.Codec(protoCodec{})),
		connect.WithCodec(enc.Codec(jsonCodec{name: "json"})),
		connect.WithCodec(enc.Codec(jsonCodec{name: "json; charset=utf-8"})),
		connect.WithRequestGate(c.gate),
		connect.WithInterceptors(connect.UnaryInterceptorFunc(c.intercept)),
	}
}

// Common returns the part of [Chain.Options] that handlers beside the services
// take, health and reflection: bounds and codecs, and no access table.
func (c *Chain) Common() []connect.HandlerOption {
	return []connect.HandlerOption{
		connect.WithCompression("gzip", nil, nil),
		connect.WithReadMaxBytes(min(c.max, smallMessage)),
		connect.WithCodec(protoCodec{}),
		connect.WithCodec(jsonCodec{name: "json"}),
		connect.WithCodec(jsonCodec{name: "json; charset=utf-8"}),
	}
}

// Wrap puts the request id, the access log, the metrics, the bound on bodies
// and the last recovery from panics around next.
func (c *Chain) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call := &call{ResponseWriter: w, ids: c.ids, count: c.ids.count.Add(1), start: c.now(), wrapped: true}
		call.certified = r.TLS != nil && len(r.TLS.PeerCertificates) > 0
		defer c.finish(call, r)
		r = r.WithContext(withCall(r.Context(), call))
		call.pending.in, call.pending.w, call.pending.request = c.intake, w, r
		if r.Body != nil && r.Body != http.NoBody {
			// Connect reads what is too large to its end, to keep the
			// connection; this is where that ends.
			call.body = body{ReadCloser: http.MaxBytesReader(w, r.Body, 2*int64(c.max)), pending: &call.pending}
			r.Body = &call.body
		}
		next.ServeHTTP(call, r)
	})
}
