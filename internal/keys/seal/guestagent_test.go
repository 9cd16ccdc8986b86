package seal_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"teekms/internal/keys/seal"
)

func TestGuestAgentOpensForTheSameIdentityOnly(t *testing.T) {
	a := &agent{identity: "app"}
	set := newSet(t, seal.New(seal.KindGuestAgent, seal.NewGuestAgent(a, agentPath)))
	files := sealed(t, set)
	if want := []string{agentPath, agentPath}; !slices.Equal(a.paths, want) {
		t.Errorf("sealing asked for the keys %q, want %q: to seal and to open again", a.paths, want)
	}
	got, err := set.Open(t.Context(), files)
	wantPlain(t, got, err)
	wantRefusal(t, newSet(t, guestAgent("another app")), files,
		"cannot open root-ca.key: guest-agent: the key does not fit: the file was sealed with another (another application, or another KMS above it), or is damaged")
	moved := seal.New(seal.KindGuestAgent, seal.NewGuestAgent(a, "another/path"))
	got, err = newSet(t, moved).Open(t.Context(), files)
	wantPlain(t, got, err) // the file says which path
	a.err = errors.New("no such socket")
	wantRefusal(t, set, files, "cannot open root-ca.key: guest-agent: no such socket")
}

func TestGuestAgentPathIsBounded(t *testing.T) {
	for _, path := range []string{"", "a b", "a\nb", "ä", strings.Repeat("a", 257)} {
		a := &agent{}
		src := seal.NewGuestAgent(a, path)
		if _, _, err := src.Make(t.Context()); err == nil || err.Error() != "the path is malformed" {
			t.Errorf("Make() with path %q = %v, want it malformed", path, err)
		}
		if got := src.Describe([]string{path}); got != "malformed path" {
			t.Errorf("Describe(%q) = %q, want malformed path", path, got)
		}
		if len(a.paths) != 0 {
			t.Errorf("the agent was asked for %q, want nothing", a.paths)
		}
	}
	src := seal.NewGuestAgent(&agent{}, agentPath)
	for _, args := range [][]string{nil, {"a", "b"}} {
		if _, err := src.Find(t.Context(), args); err == nil || err.Error() != "the path is malformed" {
			t.Errorf("Find(%q) = %v, want it malformed", args, err)
		}
	}
	if got, want := src.Describe([]string{agentPath}), "path "+agentPath; got != want {
		t.Errorf("Describe() = %q, want %q", got, want)
	}
}

// TestKeysOfTwoKindsDoNotOpenEachOther gives two sources the same key.
func TestKeysOfTwoKindsDoNotOpenEachOther(t *testing.T) {
	same := fixed{strings.Repeat("k", 32), []string{agentPath}}
	set := newSet(t, seal.New(seal.KindTPM, same))
	files := sealed(t, set)
	for name := range files {
		files[name] = reheader(t, files[name], func(s []string) []string {
			s[1] = strings.Replace(s[1], "teekms-tpm", "teekms-guest-agent", 1)
			return s
		})
	}
	wantRefusal(t, newSet(t, seal.New(seal.KindGuestAgent, same)), files,
		"cannot open root-ca.key: guest-agent: the key does not fit: the file was sealed with another (another application, or another KMS above it), or is damaged")
}
