package registry

import (
	"context"
	"fmt"
	"strings"
)

// Check is one rule of a decision, for people to see.
type Check struct {
	// Kind is that of the rule.
	Kind Kind
	// Wanted is the rule that let it pass, or what the registry holds instead.
	Wanted string
	// Seen is what the workload showed.
	Seen string
	// Passed is whether it passed.
	Passed bool
	// Reason is the refusal; empty where it passed.
	Reason string
}

// Explanation is a decision with everything that it rests on.
type Explanation struct {
	// Decision is what Decide would answer.
	Decision Decision
	// Checks are in the order of the decision; the first that failed decided.
	Checks []Check
}

// shownRules is how many rules of a list are shown where none fits.
const shownRules = 8

// Explain shows every rule that a decision rests on, also those behind the one
// that decided.
func (p *Policy) Explain(ctx context.Context, w Workload) (Explanation, error) {
	if w.Subject != SubjectApp && w.Subject != SubjectKMS {
		return Explanation{}, ErrSubject
	}
	checks := w.checks()
	m, err := p.match(ctx, checks, w.Subject == SubjectApp)
	if err != nil {
		return Explanation{}, err
	}
	e := Explanation{Decision: Decision{Allowed: true, Revision: m.revision}}
	for i := range checks {
		shown, err := p.explain(ctx, m, &checks[i])
		if err != nil {
			return Explanation{}, err
		}
		e.Checks = append(e.Checks, shown)
		if !shown.Passed && e.Decision.Allowed {
			e.Decision.Allowed, e.Decision.Reason = false, shown.Reason
		}
	}
	if len(w.AdvisoryIDs) == 0 {
		none := Check{Kind: Advisory, Wanted: "nothing: the platform has no advisories", Seen: shown(""), Passed: true}
		e.Checks = append(e.Checks[:1], append([]Check{none}, e.Checks[1:]...)...)
	}
	if e.Decision.Allowed && w.Subject == SubjectApp {
		e.Decision.GatewayAppID, err = p.gatewayOf(ctx, m)
	}
	return e, err
}

func (p *Policy) explain(ctx context.Context, m *matched, c *check) (Check, error) {
	out := Check{Kind: c.kind, Seen: shown(c.seen)}
	if r, ok := c.passedBy(m.exists); ok {
		out.Passed, out.Wanted = true, r.Value
		return out, nil
	}
	out.Reason = c.reason
	if c.kind == App {
		out.Wanted = "an application that is registered"
		return out, nil
	}
	if f, _ := formOf(c.kind); f.subject && len(c.subject) != 2*appIDSize {
		out.Wanted = "nothing is allowed: there is no application id"
		return out, nil
	}
	entries, err := p.store.List(ctx, Query{Kind: c.kind, Subject: c.subject, Limit: shownRules + 1})
	if err != nil {
		return Check{}, fmt.Errorf("listing rules of the registry: %w", err)
	}
	out.Wanted = wanted(entries)
	return out, nil
}

// wanted names what is allowed instead.
func wanted(entries []Entry) string {
	if len(entries) == 0 {
		return "nothing is allowed: the list is empty"
	}
	values := make([]string, 0, len(entries))
	for _, e := range entries[:min(len(entries), shownRules)] {
		values = append(values, e.Value)
	}
	text := strings.Join(values, " or ")
	if len(entries) > shownRules {
		text += " or one of more"
	}
	return text
}
