package node

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/config"
)

// attestation is who makes Evidence here and what Evidence is checked against.
type attestation struct {
	// attester is nil when quotes are switched off.
	attester attest.Attester
	// provider is the attester's name.
	provider string
	// root is the trust anchor for Evidence.
	root *x509.Certificate
}

// openAttestation makes the attester that the configuration names, and reads
// the trust root. The software TD comes first: it makes the file that the root
// is read from.
func openAttestation(cfg *config.Config) (*attestation, error) {
	a := &attestation{}
	if err := a.openAttester(cfg.Core.Attestation); err != nil {
		return nil, fmt.Errorf("opening the attester %q: %w", cfg.Core.Attestation.Provider, err)
	}
	if !cfg.Core.Onboard.QuoteEnabled {
		a.attester, a.provider = nil, ""
	}
	a.root = tdx.IntelRootCA()
	if path := cfg.Core.Attestation.RootCA.TDX; path != "" {
		root, err := tdx.LoadTrustAnchor(path)
		if err != nil {
			return nil, fmt.Errorf("reading core.attestation.root_ca.tdx: %w", err)
		}
		a.root = root
	}
	return a, nil
}

func (a *attestation) openAttester(c config.Attestation) (err error) {
	a.provider = c.Provider
	switch c.Provider {
	case config.ProviderSimulator:
		a.attester, err = openSimulator(c.Simulator)
	default:
		a.attester = &detector{}
	}
	return err
}

type detector struct{}

// Attest implements attest.Attester.
func (d *detector) Attest(context.Context, attest.ReportData) (*attest.Evidence, error) {
	return nil, attest.ErrNoAttester
}

// openSimulator opens the software TD, with the measurements that are set.
func openSimulator(c config.Simulator) (*simtd.TD, error) {
	var m simtd.Measurements
	if c.MRTD != "" {
		raw, err := hex.DecodeString(c.MRTD)
		if err != nil || len(raw) != len(m.MRTD) {
			return nil, errors.New("core.attestation.simulator.mrtd: must be 96 hex digits")
		}
		copy(m.MRTD[:], raw)
	}
	return simtd.Open(simtd.Config{Dir: c.Dir, Measurements: m})
}
