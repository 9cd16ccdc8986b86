package node

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"go.uber.org/zap"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/authz"
	"teekms/internal/config"
	"teekms/internal/keys"
	"teekms/internal/serve"
	"teekms/services/onboard"
)

// What an Onboard call may take beyond its quotes: a connection to the peer and
// the peer's answers, then the commit.
const (
	peerTime    = time.Minute
	attestSlack = 15 * time.Second
)

// Onboard fills the empty key directory: by itself where the configuration
// names a domain, else by serving the onboarding service until Finish. It
// returns nil when the directory is complete, or when ctx ended before that.
func (n *Node) Onboard(ctx context.Context) error {
	c := n.Config.Core.Onboard
	if !c.Enabled {
		return errEmptyDirectory(n.Config.Core.CertDir)
	}
	n.Log.Info("Starting KMS in bootstrap mode")
	n.Log.Info("Bootstrap required - keys not found")
	if err := n.rehearse(ctx); err != nil {
		return err
	}
	defer n.giveBack()
	token, err := OneTimeToken("Setup token", c.SetupToken)
	if err != nil {
		return err
	}
	who, err := n.judges()
	if err != nil {
		return err
	}
	service, err := onboard.New(onboard.Config{
		Authorizer: who.authority, Self: who.self, Receive: who.receive,
		Store: n.Keys, Attester: n.attestation.attester, Provider: n.attestation.provider, Verifier: n.attestation.verifier,
		SetupToken: token, SiteName: n.Config.Core.SiteName, Version: n.Version, InsecureSettings: n.Config.InsecureSettings(),
		PeerTimeout: peerTime, AttestTimeout: n.Config.Core.Attestation.Timeout, Now: time.Now, Log: n.Log,
	})
	if err != nil {
		return err
	}
	defer service.Wait()
	if c.AutoBootstrapDomain != "" {
		return n.autoBootstrap(ctx, service)
	}
	return n.serveOnboarding(ctx, service)
}

// judges are who decides during onboarding.
type judges struct {
	authority authz.Authorizer
	self      func(context.Context) (authz.BootInfo, error)
	receive   func(context.Context, onboard.Received) error
}

// judges returns those that the configuration names: none where it names no
// authority.
func (n *Node) judges() (j judges, err error) {
	c := n.Config.Core
	// The development authority has nothing to ask; without quotes there is
	// nothing to describe, which is a weakening that was told at start.
	if c.EnforceSelfAuthorization && c.AuthAPI.Type != config.AuthDev && n.attestation.attester != nil {
		j.self = n.Self
	}
	switch {
	case !n.Config.Names("core.auth_api"):
	case c.AuthAPI.Type == config.AuthRegistry:
		n.Log.Info("the registry belongs to root keys that do not exist yet: a bootstrap does not ask it, releases do")
		j.receive = receiver{Node: n, self: j.self}.receive
	default:
		j.authority, err = n.Authority()
	}
	return j, err
}

// autoBootstrap bootstraps for the configured domain. A signal does not end a
// bootstrap once begun: whether it succeeded is what counts.
func (n *Node) autoBootstrap(ctx context.Context, service *onboard.Service) error {
	_, err := service.Bootstrap(ctx, &onboardv1.BootstrapRequest{Domain: n.Config.Core.Onboard.AutoBootstrapDomain})
	if err != nil && ctx.Err() != nil {
		service.Wait()
		if n.Keys.Complete() {
			return nil
		}
	}
	if errors.Is(err, onboard.ErrAlreadyBootstrapped) {
		n.Log.Info(AlreadyBootstrapped, zap.String("by", "another process"))
		return nil
	}
	return err
}

// serveOnboarding serves until Finish was answered or ctx ends.
func (n *Node) serveOnboarding(ctx context.Context, service *onboard.Service) error {
	c := n.Config.Core.Onboard
	n.Log.Info("Starting onboarding service")
	calls, connections := n.CallLimits(), n.ConnectionLimits()
	calls.Timeout = max(calls.Timeout, n.Config.Core.Attestation.Timeout+2*peerTime+attestSlack)
	connections.WriteTime = max(connections.WriteTime, calls.Timeout+replySlack)
	mount, err := service.Mount(calls)
	if err != nil {
		return err
	}
	mount.Metrics = n.MetricsHandler()
	handler, err := serve.NewMux(mount)
	if err != nil {
		return err
	}
	listener, err := Listen(ctx, c.Address, c.Port)
	if err != nil {
		return err
	}
	if c.SetupToken.Len() == 0 && !loopback(listener.Addr()) {
		n.Log.Warn("whoever reaches this address can bootstrap this KMS: set core.onboard.setup_token, or listen on loopback",
			zap.Stringer("address", listener.Addr()))
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		defer stop()
		select {
		case <-service.Finished():
		case <-ctx.Done():
		}
	}()
	n.Log.Info("Onboarding service has launched from http://" + listener.Addr().String())
	n.Notify("READY=1", "STATUS=Waiting for setup at "+listener.Addr().String())
	err = serve.Run(ctx, serve.Config{Listener: listener, Handler: handler, Limits: connections, Log: n.Log})
	select {
	case <-service.Finished():
	default:
		return err
	}
	if err != nil { // no caller can make a finished setup a failure
		n.Log.Warn("setup is finished, a call beside it was cut off", zap.NamedError("err", err))
	}
	return nil
}

// OneTimeToken returns the configured token; "auto" makes one for this process
// and prints it by its name on standard error, not through the logger, whose lines
// are kept.
func OneTimeToken(name string, configured keys.Secret) (keys.Secret, error) {
	if !configured.Equal(keys.NewSecret([]byte(config.SetupTokenAuto))) {
		return configured, nil
	}
	raw := make([]byte, 24)
	if _, err := rand.Read(raw); err != nil {
		return keys.Secret{}, fmt.Errorf("making a token: %w", err)
	}
	token := base64.RawURLEncoding.EncodeToString(raw)
	if _, err := fmt.Fprintf(os.Stderr, "%s: %s\n", name, token); err != nil {
		return keys.Secret{}, fmt.Errorf("printing the token: %w", err)
	}
	return keys.NewSecret([]byte(token)), nil
}

// loopback says whether an address is reachable from this machine alone.
func loopback(a net.Addr) bool {
	ap, err := netip.ParseAddrPort(a.String())
	return err == nil && ap.Addr().Unmap().IsLoopback()
}
