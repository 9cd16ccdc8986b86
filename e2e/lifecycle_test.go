package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/durable"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

// unprivileged is the user id that tests of permissions run as.
const unprivileged = 65534

// command prepares a built command, with env over the environment.
func command(t testing.TB, env []string, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(binary(t, name), args...)
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

// dropRoot makes cmd run without the rights of root, which ignores modes, and
// lets it reach k.
func (k *kmsDir) dropRoot(t testing.TB, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		return cmd
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: unprivileged, Gid: unprivileged}}
	for _, dir := range []string{filepath.Dir(k.Dir), k.Dir} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(k.TD, 0o755); err != nil {
		t.Fatal(err)
	}
	k.giveAway(t, k.TD)
	return cmd
}

// giveAway makes dir and all below it the unprivileged user's.
func (k *kmsDir) giveAway(t testing.TB, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, unprivileged, unprivileged)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fill bootstraps the key directory of k for a domain.
func (k *kmsDir) fill(t testing.TB, domain string) {
	t.Helper()
	env := []string{"DSTACK_KMS_CORE_ONBOARD_AUTO_BOOTSTRAP_DOMAIN=" + domain}
	if code, _, stderr := runCmd(t, command(t, env, "dstack-onboard", "--config", k.Config)); code != 0 {
		t.Fatalf("bootstrap: status %d\n%s", code, stderr)
	}
}

// trusting returns a client that trusts the root of k's key directory alone and
// speaks HTTP/2.
func (k *kmsDir) trusting(t testing.TB, domain string) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: k.tlsClient(t, domain), ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func (k *kmsDir) tlsClient(t testing.TB, domain string) *tls.Config {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(k.file(t, "root-ca.crt")) {
		t.Fatal("root-ca.crt holds no certificate")
	}
	return &tls.Config{RootCAs: roots, ServerName: domain, MinVersion: tls.VersionTLS12}
}

// file reads a file of the key directory.
func (k *kmsDir) file(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(k.Certs, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// serve starts dstack-kms on the complete directory of k.
func (k *kmsDir) serve(t testing.TB, domain string, env ...string) (*process, *http.Client) {
	t.Helper()
	p := startCmd(t, command(t, env, "dstack-kms", "--config", k.Config))
	p.logs(t, "KMS has launched") // it may have to make root-ca.crt first
	client := k.trusting(t, domain)
	p.ready(t, client, k.URL("https")+"/ready")
	return p, client
}

// tree tells mode and digest of everything below dir; it is empty where there
// is no dir.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		all[path] = info.Mode().String()
		if e.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			digest := sha256.Sum256(b)
			all[path] += " " + hex.EncodeToString(digest[:8])
		}
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return all
}

// wantErrorLine checks the last line of standard error of a command that failed.
func wantErrorLine(t testing.TB, code, wantCode int, stderr, want string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
	if last := lines[len(lines)-1]; last != "Error: "+want {
		t.Errorf("standard error ends with\n%s\nwant\nError: %s", last, want)
	}
	if code != wantCode {
		t.Errorf("exit status %d, want %d", code, wantCode)
	}
}

func TestAutoBootstrap(t *testing.T) {
	for _, name := range []string{"dstack-kms", "dstack-onboard"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newKMS(t, `auto_bootstrap_domain = "kms.example.com"`, "")
			code, stdout, stderr := run(t, name, "--config", k.Config)
			if code != 0 || stdout != "" {
				t.Fatalf("exit status %d, standard output %q, want 0 and nothing\n%s", code, stdout, stderr)
			}
			checkKeyDir(t, k.Certs)
			checkTutorialScript(t, k.Certs)
			if !strings.Contains(stderr, "INFO Starting KMS in bootstrap mode\n") || strings.Contains(stderr, "launched") {
				t.Errorf("the log is\n%s", stderr)
			}
			before := tree(t, k.Certs)

			code, _, stderr = run(t, "dstack-onboard", "--config", k.Config)
			if code != 0 || !strings.Contains(stderr, "INFO Bootstrap already completed") {
				t.Errorf("dstack-onboard again: exit status %d, want 0 and Bootstrap already completed\n%s", code, stderr)
			}
			if diff := cmp.Diff(before, tree(t, k.Certs)); diff != "" {
				t.Errorf("dstack-onboard changed the directory:\n%s", diff)
			}

			p, _ := k.serve(t, "kms.example.com")
			after := tree(t, k.Certs)
			delete(before, filepath.Join(k.Certs, "rpc.crt")) // reissued for the same key
			delete(after, filepath.Join(k.Certs, "rpc.crt"))
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("dstack-kms changed the directory:\n%s", diff)
			}
			if code := p.terminate(t); code != 0 {
				t.Errorf("exit status %d after SIGTERM, want 0", code)
			}
		})
	}
}

// TestTwoAutoBootstraps starts both at once on one directory: one bootstraps,
// the other finds it done.
func TestTwoAutoBootstraps(t *testing.T) {
	t.Parallel()
	k := newKMS(t, `auto_bootstrap_domain = "kms.example.com"`, "")
	k.fillTD(t)
	first := start(t, "dstack-onboard", "--config", k.Config)
	second := start(t, "dstack-onboard", "--config", k.Config)
	if a, b := first.wait(t, time.Minute), second.wait(t, time.Minute); a != 0 || b != 0 {
		t.Errorf("exit statuses %d and %d, want 0 and 0", a, b)
	}
	both := first.stderr.String() + second.stderr.String()
	if n := strings.Count(both, "INFO Bootstrap completed"); n != 1 {
		t.Errorf("%d bootstraps completed, want 1", n)
	}
	if !strings.Contains(both, "Bootstrap already completed") {
		t.Error("nobody said that it was done already")
	}
	checkKeyDir(t, k.Certs)
}

// fillTD makes the software TD, so that its making is over before a test.
func (k *kmsDir) fillTD(t testing.TB) {
	t.Helper()
	env := []string{
		"DSTACK_KMS_CORE_CERT_DIR=" + filepath.Join(k.Dir, "other"),
		"DSTACK_KMS_CORE_ONBOARD_ENABLED=false",
	}
	if code, _, stderr := runCmd(t, command(t, env, "dstack-onboard", "--config", k.Config)); code != 1 {
		t.Fatalf("exit status %d, want 1\n%s", code, stderr)
	}
}

// TestTroubleshooting sees every failure of a first start, with the text that
// operators look for, and that nothing is left behind.
func TestTroubleshooting(t *testing.T) {
	const auto = "auto_bootstrap_domain = \"kms.example.com\"\n"
	noAgent := "DSTACK_KMS_CORE_ATTESTATION_PROVIDER=guest-agent"

	t.Run("permission denied names the file, unattended", func(t *testing.T) {
		t.Parallel()
		k := newKMS(t, auto, "")
		k.forbiddenDir(t, k.Certs)
		before := tree(t, k.Certs)
		code, _, stderr := runCmd(t, k.dropRoot(t, command(t, nil, "dstack-kms", "--config", k.Config)))
		wantErrorLine(t, code, 1, stderr, "Permission denied: "+k.Certs+"/root-ca.key")
		if diff := cmp.Diff(before, tree(t, k.Certs)); diff != "" {
			t.Errorf("something was left behind:\n%s", diff)
		}
	})
	t.Run("permission denied for a directory that is missing", func(t *testing.T) {
		t.Parallel()
		k := newKMS(t, auto, "")
		parent := filepath.Join(k.Dir, "etc")
		k.Certs = filepath.Join(parent, "kms", "certs")
		k.write(t, auto, "")
		k.forbiddenDir(t, parent)
		before := tree(t, parent)
		code, _, stderr := runCmd(t, k.dropRoot(t, command(t, nil, "dstack-kms", "--config", k.Config)))
		wantErrorLine(t, code, 1, stderr, "Permission denied: "+k.Certs+"/root-ca.key")
		if diff := cmp.Diff(before, tree(t, parent)); diff != "" {
			t.Errorf("something was left behind:\n%s", diff)
		}
	})
	t.Run("permission denied names the file, through the API", func(t *testing.T) {
		t.Parallel()
		k := newKMS(t, "", "")
		k.forbiddenDir(t, k.Certs)
		p := startCmd(t, k.dropRoot(t, command(t, nil, "dstack-kms", "--config", k.Config)))
		p.ready(t, http.DefaultClient, k.URL("http")+"/health")
		before := tree(t, k.Certs)
		wantRefusal(t, post(t, k.URL("http")+"/prpc/Onboard.Bootstrap?json", `{"domain":"kms.example.com"}`),
			"Permission denied: "+k.Certs+"/root-ca.key")
		if diff := cmp.Diff(before, tree(t, k.Certs)); diff != "" {
			t.Errorf("something was left behind:\n%s", diff)
		}
		// With the permission given, as the tutorial says, the next try succeeds.
		k.giveAway(t, k.Certs)
		if err := os.Chmod(k.Certs, 0o755); err != nil {
			t.Fatal(err)
		}
		if a := post(t, k.URL("http")+"/prpc/Onboard.Bootstrap?json", `{"domain":"kms.example.com"}`); a.StatusCode != http.StatusOK {
			t.Errorf("Bootstrap with permission = %d %s", a.StatusCode, a.body)
		}
	})
	t.Run("no attester, unattended", func(t *testing.T) {
		t.Parallel()
		for _, provider := range []string{"auto", "guest-agent"} {
			k := newKMS(t, auto, "")
			env := []string{
				"DSTACK_KMS_CORE_ATTESTATION_PROVIDER=" + provider,
				"DSTACK_AGENT_ADDRESS=unix:" + filepath.Join(k.Dir, "none.sock"),
				"DSTACK_KMS_CORE_ATTESTATION_ROOT_CA_TDX=",
			}
			code, _, stderr := runCmd(t, command(t, env, "dstack-kms", "--config", k.Config))
			wantErrorLine(t, code, 1, stderr, "tappd socket not found")
			if left := tree(t, k.Certs); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
			env = append(env, "DSTACK_KMS_CORE_ONBOARD_QUOTE_ENABLED=false")
			code, _, stderr = runCmd(t, command(t, env, "dstack-kms", "--config", k.Config))
			if code != 0 {
				t.Errorf("without quotes: exit status %d\n%s", code, stderr)
			}
			if !strings.Contains(string(k.file(t, "bootstrap-info.json")), `"quote":"","eventlog":""}`) {
				t.Errorf("bootstrap-info.json = %s, want empty quote and eventlog", k.file(t, "bootstrap-info.json"))
			}
		}
	})
	t.Run("no attester, through the API", func(t *testing.T) {
		t.Parallel()
		k := newKMS(t, "", "")
		p := startCmd(t, command(t, []string{
			noAgent, "DSTACK_AGENT_ADDRESS=unix:" + filepath.Join(k.Dir, "none.sock"), "DSTACK_KMS_CORE_ATTESTATION_ROOT_CA_TDX=",
		}, "dstack-kms", "--config", k.Config))
		p.ready(t, http.DefaultClient, k.URL("http")+"/health")
		wantRefusal(t, post(t, k.URL("http")+"/prpc/Onboard.Bootstrap?json", `{"domain":"kms.example.com"}`), "tappd socket not found")
		wantRefusal(t, get(t, http.DefaultClient, k.URL("http")+"/prpc/GetAttestationInfo"), "tappd socket not found")
		if left := tree(t, k.Certs); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	t.Run("an empty quote reads as 0x", func(t *testing.T) {
		t.Parallel()
		k := newKMS(t, "quote_enabled = false", "")
		k.onboarding(t, "dstack-kms")
		a := post(t, k.URL("http")+"/prpc/Onboard.Bootstrap?json", `{"domain":"kms.example.com"}`)
		if !strings.HasSuffix(a.body, `,"quote":"0x","eventlog":"0x"}`) {
			t.Errorf("Bootstrap = %d %s, want quote and eventlog 0x", a.StatusCode, a.body)
		}
	})
}

// forbiddenDir makes a directory that the unprivileged user may not write.
func (k *kmsDir) forbiddenDir(t testing.TB, dir string) {
	t.Helper()
	mode := fs.FileMode(0o755)
	if os.Geteuid() != 0 { // then it is the owner
		mode = 0o555
	}
	if err := os.Mkdir(dir, mode); err != nil {
		t.Fatal(err)
	}
}

func TestAddressInUse(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", k.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want := fmt.Sprintf("Address already in use (os error 98): 127.0.0.1:%d", k.Port)
	for _, name := range []string{"dstack-kms", "dstack-onboard"} {
		code, _, stderr := run(t, name, "--config", k.Config)
		wantErrorLine(t, code, 1, stderr, want)
		if left := tree(t, k.Certs); len(left) != 0 {
			t.Errorf("%s left behind: %v", name, left)
		}
	}
	k.fill(t, "kms.example.com")
	before := tree(t, k.Certs)
	code, _, stderr := run(t, "dstack-kms", "--config", k.Config)
	wantErrorLine(t, code, 1, stderr, want)
	if diff := cmp.Diff(before, tree(t, k.Certs)); diff != "" {
		t.Errorf("a start on a taken address changed the directory:\n%s", diff)
	}
}

func TestOnboardingSwitchedOff(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"dstack-kms", "dstack-onboard"} {
		k := newKMS(t, "enabled = false", "")
		code, _, stderr := run(t, name, "--config", k.Config)
		wantErrorLine(t, code, 1, stderr, "the key directory "+k.Certs+" is empty and core.onboard.enabled is false: "+
			"restore the keys, or set core.onboard.enabled = true to bootstrap")
		if left := tree(t, k.Certs); len(left) != 0 {
			t.Errorf("%s left behind: %v", name, left)
		}
	}
}

// TestForeignEntries leaves alone what is not ours, and keeps the mode of a
// directory that exists.
func TestForeignEntries(t *testing.T) {
	t.Parallel()
	k := newKMS(t, `auto_bootstrap_domain = "kms.example.com"`, "")
	for _, dir := range []string{k.Certs, filepath.Join(k.Certs, "lost+found")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(k.Certs, "README"), []byte("mine"), 0o640); err != nil {
		t.Fatal(err)
	}
	before := tree(t, k.Certs)
	code, _, stderr := run(t, "dstack-kms", "--config", k.Config)
	if code != 0 || !strings.Contains(stderr, `"entries": ["README", "lost+found"]`) {
		t.Fatalf("exit status %d, want 0 and a line about the entries\n%s", code, stderr)
	}
	after := tree(t, k.Certs)
	for path := range keyDirModes {
		if _, made := after[filepath.Join(k.Certs, path)]; !made {
			t.Errorf("%s was not made", path)
		}
		delete(after, filepath.Join(k.Certs, path))
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("what is not ours has changed:\n%s", diff)
	}
}

// TestDamagedDirectory removes files and starts again.
func TestDamagedDirectory(t *testing.T) {
	original := newKMS(t, "", "")
	original.fill(t, "kms.example.com")
	all := map[string][]byte{}
	for name := range keyDirModes {
		all[name] = original.file(t, name)
	}
	// damaged returns a KMS of its own on a copy without some of the files.
	damaged := func(t *testing.T, onboard string, missing ...string) *kmsDir {
		k := newKMS(t, onboard, "")
		if err := os.Mkdir(k.Certs, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, content := range all {
			if err := os.WriteFile(filepath.Join(k.Certs, name), content, keyDirModes[name]); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range missing {
			if err := os.Remove(filepath.Join(k.Certs, name)); err != nil {
				t.Fatal(err)
			}
		}
		return k
	}

	for _, missing := range []string{"root-ca.key", "root-k256.key"} {
		t.Run("without "+missing+" it is refused", func(t *testing.T) {
			t.Parallel()
			k := damaged(t, `auto_bootstrap_domain = "kms.example.com"`, missing)
			before := tree(t, k.Certs)
			for _, name := range []string{"dstack-kms", "dstack-onboard"} {
				code, _, stderr := run(t, name, "--config", k.Config)
				last := stderr[strings.LastIndex(strings.TrimSuffix(stderr, "\n"), "\n")+1:]
				for _, want := range []string{"Error: ", k.Certs + "/" + missing + " missing", "restore from a backup"} {
					if code != 1 || !strings.Contains(last, want) {
						t.Errorf("%s: exit status %d, %s\nwant 1 and %q", name, code, last, want)
					}
				}
			}
			if diff := cmp.Diff(before, tree(t, k.Certs)); diff != "" {
				t.Errorf("the directory has changed:\n%s", diff)
			}
		})
	}
	const auto = `auto_bootstrap_domain = "kms.example.com"`
	tests := []struct {
		name, onboard string
		missing       []string
	}{
		{"rpc.crt", auto, []string{"rpc.crt"}},
		{"rpc.key", "", []string{"rpc.key"}},
		{"root-ca.crt", "", []string{"root-ca.crt"}},
		{"the temporary CA", "", []string{"tmp-ca.crt", "tmp-ca.key"}},
		{"the certificate of the temporary CA", "", []string{"tmp-ca.crt"}},
		{"all but the root keys and the record", auto, []string{"rpc.crt", "rpc.key", "root-ca.crt", "tmp-ca.crt", "tmp-ca.key"}},
	}
	for _, tt := range tests {
		t.Run("without "+tt.name+" it is made again", func(t *testing.T) {
			t.Parallel()
			k := damaged(t, tt.onboard, tt.missing...)
			p, client := k.serve(t, "kms.example.com")
			checkKeyDir(t, k.Certs)
			checkTutorialCommands(t, k.Certs)
			for _, name := range []string{"root-ca.key", "root-k256.key", "bootstrap-info.json"} {
				if string(k.file(t, name)) != string(all[name]) {
					t.Errorf("%s has changed", name)
				}
			}
			if !strings.Contains(p.stderr.String(), "made files of the key directory again") {
				t.Errorf("the log does not tell of the repair:\n%s", p.stderr)
			}
			if info := metaOf(t, client, k).BootstrapInfo; info == nil {
				t.Error("GetMeta tells no bootstrap_info")
			}
		})
	}
	t.Run("without rpc.crt and a domain it is refused", func(t *testing.T) {
		t.Parallel()
		k := damaged(t, "", "rpc.crt")
		code, _, stderr := run(t, "dstack-kms", "--config", k.Config)
		wantErrorLine(t, code, 1, stderr, k.Certs+"/rpc.crt has no name that could be read: "+
			"set core.onboard.auto_bootstrap_domain to the domain of this KMS")
	})
	t.Run("without bootstrap-info.json it serves and says so", func(t *testing.T) {
		t.Parallel()
		k := damaged(t, "", "bootstrap-info.json")
		p, client := k.serve(t, "kms.example.com")
		if info := metaOf(t, client, k).BootstrapInfo; info != nil {
			t.Errorf("bootstrap_info = %v, want null", info)
		}
		if !strings.Contains(p.stderr.String(), "WARN the key directory has no bootstrap-info.json") {
			t.Errorf("the log does not warn:\n%s", p.stderr)
		}
		if _, err := os.Stat(filepath.Join(k.Certs, "bootstrap-info.json")); !os.IsNotExist(err) {
			t.Errorf("bootstrap-info.json was made again (%v)", err)
		}
	})
	t.Run("a record of other keys is refused", func(t *testing.T) {
		t.Parallel()
		other := newKMS(t, "quote_enabled = false", "")
		other.fill(t, "kms.example.com")
		k := damaged(t, "")
		if err := os.WriteFile(filepath.Join(k.Certs, "bootstrap-info.json"), other.file(t, "bootstrap-info.json"), 0o644); err != nil {
			t.Fatal(err)
		}
		code, _, stderr := run(t, "dstack-kms", "--config", k.Config)
		wantErrorLine(t, code, 1, stderr, k.Certs+"/bootstrap-info.json is about other keys than root-ca.key and root-k256.key: "+
			"one of the three is not from this directory; restore it from a backup")
	})
	t.Run("the configured domain wins", func(t *testing.T) {
		t.Parallel()
		k := damaged(t, `auto_bootstrap_domain = "new.example.com"`)
		p, client := k.serve(t, "new.example.com")
		if info := metaOf(t, client, k).BootstrapInfo; info == nil {
			t.Error("GetMeta tells no bootstrap_info")
		}
		p.logs(t, `{"domain": "new.example.com"`)
	})
	t.Run("a peer's directory is taken over", func(t *testing.T) {
		t.Parallel()
		testAdoption(t, damaged(t, "", "bootstrap-info.json", "rpc.crt", "tmp-ca.crt"), all)
	})
	t.Run("read-only it serves", func(t *testing.T) {
		t.Parallel()
		testReadOnly(t, damaged(t, ""), all)
	})
}

// testAdoption gives k the form in which another KMS writes its directory:
// record in hex, the domain in a file, open modes.
func testAdoption(t *testing.T, k *kmsDir, all map[string][]byte) {
	var ours map[string][]byte // base64 in JSON is what []byte reads
	if err := json.Unmarshal(all["bootstrap-info.json"], &ours); err != nil {
		t.Fatal(err)
	}
	theirs := fmt.Sprintf(`{"ca_pubkey":"%x","k256_pubkey":"%x","quote":"%x","eventlog":"%x"}`,
		ours["ca_pubkey"], ours["k256_pubkey"], ours["quote"], ours["eventlog"])
	for name, content := range map[string]string{
		"bootstrap-info.json": theirs, "rpc-domain": "kms.peer.example", "tmp-ca.crt": string(all["tmp-ca.crt"]),
	} {
		if err := os.WriteFile(filepath.Join(k.Certs, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"root-ca.key", "root-k256.key", "rpc.key", "tmp-ca.key"} {
		if err := os.Chmod(filepath.Join(k.Certs, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p, client := k.serve(t, "kms.peer.example")
	info := metaOf(t, client, k).BootstrapInfo
	if info == nil || info.CAPubkey != hex.EncodeToString(ours["ca_pubkey"]) || info.Quote != hex.EncodeToString(ours["quote"]) {
		t.Errorf("bootstrap_info is not the peer's record: %.200v", info)
	}
	for _, name := range []string{"root-ca.key", "root-k256.key", "rpc.key", "tmp-ca.key"} {
		stat, err := os.Stat(filepath.Join(k.Certs, name))
		if err != nil || stat.Mode() != 0o600 {
			t.Errorf("%s has mode %v (%v), want 0600", name, stat.Mode(), err)
		}
		if string(k.file(t, name)) != string(all[name]) {
			t.Errorf("%s has changed", name)
		}
	}
	if got := string(k.file(t, "bootstrap-info.json")); got != theirs {
		t.Error("the peer's record was rewritten")
	}
	if !strings.Contains(p.stderr.String(), "a key file was open to other users") {
		t.Errorf("the log does not tell of the modes:\n%s", p.stderr)
	}
}

// testReadOnly serves from a directory that the process cannot write.
func testReadOnly(t *testing.T, k *kmsDir, all map[string][]byte) {
	for name := range all {
		path := filepath.Join(k.Certs, name)
		k.giveAway(t, path)
		if err := os.Chmod(path, keyDirModes[name]&^0o222); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(k.Certs, 0o555); err != nil {
		t.Fatal(err)
	}
	before := tree(t, k.Certs)
	p := startCmd(t, k.dropRoot(t, command(t, nil, "dstack-kms", "--config", k.Config)))
	client := k.trusting(t, "kms.example.com")
	p.ready(t, client, k.URL("https")+"/ready")
	served := get(t, client, k.URL("https")+"/health").TLS.PeerCertificates[0]
	if onDisk := parseCertificate(t, all["rpc.crt"]); served.Equal(onDisk) {
		t.Error("the certificate on disk is served, want one reissued in memory")
	}
	if diff := cmp.Diff(before, tree(t, k.Certs)); diff != "" {
		t.Errorf("the directory has changed:\n%s", diff)
	}
	p.logs(t, "WARN the RPC certificate is renewed in memory only")
}

// TestSignalsWhileOnboarding ends an onboarding service that nobody used.
func TestSignalsWhileOnboarding(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			k := newKMS(t, "", "")
			p := k.onboarding(t, "dstack-onboard")
			silent, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", k.Port))
			if err != nil {
				t.Fatal(err)
			}
			defer silent.Close()
			begin := time.Now()
			if err := p.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			if code := p.wait(t, 10*time.Second); code != 0 {
				t.Errorf("exit status %d, want 0", code)
			}
			if took := time.Since(begin); took > 2*time.Second {
				t.Errorf("ending took %v", took)
			}
			if left := tree(t, k.Certs); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

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
	if got := metaOf(t, client, k).InsecureSettings; !slices.Equal(got, []string{"core.onboard.quote_enabled"}) {
		t.Errorf("insecure_settings = %v, want core.onboard.quote_enabled alone", got)
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

// failing is a file system on which, from the moment that a file gets its final
// name, nothing can be moved or removed any more.
type failing struct {
	durable.OS
	at     string
	failed bool
}

var errPulled = errors.New("the plug is pulled")

func (f *failing) broken(name string) bool {
	f.failed = f.failed || filepath.Base(name) == f.at
	return f.failed
}

func (f *failing) Rename(from, to string) error {
	if f.broken(to) {
		return errPulled
	}
	return f.OS.Rename(from, to)
}

func (f *failing) RenameNew(from, to string) error {
	if f.broken(to) {
		return errPulled
	}
	return f.OS.RenameNew(from, to)
}

func (f *failing) Remove(name string) error {
	if f.failed {
		return errPulled
	}
	return f.OS.Remove(name)
}

// TestInterruptedBootstrap starts on what a bootstrap leaves that was cut off
// while its files got their names: it is completed, with the same keys.
func TestInterruptedBootstrap(t *testing.T) {
	for at := range keyDirModes {
		t.Run("at "+at, func(t *testing.T) {
			t.Parallel()
			k := newKMS(t, "", "")
			store, err := keystore.Open(keystore.Config{Dir: k.Certs, FS: &failing{at: at}})
			if err != nil {
				t.Fatal(err)
			}
			roots, err := keys.NewRoots()
			if err != nil {
				t.Fatal(err)
			}
			info := &keystore.Info{CAPublic: roots.CAPublic(), K256Public: roots.K256Public()}
			bundle, err := keystore.NewBundle(roots, exampleDomain, info, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if err := store.Commit(t.Context(), bundle); !errors.Is(err, errPulled) {
				t.Fatalf("Commit = %v, want %v", err, errPulled)
			}
			if len(tree(t, k.Certs)) == len(keyDirModes)+1 {
				t.Fatal("the bootstrap was not interrupted")
			}
			if at > "rpc" { // half of the cases each
				code, _, stderr := run(t, "dstack-onboard", "--config", k.Config)
				if code != 0 || !strings.Contains(stderr, "INFO Bootstrap already completed") {
					t.Errorf("dstack-onboard: exit status %d, want 0\n%s", code, stderr)
				}
				checkKeyDir(t, k.Certs)
			}
			_, client := k.serve(t, exampleDomain)
			checkKeyDir(t, k.Certs)
			if got, want := metaOf(t, client, k).BootstrapInfo, hex.EncodeToString(roots.CAPublic()); got == nil || got.CAPubkey != want {
				t.Errorf("bootstrap_info = %v, want the keys that were interrupted, %s", got, want)
			}
		})
	}
}

// TestRemainsOfAnInterruptedBootstrap starts on a stage that was never
// committed: it is as if nothing had been.
func TestRemainsOfAnInterruptedBootstrap(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	stage := filepath.Join(k.Certs, ".stage")
	if err := os.MkdirAll(stage, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(stage, "root-ca.key"), []byte("half a k"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := k.onboarding(t, "dstack-kms")
	p.logs(t, "INFO Bootstrap required - keys not found")
	if left := tree(t, k.Certs); len(left) != 1 {
		t.Errorf("the directory holds %v, want nothing", left)
	}
	checkBootstrapReply(t, k, post(t, k.URL("http")+bootstrapPath, exampleRequest).body)
	checkKeyDir(t, k.Certs)
}

// TestWritesThatFail bootstraps where the kernel refuses large files: the
// record of the bootstrap, the largest, does not fit.
func TestWritesThatFail(t *testing.T) {
	t.Parallel()
	k := newKMS(t, `auto_bootstrap_domain = "kms.example.com"`, "")
	k.fillTD(t)
	limited := exec.Command("bash", "-c", "ulimit -f 4; exec "+binary(t, "dstack-kms")+" --config "+k.Config)
	code, _, stderr := runCmd(t, limited)
	wantErrorLine(t, code, 1, stderr, "committing the key directory: writing "+k.Certs+"/bootstrap-info.json: file too large")
	if left := tree(t, k.Certs); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if code, _, stderr := run(t, "dstack-kms", "--config", k.Config); code != 0 {
		t.Errorf("without the limit: exit status %d\n%s", code, stderr)
	}
	checkKeyDir(t, k.Certs)
}

// TestReplicasOnOneDirectory starts several at once: each reissues rpc.crt, and
// none is in the way of another.
func TestReplicasOnOneDirectory(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "quote_enabled = false", "")
	k.fill(t, exampleDomain)
	replicas := map[*kmsDir]*process{}
	for range 4 {
		r := *k
		env := []string{fmt.Sprintf("DSTACK_KMS_RPC_PORT=%d", r.movePort(t))}
		replicas[&r] = startCmd(t, command(t, env, "dstack-kms", "--config", k.Config))
	}
	told := map[string]int{}
	for r, p := range replicas {
		client := k.trusting(t, exampleDomain)
		p.ready(t, client, r.URL("https")+"/ready")
		told[get(t, client, r.URL("https")+"/prpc/GetMeta").body]++
	}
	if len(told) != 1 {
		t.Errorf("the replicas tell %d different things, want one", len(told))
	}
	checkKeyDir(t, k.Certs)
	checkTutorialCommands(t, k.Certs)
}

// TestBootstrapAgain follows the tutorial to other keys, and back to the backup
// that it has one make first.
func TestBootstrapAgain(t *testing.T) {
	t.Parallel()
	k := newKMS(t, `auto_bootstrap_domain = "kms.example.com"`, "")
	k.fill(t, exampleDomain)
	first := k.file(t, "root-ca.key")
	shell(t, fmt.Sprintf("cp -r %[1]s %[1]s.backup && rm -f %[1]s/*", k.Certs))
	if left := tree(t, k.Certs); len(left) != 1 {
		t.Fatalf("rm -f left %v", left)
	}
	if code, _, stderr := run(t, "dstack-kms", "--config", k.Config); code != 0 {
		t.Fatalf("exit status %d\n%s", code, stderr)
	}
	if string(k.file(t, "root-ca.key")) == string(first) {
		t.Error("the root key is the old one")
	}
	shell(t, fmt.Sprintf("rm -f %[1]s/* && cp -r %[1]s.backup/. %[1]s", k.Certs))
	_, client := k.serve(t, exampleDomain)
	if string(k.file(t, "root-ca.key")) != string(first) {
		t.Error("the root key is not that of the backup")
	}
	if metaOf(t, client, k).BootstrapInfo == nil {
		t.Error("GetMeta tells no bootstrap_info")
	}
	checkKeyDir(t, k.Certs)
}
