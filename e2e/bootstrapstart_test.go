package e2e

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"teekms/internal/attest/simtd"
	"teekms/internal/storage/storagetest/server"
)

const startDomain = "start.example.com"

// waiting is a KMS that waits for its configuration, and an operator's
// directory.
type waiting struct {
	*kmsDir
	*process
	port int
}

// newWaiting starts one. extra is appended to its configuration.
func newWaiting(t testing.TB, extra string) *waiting {
	t.Helper()
	w := &waiting{kmsDir: newKMS(t, "", extra), port: freePort(t)}
	w.fill(t, startDomain)
	w.process = startCmd(t, command(t, []string{"DSTACK_KMS_CORE_AUTH_API_WEBHOOK_URL=http://127.0.0.1:1"},
		"dstack-kms", "--config", w.Config, "--use-bootstrap-server", fmt.Sprintf("--bootstrap-server-port=%d", w.port), "--ensure-ra-tls"))
	w.logs(t, "Bootstrap server has launched")
	return w
}

func (w *waiting) url() string { return fmt.Sprintf("https://127.0.0.1:%d", w.port) }

// mrtd is that of the software trust domain.
func (w *waiting) mrtd(t testing.TB) string {
	t.Helper()
	td, err := simtd.Open(simtd.Config{Dir: w.TD, Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	m := td.Measurements().MRTD
	return hex.EncodeToString(m[:])
}

// known are the flags that know the server.
func (w *waiting) known(t testing.TB) []string {
	t.Helper()
	return append([]string{"--bootstrap-server-url", w.url(), "--expect-mrtd", w.mrtd(t)}, w.believing()...)
}

// configure runs kmsctl bootstrap-start.
func (w *waiting) configure(t testing.TB, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return run(t, "kmsctl", slices.Concat([]string{"bootstrap-start"}, w.known(t), args)...)
}

// note writes a file of the operator.
func (w *waiting) note(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(w.Dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// openssl runs openssl in the operator's directory.
func (w *waiting) openssl(t testing.TB, args ...string) {
	t.Helper()
	cmd := exec.Command("openssl", args...)
	cmd.Dir = w.Dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("openssl %q: %v\n%s", args, err, out)
	}
}

// p12 makes a certificate and its key in a PKCS#12 file.
func (w *waiting) p12(t testing.TB, name, password string) string {
	t.Helper()
	w.openssl(t, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "90",
		"-subj", "/CN=operator.example.com", "-addext", "subjectAltName=DNS:operator.example.com", "-addext", "extendedKeyUsage=serverAuth,clientAuth", "-keyout", name+".key", "-out", name+".pem")
	w.openssl(t, "pkcs12", "-export", "-inkey", name+".key", "-in", name+".pem", "-out", name, "-passout", "pass:"+password)
	return filepath.Join(w.Dir, name)
}

// serves checks that the KMS serves now, with a certificate of this name.
func (w *waiting) serves(t testing.TB, commonName string) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: w.tlsClient(t, "")}
	transport.TLSClientConfig.InsecureSkipVerify = true
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport, Timeout: patience}
	w.ready(t, client, w.URL("https")+"/ready")
	resp := get(t, client, w.URL("https")+"/prpc/KMS.GetMeta?json")
	if resp.StatusCode != http.StatusOK || !strings.Contains(resp.body, `"ca_cert"`) {
		t.Errorf("GetMeta = %s, %s", resp.Status, resp.body)
	}
	if leaf := resp.TLS.PeerCertificates[0]; leaf.Subject.CommonName != commonName && !slices.Contains(leaf.DNSNames, commonName) {
		t.Errorf("the KMS serves the certificate of %s %v, want %s", leaf.Subject, leaf.DNSNames, commonName)
	}
}

// hides checks that neither the log of the server nor a text has a secret.
func (w *waiting) hides(t testing.TB, text string, secrets ...string) {
	t.Helper()
	for _, s := range secrets {
		if strings.Contains(w.stderr.String(), s) || strings.Contains(w.stdout.String(), s) || strings.Contains(text, s) {
			t.Errorf("the secret %q is shown:\n%s\n%s", s, text, w.stderr)
		}
	}
}

// TestBootstrapStart configures a KMS with the flags that its users know, and
// sees it serve with what it was given.
func TestBootstrapStart(t *testing.T) {
	t.Parallel()
	w := newWaiting(t, "")
	p12 := w.p12(t, "kms.p12", "the p12-password")
	db := filepath.Join(w.Dir, "data")
	args := []string{"--database-type", "sqlite", "--sqlite-path", db, "--https-p12-file", p12}

	code, stdout, stderr := w.configure(t, append(args, "--https-p12-password-file", w.note(t, "wrong", "another p12-password\n"))...)
	if code != 1 || !strings.HasPrefix(stdout, "Server response:\n  -> PKCS#12 of ") || strings.Contains(stdout, "Starting") ||
		!strings.HasPrefix(stderr, "ERROR: ") || !strings.Contains(stderr, "password") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("bootstrap-start with another password = %d, %q, %q, want 1 and that the password is wrong", code, stdout, stderr)
	}
	w.hides(t, stdout+stderr, "another p12-password")
	if _, err := os.Stat(db); err == nil {
		t.Error("a start that was refused made a database")
	}

	code, stdout, stderr = w.configure(t, append(args, "--https-p12-password-file", w.note(t, "right", "the p12-password\n"), "--wait", w.URL("https"))...)
	want := fmt.Sprintf("Server response:\n  -> PKCS#12 of %d bytes received\n  -> Successfully received Sqlite configuration\n  -> Starting the KMS server", sizeOf(t, p12))
	if code != 0 || stderr != "" || !strings.HasPrefix(stdout, want) || !strings.HasSuffix(stdout, "\nThe KMS is ready: "+w.URL("https")+"\n") {
		t.Errorf("bootstrap-start = %d, %q, %q, want 0 and %q", code, stdout, stderr, want)
	}
	w.hides(t, stdout, "the p12-password")
	w.serves(t, "operator.example.com")
	if _, err := os.Stat(filepath.Join(db, "kms.db")); err != nil {
		t.Errorf("the database: %v", err)
	}
	// Nobody waits for a configuration any more.
	if code, _, stderr := w.configure(t, "--database-type", "sqlite", "--sqlite-path", db); code != 1 || !strings.Contains(stderr, "connection refused") {
		t.Errorf("a second bootstrap-start = %d, %q, want that nobody listens", code, stderr)
	}
}

func sizeOf(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// TestBootstrapStartCommandLine runs the command of the handbook word for word.
// Nobody answers to the name of its Redis server, which is what the start says;
// with a server that is there, it starts.
func TestBootstrapStartCommandLine(t *testing.T) {
	t.Parallel()
	w := newWaiting(t, "")
	w.p12(t, "kms-server.p12", "p12-password")
	w.note(t, "expect.toml", "mrtd = \""+w.mrtd(t)+"\"\n")
	config, err := json.Marshal(map[string]string{
		"kms_server_url": strings.Replace(w.url(), "https://", "http://", 1), "bootstrap_expect_file": "expect.toml",
		"bootstrap_trust_root": "td/root-ca.pem", "bootstrap_collateral": "td",
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(w.Dir, ".cosmian"), 0o700); err != nil {
		t.Fatal(err)
	}
	// The paths in it start from where it is.
	home := w.note(t, ".cosmian/kms.json", strings.NewReplacer(`"expect.toml"`, `"../expect.toml"`, `"td`, `"../td`).Replace(string(config)))
	const line = `kmsctl bootstrap-start \
  --database-type redis-findex \
  --database-url redis://redis-server:6379 \
  --redis-master-password master-password \
  --redis-findex-label label \
  --https-p12-file ./kms-server.p12 \
  --https-p12-password p12-password
`
	shell := func(line string, env ...string) (int, string, string) {
		cmd := exec.Command("sh", "-c", line)
		cmd.Dir = w.Dir
		cmd.Env = append(os.Environ(), append(env, "PATH="+filepath.Dir(binary(t, "kmsctl"))+":"+os.Getenv("PATH"))...)
		return runCmd(t, cmd)
	}
	tests := []struct{ name, env string }{
		{"~/.cosmian/kms.json", "HOME=" + w.Dir},
		{"KMS_CLI_CONF", "KMS_CLI_CONF=" + home},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := shell(line, tt.env)
			if code != 1 || !strings.HasSuffix(stdout, "  -> Successfully received Redis-Findex configuration\n") || !strings.Contains(stderr, "\nERROR: ") {
				t.Errorf("%s = %d, %q, %q, want that everything was received and the server is not there", line, code, stdout, stderr)
			}
			if n := strings.Count(stderr, "Warning: "); n != 2 {
				t.Errorf("standard error has %d warnings about secrets, want 2: %s", n, stderr)
			}
			w.hides(t, stdout, "master-password", "p12-password") // standard error names the flags
		})
	}
	var servers server.Group
	t.Cleanup(func() {
		if err := servers.Stop(); err != nil {
			t.Error(err)
		}
	})
	redis := servers.Own(t, server.Redis, server.Options{})
	there := strings.Replace(line, "--database-url redis://redis-server:6379", "--database-url-file redis.url", 1)
	w.note(t, "redis.url", redis.URL("0")+"\n")
	code, stdout, stderr := shell(there, "HOME="+w.Dir)
	if code != 0 || !strings.Contains(stdout, "\n  -> Starting the KMS server") {
		t.Fatalf("%s = %d, %q, %q, want 0 and a start", there, code, stdout, stderr)
	}
	w.hides(t, stdout+stderr, server.Marker)
	w.serves(t, "operator.example.com")
}

// TestBootstrapStartOnEveryDatabase starts a KMS on each type.
func TestBootstrapStartOnEveryDatabase(t *testing.T) {
	t.Parallel()
	var servers server.Group
	t.Cleanup(func() {
		if err := servers.Stop(); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	file := func(text string) string {
		path := filepath.Join(dir, rand.Text())
		write(t, path, text, 0o600)
		return path
	}
	database := func(kind server.Kind) string {
		s := servers.Shared(t, kind)
		return file(s.URL(s.NewDatabase(t)) + "\n")
	}
	tests := []struct {
		name    string
		args    []string
		success string
	}{
		{"sqlite", []string{"--sqlite-path", filepath.Join(dir, "plain")}, "Sqlite"},
		{"sqlite-enc", []string{"--sqlite-path", filepath.Join(dir, "encrypted")}, "Sqlite Enc."},
		{"sqlite-enc", []string{"--sqlite-path", filepath.Join(dir, "own key"), "--sqlite-master-password-file", file("MarkerOfASecret!")}, "Sqlite Enc."},
		{"postgresql", []string{"--database-url-file", database(server.PostgreSQL)}, "PostgreSQL"},
		{"mysql", []string{"--database-url-file", database(server.MariaDB)}, "MySql/MariaDB"},
		{"redis-findex", []string{"--database-url-file", database(server.Redis), "--redis-master-password-file", file("MarkerOfASecret!"), "--redis-findex-label", "label"}, "Redis-Findex"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWaiting(t, "")
			code, stdout, stderr := w.configure(t, append([]string{"--database-type", tt.name, "--wait", w.URL("https"), "--json"}, tt.args...)...)
			var result struct {
				OK        bool
				Responses []struct{ Route, Success string }
				Ready     string
			}
			if err := json.Unmarshal([]byte(stdout), &result); err != nil || code != 0 || stderr != "" {
				t.Fatalf("bootstrap-start = %d, %s, %s, %v", code, stdout, stderr, err)
			}
			if len(result.Responses) != 2 || result.Responses[0].Success != "Successfully received "+tt.success+" configuration" ||
				!strings.HasPrefix(result.Responses[1].Success, "Starting the KMS server with warnings: No PKCS12 file has been supplied") || result.Ready != w.URL("https") {
				t.Errorf("bootstrap-start = %+v", result)
			}
			w.hides(t, stdout, server.Marker)
			w.serves(t, startDomain)
			if code := w.terminate(t); code != 0 {
				t.Errorf("dstack-kms ends with %d", code)
			}
		})
	}
}

// TestBootstrapStartShowsWhoAsks gives a token, or a client certificate, to a
// server that wants it.
func TestBootstrapStartShowsWhoAsks(t *testing.T) {
	t.Parallel()
	tokenFile := filepath.Join(t.TempDir(), "token")
	const token = "MarkerOfAToken-0123456789abcdef"
	write(t, tokenFile, token+"\n", 0o600)
	w := newWaiting(t, fmt.Sprintf("[core.bootstrap_server]\ntoken_file = %q\n", tokenFile))
	sqlite := []string{"--database-type", "sqlite", "--sqlite-path", filepath.Join(w.Dir, "data")}
	code, stdout, stderr := w.configure(t, sqlite...)
	if code != 1 || stdout != "Server response:\n" || !strings.HasPrefix(stderr, "ERROR: ") || !strings.Contains(stderr, "; give the token with --bootstrap-token-file\n") {
		t.Errorf("bootstrap-start without a token = %d, %q, %q, want that one is wanted", code, stdout, stderr)
	}
	code, stdout, stderr = w.configure(t, append(sqlite, "--bootstrap-token-file", w.note(t, "wrong", "MarkerOfAnotherToken\n"))...)
	if code != 1 || stdout != "Server response:\n" || !strings.HasPrefix(stderr, "ERROR: ") || strings.Contains(stderr, "give the token") {
		t.Errorf("bootstrap-start with another token = %d, %q, %q, want that it is wrong", code, stdout, stderr)
	}
	w.hides(t, stdout+stderr, "MarkerOf")
	config := w.note(t, "kms.json", `{"kms_access_token":"`+token+`"}`)
	// No proxy is asked, not even for a name that is not excepted, as localhost in small letters is.
	cmd := command(t, []string{"KMS_CLI_CONF=" + config, "HTTPS_PROXY=http://127.0.0.1:1", "NO_PROXY="}, "kmsctl",
		slices.Concat([]string{"bootstrap-start"}, w.known(t), sqlite, []string{"--bootstrap-server-url", fmt.Sprintf("https://LOCALHOST:%d", w.port)})...)
	if code, stdout, stderr = runCmd(t, cmd); code != 0 || !strings.Contains(stdout, "  -> Starting the KMS server") {
		t.Errorf("bootstrap-start with the token of the client file = %d, %q, %q, want 0", code, stdout, stderr)
	}
	w.hides(t, stdout+stderr, "MarkerOf")

	cert := newWaiting(t, "")
	cert.p12(t, "client.p12", "client password")
	if code := cert.terminate(t); code != 0 {
		t.Fatalf("dstack-kms ends with %d", code)
	}
	cert.write(t, "", fmt.Sprintf("[core.bootstrap_server]\nenabled = true\nport = %d\nauthority_cert_file = %q\n", cert.port, filepath.Join(cert.Dir, "client.p12.pem")))
	cert.process = startCmd(t, command(t, []string{"DSTACK_KMS_CORE_AUTH_API_WEBHOOK_URL=http://127.0.0.1:1"}, "dstack-kms", "--config", cert.Config))
	cert.logs(t, "Bootstrap server has launched")
	sqlite[3] = filepath.Join(cert.Dir, "data")
	if code, stdout, stderr := cert.configure(t, sqlite...); code != 1 || !strings.HasPrefix(stderr, "ERROR: ") {
		t.Errorf("bootstrap-start without a certificate = %d, %q, %q, want 1", code, stdout, stderr)
	}
	code, stdout, stderr = cert.configure(t, append(sqlite, "--client-p12-file", filepath.Join(cert.Dir, "client.p12"), "--client-p12-password-file", cert.note(t, "password", "client password"))...)
	if code != 0 || !strings.Contains(stdout, "  -> Starting the KMS server") {
		t.Errorf("bootstrap-start with a certificate = %d, %q, %q, want 0", code, stdout, stderr)
	}
}
