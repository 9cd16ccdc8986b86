package dev_test

import (
	"testing"

	"teekms/internal/authz"
	"teekms/internal/authz/dev"
)

func TestEverythingIsAllowed(t *testing.T) {
	var a authz.Authorizer = dev.New("any")
	for _, s := range []authz.Subject{authz.App, authz.KMS} {
		got, err := a.Authorize(t.Context(), authz.Request{Subject: s})
		if want := (authz.Decision{Allowed: true, GatewayAppID: "any"}); err != nil || got != want {
			t.Errorf("Authorize(%v) = %+v, %v, want %+v", s, got, err, want)
		}
	}
	facts, err := a.Facts(t.Context())
	if want := (authz.Facts{Dev: true, GatewayAppID: "any"}); err != nil || facts != want {
		t.Errorf("Facts() = %+v, %v, want %+v", facts, err, want)
	}
}
