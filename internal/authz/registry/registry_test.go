package registry_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"teekms/internal/audit/audittest"
	"teekms/internal/authz"
	authzregistry "teekms/internal/authz/registry"
	"teekms/internal/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fill is n times b.
func fill(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

func text(n int, b byte) string { return hex.EncodeToString(fill(n, b)) }

func storeOf(rules ...registry.Rule) *audittest.Store {
	s := audittest.NewStore()
	state := audittest.State{Rules: map[registry.Rule]uint64{}, Revision: 1}
	for _, r := range rules {
		state.Rules[r] = 1
	}
	s.SetState(state)
	return s
}

func authorizer(t *testing.T, store registry.Store) *authzregistry.Authorizer {
	t.Helper()
	p, err := registry.New(registry.Config{Store: store})
	if err != nil {
		t.Fatal(err)
	}
	a, err := authzregistry.New(authzregistry.Config{Policy: p, Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// request is about a workload that rules allow as both.
func request(s authz.Subject) authz.Request {
	info := authz.BootInfo{AppID: fill(20, 1), ComposeHash: fill(32, 2), OSImageHash: fill(32, 3), TCBStatus: "OutOfDate", AdvisoryIDs: []string{"INTEL-SA-00001"}}
	copy(info.MRAggregated[:], fill(32, 4))
	copy(info.DeviceID[:], fill(32, 5))
	copy(info.MRSystem[:], fill(32, 6))
	return authz.Request{Subject: s, BootInfo: info}
}

func rules() []registry.Rule {
	return []registry.Rule{
		{Kind: registry.TCBStatus, Value: "OutOfDate"},
		{Kind: registry.Advisory, Value: "INTEL-SA-00001"},
		{Kind: registry.OSImage, Value: text(32, 3)},
		{Kind: registry.KMS, Value: text(32, 4)},
		{Kind: registry.KMSDevice, Value: text(32, 5)},
		{Kind: registry.App, Value: text(20, 1)},
		{Kind: registry.Compose, Subject: text(20, 1), Value: text(32, 2)},
		{Kind: registry.Device, Subject: text(20, 1), Value: text(32, 5)},
		{Kind: registry.Gateway, Value: text(20, 9)},
	}
}

func TestAuthorizeTellsTheWholeWorkload(t *testing.T) {
	tests := []struct {
		subject authz.Subject
		without registry.Kind
		want    authz.Decision
	}{
		{authz.App, "", authz.Decision{Allowed: true, GatewayAppID: text(20, 9)}},
		{authz.App, registry.Gateway, authz.Decision{Allowed: true}},
		{authz.App, registry.TCBStatus, authz.Decision{Reason: registry.ReasonTCBStatus}},
		{authz.App, registry.Advisory, authz.Decision{Reason: registry.ReasonAdvisory}},
		{authz.App, registry.OSImage, authz.Decision{Reason: registry.ReasonOSImage}},
		{authz.App, registry.App, authz.Decision{Reason: registry.ReasonApp}},
		{authz.App, registry.Compose, authz.Decision{Reason: registry.ReasonCompose}},
		{authz.App, registry.Device, authz.Decision{Reason: registry.ReasonDevice}},
		{authz.App, registry.KMS, authz.Decision{Allowed: true, GatewayAppID: text(20, 9)}},
		{authz.KMS, "", authz.Decision{Allowed: true}},
		{authz.KMS, registry.KMS, authz.Decision{Reason: registry.ReasonKMS}},
		{authz.KMS, registry.KMSDevice, authz.Decision{Reason: registry.ReasonKMSDevice}},
		{authz.KMS, registry.App, authz.Decision{Allowed: true}},
	}
	for _, tt := range tests {
		var kept []registry.Rule
		for _, r := range rules() {
			if r.Kind != tt.without {
				kept = append(kept, r)
			}
		}
		got, err := authorizer(t, storeOf(kept...)).Authorize(t.Context(), request(tt.subject))
		if err != nil || got != tt.want {
			t.Errorf("Authorize(%v) without %q = %+v, %v, want %+v", tt.subject, tt.without, got, err, tt.want)
		}
	}
}

func TestWithoutADatabaseTheAuthorityIsUnreachable(t *testing.T) {
	store := storeOf(rules()...)
	a := authorizer(t, store)
	cause := errors.New("no database")
	store.Break(cause)
	d, err := a.Authorize(t.Context(), request(authz.App))
	if !errors.Is(err, authz.ErrUnreachable) || !errors.Is(err, cause) || d != (authz.Decision{}) {
		t.Errorf("Authorize() = %+v, %v, want unreachable", d, err)
	}
	store.Break(nil)
	if d, err := a.Authorize(t.Context(), authz.Request{}); !errors.Is(err, authz.ErrUnreachable) || d.Allowed {
		t.Errorf("Authorize() of nobody = %+v, %v, want an error", d, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if d, err := a.Authorize(ctx, request(authz.App)); !errors.Is(err, context.Canceled) || d.Allowed {
		t.Errorf("Authorize() for a caller who left = %+v, %v, want %v", d, err, context.Canceled)
	}
}

func TestFactsTellTheGatewayOfASecondAgo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := storeOf(rules()...)
		a := authorizer(t, store)
		facts := func(when, want string) {
			t.Helper()
			if f, err := a.Facts(t.Context()); err != nil || f != (authz.Facts{GatewayAppID: want}) {
				t.Errorf("%s: Facts() = %+v, %v, want the gateway %q", when, f, err, want)
			}
		}
		facts("at first", text(20, 9))
		store.SetState(storeOf(registry.Rule{Kind: registry.Gateway, Value: registry.Any}).State())
		facts("at once", text(20, 9))
		time.Sleep(time.Second)
		facts("a second later", "any")
		store.Break(errors.New("no database"))
		time.Sleep(time.Second)
		facts("without a database", "any")
		store.Break(nil)
		store.SetState(audittest.State{})
		time.Sleep(time.Second)
		facts("without a gateway", "")
	})
}

func TestNewWantsItsParts(t *testing.T) {
	p, err := registry.New(registry.Config{Store: audittest.NewStore()})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []authzregistry.Config{{Log: zap.NewNop()}, {Policy: p}} {
		if _, err := authzregistry.New(c); err == nil {
			t.Errorf("New(%+v) = nil error, want a refusal", c)
		}
	}
}
