package keystore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"go.uber.org/zap"

	"teekms/internal/durable"
)

// oldSuffix ends the name that a replaced file has in the stage.
const oldSuffix = ".old"

func (s *Store) retired(name string) string { return s.staged(name + oldSuffix) }

// Reseal writes the private files anew under another sealer, or once more under
// the same: the same keys, all or nothing, durably. It works from plain files
// too. What they were before is overwritten with zeros and removed once the new
// files are durable, and the store uses the new sealer from then on. ctx bounds
// the wait for the sealer and for the directory's lock, ten seconds at most.
//
// After an error everything is as it was, except with [ErrNotWiped], where
// everything is done but the overwriting, and where undoing failed too, which
// the error says: then the next opening finds out what is on disk, all of it old
// or all of it new. It is refused where the files are not those that were
// opened, and where one of them is a link or has another name.
func (s *Store) Reseal(ctx context.Context, to Sealer) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	old := s.get()
	switch {
	case old == nil:
		return errEmpty
	case to == nil:
		return errors.New("resealing: no sealer")
	}
	all, err := old.files()
	if err != nil {
		return err
	}
	files, err := s.seal(ctx, to, all.private())
	if err != nil {
		return err
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	m := resealing(old.onDisk, files)
	err = s.reseal(m, files)
	if err != nil && !errors.Is(err, ErrNotWiped) {
		return err
	}
	resealed := *old
	resealed.onDisk = files.digests()
	s.set(&resealed)
	s.sealer = to
	return err
}

// reseal stages and publishes, and undoes it on an error.
func (s *Store) reseal(m marker, files fileSet) error {
	if _, err := s.recoverStage(); err != nil {
		return err
	}
	switch there, err := s.hasStage(); {
	case err != nil:
		return err
	case there:
		return fmt.Errorf("%s is left of an earlier write and could not be tidied up; nothing was changed: open the directory again, which tries once more and logs why not", s.path(stageDir))
	}
	if err := s.checkReplaceable(m); err != nil {
		return err
	}
	err := s.stageResealed(m, files)
	var done swapped
	if err == nil {
		done, err = s.swap(m.moves())
	}
	if err == nil {
		return s.tidyResealed(m)
	}
	if undo := s.swapBack(done); undo != nil {
		return fmt.Errorf("%w (undoing it failed too: %w; what is on disk is found out when the directory is opened next)", err, undo)
	}
	return err
}

// stageResealed is stage, but refuses before the marker files that would change
// hands: made by root, say, they would be closed to the user who runs the KMS,
// and those of another user cannot be overwritten.
func (s *Store) stageResealed(m marker, files fileSet) error {
	if err := s.stageFiles(files); err != nil {
		return err
	}
	for _, l := range m.lines {
		if !l.replaces {
			continue
		}
		old, err := s.fs.Stat(s.path(l.name))
		if err != nil {
			return pathError("reading", s.path(l.name), err)
		}
		made, err := s.fs.Stat(s.staged(l.name))
		if err != nil {
			return pathError("reading", s.staged(l.name), err)
		}
		if was, is := durable.Owner(old), durable.Owner(made); was != is {
			return fmt.Errorf("%s belongs to another user (%d) than the file in its place would (%d): run this as the user who owns the key directory's files", s.path(l.name), was, is)
		}
	}
	return s.mark(files, m.marshal())
}

// checkReplaceable refuses to replace files that are not those the marker says,
// and those whose overwriting would not do or would do too much.
func (s *Store) checkReplaceable(m marker) error {
	entries, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return pathError("reading", s.dir, err)
	}
	for _, e := range entries {
		if !slices.ContainsFunc(m.lines, func(l markerLine) bool { return l.replaces && l.name == e.Name() }) {
			continue
		}
		path := s.path(e.Name())
		if !e.Type().IsRegular() {
			return fmt.Errorf("%s is a link: put the file itself in its place first", path)
		}
		info, err := s.fs.Stat(path)
		if err != nil {
			return pathError("reading", path, err)
		}
		if n := durable.Links(info); n > 1 {
			return fmt.Errorf("%s has %d names (hard links), and the old contents of all of them would be overwritten: remove the others first", path, n)
		}
	}
	for _, l := range m.lines {
		if !l.replaces {
			continue
		}
		sum, err := s.digest(s.path(l.name))
		if err != nil {
			return pathError("reading", s.path(l.name), err)
		}
		if sum != l.old {
			return fmt.Errorf("%s %w", s.path(l.name), errChanged)
		}
	}
	return nil
}

// move is what has to be done with one file.
type move struct {
	name string
	// retire says that the old file goes into the stage first.
	retire bool
	// replace says that something may be in the place of the new one.
	replace bool
}

// moves are those of a stage that was just written.
func (m marker) moves() []move {
	var moves []move
	for _, l := range m.lines {
		moves = append(moves, move{name: l.name, retire: l.replaces, replace: !isPrivate(l.name)})
	}
	return moves
}

// swapped are the names of files that may have been moved: a rename that reports
// a failure may have happened all the same.
type swapped struct{ retired, published []string }

// swap takes the old files into the stage and puts the new in their places. When
// it returns nil the new ones are durable. The old ones are durable in the stage
// before the first of the new is in place: else a crash could leave them without
// a name, not overwritten.
func (s *Store) swap(moves []move) (done swapped, err error) {
	for _, m := range moves {
		if !m.retire {
			continue
		}
		done.retired = append(done.retired, m.name)
		if err := s.fs.RenameNew(s.path(m.name), s.retired(m.name)); err != nil {
			return done, s.writeError(m.name, err)
		}
	}
	if err := s.syncStage(); err != nil {
		return done, s.writeError(rootCAKey, err)
	}
	for _, m := range moves {
		rename := s.fs.RenameNew
		if m.replace {
			rename = s.fs.Rename
		}
		err := rename(s.staged(m.name), s.path(m.name))
		if !errors.Is(err, fs.ErrExist) {
			done.published = append(done.published, m.name)
		}
		if err != nil {
			return done, s.writeError(m.name, err)
		}
	}
	if err := s.fs.SyncDir(s.dir); err != nil {
		return done, s.writeError(rootCAKey, err)
	}
	return done, nil
}

// swapBack undoes a failed swap while the marker still stands, then removes the
// stage. The new files are durable in the stage again before the first of the
// old is in its place, so that a crash on the way finds all of the new.
func (s *Store) swapBack(done swapped) error {
	for _, name := range slices.Backward(done.published) {
		if err := s.fs.Rename(s.path(name), s.staged(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if len(done.published) > 0 {
		if err := s.syncStage(); err != nil {
			return err
		}
	}
	for _, name := range slices.Backward(done.retired) {
		if err := s.fs.RenameNew(s.retired(name), s.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if len(done.retired) > 0 {
		if err := s.fs.SyncDir(s.dir); err != nil {
			return err
		}
		if err := s.syncStage(); err != nil {
			return err
		}
	}
	return s.discard()
}

// finishReseal brings an interrupted resealing to its end. Nothing is guessed:
// every file must be the old or the new that the marker says.
func (s *Store) finishReseal(m marker) error {
	var moves []move
	for _, l := range m.lines {
		todo, err := s.checkResealed(l)
		if err != nil {
			return err
		}
		if todo != nil {
			moves = append(moves, *todo)
		}
	}
	if len(moves) > 0 {
		if _, err := s.swap(moves); err != nil {
			return err
		}
		s.log.Info("completed an interrupted resealing of the key directory", zap.String("dir", s.dir))
	}
	if err := s.tidyResealed(m); err != nil {
		s.tellNotWiped(err)
	}
	return nil
}

// checkResealed says what is left to do with a file, nil if it is in its place.
func (s *Store) checkResealed(l markerLine) (*move, error) {
	there, err := s.digestIf(s.path(l.name))
	if err != nil {
		return nil, err
	}
	if there != nil && *there == l.digest {
		return nil, nil
	}
	staged, err := s.digestIf(s.staged(l.name))
	switch {
	case err != nil:
		return nil, err
	case staged == nil && there != nil && !isPrivate(l.name):
		return nil, nil // replaced since, by a renewal or an operator
	case staged == nil || *staged != l.digest:
		return nil, fmt.Errorf("recovering %s: damaged after it was written; restore the directory from a backup (the old file may be %s)", s.staged(l.name), s.retired(l.name))
	case !isPrivate(l.name):
		return &move{name: l.name, replace: true}, nil
	case there == nil:
		return &move{name: l.name}, nil
	case !l.replaces || *there != l.old:
		return nil, fmt.Errorf("recovering %s: neither the file that was there before the resealing nor the new one; restore the directory from a backup", s.path(l.name))
	}
	retired, err := s.digestIf(s.retired(l.name))
	if err != nil {
		return nil, err
	}
	// A crash may leave both names of a renamed file.
	both := retired != nil && *retired == l.old
	if both {
		if err := s.checkOneFile(l.name); err != nil {
			return nil, err
		}
	}
	return &move{name: l.name, retire: !both, replace: both}, nil
}

// checkOneFile refuses an old file that was copied back: the copy would be
// replaced without being overwritten.
func (s *Store) checkOneFile(name string) error {
	info, err := s.fs.Stat(s.path(name))
	if err != nil {
		return pathError("reading", s.path(name), err)
	}
	if durable.Links(info) == 1 {
		return fmt.Errorf("recovering %s: %s is another file with the same contents: remove one of them", s.path(name), s.retired(name))
	}
	return nil
}

// digestIf returns nil where there is no file.
func (s *Store) digestIf(path string) (*[sha256.Size]byte, error) {
	sum, err := s.digest(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, pathError("reading", path, err)
	}
	return &sum, nil
}

// tidyResealed overwrites and removes the old files, then the stage. The new
// ones are in their places. The marker goes after the last of the old, so that
// the next opening finishes what is left. The error is [ErrNotWiped]; a stage
// without old files that stays is only told.
func (s *Store) tidyResealed(m marker) error {
	if err := s.wipe(m); err != nil {
		return fmt.Errorf("%w: %w; the next opening of %s tries again", ErrNotWiped, err, s.dir)
	}
	s.tidy()
	return nil
}

func (s *Store) wipe(m marker) error {
	// Also after a failure that left the new names in the cache alone.
	if err := s.fs.SyncDir(s.dir); err != nil {
		return pathError("syncing", s.dir, err)
	}
	for _, l := range m.lines {
		if !l.replaces {
			continue
		}
		path := s.retired(l.name)
		err := s.fs.Overwrite(path)
		if errors.Is(err, fs.ErrPermission) {
			// Its owner may only read it.
			if err = s.fs.Chmod(path, secretMode); err == nil {
				err = s.fs.Overwrite(path)
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = s.fs.Remove(path)
		}
		if err != nil {
			return pathError("overwriting", path, err)
		}
	}
	if err := s.syncStage(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return pathError("syncing", s.staged(""), err)
	}
	return nil
}

func (s *Store) tellNotWiped(err error) {
	s.log.Error("old private keys are still on the disk", zap.String("dir", s.dir), zap.NamedError("err", err))
}
