package seal

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"

	"teekms/internal/keys"
)

// Config says with what a [Set] seals and opens.
type Config struct {
	// Seals are in the order in which they are tried; at most one of a kind, at
	// least one that opens.
	Seals []Seal
	// Identities open besides the seals and before them: those of a holder of the
	// escrow. Nothing is encrypted to them. Optional.
	Identities []age.Identity
	// Old open besides the seals too, after the identities and before the seals;
	// at most one of a kind. Nothing is sealed to them. They are what the files may
	// have been sealed to before the configuration changed, such as the passphrase
	// that the configured one replaces. Optional.
	Old []Seal
	// Again lets somebody be asked again who gave a passphrase that does not open
	// the files ([PassphraseConfig]).
	Again bool
	// Told hears, after files were opened, of each of Seals that was tried: nil for
	// the one that opened them, else why it did not. Optional.
	Told func(Kind, error)
	// Now is the clock that dates a sealing; default time.Now.
	Now func() time.Time
}

// Format writes the seals whatever the verb is: an identity is a secret key
// that prints itself.
func (c Config) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "seal.Config(%s; %d identities)", names(c.Seals), len(c.Identities))
}

// Set seals files and opens them again. It may be used by several goroutines.
type Set struct {
	// cfg is behind a function, into which fmt does not look when it prints what
	// a Set is part of: an identity is a secret key.
	cfg func() Config
}

// NewSet returns a set. It refuses one in which nothing opens, with
// [ErrNoOpener], and two seals of one kind.
func NewSet(cfg Config) (*Set, error) {
	opener := false
	for i, s := range cfg.Seals {
		switch {
		case s.kind == KindEscrow && len(s.escrow) == 0, s.kind != KindEscrow && (!opensHere(s.kind) || s.source == nil):
			return nil, fmt.Errorf("seal %d (%q) is none", i+1, s.kind)
		case slices.ContainsFunc(cfg.Seals[:i], func(o Seal) bool { return o.kind == s.kind }):
			return nil, fmt.Errorf("there are two seals of the kind %s", s.kind)
		}
		opener = opener || s.Opens()
	}
	if !opener {
		return nil, ErrNoOpener
	}
	for i, s := range cfg.Old {
		if !opensHere(s.kind) || s.source == nil || slices.ContainsFunc(cfg.Old[:i], func(o Seal) bool { return o.kind == s.kind }) {
			return nil, fmt.Errorf("old seal %d (%q) opens nothing, or there are two of its kind", i+1, s.kind)
		}
	}
	if cfg.Now == nil {
		cfg.Now = time.Now //nolint:forbidigo // the documented default of an optional clock
	}
	cfg.Seals, cfg.Identities, cfg.Old = slices.Clone(cfg.Seals), slices.Clone(cfg.Identities), slices.Clone(cfg.Old)
	return &Set{cfg: func() Config { return cfg }}, nil
}

// Format writes the seals whatever the verb is.
func (s Set) Format(f fmt.State, _ rune) {
	if s.cfg == nil {
		_, _ = io.WriteString(f, "seal.Set()")
		return
	}
	_, _ = fmt.Fprintf(f, "seal.Set(%s; %d identities)", names(s.cfg().Seals), len(s.cfg().Identities))
}

// Seals returns the seals in the order in which they are tried.
func (s *Set) Seals() []Seal { return slices.Clone(s.cfg().Seals) }

// sealing is what all files of one sealing share.
type sealing struct {
	id    string
	made  string
	seals []Seal
	// keys and args are those of the seals that open.
	keys map[Kind]keys.Secret
	args map[Kind][]string
}

// Seal seals files by name, each with a file key of its own, all with the same
// set and time. Names are printable ASCII without spaces, a file has at most
// 900 KiB. Before it returns, every seal that opens has opened the result again,
// with a key that it found anew: what cannot be opened is no seal. A seal that
// hinders it is in the error as [*SealingError].
func (s *Set) Seal(ctx context.Context, files map[string]keys.Secret) (map[string][]byte, error) {
	if err := checkPlain(files); err != nil {
		return nil, err
	}
	g, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[string][]byte, len(files))
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if out[name], err = g.encrypt(ctx, name, files[name]); err != nil {
			return nil, fmt.Errorf("sealing %s: %w", name, err)
		}
	}
	for _, one := range s.cfg().Seals {
		if !one.Opens() {
			continue
		}
		again, err := open(ctx, &opening{seals: []Seal{one}}, out)
		if err != nil {
			return nil, &SealingError{Kind: one.kind, Err: fmt.Errorf("checking what was sealed to %s: %w", one.kind, onlyReason(err, one.kind))}
		}
		for name := range files {
			if !again[name].Equal(files[name]) {
				return nil, &SealingError{Kind: one.kind, Err: fmt.Errorf("checking what was sealed to %s: %s opens as something else", one.kind, name)}
			}
		}
	}
	return out, nil
}

// checkPlain bounds what is sealed.
func checkPlain(files map[string]keys.Secret) error {
	if len(files) == 0 || len(files) > maxFiles {
		return fmt.Errorf("sealing %d files: 1 to %d can be", len(files), maxFiles)
	}
	for name, content := range files {
		if !validPath(name) {
			return fmt.Errorf("sealing %q: the name cannot be recorded", name)
		}
		if content.Len() > maxPayload {
			return fmt.Errorf("sealing %s: its %d bytes are over the limit of %d", name, content.Len(), maxPayload)
		}
	}
	return nil
}

// begin makes the keys of one sealing.
func (s *Set) begin(ctx context.Context) (*sealing, error) {
	id := make([]byte, len(Header{}.Set))
	rand.Read(id) // never fails: crypto/rand ends the program instead
	g := &sealing{
		id:    encoding().EncodeToString(id),
		made:  strconv.FormatInt(s.cfg().Now().Unix(), 10),
		seals: s.cfg().Seals,
		keys:  map[Kind]keys.Secret{},
		args:  map[Kind][]string{},
	}
	type made struct {
		key  keys.Secret
		args []string
	}
	for _, one := range s.cfg().Seals {
		if !one.Opens() {
			continue
		}
		m, err := await(ctx, func() (made, error) {
			key, args, err := one.source.Make(ctx)
			return made{key, args}, err
		})
		if err != nil {
			return nil, &SealingError{Kind: one.kind, Err: fmt.Errorf("sealing to %s: %w", one.kind, err)}
		}
		if err := checkArgs(m.args); err != nil {
			return nil, &SealingError{Kind: one.kind, Err: fmt.Errorf("sealing to %s: %w", one.kind, err)}
		}
		g.keys[one.kind], g.args[one.kind] = m.key, m.args
	}
	return g, nil
}

// encrypt returns one sealed file.
func (g *sealing) encrypt(ctx context.Context, name string, content keys.Secret) ([]byte, error) {
	var buf bytes.Buffer
	var wrapErr error
	w, err := age.Encrypt(&buf, recipients(func(fileKey []byte) ([]*age.Stanza, []string, error) {
		stanzas, labels, err := g.stanzas(ctx, name, fileKey)
		wrapErr = err
		return stanzas, labels, err
	}))
	switch {
	case wrapErr != nil:
		return nil, wrapErr // without age's words about its own numbering
	case err != nil:
		return nil, fmt.Errorf("encrypting: %w", err)
	}
	if buf.Len() > maxHeader {
		return nil, fmt.Errorf("its header of %d bytes is over the %d that one may have: fewer escrow recipients", buf.Len(), maxHeader)
	}
	if _, err := w.Write(content.Bytes()); err != nil {
		return nil, fmt.Errorf("encrypting: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("encrypting: %w", err)
	}
	return buf.Bytes(), nil
}

// recipients is an age recipient for a whole header, made of a function, which
// may hold a context: age's interface has none.
type recipients func(fileKey []byte) ([]*age.Stanza, []string, error)

// Wrap exists because age asks for it; it calls WrapWithLabels instead.
func (recipients) Wrap([]byte) ([]*age.Stanza, error) {
	return nil, errors.New("wrapping without labels")
}

// WrapWithLabels calls the function.
func (f recipients) WrapWithLabels(fileKey []byte) ([]*age.Stanza, []string, error) {
	return f(fileKey)
}

// stanzas returns the header of one file in its order: docs/seal.md#format. Our
// own seals are symmetric and carry whatever label the escrow has: they weaken
// no post-quantum recipient.
func (g *sealing) stanzas(ctx context.Context, name string, fileKey []byte) ([]*age.Stanza, []string, error) {
	out := []*age.Stanza{{Type: stanzaFile, Args: []string{stanzaVersion, name, g.id, g.made}}}
	var own, theirs []*age.Stanza
	var labels []string
	for _, s := range g.seals {
		var err error
		if !s.Opens() {
			out = append(out, &age.Stanza{
				Type: stanzaEscrow, Args: []string{stanzaVersion},
				Body: []byte(strings.Join(s.Recipients(), "\n")),
			})
			if theirs, labels, err = s.wrapEscrow(ctx, fileKey); err != nil {
				return nil, nil, err
			}
			continue
		}
		st, err := wrap(s.kind, g.keys[s.kind], g.args[s.kind], fileKey)
		if err != nil {
			return nil, nil, fmt.Errorf("sealing to %s: %w", s.kind, err)
		}
		own = append(own, st)
	}
	if out = slices.Concat(out, own, theirs); len(out) > maxStanzas {
		return nil, nil, fmt.Errorf("its header of %d stanzas is over the %d that one may have: fewer escrow recipients", len(out), maxStanzas)
	}
	return out, labels, nil
}
