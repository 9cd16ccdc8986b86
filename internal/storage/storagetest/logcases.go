package storagetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"teekms/internal/audit"
	"teekms/internal/registry"
	"teekms/internal/storage"
)

// maxBody and maxHead are the sizes that audit.Row and audit.Batch promise.
const (
	maxBody = 1 << 20
	maxHead = 16 << 10
)

// logCases are about the rows, one writer at a time.
func logCases() []testCase {
	return []testCase{
		{"an empty database has nothing", suite.empty},
		{"what is committed is read", suite.readBack},
		{"heads are any bytes", suite.heads},
		{"a batch may be a head alone", suite.headAlone},
		{"the error of build is returned and nothing written", suite.buildFails},
		{"an event is refused the second time, with all that came with it", suite.duplicate},
		{"an event twice in one batch is refused", suite.duplicateWithin},
		{"a row is never written over", suite.overwrite},
		{"a canceled commit writes nothing", suite.canceled},
		{"a commit that is canceled in build is whole or not there", suite.canceledInBuild},
		{"bodies may be a mebibyte", suite.largeBodies},
		{"what is out of bounds is refused", suite.bounds},
		{"a batch may be 256 rows", suite.largeBatch},
		{"a batch may be 4096 edits", suite.manyEdits},
		{"clearing takes everything and begins anew", suite.clears},
		{"clearing fails as a whole", suite.clearFails},
	}
}

func (s suite) empty(t *testing.T) {
	db := s.fresh(t)
	if h, err := db.Head(t.Context()); h != nil || err != nil {
		t.Errorf("Head() = %x, %v, want nil", h, err)
	}
	if rows, err := db.Rows(t.Context(), 0, 10); len(rows) != 0 || err != nil {
		t.Errorf("Rows(0, 10) = %v, %v, want none", rows, err)
	}
	if _, ok, err := db.Find(t.Context(), [audit.IDSize]byte{}); ok || err != nil {
		t.Errorf("Find(0) = %t, %v, want false", ok, err)
	}
	if found, revision := match(t, db, rule(registry.App, registry.Any)); found[0] || revision != 0 {
		t.Errorf("Match = %v at revision %d, want false at 0", found, revision)
	}
	if entries := list(t, db, registry.Query{Kind: registry.App}); len(entries) != 0 {
		t.Errorf("List = %v, want none", entries)
	}
	if err := db.Ping(t.Context()); err != nil {
		t.Errorf("Ping() = %v", err)
	}
}

func (s suite) readBack(t *testing.T) {
	db := s.fresh(t)
	records := newRecords(37, 200)
	mustCommit(t, db, records[:1])
	mustCommit(t, db, records[1:30])
	mustCommit(t, db, records[30:])
	hasExactly(t, db, records)

	for _, tt := range []struct{ from, limit, first, count int }{
		{0, 1, 0, 1}, {0, 37, 0, 37}, {0, 1000, 0, 37}, {36, 5, 36, 1}, {37, 5, 0, 0}, {1 << 40, 5, 0, 0}, {5, 20, 5, 20},
	} {
		rows, err := db.Rows(t.Context(), uint64(tt.from), tt.limit)
		if err != nil || len(rows) != tt.count {
			t.Errorf("Rows(%d, %d) = %d rows, %v, want %d", tt.from, tt.limit, len(rows), err, tt.count)
			continue
		}
		for i, row := range rows {
			if want := tt.first + i; row.Seq != uint64(want) || row.EventID != records[want].id {
				t.Errorf("Rows(%d, %d)[%d] is row %d", tt.from, tt.limit, i, row.Seq)
			}
		}
	}
	for i, r := range records {
		row, ok, err := db.Find(t.Context(), r.id)
		want := audit.Row{Seq: uint64(i), EventID: r.id, Body: r.body, Nodes: nodes(uint64(i), r.id)}
		if diff := cmp.Diff(want, row); !ok || err != nil || diff != "" {
			t.Errorf("Find(%x) = %t, %v (-want +got):\n%s", r.id, ok, err, diff)
		}
	}
	if _, ok, err := db.Find(t.Context(), newRecords(1, 0)[0].id); ok || err != nil {
		t.Errorf("Find of an event that did not happen = %t, %v", ok, err)
	}
	s.readNodes(t, db, records)
}

func (s suite) readNodes(t *testing.T, db audit.Store, records []record) {
	seqs := []uint64{36, 0, 31, 7, 7, 1}
	got, err := db.Nodes(t.Context(), seqs)
	if err != nil || len(got) != len(seqs) {
		t.Fatalf("Nodes(%v) = %d, %v", seqs, len(got), err)
	}
	for i, seq := range seqs {
		if !bytes.Equal(got[i], nodes(seq, records[seq].id)) {
			t.Errorf("Nodes(%v)[%d] = %x", seqs, i, got[i])
		}
	}
	if got, err := db.Nodes(t.Context(), nil); len(got) != 0 || err != nil {
		t.Errorf("Nodes() = %v, %v, want none", got, err)
	}
	if got, err := db.Nodes(t.Context(), []uint64{3, 37}); err == nil {
		t.Errorf("Nodes of a row that is not there = %d, want an error", len(got))
	}
}

func (s suite) heads(t *testing.T) {
	db := s.fresh(t)
	random := make([]byte, maxHead)
	_, _ = rand.Read(random)
	for _, want := range [][]byte{{0}, []byte("\xff\xfe\x00'\"\\"), random, []byte("x"), bytes.Repeat([]byte{0}, maxHead)} {
		err := db.Commit(t.Context(), func([]byte) (audit.Batch, error) { return audit.Batch{Head: want}, nil })
		if err != nil {
			t.Fatalf("Commit of a head of %d bytes: %v", len(want), err)
		}
		if got, err := db.Head(t.Context()); err != nil || !bytes.Equal(got, want) {
			t.Errorf("Head() = %d bytes, %v; want the %d that were committed", len(got), err, len(want))
		}
		err = db.Commit(t.Context(), func(got []byte) (audit.Batch, error) {
			if !bytes.Equal(got, want) {
				t.Errorf("build got a head of %d bytes, want the %d that were committed", len(got), len(want))
			}
			return audit.Batch{Head: want}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (s suite) headAlone(t *testing.T) {
	db := s.fresh(t)
	records := newRecords(3, 10)
	mustCommit(t, db, records, add(rule(registry.App, "a"))...)
	mustCommit(t, db, nil)
	hasExactly(t, db, records)
	if _, revision := match(t, db); revision != 1 {
		t.Errorf("revision = %d, want that of before, 1", revision)
	}
	mustCommit(t, db, nil, add(rule(registry.App, "b"))...)
	if found, revision := match(t, db, rule(registry.App, "a"), rule(registry.App, "b")); !found[0] || !found[1] || revision != 2 {
		t.Errorf("Match after edits without a row = %v at %d", found, revision)
	}
}

// unchanged runs f, which must change nothing.
func (s suite) unchanged(t *testing.T, f func(db audit.Store, records []record)) {
	t.Helper()
	db := s.fresh(t)
	records := newRecords(5, 50)
	mustCommit(t, db, records, add(rule(registry.App, "there"))...)
	before := stateOf(t, db)
	f(db, records)
	if diff := cmp.Diff(before, stateOf(t, db), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the database changed (-before +after):\n%s", diff)
	}
}

// intrusion is what a commit that fails must leave no trace of.
func intrusion() []registry.Edit {
	return append(add(rule(registry.App, "not there")), registry.Edit{Op: registry.Remove, Rule: rule(registry.App, "there")})
}

func (s suite) buildFails(t *testing.T) {
	s.unchanged(t, func(db audit.Store, _ []record) {
		want := errors.New("no")
		err := db.Commit(t.Context(), func(head []byte) (audit.Batch, error) {
			b, err := appending(newRecords(3, 10), intrusion()...)(head)
			return b, errors.Join(err, want)
		})
		if !errors.Is(err, want) {
			t.Errorf("Commit = %v, want the error of build", err)
		}
		if err := db.Commit(t.Context(), func([]byte) (audit.Batch, error) { return audit.Batch{}, want }); err != want { //nolint:errorlint // as it is, not wrapped
			t.Errorf("Commit = %v, want the error of build as it is", err)
		}
	})
}

func (s suite) duplicate(t *testing.T) {
	s.unchanged(t, func(db audit.Store, records []record) {
		for place := range 5 {
			batch := newRecords(5, 10)
			batch[place].id = records[2].id
			err := db.Commit(t.Context(), appending(batch, intrusion()...))
			if !errors.Is(err, audit.ErrDuplicate) {
				t.Errorf("Commit with a known event in place %d = %v, want %v", place, err, audit.ErrDuplicate)
			}
		}
	})
}

func (s suite) duplicateWithin(t *testing.T) {
	s.unchanged(t, func(db audit.Store, _ []record) {
		batch := newRecords(4, 10)
		batch[3].id = batch[1].id
		if err := db.Commit(t.Context(), appending(batch, intrusion()...)); err == nil {
			t.Error("Commit took an event twice")
		}
	})
}

func (s suite) overwrite(t *testing.T) {
	s.unchanged(t, func(db audit.Store, _ []record) {
		for _, seq := range []uint64{0, 3, 4} {
			err := db.Commit(t.Context(), func([]byte) (audit.Batch, error) {
				return appending(newRecords(2, 10), intrusion()...)(head{Size: seq, Revision: 1}.marshal())
			})
			if err == nil {
				t.Errorf("Commit wrote over row %d", seq)
			}
		}
	})
}

func (s suite) canceled(t *testing.T) {
	s.unchanged(t, func(db audit.Store, _ []record) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := db.Commit(ctx, appending(newRecords(2, 10), intrusion()...)); err == nil {
			t.Error("Commit with a canceled context succeeded")
		}
	})
}

func (s suite) canceledInBuild(t *testing.T) {
	db := s.fresh(t)
	mustCommit(t, db, newRecords(1, 10), add(rule(registry.App, "0"))...)
	for i := range 5 {
		before := stateOf(t, db)
		ctx, cancel := context.WithCancel(t.Context())
		value := fmt.Sprint(i + 1)
		// Whether it succeeds is a race; that nothing is torn is not.
		err := db.Commit(ctx, func(head []byte) (audit.Batch, error) {
			cancel()
			return appending(newRecords(2, 10), add(rule(registry.App, value))...)(head)
		})
		cancel()
		after := stateOf(t, db)
		written := after.Head.Size == before.Head.Size+2
		if !written && err == nil {
			t.Fatalf("Commit succeeded and wrote nothing")
		}
		want := before
		if written {
			want = state{Head: head{before.Head.Size + 2, before.Head.Revision + 1}, Rows: after.Rows, Revision: before.Revision + 1}
			want.Rules = append(want.Rules, before.Rules...)
			want.Rules = append(want.Rules, registry.Entry{Rule: rule(registry.App, value), Revision: before.Revision + 1})
		}
		if diff := cmp.Diff(want, after, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("after Commit = %v (-want +got):\n%s", err, diff)
		}
	}
}

func (s suite) largeBodies(t *testing.T) {
	db := s.fresh(t)
	records := append(newRecords(4, maxBody), newRecords(3, maxBody-1)...)
	mustCommit(t, db, records[:1])
	mustCommit(t, db, records[1:])
	hasExactly(t, db, records)
}

// bounds: what is larger than promised is refused before anything is done.
func (s suite) bounds(t *testing.T) {
	tests := map[string]func(b *audit.Batch){
		"body":         func(b *audit.Batch) { b.Rows[1].Body = make([]byte, maxBody+1) },
		"head":         func(b *audit.Batch) { b.Head = make([]byte, maxHead+1) },
		"nodes":        func(b *audit.Batch) { b.Rows[0].Nodes = b.Rows[0].Nodes[1:] },
		"no nodes":     func(b *audit.Batch) { b.Rows[0].Nodes = nil },
		"value":        func(b *audit.Batch) { b.Edits[0].Rule.Value = strings.Repeat("x", 1<<20) },
		"subject":      func(b *audit.Batch) { b.Edits[0].Rule.Subject = strings.Repeat("x", 1<<20) },
		"no value":     func(b *audit.Batch) { b.Edits[0].Rule.Value = "" },
		"zero byte":    func(b *audit.Batch) { b.Edits[0].Rule.Value = "a\x00b" },
		"not UTF-8":    func(b *audit.Batch) { b.Edits[0].Rule.Value = "a\xff" },
		"kind of edit": func(b *audit.Batch) { b.Edits[0].Op = "change" },
		"value of no use": func(b *audit.Batch) {
			b.Edits[0] = registry.Edit{Op: registry.RemoveAll, Rule: rule(registry.App, "a")}
		},
		"no revision": func(b *audit.Batch) { b.Revision = 0 },
		"gap":         func(b *audit.Batch) { b.Rows[1].Seq++ },
	}
	s.unchanged(t, func(db audit.Store, _ []record) {
		for name, change := range tests {
			err := db.Commit(t.Context(), func(head []byte) (audit.Batch, error) {
				b, err := appending(newRecords(2, 10), intrusion()...)(head)
				change(&b)
				return b, err
			})
			if err == nil || errors.Is(err, storage.ErrUnavailable) {
				t.Errorf("%s out of bounds: Commit = %v", name, err)
			}
		}
	})
}

func (s suite) largeBatch(t *testing.T) {
	db := s.fresh(t)
	records := newRecords(512, 1000)
	mustCommit(t, db, records[:256])
	mustCommit(t, db, records[256:])
	hasExactly(t, db, records)
}

func (s suite) manyEdits(t *testing.T) {
	db := s.fresh(t)
	const count = 4096
	var rules []registry.Rule
	for i := range count {
		rules = append(rules, registry.Rule{Kind: registry.Compose, Subject: hexOf("app")[:40], Value: hexOf(fmt.Sprint(i))})
	}
	mustCommit(t, db, newRecords(1, 100), add(rules...)...)
	if found := list(t, db, registry.Query{Kind: registry.Compose}); len(found) != count {
		t.Errorf("%d rules, want %d", len(found), count)
	}
	var edits []registry.Edit
	for i, r := range rules {
		if i%2 == 0 {
			edits = append(edits, registry.Edit{Op: registry.Remove, Rule: r})
		} else {
			edits = append(edits, registry.Edit{Op: registry.Add, Rule: r})
		}
	}
	mustCommit(t, db, newRecords(1, 100), edits...)
	entries := list(t, db, registry.Query{Kind: registry.Compose, Subject: hexOf("app")[:40], Limit: 700})
	if len(entries) != count/2 {
		t.Errorf("%d rules after half was removed, want %d", len(entries), count/2)
	}
	for _, e := range entries {
		if e.Revision != 1 {
			t.Fatalf("%v has revision %d, want that of its first addition", e.Rule, e.Revision)
		}
	}
}

// clearing returns a build that clears, then appends as if there had been
// nothing.
func clearing(records []record, edits ...registry.Edit) func([]byte) (audit.Batch, error) {
	return func(current []byte) (audit.Batch, error) {
		old, err := parseHead(current)
		if err != nil {
			return audit.Batch{}, err
		}
		b, err := appending(records, edits...)(head{Revision: old.Revision}.marshal())
		b.Clear = true
		return b, err
	}
}

func (s suite) clears(t *testing.T) {
	db := s.fresh(t)
	old := newRecords(20, 100)
	mustCommit(t, db, old, add(rule(registry.App, "old"), rule(registry.App, "both"), registry.Rule{Kind: registry.Compose, Subject: "old", Value: "x"})...)
	// A record of before may come again: it is new to what begins.
	records := append(newRecords(2, 100), old[3])
	if err := db.Commit(t.Context(), clearing(records, add(rule(registry.App, "new"), rule(registry.App, "both"))...)); err != nil {
		t.Fatalf("Commit with Clear: %v", err)
	}
	hasExactly(t, db, records)
	if _, ok, err := db.Find(t.Context(), old[0].id); ok || err != nil {
		t.Errorf("Find of an event before the clearing = %t, %v", ok, err)
	}
	got := stateOf(t, db)
	want := []registry.Entry{{Rule: rule(registry.App, "both"), Revision: 2}, {Rule: rule(registry.App, "new"), Revision: 2}}
	if diff := cmp.Diff(want, got.Rules); diff != "" || got.Revision != 2 {
		t.Errorf("rules after clearing, at revision %d (-want +got):\n%s", got.Revision, diff)
	}
	mustCommit(t, db, newRecords(1, 10))
}

func (s suite) clearFails(t *testing.T) {
	s.unchanged(t, func(db audit.Store, _ []record) {
		batch := newRecords(3, 10)
		batch[2].id = batch[0].id
		if err := db.Commit(t.Context(), clearing(batch, add(rule(registry.App, "x"))...)); err == nil {
			t.Error("Commit took an event twice")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := db.Commit(ctx, clearing(newRecords(1, 1))); err == nil {
			t.Error("Commit with a canceled context succeeded")
		}
	})
}
