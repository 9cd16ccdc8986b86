// Package serve runs a listener from the first connection to the last answer:
// TLS or plaintext HTTP/1.1 and HTTP/2, limits, drain, health, and the one
// handler that answers Connect, gRPC, gRPC-Web and prpc.
//
// [Listen] opens the address, [NewMux] makes the handler, [Run] serves until
// its context ends and every call in flight is answered.
package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// Limits bounds what clients can make a server hold. A zero field means its
// default.
type Limits struct {
	// Connections open at once; more wait in the kernel's queue. 1024.
	Connections int
	// Streams is how many calls one HTTP/2 connection may have open. 128.
	Streams int
	// HeaderBytes of one request; net/http allows 4 KiB more. 32 KiB.
	HeaderBytes int
	// HeaderTime to shake hands and to send one request's header. 10 s.
	HeaderTime time.Duration
	// ReadTime for a whole request, body included. 30 s.
	ReadTime time.Duration
	// WriteTime from the end of the header to the end of the answer. 120 s.
	WriteTime time.Duration
	// IdleTime between two requests of a connection. 120 s.
	IdleTime time.Duration
	// Grace for calls in flight once the context has ended. 30 s.
	Grace time.Duration
}

func orDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

func (l Limits) withDefaults() Limits {
	orDefault(&l.Connections, 1024)
	orDefault(&l.Streams, 128)
	orDefault(&l.HeaderBytes, 32<<10)
	orDefault(&l.HeaderTime, 10*time.Second)
	orDefault(&l.ReadTime, 30*time.Second)
	orDefault(&l.WriteTime, 120*time.Second)
	orDefault(&l.IdleTime, 120*time.Second)
	orDefault(&l.Grace, 30*time.Second)
	return l
}

// Config of [Run].
type Config struct {
	// Listener is served, and closed when Run returns. Required.
	Listener net.Listener
	// Handler answers. Required.
	Handler http.Handler
	// TLS is the configuration of the listener; nil means plaintext, HTTP/1.1
	// and HTTP/2 with prior knowledge. MinVersion 0 means TLS 1.3.
	TLS *tls.Config
	// Limits bound the connections.
	Limits Limits
	// ConnContext adds to the context of every connection, as that of
	// http.Server does; nil adds nothing.
	ConnContext func(ctx context.Context, c net.Conn) context.Context
	// Log gets what net/http has to say of connections, at debug. Required.
	Log *zap.Logger
}

// window is how much of a message may be on its way before it is read, in bytes:
// most messages are smaller. A connection may have twice that.
const window = 64 << 10

// Listen opens a TCP address "host:port"; 0.0.0.0 is IPv4 alone, :: is both. An
// address that somebody else listens on is an error whose whole text is what
// operators know to look for: "Address already in use (os error 98): ADDR".
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	network := "tcp"
	if ap, err := netip.ParseAddrPort(addr); err == nil && ap.Addr().Is4() {
		network = "tcp4" // else 0.0.0.0 would be every IPv6 address too
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, network, addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &inUseError{addr: addr, err: err}
	}
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", addr, err)
	}
	return l, nil
}

type inUseError struct {
	addr string
	err  error
}

func (e *inUseError) Error() string { return "Address already in use (os error 98): " + e.addr }

func (e *inUseError) Unwrap() error { return e.err }

// Run serves until ctx ends, then drains: it stops accepting, closes the
// connections that have no call in flight, and waits for the others up to
// Limits.Grace. It returns nil after a complete drain, and an error when calls
// were cut off or when the listener failed.
func Run(ctx context.Context, c Config) error {
	if c.Listener == nil || c.Handler == nil || c.Log == nil {
		return errors.New("serving: Listener, Handler and Log are required")
	}
	limits := c.Limits.withDefaults()
	conns := newConns(limits.Connections)
	srv, err := newServer(c, limits)
	if err != nil {
		return err
	}
	srv.ConnState = conns.track
	served := make(chan error, 1)
	l := conns.limit(c.Listener)
	go func() {
		if srv.TLSConfig != nil {
			served <- srv.ServeTLS(l, "", "")
			return
		}
		served <- srv.Serve(l)
	}()
	select {
	case err := <-served: // without Shutdown, Serve ends only when it fails
		_ = srv.Close()
		return fmt.Errorf("serving on %s: %w", c.Listener.Addr(), err)
	case <-ctx.Done():
	}
	err = drain(context.WithoutCancel(ctx), srv, conns, limits.Grace)
	<-served
	return err
}

func newServer(c Config, limits Limits) (*http.Server, error) {
	errorLog, err := zap.NewStdLogAt(c.Log, zap.DebugLevel)
	if err != nil {
		return nil, fmt.Errorf("making the server's log: %w", err)
	}
	srv := &http.Server{
		Handler:           c.Handler,
		ReadHeaderTimeout: limits.HeaderTime,
		ReadTimeout:       limits.ReadTime,
		WriteTimeout:      limits.WriteTime,
		IdleTimeout:       limits.IdleTime,
		MaxHeaderBytes:    limits.HeaderBytes,
		ConnContext:       c.ConnContext,
		ErrorLog:          errorLog,
		Protocols:         new(http.Protocols),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: limits.Streams, MaxReceiveBufferPerConnection: 2 * window, MaxReceiveBufferPerStream: window,
		},
	}
	srv.Protocols.SetHTTP1(true)
	if c.TLS == nil {
		srv.Protocols.SetUnencryptedHTTP2(true)
		return srv, nil
	}
	srv.Protocols.SetHTTP2(true)
	srv.TLSConfig = c.TLS.Clone()
	if srv.TLSConfig.MinVersion == 0 {
		srv.TLSConfig.MinVersion = tls.VersionTLS13
	}
	if len(srv.TLSConfig.Certificates) == 0 && srv.TLSConfig.GetCertificate == nil && srv.TLSConfig.GetConfigForClient == nil {
		return nil, errors.New("serving TLS: no certificate")
	}
	return srv, nil
}

// settleTime is how long a connection that has not spoken may take to turn out
// to have a request on the way.
const settleTime = 100 * time.Millisecond

// drain ends srv. net/http closes idle connections at once, but waits five
// seconds for those on which nothing was ever sent; conns closes these.
func drain(ctx context.Context, srv *http.Server, conns *conns, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		timer := time.NewTicker(settleTime)
		defer timer.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
				conns.closeQuiet()
			}
		}
	}()
	err := srv.Shutdown(ctx)
	cancel()
	<-done
	if err != nil {
		_ = srv.Close()
		return fmt.Errorf("draining: calls still in flight after %s were cut off", grace)
	}
	return nil
}
