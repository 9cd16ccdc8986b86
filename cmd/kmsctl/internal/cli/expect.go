package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"teekms/cmd/kmsctl/internal/expect"
)

// expectFlags say what is expected.
type expectFlags struct {
	mrtd string
	rtmr []string
	file string
}

func (f *expectFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.mrtd, "expect-mrtd", "", "expect this MRTD, 96 `hex` digits")
	fs.StringArrayVar(&f.rtmr, "expect-rtmr", nil, "expect this RTMR, as `N=HEX` with N from 0 to 3; may be repeated")
	fs.StringVar(&f.file, "expect-file", "", "expect what this `file` (TOML or JSON) says")
	complete(cmd, "expect-mrtd", valueOf())
	complete(cmd, "expect-rtmr", valueOf("0=", "1=", "2=", "3="))
	complete(cmd, "expect-file", file("toml", "json"))
}

func (f *expectFlags) set(cmd *cobra.Command) (expect.Set, error) {
	var set expect.Set
	if cmd.Flags().Changed("expect-mrtd") {
		if err := set.Add("--expect-mrtd", "mrtd", f.mrtd); err != nil {
			return nil, usagef(cmd, "--expect-mrtd: %w", err)
		}
	}
	seen := map[string]bool{}
	for _, given := range f.rtmr {
		n, value, ok := strings.Cut(given, "=")
		if !ok || len(n) != 1 || n[0] < '0' || n[0] > '3' {
			return nil, usagef(cmd, "--expect-rtmr: %q is not of the form N=HEX with N from 0 to 3", given)
		}
		if seen[n] {
			return nil, usagef(cmd, "--expect-rtmr: register %s is given twice", n)
		}
		seen[n] = true
		if err := set.Add("--expect-rtmr", "rtmr"+n, value); err != nil {
			return nil, usagef(cmd, "--expect-rtmr: %w", err)
		}
	}
	if cmd.Flags().Changed("expect-file") {
		if err := set.AddFile(cmd.Context(), f.file); err != nil {
			return nil, fmt.Errorf("--expect-file: %w", err)
		}
	}
	return set, nil
}
