package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"teekms/cmd/internal/node"
	"teekms/cmd/internal/process"
	"teekms/internal/audit"
	"teekms/internal/ratls"
	"teekms/internal/serve"
)

// serveKMS serves the KMS service, and the Admin service where it is enabled,
// until ctx ends and the calls in flight are answered. Where the configuration
// asks for it, it takes the rest of the configuration over TLS first.
func serveKMS(ctx context.Context, n *node.Node) error {
	b, err := newBase(n, ctx.Done())
	if err != nil {
		return err
	}
	defer b.close()
	start := b.fromFile
	if n.Config.Core.BootstrapServer.Enabled {
		start = b.configure
	}
	s, err := start(ctx)
	if s == nil || err != nil {
		return err
	}
	defer s.abandon(ctx)
	return s.run(ctx)
}

// fromFile prepares a KMS of what the configuration file says.
func (b *base) fromFile(ctx context.Context) (*kmsServer, error) {
	from := settings{by: "configuration file", password: b.Config.RPC.TLS.PKCS12Password}
	var err error
	if from.pkcs12, err = b.readPKCS12(); err != nil {
		return nil, err
	}
	if from.database, err = fileDatabase(b.Node); err != nil {
		return nil, err
	}
	s, warnings, err := b.prepare(ctx, from)
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		b.Log.Warn(w)
	}
	// Sockets and database came first: a start that ends there has renewed nothing.
	err = b.certificate.Renew(ctx, b.renewal)
	if err == nil {
		err = s.recordStart(ctx)
	}
	if err != nil {
		s.abandon(ctx)
		return nil, err
	}
	return s, nil
}

// run serves until ctx ends.
func (s *kmsServer) run(ctx context.Context) error {
	if err := s.Metrics.Register(s.attempt); err != nil {
		return err
	}
	s.warn()
	ctx, stop := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer stop()
	background.Go(func() { s.certificate.RenewLoop(ctx, recorded(s.renewal, s.audit)) })
	background.Go(func() { s.RefreshCollateral(ctx) })
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range s.listeners {
		accept, err := l.socket.turn(true)
		if err != nil {
			return err
		}
		l.Listener = accept
		s.Log.Info(l.name+" has launched from "+scheme(l.TLS)+"://"+l.socket.Addr().String(),
			zap.String("domain", s.Keys.Domain()), zap.String("version", s.Version))
		group.Go(func() error { return serve.Run(ctx, l.Config) })
	}
	s.Notify("READY=1", "STATUS=Serving at "+s.listeners[0].socket.Addr().String())
	if err := process.ForgetStart(); err != nil {
		s.Log.Debug("what starting took stays in memory", zap.NamedError("err", err))
	}
	err := group.Wait()
	s.Notify("STOPPING=1")
	s.recordStop(ctx)
	return err
}

// recordStop records that nothing more is released. That the record cannot be
// made does not keep a KMS from ending: a start without a stop says as much.
func (s *kmsServer) recordStop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
	defer cancel()
	_, err := s.audit.Append(ctx, audit.Event{Kind: audit.Stop, Fields: s.processFields()})
	s.warnOf("recording the stop in the audit log", err)
}

// listener is one of the process's listeners.
type listener struct {
	// name is what it is called at start.
	name   string
	socket *socket
	serve.Config
}

// openSockets opens the sockets of the KMS.
func (s *kmsServer) openSockets(ctx context.Context) error {
	c := s.Config
	if s.bootstrap != nil && c.RPC.Port != 0 && c.RPC.Port == c.Core.BootstrapServer.Port {
		s.listeners = []listener{{name: "KMS", socket: s.bootstrap}}
	} else if err := s.openSocket(ctx, "KMS", c.RPC.Address, c.RPC.Port); err != nil {
		return err
	}
	if c.Core.Admin.Enabled {
		return s.openSocket(ctx, "Admin", c.Core.Admin.Address, c.Core.Admin.Port)
	}
	return nil
}

func (s *kmsServer) openSocket(ctx context.Context, name, address string, port uint16) error {
	l, err := newSocket(ctx, address, port)
	if err != nil {
		return err
	}
	s.opened = append(s.opened, l)
	s.listeners = append(s.listeners, listener{name: name, socket: l})
	return nil
}

// openListeners makes what answers at the sockets.
func (s *kmsServer) openListeners() error {
	if err := s.openPeers(); err != nil {
		return err
	}
	if err := s.openService(); err != nil {
		return err
	}
	handler, err := s.handler()
	if err != nil {
		return err
	}
	s.listeners[0].Config = s.listenerConfig(handler, s.peers, !s.plaintext())
	if !s.Config.Core.Admin.Enabled {
		return nil
	}
	if handler, err = s.adminHandler(); err != nil {
		return err
	}
	s.listeners[1].Config = s.listenerConfig(handler, s.adminPeers, s.Config.Core.Admin.WithTLS())
	return nil
}

func (s *kmsServer) listenerConfig(handler http.Handler, peers *ratls.Server, withTLS bool) serve.Config {
	c := serve.Config{Handler: handler, Limits: s.ConnectionLimits(), ConnContext: peers.ConnContext, Log: s.Log}
	if withTLS {
		c.TLS = peers.TLSConfig()
	}
	return c
}

func scheme(c *tls.Config) string {
	if c == nil {
		return "http"
	}
	return "https"
}

// rpcLeaf is the RPC certificate that is served: the key directory may have a
// newer one that is not recorded yet.
func (b *base) rpcLeaf() *x509.Certificate {
	if served, err := b.certificate.Get(nil); err == nil {
		return served.Leaf
	}
	return b.Keys.RPCCertificate().Leaf
}

// newRenewal reissues the RPC certificate, with the Evidence of its key.
func (b *base) newRenewal() serve.RenewConfig {
	evidence := node.NewCertificateEvidence(b.Node)
	return serve.RenewConfig{
		Issue: func(ctx context.Context) (tls.Certificate, error) {
			extensions, err := evidence.Extensions(ctx)
			if err != nil {
				return tls.Certificate{}, err
			}
			certificate, err := b.Keys.RenewRPC(ctx, extensions...)
			if err == nil {
				b.metrics.Certificate("rpc")
			}
			return certificate, err
		},
		Log: b.Log,
		Now: time.Now,
	}
}
