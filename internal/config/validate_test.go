package config_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/config"
)

func TestValueProblems(t *testing.T) {
	tests := []struct{ name, doc, want string }{
		{"address", "rpc.address = 'kms.example.com'", "rpc.address: must be an IP address or localhost"},
		{"empty address", "core.onboard.address = ''", "core.onboard.address: must be an IP address or localhost"},
		{"admin address", "core.admin.address = 'x'", "core.admin.address: must be an IP address or localhost"},
		{"no key directory", "core.cert_dir = ''", "core.cert_dir: a directory is required"},
		{"URL without scheme", "core.pccs_url = 'pccs:8081'", "core.pccs_url: must be an absolute http or https URL"},
		{"URL without host", "core.attestation.urls.pccs = 'https://'", "core.attestation.urls.pccs: must be an absolute http or https URL"},
		{"two PCCS", "core.pccs_url = 'https://a'\ncore.attestation.urls.pccs = 'https://b'", "core.pccs_url: differs from core.attestation.urls.pccs, which means the same; set one of the two"},
		{"provider", "core.attestation.provider = 'none'", "core.attestation.provider: must be one of auto, guest-agent, configfs, simulator"},
		{"agent address", "core.attestation.agent_address = '/run/dstack.sock'", "core.attestation.agent_address: must be unix:/path or http://host:port"},
		{"agent address without path", "core.attestation.agent_address = 'unix:'", "core.attestation.agent_address: must be unix:/path or http://host:port"},
		{"agent address over TLS", "core.attestation.agent_address = 'https://host'", "core.attestation.agent_address: must be unix:/path or http://host:port"},
		{"attestation timeout", "core.attestation.timeout = '0s'", "core.attestation.timeout: must be more than 0s and at most 24h"},
		{"trust anchor without the switch", "core.attestation.root_ca.tdx = '/x.pem'", "core.attestation.root_ca.tdx: needs core.attestation.insecure_allow_external_trust_anchors = true"},
		{"foreign trust anchor without the switch", "core.attestation.root_ca.sev_snp_turin = '/x.pem'", "core.attestation.root_ca.sev_snp_turin: needs core.attestation.insecure_allow_external_trust_anchors = true"},
		{"simulator without directory", "core.attestation.provider = 'simulator'", `core.attestation.provider: "simulator" needs core.attestation.simulator.dir`},
		{"MRTD", "core.attestation.simulator.mrtd = 'abcd'", "core.attestation.simulator.mrtd: must be 96 hex digits"},
		{"app id", "core.attestation.simulator.app_id = 'zz'", "core.attestation.simulator.app_id: must be 40 hex digits"},
		{"body limit", "core.limits.body_bytes = 0", "core.limits.body_bytes: must be from 1024 to 67108864"},
		{"connections", "core.limits.connections = -1", "core.limits.connections: must be from 1 to 1048576"},
		{"drain", "core.limits.drain_timeout = '-1s'", "core.limits.drain_timeout: must be more than 0s and at most 24h"},
		{"idle", "core.limits.idle_timeout = '25h'", "core.limits.idle_timeout: must be more than 0s and at most 24h"},
		{"image cache", "core.image.cache_dir = ''", "core.image.cache_dir: a directory is required when core.image.verify is true"},
		{"image URL", "core.image.download_url = '{OS_IMAGE_HASH}'", "core.image.download_url: must be an absolute http or https URL"},
		{"authorizer", "core.auth_api.type = 'allow'", "core.auth_api.type: must be one of dev, webhook, registry, ethereum"},
		{"webhook without URL", "core.auth_api.webhook.url = ''", `core.auth_api.webhook.url: required when core.auth_api.type is "webhook"`},
		{"domain", "core.onboard.auto_bootstrap_domain = 'a..b'", "core.onboard.auto_bootstrap_domain: has an empty label"},
		{"token with a space", "core.onboard.setup_token = 'open sesame'", "core.onboard.setup_token: must be printable ASCII without spaces"},
		{"token with a line feed", `core.admin.auth_token = "a\nb"`, "core.admin.auth_token: must be printable ASCII without spaces"},
		{"admin without credentials", "core.admin.enabled = true", "core.admin.enabled: needs core.admin.auth_token, auth_token_file or htpasswd_file"},
		{"admin with too many", "core.admin.insecure_no_auth = true\ncore.admin.auth_token = 'x'", "core.admin.insecure_no_auth: contradicts the credentials that are set beside it"},
		{"log level", "log.level = 'trace'", "log.level: must be one of debug, info, warn, error"},
		{"log format", "log.format = 'xml'", "log.format: must be one of console, json"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff([]string{"kms.toml:1:1: " + tt.want}, problems(t, tt.doc)); diff != "" {
				t.Errorf("Parse(%q) problems differ (-want +got):\n%s", tt.doc, diff)
			}
		})
	}
}

func TestValidateReportsAllProblemsByPath(t *testing.T) {
	c := config.Default()
	c.RPC.Address = ""
	c.Core.CertDir = ""
	c.Log.Format = "xml"
	err := c.Validate()
	e, ok := errors.AsType[*config.Error](err)
	if !ok {
		t.Fatalf("Validate() = %v, want a *config.Error", err)
	}
	want := []string{
		"rpc.address: must be an IP address or localhost",
		"core.cert_dir: a directory is required",
		"log.format: must be one of console, json",
	}
	if diff := cmp.Diff(want, e.Problems); diff != "" {
		t.Errorf("Validate() problems differ (-want +got):\n%s", diff)
	}
}

func TestValuesThatAreFine(t *testing.T) {
	for _, doc := range []string{
		"rpc.address = '::'", "rpc.address = 'localhost'", "rpc.port = 0",
		"core.pccs_url = 'https://a'\ncore.attestation.urls.pccs = 'https://a'",
		"core.attestation = { provider = 'simulator', simulator.dir = '/td' }",
		"core.attestation = { insecure_allow_external_trust_anchors = true, root_ca.tdx = '/x' }",
		"core.attestation.agent_address = 'http://127.0.0.1:8090'",
		"core.onboard.auto_bootstrap_domain = '10.0.0.1'",
		"core.onboard.setup_token = 'auto'",
		"core.admin = { enabled = true, insecure_no_auth = true }",
		"core.admin = { enabled = true, htpasswd_file = '/x' }",
		"core.auth_api = { type = 'ethereum', webhook.url = '' }",
		"core.image = { verify = false, cache_dir = '' }",
	} {
		parse(t, doc)
	}
}

func TestSetupTokenIsAuto(t *testing.T) {
	for token, want := range map[string]bool{"auto": true, "": false, "Auto": false, "automatic": false} {
		if got := parse(t, "core.onboard.setup_token = '"+token+"'").Core.Onboard.SetupTokenIsAuto(); got != want {
			t.Errorf("SetupTokenIsAuto() of %q = %v, want %v", token, got, want)
		}
	}
}

// TestSecretsDoNotPrint puts a secret into every place where one may stand, right
// or wrong, and looks for it in all that comes out.
func TestSecretsDoNotPrint(t *testing.T) {
	const canary = "canary0123456789"
	c := parse(t, "core.onboard.setup_token = '"+canary+"'\ncore.admin.auth_token = '"+canary+"'")
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if got := fmt.Sprintf(verb, c); strings.Contains(got, canary) || strings.Contains(got, fmt.Sprintf("%x", canary)) {
			t.Errorf("Sprintf(%s) holds the secret", verb)
		}
	}
	for _, doc := range []string{
		"core.onboard.setup_token = '" + canary + " '",
		"core.onboard.setup_token = '" + canary,
		"core.onboard.setup_token = " + canary,
		"core.onboard.setup_token = ['" + canary + "']",
		"core.onboard.setup_token = {a = '" + canary + "'}",
		"core.onboard.setup_tokn = '" + canary + "'",
		"core.onboard.setup_token = '" + canary + "' '" + canary + "'",
		"core.onboard.port = '" + canary + "'",
		"core.pccs_url = 'pccs://user:" + canary + "@host'",
		"core.limits.read_timeout = '" + canary + "'",
		"core.auth_api.type = '" + canary + "'",
		"core.onboard.setup_token = 9e99999999999999",
	} {
		if got := strings.Join(problems(t, doc), "\n"); strings.Contains(got, canary) || strings.Contains(got, "9999") {
			t.Errorf("problems of %q hold the value: %s", doc, got)
		}
	}
	for _, name := range []string{"RPC_PORT", "CORE_LIMITS_READ_TIMEOUT", "CORE_METRICS_ENABLED", "CORE_PCCS_URL", "CORE_ONBOARD_SETUP_TOKN"} {
		if got := strings.Join(problems(t, "", "DSTACK_KMS_"+name+"="+canary), "\n"); strings.Contains(got, canary) {
			t.Errorf("problems of DSTACK_KMS_%s hold the value: %s", name, got)
		}
	}
}
