package bootstrapserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"teekms/cmd/kmsctl/internal/expect"
	"teekms/cmd/kmsctl/internal/status"
	"teekms/internal/attest"
	"teekms/internal/attest/tdx"
	"teekms/internal/ratls"
)

// Identity says how the server is known: by what its Evidence says, by its key,
// or by both. The zero value knows no server.
type Identity struct {
	// TrustAnchor is the root that Evidence must lead to, Collateral where
	// collateral comes from. Required unless NoAttestation is set.
	TrustAnchor *x509.Certificate
	Collateral  tdx.CollateralSource
	// AcceptTCB are the TCB statuses that are good enough.
	AcceptTCB []attest.TCBStatus
	// Expect is what the Evidence must say.
	Expect expect.Set
	// AnyMeasurement takes every trust domain for the server.
	AnyMeasurement bool
	// Pin is the key that the server must have; nil means any. A server that is
	// known by its key may have no Evidence, unless something is expected of it.
	Pin *Pin
	// NoAttestation looks at nothing: whoever answers gets the configuration.
	NoAttestation bool
}

// check refuses an identity that any server would have, or that nothing is
// compared with.
func (i *Identity) check() error {
	switch {
	case i.NoAttestation:
		return nil
	case i.TrustAnchor == nil || i.Collateral == nil:
		return errors.New("verifying the bootstrap server: neither trust root nor collateral")
	case i.Pin == nil && !i.AnyMeasurement && !i.Expect.Identifies():
		return errors.New("verifying the bootstrap server: nothing says which one is meant")
	}
	return nil
}

func (i *Identity) appraiser(now func() time.Time) (*ratls.Appraiser, error) {
	verifier, err := tdx.NewVerifier(tdx.Config{TrustAnchor: i.TrustAnchor, Collateral: i.Collateral, Now: now})
	if err != nil {
		return nil, err
	}
	return ratls.NewAppraiser(ratls.AppraiserConfig{Verifier: verifier, Now: now})
}

// requireEvidence says whether a server without Evidence is refused.
func (i *Identity) requireEvidence() bool {
	return i.Pin == nil || i.AnyMeasurement || len(i.Expect) > 0
}

// Pin is the SHA-256 of the DER SubjectPublicKeyInfo of a server.
type Pin [sha256.Size]byte

// ParsePin reads a pin: 64 hex digits, or sha256: and 44 characters of base64;
// sha256// as curl writes it is the same.
func ParsePin(s string) (*Pin, error) {
	digest, err := hex.DecodeString(strings.TrimPrefix(s, "0x"))
	for _, prefix := range []string{"sha256://", "sha256//", "sha256:"} {
		if text, ok := strings.CutPrefix(s, prefix); ok {
			digest, err = base64.StdEncoding.Strict().DecodeString(text)
			break
		}
	}
	if err != nil || len(digest) != sha256.Size {
		return nil, errors.New("want the SHA-256 of the server's public key, as 64 hex digits or as sha256:BASE64")
	}
	return (*Pin)(digest), nil
}

// String writes the pin in hex.
func (p *Pin) String() string { return hex.EncodeToString(p[:]) }

// Peer is what is known of a server.
type Peer struct {
	// Key is the SHA-256 of its public key.
	Key Pin
	// Claims are the claims of its Evidence that can be expected, by name
	// (docs/kmsctl.md#expectations); nil when none was looked at.
	Claims map[string][]string
	// TCBStatus is the worst of platform, module and quoting enclave, "" without
	// Claims.
	TCBStatus string
}

// verify is what tls.Config.VerifyConnection does: nothing is written to a
// server that it refuses.
func (c *Client) verify(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return errors.New("the server presents no certificate")
	}
	leaf := chain[0]
	peer := &Peer{Key: sha256.Sum256(leaf.RawSubjectPublicKeyInfo)}
	if err := c.checkKey(leaf, peer); err != nil {
		return err
	}
	if !c.cfg.Identity.NoAttestation {
		if err := c.appraise(chain, peer); err != nil {
			return err
		}
	}
	c.remember(leaf, peer)
	return nil
}

// checkKey compares the key with the pin, and with that of the connection
// before.
func (c *Client) checkKey(leaf *x509.Certificate, peer *Peer) error {
	c.mu.Lock()
	met := c.met
	c.mu.Unlock()
	if met != nil && !bytes.Equal(met, leaf.RawSubjectPublicKeyInfo) {
		return status.WithCode(status.NotVerified, errors.New("a new connection reaches another server than the one that was verified: it has another key"))
	}
	if pin := c.cfg.Identity.Pin; pin != nil && subtle.ConstantTimeCompare(pin[:], peer.Key[:]) != 1 {
		return status.WithCode(status.Unexpected, fmt.Errorf("the server's key is %s, --pin-spki wants %s", &peer.Key, pin))
	}
	return nil
}

// appraise has the Evidence verified, which must bind the key of the
// certificate, and compares what it says.
func (c *Client) appraise(chain []*x509.Certificate, peer *Peer) error {
	leaf, now := chain[0], c.cfg.Now()
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return notVerified(fmt.Errorf("its certificate is valid from %s to %s alone",
			leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339)))
	}
	var attested *ratls.Attested
	// The key has been compared where it was known before. Here it is what the
	// handshake of this very connection has to prove.
	config, err := ratls.ClientTLS(ratls.ClientConfig{
		PinnedKey: leaf.RawSubjectPublicKeyInfo, Appraiser: c.appraiser, RequireEvidence: c.cfg.Identity.requireEvidence(),
		Appraise: func(_ context.Context, a *ratls.Attested) error { attested = a; return nil },
		Timeout:  c.cfg.Timeout, Now: c.cfg.Now,
	})
	if err == nil {
		err = config.VerifyConnection(tls.ConnectionState{PeerCertificates: chain})
	}
	if err != nil {
		return withoutEvidence(err)
	}
	if attested == nil {
		return nil // known by its key
	}
	return c.judge(attested, leaf, peer)
}

// withoutEvidence says what can be done about a server that shows none.
func withoutEvidence(err error) error {
	if errors.Is(err, ratls.ErrNoEvidence) {
		err = errors.New("its certificate holds no Evidence; a server outside of a trust domain is known by --pin-spki")
	}
	return notVerified(err)
}

// notVerified gives an error its exit code, unless there was no time to tell.
func notVerified(err error) error {
	code := status.NotVerified
	switch {
	case errors.Is(err, attest.ErrNoCollateral):
		code = status.NoCollateral
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return err
	}
	return status.WithCode(code, fmt.Errorf("the bootstrap server does not verify: %w", err))
}

// judge compares verified Evidence with what is accepted and expected.
func (c *Client) judge(a *ratls.Attested, leaf *x509.Certificate, peer *Peer) error {
	accept := c.cfg.Identity.AcceptTCB
	if !slices.Contains(accept, a.Claims.TCB) {
		return notVerified(fmt.Errorf("TCB status: %s, accepted is %s", a.Claims.TCB, join(accept)))
	}
	values, err := claims(a, leaf)
	if err != nil {
		return notVerified(err)
	}
	peer.Claims, peer.TCBStatus = values, string(a.Claims.TCB)
	var mismatches []error
	for _, m := range c.cfg.Identity.Expect.Compare(values) {
		mismatches = append(mismatches, errors.New(m.String()))
	}
	if len(mismatches) > 0 {
		return status.WithCode(status.Unexpected, fmt.Errorf("the bootstrap server is not what was expected: %w", errors.Join(mismatches...)))
	}
	return nil
}

func join(accept []attest.TCBStatus) string {
	texts := make([]string, len(accept))
	for i, s := range accept {
		texts[i] = string(s)
	}
	return strings.Join(texts, ", ")
}

// claims are the verified claims that can be expected, by name, and the names in
// the certificate that their holder signed.
func claims(a *ratls.Attested, leaf *x509.Certificate) (map[string][]string, error) {
	id, err := a.Log.Identity()
	if err != nil {
		return nil, fmt.Errorf("event log: %w", err)
	}
	c := a.Claims
	device, system, aggregated := c.DeviceID(), c.MRSystem(id.KeyProvider), c.MRAggregated(c.RTMR[3])
	values := map[string][]string{}
	for name, v := range map[string][]byte{
		"mrtd": c.MRTD[:], "rtmr0": c.RTMR[0][:], "rtmr1": c.RTMR[1][:], "rtmr2": c.RTMR[2][:], "rtmr3": c.RTMR[3][:],
		"mr_config_id": c.MRConfigID[:], "mr_owner": c.MROwner[:], "mr_owner_config": c.MROwnerConfig[:], "mr_seam": c.MRSeam[:],
		"device_id": device[:], "fmspc": c.FMSPC, "trust_root_sha256": c.TrustRoot[:],
		"app_id": id.AppID, "compose_hash": id.ComposeHash, "instance_id": id.InstanceID, "os_image_hash": id.OSImageHash,
		"mr_system": system[:], "mr_aggregated": aggregated[:],
	} {
		if len(v) > 0 {
			values[name] = []string{hex.EncodeToString(v)}
		}
	}
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) > 0 {
		values["domain"] = names
	}
	return values, nil
}
