package onboard_test

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/gen/onboard/v1/onboardv1connect"
	"teekms/internal/attest/simtd"
	"teekms/internal/durable"
	"teekms/internal/keys/keystore"
	"teekms/internal/rpc"
	"teekms/internal/serve"
	"teekms/services/onboard"
)

// memoryDir returns a directory on tmpfs where the machine has one, so that the
// figure is ours and not the disk's.
func memoryDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "teekms-bench-") //nolint:usetesting // TempDir may be on a disk
	if err != nil {
		return b.TempDir()
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// BenchmarkBootstrap is one bootstrap, from the request on a kept connection to
// the answer after the last fsync.
func BenchmarkBootstrap(b *testing.B) {
	dir := memoryDir(b)
	td, err := simtd.Open(simtd.Config{Dir: filepath.Join(dir, "td")})
	if err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		store, err := keystore.Open(b.Context(), keystore.Config{Dir: filepath.Join(dir, strconv.Itoa(i))})
		if err != nil {
			b.Fatal(err)
		}
		s, err := onboard.New(onboard.Config{Store: store, Attester: td, Provider: "simulator", Verifier: newVerifier(b, td.Root(), td)})
		if err != nil {
			b.Fatal(err)
		}
		mount, err := s.Mount(rpc.Config{Log: zap.NewNop()})
		if err != nil {
			b.Fatal(err)
		}
		handler, err := serve.NewMux(mount)
		if err != nil {
			b.Fatal(err)
		}
		server := httptest.NewServer(handler)
		client := onboardv1connect.NewOnboardClient(server.Client(), server.URL)
		if _, err := client.Finish(b.Context(), &onboardv1.FinishRequest{}); connect.CodeOf(err) != connect.CodeFailedPrecondition {
			b.Fatal(err) // this call opened the connection
		}
		b.StartTimer()
		if _, err := client.Bootstrap(b.Context(), request("kms.example.com", "")); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		server.Close()
		b.StartTimer()
	}
}

// BenchmarkBootstrapFloor writes and syncs as many files as a bootstrap does,
// one by one, and nothing else.
func BenchmarkBootstrapFloor(b *testing.B) {
	dir := memoryDir(b)
	data := make([]byte, 600)
	for i := 0; b.Loop(); i++ {
		for file := range 8 {
			name := filepath.Join(dir, strconv.Itoa(i)+"-"+strconv.Itoa(file))
			if err := durable.WriteFile(durable.OS{}, name, data, 0o600); err != nil {
				b.Fatal(err)
			}
		}
	}
}
