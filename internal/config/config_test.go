package config_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"teekms/internal/config"
	"teekms/internal/keys"
)

// compare makes cmp look at what is configured, not at where.
func compare() cmp.Options {
	return cmp.Options{
		cmpopts.IgnoreUnexported(config.Config{}),
		cmp.Comparer(func(a, b keys.Secret) bool { return a.Equal(b) }),
	}
}

func parse(t *testing.T, doc string, environ ...string) *config.Config {
	t.Helper()
	c, err := config.Parse("kms.toml", []byte(doc), environ)
	if err != nil {
		t.Fatalf("Parse(%q, %q) = %v, want no error", doc, environ, err)
	}
	return c
}

// problems returns what is wrong with a configuration that must be refused.
func problems(t *testing.T, doc string, environ ...string) []string {
	t.Helper()
	_, err := config.Parse("kms.toml", []byte(doc), environ)
	e, ok := errors.AsType[*config.Error](err)
	if !ok {
		t.Fatalf("Parse(%q, %q) = %v, want a *config.Error", doc, environ, err)
	}
	return e.Problems
}

func TestEmptyFileIsDefault(t *testing.T) {
	if diff := cmp.Diff(config.Default(), parse(t, ""), compare()); diff != "" {
		t.Errorf("Parse(empty) differs from Default() (-want +got):\n%s", diff)
	}
	if err := config.Default().Validate(); err != nil {
		t.Errorf("Default().Validate() = %v, want no error", err)
	}
}

func TestValuesAreSet(t *testing.T) {
	got := parse(t, `
rpc.port = 9_101
log = { level = "debug", format = "json" }
[core]
cert_dir = "/k"
pccs_url = "https://pccs:8081/"
[core.limits]
body_bytes = 0x10000
drain_timeout = "1m30s"
[core.onboard]
auto_bootstrap_domain = "kms.example.com"
quote_enabled = false
address = "::1"
setup_token = "sesame"
`)
	want := config.Default()
	want.RPC.Port = 9101
	want.Log = config.Log{Level: "debug", Format: "json"}
	want.Core.CertDir = "/k"
	want.Core.PCCSURL = "https://pccs:8081/"
	want.Core.Limits.BodyBytes = 65536
	want.Core.Limits.DrainTimeout = 90 * time.Second
	want.Core.Onboard.AutoBootstrapDomain = "kms.example.com"
	want.Core.Onboard.QuoteEnabled = false
	want.Core.Onboard.Address = "::1"
	want.Core.Onboard.SetupToken = keys.NewSecret([]byte("sesame"))
	if diff := cmp.Diff(want, got, compare()); diff != "" {
		t.Errorf("Parse() differs (-want +got):\n%s", diff)
	}
	if got.Core.PCCS() != "https://pccs:8081/" {
		t.Errorf("PCCS() = %q, want the value of core.pccs_url", got.Core.PCCS())
	}
}

func TestFileProblemsNameThePlace(t *testing.T) {
	tests := []struct {
		name, doc string
		want      []string
	}{
		{"unknown key has its nearest neighbor", "\n\nrpc.prot = 1\n", []string{"kms.toml:3:1: unknown key rpc.prot; did you mean rpc.port?"}},
		{"unknown section is named once", "[core.onbord]\nenabled = true\nport = 1\n", []string{"kms.toml:1:2: unknown section core.onbord; did you mean core.onboard?"}},
		{"key without its section", "port = 1\n", []string{"kms.toml:1:1: unknown key port; did you mean rpc.port?"}},
		{"key like no other", "zzzzzzzzzzzzzzzz = 1\n", []string{"kms.toml:1:1: unknown key zzzzzzzzzzzzzzzz"}},
		{"case counts", "RPC.port = 1\n", []string{"kms.toml:1:1: unknown key RPC.port; did you mean rpc.port?"}},
		{"quoted dots do not make a path", "\"rpc.port\" = 1\n", []string{`kms.toml:1:1: unknown key "rpc\u002eport"`}},
		{"control characters are not echoed", "\"a\\nb\" = 1\n", []string{`kms.toml:1:1: unknown key "a\nb"`}},
		{"inside of an inline table", "log = { lev = 1 }\n", []string{"kms.toml:1:9: unknown key log.lev; did you mean log.level?"}},
		{"string for an integer", "[rpc]\nport = \"9100\"\n", []string{"kms.toml:2:1: rpc.port: expected an integer, found a string"}},
		{"integer for a boolean", "[rpc]\ninsecure_plaintext = 1\n", []string{"kms.toml:2:1: rpc.insecure_plaintext: expected true or false, found an integer"}},
		{"boolean for a string", "[core]\ncert_dir = true\n", []string{"kms.toml:2:1: core.cert_dir: expected a string, found a boolean"}},
		{"float, array and date", "rpc.port = 1.5\nrpc.address = []\nlog.level = 2025-11-20\n", []string{
			"kms.toml:1:1: rpc.port: expected an integer, found a float",
			"kms.toml:2:1: rpc.address: expected a string, found an array",
			"kms.toml:3:1: log.level: expected a string, found a date or time",
		}},
		{"value for a section", "rpc = 1\n", []string{"kms.toml:1:1: rpc: expected a table, found an integer"}},
		{"section for a value", "[rpc.port]\nx = 1\n", []string{"kms.toml:1:2: rpc.port: expected an integer, found a table"}},
		{"array of sections", "[[rpc]]\nport = 1\n", []string{"kms.toml:1:3: rpc: expected one table, found an array of tables"}},
		{"integer too large for a port", "rpc.port = 70000\n", []string{"kms.toml:1:1: rpc.port: expected an integer from 0 to 65535"}},
		{"negative port", "rpc.port = -1\n", []string{"kms.toml:1:1: rpc.port: expected an integer from 0 to 65535"}},
		{"duration without a unit", "core.limits.read_timeout = \"15\"\n", []string{`kms.toml:1:1: core.limits.read_timeout: expected a duration like "90s", "2m" or "1h30m"`}},
		{"duplicate key", "[rpc]\nport = 1\nport = 2\n", []string{"kms.toml:3:1: key port is already defined"}},
		{"duplicate section", "[rpc]\n[rpc]\n", []string{"kms.toml:2:2: table rpc already exists"}},
		{"not TOML", "[rpc]\nport = \n", []string{"kms.toml:2:8: unexpected character U+000A at start of value"}},
		{"unquoted string", "[rpc]\naddress = localhost\n", []string{"kms.toml:2:11: unexpected character U+006C 'l' at start of value"}},
		{"all at once", "[rpc]\nprot = 1\nport = \"x\"\n[logs]\n[core]\ncert_dir = 1\n", []string{
			"kms.toml:2:1: unknown key rpc.prot; did you mean rpc.port?",
			"kms.toml:3:1: rpc.port: expected an integer, found a string",
			"kms.toml:4:2: unknown section logs; did you mean log?",
			"kms.toml:6:1: core.cert_dir: expected a string, found an integer",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, problems(t, tt.doc)); diff != "" {
				t.Errorf("Parse(%q) problems differ (-want +got):\n%s", tt.doc, diff)
			}
		})
	}
}

func TestKeysOfThePeerAreAcceptedAndNamed(t *testing.T) {
	c := parse(t, `
[default]
workers = 8
max_blocking = 64
ident = "DStack KMS"
temp_dir = "/tmp"
keep_alive = 10
log_level = "info"

[rpc]
address = "0.0.0.0"
port = 8000
workers = 4
limits = { "KMS.GetMeta" = "1MiB", json = 5 }

[rpc.tls]
key = "/etc/kms/certs/rpc.key"
certs = "/etc/kms/certs/rpc.crt"

[rpc.tls.mutual]
ca_certs = "/etc/kms/certs/tmp-ca.crt"
mandatory = false

[core]
cert_dir = "/etc/kms/certs"
subject_postfix = ".dstack"
admin_token_hash = ""
site_name = "here"
enforce_self_authorization = true
attest_rpc_cert = true
sev_snp_key_release = false
aws_nitro_tpm_key_release = false

[core.image]
verify = true
cache_dir = "./images"
download_url = "http://localhost:8000/{OS_IMAGE_HASH}.tar.gz"
download_timeout = "2m"

[core.auth_api]
type = "webhook"

[core.auth_api.webhook]
url = "http://auth-api:8000"

[core.auth_api.dev]
gateway_app_id = "any"

[core.onboard]
enabled = true
auto_bootstrap_domain = ""
address = "0.0.0.0"
port = 8000
quote_enabled = true

[core.onboard.limits.deeper]
still = "fine"

[core.attestation]
insecure_allow_external_trust_anchors = false

[core.attestation.urls]
amd_kds = "https://kdsintf.amd.com"

[core.metrics]
enabled = true

[core.admin]
enabled = false
address = "127.0.0.1"
port = 8001
auth_token = ""
htpasswd_file = ""
insecure_no_auth = false
`)
	want := []string{
		"core.admin_token_hash", "core.attestation.urls.amd_kds", "core.aws_nitro_tpm_key_release",
		"core.onboard.limits.deeper", "core.onboard.limits.deeper.still",
		"core.sev_snp_key_release", "core.subject_postfix",
		"default.ident", "default.keep_alive", "default.log_level", "default.max_blocking", "default.temp_dir", "default.workers",
		"rpc.limits", "rpc.tls.certs", "rpc.tls.key", "rpc.tls.mutual.ca_certs", "rpc.workers",
	}
	if diff := cmp.Diff(want, c.Ineffective()); diff != "" {
		t.Errorf("Ineffective() differs (-want +got):\n%s", diff)
	}
	if got := c.InsecureSettings(); !slices.Equal(got, []string{config.UnsealedKeys}) {
		t.Errorf("InsecureSettings() = %q, want %q alone", got, config.UnsealedKeys)
	}
	if !c.Names("core.auth_api") {
		t.Errorf("Names(core.auth_api) = false, want true")
	}
}

func TestNames(t *testing.T) {
	tests := []struct {
		name, doc string
		environ   []string
		want      bool
	}{
		{"nothing", "[core]\n", nil, false},
		{"empty section", "[core.auth_api]\n", nil, true},
		{"key below", "core.auth_api.dev.gateway_app_id = \"any\"\n", nil, true},
		{"inline table", "core.auth_api = {}\n", nil, true},
		{"environment", "", []string{"DSTACK_KMS_CORE_AUTH_API_TYPE=dev"}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := parse(t, tt.doc, tt.environ...).Names("core.auth_api"); got != tt.want {
				t.Errorf("Names(core.auth_api) = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestInsecureSettingsListsEverySwitch(t *testing.T) {
	c := parse(t, `
rpc.insecure_plaintext = true
core.enforce_self_authorization = false
core.attestation = { provider = "simulator", insecure_allow_external_trust_anchors = true, simulator.dir = "/td" }
core.image.verify = false
core.auth_api.type = "dev"
core.onboard.quote_enabled = false
core.admin.insecure_no_auth = true
core.admin.insecure_plaintext = true
`)
	want := []string{
		"rpc.insecure_plaintext", "core.enforce_self_authorization", "core.attestation.provider",
		"core.attestation.insecure_allow_external_trust_anchors", "core.image.verify", "core.auth_api.type",
		"core.onboard.quote_enabled", "core.admin.insecure_no_auth", "core.admin.insecure_plaintext", config.UnsealedKeys,
	}
	if diff := cmp.Diff(want, c.InsecureSettings()); diff != "" {
		t.Errorf("InsecureSettings() differs (-want +got):\n%s", diff)
	}
}

func TestLoadReadsOnlyTheNamedFile(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.WriteFile("kms.toml", []byte("[rpc]\nport = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other.toml")
	if err := os.WriteFile(other, []byte("[core.onboard]\nport = 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(other, nil)
	if err != nil {
		t.Fatalf("Load(%s) = %v, want no error", other, err)
	}
	if c.RPC.Port != 9100 || c.Core.Onboard.Port != 2 {
		t.Errorf("ports = %d, %d, want 9100, 2", c.RPC.Port, c.Core.Onboard.Port)
	}
}

func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large.toml")
	if err := os.WriteFile(large, []byte(strings.Repeat("#", 1<<20+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, path, want string }{
		{"missing file", dir + "/kms.toml", "opening configuration " + dir + "/kms.toml: no such file; name one with --config"},
		{"JSON", dir + "/kms.json", "opening configuration " + dir + "/kms.json: JSON is not read; write the same keys as TOML"},
		{"directory", dir, "reading configuration: read " + dir + ": is a directory"},
		{"too large", large, "reading configuration " + large + ": larger than 1048576 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := config.Load(tt.path, nil); fmt.Sprint(err) != tt.want {
				t.Errorf("Load(%s) = %v, want %s", tt.path, err, tt.want)
			}
		})
	}
}

func TestErrorIsOneLine(t *testing.T) {
	got := (&config.Error{Problems: []string{"a: x", "b: y"}}).Error()
	if want := "a: x; b: y"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
	if !slices.Equal(problems(t, "a=1\nb=2"), []string{"kms.toml:1:1: unknown key a", "kms.toml:2:1: unknown key b"}) {
		t.Errorf("problems = %q, want one entry each", problems(t, "a=1\nb=2"))
	}
}
