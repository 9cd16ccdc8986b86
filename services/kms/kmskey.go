package kms

import (
	"context"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/audit"
	"teekms/internal/authz"
)

// Where root keys are handed to peers.
const (
	// ReleasePublic hands them out on the listener of the KMS service.
	ReleasePublic = "public"
	// ReleaseAdmin hands them out on the listener of the Admin service.
	ReleaseAdmin = "admin"
	// ReleaseOff hands them out nowhere.
	ReleaseOff = "off"
)

// GetKmsKey hands the root keys to an attested and authorized peer, if this
// listener is where that is done.
func (s *Service) GetKmsKey(ctx context.Context, r *kmsv1.GetKmsKeyRequest) (*kmsv1.GetKmsKeyResponse, error) {
	switch s.keyRelease {
	case ReleasePublic:
		return s.releaseRoots(ctx, r)
	case ReleaseAdmin:
		return nil, denied("root keys are released on the admin listener alone (core.kms_key_release)", nil)
	default:
		return nil, errRootsOff
	}
}

// errRootsOff refuses root keys where they are handed out nowhere.
var errRootsOff = denied("root keys are not released (core.kms_key_release)", nil)

// ReleaseRoots is GetKmsKey for the listener of the Admin service. It refuses
// unless Config.KMSKeyRelease is [ReleaseAdmin].
func (s *Service) ReleaseRoots(ctx context.Context, r *kmsv1.GetKmsKeyRequest) (*kmsv1.GetKmsKeyResponse, error) {
	if s.keyRelease != ReleaseAdmin {
		return nil, errRootsElsewhere
	}
	return s.releaseRoots(ctx, r)
}

func (s *Service) releaseRoots(ctx context.Context, r *kmsv1.GetKmsKeyRequest) (*kmsv1.GetKmsKeyResponse, error) {
	if err := s.authorizeSelf(ctx); err != nil {
		return nil, err
	}
	caller, err := peer(ctx)
	if err != nil {
		return nil, err
	}
	g, err := s.decide(ctx, question{subject: authz.KMS, attested: caller, vmConfig: r.GetVmConfig()})
	if err != nil {
		return nil, err
	}
	if err := s.release(ctx, event{kind: audit.ReleaseRootKeys, grant: g}); err != nil {
		return nil, err
	}
	return &kmsv1.GetKmsKeyResponse{
		TempCaKey: string(s.tempKey.Bytes()),
		Keys: []*kmsv1.RootKeys{{
			CaKey: string(s.roots.CAPEM().Bytes()), K256Key: s.roots.K256Raw().Bytes(),
		}},
	}, nil
}

// GetTempCaCert gives the temporary CA with its key, to anybody: it vouches for
// nobody, and a certificate from it says only what the Evidence in it says.
func (s *Service) GetTempCaCert(ctx context.Context, _ *kmsv1.GetTempCaCertRequest) (*kmsv1.GetTempCaCertResponse, error) {
	if err := s.authorizeSelf(ctx); err != nil {
		return nil, err
	}
	return &kmsv1.GetTempCaCertResponse{
		TempCaCert: s.tempPEM, TempCaKey: string(s.tempKey.Bytes()), CaCert: s.rootPEM,
	}, nil
}
