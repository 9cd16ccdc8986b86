package config_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/config"
)

const needsAdmin = `core.kms_key_release: "admin" needs core.admin.enabled = true and TLS there (core.admin.tls = true), which replicas prove themselves in`

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
		{"image cache", "core.image.cache_dir = ''", "core.image.cache_dir: a directory is required when core.image.verify is true and core.image.download_url is set"},
		{"image URL", "core.image.download_url = '{OS_IMAGE_HASH}'", "core.image.download_url: must be an absolute http or https URL"},
		{"authorizer", "core.auth_api.type = 'allow'", "core.auth_api.type: must be one of dev, webhook, registry, ethereum"},
		{"webhook without URL", "core.auth_api.webhook.url = ''", `core.auth_api.webhook.url: required when core.auth_api.type is "webhook"`},
		{"domain", "core.onboard.auto_bootstrap_domain = 'a..b'", "core.onboard.auto_bootstrap_domain: has an empty label"},
		{"token with a space", "core.onboard.setup_token = 'open sesame'", "core.onboard.setup_token: must be printable ASCII without spaces"},
		{"token with a line feed", `core.admin.auth_token = "a\nb"`, "core.admin.auth_token: must be printable ASCII without spaces"},
		{"admin without credentials", "core.admin.enabled = true", "core.admin.enabled: needs core.admin.auth_token, auth_token_file or htpasswd_file"},
		{"admin with too many", "core.admin.insecure_no_auth = true\ncore.admin.auth_token = 'x'", "core.admin.insecure_no_auth: contradicts the credentials that are set beside it"},
		{"admin with and without TLS", "core.admin.insecure_plaintext = true\ncore.admin.tls = true", "core.admin.insecure_plaintext: contradicts core.admin.tls = true"},
		{"root keys", "core.kms_key_release = 'private'", "core.kms_key_release: must be one of public, admin, off"},
		{"root keys where nobody listens", "core.kms_key_release = 'admin'", needsAdmin},
		{"appraisals", "core.limits.appraisals_per_second = 0", "core.limits.appraisals_per_second: must be from 1 to 1048576"},
		{"burst of appraisals", "core.limits.appraisals_burst = 0", "core.limits.appraisals_burst: must be from 1 to 1048576"},
		{"size of images", "core.image.max_download = 1", "core.image.max_download: must be from 1048576 to 1099511627776"},
		{"webhook timeout", "core.auth_api.webhook.timeout = '0s'", "core.auth_api.webhook.timeout: must be more than 0s and at most 24h"},
		{"webhook token with a space", "core.auth_api.webhook.token = 'a b'", "core.auth_api.webhook.token: must be printable ASCII without spaces"},
		{"roots for plain HTTP", "core.auth_api.webhook.ca_file = '/x'", "core.auth_api.webhook.ca_file: has no meaning for an http URL"},
		{"contract", "core.auth_api.ethereum.kms_contract_address = '0x1234'", "core.auth_api.ethereum.kms_contract_address: must be 0x and 40 hex digits"},
		{"finality", "core.auth_api.ethereum.finality = 'soon'", "core.auth_api.ethereum.finality: must be one of latest, safe, finalized"},
		{"confirmations of a final block", "core.auth_api.ethereum.confirmations = 2", `core.auth_api.ethereum.confirmations: counts back from the latest block: set core.auth_api.ethereum.finality = "latest"`},
		{"age of a block", "core.auth_api.ethereum.max_block_age = '-1s'", "core.auth_api.ethereum.max_block_age: must be from 0s, any age, to 24h"},
		{"roots for a node without TLS", "core.auth_api.ethereum.ca_file = '/x'\ncore.auth_api.ethereum.rpc_url = 'http://node'", "core.auth_api.ethereum.ca_file: has no meaning for an http URL"},
		{"Ethereum timeout", "core.auth_api.ethereum.timeout = '0s'", "core.auth_api.ethereum.timeout: must be more than 0s and at most 24h"},
		{"Ethereum node", "core.auth_api.ethereum.rpc_url = 'ws:x'", "core.auth_api.ethereum.rpc_url: must be an absolute http or https URL"},
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
		"core.auth_api = { type = 'registry', webhook.url = '' }",
		"core.auth_api = { type = 'ethereum', ethereum = { rpc_url = 'http://127.0.0.1:8545', chain_id = 1, kms_contract_address = '0x00112233445566778899aabbccddeeff00112233' } }",
		"core.auth_api.ethereum = { finality = 'latest', confirmations = 6 }",
		"core.auth_api.webhook = { url = 'https://auth', ca_file = '/x', token = 't' }",
		"core.image = { verify = false, cache_dir = '' }",
		"core.image = { download_url = '', cache_dir = '' }",
		"core.kms_key_release = 'off'",
		"core.kms_key_release = 'admin'\ncore.admin = { enabled = true, tls = true, auth_token = 'x' }",
		"core.kms_key_release = 'admin'\ncore.admin = { enabled = true, address = '10.0.0.1', auth_token = 'x' }",
	} {
		parse(t, doc)
	}
}

func TestEthereumNeedsItsSection(t *testing.T) {
	const when = ` required when core.auth_api.type is "ethereum"`
	want := []string{
		"core.auth_api.ethereum.rpc_url:" + when, "core.auth_api.ethereum.kms_contract_address:" + when,
		"core.auth_api.ethereum.chain_id:" + when + ", and positive",
	}
	if diff := cmp.Diff(want, problems(t, "core.auth_api.type = 'ethereum'")); diff != "" {
		t.Errorf("problems differ (-want +got):\n%s", diff)
	}
}

func TestAdminWithTLS(t *testing.T) {
	for doc, want := range map[string]bool{
		"": false, "address = '127.0.0.1'": false, "address = 'localhost'": false, "address = '::1'": false,
		"address = '::ffff:127.0.0.1'": false, "tls = true": true, "address = '0.0.0.0'": true, "address = '::'": true,
		"address = '10.0.0.1'": true, "address = '10.0.0.1', insecure_plaintext = true": false,
	} {
		if got := parse(t, "core.admin = { "+doc+" }").Core.Admin.WithTLS(); got != want {
			t.Errorf("WithTLS() of %q = %v, want %v", doc, got, want)
		}
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
	c := parse(t, strings.Join([]string{
		"core.onboard.setup_token = '" + canary + "'", "core.admin.auth_token = '" + canary + "'",
		"core.auth_api.webhook.token = '" + canary + "'", "core.auth_api.ethereum.rpc_url = 'http://user:" + canary + "@host'",
	}, "\n"))
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
		"core.auth_api.webhook.token = '" + canary + " '",
		"core.auth_api.ethereum.rpc_url = 'ws://user:" + canary + "@host'",
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
