package redisdb

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"teekms/internal/keys"
	"teekms/internal/storage"
)

// maxCAFile bounds the file of trusted roots, in bytes.
const maxCAFile = 1 << 20

// target is where to connect and how.
type target struct {
	address  string
	username string
	password keys.Secret
	database int
	dial     dialer
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// errTLSSilent says that a handshake got no answer in time.
var errTLSSilent = errors.New("no answer to the TLS handshake")

// errNotLocal says that a name which was taken for this machine is another's.
var errNotLocal = errors.New("plaintext connection leaves this machine")

// refuse is a configuration error with a fixed text.
func refuse(text string) error { return fmt.Errorf("%w: %s", storage.ErrConfig, text) }

// parseConfig checks c and says where to connect. Nothing is tried.
func parseConfig(c storage.Config) (target, error) {
	switch {
	case c.Type != storage.RedisFindex:
		return target{}, refuse("not a Redis database")
	case c.Key.Len() != keySize:
		return target{}, refuse("the key of a Redis database is 32 bytes")
	case c.Root == [32]byte{}:
		return target{}, refuse("the root key to bind the database to is missing")
	case c.Log == nil:
		return target{}, refuse("a logger is required")
	}
	if err := c.Validate(); err != nil {
		return target{}, err
	}
	s, err := c.Server()
	if err != nil {
		return target{}, err
	}
	if s.User != "" && s.Password.Len() == 0 {
		return target{}, refuse("the Redis URL has a user but no password")
	}
	number, err := strconv.Atoi(s.Database)
	if err != nil {
		return target{}, refuse("the URL's path is not the number of a Redis database")
	}
	t := target{address: s.Host, username: s.User, password: s.Password, database: number}
	t.dial, err = newDialer(s, c.InsecurePlaintext)
	return t, err
}

// newDialer returns the way to the server: verified TLS, or plaintext where that
// may be.
func newDialer(s storage.Server, insecurePlaintext bool) (dialer, error) {
	if !s.TLS {
		return plaintextDialer(insecurePlaintext), nil
	}
	roots, err := loadRoots(s.CAFile)
	if err != nil {
		return nil, err
	}
	return tlsDialer(&tls.Config{ServerName: s.Name, RootCAs: roots, MinVersion: tls.VersionTLS12}), nil
}

// tlsDialer dials and shakes hands. A server without TLS waits for the end of a
// line that never comes: that is told from one that is silent altogether.
func tlsDialer(config *tls.Config) dialer {
	d := &net.Dialer{}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		raw, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		conn := tls.Client(raw, config)
		if err = conn.HandshakeContext(ctx); err == nil {
			return &guarded{Conn: conn}, nil
		}
		_ = raw.Close() // Nothing but the handshake was sent on it.
		if ctx.Err() != nil && !errors.Is(ctx.Err(), context.Canceled) {
			return nil, errTLSSilent
		}
		return nil, err
	}
}

// plaintextDialer dials without TLS, and unless anywhere is allowed only this
// machine, whatever its name resolves to.
func plaintextDialer(anywhere bool) dialer {
	d := &net.Dialer{}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if peer, ok := conn.RemoteAddr().(*net.TCPAddr); anywhere || ok && peer.IP.IsLoopback() {
			return &guarded{Conn: conn}, nil
		}
		_ = conn.Close() // Nothing was sent on it.
		return nil, errNotLocal
	}
}

// loadRoots reads the roots to trust; no file means the system's.
func loadRoots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil //nolint:nilnil // crypto/tls takes nil for the system's roots.
	}
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("%w: reading the CA file of the database: %w", storage.ErrConfig, err)
	}
	if info.Size() > maxCAFile {
		return nil, refuse("the CA file of the database is too large")
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%w: reading the CA file of the database: %w", storage.ErrConfig, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, refuse("the CA file of the database holds no PEM certificate")
	}
	return roots, nil
}
