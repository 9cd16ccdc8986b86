package keystore_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"teekms/internal/durable"
	"teekms/internal/durable/durabletest"
	"teekms/internal/keys/keystore"
)

// sealedScenarios are the crash scenarios of sealed directories.
func sealedScenarios(t *testing.T, count *tally) {
	here, there := repeat(sealTo(t, "here")), repeat(sealTo(t, "there"))
	t.Run("sealed bootstrap", func(t *testing.T) {
		t.Parallel()
		bootstrap(t, "sealed bootstrap", durabletest.NewDisk(crashDir), newBundle(t), count, here).enumerate(t, count)
	})
	t.Run("plain to sealed", func(t *testing.T) {
		t.Parallel()
		start, b := filledDisk(t, crashDir)
		sc := reseal("plain to sealed", start, b, nil, here, count)
		sc.undoing = true
		sc.enumerate(t, count)
	})
	t.Run("sealed to sealed", func(t *testing.T) {
		t.Parallel()
		start, b := filledSealed(t, here)
		reseal("sealed to sealed", start, b, here, there, count).enumerate(t, count)
	})
	t.Run("adoption, then sealed", func(t *testing.T) {
		t.Parallel()
		start, b := adopted(t)
		sc := reseal("adoption, then sealed", start, b, nil, here, count)
		sc.lean = true
		sc.enumerate(t, count)
	})
	t.Run("repair of a sealed directory", func(t *testing.T) {
		t.Parallel()
		repairSealed(t, here, count).enumerate(t, count)
	})
	t.Run("renewal in a sealed directory", func(t *testing.T) {
		t.Parallel()
		renewSealed(t, here, count).enumerate(t, count)
	})
}

// reseal is a scenario that seals a directory anew, from nil: from plain files.
func reseal(name string, start *durabletest.Disk, b *keystore.Bundle, from, to keystore.Sealer, count *tally) scenario {
	before, secret := start.Files(crashDir), secretsOf(keystore.PlainFiles(b))
	whole := secret.whole()
	sc := scenario{
		name: name, start: start,
		sealers: []keystore.Sealer{to},
		traces:  func(d *durabletest.Disk) string { return fmt.Sprint(whole.in(d.Contents())) },
		run: func(fsys durable.FS) (bool, error) {
			s, err := openSealed(fsys, from)
			if err != nil {
				return false, err
			}
			err = s.Reseal(context.Background(), to)
			return err == nil || errors.Is(err, keystore.ErrNotWiped), err
		},
		clean: func(d *durabletest.Disk) error { return sameFiles(before, d.Files(crashDir)) },
	}
	if from != nil {
		sc.sealers = append(sc.sealers, from)
	}
	sc.check = func(d *durabletest.Disk, announced bool) error {
		d = d.Clone()
		s, opener, err := openAny(d.FS(durabletest.Plan{}), sc.sealers...)
		if err != nil {
			return fmt.Errorf("open = %w, want old or new", err)
		}
		if s.RolledForward() {
			return errors.New("a resealing passes for a bootstrap")
		}
		switch opener {
		case to:
			count.add("found resealed")
			if found := secret.in(d.Contents()); len(found) > 0 {
				return fmt.Errorf("sealed, but still in the clear on the disk: %v", found)
			}
		case from:
			count.add("found not resealed")
			if announced {
				return errors.New("found old, want the announced resealing")
			}
			if err := sameFiles(before, d.Files(crashDir)); err != nil {
				return err
			}
		default:
			return errors.New("found plain, want sealed")
		}
		if _, err := allSealed(d.Files(crashDir)); err != nil {
			return err
		}
		if err := completeWith(s, d, b); err != nil || opener == to {
			return err
		}
		// What was found can be sealed on.
		if err := s.Reseal(context.Background(), to); err != nil {
			return fmt.Errorf("resealing what was found = %w, want nil", err)
		}
		return completeWith(s, d, b)
	}
	return sc
}

func sameFiles(want, got map[string]string) error {
	if maps.Equal(want, got) {
		return nil
	}
	for name := range got {
		if want[name] != got[name] {
			return fmt.Errorf("%s has changed or is new", name)
		}
	}
	return fmt.Errorf("files = %v, want %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
}

// adopted returns the directory of another KMS that has all it needs, but no
// record and keys that others may read.
func adopted(t *testing.T) (*durabletest.Disk, *keystore.Bundle) {
	b, err := keystore.NewBundle(newRoots(t), testDomain, nil, clock())
	if err != nil {
		t.Fatal(err)
	}
	d := durabletest.NewDisk(crashDir)
	if err := open(t, crashDir, d.FS(durabletest.Plan{})).Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	for _, name := range privateNames() {
		d.Put(crashDir+"/"+name, []byte(d.Files(crashDir)[name]), 0o644)
	}
	return d.Clone(), b
}

// repairSealed opens a sealed directory that lacks two keys and a certificate.
func repairSealed(t *testing.T, sealer keystore.Sealer, count *tally) scenario {
	start, b := filledSealed(t, sealer)
	for _, name := range []string{"rpc.key", "tmp-ca.key", "root-ca.crt"} {
		start.Delete(crashDir + "/" + name)
	}
	start.Put(crashDir+"/root-ca.key", []byte(start.Files(crashDir)["root-ca.key"]), 0o644)
	secret := secretsOf(keystore.PlainFiles(b))
	return scenario{
		name: "repair of a sealed directory", start: start, lean: true, sealers: []keystore.Sealer{sealer},
		run: func(fsys durable.FS) (bool, error) {
			_, err := openSealed(fsys, sealer)
			return err == nil, err
		},
		check: func(d *durabletest.Disk, _ bool) error {
			d = d.Clone()
			s, err := openSealed(d.FS(durabletest.Plan{}), sealer)
			if err != nil {
				return fmt.Errorf("open = %w, want complete", err)
			}
			count.add("repaired, sealed")
			if sealed, err := allSealed(d.Files(crashDir)); !sealed || err != nil {
				return fmt.Errorf("sealed = %v, %w, want all sealed", sealed, err)
			}
			if found := secret.in(d.Contents()); len(found) > 0 {
				return fmt.Errorf("in the clear on the disk: %v", found)
			}
			return completeWith(s, d, b)
		},
	}
}

// renewSealed replaces the RPC certificate of a sealed directory.
func renewSealed(t *testing.T, sealer keystore.Sealer, count *tally) scenario {
	start, b := filledSealed(t, sealer)
	before := start.Files(crashDir)
	return scenario{
		name: "renewal in a sealed directory", start: start, lean: true, sealers: []keystore.Sealer{sealer},
		run: func(fsys durable.FS) (bool, error) {
			s, err := openSealed(fsys, sealer)
			if err != nil {
				return false, err
			}
			_, err = s.RenewRPC(context.Background())
			return err == nil, err
		},
		check: func(d *durabletest.Disk, _ bool) error {
			d = d.Clone()
			s, err := openSealed(d.FS(durabletest.Plan{}), sealer)
			if err != nil {
				return fmt.Errorf("open = %w, want complete", err)
			}
			count.add("renewed, sealed")
			now := d.Files(crashDir)
			for name := range before {
				if name != "rpc.crt" && now[name] != before[name] {
					return fmt.Errorf("%s has changed", name)
				}
			}
			return completeWith(s, d, b)
		},
	}
}
