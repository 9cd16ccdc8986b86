package kms

import (
	"context"
	"fmt"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/audit"
	"teekms/internal/authz"
	"teekms/internal/keys"
	"teekms/internal/rpc"
)

// maxAppKeyVersion is the newest form of the request of GetAppKey; it has the
// fields of the oldest.
const maxAppKeyVersion = 1

func unsupported(version uint32) error {
	return invalid(fmt.Sprintf("Unsupported API version: %d", version), nil)
}

// GetAppKey derives the keys of the attested application that calls.
func (s *Service) GetAppKey(ctx context.Context, r *kmsv1.GetAppKeyRequest) (*kmsv1.GetAppKeyResponse, error) {
	if r.GetApiVersion() > maxAppKeyVersion {
		return nil, unsupported(r.GetApiVersion())
	}
	if err := s.authorizeSelf(ctx); err != nil {
		return nil, err
	}
	caller, err := peer(ctx)
	if err != nil {
		return nil, err
	}
	g, err := s.decide(ctx, question{subject: authz.App, attested: caller, vmConfig: r.GetVmConfig()})
	if err != nil {
		return nil, within("App not allowed", err)
	}
	if n := len(g.info.InstanceID); n != 0 && n != keys.InstanceIDSize {
		return nil, denied(fmt.Sprintf("App not allowed: instance_id must be empty or %d bytes", keys.InstanceIDSize), nil)
	}
	// The keys are made while the record becomes durable; both must have succeeded
	// before anything leaves.
	made := make(chan appKeys, 1)
	go func() { made <- s.appKeys(g) }()
	released := s.release(ctx, event{kind: audit.ReleaseAppKey, grant: g})
	k := <-made
	if released != nil {
		return nil, released
	}
	return k.response, k.err
}

// appKeys are the keys of an application, or why there are none.
type appKeys struct {
	response *kmsv1.GetAppKeyResponse
	err      error
}

// appKeys derives what the grant is for, from the identity that was measured.
func (s *Service) appKeys(g *grant) appKeys {
	disk, err := s.roots.AppDisk(g.info.AppID, g.info.InstanceID)
	if err != nil {
		return appKeys{err: err}
	}
	env, err := s.roots.EnvSecret(g.info.AppID)
	if err != nil {
		return appKeys{err: err}
	}
	k256, err := s.roots.AppK256(g.info.AppID)
	if err != nil {
		return appKeys{err: err}
	}
	return appKeys{response: &kmsv1.GetAppKeyResponse{
		CaCert:        s.rootPEM,
		DiskCryptKey:  disk.Bytes(),
		EnvCryptKey:   env.Bytes(),
		K256Key:       k256.Private.Bytes(),
		K256Signature: k256.Signature,
		// Old guests read the first, new ones the second.
		TproxyAppId:  g.decision.GatewayAppID,
		GatewayAppId: g.decision.GatewayAppID,
		// The guest measures it: it has to be the one that was authorized.
		OsImageHash: g.info.OSImageHash,
	}}
}

// GetAppEnvEncryptPubKey gives the public key to which the environment of an
// application is encrypted, signed with and without the time. Anybody may ask.
func (s *Service) GetAppEnvEncryptPubKey(ctx context.Context, r *kmsv1.GetAppEnvEncryptPubKeyRequest) (*kmsv1.GetAppEnvEncryptPubKeyResponse, error) {
	if err := s.authorizeSelf(ctx); err != nil {
		return nil, err
	}
	appID := r.GetAppId()
	if len(appID) != keys.AppIDSize {
		return nil, &rpc.FieldError{Field: "app_id", Reason: fmt.Sprintf("%d bytes, want %d", len(appID), keys.AppIDSize)}
	}
	env, err := s.roots.Env(appID)
	if err != nil {
		return nil, err
	}
	signature, err := s.roots.SignEnvPublic(appID, env.Public)
	if err != nil {
		return nil, err
	}
	timestamp := uint64(max(0, s.now().Unix()))
	dated, err := s.roots.SignEnvPublicAt(appID, env.Public, timestamp)
	if err != nil {
		return nil, err
	}
	return &kmsv1.GetAppEnvEncryptPubKeyResponse{
		PublicKey: env.Public, Signature: signature, Timestamp: timestamp, SignatureV1: dated,
	}, nil
}
