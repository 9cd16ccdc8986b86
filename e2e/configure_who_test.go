package e2e

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// loud is what is said where anybody may configure.
const loud = "WHOEVER REACHES THE BOOTSTRAP SERVER CAN CONFIGURE AND START THIS KMS"

// certificate is what the configuration server shows.
func (c *configuring) certificate(t testing.TB) *tls.ConnectionState {
	t.Helper()
	conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", c.port), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	state := conn.ConnectionState()
	return &state
}

// TestCertificateOfTheConfigurationServer looks at names, life and Evidence.
func TestCertificateOfTheConfigurationServer(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	k.fill(t, exampleDomain)
	t.Run("with Evidence", func(t *testing.T) {
		c := k.configuring(t, freePort(t), []string{
			"KMS_BOOTSTRAP_SERVER_COMMON_NAME=from-env.example.com", "KMS_BOOTSTRAP_SERVER_EXPIRATION_DAYS=7", "KMS_ENSURE_RA_TLS=true",
			"KMS_PORT=tcp://10.0.0.1:9998", // a platform's own
		})
		c.logs(t, "(RA-TLS)")
		c.logs(t, loud)
		leaf := c.certificate(t).PeerCertificates[0]
		if leaf.Subject.CommonName != "from-env.example.com" || leaf.IsCA {
			t.Errorf("subject %s, CA %v, want the name of the environment on a leaf", leaf.Subject, leaf.IsCA)
		}
		for _, name := range []string{"from-env.example.com", "localhost", "127.0.0.1", exampleDomain} {
			if err := leaf.VerifyHostname(name); err != nil {
				t.Errorf("the certificate is not for %s: %v", name, err)
			}
		}
		if life := time.Until(leaf.NotAfter); life < 6*24*time.Hour || life > 8*24*time.Hour {
			t.Errorf("the certificate is good for %s, want 7 days", life)
		}
		attested, err := k.appraiser(t, k.openTD(t)).AppraiseCertificate(t.Context(), leaf)
		if err != nil || attested == nil {
			t.Errorf("AppraiseCertificate() = %v, %v, want an attested KMS", attested, err)
		}
		if status, body := curl(t, c.bootstrap+"/ready"); status != "503" || !strings.Contains(body, "waiting for configuration") {
			t.Errorf("GET /ready = %s %s, want 503", status, body)
		}
		// Whoever ends it before there is a configuration ends it well.
		if code := c.terminate(t); code != 0 {
			t.Errorf("exit status %d, want 0", code)
		}
		c.logs(t, "INFO stopped before a configuration was given")
	})
	t.Run("without", func(t *testing.T) {
		nobody := []string{
			"DSTACK_KMS_CORE_ATTESTATION_PROVIDER=guest-agent", "DSTACK_AGENT_ADDRESS=unix:" + filepath.Join(k.Dir, "nobody.sock"),
			"DSTACK_KMS_CORE_ATTEST_RPC_CERT=false",
		}
		c := k.configuring(t, freePort(t), nobody, "--bootstrap-server-subject", "CN=subject.example.com,O=Example")
		c.logs(t, "(plain self-signed, NOT attested)")
		leaf := c.certificate(t).PeerCertificates[0]
		if arcs := evidenceExtensions(leaf); len(arcs) > 0 || leaf.Subject.CommonName != "subject.example.com" {
			t.Errorf("subject %s, Evidence extensions %v, want none", leaf.Subject, arcs)
		}
		if _, body := curl(t, c.bootstrap+"/status"); !strings.Contains(body, `"attested":false`) {
			t.Errorf("GET /status = %s, want attested false", body)
		}
		c.terminate(t)

		for name, env := range map[string][]string{"no attester": nobody, "quotes switched off": {"DSTACK_KMS_CORE_ONBOARD_QUOTE_ENABLED=false"}} {
			code, _, stderr := runCmd(t, command(t, env, "dstack-kms", "--config", k.Config, "--use-bootstrap-server", "--ensure-ra-tls",
				"--bootstrap-server-port", fmt.Sprint(freePort(t))))
			last := lastLine(stderr)
			if code != 1 || !strings.HasPrefix(last, "Error: core.bootstrap_server.ensure_ra_tls: no Evidence for the certificate: ") {
				t.Errorf("%s: exit status %d, last line %q, want 1 and a refusal that names ensure_ra_tls", name, code, last)
			}
		}
	})
}

// TestWhoMayConfigure asks for a token, and for a client certificate.
func TestWhoMayConfigure(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", devAuthority)
	k.fill(t, exampleDomain)
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("token-canary\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	shell(t, "cd "+dir+` && for ca in ca other; do
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $ca.key -out $ca.pem -days 30 -subj "/CN=$ca" 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $ca-client.key -out $ca.csr -subj "/CN=operator of $ca" 2>/dev/null
openssl x509 -req -in $ca.csr -CA $ca.pem -CAkey $ca.key -days 30 -out $ca-client.pem -extfile <(echo extendedKeyUsage=clientAuth) 2>/dev/null
done`)
	client := func(ca string) []string {
		return []string{"--cert", filepath.Join(dir, ca+"-client.pem"), "--key", filepath.Join(dir, ca+"-client.key")}
	}
	database := `{"path": ` + quoted(filepath.Join(k.Dir, "db")) + `}`
	type try struct {
		args   []string
		status string
	}
	tests := []struct {
		name  string
		flags []string
		bad   []try
		good  []string
		means string
	}{
		{
			"token",
			[]string{"--bootstrap-token-file", token},
			[]try{{nil, "401"}, {[]string{"-H", "Authorization: Bearer wrong"}, "401"}},
			[]string{"-H", "Authorization: Bearer token-canary"},
			`"token"`,
		},
		{
			"client certificate",
			[]string{"--authority-cert-file", filepath.Join(dir, "ca.pem")},
			[]try{{nil, "401"}, {[]string{"-H", "Authorization: Bearer token-canary"}, "401"}},
			client("ca"), `"certificate"`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := k.configuring(t, freePort(t), nil, tt.flags...)
			if strings.Contains(c.stderr.String(), loud) {
				t.Errorf("the log says that anybody may configure:\n%s", c.stderr)
			}
			for _, bad := range tt.bad {
				for _, path := range []string{"/sqlite", "/start"} {
					body := map[string]string{"/sqlite": database, "/start": `{"clear_database": true}`}[path]
					args := append([]string{"-X", "POST", "-H", "Content-Type: application/json", "-d", body}, bad.args...)
					if status, text := curl(t, append(args, c.bootstrap+path)...); status != bad.status {
						t.Errorf("POST %s with %q = %s %s, want %s", path, bad.args, status, text, bad.status)
					}
				}
			}
			if _, body := curl(t, c.bootstrap+"/status"); !strings.Contains(body, `"who_may_configure":`+tt.means) || strings.Contains(body, k.Dir) {
				t.Errorf("GET /status = %s, want who may configure and nothing of the database", body)
			}
			for _, step := range [][2]string{{"/sqlite", database}, {"/start", "{}"}} {
				args := append([]string{"-X", "POST", "-H", "Content-Type: application/json", "-d", step[1]}, tt.good...)
				if status, text := curl(t, append(args, c.bootstrap+step[0])...); status != "200" {
					t.Errorf("POST %s = %s %s, want 200", step[0], status, text)
				}
			}
			c.serves(t)
			c.keepsSecret(t, "token-canary")
		})
	}
	t.Run("a certificate of others", func(t *testing.T) {
		c := k.configuring(t, freePort(t), nil, "--authority-cert-file", filepath.Join(dir, "ca.pem"))
		certificate, err := tls.LoadX509KeyPair(filepath.Join(dir, "other-client.pem"), filepath.Join(dir, "other-client.key"))
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{TLSClientConfig: &tls.Config{
			InsecureSkipVerify: true,
			// Whether or not the server would want it.
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil },
		}}
		t.Cleanup(transport.CloseIdleConnections)
		resp, err := (&http.Client{Transport: transport}).Post(c.bootstrap+"/start", "application/json", strings.NewReader("{}"))
		if err == nil {
			resp.Body.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "remote error: tls: unknown certificate authority") {
			t.Errorf("POST /start = %v, want a refusal of the certificate", err)
		}
	})
	for file, want := range map[string]string{
		filepath.Join(dir, "none"): "core.bootstrap_server.authority_cert_file: open ",
		token:                      "core.bootstrap_server.authority_cert_file: " + token + " holds no certificate in PEM",
	} {
		code, _, stderr := runCmd(t, command(t, nil, "dstack-kms", "--config", k.Config, "--use-bootstrap-server",
			"--bootstrap-server-port", fmt.Sprint(freePort(t)), "--authority-cert-file", file))
		if last := lastLine(stderr); code != 1 || !strings.HasPrefix(last, "Error: "+want) {
			t.Errorf("exit status %d, last line %q, want 1 and %q", code, last, want)
		}
	}
}

// TestFromNothingToServing bootstraps an empty directory and goes straight on to
// the configuration; and exits after a bootstrap by the page as ever.
func TestFromNothingToServing(t *testing.T) {
	t.Parallel()
	k := newKMS(t, `auto_bootstrap_domain = "`+exampleDomain+`"`, devAuthority)
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(k.Dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	c := k.configuring(t, freePort(t), []string{"NOTIFY_SOCKET=" + filepath.Join(k.Dir, "notify")})
	checkKeyDir(t, k.Certs)
	c.post(t, "/sqlite-enc", `{"path": `+quoted(filepath.Join(k.Dir, "db"))+`}`, "200", "Successfully")
	c.post(t, "/start", `{}`, "200", "Starting the KMS server")
	c.serves(t)
	if code := c.terminate(t); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	want := []string{
		"READY=1\nSTATUS=Waiting for a configuration at 127.0.0.1:", "STATUS=Configured, starting the KMS",
		"READY=1\nSTATUS=Serving at 127.0.0.1:", "STOPPING=1",
	}
	var told []string
	for buf := make([]byte, 1024); ; {
		wait := patience
		if len(told) >= len(want) {
			wait = 100 * time.Millisecond // that there is no more of it
		}
		if err := socket.SetReadDeadline(time.Now().Add(wait)); err != nil {
			t.Fatal(err)
		}
		n, err := socket.Read(buf)
		if err != nil {
			break
		}
		told = append(told, string(buf[:n]))
	}
	if len(told) != len(want) {
		t.Fatalf("the service manager is told %q, want %q", told, want)
	}
	for i := range want {
		if !strings.HasPrefix(told[i], want[i]) {
			t.Errorf("the service manager is told %q, want %q", told[i], want[i])
		}
	}

	page := newKMS(t, "", devAuthority)
	p := startCmd(t, command(t, nil, "dstack-kms", "--config", page.Config, "--use-bootstrap-server", "--bootstrap-server-port", fmt.Sprint(freePort(t))))
	p.ready(t, http.DefaultClient, page.URL("http")+"/health")
	post(t, page.URL("http")+"/prpc/Onboard.Bootstrap?json", `{"domain": "`+exampleDomain+`"}`)
	post(t, page.URL("http")+"/prpc/Onboard.Finish?json", `{}`)
	if code := p.wait(t, patience); code != 0 {
		t.Errorf("after a setup by hand: exit status %d, want 0", code)
	}
}

// TestDatabaseOfAProcessThatChoseNone keeps it where the user may write, and
// says so.
func TestDatabaseOfAProcessThatChoseNone(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", devAuthority+"[core.database]\n")
	k.fill(t, exampleDomain)
	k.giveAway(t, k.Certs)
	state := filepath.Join(k.Dir, "state")
	if err := os.Mkdir(state, 0o755); err != nil {
		t.Fatal(err)
	}
	k.giveAway(t, state)
	p := startCmd(t, k.dropRoot(t, command(t, []string{"XDG_STATE_HOME=" + state}, "dstack-kms", "--config", k.Config)))
	p.logs(t, "KMS has launched")
	want := filepath.Join(state, "kms")
	p.logs(t, `INFO the database is kept in a default place {"path": "`+want+`", "key": "core.database.path"}`)
	k.releases(t, http.StatusOK, `"disk_crypt_key"`)
	info, err := os.Stat(filepath.Join(want, "kms.db"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("Stat(kms.db) = %v, %v, want a file for its owner alone", info, err)
	}
	if dir, err := os.Stat(want); err != nil || dir.Mode().Perm() != 0o700 {
		t.Errorf("Stat(%s) = %v, %v, want mode 0700", want, dir, err)
	}
	p.terminate(t)

	nowhere := startCmd(t, k.dropRoot(t, command(t, []string{"XDG_STATE_HOME=/proc"}, "dstack-kms", "--config", k.Config)))
	wantErrorLine(t, nowhere.wait(t, patience), 1, nowhere.stderr.String(),
		"neither /var/lib/kms nor /proc/kms can be written: set core.database.path")
}

// TestTokenMadeAtStart prints a token once, and takes the configuration of its
// holder alone; what was configured is in the audit log, without a secret.
// TestConfigurationPortBoundsStreams reads the settings that an HTTP/2 client is
// told (RFC 9113 §6.5): what it may upload at once has to stay in memory.
func TestConfigurationPortBoundsStreams(t *testing.T) {
	t.Parallel()
	c := newConfiguring(t, devAuthority)
	conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", c.port), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		t.Fatal(err)
	}
	header := make([]byte, 9)
	if _, err := io.ReadFull(conn, header); err != nil {
		t.Fatal(err)
	}
	const settings, maxConcurrentStreams = 4, 3
	if header[3] != settings {
		t.Fatalf("the first frame has type %d, want settings", header[3])
	}
	body := make([]byte, int(header[1])<<8|int(header[2]))
	if _, err := io.ReadFull(conn, body); err != nil {
		t.Fatal(err)
	}
	for ; len(body) >= 6; body = body[6:] {
		if body[0] == 0 && body[1] == maxConcurrentStreams {
			if got, want := body[2:6], []byte{0, 0, 0, 4}; !bytes.Equal(got, want) {
				t.Errorf("a client may have %v streams, want %v", got, want)
			}
			return
		}
	}
	t.Error("a client may have any number of streams, want 4")
}

func TestTokenMadeAtStart(t *testing.T) {
	t.Parallel()
	k := newAdminKMS(t, "", devAuthority[:strings.Index(devAuthority, "[core.image]")])
	port := freePort(t)
	cmd := command(t, []string{
		"KMS_USE_BOOTSTRAP_SERVER=true", fmt.Sprintf("KMS_BOOTSTRAP_SERVER_PORT=%d", port),
		"DSTACK_KMS_CORE_BOOTSTRAP_SERVER_TOKEN=auto", "DSTACK_KMS_CORE_IMAGE_VERIFY=false",
		"DSTACK_KMS_CORE_DATABASE_CA_FILE=/none", // says nothing of which database
	}, "dstack-kms", "--config", k.Config)
	c := &configuring{kmsDir: k.kmsDir, process: startCmd(t, cmd), port: port, bootstrap: fmt.Sprintf("https://localhost:%d", port)}
	c.logs(t, "Bootstrap server has launched")
	_, rest, _ := strings.Cut(c.stderr.String(), "Bootstrap token: ")
	token, _, _ := strings.Cut(rest, "\n")
	if len(token) != 32 || strings.Count(c.stderr.String(), token) != 1 || strings.Contains(c.stderr.String(), loud) {
		t.Fatalf("the token is %q, want one of 32 characters, printed once:\n%s", token, c.stderr)
	}
	post := func(path, body, status, want string, header ...string) {
		t.Helper()
		args := []string{"-X", "POST", "-H", "Content-Type: application/json", "-d", body}
		if got, text := curl(t, append(append(args, header...), c.bootstrap+path)...); got != status || !strings.Contains(text, want) {
			t.Errorf("POST %s = %s %s, want %s %s", path, got, text, status, want)
		}
	}
	right := []string{"-H", "Authorization: Bearer " + token}
	post("/start", "{}", "401", "bearer token is required")
	post("/start", "{}", "400", "please provide database parameters", right...)
	post("/sqlite-enc", `{"path": `+quoted(filepath.Join(k.Dir, "db"))+`, "master_password": "master-canary"}`, "200", "Sqlite Enc.", right...)
	curl(t, append(right, "-F", "file=@"+pkcs12File(t, "https.example.com", "p12-canary")+";type=application/octet-stream", c.bootstrap+"/pkcs12")...)
	post("/pkcs12-password", `{"password": "p12-canary"}`, "200", "received", right...)
	post("/start", "{}", "200", "Starting the KMS server", right...)
	c.serves(t)
	configuration := k.records(t, "configuration")
	if len(configuration) != 1 {
		t.Fatalf("%d records of the configuration, want 1", len(configuration))
	}
	fields := configuration[0].Fields
	for name, want := range map[string]string{
		"by": "bootstrap server: token from ", "database_type": "sqlite-enc", "database": filepath.Join(k.Dir, "db", "kms.db"), "auth_api": "dev", "tls": "true",
	} {
		if !strings.HasPrefix(fields[name], want) {
			t.Errorf("configuration record: %s = %q, want %q", name, fields[name], want)
		}
	}
	if len(fields["pkcs12_sha256"]) != 64 || strings.Contains(fmt.Sprint(fields), "canary") || strings.Contains(fmt.Sprint(fields), token) {
		t.Errorf("configuration record = %v, want the fingerprint of the PKCS#12 and no secret", fields)
	}
	k.verifies(t)
	c.keepsSecret(t, "master-canary", "p12-canary")
}
