package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/registry"
)

// registryFlags are those of all commands of kmsctl registry.
type registryFlags struct {
	admin adminFlags
	json  bool
}

func newRegistry(env Environment) *cobra.Command {
	f := new(registryFlags)
	cmd := &cobra.Command{
		Use:   "registry",
		Short: "Manage which workloads a KMS allows",
		Long: `Manage the policy registry in the database of a KMS: OS images, KMS
measurements, applications with their compose hashes, devices, TCB statuses and
advisories. What is not listed is denied, an empty list denies everything, and
"any" has to be written where it is meant.

With core.auth_api.type = "registry" these rules decide who gets keys; with
another type they can be prepared all the same. A change works with the next
decision, on every KMS that shares the database, and is in its audit log.

Every command calls the admin listener of the KMS, core.admin in its
configuration. KMSCTL_ADMIN and KMSCTL_ADMIN_TOKEN stand for --admin and the
token.`,
		Example: `  export KMSCTL_ADMIN=http://127.0.0.1:8001 KMSCTL_ADMIN_TOKEN=...
  kmsctl registry tcb add UpToDate
  kmsctl registry image add 2f1c...
  kmsctl registry app add 8b5d... --compose-hash 91e4... --device any
  kmsctl registry import auth-config.json --dry-run
  kmsctl registry explain --last 1`,
		SuggestionsMinimumDistance: 2,
		Args:                       cobra.ArbitraryArgs,
		RunE:                       helpOrUnknown,
	}
	f.admin.register(cmd)
	cmd.PersistentFlags().BoolVar(&f.json, "json", false, "print the result as JSON")
	cmd.AddCommand(
		newRegistryApp(env, f),
		newRegistryKind(env, f, imageRules()), newRegistryKind(env, f, kmsRules()), newRegistryDevice(env, f),
		newRegistryKind(env, f, tcbRules()), newRegistryKind(env, f, advisoryRules()), newRegistryGateway(env, f),
		newRegistryList(env, f), newRegistryImport(env, f), newRegistryExport(env, f), newRegistryExplain(env, f), newRegistryVerify(env, f),
	)
	return cmd
}

// helpOrUnknown is what a command does that has commands below it alone.
func helpOrUnknown(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	return unknownCommand(cmd, args[0])
}

// changeFlags are those of commands that change rules.
type changeFlags struct {
	*registryFlags
	comment  string
	expected uint64
}

func (f *changeFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&f.comment, "comment", "", "`text` for the audit log that says why")
	fs.Uint64Var(&f.expected, "expected-revision", 0, "refuse the change when the registry has another `revision`")
	complete(cmd, "comment", valueOf())
	complete(cmd, "expected-revision", valueOf())
}

// expectedRevision is nil where none was given.
func (f *changeFlags) expectedRevision(cmd *cobra.Command) *uint64 {
	if !cmd.Flags().Changed("expected-revision") {
		return nil
	}
	return &f.expected
}

// apply has the KMS make one change, and prints what became of it.
func (f *changeFlags) apply(cmd *cobra.Command, env Environment, edits []registry.Edit) error {
	r, err := f.registry(cmd, env)
	if err != nil {
		return err
	}
	res, err := r.update(cmd.Context(), registry.Change{Edits: edits, Comment: f.comment, ExpectedRevision: f.expectedRevision(cmd)})
	if err != nil {
		return err
	}
	if f.json {
		text, err := prpcJSON(adminService(), "", res)
		if err != nil {
			return err
		}
		return env.write(text)
	}
	p := env.printer()
	p.Line("Revision %d, audit record %d", res.GetRevision(), res.GetAuditSeq())
	return p.Err()
}

// registryClient is the registry of a KMS.
type registryClient struct{ *adminClient }

func (f *registryFlags) registry(cmd *cobra.Command, env Environment) (*registryClient, error) {
	c, err := f.admin.client(cmd, env)
	if err != nil {
		return nil, err
	}
	return &registryClient{c}, nil
}

func (c *registryClient) update(ctx context.Context, change registry.Change) (*kmsv1.UpdateRegistryResponse, error) {
	req := &kmsv1.UpdateRegistryRequest{ExpectedRevision: change.ExpectedRevision, Comment: change.Comment}
	for _, e := range change.Edits {
		req.Edits = append(req.Edits, &kmsv1.RegistryEdit{
			Op: string(e.Op), Rule: &kmsv1.RegistryRule{Kind: string(e.Rule.Kind), Subject: e.Rule.Subject, Value: e.Rule.Value},
		})
	}
	res := new(kmsv1.UpdateRegistryResponse)
	return res, c.do(ctx, "UpdateRegistry", req, res)
}

// listTries is how often a list is begun that changed while it was read.
const listTries = 5

// rules lists all rules of a kind and subject, both optional, as they were at
// one revision.
func (c *registryClient) rules(ctx context.Context, kind registry.Kind, subject string) ([]*kmsv1.RegistryRule, uint64, error) {
	for range listTries {
		rules, revision, same, err := c.tryRules(ctx, kind, subject)
		if err != nil || same {
			return rules, revision, err
		}
	}
	return nil, 0, errors.New("the registry changes while it is listed; try again")
}

// tryRules reads page by page; same is false where pages are of different
// revisions.
func (c *registryClient) tryRules(ctx context.Context, kind registry.Kind, subject string) (rules []*kmsv1.RegistryRule, revision uint64, same bool, err error) {
	req := &kmsv1.ListRegistryRequest{Kind: string(kind), Subject: subject}
	for first := true; ; first = false {
		var res kmsv1.ListRegistryResponse
		if err := c.do(ctx, "ListRegistry", req, &res); err != nil {
			return nil, 0, false, err
		}
		if !first && res.GetRevision() != revision {
			return nil, 0, false, nil
		}
		revision, rules = res.GetRevision(), append(rules, res.GetRules()...)
		if res.GetNextPageToken() == "" {
			// What was added after the last page was begun is newer than it says.
			for _, r := range rules {
				if r.GetRevision() > revision {
					return nil, 0, false, nil
				}
			}
			return rules, revision, true, nil
		}
		req.PageToken = res.GetNextPageToken()
	}
}

// ruleOf reads a rule from a command line.
func ruleOf(cmd *cobra.Command, what string, r registry.Rule) (registry.Rule, error) {
	c, err := registry.Canonical(r)
	if bad, ok := errors.AsType[*registry.RuleError](err); ok {
		if strings.HasPrefix(bad.Reason, what) { // which quotes it
			return c, usagef(cmd, "%s", bad.Reason)
		}
		return c, usagef(cmd, "%s: %s", what, bad.Reason)
	}
	return c, nil
}

// ruleText is a rule as people read it.
func ruleText(r registry.Rule) string {
	return strings.Join(strings.Fields(fmt.Sprint(r.Kind, " ", r.Subject, " ", r.Value)), " ")
}
