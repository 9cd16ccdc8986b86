package serve_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"teekms/internal/serve"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// issue makes a self-signed certificate with a common name.
func issue(tb testing.TB, name string, notBefore, notAfter time.Time) tls.Certificate {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: notBefore, NotAfter: notAfter,
		DNSNames: []string{"kms.localhost"}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// server is a running [serve.Run].
type server struct {
	addr string
	stop context.CancelFunc
	done chan error
}

// start runs a server; change may adjust its configuration.
func start(t *testing.T, h http.Handler, change ...func(*serve.Config)) *server {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l, err := serve.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := serve.Config{Listener: l, Handler: h, Log: zap.NewNop()}
	for _, f := range change {
		f(&c)
	}
	s := &server{addr: l.Addr().String(), stop: cancel, done: make(chan error, 1)}
	go func() {
		defer close(s.done)
		s.done <- serve.Run(ctx, c)
	}()
	t.Cleanup(func() {
		cancel()
		<-s.done
	})
	return s
}

// within waits for Run to return and fails when that takes longer than limit.
func (s *server) within(t *testing.T, limit time.Duration) error {
	t.Helper()
	began := time.Now()
	select {
	case err := <-s.done:
		if took := time.Since(began); took > limit {
			t.Errorf("Run returned after %v, want at most %v", took, limit)
		}
		return err
	case <-time.After(time.Minute):
		t.Fatal("Run has not returned after a minute")
		return nil
	}
}

// transports are a client per protocol, and the server configuration it needs.
func transports(t *testing.T) map[string]func(*serve.Config) *http.Client {
	t.Helper()
	cert := issue(t, "kms", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	secure := func(c *serve.Config) *http.Transport {
		c.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		return &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	}
	return map[string]func(*serve.Config) *http.Client{
		"http/1.1": func(*serve.Config) *http.Client { return &http.Client{Transport: &http.Transport{}} },
		"h2c": func(*serve.Config) *http.Client {
			tr := &http.Transport{Protocols: new(http.Protocols)}
			tr.Protocols.SetUnencryptedHTTP2(true)
			return &http.Client{Transport: tr}
		},
		"https/1.1": func(c *serve.Config) *http.Client { return &http.Client{Transport: secure(c)} },
		"h2": func(c *serve.Config) *http.Client {
			tr := secure(c)
			tr.ForceAttemptHTTP2 = true
			return &http.Client{Transport: tr}
		},
	}
}

func TestDrainFinishesCallsInFlight(t *testing.T) {
	for name, setUp := range transports(t) {
		t.Run(name, func(t *testing.T) {
			entered, release := make(chan string, 1), make(chan struct{})
			var client *http.Client
			scheme := "http://"
			s := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				entered <- r.Proto
				<-release
				_, _ = io.WriteString(w, "done")
			}), func(c *serve.Config) {
				client = setUp(c)
				if c.TLS != nil {
					scheme = "https://"
				}
			})
			defer client.CloseIdleConnections()
			type reply struct {
				body string
				err  error
			}
			replies := make(chan reply, 1)
			go func() {
				res, err := client.Get(scheme + s.addr)
				if err != nil {
					replies <- reply{err: err}
					return
				}
				defer res.Body.Close()
				b, err := io.ReadAll(res.Body)
				replies <- reply{string(b), err}
			}()
			proto := <-entered
			if want := map[string]string{"http/1.1": "HTTP/1.1", "https/1.1": "HTTP/1.1", "h2c": "HTTP/2.0", "h2": "HTTP/2.0"}[name]; proto != want {
				t.Errorf("served by %s, want %s", proto, want)
			}
			s.stop()
			waitRefused(t, s.addr)
			select {
			case <-s.done:
				t.Fatal("Run returned with a call in flight")
			case <-time.After(150 * time.Millisecond): // longer than quiet connections are given
			}
			close(release)
			if got := <-replies; got.err != nil || got.body != "done" {
				t.Errorf("reply = %q, %v, want done", got.body, got.err)
			}
			if err := s.within(t, 20*time.Second); err != nil {
				t.Errorf("Run = %v, want nil", err)
			}
		})
	}
}

// waitRefused waits until nobody accepts connections at addr.
func waitRefused(t *testing.T, addr string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		_ = conn.Close()
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s still accepts connections", addr)
}

func TestQuietConnectionsDoNotHoldTheDrain(t *testing.T) {
	for name, setUp := range transports(t) {
		t.Run(name, func(t *testing.T) {
			var client *http.Client
			scheme := "http://"
			s := start(t, http.NotFoundHandler(), func(c *serve.Config) {
				client = setUp(c)
				if c.TLS != nil {
					scheme = "https://"
				}
			})
			// One that never speaks, one that has stopped in its header, one idle.
			for _, head := range []string{"", "GET / HTTP/1.1\r\nHost:"} {
				conn, err := net.Dial("tcp", s.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if _, err := io.WriteString(conn, head); err != nil {
					t.Fatal(err)
				}
			}
			res, err := client.Get(scheme + s.addr)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			s.stop()
			if err := s.within(t, 4*time.Second); err != nil { // less than net/http would give them
				t.Errorf("Run = %v, want nil", err)
			}
			client.CloseIdleConnections()
		})
	}
}

func TestGraceEnds(t *testing.T) {
	entered := make(chan struct{})
	s := start(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done() // Close cuts the connection, which ends this
	}), func(c *serve.Config) { c.Limits.Grace = 50 * time.Millisecond })
	failed := make(chan error, 1)
	go func() {
		res, err := http.Get("http://" + s.addr)
		if err == nil {
			res.Body.Close()
		}
		failed <- err
	}()
	<-entered
	s.stop()
	err := s.within(t, 20*time.Second)
	if want := "draining: calls still in flight after 50ms were cut off"; err == nil || err.Error() != want {
		t.Errorf("Run = %v, want %s", err, want)
	}
	if err := <-failed; err == nil {
		t.Error("the call got an answer, want it cut off")
	}
}

func TestListenerThatFails(t *testing.T) {
	s := start(t, http.NotFoundHandler(), func(c *serve.Config) { _ = c.Listener.Close() })
	if err := s.within(t, time.Minute); err == nil || !strings.HasPrefix(err.Error(), "serving on 127.0.0.1:") {
		t.Errorf("Run = %v, want the listener's failure", err)
	}
}

func TestAddressInUse(t *testing.T) {
	l, err := serve.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := l.Addr().String()
	_, err = serve.Listen(t.Context(), addr)
	if want := "Address already in use (os error 98): " + addr; err == nil || err.Error() != want {
		t.Errorf("Listen = %v, want %s", err, want)
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Listen = %v, want an error that is EADDRINUSE", err)
	}
	if _, err := serve.Listen(t.Context(), "nonsense"); err == nil || !strings.HasPrefix(err.Error(), "listening on nonsense: ") {
		t.Errorf("Listen(nonsense) = %v, want the address and a reason", err)
	}
}

func TestTLSVersions(t *testing.T) {
	cert := issue(t, "kms", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	tests := []struct {
		name          string
		server, offer uint16
		refused       bool
	}{
		{"1.2 is refused", 0, tls.VersionTLS12, true},
		{"1.3 is the default", 0, tls.VersionTLS13, false},
		{"1.2 when configured", tls.VersionTLS12, tls.VersionTLS12, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, http.NotFoundHandler(), func(c *serve.Config) {
				c.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tt.server}
			})
			conn, err := tls.Dial("tcp", s.addr, &tls.Config{InsecureSkipVerify: true, MaxVersion: tt.offer})
			if err == nil {
				conn.Close()
			}
			if refused := err != nil && strings.Contains(err.Error(), "protocol version not supported"); refused != tt.refused {
				t.Errorf("Dial = %v, want refused %v", err, tt.refused)
			}
		})
	}
}

func TestTLSWithoutACertificateIsRefused(t *testing.T) {
	s := start(t, http.NotFoundHandler(), func(c *serve.Config) { c.TLS = &tls.Config{MinVersion: tls.VersionTLS13} })
	if err := s.within(t, time.Minute); err == nil || err.Error() != "serving TLS: no certificate" {
		t.Errorf("Run = %v, want serving TLS: no certificate", err)
	}
}

// TestSlowClients holds that a client that stalls loses its connection.
func TestSlowClients(t *testing.T) {
	tests := []struct{ name, sent string }{
		{"says nothing", ""},
		{"stalls in the header", "POST / HTTP/1.1\r\nHost: a\r\nX-"},
		{"stalls in the body", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc"},
		{"idles", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, err := io.Copy(io.Discard, r.Body); err != nil {
					w.WriteHeader(http.StatusBadRequest)
				}
			}), func(c *serve.Config) {
				c.Limits.HeaderTime, c.Limits.ReadTime = 100*time.Millisecond, 200*time.Millisecond
				c.Limits.IdleTime = 100 * time.Millisecond
			})
			conn, err := net.Dial("tcp", s.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, tt.sent); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(9 * time.Second)) // less than what is the default
			if _, err := io.ReadAll(conn); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
				t.Error("the connection is still open after 9 s")
			}
		})
	}
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

func TestHeaderBytesAreBounded(t *testing.T) {
	s := start(t, http.NotFoundHandler(), func(c *serve.Config) { c.Limits.HeaderBytes = 1024 })
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.addr, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Long", strings.Repeat("a", 8192))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status = %d, want 431", res.StatusCode)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	s := start(t, http.NotFoundHandler(), func(c *serve.Config) { c.Limits.Connections = 2 })
	request := "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	var conns []net.Conn
	for range 3 {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	answered := func(conn net.Conn, wait time.Duration) bool {
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		var b [12]byte
		_, err := io.ReadFull(conn, b[:])
		return err == nil && string(b[:]) == "HTTP/1.1 404"
	}
	for i, conn := range conns[:2] {
		if !answered(conn, time.Minute) {
			t.Fatalf("connection %d got no answer", i)
		}
	}
	if answered(conns[2], 100*time.Millisecond) {
		t.Error("the third connection was served while two were open")
	}
	_ = conns[0].Close()
	_ = conns[2].SetReadDeadline(time.Now().Add(time.Minute))
	var b [12]byte
	if _, err := io.ReadFull(conns[2], b[:]); err != nil {
		t.Errorf("the third connection, once there is room: %v, want an answer", err)
	}
}

func TestCertificateIsReplacedWithoutDroppingConnections(t *testing.T) {
	hour := time.Hour
	var holder serve.Certificate
	holder.Set(issue(t, "first", time.Now().Add(-hour), time.Now().Add(hour)))
	s := start(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }),
		func(c *serve.Config) { c.TLS = holder.TLSConfig() })
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	name := func() string {
		res, err := client.Get("https://" + s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		_, _ = io.Copy(io.Discard, res.Body)
		return res.TLS.PeerCertificates[0].Subject.CommonName
	}
	if got := name(); got != "first" {
		t.Fatalf("certificate = %s, want first", got)
	}
	holder.Set(issue(t, "second", time.Now().Add(-hour), time.Now().Add(hour)))
	if got := name(); got != "first" {
		t.Errorf("certificate of the open connection = %s, want first", got)
	}
	client.CloseIdleConnections()
	if got := name(); got != "second" {
		t.Errorf("certificate of a new connection = %s, want second", got)
	}
}

func TestHandshakeBeforeTheFirstCertificate(t *testing.T) {
	var holder serve.Certificate
	if _, err := holder.Get(nil); err == nil || fmt.Sprint(err) != "no certificate yet" {
		t.Errorf("Get = %v, want no certificate yet", err)
	}
}

func TestConnContextReachesTheHandler(t *testing.T) {
	type key struct{}
	for name, setUp := range transports(t) {
		t.Run(name, func(t *testing.T) {
			var client *http.Client
			scheme := "http://"
			s := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, secure := r.Context().Value(key{}).(*tls.Conn)
				_, _ = fmt.Fprint(w, secure)
			}), func(c *serve.Config) {
				client = setUp(c)
				if c.TLS != nil {
					scheme = "https://"
				}
				c.ConnContext = func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, key{}, c) }
			})
			defer client.CloseIdleConnections()
			res, err := client.Get(scheme + s.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if want := fmt.Sprint(scheme == "https://"); err != nil || string(body) != want {
				t.Errorf("the handler got a TLS connection: %s, %v, want %s", body, err, want)
			}
		})
	}
}
