// Package cli is the command line of kmsctl: commands, flags, completion and
// exit codes (docs/kmsctl.md). What the commands do is in the packages beside
// it.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"teekms/cmd/internal/buildinfo"
	"teekms/cmd/kmsctl/internal/status"
	"teekms/cmd/kmsctl/internal/terminal"
	"teekms/internal/keys"
)

// Environment is what the tool has of the world. All of it but Stdin and
// Ask is required.
type Environment struct {
	// Args are the arguments without the name of the program.
	Args []string
	// Stdin holds the secret of a file named "-", and answers prompts where it is
	// a terminal; nil holds nothing.
	Stdin io.Reader
	// Stdout gets results, Stderr the one line that says why there are none.
	Stdout, Stderr io.Writer
	// Getenv reads the process environment.
	Getenv func(string) string
	// Environ is the whole of it, as KEY=VALUE: what configures a KMS.
	Environ []string
	// Ask asks a person for a secret, without showing it; optional, at the terminal
	// that controls this process by default.
	Ask func(ctx context.Context, question string) (keys.Secret, error)
	// Now is the clock.
	Now func() time.Time
	// Version is what the build stamped.
	Version string
}

func (e Environment) printer() *terminal.Printer { return terminal.New(e.Stdout, e.Getenv) }

func (e Environment) stdin() io.Reader {
	if e.Stdin == nil {
		return strings.NewReader("")
	}
	return e.Stdin
}

// writeJSON writes v as one document.
func (e Environment) writeJSON(v any) error {
	enc := json.NewEncoder(e.Stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// usageError is a command line that means nothing, in the command it was given
// to.
type usageError struct {
	command string
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }

func (e *usageError) Unwrap() error { return e.err }

func usagef(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{cmd.CommandPath(), fmt.Errorf(format, args...)}
}

// Run runs the tool and returns its exit code. ctx ends it.
func Run(ctx context.Context, env Environment) int {
	root := newRoot(env)                          //nolint:contextcheck // commands get ctx from cobra
	root.SetArgs(append([]string{}, env.Args...)) // nil would be those of the process
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return status.OK
	}
	fmt.Fprintf(env.Stderr, "%s: %s\n", prefixOf(cmd), terminal.Printable(oneLine(err.Error()))) //nolint:errcheck // there is no one left to tell
	code := status.Of(err)
	path := cmd.CommandPath()
	if ue, ok := errors.AsType[*usageError](err); ok {
		code, path = status.Usage, ue.command
	}
	if code == status.Usage {
		fmt.Fprintf(env.Stderr, "Try '%s --help'.\n", path) //nolint:errcheck // as above
	}
	return code
}

// oneLine keeps an error on its line, whatever is quoted in it.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), " ")
}

func newRoot(env Environment) *cobra.Command {
	root := &cobra.Command{
		Use:   "kmsctl",
		Short: "Set up a KMS, verify it, get keys and certificates from it",
		Long: `kmsctl is the client of a KMS that was born in a trust domain: for its operator,
who sets it up, for auditors, who verify it from elsewhere, and for workloads,
which get their keys and certificates from it.

Exit codes: 0 all is well, 1 an error, 2 a command line that means nothing,
3 denied by the KMS, 4 Evidence does not verify, 5 it verifies but is not what
was expected, 6 no valid collateral is to be had.`,
		Version:       buildinfo.Version(env.Version),
		SilenceErrors: true,
		SilenceUsage:  true,
		// Without it nothing is near enough to be suggested.
		SuggestionsMinimumDistance: 2,
		Args:                       cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		},
	}
	root.SetVersionTemplate(buildinfo.Line("kmsctl", env.Version) + "\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{cmd.CommandPath(), err}
	})
	root.AddCommand(newVerify(env), newMeta(env), newBootstrap(env), newOnboard(env), newFinish(env), newBootstrapStart(env), newAudit(env), newApp(env), newRegistry(env), newSeal(env), newSimulator(env), newDemo(env))
	// The built-in commands remember the streams of the moment.
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	setBuiltins(root)
	if len(env.Args) > 0 && (env.Args[0] == cobra.ShellCompRequestCmd || env.Args[0] == cobra.ShellCompNoDescRequestCmd) {
		forShells(root)
	}
	return root
}

// forShells prepares completion: cobra shows descriptions of flags with the marks
// of their values in them, and files where a command takes no arguments.
func forShells(cmd *cobra.Command) {
	unmark := func(f *pflag.Flag) { _, f.Usage = pflag.UnquoteUsage(f) }
	cmd.LocalNonPersistentFlags().VisitAll(unmark)
	cmd.PersistentFlags().VisitAll(unmark)
	if cmd.ValidArgsFunction == nil && len(cmd.ValidArgs) == 0 {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, c := range cmd.Commands() {
		forShells(c)
	}
}

func unknownCommand(cmd *cobra.Command, name string) error {
	text := fmt.Sprintf("unknown command %q", name)
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		text += fmt.Sprintf("; did you mean %s?", strings.Join(near, " or "))
	}
	return usagef(cmd, "%s", text)
}

// noArgs refuses arguments that are not flags.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef(cmd, "unexpected argument %q", args[0])
	}
	return nil
}

// complete registers the values a flag can have.
func complete(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	// It fails for a flag that does not exist or that is registered twice,
	// which a test of every flag would see.
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err)
	}
}

// valueOf completes one of a few values.
func valueOf(values ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
}

// file completes files with one of the extensions, any when there is none.
func file(extensions ...string) cobra.CompletionFunc {
	if len(extensions) == 0 {
		return cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault)
	}
	return cobra.FixedCompletions(extensions, cobra.ShellCompDirectiveFilterFileExt)
}

// directory completes directories.
func directory() cobra.CompletionFunc {
	return cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs)
}
