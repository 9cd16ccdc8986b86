package audit_test

import (
	"errors"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/mod/sumdb/tlog"

	"teekms/internal/audit"
	"teekms/internal/audit/audittest"
	"teekms/internal/keys"
)

// grown appends n records with a log of its own, as another replica does.
func grown(tb testing.TB, store audit.Store, n int) {
	tb.Helper()
	l := open(tb, store)
	defer closeLog(tb, l)
	for i := range n {
		if _, err := l.Append(tb.Context(), event(i)); err != nil {
			tb.Fatal(err)
		}
	}
}

// rewrite changes a record and makes chain and tree anew, as somebody can who
// has the database; the head he cannot make.
func rewrite(tb testing.TB, state *audittest.State, seq int, change func(*audit.Record)) {
	tb.Helper()
	var reference stored
	for i := range state.Rows {
		r, err := audit.Parse(state.Rows[i].Body)
		if err != nil {
			tb.Fatal(err)
		}
		if i == seq {
			change(r)
		}
		if i > 0 {
			r.Prev = audit.Hash(state.Rows[i-1].Body)
		}
		body, err := r.Marshal()
		if err != nil {
			tb.Fatal(err)
		}
		hashes, err := tlog.StoredHashes(int64(i), body, reference)
		if err != nil {
			tb.Fatal(err)
		}
		reference = append(reference, hashes...)
		var nodes []byte
		for _, h := range hashes {
			nodes = append(nodes, h[:]...)
		}
		state.Rows[i].Body, state.Rows[i].Nodes = body, nodes
	}
}

// TestDatabaseThatLies is what a log does that knew 10 records, over a database
// that was changed under it.
func TestDatabaseThatLies(t *testing.T) {
	lie := func(r *audit.Record) { r.Fields = map[string]string{"n": "never"} }
	tests := []struct {
		name string
		// change gets the database with 10 records, and one from when it had 5.
		change      func(t *testing.T, now, before audittest.State) audittest.State
		want        error
		check, text string
	}{
		{"rolled back", func(_ *testing.T, _, before audittest.State) audittest.State { return before }, audit.ErrRolledBack, "", "it had 10 records, and now 5"},
		{"emptied", func(*testing.T, audittest.State, audittest.State) audittest.State { return audittest.State{} }, audit.ErrRolledBack, "", "it had 10 records, and now 0"},
		{"forked at the same size", func(t *testing.T, _, before audittest.State) audittest.State {
			return fork(t, before, 5)
		}, audit.ErrForked, "", "its 10 records are not those from before"},
		{"forked and longer", func(t *testing.T, _, before audittest.State) audittest.State {
			return fork(t, before, 8)
		}, audit.ErrForked, "", "its 13 records do not begin with the 10 from before"},
		{"forked, with the old rows under the new head", func(t *testing.T, now, before audittest.State) audittest.State {
			forked := fork(t, before, 8)
			copy(forked.Rows, now.Rows)
			return forked
		}, audit.ErrForked, "", "its 13 records do not begin with the 10 from before"},
		{"a head that is none", func(_ *testing.T, now, _ audittest.State) audittest.State {
			now.Head = []byte("head")
			return now
		}, audit.ErrTampered, "", "its head is none"},
		{"a head of another size", func(_ *testing.T, now, _ audittest.State) audittest.State {
			now.Head[len("teekms audit head v1\n")+15]++
			return now
		}, audit.ErrTampered, "", "its head was not written by a KMS of these root keys"},
		{"a head of another KMS", func(t *testing.T, _, _ audittest.State) audittest.State {
			store := audittest.NewStore()
			l := open(t, store, func(c *audit.Config) { c.Key = keys.NewSecret(make([]byte, 32)) })
			defer closeLog(t, l)
			for i := range 11 {
				if _, err := l.Append(t.Context(), event(i)); err != nil {
					t.Fatal(err)
				}
			}
			return store.State()
		}, audit.ErrTampered, "", "its head was not written by a KMS of these root keys"},
		// The rest leaves the head as it is, so that appending goes on; reading finds it.
		{"the last record rewritten", func(t *testing.T, now, _ audittest.State) audittest.State {
			rewrite(t, &now, 9, lie)
			return now
		}, nil, "record 9 is not the one that was written", ""},
		{"the last record deleted", func(_ *testing.T, now, _ audittest.State) audittest.State {
			now.Rows = now.Rows[:9]
			return now
		}, nil, "record 9 is not the one that was written", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			store := audittest.NewStore()
			core, logs := observer.New(zap.ErrorLevel)
			grown(t, store, 5)
			before := store.State()
			grown(t, store, 4)
			l := open(t, store, func(c *audit.Config) { c.Log = zap.New(core) })
			defer closeLog(t, l)
			if _, err := l.Append(t.Context(), event(9)); err != nil {
				t.Fatal(err)
			}
			good := store.State()
			store.SetState(tt.change(t, store.State(), before))
			if tt.want == nil {
				if err := l.Check(t.Context()); !errors.Is(err, audit.ErrTampered) || !strings.Contains(err.Error(), tt.check) {
					t.Errorf("Check() = %v, want ErrTampered: %s", err, tt.check)
				}
				return
			}
			if err := l.Check(t.Context()); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Check() = %v, want %v: %s", err, tt.want, tt.text)
			}
			for name, err := range map[string]error{
				"Append":      errOf(l.Append(t.Context(), event(10))),
				"Checkpoint":  errOf(l.Checkpoint(t.Context())),
				"Records":     second(l.Records(t.Context(), 0, 1)),
				"ProveRecord": fourth(l.ProveRecord(t.Context(), 0, 0)),
				"ProveTree":   second(l.ProveTree(t.Context(), 1, 0)),
			} {
				if !errors.Is(err, tt.want) {
					t.Errorf("%s() = %v, want %v", name, err, tt.want)
				}
			}
			if logs.FilterMessage("the audit log is not as it was").Len() != 1 {
				t.Errorf("log = %v, want one line about it", logs.All())
			}
			// It is no state of the process: with the right database all is well.
			store.SetState(good)
			if _, err := l.Append(t.Context(), event(10)); err != nil {
				t.Errorf("Append() to the database as it was = %v, want nil", err)
			}
		})
	}
}

// fork continues an older state with other records.
func fork(tb testing.TB, from audittest.State, n int) audittest.State {
	tb.Helper()
	store := audittest.NewStore()
	store.SetState(from)
	grown(tb, store, n)
	return store.State()
}

// TestRowsThatWereChangedAreNotProved holds that a server does not prove, or take
// for its own, what is not in the tree under its head.
func TestRowsThatWereChangedAreNotProved(t *testing.T) {
	store := audittest.NewStore()
	grown(t, store, 10)
	state := store.State()
	rewrite(t, &state, 3, func(r *audit.Record) { r.Fields["n"] = "never" })
	store.SetState(state)
	l := open(t, store)
	defer closeLog(t, l)
	if err := fourth(l.ProveRecord(t.Context(), 3, 0)); !errors.Is(err, audit.ErrTampered) || !strings.Contains(err.Error(), "record 3 is not in the tree") {
		t.Errorf("ProveRecord() = %v, want ErrTampered: record 3 is not in the tree", err)
	}

	// Somebody puts a row there for an event that is still to come, in the hope
	// that it is taken for its record.
	planted := event(77)
	planted.ID = [16]byte{7}
	e := audit.Record{Seq: 4, ID: planted.ID, Kind: planted.Kind, Fields: planted.Fields, Time: planted.Time}
	body, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	state.Rows[4].Body, state.Rows[4].EventID = body, e.ID
	store.SetState(state)
	_, err = l.Append(t.Context(), audit.Event{ID: e.ID, Kind: e.Kind, Fields: e.Fields, Time: e.Time.Add(1)})
	if !errors.Is(err, audit.ErrTampered) || !strings.Contains(err.Error(), "record 4 is not in the tree") {
		t.Errorf("Append() of an event that somebody planted = %v, want ErrTampered: record 4 is not in the tree", err)
	}
}

// TestHeadThatWasRemoved holds that a process which knew nothing before does not
// take a log without its head for an empty one.
func TestHeadThatWasRemoved(t *testing.T) {
	store := audittest.NewStore()
	l := open(t, store)
	defer closeLog(t, l)
	if err := l.Check(t.Context()); err != nil {
		t.Errorf("Check() of an empty log = %v, want nil", err)
	}
	grown(t, store, 3)
	state := store.State()
	state.Head = nil
	store.SetState(state)
	if err := l.Check(t.Context()); !errors.Is(err, audit.ErrTampered) || !strings.Contains(err.Error(), "its head was removed") {
		t.Errorf("Check() = %v, want ErrTampered: its head was removed", err)
	}
}

func TestNodesThatAreMissingAreTold(t *testing.T) {
	store := audittest.NewStore()
	grown(t, store, 10)
	state := store.State()
	for i := range state.Rows {
		state.Rows[i].Nodes = state.Rows[i].Nodes[:16]
	}
	store.SetState(state)
	l := open(t, store)
	defer closeLog(t, l)
	if err := second(l.ProveTree(t.Context(), 3, 0)); !errors.Is(err, audit.ErrTampered) || !strings.Contains(err.Error(), "the hashes of record") {
		t.Errorf("ProveTree() = %v, want ErrTampered: the hashes of record", err)
	}
	state.Rows = append(state.Rows[:4], state.Rows[5:]...)
	store.SetState(state)
	if err := second(l.Records(t.Context(), 0, 100)); !errors.Is(err, audit.ErrTampered) || !strings.Contains(err.Error(), "record 4 is missing") {
		t.Errorf("Records() = %v, want ErrTampered: record 4 is missing", err)
	}
}
