package provision_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	gopkcs12 "software.sslmate.com/src/go-pkcs12"

	"teekms/internal/keys"
	"teekms/internal/pkcs12"
	"teekms/internal/rpc"
	"teekms/internal/serve"
	"teekms/internal/storage"
	"teekms/internal/storage/redisdb"
	"teekms/internal/storage/sqldb"
	"teekms/internal/storage/storagetest/server"
	"teekms/services/kms/provision"
)

var servers server.Group

func TestMain(m *testing.M) { goleak.VerifyTestMain(servers.Main(m)) }

// marker is in every secret of these tests: it may be in no answer and no log.
const marker = "MaRkEr-of-a-SeCrEt"

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func secret(s string) keys.Secret { return keys.NewSecret([]byte(s)) }

// logBuffer keeps all that is logged, at every level.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) Sync() error { return nil }

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// world is a configuration server on a TLS socket.
type world struct {
	*provision.Server
	t      testing.TB
	addr   string
	roots  *x509.CertPool
	client *http.Client
	log    *logBuffer
	stop   func()
	ended  chan error
	// applied are the settings that Apply was called with.
	mu      sync.Mutex
	applied []provision.Settings
}

// apply opens the PKCS#12 file and the database as a KMS does.
func (w *world) apply(ctx context.Context, s provision.Settings) ([]string, error) {
	w.mu.Lock()
	w.applied = append(w.applied, s)
	w.mu.Unlock()
	var warnings []string
	if s.PKCS12.Len() > 0 {
		var err error
		if _, warnings, err = pkcs12.Open(s.PKCS12.Bytes(), s.PKCS12Password, time.Now()); err != nil {
			return nil, err
		}
	}
	s.Database.Key, s.Database.Root, s.Database.Log = secret(strings.Repeat("k", 32)), [32]byte{1}, zap.NewNop()
	db, err := open(ctx, s.Database)
	if err != nil {
		return nil, &provision.Refusal{Reason: err.Error(), Err: err}
	}
	return warnings, db.Close()
}

// open opens a database of any type; without one, none.
func open(ctx context.Context, c storage.Config) (io.Closer, error) {
	switch c.Type {
	case "":
		return io.NopCloser(nil), nil
	case storage.RedisFindex:
		return redisdb.Open(ctx, c)
	default:
		return sqldb.Open(ctx, c)
	}
}

// newWorld serves until the test ends.
func newWorld(t testing.TB, change func(*provision.Config)) *world {
	t.Helper()
	return newWorldLimited(t, serve.Limits{Grace: time.Minute}, change)
}

func newWorldLimited(t testing.TB, limits serve.Limits, change func(*provision.Config)) *world {
	t.Helper()
	w := &world{t: t, log: &logBuffer{}, ended: make(chan error, 1)}
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), w.log, zap.DebugLevel))
	cfg := provision.Config{Apply: w.apply, StateDir: t.TempDir(), Log: log}
	if change != nil {
		change(&cfg)
	}
	var err error
	if w.Server, err = provision.New(cfg); err != nil {
		t.Fatal(err)
	}
	mount, err := w.Mount(rpc.Config{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	handler, err := serve.NewMux(mount)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := provision.NewCertificate(t.Context(), provision.CertificateConfig{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := serve.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr, w.roots = l.Addr().String(), x509.NewCertPool()
	w.roots.AddCert(cert.Leaf)
	w.client = w.newClient(nil)
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = sync.OnceFunc(cancel)
	go func() {
		w.ended <- serve.Run(ctx, serve.Config{Listener: l, Handler: handler, TLS: w.TLSConfig(cert), Limits: limits, Log: log})
	}()
	t.Cleanup(func() {
		w.client.CloseIdleConnections()
		w.stop()
		<-w.ended
		w.Wait()
		if text := w.log.String(); strings.Contains(text, marker) || strings.Contains(text, server.Marker) {
			t.Errorf("a secret was logged:\n%s", text)
		}
	})
	return w
}

// newClient trusts the server's certificate and shows the given one.
func (w *world) newClient(cert *tls.Certificate) *http.Client {
	config := &tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS13}
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport: transport, Timeout: 2 * time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (w *world) url(path string) string { return "https://" + w.addr + path }

// do sends one request and returns status and body.
func (w *world) do(method, path string, header http.Header, body io.Reader) (int, string) {
	w.t.Helper()
	return w.doAs(w.client, method, path, header, body)
}

func (w *world) doAs(client *http.Client, method, path string, header http.Header, body io.Reader) (int, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, w.url(path), body)
	if err != nil {
		w.t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	res, err := client.Do(req)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	if strings.Contains(string(answer), marker) || strings.Contains(string(answer), server.Marker) {
		w.t.Errorf("%s %s: the answer holds a secret: %s", method, path, answer)
	}
	if got := res.Header.Get("Cache-Control"); got != "no-store" {
		w.t.Errorf("%s %s: Cache-Control = %q, want no-store", method, path, got)
	}
	return res.StatusCode, string(answer)
}

// jsonType is the header of a JSON body.
func jsonType() http.Header { return http.Header{"Content-Type": {"application/json"}} }

// post sends JSON.
func (w *world) post(path, body string) (int, string) {
	w.t.Helper()
	return w.do(http.MethodPost, path, jsonType(), strings.NewReader(body))
}

// wantPost sends JSON and checks the whole answer.
func (w *world) wantPost(path, body string, status int, answer string) {
	w.t.Helper()
	if s, a := w.post(path, body); s != status || a != answer {
		w.t.Errorf("POST %s = %d %s, want %d %s", path, s, a, status, answer)
	}
}

// upload sends a file as curl -F does.
func (w *world) upload(file []byte) (int, string) {
	w.t.Helper()
	body, contentType := form(part{name: "name", content: []byte("pkcs12")}, curlFile(file))
	return w.do(http.MethodPost, "/pkcs12", http.Header{"Content-Type": {contentType}}, bytes.NewReader(body))
}

// part is one part of a form.
type part struct {
	name, file, contentType string
	content                 []byte
	header                  textproto.MIMEHeader
}

func curlFile(content []byte) part {
	return part{name: "file", file: "kms-server.p12", contentType: "application/octet-stream", content: content}
}

func form(parts ...part) (body []byte, contentType string) {
	var b bytes.Buffer
	m := multipart.NewWriter(&b)
	for _, p := range parts {
		header := textproto.MIMEHeader{}
		for k, v := range p.header {
			header[k] = v
		}
		disposition := `form-data; name="` + p.name + `"`
		if p.file != "" {
			disposition += `; filename="` + p.file + `"`
		}
		header.Set("Content-Disposition", disposition)
		if p.contentType != "" {
			header.Set("Content-Type", p.contentType)
		}
		must(must(m.CreatePart(header)).Write(p.content))
	}
	m.Close()
	return b.Bytes(), m.FormDataContentType()
}

// settings returns the last settings that Apply got.
func (w *world) settings() provision.Settings {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.applied) == 0 {
		w.t.Fatal("Apply was not called")
	}
	return w.applied[len(w.applied)-1]
}

// started tells whether Done is closed.
func (w *world) started() bool {
	select {
	case <-w.Done():
		return true
	default:
		return false
	}
}

// issued is a certificate of an authority.
type issued struct {
	authority *x509.Certificate
	leaf      tls.Certificate
}

// issue makes an authority and a certificate of it.
func issue(t testing.TB, change func(*x509.Certificate)) issued {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(400 * 24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	root = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, root, root, &key.PublicKey, key))))
	leafKey := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "operator"}, DNSNames: []string{"kms.example.com"},
		NotBefore: root.NotBefore, NotAfter: root.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if change != nil {
		change(leaf)
	}
	leaf = must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, leaf, root, &leafKey.PublicKey, key))))
	return issued{root, tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: leafKey, Leaf: leaf}}
}

// p12 is a file that a KMS can serve with.
func p12(t testing.TB, password string, change func(*x509.Certificate)) []byte {
	t.Helper()
	id := issue(t, change)
	return must(gopkcs12.Modern2023.WithIterations(1000).Encode(id.leaf.PrivateKey, id.leaf.Leaf, []*x509.Certificate{id.authority}, password))
}

// closedPort is an address on loopback where nobody listens.
func closedPort(t testing.TB) string {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	return l.Addr().String()
}
