package onboard

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/attest"
	"teekms/internal/attest/tdx"
)

// teeVariant is what dstack tools call a TDX guest.
const teeVariant = "dstack-tdx"

// collateralWait is how long a caller waits for the TCB status, which may need
// a network that is not there.
const collateralWait = 5 * time.Second

// infoCache keeps this TD's Evidence over nothing and what was found in it, for
// the life of the process: a quote costs the platform up to seconds, and
// anybody may ask.
type infoCache struct {
	turn     chan struct{} // holds one token: who has it may use the fields below
	evidence *attest.Evidence
	claims   *attest.Claims
}

func newInfoCache() infoCache { return infoCache{turn: make(chan struct{}, 1)} }

// GetAttestationInfo tells what this trust domain is, from a quote of its own
// over 64 zero bytes whose signatures chain to the trust root. The TCB status is
// empty as long as no collateral can be had. Errors are not remembered.
func (s *Service) GetAttestationInfo(ctx context.Context, _ *onboardv1.GetAttestationInfoRequest) (*onboardv1.GetAttestationInfoResponse, error) {
	facts := &onboardv1.GetAttestationInfoResponse{
		SiteName:           s.cfg.SiteName,
		Provider:           "none",
		SetupTokenRequired: s.cfg.SetupToken.Len() > 0,
		InsecureSettings:   s.cfg.InsecureSettings,
	}
	if s.cfg.Attester == nil {
		return facts, nil
	}
	select {
	case s.info.turn <- struct{}{}:
		defer func() { <-s.info.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := s.ownClaims(ctx); err != nil {
		return nil, err
	}
	s.describe(facts)
	return facts, nil
}

// describe fills in what the claims say.
func (s *Service) describe(facts *onboardv1.GetAttestationInfoResponse) {
	claims := s.info.claims
	deviceID, aggregated := claims.DeviceID(), claims.MRAggregated(claims.RTMR[3])
	facts.DeviceId, facts.Ppid = deviceID[:], claims.PPID
	facts.MrAggregated = aggregated[:]
	facts.OsImageHash = osImageHash(s.info.evidence.VMConfig)
	facts.TeeVariant, facts.Provider = teeVariant, s.provider()
	facts.TrustRootSha256 = claims.TrustRoot[:]
	facts.TrustRootIsIntel = claims.TrustRoot == sha256.Sum256(tdx.IntelRootCA().Raw)
	facts.Mrtd = claims.MRTD[:]
	for i := range claims.RTMR {
		facts.Rtmrs = append(facts.Rtmrs, claims.RTMR[i][:])
	}
	facts.ReportData = claims.ReportData[:]
	facts.TcbStatus, facts.AdvisoryIds = string(claims.TCB), claims.Advisories
}

// provider names the attester. One that looks for what there is knows better
// than the configuration.
func (s *Service) provider() string {
	if p, ok := s.cfg.Attester.(interface{ Provider() string }); ok {
		return p.Provider()
	}
	return s.cfg.Provider
}

// ownClaims makes Evidence that binds nothing, once, and verifies it. Where
// there is no collateral its signatures alone are verified: a setup page must
// not depend on a network. The next call asks again.
func (s *Service) ownClaims(ctx context.Context) error {
	if s.info.claims != nil && s.info.claims.TCB != "" {
		return nil
	}
	evidence, err := s.ownEvidence(ctx)
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, collateralWait)
	defer cancel()
	claims, err := s.cfg.Verifier.Verify(wait, evidence)
	if errors.Is(err, attest.ErrNoCollateral) || wait.Err() != nil {
		claims, err = s.cfg.Verifier.VerifyOffline(ctx, evidence)
	}
	if err != nil {
		return &OwnQuoteError{Err: err}
	}
	if claims.ReportData != attest.NoReportData().Bytes() {
		return &OwnQuoteError{Err: errors.New("its report data is not what was asked for")}
	}
	s.info.evidence, s.info.claims = evidence, claims
	return nil
}

func (s *Service) ownEvidence(ctx context.Context) (*attest.Evidence, error) {
	if s.info.evidence != nil {
		return s.info.evidence, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.AttestTimeout)
	defer cancel()
	evidence, err := s.cfg.Attester.Attest(ctx, attest.NoReportData())
	if err != nil {
		return nil, fmt.Errorf("quoting this trust domain: %w", err)
	}
	return evidence, nil
}

// osImageHash reads os_image_hash from a VmConfig (docs/wire.md#vm-config). It
// is nil when there is none: the field is for people, nothing rests on it.
func osImageHash(vmConfig string) []byte {
	var config struct {
		Hash string `json:"os_image_hash"`
	}
	if json.Unmarshal([]byte(vmConfig), &config) != nil {
		return nil
	}
	hash, err := hex.DecodeString(config.Hash)
	if err != nil {
		return nil
	}
	return hash
}
