package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

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
	if a, b := first.wait(t, patience), second.wait(t, patience); a != 0 || b != 0 {
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

// TestSignalsWhileOnboarding ends an onboarding service that nobody used.
func TestSignalsWhileOnboarding(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			quick(t, 2*time.Second, "ending", func() time.Duration {
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
				if code := p.wait(t, patience); code != 0 {
					t.Errorf("exit status %d, want 0", code)
				}
				took := time.Since(begin)
				if left := tree(t, k.Certs); len(left) != 0 {
					t.Errorf("left behind: %v", left)
				}
				return took
			})
		})
	}
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
