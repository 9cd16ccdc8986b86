package cli

import (
	"github.com/spf13/cobra"

	"teekms/cmd/kmsctl/internal/chain"
	"teekms/internal/attest/tdx"
	"teekms/internal/attest/tdx/pcs"
)

// trustFlags say which root is believed and where collateral comes from.
type trustFlags struct {
	root, collateral, pccs string
}

func (f *trustFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.root, "trust-root", "", "believe the root certificate in this `file` (PEM or DER) instead of Intel's")
	fs.StringVar(&f.collateral, "collateral", "", "read collateral from this `directory`, such as that of a software trust domain")
	fs.StringVar(&f.pccs, "pccs", "", "fetch collateral from the PCS or PCCS at this `URL`")
	complete(cmd, "trust-root", file("pem", "crt", "cer", "der"))
	complete(cmd, "collateral", directory())
	complete(cmd, "pccs", valueOf("https://", "http://"))
}

// apply loads the root and opens the source. A root of one's own has no usual
// place of collateral: Intel would answer with what leads to its own root.
func (f *trustFlags) apply(cmd *cobra.Command, cfg *chain.Config) error {
	switch {
	case f.collateral != "" && f.pccs != "":
		return usagef(cmd, "give --collateral or --pccs, not both")
	case f.root != "" && f.collateral == "" && f.pccs == "":
		return usagef(cmd, "--trust-root needs --collateral or --pccs: Intel has no collateral for another root")
	}
	var err error
	cfg.TrustAnchor = tdx.IntelRootCA()
	if f.root != "" {
		if cfg.TrustAnchor, err = tdx.LoadTrustAnchor(f.root); err != nil {
			return err
		}
	}
	if f.collateral != "" {
		cfg.CollateralFrom = f.collateral
		cfg.Collateral, err = tdx.NewDirSource(f.collateral)
		return err
	}
	cfg.CollateralFrom = f.pccs
	if f.pccs == "" {
		cfg.CollateralFrom = "Intel's Provisioning Certification Service"
	}
	if cfg.Collateral, err = pcs.New(pcs.Config{URL: f.pccs}); err != nil {
		return &usageError{cmd.CommandPath(), err}
	}
	return nil
}
