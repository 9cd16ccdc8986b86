package ratls_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/keys"
	"teekms/internal/ratls"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openTD(t testing.TB, cfg simtd.Config) *simtd.TD {
	t.Helper()
	cfg.Dir = t.TempDir()
	td, err := simtd.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return td
}

// verifier counts verifications and lets a test stand in their way.
type verifier struct {
	attest.Verifier
	calls  atomic.Int32
	before func(context.Context) error // nil for nothing
}

func (v *verifier) Verify(ctx context.Context, ev *attest.Evidence) (*attest.Claims, error) {
	v.calls.Add(1)
	if v.before != nil {
		if err := v.before(ctx); err != nil {
			return nil, err
		}
	}
	return v.Verifier.Verify(ctx, ev)
}

func verifierOf(t testing.TB, td *simtd.TD) *verifier {
	t.Helper()
	v, err := tdx.NewVerifier(tdx.Config{TrustAnchor: td.Root(), Collateral: td})
	if err != nil {
		t.Fatal(err)
	}
	return &verifier{Verifier: v}
}

func appraiserOf(t testing.TB, cfg ratls.AppraiserConfig) *ratls.Appraiser {
	t.Helper()
	a, err := ratls.NewAppraiser(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// kms is the certificate side of a KMS.
type kms struct {
	roots *keys.Roots
	ca    *x509.Certificate
	temp  ratls.Issuer
}

func newKMS(t testing.TB) *kms {
	t.Helper()
	roots, err := keys.NewRoots()
	if err != nil {
		t.Fatal(err)
	}
	tempKey, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	k := &kms{roots: roots, ca: parse(t)(keys.NewRootCA(roots, time.Now()))}
	k.temp = ratls.Issuer{Certificate: parse(t)(keys.NewTempCA(tempKey, time.Now())), Key: tempKey}
	return k
}

func parse(t testing.TB) func([]byte, error) *x509.Certificate {
	t.Helper()
	return func(der []byte, err error) *x509.Certificate {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}

func (k *kms) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(k.ca)
	return p
}

// rpc issues an RPC certificate over key with Evidence from a, none if nil.
func (k *kms) rpc(t testing.TB, key *ecdsa.PrivateKey, a attest.Attester, gen ratls.Generation) tls.Certificate {
	t.Helper()
	req := keys.RPCRequest{Roots: k.roots, CA: k.ca, Public: &key.PublicKey, Domain: "kms.test", Now: time.Now()}
	if a != nil {
		ev, err := a.Attest(t.Context(), attest.RATLSReportData(spki(t, &key.PublicKey)))
		if err != nil {
			t.Fatal(err)
		}
		if req.Extensions, err = ratls.Extensions(ev, gen); err != nil {
			t.Fatal(err)
		}
	}
	leaf := parse(t)(keys.IssueRPC(req))
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func spki(t testing.TB, key *ecdsa.PublicKey) []byte {
	t.Helper()
	b, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// attester attests by a function.
type attester func(context.Context, attest.ReportData) (*attest.Evidence, error)

func (f attester) Attest(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
	return f(ctx, rd)
}

func newCertificate(t testing.TB, c ratls.ClientCertConfig) *tls.Certificate {
	t.Helper()
	cert, err := ratls.NewCertificate(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return &cert
}

// server is a listener that tells each caller who it is.
type server struct {
	addr  string
	log   *lockedBuffer
	calls atomic.Int32 // of the handler
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// zap is a log into b.
func (b *lockedBuffer) zap() *zap.Logger {
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(zapcore.EncoderConfig{MessageKey: "msg"}), zapcore.AddSync(b), zap.DebugLevel))
}

// timeoutHeader gives a call a deadline at the server.
const timeoutHeader = "X-Timeout"

func serve(t testing.TB, cfg ratls.ServerConfig, plain bool) *server {
	t.Helper()
	return serveTLS(t, cfg, plain, func(*tls.Config) {})
}

// serveTLS serves with the configuration edited.
func serveTLS(t testing.TB, cfg ratls.ServerConfig, plain bool, edit func(*tls.Config)) *server {
	t.Helper()
	if cfg.Certificates == nil {
		cert := newKMS(t).rpc(t, newKey(t), nil, 0)
		cfg.Certificates = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	s, err := ratls.NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	out := &server{addr: l.Addr().String(), log: &lockedBuffer{}}
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			out.calls.Add(1)
			ctx := r.Context()
			if d, err := time.ParseDuration(r.Header.Get(timeoutHeader)); err == nil {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, d)
				defer cancel()
			}
			ctx, err := s.Admit(ctx)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			_, _ = io.WriteString(w, describe(ratls.PeerFrom(ctx)))
		}),
		ConnContext: s.ConnContext, TLSConfig: s.TLSConfig(), ErrorLog: zap.NewStdLog(out.log.zap()),
		ReadHeaderTimeout: time.Minute,
	}
	edit(srv.TLSConfig)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if plain {
			_ = srv.Serve(l)
			return
		}
		_ = srv.ServeTLS(l, "", "")
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return out
}

// describe is what a caller is told of itself.
func describe(p *ratls.Attested) string {
	if p == nil {
		return "nobody"
	}
	id, err := p.Log.Identity()
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("app %x", id.AppID)
}

// client talks to a server, on one connection unless it is told otherwise.
type client struct {
	http *http.Client
	url  string
}

func (s *server) client(t testing.TB, cert *tls.Certificate, edit func(*tls.Config)) *client {
	t.Helper()
	cfg := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
	if cert != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	if edit != nil {
		edit(cfg)
	}
	return s.clientWith(t, cfg)
}

func (s *server) clientWith(t testing.TB, cfg *tls.Config) *client {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: len(cfg.NextProtos) == 0}
	t.Cleanup(tr.CloseIdleConnections)
	return &client{http: &http.Client{Transport: tr}, url: "https://" + s.addr}
}

func http1(c *tls.Config) { c.NextProtos = []string{"http/1.1"} }

func (c *client) get(ctx context.Context, header ...string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, http.NoBody)
	if err != nil {
		return "", err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.http.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return strings.TrimSpace(string(b)), err
}

func (c *client) want(t testing.TB, want string) {
	t.Helper()
	if got, err := c.get(t.Context()); err != nil || !strings.HasPrefix(got, want) {
		t.Errorf("GET = %q, %v, want %q", got, err, want)
	}
}

// wantNoHandshake sees a client refused before it can call, for a reason that
// the server logs.
func (s *server) wantNoHandshake(t testing.TB, c *client, reason string) {
	t.Helper()
	if got, err := c.get(t.Context()); err == nil {
		t.Errorf("GET = %q, want no connection", got)
	}
	for deadline := time.Now().Add(time.Minute); !strings.Contains(s.log.String(), reason); {
		if time.Now().After(deadline) {
			t.Errorf("log = %q, want %q", s.log.String(), reason)
			break
		}
		time.Sleep(time.Millisecond)
	}
	if n := s.calls.Load(); n != 0 {
		t.Errorf("handler was called %d times, want never", n)
	}
}

func appText(td *simtd.TD) string { return fmt.Sprintf("app %x", td.Measurements().AppID) }

var (
	errDenied = errors.New("denied")
	localhost = netip.MustParseAddr("127.0.0.1")
)

// admitted returns a server and the context of a connection whose peer it has
// appraised, without HTTP around.
func admitted(t testing.TB, td *simtd.TD) (*ratls.Server, context.Context) {
	t.Helper()
	cert := newKMS(t).rpc(t, newKey(t), nil, 0)
	s, err := ratls.NewServer(ratls.ServerConfig{
		Appraiser:    appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierOf(t, td)}),
		Certificates: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := net.Pipe()
	peer := newCertificate(t, ratls.ClientCertConfig{Attester: td})
	client := tls.Client(theirs, &tls.Config{
		InsecureSkipVerify:   true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return peer, nil },
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, client)
	}()
	conn := tls.Server(mine, s.TLSConfig())
	t.Cleanup(func() {
		_ = theirs.Close()
		_ = mine.Close()
		<-done
	})
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx := s.ConnContext(t.Context(), conn)
	if _, err := s.Admit(ctx); err != nil {
		t.Fatal(err)
	}
	return s, ctx
}
