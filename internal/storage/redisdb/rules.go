package redisdb

import (
	"context"
	"errors"
	"fmt"

	"teekms/internal/registry"
	"teekms/internal/storage"
)

const (
	// defaultPage is how many entries a page has where the query does not say.
	defaultPage = 1000
	// nodesAtOnce is how many nodes one request asks for.
	nodesAtOnce = 512
	// leavesAhead is how many leaves List reads with one request.
	leavesAhead = 64
)

// Match tells which of the rules exist and the revision of the policy. What of
// the tree is not remembered is asked for together with the head, so that a
// match is one round trip unless the rules have changed.
func (db *DB) Match(ctx context.Context, rules []registry.Rule) ([]bool, uint64, error) {
	s := search{db: db, rules: rules, known: make(map[nodeID]*node)}
	var guess nodeID
	if last := db.lastRoot.Load(); last != nil {
		guess = *last
	}
	missing, err := s.look(guess)
	if err != nil {
		return nil, 0, err
	}
	for range maxMoves {
		h, values, err := db.readHeadAnd(ctx, fieldsOf(missing))
		if err != nil {
			return nil, 0, err
		}
		// What is gone of the guess is none of this head, or it is noticed below.
		if err := db.keep(missing, values, s.known); err != nil && !errors.Is(err, errMoved) {
			return nil, 0, err
		}
		db.lastRoot.Store(&h.root)
		if err = s.run(ctx, h.root); !errors.Is(err, errMoved) {
			return s.found, h.revision, err
		}
		if moved, err := db.movedFrom(ctx, h); !moved {
			return nil, 0, err
		}
		missing = nil
	}
	return nil, 0, fmt.Errorf("%w: %w", storage.ErrUnavailable, errMoved)
}

// search is a Match under way.
type search struct {
	db    *DB
	rules []registry.Rule
	known map[nodeID]*node // what was read for it
	found []bool
}

// run looks the rules up below a root, reading what it must, level by level.
func (s *search) run(ctx context.Context, root nodeID) error {
	for range maxLevel + 1 {
		missing, err := s.look(root)
		if err != nil || len(missing) == 0 {
			return err
		}
		if err := s.db.nodes(ctx, missing, s.known); err != nil {
			return err
		}
	}
	return errDepth
}

// errDepth says that a path is longer than a tree is high.
var errDepth = fmt.Errorf("%w: nodes of the rules in a circle", storage.ErrIntegrity)

// look looks the rules up in the nodes that are at hand, and returns the first
// that each of them lacks.
func (s *search) look(root nodeID) (missing []nodeID, err error) {
	s.found = make([]bool, len(s.rules))
	if root == (nodeID{}) {
		return nil, nil
	}
	asked := make(map[nodeID]bool)
	for i, r := range s.rules {
		leaf, id, err := s.descend(root, r)
		switch {
		case err != nil:
			return nil, err
		case leaf != nil:
			_, s.found[i] = leaf.entry(r)
		case !asked[id]:
			asked[id] = true
			missing = append(missing, id)
		}
	}
	return missing, nil
}

// descend returns the leaf that a rule is in if it exists, or the id of the first
// node on the way there that is not at hand.
func (s *search) descend(root nodeID, r registry.Rule) (leaf *node, missing nodeID, err error) {
	id := root
	for above := maxLevel + 1; ; {
		n := s.known[id]
		if n == nil {
			if n = s.db.cache.get(id); n == nil {
				return nil, id, nil
			}
			s.known[id] = n
		}
		if int(n.level) >= above {
			return nil, id, errDepth
		}
		if n.level == 0 {
			return n, id, nil
		}
		above, id = int(n.level), n.children[n.towards(r)].id
	}
}

func fieldsOf(ids []nodeID) []string {
	fields := make([]string, len(ids))
	for i, id := range ids {
		fields[i] = string(id[:])
	}
	return fields
}

// keep opens nodes that were fetched, for the caller and the cache. It opens all
// that are there even where some are not.
func (db *DB) keep(ids []nodeID, values []any, into map[nodeID]*node) error {
	if len(values) != len(ids) {
		return errAnswer
	}
	var gone error
	for i, v := range values {
		n, err := db.openNode(v, ids[i])
		if errors.Is(err, errMoved) {
			gone = err
			continue
		}
		if err != nil {
			return err
		}
		into[ids[i]] = n
		db.cache.put(ids[i], n)
	}
	return gone
}

// nodes adds nodes by id, from the cache or the database.
func (db *DB) nodes(ctx context.Context, ids []nodeID, into map[nodeID]*node) error {
	var missing []nodeID
	for _, id := range ids {
		if n := db.cache.get(id); n != nil {
			into[id] = n
			continue
		}
		missing = append(missing, id)
	}
	for len(missing) > 0 {
		part := missing[:min(len(missing), nodesAtOnce)]
		values, err := db.fetch(ctx, fieldsOf(part))
		if err != nil {
			return err
		}
		if err := db.keep(part, values, into); err != nil {
			return err
		}
		missing = missing[len(part):]
	}
	return nil
}

// List returns entries in order of (subject, value), bytewise.
func (db *DB) List(ctx context.Context, q registry.Query) ([]registry.Entry, error) {
	p := page{db: db, query: q, limit: q.Limit, after: q.After}
	if p.limit <= 0 {
		p.limit = defaultPage
	}
	p.after.Kind = q.Kind
	p.start = registry.Rule{Kind: q.Kind, Subject: q.Subject}
	if q.After != (registry.Rule{}) && compare(p.after, p.start) >= 0 {
		p.start, p.exclusive = p.after, true
	}
	err := db.settled(ctx, func(h *head) error {
		p.found, p.done = nil, false
		if h.root == (nodeID{}) {
			return nil
		}
		return p.collect(ctx, []nodeID{h.root})
	})
	if err != nil {
		return nil, err
	}
	return p.found, nil
}

// page is a List under way.
type page struct {
	db        *DB
	query     registry.Query
	limit     int
	after     registry.Rule
	start     registry.Rule
	exclusive bool

	found []registry.Entry
	done  bool
}

// collect takes entries from below the nodes, in order, until the page is full.
func (p *page) collect(ctx context.Context, ids []nodeID) error {
	for len(ids) > 0 && !p.done {
		part := ids[:min(len(ids), leavesAhead)]
		nodes := make(map[nodeID]*node, len(part))
		if err := p.db.nodes(ctx, part, nodes); err != nil {
			return err
		}
		for _, id := range part {
			if err := p.take(ctx, nodes[id]); err != nil {
				return err
			}
		}
		ids = ids[len(part):]
	}
	return nil
}

// take takes what is wanted from one node.
func (p *page) take(ctx context.Context, n *node) error {
	for _, e := range n.entries {
		at := compare(e.Rule, p.start)
		switch {
		case p.done || at < 0 || at == 0 && p.exclusive:
		case !p.wants(e.Rule):
			p.done = true
		default:
			p.found = append(p.found, e)
			p.done = len(p.found) == p.limit
		}
	}
	if len(n.children) == 0 || p.done {
		return nil
	}
	var ids []nodeID
	for i, c := range n.children {
		if i == n.towards(p.start) || compare(c.low, p.start) > 0 && p.wants(c.low) {
			ids = append(ids, c.id)
		}
	}
	// No more at once than fill the page if half of each leaf is in use.
	if n.level == 1 {
		for len(ids) > 0 && !p.done {
			some := min(len(ids), (p.limit-len(p.found))/(maxLeaf/2)+2)
			if err := p.collect(ctx, ids[:some]); err != nil {
				return err
			}
			ids = ids[some:]
		}
		return nil
	}
	for ; len(ids) > 0 && !p.done; ids = ids[1:] {
		if err := p.collect(ctx, ids[:1]); err != nil {
			return err
		}
	}
	return nil
}

// wants says whether a rule is of what the query asks for.
func (p *page) wants(r registry.Rule) bool {
	return r.Kind == p.query.Kind && (p.query.Subject == "" || r.Subject == p.query.Subject)
}
