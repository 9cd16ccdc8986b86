package onboard

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/attest"
	"teekms/internal/attest/tdx"
)

// teeVariant is what dstack tools call a TDX guest.
const teeVariant = "dstack-tdx"

// infoCache keeps the facts of this TD for the life of the process: a quote
// costs the platform up to seconds, and anybody may ask.
type infoCache struct {
	turn  chan struct{} // holds one token: who has it may use facts and make the quote
	facts *onboardv1.GetAttestationInfoResponse
}

func newInfoCache() infoCache { return infoCache{turn: make(chan struct{}, 1)} }

// GetAttestationInfo tells what this trust domain is, from a quote of its own
// over 64 zero bytes whose signatures chain to the trust root. Errors are not
// remembered.
func (s *Service) GetAttestationInfo(ctx context.Context, _ *onboardv1.GetAttestationInfoRequest) (*onboardv1.GetAttestationInfoResponse, error) {
	select {
	case s.info.turn <- struct{}{}:
		defer func() { <-s.info.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s.info.facts == nil {
		facts, err := s.attestationInfo(ctx)
		if err != nil {
			return nil, err
		}
		s.info.facts = facts
	}
	return s.info.facts, nil
}

func (s *Service) attestationInfo(ctx context.Context) (*onboardv1.GetAttestationInfoResponse, error) {
	facts := &onboardv1.GetAttestationInfoResponse{
		SiteName:           s.cfg.SiteName,
		Provider:           "none",
		SetupTokenRequired: s.cfg.SetupToken.Len() > 0,
		InsecureSettings:   s.cfg.InsecureSettings,
	}
	if s.cfg.Attester == nil {
		return facts, nil
	}
	evidence, claims, err := s.ownClaims(ctx)
	if err != nil {
		return nil, err
	}
	deviceID, aggregated := claims.DeviceID(), claims.MRAggregated(claims.RTMR[3])
	root := sha256.Sum256(s.cfg.TrustRoot.Raw)
	facts.DeviceId, facts.Ppid = deviceID[:], claims.PPID
	facts.MrAggregated = aggregated[:]
	facts.OsImageHash = osImageHash(evidence.VMConfig)
	facts.TeeVariant, facts.Provider = teeVariant, s.cfg.Provider
	facts.TrustRootSha256 = root[:]
	facts.TrustRootIsIntel = s.cfg.TrustRoot.Equal(tdx.IntelRootCA())
	facts.Mrtd = claims.MRTD[:]
	for i := range claims.RTMR {
		facts.Rtmrs = append(facts.Rtmrs, claims.RTMR[i][:])
	}
	facts.ReportData = claims.ReportData[:]
	return facts, nil
}

// ownClaims makes Evidence that binds nothing and verifies its signatures. No
// collateral is fetched: a setup page must not depend on a network.
func (s *Service) ownClaims(ctx context.Context) (*attest.Evidence, *attest.Claims, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.AttestTimeout)
	defer cancel()
	evidence, err := s.cfg.Attester.Attest(ctx, attest.NoReportData())
	if err != nil {
		return nil, nil, fmt.Errorf("quoting this trust domain: %w", err)
	}
	verifier, err := tdx.NewVerifier(tdx.Config{TrustAnchor: s.cfg.TrustRoot, Now: s.cfg.Now})
	if err != nil {
		return nil, nil, err
	}
	claims, err := verifier.VerifyOffline(ctx, evidence)
	if err != nil {
		return nil, nil, &OwnQuoteError{Err: err}
	}
	if claims.ReportData != attest.NoReportData().Bytes() {
		return nil, nil, &OwnQuoteError{Err: errors.New("its report data is not what was asked for")}
	}
	return evidence, claims, nil
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
