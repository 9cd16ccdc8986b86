package audit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"teekms/internal/audit"
	"teekms/internal/audit/audittest"
	"teekms/internal/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open opens a log as a process does.
func open(tb testing.TB, store audit.Store, change ...func(*audit.Config)) *audit.Log {
	tb.Helper()
	c := audit.Config{Store: store, Identity: audittest.Identity(), Log: zap.NewNop()}
	for _, f := range change {
		f(&c)
	}
	l, err := audit.New(c)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

func closeLog(tb testing.TB, l *audit.Log) {
	tb.Helper()
	if err := l.Close(context.Background()); err != nil {
		tb.Errorf("Close() = %v, want nil", err)
	}
}

func event(id int) audit.Event {
	return audit.Event{Kind: audit.ReleaseAppKey, Fields: map[string]string{"n": fmt.Sprint(id)}}
}

// consistent checks the whole chain in a store, and returns its records.
func consistent(tb testing.TB, store *audittest.Store) []*audit.Record {
	tb.Helper()
	records := store.Records(tb)
	rows := store.State().Rows
	for i, r := range records {
		if r.Seq != uint64(i) || r.ID != rows[i].EventID {
			tb.Fatalf("record %d says %d, and is of event %x stored as %x", i, r.Seq, r.ID, rows[i].EventID)
		}
		if i > 0 && r.Prev != audit.Hash(rows[i-1].Body) {
			tb.Fatalf("record %d does not follow from the one before", i)
		}
	}
	return records
}

func TestAppendRecordsWhatHappened(t *testing.T) {
	store := audittest.NewStore()
	now := time.Date(2026, 1, 2, 3, 4, 5, 678901, time.UTC)
	l := open(t, store, func(c *audit.Config) { c.Now = func() time.Time { return now } })
	defer closeLog(t, l)
	for i := range uint64(3) {
		r, err := l.Append(t.Context(), audit.Event{Kind: audit.Denial, Fields: map[string]string{"reason": "no", "app_id": ""}})
		if err != nil || r != (audit.Receipt{Seq: i}) {
			t.Fatalf("Append() = %v, %v, want seq %d", r, err, i)
		}
	}
	for i, r := range consistent(t, store) {
		want := &audit.Record{
			Seq: uint64(i), Prev: r.Prev, ID: r.ID, Time: now.Truncate(time.Microsecond), Kind: audit.Denial, Fields: map[string]string{"reason": "no"},
		}
		if diff := cmp.Diff(want, r); diff != "" || r.ID == [16]byte{} {
			t.Errorf("record %d (-want +got):\n%s", i, diff)
		}
	}
	if err := l.Check(t.Context()); err != nil {
		t.Errorf("Check() = %v, want nil", err)
	}
	if _, err := l.Append(t.Context(), audit.Event{}); !errors.Is(err, audit.ErrInvalid) {
		t.Errorf("Append() of nothing = %v, want ErrInvalid", err)
	}
}

func compose(n int) registry.Rule {
	return registry.Rule{Kind: registry.App, Value: fmt.Sprintf("%040x", n)}
}

// TestChangesAreInTheirRecord holds that rules change with the record of the
// change, one revision for each.
func TestChangesAreInTheirRecord(t *testing.T) {
	store := audittest.NewStore()
	l := open(t, store)
	defer closeLog(t, l)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			e := event(i)
			if i%2 == 0 {
				e.Kind, e.Edits = audit.RegistryChange, []registry.Edit{{Op: registry.Add, Rule: compose(i)}}
			}
			if _, err := l.Append(t.Context(), e); err != nil {
				t.Errorf("Append() = %v", err)
			}
		})
	}
	wg.Wait()
	revision := uint64(0)
	rules := store.State().Rules
	for _, r := range consistent(t, store) {
		revision += uint64(len(r.Edits))
		if r.Revision != revision {
			t.Errorf("record %d has revision %d, want %d", r.Seq, r.Revision, revision)
		}
		for _, e := range r.Edits {
			if rules[e.Rule] != revision {
				t.Errorf("rule %v is of revision %d, want %d", e.Rule, rules[e.Rule], revision)
			}
		}
	}
	if got, err := l.Revision(t.Context()); err != nil || got != 20 || len(rules) != 20 {
		t.Errorf("Revision() = %d, %v, with %d rules, want 20", got, err, len(rules))
	}
}

func TestExpectedRevisionIsCheckedInTheCommit(t *testing.T) {
	store := audittest.NewStore()
	l := open(t, store)
	defer closeLog(t, l)
	change := func(n int, expected uint64) audit.Event {
		return audit.Event{
			Kind: audit.RegistryChange, Edits: []registry.Edit{{Op: registry.Add, Rule: compose(n)}}, ExpectedRevision: &expected,
		}
	}
	if r, err := l.Append(t.Context(), change(1, 0)); err != nil || r != (audit.Receipt{Seq: 0, Revision: 1}) {
		t.Fatalf("Append() = %v, %v", r, err)
	}
	// One of those that expect the same wins; releases in their groups do not care.
	var won, lost, released atomic.Int32
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			if i%3 == 0 {
				if _, err := l.Append(t.Context(), event(i)); err == nil {
					released.Add(1)
				}
				return
			}
			switch _, err := l.Append(t.Context(), change(i, 1)); {
			case err == nil:
				won.Add(1)
			case errors.Is(err, audit.ErrRevision):
				lost.Add(1)
			default:
				t.Errorf("Append() = %v, want nil or ErrRevision", err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || lost.Load() != 19 || released.Load() != 10 || len(consistent(t, store)) != 12 {
		t.Errorf("%d won, %d lost, %d released, %d records; want 1, 19, 10, 12", won.Load(), lost.Load(), released.Load(), len(store.State().Rows))
	}
}

// TestReplicasShareOneChain has three logs on one store under load, with readers.
func TestReplicasShareOneChain(t *testing.T) {
	store := audittest.NewStore()
	reader := open(t, store)
	defer closeLog(t, reader)
	done, read := make(chan struct{}), make(chan int)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-done:
				read <- n
				return
			default:
			}
			if err := reader.Check(t.Context()); err != nil {
				t.Errorf("Check() = %v, want nil", err)
			}
			if _, err := reader.Checkpoint(t.Context()); err != nil {
				t.Errorf("Checkpoint() = %v, want nil", err)
			}
		}
	}()
	failed := audittest.Replicas(t, []audit.Store{store, store, store}, audittest.Load{Writers: 8, Events: 40})
	close(done)
	if n := <-read; failed != 0 || n == 0 {
		t.Errorf("%d appends failed, %d reads, want none and some", failed, n)
	}
}

// moody is a store whose commits do what its mood says.
type moody struct {
	*audittest.Store
	// mood gets the number of the commit, from 0, and the commit.
	mood    func(n int, ctx context.Context, commit func() error) error
	commits atomic.Int32
}

func (m *moody) Commit(ctx context.Context, build func([]byte) (audit.Batch, error)) error {
	n := int(m.commits.Add(1)) - 1
	return m.mood(n, ctx, func() error { return m.Store.Commit(ctx, build) })
}

var errLost = errors.New("connection lost")

// TestOutcomeThatNobodySaid loses the answer of commits that were written, and
// of some that were not: every event is recorded, and once.
func TestOutcomeThatNobodySaid(t *testing.T) {
	store := &moody{Store: audittest.NewStore(), mood: func(n int, _ context.Context, commit func() error) error {
		switch n % 4 {
		case 0:
			_ = commit()
			return errLost
		case 1:
			return errLost
		default:
			return commit()
		}
	}}
	l := open(t, store)
	defer closeLog(t, l)
	const writers, events = 16, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range events {
				e := event(w*events + i)
				if i == 5 { // its revision is not the expected one once it is written
					e.Edits = []registry.Edit{{Op: registry.Add, Rule: compose(w)}}
				}
				if _, err := l.Append(t.Context(), e); err != nil {
					t.Errorf("Append() = %v", err)
				}
			}
		})
	}
	wg.Wait()
	seen := map[string]int{}
	for _, r := range consistent(t, store.Store) {
		seen[r.Fields["n"]]++
	}
	for n, times := range seen {
		if times != 1 {
			t.Errorf("event %s is recorded %d times", n, times)
		}
	}
	if len(seen) != writers*events {
		t.Errorf("%d events recorded, want %d", len(seen), writers*events)
	}
}

// TestOutcomeOfAChangeThatNobodySaid holds that a change which was made is not
// told to have failed because its own revision came after.
func TestOutcomeOfAChangeThatNobodySaid(t *testing.T) {
	store := &moody{Store: audittest.NewStore(), mood: func(n int, _ context.Context, commit func() error) error {
		if err := commit(); err != nil || n > 0 {
			return err
		}
		return errLost
	}}
	l := open(t, store)
	defer closeLog(t, l)
	r, err := l.Append(t.Context(), audit.Event{
		Kind: audit.RegistryChange, Edits: []registry.Edit{{Op: registry.Add, Rule: compose(1)}}, ExpectedRevision: new(uint64),
	})
	if err != nil || r != (audit.Receipt{Seq: 0, Revision: 1}) || len(store.State().Rows) != 1 {
		t.Errorf("Append() = %v, %v with %d records, want seq 0, revision 1, one record", r, err, len(store.State().Rows))
	}
}

// TestSameEventTwice holds that an event is recorded once, and that another
// under its id is refused.
func TestSameEventTwice(t *testing.T) {
	store := audittest.NewStore()
	l := open(t, store)
	defer closeLog(t, l)
	e := event(1)
	e.ID, e.Time = [16]byte{1}, time.Unix(1, 0)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if r, err := l.Append(t.Context(), e); err != nil || r.Seq != 0 {
				t.Errorf("Append() = %v, %v, want seq 0", r, err)
			}
		})
	}
	wg.Wait()
	e.Fields = map[string]string{"n": "2"}
	if _, err := l.Append(t.Context(), e); !errors.Is(err, audit.ErrDuplicate) {
		t.Errorf("Append() of another event with the id = %v, want ErrDuplicate", err)
	}
	if n := len(consistent(t, store)); n != 1 {
		t.Errorf("%d records, want 1", n)
	}
}

func TestUnavailableStoreIsTriedUntilTheCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := audittest.NewStore()
		l := open(t, store)
		defer closeLog(t, l)
		store.Break(errLost)
		start := time.Now()
		_, err := l.Append(t.Context(), event(1))
		if !errors.Is(err, audit.ErrUnavailable) || time.Since(start) != 10*time.Second {
			t.Errorf("Append() = %v after %v, want ErrUnavailable after 10s", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		if _, err := l.Append(ctx, event(2)); !errors.Is(err, audit.ErrUnavailable) || time.Since(start) != time.Second {
			t.Errorf("Append() = %v after %v, want ErrUnavailable after 1s", err, time.Since(start))
		}
		time.AfterFunc(3*time.Second, func() { store.Break(nil) })
		if _, err := l.Append(t.Context(), event(3)); err != nil {
			t.Errorf("Append() to a store that comes back = %v, want nil", err)
		}
		if records := consistent(t, store); len(records) != 1 || records[0].Fields["n"] != "3" {
			t.Errorf("records = %v, want the last event alone", records)
		}
	})
}

// TestStoreThatHangs holds that callers leave in time although the store obeys
// no context, that the queue is bounded, and that what waits there for nobody is
// not written.
func TestStoreThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		store := &moody{Store: audittest.NewStore(), mood: func(_ int, _ context.Context, commit func() error) error {
			<-hang
			return commit()
		}}
		l := open(t, store)
		var wg sync.WaitGroup
		var waiting, queue, durable atomic.Int32
		for i := range 5000 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := l.Append(ctx, event(i))
				switch {
				case err == nil || !errors.Is(err, audit.ErrUnavailable):
					t.Errorf("Append() = %v, want ErrUnavailable", err)
				case strings.Contains(err.Error(), "waiting for a place in the queue"):
					queue.Add(1)
				case strings.Contains(err.Error(), "waiting for earlier records"):
					waiting.Add(1)
				case strings.Contains(err.Error(), "waiting for the record to be durable"):
					durable.Add(1)
				}
			})
		}
		wg.Wait()
		if queue.Load() == 0 || waiting.Load() != 4096 || durable.Load() < 1 || queue.Load()+waiting.Load()+durable.Load() != 5000 {
			t.Errorf("%d had no place, %d waited in the queue, %d were being written", queue.Load(), waiting.Load(), durable.Load())
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close() = %v, want DeadlineExceeded", err)
		}
		close(hang)
		closeLog(t, l)
		if n := len(store.State().Rows); n > 256 {
			t.Errorf("%d records, want those of one group at most", n)
		}
	})
}

// TestCallerWhoLeavesDelaysNobody holds that his context ends his wait alone.
func TestCallerWhoLeavesDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &moody{Store: audittest.NewStore(), mood: func(_ int, ctx context.Context, commit func() error) error {
			time.Sleep(time.Second)
			return commit()
		}}
		l := open(t, store)
		defer closeLog(t, l)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Millisecond, cancel)
		var wg sync.WaitGroup
		wg.Go(func() {
			start := time.Now()
			if _, err := l.Append(ctx, event(1)); !errors.Is(err, context.Canceled) || time.Since(start) > 2*time.Millisecond {
				t.Errorf("Append() = %v after %v, want Canceled at once", err, time.Since(start))
			}
		})
		wg.Go(func() {
			if _, err := l.Append(t.Context(), event(2)); err != nil {
				t.Errorf("Append() = %v, want nil", err)
			}
		})
		wg.Wait()
	})
}

func TestCloseWritesWhatWasTakenIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &moody{Store: audittest.NewStore(), mood: func(_ int, _ context.Context, commit func() error) error {
			time.Sleep(10 * time.Millisecond)
			return commit()
		}}
		l := open(t, store)
		var written, refused atomic.Int32
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 100 * time.Microsecond)
				switch _, err := l.Append(t.Context(), event(i)); {
				case err == nil:
					written.Add(1)
				case errors.Is(err, audit.ErrClosed):
					refused.Add(1)
				default:
					t.Errorf("Append() = %v, want nil or ErrClosed", err)
				}
			})
		}
		time.Sleep(50 * time.Millisecond)
		closeLog(t, l)
		wg.Wait()
		if n := len(consistent(t, store.Store)); n != int(written.Load()) || written.Load() < 400 || refused.Load() < 400 {
			t.Errorf("%d records, %d told so, %d refused", n, written.Load(), refused.Load())
		}
		if _, err := l.Append(t.Context(), event(0)); !errors.Is(err, audit.ErrClosed) {
			t.Errorf("Append() after Close() = %v, want ErrClosed", err)
		}
		closeLog(t, l)
	})
}

// TestGroupsAreBounded holds that a transaction has at most 256 records, and
// that the load of one group does not delay the first of it.
func TestGroupsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sizes []int
		store := &moody{Store: audittest.NewStore()}
		store.mood = func(_ int, _ context.Context, commit func() error) error {
			time.Sleep(time.Millisecond)
			before := len(store.State().Rows)
			err := commit()
			sizes = append(sizes, len(store.State().Rows)-before)
			return err
		}
		reg := prometheus.NewRegistry()
		l := open(t, store, func(c *audit.Config) { c.Metrics = reg })
		start := time.Now()
		if _, err := l.Append(t.Context(), event(0)); err != nil || time.Since(start) != time.Millisecond {
			t.Errorf("one Append() = %v after %v, want the time of one commit", err, time.Since(start))
		}
		var wg sync.WaitGroup
		for i := range 600 {
			wg.Go(func() {
				e := event(i)
				if i < 40 { // 2.5 MiB
					e.Fields["big"] = strings.Repeat("x", audit.MaxValue)
				}
				if _, err := l.Append(t.Context(), e); err != nil {
					t.Errorf("Append() = %v", err)
				}
			})
		}
		wg.Wait()
		closeLog(t, l)
		if slices.Max(sizes) > 256 || len(sizes) < 5 || len(sizes) > 12 {
			t.Errorf("records in each transaction: %v, want few transactions of at most 256", sizes)
		}
		want := map[string]float64{"teekms_audit_appends_total": 601, "teekms_audit_failures_total": 0, "teekms_audit_records": 601}
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			m := f.GetMetric()[0]
			value, ok := want[f.GetName()]
			if ok && m.GetCounter().GetValue()+m.GetGauge().GetValue() != value {
				t.Errorf("%s = %v, want %v", f.GetName(), m, value)
			}
			if f.GetName() == "teekms_audit_batch_size" && m.GetHistogram().GetSampleCount() != uint64(len(sizes)) {
				t.Errorf("%d batches counted, want %d", m.GetHistogram().GetSampleCount(), len(sizes))
			}
		}
	})
}

func TestRecordsComeInOrderAndBounded(t *testing.T) {
	store := audittest.NewStore()
	l := open(t, store)
	defer closeLog(t, l)
	for i := range 60 {
		e := event(i)
		if i >= 20 {
			for f := range 10 {
				e.Fields[fmt.Sprintf("big%d", f)] = strings.Repeat("x", audit.MaxValue)
			}
		}
		if _, err := l.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	var next, size uint64
	for pages := 0; next < 60; pages++ {
		rows, n, err := l.Records(t.Context(), next, 1<<20)
		if err != nil || len(rows) == 0 || pages > 30 {
			t.Fatalf("Records(%d) = %d rows, %v", next, len(rows), err)
		}
		total := 0
		for _, r := range rows {
			if total += len(r.Body); r.Seq != next {
				t.Fatalf("row %d, want %d", r.Seq, next)
			}
			next++
		}
		if total > 2<<20 {
			t.Errorf("a page of %d bytes", total)
		}
		size = n
	}
	if rows, _, err := l.Records(t.Context(), 60, 10); err != nil || len(rows) != 0 || size != 60 {
		t.Errorf("Records() at the end = %v, %v, of %d; want none of 60", rows, err, size)
	}
	if rows, _, err := l.Records(t.Context(), 0, 3); err != nil || len(rows) != 3 {
		t.Errorf("Records() of 3 = %d, %v", len(rows), err)
	}
	for name, err := range map[string]error{
		"Records":     second(l.Records(t.Context(), 61, 1)),
		"ProveRecord": fourth(l.ProveRecord(t.Context(), 60, 0)),
		"a size":      fourth(l.ProveRecord(t.Context(), 0, 61)),
		"ProveTree":   second(l.ProveTree(t.Context(), 5, 61)),
		"no tree":     second(l.ProveTree(t.Context(), 0, 60)),
		"backwards":   second(l.ProveTree(t.Context(), 10, 9)),
	} {
		if !errors.Is(err, audit.ErrRange) {
			t.Errorf("%s beyond the end = %v, want ErrRange", name, err)
		}
	}
}

func errOf[A any](_ A, err error) error { return err }

func second[A, B any](_ A, _ B, err error) error { return err }

func fourth[A, B, C any](_ A, _ B, _ C, err error) error { return err }

// TestClearBeginsAnew holds that a new log tells what the old one was, and that
// replicas which knew the old one go on with the new.
func TestClearBeginsAnew(t *testing.T) {
	store := audittest.NewStore()
	replica := open(t, store)
	defer closeLog(t, replica)
	var old audit.Tree
	for i := range 5 {
		e := event(i)
		e.Edits = []registry.Edit{{Op: registry.Add, Rule: compose(i)}}
		if _, err := replica.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		old.Append(audit.Hash(store.State().Rows[i].Body))
	}
	before := store.State()
	moods := 0
	l := open(t, &moody{Store: store, mood: func(n int, _ context.Context, commit func() error) error {
		moods++
		if err := commit(); err != nil || n > 0 {
			return err
		}
		return errLost // it was cleared, and is not to be cleared again
	}})
	defer closeLog(t, l)
	if r, err := l.Clear(t.Context(), audit.Event{Fields: map[string]string{"by": "test"}}); err != nil || r != (audit.Receipt{Revision: 6}) || moods != 1 || store.State().Revision != 6 {
		t.Fatalf("Clear() = %v, %v after %d commits", r, err, moods)
	}
	records := consistent(t, store)
	want := map[string]string{"by": "test", "old_size": "5", "old_root": old.Root().String()}
	if diff := cmp.Diff(want, records[0].Fields); diff != "" || records[0].Kind != audit.DatabaseCleared || len(records) != 1 || len(store.State().Rules) != 0 {
		t.Errorf("first record (-want +got):\n%s", diff)
	}
	if r, err := replica.Append(t.Context(), event(9)); err != nil || r != (audit.Receipt{Seq: 1, Revision: 6}) {
		t.Errorf("Append() of a replica = %v, %v, want seq 1, revision 6", r, err)
	}
	store.SetState(before)
	if _, err := replica.Append(t.Context(), event(9)); !errors.Is(err, audit.ErrRolledBack) {
		t.Errorf("Append() to the log from before it was cleared = %v, want ErrRolledBack", err)
	}
}

// TestReadersAndWritersOfOneLog has readers and writers share two logs: heads
// that are seen in another order than they were written are no forks.
func TestReadersAndWritersOfOneLog(t *testing.T) {
	store := audittest.NewStore()
	var wg sync.WaitGroup
	for range 2 {
		l := open(t, store)
		defer closeLog(t, l)
		for range 4 {
			wg.Go(func() {
				for i := range 100 {
					if _, err := l.Append(t.Context(), event(i)); err != nil {
						t.Errorf("Append() = %v", err)
					}
				}
			})
			wg.Go(func() {
				for range 100 {
					if err := l.Check(t.Context()); err != nil {
						t.Errorf("Check() = %v", err)
					}
					if _, err := l.Size(t.Context()); err != nil {
						t.Errorf("Size() = %v", err)
					}
				}
			})
		}
	}
	wg.Wait()
	if n := len(consistent(t, store)); n != 800 {
		t.Errorf("%d records, want 800", n)
	}
}

// forgetful is a store whose Nodes fail for a while.
type forgetful struct {
	*audittest.Store
	failures atomic.Int32
}

func (f *forgetful) Nodes(ctx context.Context, seqs []uint64) ([][]byte, error) {
	if f.failures.Add(-1) >= 0 {
		return nil, errLost
	}
	return f.Store.Nodes(ctx, seqs)
}

// TestNothingIsReleasedBeforeTheHeadIsChecked holds that a record which was
// written counts only once the log is known to continue what was seen before.
func TestNothingIsReleasedBeforeTheHeadIsChecked(t *testing.T) {
	store := &forgetful{Store: audittest.NewStore()}
	l := open(t, store, func(c *audit.Config) { c.Timeout = 200 * time.Millisecond })
	defer closeLog(t, l)
	if _, err := l.Append(t.Context(), event(0)); err != nil {
		t.Fatal(err)
	}
	grown(t, store.Store, 3)
	store.failures.Store(2)
	if r, err := l.Append(t.Context(), event(4)); err != nil || r.Seq != 4 || len(consistent(t, store.Store)) != 5 {
		t.Errorf("Append() = %v, %v with %d records, want seq 4 of 5", r, err, len(store.State().Rows))
	}
	grown(t, store.Store, 3)
	store.failures.Store(1 << 20)
	if _, err := l.Append(t.Context(), event(8)); !errors.Is(err, audit.ErrUnavailable) {
		t.Errorf("Append() while nothing can be checked = %v, want ErrUnavailable", err)
	}
}

// TestClearOfALogThatCannotBeRead holds that the operator who wants rid of it is
// not kept from it, and that the new log does not pretend to know the old one.
func TestClearOfALogThatCannotBeRead(t *testing.T) {
	store := audittest.NewStore()
	l := open(t, store)
	defer closeLog(t, l)
	for range 2 { // the second time there is a generation to go on from
		if _, err := l.Append(t.Context(), event(1)); err != nil {
			t.Fatal(err)
		}
		state := store.State()
		state.Head[len(state.Head)-1] ^= 1
		store.SetState(state)
		if _, err := l.Append(t.Context(), event(2)); !errors.Is(err, audit.ErrTampered) {
			t.Fatalf("Append() = %v, want ErrTampered", err)
		}
		if r, err := l.Clear(t.Context(), audit.Event{}); err != nil || r.Seq != 0 {
			t.Fatalf("Clear() = %v, %v", r, err)
		}
		if got := consistent(t, store)[0].Fields; len(got) != 1 || got["old_size"] != "unreadable" {
			t.Errorf("fields = %v, want an unreadable size alone", got)
		}
		if err := l.Check(t.Context()); err != nil {
			t.Errorf("Check() = %v, want nil", err)
		}
	}
	if _, err := l.Clear(t.Context(), audit.Event{Fields: map[string]string{"X": "y"}}); !errors.Is(err, audit.ErrInvalid) {
		t.Errorf("Clear() with a field that is none = %v, want ErrInvalid", err)
	}
}
