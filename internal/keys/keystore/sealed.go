package keystore

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"go.uber.org/zap"

	"teekms/internal/durable"
	"teekms/internal/keys"
	"teekms/internal/keys/seal"
)

// Sealer seals the private files of a key directory and opens them again.
// Errors name the file they are about. Both may wait for a device, an agent or
// a person, until ctx is done.
type Sealer interface {
	// Seal returns each file sealed, under its own name.
	Seal(ctx context.Context, files map[string]keys.Secret) (map[string][]byte, error)
	// Open returns the contents of each file, or an error if one of them is not
	// whole, not the file of that name or not of one sealing with the others.
	Open(ctx context.Context, files map[string][]byte) (map[string]keys.Secret, error)
}

// openTries bounds how often sealed files are opened that another process
// writes anew meanwhile.
const openTries = 3

// privateFiles are those that are sealed.
func privateFiles() []string { return []string{rootCAKey, rootK256, rpcKey, tempCAKey} }

func isPrivate(name string) bool { return slices.Contains(privateFiles(), name) }

// private returns the private files of a set, those that are there.
func (f fileSet) private() fileSet {
	only := fileSet{}
	for _, name := range privateFiles() {
		if data, ok := f[name]; ok {
			only[name] = data
		}
	}
	return only
}

// digests tell one writing of the files from another.
func (f fileSet) digests() map[string][sha256.Size]byte {
	d := map[string][sha256.Size]byte{}
	for name, data := range f {
		d[name] = sha256.Sum256(data)
	}
	return d
}

// checkSealing refuses private files that are sealed in part, or that are not
// what the configuration says. It reports whether they are sealed.
func (s *Store) checkSealing(private fileSet) (bool, error) {
	var sealed, plain string
	for _, name := range privateFiles() {
		data, ok := private[name]
		switch {
		case !ok:
		case seal.Sealed(data):
			sealed = cmp.Or(sealed, name)
		default:
			plain = cmp.Or(plain, name)
		}
	}
	switch {
	case sealed != "" && plain != "":
		return false, fmt.Errorf("%s is sealed and %s is not: the two are not from one directory, or %s is damaged; restore it from a backup",
			s.path(sealed), s.path(plain), plain)
	case sealed != "" && s.sealer == nil:
		return false, fmt.Errorf("%s: %w", s.path(sealed), ErrSealed)
	case plain != "" && s.sealer != nil:
		return false, fmt.Errorf("%s: %w", s.path(plain), ErrNotSealed)
	}
	return sealed != "", nil
}

// opened are the contents of sealed files, with the form on disk that they were
// opened from.
type opened struct {
	sealed, plain fileSet
}

// of reports whether these are the files that were opened.
func (o *opened) of(private fileSet) bool {
	return o != nil && maps.EqualFunc(o.sealed, private, bytes.Equal)
}

// unseal opens the private files. What a sealer returns is not believed: every
// file must be there.
func (s *Store) unseal(ctx context.Context, private fileSet) (*opened, error) {
	contents, err := s.sealer.Open(ctx, private)
	if err != nil {
		return nil, fmt.Errorf("opening sealed key directory %s: %w", s.dir, err)
	}
	o := &opened{sealed: private, plain: fileSet{}}
	for name := range private {
		content, ok := contents[name]
		if !ok {
			return nil, fmt.Errorf("opening sealed key directory %s: no contents of %s", s.dir, name)
		}
		o.plain[name] = content.Bytes()
	}
	return o, nil
}

// seal returns the files with the private ones sealed; without a sealer as they
// are. No file leaves it in the clear, whatever the sealer returns.
func (s *Store) seal(ctx context.Context, sealer Sealer, files fileSet) (fileSet, error) {
	if sealer == nil {
		return files, nil
	}
	plain := map[string]keys.Secret{}
	for name, data := range files.private() {
		plain[name] = keys.NewSecret(data)
	}
	sealed, err := sealer.Seal(ctx, plain)
	if err != nil {
		return nil, fmt.Errorf("sealing key directory %s: %w", s.dir, err)
	}
	out := maps.Clone(files)
	for name := range plain {
		if !seal.Sealed(sealed[name]) {
			return nil, fmt.Errorf("sealing key directory %s: %s was not sealed", s.dir, name)
		}
		if len(sealed[name]) > maxFile {
			return nil, fmt.Errorf("sealing key directory %s: %s has %d bytes, more than %d", s.dir, name, len(sealed[name]), maxFile)
		}
		out[name] = sealed[name]
	}
	return out, nil
}

// ReadPrivate returns those of the private files root-ca.key, root-k256.key,
// rpc.key and tmp-ca.key that a directory has, as they are on disk, sealed or
// not. An interrupted write is brought to its end first, as [Open] does; nothing
// is opened, repaired or judged. fsys nil is durable.Within the directory.
func ReadPrivate(ctx context.Context, dir string, fsys durable.FS) (map[string][]byte, error) {
	if fsys == nil {
		fsys = durable.NewWithin(dir)
	}
	s := &Store{dir: filepath.Clean(dir), fs: fsys, log: zap.NewNop()}
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := s.recoverStage(); err != nil && !s.ignorable() {
		return nil, err
	}
	entries, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return nil, pathError("reading", s.dir, err)
	}
	files := map[string][]byte{}
	for _, e := range entries {
		name := e.Name()
		if !isPrivate(name) {
			continue
		}
		// A link that leads nowhere is not missing.
		if files[name], err = s.fs.ReadFile(s.path(name), limitOf(name)); err != nil {
			return nil, pathError("reading", s.path(name), err)
		}
	}
	return files, nil
}
