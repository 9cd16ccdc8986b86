package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"teekms/cmd/internal/buildinfo"
	"teekms/cmd/internal/node"
	"teekms/gen/kms/v1/kmsv1connect"
	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/authz"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
	"teekms/internal/observe"
	"teekms/internal/osimage"
	"teekms/internal/ratls"
	"teekms/internal/rpc"
	"teekms/internal/serve"
	"teekms/services/kms"
)

// kmsServer is what the two listeners of a KMS share.
type kmsServer struct {
	*node.Node
	service *kms.Service
	images  *osimage.Verifier
	// peers appraises the clients of the KMS listener, adminPeers those of the
	// listener of administrators.
	peers, adminPeers *ratls.Server
	// certificate is what the listeners serve.
	certificate *serve.Certificate
	metrics     *observe.KMS
}

// newServer makes the KMS of a complete key directory. It opens no listener and
// writes nothing.
func newServer(n *node.Node) (*kmsServer, error) {
	s := &kmsServer{Node: n, certificate: &serve.Certificate{}}
	if err := s.registerMetrics(); err != nil {
		return nil, err
	}
	appraiser, err := n.NewAppraiser(s.metrics)
	if err != nil {
		return nil, err
	}
	if err := s.openPeers(appraiser); err != nil {
		return nil, err
	}
	if s.images, err = newImages(n); err != nil {
		return nil, err
	}
	authority, err := n.Authority()
	if err != nil {
		return nil, err
	}
	config, err := s.serviceConfig()
	if err != nil {
		return nil, err
	}
	config.Appraiser, config.Authorizer = appraiser, authz.Instrument(authority, s.metrics.Authorization)
	s.service, err = kms.New(config)
	return s, err
}

func (s *kmsServer) openPeers(appraiser *ratls.Appraiser) (err error) {
	c := ratls.ServerConfig{Appraiser: appraiser, Certificates: s.certificate.Get, Now: time.Now}
	if s.adminPeers, err = ratls.NewServer(c); err != nil {
		return err
	}
	// Without TLS there is no certificate to insist on.
	c.Mandatory = s.Config.RPC.TLS.Mutual.Mandatory && !s.Config.RPC.InsecurePlaintext
	s.peers, err = ratls.NewServer(c)
	return err
}

func (s *kmsServer) registerMetrics() (err error) {
	if s.metrics, err = observe.NewKMS(s.Metrics); err != nil {
		return err
	}
	root, err := keys.ParseCertificate(s.Keys.RootCAPEM())
	if err != nil {
		return fmt.Errorf("reading the root certificate: %w", err)
	}
	for name, notAfter := range map[string]func() time.Time{
		"root": func() time.Time { return root.NotAfter },
		"rpc":  func() time.Time { return s.Keys.RPCCertificate().Leaf.NotAfter },
	} {
		if err := observe.RegisterCertificate(s.Metrics, name, notAfter); err != nil {
			return err
		}
	}
	return s.RegisterCollateral()
}

func newImages(n *node.Node) (*osimage.Verifier, error) {
	c := n.Config.Core.Image
	v, err := osimage.New(osimage.Config{
		Verify: c.Verify, AllowlistFile: c.AllowlistFile, CacheDir: c.CacheDir, DownloadURL: c.DownloadURL,
		DownloadTimeout: c.DownloadTimeout, MaxDownload: c.MaxDownload, Log: n.Log, Now: time.Now,
	})
	if err != nil {
		return nil, fmt.Errorf("opening core.image: %w", err)
	}
	return v, nil
}

// serviceConfig is the configuration of the service, without those it asks.
func (s *kmsServer) serviceConfig() (kms.Config, error) {
	tempKey, err := s.Keys.TempCAKeyPEM()
	if err != nil {
		return kms.Config{}, err
	}
	if s.Keys.Info() == nil {
		s.Log.Warn("the key directory has no bootstrap-info.json: GetMeta tells no bootstrap_info")
	}
	c := kms.Config{
		Keys: kms.Keys{
			Roots: s.Keys.Roots(), RootCertificate: s.Keys.RootCAPEM(), TempCertificate: s.Keys.TempCAPEM(),
			TempKey: tempKey, Domain: s.Keys.Domain(),
		},
		Bootstrap: record(s.Keys.Info()), Images: s.images, KMSKeyRelease: s.Config.Core.KMSKeyRelease,
		TrustRootSHA256: s.TrustRootSHA256(), InsecureSettings: s.Config.InsecureSettings(),
		Log: s.Log, Metrics: s.Metrics, Now: time.Now,
	}
	if s.Config.Core.EnforceSelfAuthorization {
		c.Self = s.Self
	}
	return c, nil
}

// record is the bootstrap as GetMeta tells it, nil where there is none.
func record(info *keystore.Info) *onboardv1.BootstrapResponse {
	if info == nil {
		return nil
	}
	return &onboardv1.BootstrapResponse{
		CaPubkey: info.CAPublic, K256Pubkey: info.K256Public, Quote: info.Quote, Eventlog: info.EventLog,
	}
}

// handler answers on the listener of the KMS.
func (s *kmsServer) handler(ctx context.Context) (http.Handler, error) {
	c := s.CallLimits()
	c.Access, c.Errors, c.Admit, c.Observe = kms.Access(), kms.Errors(), s.peers.Admit, s.observe
	chain, err := rpc.New(c)
	if err != nil {
		return nil, err
	}
	return serve.NewMux(serve.MuxConfig{
		Service: s.service.RPC(), Chain: chain, Metrics: s.MetricsHandler(),
		Ready:  func() error { return s.ready(ctx) },
		Header: s.version(),
	})
}

// version tells what answers, as existing KMSs do.
func (s *kmsServer) version() map[string]string {
	return map[string]string{
		"X-App-Version": fmt.Sprintf("v%s (git:%s)", strings.TrimPrefix(s.Version, "v"), buildinfo.Revision(revision)),
	}
}

// observe counts how calls ended.
func (s *kmsServer) observe(procedure string, failed bool) {
	s.service.Observe(procedure, failed)
	if procedure == kmsv1connect.KMSSignCertProcedure && !failed {
		s.metrics.Certificate("app")
	}
}

// ready tells load balancers to go elsewhere while this process drains, or when
// its certificate could not be renewed in time.
func (s *kmsServer) ready(ctx context.Context) error {
	switch expiry := s.Keys.RPCCertificate().Leaf.NotAfter; {
	case ctx.Err() != nil:
		return errors.New("shutting down")
	case time.Now().After(expiry):
		return errors.New("the RPC certificate has expired")
	default:
		return nil
	}
}

// warn says what a configuration that is valid does that its author may not
// expect.
func (s *kmsServer) warn() {
	c := s.Config
	if c.RPC.InsecurePlaintext {
		s.Log.Warn("without TLS no workload can attest itself: this listener gives keys to nobody",
			zap.String("key", "rpc.insecure_plaintext"))
	}
	if !c.Core.AttestRPCCert || !c.Core.Onboard.QuoteEnabled {
		s.Log.Warn("the RPC certificate carries no Evidence: clients cannot appraise this KMS, peers cannot take keys from it")
	}
	if c.Core.EnforceSelfAuthorization && !c.Core.Onboard.QuoteEnabled {
		s.Log.Warn("this KMS cannot authorize itself without quotes: it will release nothing",
			zap.String("key", "core.onboard.quote_enabled"))
	}
}
