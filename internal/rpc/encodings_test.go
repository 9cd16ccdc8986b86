package rpc_test

import (
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/rpc"
)

// counted counts how often a message is really encoded.
type counted struct {
	mu    sync.Mutex
	calls int
}

func (*counted) Name() string { return "counted" }

func (c *counted) Marshal(m any) ([]byte, error) { return c.MarshalAppend(nil, m) }

func (c *counted) MarshalAppend(dst []byte, m any) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	return proto.MarshalOptions{}.MarshalAppend(dst, m.(proto.Message))
}

func (*counted) Unmarshal([]byte, any) error { return nil }

func TestEncodingsKeepOneMessage(t *testing.T) {
	var e rpc.Encodings
	kept := &onboardv1.BootstrapRequest{Domain: "kept"}
	e.Keep("/a.B/C", kept)
	inner := &counted{}
	codec := e.Codec(inner)
	for range 3 {
		got, err := codec.MarshalAppend([]byte("x"), kept)
		if err != nil || string(got) != "x\n\x04kept" {
			t.Fatalf("MarshalAppend = %q, %v, want x and the message", got, err)
		}
		clear(got) // Connect recycles what it is given
	}
	if inner.calls != 1 {
		t.Errorf("encoded %d times, want once", inner.calls)
	}
	// An equal message is not the same one: it may still be changed.
	for range 2 {
		if _, err := codec.Marshal(proto.CloneOf(kept)); err != nil {
			t.Fatal(err)
		}
	}
	if inner.calls != 3 {
		t.Errorf("encoded %d times, want 3: another message is not kept", inner.calls)
	}
	e.Keep("/a.B/C", &onboardv1.BootstrapRequest{Domain: "newer"})
	if _, err := codec.Marshal(kept); err != nil || inner.calls != 4 {
		t.Errorf("encoded %d times (%v), want 4: the old message is forgotten", inner.calls, err)
	}
}

func TestEncodingsFromSeveralGoroutines(t *testing.T) {
	var e rpc.Encodings
	kept := &onboardv1.BootstrapRequest{Domain: "kept"}
	e.Keep("/a.B/C", kept)
	codec := e.Codec(&counted{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if got, err := codec.MarshalAppend(nil, kept); err != nil || string(got) != "\n\x04kept" {
					t.Errorf("MarshalAppend = %q, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
}
