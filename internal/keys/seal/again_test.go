package seal_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/keys"
	"teekms/internal/keys/seal"
)

// typist types one passphrase after the other, and then nothing.
type typist struct {
	words []string
	// asked says how many tries were left each time; 3 is the first question.
	asked []int
}

func (y *typist) next(left int) (keys.Secret, error) {
	if y.asked = append(y.asked, left); len(y.words) == 0 {
		return keys.Secret{}, errors.New("nothing was typed")
	}
	word := y.words[0]
	y.words = y.words[1:]
	return keys.NewSecret([]byte(word)), nil
}

func (y *typist) seal() seal.Seal {
	return seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{
		Read:       func(context.Context) (keys.Secret, error) { return y.next(3) },
		Again:      func(_ context.Context, left int) (keys.Secret, error) { return y.next(left) },
		WorkFactor: 10,
	}))
}

func TestAWrongPassphraseIsAskedForAgain(t *testing.T) {
	files := sealed(t, newSet(t, tpm(), passphrase("right")))
	const refused = "cannot open root-ca.key: tpm: the policy does not hold; passphrase: "
	tests := []struct {
		name  string
		again bool
		words []string
		asked []int
		want  string // is the error
	}{
		{"right at once", true, []string{"right"}, []int{3}, ""},
		{"right at last", true, []string{"wrong", "worse", "right"}, []int{3, 2, 1}, ""},
		{"three wrong ones", true, []string{"wrong", "worse", "worst", "right"}, []int{3, 2, 1}, refused + "wrong passphrase, or the file is damaged"},
		{"no answer", true, []string{"wrong"}, []int{3, 2}, refused + "nothing was typed"},
		{"nobody is to be asked again", false, []string{"wrong", "right"}, []int{3}, refused + "wrong passphrase, or the file is damaged"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			machine := &device{secret: "this machine", state: "another kernel"}
			who := &typist{words: tt.words}
			set, err := seal.NewSet(seal.Config{Seals: []seal.Seal{seal.New(seal.KindTPM, machine), who.seal()}, Again: tt.again})
			if err != nil {
				t.Fatal(err)
			}
			got, err := set.Open(t.Context(), files)
			if tt.want == "" {
				wantPlain(t, got, err)
			} else if err == nil || err.Error() != tt.want {
				t.Errorf("Open() = %v, want %q", err, tt.want)
			}
			if !slices.Equal(who.asked, tt.asked) {
				t.Errorf("asked with %v tries left, want %v", who.asked, tt.asked)
			}
			if n := machine.finds.Load(); n != 1 {
				t.Errorf("the TPM was asked %d times, want once", n)
			}
		})
	}
}

// TestTryAsksAgain is what a status does.
func TestTryAsksAgain(t *testing.T) {
	files := sealed(t, newSet(t, passphrase("right")))
	who := &typist{words: []string{"wrong", "right"}}
	set, err := seal.NewSet(seal.Config{Seals: []seal.Seal{who.seal()}, Again: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := set.Try(t.Context(), files); len(got) != 1 || !got[0].Opens || !slices.Equal(who.asked, []int{3, 2}) {
		t.Errorf("Try() = %+v after %v, want that the second passphrase opens", got, who.asked)
	}
}

// TestRefusalsAreToldApart is what callers branch by.
func TestRefusalsAreToldApart(t *testing.T) {
	files := sealed(t, newSet(t, passphrase("right")))
	dear := map[string][]byte{}
	for name := range files {
		dear[name] = forge(t, files[name], "20")
	}
	last := len(files["rpc.key"]) - 1
	tests := []struct {
		name  string
		set   *seal.Set
		files map[string][]byte
		want  string
	}{
		{"wrong passphrase", newSet(t, passphrase("wrong")), files, "no seal opens root-ca.key: passphrase wrong"},
		{"no passphrase", newSet(t, seal.New(seal.KindPassphrase, source((&said{err: errors.New("no terminal")}).read, nil, 10))), files, "no seal opens root-ca.key: passphrase"},
		{"another seal", newSet(t, guestAgent("app")), files, "no seal opens root-ca.key: guest-agent passphrase"},
		{"work factor", newSet(t, passphrase("right")), dear, "no seal opens root-ca.key: passphrase 20 over 18"},
		{"damaged", newSet(t, passphrase("right")), with(files, "rpc.key", files["rpc.key"][:last]), "damaged rpc.key"},
		{"mixed up", newSet(t, passphrase("right")), with(files, "rpc.key", files["tmp-ca.key"]), "damaged rpc.key"},
		{"no age file", newSet(t, passphrase("right")), with(files, "rpc.key", []byte("x")), "damaged rpc.key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.set.Open(t.Context(), tt.files)
			if diff := cmp.Diff(tt.want, class(err)); diff != "" {
				t.Errorf("Open() = %v differs (-want +got):\n%s", err, diff)
			}
		})
	}
}

// class says by type alone what an error is.
func class(err error) string {
	if file, ok := errors.AsType[*seal.FileError](err); ok {
		return "damaged " + file.File
	}
	closed, ok := errors.AsType[*seal.OpenError](err)
	if !ok {
		return fmt.Sprintf("%T", err)
	}
	out := "no seal opens " + closed.File + ":"
	for _, r := range closed.Reasons {
		out += " " + string(r.Kind)
		if errors.Is(r.Err, seal.ErrWrongPassphrase) {
			out += " wrong"
		}
		if w, ok := errors.AsType[*seal.WorkFactorError](r.Err); ok {
			out += fmt.Sprintf(" %d over %d", w.Factor, w.Limit)
		}
	}
	return out
}

// TestAHigherWorkFactorIsReadWhereAllowed has a file say 19. That it is read is
// seen by the question, which comes after the look at the bound.
func TestAHigherWorkFactorIsReadWhereAllowed(t *testing.T) {
	files := sealed(t, newSet(t, passphrase("right")))
	for name := range files {
		files[name] = forge(t, files[name], "19")
	}
	nobody := (&said{err: errors.New("no terminal")}).read
	const above = "cannot open root-ca.key: passphrase: work factor 19 is above the 18 that core.seal.passphrase.work_factor allows"
	for most, want := range map[int]string{0: above, 17: above, 19: "cannot open root-ca.key: passphrase: no terminal"} {
		set := newSet(t, seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{Read: nobody, WorkFactor: 10, MaxWorkFactor: most})))
		wantRefusal(t, set, files, want)
	}
	// The configuration is not to blame for a bound that somebody gave.
	for name := range files {
		files[name] = forge(t, files[name], "21")
	}
	wantRefusal(t, newSet(t, seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{Read: nobody, MaxWorkFactor: 20}))), files,
		"cannot open root-ca.key: passphrase: work factor 21 is above the 20 up to which files are read this time")
}
