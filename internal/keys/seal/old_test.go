package seal_test

import (
	"context"
	"errors"
	"testing"

	"teekms/internal/keys"
	"teekms/internal/keys/seal"
)

// withOld is a set that old seals open too.
func withOld(t testing.TB, old []seal.Seal, seals ...seal.Seal) *seal.Set {
	t.Helper()
	s, err := seal.NewSet(seal.Config{Seals: seals, Old: old, Now: clock})
	if err != nil {
		t.Fatalf("NewSet(%v, old %v) = %v, want a set", seals, old, err)
	}
	return s
}

// counted counts what its key source is asked.
type counted struct {
	seal.KeySource
	finds int
}

func (c *counted) Find(ctx context.Context, args []string) (keys.Secret, error) {
	c.finds++
	return c.KeySource.Find(ctx, args)
}

func TestOldPassphraseOpensAndSealsNothing(t *testing.T) {
	files := sealed(t, newSet(t, passphrase("old")))
	once := &counted{KeySource: source((&said{text: "old"}).read, nil, 10)}
	set := withOld(t, []seal.Seal{seal.New(seal.KindPassphrase, once)}, passphrase("new"))
	got, err := set.Open(t.Context(), files)
	wantPlain(t, got, err)
	if once.finds != 1 {
		t.Errorf("four files cost %d derivations of the old key, want 1", once.finds)
	}
	files = sealed(t, set)
	got, err = newSet(t, passphrase("new")).Open(t.Context(), files)
	wantPlain(t, got, err)
	wantRefusal(t, newSet(t, passphrase("old")), files, "cannot open root-ca.key: passphrase: wrong passphrase, or the file is damaged")
	if once.finds != 1 {
		t.Error("sealing asks the old passphrase")
	}
}

// One that is given by mistake hinders nothing; what is left over tells of both.
func TestWrongOldPassphraseIsToldBesideTheOthers(t *testing.T) {
	files := sealed(t, newSet(t, passphrase("this")))
	got, err := withOld(t, []seal.Seal{passphrase("that")}, passphrase("this")).Open(t.Context(), files)
	wantPlain(t, got, err)
	wantRefusal(t, withOld(t, []seal.Seal{passphrase("that")}, passphrase("another")), files,
		"cannot open root-ca.key: passphrase: the old one: wrong passphrase, or the file is damaged; passphrase: wrong passphrase, or the file is damaged")
	broken := seal.New(seal.KindPassphrase, source((&said{err: errors.New("no terminal")}).read, nil, 10))
	wantRefusal(t, withOld(t, []seal.Seal{broken}, tpm()), files,
		"cannot open root-ca.key: passphrase: the old one: no terminal; tpm: not among the file's seals; "+
			"passphrase: sealed to passphrase, which core.seal does not configure")
}

func TestOldPassphraseIsBoundedAsTheConfiguredOneIs(t *testing.T) {
	files := sealed(t, newSet(t, seal.New(seal.KindPassphrase, source((&said{text: "old"}).read, nil, 10))))
	for name := range files {
		files[name] = forge(t, files[name], "30")
	}
	words := &said{text: "old"}
	wantRefusal(t, withOld(t, []seal.Seal{seal.New(seal.KindPassphrase, source(words.read, nil, 10))}, tpm()), files,
		"cannot open root-ca.key: passphrase: the old one: work factor 30 is above the 18 that core.seal.passphrase.work_factor allows; "+
			"tpm: not among the file's seals; passphrase: sealed to passphrase, which core.seal does not configure")
	if words.asked.Load() != 0 {
		t.Error("somebody was asked for a passphrase that is of no use")
	}
}

func TestOldSealsThatOpenNothingAreRefused(t *testing.T) {
	_, escrow := holder(t)
	for name, old := range map[string][]seal.Seal{
		"escrow": {escrow}, "none": {{}}, "two of one kind": {passphrase("a"), passphrase("b")},
	} {
		if _, err := seal.NewSet(seal.Config{Seals: []seal.Seal{tpm()}, Old: old}); err == nil {
			t.Errorf("NewSet(old: %s) = nil, want a refusal", name)
		}
	}
	if _, err := seal.NewSet(seal.Config{Old: []seal.Seal{tpm()}}); !errors.Is(err, seal.ErrNoOpener) {
		t.Errorf("NewSet(old alone) = %v, want %v: nothing would open what it seals", err, seal.ErrNoOpener)
	}
}
