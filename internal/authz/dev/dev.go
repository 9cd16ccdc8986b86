// Package dev is the authority of development machines: it allows everything.
// It protects nothing; GetMeta says that it is on (docs/authz.md#dev).
package dev

import (
	"context"

	"teekms/internal/authz"
)

// Authorizer allows everything.
type Authorizer struct{ gatewayAppID string }

// New returns an authority that allows everything and gives every application
// this gateway, "any" for every one.
func New(gatewayAppID string) *Authorizer {
	return &Authorizer{gatewayAppID: gatewayAppID}
}

// Authorize allows.
func (a *Authorizer) Authorize(context.Context, authz.Request) (authz.Decision, error) {
	return authz.Decision{Allowed: true, GatewayAppID: a.gatewayAppID}, nil
}

// Facts returns the gateway, and that everything is allowed.
func (a *Authorizer) Facts(context.Context) (authz.Facts, error) {
	return authz.Facts{Dev: true, GatewayAppID: a.gatewayAppID}, nil
}
