package e2e

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// webhook is an authority that allows every KMS and the applications of some
// compose hashes.
type webhook struct {
	*httptest.Server
	mu      sync.Mutex
	allowed map[string]bool   // guarded by mu; by compose hash, hex
	asked   map[string]string // guarded by mu; device id by app id
}

func newWebhook(t testing.TB, composeHashes ...string) *webhook {
	t.Helper()
	w := &webhook{allowed: map[string]bool{}, asked: map[string]string{}}
	for _, h := range composeHashes {
		w.allowed[h] = true
	}
	w.Server = httptest.NewServer(w)
	t.Cleanup(w.Close)
	return w
}

func (w *webhook) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		fmt.Fprint(rw, `{"status":"ok","kmsContractAddr":"","gatewayAppId":"gateway","chainId":0,"appImplementation":""}`)
		return
	}
	var question struct{ AppID, ComposeHash, DeviceID string }
	if err := json.NewDecoder(r.Body).Decode(&question); err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.URL.Path == "/bootAuth/app" {
		w.asked[question.AppID] = question.DeviceID
		if !w.allowed[question.ComposeHash] {
			fmt.Fprint(rw, `{"isAllowed":false,"reason":"compose hash not allowed","gatewayAppId":""}`)
			return
		}
	}
	fmt.Fprint(rw, `{"isAllowed":true,"reason":"","gatewayAppId":"gateway"}`)
}

// env is the same for the environment, which goes over a file.
func (w *webhook) env() string { return "DSTACK_KMS_CORE_AUTH_API_WEBHOOK_URL=" + w.URL }

// config is what makes a KMS ask w.
func (w *webhook) config() string {
	return fmt.Sprintf("[core.auth_api]\ntype = \"webhook\"\n\n[core.auth_api.webhook]\nurl = %q\n\n[core.image]\nverify = false\n", w.URL)
}

// app is a workload in the software trust domain of a KMS.
type app struct{ id, compose, instance string }

func newApplication(n byte) app {
	h := func(size int) string { return hex.EncodeToString(bytes.Repeat([]byte{n}, size)) }
	return app{id: h(20), compose: h(32), instance: h(20)}
}

// flags make kmsctl be a, to the KMS of k.
func (a app) flags(k *kmsDir) []string {
	return []string{
		"--kms", k.URL("https"), "--ca-cert", filepath.Join(k.Certs, "root-ca.crt"),
		"--app-id", a.id, "--compose-hash", a.compose, "--instance-id", a.instance,
		"--provider", "simulator", "--simulator-dir", k.TD,
	}
}

// kmsctlJSON runs kmsctl, which must succeed, and reads what it prints.
func kmsctlJSON(t testing.TB, args ...string) map[string]any {
	t.Helper()
	code, stdout, stderr := run(t, "kmsctl", append(args, "--json")...)
	var v map[string]any
	if err := json.Unmarshal([]byte(stdout), &v); err != nil || code != 0 || stderr != "" {
		t.Fatalf("kmsctl %q = %d, %q, %q, %v, want JSON", args, code, stdout, stderr, err)
	}
	return v
}

// keysOf gets the keys of a as kmsctl prints them.
func keysOf(t testing.TB, a app, k *kmsDir) map[string]any {
	t.Helper()
	return kmsctlJSON(t, append([]string{"app", "key"}, a.flags(k)...)...)
}

// bootstrapped starts a KMS that w decides for: kmsctl sets it up.
func bootstrapped(t testing.TB, w *webhook) (*kmsDir, *process) {
	t.Helper()
	k := newKMS(t, "", w.config())
	onboarder := k.onboarding(t, "dstack-onboard")
	record := filepath.Join(k.Dir, "record.json")
	code, stdout, stderr := run(t, "kmsctl", "bootstrap", "--url", k.URL("http"), "--domain", kmsctlDomain, "--out", record, "--finish")
	if code != 0 || stderr != "" || !strings.Contains(stdout, "Root CA key   3059301306") {
		t.Fatalf("kmsctl bootstrap = %d, %q, %q", code, stdout, stderr)
	}
	if code := onboarder.wait(t, patience); code != 0 {
		t.Fatalf("dstack-onboard ends with %d", code)
	}
	if v := kmsctlVerify(t, append(k.believing(), "--info", record)...); !v.OK {
		t.Errorf("the record does not verify: %v", v.broken())
	}
	p, _ := k.serve(t, kmsctlDomain, w.env())
	return k, p
}

// replica starts a second KMS that fetches the keys of k, in a trust domain
// under the same root.
func replica(t testing.TB, k *kmsDir, w *webhook) *kmsDir {
	t.Helper()
	r := newKMS(t, "", "")
	r.TD = k.TD
	r.write(t, "", w.config())
	onboarder := r.onboarding(t, "dstack-onboard")
	got := kmsctlJSON(t, "onboard", "--url", r.URL("http"), "--source", k.URL("https"), "--domain", "kms-2.example.com", "--finish")
	var record struct {
		K256 string `json:"k256_pubkey"`
	}
	text, err := os.ReadFile(filepath.Join(k.Dir, "record.json"))
	if err == nil {
		err = json.Unmarshal(text, &record)
	}
	if err != nil || got["k256_pubkey"] != record.K256 {
		t.Errorf("kmsctl onboard prints %v, want the key of the record, %q, %v", got, record.K256, err)
	}
	if code := onboarder.wait(t, patience); code != 0 {
		t.Fatalf("dstack-onboard ends with %d", code)
	}
	r.serve(t, "kms-2.example.com", w.env())
	return r
}

func TestApplicationsGetTheSameKeysFromEveryReplicaAndAfterEveryRestart(t *testing.T) {
	t.Parallel()
	apps := []app{newApplication(1), newApplication(2), newApplication(3)}
	w := newWebhook(t, apps[0].compose, apps[1].compose, apps[2].compose)
	k, p := bootstrapped(t, w)
	r := replica(t, k, w)
	secrets := []string{"disk_crypt_key", "env_crypt_key", "k256_key"}
	seen := map[any]string{}
	first := make([]map[string]any, len(apps))
	for i, a := range apps {
		first[i] = keysOf(t, a, k)
		for _, name := range secrets {
			if key := first[i][name]; seen[key] != "" || len(fmt.Sprint(key)) != 64 {
				t.Errorf("%s of application %d is %v, that of %q", name, i, key, seen[key])
			}
			seen[first[i][name]] = fmt.Sprintf("application %d", i)
		}
		if first[i]["gateway_app_id"] != "gateway" {
			t.Errorf("gateway_app_id = %v, want what the webhook said", first[i]["gateway_app_id"])
		}
	}
	if code := p.terminate(t); code != 0 {
		t.Errorf("dstack-kms ends with %d", code)
	}
	k.serve(t, kmsctlDomain, w.env())
	for i, a := range apps {
		for where, other := range map[string]map[string]any{"after a restart": keysOf(t, a, k), "of the replica": keysOf(t, a, r)} {
			for _, name := range append(secrets, "k256_signature", "os_image_hash") {
				if other[name] != first[i][name] {
					t.Errorf("%s of application %d %s = %v, want %v", name, i, where, other[name], first[i][name])
				}
			}
		}
		w.mu.Lock()
		if w.asked[a.id] == "" {
			t.Errorf("the webhook was not asked about %s", a.id)
		}
		w.mu.Unlock()
	}
	// Another instance has another disk, and the same of all else.
	other := apps[0]
	other.instance = newApplication(9).instance
	if got := keysOf(t, other, k); got["disk_crypt_key"] == first[0]["disk_crypt_key"] || got["env_crypt_key"] != first[0]["env_crypt_key"] {
		t.Errorf("keys of another instance = %v, want another disk key alone", got)
	}
}

func TestAppWritesWhatOnlyItsOwnerReads(t *testing.T) {
	t.Parallel()
	a := newApplication(1)
	k, _ := bootstrapped(t, newWebhook(t, a.compose))
	printed := keysOf(t, a, k)
	out := filepath.Join(t.TempDir(), "deep", "keys")
	code, stdout, stderr := run(t, "kmsctl", append([]string{"app", "key", "--out", out}, a.flags(k)...)...)
	if code != 0 || stderr != "" || strings.Contains(stdout, fmt.Sprint(printed["disk_crypt_key"])) {
		t.Fatalf("kmsctl app key = %d, %q, %q, want no key among it", code, stdout, stderr)
	}
	for file, field := range map[string]string{"disk.key": "disk_crypt_key", "env.key": "env_crypt_key", "k256.key": "k256_key"} {
		got, err := os.ReadFile(filepath.Join(out, file))
		if err != nil || hex.EncodeToString(got) != printed[field] {
			t.Errorf("%s = %x, %v, want %v", file, got, err, printed[field])
		}
	}
	code, stdout, stderr = run(t, "kmsctl", append([]string{"app", "cert", "--out", out, "--san", "app.example.com", "--not-after", "2030-01-01T00:00:00Z"}, a.flags(k)...)...)
	if code != 0 || stderr != "" || !strings.Contains(stdout, "Valid until   2030-01-01T00:00:00Z") {
		t.Fatalf("kmsctl app cert = %d, %q, %q", code, stdout, stderr)
	}
	entries, err := os.ReadDir(out)
	if err != nil || len(entries) != 7 {
		t.Errorf("files = %v, %v, want seven", entries, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v, want 0600", e.Name(), info.Mode(), err)
		}
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(out, "app.crt"), filepath.Join(out, "app.key"))
	if err != nil {
		t.Fatal(err)
	}
	roots, others := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(k.file(t, "root-ca.crt"))
	ca, err := x509.ParseCertificate(pair.Certificate[1])
	if err != nil {
		t.Fatal(err)
	}
	others.AddCert(ca)
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, DNSName: "app.example.com"}); err != nil {
		t.Errorf("Verify() = %v", err)
	}
	// The same key again, by the older request.
	again := kmsctlJSON(t, append([]string{"app", "cert", "--csr-version", "1", "--key", filepath.Join(out, "app.key")}, a.flags(k)...)...)
	chain, _ := again["certificate_chain"].([]any)
	if len(chain) != 3 {
		t.Fatalf("certificate_chain = %v, want three", again)
	}
	text, _ := chain[0].(string)
	second, err := tls.X509KeyPair([]byte(text), mustRead(t, filepath.Join(out, "app.key")))
	if err != nil || !second.Leaf.PublicKey.(*ecdsa.PublicKey).Equal(pair.Leaf.PublicKey) {
		t.Errorf("the second certificate = %v, want one for the same key", err)
	}
}

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTheEnvironmentIsEncryptedToTheKeyThatTheApplicationGets(t *testing.T) {
	t.Parallel()
	a := newApplication(1)
	k, _ := bootstrapped(t, newWebhook(t, a.compose))
	kms := []string{"--kms", k.URL("https"), "--ca-cert", filepath.Join(k.Certs, "root-ca.crt"), "--simulator-dir", k.TD}
	public := kmsctlJSON(t, append([]string{"app", "env-pubkey", "--app-id", a.id}, kms...)...)
	secret, err := hex.DecodeString(fmt.Sprint(keysOf(t, a, k)["env_crypt_key"]))
	if err != nil {
		t.Fatal(err)
	}
	private, err := ecdh.X25519().NewPrivateKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(private.PublicKey().Bytes()); got != public["public_key"] {
		t.Errorf("public key = %v, want %s", public["public_key"], got)
	}
	meta := kmsctlJSON(t, "meta", "--url", k.URL("https"))
	key := fmt.Sprint(meta["k256_pubkey"])
	expect := filepath.Join(k.Dir, "expect.toml")
	for want, value := range map[int]string{0: key, 5: "02" + strings.Repeat("11", 32)} {
		if err := os.WriteFile(expect, []byte("k256_pubkey = \""+value+"\"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		code, stdout, stderr := run(t, "kmsctl", append([]string{"app", "env-pubkey", "--app-id", a.id, "--expect-file", expect}, kms...)...)
		if code != want || (code == 0) != strings.Contains(stdout, key) {
			t.Errorf("kmsctl app env-pubkey that expects %s = %d, %q, %q, want %d", value, code, stdout, stderr, want)
		}
	}
}

func TestAppEndsWithAStatusForEachReason(t *testing.T) {
	t.Parallel()
	a, unknown := newApplication(1), newApplication(2)
	w := newWebhook(t, a.compose)
	k, _ := bootstrapped(t, w)
	bare := newKMS(t, "", w.config())
	bare.fill(t, kmsctlDomain)
	bare.write(t, "", "[core.auth_api]\ntype = \"dev\"\n[core.image]\nverify = false\n")
	config := string(mustRead(t, bare.Config))
	config = strings.Replace(config, "[core]\n", "[core]\nattest_rpc_cert = false\n", 1)
	if err := os.WriteFile(bare.Config, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	bare.serve(t, kmsctlDomain)

	mrtd := kmsctlVerify(t, append(k.believing(), "--url", k.URL("https"))...).Claims["mrtd"]
	zeros := strings.Repeat("00", 48)
	kms := []string{"--kms", k.URL("https"), "--app-id", a.id, "--compose-hash", a.compose, "--provider", "simulator", "--simulator-dir", k.TD}
	withCA := a.flags(k)
	tests := []struct {
		name string
		args []string
		code int
		want string
	}{
		{"by the root certificate", withCA, 0, ""},
		{"and by its name", append(withCA, "--server-name", kmsctlDomain), 0, ""},
		{"by its MRTD", append(kms, "--expect-mrtd", fmt.Sprint(mrtd)), 0, ""},
		{"by nothing", append(kms, "--insecure-accept-any-measurement"), 0, ""},
		{"with a certificate of the temporary CA", append(withCA, "--temp-ca"), 0, ""},
		{"a KMS without Evidence", a.flags(bare), 0, ""},
		{"nobody listens", append([]string{}, append(withCA, "--kms", "https://127.0.0.1:1")...), 1, "connection refused"},
		{"no machine to attest with", append([]string{}, append(withCA, "--provider", "configfs")...), 1, "no attester found"},
		{"a description that is none", append(withCA, "--vm-config", "{"), 1, "ailed to decode VM config"},
		{"nothing says which KMS", kms, 2, "--insecure-accept-any-measurement"},
		{"a changed application", unknown.flags(k), 3, "denied by the KMS: compose hash not allowed"},
		{"another name", append(withCA, "--server-name", "other.example.com"), 4, "certificate is valid for " + kmsctlDomain},
		{"another root", append([]string{}, append(withCA, "--ca-cert", filepath.Join(bare.Certs, "root-ca.crt"))...), 4, "signed by unknown authority"},
		{"a trust root of another", append(withCA, "--trust-root", filepath.Join(bare.TD, "root-ca.pem"), "--collateral", bare.TD), 4, "PCK certificate chain"},
		{"Evidence that the KMS does not believe", append(withCA, "--simulator-dir", bare.TD, "--trust-root", filepath.Join(k.TD, "root-ca.pem"), "--collateral", k.TD), 4, "invalid quote: PCK certificate chain"},
		{"expectations of a KMS without Evidence", append(a.flags(bare), "--expect-mrtd", zeros), 4, "does not contain attestation"},
		{"another MRTD", append(withCA, "--expect-mrtd", zeros), 5, "mrtd is " + fmt.Sprint(mrtd)},
		{"another RTMR", append(withCA, "--expect-rtmr", "2="+zeros), 5, "rtmr2 is "},
		{"no collateral", append(withCA, "--pccs", "http://127.0.0.1:1"), 6, "no collateral to be had"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "keys")
			code, _, stderr := run(t, "kmsctl", append([]string{"app", "key", "--out", out}, tt.args...)...)
			if code != tt.code || !strings.Contains(stderr, tt.want) || (code == 0) != (stderr == "") {
				t.Errorf("kmsctl app key = %d, %q, want %d with %q", code, stderr, tt.code, tt.want)
			}
			if _, err := os.Stat(out); (err == nil) != (tt.code == 0) {
				t.Errorf("Stat(%s) = %v after status %d", out, err, code)
			}
		})
	}
}

// What the commands that set up a KMS say when they may not, or not yet.
func TestSetUpEndsWithAStatusForEachReason(t *testing.T) {
	t.Parallel()
	k := newKMS(t, `setup_token = "a-token-for-setting-up"`, "")
	k.onboarding(t, "dstack-onboard")
	file := func(name, text string) string {
		path := filepath.Join(k.Dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, wrong, empty := file("good", "a-token-for-setting-up\n"), file("wrong", "another"), file("empty", "\n")
	url := k.URL("http")
	steps := []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no token", []string{"bootstrap", "--url", url, "--domain", kmsctlDomain}, 1, "a bearer token is required; give it with --setup-token-file"},
		{"another token", []string{"bootstrap", "--url", url, "--domain", kmsctlDomain, "--setup-token-file", wrong}, 1, "the bearer token is wrong"},
		{"no token in the file", []string{"bootstrap", "--url", url, "--domain", kmsctlDomain, "--setup-token-file", empty}, 1, "does not hold one line"},
		{"a name that is none", []string{"bootstrap", "--url", url, "--domain", "a b", "--setup-token-file", good}, 1, "domain"},
		{"too early", []string{"finish", "--url", url, "--setup-token-file", good}, 1, "not bootstrapped yet"},
		{"now", []string{"bootstrap", "--url", url, "--domain", kmsctlDomain, "--setup-token-file", good, "--json"}, 0, ""},
		{"again", []string{"bootstrap", "--url", url, "--domain", kmsctlDomain, "--setup-token-file", good}, 1, "Bootstrap already completed"},
		{"and the end", []string{"finish", "--url", url, "--setup-token-file", good}, 0, ""},
	}
	for _, s := range steps {
		code, stdout, stderr := run(t, "kmsctl", s.args...)
		if code != s.code || !strings.Contains(strings.ToLower(stderr), strings.ToLower(s.want)) || (code == 0) != (stderr == "") {
			t.Errorf("%s: kmsctl %q = %d, %q, want %d with %q", s.name, s.args, code, stderr, s.code, s.want)
		}
		if s.name == "now" && !strings.HasPrefix(stdout, `{"ca_pubkey":"0x3059`) {
			t.Errorf("kmsctl bootstrap --json prints %q, want the form of the dialect", stdout)
		}
	}
}
