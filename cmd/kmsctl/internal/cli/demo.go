package cli

import "github.com/spf13/cobra"

func newDemo(env Environment) *cobra.Command {
	_ = env
	return &cobra.Command{Use: "demo"}
}
