package storagetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"teekms/internal/keys"
	"teekms/internal/storage"
	"teekms/internal/storage/storagetest/server"
)

// refusal is a way not to get at a database.
type refusal struct {
	name string
	// change spoils a Config that would open database on the server.
	change func(t *testing.T, c *storage.Config, s *server.Server, database string)
	// is are errors of which it must be one; none is any.
	is []error
	// says are texts of which the error must hold one; none is any.
	says []string
}

// setURL rewrites the URL.
func setURL(c *storage.Config, change func(u *url.URL)) {
	// The URLs of servers are our own.
	u, err := url.Parse(string(c.URL.Bytes()))
	if err != nil {
		panic(err)
	}
	change(u)
	c.URL = keys.NewSecret([]byte(u.String()))
}

// to points the URL at what peer does with connections.
func to(peer func(conn net.Conn)) func(t *testing.T, c *storage.Config, s *server.Server, database string) {
	return func(t *testing.T, c *storage.Config, _ *server.Server, _ string) {
		t.Helper()
		address := listen(t, "127.0.0.1:0", peer)
		setURL(c, func(u *url.URL) { u.Host = address })
	}
}

// withTLS makes the Config one for TLS.
func withTLS(c *storage.Config, s *server.Server, database string) {
	c.URL, c.CAFile = keys.NewSecret([]byte(s.TLSURL(database))), s.CAFile()
}

func refusals(kind server.Kind) []refusal {
	unavailable := []error{storage.ErrUnavailable}
	all := []refusal{
		{
			name: "wrong password", says: []string{"password", "WRONGPASS"},
			change: func(_ *testing.T, c *storage.Config, _ *server.Server, _ string) {
				setURL(c, func(u *url.URL) { u.User = url.UserPassword(server.User, server.Password+"x") })
			},
		},
		{
			name: "no password", says: []string{"password", "WRONGPASS", "NOAUTH"},
			change: func(_ *testing.T, c *storage.Config, _ *server.Server, _ string) {
				setURL(c, func(u *url.URL) { u.User = url.User(server.User) })
			},
		},
		{
			name: "unknown user", says: []string{"password", "WRONGPASS"},
			change: func(_ *testing.T, c *storage.Config, _ *server.Server, _ string) {
				setURL(c, func(u *url.URL) { u.User = url.UserPassword(server.Marker+"-user", server.Password) })
			},
		},
		{
			name: "unknown database", says: []string{"database"},
			change: func(_ *testing.T, c *storage.Config, _ *server.Server, _ string) {
				setURL(c, func(u *url.URL) {
					u.Path = "/kms_none"
					if kind == server.Redis {
						u.Path = "/60000"
					}
				})
			},
		},
		{
			name: "closed port", is: unavailable, says: []string{"refused"},
			change: func(t *testing.T, c *storage.Config, _ *server.Server, _ string) {
				l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				address := l.Addr().String()
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				setURL(c, func(u *url.URL) { u.Host = address })
			},
		},
		{name: "silent peer", is: unavailable, says: []string{"no answer", "in time"}, change: to(silent)},
		{name: "peer that hangs up", is: unavailable, change: to(func(net.Conn) {})},
		{name: "web server", change: to(webServer)},
		{
			name: "peer that talks without end",
			change: func(t *testing.T, c *storage.Config, s *server.Server, database string) {
				said := new(atomic.Int64)
				to(talker(said))(t, c, s, database)
				t.Cleanup(func() {
					if n := said.Load(); n > maxTalk {
						t.Errorf("Open listened to %d MiB of nothing", n>>20)
					}
				})
			},
		},
		{name: "peer that announces a long answer", change: to(announce("$9223372036854775800\r\n"))},
		{name: "peer that announces many answers", change: to(announce("*9223372036854775800\r\n"))},
		{name: "peer that announces a long message", change: to(announce("R\x7f\xff\xff\xff"))},
		{
			name: "CA that did not issue the certificate", says: []string{"certificate"},
			change: func(_ *testing.T, c *storage.Config, s *server.Server, database string) {
				withTLS(c, s, database)
				c.CAFile = s.OtherCAFile()
			},
		},
		{
			name: "certificate of another host", says: []string{"certificate"},
			change: func(t *testing.T, c *storage.Config, s *server.Server, database string) {
				withTLS(c, s, database)
				setURL(c, func(u *url.URL) { u.Host = listen(t, "127.0.0.2:0", forward(u.Host, nil)) })
			},
		},
		{
			// A Redis without TLS waits for the end of what is none of its commands.
			name: "somebody between who says there is no TLS", says: []string{"TLS", "not available"},
			change: func(t *testing.T, c *storage.Config, s *server.Server, database string) {
				plain, err := url.Parse(s.URL(database))
				if err != nil {
					t.Fatal(err)
				}
				withTLS(c, s, database)
				setURL(c, func(u *url.URL) { u.Host = listen(t, "127.0.0.1:0", forward(plain.Host, stripTLS(kind))) })
			},
		},
		{
			name: "CA file that is not there", says: []string{"CA"},
			change: func(t *testing.T, c *storage.Config, s *server.Server, database string) {
				withTLS(c, s, database)
				c.CAFile = filepath.Join(t.TempDir(), "none.pem")
			},
		},
		{
			name: "parameter that weakens", is: []error{storage.ErrConfig},
			change: func(_ *testing.T, c *storage.Config, _ *server.Server, _ string) {
				setURL(c, func(u *url.URL) { u.RawQuery = "sslmode=prefer&ssl-mode=PREFERRED&tls=skip-verify" })
			},
		},
		{
			name: "URL that cannot be parsed", is: []error{storage.ErrConfig},
			change: func(_ *testing.T, c *storage.Config, _ *server.Server, _ string) {
				c.URL = keys.NewSecret([]byte(strings.Replace(string(c.URL.Bytes()), server.Marker, server.Marker+"%zz/@[", 1)))
			},
		},
		{
			name: "host elsewhere without TLS", is: []error{storage.ErrConfig},
			change: func(_ *testing.T, c *storage.Config, _ *server.Server, _ string) {
				setURL(c, func(u *url.URL) {
					u.Host = "192.0.2.1:1"
					if kind == server.MariaDB {
						u.RawQuery = "ssl-mode=DISABLED"
					}
				})
			},
		},
	}
	for _, other := range []server.Kind{server.PostgreSQL, server.MariaDB, server.Redis} {
		if other == kind {
			continue
		}
		all = append(all, refusal{
			name: "server of " + string(other),
			change: func(t *testing.T, c *storage.Config, s *server.Server, _ string) {
				there, err := url.Parse(s.Sibling(t, other).URL(""))
				if err != nil {
					t.Fatal(err)
				}
				setURL(c, func(u *url.URL) { u.Host = there.Host })
			},
		})
	}
	return all
}

func (s suite) refusals(t *testing.T) {
	srv := s.Group.Shared(t, s.Kind)
	for _, r := range refusals(s.Kind) {
		s.sub(t, r.name, func(t *testing.T) {
			database := srv.NewDatabase(t)
			c := s.config()
			c.URL = keys.NewSecret([]byte(srv.URL(database)))
			r.change(t, &c, srv, database)
			c.Timeout = 4 * time.Second
			var log safeBuffer
			c.Log = zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zapcore.EncoderConfig{MessageKey: "msg"}), &log, zapcore.DebugLevel))
			err := within(t, c.Timeout+slack, "Open", func() error {
				db, err := s.Open(context.WithoutCancel(t.Context()), c)
				if err == nil {
					_ = db.Close()
				}
				return err
			})
			if err == nil {
				t.Fatal("Open succeeded")
			}
			r.check(t, err, log.String())
		})
	}
}

func (r refusal) check(t *testing.T, err error, log string) {
	t.Helper()
	t.Logf("Open = %v", err)
	for _, where := range []string{err.Error(), log} {
		if strings.Contains(where, server.Marker) || strings.Contains(where, "p%40ss") || strings.Contains(where, "p@ss") || strings.Contains(where, "://"+server.User) {
			t.Errorf("a secret shows: %s", where)
		}
	}
	if len(r.is) > 0 {
		wantError(r.is...)(t, err)
	}
	said := len(r.says) == 0
	for _, text := range r.says {
		said = said || strings.Contains(err.Error(), text)
	}
	if !said {
		t.Errorf("Open = %v, want one of %q in it", err, r.says)
	}
}

// safeBuffer is a log.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

// Sync does nothing.
func (s *safeBuffer) Sync() error { return nil }

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// listen serves connections with peer until the test ends, and returns the
// address.
func listen(t *testing.T, address string, peer func(conn net.Conn)) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			wg.Go(func() {
				peer(conn)
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, conn := range conns {
			_ = conn.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// silent reads and never answers.
func silent(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// webServer answers whatever it is told.
func webServer(conn net.Conn) {
	buffer := make([]byte, 1024)
	// Clients of MariaDB wait for the server to begin.
	begin := time.AfterFunc(300*time.Millisecond, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer begin.Stop()
	_, _ = conn.Read(buffer)
	_, _ = io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n400 Bad Request "+server.Marker)
}

// maxTalk is what may be read, and kept, of a peer that does not speak the
// protocol.
const maxTalk = 256 << 20

// talker writes until the other side has enough.
func talker(said *atomic.Int64) func(conn net.Conn) {
	return func(conn net.Conn) {
		line := bytes.Repeat([]byte("blah "+server.Marker+" "), 1000)
		for {
			n, err := conn.Write(line)
			said.Add(int64(n))
			if err != nil {
				return
			}
		}
	}
}

// announce writes what announces more than anybody could keep.
func announce(header string) func(conn net.Conn) {
	return func(conn net.Conn) {
		_, _ = io.WriteString(conn, header)
		silent(conn)
	}
}

// forward connects to address and copies both ways; strip changes what the server
// says first, or answers in its place.
func forward(address string, strip func(client, server net.Conn) error) func(conn net.Conn) {
	return func(conn net.Conn) {
		target, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", address)
		if err != nil {
			return
		}
		defer func() { _ = target.Close() }()
		if strip != nil && strip(conn, target) != nil {
			return
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = io.Copy(target, conn)
			_ = target.Close()
		})
		_, _ = io.Copy(conn, target)
		_ = conn.Close()
		wg.Wait()
	}
}

// stripTLS takes the offer of TLS out of a protocol. Redis has none: there the
// server behind simply speaks without.
func stripTLS(kind server.Kind) func(client, server net.Conn) error {
	switch kind {
	case server.PostgreSQL:
		return func(client, _ net.Conn) error {
			// SSLRequest is 8 bytes; N is "no".
			if _, err := io.ReadFull(client, make([]byte, 8)); err != nil {
				return err
			}
			_, err := client.Write([]byte("N"))
			return err
		}
	case server.MariaDB:
		return func(client, server net.Conn) error {
			greeting := make([]byte, 4096)
			n, err := server.Read(greeting)
			if err != nil {
				return err
			}
			// After the header of 4 bytes and the version: the version's text, a zero
			// byte, the connection's number (4), 8 bytes for the password and a zero
			// byte; then the capabilities, of which CLIENT_SSL is 0x0800.
			version := bytes.IndexByte(greeting[5:n], 0)
			capabilities := 5 + version + 1 + 4 + 8 + 1
			if version < 0 || capabilities+1 >= n {
				return errors.New("no greeting")
			}
			greeting[capabilities+1] &^= 0x08
			_, err = client.Write(greeting[:n])
			return err
		}
	default:
		return nil
	}
}
