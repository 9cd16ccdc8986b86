package storagetest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"teekms/internal/registry"
)

// ruleCases are about the registry, one writer at a time.
func ruleCases() []testCase {
	return []testCase{
		{"edits add and remove in order", suite.edits},
		{"rules of one batch have its revision, and keep it", suite.revisions},
		{"removing all takes one kind and subject", suite.removeAll},
		{"rules differ by kind, subject and value", suite.distinct},
		{"values that look alike are different", suite.alike},
		{"values come back as they were, in order of bytes", suite.oddValues},
		{"subjects are listed in order of bytes", suite.oddSubjects},
		{"a list without a limit is a thousand", suite.defaultLimit},
		{"a list goes on where it ended though rules come and go", suite.listWhileChanging},
		{"many rules are matched at once", suite.matchMany},
	}
}

func (s suite) edits(t *testing.T) {
	a, b := rule(registry.App, "a"), rule(registry.App, "b")
	remove := func(r registry.Rule) registry.Edit { return registry.Edit{Op: registry.Remove, Rule: r} }
	all := registry.Edit{Op: registry.RemoveAll, Rule: registry.Rule{Kind: registry.App}}
	tests := []struct {
		name  string
		edits []registry.Edit
		want  []string
	}{
		{"added", add(a), []string{"a"}},
		{"added twice", add(a, a), []string{"a"}},
		{"removed though not there", []registry.Edit{remove(a)}, nil},
		{"added, then removed", append(add(a, b), remove(a)), []string{"b"}},
		{"removed, then added", append([]registry.Edit{remove(a)}, add(a)...), []string{"a"}},
		{"added, all removed, another added", append(append(add(a), all), add(b)...), []string{"b"}},
		{"all removed though none is there", []registry.Edit{all}, nil},
	}
	db := s.fresh(t)
	for _, before := range []string{"", "a", "b"} {
		for _, tt := range tests {
			s.in(t, fmt.Sprintf("%s, after %q", tt.name, before), func(t *testing.T) {
				if err := db.Commit(t.Context(), clearing(newRecords(1, 1), add(rule(registry.Gateway, "x"))...)); err != nil {
					t.Fatal(err)
				}
				want := slices.Clone(tt.want)
				if before != "" {
					mustCommit(t, db, newRecords(1, 1), add(rule(registry.App, before))...)
					touched := slices.ContainsFunc(tt.edits, func(e registry.Edit) bool {
						return e.Op == registry.RemoveAll || e.Op == registry.Remove && e.Rule.Value == before
					})
					if !touched && !slices.Contains(want, before) {
						want = append(want, before)
					}
				}
				slices.Sort(want)
				mustCommit(t, db, newRecords(1, 1), tt.edits...)
				var got []string
				for _, e := range list(t, db, registry.Query{Kind: registry.App}) {
					got = append(got, e.Value)
				}
				if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("rules (-want +got):\n%s", diff)
				}
				found, revision := match(t, db, a, b)
				if h := mustHead(t, db); revision != h.Revision || found[0] != slices.Contains(want, "a") || found[1] != slices.Contains(want, "b") {
					t.Errorf("Match(a, b) = %v at revision %d, want %v at %d", found, revision, want, h.Revision)
				}
			})
		}
	}
}

func (s suite) revisions(t *testing.T) {
	db := s.fresh(t)
	a, b, c := rule(registry.App, "a"), rule(registry.App, "b"), rule(registry.App, "c")
	mustCommit(t, db, newRecords(1, 1), add(a, b)...)
	mustCommit(t, db, newRecords(1, 1)) // no edit, no revision
	mustCommit(t, db, newRecords(1, 1), add(a, c)...)
	mustCommit(t, db, newRecords(1, 1), append([]registry.Edit{{Op: registry.Remove, Rule: b}}, add(b)...)...)
	want := []registry.Entry{{Rule: a, Revision: 1}, {Rule: b, Revision: 3}, {Rule: c, Revision: 2}}
	if diff := gocmp.Diff(want, list(t, db, registry.Query{Kind: registry.App})); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
	if _, revision := match(t, db); revision != 3 {
		t.Errorf("Match() is at revision %d, want 3", revision)
	}
}

func (s suite) removeAll(t *testing.T) {
	db := s.fresh(t)
	var rules []registry.Rule
	for _, kind := range []registry.Kind{registry.Compose, registry.Device} {
		for _, subject := range []string{"one", "two", ""} {
			for _, value := range []string{"x", "y", registry.Any} {
				rules = append(rules, registry.Rule{Kind: kind, Subject: subject, Value: value})
			}
		}
	}
	mustCommit(t, db, newRecords(1, 1), add(rules...)...)
	mustCommit(t, db, newRecords(1, 1),
		registry.Edit{Op: registry.RemoveAll, Rule: registry.Rule{Kind: registry.Compose, Subject: "one"}},
		registry.Edit{Op: registry.RemoveAll, Rule: registry.Rule{Kind: registry.Device}})
	found, _ := match(t, db, rules...)
	for i, r := range rules {
		removed := r.Kind == registry.Compose && r.Subject == "one" || r.Kind == registry.Device && r.Subject == ""
		if found[i] == removed {
			t.Errorf("%+v is there: %t", r, found[i])
		}
	}
}

func (s suite) distinct(t *testing.T) {
	db := s.fresh(t)
	there := registry.Rule{Kind: registry.Compose, Subject: "ab", Value: "cd"}
	mustCommit(t, db, newRecords(1, 1), add(there)...)
	others := []registry.Rule{
		{Kind: registry.Device, Subject: "ab", Value: "cd"},
		{Kind: registry.Compose, Subject: "a", Value: "bcd"},
		{Kind: registry.Compose, Subject: "abc", Value: "d"},
		{Kind: registry.Compose, Subject: "", Value: "abcd"},
		{Kind: registry.Compose, Subject: "abcd", Value: ""},
		{Kind: registry.Compose, Subject: "cd", Value: "ab"},
		{Kind: registry.Compose, Subject: "ab", Value: ""},
		{Kind: registry.Compose, Subject: "", Value: ""},
	}
	found, _ := match(t, db, append(others, there)...)
	for i, r := range others {
		if found[i] {
			t.Errorf("Match(%+v) = true because of %+v", r, there)
		}
	}
	if !found[len(others)] {
		t.Errorf("Match(%+v) = false", there)
	}
}

// oddValues are sorted bytewise; servers would sort, fold or trim them otherwise.
func oddValues() []string {
	values := []string{
		"A", "a", "Z", "z", "a ", "a  ", " a", "á", "a\u0301", "Ä", "ä", "ß", "ss", "SS", "İ", "i", "I", "ı", "ÿ", "zz", "é",
		"10", "9", "a%", "a_", "a*", "a?", "a[b]", `a'`, `a"`, "a`", `a\`, `a\\`, "a;--", "a/*", "a$1", "a?1", "a:1", "{a}", "a:b", "\u65e5\u672c", "\U0001f511", "\U0010ffff",
		"\uffff", "a\tb", "a\nb", "UpToDate", "uptodate", registry.Any, "Any", "ANY", strings.Repeat("x", 200), strings.Repeat("x", 199) + "y",
		hexOf("x"), strings.ToUpper(hexOf("x")),
	}
	slices.Sort(values)
	return values
}

func (s suite) alike(t *testing.T) {
	db := s.fresh(t)
	values := oddValues()
	// Every other one is there, those between are not.
	var there, all []registry.Rule
	for i, v := range values {
		all = append(all, rule(registry.Advisory, v))
		if i%2 == 0 {
			there = append(there, all[i])
		}
	}
	mustCommit(t, db, newRecords(1, 1), add(there...)...)
	found, _ := match(t, db, all...)
	for i := range all {
		if found[i] != (i%2 == 0) {
			t.Errorf("Match(%q) = %t", values[i], found[i])
		}
	}
	var edits []registry.Edit
	for i, r := range all {
		if i%2 == 1 {
			edits = append(edits, registry.Edit{Op: registry.Remove, Rule: r})
		}
	}
	mustCommit(t, db, newRecords(1, 1), edits...)
	if entries := list(t, db, registry.Query{Kind: registry.Advisory}); len(entries) != len(there) {
		t.Errorf("%d rules after others were removed that look alike, want %d", len(entries), len(there))
	}
}

func (s suite) oddValues(t *testing.T) {
	db := s.fresh(t)
	values := oddValues()
	var rules []registry.Rule
	for _, v := range values {
		rules = append(rules, rule(registry.Advisory, v))
	}
	shuffled := slices.Clone(rules)
	slices.SortFunc(shuffled, func(a, b registry.Rule) int { return cmp.Compare(hexOf(a.Value), hexOf(b.Value)) })
	mustCommit(t, db, newRecords(1, 1), add(shuffled...)...)
	for _, limit := range []int{0, 1, 2, 7, len(values), len(values) + 1} {
		var got []string
		for _, e := range list(t, db, registry.Query{Kind: registry.Advisory, Limit: limit}) {
			got = append(got, e.Value)
		}
		if diff := gocmp.Diff(values, got); diff != "" {
			t.Errorf("List in pages of %d (-want +got):\n%s", limit, diff)
		}
	}
	// A page begins after a rule that was never there as well.
	got := list(t, db, registry.Query{Kind: registry.Advisory, After: rule(registry.Advisory, "a!")})
	place, _ := slices.BinarySearch(values, "a!")
	if len(got) != len(values)-place || got[0].Value != values[place] {
		t.Errorf("List after a value that is not there has %d entries, want %d", len(got), len(values)-place)
	}
}

// maxSubject is more than the 40 of an application's id.
const maxSubject = 64

func (s suite) oddSubjects(t *testing.T) {
	db := s.fresh(t)
	var want []registry.Rule
	subjects := slices.DeleteFunc(oddValues(), func(v string) bool { return len(v) > maxSubject })
	for _, subject := range append([]string{""}, subjects...) {
		for _, value := range []string{"B", "a", "ä"} {
			want = append(want, registry.Rule{Kind: registry.Compose, Subject: subject, Value: value})
		}
	}
	mustCommit(t, db, newRecords(1, 1), append(add(want...), add(rule(registry.Device, "other"))...)...)
	for _, limit := range []int{0, 1, 2, 10} {
		var got []registry.Rule
		for _, e := range list(t, db, registry.Query{Kind: registry.Compose, Limit: limit}) {
			got = append(got, e.Rule)
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("List in pages of %d (-want +got):\n%s", limit, diff)
		}
	}
	for _, subject := range subjects {
		got := list(t, db, registry.Query{Kind: registry.Compose, Subject: subject, Limit: 2})
		if len(got) != 3 || got[0].Subject != subject || got[2].Value != "ä" {
			t.Errorf("List of subject %q = %v", subject, got)
		}
	}
}

func (s suite) defaultLimit(t *testing.T) {
	db := s.fresh(t)
	var rules []registry.Rule
	for i := range 1500 {
		rules = append(rules, rule(registry.App, fmt.Sprintf("%06d", i)))
	}
	mustCommit(t, db, newRecords(1, 1), add(rules...)...)
	page, err := db.List(t.Context(), registry.Query{Kind: registry.App})
	if err != nil || len(page) != 1000 {
		t.Fatalf("List = %d entries, %v, want 1000", len(page), err)
	}
	page, err = db.List(t.Context(), registry.Query{Kind: registry.App, After: page[999].Rule})
	if err != nil || len(page) != 500 || page[0].Value != "001000" {
		t.Fatalf("List after the first page = %d entries, %v, want 500", len(page), err)
	}
}

func (s suite) listWhileChanging(t *testing.T) {
	db := s.fresh(t)
	mustCommit(t, db, newRecords(1, 1), add(rule(registry.App, "b"), rule(registry.App, "d"), rule(registry.App, "f"))...)
	q := registry.Query{Kind: registry.App, Limit: 2}
	page, err := db.List(t.Context(), q)
	if err != nil || len(page) != 2 {
		t.Fatalf("List = %v, %v", page, err)
	}
	edits := append(add(rule(registry.App, "a"), rule(registry.App, "e")), registry.Edit{Op: registry.Remove, Rule: page[1].Rule})
	mustCommit(t, db, newRecords(1, 1), edits...)
	q.After = page[1].Rule
	page, err = db.List(t.Context(), q)
	if err != nil || len(page) != 2 || page[0].Value != "e" || page[1].Value != "f" {
		t.Fatalf("List after %q = %v, %v, want e and f", q.After.Value, page, err)
	}
}

func (s suite) matchMany(t *testing.T) {
	db := s.fresh(t)
	var there, asked []registry.Rule
	for i := range 2000 {
		r := rule(registry.KMS, hexOf(fmt.Sprint(i)))
		if i%3 == 0 {
			there = append(there, r)
		}
		asked = append(asked, r)
	}
	mustCommit(t, db, newRecords(1, 1), add(there...)...)
	// One that is asked twice is answered twice.
	asked = append(asked, asked[:10]...)
	found, _ := match(t, db, asked...)
	for i := range found {
		if want := i%2000%3 == 0; found[i] != want {
			t.Fatalf("Match of %d rules: number %d = %t, want %t", len(asked), i, found[i], want)
		}
	}
}
