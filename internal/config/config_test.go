package config_test

import (
	"testing"

	"teekms/internal/config"
)

func TestEmptyFileIsDefault(t *testing.T) {
	c, err := config.Parse("kms.toml", nil, nil)
	if err != nil {
		t.Fatalf("Parse(empty) = %v, want no error", err)
	}
	if c.RPC.Port != 9100 || c.Core.Onboard.Port != 9100 {
		t.Errorf("ports = %d, %d, want 9100, 9100", c.RPC.Port, c.Core.Onboard.Port)
	}
	for _, doc := range []string{"\n\n[rpc]\nprot = 1\nport=\"x\"\n[[core]]\n[core.onbord]\nx=1\n", "rpc.port=70000\nrpc.tls=3\nlog={level='x', lev=2}", "a=1\na=2", "[rpc]\n[rpc]\n", "rpc=1"} {
		_, err := config.Parse("kms.toml", []byte(doc), []string{"DSTACK_KMS_RPC_PROT=1"})
		t.Log(err)
	}
}
