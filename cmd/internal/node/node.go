package node

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"teekms/cmd/internal/buildinfo"
	"teekms/internal/attest/tdx"
	"teekms/internal/config"
	"teekms/internal/keys/keystore"
	"teekms/internal/keys/seal"
	"teekms/internal/observe"
	"teekms/internal/rpc"
	"teekms/internal/serve"
)

// Node is a server process: its configuration, and what was opened for it.
type Node struct {
	// Config is valid.
	Config *config.Config
	// Log is the process's logger.
	Log *zap.Logger
	// Keys is the key directory.
	Keys *keystore.Store
	// TrustRoot is what Evidence is checked against.
	TrustRoot *x509.Certificate
	// Metrics is the process's registry.
	Metrics *prometheus.Registry
	// Version is that of the binary.
	Version string

	attestation *attestation
	ethereum    NewEthereum
	registry    OpenRegistry
	// seals seal the key directory, nil where it is plain.
	seals *seal.Set
}

// open makes the logger, says what is unusual about the configuration, and
// opens attester, trust root and key directory. path is the configuration file.
func (p Program) open(ctx context.Context, path string, cfg *config.Config) (*Node, error) {
	if cfg.Core.AuthAPI.Type == config.AuthRegistry && p.Registry == nil {
		return nil, errNoRegistry
	}
	version := buildinfo.Version(p.Version)
	log, err := observe.NewLogger(observe.Config{Level: cfg.Log.Level, Format: cfg.Log.Format, Out: os.Stderr})
	if err != nil {
		return nil, err
	}
	for _, key := range cfg.Ineffective() {
		log.Warn("this setting has no effect", zap.String("key", key))
	}
	for _, key := range cfg.InsecureSettings() {
		log.Warn("this setting weakens security", zap.String("key", key))
	}
	a, err := openAttestation(cfg) //nolint:contextcheck // the simulator's lock has a deadline of its own
	if err != nil {
		return nil, err
	}
	n := &Node{
		Config: cfg, Log: log, TrustRoot: a.root, Version: version, attestation: a, ethereum: p.Ethereum, registry: p.Registry,
		Metrics: observe.NewRegistry(observe.Build{Version: version}),
	}
	log.Info("trust root for TDX Evidence", zap.String("sha256", hex.EncodeToString(n.TrustRootSHA256())),
		zap.String("subject", a.root.Subject.CommonName), zap.String("provider", cfg.Core.Attestation.Provider))
	if err := observe.RegisterTrustRoot(n.Metrics, [32]byte(n.TrustRootSHA256()), a.root.Equal(tdx.IntelRootCA())); err != nil {
		return nil, err
	}
	if err := n.openKeys(ctx, path); err != nil {
		return nil, err
	}
	return n, nil
}

// close flushes the log.
func (n *Node) close() { _ = n.Log.Sync() } // standard error cannot be synced everywhere

// TrustRootSHA256 is the digest of the trust root's DER (32 bytes).
func (n *Node) TrustRootSHA256() []byte {
	digest := sha256.Sum256(n.TrustRoot.Raw)
	return digest[:]
}

// AlreadyBootstrapped is what is said of a complete key directory where an
// empty one was expected.
const AlreadyBootstrapped = "Bootstrap already completed"

// CallLimits are the limits of one call, as configured.
func (n *Node) CallLimits() rpc.Config {
	l := n.Config.Core.Limits
	return rpc.Config{
		Log: n.Log, Registry: n.Metrics, ReadMaxBytes: int(l.BodyBytes), Timeout: l.WriteTimeout,
		Concurrency: int(l.Concurrency), Now: time.Now,
	}
}

// replySlack is what a connection has left to say that a call took too long.
const replySlack = 5 * time.Second

// ConnectionLimits are the limits of one listener, as configured.
func (n *Node) ConnectionLimits() serve.Limits {
	l := n.Config.Core.Limits
	return serve.Limits{
		Connections: int(l.Connections), Streams: int(l.Streams), HeaderBytes: int(l.HeaderBytes),
		HeaderTime: l.HeaderTimeout, ReadTime: l.ReadTimeout, WriteTime: l.WriteTimeout + replySlack,
		IdleTime: l.IdleTimeout, Grace: l.DrainTimeout,
	}
}

// MetricsHandler serves the registry where core.metrics.enabled says so, nil
// otherwise.
func (n *Node) MetricsHandler() http.Handler {
	if !n.Config.Core.Metrics.Enabled {
		return nil
	}
	return promhttp.HandlerFor(n.Metrics, promhttp.HandlerOpts{})
}

// Listen opens the address of a listener.
func Listen(ctx context.Context, address string, port uint16) (net.Listener, error) {
	return serve.Listen(ctx, net.JoinHostPort(address, strconv.Itoa(int(port))))
}

// errEmptyDirectory refuses to start without keys and without the leave to make
// them.
func errEmptyDirectory(dir string) error {
	return fmt.Errorf("the key directory %s is empty and core.onboard.enabled is false: "+
		"restore the keys, or set core.onboard.enabled = true to bootstrap", dir)
}
