// Command dstack-onboard fills the key directory of a KMS and ends: the
// onboarding service of dstack-kms alone, for init containers and oneshot units.
package main

import (
	"context"
	"os"

	"go.uber.org/zap"

	"teekms/cmd/internal/node"
)

// version is stamped by the build.
var version string

func main() {
	os.Exit(node.Main(node.Program{
		Name:  "dstack-onboard",
		Short: "Make or fetch the keys of a KMS, then exit",
		Long: `Make the root keys and certificates of a KMS in this trust domain, have them
quoted, write them to the key directory, and exit.

With core.onboard.auto_bootstrap_domain this happens at once; without it, a web
page and an API are served on core.onboard.address and port until setup is
finished. On a complete key directory it says so and exits with status 0.`,
		Version: version,
		Run:     run,
	}))
}

func run(ctx context.Context, n *node.Node) error {
	if n.Keys.Complete() {
		n.Log.Info(node.AlreadyBootstrapped, zap.String("dir", n.Config.Core.CertDir))
		return nil
	}
	return n.Onboard(ctx)
}
