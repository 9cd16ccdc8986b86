package sqldb_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/audit"
	"teekms/internal/registry"
	"teekms/internal/storage"
	"teekms/internal/storage/sqldb"
)

func TestCommitRefusesBatches(t *testing.T) {
	long := func(n int) string { return string(bytes.Repeat([]byte("x"), n)) }
	changed := func(change func(*audit.Row)) audit.Batch {
		r := row(0, "body")
		change(&r)
		return audit.Batch{Rows: []audit.Row{r}}
	}
	edits := func(e ...registry.Edit) audit.Batch { return audit.Batch{Edits: e, Revision: 1} }
	tests := []struct {
		name  string
		batch audit.Batch
		want  string
	}{
		{"an empty head", audit.Batch{Head: []byte{}}, "its head has 0 bytes"},
		{"a large head", audit.Batch{Head: make([]byte, 16<<10+1)}, "its head has 16385 bytes"},
		{"a record without a body", changed(func(r *audit.Row) { r.Body = nil }), "record 0 has 0 bytes"},
		{"a record that is too large", changed(func(r *audit.Row) { r.Body = make([]byte, 1<<20+1) }), "record 0 has 1048577 bytes"},
		{"a record without hashes", changed(func(r *audit.Row) { r.Nodes = nil }), "record 0 has 0 bytes of hashes"},
		{"a record with half a hash", changed(func(r *audit.Row) { r.Nodes = make([]byte, 48) }), "record 0 has 48 bytes of hashes"},
		{"a record with too many hashes", changed(func(r *audit.Row) { r.Nodes = make([]byte, 66*32) }), "record 0 has 2112 bytes of hashes"},
		{"a place that no database has", changed(func(r *audit.Row) { r.Seq = math.MaxUint64 }), "out of order"},
		{"records out of order", audit.Batch{Rows: []audit.Row{row(1, "b"), row(0, "a")}}, "record 0 is out of order"},
		{"records with a gap", audit.Batch{Rows: []audit.Row{row(0, "a"), row(2, "b")}}, "record 2 is out of order"},
		{"edits without a revision", audit.Batch{Edits: []registry.Edit{add(registry.App, "", "x")}}, "edits without a revision"},
		{"a revision that no database has", audit.Batch{Revision: math.MaxUint64}, "out of range"},
		{"an unknown operation", edits(registry.Edit{Op: "replace", Rule: rule(registry.App, "", "x")}), `the operation "replace" of an edit is unknown`},
		{"a rule without a kind", edits(add("", "", "x")), `a rule of kind ""`},
		{"a rule without a value", edits(add(registry.App, "", "")), `a rule of kind "app" is too long, empty or not UTF-8`},
		{"a rule that is not UTF-8", edits(add(registry.App, "", "\xff")), "not UTF-8"},
		{"a rule with a zero byte", edits(add(registry.App, "a\x00b", "x")), "not UTF-8"},
		{"a rule that is too long", edits(add(registry.App, "", long(256))), "too long"},
		{"a subject that is too long", edits(add(registry.Compose, long(65), "x")), "too long"},
		{"a kind that is too long", edits(add(registry.Kind(long(33)), "", "x")), "too long"},
		{"all of a subject that is too long", edits(registry.Edit{Op: registry.RemoveAll, Rule: rule(registry.Compose, long(65), "")}), "too long"},
		{"all of one", edits(registry.Edit{Op: registry.RemoveAll, Rule: rule(registry.App, "", "x")}), "removes all rules names one"},
	}
	db := open(t, config(t.TempDir()))
	commit(t, db, audit.Batch{Head: []byte("before")})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			wantError(t, db.Commit(t.Context(), write(tt.batch)), tt.want, nil)
			if diff := cmp.Diff(contents{Head: []byte("before")}, readAll(t, db)); diff != "" {
				t.Errorf("contents differ (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRowOfAForkedLog has a record where the head says that none is: only
// somebody who put an old head back leaves it so.
func TestRowOfAForkedLog(t *testing.T) {
	db := open(t, config(t.TempDir()))
	commit(t, db, audit.Batch{Rows: rows(0, 3)})
	other := row(2, "other")
	other.EventID = eventID(77)
	wantError(t, db.Commit(t.Context(), write(audit.Batch{Rows: []audit.Row{other}})), "the audit log has records that its head does not know", storage.ErrIntegrity)
	same := row(3, "again")
	same.EventID = eventID(2)
	if err := db.Commit(t.Context(), write(audit.Batch{Rows: []audit.Row{same}})); !errors.Is(err, audit.ErrDuplicate) {
		t.Errorf("Commit of an event that is there = %v, want ErrDuplicate", err)
	}
}

func TestBatchesOfEverySize(t *testing.T) {
	db := open(t, config(t.TempDir()))
	next := uint64(0)
	for _, n := range []uint64{1, 2, 3, 127, 128, 129, 200, 256, 1} {
		commit(t, db, audit.Batch{Rows: rows(next, n)})
		next += n
	}
	// One statement would be too much for a server.
	large := rows(next, 12)
	for i := range large {
		large[i].Body = bytes.Repeat([]byte{byte(i)}, 1<<20)
	}
	commit(t, db, audit.Batch{Rows: large})
	same := func(a, b audit.Row) bool {
		return a.Seq == b.Seq && a.EventID == b.EventID && bytes.Equal(a.Body, b.Body) && bytes.Equal(a.Nodes, b.Nodes)
	}
	got := readAll(t, db).Rows
	if want := append(rows(0, next), large...); !slices.EqualFunc(want, got, same) {
		t.Errorf("%d rows differ from the %d that were written", len(got), len(want))
	}
}

func TestClearKeepsTheRevisionUnlessTold(t *testing.T) {
	db := open(t, config(t.TempDir()))
	commit(t, db, audit.Batch{Rows: rows(0, 3), Edits: []registry.Edit{add(registry.App, "", "x")}, Revision: 5})
	revision := func() uint64 {
		t.Helper()
		_, revision, err := db.Match(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return revision
	}
	commit(t, db, audit.Batch{Head: []byte("cleared"), Clear: true, Rows: rows(3, 1)})
	if got := revision(); got != 5 {
		t.Errorf("revision = %d, want 5", got)
	}
	if diff := cmp.Diff(contents{Head: []byte("cleared"), Rows: rows(3, 1)}, readAll(t, db)); diff != "" {
		t.Errorf("contents differ (-want +got):\n%s", diff)
	}
	commit(t, db, audit.Batch{Clear: true, Revision: 6})
	if got := revision(); got != 6 {
		t.Errorf("revision = %d, want 6", got)
	}
}

// TestTwoHandles has two of them count in the head at once.
func TestTwoHandles(t *testing.T) {
	c := config(t.TempDir())
	handles := []*sqldb.DB{open(t, c), open(t, c)}
	const writers, each = 4, 25
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for range each {
				err := handles[i%2].Commit(context.Background(), func(head []byte) (audit.Batch, error) {
					var next uint64
					if head != nil {
						next = binary.BigEndian.Uint64(head)
					}
					return audit.Batch{Head: binary.BigEndian.AppendUint64(nil, next+1), Rows: rows(next, 1)}, nil
				})
				if err != nil {
					t.Errorf("Commit = %v, want nil", err)
				}
			}
		})
	}
	wg.Wait()
	want := contents{Head: binary.BigEndian.AppendUint64(nil, writers*each), Rows: rows(0, writers*each)}
	if diff := cmp.Diff(want, readAll(t, handles[0])); diff != "" {
		t.Errorf("contents differ (-want +got):\n%s", diff)
	}
}

func TestCommitWaitsForItsTurnNoLongerThanItMay(t *testing.T) {
	db := open(t, config(t.TempDir(), func(c *storage.Config) { c.Timeout = 500 * time.Millisecond }))
	commit(t, db, audit.Batch{Head: []byte("before")})
	inside, leave, done := make(chan bool), make(chan bool), make(chan error)
	stop := errors.New("stop")
	go func() {
		done <- db.Commit(context.Background(), func([]byte) (audit.Batch, error) {
			close(inside)
			<-leave
			return audit.Batch{}, stop
		})
	}()
	<-inside
	wantError(t, db.Commit(t.Context(), write(audit.Batch{})), "the database gave no answer within 500ms", storage.ErrUnavailable)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, db.Commit(gone, write(audit.Batch{})), "the call was given up", context.Canceled)
	close(leave)
	if err := <-done; !errors.Is(err, stop) {
		t.Errorf("Commit = %v, want the error of build", err)
	}
}

func TestNodes(t *testing.T) {
	db := open(t, config(t.TempDir()))
	commit(t, db, audit.Batch{Rows: rows(0, 200)})
	for _, n := range []int{0, 1, 3, 64, 65, 128, 129, 300} {
		seqs := make([]uint64, n)
		for i := range seqs {
			seqs[i] = uint64(i*37) % 200
		}
		nodes, err := db.Nodes(t.Context(), seqs)
		if err != nil || len(nodes) != n {
			t.Fatalf("Nodes of %d = %d, %v, want %d", n, len(nodes), err, n)
		}
		for i, got := range nodes {
			if want := row(seqs[i], "").Nodes; !bytes.Equal(got, want) {
				t.Errorf("Nodes(%d) = %x, want %x", seqs[i], got, want)
			}
		}
	}
	for _, seq := range []uint64{200, math.MaxUint64} {
		_, err := db.Nodes(t.Context(), []uint64{0, seq})
		wantError(t, err, fmt.Sprintf("the audit log has no record %d", seq), storage.ErrIntegrity)
	}
}

func TestRowsAndFind(t *testing.T) {
	db := open(t, config(t.TempDir()))
	commit(t, db, audit.Batch{Rows: rows(0, 10)})
	tests := []struct {
		from  uint64
		limit int
		want  []audit.Row
	}{
		{0, 3, rows(0, 3)}, {8, 100, rows(8, 2)}, {10, 100, nil}, {math.MaxUint64, 1, nil}, {0, 0, nil}, {0, -1, nil},
	}
	for _, tt := range tests {
		got, err := db.Rows(t.Context(), tt.from, tt.limit)
		if err != nil {
			t.Errorf("Rows(%d, %d) = %v, want nil", tt.from, tt.limit, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("Rows(%d, %d) differs (-want +got):\n%s", tt.from, tt.limit, diff)
		}
	}
	got, ok, err := db.Find(t.Context(), eventID(4))
	if diff := cmp.Diff(row(4, "body"), got); diff != "" || !ok || err != nil {
		t.Errorf("Find = %v, %v, %v, want record 4", got, ok, err)
	}
	if _, ok, err := db.Find(t.Context(), eventID(99)); ok || err != nil {
		t.Errorf("Find of nothing = %v, %v, want false", ok, err)
	}
}
