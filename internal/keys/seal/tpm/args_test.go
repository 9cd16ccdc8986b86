package tpm_test

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"teekms/internal/keys/seal/tpm"
)

// sample are args as a TPM gave them.
func sample() []string {
	return []string{
		"sha256:7+11+14",
		"d3UgXMNjIftFcEDTUsm+OHUQY21BD7Ba",
		"AAsfa+DtM29n+khYf5bqYk9a5jMQjAruCkVYEDFFpa7QTQ",
		"AAgACwAABBIAICKfflkjrOQi/PxftdSVPZnSiI9wZS/KiGDheYEq24UrABAAIKPNIYObzkaVab07cx7T7pIVRaBjpUMrsMZTVyvQZk/0",
		"ACBhZ/ywQoQpBr+DlFB8NI1uIaT4zd32IA+Zxoujak+0bwAQ3S/BUhLEOgtWm4TOxwYEh2qcEd7xnDf0vJgahpl3fKJZBmQk5Qmt5yuRpX36vk3Fufifl6AaQX2C4oW3eUWCNLI5YU63VRR6wZ7nXCaaQPGCMnI5AAkI8Zoa05uHCqkqUkHx1EQ7lQy4ALxwTGWXYVYotQYFJktrXOY",
	}
}

func TestFindRefusesArgs(t *testing.T) {
	s := newSource(t, tpm.Config{Device: "/nonexistent", PCRs: measured()})
	with := func(i int, arg string) []string {
		args := sample()
		args[i] = arg
		return args
	}
	long := strings.Repeat("A", 1100)
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"none", nil, "0 arguments, want 5"},
		{"one too many", append(sample(), "x"), "6 arguments, want 5"},
		{"another bank", with(0, "sha1:7+11+14"), "PCRs: want the bank sha256"},
		{"no PCRs", with(0, "sha256:"), `PCR "": want a number`},
		{"PCRs that are no numbers", with(0, "sha256:7+x"), `PCR "x": want a number`},
		{"a PCR that is not there", with(0, "sha256:7+24"), "PCR 24: want 0 to 23"},
		{"PCRs in another order", with(0, "sha256:11+7+14"), "PCRs: want numbers in ascending order"},
		{"PCRs with zeros before", with(0, "sha256:07+11+14"), "PCRs: want numbers in ascending order"},
		{"a PCR twice", with(0, "sha256:7+7+14"), "PCR 7: named twice"},
		{"many PCRs", with(0, "sha256:"+long), "PCRs: 1107 characters, want at most 1024"},
		{"fewer PCRs than values", with(0, "sha256:7+11"), "PCR values: 24 bytes, want 16 to 16"},
		{"more PCRs than values", with(0, "sha256:7+11+14+15"), "PCR values: 24 bytes, want 32 to 32"},
		{"values not base64", with(1, "*"), "PCR values: want base64 without padding"},
		{"padding", with(1, sample()[1]+"="), "PCR values: want base64 without padding"},
		{"a line end", with(1, sample()[1]+"\n"), "PCR values: want base64 without padding"},
		{"bits behind the last byte", with(2, sample()[2][:45]+"R"), "SRK name: want base64 without padding"},
		{"short name", with(2, "AAsf"), "SRK name: 3 bytes, want 34 to 34"},
		{"short public area", with(3, "AAsf"), "public area: 3 bytes, want 78 to 78"},
		{"another public area", with(3, base64.RawStdEncoding.EncodeToString(make([]byte, 78))), "the object is not a key that only a policy over PCRs opens"},
		{"no private area", with(4, ""), "private area: 0 bytes, want 1 to 512"},
		{"long private area", with(4, long[:1024]), "private area: 768 bytes, want 1 to 512"},
		{"endless private area", with(4, long), "private area: 1100 characters, want at most 1024"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := "reading what was sealed to a TPM: " + tt.want
			if key, err := s.Find(t.Context(), tt.args); err == nil || err.Error() != want || key.Len() != 0 {
				t.Errorf("Find() = %v, want %q", err, want)
			}
			if got, want := s.Describe(tt.args), "PCRs that cannot be read ("+tt.want+")"; got != want {
				t.Errorf("Describe() = %q, want %q", got, want)
			}
		})
	}
	// These are read, and go to the TPM that is not there.
	wantRefusal(t, s, sample(), "there is no TPM at /nonexistent")
	one := sample()
	one[0], one[1] = "sha256:0", base64.RawStdEncoding.EncodeToString(make([]byte, 8))
	if got, want := s.Describe(one), "PCR 0 of SHA-256"; got != want {
		t.Errorf("Describe() = %q, want %q", got, want)
	}
}

// FuzzArgs: what is read is written in the same words.
func FuzzArgs(f *testing.F) {
	a := sample()
	f.Add(a[0], a[1], a[2], a[3], a[4])
	f.Add("sha256:0", "AAAAAAAAAAA", a[2], a[3], "AA")
	f.Add("sha256:7+11+14", "", "", "", "")
	f.Add("sha256:+", "=", "\n", "*", "A")
	f.Fuzz(func(t *testing.T, pcrs, values, srk, public, private string) {
		args := []string{pcrs, values, srk, public, private}
		again, err := tpm.RewriteArgs(args)
		if err == nil && !slices.Equal(args, again) {
			t.Errorf("RewriteArgs(%q) = %q", args, again)
		}
	})
}
