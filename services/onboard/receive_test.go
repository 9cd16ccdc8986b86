package onboard_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"

	"teekms/internal/attest/simtd"
	"teekms/internal/authz"
	"teekms/services/onboard"
)

// TestReceivedKeysAreJudgedBeforeTheyAreCommitted has an authority that needs the
// root keys see them, with who gave them, while the directory is still empty.
func TestReceivedKeysAreJudgedBeforeTheyAreCommitted(t *testing.T) {
	tests := []struct {
		name string
		err  error
		code connect.Code
		want string
	}{
		{"allowed", nil, 0, ""},
		{
			"source denied",
			&onboard.SourceError{Reason: "Boot denied: not a KMS"},
			connect.CodeFailedPrecondition, "source KMS refused: Boot denied: not a KMS",
		},
		{
			"this machine denied",
			&onboard.SelfDeniedError{Reason: "not a KMS"},
			connect.CodePermissionDenied, "KMS is not allowed to bootstrap: not a KMS",
		},
		{"unreachable", authz.ErrUnreachable, connect.CodeUnavailable, "authorization service unreachable"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []onboard.Received
			var complete []bool
			f := newFixture(t, func(c *onboard.Config, _ *simtd.TD) {
				store := c.Store
				c.Receive = func(_ context.Context, r onboard.Received) error {
					got, complete = append(got, r), append(complete, store.Complete())
					return tt.err
				}
			})
			p := newPeer(t, f.td)
			p.serve(t)
			_, err := f.onboard(t, p.url)
			if tt.want != "" {
				wantError(t, err, tt.code, tt.want)
				if _, err := os.Stat(filepath.Join(f.dir, "root-ca.key")); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("Stat(root-ca.key) = %v, want none", err)
				}
			} else if err != nil {
				t.Error(err)
			}
			if len(got) != 1 || complete[0] {
				t.Fatalf("Receive was called %d times, with a complete directory %v, want once with an empty one", len(got), complete)
			}
			r := got[0]
			if r.Domain != replicaDomain || !bytes.Equal(r.Roots.CAPublic(), p.bundle.Roots().CAPublic()) {
				t.Errorf("Receive got keys %x for %q, want those of the source", r.Roots.CAPublic(), r.Domain)
			}
			if len(r.Source.AppID) != 20 || r.Source.TCBStatus != "UpToDate" || r.Source.VMConfig != f.td.VMConfig() {
				t.Errorf("Receive got the source %x %q, want it as its Evidence says", r.Source.AppID, r.Source.TCBStatus)
			}
		})
	}
}
