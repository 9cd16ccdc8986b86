// Package e2e tests the product as its users meet it: whole processes, real
// sockets, a real browser.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for what is to happen, on whatever machine: one that
// is slow, or that is busy with other things for a while.
const patience = time.Minute

// buildDir is where binaries puts what it builds; made and removed by TestMain.
var buildDir string

// binaries builds the three commands once per test run and returns the
// directory they are in.
var binaries = sync.OnceValues(func() (string, error) {
	build := exec.Command("go", "build", "-trimpath", "-o", buildDir+"/", "./cmd/...")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the commands: %w\n%s", err, out)
	}
	// Tests that give up root run them too.
	return buildDir, os.Chmod(buildDir, 0o755)
})

func TestMain(m *testing.M) {
	if os.Getenv(bareServerEnv) != "" {
		fmt.Fprintln(os.Stderr, serveBare())
		os.Exit(1)
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "teekms-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	buildDir = dir
	return servers.Main(m).Run()
}

// binary returns the path of a built command.
func binary(t testing.TB, name string) string {
	t.Helper()
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// process is a command that was started.
type process struct {
	*exec.Cmd
	stderr *output
	stdout *output
	ended  chan struct{}
	err    error // of Wait; valid when ended is closed
}

// output collects what a process writes while others read it.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// start runs a built command and kills it at the end of the test.
func start(t testing.TB, name string, args ...string) *process {
	t.Helper()
	return startCmd(t, exec.Command(binary(t, name), args...))
}

func startCmd(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	ownDatabase(t, cmd)
	p := &process{Cmd: cmd, stderr: &output{}, stdout: &output{}, ended: make(chan struct{})}
	cmd.Stderr, cmd.Stdout = p.stderr, p.stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.ended
		if t.Failed() {
			t.Logf("%s:\n%s%s", cmd, p.stdout, p.stderr)
		}
	})
	return p
}

// ownDatabase gives a server a database beside its configuration file, lest all
// of them share the default one; unless its command line, its environment or its
// file says something about databases.
func ownDatabase(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	at := slices.Index(cmd.Args, "--config")
	if filepath.Base(cmd.Path) != "dstack-kms" || at < 0 || at+1 == len(cmd.Args) || slices.Contains(cmd.Args, "--use-bootstrap-server") {
		return
	}
	file := cmd.Args[at+1]
	text, err := os.ReadFile(file)
	if err != nil || bytes.Contains(text, []byte("[core.database]")) || bytes.Contains(text, []byte("[core.bootstrap_server]")) {
		return
	}
	const names = "DSTACK_KMS_CORE_DATABASE_"
	if slices.ContainsFunc(cmd.Env, func(entry string) bool { return strings.HasPrefix(entry, names) }) {
		return
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	dir := filepath.Join(filepath.Dir(file), "db")
	cmd.Env = append(cmd.Env, names+"PATH="+dir)
	if cmd.SysProcAttr == nil || cmd.SysProcAttr.Credential == nil {
		return
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, unprivileged, unprivileged); err != nil {
		t.Fatal(err)
	}
}

// wait returns the exit status, and fails the test when there is none in time.
func (p *process) wait(t testing.TB, timeout time.Duration) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(timeout):
		t.Fatalf("%s is still running after %v\n%s", p.Cmd, timeout, p.stderr)
	}
	return p.ProcessState.ExitCode()
}

// quick wants what f does to take at most limit, of which f returns how long it
// took. It is tried a few times: what waits for a timeout takes too long every
// time, what was kept waiting by a busy machine does not.
func quick(t testing.TB, limit time.Duration, what string, f func() time.Duration) {
	t.Helper()
	var took time.Duration
	for range 5 {
		if took = f(); took <= limit || t.Failed() {
			return
		}
	}
	t.Errorf("%s took %v, want at most %v", what, took, limit)
}

// terminate sends SIGTERM and waits.
func (p *process) terminate(t testing.TB) int {
	t.Helper()
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	return p.wait(t, patience)
}

// run runs a built command to its end and returns status, standard output and
// standard error.
func run(t testing.TB, name string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return runCmd(t, exec.Command(binary(t, name), args...))
}

func runCmd(t testing.TB, cmd *exec.Cmd) (code int, stdout, stderr string) {
	t.Helper()
	p := startCmd(t, cmd)
	code = p.wait(t, patience)
	return code, p.stdout.String(), p.stderr.String()
}

// portsGiven are the ports that freePort has returned.
var portsGiven sync.Map

// freePort returns a port of the loopback address that nobody listens on, never
// the same twice. It lies below those that the kernel takes for outgoing
// connections, which could take it away before it is used.
func freePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := 10000 + rand.IntN(22000)
		if _, taken := portsGiven.LoadOrStore(port, true); taken {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return port
	}
	t.Fatal("no free port")
	return 0
}

// kmsDir is a place for one KMS: a configuration file, a key directory, a
// software TD.
type kmsDir struct {
	Dir, Config, Certs, TD string
	Port                   int
}

// URL is where the service of that directory listens.
func (k *kmsDir) URL(scheme string) string {
	return fmt.Sprintf("%s://127.0.0.1:%d", scheme, k.Port)
}

// newKMS writes a configuration with the software TD. extra is appended to it,
// after a table header of its own if it needs one; lines of onboard go under
// [core.onboard].
func newKMS(t testing.TB, onboard, extra string) *kmsDir {
	t.Helper()
	dir := t.TempDir()
	k := &kmsDir{
		Dir: dir, Config: filepath.Join(dir, "kms.toml"), Certs: filepath.Join(dir, "certs"),
		TD: filepath.Join(dir, "td"), Port: freePort(t),
	}
	k.write(t, onboard, extra)
	return k
}

func (k *kmsDir) write(t testing.TB, onboard, extra string) {
	t.Helper()
	config := fmt.Sprintf(`
[rpc]
address = "127.0.0.1"
port = %[1]d

[core]
cert_dir = %[2]q

[core.onboard]
address = "127.0.0.1"
port = %[1]d
%[4]s

[core.attestation]
provider = "simulator"
insecure_allow_external_trust_anchors = true

[core.attestation.simulator]
dir = %[3]q

[core.attestation.root_ca]
tdx = %[5]q

%[6]s
`, k.Port, k.Certs, k.TD, onboard, filepath.Join(k.TD, "root-ca.pem"), extra)
	if err := os.WriteFile(k.Config, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
}

// onboarding starts the named command on an empty directory and waits until
// its onboarding service answers.
func (k *kmsDir) onboarding(t testing.TB, command string) *process {
	t.Helper()
	p := start(t, command, "--config", k.Config)
	p.ready(t, http.DefaultClient, k.URL("http")+"/health")
	return p
}

// ready waits until url answers 200.
func (p *process) ready(t testing.TB, client *http.Client, url string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := probe(client, url)
		if err == nil {
			return
		}
		select {
		case <-p.ended:
			t.Fatalf("%s ended: %v\n%s%s", p.Cmd, p.err, p.stdout, p.stderr)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer: %v\n%s", url, err, p.stderr)
		}
	}
}

func probe(client *http.Client, url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// answer is an HTTP answer whose body was read.
type answer struct {
	*http.Response
	body string
}

// post sends a JSON body.
func post(t testing.TB, url, body string) answer {
	t.Helper()
	resp, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return read(t, resp)
}

func get(t testing.TB, client *http.Client, url string) answer {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, resp)
}

func read(t testing.TB, resp *http.Response) answer {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp, string(body)}
}
