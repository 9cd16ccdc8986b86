package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// demoCommand prepares kmsctl demo, whose temporary files go to a directory of
// their own.
func demoCommand(t testing.TB, args ...string) (cmd *exec.Cmd, tmp string) {
	t.Helper()
	binary(t, "dstack-onboard") // kmsctl finds them beside itself
	binary(t, "dstack-kms")
	tmp = t.TempDir()
	return command(t, []string{"TMPDIR=" + tmp}, "kmsctl", append([]string{"demo"}, args...)...), tmp
}

// processesOf returns the command lines in which path stands, by process id.
func processesOf(t testing.TB, path string) map[int]string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]string{}
	for _, f := range files {
		// A process that ends in the meantime is gone.
		b, _ := os.ReadFile(f)
		args := string(bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil && strings.Contains(args, path) {
			found[pid] = args
		}
	}
	return found
}

// leavesNothing waits for the end of every process that path stands for.
func leavesNothing(t testing.TB, path string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		found := processesOf(t, path)
		if len(found) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %v", found)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestDemoExits(t *testing.T) {
	t.Parallel()
	cmd, tmp := demoCommand(t, "--exit")
	begin := time.Now()
	code, stdout, stderr := runCmd(t, cmd)
	t.Logf("kmsctl demo --exit took %v", time.Since(begin).Round(time.Millisecond))
	if code != 0 || stderr != "" {
		t.Errorf("kmsctl demo --exit = %d, %q, want 0 and silence", code, stderr)
	}
	for _, want := range []string{
		"The trust domain is simulated: ", "✓ bootstrap kms.localhost ", "✓ verify the quote ", "✓ quote signature ",
		"✓ second opinion ", "✓ finish setup ", "✓ read GetMeta over TLS ", "✓ verify the running KMS ", "✓ RPC certificate ",
		"✓ get keys as an app ", "✓ get a certificate ", "✓ try it as a changed app ", "denied: compose hash not allowed",
		"✓ onboard a second KMS ", "✓ get the same keys there ", "gives the application the very same keys",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("kmsctl demo does not print %q\n%s", want, stdout)
		}
	}
	if strings.Contains(stdout, "✗") {
		t.Errorf("kmsctl demo prints a ✗\n%s", stdout)
	}
	if left := tree(t, tmp); len(left) != 1 {
		t.Errorf("kmsctl demo leaves %v", left)
	}
	leavesNothing(t, tmp)
}

// stayingUp starts a demonstration and waits until it stays up.
func stayingUp(t testing.TB, args ...string) (p *process, tmp string, up demoUp) {
	t.Helper()
	cmd, tmp := demoCommand(t, append(args, "--json")...)
	p = startCmd(t, cmd)
	for deadline := time.Now().Add(patience); ; {
		lines := strings.Split(strings.TrimSpace(p.stdout.String()), "\n")
		if json.Unmarshal([]byte(lines[len(lines)-1]), &up) == nil && up.URL != "" {
			return p, tmp, up
		}
		if time.Now().After(deadline) {
			t.Fatalf("kmsctl demo does not come up\n%s%s", p.stdout, p.stderr)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// demoUp is the last line of kmsctl demo --json.
type demoUp struct {
	URL, Dir string
	Try      []struct{ What, Command string }
}

// kms is the one server that runs while the demonstration stays up.
func (u demoUp) kms(t testing.TB) *os.Process {
	t.Helper()
	found := processesOf(t, u.Dir)
	for pid, args := range found {
		if len(found) == 1 && strings.Contains(args, "dstack-kms") {
			p, err := os.FindProcess(pid)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
	}
	t.Fatalf("processes of %s = %v, want dstack-kms alone", u.Dir, found)
	return nil
}

func TestDemoStaysUpWithCommandsThatWork(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "it's a demo")
	p, _, up := stayingUp(t, "--dir", dir)
	want := map[string]string{
		"what the KMS says of itself": `"trust_root_sha256"`,
		"the same through Connect":    `"trustRootSha256"`,
		"whether it is ready":         "OK",
		"verify it, running":          "✓ Verified",
		"verify its key directory":    "✓ Verified",
		"get keys as the application": `"disk_crypt_key"`,
	}
	for _, try := range up.Try {
		if strings.HasPrefix(try.Command, "grpcurl") {
			continue // not a tool that is everywhere; gRPC itself is tested elsewhere
		}
		cmd := exec.Command("sh", "-c", try.Command)
		cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(binary(t, "kmsctl"))+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil || want[try.What] == "" || !strings.Contains(string(out), want[try.What]) {
			t.Errorf("%s: %v\n%s\nwant %q in it", try.Command, err, out, want[try.What])
		}
		delete(want, try.What)
	}
	if len(want) > 0 {
		t.Errorf("no command for %v", want)
	}
	if err := p.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t, patience); code != 0 || p.stderr.String() != "" {
		t.Errorf("kmsctl demo ends with %d, %q after Ctrl-C, want 0 and silence", code, p.stderr)
	}
	leavesNothing(t, up.Dir)
	for _, kept := range []string{"kms.toml", "certs/root-ca.crt", "td/root-ca.pem", "dstack-kms.log", "bootstrap-answer.json", "kms-2.toml", "certs-2/root-k256.key", "dstack-kms-2.log"} {
		if _, err := os.Stat(filepath.Join(dir, kept)); err != nil {
			t.Errorf("--dir does not keep %s: %v", kept, err)
		}
	}
	code, _, stderr := run(t, "kmsctl", "demo", "--exit", "--dir", dir)
	if code != 1 || !strings.Contains(stderr, "is not empty") {
		t.Errorf("kmsctl demo in the same directory = %d, %q, want 1 and that it is not empty", code, stderr)
	}
}

func TestDemoThatIsKilledLeavesNoOrphan(t *testing.T) {
	t.Parallel()
	p, tmp, up := stayingUp(t)
	up.kms(t)
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.wait(t, patience)
	leavesNothing(t, tmp)
}

func TestDemoWhoseKMSDiesSaysSo(t *testing.T) {
	t.Parallel()
	p, tmp, up := stayingUp(t)
	if err := up.kms(t).Kill(); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t, patience); code != 1 || !strings.Contains(p.stderr.String(), "Error: dstack-kms ended: signal: killed") {
		t.Errorf("kmsctl demo ends with %d, %q, want 1 and that dstack-kms ended", code, p.stderr)
	}
	if left := tree(t, tmp); len(left) != 1 {
		t.Errorf("kmsctl demo leaves %v", left)
	}
}

func TestDemoWithoutItsProgramsSaysWhereItLooked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	alone := filepath.Join(dir, "kmsctl")
	// A link: a copy could still be open for writing in a process that another
	// test starts at this moment.
	if err := os.Link(binary(t, "kmsctl"), alone); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(alone, "demo", "--exit")
	cmd.Env = []string{"PATH=" + dir, "TMPDIR=" + t.TempDir()}
	code, _, stderr := runCmd(t, cmd)
	if want := "Error: find the programs: dstack-onboard is neither beside " + alone + " nor in PATH"; code != 1 || !strings.Contains(stderr, want) {
		t.Errorf("kmsctl demo = %d, %q, want 1 and %q", code, stderr, want)
	}
	// In PATH they are found, too.
	demo, tmp := demoCommand(t, "--exit")
	demo.Path, demo.Args[0] = alone, alone
	demo.Env = append(demo.Env, "PATH="+filepath.Dir(binary(t, "kmsctl")))
	if code, stdout, stderr := runCmd(t, demo); code != 0 {
		t.Errorf("kmsctl demo with its programs in PATH = %d, %q\n%s", code, stderr, stdout)
	}
	leavesNothing(t, tmp)
}

// TestDemoThatIsInterruptedLeavesNothing interrupts it in each of its steps.
func TestDemoThatIsInterruptedLeavesNothing(t *testing.T) {
	t.Parallel()
	for delay := 5 * time.Millisecond; delay <= 500*time.Millisecond; delay += 45 * time.Millisecond {
		cmd, tmp := demoCommand(t)
		p := startCmd(t, cmd)
		for p.stdout.String() == "" { // before that, signals are not yet handled
			time.Sleep(100 * time.Microsecond)
		}
		time.Sleep(delay)
		if err := p.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		code := p.wait(t, patience)
		up := strings.Contains(p.stdout.String(), "until you press Ctrl-C")
		if up && code != 0 || !up && (code != 1 || !strings.Contains(p.stderr.String(), ": interrupted\n")) {
			t.Errorf("after %v, kmsctl demo ends with %d, %q\n%s", delay, code, p.stderr, p.stdout)
		}
		if left := tree(t, tmp); len(left) != 1 {
			t.Errorf("after %v, kmsctl demo leaves %v", delay, left)
		}
		leavesNothing(t, tmp)
	}
}
