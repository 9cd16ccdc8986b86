package audittest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"teekms/internal/audit"
)

// Load is how much [Replicas] writes.
type Load struct {
	// Writers is how many goroutines append to each replica's log, Events how many
	// records each of them wants.
	Writers, Events int
	// Disturb is called once a third of the records are there; nil is not. What
	// it does may make appends fail, but not lose or double what succeeded.
	Disturb func()
}

// Replicas appends to one log from several stores of one database at once, as
// replicas of a KMS do, and then holds that every record that was acknowledged is
// there once, where its receipt says, and that all of them are one chain under
// one checkpoint. It returns how many appends failed.
func Replicas(tb testing.TB, stores []audit.Store, load Load) (failed int) {
	tb.Helper()
	r := &replicas{load: load, total: len(stores) * load.Writers * load.Events, seqs: map[string]uint64{}}
	var wg sync.WaitGroup
	var logs []*audit.Log
	for i, store := range stores {
		l := NewLog(tb, store, func(c *audit.Config) { c.Timeout = 30 * time.Second })
		logs = append(logs, l)
		for w := range load.Writers {
			wg.Go(func() { r.write(tb, l, fmt.Sprintf("%d-%d", i, w)) })
		}
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for i, l := range logs {
		if err := l.Check(ctx); err != nil {
			tb.Errorf("Check of replica %d = %v, want nil", i, err)
		}
	}
	r.verify(ctx, tb, NewLog(tb, stores[0]))
	return r.failed
}

type replicas struct {
	load  Load
	total int

	mu     sync.Mutex
	seqs   map[string]uint64 // guarded by mu: by name, what receipts said
	failed int               // guarded by mu
	once   sync.Once
}

func (r *replicas) write(tb testing.TB, l *audit.Log, writer string) {
	for i := range r.load.Events {
		name := fmt.Sprintf("%s-%d", writer, i)
		receipt, err := l.Append(context.Background(), audit.Event{Kind: audit.ReleaseAppKey, Fields: map[string]string{"name": name}})
		r.mu.Lock()
		if err == nil {
			r.seqs[name] = receipt.Seq
		} else {
			r.failed++
		}
		third := len(r.seqs)+r.failed >= r.total/3
		r.mu.Unlock()
		if err != nil && !errors.Is(err, audit.ErrUnavailable) {
			tb.Errorf("Append = %v, want nil or ErrUnavailable", err)
		}
		if third && r.load.Disturb != nil {
			r.once.Do(r.load.Disturb)
		}
	}
}

// verify reads the whole log.
func (r *replicas) verify(ctx context.Context, tb testing.TB, l *audit.Log) {
	tb.Helper()
	var tree audit.Tree
	var last [32]byte
	for {
		rows, size, err := l.Records(ctx, tree.Size(), 1000)
		if err != nil {
			tb.Fatalf("Records(%d) = %v", tree.Size(), err)
		}
		for _, row := range rows {
			record, err := audit.Parse(row.Body)
			if err != nil || record.Seq != tree.Size() || record.Prev != last {
				tb.Fatalf("record %d is %v, %v, and does not follow from the one before", tree.Size(), record, err)
			}
			name := record.Fields["name"]
			if seq, ok := r.seqs[name]; ok && seq != record.Seq {
				tb.Errorf("%s is record %d, and its receipt says %d", name, record.Seq, seq)
			}
			delete(r.seqs, name)
			last = audit.Hash(row.Body)
			tree.Append(last)
		}
		if tree.Size() == size {
			break
		}
	}
	for name, seq := range r.seqs {
		tb.Errorf("%s was acknowledged as record %d, and is not there", name, seq)
	}
	row, _, _, err := l.ProveRecord(ctx, tree.Size()/2, 0) // it checks against the sealed head
	if err != nil || row.Seq != tree.Size()/2 {
		tb.Errorf("ProveRecord(%d) = %v", tree.Size()/2, err)
	}
	if size := int(tree.Size()); size < r.total-r.failed || size > r.total {
		tb.Errorf("%d records, want %d, and at most %d more", size, r.total-r.failed, r.failed)
	}
}
