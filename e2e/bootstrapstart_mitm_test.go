package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"io"
	"math/big"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"teekms/internal/attest/simtd"
	"teekms/internal/keys"
	"teekms/internal/ratls"
)

// interceptor stands between a client and a real server. Connections that it
// has a certificate for end at it; the others it passes on.
type interceptor struct {
	target string
	// certificate is shown on the connection of this number, from 0; nil passes
	// it on, with cutFirst until the first answer.
	certificate func(n int) *tls.Certificate
	cutFirst    bool
	l           net.Listener
	served      sync.WaitGroup

	mu         sync.Mutex   // guards what follows
	raw        bytes.Buffer // from the client, as it came
	plain      bytes.Buffer // from the client, where it was decrypted
	handshakes []error      // of the connections that ended here
	conns      int
}

func newInterceptor(t testing.TB, target string, certificate func(n int) *tls.Certificate) *interceptor {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	i := &interceptor{target: target, certificate: certificate, l: l}
	i.served.Go(func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			i.mu.Lock()
			i.conns++
			i.mu.Unlock()
			i.served.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				if cert := certificate(n); cert != nil {
					i.intercept(c, cert)
				} else {
					i.pass(c)
				}
			})
		}
	})
	t.Cleanup(i.end)
	return i
}

// end waits until all that the clients did is known.
func (i *interceptor) end() {
	_ = i.l.Close()
	i.served.Wait()
}

func (i *interceptor) url() string { return "https://" + i.l.Addr().String() }

// tap keeps what is read of a client.
type tap struct {
	net.Conn
	i    *interceptor
	into *bytes.Buffer
}

func (t tap) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	t.i.mu.Lock()
	t.into.Write(p[:n])
	t.i.mu.Unlock()
	return n, err
}

// intercept ends TLS with a certificate, and answers as a bootstrap server does.
func (i *interceptor) intercept(c net.Conn, cert *tls.Certificate) {
	conn := tls.Server(tap{c, i, &i.raw}, &tls.Config{Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequestClientCert})
	err := conn.Handshake()
	i.mu.Lock()
	i.handshakes = append(i.handshakes, err)
	i.mu.Unlock()
	if err != nil {
		return
	}
	b := make([]byte, 64<<10)
	for {
		n, err := tap{conn, i, &i.plain}.Read(b)
		if err != nil {
			return
		}
		// One answer for each body that ends here is enough.
		if bytes.HasSuffix(b[:n], []byte("}")) || bytes.HasSuffix(b[:n], []byte("--\r\n")) {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{\"success\":\"thanks\"}")
		}
	}
}

// pass copies both ways, and with cutFirst ends after the server's first answer.
// It sees the kinds of TLS records, not what is in them: the client's second
// record of kind 23 is its first request, the first being the end of its
// handshake.
func (i *interceptor) pass(c net.Conn) {
	server, err := net.Dial("tcp", i.target)
	if err != nil {
		return
	}
	defer server.Close()
	asked := make(chan struct{})
	go func() {
		sent := 0
		records(tap{c, i, &i.raw}, server, func(kind byte) bool {
			if kind == 23 {
				if sent++; sent == 2 {
					close(asked)
				}
			}
			return true
		})
		_ = server.Close()
	}()
	records(server, c, func(kind byte) bool {
		select {
		case <-asked:
			return !i.cutFirst || kind != 23
		default:
			return true
		}
	})
}

// records copies TLS records until one of them is to be the last.
func records(from io.Reader, to io.Writer, more func(kind byte) bool) {
	for {
		header := make([]byte, 5)
		if _, err := io.ReadFull(from, header); err != nil {
			return
		}
		body := make([]byte, int(header[3])<<8|int(header[4]))
		if _, err := io.ReadFull(from, body); err != nil {
			return
		}
		if _, err := to.Write(append(header, body...)); err != nil {
			return
		}
		if !more(header[0]) {
			return
		}
	}
}

// signed makes a certificate that signs itself, with these extensions.
func signed(t testing.TB, extensions ...pkix.Extension) *tls.Certificate {
	t.Helper()
	key := newP256(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(12345), Subject: pkix.Name{CommonName: "cosmian.kms"}, DNSNames: []string{"cosmian.kms"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtraExtensions: extensions,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func newP256(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// attested makes a certificate with genuine Evidence of a software trust domain
// under the same root.
func attested(t testing.TB, dir, image string) *tls.Certificate {
	t.Helper()
	cfg := simtd.Config{Dir: dir, Ephemeral: true}
	cfg.Measurements.Image = image
	td, err := simtd.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ratls.NewCertificate(t.Context(), ratls.ClientCertConfig{Attester: td, CommonName: "cosmian.kms"})
	if err != nil {
		t.Fatal(err)
	}
	return &cert
}

// shown is the certificate that a server shows to everybody.
func shown(t testing.TB, address string) *x509.Certificate {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

// TestNobodyInBetweenLearnsTheConfiguration puts a machine between kmsctl and a
// real server that waits for its configuration.
func TestNobodyInBetweenLearnsTheConfiguration(t *testing.T) {
	t.Parallel()
	w := newWaiting(t, "")
	target := strings.TrimPrefix(w.url(), "https://")
	real := shown(t, target)
	evidence := slices.DeleteFunc(slices.Clone(real.Extensions), func(e pkix.Extension) bool {
		return !e.Id.Equal(keys.ExtensionOID(keys.ArcAttestation))
	})
	if len(evidence) != 1 {
		t.Fatalf("the server's certificate has %d extensions with Evidence, want 1", len(evidence))
	}
	const marker = "MarkerOfWhatNobodyMayLearn"
	secrets := []string{
		"--database-type", "redis-findex", "--database-url-file", w.note(t, "url", "redis://kms:"+marker+"@127.0.0.1:1/0\n"),
		"--redis-master-password-file", w.note(t, "master", marker+"\n"), "--redis-findex-label", marker,
		"--https-p12-file", w.p12(t, "kms.p12", marker), "--https-p12-password-file", w.note(t, "password", marker+"\n"),
		"--bootstrap-token-file", w.note(t, "token", marker+"\n"),
	}
	trust := slices.Concat([]string{"--expect-mrtd", w.mrtd(t)}, w.believing())
	always := func(cert *tls.Certificate) func(int) *tls.Certificate {
		return func(int) *tls.Certificate { return cert }
	}
	second := func(cert *tls.Certificate) func(int) *tls.Certificate {
		return func(n int) *tls.Certificate {
			if n == 0 {
				return nil
			}
			return cert
		}
	}
	pin := sha256.Sum256(real.RawSubjectPublicKeyInfo)
	tests := []struct {
		name  string
		cert  func(n int) *tls.Certificate
		trust []string
		code  int
		want  string
		conns int
	}{
		{"a certificate without Evidence", always(signed(t)), trust, 4, "its certificate holds no Evidence", 1},
		{"the server's Evidence in another certificate", always(signed(t, evidence...)), trust, 4, "the quote binds another key", 1},
		{"the server's certificate with another key", always(&tls.Certificate{Certificate: [][]byte{real.Raw}, PrivateKey: newP256(t)}), trust, 4, "does not prove that the certificate it shows is its own", 1},
		{"another trust domain under the same root", always(attested(t, w.TD, "another image")), trust, 5, "is not what was expected: mrtd is ", 1},
		{"a trust domain of its own", always(attested(t, newTD(t), "")), trust, 4, "PCK certificate chain: ", 1},
		{"a pinned key", always(signed(t)), append(w.believing(), "--pin-spki", hex.EncodeToString(pin[:])), 5, "--pin-spki wants ", 1},
		{"the second connection, without Evidence", second(signed(t)), trust, 4, "another server than the one that was verified", 2},
		{"the second connection, in a trust domain that is as good", second(attested(t, w.TD, "")), trust, 4, "another server than the one that was verified", 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			i := newInterceptor(t, target, tt.cert)
			i.cutFirst = true
			code, stdout, stderr := run(t, "kmsctl", slices.Concat([]string{"bootstrap-start", "--bootstrap-server-url", i.url()}, tt.trust, secrets)...)
			if code != tt.code || !strings.HasPrefix(stderr, "ERROR: ") || !strings.Contains(stderr, tt.want) {
				t.Errorf("kmsctl bootstrap-start = %d, %q, %q, want %d and %q", code, stdout, stderr, tt.code, tt.want)
			}
			i.end()
			i.mu.Lock()
			defer i.mu.Unlock()
			if i.conns < tt.conns || len(i.handshakes) == 0 {
				t.Errorf("%d connections, of which %d ended in between; want at least %d", i.conns, len(i.handshakes), tt.conns)
			}
			for _, err := range i.handshakes {
				if err == nil {
					t.Error("a handshake in between succeeded")
				}
			}
			if i.plain.Len() > 0 || bytes.Contains(i.raw.Bytes(), []byte(marker)) || i.raw.Len() == 0 {
				t.Errorf("in between were seen %d bytes, of which %d in the clear", i.raw.Len(), i.plain.Len())
			}
		})
	}

	// The same machine learns everything where nobody is verified, so the test
	// would see it; and where it passes everything on, everything arrives.
	i := newInterceptor(t, target, always(signed(t)))
	code, _, stderr := run(t, "kmsctl", slices.Concat([]string{"bootstrap-start", "--bootstrap-server-url", i.url(), "--insecure-no-attestation"}, secrets)...)
	i.end()
	i.mu.Lock()
	if n := bytes.Count(i.plain.Bytes(), []byte(marker)); code != 0 || n < 5 {
		t.Errorf("without attestation, kmsctl bootstrap-start = %d, %q, and %d markers were seen, want 0 and all", code, stderr, n)
	}
	i.mu.Unlock()
	through := newInterceptor(t, target, always(nil))
	code, stdout, stderr := run(t, "kmsctl", slices.Concat([]string{"bootstrap-start", "--bootstrap-server-url", through.url()}, trust,
		[]string{"--database-type", "sqlite", "--sqlite-path", filepath.Join(w.Dir, "data")})...)
	if code != 0 || !strings.Contains(stdout, "  -> Starting the KMS server") {
		t.Errorf("through a machine that passes everything on, kmsctl bootstrap-start = %d, %q, %q, want 0", code, stdout, stderr)
	}
}

// newTD makes a software trust domain and returns its directory.
func newTD(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := simtd.Open(simtd.Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	return dir
}
