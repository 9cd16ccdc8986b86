package e2e

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/storage/storagetest/server"
)

// certificateFields are what the audit log has to say of an RPC certificate.
func certificateFields(c *x509.Certificate, reason string) map[string]string {
	digest := sha256.Sum256(c.Raw)
	return map[string]string{
		"reason": reason, "serial": c.SerialNumber.Text(16), "certificate_sha256": hex.EncodeToString(digest[:]),
		"common_name": exampleDomain, "names": exampleDomain,
		"not_before": c.NotBefore.UTC().Format(time.RFC3339), "not_after": c.NotAfter.UTC().Format(time.RFC3339),
	}
}

// TestRPCCertificatesAreRecorded starts a KMS that reissues its certificate, from
// its configuration file and from the configuration server: the audit log has
// every certificate that was shown, before the start is recorded.
func TestRPCCertificatesAreRecorded(t *testing.T) {
	t.Parallel()
	k := newAdminKMS(t, "", "[core.auth_api]\ntype = \"dev\"\n")
	path := filepath.Join(k.Dir, "records")
	env := "DSTACK_KMS_CORE_DATABASE_PATH=" + path
	var want []map[string]string
	for range 2 {
		p, _ := k.serve(t, exampleDomain, env)
		want = append(want, certificateFields(k.rpcCertificate(t), "start"))
		if code := p.terminate(t); code != 0 {
			t.Fatalf("exit status %d, want 0\n%s", code, p.stderr)
		}
	}
	c := k.configuring(t, freePort(t), []string{"DSTACK_KMS_CORE_IMAGE_VERIFY=false"})
	c.post(t, "/sqlite", `{"path": `+quoted(path)+`}`, "200", "Successfully")
	c.post(t, "/start", `{}`, "200", "Starting the KMS server")
	c.serves(t)
	want = append(want, certificateFields(k.rpcCertificate(t), "start"))

	var got []map[string]string
	for _, r := range k.records(t, "rpc_certificate") {
		got = append(got, r.Fields)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records of RPC certificates (-want +got):\n%s", diff)
	}
	var kinds []string
	for _, r := range k.records(t) {
		kinds = append(kinds, r.Kind)
	}
	const each = "configuration rpc_certificate start"
	if got, want := strings.Join(kinds, " "), "bootstrap "+each+" stop "+each+" stop "+each+" app_key"; got != want {
		t.Errorf("kinds of records = %s, want %s", got, want)
	}
	line := k.mustKmsctl(t, "audit", "list", "--kind", "rpc_certificate", "--limit", "1")
	if !strings.Contains(line, " rpc_certificate ") || !strings.Contains(line, " reason=start ") || !strings.Contains(line, " certificate_sha256="+want[2]["certificate_sha256"]) {
		t.Errorf("kmsctl audit list says %s", line)
	}
	k.verifies(t)
	export := filepath.Join(t.TempDir(), "export")
	k.mustKmsctl(t, "audit", "export", "--out", export, "--dir", k.Certs)
	if out := k.mustKmsctl(t, "audit", "verify", "--file", export, "--dir", k.Certs); !strings.Contains(out, fmt.Sprintf("  %-18s 3\n", "rpc_certificate")) {
		t.Errorf("kmsctl audit verify --file says\n%s", out)
	}
}

// TestNoCertificateWithoutTheDatabase starts a KMS whose database has gone: its
// certificate stays as it was.
func TestNoCertificateWithoutTheDatabase(t *testing.T) {
	t.Parallel()
	k := newAdminKMS(t, "", "[core.auth_api]\ntype = \"dev\"\n")
	s := servers.Own(t, server.PostgreSQL, server.Options{})
	env := database(t, s)
	p, _ := k.serve(t, exampleDomain, env...)
	p.terminate(t)
	s.Kill()
	before := tree(t, k.Certs)
	code, _, stderr := runCmd(t, command(t, env, "dstack-kms", "--config", k.Config))
	wantErrorLine(t, code, 1, stderr, "opening the database: opening postgresql database: the database server refused the connection: nothing listens there")
	if diff := cmp.Diff(before, tree(t, k.Certs)); diff != "" {
		t.Errorf("the key directory changed (-before +after):\n%s", diff)
	}
}
