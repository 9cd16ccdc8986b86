package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"teekms/cmd/kmsctl/internal/cli"
	"teekms/cmd/kmsctl/internal/manual"
)

const manualDir = "../../../../docs/man"

// TestManualPagesAreCurrent compares docs/man with what the commands say of
// themselves; run with -update to write it.
func TestManualPagesAreCurrent(t *testing.T) {
	root := cli.NewRoot(cli.Environment{Version: "v1.2.3"})
	pages := manual.Pages(root, "teekms",
		manual.Section{Title: "EXIT STATUS", Entries: [][2]string{
			{"0", "All is well."},
			{"1", "An error: a file that cannot be read, a server that does not answer, an interrupt."},
			{"2", "A command line that means nothing."},
			{"3", "Denied by the KMS."},
			{"4", "Evidence does not verify, or there is none."},
			{"5", "Evidence verifies, but is not what was expected."},
			{"6", "No valid collateral is to be had, so that nothing can be told."},
		}},
		manual.Section{Title: "ENVIRONMENT", Entries: [][2]string{
			{"KMS_CLI_CONF", "The client file, which must be there then. Without it kmsctl bootstrap-start reads ~/.cosmian/kms.json where there is one."},
			{"KMSCTL_ADMIN, KMSCTL_ADMIN_TOKEN", "Admin listener and token of kmsctl registry and kmsctl audit, where no flag gives them."},
			{"DSTACK_AGENT_ADDRESS", "Where the guest agent is that attests for kmsctl app."},
			{"NO_COLOR", "Where it is not empty, nothing is printed in color."},
		}},
	)
	if *update {
		old, err := filepath.Glob(filepath.Join(manualDir, "kmsctl*.1"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range old {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		for name, text := range pages {
			if err := os.WriteFile(filepath.Join(manualDir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, want := range pages {
		got, err := os.ReadFile(filepath.Join(manualDir, name))
		if err != nil {
			t.Errorf("%v; write it with go test ./cmd/kmsctl/internal/cli -update", err)
			continue
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("docs/man/%s is not current; write it with go test ./cmd/kmsctl/internal/cli -update (-want +got):\n%s", name, diff)
		}
	}
	files, err := os.ReadDir(manualDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, ok := pages[f.Name()]; !ok {
			t.Errorf("docs/man/%s is of no command", f.Name())
		}
	}
}

// Every flag that takes a value knows how to complete it.
func TestEveryFlagCompletes(t *testing.T) {
	checked := 0
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Value.Type() == "bool" || strings.HasPrefix(c.CommandPath(), "kmsctl completion") {
				return
			}
			checked++
			if _, ok := c.GetFlagCompletionFunc(f.Name); !ok {
				t.Errorf("--%s of %s completes nothing", f.Name, c.CommandPath())
			}
		})
		for _, child := range c.Commands() {
			walk(child)
		}
	}
	walk(cli.NewRoot(cli.Environment{Version: "v1.2.3"}))
	if checked < 50 {
		t.Errorf("%d flags are completed, want those of all commands", checked)
	}
}
