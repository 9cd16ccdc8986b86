// Package node is what the two server binaries share: the command line, the
// configuration, the logger, the attester, the key directory, and the
// onboarding of an empty one.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"teekms/cmd/internal/buildinfo"
	"teekms/cmd/internal/process"
	"teekms/cmd/internal/sealing"
	"teekms/internal/config"
	"teekms/services/onboard"
)

// DefaultConfig is the configuration file that is read when none is named.
const DefaultConfig = "/etc/kms/kms.toml"

// Exit statuses of the servers.
const (
	exitError = 1
	exitUsage = 2
)

// Program is one server binary.
type Program struct {
	// Name is the command's name, Short its one line of help, Long the rest.
	Name, Short, Long string
	// Version is what the build stamped.
	Version string
	// Ethereum makes the authority that is a contract; nil in a program that
	// links no client of the chain.
	Ethereum NewEthereum
	// Registry opens the authority of type registry with root keys that are not
	// committed yet; nil in a program that links no database.
	Registry OpenRegistry
	// Flags are those that set keys of the configuration.
	Flags []Flag
	// Check says what else is wrong with a configuration (optional).
	Check func(cfg *config.Config) error
	// Run does the work until ctx ends, with the key directory open.
	Run func(ctx context.Context, n *Node) error
}

// Flag is an option of the command line that sets a key.
type Flag struct {
	// Name is the option's, Key the path of the key, Usage one line of help.
	Name, Key, Usage string
	// Switch marks a key that is true or false.
	Switch bool
}

// register adds the option to a command.
func (f Flag) register(flags *pflag.FlagSet) {
	if f.Switch {
		flags.Bool(f.Name, false, f.Usage)
		return
	}
	flags.String(f.Name, "", f.Usage)
}

// given returns what the command line sets.
func (p Program) given(flags *pflag.FlagSet) []config.Flag {
	var given []config.Flag
	for _, f := range p.Flags {
		if flag := flags.Lookup(f.Name); flag != nil && flag.Changed {
			given = append(given, config.Flag{Name: "--" + f.Name, Path: f.Key, Value: flag.Value.String()})
		}
	}
	return given
}

// Main runs the program and returns the exit status of the process. A failure
// is one line on stderr, "Error: TEXT".
func Main(p Program) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := p.command().ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "Error: "+onboard.Public(err))
	if usage := (usageError{}); errors.As(err, &usage) {
		fmt.Fprintf(os.Stderr, "Try '%s --help'.\n", p.Name)
		return exitUsage
	}
	return exitError
}

// usageError marks a command line that cannot be understood.
type usageError struct{ error }

func (p Program) command() *cobra.Command {
	var path string
	var check bool
	cmd := &cobra.Command{
		Use:           p.Name,
		Short:         p.Short,
		Long:          p.Long,
		Version:       buildinfo.Version(p.Version),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unexpected argument %q", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(path, os.Environ(), p.given(cmd.Flags())...)
			if err != nil {
				return err
			}
			if p.Check != nil {
				if err := p.Check(cfg); err != nil {
					return err
				}
			}
			if check {
				if err := sealing.Check(cfg.Core); err != nil {
					return err
				}
				return reportCheck(cmd.OutOrStdout(), path, cfg)
			}
			return p.start(cmd.Context(), path, cfg)
		},
	}
	cmd.SetVersionTemplate(buildinfo.Line(p.Name, p.Version) + "\n")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	cmd.Flags().StringVarP(&path, "config", "c", DefaultConfig, "configuration `file`")
	cmd.Flags().BoolVar(&check, "check", false, "validate the configuration and exit")
	for _, f := range p.Flags {
		f.register(cmd.Flags())
	}
	_ = cmd.MarkFlagFilename("config", "toml") // fails only for an unknown flag
	return cmd
}

// reportCheck says what a valid configuration will do that its author may not
// expect.
func reportCheck(w io.Writer, path string, cfg *config.Config) error {
	for _, key := range cfg.Ineffective() {
		if _, err := fmt.Fprintf(w, "%s: %s has no effect\n", path, key); err != nil {
			return err
		}
	}
	for _, key := range cfg.InsecureSettings() {
		if _, err := fmt.Fprintf(w, "%s: %s weakens security\n", path, key); err != nil {
			return err
		}
	}
	for _, text := range sealing.Weaknesses(cfg.Core.Seal) {
		if _, err := fmt.Fprintf(w, "%s: %s\n", path, text); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%s: valid\n", path)
	return err
}

// start protects the process, opens what both servers need, and runs.
func (p Program) start(ctx context.Context, path string, cfg *config.Config) error {
	if err := process.NoCoreDumps(); err != nil {
		return err
	}
	n, err := p.open(ctx, path, cfg)
	if err != nil {
		return err
	}
	defer n.close()
	return p.Run(ctx, n)
}
