package keystore_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"

	"teekms/internal/durable"
	"teekms/internal/durable/durabletest"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
	"teekms/internal/keys/seal"
)

// named is a key source that needs no device: the key is the digest of a name,
// and who has another name does not find it.
type named string

func (n named) key() keys.Secret {
	sum := sha256.Sum256([]byte(n))
	return keys.NewSecret(sum[:])
}

func (n named) Make(context.Context) (keys.Secret, []string, error) {
	return n.key(), []string{string(n)}, nil
}

func (n named) Find(_ context.Context, args []string) (keys.Secret, error) {
	if len(args) != 1 || args[0] != string(n) {
		return keys.Secret{}, fmt.Errorf("this is %s", n)
	}
	return n.key(), nil
}

func (n named) Describe([]string) string { return string(n) }

// sealTo returns real seals over a source without a device.
func sealTo(t testing.TB, name string) *seal.Set {
	t.Helper()
	set, err := newSet(name)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func newSet(name string) (*seal.Set, error) {
	return seal.NewSet(seal.Config{Seals: []seal.Seal{seal.New(seal.KindTPM, named(name))}, Now: clock})
}

// repeating gives the same sealed files for the same contents, so that the disks
// of a scenario can be told from one another; what it gives is sealed for real.
// It also counts.
type repeating struct {
	keystore.Sealer

	mu     sync.Mutex
	sealed map[[sha256.Size]byte]map[string][]byte
	seals  int
	opens  int
}

func repeat(s keystore.Sealer) *repeating {
	return &repeating{Sealer: s, sealed: map[[sha256.Size]byte]map[string][]byte{}}
}

func (r *repeating) Seal(ctx context.Context, files map[string]keys.Secret) (map[string][]byte, error) {
	h := sha256.New()
	for _, name := range []string{"root-ca.key", "root-k256.key", "rpc.key", "tmp-ca.key"} {
		h.Write(fmt.Appendf(nil, "%d ", files[name].Len()))
		h.Write(files[name].Bytes())
	}
	id := [sha256.Size]byte(h.Sum(nil))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seals++
	if r.sealed[id] == nil {
		sealed, err := r.Sealer.Seal(ctx, files)
		if err != nil {
			return nil, err
		}
		r.sealed[id] = sealed
	}
	return maps.Clone(r.sealed[id]), nil
}

func (r *repeating) Open(ctx context.Context, files map[string][]byte) (map[string]keys.Secret, error) {
	r.mu.Lock()
	r.opens++
	r.mu.Unlock()
	return r.Sealer.Open(ctx, files)
}

func (r *repeating) counts() (seals, opens int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seals, r.opens
}

func privateNames() []string {
	return []string{"root-ca.key", "root-k256.key", "rpc.key", "tmp-ca.key"}
}

// openSealed opens a directory with a sealer, nil for plain.
func openSealed(fsys durable.FS, sealer keystore.Sealer) (*keystore.Store, error) {
	return keystore.Open(context.Background(), keystore.Config{Dir: crashDir, FS: fsys, Now: clock, Sealer: sealer})
}

// openAny opens a directory that is plain or sealed to one of these.
func openAny(fsys durable.FS, sealers ...keystore.Sealer) (*keystore.Store, keystore.Sealer, error) {
	s, err := openSealed(fsys, nil)
	if err == nil || !errors.Is(err, keystore.ErrSealed) {
		return s, nil, err
	}
	var all []error
	for _, sealer := range sealers {
		if s, err := openSealed(fsys, sealer); err == nil {
			return s, sealer, nil
		} else {
			all = append(all, err)
		}
	}
	return nil, nil, errors.Join(all...)
}

// filledSealed returns a complete sealed directory on the model.
func filledSealed(t testing.TB, sealer keystore.Sealer) (*durabletest.Disk, *keystore.Bundle) {
	t.Helper()
	d, b := durabletest.NewDisk(crashDir), newBundle(t)
	s, err := openSealed(d.FS(durabletest.Plan{}), sealer)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return d.Clone(), b
}

// allSealed says that all four private files are sealed, or all four plain.
func allSealed(files map[string]string) (bool, error) {
	n := 0
	for _, name := range privateNames() {
		if seal.Sealed([]byte(files[name])) {
			n++
		}
	}
	if n != 0 && n != len(privateNames()) {
		return false, fmt.Errorf("%d of %d private files are sealed", n, len(privateNames()))
	}
	return n > 0, nil
}
