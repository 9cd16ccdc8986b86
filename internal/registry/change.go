package registry

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

// Bounds of a change.
const (
	// MaxEdits is how many edits a change may have, those included that
	// [Normalize] adds.
	MaxEdits = 4096
	// MaxCommentSize bounds the comment in bytes.
	MaxCommentSize = 512
)

// Change is a set of edits that take effect together.
type Change struct {
	// Edits are applied in order; [Normalize] says what becomes of them.
	Edits []Edit
	// ExpectedRevision, where it is not nil, is what the revision of the
	// registry has to be.
	ExpectedRevision *uint64
	// Comment says why, at most [MaxCommentSize] bytes of UTF-8.
	Comment string
	// By says who asked for it; may be empty.
	By string
}

// Receipt says what a change has become.
type Receipt struct {
	// Revision is that of the registry after it.
	Revision uint64
	// Seq is its place in the audit log.
	Seq uint64
}

// EditError refuses a change for one of its edits.
type EditError struct {
	// Index is that of the edit.
	Index int
	// Field is op, or kind, subject or value of the rule.
	Field string
	// Reason says what is wrong with it.
	Reason string
}

// Error names the edit, the field and the reason.
func (e *EditError) Error() string { return fmt.Sprintf("edit %d: %s: %s", e.Index, e.Field, e.Reason) }

// Errors of changes.
var (
	// ErrNoEdits refuses a change that changes nothing.
	ErrNoEdits = errors.New("a change needs at least one edit")
	// ErrTooManyEdits refuses a change that is too large.
	ErrTooManyEdits = fmt.Errorf("a change has at most %d edits, counting those that go with a gateway or with the removal of an application", MaxEdits)
	// ErrComment refuses a comment.
	ErrComment = fmt.Errorf("a comment has at most %d bytes of UTF-8", MaxCommentSize)
)

// Normalize returns the edits as they are recorded: rules in their canonical
// form, a new gateway in place of the old one, and an application removed with
// all its rules, so that they do not come back with it. What has been normalized
// stays as it is. The error is an [*EditError].
func Normalize(edits []Edit) ([]Edit, error) {
	out := make([]Edit, 0, len(edits))
	for i := range edits {
		e, err := canonicalEdit(edits[i])
		if err != nil {
			err.Index = i
			return nil, err
		}
		if e.Op == Add && e.Rule.Kind == Gateway {
			out = appendOnce(out, Edit{RemoveAll, Rule{Kind: Gateway}})
		}
		out = appendOnce(out, e)
		if e.Op == Remove && e.Rule.Kind == App {
			for _, k := range []Kind{Compose, Device} {
				out = append(out, Edit{RemoveAll, Rule{Kind: k, Subject: e.Rule.Value}})
			}
		}
	}
	return dropRepeated(out), nil
}

// appendOnce appends e unless it is the last edit already.
func appendOnce(edits []Edit, e Edit) []Edit {
	if n := len(edits); n > 0 && edits[n-1] == e {
		return edits
	}
	return append(edits, e)
}

// dropRepeated drops the removals that stand in the list already with nothing
// but removals in between: they remove nothing any more.
func dropRepeated(edits []Edit) []Edit {
	out := edits[:0]
	removed := map[Edit]bool{}
	for _, e := range edits {
		if e.Op == Add {
			clear(removed)
		} else if removed[e] {
			continue
		} else {
			removed[e] = true
		}
		out = append(out, e)
	}
	return out
}

func canonicalEdit(e Edit) (Edit, *EditError) {
	switch e.Op {
	case Add, Remove:
		r, err := Canonical(e.Rule)
		if bad, ok := errors.AsType[*RuleError](err); ok {
			return Edit{}, &EditError{Field: bad.Field, Reason: bad.Reason}
		}
		return Edit{e.Op, r}, nil
	case RemoveAll:
		return canonicalRemoveAll(e.Rule)
	default:
		return Edit{}, &EditError{Field: "op", Reason: quoted(string(e.Op)) + " is none of add, remove, remove_all"}
	}
}

func canonicalRemoveAll(r Rule) (Edit, *EditError) {
	f, ok := formOf(r.Kind)
	switch {
	case !ok:
		return Edit{}, &EditError{Field: "kind", Reason: quoted(string(r.Kind)) + " is none of " + kindNames()}
	case r.Kind == App:
		return Edit{}, &EditError{Field: "kind", Reason: "applications are removed one by one"}
	case r.Value != "":
		return Edit{}, &EditError{Field: "value", Reason: "remove_all has none"}
	}
	subject, err := f.canonicalSubject(r.Subject)
	if err != nil {
		return Edit{}, &EditError{Field: "subject", Reason: err.Error()}
	}
	return Edit{RemoveAll, Rule{Kind: r.Kind, Subject: subject}}, nil
}

// normalize checks a change and returns it as it is recorded.
func (c Change) normalize() (Change, error) {
	if len(c.Edits) > MaxEdits {
		return Change{}, ErrTooManyEdits
	}
	if len(c.Comment) > MaxCommentSize || !utf8.ValidString(c.Comment) {
		return Change{}, ErrComment
	}
	edits, err := Normalize(c.Edits)
	switch {
	case err != nil:
		return Change{}, err
	case len(edits) == 0:
		return Change{}, ErrNoEdits
	case len(edits) > MaxEdits:
		return Change{}, ErrTooManyEdits
	}
	c.Edits = edits
	return c, nil
}

// Diff returns the edits that make want of have, both in canonical form. What is
// removed comes first: a part of the edits never allows what neither of the two
// does.
func Diff(have, want []Rule) []Edit {
	keep, gateway := map[Rule]bool{}, false
	for _, r := range want {
		keep[r] = true
		gateway = gateway || r.Kind == Gateway
	}
	there, gone := map[Rule]bool{}, map[string]bool{}
	for _, r := range have {
		there[r] = true
		if r.Kind == App && !keep[r] {
			gone[r.Value] = true
		}
	}
	var edits []Edit
	for _, r := range have {
		// These go with their application, and with the new gateway.
		implied := r.Subject != "" && gone[r.Subject] || r.Kind == Gateway && gateway
		if !keep[r] && !implied {
			edits = append(edits, Edit{Remove, r})
		}
	}
	for _, r := range want {
		if !there[r] {
			edits = append(edits, Edit{Add, r})
		}
	}
	return edits
}

// Split cuts edits into changes that are not too large.
func Split(edits []Edit) [][]Edit {
	var parts [][]Edit
	begin, size := 0, 0
	for i, e := range edits {
		n := 1
		switch {
		case e.Op == Add && e.Rule.Kind == Gateway:
			n = 2
		case e.Op == Remove && e.Rule.Kind == App:
			n = 3
		}
		if size+n > MaxEdits {
			parts = append(parts, edits[begin:i])
			begin, size = i, 0
		}
		size += n
	}
	if begin < len(edits) {
		parts = append(parts, edits[begin:])
	}
	return parts
}
