package seal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"filippo.io/age"

	"teekms/internal/keys"
)

// opening is what one opening of all files shares.
type opening struct {
	seals      []Seal
	identities []age.Identity
	// old are tried before seals.
	old []Seal
	// again is that of [Config].
	again bool
	// found is what the key sources have answered: each is asked once, however
	// many files there are, and only where those before it did not open.
	found map[asked]found
	// headers are those of all files.
	headers map[string]*Header
}

// asked is which key source of an opening is meant.
type asked struct {
	kind Kind
	old  bool
}

// found is the answer of a key source.
type found struct {
	key keys.Secret
	err error
	// proven is set when the key has opened a file of this set, or would.
	proven bool
	// refused is why it has not.
	refused error
}

// Open opens all files, by name, or none. They must be of one sealing, which is
// checked before any seal is tried. When no seal opens a file the error is an
// [*OpenError]; every error names a file. The keys found are forgotten when it
// returns.
func (s *Set) Open(ctx context.Context, files map[string][]byte) (map[string]keys.Secret, error) {
	cfg := s.cfg()
	o := &opening{seals: cfg.Seals, identities: cfg.Identities, old: cfg.Old, again: cfg.Again}
	out, err := open(ctx, o, files)
	if err == nil && cfg.Told != nil {
		o.tell(cfg.Told)
	}
	return out, err
}

// tell reports how the seals that were tried have fared.
func (o *opening) tell(told func(Kind, error)) {
	for _, s := range o.seals {
		switch f, tried := o.found[asked{kind: s.kind}]; {
		case !tried:
		case f.proven:
			told(s.kind, nil)
		default:
			told(s.kind, f.refused)
		}
	}
}

func open(ctx context.Context, o *opening, files map[string][]byte) (map[string]keys.Secret, error) {
	headers, err := readHeaders(files)
	if err != nil {
		return nil, err
	}
	o.found, o.headers = map[asked]found{}, headers
	out := make(map[string]keys.Secret, len(files))
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if out[name], err = o.file(ctx, headers[name], files[name]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// file opens one file whose header was read as want.
func (o *opening) file(ctx context.Context, want *Header, data []byte) (keys.Secret, error) {
	name := want.Name
	opened := false
	r, err := age.Decrypt(bytes.NewReader(data), identity(func(stanzas []*age.Stanza) ([]byte, error) {
		// These are the stanzas that age authenticates next, so what was read
		// before must be true of them.
		h, err := parseHeader(name, stanzas)
		if err != nil {
			return nil, err
		}
		if sameSealing(want, h) != nil {
			return nil, refused(name, "it was changed while it was opened")
		}
		fileKey, err := o.fileKey(ctx, h, stanzas)
		opened = err == nil
		return fileKey, err
	}))
	switch {
	case err != nil && opened:
		// What age finds after the file key: the MAC does not hold, or there is no
		// nonce.
		return keys.Secret{}, refused(name, "its header was changed, or it is cut off")
	case err != nil:
		return keys.Secret{}, err
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxPayload+1))
	switch {
	case err != nil:
		return keys.Secret{}, refused(name, "its content is damaged, cut off or has something after it")
	case len(plain) > maxPayload:
		return keys.Secret{}, refused(name, "its content is over the limit of %d bytes", maxPayload)
	}
	return keys.NewSecret(plain), nil
}

// fileKey tries the identities, the old seals, then every seal in its order.
func (o *opening) fileKey(ctx context.Context, h *Header, stanzas []*age.Stanza) ([]byte, error) {
	failure := &OpenError{File: h.Name}
	fail := func(k Kind, err error) { failure.Reasons = append(failure.Reasons, Reason{k, err}) }
	if len(o.identities) > 0 {
		fileKey, err := o.byIdentity(ctx, stanzas)
		if err == nil {
			return fileKey, nil
		}
		fail(KindEscrow, err)
	}
	for i, s := range slices.Concat(o.old, o.seals) {
		if !s.Opens() {
			continue
		}
		who := asked{kind: s.kind, old: i < len(o.old)}
		fileKey, err := o.bySeal(ctx, s, who, h)
		switch {
		case err == nil:
			return fileKey, nil
		case o.found[who].proven:
			// The right key does not open it: no other seal need be tried.
			return nil, refused(h.Name, "its %s%s stanza is damaged", stanzaPrefix, s.kind)
		case who.old:
			err = fmt.Errorf("the old one: %w", err)
		}
		fail(s.kind, err)
	}
	for _, d := range h.Seals {
		switch {
		case d.Kind == KindEscrow && len(o.identities) == 0:
			fail(KindEscrow, errors.New("opens only with the key of its holder"))
		case d.Kind != KindEscrow && !o.configured(d.Kind):
			fail(d.Kind, fmt.Errorf("sealed to %s, which core.seal does not configure", d.Kind))
		}
	}
	return nil, failure
}

// configured reports whether a seal of the kind is there.
func (o *opening) configured(k Kind) bool {
	return slices.ContainsFunc(o.seals, func(s Seal) bool { return s.kind == k })
}

// bySeal unwraps with one seal, whose answer is kept under who.
func (o *opening) bySeal(ctx context.Context, s Seal, who asked, h *Header) ([]byte, error) {
	st, ok := h.own[s.kind]
	switch {
	case !ok:
		return nil, errors.New("not among the file's seals")
	case st.err != nil:
		return nil, st.err
	}
	f, ok := o.found[who]
	if !ok {
		f = o.find(ctx, s, st)
		o.found[who] = f
	}
	if f.err != nil {
		return nil, f.err
	}
	fileKey, err := unwrap(s.kind, f.key, st)
	for errors.Is(err, errUnwrap) && !f.proven {
		if f.proven = o.fitsAnother(s.kind, f.key, h.Name); f.proven || !o.again || !again(s.source) {
			break
		}
		if f = o.find(ctx, s, st); f.err != nil {
			o.found[who] = f
			return nil, f.err
		}
		fileKey, err = unwrap(s.kind, f.key, st)
	}
	if errors.Is(err, errUnwrap) {
		err = misfit(s.kind)
	}
	if err != nil {
		f.refused = err
		o.found[who] = f
		return nil, err
	}
	if !f.proven {
		f.proven = true
		o.found[who] = f
		if p, ok := s.source.(*passphrase); ok {
			p.fits()
		}
	}
	return fileKey, nil
}

// fitsAnother reports whether a key opens another file than that of the name. All
// have the same arguments, so that it is the right key then.
func (o *opening) fitsAnother(kind Kind, key keys.Secret, name string) bool {
	for _, h := range o.headers {
		if _, err := unwrap(kind, key, h.own[kind]); err == nil && h.Name != name {
			return true
		}
	}
	return false
}

// find asks the source of a seal for its key.
func (o *opening) find(ctx context.Context, s Seal, st ownStanza) (f found) {
	f.key, f.err = await(ctx, func() (keys.Secret, error) { return s.source.Find(ctx, st.args) })
	f.refused = f.err
	return f
}

// again reports whether a source whose key did not fit may have another one.
func again(source KeySource) bool {
	p, ok := source.(*passphrase)
	return ok && p.again()
}

// byIdentity unwraps with an identity of a holder of the escrow.
func (o *opening) byIdentity(ctx context.Context, stanzas []*age.Stanza) ([]byte, error) {
	// What stands behind an identity is not known here: it may be a plugin.
	if err := checkDebug(); err != nil {
		return nil, err
	}
	var last error
	for _, id := range o.identities {
		fileKey, err := await(ctx, func() ([]byte, error) { return id.Unwrap(stanzas) })
		switch {
		case err == nil && len(fileKey) == fileKeySize:
			return fileKey, nil
		case err != nil && !errors.Is(err, age.ErrIncorrectIdentity):
			last = oneLine(err)
		}
	}
	if last != nil {
		return nil, last
	}
	return nil, errors.New("none of the identities given is a recipient of the file")
}

// readHeaders reads the headers of all files and refuses files that are not of
// one sealing.
func readHeaders(files map[string][]byte) (map[string]*Header, error) {
	if len(files) == 0 || len(files) > maxFiles {
		return nil, fmt.Errorf("opening %d files: 1 to %d can be", len(files), maxFiles)
	}
	headers := make(map[string]*Header, len(files))
	sets := map[[16]byte][]string{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h, err := Inspect(name, files[name])
		if err != nil {
			return nil, err
		}
		headers[name] = h
		sets[h.Set] = append(sets[h.Set], name)
	}
	// The files that most others are not with are the strange ones.
	groups := slices.SortedFunc(maps.Values(sets), func(a, b []string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return slices.Compare(a, b)
	})
	if len(groups) > 1 {
		return nil, refused(groups[1][0], "it is of another sealing than %s", strings.Join(groups[0], ", "))
	}
	alike := func(a string) (n int) {
		for _, b := range groups[0] {
			if sameSealing(headers[a], headers[b]) == nil {
				n++
			}
		}
		return n
	}
	first := headers[slices.MaxFunc(groups[0], func(a, b string) int { return alike(a) - alike(b) })]
	for _, name := range groups[0] {
		if err := sameSealing(first, headers[name]); err != nil {
			return nil, refused(name, "%w", err)
		}
	}
	return headers, nil
}

// sameSealing refuses a header that does not agree with another of its set in
// what one sealing writes into all files. So one key of a source is enough for
// all of them.
func sameSealing(a, b *Header) error {
	same := a.Set == b.Set && a.Made.Equal(b.Made) && slices.Equal(a.Recipients, b.Recipients) &&
		slices.EqualFunc(a.Seals, b.Seals, func(x, y Described) bool {
			return x.Kind == y.Kind && slices.Equal(x.Args, y.Args)
		})
	if !same {
		return fmt.Errorf("it is not sealed as %s is", a.Name)
	}
	return nil
}
