package main

import (
	"context"
	"crypto/tls"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"teekms/cmd/internal/node"
	"teekms/internal/ratls"
	"teekms/internal/serve"
)

// serveKMS serves the KMS service, and the Admin service where it is enabled,
// until ctx ends and the calls in flight are answered.
func serveKMS(ctx context.Context, n *node.Node) error {
	s, err := newServer(n)
	if err != nil {
		return err
	}
	s.warn()
	defer s.images.Close()
	ctx, stop := context.WithCancel(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer stop()
	listeners, err := s.listen(ctx)
	defer func() {
		for _, l := range listeners {
			_ = l.Listener.Close() // serve.Run has closed it, unless that was never reached
		}
	}()
	if err != nil {
		return err
	}
	// The addresses came first: a start that ends there has written nothing.
	renewal := s.renewal()
	if err := s.certificate.Renew(ctx, renewal); err != nil {
		return err
	}
	background.Go(func() { s.certificate.RenewLoop(ctx, renewal) })
	background.Go(func() { n.RefreshCollateral(ctx) })
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		n.Log.Info(l.name+" has launched from "+scheme(l.TLS)+"://"+l.Listener.Addr().String(),
			zap.String("domain", n.Keys.Domain()), zap.String("version", n.Version))
		group.Go(func() error { return serve.Run(ctx, l.Config) })
	}
	return group.Wait()
}

// listener is one of the process's listeners.
type listener struct {
	// name is what it is called at start.
	name string
	serve.Config
}

// listen opens the listeners. Those that it returns beside an error are open.
func (s *kmsServer) listen(ctx context.Context) ([]listener, error) {
	handler, err := s.handler(ctx)
	if err != nil {
		return nil, err
	}
	main, err := s.open(ctx, listenerConfig{
		name: "KMS", address: s.Config.RPC.Address, port: s.Config.RPC.Port, tls: !s.Config.RPC.InsecurePlaintext, peers: s.peers, handler: handler,
	})
	if err != nil || !s.Config.Core.Admin.Enabled {
		return main, err
	}
	if handler, err = s.adminHandler(ctx); err != nil {
		return main, err
	}
	c := s.Config.Core.Admin
	admin, err := s.open(ctx, listenerConfig{
		name: "Admin", address: c.Address, port: c.Port, tls: c.WithTLS(), peers: s.adminPeers, handler: handler,
	})
	return append(main, admin...), err
}

// listenerConfig says how a listener is opened.
type listenerConfig struct {
	name, address string
	port          uint16
	tls           bool
	peers         *ratls.Server
	handler       http.Handler
}

func (s *kmsServer) open(ctx context.Context, c listenerConfig) ([]listener, error) {
	l, err := node.Listen(ctx, c.address, c.port)
	if err != nil {
		return nil, err
	}
	config := serve.Config{
		Listener: l, Handler: c.handler, Limits: s.ConnectionLimits(), ConnContext: c.peers.ConnContext, Log: s.Log,
	}
	if c.tls {
		config.TLS = c.peers.TLSConfig()
	}
	return []listener{{name: c.name, Config: config}}, nil
}

func scheme(c *tls.Config) string {
	if c == nil {
		return "http"
	}
	return "https"
}

// renewal reissues the RPC certificate, with the Evidence of its key.
func (s *kmsServer) renewal() serve.RenewConfig {
	evidence := node.NewCertificateEvidence(s.Node)
	return serve.RenewConfig{
		Issue: func(ctx context.Context) (tls.Certificate, error) {
			extensions, err := evidence.Extensions(ctx)
			if err != nil {
				return tls.Certificate{}, err
			}
			certificate, err := s.Keys.RenewRPC(ctx, extensions...)
			if err == nil {
				s.metrics.Certificate("rpc")
			}
			return certificate, err
		},
		Log: s.Log,
		Now: time.Now,
	}
}
