package e2e

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// unprivileged is the user id that tests of permissions run as.
const unprivileged = 65534

// command prepares a built command, with env over the environment.
func command(t testing.TB, env []string, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(binary(t, name), args...)
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

// dropRoot makes cmd run without the rights of root, which ignores modes, and
// lets it reach k.
func (k *kmsDir) dropRoot(t testing.TB, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		return cmd
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: unprivileged, Gid: unprivileged}}
	for _, dir := range []string{filepath.Dir(k.Dir), k.Dir} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(k.TD, 0o755); err != nil {
		t.Fatal(err)
	}
	k.giveAway(t, k.TD)
	return cmd
}

// giveAway makes dir and all below it the unprivileged user's.
func (k *kmsDir) giveAway(t testing.TB, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, unprivileged, unprivileged)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fill bootstraps the key directory of k for a domain.
func (k *kmsDir) fill(t testing.TB, domain string, env ...string) {
	t.Helper()
	env = append(env, "DSTACK_KMS_CORE_ONBOARD_AUTO_BOOTSTRAP_DOMAIN="+domain)
	name := "dstack-onboard"
	if strings.Contains(string(mustRead(t, k.Config)), `type = "registry"`) {
		name = "dstack-kms" // the other has no database
	}
	if code, _, stderr := runCmd(t, command(t, env, name, "--config", k.Config)); code != 0 {
		t.Fatalf("bootstrap: status %d\n%s", code, stderr)
	}
}

// trusting returns a client that trusts the root of k's key directory alone and
// speaks HTTP/2.
func (k *kmsDir) trusting(t testing.TB, domain string) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: k.tlsClient(t, domain), ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

func (k *kmsDir) tlsClient(t testing.TB, domain string) *tls.Config {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(k.file(t, "root-ca.crt")) {
		t.Fatal("root-ca.crt holds no certificate")
	}
	return &tls.Config{RootCAs: roots, ServerName: domain, MinVersion: tls.VersionTLS12}
}

// file reads a file of the key directory.
func (k *kmsDir) file(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(k.Certs, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// serve starts dstack-kms on the complete directory of k.
func (k *kmsDir) serve(t testing.TB, domain string, env ...string) (*process, *http.Client) {
	t.Helper()
	config, err := os.ReadFile(k.Config)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(config), "[core.auth_api") {
		// Nobody listens there: what is asked of the authority fails at once,
		// whatever its default name means in this network.
		env = append([]string{"DSTACK_KMS_CORE_AUTH_API_WEBHOOK_URL=http://127.0.0.1:1"}, env...)
	}
	p := startCmd(t, command(t, env, "dstack-kms", "--config", k.Config))
	p.logs(t, "KMS has launched") // it may have to make root-ca.crt first
	client := k.trusting(t, domain)
	p.ready(t, client, k.URL("https")+"/ready")
	return p, client
}

// tree tells mode and digest of everything below dir; it is empty where there
// is no dir.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		all[path] = info.Mode().String()
		if e.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			digest := sha256.Sum256(b)
			all[path] += " " + hex.EncodeToString(digest[:8])
		}
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return all
}

// wantErrorLine checks the last line of standard error of a command that failed.
func wantErrorLine(t testing.TB, code, wantCode int, stderr, want string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(stderr, "\n"), "\n")
	if last := lines[len(lines)-1]; last != "Error: "+want {
		t.Errorf("standard error ends with\n%s\nwant\nError: %s", last, want)
	}
	if code != wantCode {
		t.Errorf("exit status %d, want %d", code, wantCode)
	}
}

// fillTD makes the software TD, so that its making is over before a test.
func (k *kmsDir) fillTD(t testing.TB) {
	t.Helper()
	env := []string{
		"DSTACK_KMS_CORE_CERT_DIR=" + filepath.Join(k.Dir, "other"),
		"DSTACK_KMS_CORE_ONBOARD_ENABLED=false",
	}
	if code, _, stderr := runCmd(t, command(t, env, "dstack-onboard", "--config", k.Config)); code != 1 {
		t.Fatalf("exit status %d, want 1\n%s", code, stderr)
	}
}

// forbiddenDir makes a directory that the unprivileged user may not write.
func (k *kmsDir) forbiddenDir(t testing.TB, dir string) {
	t.Helper()
	mode := fs.FileMode(0o755)
	if os.Geteuid() != 0 { // then it is the owner
		mode = 0o555
	}
	if err := os.Mkdir(dir, mode); err != nil {
		t.Fatal(err)
	}
}
