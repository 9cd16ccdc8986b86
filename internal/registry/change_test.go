package registry_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/audit"
	"teekms/internal/audit/audittest"
	"teekms/internal/registry"
)

// recorded commits changes to an audit log.
type recorded struct{ *audit.Log }

func (r recorded) CommitChange(ctx context.Context, c registry.Change) (registry.Receipt, error) {
	receipt, err := r.Append(ctx, audit.Event{Kind: audit.RegistryChange, Edits: c.Edits, ExpectedRevision: c.ExpectedRevision})
	return registry.Receipt{Revision: receipt.Revision, Seq: receipt.Seq}, err
}

// replica is a policy with a log of its own on a store that others use too.
func replica(tb testing.TB, store *audittest.Store) *registry.Policy {
	tb.Helper()
	p, err := registry.New(registry.Config{Store: store, Committer: recorded{audittest.NewLog(tb, store)}})
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func TestCanonical(t *testing.T) {
	a, h := strings.Repeat("aB", 20), strings.Repeat("Cd", 32)
	la, lh := strings.ToLower(a), strings.ToLower(h)
	tests := []struct {
		name          string
		kind          registry.Kind
		subject, text string
		value, err    string
	}{
		{"upper case", registry.OSImage, "", h, lh, ""},
		{"with 0x", registry.KMS, "", "0x" + h, lh, ""},
		{"with 0X", registry.KMSDevice, "", "0X" + h, lh, ""},
		{"an application", registry.App, "", "0x" + a, la, ""},
		{"a compose hash", registry.Compose, "0x" + a, h, lh, ""},
		{"a device", registry.Device, a, h, lh, ""},
		{"any device", registry.Device, a, "any", "any", ""},
		{"a gateway", registry.Gateway, "", "0x" + a, la, ""},
		{"any gateway", registry.Gateway, "", "any", "any", ""},
		{"a status", registry.TCBStatus, "", "OutOfDate", "OutOfDate", ""},
		{"an advisory", registry.Advisory, "", "INTEL-SA-00837", "INTEL-SA-00837", ""},

		{"no kind", "", "", h, "", `kind: "" is none of advisory, app, app_compose, app_device, gateway, kms, kms_device, os_image, tcb_status`},
		{"a kind in upper case", "OS_IMAGE", "", h, "", `kind: "OS_IMAGE" is none of`},
		{"a long kind", registry.Kind(strings.Repeat("k", 1000)), "", h, "", `kkkk"... is none of`},
		{"a short hash", registry.OSImage, "", h[2:], "", "value: 62 characters, want 64 hexadecimal digits"},
		{"a long hash", registry.OSImage, "", h + "00", "", "value: 66 characters, want 64"},
		{"0x twice", registry.OSImage, "", "0x0x" + h[2:], "", "value: want 64 hexadecimal digits"},
		{"no hexadecimal", registry.OSImage, "", strings.Repeat("g", 64), "", "value: want 64 hexadecimal digits"},
		{"spaces", registry.OSImage, "", " " + h[1:], "", "value: want 64 hexadecimal digits"},
		{"other digits", registry.OSImage, "", strings.Repeat("０", 64), "", "value: 192 characters, want 64"},
		{"nothing", registry.OSImage, "", "", "", "value: 0 characters, want 64"},
		{"any application", registry.App, "", "any", "", "value: an application has to be named"},
		{"Any in upper case", registry.OSImage, "", "ANY", "", "value: 3 characters, want 64"},
		{"a subject that is none", registry.Compose, "any", h, "", "subject: 3 characters, want 40"},
		{"no subject", registry.Device, "", h, "", "subject: 0 characters, want 40"},
		{"a subject too many", registry.OSImage, a, h, "", "subject: rules of this kind have none"},
		{"a status in other case", registry.TCBStatus, "", "uptodate", "", `value: "uptodate" is none of UpToDate, `},
		{"Revoked", registry.TCBStatus, "", "Revoked", "", "value: Revoked cannot be allowed"},
		{"an advisory in lower case", registry.Advisory, "", "intel-sa-00837", "", "is not of the form INTEL-SA-00837"},
		{"an advisory of one word", registry.Advisory, "", "INTEL", "", "is not of the form"},
		{"an advisory that ends early", registry.Advisory, "", "INTEL-SA-", "", "is not of the form"},
		{"an advisory with a null", registry.Advisory, "", "INTEL-SA-\x00", "", `"INTEL-SA-\x00" is not of the form`},
		{"a long advisory", registry.Advisory, "", "INTEL-" + strings.Repeat("1", 64), "", "is not of the form"},
		{"not UTF-8", registry.Advisory, "", "INTEL-\xff", "", `"INTEL-\xff" is not of the form`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := registry.Canonical(registry.Rule{Kind: tt.kind, Subject: tt.subject, Value: tt.text})
			want := registry.Rule{}
			if tt.err == "" {
				want = registry.Rule{Kind: tt.kind, Value: tt.value}
				if tt.subject != "" {
					want.Subject = la
				}
			}
			if got != want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Canonical() = %+v, %v, want %+v, %q", got, err, want, tt.err)
			}
			if err == nil {
				if again, err := registry.Canonical(got); again != got || err != nil {
					t.Errorf("Canonical(%+v) = %+v, %v, want it unchanged", got, again, err)
				}
			}
		})
	}
}

func TestKindsAreSorted(t *testing.T) {
	for i, k := range registry.Kinds() {
		if !k.Valid() || i > 0 && registry.Kinds()[i-1] >= k {
			t.Errorf("Kinds()[%d] = %s, want valid kinds in order", i, k)
		}
	}
}

// lines are edits as text.
func lines(edits []registry.Edit) []string {
	var out []string
	for _, e := range edits {
		out = append(out, strings.TrimSpace(strings.Join(strings.Fields(fmt.Sprint(e.Op, " ", e.Rule.Kind, " ", e.Rule.Subject, " ", e.Rule.Value)), " ")))
	}
	return out
}

func TestNormalize(t *testing.T) {
	a, h := text(id(1)), text(hash(2))
	tests := []struct {
		name  string
		edits []registry.Edit
		want  []string
		err   string
	}{
		{"canonical form", []registry.Edit{{Op: registry.Add, Rule: registry.Rule{Kind: registry.OSImage, Value: "0x" + strings.ToUpper(h)}}}, []string{"add os_image " + h}, ""},
		{"a gateway takes the place of the old one", []registry.Edit{{Op: registry.Add, Rule: registry.Rule{Kind: registry.Gateway, Value: "any"}}}, []string{"remove_all gateway", "add gateway any"}, ""},
		{
			"an application goes with its rules",
			[]registry.Edit{{Op: registry.Remove, Rule: registry.Rule{Kind: registry.App, Value: a}}},
			[]string{"remove app " + a, "remove_all app_compose " + a, "remove_all app_device " + a},
			"",
		},
		{
			"the same twice", []registry.Edit{
				{Op: registry.Remove, Rule: registry.Rule{Kind: registry.OSImage, Value: h}},
				{Op: registry.RemoveAll, Rule: registry.Rule{Kind: registry.OSImage}},
				{Op: registry.Remove, Rule: registry.Rule{Kind: registry.OSImage, Value: "0x" + h}},
				{Op: registry.Add, Rule: registry.Rule{Kind: registry.OSImage, Value: h}},
				{Op: registry.Remove, Rule: registry.Rule{Kind: registry.OSImage, Value: h}},
			}, []string{"remove os_image " + h, "remove_all os_image", "add os_image " + h, "remove os_image " + h}, "",
		},
		{"no operation", []registry.Edit{{Rule: registry.Rule{Kind: registry.OSImage, Value: h}}}, nil, `edit 0: op: "" is none of add, remove, remove_all`},
		{"a wrong value", []registry.Edit{{Op: registry.Remove, Rule: registry.Rule{Kind: registry.OSImage, Value: h}}, {Op: registry.Add, Rule: registry.Rule{Kind: registry.OSImage}}}, nil, "edit 1: value: 0 characters"},
		{"all applications", []registry.Edit{{Op: registry.RemoveAll, Rule: registry.Rule{Kind: registry.App}}}, nil, "edit 0: kind: applications are removed one by one"},
		{"all of no kind", []registry.Edit{{Op: registry.RemoveAll}}, nil, `edit 0: kind: "" is none of`},
		{"all with a value", []registry.Edit{{Op: registry.RemoveAll, Rule: registry.Rule{Kind: registry.OSImage, Value: h}}}, nil, "edit 0: value: remove_all has none"},
		{"all of nobody", []registry.Edit{{Op: registry.RemoveAll, Rule: registry.Rule{Kind: registry.Compose}}}, nil, "edit 0: subject: 0 characters"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := registry.Normalize(tt.edits)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("Normalize() = %v, want %q", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, lines(got)); diff != "" {
				t.Errorf("Normalize() (-want +got)\n%s", diff)
			}
			again, err := registry.Normalize(got)
			if diff := cmp.Diff(lines(got), lines(again)); err != nil || diff != "" {
				t.Errorf("Normalize() again = %v (-want +got)\n%s", err, diff)
			}
		})
	}
}

func TestUpdateRefuses(t *testing.T) {
	add := registry.Edit{Op: registry.Add, Rule: rule(t, "tcb_status UpToDate")}
	var tooMany, grown []registry.Edit
	for i := range registry.MaxEdits + 1 {
		r := registry.Rule{Kind: registry.App, Value: fmt.Sprintf("%040x", i)}
		tooMany = append(tooMany, registry.Edit{Op: registry.Add, Rule: r})
		grown = append(grown, registry.Edit{Op: registry.Remove, Rule: r})
	}
	tests := []struct {
		name string
		c    registry.Change
		want error
	}{
		{"nothing", registry.Change{}, registry.ErrNoEdits},
		{"too much", registry.Change{Edits: tooMany}, registry.ErrTooManyEdits},
		{"too much to go with it", registry.Change{Edits: grown[:registry.MaxEdits/2]}, registry.ErrTooManyEdits},
		{"a long comment", registry.Change{Edits: []registry.Edit{add}, Comment: strings.Repeat("a", 513)}, registry.ErrComment},
		{"a comment that is no text", registry.Change{Edits: []registry.Edit{add}, Comment: "\xff"}, registry.ErrComment},
	}
	store := audittest.NewStore()
	p := replica(t, store)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := p.Update(t.Context(), tt.c); !errors.Is(err, tt.want) {
				t.Errorf("Update() = %v, want %v", err, tt.want)
			}
		})
	}
	if n := len(store.Records(t)); n != 0 {
		t.Errorf("%d records of refused changes, want none", n)
	}
	if _, err := policyOf(t, store).Update(t.Context(), registry.Change{Edits: []registry.Edit{add}}); !errors.Is(err, registry.ErrReadOnly) {
		t.Errorf("Update() = %v, want %v", err, registry.ErrReadOnly)
	}
	for _, edits := range [][]registry.Edit{tooMany[:registry.MaxEdits], grown[:registry.MaxEdits/3]} {
		if _, err := p.Update(t.Context(), registry.Change{Edits: edits}); err != nil {
			t.Errorf("Update() of %d edits = %v, want none refused", len(edits), err)
		}
	}
}

func TestOnlyOneOfTwoChangesOfTheSameRevisionWorks(t *testing.T) {
	store := audittest.NewStore()
	one, two := replica(t, store), replica(t, store)
	revision := uint64(0)
	change := func(line string) registry.Change {
		return registry.Change{Edits: []registry.Edit{{Op: registry.Add, Rule: rule(t, line)}}, ExpectedRevision: &revision}
	}
	r, err := one.Update(t.Context(), change("tcb_status UpToDate"))
	if err != nil || r.Revision != 1 {
		t.Fatalf("Update() = %+v, %v, want revision 1", r, err)
	}
	if _, err := two.Update(t.Context(), change("tcb_status OutOfDate")); !errors.Is(err, audit.ErrRevision) {
		t.Errorf("Update() = %v, want %v", err, audit.ErrRevision)
	}
	revision = r.Revision
	if r, err = two.Update(t.Context(), change("tcb_status OutOfDate")); err != nil || r.Revision != 2 {
		t.Errorf("Update() = %+v, %v, want revision 2", r, err)
	}
	if got, err := one.Revision(t.Context()); err != nil || got != 2 {
		t.Errorf("Revision() = %d, %v, want 2", got, err)
	}
	got, err := one.List(t.Context(), registry.Query{Kind: registry.TCBStatus})
	want := []registry.Entry{{Rule: rule(t, "tcb_status OutOfDate"), Revision: 2}, {Rule: rule(t, "tcb_status UpToDate"), Revision: 1}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("List() = %v (-want +got)\n%s", err, diff)
	}
}

func TestDiffMakesOneOfTheOther(t *testing.T) {
	a, b, h := text(id(1)), text(id(2)), text(hash(3))
	have := []registry.Rule{
		rule(t, "app "+a), rule(t, "app_compose "+a+" "+h), rule(t, "app_device "+a+" any"), rule(t, "gateway any"),
		rule(t, "tcb_status UpToDate"), rule(t, "os_image "+h), rule(t, "app "+b), rule(t, "app_device "+b+" any"),
	}
	want := []registry.Rule{
		rule(t, "app "+b), rule(t, "app_compose "+b+" "+h), rule(t, "gateway "+a), rule(t, "tcb_status UpToDate"), rule(t, "kms "+h),
	}
	edits := registry.Diff(have, want)
	wantEdits := []string{
		"remove app " + a, "remove os_image " + h, "remove app_device " + b + " any",
		"add app_compose " + b + " " + h, "add gateway " + a, "add kms " + h,
	}
	if diff := cmp.Diff(wantEdits, lines(edits)); diff != "" {
		t.Errorf("Diff() (-want +got)\n%s", diff)
	}
	if got := registry.Diff(want, want); len(got) != 0 {
		t.Errorf("Diff() of the same = %v, want nothing", lines(got))
	}
	store := audittest.NewStore()
	p := replica(t, store)
	for _, edits := range [][]registry.Edit{registry.Diff(nil, have), edits} {
		if _, err := p.Update(t.Context(), registry.Change{Edits: edits}); err != nil {
			t.Fatal(err)
		}
	}
	got := map[registry.Rule]bool{}
	for r := range store.State().Rules {
		got[r] = true
	}
	wanted := map[registry.Rule]bool{}
	for _, r := range want {
		wanted[r] = true
	}
	if diff := cmp.Diff(wanted, got); diff != "" {
		t.Errorf("rules after the edits (-want +got)\n%s", diff)
	}
}

func TestSplitKeepsEveryPartSmallEnough(t *testing.T) {
	var edits []registry.Edit
	for i := range 5000 {
		edits = append(edits, registry.Edit{Op: registry.Remove, Rule: registry.Rule{Kind: registry.App, Value: fmt.Sprintf("%040x", i)}})
	}
	for i := range 5000 {
		edits = append(edits, registry.Edit{Op: registry.Add, Rule: registry.Rule{Kind: registry.OSImage, Value: fmt.Sprintf("%064x", i)}})
	}
	edits = append(edits, registry.Edit{Op: registry.Add, Rule: registry.Rule{Kind: registry.Gateway, Value: "any"}})
	var joined []registry.Edit
	for _, part := range registry.Split(edits) {
		n, err := registry.Normalize(part)
		if err != nil || len(n) > registry.MaxEdits || len(n) < 1 {
			t.Errorf("a part of %d edits, %v, want at most %d", len(n), err, registry.MaxEdits)
		}
		joined = append(joined, part...)
	}
	if diff := cmp.Diff(edits, joined); diff != "" {
		t.Errorf("Split() (-want +got)\n%s", diff)
	}
	if got := registry.Split(nil); got != nil {
		t.Errorf("Split(nil) = %v, want nothing", got)
	}
}
