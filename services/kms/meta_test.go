package kms_test

import (
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/authz"
)

// dial is a clock that tests turn.
type dial struct {
	mu sync.Mutex
	at time.Time
}

func (d *dial) now() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.at
}

func (d *dial) forward(by time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = d.at.Add(by)
}

// TestGetMetaFollowsTheFacts holds that the kept answer changes when the facts
// do, stays when they cannot be had, and never makes the call fail.
func TestGetMetaFollowsTheFacts(t *testing.T) {
	clock := &dial{at: time.Now()}
	w := newWorld(t, func(w *world) { w.config.Now = clock.now })
	contract := authz.Facts{GatewayAppID: "gateway-1", ContractAddress: "0x01", ChainID: 7, AppImplementation: "0x02", EthRPCURL: "https://secret.example"}
	with := func(f authz.Facts) *kmsv1.GetMetaResponse {
		m := proto.CloneOf(wantMeta(w))
		m.IsDev, m.AllowAnyUpgrade = false, false
		m.GatewayAppId, m.KmsContractAddress, m.ChainId, m.AppAuthImplementation = &f.GatewayAppID, &f.ContractAddress, &f.ChainID, &f.AppImplementation
		return m
	}
	moved := contract
	moved.ContractAddress = "0x03"
	steps := []struct {
		name  string
		facts authz.Facts
		err   error
		after time.Duration
		want  *kmsv1.GetMetaResponse
	}{
		{"nothing is known", authz.Facts{}, authz.ErrUnreachable, 0, with(authz.Facts{})},
		{"facts come", contract, nil, 0, with(contract)},
		{"facts change, but are not looked at", moved, nil, time.Second, with(contract)},
		{"facts have changed", moved, nil, 10 * time.Second, with(moved)},
		{"facts are gone", authz.Facts{}, errors.New("secret cause"), time.Minute, with(moved)},
		{"facts are back", contract, nil, 0, with(contract)},
	}
	client := w.client(t, nil)
	wire := codec(t)
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			w.authority.setFacts(s.facts, s.err)
			clock.forward(s.after)
			for _, protocol := range protocols() {
				for range 2 { // the second is the kept one
					got, end := invoke[kmsv1.GetMetaRequest, kmsv1.GetMetaResponse](t, client, w.url, protocol, "GetMeta", &kmsv1.GetMetaRequest{})
					end.expect(t, protocol, outcome{})
					if diff := cmp.Diff(s.want, got, protocmp.Transform()); diff != "" {
						t.Errorf("%s: GetMeta (-want +got):\n%s", protocol, diff)
					}
				}
			}
			want, err := wire.Marshal(s.want)
			if err != nil {
				t.Fatal(err)
			}
			if status, body := call(t, client, "GET", w.url+"/prpc/GetMeta", ""); status != http.StatusOK || string(body) != string(want) {
				t.Errorf("GET = %d %s, want 200 %s", status, body, want)
			}
		})
	}
}

func TestGetMetaFromSeveralGoroutines(t *testing.T) {
	clock := &dial{at: time.Now()}
	w := newWorld(t, func(w *world) { w.config.Now = clock.now })
	w.authority.setFacts(authz.Facts{GatewayAppID: "gateway-1"}, nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				clock.forward(time.Second)
				got, err := w.service.GetMeta(t.Context(), &kmsv1.GetMetaRequest{})
				if err != nil || got.GetGatewayAppId() != "gateway-1" {
					t.Errorf("GetMeta = %v, %v", got.GetGatewayAppId(), err)
				}
			}
		})
	}
	wg.Wait()
}
