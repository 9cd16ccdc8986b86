// Package sealdir changes what the private files of a key directory are sealed
// to, and tells what they are sealed to (docs/kmsctl.md#seal).
//
// Every change writes all private files anew in one commit of the key store; the
// root keys stay. What is new has the owner of what it replaces.
package sealdir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"go.uber.org/zap"

	"teekms/cmd/kmsctl/internal/privatefile"
	"teekms/internal/durable"
	"teekms/internal/keys/keystore"
	"teekms/internal/keys/seal"
)

// Config says which directory is meant, and what opens it. Dir, Now, Log and
// Progress are required.
type Config struct {
	// Dir is the key directory, Domain as of keystore.Config.
	Dir, Domain string
	// Seals are the configured ones, in the order in which they are tried. None
	// where core.seal is absent.
	Seals []seal.Seal
	// Identities open besides: those of a holder of the escrow.
	Identities []age.Identity
	// Old open besides, where a verb writes: what the files may have been sealed to
	// before the configuration changed. Nothing is sealed to them.
	Old []seal.Seal
	// Now is the clock.
	Now func() time.Time
	// Log is where the key store tells of repairs.
	Log *zap.Logger
	// Compare says in what seals that are configured and in the files differ, and
	// what is weak about them, as notes and warnings of a status. Optional.
	Compare func(files map[string][]byte) (notes, warnings []string)
	// Unmeasured warns of a TPM whose PCRs tell nothing. Optional.
	Unmeasured func(ctx context.Context) (warnings []string)
	// Progress tells what is done now, where that takes its time.
	Progress func(text string)
}

// Directory is a key directory whose seals are looked at or changed.
type Directory struct {
	cfg Config
	fs  durable.FS
}

// ErrNothingConfigured says that there is nothing to seal with.
var ErrNothingConfigured = errors.New("core.seal is not configured: it says what to seal to")

// New returns a directory. Nothing is read.
func New(cfg Config) *Directory {
	cfg.Dir = filepath.Clean(cfg.Dir)
	return &Directory{cfg: cfg, fs: &owned{dir: cfg.Dir}}
}

// Result is what a verb did (docs/kmsctl.md#seal-json).
type Result struct {
	// Dir is the key directory.
	Dir string `json:"dir"`
	// Changed is false where there was nothing to do.
	Changed bool `json:"changed"`
	// Before and After are what the files were and are sealed to.
	Before State `json:"before"`
	After  State `json:"after"`
	// Added and Removed are the kinds that differ.
	Added   []seal.Kind `json:"added"`
	Removed []seal.Kind `json:"removed"`
	// RemovedRecipients are those of the escrow whose holders open the new files no
	// more.
	RemovedRecipients []string `json:"removed_recipients"`
	// OpenedAgain are the seals that have opened the new files before they
	// replaced the old ones.
	OpenedAgain []seal.Kind `json:"opened_again"`
	// Notes are what else is to be known, Warnings what is to be done about.
	Notes    []string `json:"notes"`
	Warnings []string `json:"warnings"`

	// header is that of the new files.
	header *seal.Header
}

// State is what private files are sealed to.
type State struct {
	// Sealed is false for plain files.
	Sealed bool `json:"sealed"`
	// Made is when they were sealed, by the clock of who did; nil for plain files.
	Made *time.Time `json:"made"`
	// Seals are their seals, escrow last.
	Seals []privatefile.Seal `json:"seals"`
}

// stateOf is what a header says, nil for plain files.
func stateOf(h *seal.Header) State {
	if h == nil {
		return State{Seals: []privatefile.Seal{}}
	}
	return State{Sealed: true, Made: &h.Made, Seals: privatefile.Seals(h)}
}

// String puts it in words.
func (s State) String() string {
	if !s.Sealed {
		return "plain, not sealed"
	}
	return "sealed to " + privatefile.List(s.Seals)
}

// recipients are those of the escrow.
func (s State) recipients() []string {
	out := []string{}
	for _, one := range s.Seals {
		out = append(out, one.Recipients...)
	}
	return out
}

// Add seals the files to the named kinds too, to all configured ones where none
// is named. Plain files are sealed, and the plain ones overwritten and removed.
func (d *Directory) Add(ctx context.Context, named []seal.Kind) (*Result, error) {
	return d.change(ctx, func(p *planner) (*plan, error) { return p.add(named) })
}

// Remove seals the files anew without the named kinds.
func (d *Directory) Remove(ctx context.Context, named []seal.Kind) (*Result, error) {
	return d.change(ctx, func(p *planner) (*plan, error) {
		if p.header == nil {
			return nil, errors.New("the private keys are plain files and are not sealed, so there is nothing to remove")
		}
		return p.remove(named)
	})
}

// Rotate seals the files anew to exactly the configured seals.
func (d *Directory) Rotate(ctx context.Context) (*Result, error) {
	return d.change(ctx, func(p *planner) (*plan, error) {
		if p.header == nil {
			return nil, errors.New("the private keys are not sealed: `kmsctl seal add` seals them")
		}
		out := p.rotate()
		out.anew = true
		return out, nil
	})
}

// change reads what the files are sealed to, plans, opens them, and seals them
// anew. Until the key store commits, nothing is changed.
func (d *Directory) change(ctx context.Context, decide func(*planner) (*plan, error)) (*Result, error) {
	files, err := d.read(ctx)
	if err != nil {
		return nil, err
	}
	header, err := inspect(files)
	if err != nil {
		return nil, wayOut(err)
	}
	out := &Result{Dir: d.cfg.Dir, Before: stateOf(header), Notes: []string{}, Warnings: []string{}}
	todo, err := decide(&planner{header: header, configured: d.cfg.Seals})
	switch {
	case len(d.cfg.Seals) == 0 && (err == nil || header != nil):
		return nil, ErrNothingConfigured
	case err != nil:
		return nil, err
	case len(todo.target) == 0:
		return d.unchanged(ctx, files, out)
	}
	opened, err := d.open(ctx, header != nil, decide)
	if err != nil {
		return nil, wayOut(err)
	}
	if opened.plan != nil {
		todo = opened.plan
	}
	out.Notes = append(out.Notes, todo.notes...)
	out.Warnings = append(out.Warnings, todo.warnings...)
	err = d.reseal(ctx, opened.store, todo.target, out)
	if !out.Changed {
		return nil, err
	}
	if err == nil && header == nil {
		out.Notes = append(out.Notes, wiped)
	}
	if otherTPM(header, out.header) {
		out.Notes = append(out.Notes, "this is another TPM than before")
	}
	d.remark(ctx, out, todo.target)
	return out.finish(todo), err
}

// read returns the private files as they are, after an interrupted write was
// brought to its end.
func (d *Directory) read(ctx context.Context) (map[string][]byte, error) {
	seals := ""
	if len(d.cfg.Seals) > 0 {
		seals = ", and seals what it makes"
	}
	files, err := keystore.ReadPrivate(ctx, d.cfg.Dir, d.fs)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !d.exists():
		return nil, fmt.Errorf("there is no key directory %s: the KMS makes it%s", d.cfg.Dir, seals)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w: run this as root, or as the user of the KMS", err)
	case err != nil:
		return nil, err
	case len(files) > 0:
		return files, nil
	}
	if _, err := os.Lstat(filepath.Join(d.cfg.Dir, "root-ca.crt")); err == nil {
		return nil, fmt.Errorf("the private keys of %s are missing, and its root-ca.crt is there: restore the key directory from a backup", d.cfg.Dir)
	}
	return nil, fmt.Errorf("the key directory %s has no private keys: the KMS makes them%s", d.cfg.Dir, seals)
}

// exists says whether there is a directory.
func (d *Directory) exists() bool {
	_, err := os.Stat(d.cfg.Dir)
	return !errors.Is(err, fs.ErrNotExist)
}

// inspect returns what the files are sealed to, nil where they are plain. It
// refuses what the key store would refuse.
func inspect(files map[string][]byte) (*seal.Header, error) {
	var sealed, plain []string
	var header *seal.Header
	of := map[[16]byte][]string{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !seal.Sealed(files[name]) {
			plain = append(plain, name)
			continue
		}
		h, err := seal.Inspect(name, files[name])
		if err != nil {
			return nil, err
		}
		sealed, header = append(sealed, name), h
		of[h.Set] = append(of[h.Set], name)
	}
	if len(sealed) > 0 && len(plain) > 0 {
		return nil, fmt.Errorf("%s is sealed and %s is not: %s", sealed[0], plain[0], asOne(sealed, plain))
	}
	if len(of) > 1 {
		groups := slices.SortedFunc(maps.Values(of), slices.Compare)
		return nil, fmt.Errorf("%s and %s are not of one sealing: %s", groups[0][0], groups[1][0], asOne(groups...))
	}
	return header, nil
}

// asOne says how files become those of one sealing again that are of several.
// Those that the root keys are among stay.
func asOne(groups ...[]string) string {
	var strange []string
	for _, names := range groups {
		if !slices.Contains(names, "root-ca.key") {
			strange = append(strange, names...)
		}
	}
	if slices.ContainsFunc(strange, func(name string) bool { return !madeAnew(name) }) {
		return "restore them from one backup"
	}
	return "restore them from one backup, or remove " + strings.Join(strange, " and ") + ", which the KMS makes anew at its next start"
}

// reseal writes the files anew.
func (d *Directory) reseal(ctx context.Context, store *keystore.Store, target []seal.Seal, out *Result) error {
	set, err := seal.NewSet(seal.Config{Seals: target, Now: d.cfg.Now})
	if err != nil {
		return err
	}
	doing := "sealing the private keys of " + d.cfg.Dir + " to " + join(kindsOf(target))
	if slices.Contains(kindsOf(target), seal.KindPassphrase) {
		doing += "; scrypt takes a while"
	}
	d.cfg.Progress(doing)
	w := &writer{set: set}
	// With ErrNotWiped all is done but the removal of what was there before.
	err = store.Reseal(ctx, w)
	if err != nil && !errors.Is(err, keystore.ErrNotWiped) {
		return err
	}
	out.Changed, out.After, out.header = true, stateOf(w.header), w.header
	for _, s := range target {
		if s.Opens() {
			out.OpenedAgain = append(out.OpenedAgain, s.Kind())
		}
	}
	return err
}

// finish fills what the JSON shows as lists.
func (r *Result) finish(p *plan) *Result {
	r.Added, r.Removed = append([]seal.Kind{}, p.added...), append([]seal.Kind{}, p.removed...)
	kept := r.After.recipients()
	r.RemovedRecipients = slices.DeleteFunc(r.Before.recipients(), func(old string) bool { return slices.Contains(kept, old) })
	r.OpenedAgain = append([]seal.Kind{}, r.OpenedAgain...)
	return r
}
