package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"teekms/cmd/kmsctl/internal/auditcheck"
	"teekms/cmd/kmsctl/internal/status"
	"teekms/cmd/kmsctl/internal/terminal"
	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/audit"
	"teekms/internal/registry"
)

// registryVerifyFlags are the flags of kmsctl registry verify.
type registryVerifyFlags struct {
	*registryFlags
	root       rootFlags
	checkpoint string
}

func newRegistryVerify(env Environment, rf *registryFlags) *cobra.Command {
	f := registryVerifyFlags{registryFlags: rf}
	cmd := &cobra.Command{
		Use:   "verify {--root-ca FILE | --dir CERTDIR | --info FILE}",
		Short: "Verify that the rules are those that the audit log leads to",
		Long: `Verify the whole audit log, as kmsctl audit verify does, apply every change in
it, and compare what comes out with the rules that the KMS lists. A rule that
somebody put back into the database, or took out of it, has no change in the
log. Exit code 4 says that there is one.`,
		Example: `  kmsctl registry verify --root-ca root-ca.crt
  kmsctl registry verify --root-ca root-ca.crt --checkpoint last.txt`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, env) },
	}
	f.root.register(cmd)
	cmd.Flags().StringVar(&f.checkpoint, "checkpoint", "", "`file` with an older checkpoint that the log must continue")
	complete(cmd, "checkpoint", file())
	return cmd
}

// rulesVerified is the result as JSON.
type rulesVerified struct {
	Verified bool          `json:"verified"`
	Revision uint64        `json:"revision"`
	Records  uint64        `json:"records"`
	Rules    int           `json:"rules"`
	Findings []ruleFinding `json:"findings"`
}

// ruleFinding is a rule that is not as the log has it.
type ruleFinding struct {
	Rule string `json:"rule"`
	// Problem is added, missing, or revision.
	Problem string `json:"problem"`
	// Listed and Logged are the revisions that the KMS lists and that the log
	// leads to; 0 where the rule is not there.
	Listed uint64 `json:"listed_revision"`
	Logged uint64 `json:"logged_revision"`
}

func (f *registryVerifyFlags) run(cmd *cobra.Command, env Environment) error {
	o, err := f.root.options(cmd, &f.admin)
	if err != nil {
		return err
	}
	if o.Older, err = older(cmd.Context(), f.checkpoint); err != nil {
		return err
	}
	r, err := f.registry(cmd, env)
	if err != nil {
		return err
	}
	show, end := env.progress()
	o.Progress = show
	out, err := r.verify(cmd.Context(), o)
	end()
	if err != nil {
		return auditCode(err)
	}
	if f.json {
		err = env.writeJSON(out)
	} else {
		err = out.print(env.printer())
	}
	if err != nil || out.Verified {
		return err
	}
	return status.WithCode(status.NotVerified, fmt.Errorf("not as the audit log has it: %s", rulesText(len(out.Findings))))
}

// verify compares the rules with the log, of one and the same revision.
func (c *registryClient) verify(ctx context.Context, o auditcheck.Options) (*rulesVerified, error) {
	for range listTries {
		log := &changeLog{Source: running{c.adminClient}}
		report, err := auditcheck.Verify(ctx, log, o)
		if err != nil {
			return nil, err
		}
		listed, revision, err := c.rules(ctx, "", "")
		if err != nil {
			return nil, err
		}
		logged, at := log.replay(report.Checkpoint.Size)
		if at == revision {
			out := &rulesVerified{Revision: revision, Records: report.Checkpoint.Size, Rules: len(listed), Findings: compareRules(listed, logged)}
			out.Verified = len(out.Findings) == 0
			return out, nil
		}
		if at > revision { // it was listed after the log was read
			return nil, status.WithCode(status.NotVerified, fmt.Errorf("the registry is at revision %d, the audit log at %d: the rules were rolled back", revision, at))
		}
	}
	return nil, errors.New("the registry changes while it is verified, or has a revision that the audit log does not lead to; try again")
}

// changeLog keeps the changes of the registry in the records that pass through.
type changeLog struct {
	auditcheck.Source
	next    uint64
	changes []*audit.Record
}

// Records implements auditcheck.Source.
func (l *changeLog) Records(ctx context.Context, from uint64) ([][]byte, error) {
	bodies, err := l.Source.Records(ctx, from)
	for i, body := range bodies {
		r, err := audit.Parse(body)
		if err != nil || from+uint64(i) < l.next {
			continue // what is no record is found by who asked
		}
		l.next = from + uint64(i) + 1
		if len(r.Edits) > 0 {
			l.changes = append(l.changes, r)
		}
	}
	return bodies, err
}

// replay applies the changes among the first records. They must have been
// verified.
func (l *changeLog) replay(size uint64) (rules []registry.Entry, revision uint64) {
	var r registry.Replay
	for _, c := range l.changes {
		if c.Seq < size {
			r.Apply(c.Edits, c.Revision)
			revision = c.Revision
		}
	}
	return r.Entries(), revision
}

// compareRules finds what is on one side alone, or of another revision there.
func compareRules(listed []*kmsv1.RegistryRule, logged []registry.Entry) []ruleFinding {
	findings := []ruleFinding{}
	want := make(map[registry.Rule]uint64, len(logged))
	for _, e := range logged {
		want[e.Rule] = e.Revision
	}
	for i, rule := range rulesOf(listed) {
		revision, ok := want[rule]
		delete(want, rule)
		at := listed[i].GetRevision()
		switch {
		case !ok:
			findings = append(findings, ruleFinding{ruleText(rule), "added", at, 0})
		case revision != at:
			findings = append(findings, ruleFinding{ruleText(rule), "revision", at, revision})
		}
	}
	for _, e := range logged {
		if revision, left := want[e.Rule]; left {
			findings = append(findings, ruleFinding{ruleText(e.Rule), "missing", 0, revision})
		}
	}
	return findings
}

func (v *rulesVerified) print(p *terminal.Printer) error {
	if v.Verified {
		p.Marked(terminal.Good, "rules", 8, fmt.Sprintf("%d, those that the %d records of the audit log lead to, at revision %d", v.Rules, v.Records, v.Revision))
		return p.Err()
	}
	for _, f := range v.Findings {
		text := f.Rule + ": no change in the audit log leads to it"
		switch f.Problem {
		case "missing":
			text = fmt.Sprintf("%s: added at revision %d, removed by nobody, and not there", f.Rule, f.Logged)
		case "revision":
			text = fmt.Sprintf("%s: of revision %d, in the audit log of %d", f.Rule, f.Listed, f.Logged)
		}
		p.Marked(terminal.Bad, f.Problem, 8, text)
	}
	return p.Err()
}
