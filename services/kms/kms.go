// Package kms is the KMS service: keys and certificates for workloads that
// prove what they are, and the public facts of this KMS. The Admin service, for
// operators, is in it too.
//
// Make a [Service] with [New] and mount [Service.RPC] with serve.NewMux, on a
// listener whose calls are admitted by a ratls.Server (docs/wire.md#release).
package kms

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/gen/kms/v1/kmsv1connect"
	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/attest"
	"teekms/internal/audit"
	"teekms/internal/authz"
	"teekms/internal/keys"
	"teekms/internal/osimage"
	"teekms/internal/ratls"
	"teekms/internal/rpc"
	"teekms/internal/serve"
)

// Keys are what the service gives keys and certificates from.
type Keys struct {
	// Roots are the root keys.
	Roots *keys.Roots
	// RootCertificate is the root CA certificate, PEM, byte for byte as on disk:
	// clients pin it.
	RootCertificate []byte
	// TempCertificate is the certificate of the temporary CA, PEM.
	TempCertificate []byte
	// TempKey is the key of the temporary CA, PKCS#8 PEM.
	TempKey keys.Secret
	// Domain is the name of this KMS, which no certificate of an application
	// may have; empty reserves none.
	Domain string
}

// appraiser verifies Evidence that is bound to a public key (DER
// SubjectPublicKeyInfo); *ratls.Appraiser is one.
type appraiser interface {
	Appraise(ctx context.Context, ev *attest.Evidence, spki []byte) (*ratls.Attested, error)
}

// images tells whether a quote is of the OS image that its owner names;
// *osimage.Verifier is one.
type images interface {
	Verify(ctx context.Context, s osimage.Subject) (osimage.Result, error)
}

// Config of a [Service].
type Config struct {
	// Keys are all required, but for the domain.
	Keys Keys
	// Bootstrap is the record of the bootstrap; nil where there is none.
	Bootstrap *onboardv1.BootstrapResponse
	// Authorizer decides who may have keys. Required.
	Authorizer authz.Authorizer
	// Appraiser verifies the Evidence in signing requests. Required.
	Appraiser appraiser
	// Images verifies OS images. Required.
	Images images
	// Audit records every release before it is answered, and denials. Required.
	Audit audit.Recorder
	// Self describes this KMS to the Authorizer, which is asked about it in
	// every call but GetMeta; nil means that it is not asked.
	Self func(ctx context.Context) (authz.BootInfo, error)
	// KMSKeyRelease says where root keys are handed to peers, one of the
	// Release constants; empty means [ReleaseOff].
	KMSKeyRelease string
	// TrustRootSHA256 is the digest of the trust root that Evidence is verified
	// against (32 bytes); empty without one.
	TrustRootSHA256 []byte
	// InsecureSettings are the switches in force that weaken security.
	InsecureSettings []string
	// Log gets a line for every release. Required.
	Log *zap.Logger
	// Metrics receives the counters; nil means none are kept.
	Metrics prometheus.Registerer
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Service implements the KMS service. Make it with [New]. It may be called from
// several goroutines.
type Service struct {
	roots            *keys.Roots
	rootCertificate  *x509.Certificate
	rootPEM, tempPEM string
	tempKey          keys.Secret
	domain           string
	authority        authz.Authorizer
	appraiser        appraiser
	images           images
	audit            audit.Recorder
	denials          *denialBudget
	self             *self
	keyRelease       string
	log              *zap.Logger
	metrics          *metrics
	now              func() time.Time
	meta             meta
	encodings        rpc.Encodings
}

var _ kmsv1connect.KMSHandler = (*Service)(nil)

// New returns the service.
func New(c Config) (*Service, error) {
	if c.Now == nil {
		c.Now = time.Now //nolint:forbidigo // the default of an injected clock
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("making the KMS service: %w", err)
	}
	root, err := keys.ParseCertificate(c.Keys.RootCertificate)
	if err != nil {
		return nil, fmt.Errorf("making the KMS service: root certificate: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(root.PublicKey)
	if err != nil || !bytes.Equal(public, c.Keys.Roots.CAPublic()) {
		return nil, errors.New("making the KMS service: the root certificate is not of the root key")
	}
	m, err := newMetrics(c.Metrics)
	if err != nil {
		return nil, fmt.Errorf("making the KMS service: %w", err)
	}
	s := &Service{
		roots: c.Keys.Roots, rootCertificate: root, rootPEM: string(c.Keys.RootCertificate),
		tempPEM: string(c.Keys.TempCertificate), tempKey: c.Keys.TempKey, domain: c.Keys.Domain,
		authority: c.Authorizer, appraiser: c.Appraiser, images: c.Images, audit: c.Audit, denials: newDenialBudget(c.Now), self: newSelf(c.Self),
		keyRelease: c.KMSKeyRelease, log: c.Log, metrics: m, now: c.Now,
	}
	s.meta.fixed = proto.CloneOf(&kmsv1.GetMetaResponse{
		CaCert: s.rootPEM, K256Pubkey: s.roots.K256Public(), BootstrapInfo: c.Bootstrap,
		TrustRootSha256: c.TrustRootSHA256, InsecureSettings: c.InsecureSettings,
	})
	return s, nil
}

func (c *Config) check() error {
	required := []struct {
		name string
		ok   bool
	}{
		{"Keys.Roots", c.Keys.Roots != nil},
		{"Keys.RootCertificate", len(c.Keys.RootCertificate) != 0},
		{"Keys.TempCertificate", len(c.Keys.TempCertificate) != 0},
		{"Keys.TempKey", c.Keys.TempKey.Len() != 0},
		{"Authorizer", c.Authorizer != nil},
		{"Appraiser", c.Appraiser != nil},
		{"Images", c.Images != nil},
		{"Audit", c.Audit != nil},
		{"Log", c.Log != nil},
	}
	for _, r := range required {
		if !r.ok {
			return errors.New(r.name + " is required")
		}
	}
	if !utf8.Valid(c.Keys.RootCertificate) || !utf8.Valid(c.Keys.TempCertificate) {
		return errors.New("certificates are not PEM")
	}
	switch c.KMSKeyRelease {
	case "", ReleaseOff, ReleasePublic, ReleaseAdmin:
		return nil
	default:
		return fmt.Errorf("KMSKeyRelease is %q, want public, admin or off", c.KMSKeyRelease)
	}
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
