package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"teekms/cmd/kmsctl/internal/sealdir"
	"teekms/internal/keys/seal"
)

// defaultConfig is the configuration that the servers read when none is named.
const defaultConfig = "/etc/kms/kms.toml"

// sealFlags are the flags of every kmsctl seal command.
type sealFlags struct {
	config     string
	identities []string
	json       bool
	// old is the file of the passphrase that was the configured one before.
	old string
	// maxWorkFactor bounds what opening costs; zero is what core.seal allows.
	maxWorkFactor int
	// asking is held while a person is asked.
	asking sync.Mutex
}

func (f *sealFlags) register(cmd *cobra.Command) {
	fs := cmd.PersistentFlags()
	fs.SortFlags = false
	fs.StringVarP(&f.config, "config", "c", defaultConfig, "configuration `file` of the KMS")
	fs.StringArrayVar(&f.identities, "identity", nil, "also open with the private key in this `file`, that of a holder of the escrow: an age identity file or an SSH key; may be repeated")
	fs.IntVar(&f.maxWorkFactor, "max-work-factor", 0, "also open files with a scrypt work factor of up to `n`: 20 takes 1 GiB of memory and some four seconds, 22 four times that (default 18, or that of the configuration where it is higher)")
	fs.BoolVar(&f.json, "json", false, "print the result as JSON")
	complete(cmd, "config", file("toml"))
	complete(cmd, "identity", file())
	complete(cmd, "max-work-factor", cobra.NoFileCompletions)
}

// registerOld adds the flag of the verbs that write.
func (f *sealFlags) registerOld(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&f.old, "old-passphrase-file", "", "also open with the passphrase in this `file`, the one before that of the configuration; \"-\" is standard input, which asks where it is a terminal")
	complete(cmd, "old-passphrase-file", file())
	return cmd
}

func newSeal(env Environment) *cobra.Command {
	var f sealFlags
	cmd := &cobra.Command{
		Use:   "seal",
		Short: "Seal the private keys of a KMS, and say what they are sealed to",
		Long: `Show and change what the private keys of a KMS are sealed to: a passphrase, a
TPM, the guest agent of the trust domain, and the recipients of an escrow, as
core.seal of its configuration says. Any one seal opens them; an escrow opens
only with the key of its holder, wherever that is, given with --identity.

Run it where the KMS runs, with what opens its keys there. A change writes all
private keys anew, under new file keys, in one commit: it may be killed at any
moment, and then the old seals hold or the new ones. The root keys stay as they
are. A KMS that runs need not be stopped.`,
		Example: `  kmsctl seal status
  kmsctl seal add --config /etc/kms/kms.toml
  kmsctl seal rotate --identity escrow.txt`,
		SuggestionsMinimumDistance: 2,
		Args:                       cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		},
	}
	f.register(cmd)
	cmd.AddCommand(newSealStatus(env, &f), f.registerOld(newSealAdd(env, &f)), f.registerOld(newSealRemove(env, &f)), f.registerOld(newSealRotate(env, &f)))
	return cmd
}

func newSealStatus(env Environment, f *sealFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show what the private keys are sealed to and what opens them here",
		Long: `Show each seal of the private keys and each configured one: what it is bound to,
whether the files have it, whether core.seal configures it, and whether it alone
opens them here and now, or why not. Every seal is tried, so that a passphrase
is asked for where it is to be typed.

Where a private file is missing, damaged or not sealed as the others, all are
listed. It ends with 0 where something opens the keys, also where they are plain
and nothing is configured, else with 1, and says what to do about it.`,
		Example: `  kmsctl seal status
  kmsctl seal status --config kms.toml --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.status(cmd, env) },
	}
}

func newSealAdd(env Environment, f *sealFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "add [SEAL...]",
		Short: "Seal the private keys, or seal them to more",
		Long: `Seal the private keys to the named seals besides those that they have; to every
configured one that they lack where none is named. Recipients of an escrow are
added to those that the files have. With nothing to add nothing is written: a
seal that the files have is renewed by kmsctl seal rotate, and a passphrase that
they have is changed by it alone.

Plain keys are sealed in place. Then the plain ones are overwritten, removed,
and the directory synced. That promises nothing on SSDs, on file systems that
copy on write, in snapshots and in backups.`,
		Example: `  kmsctl seal add
  kmsctl seal add passphrase escrow`,
		Args:              sealArgs(false),
		ValidArgsFunction: completeSeals,
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.change(cmd, env, func(ctx context.Context, d *sealdir.Directory) (*sealdir.Result, error) {
				return d.Add(ctx, kinds(args))
			})
		},
	}
}

func newSealRemove(env Environment, f *sealFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "remove SEAL...",
		Short: "Seal the private keys without some of their seals",
		Long: `Seal the private keys anew without the named seals. The last one that opens here
is not removed, and an escrow alone opens nothing here. What stays must be
configured, since it is sealed to anew; an escrow stays for the recipients that
the files have.

Copies that were made before, backups too, keep the seals that they had.`,
		Example: `  kmsctl seal remove tpm
  kmsctl seal remove escrow --json`,
		Args:              sealArgs(true),
		ValidArgsFunction: completeSeals,
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.change(cmd, env, func(ctx context.Context, d *sealdir.Directory) (*sealdir.Result, error) {
				return d.Remove(ctx, kinds(args))
			})
		},
	}
}

func newSealRotate(env Environment, f *sealFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "rotate",
		Short: "Seal the private keys anew to exactly what is configured",
		Long: `Seal the private keys anew to exactly the configured seals: new file keys, new
recipients, the passphrase that is configured now, the PCRs as they are now. The
root keys are the same.

To change a passphrase, put the new one where the configuration says, and run
this with --old-passphrase-file where nothing else opens the keys. Nothing is
sealed to the old one.

To lower a work factor that is above 18, configure the lower one, and run this
with --max-work-factor, which says up to which one the files are read.

After the platform has changed, a passphrase opens the keys, or --identity with
the key of a holder of the escrow; both seal them to the platform as it is now.`,
		Example: `  kmsctl seal rotate
  kmsctl seal rotate --old-passphrase-file /run/secrets/passphrase.old
  kmsctl seal rotate --max-work-factor 20
  kmsctl seal rotate --identity escrow.txt
  kmsctl seal rotate --identity ~/.ssh/id_ed25519`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.change(cmd, env, func(ctx context.Context, d *sealdir.Directory) (*sealdir.Result, error) { return d.Rotate(ctx) })
		},
	}
}

// sealNames are the seals that can be named.
func sealNames() []string {
	return []string{string(seal.KindPassphrase), string(seal.KindTPM), string(seal.KindGuestAgent), string(seal.KindEscrow)}
}

// sealName is the name of a seal, which the configuration writes with an
// underscore.
func sealName(arg string) string { return strings.ReplaceAll(arg, "_", "-") }

// sealArgs refuses arguments that are no seals.
func sealArgs(required bool) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if required && len(args) == 0 {
			return usagef(cmd, "name the seals to remove: %s", strings.Join(sealNames(), ", "))
		}
		for i, arg := range args {
			if arg = sealName(arg); !slices.Contains(sealNames(), arg) {
				return usagef(cmd, "%q is no seal; those are %s", args[i], strings.Join(sealNames(), ", "))
			}
			if slices.ContainsFunc(args[:i], func(before string) bool { return sealName(before) == arg }) {
				return usagef(cmd, "%s is named twice", arg)
			}
		}
		return nil
	}
}

// completeSeals completes those that are not there yet.
func completeSeals(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return slices.DeleteFunc(sealNames(), func(name string) bool { return slices.Contains(args, name) }), cobra.ShellCompDirectiveNoFileComp
}

func kinds(args []string) []seal.Kind {
	out := make([]seal.Kind, len(args))
	for i, arg := range args {
		out[i] = seal.Kind(sealName(arg))
	}
	return out
}

func (f *sealFlags) status(cmd *cobra.Command, env Environment) error {
	d, err := f.directory(cmd, env)
	if err != nil {
		return undisturbed(cmd, err)
	}
	s, failed := d.Status(cmd.Context())
	f.asked()
	if s == nil {
		return undisturbed(cmd, failed)
	}
	env.warn(s.Warnings)
	if f.json {
		err = env.writeJSON(s)
	} else {
		p := env.printer()
		s.WriteText(p)
		err = p.Err()
	}
	if failed == nil {
		failed = s.Err()
	}
	return errors.Join(failed, err)
}

// change runs a verb that writes. Its result is shown where there is one, also
// beside an error.
func (f *sealFlags) change(cmd *cobra.Command, env Environment, verb func(context.Context, *sealdir.Directory) (*sealdir.Result, error)) error {
	d, err := f.directory(cmd, env)
	if err != nil {
		return undisturbed(cmd, err)
	}
	r, failed := verb(cmd.Context(), d)
	f.asked()
	if r == nil {
		return undisturbed(cmd, failed)
	}
	env.warn(r.Warnings)
	if f.json {
		err = env.writeJSON(r)
	} else {
		p := env.printer()
		r.WriteText(p)
		err = p.Err()
	}
	if err != nil && r.Changed {
		err = fmt.Errorf("the private keys were sealed anew, but that could not be shown: %w", err)
	}
	return errors.Join(failed, err)
}

// undisturbed says so where a signal is the reason for err. One that came while
// something else failed is not: that may have changed something.
func undisturbed(cmd *cobra.Command, err error) error {
	if cmd.Context().Err() != nil && errors.Is(err, context.Canceled) {
		return errors.New("interrupted; nothing was changed")
	}
	return err
}

// warn writes a line for each warning.
func (e Environment) warn(warnings []string) {
	for _, w := range warnings {
		fmt.Fprintf(e.Stderr, "Warning: %s\n", w) //nolint:errcheck // there is no one left to tell
	}
}
