package node

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/configfs"
	"teekms/internal/attest/guestagent"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/attest/tdx/pcs"
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
	// own is the simulator's collateral, nil with every other provider.
	own tdx.CollateralSource
	// collateral is what verifier takes collateral from.
	collateral *tdx.CachedSource
	// verifier checks Evidence against root.
	verifier *tdx.Verifier
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
	if err := a.openVerifier(cfg.Core); err != nil {
		return nil, fmt.Errorf("making the verifier: %w", err)
	}
	return a, nil
}

// openVerifier takes collateral from the service that the configuration names,
// else from the simulator in this process, else from Intel.
func (a *attestation) openVerifier(c config.Core) (err error) {
	source := a.own
	if url := c.PCCS(); url != "" || source == nil {
		if source, err = pcs.New(pcs.Config{URL: url}); err != nil {
			return err
		}
	}
	a.collateral, err = tdx.NewCachedSource(tdx.CachedConfig{
		Source: source, TrustAnchor: a.root, FetchTimeout: c.Attestation.Timeout, Now: time.Now,
	})
	if err != nil {
		return err
	}
	a.verifier, err = tdx.NewVerifier(tdx.Config{TrustAnchor: a.root, Collateral: a.collateral, Now: time.Now})
	return err
}

func (a *attestation) openAttester(c config.Attestation) (err error) {
	a.provider = c.Provider
	switch c.Provider {
	case config.ProviderSimulator:
		var td *simtd.TD
		if td, err = openSimulator(c.Simulator); err == nil {
			a.attester, a.own = td, td
		}
	case config.ProviderGuestAgent:
		a.attester, err = guestagent.New(guestagent.Config{Address: c.AgentAddress, Timeout: c.Timeout})
	case config.ProviderConfigfs:
		a.attester = configfs.New(configfs.Config{Timeout: c.Timeout})
	case config.ProviderAuto:
		a.attester, err = newDetector(guestagent.Config{Address: c.AgentAddress, Timeout: c.Timeout})
	default:
		return errors.New("unknown provider")
	}
	return err
}

// detector is provider "auto": the guest agent where one answers, else configfs.
// It looks anew for each quote, so that an agent may start after the KMS.
type detector struct {
	agent, configfs attest.Attester
	found           atomic.Pointer[string] // the provider that made the last quote
}

// Provider is the name of the attester that was found, "auto" before the first
// quote.
func (d *detector) Provider() string {
	if name := d.found.Load(); name != nil {
		return *name
	}
	return config.ProviderAuto
}

func newDetector(agentConfig guestagent.Config) (*detector, error) {
	agent, err := guestagent.New(agentConfig)
	if err != nil {
		return nil, err
	}
	return &detector{agent: agent, configfs: configfs.New(configfs.Config{Timeout: agentConfig.Timeout})}, nil
}

// Attest implements attest.Attester.
func (d *detector) Attest(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
	name := config.ProviderGuestAgent
	evidence, err := d.agent.Attest(ctx, rd)
	if errors.Is(err, attest.ErrNoAttester) {
		name = config.ProviderConfigfs
		evidence, err = d.configfs.Attest(ctx, rd)
	}
	if err == nil {
		d.found.Store(&name)
	}
	return evidence, err
}

// openSimulator opens the software TD, with the measurements that are set.
func openSimulator(c config.Simulator) (*simtd.TD, error) {
	m := simtd.Measurements{Image: c.Image}
	for _, field := range []struct {
		key, value string
		set        func([]byte)
	}{
		{"mrtd", c.MRTD, func(b []byte) { copy(m.MRTD[:], b) }},
		{"app_id", c.AppID, func(b []byte) { m.AppID = b }},
		{"instance_id", c.InstanceID, func(b []byte) { m.InstanceID = b }},
		{"compose_hash", c.ComposeHash, func(b []byte) { m.ComposeHash = b }},
		{"os_image_hash", c.OSImageHash, func(b []byte) { m.OSImageHash = b }},
	} {
		if field.value == "" {
			continue
		}
		raw, err := hex.DecodeString(field.value) // validated with the configuration
		if err != nil {
			return nil, fmt.Errorf("core.attestation.simulator.%s: %w", field.key, err)
		}
		field.set(raw)
	}
	return simtd.Open(simtd.Config{Dir: c.Dir, Measurements: m})
}
