package node

import (
	"bytes"
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"sync"

	"go.uber.org/zap"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/tdx"
	"teekms/internal/authz"
	"teekms/internal/ratls"
)

// CertificateEvidence makes the Evidence in the RPC certificate. Its methods may
// be called from several goroutines.
type CertificateEvidence struct {
	node *Node

	mu sync.Mutex
	// public is the key (DER SubjectPublicKeyInfo) that extensions are about;
	// both are guarded by mu.
	public     []byte
	extensions []pkix.Extension
}

// NewCertificateEvidence returns the maker of the Evidence in the RPC
// certificate of n, whose key directory is complete.
func NewCertificateEvidence(n *Node) *CertificateEvidence { return &CertificateEvidence{node: n} }

// Extensions returns what goes into the RPC certificate: nothing where the
// configuration says so. A key is quoted once; a certificate that is renewed for
// the same key gets the same Evidence.
func (e *CertificateEvidence) Extensions(ctx context.Context) ([]pkix.Extension, error) {
	c := e.node.Config.Core
	if !c.AttestRPCCert || !c.Onboard.QuoteEnabled {
		return nil, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	public := e.node.Keys.RPCCertificate().Leaf.RawSubjectPublicKeyInfo
	if bytes.Equal(public, e.public) {
		return e.extensions, nil
	}
	extensions, err := e.node.AttestKey(ctx, public)
	if err != nil {
		// %v: what operators know such an error by at a bootstrap is not all
		// that there is to say here.
		return nil, fmt.Errorf("making the Evidence of the RPC certificate: %v; "+
			"core.attest_rpc_cert = false serves without Evidence", err)
	}
	e.node.Log.Info("the RPC certificate carries Evidence of this KMS", zap.Int("bytes", len(extensions[0].Value)))
	e.public, e.extensions = bytes.Clone(public), extensions
	return extensions, nil
}

// AttestKey has a public key (DER SubjectPublicKeyInfo) quoted, and returns the
// Evidence as a certificate carries it.
func (n *Node) AttestKey(ctx context.Context, public []byte) ([]pkix.Extension, error) {
	evidence, err := n.attest(ctx, attest.RATLSReportData(public))
	if err != nil {
		return nil, err
	}
	return ratls.Extensions(evidence, ratls.Gen8)
}

// attest makes Evidence and looks whether it is what was asked for.
func (n *Node) attest(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
	if n.attestation.attester == nil {
		return nil, errors.New("core.onboard.quote_enabled is false")
	}
	ctx, cancel := context.WithTimeout(ctx, n.Config.Core.Attestation.Timeout)
	defer cancel()
	evidence, err := n.attestation.attester.Attest(ctx, rd)
	if err != nil {
		return nil, err
	}
	quote, err := tdx.ParseQuote(evidence.Quote)
	if err != nil {
		return nil, fmt.Errorf("reading the quote of this machine: %w", err)
	}
	if quote.ReportData() != rd.Bytes() {
		return nil, errors.New("the quote of this machine does not bind what was asked for")
	}
	return evidence, nil
}

// Self describes this KMS to an authority, from Evidence that binds nothing and
// that this process verifies like everybody else's. It makes a quote: keep the
// answer.
func (n *Node) Self(ctx context.Context) (authz.BootInfo, error) {
	info, err := n.self(ctx)
	if err != nil {
		return authz.BootInfo{}, fmt.Errorf("appraising this KMS itself: %w", err)
	}
	return info, nil
}

func (n *Node) self(ctx context.Context) (authz.BootInfo, error) {
	evidence, err := n.attest(ctx, attest.NoReportData())
	if err != nil {
		return authz.BootInfo{}, err
	}
	claims, err := n.attestation.verifier.Verify(ctx, evidence)
	if err != nil {
		return authz.BootInfo{}, err
	}
	log, err := eventlog.Parse(evidence.EventLog)
	if err != nil {
		return authz.BootInfo{}, fmt.Errorf("reading the event log: %w", err)
	}
	rtmrs, err := log.Replay()
	if err != nil {
		return authz.BootInfo{}, fmt.Errorf("replaying the event log: %w", err)
	}
	if rtmrs != claims.RTMR {
		return authz.BootInfo{}, errors.New("the event log does not replay to the registers of the quote")
	}
	attested := &ratls.Attested{Claims: claims, Log: log, VMConfig: evidence.VMConfig, Evidence: evidence}
	return authz.Describe(attested, authz.DescribeOptions{})
}
