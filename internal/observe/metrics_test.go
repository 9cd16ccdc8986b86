package observe_test

import (
	"strings"
	"testing"
	"time"

	"teekms/internal/observe"
)

func TestRegistryTellsWhatRuns(t *testing.T) {
	reg := observe.NewRegistry(observe.Build{Version: "v1.2.3", Revision: "abc"})
	expiry := time.Time{}
	if err := observe.RegisterCertificate(reg, "rpc", func() time.Time { return expiry }); err != nil {
		t.Fatalf("RegisterCertificate() = %v, want no error", err)
	}
	if err := observe.RegisterTrustRoot(reg, [32]byte{0xab}, false); err != nil {
		t.Fatalf("RegisterTrustRoot() = %v, want no error", err)
	}
	const certificate = "teekms_certificate_not_after_seconds{certificate=rpc}"
	got := gathered(t, reg)
	for name, want := range map[string]float64{
		"teekms_build_info{revision=abc,version=v1.2.3}": 1,
		certificate: 0,
		"teekms_trust_root_info{external=true,sha256=ab" + strings.Repeat("00", 31) + "}": 1,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s = %v (%v), want %v", name, v, ok, want)
		}
	}
	for _, name := range []string{"go_goroutines{}", "process_open_fds{}"} {
		if got[name] <= 0 {
			t.Errorf("%s = %v, want more than 0", name, got[name])
		}
	}
	expiry = time.Unix(1763634920, 0)
	if got := gathered(t, reg)[certificate]; got != 1763634920 {
		t.Errorf("%s = %v, want 1763634920", certificate, got)
	}
	if err := observe.RegisterCertificate(reg, "rpc", time.Now); err == nil {
		t.Errorf("RegisterCertificate() twice = no error, want a refusal")
	}
}
