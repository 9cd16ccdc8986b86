package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"teekms/internal/storage/storagetest/server"
)

// servers are the databases of the tests.
var servers server.Group

// configuring is a KMS that waits for its configuration.
type configuring struct {
	*kmsDir
	*process
	// bootstrap is where the configuration server listens.
	bootstrap string
	port      int
}

// newConfiguring starts a KMS with a complete key directory and a configuration
// server on a port of its own.
func newConfiguring(t testing.TB, extra string, args ...string) *configuring {
	t.Helper()
	k := newKMS(t, "", extra)
	k.fill(t, exampleDomain)
	return k.configuring(t, freePort(t), nil, args...)
}

// configuring starts dstack-kms with a configuration server on a port.
func (k *kmsDir) configuring(t testing.TB, port int, env []string, args ...string) *configuring {
	t.Helper()
	args = append([]string{"--config", k.Config, "--use-bootstrap-server", "--bootstrap-server-port", fmt.Sprint(port)}, args...)
	// Where the user keeps its state: relative paths of databases begin there.
	env = append(env, "XDG_STATE_HOME="+k.Dir)
	c := &configuring{kmsDir: k, port: port, bootstrap: fmt.Sprintf("https://localhost:%d", port)}
	c.process = startCmd(t, command(t, env, "dstack-kms", args...))
	c.logs(t, "Bootstrap server has launched from https://127.0.0.1:"+fmt.Sprint(port))
	return c
}

// curl posts as the documentation says, and returns status and body.
func curl(t testing.TB, args ...string) (status, body string) {
	t.Helper()
	cmd := exec.Command("curl", append([]string{"-sk", "--max-time", "60", "-w", "\n%{http_code}"}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	end := bytes.LastIndexByte(out, '\n')
	return string(out[end+1:]), string(out[:end])
}

// post sends JSON to the configuration server and wants an answer.
func (c *configuring) post(t testing.TB, path, body, wantStatus, want string) {
	t.Helper()
	status, got := curl(t, "-X", "POST", "-H", "Content-Type: application/json", "-d", body, c.bootstrap+path)
	if status != wantStatus || !strings.Contains(got, want) || strings.Contains(got, "\n") {
		t.Errorf("POST %s = %s %s, want %s and %s on one line", path, status, got, wantStatus, want)
	}
}

// quoted is a JSON string.
func quoted(s string) string {
	b, _ := json.Marshal(s) //nolint:errchkjson // a string has one
	return string(b)
}

// serves wants the KMS to be up and to release a key.
func (c *configuring) serves(t testing.TB) {
	t.Helper()
	c.logs(t, "KMS has launched")
	c.ready(t, c.trusting(t, exampleDomain), c.URL("https")+"/ready")
	c.releases(t, http.StatusOK, `"disk_crypt_key"`)
}

// releases asks for a key on a new connection.
func (k *kmsDir) releases(t testing.TB, status int, want string) {
	t.Helper()
	a := request(t, k.workload(t, k.openTD(t)), http.MethodPost, k.URL("https")+"/prpc/GetAppKey?json", "{}", nil)
	if a.StatusCode != status || !strings.Contains(a.body, want) {
		t.Errorf("GetAppKey = %d %.200s, want %d with %s", a.StatusCode, a.body, status, want)
	}
}

// keepsSecret looks for a secret wherever it may not be.
func (c *configuring) keepsSecret(t testing.TB, secrets ...string) {
	t.Helper()
	texts := map[string]string{"output": c.stdout.String() + c.stderr.String()}
	for _, file := range []string{"cmdline", "environ"} {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", c.Process.Pid, file)); err == nil {
			texts[file] = string(b)
		}
	}
	for _, secret := range secrets {
		for name, text := range texts {
			if strings.Contains(text, secret) {
				t.Errorf("%s holds %q:\n%s", name, secret, text)
			}
		}
	}
}

// pkcs12File makes a PKCS#12 as operators do.
func pkcs12File(t testing.TB, name, password string) string {
	t.Helper()
	dir := t.TempDir()
	shell(t, fmt.Sprintf(`cd %s && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out cert.pem -days 30 -subj /CN=%s -addext subjectAltName=DNS:%s 2>/dev/null
openssl pkcs12 -export -inkey key.pem -in cert.pem -out kms-server.p12 -passout pass:%s`, dir, name, name, password))
	return filepath.Join(dir, "kms-server.p12")
}

// certificateAt is the common name that a server shows for a server name, as
// openssl sees it; empty sends none.
func certificateAt(t testing.TB, address, name string) string {
	t.Helper()
	sni := "-noservername"
	if name != "" {
		sni = "-servername " + name
	}
	return strings.TrimSpace(shell(t, fmt.Sprintf(
		"openssl s_client -connect %s %s </dev/null 2>/dev/null | openssl x509 -noout -subject -nameopt RFC2253", address, sni)))
}

// TestConfigurationAsDocumented runs the commands of the documentation against
// every kind of database.
func TestConfigurationAsDocumented(t *testing.T) {
	t.Parallel()
	const marker = server.Marker
	url := func(kind server.Kind) func(*testing.T, *configuring) string {
		return func(t *testing.T, _ *configuring) string {
			s := servers.Shared(t, kind)
			return s.URL(s.NewDatabase(t))
		}
	}
	path := func(_ *testing.T, c *configuring) string { return filepath.Join(c.Dir, "cosmian-kms", "sqlite-data") }
	tests := []struct {
		name, route string
		where       func(*testing.T, *configuring) string
		body, want  string
	}{
		{"Redis with Findex", "/redis-findex", url(server.Redis), `{"url": %s, "master_password":"password-canary","findex_label":"label"}`, "Successfully received Redis-Findex configuration"},
		{"PostgreSQL", "/postgresql", url(server.PostgreSQL), `{"url": %s}`, "Successfully received PostgreSQL configuration"},
		{"MariaDB", "/mysql", url(server.MariaDB), `{"url": %s}`, "Successfully received MySql/MariaDB configuration"},
		{"SQLite", "/sqlite", path, `{"path": %s}`, "Successfully received Sqlite configuration"},
		{"encrypted SQLite", "/sqlite-enc", path, `{"path": %s}`, "Successfully received Sqlite Enc. configuration"},
		{"encrypted SQLite by its other name", "/sqlite-ec", path, `{"path": %s}`, "Successfully received Sqlite Enc. configuration"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newConfiguring(t, devAuthority)
			where := tt.where(t, c)
			p12 := pkcs12File(t, "https.example.com", "PKCS12password")
			c.post(t, tt.route, fmt.Sprintf(tt.body, quoted(where)), "200", `{"success":"`+tt.want+`"}`)
			status, body := curl(t, "-F", "name=pkcs12", "-F", "file=@"+p12, c.bootstrap+"/pkcs12")
			if want := fmt.Sprintf(`{"success":"PKCS#12 of %d bytes received"}`, len(mustRead(t, p12))); status != "200" || body != want {
				t.Errorf("POST /pkcs12 = %s %s, want 200 %s", status, body, want)
			}
			c.post(t, "/pkcs12-password", `{"password": "PKCS12password"}`, "200", `{"success":"PKCS#12 password received"}`)
			c.post(t, "/start", `{"clear_database": false}`, "200", `{"success":"Starting the KMS server`)
			c.serves(t)
			if got := certificateAt(t, fmt.Sprintf("127.0.0.1:%d", c.Port), ""); got != "subject=CN=https.example.com" {
				t.Errorf("without a name the KMS shows %q, want the PKCS#12's", got)
			}
			c.keepsSecret(t, marker, "password-canary", "PKCS12password")
			if code := c.terminate(t); code != 0 {
				t.Errorf("exit status %d, want 0", code)
			}
			c.keepsSecret(t, marker)

			// The same database again, emptied.
			again := c.configuring(t, c.port, nil)
			again.post(t, tt.route, fmt.Sprintf(tt.body, quoted(where)), "200", tt.want)
			again.post(t, "/start", `{"clear_database": true}`, "200",
				`{"success":"Starting the KMS server with warnings: No PKCS12 file has been supplied The KMS database will be erased.`)
			again.serves(t)
			again.logs(t, "WARN the database was cleared")
		})
	}
}

// TestStartThatFails answers 400, changes nothing, and takes what is right in the
// end.
func TestStartThatFails(t *testing.T) {
	t.Parallel()
	c := newConfiguring(t, devAuthority)
	// The database of a KMS with other root keys.
	other := newKMS(t, "", devAuthority)
	other.fill(t, exampleDomain)
	p, _ := other.serve(t, exampleDomain)
	p.terminate(t)
	foreign := filepath.Join(other.Dir, "db")
	before := tree(t, foreign)

	c.post(t, "/start", `{}`, "400", `{"error":"The KMS will not start: please provide database parameters to the bootstrap server first."}`)
	c.post(t, "/sqlite", `{"path": `+quoted(foreign)+`}`, "200", "Successfully")
	for _, clear := range []string{"false", "true"} {
		c.post(t, "/start", `{"clear_database": `+clear+`}`, "400", `{"error":"the database belongs to another KMS: it is bound to the root key `)
	}
	if after := tree(t, foreign); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the database of another KMS changed:\n%v\n%v", before, after)
	}
	c.post(t, "/postgresql", fmt.Sprintf(`{"url": "postgresql://kms:url-canary@127.0.0.1:%d/kms"}`, freePort(t)), "200", "Successfully")
	c.post(t, "/start", `{}`, "400", `the database server refused the connection: nothing listens there`)
	own := filepath.Join(c.Dir, "own")
	c.post(t, "/sqlite", `{"path": `+quoted(own)+`}`, "200", "Successfully")
	p12 := pkcs12File(t, "https.example.com", "right-canary")
	curl(t, "-F", "file=@"+p12+";type=application/octet-stream", c.bootstrap+"/pkcs12")
	c.post(t, "/start", `{}`, "400", `password`)
	c.post(t, "/pkcs12-password", `{"password": "wrong-canary"}`, "200", "received")
	c.post(t, "/start", `{"clear_database": true}`, "400", `password`)
	if _, err := os.Stat(own); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Stat(%s) = %v: the database was opened before the PKCS#12 was", own, err)
	}
	// Whoever has the KMS's port is named too.
	holder, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", c.Port))
	if err != nil {
		t.Fatal(err)
	}
	c.post(t, "/pkcs12-password", `{"password": "right-canary"}`, "200", "received")
	c.post(t, "/start", `{}`, "400", fmt.Sprintf(`Address already in use (os error 98): 127.0.0.1:%d`, c.Port))
	_ = holder.Close()
	if status, body := curl(t, c.bootstrap+"/status"); status != "200" || !strings.Contains(body, `"phase":"configuring"`) {
		t.Errorf("GET /status = %s %s, want a server that waits", status, body)
	}
	c.post(t, "/start", `{}`, "200", "Starting the KMS server")
	c.serves(t)
	c.keepsSecret(t, "url-canary", "right-canary", "wrong-canary")
}

// TestNobodyIsRefusedWhileTheKMSStarts connects all the time, on the port that
// both servers have and on two ports.
func TestNobodyIsRefusedWhileTheKMSStarts(t *testing.T) {
	t.Parallel()
	for _, same := range []bool{true, false} {
		t.Run(map[bool]string{true: "one port", false: "two ports"}[same], func(t *testing.T) {
			t.Parallel()
			k := newKMS(t, "", devAuthority)
			k.fill(t, exampleDomain)
			port := k.Port
			if !same {
				port = freePort(t)
			}
			c := k.configuring(t, port, nil)
			c.post(t, "/sqlite", `{"path": `+quoted(filepath.Join(k.Dir, "db"))+`}`, "200", "Successfully")
			stop, refused := make(chan struct{}), make(chan error, 1)
			if same {
				go func() { refused <- knock(fmt.Sprintf("127.0.0.1:%d", port), stop) }()
			}
			c.post(t, "/start", `{}`, "200", "Starting the KMS server")
			if !same {
				// From the answer on the KMS's port is open.
				go func() { refused <- knock(fmt.Sprintf("127.0.0.1:%d", k.Port), stop) }()
			}
			c.serves(t)
			close(stop)
			if err := <-refused; err != nil {
				t.Errorf("while the KMS started: %v", err)
			}
			if !same {
				for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
					err := probe(http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d", port))
					if err != nil && strings.Contains(err.Error(), "refused") {
						break
					}
					if time.Now().After(end) {
						t.Fatalf("the port of the configuration server = %v, want it closed", err)
					}
				}
			}
		})
	}
}

// knock connects until stop is closed, and returns the first connection that was
// refused, or did not shake hands with one of the two servers.
func knock(address string, stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
		if err != nil && strings.Contains(err.Error(), "refused") {
			return err
		}
		if err == nil {
			_ = conn.Close()
		}
		time.Sleep(time.Millisecond)
	}
}

// TestNamesOfTheHTTPSPort asks for the certificate of every name, and for keys by
// the domain.
func TestNamesOfTheHTTPSPort(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", devAuthority)
	k.fill(t, exampleDomain)
	p12 := pkcs12File(t, "https.example.com", "p12-canary")
	password := filepath.Join(k.Dir, "p12-password")
	if err := os.WriteFile(password, []byte("p12-canary\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The file of the configuration does what the configuration server does.
	p := startCmd(t, command(t, []string{
		"DSTACK_KMS_RPC_TLS_PKCS12_FILE=" + p12, "DSTACK_KMS_RPC_TLS_PKCS12_PASSWORD_FILE=" + password,
	}, "dstack-kms", "--config", k.Config))
	p.logs(t, "KMS has launched")
	address := fmt.Sprintf("127.0.0.1:%d", k.Port)
	for name, want := range map[string]string{
		exampleDomain: "CN=" + exampleDomain, strings.ToUpper(exampleDomain): "CN=" + exampleDomain,
		"https.example.com": "CN=https.example.com", "other.example.com": "CN=https.example.com", "": "CN=https.example.com",
	} {
		if got := certificateAt(t, address, name); got != "subject="+want {
			t.Errorf("asked for %q the KMS shows %q, want %s", name, got, want)
		}
	}
	if arcs := evidenceExtensions(k.rpcCertificate(t)); len(arcs) != 1 {
		t.Errorf("the certificate of the domain has Evidence extensions %v, want one", arcs)
	}
	k.releases(t, http.StatusOK, `"disk_crypt_key"`)
	status, body := curl(t, k.URL("https")+"/ready")
	if status != "200" {
		t.Errorf("GET /ready without a name = %s %s, want 200", status, body)
	}
	metrics, text := curl(t, k.URL("https")+"/metrics")
	if metrics != "200" || !strings.Contains(text, `teekms_certificate_not_after_seconds{certificate="pkcs12"}`) {
		t.Errorf("/metrics does not tell when the PKCS#12 expires:\n%.300s", text)
	}
}

// TestPlainHTTPAfterAConfiguration serves plain HTTP only where the configuration
// says so and no PKCS#12 was given.
func TestPlainHTTPAfterAConfiguration(t *testing.T) {
	t.Parallel()
	for _, withFile := range []bool{false, true} {
		k := newKMS(t, "", devAuthority)
		k.fill(t, exampleDomain)
		c := k.configuring(t, freePort(t), []string{"DSTACK_KMS_RPC_INSECURE_PLAINTEXT=true"})
		c.post(t, "/sqlite", `{"path": `+quoted(filepath.Join(k.Dir, "db"))+`}`, "200", "Successfully")
		scheme, want := "http", "with warnings: No PKCS12 file has been supplied"
		if withFile {
			curl(t, "-F", "file=@"+pkcs12File(t, "https.example.com", "")+";type=application/octet-stream", c.bootstrap+"/pkcs12")
			scheme, want = "https", "Starting the KMS server"
		}
		c.post(t, "/start", `{}`, "200", want)
		c.logs(t, "KMS has launched from "+scheme+"://")
		status, body := curl(t, c.URL(scheme)+"/prpc/KMS.GetMeta")
		if status != "200" || strings.Contains(body, "rpc.insecure_plaintext") == withFile {
			t.Errorf("GetMeta over %s = %s %.200s, want insecure_settings to tell how it is served", scheme, status, body)
		}
	}
}

// TestStartOfADatabaseThatIsSilent ends with 400 in time, and a process that is
// told to end meanwhile ends well.
func TestStartOfADatabaseThatIsSilent(t *testing.T) {
	t.Parallel()
	c := newConfiguring(t, devAuthority)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // nobody answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	c.post(t, "/postgresql", fmt.Sprintf(`{"url": "postgresql://kms:url-canary@%s/kms"}`, silent.Addr()), "200", "Successfully")
	answered := make(chan struct{})
	begin := time.Now()
	go func() {
		defer close(answered)
		c.post(t, "/start", `{}`, "400", `the database gave no answer within 10s`)
	}()
	conn, err := silent.Accept() // the first one is at it
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c.post(t, "/start", `{}`, "400", "another request")
	if code := c.terminate(t); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	<-answered
	if took := time.Since(begin); took > patience { // without a deadline of its own a start has 100 s
		t.Errorf("the start was answered after %s, want core.database.timeout, 10 s", took)
	}
	c.keepsSecret(t, "url-canary")
}
