package cli

import "github.com/spf13/cobra"

// NewRoot is the command line, for tests of all of it.
func NewRoot(env Environment) *cobra.Command { return newRoot(env) }
