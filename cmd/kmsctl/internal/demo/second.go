package demo

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"software.sslmate.com/src/go-pkcs12"

	"teekms/client"
	"teekms/internal/audit"
	"teekms/internal/keys"
)

// The second act: the second KMS starts again, this time with nothing but its
// keys, and is configured over RA-TLS.
const (
	// operatorDomain is the name that the operator gives the KMS.
	operatorDomain = "keys.localhost"

	thirdConfig  = "kms-3.toml"
	databaseDir  = "db-3"
	p12File      = "kms.p12"
	passwordFile = "kms.p12.password"
	bootstrapTok = "bootstrap-token"
	adminTok     = "admin-token"
)

const configured = `# Made by kmsctl demo: a KMS that waits for the rest of its configuration.
[rpc]
address = "127.0.0.1"
port = %d

[core]
cert_dir = %s

[core.bootstrap_server]
enabled = true
ensure_ra_tls = true
port = %d
token_file = %s

[core.admin]
enabled = true
port = %d
auth_token_file = %s

# Who may have keys is for the rules in its own database to decide.
[core.auth_api]
type = "registry"
`

func (d *demo) secondAct() []step {
	return []step{
		{"make a PKCS#12 file", (*demo).makeOperator},
		{"start it unconfigured", (*demo).awaitConfiguration},
		{"configure it by RA-TLS", (*demo).bootstrapStart},
		{"look at its certificates", (*demo).bothCertificates},
		{"write registry rules", (*demo).writeRules},
		{"ask as the app", (*demo).deniedByRegistry},
		{"allow the app", (*demo).allowApp},
		{"get the keys now", (*demo).releasedByRegistry},
		{"verify the audit log", (*demo).verifyAudit},
	}
}

// makeOperator makes what an operator brings along: a certificate in a PKCS#12
// file, and two tokens.
func (d *demo) makeOperator(context.Context) (string, error) {
	key, err := keys.NewKey()
	if err != nil {
		return "", err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return "", err
	}
	now := d.cfg.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: operatorDomain}, DNSNames: []string{operatorDomain},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(0, 3, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return "", err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return "", err
	}
	password := rand.Text()
	file, err := pkcs12.Modern.Encode(key, leaf, nil, password)
	if err != nil {
		return "", err
	}
	for name, data := range map[string]string{
		p12File: string(file), passwordFile: password + "\n", bootstrapTok: rand.Text() + "\n", adminTok: rand.Text() + "\n",
	} {
		if err := os.WriteFile(d.path(name), []byte(data), 0o600); err != nil {
			return "", fmt.Errorf("writing %s: %w", name, err)
		}
	}
	return fmt.Sprintf("certificate and key for %s, %d bytes, locked with a password", operatorDomain, len(file)), nil
}

// awaitConfiguration starts a KMS that has its keys, from the second KMS, and
// neither a database nor a certificate of its operator.
func (d *demo) awaitConfiguration(ctx context.Context) (_ string, err error) {
	for _, r := range []**reservation{&d.thirdPort, &d.bootstrapPort, &d.adminPort} {
		if *r, err = reserve(ctx); err != nil {
			return "", err
		}
	}
	text := fmt.Sprintf(configured, d.thirdPort.port, quoted(d.path(secondCerts)), d.bootstrapPort.port, quoted(d.path(bootstrapTok)),
		d.adminPort.port, quoted(d.path(adminTok))) + fmt.Sprintf(simulatedText, quoted(d.path(tdDir)), quoted(d.path(tdDir, rootFile)))
	if err := os.WriteFile(d.path(thirdConfig), []byte(text), 0o644); err != nil {
		return "", fmt.Errorf("writing configuration: %w", err)
	}
	for _, r := range []*reservation{d.thirdPort, d.bootstrapPort, d.adminPort} {
		r.release()
	}
	if d.third, err = start(d.programs["dstack-kms"], "-3", d.dir, "--config", d.path(thirdConfig)); err != nil {
		return "", err
	}
	url := "https://" + d.bootstrapPort.host()
	return url + " waits for a database and a certificate", d.waitForTLS(ctx, d.third, d.bootstrapPort.host())
}

// waitForTLS waits until somebody speaks TLS there, whoever it is: kmsctl
// bootstrap-start finds that out.
func (d *demo) waitForTLS(ctx context.Context, p *process, address string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := d.leafOf(ctx, address, "")
		if err == nil {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s ended: %w", p.name, exitReason(p.err))
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", address, err)
		case <-tick.C:
		}
	}
}

// leafOf is the certificate that a server shows to who asks for this name.
func (d *demo) leafOf(ctx context.Context, address, name string) (*x509.Certificate, error) {
	dialer := tls.Dialer{Config: &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: name,
		InsecureSkipVerify: true, //nolint:gosec // it is looked at, and nothing is sent
	}}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // nothing was sent
	tlsConn, ok := conn.(*tls.Conn)
	if !ok {
		return nil, errors.New("no TLS")
	}
	return tlsConn.ConnectionState().PeerCertificates[0], nil
}

// kmsctl runs this program as an operator does, and returns what it prints.
func (d *demo) kmsctl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, d.cfg.Self, args...)
	cmd.Env = environment(os.Environ())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// Ctrl-C is for this process, which ends the other by ctx.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
		return "", fmt.Errorf("kmsctl %s: %w: %s", args[0], err, lines[len(lines)-1])
	}
	return stdout.String(), nil
}

// bootstrapStart gives the KMS its configuration. The measurement that is
// expected is that of the KMS that was verified in the first act.
func (d *demo) bootstrapStart(ctx context.Context) (string, error) {
	out, err := d.kmsctl(ctx, "bootstrap-start", "--bootstrap-server-url", "https://"+d.bootstrapPort.host(),
		"--bootstrap-token-file", d.path(bootstrapTok),
		"--expect-mrtd", d.mrtd, "--trust-root", d.path(tdDir, rootFile), "--collateral", d.path(tdDir),
		"--database-type", "sqlite", "--sqlite-path", d.path(databaseDir),
		"--https-p12-file", d.path(p12File), "--https-p12-password-file", d.path(passwordFile),
		"--wait", "https://"+d.thirdPort.host(), "--json")
	if err != nil {
		return "", err
	}
	var result struct {
		Server struct {
			TCBStatus string `json:"tcb_status"`
		}
		Responses []struct{ Success string }
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil || len(result.Responses) == 0 {
		return "", fmt.Errorf("kmsctl bootstrap-start printed %q", out)
	}
	return fmt.Sprintf("its MRTD is %s…, TCB %s: only then were SQLite and the PKCS#12 file sent", d.mrtd[:16], result.Server.TCBStatus), nil
}

// bothCertificates sees that clients that know nothing get the operator's
// certificate, and attested workloads that of the KMS.
func (d *demo) bothCertificates(ctx context.Context) (string, error) {
	for name, want := range map[string]string{"": operatorDomain, secondDomain: secondDomain} {
		leaf, err := d.leafOf(ctx, d.thirdPort.host(), name)
		if err != nil {
			return "", err
		}
		if err := leaf.VerifyHostname(want); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%s for anybody, the KMS's own for who asks for %s", operatorDomain, secondDomain), nil
}

// admin runs a command of kmsctl that calls the admin listener.
func (d *demo) admin(ctx context.Context, args ...string) (string, error) {
	return d.kmsctl(ctx, append(args, "--admin", "http://"+d.adminPort.host(), "--admin-token-file", d.path(adminTok))...)
}

// writeRules allows the platform and the KMS itself, and no application.
func (d *demo) writeRules(ctx context.Context) (string, error) {
	for _, rule := range [][]string{
		{"tcb", "add", "UpToDate"}, {"image", "add", "any"}, {"kms", "add", "any", "--device", "any"},
	} {
		if _, err := d.admin(ctx, append([]string{"registry"}, rule...)...); err != nil {
			return "", err
		}
	}
	return "TCB status UpToDate, any image, any KMS; an empty list denies, any has to be written", nil
}

// registryKeys asks the KMS that was configured for the keys of the application.
func (d *demo) registryKeys(ctx context.Context) (*client.AppKeys, error) {
	c, err := d.dialAs(ctx, "https://"+d.thirdPort.host(), secondDomain, appCompose)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.AppKey(ctx, "")
}

func (d *demo) deniedByRegistry(ctx context.Context) (string, error) {
	_, err := d.registryKeys(ctx)
	denied, ok := errors.AsType[*client.DeniedError](err)
	switch {
	case ok:
		return "denied: " + denied.Reason, nil
	case err == nil:
		return "", errors.New("it got the keys")
	}
	return "", err
}

func (d *demo) allowApp(ctx context.Context) (string, error) {
	_, err := d.admin(ctx, "registry", "app", "add", hex.EncodeToString(appID()), "--compose-hash", hex.EncodeToString(composeHash(appCompose)),
		"--device", "any", "--comment", "kmsctl demo")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("app %x with the compose hash %x…; it works with the next decision", appID(), composeHash(appCompose)[:8]), nil
}

func (d *demo) releasedByRegistry(ctx context.Context) (string, error) {
	got, err := d.registryKeys(ctx)
	if err != nil {
		return "", err
	}
	if !bytes.Equal(got.DiskKey.Bytes(), d.keys.DiskKey.Bytes()) {
		return "", errors.New("it derives another key")
	}
	return "released, and recorded before it left; the very same keys again", nil
}

// verifyAudit verifies the log of all of that, and ends the KMS.
func (d *demo) verifyAudit(ctx context.Context) (string, error) {
	out, err := d.admin(ctx, "audit", "verify", "--dir", d.path(secondCerts), "--json")
	if err != nil {
		return "", err
	}
	var report struct {
		Verified   bool
		Checkpoint struct{ Size uint64 }
		Kinds      map[audit.Kind]uint64
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || !report.Verified {
		return "", fmt.Errorf("kmsctl audit verify printed %q", out)
	}
	denied, released := report.Kinds[audit.Denial], report.Kinds[audit.ReleaseAppKey]
	if denied != 1 || released != 1 {
		return "", fmt.Errorf("it has %d denials and %d releases, want one of each", denied, released)
	}
	return fmt.Sprintf("%d records follow from each other, a denial and a release among them; the root key vouches for all",
		report.Checkpoint.Size), d.third.stop()
}
