package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"teekms/cmd/internal/buildinfo"
	"teekms/cmd/internal/node"
	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/config"
	"teekms/internal/keys/keystore"
	"teekms/internal/observe"
	"teekms/internal/serve"
	"teekms/services/kms"
)

// serveKMS serves the KMS service until ctx ends and the calls in flight are
// answered.
func serveKMS(ctx context.Context, n *node.Node) error {
	handler, err := newHandler(ctx, n)
	if err != nil {
		return err
	}
	// The address comes first: a start that ends here has written nothing.
	listener, err := node.Listen(ctx, n.Config.RPC.Address, n.Config.RPC.Port)
	if err != nil {
		return err
	}
	defer listener.Close() //nolint:errcheck // serve.Run has closed it, unless that was never reached
	tlsConfig, err := serverTLS(ctx, n)
	if err != nil {
		return err
	}
	scheme := "https"
	if tlsConfig == nil {
		scheme = "http"
	}
	n.Log.Info("KMS has launched from "+scheme+"://"+listener.Addr().String(),
		zap.String("domain", n.Keys.Domain()), zap.String("version", n.Version))
	return serve.Run(ctx, serve.Config{
		Listener: listener, Handler: handler, TLS: tlsConfig, Limits: n.ConnectionLimits(), Log: n.Log,
	})
}

func newHandler(ctx context.Context, n *node.Node) (http.Handler, error) {
	service, err := kms.New(kms.Config{
		RootCertificate:  n.Keys.RootCAPEM(),
		K256Public:       n.Keys.Roots().K256Public(),
		Bootstrap:        record(n.Keys.Info()),
		Facts:            facts(n.Config.Core.AuthAPI),
		TrustRootSHA256:  n.TrustRootSHA256(),
		InsecureSettings: n.Config.InsecureSettings(),
	})
	if err != nil {
		return nil, err
	}
	if n.Keys.Info() == nil {
		n.Log.Warn("the key directory has no bootstrap-info.json: GetMeta tells no bootstrap_info")
	}
	chain, err := n.Chain(kms.Access(), kms.Errors())
	if err != nil {
		return nil, err
	}
	return serve.NewMux(serve.MuxConfig{
		Service: service.RPC(), Chain: chain, Metrics: n.MetricsHandler(),
		Ready:  func() error { return ready(ctx, n) },
		Header: map[string]string{"X-App-Version": fmt.Sprintf("v%s (git:%s)", strings.TrimPrefix(n.Version, "v"), buildinfo.Revision(revision))},
	})
}

// ready tells load balancers to go elsewhere while this process drains, or when
// its certificate could not be renewed in time.
func ready(ctx context.Context, n *node.Node) error {
	switch expiry := n.Keys.RPCCertificate().Leaf.NotAfter; {
	case ctx.Err() != nil:
		return errors.New("shutting down")
	case time.Now().After(expiry):
		return errors.New("the RPC certificate has expired")
	default:
		return nil
	}
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

// facts is what is known of the authorization service without asking it.
func facts(c config.AuthAPI) kms.Facts {
	if c.Type == config.AuthDev {
		return kms.DevFacts(c.Dev.GatewayAppID)
	}
	return kms.Facts{}
}

// serverTLS reissues the RPC certificate and keeps it fresh until ctx ends. It
// is nil where the configuration asks for plaintext.
func serverTLS(ctx context.Context, n *node.Node) (*tls.Config, error) {
	certificate := &serve.Certificate{}
	renewal := serve.RenewConfig{
		Issue: func(ctx context.Context) (tls.Certificate, error) { return n.Keys.RenewRPC(ctx) },
		Log:   n.Log,
		Now:   time.Now,
	}
	if err := certificate.Renew(ctx, renewal); err != nil {
		return nil, err
	}
	go certificate.RenewLoop(ctx, renewal)
	err := observe.RegisterCertificate(n.Metrics, "rpc", func() time.Time { return n.Keys.RPCCertificate().Leaf.NotAfter })
	if err != nil {
		return nil, err
	}
	if n.Config.RPC.InsecurePlaintext {
		return nil, nil //nolint:nilnil // nil is "no TLS" to the standard library too
	}
	tlsConfig := certificate.TLSConfig()
	if n.Config.RPC.TLS.Mutual.Mandatory {
		// Any certificate: clients are known by Evidence, not by a CA.
		tlsConfig.ClientAuth = tls.RequireAnyClientCert
	}
	return tlsConfig, nil
}
