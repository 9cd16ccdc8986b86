package cli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"teekms/cmd/internal/argfile"
	"teekms/cmd/kmsctl/internal/terminal"
	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/durable"
	"teekms/internal/registry"
)

// importFlags are the flags of kmsctl registry import.
type importFlags struct {
	changeFlags
	merge, dryRun, yes bool
}

func newRegistryImport(env Environment, rf *registryFlags) *cobra.Command {
	f := importFlags{changeFlags: changeFlags{registryFlags: rf}}
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Take over the configuration of an authorization service",
		Long: `Make the rules those of an auth-config.json, the configuration of dstack's
auth-simple; - is standard input. What is there and not in the file is removed,
unless --merge keeps it. What the file allows by leaving it out is written as
what it means, and told: no list of TCB statuses is UpToDate, no device is any.
Facts that decide nothing are left out; unknown names are errors.

All of it is one change. Only where it has more than 4096 edits it is several,
removals first: in between, nothing is allowed that neither the old rules nor
the file allow.`,
		Example: `  kmsctl registry import auth-config.json --dry-run
  kmsctl registry import auth-config.json --merge --comment 'team blue'`,
		Args: cobra.ArbitraryArgs,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"json"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef(cmd, "exactly one FILE is required")
			}
			return f.run(cmd, env, args[0])
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.BoolVar(&f.merge, "merge", false, "keep the rules that are not in the file")
	fs.BoolVar(&f.dryRun, "dry-run", false, "show the edits, and change nothing")
	fs.BoolVar(&f.yes, "yes", false, "yes, remove the rules that are not in the file")
	f.register(cmd)
	return cmd
}

// imported is the result as JSON.
type imported struct {
	Revision uint64   `json:"revision"`
	DryRun   bool     `json:"dry_run"`
	Added    int      `json:"added"`
	Removed  int      `json:"removed"`
	Edits    []string `json:"edits"`
	Notes    []string `json:"notes"`
}

func (f *importFlags) run(cmd *cobra.Command, env Environment, path string) error {
	text, err := readLimited(cmd.Context(), path, env.stdin(), registry.MaxAuthConfigSize)
	if err != nil {
		return err
	}
	config, err := registry.ParseAuthConfig(text)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	r, err := f.registry(cmd, env)
	if err != nil {
		return err
	}
	have, revision, err := r.rules(cmd.Context(), "", "")
	if err != nil {
		return err
	}
	if want := f.expectedRevision(cmd); want != nil && *want != revision {
		return fmt.Errorf("the registry has revision %d, not %d", revision, *want)
	}
	edits := registry.Diff(rulesOf(have), config.Rules)
	if f.merge {
		edits = additions(edits)
	}
	out := newImported(edits, config.Notes, revision, f.dryRun)
	if !f.dryRun {
		if out.Removed > 0 && !f.yes {
			return usagef(cmd, "%d rules are not in the file and would be removed: --dry-run shows them, --yes removes them, --merge keeps them", out.Removed)
		}
		if out.Revision, err = f.change(cmd, r, edits, revision, "import of "+filepath.Base(path)); err != nil {
			return err
		}
	}
	return f.print(env, out)
}

// readLimited reads a file, or standard input for "-".
func readLimited(ctx context.Context, path string, stdin io.Reader, limit int64) ([]byte, error) {
	if path != "-" {
		return argfile.Read(ctx, path, limit)
	}
	return argfile.Within(ctx, func() ([]byte, error) { return argfile.All(stdin, "standard input", limit) })
}

func rulesOf(list []*kmsv1.RegistryRule) []registry.Rule {
	rules := make([]registry.Rule, len(list))
	for i, r := range list {
		rules[i] = registry.Rule{Kind: registry.Kind(r.GetKind()), Subject: r.GetSubject(), Value: r.GetValue()}
	}
	return rules
}

// additions drops what is removed.
func additions(edits []registry.Edit) []registry.Edit {
	var out []registry.Edit
	for _, e := range edits {
		if e.Op == registry.Add {
			out = append(out, e)
		}
	}
	return out
}

func newImported(edits []registry.Edit, notes []string, revision uint64, dryRun bool) imported {
	out := imported{Revision: revision, DryRun: dryRun, Edits: []string{}, Notes: append([]string{}, notes...)}
	for _, e := range edits {
		if e.Op == registry.Add {
			out.Added++
		} else {
			out.Removed++
		}
		out.Edits = append(out.Edits, fmt.Sprintf("%s %s", e.Op, ruleText(e.Rule)))
	}
	return out
}

// change makes the edits, each part on the revision that the one before left.
func (f *importFlags) change(cmd *cobra.Command, r *registryClient, edits []registry.Edit, revision uint64, comment string) (uint64, error) {
	if f.comment != "" {
		comment = f.comment
	}
	parts := registry.Split(edits)
	for i, part := range parts {
		expected := revision
		res, err := r.update(cmd.Context(), registry.Change{Edits: part, ExpectedRevision: &expected, Comment: comment})
		if err != nil && i > 0 {
			err = fmt.Errorf("%w; part %d of %d was not made: import the same file again", err, i+1, len(parts))
		}
		if err != nil {
			return revision, err
		}
		revision = res.GetRevision()
	}
	return revision, nil
}

func (f *importFlags) print(env Environment, out imported) error {
	if f.json {
		return env.writeJSON(out)
	}
	p := env.printer()
	for _, n := range out.Notes {
		p.Line("Note: %s", n)
	}
	if out.DryRun {
		for _, e := range out.Edits {
			p.Line("%s", e)
		}
		p.Line("Would add %s and remove %d, at revision %d", rulesText(out.Added), out.Removed, out.Revision)
	} else {
		p.Line("Added %s, removed %d; revision %d", rulesText(out.Added), out.Removed, out.Revision)
	}
	return p.Err()
}

func newRegistryExport(env Environment, f *registryFlags) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write the rules as the configuration of an authorization service",
		Long: `Write the rules as an auth-config.json, as kmsctl registry import reads it. What
the file has no word for, such as any OS image, is left out and told on standard
error: it never allows more than the rules do.`,
		Example: `  kmsctl registry export --out auth-config.json`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := f.registry(cmd, env)
			if err != nil {
				return err
			}
			rules, _, err := r.rules(cmd.Context(), "", "")
			if err != nil {
				return err
			}
			file := registry.Format(rulesOf(rules))
			for _, n := range file.Notes {
				fmt.Fprintf(env.Stderr, "Note: %s\n", terminal.Printable(n)) //nolint:errcheck // the file says nothing of it either
			}
			if out == "" {
				return env.write(file.Text)
			}
			if err := durable.WriteFile(durable.OS{}, out, file.Text, 0o644); err != nil {
				return fmt.Errorf("writing the file: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringVar(&out, "out", "", "write to this `file` instead of standard output")
	complete(cmd, "out", file("json"))
	return cmd
}
