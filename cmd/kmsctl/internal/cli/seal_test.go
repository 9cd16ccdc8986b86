package cli_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"teekms/cmd/kmsctl/internal/status"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

// sealedWorld is a plain key directory with a configuration, and the file of the
// holder of the escrow.
func sealedWorld(t *testing.T) (config, secret, holder string) {
	t.Helper()
	dir := t.TempDir()
	roots, err := keys.NewRoots()
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := keystore.NewBundle(roots, "kms.example.com", nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	certs := filepath.Join(dir, "certs")
	store, err := keystore.Open(t.Context(), keystore.Config{Dir: certs})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Commit(t.Context(), bundle); err != nil {
		t.Fatal(err)
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	config, secret, holder = filepath.Join(dir, "kms.toml"), filepath.Join(dir, "passphrase"), filepath.Join(dir, "escrow.txt")
	text := fmt.Sprintf("[core]\ncert_dir = %q\n[core.seal.passphrase]\nfile = %q\nwork_factor = 10\n[core.seal.escrow]\nrecipients = [%q]\n", certs, secret, id.Recipient())
	for path, content := range map[string]string{config: text, secret: "canary\n", holder: id.String()} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return config, secret, holder
}

func TestSealThroughTheLifeOfADirectory(t *testing.T) {
	config, secret, holder := sealedWorld(t)
	steps := []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"status", status.Failed, "the private keys are plain", "`kmsctl seal add` seals them"},
		{"rotate", status.Failed, "", "`kmsctl seal add` seals them"},
		{"add", status.OK, "Now            sealed to passphrase (scrypt, work factor 10), escrow (1 recipient)", "scrypt takes a while"},
		{"add", status.OK, "Nothing to add: ", ""},
		{"status", status.OK, "✓ passphrase   scrypt, work factor 10: opens here", ""},
		{"remove passphrase", status.Failed, "", "no seal would be left that opens here"},
		{"remove tpm", status.Failed, "", "are not sealed to tpm, but to passphrase"},
		{"add guest-agent", status.Failed, "", "core.seal does not configure guest-agent"},
		{"rotate --json", status.OK, `"opened_again": [`, ""},
		{"status --json", status.OK, `"reason": "opens only with the key of its holder"`, ""},
	}
	for _, step := range steps {
		code, stdout, stderr := run(t.Context(), append([]string{"seal", "--config", config}, strings.Fields(step.args)...)...)
		if code != step.code || !strings.Contains(stdout, step.stdout) || !strings.Contains(stderr, step.stderr) {
			t.Errorf("kmsctl seal %s = %d, %q, %q, want %d, %q, %q", step.args, code, stdout, stderr, step.code, step.stdout, step.stderr)
		}
		if strings.Contains(stdout+stderr, "canary") || strings.Contains(stdout+stderr, "AGE-SECRET-KEY") {
			t.Errorf("kmsctl seal %s shows a secret: %s%s", step.args, stdout, stderr)
		}
		if strings.Contains(step.args, "--json") && !json.Valid([]byte(stdout)) {
			t.Errorf("kmsctl seal %s prints %s, want JSON", step.args, stdout)
		}
	}
	// The passphrase is lost; the holder of the escrow has the way in.
	if err := os.WriteFile(secret, []byte("another canary\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := run(t.Context(), "seal", "rotate", "--config", config); code != status.Failed || !strings.Contains(stderr, "wrong passphrase") {
		t.Errorf("kmsctl seal rotate = %d, %q, want that the passphrase is wrong", code, stderr)
	}
	if code, _, stderr := run(t.Context(), "seal", "rotate", "--config", config, "--identity", holder); code != status.OK || strings.Contains(stderr, "AGE-SECRET-KEY") {
		t.Errorf("kmsctl seal rotate --identity = %d, %q, want status 0", code, stderr)
	}
	if code, _, stderr := run(t.Context(), "seal", "status", "--config", config); code != status.OK {
		t.Errorf("kmsctl seal status = %d, %q, want status 0", code, stderr)
	}
}
