package demo

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"teekms/cmd/kmsctl/internal/chain"
	"teekms/cmd/kmsctl/internal/subject"
	kmsv1 "teekms/gen/kms/v1"
	"teekms/gen/kms/v1/kmsv1connect"
	onboardv1 "teekms/gen/onboard/v1"
	"teekms/gen/onboard/v1/onboardv1connect"
	"teekms/internal/attest"
	"teekms/internal/attest/tdx"
)

// What is in the directory of a demonstration.
const (
	configFile = "kms.toml"
	// Of the second KMS.
	secondConfig = "kms-2.toml"
	secondCerts  = "certs-2"

	answerFile = "bootstrap-answer.json"
	certsDir   = "certs"
	tdDir      = "td"
	rootFile   = "root-ca.pem" // of the software trust domain
	caFile     = "root-ca.crt" // of the KMS
)

func (d *demo) findPrograms(context.Context) (string, error) {
	d.programs = map[string]string{}
	for _, name := range []string{"dstack-onboard", "dstack-kms"} {
		path, err := d.cfg.Find(name)
		if err != nil {
			return "", err
		}
		d.programs[name] = path
	}
	return filepath.Dir(d.programs["dstack-kms"]), nil
}

func (d *demo) configure(ctx context.Context) (string, error) {
	if err := d.makeDir(); err != nil {
		return "", err
	}
	for _, r := range []**reservation{&d.onboardPort, &d.port, &d.secondOnboardPort, &d.secondPort} {
		var err error
		if *r, err = reserve(ctx); err != nil {
			return "", err
		}
	}
	for _, c := range []struct {
		file, certs, db string
		port, onboard   *reservation
		seals           string
	}{
		{configFile, certsDir, "db", d.port, d.onboardPort, d.sealText(passphraseFile)},
		{secondConfig, secondCerts, "db-2", d.secondPort, d.secondOnboardPort, ""},
	} {
		text := fmt.Sprintf(configText, c.port.port, quoted(d.path(c.certs)), c.onboard.port, quoted(d.path(c.db)), quoted(d.authority.url)) +
			fmt.Sprintf(simulatedText, quoted(d.path(tdDir)), quoted(d.path(tdDir, rootFile))) + c.seals
		if err := os.WriteFile(d.path(c.file), []byte(text), 0o644); err != nil {
			return "", fmt.Errorf("writing configuration: %w", err)
		}
	}
	return d.path(configFile), nil
}

// quoted writes a path as a basic string of TOML, whose escapes JSON shares.
func quoted(path string) string {
	b, err := json.Marshal(path)
	if err != nil {
		return `""` // a string always marshals
	}
	return string(b)
}

// makeDir makes the directory, or takes an empty one: keys that are already
// there are not those of this demonstration.
func (d *demo) makeDir() (err error) {
	if d.dir != "" {
		return nil // made by an earlier step
	}
	if d.cfg.Dir == "" {
		if d.dir, err = os.MkdirTemp("", "kmsctl-demo-"); err != nil {
			return fmt.Errorf("making temporary directory: %w", err)
		}
		d.made = true
		return nil
	}
	if d.dir, err = filepath.Abs(d.cfg.Dir); err != nil {
		return fmt.Errorf("making directory: %w", err)
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return fmt.Errorf("making directory: %w", err)
	}
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return fmt.Errorf("looking into directory: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty", d.dir)
	}
	return nil
}

const configText = `# Made by kmsctl demo.
[rpc]
address = "127.0.0.1"
port = %d

[core]
cert_dir = %s

[core.onboard]
address = "127.0.0.1"
port = %d

# The audit log.
[core.database]
path = %s

# Who may have keys is for the demonstration's own webhook to decide.
[core.auth_api]
type = "webhook"

[core.auth_api.webhook]
url = %s
`

const simulatedText = `
# There is no image to compare a software trust domain with.
[core.image]
verify = false

# A trust domain in software, and the permission to trust its root.
[core.attestation]
provider = "simulator"
insecure_allow_external_trust_anchors = true

[core.attestation.simulator]
dir = %s

[core.attestation.root_ca]
tdx = %s
`

func (d *demo) startOnboard(ctx context.Context) (_ string, err error) {
	if d.onboarder, err = d.startNamed("dstack-onboard", "", d.path(configFile)); err != nil {
		return "", err
	}
	url := "http://" + d.onboardPort.host()
	return url, waitFor(ctx, d.onboarder, http.DefaultClient, url+"/health")
}

// startNamed starts a program with a configuration, its ports being freed for it
// before; suffix tells the logs of two apart.
func (d *demo) startNamed(name, suffix, config string) (*process, error) {
	ports := map[string]*reservation{"dstack-onboard": d.onboardPort, "dstack-kms": d.port}
	if suffix != "" {
		ports = map[string]*reservation{"dstack-onboard": d.secondOnboardPort, "dstack-kms": d.secondPort}
		suffix = "-" + suffix
	}
	ports[name].release()
	return start(d.programs[name], suffix, d.dir, "--config", config)
}

// waitFor waits until url answers 200.
func waitFor(ctx context.Context, p *process, client *http.Client, url string) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := probe(ctx, client, url)
		if err == nil {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s ended: %w", p.name, exitReason(p.err))
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", url, err)
		case <-tick.C:
		}
	}
}

func exitReason(err error) error {
	if err == nil {
		return errors.New("status 0")
	}
	return err
}

func probe(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	err = errors.Join(err, resp.Body.Close())
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return err
}

func (d *demo) onboardClient() onboardv1connect.OnboardClient {
	return onboardv1connect.NewOnboardClient(http.DefaultClient, "http://"+d.onboardPort.host())
}

func (d *demo) bootstrap(ctx context.Context) (_ string, err error) {
	if d.record, err = d.onboardClient().Bootstrap(ctx, &onboardv1.BootstrapRequest{Domain: Domain}); err != nil {
		return "", err
	}
	return fmt.Sprintf("two root keys, a quote of %d bytes over them, eight files in %s", len(d.record.GetQuote()), d.path(certsDir)), d.saveAnswer()
}

// saveAnswer keeps the record as it was answered, before any file of the KMS
// is looked at.
func (d *demo) saveAnswer() error {
	hex0x := func(b []byte) string { return "0x" + hex.EncodeToString(b) }
	text, err := json.Marshal(map[string]string{
		"ca_pubkey": hex0x(d.record.GetCaPubkey()), "k256_pubkey": hex0x(d.record.GetK256Pubkey()),
		"quote": hex0x(d.record.GetQuote()), "eventlog": hex0x(d.record.GetEventlog()),
	})
	if err == nil {
		err = os.WriteFile(d.path(answerFile), append(text, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("keeping the answer: %w", err)
	}
	return nil
}

func (d *demo) verifyAnswer(ctx context.Context) (string, error) {
	s, err := subject.FromInfo(ctx, d.path(answerFile), d.path(certsDir, caFile))
	if err != nil {
		return "", err
	}
	return d.verify(ctx, s)
}

// verify does what kmsctl verify does.
func (d *demo) verify(ctx context.Context, s *subject.Subject) (string, error) {
	anchor, err := tdx.LoadTrustAnchor(d.path(tdDir, rootFile))
	if err != nil {
		return "", err
	}
	collateral, err := tdx.NewDirSource(d.path(tdDir))
	if err != nil {
		return "", err
	}
	now := d.cfg.Now()
	report, err := chain.Check(ctx, s, chain.Config{
		TrustAnchor: anchor, Collateral: collateral, CollateralFrom: d.path(tdDir),
		At: now, Now: now, AcceptTCB: []attest.TCBStatus{attest.UpToDate}, SecondOpinion: true,
	})
	if err != nil {
		return "", err
	}
	d.links = report.Links
	if report.Claims != nil {
		d.mrtd = report.Claims.MRTD
	}
	return fmt.Sprintf("to the simulated root %s", report.TrustRootSHA256), report.Err()
}

func (d *demo) finish(ctx context.Context) (string, error) {
	if _, err := d.onboardClient().Finish(ctx, &onboardv1.FinishRequest{}); err != nil {
		return "", err
	}
	http.DefaultClient.CloseIdleConnections()
	return "dstack-onboard ended with status 0", d.onboarder.ending(ctx)
}

func (d *demo) startKMS(ctx context.Context) (_ string, err error) {
	text, err := os.ReadFile(d.path(certsDir, caFile))
	if err != nil {
		return "", fmt.Errorf("reading the root certificate: %w", err)
	}
	d.root = x509.NewCertPool()
	if !d.root.AppendCertsFromPEM(text) {
		return "", errors.New("the root certificate is no certificate")
	}
	d.pinned = d.pinnedTo(Domain)
	if d.kms, err = d.startNamed("dstack-kms", "", d.path(configFile)); err != nil {
		return "", err
	}
	return d.url(), waitFor(ctx, d.kms, d.pinned, d.url()+"/ready")
}

// url is where the KMS is reached; its name is in the certificate, not here.
func (d *demo) url() string { return "https://" + d.port.host() }

func (d *demo) getMeta(ctx context.Context) (string, error) {
	meta, err := kmsv1connect.NewKMSClient(d.pinned, d.url()).GetMeta(ctx, &kmsv1.GetMetaRequest{})
	if err != nil {
		return "", err
	}
	for _, f := range []struct {
		name      string
		got, want []byte
	}{
		{"k256_pubkey", meta.GetK256Pubkey(), d.record.GetK256Pubkey()},
		{"bootstrap_info.ca_pubkey", meta.GetBootstrapInfo().GetCaPubkey(), d.record.GetCaPubkey()},
		{"bootstrap_info.quote", meta.GetBootstrapInfo().GetQuote(), d.record.GetQuote()},
	} {
		if !bytes.Equal(f.got, f.want) {
			return "", fmt.Errorf("%s is not what Bootstrap answered", f.name)
		}
	}
	return "pinned to the root certificate; the keys are those of the bootstrap", nil
}

func (d *demo) verifyURL(ctx context.Context) (string, error) {
	s, err := subject.FromURL(ctx, d.url())
	if err != nil {
		return "", err
	}
	return d.verify(ctx, s)
}
