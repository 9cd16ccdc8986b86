package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The words of the terminal's questions.
const (
	promptOpen  = "Passphrase of the key directory: "
	promptAgain = "The same passphrase again: "
)

// TestUnsealedKeysAreTold has a KMS without core.seal say so, to whoever asks, and
// changes nothing else for it.
func TestUnsealedKeysAreTold(t *testing.T) {
	t.Parallel()
	s := newSeals(t)
	for _, sealed := range []bool{false, true} {
		k := newKMS(t, "", devAuthority)
		if sealed {
			k.configure(t, s.passphrase(t), devAuthority)
		}
		onboard := k.onboarding(t, "dstack-kms")
		// What the page of the onboarding service shows is what this answers.
		info := get(t, http.DefaultClient, k.URL("http")+"/prpc/GetAttestationInfo?json")
		if info.StatusCode != http.StatusOK || strings.Contains(info.body, "unsealed_keys") == sealed {
			t.Errorf("sealed %t: GetAttestationInfo = %d %s, want unsealed_keys %t", sealed, info.StatusCode, info.body, !sealed)
		}
		checkBootstrapReply(t, k, post(t, k.URL("http")+bootstrapPath, exampleRequest).body)
		if a := get(t, http.DefaultClient, k.URL("http")+"/finish"); a.body != "OK" {
			t.Fatalf("/finish = %d %s", a.StatusCode, a.body)
		}
		if code := onboard.wait(t, patience); code != 0 {
			t.Fatalf("exit status %d after Finish", code)
		}
		if !sealed {
			checkKeyDir(t, k.Certs)
			checkTutorialScript(t, k.Certs)
			checkTutorialCommands(t, k.Certs)
		}
		p, client := k.serve(t, exampleDomain)
		if got := weakenings(t, client, k); strings.Contains(got, "unsealed_keys") == sealed {
			t.Errorf("sealed %t: insecure_settings = %s, want unsealed_keys %t", sealed, got, !sealed)
		}
		if got := strings.Contains(p.stderr.String(), "unsealed_keys"); got == sealed {
			t.Errorf("sealed %t: the log speaks of unsealed_keys %t, want %t\n%s", sealed, got, !sealed, p.stderr)
		}
	}
}

// TestVerifyOpensNothing verifies a sealed directory where nothing opens it.
func TestVerifyOpensNothing(t *testing.T) {
	t.Parallel()
	s := newSeals(t)
	k := newKMS(t, "", "")
	k.configure(t, s.passphrase(t), s.withTPM(t), s.escrow(t), devAuthority)
	k.fill(t, exampleDomain)
	s.tpm.Stop()
	before := tree(t, k.Certs)
	code, stdout, stderr := run(t, "kmsctl", append([]string{"verify", "--dir", k.Certs}, k.believing()...)...)
	if code != 0 || stderr != "" || !strings.Contains(stdout, "✓ Verified") {
		t.Errorf("kmsctl verify --dir = %d, %q\n%s", code, stderr, stdout)
	}
	for _, want := range []string{"sealed to", "tpm", "passphrase", "escrow"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("kmsctl verify --dir does not say %q:\n%s", want, stdout)
		}
	}
	if v := kmsctlVerify(t, append(k.believing(), "--dir", k.Certs)...); !v.OK {
		t.Errorf("kmsctl verify --dir --json: %v", v.broken())
	}
	if after := tree(t, k.Certs); fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("kmsctl verify changed the directory:\n%v\n%v", before, after)
	}
	// What it checks is still checked.
	k.put(t, "root-ca.crt", k.file(t, "tmp-ca.crt"))
	if code, stdout, _ := run(t, "kmsctl", append([]string{"verify", "--dir", k.Certs}, k.believing()...)...); code == 0 {
		t.Errorf("kmsctl verify --dir with another root-ca.crt = %d\n%s", code, stdout)
	}
}

// sealStatus is what kmsctl seal status --json prints.
type sealStatus struct {
	Sealed bool      `json:"sealed"`
	Made   time.Time `json:"made"`
	Seals  []struct {
		Kind       string `json:"kind"`
		Detail     string `json:"detail"`
		InFiles    bool   `json:"in_files"`
		Configured bool   `json:"configured"`
		Opens      bool   `json:"opens"`
		Reason     string `json:"reason"`
	} `json:"seals"`
}

// status runs kmsctl seal status, and puts each seal in a word: its kind, then f
// where it is in the files, c where it is configured, o where it opens here.
func (k *kmsDir) status(t testing.TB, code int, args ...string) (status sealStatus, words string) {
	t.Helper()
	text, _ := k.kmsctlSeal(t, code, "status", append(args, "--json")...)
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		t.Fatalf("kmsctl seal status --json prints %s: %v", text, err)
	}
	var all []string
	for _, s := range status.Seals {
		word := s.Kind + ":"
		for flag, is := range []bool{s.InFiles, s.Configured, s.Opens} {
			if is {
				word += "fco"[flag : flag+1]
			}
		}
		all = append(all, word)
		if !s.Opens && s.Reason == "" {
			t.Errorf("%s does not open, and there is no reason", s.Kind)
		}
	}
	return status, strings.Join(all, " ")
}

// TestSealStatus asks for the state of a directory through its life.
func TestSealStatus(t *testing.T) {
	t.Parallel()
	s := newSeals(t)
	k := newKMS(t, "", devAuthority)
	k.fill(t, exampleDomain)
	want := func(code int, sealed bool, want string, args ...string) sealStatus {
		t.Helper()
		status, got := k.status(t, code, args...)
		if status.Sealed != sealed || got != want {
			t.Errorf("kmsctl seal status says sealed %t, %q, want %t, %q", status.Sealed, got, sealed, want)
		}
		return status
	}
	want(0, false, "")
	k.configure(t, s.withTPM(t), s.passphrase(t), s.escrow(t), devAuthority)
	k.kmsctlSeal(t, 0, "add", "tpm", "escrow")
	status := want(0, true, "tpm:fco passphrase:c escrow:fc")
	if age := time.Since(status.Made); age < 0 || age > time.Hour {
		t.Errorf("made %v, want a moment ago", status.Made)
	}
	text, _ := k.kmsctlSeal(t, 0, "status")
	for _, word := range []string{"tpm", "7, 11, 14", "passphrase", "escrow", s.recipient} {
		if !strings.Contains(text, word) {
			t.Errorf("kmsctl seal status does not say %q:\n%s", word, text)
		}
	}
	s.tpm.Measure(14, "another kernel")
	want(1, true, "tpm:fc passphrase:c escrow:fc")
	want(0, true, "tpm:fc passphrase:c escrow:fco", "--identity", s.identity)
	k.kmsctlSeal(t, 0, "rotate", "--identity", s.identity)
	rotated := want(0, true, "tpm:fco passphrase:fco escrow:fc")
	if rotated.Made.Before(status.Made) {
		t.Errorf("made %v after %v", rotated.Made, status.Made)
	}
	k.configure(t, s.passphrase(t), devAuthority)
	want(0, true, "tpm:f passphrase:fco escrow:f")

	// What is kept must be configured, and the last that opens stays.
	k.kmsctlSeal(t, 0, "remove", "tpm")
	want(0, true, "passphrase:fco escrow:f")
	before := tree(t, k.Certs)
	if _, stderr := k.kmsctlSeal(t, 1, "remove", "passphrase"); !strings.Contains(stderr, "passphrase cannot be removed: no seal would be left that opens here") {
		t.Errorf("kmsctl seal remove of the last seal says %q", stderr)
	}
	if after := tree(t, k.Certs); fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("a removal that was refused changed the directory:\n%v\n%v", before, after)
	}
}

// TestConfiguredBySealedServer has a sealed directory and a KMS that waits for its
// configuration, all the way from nothing to serving.
func TestConfiguredBySealedServer(t *testing.T) {
	t.Parallel()
	s := newSeals(t)
	k := newKMS(t, `auto_bootstrap_domain = "kms.example.com"`, strings.Join([]string{s.passphrase(t), s.withTPM(t), s.escrow(t), devAuthority}, "\n"))
	c := k.configuring(t, freePort(t), nil)
	k.checkSealed(t, "teekms-file", "teekms-escrow", "teekms-tpm", "teekms-passphrase", "X25519")
	c.post(t, "/sqlite", fmt.Sprintf(`{"path": %s}`, quoted(filepath.Join(c.Dir, "cosmian-kms", "sqlite-data"))), "200", "success")
	c.post(t, "/start", `{"clear_database": false}`, "200", "success")
	c.serves(t)
	c.keepsSecret(t, "canary")
	if got := weakenings(t, k.trusting(t, exampleDomain), k); strings.Contains(got, "unsealed_keys") {
		t.Errorf("insecure_settings = %s, want no unsealed_keys", got)
	}
}

// TestSealedKMSIsSmallAndQuick opens by scrypt at its default cost and by a TPM:
// the memory that this took is given back.
func TestSealedKMSIsSmallAndQuick(t *testing.T) {
	// Alone: it looks at time and memory.
	s := newSeals(t)
	passphrase := strings.ReplaceAll(s.passphrase(t), "work_factor = 10\n", "")
	for name, section := range map[string]string{"a passphrase": passphrase, "a TPM": s.withTPM(t)} {
		k := newKMS(t, "", section+devAuthority)
		k.fill(t, exampleDomain)
		var rss float64
		// How much is there depends on when the collector ran last, by a few MiB.
		for try := 0; try == 0 || rss > 40 && try < 5; try++ {
			begin := time.Now()
			p, _ := k.serve(t, exampleDomain)
			took := time.Since(begin)
			for range 20 { // until it is idle
				time.Sleep(100 * time.Millisecond)
				if rss = residentMiB(t, p.Process.Pid); rss <= 40 {
					break
				}
			}
			t.Logf("opened by %s: /ready after %v, idle at %.1f MiB", name, took.Round(time.Millisecond), rss)
			p.terminate(t)
		}
		if rss > 40 {
			t.Errorf("opened by %s the idle KMS holds %.1f MiB, want at most 40", name, rss)
		}
	}
}
