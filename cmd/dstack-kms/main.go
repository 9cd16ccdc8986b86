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
started again, it serves.

With --use-bootstrap-server it takes its database and the PKCS#12 of its HTTPS
port over TLS before it serves, on port 9998 unless configured: see
kmsctl bootstrap-start. Keys that auto_bootstrap_domain makes do not end the
process then.`,
		Version:  version,
		Ethereum: newEthereum,
		Registry: openRegistry,
		Flags:    flags(),
		Check:    checkDatabase,
		Run:      run,
	}))
}

// flags are those of the configuration bootstrap, by the names that existing KMSs
// know them by.
func flags() []node.Flag {
	const section = "core.bootstrap_server."
	return []node.Flag{
		{Name: "use-bootstrap-server", Key: section + "enabled", Usage: "take database and PKCS#12 over TLS before serving", Switch: true},
		{Name: "bootstrap-server-port", Key: section + "port", Usage: "`port` of that server (default 9998)"},
		{Name: "bootstrap-server-common-name", Key: section + "common_name", Usage: "`name` in its self-signed certificate (default cosmian.kms)"},
		{Name: "bootstrap-server-subject", Key: section + "subject", Usage: "distinguished `name` (RFC 4514) whose CN is used instead"},
		{Name: "bootstrap-server-expiration-days", Key: section + "expiration_days", Usage: "`days` for which the certificate is good (default 365)"},
		{Name: "ensure-ra-tls", Key: section + "ensure_ra_tls", Usage: "refuse to start where the certificate cannot carry Evidence", Switch: true},
		{Name: "bootstrap-token-file", Key: section + "token_file", Usage: "`file` of the token that callers of that server must present"},
		{Name: "authority-cert-file", Key: section + "authority_cert_file", Usage: "`file` of CA certificates (PEM) whose clients may configure"},
	}
}

func run(ctx context.Context, n *node.Node) error {
	if !n.Keys.Complete() {
		if err := n.Onboard(ctx); err != nil || !goesOn(ctx, n) {
			return err
		}
	}
	return serveKMS(ctx, n)
}

// goesOn tells whether a process that has just filled the key directory waits for
// a configuration next: where nobody had to come for the keys.
func goesOn(ctx context.Context, n *node.Node) bool {
	c := n.Config.Core
	return c.BootstrapServer.Enabled && c.Onboard.AutoBootstrapDomain != "" && n.Keys.Complete() && ctx.Err() == nil
}
