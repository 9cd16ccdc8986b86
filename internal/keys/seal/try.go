package seal

import (
	"context"
	"errors"
	"slices"
)

// Attempt is how one seal fares with a set of files.
type Attempt struct {
	Kind Kind
	// Detail says what the seal is bound to, as the files have it; for one that
	// they lack it is empty.
	Detail string
	// InFiles and Configured say where the seal is.
	InFiles, Configured bool
	// Opens is set when the seal alone opens all files here and now.
	Opens bool
	// Err says why it does not; nil when it does.
	Err error
}

// Try lets every configured seal open the files alone, and returns first the
// configured seals in their order, then those that only the files have. Where
// the files are not of one whole sealing, that is the error of all. Escrow
// opens where an identity of the set does.
func (s *Set) Try(ctx context.Context, files map[string][]byte) []Attempt {
	headers, err := readHeaders(files)
	var h *Header
	for _, h = range headers {
		break // they agree
	}
	var out []Attempt
	for _, one := range s.cfg().Seals {
		a := Attempt{Kind: one.kind, Configured: true, Err: err}
		if h != nil {
			a = s.try(ctx, one, h, files)
		}
		out = append(out, a)
	}
	if h == nil {
		return out
	}
	for _, d := range h.Seals {
		if slices.ContainsFunc(s.cfg().Seals, func(o Seal) bool { return o.kind == d.Kind }) {
			continue
		}
		a := Attempt{Kind: d.Kind, Detail: d.Detail, InFiles: true}
		if d.Kind == KindEscrow {
			a.Err = s.tryEscrow(ctx, files)
		} else {
			a.Err = errors.New("core.seal does not configure it")
		}
		a.Opens = a.Err == nil
		out = append(out, a)
	}
	return out
}

// try lets one configured seal open the files.
func (s *Set) try(ctx context.Context, one Seal, h *Header, files map[string][]byte) Attempt {
	a := Attempt{Kind: one.kind, Configured: true}
	i := slices.IndexFunc(h.Seals, func(d Described) bool { return d.Kind == one.kind })
	if i < 0 {
		a.Err = errors.New("not among the files' seals")
		return a
	}
	a.InFiles, a.Detail = true, h.Seals[i].Detail
	if one.kind == KindEscrow {
		a.Err = s.tryEscrow(ctx, files)
	} else {
		if h.own[one.kind].err == nil {
			a.Detail = one.source.Describe(h.Seals[i].Args)
		}
		_, a.Err = open(ctx, &opening{seals: []Seal{one}, again: s.cfg().Again}, files)
		a.Err = onlyReason(a.Err, one.kind)
	}
	a.Opens = a.Err == nil
	return a
}

// tryEscrow lets the identities open the files.
func (s *Set) tryEscrow(ctx context.Context, files map[string][]byte) error {
	if len(s.cfg().Identities) == 0 {
		return errors.New("opens only with the key of its holder")
	}
	_, err := open(ctx, &opening{identities: s.cfg().Identities}, files)
	return onlyReason(err, KindEscrow)
}

// onlyReason returns the reason of one kind out of an [*OpenError]: that others
// were not tried is no news.
func onlyReason(err error, kind Kind) error {
	var oe *OpenError
	if !errors.As(err, &oe) {
		return err
	}
	for _, r := range oe.Reasons {
		if r.Kind == kind {
			return r.Err
		}
	}
	return err
}
