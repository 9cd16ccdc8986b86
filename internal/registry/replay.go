package registry

import (
	"cmp"
	"slices"
)

// Replay computes rules from the edits that led to them, in the order in which
// the audit log has them. The zero Replay is an empty registry. It is not for
// several goroutines.
type Replay struct {
	lists map[list]map[string]uint64
}

// list is the rules of one kind and subject.
type list struct {
	kind    Kind
	subject string
}

// Apply applies the edits of the change with this revision.
func (r *Replay) Apply(edits []Edit, revision uint64) {
	if r.lists == nil {
		r.lists = map[list]map[string]uint64{}
	}
	for _, e := range edits {
		key := list{e.Rule.Kind, e.Rule.Subject}
		switch e.Op {
		case Add:
			if r.lists[key] == nil {
				r.lists[key] = map[string]uint64{}
			}
			if _, there := r.lists[key][e.Rule.Value]; !there {
				r.lists[key][e.Rule.Value] = revision
			}
		case Remove:
			delete(r.lists[key], e.Rule.Value)
		case RemoveAll:
			delete(r.lists, key)
		}
	}
}

// Entries returns the rules, sorted by kind, subject and value.
func (r *Replay) Entries() []Entry {
	var entries []Entry
	for key, values := range r.lists {
		for value, revision := range values {
			entries = append(entries, Entry{Rule{key.kind, key.subject, value}, revision})
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Value, b.Value))
	})
	return entries
}
