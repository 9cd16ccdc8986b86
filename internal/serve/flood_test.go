package serve_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/gen/onboard/v1/onboardv1connect"
	"teekms/internal/rpc"
	"teekms/internal/serve"
)

// Frames of HTTP/2 (RFC 9113 §6).
const (
	frameData, frameHeaders, frameReset, frameSettings, frameWindow = 0, 1, 3, 4, 8

	flagEnd, flagAck, flagEndHeaders = 1, 1, 4
)

// flood is one HTTP/2 connection of somebody who begins calls, sends as much of
// their messages as he may, and ends none. A call that the server ends he begins
// anew.
type flood struct {
	conn    net.Conn
	streams int // at once
	bytes   int // of each message

	mu      sync.Mutex
	initial int // window of a stream
	window  int // of the connection
	open    map[uint32]*flooded
	ended   int
}

// flooded is one call.
type flooded struct{ sent, window int }

func newFlood(t *testing.T, addr string, streams, bytes int, takes bool) *flood {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	f := &flood{conn: conn, streams: streams, bytes: bytes, initial: 65535, window: 65535, open: map[uint32]*flooded{}}
	out := bufio.NewWriter(conn)
	_, _ = out.WriteString("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	writeFrame(out, frameSettings, 0, 0, nil)
	if takes {
		writeFrame(out, frameWindow, 0, 0, []byte{0x7f, 0, 0, 0})
	}
	if err := out.Flush(); err != nil {
		t.Fatal(err)
	}
	return f
}

// writeFrame leaves errors to Flush.
func writeFrame(w *bufio.Writer, kind, flags byte, stream uint32, payload []byte) {
	n := len(payload)
	head := [9]byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags}
	binary.BigEndian.PutUint32(head[5:], stream)
	_, _ = w.Write(head[:])
	_, _ = w.Write(payload)
}

// listen keeps the books until the connection ends.
func (f *flood) listen() {
	r := bufio.NewReader(f.conn)
	for {
		var head [9]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return
		}
		payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(r, payload); err != nil {
			return
		}
		f.note(head[3], head[4], binary.BigEndian.Uint32(head[5:]), payload)
	}
}

func (f *flood) note(kind, flags byte, stream uint32, payload []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case kind == frameSettings && flags&flagAck == 0:
		for ; len(payload) >= 6; payload = payload[6:] {
			if binary.BigEndian.Uint16(payload) == 4 {
				f.initial = int(binary.BigEndian.Uint32(payload[2:]))
			}
		}
	case kind == frameWindow && stream == 0:
		f.window += int(binary.BigEndian.Uint32(payload))
	case kind == frameWindow && f.open[stream] != nil:
		f.open[stream].window += int(binary.BigEndian.Uint32(payload))
	case kind == frameReset, (kind == frameData || kind == frameHeaders) && flags&flagEnd != 0:
		delete(f.open, stream)
		f.ended++
	}
}

// run sends until the connection or ctx ends.
func (f *flood) run(ctx context.Context) {
	header := []byte(literal(":method", "POST") + literal(":scheme", "http") + literal(":authority", "kms.localhost") +
		literal(":path", onboardv1connect.OnboardBootstrapProcedure) + literal("content-type", "application/proto"))
	chunk := make([]byte, 8<<10)
	out := bufio.NewWriter(f.conn)
	for next := uint32(1); ctx.Err() == nil; {
		f.mu.Lock()
		var begin, send []uint32
		for ; len(f.open) < f.streams; next += 2 {
			f.open[next] = &flooded{window: f.initial}
			begin = append(begin, next)
		}
		for id, s := range f.open {
			if s.sent < f.bytes && s.window >= len(chunk) && f.window >= len(chunk) {
				s.sent, s.window, f.window = s.sent+len(chunk), s.window-len(chunk), f.window-len(chunk)
				send = append(send, id)
			}
		}
		f.mu.Unlock()
		for _, id := range begin {
			writeFrame(out, frameHeaders, flagEndHeaders, id, header)
		}
		for _, id := range send {
			writeFrame(out, frameData, 0, id, chunk)
		}
		if out.Flush() != nil {
			return
		}
		if len(send) == 0 {
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// literal is a header field as HPACK has it without a table or Huffman's code
// (RFC 7541 §6.2.2).
func literal(name, value string) string {
	return "\x00" + string(rune(len(name))) + name + string(rune(len(value))) + value
}

// held tells what it has sent of messages that have not ended, and how often the
// server ended a call.
func (f *flood) held() (bytes, ended int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.open {
		bytes += s.sent
	}
	return bytes, f.ended
}

// TestUnfinishedMessages has many streams of many connections send messages that
// never end. What the server holds of them stays bounded, and who sends an
// ordinary message is answered.
func TestUnfinishedMessages(t *testing.T) {
	const connections, streams, message, pending = 24, 64, 256 << 10, 16 << 20
	c := muxConfig(t, new(atomic.Pointer[error]))
	chain, err := rpc.New(rpc.Config{
		Log: zap.NewNop(), Pending: pending, Access: rpc.Access{onboardv1connect.OnboardBootstrapProcedure: nil},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.Chain = chain
	h, err := serve.NewMux(c)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, h)
	ctx, cancel := context.WithCancel(t.Context())
	floods := make([]*flood, connections)
	var flooding sync.WaitGroup
	defer flooding.Wait()
	defer cancel()
	for i := range floods {
		f := newFlood(t, s.addr, streams, message, i%2 == 0)
		defer f.conn.Close()
		floods[i] = f
		flooding.Go(f.listen)
		flooding.Go(func() { f.run(ctx) })
	}
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	client := onboardv1connect.NewOnboardClient(&http.Client{Transport: tr}, "http://"+s.addr)
	domain := strings.Repeat("d", 20<<10)
	given := func() (held, ended int) {
		for _, f := range floods {
			b, n := f.held()
			held, ended = held+b, ended+n
		}
		return held, ended
	}
	var most uint64
	ended := 0
	// On a slow machine it takes a while until it is a flood.
	for began := time.Now(); time.Since(began) < 2*time.Second || ended == 0 && time.Since(began) < time.Minute; time.Sleep(20 * time.Millisecond) {
		callBegan := time.Now()
		res, err := client.Bootstrap(t.Context(), &onboardv1.BootstrapRequest{Domain: domain})
		if err != nil || string(res.GetQuote()) != domain {
			t.Fatalf("an ordinary call after %v of flood = %v, %v", time.Since(began), connect.CodeOf(err), err)
		}
		if took := time.Since(callBegan); took > 20*time.Second {
			t.Errorf("an ordinary call took %v", took)
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		most = max(most, m.HeapInuse+m.StackInuse)
		_, ended = given()
	}
	held, ended := given()
	t.Logf("the flood has %d MiB in %d calls and lost %d; heap and stacks: %d MiB at most", held>>20, connections*streams, ended, most>>20)
	if ended == 0 {
		t.Error("no call of the flood was given up: it was no flood")
	}
	if limit := uint64(6 * pending); most > limit {
		t.Errorf("heap and stacks grew to %d MiB, want at most %d MiB where calls may hold %d MiB", most>>20, limit>>20, pending>>20)
	}
}

// TestLargestLoses has two connections send more than there is room for. The one
// that has more is told so, on every protocol; the other is answered.
func TestLargestLoses(t *testing.T) {
	tests := []struct {
		name, path, contentType string
		status                  int
		want                    string
	}{
		{"connect", onboardv1connect.OnboardBootstrapProcedure, "application/json", 429, `{"code":"resource_exhausted","message":"too many unfinished calls: try again"}`},
		{"prpc", "/prpc/Onboard.Bootstrap?json", "application/json", 400, `{"error": "too many unfinished calls: try again"}`},
		{"gRPC-Web", onboardv1connect.OnboardBootstrapProcedure, "application/grpc-web+proto", 200, "8too many unfinished calls: try again"},
		{"gRPC health", "/grpc.health.v1.Health/Check", "application/json", 429, `{"code":"resource_exhausted","message":"too many unfinished calls: try again"}`},
	}
	for protocol, setUp := range transports(t) {
		for _, tt := range tests {
			t.Run(protocol+"/"+tt.name, func(t *testing.T) {
				chain, err := rpc.New(rpc.Config{
					Log: zap.NewNop(), Pending: 50 << 10, Access: rpc.Access{onboardv1connect.OnboardBootstrapProcedure: nil},
				})
				if err != nil {
					t.Fatal(err)
				}
				c := muxConfig(t, new(atomic.Pointer[error]))
				c.Chain = chain
				h, err := serve.NewMux(c)
				if err != nil {
					t.Fatal(err)
				}
				var loser, winner *http.Client
				url := "http://"
				s := start(t, h, func(c *serve.Config) {
					loser, winner = setUp(c), setUp(c)
					if c.TLS != nil {
						url = "https://"
					}
				})
				url += s.addr
				defer loser.CloseIdleConnections()
				defer winner.CloseIdleConnections()
				body, more := io.Pipe()
				defer more.Close()
				answered := make(chan string, 1)
				go func() {
					res, err := loser.Post(url+tt.path, tt.contentType, body)
					if err != nil {
						answered <- err.Error()
						return
					}
					defer res.Body.Close()
					text, _ := io.ReadAll(res.Body)
					answered <- fmt.Sprintf("%d %s%s%s", res.StatusCode, res.Header.Get("Grpc-Status"), res.Header.Get("Grpc-Message"), text)
				}()
				// An envelope of 15 KiB for gRPC-Web, of which there is less; spaces for the others.
				if _, err := io.WriteString(more, "\x00\x00\x00\x3c\x00"+strings.Repeat(" ", 14<<10)); err != nil {
					t.Fatal(err)
				}
				domain := strings.Repeat("d", 10<<10)
				var got string
				for deadline := time.Now().Add(time.Minute); got == "" && time.Now().Before(deadline); {
					res, err := winner.Post(url+"/prpc/Onboard.Bootstrap?json", "application/json", strings.NewReader(`{"domain":"`+domain+`"}`))
					if err != nil {
						t.Fatal(err)
					}
					res.Body.Close()
					if res.StatusCode != http.StatusOK {
						t.Fatalf("the call that holds less = %d, want 200", res.StatusCode)
					}
					select {
					case got = <-answered:
					case <-time.After(10 * time.Millisecond):
					}
				}
				if want := fmt.Sprintf("%d %s", tt.status, tt.want); got != want {
					t.Errorf("the call that held most = %q, want %q", got, want)
				}
			})
		}
	}
}
