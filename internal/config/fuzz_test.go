package config_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/pelletier/go-toml/v2"

	"teekms/internal/config"
)

func FuzzParse(f *testing.F) {
	f.Add(readText(f, shipped), "DSTACK_KMS_RPC_PORT=1")
	f.Add(enabled(readText(f, shipped)), "DSTACK_KMS_PORT=tcp://10.0.0.1:9100")
	f.Add(sealable(enabled(readText(f, shipped))), "DSTACK_KMS_CORE_SEAL_TPM_PCRS=0, 7")
	f.Add("core.seal.escrow.recipients = ['a', 1, [2]]", "DSTACK_KMS_CORE_SEAL_TPM_PCRS=,")
	f.Add("rpc.prot = 1", "DSTACK_KMS_RPC_PROT=1")
	f.Add("[rpc]\nport = 0x7f\nlimits.\"a.b\" = [1, {c = 2}]", "ADMIN_API_TOKEN=x")
	f.Add("core = { onboard = { port = 1_0 }, attestation.root_ca.tdx = '''x''' }", "")
	f.Add("[[core]]\n[core.admin]\nauth_token = \"\\u0000\"", "DSTACK_KMS_LOG_LEVEL=\x1b[31m")
	place := regexp.MustCompile(`^(kms\.toml(:\d+:\d+)?: |DSTACK_KMS_|ADMIN_API_TOKEN|DSTACK_AGENT_ADDRESS|unknown environment variable |core\.|rpc\.|log\.)`)
	f.Fuzz(func(t *testing.T, doc, entry string) {
		if strings.Contains(doc, "_file") || strings.Contains(entry, "_FILE") {
			return // opens what it names
		}
		c, err := config.Parse("kms.toml", []byte(doc), []string{entry})
		if e, ok := errors.AsType[*config.Error](err); ok {
			for _, p := range e.Problems {
				if !place.MatchString(p) || strings.ContainsFunc(p, unicode.IsControl) {
					t.Errorf("problem %q names no place or holds control characters", p)
				}
			}
			return
		}
		if err != nil {
			t.Fatalf("Parse(%q, %q) = %v, want a *config.Error", doc, entry, err)
		}
		var any map[string]any
		if err := toml.Unmarshal([]byte(doc), &any); err != nil {
			t.Errorf("Parse accepts what is not TOML: %v", err)
		}
		if err := c.Validate(); err != nil {
			t.Errorf("Validate() of what Parse accepts = %v, want no error", err)
		}
		c.Ineffective()
	})
}

func TestEditDistance(t *testing.T) {
	tests := []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"", "abc", 3},
		{"abc", "", 3},
		{"port", "port", 0},
		{"prot", "port", 1},
		{"prt", "port", 1},
		{"porte", "port", 1},
		{"pxrt", "port", 1},
		{"kitten", "sitting", 3},
	}
	for _, tt := range tests {
		if got := config.EditDistance(tt.a, tt.b); got != tt.want {
			t.Errorf("editDistance(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
