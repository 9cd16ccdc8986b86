package registry_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/audit/audittest"
	"teekms/internal/registry"
)

// model is the order of decisions written down as plainly as can be: what is in
// the set is allowed, or what says any there.
type model map[registry.Rule]bool

func (m model) allows(k registry.Kind, subject, value string) bool {
	return m[registry.Rule{Kind: k, Subject: subject, Value: value}] || m[registry.Rule{Kind: k, Subject: subject, Value: "any"}]
}

func (m model) decide(w registry.Workload) registry.Decision {
	deny := func(reason string) registry.Decision { return registry.Decision{Reason: reason} }
	if !m.allows("tcb_status", "", w.TCBStatus) {
		return deny("TCB status is not allowed")
	}
	for _, a := range w.AdvisoryIDs {
		if !m.allows("advisory", "", a) {
			return deny("advisory ID is not allowed")
		}
	}
	if !m.allows("os_image", "", text(w.OSImageHash)) {
		return deny("OS image is not allowed")
	}
	if w.Subject == registry.SubjectKMS {
		switch {
		case !m.allows("kms", "", text(w.MRAggregated)):
			return deny("aggregated MR not allowed")
		case !m.allows("kms_device", "", text(w.DeviceID)):
			return deny("KMS is not allowed to boot on this device")
		}
		return registry.Decision{Allowed: true}
	}
	id := text(w.AppID)
	switch {
	case !m[registry.Rule{Kind: "app", Value: id}]:
		return deny("app not registered")
	case !m.allows("app_compose", id, text(w.ComposeHash)):
		return deny("compose hash not allowed")
	case !m.allows("app_device", id, text(w.DeviceID)):
		return deny("app is not allowed to boot on this device")
	}
	d := registry.Decision{Allowed: true}
	for r := range m {
		if r.Kind == "gateway" {
			d.GatewayAppID = r.Value
		}
	}
	return d
}

func (m model) apply(e registry.Edit) {
	drop := func(k registry.Kind, subject string) {
		for r := range m {
			if r.Kind == k && r.Subject == subject {
				delete(m, r)
			}
		}
	}
	switch e.Op {
	case registry.Add:
		if e.Rule.Kind == registry.Gateway {
			drop(registry.Gateway, "")
		}
		m[e.Rule] = true
	case registry.Remove:
		delete(m, e.Rule)
		if e.Rule.Kind == registry.App {
			drop(registry.Compose, e.Rule.Value)
			drop(registry.Device, e.Rule.Value)
		}
	case registry.RemoveAll:
		drop(e.Rule.Kind, e.Rule.Subject)
	}
}

// dice draw from a small world, in which most workloads are nearly allowed.
type dice struct{ *rand.Rand }

func (d dice) one() byte { return byte(1 + d.IntN(2)) }

func (d dice) rule() registry.Rule {
	kind := registry.Kinds()[d.IntN(len(registry.Kinds()))]
	r := registry.Rule{Kind: kind}
	if kind.HasSubject() {
		r.Subject = text(id(d.one()))
	}
	switch n := d.one(); kind {
	case registry.TCBStatus:
		r.Value = registry.TCBStatuses()[n-1]
	case registry.Advisory:
		r.Value = fmt.Sprintf("INTEL-SA-0000%d", n)
	case registry.App, registry.Gateway:
		r.Value = text(id(n))
	default:
		r.Value = text(hash(n))
	}
	if kind != registry.App && d.IntN(3) == 0 {
		r.Value = "any"
	}
	return r
}

func (d dice) edits() []registry.Edit {
	var edits []registry.Edit
	for range 1 + d.IntN(12) {
		e := registry.Edit{Op: registry.Add, Rule: d.rule()}
		switch n := d.IntN(20); {
		case n < 3:
			e.Op = registry.Remove
		case n == 3 && e.Rule.Kind != registry.App:
			e.Op, e.Rule.Value = registry.RemoveAll, ""
		}
		edits = append(edits, e)
	}
	return edits
}

func (d dice) workload() registry.Workload {
	w := registry.Workload{
		Subject: registry.SubjectApp, AppID: id(d.one()), ComposeHash: hash(d.one()), OSImageHash: hash(d.one()),
		MRAggregated: hash(d.one()), DeviceID: hash(d.one()), TCBStatus: registry.TCBStatuses()[d.IntN(2)],
	}
	if d.IntN(3) == 0 {
		w.Subject = registry.SubjectKMS
	}
	if d.IntN(2) == 0 {
		w.AdvisoryIDs = []string{"INTEL-SA-00001"}
	}
	return w
}

// TestTwoReplicasDecideByOneModel changes rules on either of two replicas, and
// asks either: both answer by all changes before.
func TestTwoReplicasDecideByOneModel(t *testing.T) {
	reasons := map[string]int{}
	for seed := range uint64(20) {
		d := dice{rand.New(rand.NewPCG(seed, 0))}
		store := audittest.NewStore()
		replicas := []*registry.Policy{replica(t, store), replica(t, store)}
		m, revision := model{}, uint64(0)
		for range 100 {
			edits := d.edits()
			r, err := replicas[d.IntN(2)].Update(t.Context(), registry.Change{Edits: edits})
			if revision++; err != nil || r.Revision != revision {
				t.Fatalf("Update() = %+v, %v, want revision %d", r, err, revision)
			}
			for _, e := range edits {
				m.apply(e)
			}
			for range 8 {
				w := d.workload()
				want := m.decide(w)
				want.Revision = revision
				got, err := replicas[d.IntN(2)].Decide(t.Context(), w)
				if err != nil || got != want {
					t.Fatalf("seed %d: Decide(%+v) = %+v, %v, want %+v", seed, w, got, err, want)
				}
				reasons[got.Reason]++
			}
		}
		got := model{}
		for r := range store.State().Rules {
			got[r] = true
		}
		if diff := cmp.Diff(m, got); diff != "" {
			t.Fatalf("seed %d: rules (-want +got)\n%s", seed, diff)
		}
		// The audit log leads to the same rules, of the same revisions.
		var log registry.Replay
		for _, record := range store.Records(t) {
			log.Apply(record.Edits, record.Revision)
		}
		replayed := map[registry.Rule]uint64{}
		for _, e := range log.Entries() {
			replayed[e.Rule] = e.Revision
		}
		if diff := cmp.Diff(store.State().Rules, replayed); diff != "" {
			t.Fatalf("seed %d: rules that the audit log leads to (-want +got)\n%s", seed, diff)
		}
	}
	if len(reasons) != 9 {
		t.Errorf("the world led to %v, want every outcome", reasons)
	}
}
