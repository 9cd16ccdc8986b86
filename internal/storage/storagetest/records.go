package storagetest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"testing"
	"time"

	"teekms/internal/audit"
	"teekms/internal/registry"
	"teekms/internal/storage"
)

// record is what a test appends.
type record struct {
	id   [audit.IDSize]byte
	body []byte
}

// newRecords makes n records with bodies of this size.
func newRecords(n, size int) []record {
	records := make([]record, n)
	for i := range records {
		records[i].body = make([]byte, size)
		// crypto/rand.Read never fails.
		_, _ = rand.Read(records[i].id[:])
		_, _ = rand.Read(records[i].body)
	}
	return records
}

// head is the head that the tests keep: the size of the log and the revision of
// the policy, as audit.Log's holds them too.
type head struct{ Size, Revision uint64 }

func (h head) marshal() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte("head\x00"), h.Size), h.Revision)
}

func parseHead(b []byte) (head, error) {
	if b == nil {
		return head{}, nil
	}
	if len(b) != 21 || string(b[:5]) != "head\x00" {
		return head{}, fmt.Errorf("head is %x", b)
	}
	return head{Size: binary.BigEndian.Uint64(b[5:]), Revision: binary.BigEndian.Uint64(b[13:])}, nil
}

// nodes makes the hashes of a row out of its place and its id.
func nodes(seq uint64, id [audit.IDSize]byte) []byte {
	var hashes []byte
	for level := range 1 + bits.TrailingZeros64(^seq) {
		sum := sha256.Sum256(fmt.Appendf(nil, "%x %d %d", id, seq, level))
		hashes = append(hashes, sum[:]...)
	}
	return hashes
}

// appending returns a build for Commit that appends records and edits the rules.
func appending(records []record, edits ...registry.Edit) func([]byte) (audit.Batch, error) {
	return func(current []byte) (audit.Batch, error) {
		h, err := parseHead(current)
		if err != nil {
			return audit.Batch{}, err
		}
		var b audit.Batch
		for _, r := range records {
			b.Rows = append(b.Rows, audit.Row{Seq: h.Size, EventID: r.id, Body: r.body, Nodes: nodes(h.Size, r.id)})
			h.Size++
		}
		if len(edits) > 0 {
			h.Revision++
			b.Edits, b.Revision = edits, h.Revision
		}
		b.Head = h.marshal()
		return b, nil
	}
}

// mustCommit appends records and edits.
func mustCommit(t *testing.T, db audit.Store, records []record, edits ...registry.Edit) {
	t.Helper()
	if err := db.Commit(t.Context(), appending(records, edits...)); err != nil {
		t.Fatalf("Commit: %v", err)
	}
}

// settle commits until it is known that the records are in the log, as audit.Log
// does: after an error it asks for them. Errors other than that the database is
// away end it.
func settle(ctx context.Context, db audit.Store, records []record, edits ...registry.Edit) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	for {
		err := db.Commit(ctx, appending(records, edits...))
		if err == nil || errors.Is(err, audit.ErrDuplicate) {
			return nil
		}
		if !errors.Is(err, storage.ErrUnavailable) {
			return fmt.Errorf("committing: %w", err)
		}
		for found := storage.ErrUnavailable; found != nil; {
			var ok bool
			_, ok, found = db.Find(ctx, records[0].id)
			switch {
			case found == nil && ok:
				return nil
			case found != nil && !errors.Is(found, storage.ErrUnavailable):
				return fmt.Errorf("finding the record: %w", found)
			case ctx.Err() != nil:
				return fmt.Errorf("no answer in %v: Commit = %w, Find = %w", settleTimeout, err, found)
			}
			// Whoever asks a server that is away all the time slows its start.
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// settleTimeout is how long a database may be away.
const settleTimeout = 2 * time.Minute

// allRows reads the log in pages and checks that it has no gap, nothing twice,
// and hashes that are its own.
func allRows(t *testing.T, db audit.Store) []audit.Row {
	t.Helper()
	const page = 100
	var all []audit.Row
	seen := make(map[[audit.IDSize]byte]uint64)
	for {
		rows, err := db.Rows(t.Context(), uint64(len(all)), page)
		if err != nil {
			t.Fatalf("Rows(%d): %v", len(all), err)
		}
		if len(rows) > page {
			t.Fatalf("Rows(%d, %d) returned %d rows", len(all), page, len(rows))
		}
		for _, row := range rows {
			if row.Seq != uint64(len(all)) {
				t.Fatalf("row %d has Seq %d", len(all), row.Seq)
			}
			if first, ok := seen[row.EventID]; ok {
				t.Fatalf("event %x is in rows %d and %d", row.EventID, first, row.Seq)
			}
			if !bytes.Equal(row.Nodes, nodes(row.Seq, row.EventID)) {
				t.Fatalf("row %d has other nodes than were appended", row.Seq)
			}
			seen[row.EventID] = row.Seq
			all = append(all, row)
		}
		if len(rows) < page {
			break
		}
	}
	if h := mustHead(t, db); h.Size != uint64(len(all)) {
		t.Fatalf("the head counts %d rows, there are %d", h.Size, len(all))
	}
	return all
}

// hasExactly checks that the log is these records, in whatever order.
func hasExactly(t *testing.T, db audit.Store, want []record) {
	t.Helper()
	rows := allRows(t, db)
	bodies := make(map[[audit.IDSize]byte][]byte, len(rows))
	for _, row := range rows {
		bodies[row.EventID] = row.Body
	}
	lost := 0
	for _, r := range want {
		if body, ok := bodies[r.id]; !ok || !bytes.Equal(body, r.body) {
			lost++
		}
	}
	if lost > 0 || len(rows) != len(want) {
		t.Fatalf("the log has %d rows, want %d; %d records are lost or changed", len(rows), len(want), lost)
	}
}

func mustHead(t *testing.T, db audit.Store) head {
	t.Helper()
	b, err := db.Head(t.Context())
	if err != nil {
		t.Fatalf("Head: %v", err)
	}
	h, err := parseHead(b)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// state is everything that a database holds, for comparison.
type state struct {
	Head     head
	Rows     []audit.Row
	Rules    []registry.Entry
	Revision uint64
}

func stateOf(t *testing.T, db interface {
	audit.Store
	registry.Store
},
) state {
	t.Helper()
	s := state{Head: mustHead(t, db), Rows: allRows(t, db)}
	for _, kind := range registry.Kinds() {
		s.Rules = append(s.Rules, list(t, db, registry.Query{Kind: kind})...)
	}
	_, s.Revision = match(t, db, rule(registry.App, "none"))
	return s
}

func rule(kind registry.Kind, value string) registry.Rule {
	return registry.Rule{Kind: kind, Value: value}
}

func add(rules ...registry.Rule) []registry.Edit {
	var edits []registry.Edit
	for _, r := range rules {
		edits = append(edits, registry.Edit{Op: registry.Add, Rule: r})
	}
	return edits
}

func match(t *testing.T, db registry.Store, rules ...registry.Rule) (found []bool, revision uint64) {
	t.Helper()
	found, revision, err := db.Match(t.Context(), rules)
	if err != nil {
		t.Fatalf("Match: %v", err)
	}
	if len(found) != len(rules) {
		t.Fatalf("Match of %d rules returned %d answers", len(rules), len(found))
	}
	return found, revision
}

// list reads all pages.
func list(t *testing.T, db registry.Store, q registry.Query) []registry.Entry {
	t.Helper()
	limit := q.Limit
	if limit == 0 {
		limit = 1000
	}
	var all []registry.Entry
	for {
		page, err := db.List(t.Context(), q)
		if err != nil {
			t.Fatalf("List(%+v): %v", q, err)
		}
		if len(page) > limit {
			t.Fatalf("List(%+v) returned %d entries", q, len(page))
		}
		for _, e := range page {
			last := q.After
			if len(all) > 0 {
				last = all[len(all)-1].Rule
			}
			if e.Kind != q.Kind || last != (registry.Rule{}) && cmp.Or(cmp.Compare(e.Subject, last.Subject), cmp.Compare(e.Value, last.Value)) <= 0 {
				t.Fatalf("List(%+v) returned %+v after %+v", q, e.Rule, last)
			}
			all = append(all, e)
		}
		if len(page) < limit {
			return all
		}
		q.After = page[len(page)-1].Rule
	}
}
