package kms

import (
	"context"
	"errors"
	"net/http"

	"connectrpc.com/connect"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/gen/kms/v1/kmsv1connect"
	"teekms/internal/audit"
	"teekms/internal/osimage"
	"teekms/internal/registry"
	"teekms/internal/rpc"
	"teekms/internal/serve"
)

// imageCache forgets what is kept of OS images. Each argument is empty
// (nothing), "all" or hexadecimal; anything else is osimage.ErrCacheKey.
type imageCache interface {
	ClearCache(ctx context.Context, imageHash, configHash string) error
}

// policyRegistry is the policy registry; *registry.Policy is one.
type policyRegistry interface {
	Update(ctx context.Context, c registry.Change) (registry.Receipt, error)
	List(ctx context.Context, q registry.Query) ([]registry.Entry, error)
	Explain(ctx context.Context, w registry.Workload) (registry.Explanation, error)
	Revision(ctx context.Context) (uint64, error)
}

// AdminConfig configures an [Admin].
type AdminConfig struct {
	// Images is what ClearImageCache clears. Required.
	Images imageCache
	// Audit is the audit log of the database; nil where there is none.
	Audit *audit.Log
	// Registry is the policy registry of the database, which administrators
	// change whether it is the authority or not; nil where there is none.
	Registry policyRegistry
	// ReleaseRoots hands the root keys to the attested peer of ctx; nil where
	// core.kms_key_release is not "admin".
	ReleaseRoots func(ctx context.Context, r *kmsv1.GetKmsKeyRequest) (*kmsv1.GetKmsKeyResponse, error)
}

// Admin implements the Admin service. Its listener asks for credentials
// ([Credentials]) before anything reaches it. It may be called from several
// goroutines.
type Admin struct {
	images       imageCache
	audit        *audit.Log
	registry     policyRegistry
	releaseRoots func(ctx context.Context, r *kmsv1.GetKmsKeyRequest) (*kmsv1.GetKmsKeyResponse, error)
}

var _ kmsv1connect.AdminHandler = (*Admin)(nil)

// NewAdmin returns the service.
func NewAdmin(c AdminConfig) (*Admin, error) {
	if c.Images == nil {
		return nil, errors.New("making the Admin service: Images is required")
	}
	return &Admin{images: c.Images, audit: c.Audit, registry: c.Registry, releaseRoots: c.ReleaseRoots}, nil
}

// RPC is the service for serve.NewMux.
func (a *Admin) RPC() serve.Service {
	return serve.Service{
		Descriptor: kmsv1.File_kms_v1_admin_proto.Services().ByName("Admin"),
		New: func(options ...connect.HandlerOption) (string, http.Handler) {
			return kmsv1connect.NewAdminHandler(a, options...)
		},
	}
}

// AdminAccess is the access table of the Admin service. It asks for no token:
// [Credentials.Require] stands before everything on its listener.
func AdminAccess() rpc.Access {
	return rpc.Access{
		kmsv1connect.AdminClearImageCacheProcedure:       nil,
		kmsv1connect.AdminGetKmsKeyProcedure:             nil,
		kmsv1connect.AdminUpdateRegistryProcedure:        nil,
		kmsv1connect.AdminListRegistryProcedure:          nil,
		kmsv1connect.AdminExplainRegistryProcedure:       nil,
		kmsv1connect.AdminListAuditProcedure:             nil,
		kmsv1connect.AdminGetAuditCheckpointProcedure:    nil,
		kmsv1connect.AdminProveAuditProcedure:            nil,
		kmsv1connect.AdminProveAuditConsistencyProcedure: nil,
	}
}

// errRootsElsewhere refuses root keys on a listener of administrators that does
// not hand them out.
var errRootsElsewhere = errors.New("root keys are not released here: core.kms_key_release is not \"admin\"")

// AdminErrors maps the errors of the Admin service. Those of releases go first:
// their causes may be errors of the log or the database too.
func AdminErrors() rpc.Table {
	return append(append(append(Errors(),
		rpc.Is(osimage.ErrCacheKey, connect.CodeInvalidArgument, "invalid cache key"),
		rpc.Is(errRootsElsewhere, connect.CodePermissionDenied, ""),
		rpc.Is(errNotOpen, connect.CodeUnavailable, ""),
	), auditErrors()...), registryErrors()...)
}

// ClearImageCache forgets downloaded images and measurements computed from
// them.
func (a *Admin) ClearImageCache(ctx context.Context, r *kmsv1.ClearImageCacheRequest) (*kmsv1.ClearImageCacheResponse, error) {
	if err := a.images.ClearCache(ctx, r.GetImageHash(), r.GetConfigHash()); err != nil {
		return nil, err
	}
	return &kmsv1.ClearImageCacheResponse{}, nil
}

// GetKmsKey hands the root keys to an attested and authorized peer, as
// KMS.GetKmsKey does on the other listener.
func (a *Admin) GetKmsKey(ctx context.Context, r *kmsv1.AdminGetKmsKeyRequest) (*kmsv1.AdminGetKmsKeyResponse, error) {
	if a.releaseRoots == nil {
		return nil, errRootsElsewhere
	}
	res, err := a.releaseRoots(ctx, &kmsv1.GetKmsKeyRequest{VmConfig: r.GetVmConfig()})
	if err != nil {
		return nil, err
	}
	return &kmsv1.AdminGetKmsKeyResponse{TempCaKey: res.GetTempCaKey(), Keys: res.GetKeys()}, nil
}
