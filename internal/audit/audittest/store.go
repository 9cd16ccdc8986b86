// Package audittest keeps an audit log and its registry in memory, for tests of
// what writes and reads them.
package audittest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"go.uber.org/zap"

	"teekms/internal/audit"
	"teekms/internal/keys"
	"teekms/internal/registry"
)

// State is everything that a [Store] holds.
type State struct {
	Head     []byte
	Rows     []audit.Row
	Rules    map[registry.Rule]uint64
	Revision uint64
}

// Clone returns a copy.
func (s *State) Clone() State {
	c := State{Head: bytes.Clone(s.Head), Revision: s.Revision, Rules: map[registry.Rule]uint64{}}
	for _, r := range s.Rows {
		r.Body, r.Nodes = bytes.Clone(r.Body), bytes.Clone(r.Nodes)
		c.Rows = append(c.Rows, r)
	}
	for rule, revision := range s.Rules {
		c.Rules[rule] = revision
	}
	return c
}

// Store is a database in memory. Its methods may be called from several
// goroutines.
type Store struct {
	mu    sync.Mutex
	state State
	ids   map[[audit.IDSize]byte]uint64
	err   error
}

var (
	_ audit.Store    = (*Store)(nil)
	_ registry.Store = (*Store)(nil)
)

// NewStore returns an empty store.
func NewStore() *Store {
	return &Store{state: State{Rules: map[registry.Rule]uint64{}}, ids: map[[audit.IDSize]byte]uint64{}}
}

// NewLog returns a log on store, with keys that are the same for every log of
// tests, until the test ends; change may adjust its configuration.
func NewLog(tb testing.TB, store audit.Store, change ...func(*audit.Config)) *audit.Log {
	tb.Helper()
	c := audit.Config{Store: store, Identity: Identity(), Log: zap.NewNop()}
	for _, f := range change {
		f(&c)
	}
	l, err := audit.New(c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := l.Close(context.Background()); err != nil {
			tb.Errorf("closing the audit log: %v", err)
		}
	})
	return l
}

// Identity is whose log [NewLog] keeps.
func Identity() audit.Identity {
	return audit.Identity{
		Origin: "teekms.test/audit",
		Key:    keys.NewSecret(bytes.Repeat([]byte{1}, 32)), Signer: keys.NewSecret(bytes.Repeat([]byte{2}, 32)),
	}
}

// Break makes every call fail with err from now on; nil mends the store.
func (s *Store) Break(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// State returns a copy of everything in the store.
func (s *Store) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Clone()
}

// SetState replaces everything in the store, as somebody can who has the
// database.
func (s *Store) SetState(state State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = state.Clone()
	s.index()
}

func (s *Store) index() {
	s.ids = map[[audit.IDSize]byte]uint64{}
	for i, r := range s.state.Rows {
		s.ids[r.EventID] = uint64(i)
	}
}

// Records returns the records of the log.
func (s *Store) Records(tb testing.TB) []*audit.Record {
	tb.Helper()
	var records []*audit.Record
	for _, row := range s.State().Rows {
		r, err := audit.Parse(row.Body)
		if err != nil {
			tb.Fatalf("record %d: %v", row.Seq, err)
		}
		records = append(records, r)
	}
	return records
}

// enter locks the store for a call.
func (s *Store) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	if err := s.err; err != nil {
		s.mu.Unlock()
		return err
	}
	return nil
}

// Head implements audit.Store.
func (s *Store) Head(ctx context.Context) ([]byte, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	return bytes.Clone(s.state.Head), nil
}

// Commit implements audit.Store.
func (s *Store) Commit(ctx context.Context, build func([]byte) (audit.Batch, error)) error {
	if err := s.enter(ctx); err != nil {
		return err
	}
	defer s.mu.Unlock()
	b, err := build(bytes.Clone(s.state.Head))
	if err != nil {
		return err
	}
	if b.Clear {
		s.state = State{Rules: map[registry.Rule]uint64{}}
		s.index()
	}
	if err := s.check(b); err != nil {
		return err
	}
	for _, r := range b.Rows {
		r.Body, r.Nodes = bytes.Clone(r.Body), bytes.Clone(r.Nodes)
		s.ids[r.EventID] = uint64(len(s.state.Rows))
		s.state.Rows = append(s.state.Rows, r)
	}
	s.state.Head = bytes.Clone(b.Head)
	s.edit(b)
	return nil
}

func (s *Store) check(b audit.Batch) error {
	if len(b.Head) == 0 || len(b.Head) > 16<<10 {
		return fmt.Errorf("a head of %d bytes", len(b.Head))
	}
	seen := map[[audit.IDSize]byte]bool{}
	for i, r := range b.Rows {
		if _, ok := s.ids[r.EventID]; ok || seen[r.EventID] {
			return audit.ErrDuplicate
		}
		seen[r.EventID] = true
		if want := uint64(len(s.state.Rows) + i); r.Seq != want {
			return fmt.Errorf("row %d where row %d belongs", r.Seq, want)
		}
		if len(r.Body) > audit.MaxBody || len(r.Nodes) != 32*audit.NodeCount(r.Seq) {
			return errors.New("a row of the wrong size")
		}
	}
	return nil
}

func (s *Store) edit(b audit.Batch) {
	for _, e := range b.Edits {
		switch e.Op {
		case registry.Add:
			if _, ok := s.state.Rules[e.Rule]; !ok {
				s.state.Rules[e.Rule] = b.Revision
			}
		case registry.Remove:
			delete(s.state.Rules, e.Rule)
		case registry.RemoveAll:
			for rule := range s.state.Rules {
				if rule.Kind == e.Rule.Kind && rule.Subject == e.Rule.Subject {
					delete(s.state.Rules, rule)
				}
			}
		}
	}
	if b.Revision != 0 || len(b.Edits) > 0 {
		s.state.Revision = b.Revision
	}
}

// Rows implements audit.Store.
func (s *Store) Rows(ctx context.Context, from uint64, limit int) ([]audit.Row, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	n := uint64(len(s.state.Rows))
	from = min(from, n)
	part := State{Rows: s.state.Rows[from:min(n, from+uint64(max(limit, 0)))]}
	return part.Clone().Rows, nil
}

// Find implements audit.Store.
func (s *Store) Find(ctx context.Context, id [audit.IDSize]byte) (audit.Row, bool, error) {
	if err := s.enter(ctx); err != nil {
		return audit.Row{}, false, err
	}
	defer s.mu.Unlock()
	i, ok := s.ids[id]
	if !ok {
		return audit.Row{}, false, nil
	}
	part := State{Rows: s.state.Rows[i : i+1]}
	return part.Clone().Rows[0], true, nil
}

// Nodes implements audit.Store.
func (s *Store) Nodes(ctx context.Context, seqs []uint64) ([][]byte, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	nodes := make([][]byte, len(seqs))
	for i, seq := range seqs {
		if seq >= uint64(len(s.state.Rows)) {
			return nil, fmt.Errorf("there is no row %d", seq)
		}
		nodes[i] = bytes.Clone(s.state.Rows[seq].Nodes)
	}
	return nodes, nil
}

// Match implements registry.Store.
func (s *Store) Match(ctx context.Context, rules []registry.Rule) ([]bool, uint64, error) {
	if err := s.enter(ctx); err != nil {
		return nil, 0, err
	}
	defer s.mu.Unlock()
	found := make([]bool, len(rules))
	for i, r := range rules {
		_, found[i] = s.state.Rules[r]
	}
	return found, s.state.Revision, nil
}

// List implements registry.Store.
func (s *Store) List(ctx context.Context, q registry.Query) ([]registry.Entry, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	order := func(a, b registry.Rule) int {
		return cmp.Or(cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Value, b.Value))
	}
	var entries []registry.Entry
	for rule, revision := range s.state.Rules {
		if rule.Kind != q.Kind || q.Subject != "" && rule.Subject != q.Subject {
			continue
		}
		if q.After == (registry.Rule{}) || order(rule, q.After) > 0 {
			entries = append(entries, registry.Entry{Rule: rule, Revision: revision})
		}
	}
	slices.SortFunc(entries, func(a, b registry.Entry) int { return order(a.Rule, b.Rule) })
	limit := q.Limit
	if limit == 0 {
		limit = 1000
	}
	return entries[:min(limit, len(entries))], nil
}
