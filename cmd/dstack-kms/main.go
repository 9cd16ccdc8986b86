// Command dstack-kms is the KMS. With an empty key directory it is the
// onboarding service first.
package main

import (
	"context"
	"os"

	"teekms/cmd/internal/node"
)

// version and revision are stamped by the build.
var version, revision string //nolint:gochecknoglobals // -ldflags -X sets them

func main() {
	os.Exit(node.Main(node.Program{
		Name:  "dstack-kms",
		Short: "Serve keys and certificates to attested workloads",
		Long: `Serve keys and certificates to workloads that prove what they are.

With an empty key directory it first makes the root keys: at once where
core.onboard.auto_bootstrap_domain is set, else by a web page and an API on
core.onboard.address and port. When that is finished it exits with status 0;
started again, it serves.`,
		Version:  version,
		Ethereum: newEthereum,
		Run:      run,
	}))
}

func run(ctx context.Context, n *node.Node) error {
	if !n.Keys.Complete() {
		return n.Onboard(ctx)
	}
	return serveKMS(ctx, n)
}
