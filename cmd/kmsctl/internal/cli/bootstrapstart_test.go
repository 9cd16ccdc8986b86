package cli_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"software.sslmate.com/src/go-pkcs12"

	"teekms/cmd/kmsctl/internal/cli"
	"teekms/cmd/kmsctl/internal/kmstest"
	"teekms/cmd/kmsctl/internal/status"
	"teekms/internal/attest/simtd"
	"teekms/internal/keys"
)

// bootstrapWorld is a bootstrap server in a software trust domain, and an
// operator's directory.
type bootstrapWorld struct {
	*kmstest.BootstrapServer
	td   *simtd.TD
	cert tls.Certificate
	dir  string
	// seen are the certificates of clients, as they came.
	seen chan *x509.Certificate
}

func newBootstrapWorld(t *testing.T) *bootstrapWorld {
	t.Helper()
	w := &bootstrapWorld{dir: t.TempDir(), seen: make(chan *x509.Certificate, 100)}
	var err error
	if w.td, err = simtd.Open(simtd.Config{Dir: filepath.Join(w.dir, "td")}); err != nil {
		t.Fatal(err)
	}
	w.cert = kmstest.Certificate(t, w.td)
	w.BootstrapServer = kmstest.NewBootstrapServer(t, w.cert, func(c *tls.Config) {
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			for _, c := range cs.PeerCertificates {
				w.seen <- c
			}
			return nil
		}
	})
	return w
}

// write writes a file of the operator.
func (w *bootstrapWorld) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (w *bootstrapWorld) mrtd() string {
	m := w.td.Measurements().MRTD
	return hex.EncodeToString(m[:])
}

// known are the flags that know the server.
func (w *bootstrapWorld) known() []string {
	return []string{"--bootstrap-server-url", w.URL, "--expect-mrtd", w.mrtd(), "--trust-root", w.td.RootPath(), "--collateral", filepath.Join(w.dir, "td")}
}

// since is what the server was sent after the first n posts.
func (w *bootstrapWorld) since(n int) []string {
	posts, _ := w.Posts()
	var all []string
	for _, p := range posts[n:] {
		body := p.Body
		if p.Path == "/pkcs12" {
			body = "..."
		}
		all = append(all, p.Path+" "+body)
	}
	return all
}

// p12 makes a PKCS#12 file.
func (w *bootstrapWorld) p12(t *testing.T, name, password string) string {
	t.Helper()
	data, err := pkcs12.Modern.WithIterations(100).Encode(w.cert.PrivateKey, kmstest.Leaf(t, w.cert), nil, password)
	if err != nil {
		t.Fatal(err)
	}
	return w.write(t, name, string(data))
}

// runIn runs the tool with variables of the environment and a standard input.
func runIn(ctx context.Context, vars map[string]string, stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errs buffer
	code = cli.Run(ctx, cli.Environment{
		Args: args, Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs, Now: time.Now, Version: "v1.2.3",
		Getenv: func(name string) string { return vars[name] },
	})
	return code, out.String(), errs.String()
}

func TestBootstrapStartSendsWhatItIsGiven(t *testing.T) {
	w := newBootstrapWorld(t)
	open, locked := w.p12(t, "open.p12", ""), w.p12(t, "locked.p12", "p12-password")
	const header = "Server response:\n"
	tests := []struct {
		name   string
		args   []string
		stdin  string
		posts  []string
		stdout string
		warns  []string
	}{
		{
			"every flag of Redis, and a PKCS#12",
			[]string{
				"--database-type", "redis-findex", "--database-url", "redis://redis-server:6379", "--redis-master-password", "master-password",
				"--redis-findex-label", "label", "--https-p12-file", locked, "--https-p12-password", "p12-password",
			},
			"",
			[]string{
				`/pkcs12-password {"password":"p12-password"}`, "/pkcs12 ...",
				`/redis-findex {"findex_label":"label","master_password":"master-password","url":"redis://redis-server:6379"}`,
				`/start {"clear_database":false}`,
			},
			header + "  -> PKCS#12 of 42 bytes received\n  -> Successfully received Redis-Findex configuration\n  -> Starting the KMS server\n",
			[]string{"--https-p12-password", "--redis-master-password"},
		},
		{
			"secrets of files",
			[]string{
				"--database-type", "redis-findex", "--database-url-file", w.write(t, "url", "rediss://u:p@h:1\n"),
				"--redis-master-password-file", "-", "--redis-findex-label", "label",
				"--https-p12-file", locked, "--https-p12-password-file", w.write(t, "password", "p12-password\n"),
			},
			"master-password\n",
			[]string{
				`/pkcs12-password {"password":"p12-password"}`, "/pkcs12 ...",
				`/redis-findex {"findex_label":"label","master_password":"master-password","url":"rediss://u:p@h:1"}`,
				`/start {"clear_database":false}`,
			},
			header + "  -> PKCS#12 of 42 bytes received\n  -> Successfully received Redis-Findex configuration\n  -> Starting the KMS server\n", nil,
		},
		{
			"a PKCS#12 without a password",
			[]string{"--https-p12-file", open},
			"",
			[]string{`/pkcs12-password {"password":""}`, "/pkcs12 ...", `/start {"clear_database":false}`},
			header + "  -> PKCS#12 of 42 bytes received\n  -> Starting the KMS server\n", nil,
		},
		{
			"a password alone",
			[]string{"--https-p12-password-file", "-"},
			"p12-password",
			[]string{`/pkcs12-password {"password":"p12-password"}`, `/start {"clear_database":false}`},
			header + "  -> Starting the KMS server\n", nil,
		},
		{"a start alone", nil, "", []string{`/start {"clear_database":false}`}, header + "  -> Starting the KMS server\n", nil},
		{"a start that clears", []string{"--clear-database"}, "", []string{`/start {"clear_database":true}`}, header + "  -> Starting the KMS server\n", nil},
		{
			"SQLite",
			[]string{"--database-type", "sqlite"},
			"",
			[]string{`/sqlite {"path":"./sqlite-data"}`, `/start {"clear_database":false}`},
			header + "  -> Successfully received Sqlite configuration\n  -> Starting the KMS server\n", nil,
		},
		{
			"encrypted SQLite",
			[]string{"--database-type", "sqlite-enc", "--sqlite-path", "/var/lib/kms", "--sqlite-master-password-file", "-"},
			"m",
			[]string{`/sqlite-enc {"master_password":"m","path":"/var/lib/kms"}`, `/start {"clear_database":false}`},
			header + "  -> Successfully received Sqlite Enc. configuration\n  -> Starting the KMS server\n", nil,
		},
		{
			"PostgreSQL",
			[]string{"--database-type", "postgresql", "--database-url", "postgresql://postgres-server:5432"},
			"",
			[]string{`/postgresql {"url":"postgresql://postgres-server:5432"}`, `/start {"clear_database":false}`},
			header + "  -> Successfully received PostgreSQL configuration\n  -> Starting the KMS server\n", nil,
		},
		{
			"MySQL with a password in its URL",
			[]string{"--database-type", "mysql", "--database-url", "mysql://u:hunter2@h:3306"},
			"",
			[]string{`/mysql {"url":"mysql://u:hunter2@h:3306"}`, `/start {"clear_database":false}`},
			header + "  -> Successfully received MySql/MariaDB configuration\n  -> Starting the KMS server\n",
			[]string{"--database-url"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before, _ := w.Posts()
			code, stdout, stderr := runIn(t.Context(), nil, tt.stdin, slices.Concat([]string{"bootstrap-start"}, w.known(), tt.args)...)
			if code != status.OK || stdout != tt.stdout {
				t.Errorf("kmsctl bootstrap-start = %d, %q, %q, want 0 and %q", code, stdout, stderr, tt.stdout)
			}
			if diff := cmp.Diff(tt.posts, w.since(len(before))); diff != "" {
				t.Errorf("posts (-want +got):\n%s", diff)
			}
			var warned []string
			for line := range strings.Lines(stderr) {
				rest, ok := strings.CutPrefix(line, "Warning: ")
				flag, _, _ := strings.Cut(rest, " ")
				if !ok {
					t.Errorf("standard error has the line %q, want warnings alone", line)
				}
				warned = append(warned, flag)
			}
			if diff := cmp.Diff(tt.warns, warned); diff != "" {
				t.Errorf("warnings about (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBootstrapStartJSON(t *testing.T) {
	w := newBootstrapWorld(t)
	args := slices.Concat([]string{"bootstrap-start", "--json", "--database-type", "sqlite"}, w.known())
	type result struct {
		OK     bool
		Server struct {
			URL       string
			Key       string `json:"public_key_sha256"`
			TCBStatus string `json:"tcb_status"`
			Claims    map[string][]string
		}
		Responses []struct{ Route, Success string }
		Error     string
		Ready     string
	}
	code, stdout, stderr := runIn(t.Context(), nil, "", args...)
	var got result
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != status.OK || stderr != "" {
		t.Fatalf("kmsctl bootstrap-start --json = %d, %q, %q, %v", code, stdout, stderr, err)
	}
	key := sha256.Sum256(kmstest.Leaf(t, w.cert).RawSubjectPublicKeyInfo)
	if !got.OK || got.Server.URL != w.URL || got.Server.Key != hex.EncodeToString(key[:]) || got.Server.TCBStatus != "UpToDate" ||
		len(got.Server.Claims["mrtd"]) != 1 || got.Server.Claims["mrtd"][0] != w.mrtd() || len(got.Responses) != 2 || got.Responses[1].Route != "start" {
		t.Errorf("result = %+v, want the server's Evidence and two responses", got)
	}
	w.SetAnswer(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		io.WriteString(w, `{"error":"no such directory"}`)
	})
	code, stdout, stderr = runIn(t.Context(), nil, "", args...)
	got = result{}
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || code != status.Failed || got.OK || got.Error != "no such directory" || stderr != "ERROR: no such directory\n" {
		t.Errorf("kmsctl bootstrap-start --json = %d, %q, %q, %v, want the server's error", code, stdout, stderr, err)
	}
}

func TestBootstrapStartEndsAtTheFirstError(t *testing.T) {
	w := newBootstrapWorld(t)
	w.SetAnswer(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/start" {
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, `{"error":"the PKCS#12 has another password"}`)
			return
		}
		io.WriteString(w, `{"success":"good"}`)
	})
	code, stdout, stderr := runIn(t.Context(), nil, "", slices.Concat([]string{"bootstrap-start", "--database-type", "sqlite"}, w.known())...)
	if code != status.Failed || stdout != "Server response:\n  -> good\n" || stderr != "ERROR: the PKCS#12 has another password\n" {
		t.Errorf("kmsctl bootstrap-start = %d, %q, %q, want the error of /start", code, stdout, stderr)
	}
	w.SetAnswer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
	before, _ := w.Posts()
	code, stdout, stderr = runIn(t.Context(), nil, "", slices.Concat([]string{"bootstrap-start", "--database-type", "sqlite"}, w.known())...)
	if code != status.Failed || stdout != "Server response:\n" || stderr != "ERROR: /sqlite is answered with 401 Unauthorized; give the token with --bootstrap-token-file\n" {
		t.Errorf("kmsctl bootstrap-start = %d, %q, %q, want that a token is wanted", code, stdout, stderr)
	}
	if sent := w.since(len(before)); len(sent) != 1 {
		t.Errorf("after an error the server was sent %v", sent[1:])
	}
}

func TestBootstrapStartKnowsTheServer(t *testing.T) {
	w := newBootstrapWorld(t)
	key := sha256.Sum256(kmstest.Leaf(t, w.cert).RawSubjectPublicKeyInfo)
	td := []string{"--trust-root", w.td.RootPath(), "--collateral", filepath.Join(w.dir, "td")}
	expectFile := w.write(t, "expect.toml", "mrtd = \""+w.mrtd()+"\"\n")
	tests := []struct {
		name string
		args []string
		code int
		want string
	}{
		{"a file of expectations", append(td, "--expect-file", expectFile), status.OK, ""},
		{"any trust domain", append(td, "--insecure-accept-any-measurement"), status.OK, "Warning: any trust domain gets the configuration; this one is --expect-mrtd " + w.mrtd() + "\n"},
		{"a pin", append(td, "--pin-spki", "sha256:"+base64.StdEncoding.EncodeToString(key[:])), status.OK, ""},
		{"nothing", []string{"--insecure-no-attestation"}, status.OK, "Warning: whoever answers gets the configuration: neither Evidence nor a key was looked at; the key is --pin-spki " + hex.EncodeToString(key[:]) + "\n"},
		{"other software", append(td, "--expect-mrtd", strings.Repeat("00", 48)), status.Unexpected, "is not what was expected: mrtd is " + w.mrtd()},
		{"two registers that are others", append(td, "--expect-mrtd", strings.Repeat("00", 48), "--expect-rtmr", "0="+strings.Repeat("00", 48)), status.Unexpected, "rtmr0 is "},
		{"Intel's root", []string{"--expect-mrtd", w.mrtd(), "--collateral", td[3]}, status.NotVerified, "PCK certificate chain: "},
		{"no PCS", []string{"--expect-mrtd", w.mrtd(), "--trust-root", td[1], "--pccs", "http://127.0.0.1:1"}, status.NoCollateral, "connection refused"},
		{"another key", append(td, "--pin-spki", strings.Repeat("00", 32)), status.Unexpected, "--pin-spki wants " + strings.Repeat("00", 32)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before, _ := w.Posts()
			code, _, stderr := runIn(t.Context(), nil, "", append([]string{"bootstrap-start", "--bootstrap-server-url", w.URL}, tt.args...)...)
			if code != tt.code || !strings.Contains(stderr, tt.want) || strings.HasPrefix(stderr, "ERROR: ") != (code != 0) || strings.Count(stderr, "\n") > 1 {
				t.Errorf("kmsctl bootstrap-start = %d, %q, want %d and %q", code, stderr, tt.code, tt.want)
			}
			if sent := w.since(len(before)); len(sent) > 0 != (code == 0) {
				t.Errorf("the server was sent %v", sent)
			}
		})
	}
}

func TestBootstrapStartReadsTheClientFile(t *testing.T) {
	w := newBootstrapWorld(t)
	w.write(t, "d/expect.json", `{"mrtd":"`+w.mrtd()+`"}`)
	client, _ := clientCertificate(t)
	w.write(t, "d/client.p12", client)
	text := func(edit func(map[string]string)) string {
		fields := map[string]string{"bootstrap_server_url": w.URL, "bootstrap_expect_file": "expect.json", "bootstrap_trust_root": "../td/root-ca.pem", "bootstrap_collateral": "../td"}
		if edit != nil {
			edit(fields)
		}
		b, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	missing := filepath.Join(w.dir, "none.json")
	tests := []struct {
		name string
		text string // of the file; none where it is empty
		args []string
		auth string
		code int
		want string
	}{
		{"all that is needed", text(nil), nil, "", status.OK, ""},
		{"the URL of the KMS", text(func(f map[string]string) {
			delete(f, "bootstrap_server_url")
			f["kms_server_url"] = strings.Replace(w.URL, "https://", "http://", 1)
		}), nil, "", status.OK, ""},
		{"a token", text(func(f map[string]string) { f["kms_access_token"] = "of the file" }), nil, "Bearer of the file", status.OK, ""},
		{"a token that a flag replaces", text(func(f map[string]string) { f["kms_access_token"] = "of the file" }), []string{"--bootstrap-token-file", w.write(t, "token", "of the flag\n")}, "Bearer of the flag", status.OK, ""},
		{"a client certificate", text(func(f map[string]string) {
			f["ssl_client_pkcs12_path"], f["ssl_client_pkcs12_password"] = filepath.Join(w.dir, "d/client.p12"), "client"
		}), nil, "", status.OK, ""},
		{"a server that a flag names", text(func(f map[string]string) { f["bootstrap_server_url"] = "https://127.0.0.1:1" }), []string{"--bootstrap-server-url", w.URL}, "", status.OK, ""},
		{"expectations that a flag replaces", text(nil), []string{"--expect-mrtd", strings.Repeat("00", 48)}, "", status.Unexpected, "--expect-mrtd wants"},
		{"no attestation", text(nil), []string{"--insecure-no-attestation"}, "", status.OK, ""},
		{"a pin", text(func(f map[string]string) { f["bootstrap_pin_spki"] = strings.Repeat("00", 32) }), nil, "", status.Unexpected, "--pin-spki wants"},

		{"nothing", `{}`, []string{"--insecure-no-attestation"}, "", status.Usage, "names neither bootstrap_server_url nor kms_server_url"},
		{"no URL", text(func(f map[string]string) { f["bootstrap_server_url"] = "kms.example.com" }), nil, "", status.Failed, "not of the form https://HOST[:PORT]"},
		{"plain HTTP", text(func(f map[string]string) { f["bootstrap_server_url"] = "http://h" }), nil, "", status.Failed, "reached by https:// alone"},
		{"no JSON", `{`, nil, "", status.Failed, "not JSON"},
		{"nothing that knows the server", text(func(f map[string]string) { delete(f, "bootstrap_expect_file") }), nil, "", status.Usage, "say which server may have the configuration"},
		{"another password", text(func(f map[string]string) {
			f["ssl_client_pkcs12_path"], f["ssl_client_pkcs12_password"] = filepath.Join(w.dir, "d/client.p12"), "other"
		}), nil, "", status.Failed, "another password opens it"},
		{"no file", "", nil, "", status.Failed, missing + " (KMS_CLI_CONF): open " + missing + ": no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := missing
			if tt.text != "" {
				path = w.write(t, "d/kms.json", tt.text)
			}
			before, _ := w.Posts()
			code, _, stderr := runIn(t.Context(), map[string]string{"KMS_CLI_CONF": path}, "", append([]string{"bootstrap-start"}, tt.args...)...)
			if code != tt.code || !strings.Contains(stderr, tt.want) {
				t.Errorf("kmsctl bootstrap-start = %d, %q, want %d and %q", code, stderr, tt.code, tt.want)
			}
			posts, _ := w.Posts()
			if len(posts) > len(before) != (code == 0) {
				t.Errorf("the server was sent %v", posts[len(before):])
			}
			if code == 0 && posts[len(posts)-1].Authorization != tt.auth {
				t.Errorf("Authorization = %q, want %q", posts[len(posts)-1].Authorization, tt.auth)
			}
		})
	}
	if c := <-w.seen; c.Subject.CommonName != "operator" || len(w.seen) != 0 {
		t.Errorf("the server saw the client certificate of %s and %d others, want that of the one case", c.Subject, len(w.seen))
	}
	home := t.TempDir()
	code, _, stderr := runIn(t.Context(), map[string]string{"HOME": home}, "", "bootstrap-start", "--insecure-no-attestation")
	if want := "there is no " + home + "/.cosmian/kms.json, which could hold"; code != status.Usage || !strings.Contains(stderr, want) {
		t.Errorf("kmsctl bootstrap-start = %d, %q, want %q", code, stderr, want)
	}
	if entries, err := os.ReadDir(home); err != nil || len(entries) > 0 {
		t.Errorf("kmsctl bootstrap-start makes %v, %v", entries, err)
	}
}

// clientCertificate makes one as PKCS#12 under the password "client", and as PEM.
func clientCertificate(t *testing.T) (p12, pemText string) {
	t.Helper()
	key, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	template.Subject.CommonName = "operator"
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	data, err := pkcs12.Modern.WithIterations(100).Encode(key, leaf, nil, "client")
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(data), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

func TestBootstrapStartShowsAClientCertificate(t *testing.T) {
	w := newBootstrapWorld(t)
	p12, both := clientCertificate(t)
	file, pemFile := w.write(t, "client.p12", p12), w.write(t, "client.pem", both)
	for _, args := range [][]string{
		{"--client-cert", pemFile, "--client-key", pemFile},
		{"--client-p12-file", file, "--client-p12-password-file", w.write(t, "password", "client")},
	} {
		code, _, stderr := runIn(t.Context(), nil, "", slices.Concat([]string{"bootstrap-start"}, w.known(), args)...)
		if code != status.OK || len(w.seen) != 1 {
			t.Fatalf("kmsctl bootstrap-start %q = %d, %q, and the server saw %d certificates", args, code, stderr, len(w.seen))
		}
		if c := <-w.seen; c.Subject.CommonName != "operator" {
			t.Errorf("the server saw the certificate of %s", c.Subject)
		}
	}
	code, _, stderr := runIn(t.Context(), nil, "", slices.Concat([]string{"bootstrap-start"}, w.known(), []string{"--client-p12-file", file})...)
	if code != status.Failed || !strings.Contains(stderr, "--client-p12-file: another password opens it") {
		t.Errorf("kmsctl bootstrap-start = %d, %q, want that a password is missing", code, stderr)
	}
}

// A PKCS#12 file says itself how much work it takes to open it.
func TestBootstrapStartDoesNotWorkForAHostileFile(t *testing.T) {
	w := newBootstrapWorld(t)
	key, leaf := w.cert.PrivateKey, kmstest.Leaf(t, w.cert)
	p12, err := pkcs12.Modern.WithIterations(0x010203).Encode(key, leaf, nil, "client")
	if err != nil {
		t.Fatal(err)
	}
	hostile := bytes.ReplaceAll(p12, []byte{2, 3, 1, 2, 3}, []byte{2, 3, 0x7f, 0xff, 0xff})
	if bytes.Equal(hostile, p12) {
		t.Fatal("the file has no iteration count where one was looked for")
	}
	args := slices.Concat([]string{"bootstrap-start"}, w.known(), []string{
		"--client-p12-file", w.write(t, "hostile.p12", string(hostile)), "--client-p12-password-file", w.write(t, "password", "client"),
	})
	// In the other one, the key asks for 2,147,483,647 iterations and stands under
	// the encryption, so that only who has the password, "correct horse", sees it.
	inside := slices.Concat([]string{"bootstrap-start"}, w.known(), []string{
		"--client-p12-file", "testdata/hostile.p12", "--client-p12-password-file", w.write(t, "password2", "correct horse"),
	})
	for name, args := range map[string][]string{"outside": args, "inside": inside} {
		begin := time.Now()
		code, _, stderr := runIn(t.Context(), nil, "", args...)
		if code != status.Failed || !strings.Contains(stderr, "--client-p12-file: PKCS#12: its iteration count is not from 1 to") {
			t.Errorf("kmsctl bootstrap-start (%s) = %d, %q, want that the file asks for too much work", name, code, stderr)
		}
		if took := time.Since(begin); took > time.Minute {
			t.Errorf("kmsctl bootstrap-start (%s) took %s", name, took)
		}
	}
}

func TestBootstrapStartWaits(t *testing.T) {
	w := newBootstrapWorld(t)
	asked := 0
	kms := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked < 3 || r.URL.Path != "/ready" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer kms.Close()
	args := slices.Concat([]string{"bootstrap-start", "--wait", kms.URL}, w.known())
	code, stdout, stderr := runIn(t.Context(), nil, "", args...)
	if code != status.OK || stdout != "Server response:\n  -> Starting the KMS server\nThe KMS is ready: "+kms.URL+"\n" || asked != 3 {
		t.Errorf("kmsctl bootstrap-start --wait = %d, %q, %q after %d questions, want that it is ready at the third", code, stdout, stderr, asked)
	}
	asked = -1 << 30
	code, _, stderr = runIn(t.Context(), nil, "", append(args, "--timeout", "2s")...)
	if want := "ERROR: gave up after 2s: waiting for the KMS at " + kms.URL + ": 503 Service Unavailable\n"; code != status.Failed || stderr != want {
		t.Errorf("kmsctl bootstrap-start --wait = %d, %q, want %q", code, stderr, want)
	}
}

func TestBootstrapStartUsage(t *testing.T) {
	w := newBootstrapWorld(t)
	nobody := []string{"--bootstrap-server-url", "https://127.0.0.1:1", "--insecure-no-attestation"}
	tests := []struct {
		args string
		want string
	}{
		{"", "say which server may have the configuration"},
		{"--expect-rtmr 3=" + strings.Repeat("00", 48), "say which server may have the configuration"},
		{"--expect-mrtd " + w.mrtd() + " --trust-root x", "--trust-root needs --collateral or --pccs"},
		{"--expect-mrtd 00", "--expect-mrtd: mrtd: 2 hex digits, want 96"},
		{"--allow-tcb-status Revoked --expect-mrtd " + w.mrtd(), `"Revoked" cannot be accepted`},
		{"--pin-spki 00", "--pin-spki: want the SHA-256"},
		{"--pin-spki=", "--pin-spki: want the SHA-256"},
		{"--insecure-no-attestation --expect-mrtd " + w.mrtd(), "looks at nothing, so --expect-mrtd means nothing"},
		{"--insecure-no-attestation --pin-spki 00", "so --pin-spki means nothing"},
		{"--insecure-no-attestation --trust-root x", "so --trust-root means nothing"},
		{"--insecure-no-attestation", "--bootstrap-server-url is required: neither KMS_CLI_CONF nor HOME is set"},
		{"--insecure-no-attestation --bootstrap-server-url http://h", "--bootstrap-server-url: a bootstrap server is reached by https:// alone"},
		{"--timeout 0s", "--timeout must be positive"},
		{"--wait h", "--wait: not of the form"},
		{"--database-type oracle", `--database-type: "oracle" is none of postgresql, mysql, sqlite, sqlite-enc, redis-findex`},
		{"--database-type postgresql", "--database-type postgresql needs --database-url or --database-url-file"},
		{"--database-type mysql", "--database-type mysql needs --database-url"},
		{"--database-type redis-findex --database-url redis://h", "needs --redis-findex-label"},
		{"--database-type redis-findex --redis-findex-label l", "needs --database-url"},
		{"--database-type redis-findex --redis-findex-label l --database-url redis://h", "needs --redis-master-password-file or --redis-master-password"},
		{"--database-type redis-findex --redis-findex-label l --database-url redis://h --redis-master-password=", "--redis-master-password: empty"},
		{"--database-type sqlite --database-url x", "--database-url does not go with --database-type sqlite"},
		{"--database-type sqlite --sqlite-master-password-file x", "--sqlite-master-password-file does not go with --database-type sqlite"},
		{"--database-type postgresql --database-url x --redis-findex-label l", "--redis-findex-label does not go with"},
		{"--database-type sqlite --sqlite-path=", "--sqlite-path: empty"},
		{"--sqlite-path x", "--sqlite-path needs --database-type"},
		{"--database-url x", "--database-url needs --database-type"},
		{"--database-type mysql --database-url x --database-url-file y", "give --database-url or --database-url-file, not both"},
		{"--https-p12-password x --https-p12-password-file y", "give --https-p12-password or --https-p12-password-file, not both"},
		{"--client-cert x", "--client-cert and --client-key go together"},
		{"--client-cert x --client-key y --client-p12-file z", "--client-cert or --client-p12-file, not both"},
		{"--client-p12-password-file x", "goes with --client-p12-file"},
		{"sqlite", `unexpected argument "sqlite"`},
		{"--database", "unknown flag: --database"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			args := append([]string{"bootstrap-start"}, strings.Fields(tt.args)...)
			if known := strings.Contains(tt.args, "insecure") || strings.Contains(tt.args, "expect") || strings.Contains(tt.args, "pin"); !known && tt.args != "" {
				args = append(args, nobody...)
			}
			code, stdout, stderr := runIn(t.Context(), nil, "", args...)
			lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
			lines = slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, "Warning: ") })
			if code != status.Usage || stdout != "" || len(lines) != 2 || !strings.HasPrefix(lines[0], "ERROR: ") || !strings.Contains(lines[0], tt.want) || lines[1] != "Try 'kmsctl bootstrap-start --help'." {
				t.Errorf("kmsctl bootstrap-start %s = %d, %q, %q, want 2 and %q", tt.args, code, stdout, stderr, tt.want)
			}
		})
	}
}

func TestBootstrapStartErrors(t *testing.T) {
	w := newBootstrapWorld(t)
	silent := httptest.NewUnstartedServer(nil)
	t.Cleanup(func() { silent.Listener.Close() })
	large := w.write(t, "large.p12", strings.Repeat("a", 300<<10))
	none := filepath.Join(w.dir, "none")
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"nobody listens", []string{"--bootstrap-server-url", "https://127.0.0.1:1"}, "connecting to 127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused"},
		{"nobody answers", []string{"--bootstrap-server-url", "https://" + silent.Listener.Addr().String(), "--timeout", "100ms"}, "gave up after 100ms: connecting to "},
		{"no PKCS#12", []string{"--https-p12-file", none}, "--https-p12-file: open " + none + ": no such file"},
		{"a directory", []string{"--https-p12-file", w.dir}, "not a regular file"},
		{"a large PKCS#12", []string{"--https-p12-file", large}, "more than 262144 bytes"},
		{"no token", []string{"--bootstrap-token-file", none}, "--bootstrap-token-file: open "},
		{"no client certificate", []string{"--client-cert", none, "--client-key", none}, "--client-cert: open "},
		{"no expectations", []string{"--expect-file", none}, "--expect-file: reading expectations"},
		{"standard input for two", []string{"--bootstrap-token-file", "-", "--https-p12-password-file", "-"}, "--https-p12-password-file: standard input holds that of --bootstrap-token-file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before, _ := w.Posts()
			code, stdout, stderr := runIn(t.Context(), nil, "x\n", slices.Concat([]string{"bootstrap-start"}, w.known(), tt.args)...)
			if code != status.Failed || stdout != "" || !strings.HasPrefix(stderr, "ERROR: ") || !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("kmsctl bootstrap-start = %d, %q, %q, want 1 and %q", code, stdout, stderr, tt.want)
			}
			if sent := w.since(len(before)); len(sent) > 0 {
				t.Errorf("the server was sent %v", sent)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if code, _, stderr := runIn(ctx, nil, "", append([]string{"bootstrap-start"}, w.known()...)...); code != status.Failed || stderr != "ERROR: interrupted\n" {
		t.Errorf("kmsctl bootstrap-start = %d, %q, want that it was interrupted", code, stderr)
	}
}
