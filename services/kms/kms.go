// Package kms is the KMS service: what a complete key directory serves. This
// version answers GetMeta; every other procedure is refused as not implemented.
//
// Make a [Service] with [New] and mount [Service.RPC] with serve.NewMux.
package kms

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"unicode/utf8"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/gen/kms/v1/kmsv1connect"
	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/rpc"
	"teekms/internal/serve"
)

// k256PublicSize is the length of a compressed secp256k1 point, in bytes.
const k256PublicSize = 33

// Facts are what GetMeta tells of the authorization service. A nil pointer is a
// fact that does not apply.
type Facts struct {
	// AllowAnyUpgrade and IsDev are true when every application is allowed.
	AllowAnyUpgrade, IsDev bool
	// GatewayAppID is the application id of the gateway, "any" for no pinning.
	GatewayAppID *string
	// ContractAddress, ChainID and AppImplementation are the KMS contract, its
	// chain, and the contract that applications are made from.
	ContractAddress   *string
	ChainID           *uint64
	AppImplementation *string
}

// DevFacts are the facts of the development authorizer, which allows
// everything.
func DevFacts(gatewayAppID string) Facts {
	return Facts{AllowAnyUpgrade: true, IsDev: true, GatewayAppID: &gatewayAppID}
}

// Config of a [Service].
type Config struct {
	// RootCertificate is the PEM of the root CA certificate. Required.
	RootCertificate []byte
	// K256Public is the compressed point of the root secp256k1 key (33 bytes).
	// Required.
	K256Public []byte
	// Bootstrap is the record of the bootstrap; nil where there is none.
	Bootstrap *onboardv1.BootstrapResponse
	// Facts are told by GetMeta.
	Facts Facts
	// TrustRootSHA256 is the digest of the trust root that Evidence is verified
	// against (32 bytes); empty without one.
	TrustRootSHA256 []byte
	// InsecureSettings are the switches in force that weaken security.
	InsecureSettings []string
}

// Service implements the KMS service. Make it with [New]. It may be called from
// several goroutines.
type Service struct {
	meta      *kmsv1.GetMetaResponse
	encodings rpc.Encodings
}

var _ kmsv1connect.KMSHandler = (*Service)(nil)

// New returns the service. Nothing that GetMeta tells changes while a process
// serves, so its answer is made here, once.
func New(c Config) (*Service, error) {
	if len(c.RootCertificate) == 0 {
		return nil, errors.New("making the KMS service: RootCertificate is required")
	}
	if !bytes.HasPrefix(c.RootCertificate, []byte("-----BEGIN CERTIFICATE-----")) || !utf8.Valid(c.RootCertificate) {
		return nil, errors.New("making the KMS service: RootCertificate is not PEM")
	}
	if len(c.K256Public) != k256PublicSize {
		return nil, fmt.Errorf("making the KMS service: K256Public has %d bytes, want %d", len(c.K256Public), k256PublicSize)
	}
	s := &Service{meta: proto.CloneOf(&kmsv1.GetMetaResponse{
		CaCert:                string(c.RootCertificate),
		AllowAnyUpgrade:       c.Facts.AllowAnyUpgrade,
		K256Pubkey:            c.K256Public,
		BootstrapInfo:         c.Bootstrap,
		IsDev:                 c.Facts.IsDev,
		GatewayAppId:          c.Facts.GatewayAppID,
		KmsContractAddress:    c.Facts.ContractAddress,
		ChainId:               c.Facts.ChainID,
		AppAuthImplementation: c.Facts.AppImplementation,
		TrustRootSha256:       c.TrustRootSHA256,
		InsecureSettings:      c.InsecureSettings,
	})}
	s.encodings.Keep(kmsv1connect.KMSGetMetaProcedure, s.meta)
	return s, nil
}

// RPC is the service for serve.NewMux. Bytes in prpc JSON have no prefix, as
// existing clients of the KMS parse them.
func (s *Service) RPC() serve.Service {
	return serve.Service{
		Descriptor: kmsv1.File_kms_v1_kms_proto.Services().ByName("KMS"),
		New: func(options ...connect.HandlerOption) (string, http.Handler) {
			return kmsv1connect.NewKMSHandler(s, options...)
		},
		Encodings: &s.encodings,
	}
}

// Access is the access table of the service: nothing in it asks for a token,
// because guests prove themselves with Evidence.
func Access() rpc.Access {
	return rpc.Access{
		kmsv1connect.KMSGetAppKeyProcedure:              nil,
		kmsv1connect.KMSGetAppEnvEncryptPubKeyProcedure: nil,
		kmsv1connect.KMSGetMetaProcedure:                nil,
		kmsv1connect.KMSGetKmsKeyProcedure:              nil,
		kmsv1connect.KMSGetTempCaCertProcedure:          nil,
		kmsv1connect.KMSSignCertProcedure:               nil,
	}
}

// Errors maps the errors of the service.
func Errors() rpc.Table {
	return rpc.Table{
		rpc.As(connect.CodeUnimplemented, func(e *unimplementedError) string { return e.Error() }),
	}
}

// unimplementedError refuses a procedure that this version does not have.
type unimplementedError struct{ method string }

func (e *unimplementedError) Error() string { return e.method + " is not implemented by this version" }

// GetMeta returns the public facts of this KMS, always the same message.
func (s *Service) GetMeta(context.Context, *kmsv1.GetMetaRequest) (*kmsv1.GetMetaResponse, error) {
	return s.meta, nil
}

// GetAppKey is not implemented yet.
func (*Service) GetAppKey(context.Context, *kmsv1.GetAppKeyRequest) (*kmsv1.GetAppKeyResponse, error) {
	return nil, &unimplementedError{"GetAppKey"}
}

// GetAppEnvEncryptPubKey is not implemented yet.
func (*Service) GetAppEnvEncryptPubKey(context.Context, *kmsv1.GetAppEnvEncryptPubKeyRequest) (*kmsv1.GetAppEnvEncryptPubKeyResponse, error) {
	return nil, &unimplementedError{"GetAppEnvEncryptPubKey"}
}

// GetKmsKey is not implemented yet.
func (*Service) GetKmsKey(context.Context, *kmsv1.GetKmsKeyRequest) (*kmsv1.GetKmsKeyResponse, error) {
	return nil, &unimplementedError{"GetKmsKey"}
}

// GetTempCaCert is not implemented yet.
func (*Service) GetTempCaCert(context.Context, *kmsv1.GetTempCaCertRequest) (*kmsv1.GetTempCaCertResponse, error) {
	return nil, &unimplementedError{"GetTempCaCert"}
}

// SignCert is not implemented yet.
func (*Service) SignCert(context.Context, *kmsv1.SignCertRequest) (*kmsv1.SignCertResponse, error) {
	return nil, &unimplementedError{"SignCert"}
}
