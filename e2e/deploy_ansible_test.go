package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// playbookRun is one machine, this one, as the inventory describes it.
type playbookRun struct {
	dir  string
	vars map[string]any
}

// newPlaybookRun points the playbook at a temporary directory and at the
// software TD. Nothing of it asks for root.
func newPlaybookRun(t *testing.T, vars map[string]any) *playbookRun {
	t.Helper()
	dir := t.TempDir()
	r := &playbookRun{dir: dir, vars: map[string]any{
		"kms_become":         false,
		"kms_onboard_binary": binary(t, "dstack-onboard"),
		"kms_config":         filepath.Join(dir, "etc", "kms.toml"),
		"kms_cert_dir":       filepath.Join(dir, "etc", "certs"),
		"kms_onboard_port":   freePort(t),
		"kms_environment": map[string]string{
			"DSTACK_KMS_CORE_ATTESTATION_PROVIDER":      "simulator",
			"DSTACK_KMS_CORE_ATTESTATION_SIMULATOR_DIR": filepath.Join(dir, "td"),
		},
	}}
	maps.Copy(r.vars, vars)
	return r
}

func (r *playbookRun) certs() string { return r.vars["kms_cert_dir"].(string) }

// play runs the command that the documentation prints, in the directory that it
// says, and returns what Ansible had to say.
func (r *playbookRun) play(t *testing.T, flags ...string) (code int, output string) {
	t.Helper()
	vars, err := json.Marshal(r.vars)
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-i", "inventory/hosts.yml", "playbooks/bootstrap-kms.yml", "-e", string(vars)}, flags...)
	cmd := exec.Command("ansible-playbook", args...)
	cmd.Dir = "../deploy/ansible"
	cmd.Env = append(os.Environ(),
		"ANSIBLE_ASYNC_DIR="+filepath.Join(r.dir, "async"), "ANSIBLE_LOCAL_TEMP="+filepath.Join(r.dir, "local"),
		"ANSIBLE_REMOTE_TEMP="+filepath.Join(r.dir, "remote"), "ANSIBLE_NOCOLOR=1", "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatalf("running ansible-playbook: %v", err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// recap returns the counts of the line "localhost : ok=9 changed=0 ...".
func recap(t *testing.T, output string) map[string]string {
	t.Helper()
	_, line, ok := strings.Cut(output, "PLAY RECAP")
	if !ok {
		t.Fatalf("no recap in:\n%s", output)
	}
	counts := map[string]string{}
	for _, m := range regexp.MustCompile(`(\w+)=(\d+)`).FindAllStringSubmatch(line, -1) {
		counts[m[1]] = m[2]
	}
	return counts
}

// eightFiles returns the contents of the files of a key directory, and checks
// that they are the eight with the modes they should have.
func eightFiles(t *testing.T, dir string) map[string]string {
	t.Helper()
	want := map[string]fs.FileMode{
		"root-ca.crt": 0o644, "root-ca.key": 0o600, "tmp-ca.crt": 0o644, "tmp-ca.key": 0o600,
		"rpc.crt": 0o644, "rpc.key": 0o600, "root-k256.key": 0o600, "bootstrap-info.json": 0o644,
	}
	got := map[string]fs.FileMode{}
	contents := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		got[e.Name()] = info.Mode()
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		contents[e.Name()] = string(data)
	}
	if !maps.Equal(got, want) {
		t.Errorf("files of %s = %v, want %v", dir, got, want)
	}
	return contents
}

func TestPlaybookBootstrapsOnce(t *testing.T) {
	const token = "0123456789-playbook-token"
	tests := []struct {
		name   string
		vars   map[string]any
		shows  string
		domain string
	}{
		{"automatic", map[string]any{"auto_bootstrap": true}, "Bootstrap automatically", "kms.example.com"},
		{"manual", map[string]any{"kms_domain": "kms.test"}, "k256_pubkey", "kms.test"},
		{"manual with a setup token", map[string]any{"kms_setup_token": token}, "k256_pubkey", "kms.example.com"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newPlaybookRun(t, tt.vars)
			code, out := r.play(t, "-v")
			if code != 0 || !strings.Contains(out, tt.shows) {
				t.Fatalf("first run: status %d, want 0 and %q in:\n%s", code, tt.shows, out)
			}
			if counts := recap(t, out); counts["changed"] == "0" || counts["failed"] != "0" {
				t.Errorf("first run: recap %v, want changes and no failure", counts)
			}
			if strings.Contains(out, token) {
				t.Errorf("the setup token is in the output of Ansible")
			}
			made := eightFiles(t, r.certs())
			subject := outputOf(t, exec.Command("openssl", "x509", "-noout", "-subject", "-in", filepath.Join(r.certs(), "rpc.crt")))
			if !strings.Contains(subject, "CN = "+tt.domain) {
				t.Errorf("rpc.crt has %q, want CN = %s", subject, tt.domain)
			}
			r.refuseListener(t)

			code, out = r.play(t)
			if counts := recap(t, out); code != 0 || counts["changed"] != "0" || counts["failed"] != "0" {
				t.Errorf("second run: status %d, recap %v, want 0 and changed=0\n%s", code, counts, out)
			}
			if got := eightFiles(t, r.certs()); !maps.Equal(got, made) {
				t.Errorf("second run changed the key directory")
			}
		})
	}
}

// refuseListener fails when the onboarding service of the playbook is still up.
func (r *playbookRun) refuseListener(t *testing.T) {
	t.Helper()
	address := fmt.Sprintf("127.0.0.1:%d", r.vars["kms_onboard_port"])
	if c, err := net.Dial("tcp", address); err == nil {
		c.Close()
		t.Errorf("something still listens on %s, want the onboarding service to have ended", address)
	}
}

func TestPlaybookTellsWhatWentWrong(t *testing.T) {
	absent := map[string]string{
		"DSTACK_KMS_CORE_ATTESTATION_PROVIDER":      "guest-agent",
		"DSTACK_KMS_CORE_ATTESTATION_AGENT_ADDRESS": "unix:/nonexistent/dstack.sock",
	}
	tests := []struct {
		name string
		vars map[string]any
		want string
	}{
		{"no binary", map[string]any{"kms_onboard_binary": "/nonexistent/dstack-onboard"}, "/nonexistent/dstack-onboard is not there or not executable"},
		{"no trust domain, automatic", map[string]any{"auto_bootstrap": true, "kms_environment": absent}, "tappd socket not found"},
		{"no trust domain, manual", map[string]any{"kms_environment": absent}, "tappd socket not found"},
		{"refused domain", map[string]any{"kms_domain": "no_such.name"}, "domain"},
		{"unknown setting", map[string]any{"kms_health_retries": 2, "kms_environment": map[string]string{"DSTACK_KMS_RPC_PROT": "1"}}, "did you mean DSTACK_KMS_RPC_PORT?"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newPlaybookRun(t, tt.vars)
			code, out := r.play(t)
			if code == 0 || !strings.Contains(out, tt.want) {
				t.Errorf("status %d, want a failure and %q in:\n%s", code, tt.want, out)
			}
			if entries, err := os.ReadDir(r.certs()); err == nil && len(entries) > 0 {
				t.Errorf("key directory holds %v, want nothing", entries)
			}
			r.refuseListener(t)
		})
	}
}

func TestPlaybookParses(t *testing.T) {
	cmd := exec.Command("ansible-playbook", "-i", "inventory/hosts.yml", "playbooks/bootstrap-kms.yml", "--list-tasks")
	cmd.Dir = "../deploy/ansible"
	out := outputOf(t, cmd)
	if !strings.Contains(out, "Require all eight files") {
		t.Errorf("tasks = %s, want the check of the eight files among them", out)
	}
	vars, err := os.ReadFile("../deploy/ansible/inventory/group_vars/all.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{`kms_domain: "kms.example.com"`, "auto_bootstrap: false"} {
		if !slices.ContainsFunc(strings.Split(string(vars), "\n"), func(l string) bool { return strings.HasPrefix(l, line) }) {
			t.Errorf("group_vars/all.yml has no line %q", line)
		}
	}
}

// outputOf runs a program to its end and returns what it prints.
func outputOf(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}
