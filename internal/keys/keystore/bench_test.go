package keystore_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

// memoryDir is a directory in memory where the system has one, so that what is
// measured is ours and not the disk's.
func memoryDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "keystore") //nolint:usetesting // has to be in memory
	if err != nil {
		return b.TempDir()
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	return dir
}

// BenchmarkCommit makes all keys and certificates and commits them.
func BenchmarkCommit(b *testing.B) {
	for _, where := range []struct{ name, dir string }{{"memory", memoryDir(b)}, {"disk", b.TempDir()}} {
		b.Run(where.name, func(b *testing.B) {
			n := 0
			for b.Loop() {
				n++
				roots, err := keys.NewRoots()
				if err != nil {
					b.Fatal(err)
				}
				info := &keystore.Info{CAPublic: roots.CAPublic(), K256Public: roots.K256Public(), Quote: make([]byte, 5000), EventLog: make([]byte, 10000)}
				bundle, err := keystore.NewBundle(roots, testDomain, info, clock())
				if err != nil {
					b.Fatal(err)
				}
				dir := filepath.Join(where.dir, fmt.Sprint(b.N, "-", n))
				if err := open(b, dir, nil).Commit(b.Context(), bundle); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkOpen opens a complete directory.
func BenchmarkOpen(b *testing.B) {
	dir := memoryDir(b)
	if err := open(b, dir, nil).Commit(b.Context(), newBundle(b)); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		open(b, dir, nil)
	}
}

// BenchmarkRenew renews the RPC certificate durably.
func BenchmarkRenew(b *testing.B) {
	dir := memoryDir(b)
	if err := open(b, dir, nil).Commit(b.Context(), newBundle(b)); err != nil {
		b.Fatal(err)
	}
	s := open(b, dir, nil)
	for b.Loop() {
		if _, err := s.RenewRPC(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpenSealed opens a sealed directory; the key of the seals costs
// nothing.
func BenchmarkOpenSealed(b *testing.B) {
	cfg := keystore.Config{Dir: memoryDir(b), Now: clock, Sealer: sealTo(b, "here")}
	s, err := keystore.Open(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Commit(b.Context(), newBundle(b)); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := keystore.Open(b.Context(), cfg); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReseal writes the private files anew, overwriting the old ones.
func BenchmarkReseal(b *testing.B) {
	for _, where := range []struct{ name, dir string }{{"memory", memoryDir(b)}, {"disk", b.TempDir()}} {
		b.Run(where.name, func(b *testing.B) {
			s, err := keystore.Open(b.Context(), keystore.Config{Dir: filepath.Join(where.dir, fmt.Sprint(b.N)), Now: clock})
			if err != nil {
				b.Fatal(err)
			}
			if err := s.Commit(b.Context(), newBundle(b)); err != nil {
				b.Fatal(err)
			}
			set := sealTo(b, "here")
			for b.Loop() {
				if err := s.Reseal(b.Context(), set); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
