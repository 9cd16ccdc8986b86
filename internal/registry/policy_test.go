package registry_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/audit/audittest"
	"teekms/internal/registry"
)

func id(b byte) []byte   { return bytes.Repeat([]byte{b}, 20) }
func hash(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }
func text(b []byte) string {
	return hex.EncodeToString(b)
}

// rule is "kind value" or "kind subject value".
func rule(tb testing.TB, line string) registry.Rule {
	tb.Helper()
	var r registry.Rule
	switch f := strings.Fields(line); len(f) {
	case 2:
		r = registry.Rule{Kind: registry.Kind(f[0]), Value: f[1]}
	case 3:
		r = registry.Rule{Kind: registry.Kind(f[0]), Subject: f[1], Value: f[2]}
	default:
		tb.Fatalf("rule %q", line)
	}
	c, err := registry.Canonical(r)
	if err != nil {
		tb.Fatalf("rule %q: %v", line, err)
	}
	return c
}

// storeOf has exactly these rules.
func storeOf(tb testing.TB, lines ...string) *audittest.Store {
	tb.Helper()
	s := audittest.NewStore()
	state := audittest.State{Rules: map[registry.Rule]uint64{}, Revision: 7}
	for _, l := range lines {
		state.Rules[rule(tb, l)] = 7
	}
	s.SetState(state)
	return s
}

func policyOf(tb testing.TB, store registry.Store) *registry.Policy {
	tb.Helper()
	p, err := registry.New(registry.Config{Store: store})
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// full are rules that allow app and kms below, and nothing else.
func full() []string {
	a := text(id(1))
	return []string{
		"tcb_status UpToDate", "advisory INTEL-SA-00001", "os_image " + text(hash(2)),
		"kms " + text(hash(3)), "kms_device " + text(hash(4)),
		"app " + a, "app_compose " + a + " " + text(hash(5)), "app_device " + a + " " + text(hash(6)),
		"gateway " + text(id(9)),
	}
}

func app() registry.Workload {
	return registry.Workload{
		Subject: registry.SubjectApp, AppID: id(1), ComposeHash: hash(5), OSImageHash: hash(2), MRAggregated: hash(99), DeviceID: hash(6),
		TCBStatus: "UpToDate", AdvisoryIDs: []string{"INTEL-SA-00001"},
	}
}

func kms() registry.Workload {
	return registry.Workload{
		Subject: registry.SubjectKMS, AppID: id(1), ComposeHash: hash(5), OSImageHash: hash(2), MRAggregated: hash(3), DeviceID: hash(4),
		TCBStatus: "UpToDate",
	}
}

// without drops the rules of a kind.
func without(kind string, more ...string) []string {
	var out []string
	for _, l := range full() {
		if k, _, _ := strings.Cut(l, " "); k != kind {
			out = append(out, l)
		}
	}
	return append(out, more...)
}

func TestDecide(t *testing.T) {
	a := text(id(1))
	with := func(w registry.Workload, change func(*registry.Workload)) registry.Workload { change(&w); return w }
	tests := []struct {
		name   string
		rules  []string
		w      registry.Workload
		reason string
	}{
		{"an application that is all listed", full(), app(), ""},
		{"a KMS that is all listed", full(), kms(), ""},
		{"nothing is listed", nil, app(), "TCB status is not allowed"},
		{"nothing is listed for a KMS", nil, kms(), "TCB status is not allowed"},

		{"empty list of TCB statuses", without("tcb_status"), app(), "TCB status is not allowed"},
		{"another TCB status", full(), with(app(), func(w *registry.Workload) { w.TCBStatus = "OutOfDate" }), "TCB status is not allowed"},
		{"a TCB status in other case", full(), with(app(), func(w *registry.Workload) { w.TCBStatus = "uptodate" }), "TCB status is not allowed"},
		{"no TCB status", full(), with(app(), func(w *registry.Workload) { w.TCBStatus = "" }), "TCB status is not allowed"},
		{"a TCB status that says any", without("tcb_status", "tcb_status OutOfDate"), with(app(), func(w *registry.Workload) { w.TCBStatus = "any" }), "TCB status is not allowed"},
		{"any TCB status", without("tcb_status", "tcb_status any"), with(app(), func(w *registry.Workload) { w.TCBStatus = "Whatever" }), ""},

		{"empty list of advisories", without("advisory"), app(), "advisory ID is not allowed"},
		{"empty list of advisories, none on the platform", without("advisory"), with(app(), func(w *registry.Workload) { w.AdvisoryIDs = nil }), ""},
		{"one advisory of two", full(), with(app(), func(w *registry.Workload) { w.AdvisoryIDs = []string{"INTEL-SA-00001", "INTEL-SA-00002"} }), "advisory ID is not allowed"},
		{"an advisory of another form", full(), with(app(), func(w *registry.Workload) { w.AdvisoryIDs = []string{"intel-sa-00001"} }), "advisory ID is not allowed"},
		{"an advisory without a name", full(), with(app(), func(w *registry.Workload) { w.AdvisoryIDs = []string{""} }), "advisory ID is not allowed"},
		{"an advisory that says any", full(), with(app(), func(w *registry.Workload) { w.AdvisoryIDs = []string{"any"} }), "advisory ID is not allowed"},
		{"any advisory", without("advisory", "advisory any"), with(app(), func(w *registry.Workload) { w.AdvisoryIDs = []string{"X-1", "?"} }), ""},
		{"more advisories than are looked up", full(), with(app(), func(w *registry.Workload) {
			w.AdvisoryIDs = strings.Fields(strings.Repeat("INTEL-SA-00001 ", 1000))
		}), "advisory ID is not allowed"},
		{"any of many advisories", without("advisory", "advisory any"), with(app(), func(w *registry.Workload) {
			w.AdvisoryIDs = strings.Fields(strings.Repeat("INTEL-SA-00001 ", 1000))
		}), ""},

		{"empty list of OS images", without("os_image"), app(), "OS image is not allowed"},
		{"empty list of OS images for a KMS", without("os_image"), kms(), "OS image is not allowed"},
		{"another OS image", full(), with(app(), func(w *registry.Workload) { w.OSImageHash = hash(3) }), "OS image is not allowed"},
		{"no OS image", full(), with(app(), func(w *registry.Workload) { w.OSImageHash = nil }), "OS image is not allowed"},
		{"a short OS image hash", full(), with(app(), func(w *registry.Workload) { w.OSImageHash = hash(2)[:31] }), "OS image is not allowed"},
		{"any OS image", without("os_image", "os_image any"), with(app(), func(w *registry.Workload) { w.OSImageHash = nil }), ""},

		{"empty list of KMSs", without("kms"), kms(), "aggregated MR not allowed"},
		{"another KMS", full(), with(kms(), func(w *registry.Workload) { w.MRAggregated = hash(2) }), "aggregated MR not allowed"},
		{"any KMS", without("kms", "kms any"), with(kms(), func(w *registry.Workload) { w.MRAggregated = hash(2) }), ""},
		{"empty list of KMS devices", without("kms_device"), kms(), "KMS is not allowed to boot on this device"},
		{"a KMS on an application's device", full(), with(kms(), func(w *registry.Workload) { w.DeviceID = hash(6) }), "KMS is not allowed to boot on this device"},
		{"a KMS on any device", without("kms_device", "kms_device any"), with(kms(), func(w *registry.Workload) { w.DeviceID = hash(8) }), ""},

		{"empty list of applications", without("app"), app(), "app not registered"},
		{"another application", full(), with(app(), func(w *registry.Workload) { w.AppID = id(2) }), "app not registered"},
		{"an application without id", full(), with(app(), func(w *registry.Workload) { w.AppID = nil }), "app not registered"},
		{"an application with a long id", full(), with(app(), func(w *registry.Workload) { w.AppID = append(id(1), 1) }), "app not registered"},
		{"empty list of compose hashes", without("app_compose"), app(), "compose hash not allowed"},
		{"another compose hash", full(), with(app(), func(w *registry.Workload) { w.ComposeHash = hash(6) }), "compose hash not allowed"},
		{"a compose hash of another application", without("app_compose", "app_compose "+text(id(2))+" "+text(hash(5))), app(), "compose hash not allowed"},
		{"any compose hash of another application", without("app_compose", "app_compose "+text(id(2))+" any"), app(), "compose hash not allowed"},
		{"any compose hash", without("app_compose", "app_compose "+a+" any"), with(app(), func(w *registry.Workload) { w.ComposeHash = hash(6) }), ""},
		{"empty list of devices", without("app_device"), app(), "app is not allowed to boot on this device"},
		{"a device of KMSs", full(), with(app(), func(w *registry.Workload) { w.DeviceID = hash(4) }), "app is not allowed to boot on this device"},
		{"any device of KMSs", without("app_device", "kms_device any"), app(), "app is not allowed to boot on this device"},
		{"any device", without("app_device", "app_device "+a+" any"), with(app(), func(w *registry.Workload) { w.DeviceID = nil }), ""},

		{"the first that fails decides", nil, with(app(), func(w *registry.Workload) { w.AppID = nil }), "TCB status is not allowed"},
		{"image before application", without("os_image", "tcb_status UpToDate"), with(app(), func(w *registry.Workload) { w.AppID = id(2) }), "OS image is not allowed"},
		{"application before compose hash", full(), with(app(), func(w *registry.Workload) { w.AppID, w.ComposeHash = id(2), nil }), "app not registered"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := policyOf(t, storeOf(t, tt.rules...))
			got, err := p.Decide(t.Context(), tt.w)
			want := registry.Decision{Allowed: tt.reason == "", Reason: tt.reason, Revision: 7}
			if want.Allowed && tt.w.Subject == registry.SubjectApp {
				want.GatewayAppID = text(id(9))
			}
			if err != nil || got != want {
				t.Errorf("Decide() = %+v, %v, want %+v", got, err, want)
			}
			e, err := p.Explain(t.Context(), tt.w)
			if err != nil || e.Decision != want {
				t.Errorf("Explain() = %+v, %v, want the same decision", e.Decision, err)
			}
			// The reason is that of the first check that failed.
			first := ""
			for _, c := range e.Checks {
				if c.Passed != (c.Reason == "") {
					t.Errorf("Explain() = %+v, want a reason where it failed alone", c)
				}
				if !c.Passed && first == "" {
					first = c.Reason
				}
			}
			if first != tt.reason {
				t.Errorf("Explain() fails first with %q, want %q", first, tt.reason)
			}
		})
	}
}

func TestExplainShowsWhatIsWantedAndSeen(t *testing.T) {
	a := text(id(1))
	var many []string
	for i := range 12 {
		many = append(many, "os_image "+text(hash(byte(0x10+i))))
	}
	w := app()
	w.TCBStatus, w.AdvisoryIDs, w.OSImageHash, w.DeviceID = "OutOfDate", nil, hash(2), hash(7)
	p := policyOf(t, storeOf(t, append(many, "tcb_status UpToDate", "app "+a, "app_device "+a+" any")...))
	got, err := p.Explain(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	images := make([]string, 8)
	for i := range images {
		images[i] = text(hash(byte(0x10 + i)))
	}
	want := registry.Explanation{
		Decision: registry.Decision{Reason: "TCB status is not allowed", Revision: 7},
		Checks: []registry.Check{
			{Kind: registry.TCBStatus, Wanted: "UpToDate", Seen: "OutOfDate", Reason: "TCB status is not allowed"},
			{Kind: registry.Advisory, Wanted: "nothing: the platform has no advisories", Seen: "none", Passed: true},
			{Kind: registry.OSImage, Wanted: strings.Join(images, " or ") + " or one of more", Seen: text(hash(2)), Reason: "OS image is not allowed"},
			{Kind: registry.App, Wanted: a, Seen: a, Passed: true},
			{Kind: registry.Compose, Wanted: "nothing is allowed: the list is empty", Seen: text(hash(5)), Reason: "compose hash not allowed"},
			{Kind: registry.Device, Wanted: "any", Seen: text(hash(7)), Passed: true},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Explain() (-want +got)\n%s", diff)
	}
	w.AppID = nil
	if got, err = p.Explain(t.Context(), w); err != nil || got.Checks[3].Wanted != "an application that is registered" ||
		got.Checks[5].Wanted != "nothing is allowed: there is no application id" {
		t.Errorf("Explain() = %+v, %v, want it to say that there is no application", got.Checks, err)
	}
}

// counting counts the questions to a store.
type counting struct {
	registry.Store
	matches, lists int
}

func (c *counting) Match(ctx context.Context, rules []registry.Rule) ([]bool, uint64, error) {
	c.matches++
	return c.Store.Match(ctx, rules)
}

func (c *counting) List(ctx context.Context, q registry.Query) ([]registry.Entry, error) {
	c.lists++
	return c.Store.List(ctx, q)
}

func TestADecisionIsOneQuestion(t *testing.T) {
	for name, rules := range map[string][]string{"a gateway": full(), "no gateway": without("gateway")} {
		t.Run(name, func(t *testing.T) {
			inner := storeOf(t, rules...)
			store := &counting{Store: inner}
			p := policyOf(t, store)
			for range 2 {
				for _, w := range []registry.Workload{app(), app(), app(), kms()} {
					if d, err := p.Decide(t.Context(), w); err != nil || !d.Allowed {
						t.Fatalf("Decide() = %+v, %v, want it allowed", d, err)
					}
				}
				state := inner.State()
				state.Revision++
				inner.SetState(state)
			}
			// The gateway is asked for once, and confirmed after; that there is
			// none is asked for once in each revision.
			want := map[string]int{"a gateway": 1, "no gateway": 2}[name]
			if store.matches != 8 || store.lists != want {
				t.Errorf("8 decisions are %d + %d questions, want 8 + %d", store.matches, store.lists, want)
			}
		})
	}
}

// A change works with the next decision, also of a policy that did not make it.
func TestChangesWorkAtOnceOnEveryReplica(t *testing.T) {
	store := audittest.NewStore()
	one, two := replica(t, store), replica(t, store)
	decide := func(p *registry.Policy, allowed bool, reason, gateway string) {
		t.Helper()
		d, err := p.Decide(t.Context(), app())
		if err != nil || d.Allowed != allowed || d.Reason != reason || d.GatewayAppID != gateway {
			t.Errorf("Decide() = %+v, %v, want %t, %q, gateway %q", d, err, allowed, reason, gateway)
		}
	}
	edit := func(p *registry.Policy, op registry.Op, line string) {
		t.Helper()
		if _, err := p.Update(t.Context(), registry.Change{Edits: []registry.Edit{{Op: op, Rule: rule(t, line)}}}); err != nil {
			t.Fatalf("Update() = %v", err)
		}
	}
	for _, l := range without("gateway") {
		edit(one, registry.Add, l)
	}
	decide(one, true, "", "")
	decide(two, true, "", "")
	edit(one, registry.Add, "gateway any")
	decide(one, true, "", "any")
	decide(two, true, "", "any")
	edit(two, registry.Add, "gateway "+text(id(9)))
	decide(one, true, "", text(id(9)))
	edit(one, registry.Remove, "gateway "+text(id(9)))
	decide(one, true, "", "")
	decide(two, true, "", "")
	edit(two, registry.Remove, "os_image "+text(hash(2)))
	decide(one, false, "OS image is not allowed", "")
	edit(one, registry.Add, "os_image "+text(hash(2)))
	edit(one, registry.Remove, "app "+text(id(1)))
	decide(two, false, "app not registered", "")
	// What was removed with its rules comes back without them.
	edit(two, registry.Add, "app "+text(id(1)))
	decide(one, false, "compose hash not allowed", "")
}

func TestWithoutADatabaseNobodyDecides(t *testing.T) {
	store := storeOf(t, full()...)
	p := policyOf(t, store)
	if d, err := p.Decide(t.Context(), app()); err != nil || !d.Allowed {
		t.Fatalf("Decide() = %+v, %v, want it allowed", d, err)
	}
	broken := errors.New("no database")
	store.Break(broken)
	if d, err := p.Decide(t.Context(), app()); !errors.Is(err, broken) || d != (registry.Decision{}) {
		t.Errorf("Decide() = %+v, %v, want no decision and %v", d, err, broken)
	}
	if _, err := p.Explain(t.Context(), app()); !errors.Is(err, broken) {
		t.Errorf("Explain() = %v, want %v", err, broken)
	}
	if _, err := p.Gateway(t.Context()); !errors.Is(err, broken) {
		t.Errorf("Gateway() = %v, want %v", err, broken)
	}
	if _, err := p.Revision(t.Context()); !errors.Is(err, broken) {
		t.Errorf("Revision() = %v, want %v", err, broken)
	}
	if _, err := p.List(t.Context(), registry.Query{Kind: registry.App}); !errors.Is(err, broken) {
		t.Errorf("List() = %v, want %v", err, broken)
	}
	store.Break(nil)
	for _, w := range []registry.Workload{{}, {Subject: "KMS"}} {
		if d, err := p.Decide(t.Context(), w); !errors.Is(err, registry.ErrSubject) || d.Allowed {
			t.Errorf("Decide(%q) = %+v, %v, want %v", w.Subject, d, err, registry.ErrSubject)
		}
	}
}

// short answers fewer questions than were asked.
type short struct{ registry.Store }

func (s short) Match(ctx context.Context, rules []registry.Rule) ([]bool, uint64, error) {
	return s.Store.Match(ctx, rules[1:])
}

func TestAStoreThatAnswersWronglyDecidesNothing(t *testing.T) {
	if d, err := policyOf(t, short{storeOf(t, full()...)}).Decide(t.Context(), app()); err == nil || d.Allowed {
		t.Errorf("Decide() = %+v, %v, want an error", d, err)
	}
	two := storeOf(t, append(full(), "gateway any")...)
	if d, err := policyOf(t, two).Decide(t.Context(), app()); !errors.Is(err, registry.ErrGateways) || d.Allowed {
		t.Errorf("Decide() = %+v, %v, want %v", d, err, registry.ErrGateways)
	}
}

func TestNewNeedsAStore(t *testing.T) {
	if _, err := registry.New(registry.Config{}); err == nil || err.Error() != "making a registry: Store is required" {
		t.Errorf("New() = %v, want that Store is required", err)
	}
}

// BenchmarkDecide shows that the number of applications does not matter.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 10_000, 1_000_000} {
		b.Run(fmt.Sprintf("apps=%d", n), func(b *testing.B) {
			state := audittest.State{Rules: map[registry.Rule]uint64{}, Revision: 1}
			for _, l := range full() {
				state.Rules[rule(b, l)] = 1
			}
			for i := range n {
				state.Rules[registry.Rule{Kind: registry.App, Value: fmt.Sprintf("%040x", i)}] = 1
			}
			store := audittest.NewStore()
			store.SetState(state)
			p := policyOf(b, store)
			w := app()
			for b.Loop() {
				if d, err := p.Decide(b.Context(), w); err != nil || !d.Allowed {
					b.Fatalf("Decide() = %+v, %v", d, err)
				}
			}
		})
	}
}
