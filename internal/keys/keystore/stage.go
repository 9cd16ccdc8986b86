package keystore

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.uber.org/zap"

	"teekms/internal/durable"
)

// fileSet maps the names of files to their contents.
type fileSet map[string][]byte

// names returns the names in publishing order.
func (f fileSet) names() []string {
	return slices.DeleteFunc(publishOrder(), func(n string) bool { _, ok := f[n]; return !ok })
}

// only returns the files of these names, those that are there.
func (f fileSet) only(names []string) fileSet {
	some := fileSet{}
	for _, name := range names {
		if data, ok := f[name]; ok {
			some[name] = data
		}
	}
	return some
}

func (s *Store) staged(name string) string { return filepath.Join(s.dir, stageDir, name) }

// hasStage reports whether there is a stage. One that is a link is an error, and
// one that is not believed: what is in it was not written here, and what it leads
// to is not ours to move, overwrite or remove.
func (s *Store) hasStage() (bool, error) {
	entries, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return false, listError{pathError("reading", s.dir, err)}
	}
	i := slices.IndexFunc(entries, func(e fs.DirEntry) bool { return e.Name() == stageDir })
	if i < 0 {
		return false, nil
	}
	if !entries[i].IsDir() {
		return false, listError{fmt.Errorf("%s is no directory: remove it", s.path(stageDir))}
	}
	return true, s.believeStage()
}

// believeStage refuses a stage that neither this user nor the owner of the
// directory or of its keys made, and one that everybody can write. What it looked
// at is the stage until the lock is let go, whatever comes into its place.
func (s *Store) believeStage() error {
	stage, err := s.fs.Stat(s.path(stageDir))
	switch {
	case err != nil:
		return pathError("reading", s.path(stageDir), err)
	case !stage.IsDir():
		return listError{fmt.Errorf("%s is no directory: remove it", s.path(stageDir))}
	}
	dir, err := s.fs.Stat(s.dir)
	switch {
	case err != nil:
		return pathError("reading", s.dir, err)
	case stage.Mode()&everybodyWrites != 0 && (!everybodysOwn(stage) || !everybodysOwn(dir)):
		// It may have the only copy of a root key.
		return fmt.Errorf("%s can be written by everybody: set its mode to 0700 if it is of this KMS, which may need it, else put it elsewhere", s.path(stageDir))
	}
	owner := durable.Owner(stage)
	if owner == os.Geteuid() {
		return nil
	}
	for _, path := range []string{s.dir, s.path(rootCAKey)} {
		info, err := s.fs.Stat(path)
		switch {
		case err == nil && durable.Owner(info) == owner:
			return nil
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return pathError("reading", path, err)
		}
	}
	return fmt.Errorf("%s belongs to another user (%d) than %s: run this as that user, or remove it if it is not of this KMS", s.path(stageDir), owner, s.dir)
}

// everybodysOwn reports whether everybody can do anything with the files in a
// directory. A stage like that adds nothing to a key directory like that, and on a
// file system without modes there is no other.
func everybodysOwn(dir fs.FileInfo) bool {
	return dir.Mode()&everybodyWrites != 0 && dir.Mode()&fs.ModeSticky == 0
}

// makeStage makes the stage, and looks at it: somebody else's may be in its place
// already.
func (s *Store) makeStage() error {
	if err := s.fs.Mkdir(s.path(stageDir), stageMode); err != nil {
		return err
	}
	return s.believeStage()
}

// stage writes the files and then their marker into the stage, each step durable
// before the next. When it returns nil the files are committed: opening the
// directory brings them in place. The failed file's name comes with the error.
func (s *Store) stage(files fileSet, marker []byte) error {
	if err := s.stageFiles(files); err != nil {
		return err
	}
	return s.mark(files, marker)
}

// stageFiles makes the stage with the files in it, durable and without meaning
// yet.
func (s *Store) stageFiles(files fileSet) error {
	names := files.names()
	// The root CA key goes first, so that a directory that cannot be written is
	// reported with its path.
	slices.Reverse(names)
	if err := s.makeStage(); err != nil {
		return s.writeError(names[0], err)
	}
	for _, name := range names {
		if err := durable.WriteNew(s.fs, s.staged(name), files[name], modeOf(name)); err != nil {
			return s.writeError(name, err)
		}
	}
	if err := s.syncStage(); err != nil {
		return s.writeError(names[0], err)
	}
	// The stage's own entry must not be lost when files have left it.
	if err := s.fs.SyncDir(s.dir); err != nil {
		return s.writeError(names[0], err)
	}
	return nil
}

// mark commits the files in the stage.
func (s *Store) mark(files fileSet, marker []byte) error {
	names := files.names()
	slices.Reverse(names)
	if err := durable.WriteNew(s.fs, s.staged(markerFile), marker, secretMode); err != nil {
		return s.writeError(names[0], err)
	}
	if err := s.syncStage(); err != nil {
		return s.writeError(names[0], err)
	}
	return nil
}

// publish renames the staged files to their places. It returns the names that
// may have been renamed, on an error too: a rename that reports a failure may
// have happened all the same.
func (s *Store) publish(names []string) (moved []string, err error) {
	for _, name := range names {
		rename := s.fs.Rename
		if isRootKey(name) {
			rename = s.fs.RenameNew
		}
		err := rename(s.staged(name), s.path(name))
		if !errors.Is(err, fs.ErrExist) {
			moved = append(moved, name)
		}
		if err != nil {
			return moved, s.writeError(name, err)
		}
	}
	if err := s.fs.SyncDir(s.dir); err != nil {
		return moved, s.writeError(rootCAKey, err)
	}
	return moved, nil
}

// discard removes the stage, the marker first: what is removed after it is
// garbage also after a crash. A stage that is not there is no error.
func (s *Store) discard() error {
	there, err := s.hasStage()
	if err != nil || !there {
		return err
	}
	stage := s.path(stageDir)
	entries, err := s.fs.ReadDir(stage)
	if err != nil {
		return pathError("reading", stage, err)
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case strings.HasSuffix(name, oldSuffix):
			// It may be the only copy of a root key.
			return fmt.Errorf("%s is left of a resealing whose marker is damaged: put it back in its place in %s, or remove it if the file there is whole", s.staged(name), s.dir)
		case name != markerFile && !isOurs(name):
			return fmt.Errorf("%s is no file of a key directory: put it elsewhere", s.staged(name))
		}
	}
	if err := s.fs.Remove(s.staged(markerFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return pathError("removing", s.staged(markerFile), err)
	}
	if err := s.syncStage(); err != nil {
		return pathError("syncing", stage, err)
	}
	for _, e := range entries {
		if err := s.fs.Remove(s.staged(e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return pathError("removing", s.staged(e.Name()), err)
		}
	}
	if err := s.fs.Remove(stage); err != nil {
		return pathError("removing", stage, err)
	}
	return s.fs.SyncDir(s.dir)
}

// rollback undoes a failed commit of a whole bundle: published files go back
// into the stage while its marker still stands, then the stage goes. A crash on
// the way finds either a whole stage or none.
func (s *Store) rollback(moved []string) error {
	for _, name := range slices.Backward(moved) {
		if err := s.fs.Rename(s.path(name), s.staged(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if len(moved) > 0 {
		if err := s.syncStage(); err != nil {
			return err
		}
		if err := s.fs.SyncDir(s.dir); err != nil {
			return err
		}
	}
	return s.discard()
}

// recoverStage brings an interrupted write to its end: a marked stage forward, one
// without a valid marker back. It reports whether root keys came forward.
func (s *Store) recoverStage() (rolledForward bool, err error) {
	if there, err := s.hasStage(); err != nil || !there {
		return false, err
	}
	text, err := s.fs.ReadFile(s.staged(markerFile), maxMarker)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, pathError("reading", s.staged(markerFile), err)
	}
	m, ok := parseMarker(text)
	_, whole := wholeMarker(text)
	switch {
	case !ok && whole:
		return false, fmt.Errorf("recovering %s: whole, but not of a form that this version writes: start the version that wrote it once", s.staged(markerFile))
	case !ok:
		return false, s.discard()
	}
	// The process that wrote it may have died before it was durable: what is done
	// now must not outlast it.
	if err := s.syncMarker(); err != nil {
		return false, pathError("syncing", s.staged(markerFile), err)
	}
	if m.resealing {
		return false, s.finishReseal(m)
	}
	var names []string
	for _, l := range m.lines {
		staged, err := s.checkStaged(l)
		if err != nil {
			return false, err
		}
		if staged {
			names = append(names, l.name)
		}
	}
	if _, err := s.publish(names); err != nil {
		return false, err
	}
	fresh := slices.ContainsFunc(m.lines, func(l markerLine) bool { return isRootKey(l.name) })
	s.log.Info("completed an interrupted write of the key directory",
		zap.String("dir", s.dir), zap.Strings("files", names), zap.Bool("root_keys", fresh))
	s.tidy()
	return fresh, nil
}

// checkStaged reports whether the file still is in the stage and to be moved. A
// file that is neither there nor in its place, or is not what the marker says,
// stops everything: nothing is guessed about root keys.
func (s *Store) checkStaged(l markerLine) (bool, error) {
	stagedSum, err := s.digest(s.staged(l.name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		sum, err := s.digest(s.path(l.name))
		if err != nil {
			return false, pathError("recovering", s.path(l.name), err)
		}
		if isRootKey(l.name) && sum != l.digest {
			return false, fmt.Errorf("recovering %s: not the key that was committed; restore it from a backup", s.path(l.name))
		}
		return false, nil
	case err != nil:
		return false, pathError("reading", s.staged(l.name), err)
	case stagedSum != l.digest:
		return false, fmt.Errorf("recovering %s: damaged after it was written; restore the directory from a backup, or empty it if it never was in use", s.staged(l.name))
	}
	if !isRootKey(l.name) {
		return true, nil
	}
	// A crash may leave both names of a renamed file.
	sum, err := s.digest(s.path(l.name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, nil
	case err != nil:
		return false, pathError("reading", s.path(l.name), err)
	case sum != l.digest:
		return false, fmt.Errorf("recovering %s: another key is in its place already", s.path(l.name))
	}
	return false, nil
}

func (s *Store) digest(path string) ([sha256.Size]byte, error) {
	data, err := s.fs.ReadFile(path, maxInfo)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return sha256.Sum256(data), nil
}

// tidy removes the stage of a commit that is durable already. What it cannot
// remove, the next opening does.
func (s *Store) tidy() {
	if err := s.discard(); err != nil {
		s.log.Warn("the stage of a completed write stays until the next start", zap.String("dir", s.dir), zap.NamedError("err", err))
	}
}

func (s *Store) syncMarker() error {
	if err := s.fs.Sync(s.staged(markerFile)); err != nil {
		return err
	}
	return s.syncStage()
}

func (s *Store) syncStage() error { return s.fs.SyncDir(s.path(stageDir)) }
