package kms_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"google.golang.org/protobuf/proto"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/attest/simtd"
	"teekms/internal/ratls"
	"teekms/internal/serve"
)

// wire is one HTTP/1.1 request over a kept-alive TLS connection, written and
// read with as little client as possible, so that the server is what is timed.
type wire struct {
	conn    *tls.Conn
	reader  *bufio.Reader
	request []byte
}

func dialWire(tb testing.TB, addr string, config *tls.Config, request []byte) *wire {
	tb.Helper()
	conn, err := tls.Dial("tcp", addr, config)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	return &wire{conn: conn, reader: bufio.NewReaderSize(conn, 16<<10), request: request}
}

// call returns the Content-Type and the body of the answer, whose status must
// be 200.
func (w *wire) call(tb testing.TB) (contentType string, body []byte) {
	if _, err := w.conn.Write(w.request); err != nil {
		tb.Fatal(err)
	}
	res, err := http.ReadResponse(w.reader, nil)
	if err != nil {
		tb.Fatal(err)
	}
	defer res.Body.Close()
	body, err = io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		tb.Fatalf("status %d, %v: %s", res.StatusCode, err, body)
	}
	return res.Header.Get("Content-Type"), body
}

func httpRequest(method, target, contentType, body string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: kms.localhost\r\nUser-Agent: bench\r\n", method, target)
	if contentType != "" {
		fmt.Fprintf(&b, "Content-Type: %s\r\n", contentType)
	}
	if method == http.MethodPost {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(body))
	}
	b.WriteString("\r\n" + body)
	return b.Bytes()
}

// BenchmarkGetMeta times GetMeta per protocol over TLS keep-alive, turn by turn
// with a bare net/http handler that gives the same bytes. "of-bare" is the time
// of the bare handler over ours: 1 means that the RPC stack costs nothing.
func BenchmarkGetMeta(b *testing.B) {
	w := newWorld(b)
	certificate := w.rpcCertificate(b)
	serverTLS := &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert}
	clientTLS, ours := w.clientTLS(nil), w.addr
	secure := func(c *serve.Config) { c.TLS = serverTLS }
	const procedure = "/kms.v1.KMS/GetMeta"
	requests := []struct {
		name    string
		request []byte
	}{
		{"prpc GET json", httpRequest("GET", "/prpc/KMS.GetMeta", "", "")},
		{"prpc POST json", httpRequest("POST", "/prpc/GetMeta?json", "", "null")},
		{"prpc POST binary", httpRequest("POST", "/prpc/GetMeta", "", "")},
		{"connect json", httpRequest("POST", procedure, "application/json", "{}")},
		{"connect proto", httpRequest("POST", procedure, "application/proto", "")},
		{"connect GET json", httpRequest("GET", procedure+"?encoding=json&message=%7B%7D&connect=v1", "", "")},
		{"grpc-web", httpRequest("POST", procedure, "application/grpc-web+proto", "\x00\x00\x00\x00\x00")},
	}
	for _, rq := range requests {
		b.Run(rq.name, func(b *testing.B) {
			our := dialWire(b, ours, clientTLS, rq.request)
			bare := dialWire(b, start(b, bareHandler(our.call(b)), secure), clientTLS, rq.request)
			bare.call(b)
			compare(b, func() { bare.call(b) }, func() { our.call(b) })
		})
	}
	b.Run("grpc h2", func(b *testing.B) { benchmarkGRPC(b, ours, secure, clientTLS) })
}

// bareHandler gives the same bytes with nothing but net/http.
func bareHandler(contentType string, body []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write(body)
	})
}

// benchmarkGRPC is over HTTP/2, where the client costs more than the server: its
// ratio is flattered by that, unlike the others.
func benchmarkGRPC(b *testing.B, ours string, secure func(*serve.Config), clientTLS *tls.Config) {
	transport := &http.Transport{TLSClientConfig: clientTLS, ForceAttemptHTTP2: true}
	b.Cleanup(transport.CloseIdleConnections)
	call := func(addr string) (string, []byte) {
		req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, "https://"+addr+"/kms.v1.KMS/GetMeta", strings.NewReader("\x00\x00\x00\x00\x00"))
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("Te", "trailers")
		res, err := transport.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil || res.ProtoMajor != 2 || len(body) < 5 {
			b.Fatalf("%s: %v: %x", res.Proto, err, body)
		}
		return res.Header.Get("Content-Type"), body
	}
	bare := start(b, bareHandler(call(ours)), secure)
	call(bare)
	compare(b, func() { call(bare) }, func() { call(ours) })
}

// compare times both, turn by turn, and reports the medians.
func compare(b *testing.B, bare, ours func()) {
	var bareTimes, ourTimes []time.Duration
	for b.Loop() {
		t0 := time.Now()
		bare()
		t1 := time.Now()
		ours()
		bareTimes, ourTimes = append(bareTimes, t1.Sub(t0)), append(ourTimes, time.Since(t1))
	}
	bareTime, ourTime := median(bareTimes), median(ourTimes)
	b.ReportMetric(float64(ourTime.Nanoseconds()), "ours-ns")
	b.ReportMetric(float64(bareTime.Nanoseconds()), "bare-ns")
	b.ReportMetric(float64(bareTime)/float64(ourTime), "of-bare")
	b.ReportMetric(0, "ns/op")
}

// median is steadier than the mean on a machine that does other things too.
func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// releaseBench is a KMS and a workload whose certificate is made.
type releaseBench struct {
	w    *world
	td   *simtd.TD
	cert *tls.Certificate
}

func newReleaseBench(b *testing.B) *releaseBench {
	b.Helper()
	w := newWorld(b)
	td := w.workload(b, vectorApp(b))
	return &releaseBench{w, td, certificate(b, td, ratls.Gen8)}
}

// prpcRequest is a call as existing guests make it.
func prpcRequest(b *testing.B, method string, m proto.Message) []byte {
	b.Helper()
	body, err := codec(b).Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	return httpRequest(http.MethodPost, "/prpc/"+method+"?json", "", string(body))
}

// admitted is the context of a call from the workload, as the chain makes it.
func (r *releaseBench) admitted(b testing.TB) context.Context {
	b.Helper()
	server, err := ratls.NewServer(ratls.ServerConfig{
		Appraiser:    r.w.appraiser,
		Certificates: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return r.cert, nil },
	})
	if err != nil {
		b.Fatal(err)
	}
	ours, theirs := net.Pipe()
	b.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
	conn := tls.Server(ours, server.TLSConfig())
	done := make(chan error, 1)
	go func() {
		client := tls.Client(theirs, &tls.Config{
			InsecureSkipVerify:   true,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return r.cert, nil },
		})
		done <- client.HandshakeContext(context.Background())
	}()
	if err := conn.HandshakeContext(b.Context()); err != nil {
		b.Fatal(err)
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	ctx, err := server.Admit(server.ConnContext(b.Context(), conn))
	if err != nil {
		b.Fatal(err)
	}
	return ctx
}

// BenchmarkGetAppKey times the service alone, the primitives it cannot do
// without, and a call over a warm connection. "of-primitives" is the service's
// time over theirs.
func BenchmarkGetAppKey(b *testing.B) {
	r := newReleaseBench(b)
	ctx := r.admitted(b)
	request := &kmsv1.GetAppKeyRequest{ApiVersion: 1}
	service := func() {
		if _, err := r.w.service.GetAppKey(ctx, request); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("service", func(b *testing.B) { besides(b, appKeyPrimitives(b), service) })
	b.Run("warm connection", func(b *testing.B) {
		wire := dialWire(b, r.w.addr, r.w.clientTLS(r.cert), prpcRequest(b, "GetAppKey", request))
		for b.Loop() {
			wire.call(b)
		}
	})
	b.Run("fresh connection", func(b *testing.B) {
		plain := prpcRequest(b, "GetAppKey", request)
		for b.Loop() {
			fresh := certificate(b, r.td, ratls.Gen8) // a fresh quote for each
			conn, err := tls.Dial("tcp", r.w.addr, r.w.clientTLS(fresh))
			if err != nil {
				b.Fatal(err)
			}
			(&wire{conn: conn, reader: bufio.NewReader(conn), request: plain}).call(b)
			_ = conn.Close()
		}
	})
}

// appKeyPrimitives are HKDF three times, two P-256 and one secp256k1 base
// multiplication, and one secp256k1 signature.
func appKeyPrimitives(b *testing.B) func() {
	b.Helper()
	scalar, digest := unhex(b, vectorK256), make([]byte, 32)
	key, err := crypto.ToECDSA(scalar)
	if err != nil {
		b.Fatal(err)
	}
	return func() {
		for i := range 3 {
			okm, err := hkdf.Key(sha256.New, scalar, []byte("RATLS"), "info", 32)
			if err == nil && i < 2 {
				_, err = ecdsa.ParseRawPrivateKey(elliptic.P256(), okm)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		if _, err := crypto.ToECDSA(scalar); err != nil {
			b.Fatal(err)
		}
		if _, err := crypto.Sign(digest, key); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSignCert times SignCert as [BenchmarkGetAppKey] does.
func BenchmarkSignCert(b *testing.B) {
	r := newReleaseBench(b)
	a := newApplicant(b, r.td)
	request := a.sign(b, 2, a.csr(b))
	service := func() {
		if _, err := r.w.service.SignCert(b.Context(), request); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("service", func(b *testing.B) { besides(b, signCertPrimitives(b, a, request), service) })
	b.Run("warm connection", func(b *testing.B) {
		wire := dialWire(b, r.w.addr, r.w.clientTLS(nil), prpcRequest(b, "SignCert", request))
		for b.Loop() {
			wire.call(b)
		}
	})
}

// signCertPrimitives are two P-256 verifications (request and quote), one HKDF
// with a P-256 base multiplication, and two P-256 signatures.
func signCertPrimitives(b *testing.B, a *applicant, r *kmsv1.SignCertRequest) func() {
	b.Helper()
	digest := sha256.Sum256(r.GetCsr())
	return func() {
		for range 2 {
			if !ecdsa.VerifyASN1(&a.key.PublicKey, digest[:], r.GetSignature()) {
				b.Fatal("the signature does not hold")
			}
			if _, err := ecdsa.SignASN1(rand.Reader, a.key, digest[:]); err != nil {
				b.Fatal(err)
			}
		}
		okm, err := hkdf.Key(sha256.New, digest[:], []byte("RATLS"), "info", 32)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), okm); err != nil {
			b.Fatal(err)
		}
	}
}

// besides times the service and its primitives, turn by turn, and reports the
// medians.
func besides(b *testing.B, primitives, service func()) {
	b.Helper()
	var floor, ours []time.Duration
	for b.Loop() {
		t0 := time.Now()
		primitives()
		t1 := time.Now()
		service()
		floor, ours = append(floor, t1.Sub(t0)), append(ours, time.Since(t1))
	}
	f, o := median(floor), median(ours)
	b.ReportMetric(float64(f.Nanoseconds()), "primitives-ns")
	b.ReportMetric(float64(o.Nanoseconds()), "ours-ns")
	b.ReportMetric(float64(o)/float64(f), "of-primitives")
	b.ReportMetric(0, "ns/op")
}
