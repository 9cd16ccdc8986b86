package cli

import (
	"context"
	"fmt"
	"os"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"teekms/cmd/internal/argfile"
	"teekms/cmd/internal/process"
	"teekms/cmd/internal/sealing"
	"teekms/cmd/internal/terminal"
	"teekms/cmd/kmsctl/internal/identity"
	"teekms/cmd/kmsctl/internal/sealdir"
	"teekms/internal/config"
	"teekms/internal/keys"
	"teekms/internal/keys/seal"
	"teekms/internal/observe"
)

// directory reads the configuration, and the identities that open besides.
// Nothing is opened.
func (f *sealFlags) directory(cmd *cobra.Command, env Environment) (*sealdir.Directory, error) {
	if err := process.NoCoreDumps(); err != nil {
		return nil, err
	}
	if n := f.maxWorkFactor; cmd.Flags().Changed("max-work-factor") && (n < seal.MinWorkFactor || n > seal.MaxWorkFactor) {
		return nil, usagef(cmd, "--max-work-factor is %d, and must be from %d to %d", n, seal.MinWorkFactor, seal.MaxWorkFactor)
	}
	cfg, err := argfile.Within(cmd.Context(), func() (*config.Config, error) { return config.Load(f.config, env.Environ) })
	if err != nil {
		return nil, err
	}
	log, err := observe.NewLogger(observe.Config{Level: "warn", Format: observe.FormatConsole, Out: env.Stderr, Now: env.Now})
	if err != nil {
		return nil, err
	}
	tell := func(text string) {
		fmt.Fprintf(env.Stderr, "kmsctl: %s\n", text) //nolint:errcheck // there is no one left to tell
	}
	var ids []age.Identity
	ask := f.ask(env)
	reader := identity.Reader{Ask: ask, Tell: tell}
	for _, path := range f.identities {
		more, err := reader.Read(cmd.Context(), path)
		if err != nil {
			return nil, fmt.Errorf("--identity: %w", err)
		}
		ids = append(ids, more...)
	}
	from := sealing.From{Ask: ask, MaxWorkFactor: f.maxWorkFactor}
	seals, err := sealing.Seals(cfg.Core, from)
	if err != nil {
		return nil, err
	}
	old, err := f.oldSeals(cmd.Context(), cfg.Core, from, env)
	if err != nil {
		return nil, err
	}
	return sealdir.New(sealdir.Config{
		Dir: cfg.Core.CertDir, Domain: cfg.Core.Onboard.AutoBootstrapDomain,
		Seals: seals, Identities: ids, Old: old, Now: env.Now, Log: log, Progress: tell,
		Compare: func(files map[string][]byte) (notes, warnings []string) {
			return otherwise(cfg.Core, files), sealing.Weak(cfg.Core, files)
		},
		Unmeasured: func(ctx context.Context) []string { return sealing.Unmeasured(ctx, cfg.Core.Seal) },
	}), nil
}

// oldSeals are what the files may have been sealed to before. A file is read at
// once, so that a wrong name is told; a person is asked when it is needed.
func (f *sealFlags) oldSeals(ctx context.Context, c config.Core, from sealing.From, env Environment) ([]seal.Seal, error) {
	if f.old == "" {
		return nil, nil
	}
	if tty, ok := env.stdin().(*os.File); ok && f.old == "-" && terminal.Is(tty) {
		return []seal.Seal{sealing.Old(c, from, nil)}, nil
	}
	old, err := sealing.ReadOld(ctx, "--old-passphrase-file", f.old, env.stdin())
	if err != nil {
		return nil, err
	}
	return []seal.Seal{sealing.Old(c, from, func(context.Context) (keys.Secret, error) { return old, nil })}, nil
}

// otherwise says of seals that are configured and in the files what differs.
func otherwise(c config.Core, files map[string][]byte) []string {
	var out []string
	for _, d := range sealing.Differences(c, files) {
		if d.Files != "" && d.Configured != "" {
			out = append(out, fmt.Sprintf("the files are sealed to %s with %s, core.seal says %s: `kmsctl seal rotate` seals them to that", d.Kind, d.Files, d.Configured))
		}
	}
	return out
}

// ask asks one question at a time. An interrupt gives up waiting for the answer;
// the terminal is still to be set right then, which asked waits for.
func (f *sealFlags) ask(env Environment) func(context.Context, string) (keys.Secret, error) {
	return func(ctx context.Context, question string) (keys.Secret, error) {
		f.asking.Lock()
		defer f.asking.Unlock()
		if err := ctx.Err(); err != nil {
			return keys.Secret{}, err
		}
		return env.ask(ctx, question)
	}
}

// asked waits until nobody is asked any more, and the terminal is as it was.
func (f *sealFlags) asked() {
	f.asking.Lock()
	defer f.asking.Unlock()
}

// ask asks the person at the terminal for a secret.
func (e Environment) ask(ctx context.Context, question string) (keys.Secret, error) {
	if e.Ask != nil {
		return e.Ask(ctx, question)
	}
	tty, err := terminal.Open()
	if err != nil {
		return keys.Secret{}, fmt.Errorf("there is nobody to ask: %w", err)
	}
	return sealing.AskAt(ctx, tty, question)
}
