package seal_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"teekms/internal/keys/seal"
)

// fuzzed is the file that the fuzz targets change, of a set of four.
const fuzzed = "root-k256.key"

// corpus adds sealed files of several kinds, whole, cut and changed.
func corpus(f *testing.F, files map[string][]byte) {
	f.Helper()
	data := files[fuzzed]
	for _, seed := range [][]byte{
		nil,
		[]byte("age-encryption.org/v1\n"),
		[]byte("age-encryption.org/v1\n-> teekms-file v1 root-k256.key " + salt + " 1\n\n--- " + salt + salt[:21] + "\n"),
		data,
		data[:len(data)/2],
		files["rpc.key"],
		reheader(f, data, func(s []string) []string { return slices.Concat(s, s[1:]) }),
		reheader(f, data, func(s []string) []string { return append(s, "teekms-moon v2\n", "X25519 x\n", "teekms-escrow v1\nAA") }),
		reheader(f, data, func(s []string) []string { return append(s, strings.Repeat("x\n\n-> ", 70)+"x\n") }),
	} {
		f.Add(seed)
	}
}

// FuzzOpen puts anything in the place of one file: it opens as what was sealed
// or is refused with an error that names a file. Only what was sealed opens, or
// the fuzzer has forged a MAC.
func FuzzOpen(f *testing.F) {
	_, vault := holder(f)
	set := newSet(f, tpm(), guestAgent("app"), vault)
	files := sealed(f, set)
	corpus(f, files)
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := set.Open(t.Context(), with(files, fuzzed, data))
		if err != nil {
			if got != nil || !slices.ContainsFunc(slices.Collect(maps.Keys(files)), func(name string) bool {
				return strings.HasPrefix(err.Error(), "cannot open "+name+": ")
			}) {
				t.Errorf("Open() = %v, %v, want an error that names a file, and no file", got, err)
			}
			return
		}
		wantPlain(t, got, nil)
		if string(data) != string(files[fuzzed]) {
			t.Errorf("Open() takes %q for what was sealed", data)
		}
	})
}

// FuzzInspect reads anything as a header. What it reads is what the bytes say.
func FuzzInspect(f *testing.F) {
	_, vault := holder(f)
	set := newSet(f, tpm(), guestAgent("app"), passphrase("correct horse"), vault)
	corpus(f, sealed(f, set))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := seal.Inspect(fuzzed, data)
		set.Try(t.Context(), map[string][]byte{fuzzed: data})
		if err != nil {
			if h != nil || !strings.HasPrefix(err.Error(), "cannot open "+fuzzed+": ") {
				t.Errorf("Inspect() = %v, %v, want an error that names the file, and no header", h, err)
			}
			return
		}
		if !seal.Sealed(data) || h.Name != fuzzed || h.Made.Year() < 1970 || h.Made.Year() > 9999 {
			t.Errorf("Inspect() = %+v of %q, want a header of %s", h, data, fuzzed)
		}
		for _, d := range h.Seals {
			for _, word := range append([]string{string(d.Kind), d.Detail}, append(d.Args, h.Recipients...)...) {
				if strings.IndexFunc(word, func(c rune) bool { return c < ' ' || c > '~' }) >= 0 {
					t.Errorf("Inspect() has %q, want printable text", word)
				}
			}
		}
	})
}
