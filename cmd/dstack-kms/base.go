package main

import (
	"fmt"
	"time"

	"teekms/cmd/internal/node"
	"teekms/internal/keys"
	"teekms/internal/observe"
	"teekms/internal/osimage"
	"teekms/internal/ratls"
	"teekms/internal/serve"
)

// base is what a KMS is made of whatever it is configured with later.
type base struct {
	*node.Node
	images    *osimage.Verifier
	appraiser *ratls.Appraiser
	metrics   *observe.KMS
	// certificate is the RPC certificate, renewal how it is made anew.
	certificate *serve.Certificate
	renewal     serve.RenewConfig
	// bootstrap is the socket of the configuration server, nil without one. The
	// KMS takes it over where it is to listen on the same port.
	bootstrap *socket
	// stopping is closed when this process was told to end.
	stopping <-chan struct{}
}

// newBase opens no listener and writes nothing.
func newBase(n *node.Node, stopping <-chan struct{}) (b *base, err error) {
	b = &base{Node: n, certificate: &serve.Certificate{}, stopping: stopping}
	if err := b.registerMetrics(); err != nil {
		return nil, err
	}
	b.renewal = b.newRenewal()
	if b.appraiser, err = n.NewAppraiser(b.metrics); err != nil {
		return nil, err
	}
	if b.images, err = newImages(n); err != nil {
		return nil, err
	}
	return b, nil
}

func (b *base) close() {
	b.images.Close()
	if b.bootstrap != nil {
		b.bootstrap.close()
	}
}

func (b *base) registerMetrics() (err error) {
	if b.metrics, err = observe.NewKMS(b.Metrics); err != nil {
		return err
	}
	root, err := keys.ParseCertificate(b.Keys.RootCAPEM())
	if err != nil {
		return fmt.Errorf("reading the root certificate: %w", err)
	}
	for name, notAfter := range map[string]func() time.Time{
		"root": func() time.Time { return root.NotAfter },
		"rpc":  func() time.Time { return b.rpcLeaf().NotAfter },
	} {
		if err := observe.RegisterCertificate(b.Metrics, name, notAfter); err != nil {
			return err
		}
	}
	return b.RegisterCollateral()
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
