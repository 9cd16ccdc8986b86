package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestDemoHasASecondAct(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "demo")
	// What an operator has in the environment does not reach it.
	cmd := command(t, []string{"KMS_CLI_CONF=/nonexistent", "KMSCTL_ADMIN=http://127.0.0.1:1", "KMS_USE_BOOTSTRAP_SERVER=false"},
		"kmsctl", "demo", "--exit", "--json", "--dir", dir)
	code, stdout, stderr := runCmd(t, cmd)
	if code != 0 || stderr != "" {
		t.Fatalf("kmsctl demo = %d, %s\n%s", code, stderr, stdout)
	}
	details := map[string]string{}
	var order []string
	for line := range strings.Lines(stdout) {
		var s struct {
			Step, Detail string
			OK           bool
		}
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatal(err)
		}
		if s.Step != "" {
			details[s.Step] = s.Detail
			order = append(order, s.Step)
		}
	}
	want := [][2]string{
		{"make a PKCS#12 file", "certificate and key for keys.localhost"},
		{"start it unconfigured", "waits for a database and a certificate"},
		{"configure it by RA-TLS", "TCB UpToDate: only then were SQLite and the PKCS#12 file sent"},
		{"look at its certificates", "keys.localhost for anybody, the KMS's own for who asks for kms-2.localhost"},
		{"write registry rules", "an empty list denies"},
		{"ask as the app", "denied: "},
		{"allow the app", "it works with the next decision"},
		{"get the keys now", "the very same keys again"},
		{"verify the audit log", "a denial and a release among them"},
	}
	for i, w := range want {
		if at := len(order) - len(want) + i; at < 0 || order[at] != w[0] || !strings.Contains(details[w[0]], w[1]) {
			t.Errorf("step %q says %q, want %q; the steps are %q", w[0], details[w[0]], w[1], order)
		}
	}
	// Neither password nor tokens are in what was printed or logged.
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(logs) < 5 {
		t.Fatalf("logs = %v, %v", logs, err)
	}
	all := stdout
	for _, path := range logs {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all += string(text)
	}
	for _, name := range []string{"kms.p12.password", "bootstrap-token", "admin-token"} {
		secret, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || len(secret) < 20 || strings.Contains(all, strings.TrimSpace(string(secret))) {
			t.Errorf("%s: %v, or it is shown", name, err)
		}
	}
	leavesNothing(t, dir)
}

// TestDemoThatIsInterruptedInItsSecondAct interrupts it in each of its steps.
func TestDemoThatIsInterruptedInItsSecondAct(t *testing.T) {
	t.Parallel()
	for _, after := range []string{"make a PKCS#12 file", "start it unconfigured", "configure it by RA-TLS", "write registry rules", "get the keys now"} {
		cmd, tmp := demoCommand(t)
		p := startCmd(t, cmd)
		for deadline := time.Now().Add(patience); !strings.Contains(p.stdout.String(), "✓ "+after); time.Sleep(time.Millisecond) {
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
