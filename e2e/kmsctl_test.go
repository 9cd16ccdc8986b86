package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const kmsctlDomain = "kms.example.com"

// believing are the flags of kmsctl verify that believe the software TD of k.
func (k *kmsDir) believing() []string {
	return []string{"--trust-root", filepath.Join(k.TD, "root-ca.pem"), "--collateral", k.TD}
}

// verdict is what is read of kmsctl verify --json.
type verdict struct {
	OK       bool   `json:"ok"`
	ExitCode int    `json:"exit_code"`
	Root     string `json:"trust_root_sha256"`
	Intel    bool   `json:"trust_root_is_intel"`
	Links    []struct {
		Name   string `json:"name"`
		OK     *bool  `json:"ok"`
		Detail string `json:"detail"`
		Error  string `json:"error"`
	} `json:"links"`
	Claims map[string]any `json:"claims"`
	Notes  []string       `json:"notes"`
}

// broken are the links that do not hold, and why.
func (v verdict) broken() map[string]string {
	out := map[string]string{}
	for _, l := range v.Links {
		if l.OK != nil && !*l.OK {
			out[l.Name] = l.Error
		}
	}
	return out
}

// kmsctlVerify runs kmsctl verify --json and checks that the report and the
// process agree.
func kmsctlVerify(t testing.TB, args ...string) verdict {
	t.Helper()
	code, stdout, stderr := run(t, "kmsctl", append([]string{"verify", "--json"}, args...)...)
	var v verdict
	if err := json.Unmarshal([]byte(stdout), &v); err != nil {
		t.Fatalf("kmsctl verify %q = %d: %v\n%s%s", args, code, err, stdout, stderr)
	}
	if v.ExitCode != code || v.OK != (code == 0) || v.OK != (stderr == "") {
		t.Errorf("kmsctl verify ends with %d, its report says %d, ok %t, standard error %q", code, v.ExitCode, v.OK, stderr)
	}
	return v
}

func TestKmsctlVerifiesEveryForm(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	onboarder := k.onboarding(t, "dstack-onboard")
	reply := post(t, k.URL("http")+"/prpc/Onboard.Bootstrap?json", `{"domain":"`+kmsctlDomain+`"}`)
	saved := filepath.Join(k.Dir, "answer.json")
	if err := os.WriteFile(saved, []byte(reply.body), 0o644); err != nil {
		t.Fatal(err)
	}
	post(t, k.URL("http")+"/prpc/Onboard.Finish?json", "{}")
	if code := onboarder.wait(t, patience); code != 0 {
		t.Fatalf("dstack-onboard ends with %d", code)
	}
	k.serve(t, kmsctlDomain)
	simulator := start(t, "kmsctl", "simulator", "--dir", k.TD, "--listen", fmt.Sprintf("127.0.0.1:%d", freePort(t)), "--json")
	var facts struct{ URL string }
	for deadline := time.Now().Add(patience); json.Unmarshal([]byte(simulator.stdout.String()), &facts) != nil; {
		if time.Now().After(deadline) {
			t.Fatalf("kmsctl simulator prints %q", simulator.stdout)
		}
		time.Sleep(time.Millisecond)
	}
	ca := filepath.Join(k.Certs, "root-ca.crt")
	tests := []struct {
		name  string
		args  []string
		links int
	}{
		{"the key directory", append([]string{"--dir", k.Certs}, k.believing()...), 14},
		{"the running KMS", append([]string{"--url", k.URL("https")}, k.believing()...), 15},
		{"the record on disk", append([]string{"--info", filepath.Join(k.Certs, "bootstrap-info.json"), "--ca-cert", ca}, k.believing()...), 13},
		{"the answer of Bootstrap", append([]string{"--info", saved}, k.believing()...), 12},
		{"with a second opinion", append([]string{"--dir", k.Certs, "--second-opinion"}, k.believing()...), 15},
		{"with collateral of a PCS", []string{"--dir", k.Certs, "--second-opinion", "--trust-root", filepath.Join(k.TD, "root-ca.pem"), "--pccs", facts.URL}, 15},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := kmsctlVerify(t, tt.args...)
			checked := 0
			for _, l := range v.Links {
				if l.OK != nil {
					checked++
				}
			}
			if !v.OK || checked != tt.links || v.Intel {
				t.Errorf("kmsctl verify = ok %t, %d links checked, Intel's root %t, broken %v, want ok and %d links", v.OK, checked, v.Intel, v.broken(), tt.links)
			}
		})
	}
	if code := simulator.terminate(t); code != 0 {
		t.Errorf("kmsctl simulator ends with %d after SIGTERM, want 0", code)
	}
}

func TestKmsctlRefusesWhatWasTamperedWith(t *testing.T) {
	t.Parallel()
	k, other := newKMS(t, "", ""), newKMS(t, "", "")
	k.fill(t, kmsctlDomain)
	other.fill(t, "other.example.com")
	info := func(dir string) map[string]string {
		var m map[string]string
		b, err := os.ReadFile(filepath.Join(dir, "bootstrap-info.json"))
		if err == nil {
			err = json.Unmarshal(b, &m)
		}
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	record := func(name string, value func(string) string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			m := info(dir)
			m[name] = value(m[name])
			b, err := json.Marshal(m)
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, "bootstrap-info.json"), b, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	others := func(name string) func(string) string {
		return func(string) string { return info(other.Certs)[name] }
	}
	file := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), other.file(t, name), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	zeros := strings.Repeat("00", 48)
	tests := []struct {
		name   string
		change func(*testing.T, string)
		args   []string
		code   int
		link   string
		why    string
	}{
		{"the untouched copy", func(*testing.T, string) {}, k.believing(), 0, "", ""},
		// Bits of the base64 of offset 0xba, in MRTD, and 0x250, in the report data.
		{"the quote's MRTD", record("quote", swap(248)), k.believing(), 4, "quote signature", "does not verify"},
		{"the quote's report data", record("quote", swap(789)), k.believing(), 4, "report data", "the quote binds"},
		{"the quote of another KMS", record("quote", others("quote")), k.believing(), 4, "PCK certificate chain", "unknown authority"},
		{"the CA key", record("ca_pubkey", others("ca_pubkey")), k.believing(), 4, "report data", "the quote binds"},
		{"the secp256k1 key", record("k256_pubkey", others("k256_pubkey")), k.believing(), 4, "report data", "the quote binds"},
		{"the event log", record("eventlog", others("eventlog")), k.believing(), 4, "event log", "RTMR3 replays to"},
		{"the record as a whole", file("bootstrap-info.json"), other.believing(), 4, "root certificate", "of another key than the record"},
		{"the root certificate", file("root-ca.crt"), k.believing(), 4, "root certificate", "of another key than the record"},
		{"the RPC certificate", file("rpc.crt"), k.believing(), 4, "RPC certificate", "unknown authority"},
		{"the believer: another root", func(*testing.T, string) {}, other.believing(), 4, "PCK certificate chain", "unknown authority"},
		{"the believer: Intel's root", func(*testing.T, string) {}, []string{"--collateral", k.TD}, 4, "PCK certificate chain", "unknown authority"},
		{"the expectation", func(*testing.T, string) {}, append(k.believing(), "--expect-mrtd", zeros), 5, "expectations", "--expect-mrtd wants " + zeros},
		{
			"the collateral: unreachable", func(*testing.T, string) {},
			[]string{"--trust-root", filepath.Join(k.TD, "root-ca.pem"), "--pccs", "http://127.0.0.1:1"},
			6, "collateral", "connection refused",
		},
		{"the time: collateral expired", func(*testing.T, string) {}, append(k.believing(), "--at", in(40)), 6, "collateral", "expired"},
		{"the time: all expired", func(*testing.T, string) {}, append(k.believing(), "--at", in(20*365)), 4, "PCK certificate chain", "expired"},
		{"the time: nothing was there", func(*testing.T, string) {}, append(k.believing(), "--at", in(-365)), 4, "PCK certificate chain", "not yet valid"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			// Nothing else of the directory is needed, or may be read.
			for _, name := range []string{"bootstrap-info.json", "root-ca.crt", "rpc.crt"} {
				if err := os.WriteFile(filepath.Join(dir, name), k.file(t, name), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			tt.change(t, dir)
			v := kmsctlVerify(t, append([]string{"--dir", dir}, tt.args...)...)
			if v.ExitCode != tt.code {
				t.Errorf("kmsctl verify ends with %d, want %d; broken %v", v.ExitCode, tt.code, v.broken())
			}
			if why, ok := v.broken()[tt.link]; ok != (tt.link != "") || !strings.Contains(why, tt.why) {
				t.Errorf("link %q says %q, want it broken for %q", tt.link, why, tt.why)
			}
		})
	}
}

// swap returns a function that changes one character of base64.
func swap(at int) func(string) string {
	return func(s string) string {
		c := "A"
		if s[at] == 'A' {
			c = "B"
		}
		return s[:at] + c + s[at+1:]
	}
}

// in is a time some days from now, as --at wants it.
func in(days int) string { return time.Now().AddDate(0, 0, days).UTC().Format(time.RFC3339) }

func TestKmsctlReportIsAFileOfExpectations(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	k.fill(t, kmsctlDomain)
	claims := kmsctlVerify(t, append([]string{"--dir", k.Certs}, k.believing()...)...).Claims
	expected := map[string]any{}
	for _, name := range []string{"mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "device_id", "domain"} {
		expected[name] = claims[name]
	}
	path := filepath.Join(k.Dir, "expect.json")
	b, err := json.Marshal(expected)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, string(b), 0o644)
	if v := kmsctlVerify(t, append([]string{"--dir", k.Certs, "--expect-file", path}, k.believing()...)...); !v.OK {
		t.Errorf("kmsctl verify with its own claims = %v, want ok", v.broken())
	}
	write(t, path, "domain = 'kms.example.org'\n", 0o644)
	if v := kmsctlVerify(t, append([]string{"--dir", k.Certs, "--expect-file", path}, k.believing()...)...); v.ExitCode != 5 {
		t.Errorf("kmsctl verify with another domain ends with %d, want 5", v.ExitCode)
	}
}

func TestKmsctlVerifiesOverPlainHTTPWithANotice(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	k.fill(t, kmsctlDomain)
	p := startCmd(t, command(t, []string{"DSTACK_KMS_RPC_INSECURE_PLAINTEXT=true"}, "dstack-kms", "--config", k.Config))
	p.logs(t, "KMS has launched")
	v := kmsctlVerify(t, append([]string{"--url", k.URL("http")}, k.believing()...)...)
	if notes := strings.Join(v.Notes, "\n"); !v.OK || !strings.Contains(notes, "asked over plain HTTP") || !strings.Contains(notes, "rpc.insecure_plaintext") {
		t.Errorf("kmsctl verify = ok %t, notes %q, want ok and notes about plain HTTP", v.OK, v.Notes)
	}
}

func TestKmsctlRefusesKeysThatWereNotQuoted(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "quote_enabled = false", "")
	k.fill(t, kmsctlDomain)
	k.serve(t, kmsctlDomain)
	for _, args := range [][]string{{"--dir", k.Certs}, {"--url", k.URL("https")}} {
		v := kmsctlVerify(t, append(args, k.believing()...)...)
		if why := v.broken()["quote format"]; v.ExitCode != 4 || !strings.Contains(why, "made with quotes switched off") {
			t.Errorf("kmsctl verify %q ends with %d, %q, want 4 and that there is no quote", args, v.ExitCode, why)
		}
	}
}

func TestKmsctlHasNothingToVerifyWithoutARecord(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	k.fill(t, kmsctlDomain)
	if err := os.Remove(filepath.Join(k.Certs, "bootstrap-info.json")); err != nil {
		t.Fatal(err)
	}
	k.serve(t, kmsctlDomain)
	for _, args := range [][]string{{"--dir", k.Certs}, {"--url", k.URL("https")}} {
		code, stdout, stderr := run(t, "kmsctl", append(append([]string{"verify"}, args...), k.believing()...)...)
		if code != 4 || stdout != "" || !strings.Contains(stderr, "there is nothing to verify") {
			t.Errorf("kmsctl verify %q = %d, %q, %q, want 4 and that there is nothing to verify", args, code, stdout, stderr)
		}
	}
}

// TestKmsctlTellsErrorsFromVerdicts holds that what is no KMS gives status 1.
func TestKmsctlTellsErrorsFromVerdicts(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	k.onboarding(t, "dstack-onboard")
	for url, want := range map[string]string{
		k.URL("http"):         "GetMeta is answered with 4",
		k.URL("https"):        "server gave HTTP response to HTTPS client",
		"https://127.0.0.1:1": "connection refused",
	} {
		code, stdout, stderr := run(t, "kmsctl", "verify", "--url", url)
		if code != 1 || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("kmsctl verify --url %s = %d, %q, %q, want 1 and %q", url, code, stdout, stderr, want)
		}
	}
}

func TestKmsctlUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"verify"}, {"verify", "--dir", "a", "--url", "https://b"}, {"simulator"}, {"demo", "x"}, {"nothing"}} {
		code, stdout, stderr := run(t, "kmsctl", args...)
		if code != 2 || stdout != "" || !strings.HasPrefix(stderr, "Error: ") || !strings.Contains(stderr, "\nTry 'kmsctl") {
			t.Errorf("kmsctl %q = %d, %q, %q, want 2 and a hint", args, code, stdout, stderr)
		}
	}
	code, stdout, _ := run(t, "kmsctl", "--version")
	if code != 0 || !strings.HasPrefix(stdout, "kmsctl ") {
		t.Errorf("kmsctl --version = %d, %q", code, stdout)
	}
}
