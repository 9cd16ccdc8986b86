package cli

import (
	"crypto/x509"
	"path/filepath"

	"github.com/spf13/cobra"

	"teekms/client"
	"teekms/cmd/internal/argfile"
	"teekms/cmd/kmsctl/internal/chain"
	"teekms/internal/attest/simtd"
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

// validate refuses what means nothing. A root of one's own has no usual place of
// collateral: Intel would answer with what leads to its own root.
func (f *trustFlags) validate(cmd *cobra.Command) error {
	switch {
	case f.collateral != "" && f.pccs != "":
		return usagef(cmd, "give --collateral or --pccs, not both")
	case f.root != "" && f.collateral == "" && f.pccs == "":
		return usagef(cmd, "--trust-root needs --collateral or --pccs: Intel has no collateral for another root")
	}
	if _, err := pcs.New(pcs.Config{URL: f.pccs}); err != nil {
		return &usageError{cmd.CommandPath(), err}
	}
	return nil
}

// client is the same for the client, which loads and opens by itself. A software
// trust domain brings its root and its collateral along.
func (f *trustFlags) client(simulatorDir string) client.Trust {
	t := client.Trust{RootFile: f.root, CollateralDir: f.collateral, PCCS: f.pccs}
	if simulatorDir == "" {
		return t
	}
	if t.RootFile == "" {
		t.RootFile = filepath.Join(simulatorDir, simtd.RootFile)
	}
	if t.CollateralDir == "" && t.PCCS == "" {
		t.CollateralDir = simulatorDir
	}
	return t
}

// apply loads the root and opens the source.
func (f *trustFlags) apply(cmd *cobra.Command, cfg *chain.Config) error {
	if err := f.validate(cmd); err != nil {
		return err
	}
	var err error
	cfg.TrustAnchor = tdx.IntelRootCA()
	if f.root != "" {
		if cfg.TrustAnchor, err = argfile.Within(cmd.Context(), func() (*x509.Certificate, error) { return tdx.LoadTrustAnchor(f.root) }); err != nil {
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
	cfg.Collateral, err = pcs.New(pcs.Config{URL: f.pccs})
	return err
}
