package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// keyDirModes are the files of a complete key directory.
var keyDirModes = map[string]os.FileMode{
	"bootstrap-info.json": 0o644,
	"root-ca.crt":         0o644,
	"root-ca.key":         0o600,
	"root-k256.key":       0o600,
	"rpc.crt":             0o644,
	"rpc.key":             0o600,
	"tmp-ca.crt":          0o644,
	"tmp-ca.key":          0o600,
}

// shell runs a command line with bash, as a reader of a tutorial would.
func shell(t testing.TB, line string) string {
	t.Helper()
	cmd := exec.Command("bash", "-o", "pipefail", "-c", line)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s\n%v\n%s%s", line, err, out, stderr.String())
	}
	return string(out)
}

// checkKeyDir checks that a directory holds the eight files, with their modes,
// and nothing else.
func checkKeyDir(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]os.FileMode{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		got[e.Name()] = info.Mode()
	}
	if diff := cmp.Diff(keyDirModes, got); diff != "" {
		t.Errorf("key directory (-want +got):\n%s", diff)
	}
}

// jsonKeys returns the names of a JSON object in their order.
func jsonKeys(t testing.TB, text string) []string {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		t.Fatalf("want a JSON object, got %.100q (%v)", text, err)
	}
	var names []string
	for d.More() {
		name, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name.(string))
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			t.Fatal(err)
		}
	}
	return names
}

// startLines are what an empty key directory makes the KMS say, in this order.
func startLines(port int) []string {
	return []string{
		"Starting KMS in bootstrap mode",
		"Bootstrap required - keys not found",
		"Starting onboarding service",
		fmt.Sprintf("Onboarding service has launched from http://127.0.0.1:%d", port),
	}
}

func checkStartLines(t testing.TB, log string, port int) {
	t.Helper()
	var got []string
	line := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO ([^{]*)$`)
	want := startLines(port)
	for l := range strings.Lines(log) {
		m := line.FindStringSubmatch(strings.TrimSuffix(l, "\n"))
		if m != nil {
			got = append(got, m[1])
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("start-up lines (-want +got):\n%s\nin\n%s", diff, log)
	}
}

// TestTutorial types the commands of the tutorial that operators follow, from
// the first start to the checks at its end.
func TestTutorial(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "enabled = true\nauto_bootstrap_domain = \"\"\nquote_enabled = true", "")
	p := k.onboarding(t, "dstack-kms")
	p.logs(t, startLines(k.Port)[3])
	checkStartLines(t, p.stderr.String(), k.Port)

	page := shell(t, fmt.Sprintf("curl -sS http://localhost:%d/", k.Port))
	if !strings.Contains(page, "<!doctype html>") || !strings.Contains(page, "Bootstrap") {
		t.Errorf("the page is\n%.300s", page)
	}
	reply := shell(t, fmt.Sprintf(`curl -sS -X POST http://localhost:%d/prpc/Onboard.Bootstrap?json \
  -H "Content-Type: application/json" \
  -d '{"domain":"kms.example.com"}' | jq .`, k.Port))
	checkBootstrapReply(t, k, reply)
	if got := shell(t, fmt.Sprintf("curl -sS http://localhost:%d/finish", k.Port)); got != "OK" {
		t.Errorf("GET /finish = %q, want OK", got)
	}
	if code := p.wait(t, patience); code != 0 {
		t.Errorf("exit status %d after /finish, want 0", code)
	}
	checkKeyDir(t, k.Certs)
	checkTutorialCommands(t, k.Certs)
	checkTutorialScript(t, k.Certs)
}

// checkBootstrapReply compares the answer of Bootstrap with what is on disk.
func checkBootstrapReply(t testing.TB, k *kmsDir, reply string) {
	t.Helper()
	fields := []string{"ca_pubkey", "k256_pubkey", "quote", "eventlog"}
	if diff := cmp.Diff(fields, jsonKeys(t, reply)); diff != "" {
		t.Errorf("keys of the answer (-want +got):\n%s", diff)
	}
	stored, err := os.ReadFile(filepath.Join(k.Certs, "bootstrap-info.json"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fields, jsonKeys(t, string(stored))); diff != "" {
		t.Errorf("keys of bootstrap-info.json (-want +got):\n%s", diff)
	}
	var answered, written map[string]string
	for text, to := range map[string]*map[string]string{reply: &answered, string(stored): &written} {
		if err := json.Unmarshal([]byte(text), to); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range fields {
		digits, prefixed := strings.CutPrefix(answered[name], "0x")
		value, err := hex.DecodeString(digits)
		if !prefixed || err != nil || len(value) == 0 || strings.ToLower(digits) != digits {
			t.Errorf("%s = %.40q, want 0x and lower-case hex", name, answered[name])
		}
		if want := base64.StdEncoding.EncodeToString(value); written[name] != want {
			t.Errorf("bootstrap-info.json has %s = %.40q, want %.40q", name, written[name], want)
		}
	}
	if ca := answered["ca_pubkey"]; !strings.HasPrefix(ca, "0x3059") || len(ca) != 2+2*91 {
		t.Errorf("ca_pubkey = %s, want a DER SubjectPublicKeyInfo of 91 bytes", ca)
	}
	if k256 := answered["k256_pubkey"]; len(k256) != 2+2*33 {
		t.Errorf("k256_pubkey = %s, want a compressed point", k256)
	}
}

// checkTutorialCommands runs the commands with which the tutorial looks at the
// certificates.
func checkTutorialCommands(t testing.TB, dir string) {
	t.Helper()
	tests := []struct{ line, want string }{
		{
			`openssl x509 -in DIR/root-ca.crt -text -noout | grep -A 2 "Subject:"`,
			`Subject: .*CN ?= ?Dstack KMS CA\n\s*Subject Public Key Info:\n\s*Public Key Algorithm: id-ecPublicKey\n`,
		},
		{
			`openssl x509 -in DIR/rpc.crt -text -noout | grep -A 1 "Subject:"`,
			`Subject: CN ?= ?kms\.example\.com\n\s*Subject Public Key Info:\n`,
		},
		{`openssl verify -CAfile DIR/root-ca.crt DIR/rpc.crt`, `^DIR/rpc\.crt: OK\n$`},
		{`openssl verify -x509_strict -CAfile DIR/root-ca.crt DIR/root-ca.crt`, `^DIR/root-ca\.crt: OK\n$`},
		{`openssl verify -CAfile DIR/tmp-ca.crt DIR/tmp-ca.crt`, `^DIR/tmp-ca\.crt: OK\n$`},
		{`openssl x509 -in DIR/rpc.crt -noout -ext subjectAltName`, `DNS:kms\.example\.com\n`},
		{`cat DIR/bootstrap-info.json | jq -r 'keys_unsorted | join(" ")'`, `^ca_pubkey k256_pubkey quote eventlog\n$`},
		{`ls -1 DIR | wc -l`, `^8\n$`},
		{
			`for k in root-ca tmp-ca rpc; do openssl pkey -in DIR/$k.key -text -noout | grep 'ASN1 OID'; done`,
			`^(ASN1 OID: prime256v1\n){3}$`,
		},
		{
			`for k in root-ca tmp-ca rpc; do cmp <(openssl pkey -in DIR/$k.key -pubout) <(openssl x509 -in DIR/$k.crt -pubkey -noout) && echo same; done`,
			`^(same\n){3}$`,
		},
	}
	for _, tt := range tests {
		got := shell(t, strings.ReplaceAll(tt.line, "DIR", dir))
		want := strings.ReplaceAll(tt.want, "DIR", regexp.QuoteMeta(dir))
		if !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s\n%s\nwant %s", tt.line, got, want)
		}
	}
}

// checkTutorialScript runs the tutorial's verification script, with nothing
// changed but its directory.
func checkTutorialScript(t testing.TB, dir string) {
	t.Helper()
	script, err := os.ReadFile("testdata/verify-bootstrap.sh")
	if err != nil {
		t.Fatal(err)
	}
	const place = `CERTS_DIR="/etc/kms/certs"`
	if bytes.Count(script, []byte(place)) != 1 {
		t.Fatalf("the script does not say %s once", place)
	}
	moved := filepath.Join(t.TempDir(), "verify.sh")
	text := bytes.Replace(script, []byte(place), []byte(`CERTS_DIR="`+dir+`"`), 1)
	if err := os.WriteFile(moved, text, 0o600); err != nil {
		t.Fatal(err)
	}
	want := `Checking KMS bootstrap...
✓ All 8 files generated
✓ Root CA certificate valid
✓ RPC certificate valid
✓ Certificate chain valid
✓ K256 key valid (32 bytes)
✓ bootstrap-info.json valid

KMS bootstrap verified successfully!
`
	if diff := cmp.Diff(want, shell(t, "bash "+moved)); diff != "" {
		t.Errorf("verification script (-want +got):\n%s", diff)
	}
}
