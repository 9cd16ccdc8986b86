package rpc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const requestIDHeader = "X-Request-Id"

// maxLoggedPath bounds the path of a request that reached no procedure.
const maxLoggedPath = 128

// idSource makes request ids: a random prefix for the process and a count, so
// that an id is unique across restarts and costs no system call.
type idSource struct {
	prefix string
	count  atomic.Uint64
}

func newIDSource() *idSource {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return &idSource{prefix: hex.EncodeToString(b[:]) + "-"}
}

func (s *idSource) text(count uint64) string {
	var b [32]byte
	return string(strconv.AppendUint(append(b[:0], s.prefix...), count, 36))
}

// call is what is known of one HTTP request. But for pending the handler
// goroutine alone touches it.
type call struct {
	http.ResponseWriter
	ids       *idSource
	count     uint64
	start     time.Time
	procedure string
	// wrapped is true for calls that came through [Chain.Wrap]; of the others
	// nothing is known of the connection.
	wrapped bool
	// certified is true when the client has a certificate.
	certified bool
	// reads is true for procedures without side effects.
	reads bool
	// coded is true once code is the outcome of the procedure.
	coded  bool
	code   connect.Code
	err    error
	status int
	// pending is what it holds before its turn; other goroutines touch that,
	// under a mutex. body counts what arrives.
	pending pending
	body    body
}

// id is the request id, made when somebody asks for it.
func (c *call) id() string { return c.ids.text(c.count) }

// tellID gives the client of a call that failed the id under which its cause is
// logged.
func (c *call) tellID() {
	if c.ResponseWriter != nil {
		c.Header()[requestIDHeader] = []string{c.id()}
	}
}

func (c *call) WriteHeader(status int) {
	if c.status == 0 && status >= http.StatusOK {
		c.status = status
		if status >= http.StatusBadRequest {
			c.tellID()
		}
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *call) Write(p []byte) (int, error) {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	return c.ResponseWriter.Write(p)
}

// Flush implements http.Flusher, which Connect asks for when it streams.
func (c *call) Flush() {
	if f, ok := c.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// Unwrap serves http.ResponseController.
func (c *call) Unwrap() http.ResponseWriter { return c.ResponseWriter }

type callKey struct{}

func withCall(ctx context.Context, c *call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

// callOf returns the call of ctx, or a new one for a handler that is served
// without [Chain.Wrap].
func (c *Chain) callOf(ctx context.Context) *call {
	if call, ok := ctx.Value(callKey{}).(*call); ok {
		return call
	}
	return &call{ids: c.ids, count: c.ids.count.Add(1), start: c.now()}
}

// RequestID returns the id of the call that ctx belongs to, empty outside one.
func RequestID(ctx context.Context) string {
	if call, ok := ctx.Value(callKey{}).(*call); ok {
		return call.id()
	}
	return ""
}

// finish is deferred by Wrap: it recovers from a panic below the handlers, and
// counts and logs the call.
func (c *Chain) finish(call *call, r *http.Request) {
	call.pending.release()
	if v := recover(); v != nil {
		if v == http.ErrAbortHandler { //nolint:errorlint // net/http compares the value itself
			panic(v)
		}
		c.log.Error("panic in handler", zap.String("request_id", call.id()), zap.Any("panic", v), zap.StackSkip("stack", 1))
		call.code, call.coded = connect.CodeInternal, true
		defer c.abort(call, r)
	}
	failed := c.settle(call)
	took := c.now().Sub(call.start)
	c.metrics.observe(call, failed, took)
	if c.observe != nil && call.procedure != "" {
		c.observe(call.procedure, failed)
	}
	level := zapcore.InfoLevel
	if !failed && (call.reads || call.procedure == "") {
		level = zapcore.DebugLevel
	}
	entry := c.log.Check(level, "call")
	if entry == nil {
		return
	}
	fields := []zap.Field{
		zap.String("procedure", call.procedure),
		zap.String("peer", r.RemoteAddr),
		zap.String("code", codeName(call.code, failed)),
		zap.Duration("duration", took),
		zap.String("request_id", call.id()),
	}
	if call.procedure == "" {
		fields[0] = zap.String("path", r.URL.Path[:min(len(r.URL.Path), maxLoggedPath)])
	}
	if call.err != nil {
		fields = append(fields, zap.NamedError("err", call.err))
	}
	entry.Write(fields...)
}

// settle makes sure that the call has a code and tells whether it failed. A
// request that Connect refused before the chain saw it has only its status.
func (c *Chain) settle(call *call) bool {
	if call.coded {
		return call.code != 0
	}
	if status, ok := grpcStatus(call.Header()); ok {
		call.code = status
	} else {
		call.code = codeOfStatus(call.status)
	}
	return call.code != 0
}

// abort answers for a handler that panicked: with an error if nothing has been
// sent yet, by cutting the connection otherwise.
func (c *Chain) abort(call *call, r *http.Request) {
	if call.status != 0 {
		panic(http.ErrAbortHandler)
	}
	status := http.StatusInternalServerError
	if strings.HasPrefix(r.URL.Path, "/prpc/") {
		status = http.StatusBadRequest
	}
	h := call.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	call.WriteHeader(status)
	_, _ = call.Write([]byte(`{"error": "` + internalText(call.id()) + `"}`))
}

// grpcStatus reads the status that a gRPC handler has put into its trailers.
func grpcStatus(h http.Header) (connect.Code, bool) {
	for _, key := range [...]string{"Grpc-Status", http.TrailerPrefix + "Grpc-Status"} {
		if v := h[key]; len(v) > 0 {
			n, err := strconv.ParseUint(v[0], 10, 8)
			return connect.Code(n), err == nil
		}
	}
	return 0, false
}

// codeOfStatus is the inverse of Connect's table from codes to statuses, as far
// as it has one.
func codeOfStatus(status int) connect.Code {
	switch {
	case status < http.StatusBadRequest:
		return 0
	case status == http.StatusUnauthorized:
		return connect.CodeUnauthenticated
	case status == http.StatusForbidden:
		return connect.CodePermissionDenied
	case status == http.StatusNotFound:
		return connect.CodeNotFound
	case status == http.StatusTooManyRequests:
		return connect.CodeResourceExhausted
	case status == http.StatusNotImplemented, status == http.StatusMethodNotAllowed, status == http.StatusUnsupportedMediaType:
		return connect.CodeUnimplemented
	case status == http.StatusServiceUnavailable:
		return connect.CodeUnavailable
	case status < http.StatusInternalServerError:
		return connect.CodeInvalidArgument
	default:
		return connect.CodeInternal
	}
}

func codeName(code connect.Code, failed bool) string {
	if !failed {
		return "ok"
	}
	return code.String()
}
