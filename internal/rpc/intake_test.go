package rpc_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/gen/onboard/v1/onboardv1connect"
	"teekms/internal/rpc"
)

// TestWaitingCallsAreLostToo has a call in work where one may be, and two
// connections whose complete calls wait for their turn: together they hold more
// than may be, and the one that holds more is told so at once.
func TestWaitingCallsAreLostToo(t *testing.T) {
	r := newRig(t, func(c *rpc.Config) {
		c.Concurrency, c.ReadMaxBytes, c.Pending = 1, 64<<10, 90<<10
	})
	slow, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := onboardv1connect.NewOnboardClient(r.http, r.url).Bootstrap(slow, &onboardv1.BootstrapRequest{Domain: "slow"})
		ended <- err
	}()
	// Each has a connection of its own.
	call := func(size int) <-chan error {
		base, ok := r.http.Transport.(*http.Transport)
		if !ok {
			t.Fatalf("the client has a %T", r.http.Transport)
		}
		tr := base.Clone()
		t.Cleanup(tr.CloseIdleConnections)
		client := onboardv1connect.NewOnboardClient(&http.Client{Transport: tr}, r.url)
		answer := make(chan error, 1)
		go func() {
			_, err := client.Bootstrap(t.Context(), &onboardv1.BootstrapRequest{Domain: strings.Repeat("d", size)})
			answer <- err
		}()
		return answer
	}
	<-r.slow
	large := call(40 << 10)
	select {
	case err := <-large:
		t.Fatalf("a call that waits for its turn = %v, want it to wait", err)
	case <-time.After(100 * time.Millisecond):
	}
	small := call(20 << 10)
	e := new(connect.Error)
	if err := <-large; !errors.As(err, &e) || e.Code() != connect.CodeResourceExhausted || e.Message() != rpc.ErrBusy.Error() {
		t.Errorf("the call that holds most = %v, want resource_exhausted: %v", err, rpc.ErrBusy)
	}
	end()
	if err := <-ended; connect.CodeOf(err) != connect.CodeCanceled {
		t.Errorf("the call that was given up: %v, want canceled", err)
	}
	if err := <-small; err != nil {
		t.Errorf("the call that holds less: %v", err)
	}
}

// TestRoomIsGivenBack calls many times where there is room for few at once.
func TestRoomIsGivenBack(t *testing.T) {
	r := newRig(t, func(c *rpc.Config) { c.Pending, c.ReadMaxBytes = 48<<10, 24<<10 })
	for protocol, options := range protocols() {
		client := onboardv1connect.NewOnboardClient(r.http, r.url, options...)
		for i := range 20 {
			domain := strings.Repeat("d", 16<<10)
			if i%2 == 1 {
				domain = "taken" // and refused
			}
			_, err := client.Bootstrap(t.Context(), &onboardv1.BootstrapRequest{Domain: domain})
			if (err != nil) != (i%2 == 1) || connect.CodeOf(err) == connect.CodeResourceExhausted {
				t.Fatalf("%s: call %d = %v", protocol, i, err)
			}
		}
	}
}
