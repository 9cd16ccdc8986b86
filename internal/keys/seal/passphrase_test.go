package seal_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/scrypt"

	"teekms/internal/keys"
	"teekms/internal/keys/seal"
)

// source is the key source of a passphrase that is asked for with read.
func source(read, confirm func(context.Context) (keys.Secret, error), factor int) seal.KeySource {
	return seal.NewPassphrase(seal.PassphraseConfig{Read: read, Confirm: confirm, WorkFactor: factor})
}

// TestPassphraseIsStretchedByScrypt computes the key as docs/seal.md says.
func TestPassphraseIsStretchedByScrypt(t *testing.T) {
	src := source((&said{text: "correct horse"}).read, nil, 11)
	key, args, err := src.Make(t.Context())
	if err != nil || len(args) != 2 || args[1] != "11" {
		t.Fatalf("Make() = %q, %v, want a salt and 11", args, err)
	}
	salt := append([]byte("teekms/v1/seal/scrypt"), decode(t, args[0])...)
	want, err := scrypt.Key([]byte("correct horse"), salt, 1<<11, 8, 1, 32)
	if err != nil {
		t.Fatal(err)
	}
	if !key.Equal(keys.NewSecret(want)) {
		t.Error("Make() is not scrypt of the passphrase")
	}
	found, err := src.Find(t.Context(), args)
	if err != nil || !found.Equal(key) {
		t.Errorf("Find() = %v, want the key that was made", err)
	}
	if got, want := src.Describe(args), "scrypt, work factor 11"; got != want {
		t.Errorf("Describe() = %q, want %q", got, want)
	}
	_, other, err := src.Make(t.Context())
	if err != nil || other[0] == args[0] {
		t.Errorf("Make() twice has the same salt %s (%v), want another", args[0], err)
	}
}

func TestPassphraseMayHaveAnyBytesButLineFeedsAndNUL(t *testing.T) {
	for _, text := range []string{" ", "\x01\xff\r\t", "pässwörd", strings.Repeat("long", 1000)} {
		set := newSet(t, passphrase(text))
		got, err := set.Open(t.Context(), sealed(t, set))
		wantPlain(t, got, err)
	}
	for text, want := range map[string]string{
		"":         "sealing to passphrase: the passphrase is empty",
		"\n":       "sealing to passphrase: the passphrase has a line feed in it",
		"a\n":      "sealing to passphrase: the passphrase has a line feed in it",
		"\x00\x00": "sealing to passphrase: the passphrase has a NUL byte in it",
		"a\x00":    "sealing to passphrase: the passphrase has a NUL byte in it",
		"a\nb":     "sealing to passphrase: the passphrase has a line feed in it",
	} {
		if _, err := newSet(t, passphrase(text)).Seal(t.Context(), plain()); err == nil || err.Error() != want {
			t.Errorf("Seal(passphrase %q) = %v, want %q", text, err, want)
		}
	}
}

func TestWrongPassphraseIsRefused(t *testing.T) {
	files := sealed(t, newSet(t, passphrase("correct horse")))
	for _, text := range []string{"correct horse ", "Correct horse", "correct hors", "\x01correct horse"} {
		wantRefusal(t, newSet(t, passphrase(text)), files,
			"cannot open root-ca.key: passphrase: wrong passphrase, or the file is damaged")
	}
}

func TestPassphraseIsReadOnce(t *testing.T) {
	words := &said{text: "correct horse", err: errors.New("no terminal")}
	set := newSet(t, seal.New(seal.KindPassphrase, source(words.read, nil, 10)))
	if _, err := set.Seal(t.Context(), plain()); err == nil || err.Error() != "sealing to passphrase: no terminal" {
		t.Errorf("Seal() = %v, want the terminal's error", err)
	}
	files := sealed(t, newSet(t, passphrase("correct horse")))
	wantRefusal(t, set, files, "cannot open root-ca.key: passphrase: no terminal")
	words.err = nil
	files = sealed(t, set)
	for range 2 {
		got, err := set.Open(t.Context(), files)
		wantPlain(t, got, err)
	}
	if got := words.asked.Load(); got != 3 {
		t.Errorf("the passphrase was asked for %d times, want 3: twice in vain", got)
	}
}

func TestPassphraseIsConfirmedBeforeItSealsAndWasNeverSeenToOpen(t *testing.T) {
	words, again := &said{text: "correct horse"}, &said{text: "correct hose"}
	set := newSet(t, seal.New(seal.KindPassphrase, source(words.read, again.read, 10)))
	if _, err := set.Seal(t.Context(), plain()); err == nil || err.Error() != "sealing to passphrase: the two passphrases differ" {
		t.Errorf("Seal() = %v, want a difference", err)
	}
	again.text, again.err = "correct horse", errors.New("no terminal")
	if _, err := set.Seal(t.Context(), plain()); err == nil || err.Error() != "sealing to passphrase: no terminal" {
		t.Errorf("Seal() = %v, want the terminal's error", err)
	}
	again.err = nil
	files := sealed(t, set)
	asked := again.asked.Load()
	sealed(t, set)
	if got := again.asked.Load(); got != asked {
		t.Errorf("a passphrase that was confirmed is asked for again %d times, want never", got-asked)
	}

	again = &said{text: "never asked"}
	set = newSet(t, seal.New(seal.KindPassphrase, source(words.read, again.read, 10)))
	got, err := set.Open(t.Context(), files)
	wantPlain(t, got, err)
	sealed(t, set)
	if got := again.asked.Load(); got != 0 {
		t.Errorf("a passphrase that has opened the files is asked for again %d times, want never", got)
	}

	mistyped, again := &said{text: "wrong"}, &said{text: "correct horse"}
	set = newSet(t, seal.New(seal.KindPassphrase, source(mistyped.read, again.read, 10)))
	wantRefusal(t, set, files, "cannot open root-ca.key: passphrase: wrong passphrase, or the file is damaged")
	if _, err := set.Seal(t.Context(), plain()); err == nil || err.Error() != "sealing to passphrase: the two passphrases differ" {
		t.Errorf("Seal() with a passphrase that opened nothing = %v, want it confirmed", err)
	}
}

func TestWorkFactorIsBounded(t *testing.T) {
	for _, factor := range []int{-1, 9, 23, 64} {
		words := &said{text: "correct horse"}
		_, err := newSet(t, seal.New(seal.KindPassphrase, source(words.read, nil, factor))).Seal(t.Context(), plain())
		if err == nil || !strings.HasSuffix(err.Error(), "is not within 10 and 22") || words.asked.Load() != 0 {
			t.Errorf("Seal(work factor %d) = %v, want its bounds, and nobody asked", factor, err)
		}
	}
	salted := func(factor string) []string { return []string{salt, factor} }
	const malformed = "the work factor is malformed"
	tests := []struct {
		name       string
		configured int
		args       []string
		want       string
	}{
		{"19 where 10 is configured", 10, salted("19"), "work factor 19 is above the 18 that core.seal.passphrase.work_factor allows"},
		{"22 where 21 is configured", 21, salted("22"), "work factor 22 is above the 21 that core.seal.passphrase.work_factor allows"},
		{"30, which would take 1 TiB", 0, salted("30"), "work factor 30 is above the 18 that core.seal.passphrase.work_factor allows"},
		{"64, which shifts to nothing", 0, salted("64"), "work factor 64 is above the 18 that core.seal.passphrase.work_factor allows"},
		{"more than an int", 0, salted("99999999999999999999"), malformed},
		{"9", 0, salted("9"), malformed},
		{"0", 0, salted("0"), malformed},
		{"negative", 0, salted("-18"), malformed},
		{"leading zero", 0, salted("018"), malformed},
		{"plus", 0, salted("+18"), malformed},
		{"hexadecimal", 0, salted("0x12"), malformed},
		{"short salt", 0, []string{"AAAA", "18"}, "the salt of scrypt is malformed"},
		{"salt of loose base64", 0, []string{salt[:21] + "B", "18"}, "the salt of scrypt is malformed"},
		{"no factor", 0, []string{salt}, "the stanza is malformed"},
		{"nothing", 0, nil, "the stanza is malformed"},
		{"more", 0, append(salted("18"), "x"), "the stanza is malformed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			words := &said{text: "correct horse"}
			src := source(words.read, nil, tt.configured)
			_, err := src.Find(t.Context(), tt.args)
			if err == nil || err.Error() != tt.want {
				t.Errorf("Find(%q) = %v, want %q", tt.args, err, tt.want)
			}
			if words.asked.Load() != 0 {
				t.Error("Find() asked for the passphrase before it looked at the work factor")
			}
			quick(t, func() { _, _ = src.Find(t.Context(), tt.args) })
			if got := src.Describe(tt.args); !strings.HasPrefix(got, "scrypt, work factor ") && got != "malformed" {
				t.Errorf("Describe(%q) = %q, want words", tt.args, got)
			}
		})
	}
}

// TestAForgedWorkFactorCostsNothing has it in all four files.
func TestAForgedWorkFactorCostsNothing(t *testing.T) {
	set := newSet(t, passphrase("correct horse"))
	files := sealed(t, set)
	for name := range files {
		files[name] = forge(t, files[name], "30")
	}
	quick(t, func() {
		wantRefusal(t, set, files,
			"cannot open root-ca.key: passphrase: work factor 30 is above the 18 that core.seal.passphrase.work_factor allows")
	})
}

// quick wants f to compute nothing: on a machine that is busy meanwhile, one of a
// few times.
func quick(t *testing.T, f func()) {
	t.Helper()
	var took time.Duration
	for range 5 {
		start := time.Now()
		f()
		if took = time.Since(start); took <= time.Second {
			return
		}
	}
	t.Errorf("it took %v, want nothing computed", took)
}

// forge writes another work factor into a file with a passphrase alone.
func forge(t *testing.T, file []byte, factor string) []byte {
	t.Helper()
	return reheader(t, file, func(s []string) []string {
		f := strings.Fields(s[1])
		f[3] = factor
		s[1] = strings.Join(f[:5], " ") + "\n" + f[5]
		return s
	})
}
