package cli_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"teekms/cmd/kmsctl/internal/cli"
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
		{"add guest_agent", status.Failed, "", "core.seal does not configure guest-agent"},
		{"add guest_agent guest-agent", status.Usage, "", "guest-agent is named twice"},
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

// The files are sealed to a passphrase alone, which is changed.
func TestSealTakesTheOldPassphrase(t *testing.T) {
	config, secret, _ := sealedWorld(t)
	seal := func(stdin string, args ...string) (int, string) {
		var out, errs strings.Builder
		code := cli.Run(t.Context(), cli.Environment{
			Args: append([]string{"seal", "--config", config}, args...), Stdin: strings.NewReader(stdin),
			Stdout: &out, Stderr: &errs, Getenv: func(string) string { return "" }, Now: time.Now, Version: "v1.2.3",
		})
		if all := out.String() + errs.String(); strings.Contains(all, "canary") {
			t.Errorf("kmsctl seal %q shows a passphrase: %s", args, all)
		}
		return code, errs.String()
	}
	put := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if code, errs := seal("", "add", "passphrase"); code != status.OK {
		t.Fatalf("kmsctl seal add = %d, %s", code, errs)
	}
	old := filepath.Join(filepath.Dir(config), "old")
	put(old, "canary\r\n")
	put(secret, "second canary\n")
	steps := []struct {
		stdin, args string
		code        int
		stderr      string
	}{
		{"", "status", status.Failed, "kmsctl seal rotate --old-passphrase-file FILE"},
		{"", "rotate", status.Failed, "passphrase: wrong passphrase"},
		{"", "rotate --old-passphrase-file " + secret, status.Failed, "passphrase: the old one: wrong passphrase"},
		{"", "rotate --old-passphrase-file /nonexistent", status.Failed, "--old-passphrase-file: open /nonexistent: no such file"},
		{"", "rotate --old-passphrase-file -", status.Failed, "--old-passphrase-file: standard input is empty"},
		{"a\nb\n", "rotate --old-passphrase-file -", status.Failed, "--old-passphrase-file: standard input has more than one line"},
		{"", "status --old-passphrase-file " + old, status.Usage, "unknown flag"},
		{"", "rotate --old-passphrase-file " + old, status.OK, "scrypt takes a while"},
		{"", "status", status.OK, "Warning: the files are sealed with the work factor 10"},
		{"", "rotate --old-passphrase-file " + old, status.OK, "scrypt takes a while"}, // not needed any more
	}
	for _, step := range steps {
		if code, errs := seal(step.stdin, strings.Fields(step.args)...); code != step.code || !strings.Contains(errs, step.stderr) {
			t.Errorf("kmsctl seal %s = %d, %q, want %d, %q", step.args, code, errs, step.code, step.stderr)
		}
	}
	// The other verbs write everything anew too.
	put(secret, "third canary\n")
	if code, errs := seal("second canary", "remove", "escrow", "--old-passphrase-file", "-"); code != status.OK {
		t.Errorf("kmsctl seal remove = %d, %s", code, errs)
	}
	put(secret, "fourth canary\n")
	if code, errs := seal("third canary\n", "add", "--old-passphrase-file", "-"); code != status.OK {
		t.Errorf("kmsctl seal add = %d, %s", code, errs)
	}
	if code, errs := seal("", "status"); code != status.OK {
		t.Errorf("kmsctl seal status = %d, %s", code, errs)
	}
}

func TestSealNamesAreCompleted(t *testing.T) {
	for args, want := range map[string]string{
		"add ":               "passphrase tpm guest-agent escrow",
		"remove ":            "passphrase tpm guest-agent escrow",
		"add tpm escrow ":    "passphrase guest-agent",
		"remove passphrase ": "tpm guest-agent escrow",
		"rotate ":            "",
		"status ":            "",
	} {
		fields := strings.Split(args, " ")
		code, stdout, stderr := run(t.Context(), append([]string{"__complete", "seal"}, fields...)...)
		lines := strings.Split(strings.TrimSpace(stdout), "\n")
		got := strings.Join(lines[:len(lines)-1], " ")
		if code != status.OK || got != want {
			t.Errorf("completion of kmsctl seal %q = %d, %q, %s, want %q", args, code, got, stderr, want)
		}
		if directive := lines[len(lines)-1]; want != "" && directive != ":4" {
			t.Errorf("completion of kmsctl seal %q ends with %q, want that no files are offered", args, directive)
		}
	}
}

// TestSealJSON compares the documents with testdata; what differs from run to run
// is written by its name.
func TestSealJSON(t *testing.T) {
	config, _, holder := sealedWorld(t)
	dir := filepath.Join(filepath.Dir(config), "certs")
	id, err := os.ReadFile(holder)
	if err != nil {
		t.Fatal(err)
	}
	key, err := age.ParseX25519Identity(string(id))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, verb := range []string{"status", "add passphrase", "add", "add", "rotate", "status", "remove escrow"} {
		_, stdout, stderr := run(t.Context(), append([]string{"seal", "--config", config, "--json"}, strings.Fields(verb)...)...)
		text := strings.NewReplacer(dir, "DIR", key.Recipient().String(), "RECIPIENT").Replace(stdout)
		text = regexp.MustCompile(`"made": "\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"`).ReplaceAllString(text, `"made": "TIME"`)
		fmt.Fprintf(&all, "kmsctl seal %s\n%s", verb, text)
		if !json.Valid([]byte(stdout)) {
			t.Errorf("kmsctl seal %s --json = %q, %s, want JSON", verb, stdout, stderr)
		}
	}
	const golden = "testdata/seal.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(all.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), all.String()); diff != "" {
		t.Errorf("the JSON differs (-want +got):\n%s", diff)
	}
}

// A unit of systemd has the passphrase as a credential; a shell is told how to
// have one.
func TestSealWithACredential(t *testing.T) {
	path, secret, _ := sealedWorld(t)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.Replace(string(text), fmt.Sprintf("file = %q", secret), "credential = 'passphrase'", 1))
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	const want = "systemd-run -p LoadCredentialEncrypted=passphrase:PATH --pipe --wait"
	if code, _, stderr := run(t.Context(), "seal", "add", "--config", path); code != status.Failed || !strings.Contains(stderr, want) {
		t.Errorf("kmsctl seal add without credentials = %d, %q, want %q", code, stderr, want)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(secret))
	for _, verb := range []string{"add", "status", "rotate"} {
		if code, _, stderr := run(t.Context(), "seal", verb, "--config", path); code != status.OK {
			t.Errorf("kmsctl seal %s with a credential = %d, %q", verb, code, stderr)
		}
	}
}

// What kmsctl seal opens stays out of core files and out of the reach of other
// processes.
func TestSealKeepsItsMemory(t *testing.T) {
	config, _, _ := sealedWorld(t)
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := run(t.Context(), "seal", "add", "--config", config); code != status.OK {
		t.Fatalf("kmsctl seal add = %d, %q", code, stderr)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || dumpable != 0 {
		t.Errorf("dumpable = %d, %v, want 0", dumpable, err)
	}
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil || core.Cur != 0 || core.Max != 0 {
		t.Errorf("the limit of core files = %+v, %v, want 0", core, err)
	}
}

// full is a disk without room.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, unix.ENOSPC }

func TestSealThatCannotBeShownWasDone(t *testing.T) {
	config, _, _ := sealedWorld(t)
	for _, args := range [][]string{{"add"}, {"rotate", "--json"}} {
		var errs strings.Builder
		code := cli.Run(t.Context(), cli.Environment{
			Args: append([]string{"seal", "--config", config}, args...), Stdin: strings.NewReader(""),
			Stdout: full{}, Stderr: &errs, Getenv: func(string) string { return "" }, Now: time.Now,
		})
		if want := "Error: the private keys were sealed anew, but that could not be shown: no space left on device\n"; code != status.Failed || !strings.HasSuffix(errs.String(), want) {
			t.Errorf("kmsctl seal %q = %d, %q, want %q", args, code, errs.String(), want)
		}
	}
	if code, _, stderr := run(t.Context(), "seal", "status", "--config", config); code != status.OK {
		t.Errorf("kmsctl seal status = %d, %q, want that the keys are sealed", code, stderr)
	}
}

// What fails for another reason than the interrupt does not say that nothing was
// changed.
func TestSealInterruptHidesNoReason(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	code, _, stderr := run(ctx, "seal", "rotate", "--max-work-factor", "23")
	if want := "--max-work-factor is 23, and must be from 10 to 22"; code != 2 || !strings.Contains(stderr, want) {
		t.Errorf("kmsctl seal rotate, interrupted = %d, %q, want 2 and %q", code, stderr, want)
	}
}
