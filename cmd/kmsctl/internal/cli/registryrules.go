package cli

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/registry"
)

// kindCommand describes the commands for one kind of rules.
type kindCommand struct {
	kind registry.Kind
	// name is the command, arg what it takes, plural what a list is of.
	name, arg, plural string
	long              string
	// example is a value.
	example string
	values  []string
}

func imageRules() kindCommand {
	return kindCommand{
		kind: registry.OSImage, name: "image", arg: "HASH|any", plural: "OS images", example: "2f1c...",
		long:   "An OS image is known by the hash that its release names, 64 hex digits. It is\nasked about for applications and for KMSs.",
		values: []string{registry.Any},
	}
}

func kmsRules() kindCommand {
	return kindCommand{
		kind: registry.KMS, name: "kms", arg: "MR_AGGREGATED|any", plural: "KMSs", example: "70de...",
		long:   "A KMS is known by its aggregated measurement, 64 hex digits, which kmsctl verify\nshows as mr_aggregated. KMSs that are listed get the root keys: be sure of every\none. They also have to run on a device that is listed; see --device, and kmsctl\nregistry device.",
		values: []string{registry.Any},
	}
}

func tcbRules() kindCommand {
	return kindCommand{
		kind: registry.TCBStatus, name: "tcb", arg: "STATUS|any", plural: "TCB statuses", example: "UpToDate",
		long:   "TCB statuses are Intel's words for the state of a platform. Without one that is\nlisted, nothing is allowed.",
		values: append(registry.TCBStatuses(), registry.Any),
	}
}

func advisoryRules() kindCommand {
	return kindCommand{
		kind: registry.Advisory, name: "advisory", arg: "ID|any", plural: "advisories", example: "INTEL-SA-00837",
		long:   "Advisories are Intel's, of the form INTEL-SA-00837. Every advisory that a\nplatform has must be listed; a platform without one needs none.",
		values: []string{"INTEL-SA-", registry.Any},
	}
}

// newRegistryKind makes the commands add, remove and list of one kind.
func newRegistryKind(env Environment, f *registryFlags, k kindCommand) *cobra.Command {
	cmd := &cobra.Command{
		Use:   k.name,
		Short: "Add, remove and list " + k.plural,
		Long:  "Add, remove and list " + k.plural + " that are allowed.\n\n" + k.long,
		Example: fmt.Sprintf("  kmsctl registry %[1]s add %[2]s\n  kmsctl registry %[1]s remove %[2]s\n  kmsctl registry %[1]s list",
			k.name, k.example),
		SuggestionsMinimumDistance: 2,
		Args:                       cobra.ArbitraryArgs,
		RunE:                       helpOrUnknown,
	}
	cmd.AddCommand(newKindAdd(env, f, k), newKindRemove(env, f, k), newKindList(env, f, k))
	return cmd
}

func newKindAdd(env Environment, rf *registryFlags, k kindCommand) *cobra.Command {
	f := changeFlags{registryFlags: rf}
	var devices []string
	cmd := &cobra.Command{
		Use:               "add " + k.arg + "...",
		Short:             "Allow " + k.plural,
		Example:           fmt.Sprintf("  kmsctl registry %s add %s --comment 'release 1.2'", k.name, k.example),
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: valueOf(k.values...),
		RunE: func(cmd *cobra.Command, args []string) error {
			edits, err := editsOf(cmd, registry.Add, k.kind, "", k.arg, args)
			if err != nil {
				return err
			}
			more, err := flagEdits(cmd, registry.Add, registry.KMSDevice, "", "device", devices)
			if err != nil {
				return err
			}
			return f.apply(cmd, env, append(edits, more...))
		},
	}
	f.register(cmd)
	if k.kind == registry.KMS {
		cmd.Flags().StringArrayVar(&devices, "device", nil, "also allow KMSs on the device with this `id`, or any; may be repeated")
		complete(cmd, "device", valueOf(registry.Any))
	}
	return cmd
}

func newKindRemove(env Environment, rf *registryFlags, k kindCommand) *cobra.Command {
	f := changeFlags{registryFlags: rf}
	var all allFlags
	cmd := &cobra.Command{
		Use:               "remove " + k.arg + "...",
		Short:             "Allow " + k.plural + " no longer",
		Example:           fmt.Sprintf("  kmsctl registry %[1]s remove %[2]s\n  kmsctl registry %[1]s remove --all --yes", k.name, k.example),
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: valueOf(k.values...),
		RunE: func(cmd *cobra.Command, args []string) error {
			edits, err := all.edits(cmd, registry.Rule{Kind: k.kind}, args)
			if edits == nil && err == nil {
				edits, err = editsOf(cmd, registry.Remove, k.kind, "", k.arg, args)
			}
			if err != nil {
				return err
			}
			return f.apply(cmd, env, edits)
		},
	}
	all.register(cmd)
	f.register(cmd)
	return cmd
}

func newKindList(env Environment, f *registryFlags, k kindCommand) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the " + k.plural + " that are allowed",
		Example: fmt.Sprintf("  kmsctl registry %s list --json", k.name),
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.list(cmd, env, k.kind, "") },
	}
	return cmd
}

// allFlags are for the removal of everything.
type allFlags struct{ all, yes bool }

func (f *allFlags) register(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.all, "all", false, "remove all of them; nothing is allowed then")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "with --all: yes, all of them")
}

// edits removes everything where that is meant, nil where it is not.
func (f *allFlags) edits(cmd *cobra.Command, r registry.Rule, args []string) ([]registry.Edit, error) {
	switch {
	case !f.all:
		return nil, nil
	case len(args) > 0:
		return nil, usagef(cmd, "--all takes no arguments")
	case !f.yes:
		return nil, usagef(cmd, "--all removes every rule of this kind; say --yes too")
	}
	return []registry.Edit{{Op: registry.RemoveAll, Rule: r}}, nil
}

// editsOf reads the values of a command line.
func editsOf(cmd *cobra.Command, op registry.Op, kind registry.Kind, subject, what string, values []string) ([]registry.Edit, error) {
	if len(values) == 0 {
		return nil, usagef(cmd, "%s is required", what)
	}
	return flagEdits(cmd, op, kind, subject, "", values)
}

// flagEdits reads the values of a flag, or arguments where flag is empty.
func flagEdits(cmd *cobra.Command, op registry.Op, kind registry.Kind, subject, flag string, values []string) ([]registry.Edit, error) {
	edits := make([]registry.Edit, 0, len(values))
	for _, v := range values {
		what := fmt.Sprintf("%q", v)
		if flag != "" {
			what = fmt.Sprintf("--%s %q", flag, v)
		}
		r, err := ruleOf(cmd, what, registry.Rule{Kind: kind, Subject: subject, Value: v})
		if err != nil {
			return nil, err
		}
		edits = append(edits, registry.Edit{Op: op, Rule: r})
	}
	return edits, nil
}

// newRegistryDevice makes the commands for devices, of KMSs or of one
// application.
func newRegistryDevice(env Environment, rf *registryFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "device",
		Short: "Add, remove and list devices",
		Long: `Add, remove and list the devices that KMSs may run on or, with --app, that one
application may run on. A device is known by its id, 64 hex digits, which kmsctl
verify shows as device_id.`,
		Example: `  kmsctl registry device add 5e0c...
  kmsctl registry device add any --app 8b5d...
  kmsctl registry device list --app 8b5d...`,
		SuggestionsMinimumDistance: 2,
		Args:                       cobra.ArbitraryArgs,
		RunE:                       helpOrUnknown,
	}
	cmd.AddCommand(
		newDeviceChange(env, rf, registry.Add, "Allow devices"),
		newDeviceChange(env, rf, registry.Remove, "Allow devices no longer"),
		newDeviceList(env, rf),
	)
	return cmd
}

// deviceRule says whose devices are meant.
func deviceRule(cmd *cobra.Command, app string) (registry.Rule, error) {
	if app == "" {
		return registry.Rule{Kind: registry.KMSDevice}, nil
	}
	id, err := appArg(cmd, "--app", app)
	return registry.Rule{Kind: registry.Device, Subject: id}, err
}

func registerApp(cmd *cobra.Command, app *string) {
	cmd.Flags().StringVar(app, "app", "", "devices of the application with this `id`, 40 hex digits, instead of KMSs")
	complete(cmd, "app", valueOf())
}

func newDeviceChange(env Environment, rf *registryFlags, op registry.Op, short string) *cobra.Command {
	f := changeFlags{registryFlags: rf}
	var app string
	var all allFlags
	cmd := &cobra.Command{
		Use:               string(op) + " ID|any...",
		Short:             short,
		Example:           fmt.Sprintf("  kmsctl registry device %[1]s 5e0c...\n  kmsctl registry device %[1]s any --app 8b5d...", op),
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: valueOf(registry.Any),
		RunE: func(cmd *cobra.Command, args []string) error {
			rule, err := deviceRule(cmd, app)
			if err != nil {
				return err
			}
			edits, err := all.edits(cmd, rule, args)
			if edits == nil && err == nil {
				edits, err = editsOf(cmd, op, rule.Kind, rule.Subject, "ID", args)
			}
			if err != nil {
				return err
			}
			return f.apply(cmd, env, edits)
		},
	}
	registerApp(cmd, &app)
	if op == registry.Remove {
		all.register(cmd)
	}
	f.register(cmd)
	return cmd
}

func newDeviceList(env Environment, f *registryFlags) *cobra.Command {
	var app string
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the devices that are allowed",
		Example: "  kmsctl registry device list --app 8b5d...",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rule, err := deviceRule(cmd, app)
			if err != nil {
				return err
			}
			return f.list(cmd, env, rule.Kind, rule.Subject)
		},
	}
	registerApp(cmd, &app)
	return cmd
}

func appArg(cmd *cobra.Command, what, id string) (string, error) {
	canonical, err := registry.CanonicalAppID(id)
	if err != nil {
		return "", usagef(cmd, "%s: %w", what, err)
	}
	return canonical, nil
}

// newRegistryGateway makes the commands for the one gateway.
func newRegistryGateway(env Environment, rf *registryFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Set, remove and show the gateway",
		Long: `Set, remove and show the application that is the gateway. Applications that get
keys are told its id: they speak to it, and to no other.`,
		Example: `  kmsctl registry gateway set 31c2...
  kmsctl registry gateway set any`,
		SuggestionsMinimumDistance: 2,
		Args:                       cobra.ArbitraryArgs,
		RunE:                       helpOrUnknown,
	}
	set := changeFlags{registryFlags: rf}
	setCmd := &cobra.Command{
		Use:               "set APP_ID|any",
		Short:             "Set the gateway, in place of the one before",
		Example:           "  kmsctl registry gateway set 31c2...",
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: valueOf(registry.Any),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef(cmd, "exactly one APP_ID, or any, is required")
			}
			edits, err := editsOf(cmd, registry.Add, registry.Gateway, "", "APP_ID", args)
			if err != nil {
				return err
			}
			return set.apply(cmd, env, edits)
		},
	}
	set.register(setCmd)
	remove := changeFlags{registryFlags: rf}
	removeCmd := &cobra.Command{
		Use:     "remove",
		Short:   "Have no gateway",
		Example: "  kmsctl registry gateway remove",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return remove.apply(cmd, env, []registry.Edit{{Op: registry.RemoveAll, Rule: registry.Rule{Kind: registry.Gateway}}})
		},
	}
	remove.register(removeCmd)
	listCmd := &cobra.Command{
		Use:     "list",
		Short:   "Show the gateway",
		Example: "  kmsctl registry gateway list",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return rf.list(cmd, env, registry.Gateway, "") },
	}
	cmd.AddCommand(setCmd, removeCmd, listCmd)
	return cmd
}

func newRegistryList(env Environment, f *registryFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List all rules",
		Example: "  kmsctl registry list --json | jq -r '.rules[] | select(.kind == \"app\") | .value'",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.list(cmd, env, "", "") },
	}
}

// list prints rules.
func (f *registryFlags) list(cmd *cobra.Command, env Environment, kind registry.Kind, subject string) error {
	r, err := f.registry(cmd, env)
	if err != nil {
		return err
	}
	rules, revision, err := r.rules(cmd.Context(), kind, subject)
	if err != nil {
		return err
	}
	return f.printRules(env, rules, revision)
}

func (f *registryFlags) printRules(env Environment, rules []*kmsv1.RegistryRule, revision uint64) error {
	if f.json {
		text, err := prpcJSON(adminService(), "", &kmsv1.ListRegistryResponse{Rules: rules, Revision: revision})
		if err != nil {
			return err
		}
		return env.write(text)
	}
	p := env.printer()
	width := map[string]int{}
	for _, r := range rules {
		for name, v := range map[string]string{"kind": r.GetKind(), "subject": r.GetSubject(), "value": r.GetValue()} {
			width[name] = max(width[name], len(v))
		}
	}
	for _, r := range rules {
		subject := ""
		if width["subject"] > 0 {
			subject = fmt.Sprintf("%-*s  ", width["subject"], orDash(r.GetSubject()))
		}
		p.Line("%-*s  %s%-*s  revision %d", width["kind"], r.GetKind(), subject, width["value"], r.GetValue(), r.GetRevision())
	}
	if len(rules) == 0 {
		p.Line("Nothing is listed, at revision %d", revision)
	} else {
		p.Line("%s, at revision %d", rulesText(len(rules)), revision)
	}
	return p.Err()
}

// newRegistryApp makes the commands for applications.
func newRegistryApp(env Environment, rf *registryFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "app",
		Short: "Add, remove and list applications, their compose hashes and devices",
		Long: `Add, remove and list applications. An application gets keys when it is listed,
with the hash of its compose file and the device that it runs on; "any" as
device is every device. Removing an application removes what was allowed of it.`,
		Example: `  kmsctl registry app add 8b5d... --compose-hash 91e4... --device any
  kmsctl registry app remove 8b5d... --compose-hash 91e4...
  kmsctl registry app remove 8b5d... --yes
  kmsctl registry app list 8b5d...`,
		SuggestionsMinimumDistance: 2,
		Args:                       cobra.ArbitraryArgs,
		RunE:                       helpOrUnknown,
	}
	cmd.AddCommand(newAppChange(env, rf, registry.Add), newAppChange(env, rf, registry.Remove), newAppList(env, rf))
	return cmd
}

// appChangeFlags are those of kmsctl registry app add and remove.
type appChangeFlags struct {
	changeFlags
	compose, devices []string
	yes              bool
}

func newAppChange(env Environment, rf *registryFlags, op registry.Op) *cobra.Command {
	f := appChangeFlags{changeFlags: changeFlags{registryFlags: rf}}
	cmd := &cobra.Command{
		Use:               "add APP_ID",
		Short:             "Allow an application, compose hashes and devices of it",
		Example:           "  kmsctl registry app add 8b5d... --compose-hash 91e4... --device any",
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: valueOf(),
		RunE: func(cmd *cobra.Command, args []string) error {
			edits, err := f.edits(cmd, op, args)
			if err != nil {
				return err
			}
			return f.apply(cmd, env, edits)
		},
	}
	if op == registry.Remove {
		cmd.Use, cmd.Short = "remove APP_ID", "Allow an application, or compose hashes and devices of it, no longer"
		cmd.Example = "  kmsctl registry app remove 8b5d... --compose-hash 91e4...\n  kmsctl registry app remove 8b5d... --yes"
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringArrayVar(&f.compose, "compose-hash", nil, "`hash` of a compose file, 64 hex digits, or any; may be repeated")
	fs.StringArrayVar(&f.devices, "device", nil, "`id` of a device, 64 hex digits, or any; may be repeated")
	complete(cmd, "compose-hash", valueOf())
	complete(cmd, "device", valueOf(registry.Any))
	if op == registry.Remove {
		fs.BoolVar(&f.yes, "yes", false, "without the flags above: yes, the whole application")
	}
	f.register(cmd)
	return cmd
}

func (f *appChangeFlags) edits(cmd *cobra.Command, op registry.Op, args []string) ([]registry.Edit, error) {
	if len(args) != 1 {
		return nil, usagef(cmd, "exactly one APP_ID is required")
	}
	id, err := appArg(cmd, fmt.Sprintf("%q", args[0]), args[0])
	if err != nil {
		return nil, err
	}
	compose, err := flagEdits(cmd, op, registry.Compose, id, "compose-hash", f.compose)
	if err != nil {
		return nil, err
	}
	devices, err := flagEdits(cmd, op, registry.Device, id, "device", f.devices)
	if err != nil {
		return nil, err
	}
	parts := append(compose, devices...)
	whole := registry.Edit{Op: op, Rule: registry.Rule{Kind: registry.App, Value: id}}
	switch {
	case op == registry.Add:
		return append([]registry.Edit{whole}, parts...), nil
	case len(parts) > 0:
		return parts, nil
	case !f.yes:
		return nil, usagef(cmd, "this removes the application with everything that was allowed of it; say --yes, or give --compose-hash or --device")
	}
	return []registry.Edit{whole}, nil
}

func newAppList(env Environment, f *registryFlags) *cobra.Command {
	return &cobra.Command{
		Use:               "list [APP_ID]",
		Short:             "List applications, or what is allowed of one",
		Example:           "  kmsctl registry app list\n  kmsctl registry app list 8b5d... --json",
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: valueOf(),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch len(args) {
			case 0:
				return f.list(cmd, env, registry.App, "")
			case 1:
				return f.listApp(cmd, env, args[0])
			default:
				return usagef(cmd, "at most one APP_ID")
			}
		},
	}
}

// listApp prints the rules of one application.
func (f *registryFlags) listApp(cmd *cobra.Command, env Environment, arg string) error {
	id, err := appArg(cmd, fmt.Sprintf("%q", arg), arg)
	if err != nil {
		return err
	}
	r, err := f.registry(cmd, env)
	if err != nil {
		return err
	}
	rules, revision, err := r.rules(cmd.Context(), "", id)
	if err != nil {
		return err
	}
	registered, err := r.registered(cmd.Context(), id)
	if err != nil {
		return err
	}
	if err := f.printRules(env, rules, revision); err != nil || f.json || registered {
		return err
	}
	p := env.printer()
	p.Line("The application is not registered: kmsctl registry app add does that")
	return p.Err()
}

// registered asks whether there is the rule of an application.
func (c *registryClient) registered(ctx context.Context, id string) (bool, error) {
	app, err := hex.DecodeString(id)
	if err != nil {
		return false, err
	}
	var res kmsv1.ExplainRegistryResponse
	req := &kmsv1.ExplainRegistryRequest{Workload: &kmsv1.RegistryWorkload{Subject: string(registry.SubjectApp), AppId: app}}
	if err := c.do(ctx, "ExplainRegistry", req, &res); err != nil {
		return false, err
	}
	for _, e := range res.GetExplanations() {
		for _, check := range e.GetChecks() {
			if check.GetKind() == string(registry.App) {
				return check.GetPassed(), nil
			}
		}
	}
	return false, fmt.Errorf("the KMS explains nothing of %s", strings.ToLower(id))
}

// rulesText counts rules.
func rulesText(n int) string {
	if n == 1 {
		return "1 rule"
	}
	return fmt.Sprintf("%d rules", n)
}
