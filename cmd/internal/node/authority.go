package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"teekms/internal/authz"
	"teekms/internal/authz/dev"
	"teekms/internal/authz/webhook"
	"teekms/internal/config"
)

// errNoRegistry refuses an authority that a program does not have.
var errNoRegistry = errors.New(`core.auth_api.type: "registry" is in the database of the KMS, which this program does not open; ` +
	"dstack-kms does, and with an empty key directory it onboards too")

// errRegistryApart says that somebody asked for the registry where there is no
// database yet.
var errRegistryApart = errors.New("the registry is opened with the database")

// Authority returns the authority that core.auth_api names, unless that is the
// registry.
func (n *Node) Authority() (authz.Authorizer, error) {
	c := n.Config.Core.AuthAPI
	switch c.Type {
	case config.AuthDev:
		return dev.New(c.Dev.GatewayAppID), nil
	case config.AuthWebhook:
		return webhook.New(webhook.Config{
			URL: c.Webhook.URL, Timeout: c.Webhook.Timeout, Token: c.Webhook.Token, CAFile: c.Webhook.CAFile,
			UserAgent: "dstack-kms/" + n.Version, Log: n.Log, Now: time.Now,
		})
	case config.AuthEthereum:
		if n.ethereum == nil {
			return noEthereum{}, nil
		}
		return n.ethereum(c.Ethereum, n.Log)
	case config.AuthRegistry:
		return nil, errRegistryApart
	default:
		return nil, fmt.Errorf("core.auth_api.type: unknown type %q", c.Type)
	}
}

// noEthereum is the authority of a program that cannot read the chain. It decides
// nothing.
type noEthereum struct{}

// Authorize implements authz.Authorizer.
func (noEthereum) Authorize(context.Context, authz.Request) (authz.Decision, error) {
	return authz.Decision{}, fmt.Errorf("this program cannot read the contract of core.auth_api.ethereum; "+
		"dstack-kms can, and with an empty key directory it onboards too: %w", authz.ErrUnreachable)
}

// Facts implements authz.Authorizer.
func (noEthereum) Facts(context.Context) (authz.Facts, error) { return authz.Facts{}, nil }

// NewEthereum makes the authority that is a contract. Only programs that link a
// client of the chain have one.
type NewEthereum func(c config.AuthEthereumSection, log *zap.Logger) (authz.Authorizer, error)
