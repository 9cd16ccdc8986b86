package rpc_test

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/gen/onboard/v1/onboardv1connect"
	"teekms/internal/rpc"
)

// TestCallsWaitForTheirTurn has one call in work where one may be: the next
// waits, as long as it has time, and then gets its turn.
func TestCallsWaitForTheirTurn(t *testing.T) {
	r := newRig(t, func(c *rpc.Config) { c.Concurrency = 1 })
	client := onboardv1connect.NewOnboardClient(r.http, r.url)
	slow, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := client.Bootstrap(slow, &onboardv1.BootstrapRequest{Domain: "slow"})
		ended <- err
	}()
	call := func(patience time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, err := client.GetAttestationInfo(ctx, &onboardv1.GetAttestationInfoRequest{})
		return err
	}
	<-r.slow
	if err := call(50 * time.Millisecond); connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Errorf("a second call beside the one that may be: %v, want deadline_exceeded", err)
	}
	waiting := make(chan error, 1)
	go func() { waiting <- call(time.Minute) }()
	end()
	if err := <-ended; connect.CodeOf(err) != connect.CodeCanceled {
		t.Errorf("the call that was given up: %v, want canceled", err)
	}
	if err := <-waiting; err != nil {
		t.Errorf("the call that waited: %v", err)
	}
}
