package config_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/config"
	"teekms/internal/keys"
)

func TestEnvironmentOverFile(t *testing.T) {
	got := parse(t, "[rpc]\nport = 1\naddress = \"127.0.0.1\"\n",
		"DSTACK_KMS_RPC_PORT=9101",
		"DSTACK_KMS_CORE_ONBOARD_AUTO_BOOTSTRAP_DOMAIN=kms.example.com",
		"DSTACK_KMS_CORE_ONBOARD_QUOTE_ENABLED=false",
		"DSTACK_KMS_CORE_LIMITS_READ_TIMEOUT=20s",
		"DSTACK_KMS_CORE_ATTESTATION_SIMULATOR_DIR=/a=b",
		"PATH=/bin", "NOEQUALS",
	)
	want := config.Default()
	want.RPC.Port = 9101
	want.RPC.Address = "127.0.0.1"
	want.Core.Onboard.AutoBootstrapDomain = "kms.example.com"
	want.Core.Onboard.QuoteEnabled = false
	want.Core.Limits.ReadTimeout = 20e9
	want.Core.Attestation.Simulator.Dir = "/a=b"
	if diff := cmp.Diff(want, got, compare()); diff != "" {
		t.Errorf("Parse() differs (-want +got):\n%s", diff)
	}
}

func TestEnvironmentProblems(t *testing.T) {
	tests := []struct{ name, entry, want string }{
		{"unknown", "DSTACK_KMS_RPC_PROT=1", "unknown environment variable DSTACK_KMS_RPC_PROT; did you mean DSTACK_KMS_RPC_PORT?"},
		{"like no other", "DSTACK_KMS_X=1", "unknown environment variable DSTACK_KMS_X"},
		{"prefix alone", "DSTACK_KMS_=1", "unknown environment variable DSTACK_KMS_"},
		{"lower case", "DSTACK_KMS_rpc_port=1", "unknown environment variable DSTACK_KMS_rpc_port; did you mean DSTACK_KMS_RPC_PORT?"},
		{"not an integer", "DSTACK_KMS_RPC_PORT=x", "DSTACK_KMS_RPC_PORT: rpc.port: expected an integer from 0 to 65535"},
		{"empty integer", "DSTACK_KMS_RPC_PORT=", "DSTACK_KMS_RPC_PORT: rpc.port: expected an integer from 0 to 65535"},
		{"leading zero", "DSTACK_KMS_RPC_PORT=010", "DSTACK_KMS_RPC_PORT: rpc.port: expected an integer from 0 to 65535"},
		{"not an int64", "DSTACK_KMS_CORE_LIMITS_BODY_BYTES=1MiB", "DSTACK_KMS_CORE_LIMITS_BODY_BYTES: core.limits.body_bytes: expected an integer"},
		{"not a boolean", "DSTACK_KMS_CORE_METRICS_ENABLED=yes", "DSTACK_KMS_CORE_METRICS_ENABLED: core.metrics.enabled: expected true or false"},
		{"not a duration", "DSTACK_KMS_CORE_IMAGE_DOWNLOAD_TIMEOUT=2", `DSTACK_KMS_CORE_IMAGE_DOWNLOAD_TIMEOUT: core.image.download_timeout: expected a duration like "90s", "2m" or "1h30m"`},
		{"valid type, refused value", "DSTACK_KMS_LOG_LEVEL=loud", "DSTACK_KMS_LOG_LEVEL: log.level: must be one of debug, info, warn, error"},
		{"like Kubernetes, but not", "DSTACK_KMS_PORT_X_TCP=1", "unknown environment variable DSTACK_KMS_PORT_X_TCP"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff([]string{tt.want}, problems(t, "", tt.entry)); diff != "" {
				t.Errorf("Parse(%s) problems differ (-want +got):\n%s", tt.entry, diff)
			}
		})
	}
}

func TestKubernetesServiceVariablesAreIgnored(t *testing.T) {
	got := parse(t, "",
		"DSTACK_KMS_SERVICE_HOST=10.0.0.1", "DSTACK_KMS_SERVICE_PORT=9100", "DSTACK_KMS_SERVICE_PORT_RPC=9100",
		"DSTACK_KMS_PORT=tcp://10.0.0.1:9100", "DSTACK_KMS_PORT_9100_TCP=tcp://10.0.0.1:9100",
		"DSTACK_KMS_PORT_9100_TCP_PROTO=tcp", "DSTACK_KMS_PORT_9100_TCP_PORT=9100", "DSTACK_KMS_PORT_9100_TCP_ADDR=10.0.0.1",
	)
	if diff := cmp.Diff(config.Default(), got, compare()); diff != "" {
		t.Errorf("Parse() differs from Default() (-want +got):\n%s", diff)
	}
}

func TestKeysWithoutEffectAreTakenFromTheEnvironmentToo(t *testing.T) {
	got := parse(t, "", "DSTACK_KMS_RPC_WORKERS=x", "DSTACK_KMS_RPC_LIMITS_JSON=5MiB").Ineffective()
	if diff := cmp.Diff([]string{"rpc.limits", "rpc.workers"}, got); diff != "" {
		t.Errorf("Ineffective() differs (-want +got):\n%s", diff)
	}
}

func TestAdminTokenAliases(t *testing.T) {
	const exact, alias, generic = "DSTACK_KMS_CORE_ADMIN_AUTH_TOKEN=exact", "DSTACK_KMS_ADMIN_TOKEN=alias", "ADMIN_API_TOKEN=generic"
	tests := []struct {
		name    string
		environ []string
		want    string
	}{
		{"file", nil, "file"},
		{"generic alias over file", []string{generic}, "generic"},
		{"alias over generic", []string{alias, generic}, "alias"},
		{"empty aliases are not set", []string{"DSTACK_KMS_ADMIN_TOKEN=", "ADMIN_API_TOKEN="}, "file"},
		{"exact name over all", []string{exact, alias, generic}, "exact"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := parse(t, "core.admin.auth_token = \"file\"\n", tt.environ...).Core.Admin.AuthToken
			if !got.Equal(keys.NewSecret([]byte(tt.want))) {
				t.Errorf("core.admin.auth_token = %s, want %s", got.Bytes(), tt.want)
			}
		})
	}
}

func TestAgentAddressAlias(t *testing.T) {
	got := parse(t, "", "DSTACK_AGENT_ADDRESS=unix:/run/x.sock").Core.Attestation.AgentAddress
	if got != "unix:/run/x.sock" {
		t.Errorf("core.attestation.agent_address = %q, want unix:/run/x.sock", got)
	}
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSecretsFromFiles(t *testing.T) {
	for name, content := range map[string]string{"plain": "sesame", "line": "sesame\n", "DOS line": "sesame\r\n"} {
		t.Run(name, func(t *testing.T) {
			c := parse(t, "core.onboard.setup_token_file = '"+writeFile(t, content)+"'")
			if got := c.Core.Onboard.SetupToken; !got.Equal(keys.NewSecret([]byte("sesame"))) {
				t.Errorf("core.onboard.setup_token = %q, want sesame", got.Bytes())
			}
		})
	}
}

func TestEnvironmentReplacesEitherHalfOfAPair(t *testing.T) {
	file := "core.onboard.setup_token_file = '" + writeFile(t, "from-file") + "'"
	c := parse(t, file, "DSTACK_KMS_CORE_ONBOARD_SETUP_TOKEN=from-env")
	if got := c.Core.Onboard.SetupToken; !got.Equal(keys.NewSecret([]byte("from-env"))) {
		t.Errorf("value over file: core.onboard.setup_token = %q, want from-env", got.Bytes())
	}
	c = parse(t, "core.onboard.setup_token = \"from-file\"", "DSTACK_KMS_CORE_ONBOARD_SETUP_TOKEN_FILE="+writeFile(t, "from-env"))
	if got := c.Core.Onboard.SetupToken; !got.Equal(keys.NewSecret([]byte("from-env"))) {
		t.Errorf("file over value: core.onboard.setup_token = %q, want from-env", got.Bytes())
	}
}

func TestSecretFileProblems(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	good, empty, lines := writeFile(t, "sesame"), writeFile(t, "\n"), writeFile(t, "a\nb\n")
	large := writeFile(t, string(make([]byte, 4097)))
	const at = "kms.toml:1:1: core.admin.auth_token_file: "
	tests := []struct{ name, doc, want string }{
		{"missing", "core.admin.auth_token_file = '" + missing + "'", at + "open " + missing + ": no such file or directory"},
		{"empty", "core.admin.auth_token_file = '" + empty + "'", at + empty + " is empty"},
		{"too large", "core.admin.auth_token_file = '" + large + "'", at + large + " is larger than 4096 bytes"},
		{"more than one line", "core.admin.auth_token_file = '" + lines + "'", at + lines + " has more than one line"},
		{"both", "core.admin.auth_token_file = '" + good + "'\ncore.admin.auth_token = 'x'", at + "core.admin.auth_token is set too; give one of the two"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff([]string{tt.want}, problems(t, tt.doc)); diff != "" {
				t.Errorf("Parse() problems differ (-want +got):\n%s", diff)
			}
		})
	}
}
