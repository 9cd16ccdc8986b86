package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"teekms/cmd/internal/buildinfo"
	"teekms/gen/kms/v1/kmsv1connect"
	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/audit"
	"teekms/internal/authz"
	authzregistry "teekms/internal/authz/registry"
	"teekms/internal/config"
	"teekms/internal/keys/keystore"
	"teekms/internal/ratls"
	"teekms/internal/registry"
	"teekms/internal/rpc"
	"teekms/internal/serve"
	"teekms/internal/storage"
	"teekms/services/kms"
)

// kmsServer is a KMS that is ready to serve, with all that it was configured
// with. Make it with [base.prepare].
type kmsServer struct {
	*base
	settings settings
	service  *kms.Service
	db       storage.DB
	audit    *audit.Log
	policy   *registry.Policy
	// alive tells whether the database answers.
	alive *pinger
	// pkcs12 is served to whoever does not ask for the domain; nil is none.
	pkcs12 *tls.Certificate
	// peers appraises the clients of the KMS listener, adminPeers those of the
	// listener of administrators.
	peers, adminPeers *ratls.Server
	// attempt has the metrics of this KMS, which are nobody's business before it
	// serves.
	attempt *prometheus.Registry
	// listeners are those of the KMS and of the Admin service, opened their
	// sockets, unless the configuration server opened them.
	listeners []listener
	opened    []*socket
}

// plaintext tells whether the KMS listener goes without TLS: a PKCS#12 says that
// it does not.
func (s *kmsServer) plaintext() bool { return s.Config.RPC.InsecurePlaintext && s.pkcs12 == nil }

// insecure are the switches in force that weaken security.
func (s *kmsServer) insecure() []string {
	keys := s.Config.InsecureSettings()
	if !s.plaintext() {
		keys = slices.DeleteFunc(keys, func(key string) bool { return key == "rpc.insecure_plaintext" })
	}
	return keys
}

// certificateFor is tls.Config.GetCertificate: the RPC certificate, which guests
// know this KMS by; where there is a PKCS#12, to those only who ask for the
// domain.
func (s *kmsServer) certificateFor(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if s.pkcs12 != nil && !strings.EqualFold(hello.ServerName, s.Keys.Domain()) {
		return s.pkcs12, nil
	}
	return s.certificate.Get(hello)
}

func (s *kmsServer) openPeers() (err error) {
	c := ratls.ServerConfig{Appraiser: s.appraiser, Certificates: s.certificateFor, Now: time.Now}
	if s.adminPeers, err = ratls.NewServer(c); err != nil {
		return err
	}
	// Without TLS there is no certificate to insist on.
	c.Mandatory = s.Config.RPC.TLS.Mutual.Mandatory && !s.plaintext()
	s.peers, err = ratls.NewServer(c)
	return err
}

// openService makes the service over the open database.
func (s *kmsServer) openService() error {
	authority, err := s.authority()
	if err != nil {
		return err
	}
	c, err := s.serviceConfig()
	if err != nil {
		return err
	}
	c.Authorizer = authz.Instrument(authority, s.metrics.Authorization)
	s.service, err = kms.New(c)
	return err
}

// authority is the one that core.auth_api names.
func (s *kmsServer) authority() (authz.Authorizer, error) {
	if s.Config.Core.AuthAPI.Type != config.AuthRegistry {
		return s.Authority()
	}
	a, err := authzregistry.New(authzregistry.Config{Policy: s.policy, Log: s.Log, Now: time.Now})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// serviceConfig is the configuration of the service, without the authority.
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
		Bootstrap: record(s.Keys.Info()), Appraiser: s.appraiser, Images: s.images, Audit: s.audit,
		KMSKeyRelease: s.Config.Core.KMSKeyRelease, TrustRootSHA256: s.TrustRootSHA256(), InsecureSettings: s.insecure(),
		Log: s.Log, Metrics: s.attempt, Now: time.Now,
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
func (s *kmsServer) handler() (http.Handler, error) {
	c := s.CallLimits()
	c.Access, c.Errors, c.Admit, c.Observe = kms.Access(), kms.Errors(), s.peers.Admit, s.observe
	chain, err := rpc.New(c)
	if err != nil {
		return nil, err
	}
	return serve.NewMux(serve.MuxConfig{
		Service: s.service.RPC(), Chain: chain, Metrics: s.MetricsHandler(), Ready: s.ready, Header: s.version(),
	})
}

// version tells what answers, as existing KMSs do.
func (b *base) version() map[string]string {
	return map[string]string{
		"X-App-Version": fmt.Sprintf("v%s (git:%s)", strings.TrimPrefix(b.Version, "v"), buildinfo.Revision(revision)),
	}
}

// observe counts how calls ended.
func (s *kmsServer) observe(procedure string, failed bool) {
	s.service.Observe(procedure, failed)
	if procedure == kmsv1connect.KMSSignCertProcedure && !failed {
		s.metrics.Certificate("app")
	}
}

// ready tells load balancers to go elsewhere while this process drains, when its
// certificate could not be renewed in time, or while the database does not
// answer: nothing is released without it.
func (s *kmsServer) ready() error {
	select {
	case <-s.stopping:
		return errors.New("shutting down")
	default:
	}
	if time.Now().After(s.rpcLeaf().NotAfter) {
		return errors.New("the RPC certificate has expired")
	}
	return s.alive.check()
}

// warn says what a configuration that is valid does that its author may not
// expect.
func (s *kmsServer) warn() {
	c := s.Config
	if s.plaintext() {
		s.Log.Warn("without TLS no workload can attest itself: this listener gives keys to nobody",
			zap.String("key", "rpc.insecure_plaintext"))
	}
	if s.pkcs12 != nil && net.ParseIP(s.Keys.Domain()) != nil {
		s.Log.Warn("the domain is an IP address, which nobody asks for by name: workloads see the certificate of the PKCS#12",
			zap.String("domain", s.Keys.Domain()))
	}
	if !c.Core.AttestRPCCert || !c.Core.Onboard.QuoteEnabled {
		s.Log.Warn("the RPC certificate carries no Evidence: clients cannot appraise this KMS, peers cannot take keys from it")
	}
	if c.Core.EnforceSelfAuthorization && !c.Core.Onboard.QuoteEnabled {
		s.Log.Warn("this KMS cannot authorize itself without quotes: it will release nothing",
			zap.String("key", "core.onboard.quote_enabled"))
	}
}

// closeTime bounds what is done after the last call was answered.
const closeTime = 15 * time.Second

// close ends the audit log and the database.
func (s *kmsServer) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
	defer cancel()
	if s.audit != nil {
		s.warnOf("closing the audit log", s.audit.Close(ctx))
	}
	if s.db != nil {
		s.warnOf("closing the database", s.db.Close())
	}
}
