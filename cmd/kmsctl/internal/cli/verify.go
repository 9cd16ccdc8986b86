package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"teekms/cmd/kmsctl/internal/chain"
	"teekms/cmd/kmsctl/internal/subject"
	"teekms/internal/attest"
)

// verifyFlags are the flags of kmsctl verify.
type verifyFlags struct {
	dir, url, info, caCert, serverName string
	trust                              trustFlags
	at                                 string
	allowTCB                           []string
	expect                             expectFlags
	secondOpinion                      bool
	save                               string
	timeout                            time.Duration
	json                               bool
}

func newVerify(env Environment) *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify {--dir CERTDIR | --url URL | --info FILE}",
		Short: "Verify that the keys of a KMS were made in a trust domain",
		Long: `Check every link between the public keys of a KMS and a trust root: the quote
over the keys, its signature and certificates, collateral, revocation and TCB
status, the event log, and that the certificates in use are of these keys. Each
link is shown with ✓ or ✗ and why; – marks what was not checked. Of a key
directory it is also told what the private keys are sealed to, as their files
say; nothing is opened for that, and it changes no result.

Without --trust-root the root is Intel's, and collateral is fetched from Intel's
Provisioning Certification Service. Another root, such as that of a software
trust domain, needs --collateral or --pccs, and proves as much as its holder is
believed.`,
		Example: `  kmsctl verify --dir /etc/kms/certs
  kmsctl verify --url https://kms.example.com:9100 --expect-file kms-expect.toml
  kmsctl verify --info bootstrap-info.json --ca-cert root-ca.crt --at 2026-01-31T12:00:00Z
  kmsctl verify --dir certs --trust-root td/root-ca.pem --collateral td --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd, env)
		},
	}
	f.register(cmd)
	return cmd
}

func (f *verifyFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&f.dir, "dir", "", "key `directory` to verify; its public files, and of its private ones whether they are sealed")
	fs.StringVar(&f.url, "url", "", "`URL` of a running KMS to verify")
	fs.StringVar(&f.serverName, "server-name", "", "with --url: `name` or address that the KMS's certificate must have")
	fs.StringVar(&f.info, "info", "", "`file` with a bootstrap record to verify (bootstrap-info.json, or the answer of Bootstrap)")
	fs.StringVar(&f.caCert, "ca-cert", "", "with --info: `file` of the root CA certificate that must be of the key in the record")
	f.trust.register(cmd)
	fs.StringVar(&f.at, "at", "", "verify the Evidence as of this `time` (RFC 3339) instead of now")
	fs.StringArrayVar(&f.allowTCB, "allow-tcb-status", nil, "accept this TCB `status` besides UpToDate; may be repeated")
	f.expect.register(cmd)
	fs.BoolVar(&f.secondOpinion, "second-opinion", false, "also ask another implementation, google/go-tdx-guest")
	fs.StringVar(&f.save, "save-collateral", "", "keep the collateral in this `directory`, to verify the same again later with --collateral and --at")
	fs.DurationVar(&f.timeout, "timeout", 30*time.Second, "give up after this `duration`")
	fs.BoolVar(&f.json, "json", false, "print the result as JSON")
	complete(cmd, "dir", directory())
	complete(cmd, "url", valueOf("https://", "http://"))
	complete(cmd, "server-name", valueOf())
	complete(cmd, "info", file("json"))
	complete(cmd, "ca-cert", file("crt", "pem"))
	complete(cmd, "at", valueOf())
	complete(cmd, "allow-tcb-status", valueOf(tcbStatuses()...))
	complete(cmd, "save-collateral", directory())
	complete(cmd, "timeout", valueOf("10s", "30s", "2m"))
}

// tcbStatuses are those that can be accepted: Revoked cannot.
func tcbStatuses() []string {
	return []string{
		string(attest.UpToDate), string(attest.SWHardeningNeeded), string(attest.ConfigurationNeeded),
		string(attest.ConfigurationAndSWHardeningNeeded), string(attest.OutOfDate), string(attest.OutOfDateConfigurationNeeded),
	}
}

// run verifies. Flags are looked at before anything is read.
func (f *verifyFlags) run(cmd *cobra.Command, env Environment) error {
	cfg, err := f.config(cmd, env)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	s, err := f.subject(ctx)
	if err != nil {
		return gaveUp(ctx, f.timeout, err)
	}
	report, err := chain.Check(ctx, s, cfg)
	if err != nil {
		return err
	}
	if err := cmd.Context().Err(); err != nil {
		return errors.New("interrupted")
	}
	if f.json {
		err = env.writeJSON(report)
	} else {
		p := env.printer()
		report.WriteText(p)
		err = p.Err()
	}
	return errors.Join(report.Err(), err)
}

// gaveUp says so where it is the reason for err.
func gaveUp(ctx context.Context, after time.Duration, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("gave up after %v: %w", after, err)
	}
	return err
}

func (f *verifyFlags) config(cmd *cobra.Command, env Environment) (chain.Config, error) {
	cfg := chain.Config{Now: env.Now(), SecondOpinion: f.secondOpinion, SaveCollateral: f.save}
	given := 0
	for _, s := range []string{f.dir, f.url, f.info} {
		if s != "" {
			given++
		}
	}
	switch {
	case given != 1:
		return cfg, usagef(cmd, "give exactly one of --dir, --url and --info")
	case f.caCert != "" && f.info == "":
		return cfg, usagef(cmd, "--ca-cert goes with --info alone: the others have a certificate of their own")
	case f.serverName != "" && f.url == "":
		return cfg, usagef(cmd, "--server-name goes with --url")
	case f.timeout <= 0:
		return cfg, usagef(cmd, "--timeout must be positive")
	}
	var err error
	if cfg.At, err = f.time(cmd, cfg.Now); err != nil {
		return cfg, err
	}
	accept, err := acceptTCB(cmd, f.allowTCB)
	if err != nil {
		return cfg, err
	}
	for _, s := range accept {
		cfg.AcceptTCB = append(cfg.AcceptTCB, attest.TCBStatus(s))
	}
	if cfg.Expect, err = f.expect.set(cmd); err != nil {
		return cfg, err
	}
	return cfg, f.trust.apply(cmd, &cfg)
}

func (f *verifyFlags) time(cmd *cobra.Command, now time.Time) (time.Time, error) {
	if f.at == "" {
		return now, nil
	}
	at, err := time.Parse(time.RFC3339, f.at)
	if err != nil {
		return at, usagef(cmd, "--at: %q is not a time like 2026-01-31T12:00:00Z", f.at)
	}
	return at, nil
}

// acceptTCB reads --allow-tcb-status: the statuses that are good enough.
func acceptTCB(cmd *cobra.Command, allow []string) ([]string, error) {
	accept := []string{string(attest.UpToDate)}
	for _, given := range allow {
		if !slices.Contains(tcbStatuses(), given) {
			return nil, usagef(cmd, "--allow-tcb-status: %q cannot be accepted; those that can are %v", given, tcbStatuses())
		}
		accept = append(accept, given)
	}
	return accept, nil
}

func (f *verifyFlags) subject(ctx context.Context) (*subject.Subject, error) {
	switch {
	case f.dir != "":
		return subject.FromDir(f.dir)
	case f.info != "":
		return subject.FromInfo(ctx, f.info, f.caCert)
	default:
		return subject.FromNamedURL(ctx, f.url, f.serverName)
	}
}
