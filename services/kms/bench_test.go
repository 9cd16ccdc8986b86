package kms_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

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
