package sqldb

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"teekms/internal/storage"
)

// errNotLoopback ends a connection without TLS that would leave this machine.
var errNotLoopback = errors.New("not a loopback address")

// keepAlive finds out within half a minute that a peer is gone.
const (
	keepAliveIdle     = 15 * time.Second
	keepAliveInterval = 5 * time.Second
	keepAliveCount    = 3
)

// dialer connects to a server. Without TLS, a server that was said to be on this
// machine is, whatever its name resolves to.
func dialer(s storage.Server) *net.Dialer {
	d := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval, Count: keepAliveCount,
	}}
	if !s.TLS && s.Loopback {
		d.Control = func(_, address string, _ syscall.RawConn) error {
			if a, err := netip.ParseAddrPort(address); err != nil || !a.Addr().Unmap().IsLoopback() {
				return errNotLoopback
			}
			return nil
		}
	}
	return d
}

// maxCAFile bounds the file of authorities in bytes.
const maxCAFile = 1 << 20

// tlsConfig returns how the server is authenticated, nil for a connection
// without TLS.
func tlsConfig(s storage.Server) (*tls.Config, error) {
	if !s.TLS {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: s.Name}
	if s.CAFile == "" {
		return c, nil
	}
	info, err := os.Stat(s.CAFile)
	if err != nil {
		return nil, fmt.Errorf("reading the CA file of the database: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxCAFile {
		return nil, fmt.Errorf("reading the CA file of the database: %q is not a file of at most %d bytes", s.CAFile, maxCAFile)
	}
	pem, err := os.ReadFile(s.CAFile)
	if err != nil {
		return nil, fmt.Errorf("reading the CA file of the database: %w", err)
	}
	c.RootCAs = x509.NewCertPool()
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("reading the CA file of the database: %q holds no certificate in PEM", s.CAFile)
	}
	return c, nil
}

// connector bounds the time that a connection takes to be made: database/sql
// also connects on its own account, without a deadline. It prepares what is
// connected.
type connector struct {
	driver.Connector
	timeout time.Duration
	// setUp are statements for each new connection.
	setUp []string
}

// Connect implements [driver.Connector].
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, cause(ctx, err)
	}
	for _, statement := range c.setUp {
		if err := execute(ctx, conn, statement); err != nil {
			// The first error is the one that tells what happened.
			_ = conn.Close()
			return nil, cause(ctx, err)
		}
	}
	return conn, nil
}

// cause prefers the end of patience to what a driver calls the connection that
// it cut off for it.
func cause(ctx context.Context, err error) error {
	if over := ctx.Err(); over != nil {
		return over
	}
	return err
}

func execute(ctx context.Context, conn driver.Conn, statement string) error {
	e, ok := conn.(driver.ExecerContext)
	if !ok {
		return driver.ErrSkip
	}
	_, err := e.ExecContext(ctx, statement, nil)
	return err
}

// Sizes and ages of a pool of connections to a server. Commits need one
// connection, so these are for readers.
const (
	maxConns     = 16
	maxIdleConns = 8
	maxConnAge   = 30 * time.Minute
	// maxConnIdle is below sessionIdle.
	maxConnIdle = 30 * time.Second
	// sessionIdle is when a server ends a session of ours that has died without
	// saying so, and with it a transaction that others wait for.
	sessionIdle = 60 * time.Second
)
