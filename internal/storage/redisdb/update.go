package redisdb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"unicode/utf8"

	"teekms/internal/registry"
)

// change is what a batch does to one rule in the end.
type change struct {
	rule registry.Rule
	op   changeOp
}

type changeOp int

const (
	// put adds a rule unless it is there.
	put changeOp = iota
	// replace adds a rule that the same batch removed before.
	replace
	// remove removes it.
	remove
)

// group is what RemoveAll removes.
type group struct {
	kind    registry.Kind
	subject string
}

func groupOf(r registry.Rule) group { return group{r.Kind, r.Subject} }

func (g group) start() registry.Rule { return registry.Rule{Kind: g.kind, Subject: g.subject} }

// plan is what the edits of a batch come to: first groups are cleared, then rules
// are changed, each once. Both are in order.
type plan struct {
	clears  []group
	changes []change
}

// checkEdit refuses what not every database would hold and give back as it is.
func checkEdit(e registry.Edit) error {
	r := e.Rule
	if !fits(string(r.Kind), maxKind) || !fits(r.Subject, maxSubject) || !fits(r.Value, maxValue) || r.Kind == "" {
		return errors.New("a rule is too long, of no kind or not UTF-8")
	}
	switch {
	case e.Op != registry.Add && e.Op != registry.Remove && e.Op != registry.RemoveAll:
		return fmt.Errorf("the operation %q of an edit is unknown", e.Op)
	case e.Op == registry.RemoveAll && r.Value != "":
		return errors.New("an edit that removes all rules names one")
	case e.Op != registry.RemoveAll && r.Value == "":
		return errors.New("a rule has no value")
	}
	return nil
}

func fits(s string, limit int) bool {
	return len(s) <= limit && utf8.ValidString(s) && !strings.Contains(s, "\x00")
}

// newPlan folds edits, in their order.
func newPlan(edits []registry.Edit) plan {
	ops := make(map[group]map[string]changeOp)
	cleared := make(map[group]bool)
	for _, e := range edits {
		g := groupOf(e.Rule)
		if ops[g] == nil {
			ops[g] = make(map[string]changeOp)
		}
		switch before, known := ops[g][e.Rule.Value]; {
		case e.Op == registry.RemoveAll:
			cleared[g] = true
			ops[g] = nil
		case e.Op == registry.Remove:
			ops[g][e.Rule.Value] = remove
		case known && before == remove:
			ops[g][e.Rule.Value] = replace
		case !known:
			ops[g][e.Rule.Value] = put
		}
	}
	return sortPlan(ops, cleared)
}

func sortPlan(ops map[group]map[string]changeOp, cleared map[group]bool) plan {
	var p plan
	for g := range cleared {
		p.clears = append(p.clears, g)
	}
	for g, values := range ops {
		for value, op := range values {
			p.changes = append(p.changes, change{rule: registry.Rule{Kind: g.kind, Subject: g.subject, Value: value}, op: op})
		}
	}
	slices.SortFunc(p.clears, func(a, b group) int {
		return cmp.Or(strings.Compare(string(a.kind), string(b.kind)), strings.Compare(a.subject, b.subject))
	})
	slices.SortFunc(p.changes, func(a, b change) int { return compare(a.rule, b.rule) })
	return p
}

// clearsAll says whether a group is cleared.
func (p plan) clearsAll(g group) bool {
	i := p.firstClear(g.start())
	return i < len(p.clears) && p.clears[i] == g
}

// firstClear returns the index of the first cleared group from r on.
func (p plan) firstClear(r registry.Rule) int {
	return sort.Search(len(p.clears), func(i int) bool { return compare(p.clears[i].start(), r) >= 0 })
}

// span is a node and what a plan does below it. Its rules are before high, where
// there is one.
type span struct {
	id      nodeID
	high    *registry.Rule
	changes []change
	// drop says that nothing below it stays.
	drop bool
}

// spans divides what a plan does below an inner node among its children; nil
// changes and no drop mean that one stays as it is.
func (p plan) spans(n *node, s span) []span {
	spans := make([]span, len(n.children))
	changes := s.changes
	for i, c := range n.children {
		high := s.high
		if i+1 < len(n.children) {
			high = &n.children[i+1].low
		}
		mine := len(changes)
		if high != nil {
			mine = sort.Search(len(changes), func(j int) bool { return compare(changes[j].rule, *high) >= 0 })
		}
		spans[i] = span{id: c.id, high: high, changes: changes[:mine]}
		spans[i].drop = s.drop || p.drops(c.low, spans[i])
		changes = changes[mine:]
	}
	return spans
}

// drops says whether everything below a child that begins at low is cleared and
// nothing is added.
func (p plan) drops(low registry.Rule, s span) bool {
	if s.high == nil || groupOf(low) != groupOf(*s.high) || !p.clearsAll(groupOf(low)) {
		return false
	}
	return !slices.ContainsFunc(s.changes, func(c change) bool { return c.op != remove })
}

// touches says whether a plan may change something below a child that begins at
// low.
func (p plan) touches(low registry.Rule, s span) bool {
	if s.drop || len(s.changes) > 0 || p.clearsAll(groupOf(low)) {
		return true
	}
	i := p.firstClear(low)
	return i < len(p.clears) && (s.high == nil || compare(p.clears[i].start(), *s.high) < 0)
}

// draft is a tree of rules as a commit will leave it.
type draft struct {
	plan     plan
	revision uint64
	root     nodeID
	old      map[nodeID]*node // the nodes that matter, as they are
	fresh    map[nodeID]*node // what is new
	gone     []nodeID         // what is no more
}

// edit drafts the tree below root after the edits. Its error is errMoved where
// the tree is gone meanwhile.
func (db *DB) edit(ctx context.Context, root nodeID, edits []registry.Edit, revision uint64) (*draft, error) {
	d := &draft{plan: newPlan(edits), revision: revision, root: root, old: make(map[nodeID]*node), fresh: make(map[nodeID]*node)}
	if root != (nodeID{}) {
		if err := d.load(ctx, db); err != nil {
			return nil, err
		}
	}
	if err := d.apply(); err != nil {
		return nil, err
	}
	return d, nil
}

// load reads the nodes that the plan touches, level by level. Leaves of which
// nothing stays need not be read.
func (d *draft) load(ctx context.Context, db *DB) error {
	for level := []span{{id: d.root, changes: d.plan.changes}}; len(level) > 0; {
		ids := make([]nodeID, len(level))
		for i, s := range level {
			ids[i] = s.id
		}
		if err := db.nodes(ctx, ids, d.old); err != nil {
			return err
		}
		var next []span
		for _, s := range level {
			n := d.old[s.id]
			for i, below := range d.plan.spans(n, s) {
				unread := below.drop && n.level == 1
				if !unread && d.plan.touches(n.children[i].low, below) {
					next = append(next, below)
				}
			}
		}
		level = next
	}
	return nil
}

// apply makes the new tree.
func (d *draft) apply() error {
	whole := span{id: d.root, changes: d.plan.changes}
	var top []child
	var level uint8
	if d.root == (nodeID{}) {
		top = d.leaves(d.merge(nil, whole))
	} else {
		n := d.old[d.root]
		level = n.level
		var err error
		if top, err = d.update(n, whole); err != nil {
			return err
		}
	}
	for len(top) > 1 {
		level++
		top = d.inner(level, top)
	}
	if len(top) == 0 {
		d.root = nodeID{}
		return nil
	}
	d.root = d.lower(top[0].id)
	return nil
}

// lower takes roots away that have one child only, as far as they are known.
func (d *draft) lower(root nodeID) nodeID {
	for {
		n, isFresh := d.fresh[root]
		if !isFresh {
			n = d.old[root]
		}
		if n == nil || len(n.children) != 1 {
			return root
		}
		if isFresh {
			delete(d.fresh, root)
		} else {
			d.gone = append(d.gone, root)
		}
		root = n.children[0].id
	}
}

// update returns what takes the place of a node: itself where nothing changes,
// none where nothing stays, several where it grew.
func (d *draft) update(n *node, s span) ([]child, error) {
	if n.level == 0 {
		entries := d.merge(n.entries, s)
		if slices.Equal(entries, n.entries) {
			return []child{{low: n.entries[0].Rule, id: s.id}}, nil
		}
		d.gone = append(d.gone, s.id)
		return d.leaves(entries), nil
	}
	var children []child
	for i, below := range d.plan.spans(n, s) {
		replaced := []child{n.children[i]}
		var err error
		switch {
		case below.drop:
			replaced, err = nil, d.dropAll(n.level, below.id)
		case d.plan.touches(n.children[i].low, below):
			replaced, err = d.updateChild(n.children[i], below)
		}
		if err != nil {
			return nil, err
		}
		children = append(children, replaced...)
	}
	if slices.Equal(children, n.children) {
		return []child{{low: n.children[0].low, id: s.id}}, nil
	}
	d.gone = append(d.gone, s.id)
	return d.inner(n.level, children), nil
}

// errUnread says that a node was needed and not read: a mistake of this file.
var errUnread = errors.New("a node of the rules was not read")

func (d *draft) updateChild(c child, s span) ([]child, error) {
	n := d.old[c.id]
	if n == nil {
		return nil, errUnread
	}
	replaced, err := d.update(n, s)
	if len(replaced) == 1 && replaced[0].id == c.id {
		return []child{c}, err // Its low may be below its first rule.
	}
	return replaced, err
}

// dropAll removes a node below one of a level, and all below it.
func (d *draft) dropAll(above uint8, id nodeID) error {
	d.gone = append(d.gone, id)
	if above == 1 {
		return nil
	}
	n := d.old[id]
	if n == nil {
		return errUnread
	}
	for _, c := range n.children {
		if err := d.dropAll(n.level, c.id); err != nil {
			return err
		}
	}
	return nil
}

// merge applies the plan to the entries of a leaf.
func (d *draft) merge(entries []registry.Entry, s span) []registry.Entry {
	merged := make([]registry.Entry, 0, len(entries)+len(s.changes))
	changes := s.changes
	add := func(c change) {
		if c.op != remove {
			merged = append(merged, registry.Entry{Rule: c.rule, Revision: d.revision})
		}
	}
	for _, e := range entries {
		for len(changes) > 0 && compare(changes[0].rule, e.Rule) < 0 {
			add(changes[0])
			changes = changes[1:]
		}
		same := len(changes) > 0 && changes[0].rule == e.Rule
		cleared := d.plan.clearsAll(groupOf(e.Rule))
		switch {
		case same && (cleared || changes[0].op != put):
			add(changes[0])
		case !cleared:
			merged = append(merged, e)
		}
		if same {
			changes = changes[1:]
		}
	}
	for _, c := range changes {
		add(c)
	}
	return merged
}

// leaves makes leaves of entries.
func (d *draft) leaves(entries []registry.Entry) []child {
	var made []child
	for _, part := range divide(entries, maxLeaf) {
		made = append(made, d.add(part[0].Rule, &node{entries: part}))
	}
	return made
}

// inner makes nodes of a level above children.
func (d *draft) inner(level uint8, children []child) []child {
	var made []child
	for _, part := range divide(children, maxInner) {
		made = append(made, d.add(part[0].low, &node{level: level, children: part}))
	}
	return made
}

func (d *draft) add(low registry.Rule, n *node) child {
	id := newNodeID()
	d.fresh[id] = n
	return child{low: low, id: id}
}

// divide cuts a list into the fewest parts of at most size, about equal.
func divide[T any](list []T, size int) [][]T {
	var parts [][]T
	for count := (len(list) + size - 1) / size; count > 0; count-- {
		n := (len(list) + count - 1) / count
		parts, list = append(parts, list[:n:n]), list[n:]
	}
	return parts
}

// remember puts the fresh nodes into a cache, when they are written.
func (d *draft) remember(c *nodeCache) {
	for id, n := range d.fresh {
		c.put(id, n)
	}
}
