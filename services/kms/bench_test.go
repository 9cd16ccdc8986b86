package kms_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"
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

func (w *wire) call(tb testing.TB) (*http.Response, []byte) {
	if _, err := w.conn.Write(w.request); err != nil {
		tb.Fatal(err)
	}
	res, err := http.ReadResponse(w.reader, nil)
	if err != nil {
		tb.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return res, body
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
	serverTLS, clientTLS := newTLS(b)
	ours := start(b, newMux(b, newService(b, sampleConfig())), serverTLS)
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
			res, want := our.call(b)
			if res.StatusCode != http.StatusOK {
				b.Fatalf("status %d: %s", res.StatusCode, want)
			}
			bareAddr := start(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("Content-Type", res.Header.Get("Content-Type"))
				_, _ = w.Write(want)
			}), serverTLS)
			bare := dialWire(b, bareAddr, clientTLS, rq.request)
			bare.call(b)
			var bareTimes, ourTimes []time.Duration
			for b.Loop() {
				t0 := time.Now()
				bare.call(b)
				t1 := time.Now()
				our.call(b)
				bareTimes, ourTimes = append(bareTimes, t1.Sub(t0)), append(ourTimes, time.Since(t1))
			}
			bareTime, ourTime := median(bareTimes), median(ourTimes)
			b.ReportMetric(float64(ourTime.Nanoseconds()), "ours-ns")
			b.ReportMetric(float64(bareTime.Nanoseconds()), "bare-ns")
			b.ReportMetric(float64(bareTime)/float64(ourTime), "of-bare")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// median is steadier than the mean on a machine that does other things too.
func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
