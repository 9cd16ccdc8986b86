package observe_test

import (
	"bytes"
	"testing"
	"time"

	"go.uber.org/zap"

	"teekms/internal/observe"
)

func TestConsoleLineIsTheTutorials(t *testing.T) {
	var out bytes.Buffer
	log, err := observe.NewLogger(observe.Config{
		Level: "info", Format: observe.FormatConsole, Out: &out,
		Now: func() time.Time { return time.Date(2025, 11, 20, 11, 35, 20, 5, time.FixedZone("CET", 3600)) },
	})
	if err != nil {
		t.Fatalf("NewLogger() = %v, want no error", err)
	}
	log.Info("Starting KMS in bootstrap mode")
	log.Warn("switch weakens security", zap.String("key", "rpc.insecure_plaintext"))
	want := "2025-11-20T10:35:20Z INFO Starting KMS in bootstrap mode\n" +
		`2025-11-20T10:35:20Z WARN switch weakens security {"key": "rpc.insecure_plaintext"}` + "\n"
	if got := out.String(); got != want {
		t.Errorf("lines = %q, want %q", got, want)
	}
}
