package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"teekms/cmd/kmsctl/internal/demo"
)

// demoFlags are the flags of kmsctl demo.
type demoFlags struct {
	dir              string
	exit, json, seal bool
}

func newDemo(env Environment) *cobra.Command {
	var f demoFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Bootstrap, verify and use a KMS on this machine",
		Long: `Show the whole main job with the real programs: dstack-onboard makes root keys
in a simulated trust domain, their quote is verified link by link, dstack-kms
serves from them, and what it serves is verified again. An application gets its
keys and a certificate, a changed one is denied by a webhook, and a second KMS
fetches the root keys and derives the same.

In a second act that one starts again without a configuration. kmsctl
bootstrap-start verifies it and gives it a database and a certificate; rules in
its registry deny the application its keys, then release them; and its audit log
is verified. Then the first KMS stays up, with the commands to try, until
interrupted.

With --seal the keys of the first KMS are sealed from their birth, to a
passphrase, to an escrow and, where swtpm is in PATH, to a TPM in software. A
third act seals the second KMS in its place, restarts the first, extends a PCR,
shows the refusal, opens with the passphrase, rotates the seals and opens a copy
by the escrow (make demo DEMOFLAGS=--seal).

It needs no root, no network and no TDX. dstack-onboard and dstack-kms are
looked for beside kmsctl, then in PATH.`,
		Example: `  kmsctl demo
  kmsctl demo --exit
  kmsctl demo --seal
  kmsctl demo --dir ./demo`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("looking for this program: %w", err)
			}
			return demo.Run(cmd.Context(), demo.Config{
				Dir: f.dir, Exit: f.exit, JSON: f.json, Seal: f.seal,
				Printer: env.printer(), Stdout: env.Stdout, Stderr: env.Stderr,
				Find: findProgram, Self: self, Now: env.Now,
			})
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&f.dir, "dir", "", "keep everything in this `directory`, which must be empty or missing (default: a temporary one, removed at the end)")
	fs.BoolVar(&f.exit, "exit", false, "end after the steps instead of staying up")
	fs.BoolVar(&f.seal, "seal", false, "seal the keys, with a software TPM where swtpm is, and show what that means")
	fs.BoolVar(&f.json, "json", false, "print one JSON object a line")
	complete(cmd, "dir", directory())
	return cmd
}

// findProgram looks beside this program's own file, then in PATH.
func findProgram(name string) (string, error) {
	self, err := os.Executable()
	if err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%s is neither beside %s nor in PATH; `make build` puts all three into bin/", name, self)
	}
	if err != nil {
		return "", fmt.Errorf("looking for %s: %w", name, err)
	}
	return path, nil
}
