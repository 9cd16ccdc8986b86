package keystore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

// sourceEnv is a plain directory whose keys a child takes, so that its parent
// knows what must not be found.
const sourceEnv = "KEYSTORE_TEST_SOURCE"

// sealedChild changes a directory that is sealed here, and tells of it as
// commitChild does.
func sealedChild(what, dir, stop string) int {
	stopAt, err := strconv.Atoi(stop)
	if err != nil {
		return fail(err)
	}
	here, err := newSet("here")
	if err != nil {
		return fail(err)
	}
	s, err := keystore.Open(context.Background(), keystore.Config{Dir: dir, FS: told(dir, stopAt), Now: clock, Sealer: here})
	if what == "contend" && err != nil && strings.Contains(err.Error(), "other processes keep writing it") {
		fmt.Println("done")
		return 0
	}
	if err != nil {
		return fail(err)
	}
	switch what {
	case "bootstrap", "replica":
		err = commitCopy(what, s)
	case "contend":
		err = contend(s, here)
	}
	if err != nil {
		return fail(err)
	}
	fmt.Println("done")
	return 0
}

// commitCopy commits the keys of the source, as a bootstrap or a replica does.
func commitCopy(what string, s *keystore.Store) error {
	source, err := keystore.Open(context.Background(), keystore.Config{Dir: os.Getenv(sourceEnv), Now: clock})
	if err != nil {
		return err
	}
	b, err := keystore.NewBundle(source.Roots(), testDomain, source.Info(), clock())
	if what == "replica" {
		var temp keys.Secret
		if temp, err = source.TempCAKeyPEM(); err != nil {
			return err
		}
		b, err = keystore.NewReplica(keystore.Replica{Roots: source.Roots(), TempCAKey: temp, Domain: testDomain, Info: source.Info()}, clock())
	}
	if err != nil {
		return err
	}
	return s.Commit(context.Background(), b)
}

// killSealed kills processes at each step of a sealed bootstrap, of the commit of
// a sealed replica and of a sealed repair.
func killSealed(t *testing.T, count *tally) {
	source, b := filled(t)
	t.Setenv(sourceEnv, source)
	template := t.TempDir()
	s, err := keystore.Open(t.Context(), keystore.Config{Dir: template, Now: clock, Sealer: sealTo(t, "here")})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	whole := snapshot(t, template)
	var wg sync.WaitGroup
	for _, what := range []string{"bootstrap", "replica", "repair"} {
		wg.Go(func() {
			for stopAt := 1; ; stopAt++ {
				dir := filepath.Join(t.TempDir(), "certs")
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Error(err)
				}
				for name, mode := range theEight() {
					if missing := name == "rpc.key" || name == "tmp-ca.key" || name == "root-ca.crt"; what == "repair" && !missing {
						if err := os.WriteFile(filepath.Join(dir, name), whole[name], mode); err != nil {
							t.Error(err)
						}
					}
				}
				l := runChildAs(t, what, dir, stopAt, 0)
				if err := findSealed(t, dir, what, l, b, count); err != nil {
					t.Errorf("%s, killed after %q: %v", what, l.steps[max(0, len(l.steps)-1):], err)
				}
				if !l.killed {
					return
				}
				count.add("kills of a sealed %s", what)
			}
		})
	}
	wg.Wait()
}

// findSealed judges what a killed child has left.
func findSealed(t *testing.T, dir, what string, l life, b *keystore.Bundle, count *tally) error {
	if !l.killed && !l.done {
		return errors.New("not killed and not finished")
	}
	texts := below(t, dir)
	if leaked := secretsOf(keystore.PlainFiles(b)).in(texts); len(leaked) > 0 || strings.Contains(strings.Join(texts, ""), "PRIVATE KEY") {
		return fmt.Errorf("in the clear: %v", leaked)
	}
	s, err := keystore.Open(context.Background(), keystore.Config{Dir: dir, Now: clock, Sealer: sealTo(t, "here")})
	if err != nil {
		return fmt.Errorf("open = %w, want empty or complete", err)
	}
	left := list(t, dir)
	switch {
	case !s.Complete() && (l.done || what == "repair"):
		return errors.New("found empty, want the keys")
	case !s.Complete():
		count.add("found empty, sealed")
		if len(left) > 0 {
			return fmt.Errorf("left in the empty directory: %v", left)
		}
		return nil
	case !s.Roots().Equal(b.Roots()) || len(left) != 8:
		return fmt.Errorf("found %v, want the eight with the same root keys", left)
	case what == "repair":
		count.add("found repaired, sealed")
	default:
		count.add("found complete, sealed")
	}
	return nil
}
