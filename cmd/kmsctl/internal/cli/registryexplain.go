package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"teekms/cmd/kmsctl/internal/chain"
	"teekms/cmd/kmsctl/internal/evidence"
	"teekms/cmd/kmsctl/internal/status"
	"teekms/cmd/kmsctl/internal/terminal"
	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/attest"
	"teekms/internal/attest/tdx"
	"teekms/internal/authz"
	"teekms/internal/registry"
)

// maxLast is how many denials a KMS explains at once.
const maxLast = 100

// explainFlags are the flags of kmsctl registry explain.
type explainFlags struct {
	*registryFlags
	evidence, vmConfig, subject string
	last                        uint32
	trust                       trustFlags
}

func newRegistryExplain(env Environment, rf *registryFlags) *cobra.Command {
	f := explainFlags{registryFlags: rf}
	cmd := &cobra.Command{
		Use:   "explain {--evidence FILE | --last N}",
		Short: "Show why a workload is allowed or denied",
		Long: `Show every rule that a decision rests on, with what is wanted and what is seen:
of the workload whose Evidence is in a file, which is verified here first, or of
those that the KMS denied last, judged by the rules of now. The exit code is 3
where one of them is denied.

The file is what a guest agent answers to GetQuote or Attest, a certificate that
carries Evidence, an attestation, or the record of a bootstrap. No OS image hash
is in a quote: --vm-config gives the description of the machine that names it,
where the file has none.`,
		Example: `  kmsctl registry explain --evidence quote-report.json
  kmsctl registry explain --evidence bootstrap-info.json --vm-config "$(cat vm.json)"
  kmsctl registry explain --evidence app.crt --trust-root td/root-ca.pem --collateral td
  kmsctl registry explain --last 5`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, env) },
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&f.evidence, "evidence", "", "`file` with the Evidence of a workload")
	fs.StringVar(&f.vmConfig, "vm-config", "", "`JSON` that describes the virtual machine (default: that of the Evidence)")
	fs.StringVar(&f.subject, "subject", "", "judge it as an app or as a kms (default: kms for a record or certificate of a KMS)")
	fs.Uint32Var(&f.last, "last", 0, "explain the last `N` denials, 100 at most")
	f.trust.register(cmd)
	complete(cmd, "evidence", file())
	complete(cmd, "vm-config", valueOf())
	complete(cmd, "subject", valueOf(string(registry.SubjectApp), string(registry.SubjectKMS)))
	complete(cmd, "last", valueOf("1", "10", "100"))
	return cmd
}

func (f *explainFlags) run(cmd *cobra.Command, env Environment) error {
	req, err := f.request(cmd, env)
	if err != nil {
		return err
	}
	r, err := f.registry(cmd, env)
	if err != nil {
		return err
	}
	var res kmsv1.ExplainRegistryResponse
	if err := r.do(cmd.Context(), "ExplainRegistry", req, &res); err != nil {
		return err
	}
	if f.json {
		text, err := prpcJSON(adminService(), "", &res)
		if err == nil {
			err = env.write(text)
		}
		if err != nil {
			return err
		}
	} else if err := printExplanations(env.printer(), res.GetExplanations()); err != nil {
		return err
	}
	return deniedBy(res.GetExplanations())
}

func (f *explainFlags) request(cmd *cobra.Command, env Environment) (*kmsv1.ExplainRegistryRequest, error) {
	switch {
	case (f.evidence == "") == !cmd.Flags().Changed("last"):
		return nil, usagef(cmd, "give exactly one of --evidence and --last")
	case f.evidence == "" && (f.last == 0 || f.last > maxLast):
		return nil, usagef(cmd, "--last: want 1 to %d", maxLast)
	case f.evidence == "" && (f.vmConfig != "" || f.subject != ""):
		return nil, usagef(cmd, "--vm-config and --subject go with --evidence")
	case f.subject != "" && f.subject != string(registry.SubjectApp) && f.subject != string(registry.SubjectKMS):
		return nil, usagef(cmd, "--subject: %q is neither app nor kms", f.subject)
	case f.evidence == "":
		return &kmsv1.ExplainRegistryRequest{LastDenials: f.last}, nil
	}
	w, err := f.workload(cmd, env)
	if err != nil {
		return nil, err
	}
	return &kmsv1.ExplainRegistryRequest{Workload: w}, nil
}

// workload verifies the Evidence and describes what it is of, the way the KMS
// does.
func (f *explainFlags) workload(cmd *cobra.Command, env Environment) (*kmsv1.RegistryWorkload, error) {
	var trust chain.Config
	if err := f.trust.apply(cmd, &trust); err != nil {
		return nil, err
	}
	file, err := evidence.Read(cmd.Context(), f.evidence)
	if err != nil {
		return nil, err
	}
	verifier, err := tdx.NewVerifier(tdx.Config{TrustAnchor: trust.TrustAnchor, Collateral: trust.Collateral, Now: env.Now})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), f.admin.timeout)
	defer cancel()
	attested, err := file.Verify(ctx, verifier)
	if err != nil {
		return nil, notVerified(gaveUp(ctx, f.admin.timeout, err))
	}
	info, err := authz.Describe(attested, authz.DescribeOptions{VMConfig: f.vmConfig})
	if err != nil {
		return nil, fmt.Errorf("describing the workload: %w", err)
	}
	if len(info.OSImageHash) == 0 {
		fmt.Fprintln(env.Stderr, "Note: nothing here names the OS image; --vm-config does") //nolint:errcheck // the result says none of it too
	}
	subject := f.subject
	if subject == "" {
		subject = string(registry.SubjectApp)
		if file.OfKMS {
			subject = string(registry.SubjectKMS)
		}
	}
	return &kmsv1.RegistryWorkload{
		Subject: subject, AppId: info.AppID, ComposeHash: info.ComposeHash, OsImageHash: info.OSImageHash,
		MrAggregated: info.MRAggregated[:], DeviceId: info.DeviceID[:], TcbStatus: info.TCBStatus, AdvisoryIds: info.AdvisoryIDs,
	}, nil
}

// notVerified gives an error of verification its exit code.
func notVerified(err error) error {
	switch verify, ok := errors.AsType[*attest.VerifyError](err); {
	case errors.Is(err, attest.ErrNoCollateral), ok && verify.Link == attest.LinkCollateral:
		return status.WithCode(status.NoCollateral, fmt.Errorf("nothing can be told without valid collateral: %w", err))
	case ok:
		return status.WithCode(status.NotVerified, fmt.Errorf("Evidence does not verify: %w", err)) //nolint:staticcheck // RFC 9334's word
	default:
		return err
	}
}

func printExplanations(p *terminal.Printer, list []*kmsv1.RegistryExplanation) error {
	for i, e := range list {
		if i > 0 {
			p.Line("")
		}
		w := e.GetWorkload()
		what := fmt.Sprintf("application %x", w.GetAppId())
		if w.GetSubject() == string(registry.SubjectKMS) {
			what = fmt.Sprintf("KMS %x", w.GetMrAggregated())
		}
		mark, verdict := terminal.Good, "allowed"
		if !e.GetAllowed() {
			mark, verdict = terminal.Bad, "denied: "+firstReason(e)
		}
		p.Bold(mark, "%s: %s, at revision %d", what, verdict, e.GetRevision())
		if e.AuditSeq != nil {
			p.Line("  audit record %d: %s", e.GetAuditSeq(), e.GetDeniedReason())
		}
		for _, c := range e.GetChecks() {
			printCheck(p, c)
		}
	}
	if len(list) == 0 {
		p.Line("No denial is recorded")
	}
	return p.Err()
}

func printCheck(p *terminal.Printer, c *kmsv1.RegistryCheck) {
	if !c.GetPassed() {
		p.Marked(terminal.Bad, c.GetKind(), 12, "seen   "+c.GetSeen())
		p.Marked(terminal.None, "", 12, "wanted "+c.GetWanted())
		return
	}
	by := ""
	if c.GetWanted() != c.GetSeen() {
		by = " (" + c.GetWanted() + ")"
	}
	p.Marked(terminal.Good, c.GetKind(), 12, "seen   "+c.GetSeen()+by)
}

// firstReason is the refusal that decided.
func firstReason(e *kmsv1.RegistryExplanation) string {
	for _, c := range e.GetChecks() {
		if !c.GetPassed() {
			return c.GetReason()
		}
	}
	return "no rule says why"
}

// deniedBy is an error with its exit code where a workload is denied.
func deniedBy(list []*kmsv1.RegistryExplanation) error {
	n, reason := 0, ""
	for _, e := range list {
		if !e.GetAllowed() {
			if n++; n == 1 {
				reason = firstReason(e)
			}
		}
	}
	switch n {
	case 0:
		return nil
	case 1:
		return status.WithCode(status.Denied, fmt.Errorf("denied: %s", reason))
	default:
		return status.WithCode(status.Denied, fmt.Errorf("denied: %s (and %d more)", reason, n-1))
	}
}
