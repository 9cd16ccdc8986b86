package e2e

import (
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestUmask bootstraps under the umasks at both ends.
func TestUmask(t *testing.T) {
	for _, umask := range []string{"000", "077"} {
		t.Run(umask, func(t *testing.T) {
			t.Parallel()
			k := newKMS(t, `auto_bootstrap_domain = "kms.example.com"`, "")
			shell(t, fmt.Sprintf("umask %s; exec %s --config %s", umask, binary(t, "dstack-onboard"), k.Config))
			checkKeyDir(t, k.Certs)
			info, err := os.Stat(k.Certs)
			if err != nil || info.Mode() != fs.ModeDir|0o755 {
				t.Errorf("the directory that was made has mode %v (%v), want 0755", info.Mode(), err)
			}
		})
	}
}

// TestKeyDirectoryPaths has key directories in unusual places.
func TestKeyDirectoryPaths(t *testing.T) {
	const auto = `auto_bootstrap_domain = "kms.example.com"`
	t.Run("a link to a directory", func(t *testing.T) {
		t.Parallel()
		k := newKMS(t, auto, "")
		target := filepath.Join(k.Dir, "data")
		if err := os.Mkdir(target, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, k.Certs); err != nil {
			t.Fatal(err)
		}
		if code, _, stderr := run(t, "dstack-onboard", "--config", k.Config); code != 0 {
			t.Fatalf("exit status %d\n%s", code, stderr)
		}
		checkKeyDir(t, target)
		if info, err := os.Lstat(k.Certs); err != nil || info.Mode()&fs.ModeSymlink == 0 {
			t.Errorf("the link is gone: %v, %v", info, err)
		}
		if info, err := os.Stat(target); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("the mode of the directory was changed: %v, %v", info, err)
		}
		k.serve(t, exampleDomain)
	})
	t.Run("parents that are missing are made", func(t *testing.T) {
		t.Parallel()
		k := newKMS(t, "", "")
		k.Certs = filepath.Join(k.Dir, "etc", "kms", "certs")
		k.write(t, auto, "")
		if code, _, stderr := run(t, "dstack-onboard", "--config", k.Config); code != 0 {
			t.Fatalf("exit status %d\n%s", code, stderr)
		}
		checkKeyDir(t, k.Certs)
	})
	t.Run("a file in its place", func(t *testing.T) {
		t.Parallel()
		k := newKMS(t, auto, "")
		if err := os.WriteFile(k.Certs, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		code, _, stderr := run(t, "dstack-kms", "--config", k.Config)
		last := stderr[strings.LastIndex(strings.TrimSuffix(stderr, "\n"), "\n")+1:]
		if code != 1 || !strings.HasPrefix(last, "Error: ") || !strings.Contains(last, "not a directory") {
			t.Errorf("exit status %d, %s\nwant 1 and not a directory", code, last)
		}
		if text, err := os.ReadFile(k.Certs); err != nil || string(text) != "mine" {
			t.Errorf("the file has changed: %q, %v", text, err)
		}
	})
	t.Run("a file that comes later is an error of the call", func(t *testing.T) {
		t.Parallel()
		k := newKMS(t, "quote_enabled = false", "")
		p := k.onboarding(t, "dstack-kms")
		if err := os.WriteFile(k.Certs, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		a := post(t, k.URL("http")+bootstrapPath, exampleRequest)
		id := a.Header.Get("X-Request-Id")
		wantRefusal(t, a, "internal error (id "+id+")")
		p.logs(t, `ERROR call failed {"request_id": "`+id+`"`)
		p.logs(t, "not a directory")
		if err := os.Remove(k.Certs); err != nil {
			t.Fatal(err)
		}
		if a := post(t, k.URL("http")+bootstrapPath, exampleRequest); a.StatusCode != http.StatusOK {
			t.Errorf("Bootstrap after that = %d %s", a.StatusCode, a.body)
		}
	})
}

// TestTrustRoot logs which one is in force, and refuses one that cannot be
// read.
func TestTrustRoot(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	root := filepath.Join(k.Dir, "root.pem")
	env := []string{
		"DSTACK_KMS_CORE_ATTESTATION_PROVIDER=guest-agent", "DSTACK_KMS_CORE_ATTESTATION_ROOT_CA_TDX=" + root,
		"DSTACK_KMS_CORE_ONBOARD_ENABLED=false",
	}
	start := func(env ...string) (int, string) {
		code, _, stderr := runCmd(t, command(t, env, "dstack-kms", "--config", k.Config))
		return code, stderr
	}
	refused := func(code int, stderr, want string) {
		t.Helper()
		last := stderr[strings.LastIndex(strings.TrimSuffix(stderr, "\n"), "\n")+1:]
		if code != 1 || !strings.HasPrefix(last, "Error: ") || !strings.Contains(last, want) {
			t.Errorf("exit status %d, %s\nwant 1 and %s", code, last, want)
		}
	}
	code, stderr := start(env...)
	refused(code, stderr, "core.attestation.root_ca.tdx")
	if err := os.WriteFile(root, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, stderr = start(env...)
	refused(code, stderr, "core.attestation.root_ca.tdx")
	code, stderr = start(append(env, "DSTACK_KMS_CORE_ATTESTATION_INSECURE_ALLOW_EXTERNAL_TRUST_ANCHORS=false")...)
	refused(code, stderr, "core.attestation.root_ca.tdx: needs core.attestation.insecure_allow_external_trust_anchors = true")

	// Without one it is Intel's.
	code, stderr = start(append(env, "DSTACK_KMS_CORE_ATTESTATION_ROOT_CA_TDX=")...)
	const intel = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
	if code != 1 || !strings.Contains(stderr, `INFO trust root for TDX Evidence {"sha256": "`+intel+`"`) {
		t.Errorf("exit status %d, want Intel's root in the log\n%s", code, stderr)
	}
	if left := tree(t, k.Certs); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestProcessIsSealed looks at what the kernel lets others see of a process
// that holds keys.
func TestProcessIsSealed(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	cmd := k.dropRoot(t, command(t, nil, "dstack-onboard", "--config", k.Config))
	p := startCmd(t, cmd)
	p.ready(t, http.DefaultClient, k.URL("http")+"/health")
	proc := fmt.Sprintf("/proc/%d", p.Process.Pid)
	limits, err := os.ReadFile(proc + "/limits")
	if err != nil {
		t.Fatal(err)
	}
	var fields []string
	for line := range strings.Lines(string(limits)) {
		if rest, ok := strings.CutPrefix(line, "Max core file size"); ok {
			fields = strings.Fields(rest)
		}
	}
	if len(fields) < 2 || fields[0] != "0" || fields[1] != "0" {
		t.Errorf("core file size is limited to %v, want 0", fields)
	}
	// The kernel gives /proc/PID of a process that may not be dumped to root.
	info, err := os.Stat(proc + "/mem")
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 {
		t.Errorf("%s/mem belongs to user %d, want root: the process may be dumped", proc, owner)
	}
}

// TestPeerConfiguration reads a file with every key of both generations of the
// peer, and says once of each that has no effect.
func TestPeerConfiguration(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	text, err := os.ReadFile("testdata/peer.toml")
	if err != nil {
		t.Fatal(err)
	}
	config := strings.NewReplacer("CERTS", k.Certs, "9100", fmt.Sprint(k.Port)).Replace(string(text))
	if err := os.WriteFile(k.Config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := run(t, "dstack-kms", "--check", "--config", k.Config)
	if code != 0 {
		t.Fatalf("exit status %d\n%s%s", code, stdout, stderr)
	}
	k.fill(t, exampleDomain)
	p, client := k.serve(t, exampleDomain)
	if got := metaOf(t, client, k).InsecureSettings; !slices.Equal(got, []string{"core.onboard.quote_enabled", "unsealed_keys"}) {
		t.Errorf("insecure_settings = %v, want core.onboard.quote_enabled and unsealed_keys", got)
	}
	for _, key := range []string{
		"default.workers", "rpc.workers", "rpc.limits", "rpc.tls.key", "rpc.tls.certs", "rpc.tls.mutual.ca_certs",
		"core.subject_postfix", "core.admin_token_hash", "core.sev_snp_key_release", "core.aws_nitro_tpm_key_release",
		"core.attestation.urls.amd_kds",
	} {
		if n := strings.Count(stdout, ": "+key+" has no effect\n"); n != 1 {
			t.Errorf("--check says %d times that %s has no effect, want once\n%s", n, key, stdout)
		}
		if n := strings.Count(p.stderr.String(), fmt.Sprintf("WARN this setting has no effect {\"key\": %q}", key)); n != 1 {
			t.Errorf("the start says %d times that %s has no effect, want once\n%s", n, key, p.stderr)
		}
	}
}
