package seal_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"teekms/internal/keys"
	"teekms/internal/keys/seal"
)

func TestEveryCombinationOfSealsOpensByEachOfThem(t *testing.T) {
	for mask := 1; mask < 16; mask++ {
		id, vault := holder(t)
		all := []seal.Seal{tpm(), guestAgent("app"), passphrase("correct horse"), vault}
		var in []seal.Seal
		for i, s := range all {
			if mask&(1<<i) != 0 {
				in = append(in, s)
			}
		}
		if mask == 8 {
			continue // escrow alone opens nothing
		}
		t.Run(fmt.Sprint(in), func(t *testing.T) {
			files := sealed(t, newSet(t, in...))
			got, err := newSet(t, in...).Open(t.Context(), files)
			wantPlain(t, got, err)
			for _, one := range in {
				if one.Opens() {
					got, err := newSet(t, one).Open(t.Context(), files)
					wantPlain(t, got, err)
				} else {
					got, err := withIdentities(t, []age.Identity{id}, passphrase("never asked")).Open(t.Context(), files)
					wantPlain(t, got, err)
				}
			}
		})
	}
}

func TestSealedFilesHoldNothingOfThePlainOnes(t *testing.T) {
	_, vault := holder(t)
	set := newSet(t, tpm(), passphrase("correct horse"), vault)
	a, b := sealed(t, set), sealed(t, set)
	for name, content := range plain() {
		for _, s := range []map[string][]byte{a, b} {
			if strings.Contains(string(s[name]), string(content.Bytes()[:12])) {
				t.Errorf("sealed %s contains the plain content", name)
			}
			if strings.Contains(string(s[name]), "correct horse") {
				t.Errorf("sealed %s contains the passphrase", name)
			}
			if !seal.Sealed(s[name]) {
				t.Errorf("Sealed(%s) = false, want true", name)
			}
		}
		if seal.Sealed(content.Bytes()) {
			t.Errorf("Sealed(plain %s) = true, want false", name)
		}
		if string(a[name]) == string(b[name]) {
			t.Errorf("sealing %s twice gives the same bytes", name)
		}
		ha, err := seal.Inspect(name, a[name])
		if err != nil {
			t.Fatalf("Inspect(%s) = %v, want a header", name, err)
		}
		hb, err := seal.Inspect(name, b[name])
		if err != nil {
			t.Fatalf("Inspect(%s) = %v, want a header", name, err)
		}
		if ha.Set == hb.Set {
			t.Errorf("two sealings of %s have the same set %x", name, ha.Set)
		}
	}
}

func TestOneOpeningAsksEachSourceOnceAndOnlyWhereItIsNeeded(t *testing.T) {
	good := &device{secret: "this machine", state: "booted"}
	words := &said{text: "correct horse"}
	set := newSet(t,
		seal.New(seal.KindTPM, good),
		seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{Read: words.read, WorkFactor: 10})))
	files := sealed(t, set)
	if got := good.makes.Load(); got != 1 {
		t.Errorf("sealing four files made %d keys, want 1", got)
	}
	if got := good.finds.Load(); got != 1 {
		t.Errorf("sealing four files looked for the key %d times, want 1: to open them again", got)
	}
	if got := words.asked.Load(); got != 1 {
		t.Errorf("sealing asked for the passphrase %d times, want 1", got)
	}

	unasked := &said{text: "correct horse"}
	set = newSet(t,
		seal.New(seal.KindTPM, good),
		seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{Read: unasked.read, WorkFactor: 10})))
	got, err := set.Open(t.Context(), files)
	wantPlain(t, got, err)
	if good.finds.Load() != 2 || unasked.asked.Load() != 0 {
		t.Errorf("Open() looked for the TPM's key %d times and asked %d times, want once more and never",
			good.finds.Load(), unasked.asked.Load())
	}
	good.state = "another kernel"
	for range 2 {
		got, err = set.Open(t.Context(), files)
		wantPlain(t, got, err)
	}
	if good.finds.Load() != 4 || unasked.asked.Load() != 1 {
		t.Errorf("two openings looked for the TPM's key %d times and asked %d times, want 2 and 1",
			good.finds.Load()-2, unasked.asked.Load())
	}
}

func TestAnOpeningTellsWhatOpenedAndWhatDidNot(t *testing.T) {
	machine := &device{secret: "this machine", state: "booted"}
	words := &said{text: "correct horse"}
	var told []string
	set, err := seal.NewSet(seal.Config{
		Seals: []seal.Seal{
			seal.New(seal.KindTPM, machine),
			seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{Read: words.read, WorkFactor: 10})),
		},
		Told: func(k seal.Kind, err error) { told = append(told, fmt.Sprintf("%s %t", k, err == nil)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	files := sealed(t, set)
	if len(told) != 0 {
		t.Errorf("sealing told %q, want nothing", told)
	}
	for _, tt := range []struct {
		state string
		want  []string
	}{
		{"booted", []string{"tpm true"}},
		{"another kernel", []string{"tpm false", "passphrase true"}},
	} {
		machine.state, told = tt.state, nil
		got, err := set.Open(t.Context(), files)
		wantPlain(t, got, err)
		if !slices.Equal(told, tt.want) {
			t.Errorf("opening on a machine that has %s told %q, want %q", tt.state, told, tt.want)
		}
	}
}

func TestSealRefusesASealThatDoesNotOpenWhatItSealed(t *testing.T) {
	tests := []struct {
		name   string
		source seal.KeySource
		want   string
	}{
		{"key is not found again", forgetful{&device{}}, "checking what was sealed to tpm: cannot remember"},
		{
			"another key is found",
			changing{&device{}},
			"checking what was sealed to tpm: the key does not fit: the file was changed, or is damaged",
		},
		{"no key is made", &device{broken: errors.New("no such device")}, "sealing to tpm: no such device"},
		{"short key", fixed{"short", nil}, "sealing root-ca.key: sealing to tpm: the key has 5 bytes, not 32"},
		{"argument with a space", fixed{strings.Repeat("k", 32), []string{"a b"}}, "sealing to tpm: an argument is empty, too long or not printable"},
		{"too many arguments", fixed{strings.Repeat("k", 32), make([]string, 13)}, "sealing to tpm: its 13 arguments are over the 12 that a key source may have"},
		{"long argument", fixed{strings.Repeat("k", 32), []string{strings.Repeat("a", 4097)}}, "sealing to tpm: an argument is empty, too long or not printable"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set := newSet(t, passphrase("correct horse"), seal.New(seal.KindTPM, tt.source))
			files, err := set.Seal(t.Context(), plain())
			if err == nil || err.Error() != tt.want {
				t.Errorf("Seal() = %v, want %q", err, tt.want)
			}
			if files != nil {
				t.Errorf("Seal() has %d files beside an error, want none", len(files))
			}
		})
	}
}

// forgetful makes keys and finds none.
type forgetful struct{ *device }

func (forgetful) Find(context.Context, []string) (keys.Secret, error) {
	return keys.Secret{}, errors.New("cannot remember")
}

// changing finds another key than it made.
type changing struct{ *device }

func (changing) Find(context.Context, []string) (keys.Secret, error) {
	return keys.NewSecret(make([]byte, 32)), nil
}

// fixed makes always the same.
type fixed struct {
	key  string
	args []string
}

func (f fixed) Make(context.Context) (keys.Secret, []string, error) {
	return keys.NewSecret([]byte(f.key)), f.args, nil
}

func (f fixed) Find(context.Context, []string) (keys.Secret, error) {
	return keys.NewSecret([]byte(f.key)), nil
}

func (fixed) Describe([]string) string { return "fixed" }

func TestSealBoundsWhatItIsGiven(t *testing.T) {
	set := newSet(t, tpm())
	one := keys.NewSecret([]byte("x"))
	tests := []struct {
		name  string
		files map[string]keys.Secret
		want  string
	}{
		{"no file", nil, "sealing 0 files: 1 to 16 can be"},
		{"many files", func() map[string]keys.Secret {
			m := map[string]keys.Secret{}
			for i := range 17 {
				m[fmt.Sprint(i)] = one
			}
			return m
		}(), "sealing 17 files: 1 to 16 can be"},
		{"name with a space", map[string]keys.Secret{"root key": one}, `sealing "root key": the name cannot be recorded`},
		{"name with a line feed", map[string]keys.Secret{"root\nkey": one}, `sealing "root\nkey": the name cannot be recorded`},
		{"no name", map[string]keys.Secret{"": one}, `sealing "": the name cannot be recorded`},
		{
			"large file",
			map[string]keys.Secret{"root.key": keys.NewSecret(make([]byte, 900<<10+1))},
			"sealing root.key: its 921601 bytes are over the limit of 921600",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := set.Seal(t.Context(), tt.files); err == nil || err.Error() != tt.want {
				t.Errorf("Seal() = %v, want %q", err, tt.want)
			}
		})
	}
	largest := map[string]keys.Secret{"root.key": keys.NewSecret(make([]byte, 900<<10)), "empty.key": keys.NewSecret(nil)}
	files, err := set.Seal(t.Context(), largest)
	if err != nil {
		t.Fatalf("Seal(900 KiB and nothing) = %v, want files", err)
	}
	got, err := set.Open(t.Context(), files)
	if err != nil || !got["root.key"].Equal(largest["root.key"]) || got["empty.key"].Len() != 0 {
		t.Errorf("Open() of 900 KiB and nothing = %v, want what was sealed", err)
	}
}

func TestNewSetRefusesWhatCannotOpen(t *testing.T) {
	_, vault := holder(t)
	tests := []struct {
		name  string
		seals []seal.Seal
		want  string
	}{
		{"nothing", nil, seal.ErrNoOpener.Error()},
		{"escrow alone", []seal.Seal{vault}, seal.ErrNoOpener.Error()},
		{"two of a kind", []seal.Seal{tpm(), passphrase("a"), tpm()}, "there are two seals of the kind tpm"},
		{"two escrows", []seal.Seal{tpm(), vault, vault}, "there are two seals of the kind escrow"},
		{"zero seal", []seal.Seal{tpm(), {}}, `seal 2 ("") is none`},
		{"no source", []seal.Seal{seal.New(seal.KindTPM, nil)}, `seal 1 ("tpm") is none`},
		{"unknown kind", []seal.Seal{seal.New("file", &device{})}, `seal 1 ("file") is none`},
		{"escrow with a source", []seal.Seal{seal.New(seal.KindEscrow, &device{})}, `seal 1 ("escrow") is none`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set, err := seal.NewSet(seal.Config{Seals: tt.seals})
			if err == nil || err.Error() != tt.want {
				t.Errorf("NewSet() = %v, want %q", err, tt.want)
			}
			if set != nil {
				t.Errorf("NewSet() = %v beside an error, want none", set)
			}
		})
	}
	if _, err := seal.NewSet(seal.Config{Seals: []seal.Seal{vault}}); !errors.Is(err, seal.ErrNoOpener) {
		t.Errorf("NewSet(escrow) = %v, want ErrNoOpener", err)
	}
}

func TestInspectTellsWhatTheFileSaysOfItself(t *testing.T) {
	id, vault := holder(t)
	set := newSet(t, tpm(), guestAgent("app"), passphrase("correct horse"), vault)
	files := sealed(t, set)
	var sets [][16]byte
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h, err := seal.Inspect(name, files[name])
		if err != nil {
			t.Fatalf("Inspect(%s) = %v, want a header", name, err)
		}
		sets = append(sets, h.Set)
		if h.Name != name || !h.Made.Equal(madeAt) || h.Made.Location() != time.UTC {
			t.Errorf("Inspect(%s) = %s made %v, want %v", name, h.Name, h.Made, madeAt)
		}
		want := []seal.Described{
			{Kind: seal.KindTPM},
			{Kind: seal.KindGuestAgent, Detail: "path teekms/key-directory", Args: []string{agentPath}},
			{Kind: seal.KindPassphrase, Detail: "scrypt, work factor 10"},
			{Kind: seal.KindEscrow, Detail: "1 recipient"},
		}
		got := slices.Clone(h.Seals)
		if len(got) != len(want) || len(got[0].Args) != 2 || len(got[2].Args) != 2 {
			t.Fatalf("Inspect(%s).Seals = %v, want %v", name, got, want)
		}
		got[0].Args, got[2].Args = nil, nil // random
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Inspect(%s).Seals (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff([]string{id.Recipient().String()}, h.Recipients); diff != "" {
			t.Errorf("Inspect(%s).Recipients (-want +got):\n%s", name, diff)
		}
	}
	if len(slices.Compact(slices.Clone(sets))) != 1 {
		t.Errorf("the files of one sealing have sets %x, want one", sets)
	}
}

// TestNothingPrintsASecret prints all that holds one, in every way.
func TestNothingPrintsASecret(t *testing.T) {
	id, vault := holder(t)
	cfg := seal.Config{Seals: []seal.Seal{passphrase("correct horse"), vault, tpm()}, Identities: []age.Identity{id}}
	set, err := seal.NewSet(cfg)
	if err != nil {
		t.Fatalf("NewSet() = %v, want a set", err)
	}
	files := sealed(t, set)
	if _, err := set.Open(t.Context(), files); err != nil {
		t.Fatalf("Open() = %v, want the files", err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		for _, v := range []any{cfg, &cfg, set, *set, set.Seals(), set.Seals()[0], struct{ S *seal.Set }{set}, struct{ s *seal.Set }{set}, &struct{ s seal.Set }{*set}, map[int]seal.Config{1: cfg}} {
			text := fmt.Sprintf(verb, v)
			for _, secret := range []string{"correct horse", id.String(), "AGE-SECRET", fmt.Sprintf("%x", "correct horse"), "this machine", fmt.Sprintf("%d", []byte("correct horse"))} {
				if strings.Contains(strings.ToUpper(text), strings.ToUpper(secret)) {
					t.Errorf("Sprintf(%q, %T) contains a secret: %s", verb, v, text)
				}
			}
		}
	}
	if got, want := fmt.Sprint(set), "seal.Set(passphrase, escrow, tpm; 1 identities)"; got != want {
		t.Errorf("Sprint(set) = %q, want %q", got, want)
	}
	if got, want := fmt.Sprint(seal.Set{}, (*seal.Set)(nil)), "seal.Set() <nil>"; got != want {
		t.Errorf("Sprint(no set) = %q, want %q", got, want)
	}
}

func TestSetIsUsedByManyAtOnce(t *testing.T) {
	words := &said{text: "correct horse"}
	_, vault := holder(t)
	set := newSet(t,
		seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{Read: words.read, WorkFactor: 10})), vault)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			files, err := set.Seal(t.Context(), plain())
			if err != nil {
				t.Errorf("Seal() = %v, want files", err)
				return
			}
			got, err := set.Open(t.Context(), files)
			if err != nil || !got["rpc.key"].Equal(plain()["rpc.key"]) {
				t.Errorf("Open() = %v, want the files", err)
			}
			set.Try(t.Context(), files)
		})
	}
	wg.Wait()
	if got := words.asked.Load(); got != 1 {
		t.Errorf("six at once asked for the passphrase %d times, want 1", got)
	}
}

func TestASourceThatHangsIsGivenUpWithTheContext(t *testing.T) {
	d := &device{secret: "this machine", state: "booted"}
	words := passphrase("correct horse")
	set := newSet(t, seal.New(seal.KindTPM, d), words)
	files := sealed(t, set)
	d.hang = make(chan struct{})
	defer close(d.hang) // or the goroutine that waits is a leak
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := set.Open(ctx, files)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Open(a TPM that hangs) = %v, want the deadline", err)
	}
	want := "cannot open root-ca.key: tpm: context deadline exceeded; passphrase: context deadline exceeded"
	if err.Error() != want {
		t.Errorf("Open(a TPM that hangs) = %q, want %q", err, want)
	}
}
