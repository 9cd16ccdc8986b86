package keystore_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"teekms/internal/durable/durabletest"
	"teekms/internal/keys/keystore"
)

const changedMeanwhile = "was written by another process since it was opened"

// TestResealingTwiceAtOnce lets one store seal to two places at once, then two
// stores: the first waits for itself, of the second one goes first and the other
// is refused.
func TestResealingTwiceAtOnce(t *testing.T) {
	sealers := []keystore.Sealer{sealTo(t, "here"), sealTo(t, "there")}
	for _, stores := range []int{1, 2} {
		t.Run(fmt.Sprint(stores, " stores"), func(t *testing.T) {
			for range 20 {
				d, b := filledDisk(t, crashDir)
				fsys := d.FS(durabletest.Plan{})
				opened := make([]*keystore.Store, 2)
				for i := range opened {
					if opened[i] = opened[0]; i < stores {
						opened[i] = open(t, crashDir, fsys)
					}
				}
				var errs [2]error
				var wg sync.WaitGroup
				for i := range opened {
					wg.Go(func() { errs[i] = opened[i].Reseal(context.Background(), sealers[i]) })
				}
				wg.Wait()
				refused := 0
				for _, err := range errs {
					if err != nil && strings.Contains(err.Error(), changedMeanwhile) {
						refused++
					} else if err != nil {
						t.Errorf("Reseal = %v, want nil or %s", err, changedMeanwhile)
					}
				}
				if refused != stores-1 {
					t.Errorf("%d of two Reseals refused, want %d", refused, stores-1)
				}
				s, opener, err := openAny(fsys, sealers...)
				if err != nil {
					t.Fatal(err)
				}
				if err := completeWith(s, d, b); err != nil || stores == 2 && (opener == sealers[0]) != (errs[0] == nil) {
					t.Errorf("found %v, errors %v, want what the one that was not refused has written", err, errs)
				}
				if found := secretsOf(keystore.PlainFiles(b)).in(d.Contents()); len(found) > 0 {
					t.Errorf("in the clear: %v", found)
				}
			}
		})
	}
}

// contend seals a directory over and over, as long as other processes let it.
func contend(s *keystore.Store, to keystore.Sealer) error {
	for range 10 {
		if err := s.Reseal(context.Background(), to); err != nil {
			if strings.Contains(err.Error(), changedMeanwhile) {
				return nil
			}
			return err
		}
	}
	return nil
}

// TestProcessesThatSealAtOnce has processes that seal one directory anew, again
// and again, and die and begin anew when another was faster.
func TestProcessesThatSealAtOnce(t *testing.T) {
	here, dir, b := sealTo(t, "here"), t.TempDir(), newBundle(t)
	cfg := keystore.Config{Dir: dir, Now: clock, Sealer: here}
	s, err := keystore.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, dir)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				if l := runChildAs(t, "contend", dir, 0, 0); !l.done {
					t.Errorf("a process ended after %q", l.steps[max(0, len(l.steps)-1):])
				}
			}
		})
	}
	wg.Wait()
	if s, err = keystore.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if left := list(t, dir); !s.Roots().Equal(b.Roots()) || len(left) != 8 || len(changed(t, dir, before)) != len(privateNames()) {
		t.Errorf("found %v, changed %v, want the eight, the keys sealed anew", left, changed(t, dir, before))
	}
	if err := s.Reseal(t.Context(), here); err != nil {
		t.Errorf("Reseal afterwards = %v, want nil", err)
	}
}
