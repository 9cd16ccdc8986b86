package sealdir

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
	"teekms/internal/keys/seal"
)

// opened is an open key directory, with what is made of the seals that its files
// turned out to have; plan is nil for plain files.
type opened struct {
	store *keystore.Store
	plan  *plan
}

// open opens the directory with everything at hand, and plans again: what is kept
// is read in what has been opened, since before that anybody who may write the
// files may have written it.
func (d *Directory) open(ctx context.Context, sealed bool, decide func(*planner) (*plan, error)) (*opened, error) {
	cfg := keystore.Config{Dir: d.cfg.Dir, Domain: d.cfg.Domain, FS: d.fs, Now: d.cfg.Now, Log: d.cfg.Log}
	var w *witness
	if sealed {
		w = &witness{dir: d, decide: decide}
		cfg.Sealer = w
		d.cfg.Progress("opening the private keys of " + d.cfg.Dir)
	}
	store, err := keystore.Open(ctx, cfg)
	switch {
	case w != nil && w.refused != nil:
		return nil, w.refused
	case err != nil:
		return nil, err
	case !store.Complete():
		return nil, fmt.Errorf("the key directory %s is empty: the KMS seals what it makes", d.cfg.Dir)
	case w == nil:
		return &opened{store: store}, nil
	case w.plan == nil:
		return nil, errors.New("the private keys were opened without being looked at")
	}
	return &opened{store: store, plan: w.plan}, nil
}

// witness opens, and plans with what the files say that were opened. What the key
// store makes again while it opens is sealed as planned: a seal that is to go may
// be one that is gone.
type witness struct {
	dir    *Directory
	decide func(*planner) (*plan, error)

	plan *plan
	// refused is why the plan is not carried out.
	refused error
}

var _ keystore.Sealer = (*witness)(nil)

// Open implements keystore.Sealer.
func (w *witness) Open(ctx context.Context, files map[string][]byte) (map[string]keys.Secret, error) {
	out, fared, err := w.dir.unseal(ctx, files)
	if err != nil {
		return nil, err
	}
	if w.plan, w.refused = w.replan(ctx, files, fared); w.refused != nil {
		return nil, w.refused
	}
	return out, nil
}

func (w *witness) replan(ctx context.Context, files map[string][]byte, fared fared) (*plan, error) {
	header, err := inspect(files)
	if err != nil {
		return nil, err
	}
	p := &planner{header: header, configured: w.dir.cfg.Seals}
	todo, err := w.decide(p)
	if err != nil {
		return nil, err
	}
	return todo, w.dir.keeps(ctx, p, todo, files, fared)
}

// Seal implements keystore.Sealer.
func (w *witness) Seal(ctx context.Context, files map[string]keys.Secret) (map[string][]byte, error) {
	if w.plan == nil {
		return nil, errors.New("sealing what was not opened")
	}
	set, err := seal.NewSet(seal.Config{Seals: w.plan.target, Now: w.dir.cfg.Now})
	if err != nil {
		return nil, err
	}
	return (&writer{set: set}).Seal(ctx, files)
}

// writer remembers what the files say that were written.
type writer struct {
	set    *seal.Set
	header *seal.Header
}

var _ keystore.Sealer = (*writer)(nil)

// Open implements keystore.Sealer.
func (w *writer) Open(ctx context.Context, files map[string][]byte) (map[string]keys.Secret, error) {
	return w.set.Open(ctx, files)
}

// Seal implements keystore.Sealer.
func (w *writer) Seal(ctx context.Context, files map[string]keys.Secret) (map[string][]byte, error) {
	out, err := w.set.Seal(ctx, files)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("%w; nothing was changed%s", err, without(err))
	}
	w.header, err = inspect(out)
	return out, err
}

// without says how a seal is done without that cannot be sealed to.
func without(err error) string {
	failed, ok := errors.AsType[*seal.SealingError](err)
	switch {
	case !ok || failed.Kind == seal.KindPassphrase:
		return ""
	case failed.Kind == seal.KindEscrow:
		return ": mend that, or take " + strings.Join(shortened(failed.Recipients), " and ") +
			" out of core.seal.escrow.recipients and run kmsctl seal rotate"
	}
	return fmt.Sprintf(": what cannot be sealed to has to be taken out of core.seal (core.seal.%s), or out of the files: kmsctl seal remove %s",
		strings.ReplaceAll(string(failed.Kind), "-", "_"), failed.Kind)
}

// shortened cuts recipients where they are still told from others.
func shortened(recipients []string) []string {
	const enough = 64
	out := slices.Clone(recipients)
	for i, r := range out {
		if len(r) > enough {
			out[i] = r[:enough] + "…"
		}
	}
	return out
}

// fared is how the configured seals that were tried have fared: nil for one that
// opened.
type fared map[seal.Kind]error

// unseal opens the files with everything at hand.
func (d *Directory) unseal(ctx context.Context, files map[string][]byte) (map[string]keys.Secret, fared, error) {
	how := fared{}
	set, err := seal.NewSet(seal.Config{
		Seals: d.cfg.Seals, Identities: d.cfg.Identities, Old: d.cfg.Old, Again: true, Now: d.cfg.Now,
		Told: func(k seal.Kind, err error) { how[k] = err },
	})
	if err != nil {
		return nil, nil, err
	}
	out, err := set.Open(ctx, files)
	return out, how, err
}

// alone says why a seal alone does not open the files. again is that of
// [seal.Config].
func (d *Directory) alone(ctx context.Context, s seal.Seal, files map[string][]byte, again bool) error {
	set, err := seal.NewSet(seal.Config{Seals: []seal.Seal{s}, Again: again, Now: d.cfg.Now})
	if err != nil {
		return err
	}
	_, err = set.Open(ctx, files)
	if closed, ok := errors.AsType[*seal.OpenError](err); ok {
		for _, r := range closed.Reasons {
			if r.Kind == s.Kind() {
				return r.Err
			}
		}
	}
	return err
}

// opens says why a seal does not open the files, trying it where it was not yet.
// again is for where a passphrase that does not has to be a mistake.
func (d *Directory) opens(ctx context.Context, s seal.Seal, files map[string][]byte, how fared, again bool) error {
	err, tried := how[s.Kind()]
	if !tried {
		err = d.alone(ctx, s, files, again)
		how[s.Kind()] = err
	}
	return err
}

// keeps looks whether the seals that stay are those that the files have. Another
// passphrase is refused, where it is not meant to change: typed wrongly, it would
// be found out on the day that nothing else opens.
func (d *Directory) keeps(ctx context.Context, p *planner, todo *plan, files map[string][]byte, how fared) error {
	for _, s := range todo.target {
		if !s.Opens() || !p.inFiles(s.Kind()) {
			continue
		}
		if todo.anew && s.Kind() != seal.KindPassphrase {
			continue
		}
		err := d.opens(ctx, s, files, how, !todo.anew && len(d.cfg.Old) == 0)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
		case s.Kind() != seal.KindPassphrase:
			todo.notes = append(todo.notes, fmt.Sprintf("%s did not open the files (%v): they are sealed to it as it is now", s.Kind(), err))
		case todo.anew || d.oldOpens(ctx, files):
			if another(err) {
				todo.notes = append(todo.notes, "the passphrase is another one than before")
			}
		case another(err):
			return errors.New("the passphrase is another one than the files are sealed to: kmsctl seal rotate changes it")
		default:
			return fmt.Errorf("trying the passphrase, which has to be the one that the files are sealed to (kmsctl seal rotate changes it): %w", err)
		}
	}
	return nil
}

// oldOpens says whether the passphrase that was said to be the one before opens
// the files: then it is meant to change.
func (d *Directory) oldOpens(ctx context.Context, files map[string][]byte) bool {
	return slices.ContainsFunc(d.cfg.Old, func(s seal.Seal) bool { return d.alone(ctx, s, files, false) == nil })
}

// unchanged is the result where there is nothing to add. What the files say is
// believed once they were opened.
func (d *Directory) unchanged(ctx context.Context, files map[string][]byte, out *Result) (*Result, error) {
	d.cfg.Progress("opening the private keys of " + d.cfg.Dir)
	_, how, err := d.unseal(ctx, files)
	if err != nil {
		return nil, wayOut(err)
	}
	out.After = out.Before
	for _, s := range d.cfg.Seals {
		if !s.Opens() {
			continue
		}
		if err := d.opens(ctx, s, files, how, true); err != nil {
			out.Notes = append(out.Notes, fmt.Sprintf("%s does not open the files here: %v", s.Kind(), err))
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	if d.cfg.Compare != nil {
		notes, _ := d.cfg.Compare(files)
		out.Notes = append(out.Notes, notes...)
	}
	if len(out.Notes) > 0 {
		out.Notes = append(out.Notes, "add does not renew a seal: `kmsctl seal rotate` seals to what is configured, to the TPM as it is now")
	}
	out.Warnings = append(out.Warnings, d.unmeasured(ctx)...)
	return out.finish(&plan{}), nil
}

// another says whether a passphrase was there and did not fit.
func another(err error) bool { return errors.Is(err, seal.ErrWrongPassphrase) }

// wayOut adds to an error what is to be done about it.
func wayOut(err error) error {
	if hint := remedy(err); hint != "" {
		return fmt.Errorf("%w: %s", err, hint)
	}
	if _, ok := errors.AsType[*seal.OpenError](err); ok {
		return fmt.Errorf("%w; kmsctl seal status tells what would open it", err)
	}
	return err
}

// remedy says what is to be done about the reason for which a file is not opened,
// nothing where that depends on what else there is.
func remedy(reason error) string {
	if file, ok := errors.AsType[*seal.FileError](reason); ok {
		if madeAnew(file.File) {
			return "remove " + file.File + ", and the KMS makes it anew at its next start"
		}
		return "restore the key directory from a backup"
	}
	if dear, ok := errors.AsType[*seal.WorkFactorError](reason); ok && dear.Factor <= seal.MaxWorkFactor {
		return fmt.Sprintf("set core.seal.passphrase.work_factor = %d to open them, or seal them with the one that is configured: "+
			"kmsctl seal rotate --max-work-factor %[1]d, which takes %s of memory", dear.Factor, memory(dear.Factor))
	}
	return ""
}

// madeAnew says whether the KMS makes a private file anew that is missing.
func madeAnew(name string) bool { return name == "rpc.key" || name == "tmp-ca.key" }

// memory is what scrypt takes at a work factor.
func memory(factor int) string {
	if factor < 20 {
		return fmt.Sprintf("%d MiB", 1<<(factor-10))
	}
	return fmt.Sprintf("%d GiB", 1<<(factor-20))
}
