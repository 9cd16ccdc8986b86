package sqldb_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/audit"
	"teekms/internal/registry"
	"teekms/internal/storage"
)

func TestMatch(t *testing.T) {
	db := open(t, config(t.TempDir()))
	var edits []registry.Edit
	for i := range 200 {
		edits = append(edits, add(registry.Compose, "app", fmt.Sprintf("%064x", i)))
	}
	commit(t, db, audit.Batch{Edits: edits, Revision: 3})
	for _, n := range []int{0, 1, 2, 63, 64, 65, 128, 200, 300} {
		rules, want := make([]registry.Rule, n), make([]bool, n)
		for i := range rules {
			// Every third is not there, every fifth cannot be.
			rules[i] = rule(registry.Compose, "app", fmt.Sprintf("%064x", i%200))
			want[i] = true
			if i%3 == 0 {
				rules[i].Subject, want[i] = "app2", false
			}
			if i%5 == 0 {
				rules[i].Value, want[i] = strings.Repeat("x", 1000)+"\x00\xff", false
			}
		}
		got, revision, err := db.Match(t.Context(), rules)
		if err != nil || revision != 3 {
			t.Errorf("Match of %d = %d, %v, want revision 3", n, revision, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Match of %d differs (-want +got):\n%s", n, diff)
		}
	}
}

func TestRulesThatWereTamperedWith(t *testing.T) {
	const where = " WHERE kind = 'app' AND value = 'aa'"
	tests := []struct {
		name, statement string
		asked           registry.Rule
		want            string
	}{
		{
			"one that was copied to another value", "INSERT INTO kms_rules SELECT kind, subject, 'bb', revision, mac FROM kms_rules" + where,
			rule(registry.App, "", "bb"), `the rule app "" "bb" was not written by this KMS`,
		},
		{
			"one that was copied to another kind", "INSERT INTO kms_rules SELECT 'kms', subject, value, revision, mac FROM kms_rules" + where,
			rule(registry.KMS, "", "aa"), `the rule kms "" "aa" was not written by this KMS`,
		},
		{
			"one that was copied to another subject", "INSERT INTO kms_rules SELECT kind, 'cc', value, revision, mac FROM kms_rules" + where,
			rule(registry.App, "cc", "aa"), `the rule app "cc" "aa" was not written by this KMS`,
		},
		{
			"one whose end was moved into its subject", "INSERT INTO kms_rules SELECT kind, 'a', 'a', revision, mac FROM kms_rules" + where,
			rule(registry.App, "a", "a"), `the rule app "a" "a" was not written by this KMS`,
		},
		{
			"one of another revision", "UPDATE kms_rules SET revision = 2" + where,
			rule(registry.App, "", "aa"), `the rule app "" "aa" was not written by this KMS`,
		},
		{
			"one without a MAC", "UPDATE kms_rules SET mac = x''" + where,
			rule(registry.App, "", "aa"), `the rule app "" "aa" was not written by this KMS`,
		},
		{
			"one that was made up", "INSERT INTO kms_rules VALUES ('app', '', 'any', 1, zeroblob(32))",
			rule(registry.App, "", "any"), `the rule app "" "any" was not written by this KMS`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			db := open(t, config(dir))
			commit(t, db, audit.Batch{Edits: []registry.Edit{add(registry.App, "", "aa"), add(registry.App, "", "zz")}, Revision: 1})
			tamper(t, dir, tt.statement)
			found, _, err := db.Match(t.Context(), []registry.Rule{rule(registry.App, "", "zz"), tt.asked})
			wantError(t, err, tt.want, storage.ErrIntegrity)
			if found != nil {
				t.Errorf("Match = %v, want nothing beside the error", found)
			}
			_, err = db.List(t.Context(), registry.Query{Kind: tt.asked.Kind})
			wantError(t, err, tt.want, storage.ErrIntegrity)
			// What is wrong can be removed, and then does no harm.
			commit(t, db, audit.Batch{Edits: []registry.Edit{{Op: registry.Remove, Rule: tt.asked}}, Revision: 2})
			if found, _, err := db.Match(t.Context(), []registry.Rule{tt.asked}); err != nil || found[0] {
				t.Errorf("Match after the removal = %v, %v, want nothing", found, err)
			}
		})
	}
}

func TestList(t *testing.T) {
	db := open(t, config(t.TempDir()))
	// In order of bytes.
	subjects := []string{"", " ", "A", "B", "a", "a ", "ab", "b", "é"}
	values := []string{" ", "0", "A", "Z", "a", "a ", "aa", "z", "{", "é"}
	var want []registry.Entry
	var edits []registry.Edit
	for _, s := range subjects {
		for _, v := range values {
			want = append(want, registry.Entry{Rule: rule(registry.Compose, s, v), Revision: 7})
			edits = append([]registry.Edit{add(registry.Compose, s, v)}, edits...)
		}
	}
	commit(t, db, audit.Batch{Edits: append(edits, add(registry.App, "", "x")), Revision: 7})
	for _, limit := range []int{1, 7, 10, 89, 90, 91, 0} {
		var got []registry.Entry
		var after registry.Rule
		for range len(want) + 1 {
			page, err := db.List(t.Context(), registry.Query{Kind: registry.Compose, After: after, Limit: limit})
			if err != nil {
				t.Fatalf("List = %v, want nil", err)
			}
			if limit > 0 && len(page) > limit {
				t.Errorf("List with limit %d gave %d", limit, len(page))
			}
			if len(page) == 0 {
				break
			}
			got, after = append(got, page...), page[len(page)-1].Rule
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("pages of %d differ (-want +got):\n%s", limit, diff)
		}
	}
	got, err := db.List(t.Context(), registry.Query{Kind: registry.Compose, Subject: "a", After: rule("", "", "a")})
	if err != nil {
		t.Fatalf("List = %v, want nil", err)
	}
	if diff := cmp.Diff(want[4*len(values)+5:5*len(values)], got); diff != "" {
		t.Errorf("List of one subject differs (-want +got):\n%s", diff)
	}
	for _, q := range []registry.Query{{}, {Kind: "none"}, {Kind: registry.Compose, Subject: "\xff"}, {Kind: registry.Compose, Subject: "none"}} {
		if got, err := db.List(t.Context(), q); err != nil || len(got) != 0 {
			t.Errorf("List(%v) = %v, %v, want nothing", q, got, err)
		}
	}
}

func TestAddingAgainKeepsTheFirst(t *testing.T) {
	db := open(t, config(t.TempDir()))
	commit(t, db, audit.Batch{Edits: []registry.Edit{add(registry.App, "", "x")}, Revision: 1})
	commit(t, db, audit.Batch{Edits: []registry.Edit{add(registry.App, "", "x"), add(registry.App, "", "y"), add(registry.App, "", "y")}, Revision: 2})
	want := []registry.Entry{{Rule: rule(registry.App, "", "x"), Revision: 1}, {Rule: rule(registry.App, "", "y"), Revision: 2}}
	got, err := db.List(t.Context(), registry.Query{Kind: registry.App})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("List differs (-want +got):\n%s", diff)
	}
}
