package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// demoSteps runs kmsctl demo to its end, and returns what each step says.
func demoSteps(t *testing.T, env []string, args ...string) (order []string, details map[string]string, stdout string) {
	t.Helper()
	code, stdout, stderr := runCmd(t, command(t, env, "kmsctl", append([]string{"demo", "--exit", "--json"}, args...)...))
	if code != 0 || stderr != "" {
		t.Fatalf("kmsctl demo = %d, %s\n%s", code, stderr, stdout)
	}
	details = map[string]string{}
	for line := range strings.Lines(stdout) {
		var s struct{ Step, Detail string }
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatal(err)
		}
		if s.Step != "" {
			details[s.Step] = s.Detail
			order = append(order, s.Step)
		}
	}
	return order, details, stdout
}

// wantAct wants these steps at the end, each with a part of what it says.
func wantAct(t *testing.T, order []string, details map[string]string, want [][2]string) {
	t.Helper()
	for i, w := range want {
		if at := len(order) - len(want) + i; at < 0 || order[at] != w[0] || !strings.Contains(details[w[0]], w[1]) {
			t.Errorf("step %q says %q, want %q; the steps are %q", w[0], details[w[0]], w[1], order)
		}
	}
}

func TestDemoSeals(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "demo")
	begin := time.Now()
	order, details, stdout := demoSteps(t, nil, "--seal", "--dir", dir)
	t.Logf("kmsctl demo --seal --exit took %v", time.Since(begin).Round(time.Millisecond))
	if got := details["make the seals"]; !strings.Contains(got, "a TPM in software") || !strings.Contains(got, "age1") {
		t.Errorf("make the seals says %q, want a TPM and an escrow", got)
	}
	wantAct(t, order, details, [][2]string{
		{"look at the files", "root-ca.key, root-k256.key, rpc.key, tmp-ca.key are age files, sealed to tpm, passphrase, escrow"},
		{"seal the second KMS", "its files were plain"},
		{"restart dstack-kms", "the TPM opens the files; the application gets the very same keys"},
		{"measure another kernel", "PCR 11 is extended"},
		{"try the TPM alone", "refused, nothing is made anew: "},
		{"try TPM and passphrase", "the passphrase opens what the TPM does not"},
		{"rotate the seals", "the root keys of before"},
		{"try the TPM alone again", "without the passphrase"},
		{"open a copy by escrow", "age -d prints the PEM of the key that root-ca.crt is of"},
		{"ask for the seals", "tpm opens, passphrase opens, escrow is elsewhere"},
	})
	wantReasons(t, details["try the TPM alone"], "cannot open root-ca.key: ", "tpm: ", "PCR 11 of SHA-256", "passphrase: sealed to passphrase, which core.seal does not configure")

	// Both directories, as they are kept; and no secret in what was shown.
	for _, certs := range []string{"certs", "certs-2"} {
		(&kmsDir{Certs: filepath.Join(dir, certs)}).checkSealed(t, "teekms-file", "teekms-escrow", "teekms-tpm", "teekms-passphrase", "X25519")
	}
	all := stdout
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(logs) < 6 {
		t.Fatalf("logs = %v, %v", logs, err)
	}
	for _, path := range logs {
		all += string(mustRead(t, path))
	}
	for _, name := range []string{"passphrase", "passphrase.wrong"} {
		if secret := strings.TrimSpace(string(mustRead(t, filepath.Join(dir, name)))); len(secret) < 20 || strings.Contains(all, secret) {
			t.Errorf("%s is shown, or short", name)
		}
	}
	if strings.Contains(all, "AGE-SECRET-KEY") {
		t.Error("the secret key of the escrow is shown")
	}
	leavesNothing(t, dir)
}

// TestDemoSealsWithoutATPM has neither swtpm nor age.
func TestDemoSealsWithoutATPM(t *testing.T) {
	t.Parallel()
	order, details, _ := demoSteps(t, []string{"PATH=" + t.TempDir()}, "--seal")
	if got := details["make the seals"]; !strings.Contains(got, "no swtpm in PATH") {
		t.Errorf("make the seals says %q, want that there is no swtpm", got)
	}
	wantAct(t, order, details, [][2]string{
		{"look at the files", "are age files, sealed to passphrase, escrow"},
		{"seal the second KMS", "its files were plain"},
		{"restart dstack-kms", "the passphrase opens the files; the application gets the very same keys"},
		{"try a wrong passphrase", "refused, nothing is made anew: "},
		{"rotate the seals", "the root keys of before"},
		{"open a copy by escrow", "age itself, which would print it, is not in PATH"},
		{"ask for the seals", "passphrase opens, escrow is elsewhere"},
	})
	wantReasons(t, details["try a wrong passphrase"], "cannot open root-ca.key: ", "wrong passphrase")
}

// TestDemoIsNotSealedUnlessAsked keeps the two acts as they are.
func TestDemoIsNotSealedUnlessAsked(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "demo")
	order, _, _ := demoSteps(t, nil, "--dir", dir)
	if slices.Contains(order, "make the seals") || slices.Contains(order, "look at the files") {
		t.Errorf("without --seal the steps are %q", order)
	}
	if _, err := os.Stat(filepath.Join(dir, "passphrase")); !os.IsNotExist(err) {
		t.Errorf("without --seal there is a passphrase: %v", err)
	}
	if key := mustRead(t, filepath.Join(dir, "certs", "root-ca.key")); !strings.Contains(string(key), "PRIVATE KEY") {
		t.Error("without --seal root-ca.key is not plain")
	}
}

// TestDemoThatIsInterruptedWhileItSeals ends it in the act, and while it stays up.
func TestDemoThatIsInterruptedWhileItSeals(t *testing.T) {
	t.Parallel()
	for _, after := range []string{"✓ make the seals", "✓ measure another kernel", "until you press Ctrl-C"} {
		cmd, tmp := demoCommand(t, "--seal")
		p := startCmd(t, cmd)
		for deadline := time.Now().Add(patience); !strings.Contains(p.stdout.String(), after); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("kmsctl demo does not come to %q\n%s%s", after, p.stdout, p.stderr)
			}
		}
		if err := p.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		code := p.wait(t, patience)
		up := strings.Contains(p.stdout.String(), "until you press Ctrl-C")
		if up && code != 0 || !up && (code != 1 || !strings.Contains(p.stderr.String(), ": interrupted\n")) {
			t.Errorf("after %q, kmsctl demo ends with %d, %q\n%s", after, code, p.stderr, p.stdout)
		}
		if left := tree(t, tmp); len(left) != 1 {
			t.Errorf("after %q, kmsctl demo leaves %v", after, left)
		}
		leavesNothing(t, tmp)
	}
}
