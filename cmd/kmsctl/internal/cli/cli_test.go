package cli_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"teekms/cmd/kmsctl/internal/cli"
	"teekms/cmd/kmsctl/internal/kmstest"
	"teekms/cmd/kmsctl/internal/status"
	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// buffer is written by the tool while a test reads it.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func run(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, errs buffer
	code = runTo(ctx, &out, &errs, args...)
	return code, out.String(), errs.String()
}

func runTo(ctx context.Context, stdout, stderr *buffer, args ...string) int {
	return cli.Run(ctx, cli.Environment{
		Args: args, Stdout: stdout, Stderr: stderr, Now: time.Now, Version: "v1.2.3",
		Getenv: func(string) string { return "" },
	})
}

// trust are the flags that believe k's own trust domain.
func trust(k *kmstest.KMS) []string {
	return []string{"--trust-root", k.TD.RootPath(), "--collateral", k.TDDir}
}

func TestUsageErrorsEndWithStatus2AndAHint(t *testing.T) {
	t.Chdir(t.TempDir())
	expectFile := filepath.Join(t.TempDir(), "expect.toml")
	if err := os.WriteFile(expectFile, []byte(`domain = "a"`), 0o644); err != nil {
		t.Fatal(err)
	}
	register, id, hash := strings.Repeat("00", 48), strings.Repeat("00", 20), strings.Repeat("00", 32)
	if err := os.WriteFile("b", nil, 0o644); err != nil { // --ca-cert b
		t.Fatal(err)
	}
	tests := []struct {
		args       string
		want, hint string
	}{
		{"frobnicate", `unknown command "frobnicate"`, "kmsctl"},
		{"verfy", `did you mean verify?`, "kmsctl"},
		{"--frobnicate", "unknown flag: --frobnicate", "kmsctl"},
		{"verify", "exactly one of --dir, --url and --info", "kmsctl verify"},
		{"verify --dir a --url https://b", "exactly one of", "kmsctl verify"},
		{"verify --dir", "flag needs an argument", "kmsctl verify"},
		{"verify certs", `unexpected argument "certs"`, "kmsctl verify"},
		{"verify --dir a --ca-cert b", "--ca-cert goes with --info", "kmsctl verify"},
		{"verify --url kms:9100", "is not of the form https://HOST", "kmsctl verify"},
		{"verify --dir a --server-name b", "--server-name goes with --url", "kmsctl verify"},
		{"verify --url http://a --server-name b", "--server-name goes with https://", "kmsctl verify"},
		{"verify --dir a --trust-root b", "--trust-root needs --collateral or --pccs", "kmsctl verify"},
		{"verify --dir a --collateral b --pccs https://c", "--collateral or --pccs, not both", "kmsctl verify"},
		{"verify --dir a --pccs ftp://c", "making a PCS client", "kmsctl verify"},
		{"verify --dir a --at yesterday", `--at: "yesterday" is not a time`, "kmsctl verify"},
		{"verify --dir a --timeout 0s", "--timeout must be positive", "kmsctl verify"},
		{"verify --dir a --timeout soon", "invalid argument", "kmsctl verify"},
		{"verify --dir a --allow-tcb-status Revoked", `"Revoked" cannot be accepted`, "kmsctl verify"},
		{"verify --dir a --allow-tcb-status outofdate", `"outofdate" cannot be accepted`, "kmsctl verify"},
		{"verify --dir a --expect-mrtd 00", "--expect-mrtd: mrtd: 2 hex digits, want 96", "kmsctl verify"},
		{"verify --dir a --expect-mrtd=", "--expect-mrtd: mrtd: 0 hex digits", "kmsctl verify"},
		{"verify --dir a --expect-rtmr 4=" + register, "is not of the form N=HEX", "kmsctl verify"},
		{"verify --dir a --expect-rtmr " + register, "is not of the form N=HEX", "kmsctl verify"},
		{"verify --dir a --expect-rtmr 1=00", "--expect-rtmr: rtmr1: 2 hex digits", "kmsctl verify"},
		{"verify --dir a --expect-rtmr 1=" + register + " --expect-rtmr 1=" + register, "register 1 is given twice", "kmsctl verify"},
		{"simulator", "--dir is required", "kmsctl simulator"},
		{"simulator --dir a --listen 8081", "--listen: ", "kmsctl simulator"},
		{"simulator --dir a --mrtd 00", "--mrtd: want 96 hex digits", "kmsctl simulator"},
		{"app kye", `unknown command "kye"; did you mean key?`, "kmsctl app"},
		{"app key", "--kms is required", "kmsctl app key"},
		{"app key --kms https://a --ca-cert b", "--app-id is required", "kmsctl app key"},
		{"app key --kms http://a --ca-cert b", "is reached by https://", "kmsctl app key"},
		{"app key --kms https://a?b --ca-cert b", "--kms: ", "kmsctl app key"},
		{"app key --kms https://a --ca-cert b --app-id 00", "--app-id: want 40 hex digits", "kmsctl app key"},
		{"app key --kms https://a --ca-cert b --app-id " + id, "--compose-hash is required", "kmsctl app key"},
		{"app key --kms https://a --ca-cert b --app-id " + id + " --compose-hash " + id, "--compose-hash: want 64 hex digits", "kmsctl app key"},
		{"app key --kms https://a --ca-cert b --app-id " + id + " --compose-hash " + hash + " --instance-id 0", "--instance-id: want 40 hex digits", "kmsctl app key"},
		{"app key --kms https://a --ca-cert b --app-id " + id + " --compose-hash " + hash + " --provider tpm", `"tpm" is not auto, guest-agent`, "kmsctl app key"},
		{"app key --kms https://a --ca-cert b --app-id " + id + " --compose-hash " + hash + " --provider simulator", "--provider simulator needs --simulator-dir", "kmsctl app key"},
		{"app key --kms https://a", "--insecure-accept-any-measurement", "kmsctl app key"},
		{"app key --kms https://a --expect-rtmr 3=" + register, "--insecure-accept-any-measurement", "kmsctl app key"},
		{"app key --kms https://a --server-name b --insecure-accept-any-measurement", "--server-name goes with --ca-cert", "kmsctl app key"},
		{"app key --kms https://a --ca-cert b --trust-root c", "--trust-root needs", "kmsctl app key"},
		{"app key --kms https://a --ca-cert b --pccs ftp://c", "making a PCS client", "kmsctl app key"},
		{"app key --kms https://a --ca-cert b --allow-tcb-status Revoked", `"Revoked" cannot be accepted`, "kmsctl app key"},
		{"app key --kms https://a --ca-cert b --timeout 0s", "--timeout must be positive", "kmsctl app key"},
		{"app cert --kms https://a --csr-version 3", "--csr-version: 3 is neither 1 nor 2", "kmsctl app cert"},
		{"app cert --kms https://a --csr-version 1 --with-app-info", "need --csr-version 2", "kmsctl app cert"},
		{"app cert --kms https://a --not-after later", `--not-after: "later" is not a time`, "kmsctl app cert"},
		{"app env-pubkey --kms https://a --ca-cert b", "--app-id is required", "kmsctl app env-pubkey"},
		{"bootstrap --url http://a", "--domain is required", "kmsctl bootstrap"},
		{"bootstrap --domain a", "--url is required", "kmsctl bootstrap"},
		{"bootstrap --domain a --url a:1", "--url: ", "kmsctl bootstrap"},
		{"onboard --url http://a --domain b", "--source is required", "kmsctl onboard"},
		{"onboard --url http://a --source https://b", "--domain is required", "kmsctl onboard"},
		{"finish", "--url is required", "kmsctl finish"},
		{"finish --url http://a --timeout 0s", "--timeout must be positive", "kmsctl finish"},
		{"meta", "--url is required", "kmsctl meta"},
		{"meta --url ftp://a", "is not of the form", "kmsctl meta"},
		{"seal add tmp", `"tmp" is no seal; those are passphrase, tpm, guest-agent, escrow`, "kmsctl seal add"},
		{"seal remove", "name the seals to remove", "kmsctl seal remove"},
		{"seal remove tpm tpm", "tpm is named twice", "kmsctl seal remove"},
		{"seal status tpm", `unexpected argument "tpm"`, "kmsctl seal status"},
		{"seal open", `unknown command "open"`, "kmsctl seal"},
		{"completion tcsh", `unknown command "tcsh"`, "kmsctl completion"},
		{"completion bash zsh", `unexpected argument "zsh"`, "kmsctl completion bash"},
		{"help frobnicate", `no help about ["frobnicate"]`, "kmsctl help"},
		{"demo --exit now", `unexpected argument "now"`, "kmsctl demo"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			code, stdout, stderr := run(t.Context(), strings.Fields(tt.args)...)
			lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
			if code != status.Usage || stdout != "" || len(lines) != 2 ||
				!strings.HasPrefix(lines[0], "Error: ") || !strings.Contains(lines[0], tt.want) || lines[1] != "Try '"+tt.hint+" --help'." {
				t.Errorf("kmsctl %s = %d, %q, %q, want status 2, an error with %q and a hint at %s", tt.args, code, stdout, stderr, tt.want, tt.hint)
			}
		})
	}
}

func TestOtherErrorsEndWithStatus1AndOneLine(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	empty := filepath.Join(t.TempDir(), "empty.toml")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"no key directory", []string{"verify", "--dir", k.Dir + "/none"}, "no such file or directory"},
		{"no trust root", []string{"verify", "--dir", k.Dir, "--trust-root", k.Dir + "/none", "--collateral", k.TDDir}, "reading trust anchor"},
		{"a trust root that is no root", []string{"verify", "--dir", k.Dir, "--trust-root", k.Dir + "/rpc.crt", "--collateral", k.TDDir}, "not a certificate authority"},
		{"no collateral directory", []string{"verify", "--dir", k.Dir, "--collateral", k.TDDir + "/none"}, "opening collateral directory"},
		{"no expectations", []string{"verify", "--dir", k.Dir, "--expect-file", empty}, "nothing is expected there"},
		{"nobody listens", []string{"verify", "--url", "https://127.0.0.1:1"}, "connection refused"},
		{"nobody listens there either", []string{"meta", "--url", "https://127.0.0.1:1"}, "connection refused"},
		{"nobody onboards", []string{"bootstrap", "--url", "http://127.0.0.1:1", "--domain", "a"}, "calling Onboard.Bootstrap: "},
		{"no token", []string{"finish", "--url", "http://127.0.0.1:1", "--setup-token-file", k.Dir + "/none"}, "--setup-token-file: open "},
		{"no root certificate", []string{"app", "env-pubkey", "--kms", "https://127.0.0.1:1", "--app-id", strings.Repeat("00", 20), "--ca-cert", k.Dir + "/none"}, "--ca-cert: open "},
		{"an address in use", []string{"simulator", "--dir", k.TDDir, "--listen", "192.0.2.1:1"}, "listening: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := run(t.Context(), tt.args...)
			if code != status.Failed || stdout != "" || !strings.HasPrefix(stderr, "Error: ") ||
				!strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("kmsctl %q = %d, %q, %q, want status 1 and one line with %q", tt.args, code, stdout, stderr, tt.want)
			}
		})
	}
}

func TestVerifyEndsWithTheStatusOfItsReport(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	outdated := kmstest.New(t, simtd.Config{})
	if err := outdated.TD.SetEndorsements(simtd.Endorsements{Platform: simtd.Level{Status: attest.OutOfDate}}); err != nil {
		t.Fatal(err)
	}
	pcs := httptest.NewServer(k.TD.Handler())
	t.Cleanup(pcs.Close)
	mrtd := k.TD.Measurements().MRTD
	later := time.Now().Add(40 * 24 * time.Hour).Format(time.RFC3339)
	dir := append([]string{"verify", "--dir", k.Dir}, trust(k)...)
	tests := []struct {
		name string
		args []string
		code int
		want string
	}{
		{"all is well", dir, status.OK, ""},
		{"by a PCS", []string{"verify", "--dir", k.Dir, "--trust-root", k.TD.RootPath(), "--pccs", pcs.URL}, status.OK, ""},
		{"a record alone", append([]string{"verify", "--info", k.Dir + "/bootstrap-info.json"}, trust(k)...), status.OK, ""},
		{"expected", append(dir, "--expect-mrtd", "0x"+hex.EncodeToString(mrtd[:])), status.OK, ""},
		{"a second opinion", append(dir, "--second-opinion"), status.OK, ""},
		{"an accepted status", append([]string{"verify", "--dir", outdated.Dir, "--allow-tcb-status", "OutOfDate"}, trust(outdated)...), status.OK, ""},
		{"a status that is not accepted", append([]string{"verify", "--dir", outdated.Dir}, trust(outdated)...), status.NotVerified, "Evidence does not verify: TCB status: OutOfDate"},
		{"Intel's root", []string{"verify", "--dir", k.Dir, "--collateral", k.TDDir}, status.NotVerified, "Evidence does not verify: PCK certificate chain: "},
		{"not expected", append(dir, "--expect-rtmr", "0="+strings.Repeat("00", 48)), status.Unexpected, "is not what was expected: expectations: rtmr0 is "},
		{"expired collateral", append(dir, "--at", later), status.NoCollateral, "without valid collateral: collateral: "},
		{"no PCS", []string{"verify", "--dir", k.Dir, "--trust-root", k.TD.RootPath(), "--pccs", "http://127.0.0.1:1"}, status.NoCollateral, "connection refused"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := run(t.Context(), tt.args...)
			if code != tt.code || !strings.Contains(stderr, tt.want) || (code == 0) != (stderr == "") || strings.Count(stderr, "\n") > 1 {
				t.Errorf("kmsctl = %d, %q, want status %d and an error with %q", code, stderr, tt.code, tt.want)
			}
			if !strings.Contains(stdout, "✓ quote format") {
				t.Errorf("kmsctl prints %q, want the links", stdout)
			}
			code, stdout, _ = run(t.Context(), append(tt.args, "--json")...)
			var report struct {
				OK       *bool
				ExitCode *int `json:"exit_code"`
			}
			if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != tt.code || *report.ExitCode != tt.code || *report.OK != (code == 0) {
				t.Errorf("kmsctl --json = %d, %s, %v, want exit_code %d", code, stdout, err, tt.code)
			}
		})
	}
}

func TestVerifyGivesUpInTime(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	// A server that accepts connections and never answers.
	silent := httptest.NewUnstartedServer(nil)
	t.Cleanup(func() { silent.Listener.Close() })
	url := "http://" + silent.Listener.Addr().String()
	begin := time.Now()
	code, _, stderr := run(t.Context(), "verify", "--url", url, "--timeout", "100ms")
	if code != status.Failed || !strings.Contains(stderr, "gave up after 100ms") {
		t.Errorf("kmsctl verify --url = %d, %q, want that it gave up", code, stderr)
	}
	code, _, _ = run(t.Context(), "verify", "--dir", k.Dir, "--trust-root", k.TD.RootPath(), "--pccs", url, "--timeout", "100ms")
	if code != status.NoCollateral {
		t.Errorf("kmsctl verify --pccs = %d, want %d", code, status.NoCollateral)
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("both took %v, want little more than 200ms", took)
	}
}

func TestVerifyThatIsInterruptedIsNoVerdict(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	code, stdout, stderr := run(ctx, append([]string{"verify", "--dir", k.Dir}, trust(k)...)...)
	if code != status.Failed || stdout != "" || stderr != "Error: interrupted\n" {
		t.Errorf("kmsctl verify = %d, %q, %q, want status 1 and that it was interrupted", code, stdout, stderr)
	}
}

// simulator starts kmsctl simulator and waits until it has printed all of its
// facts. stop ends it.
func simulator(t *testing.T, complete func(stdout string) bool, args ...string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var stdout, stderr buffer
	done := make(chan int, 1)
	go func() {
		done <- runTo(ctx, &stdout, &stderr, append([]string{"simulator", "--listen", "127.0.0.1:0"}, args...)...)
	}()
	for !complete(stdout.String()) {
		select {
		case code := <-done:
			cancel()
			t.Fatalf("kmsctl simulator ended with %d: %s", code, stderr.String())
		case <-time.After(time.Millisecond):
		}
	}
	return func() {
		cancel()
		if code := <-done; code != status.OK || stderr.String() != "" {
			t.Errorf("kmsctl simulator = %d, %q, want status 0 and silence", code, stderr.String())
		}
	}
}

func TestSimulatorServesUntilItIsStopped(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "td")
	mrtd := strings.Repeat("ab", 48)
	var facts struct {
		Simulated       bool
		URL             string
		TrustRoot       string `json:"trust_root"`
		TrustRootSHA256 string `json:"trust_root_sha256"`
		MRTD            string
	}
	stop := simulator(t, func(stdout string) bool { return json.Unmarshal([]byte(stdout), &facts) == nil }, "--dir", dir, "--mrtd", mrtd, "--json")
	if !facts.Simulated || facts.TrustRoot != filepath.Join(dir, "root-ca.pem") || len(facts.TrustRootSHA256) != 64 || facts.MRTD != mrtd {
		t.Errorf("facts = %+v, want those of the trust domain in %s", facts, dir)
	}
	k := kmstest.New(t, simtd.Config{})
	code, _, errs := run(t.Context(), "verify", "--dir", k.Dir, "--trust-root", facts.TrustRoot, "--pccs", facts.URL)
	if code != status.NotVerified {
		t.Errorf("verify of another trust domain = %d, %q, want %d", code, errs, status.NotVerified)
	}
	stop()
}

func TestSimulatorSaysThatItIsSimulated(t *testing.T) {
	var text string
	simulator(t, func(stdout string) bool { text = stdout; return strings.Contains(stdout, "Serving     http://") }, "--dir", t.TempDir())()
	if !strings.HasPrefix(text, "This trust domain is simulated: ") {
		t.Errorf("kmsctl simulator prints %q, want first that it is simulated", text)
	}
}

func TestHelpAndVersion(t *testing.T) {
	tests := []struct {
		args []string
		want string
	}{
		{nil, "Available Commands:"},
		{[]string{"--help"}, "Exit codes: 0 all is well"},
		{[]string{"verify", "--help"}, "kmsctl verify --url https://kms.example.com:9100"},
		{[]string{"simulator", "--help"}, "kmsctl simulator --dir td"},
		{[]string{"help", "verify"}, "kmsctl verify --url https://kms.example.com:9100"},
		{[]string{"help"}, "Available Commands:"},
		{[]string{"completion"}, "fish"},
		{[]string{"demo", "--help"}, "kmsctl demo --exit"},
		{[]string{"app"}, "env-pubkey"},
		{[]string{"help", "app", "cert"}, "kmsctl app cert --kms"},
		{[]string{"bootstrap", "--help"}, "--setup-token-file"},
		{[]string{"--version"}, "kmsctl v1.2.3 (go"},
	}
	for _, tt := range tests {
		code, stdout, stderr := run(t.Context(), tt.args...)
		if code != status.OK || stderr != "" || !strings.Contains(stdout, tt.want) {
			t.Errorf("kmsctl %q = %d, %q, %q, want %q on standard output", tt.args, code, stdout, stderr, tt.want)
		}
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		code, stdout, stderr := run(t.Context(), "completion", shell)
		if code != status.OK || stderr != "" || !strings.Contains(stdout, "kmsctl") {
			t.Errorf("kmsctl completion %s = %d, %q, want a script", shell, code, stderr)
		}
	}
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"ver"}, "verify\t"},
		{[]string{"help", ""}, "demo\t"},
		{[]string{"verify", "--allow-tcb-status", "Out"}, "OutOfDate\nOutOfDateConfigurationNeeded\n:4"},
		{[]string{"verify", "--expect-rtmr", ""}, "0=\n1=\n2=\n3=\n:4"},
		{[]string{"verify", "--dir", ""}, ":16"},
		{[]string{"verify", "--info", ""}, "json\n:8"},
		{[]string{"verify", "--expect-file", ""}, "toml\njson\n:8"},
		{[]string{"verify", "--url", ""}, "https://\nhttp://\n:4"},
		{[]string{"simulator", "--listen", ""}, "127.0.0.1:8081\n:4"},
		{[]string{"demo", "--dir", ""}, ":16"},
		{[]string{"verify", "--at", ""}, ":4"},
		{[]string{"app", ""}, "cert\t"},
		{[]string{"app", "key", "--provider", ""}, "auto\nguest-agent\nconfigfs\nsimulator\n:4"},
		{[]string{"app", "key", "--simulator-dir", ""}, ":16"},
		{[]string{"app", "cert", "--key", ""}, "key\npem\n:8"},
		{[]string{"bootstrap-start", "--database-type", ""}, "postgresql\nmysql\nsqlite\nsqlite-enc\nredis-findex\n:4"},
		{[]string{"bootstrap-start", "--https-p12-file", ""}, "p12\npfx\n:8"},
		{[]string{"bootstrap-start", "--redis-master-password", ""}, ":4"},
		{[]string{"bootstrap", "--url", ""}, "http://\nhttps://\n:4"},
		{[]string{"verify", "--expect-m"}, "--expect-mrtd\texpect this MRTD, 96 hex digits\n"},
		{[]string{"registry", "list", "--admin-t"}, "--admin-token-file\tfile with the admin token"},
		{[]string{"audit", "prove", ""}, ":4"},
		{[]string{"bootstrap-start", ""}, ":4"},
	}
	for _, tt := range tests {
		_, stdout, _ := run(t.Context(), append([]string{"__complete"}, tt.args...)...)
		if !strings.Contains(stdout, tt.want) {
			t.Errorf("completing %q = %q, want %q", tt.args, stdout, tt.want)
		}
	}
}
