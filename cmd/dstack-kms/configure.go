package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"go.uber.org/zap"

	"teekms/cmd/internal/node"
	"teekms/internal/pkcs12"
	"teekms/internal/serve"
	"teekms/internal/storage"
	"teekms/services/kms/provision"
)

// configure serves the configuration server until a start has succeeded, and
// returns the KMS of that start. It returns nil when ctx ended before.
func (b *base) configure(ctx context.Context) (*kmsServer, error) {
	c := b.Config.Core.BootstrapServer
	l, err := newSocket(ctx, b.Config.RPC.Address, c.Port)
	if err != nil {
		return nil, err
	}
	b.bootstrap = l
	// What the KMS needs of this machine it needs now: who configures it learns
	// that it cannot serve before there is anything to configure.
	if err := b.certificate.Renew(ctx, b.renewal); err != nil {
		return nil, err
	}
	certificate, attested, err := b.bootstrapCertificate(ctx)
	if err != nil {
		return nil, err
	}
	var ready *kmsServer // of the start that succeeded
	server, err := b.newProvision(attested, func(ctx context.Context, from provision.Settings) (warnings []string, err error) {
		ready, warnings, err = b.apply(ctx, from)
		return warnings, err
	})
	if err != nil {
		return nil, err
	}
	b.sayBootstrapServer(l, certificate.Leaf, attested)
	err = b.serveProvision(ctx, server, l, server.TLSConfig(certificate))
	server.Wait()
	select {
	case <-server.Done():
		if err != nil { // the start has been answered; somebody else was cut off
			b.Log.Warn("a call beside the start was cut off", zap.NamedError("err", err))
		}
	default:
		if err == nil {
			b.Log.Info("stopped before a configuration was given")
		}
		return nil, err
	}
	if ready.listeners[0].socket != l {
		l.close()
	}
	return ready, nil
}

// sayBootstrapServer says where the server is, what its certificate proves, and
// the pin that kmsctl bootstrap-start --pin-spki takes.
func (b *base) sayBootstrapServer(l *socket, leaf *x509.Certificate, attested bool) {
	kind := "plain self-signed, NOT attested"
	if attested {
		kind = "RA-TLS"
	}
	b.Log.Info("Bootstrap server has launched from https://"+l.Addr().String()+" ("+kind+")",
		zap.String("common_name", b.Config.Core.BootstrapServer.Name()), zap.String("spki_sha256", fingerprint(leaf.RawSubjectPublicKeyInfo)))
}

// serveProvision serves until a start has succeeded, or ctx ends, and every call
// in flight is answered.
func (b *base) serveProvision(ctx context.Context, server *provision.Server, l *socket, config *tls.Config) error {
	mount, err := server.Mount(b.CallLimits())
	if err != nil {
		return err
	}
	mount.Header, mount.Metrics = b.version(), b.MetricsHandler()
	handler, err := serve.NewMux(mount)
	if err != nil {
		return err
	}
	accept, err := l.turn(false)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		defer stop()
		select {
		case <-server.Done():
			b.Notify("STATUS=Configured, starting the KMS")
		case <-ctx.Done():
		}
	}()
	b.Notify("READY=1", "STATUS=Waiting for a configuration at "+l.Addr().String())
	return serve.Run(ctx, serve.Config{Listener: accept, Handler: handler, TLS: config, Limits: b.provisionLimits(), Log: b.Log})
}

// answerTime is what a start has left to be answered once it was tried.
const answerTime = 10 * time.Second

// applyTime bounds one try of the settings.
const applyTime = 100 * time.Second

func (b *base) provisionLimits() serve.Limits {
	limits := b.ConnectionLimits()
	limits.WriteTime = max(limits.WriteTime, applyTime+answerTime)
	limits.Connections = min(limits.Connections, provision.MaxConnections)
	limits.Streams = min(limits.Streams, provision.MaxStreams)
	return limits
}

// newProvision makes the configuration server and says who may use it.
func (b *base) newProvision(attested bool, apply func(context.Context, provision.Settings) ([]string, error)) (*provision.Server, error) {
	c := b.Config.Core.BootstrapServer
	authorities, err := readAuthorities(c.AuthorityCertFile)
	if err != nil {
		return nil, err
	}
	token, err := node.OneTimeToken("Bootstrap token", c.Token)
	if err != nil {
		return nil, err
	}
	defaults, err := b.defaults()
	if err != nil {
		return nil, err
	}
	dir, err := stateDir()
	if err != nil {
		dir = "" // relative paths are refused then
	}
	if token.Len() == 0 && authorities == nil {
		b.Log.Warn("WHOEVER REACHES THE BOOTSTRAP SERVER CAN CONFIGURE AND START THIS KMS: " +
			"set core.bootstrap_server.token_file or authority_cert_file")
	}
	return provision.New(provision.Config{
		Apply: apply, Defaults: defaults, StateDir: dir, Token: token, ClientCAs: authorities, Attested: attested,
		ApplyTimeout: applyTime, Now: time.Now, Log: b.Log,
	})
}

// defaults are what holds where nothing is posted. A database that nobody chose
// is none here.
func (b *base) defaults() (provision.Settings, error) {
	file, err := b.readPKCS12()
	if err != nil {
		return provision.Settings{}, err
	}
	out := provision.Settings{PKCS12: file, PKCS12Password: b.Config.RPC.TLS.PKCS12Password}
	out.Database = databaseOf(b.Config.Core.Database)
	if !b.Config.ChoosesDatabase() {
		out.Database = storage.Config{CAFile: out.Database.CAFile, InsecurePlaintext: out.Database.InsecurePlaintext}
		return out, nil
	}
	out.Database, err = fileDatabase(b.Node)
	return out, err
}

// apply tries the settings, and takes them over.
func (b *base) apply(ctx context.Context, from provision.Settings) (s *kmsServer, warnings []string, err error) {
	s, warnings, err = b.prepare(ctx, settings{
		database: from.Database, pkcs12: from.PKCS12, password: from.PKCS12Password, clear: from.ClearDatabase,
		by: "bootstrap server: " + from.By.String(),
	})
	if err == nil {
		if err = s.recordStart(ctx); err != nil {
			s.abandon(ctx)
		}
	}
	if err != nil {
		return nil, nil, refusal(err)
	}
	return s, warnings, nil
}

// refusal gives who configures the reason of an error: what is wrong with the
// settings in its own words, and what is wrong with this machine.
func refusal(err error) error {
	_, file := errors.AsType[*pkcs12.Error](err)
	if file || refusedDatabase(err) || errors.Is(err, storage.ErrUnavailable) {
		return err
	}
	return &provision.Refusal{Reason: err.Error(), Err: err}
}

// bootstrapCertificate makes the certificate of the configuration server, with
// Evidence where there is any to be had, and says which it is.
func (b *base) bootstrapCertificate(ctx context.Context) (tls.Certificate, bool, error) {
	c := b.Config.Core.BootstrapServer
	want := provision.CertificateConfig{
		CommonName: c.Name(), Names: b.names(), Lifetime: time.Duration(c.ExpirationDays) * 24 * time.Hour, Now: time.Now,
		Evidence: b.AttestKey,
	}
	attested := true
	certificate, err := provision.NewCertificate(ctx, want)
	if err != nil && c.EnsureRATLS {
		return tls.Certificate{}, false, fmt.Errorf("core.bootstrap_server.ensure_ra_tls: no Evidence for the certificate: %v", err) //nolint:errorlint // not what is said of a bootstrap
	}
	if err != nil {
		b.Log.Warn("no Evidence for the certificate of the bootstrap server", zap.NamedError("err", err))
		want.Evidence, attested = nil, false
		if certificate, err = provision.NewCertificate(ctx, want); err != nil {
			return tls.Certificate{}, false, err
		}
	}
	return certificate, attested, nil
}

// names are what this machine may be called by: the domain, its host name, and
// the address that it listens on.
func (b *base) names() []string {
	names := []string{b.Keys.Domain(), b.Config.RPC.Address}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return names
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			names = append(names, n.IP.String())
		}
	}
	return names
}

// maxAuthorities bounds core.bootstrap_server.authority_cert_file, in bytes.
const maxAuthorities = 1 << 20

// readAuthorities reads the CA certificates of those who may configure; nil where
// none are asked for.
func readAuthorities(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // nil asks for no certificate
	}
	const key = "core.bootstrap_server.authority_cert_file"
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	defer f.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(io.LimitReader(f, maxAuthorities))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: %s holds no certificate in PEM", key, path)
	}
	return pool, nil
}
