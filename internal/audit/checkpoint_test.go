package audit_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"teekms/internal/audit"
	"teekms/internal/audit/audittest"
	"teekms/internal/keys"
)

func newRoots(tb testing.TB) (*keys.Roots, *ecdsa.PublicKey) {
	tb.Helper()
	roots, err := keys.NewRoots()
	if err != nil {
		tb.Fatal(err)
	}
	public, err := x509.ParsePKIXPublicKey(roots.CAPublic())
	if err != nil {
		tb.Fatal(err)
	}
	return roots, public.(*ecdsa.PublicKey)
}

func identity(tb testing.TB, roots *keys.Roots) audit.Identity {
	tb.Helper()
	id, err := audit.IdentityOf(roots)
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

// TestCheckpointLeadsToTheRoot follows a checkpoint from its signature to the
// root CA key, as an auditor does.
func TestCheckpointLeadsToTheRoot(t *testing.T) {
	roots, root := newRoots(t)
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	store := audittest.NewStore()
	l, err := audit.New(audit.Config{Store: store, Identity: identity(t, roots), Log: zap.NewNop(), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close(t.Context())
	var want audit.Tree
	for i := range 5 {
		signed, err := l.Checkpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		key, signature := l.VerifierKey()
		v, err := audit.VerifyKey(root, roots.CAPublic(), key, signature)
		if err != nil {
			t.Fatal(err)
		}
		got, err := audit.OpenCheckpoint(signed, v)
		if err != nil {
			t.Fatal(err)
		}
		wantCheckpoint := audit.Checkpoint{Origin: audit.Origin(sha256.Sum256(roots.CAPublic())), Size: uint64(i), Root: want.Root(), Time: now}
		if diff := cmp.Diff(wantCheckpoint, got); diff != "" {
			t.Fatalf("checkpoint (-want +got):\n%s", diff)
		}
		if _, err := l.Append(t.Context(), audit.Event{Kind: audit.Start}); err != nil {
			t.Fatal(err)
		}
		want.Append(audit.Hash(store.State().Rows[i].Body))
	}
	// Another replica of the same keys signs with the same key.
	again := identity(t, roots)
	if key, err := again.VerifierKey(); err != nil || key != must(l.VerifierKey()) {
		t.Errorf("VerifierKey() of a replica = %s, %v, want %s", key, err, must(l.VerifierKey()))
	}
}

func must(key string, _ []byte) string { return key }

func TestVerifyKeyRefuses(t *testing.T) {
	roots, root := newRoots(t)
	others, other := newRoots(t)
	id := identity(t, roots)
	key, err := id.VerifierKey()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := identity(t, others).VerifierKey()
	if err != nil {
		t.Fatal(err)
	}
	signed := func(statement []byte) []byte {
		s, err := roots.SignOwn(statement)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	tests := []struct {
		name      string
		root      *ecdsa.PublicKey
		spki      []byte
		key       string
		signature []byte
		want      string
	}{
		{"another KMS's root", other, others.CAPublic(), key, id.KeySignature, "not of"},
		{"another KMS's name under this root", root, roots.CAPublic(), foreign, signed(audit.KeyStatement(foreign)), "it is of"},
		{"no signature", root, roots.CAPublic(), key, nil, "the signature does not hold"},
		{"a signature over the bare key", root, roots.CAPublic(), key, signed([]byte(key)), "the signature does not hold"},
		{"no key", root, roots.CAPublic(), "", id.KeySignature, "malformed verifier id"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := audit.VerifyKey(tt.root, tt.spki, tt.key, tt.signature)
			if !errors.Is(err, audit.ErrKey) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("VerifyKey() = %v, want ErrKey: %s", err, tt.want)
			}
		})
	}
}

func checkpointNote(tb testing.TB, text string) (signed string, v note.Verifier) {
	tb.Helper()
	skey, vkey, err := note.GenerateKey(bytes.NewReader(bytes.Repeat([]byte{7}, 64)), "teekms.test/audit")
	if err != nil {
		tb.Fatal(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		tb.Fatal(err)
	}
	if v, err = note.NewVerifier(vkey); err != nil {
		tb.Fatal(err)
	}
	b, err := note.Sign(&note.Note{Text: text}, s)
	if err != nil {
		tb.Fatal(err)
	}
	return string(b), v
}

func TestOpenCheckpointRefuses(t *testing.T) {
	good := audit.Checkpoint{Origin: "teekms.test/audit", Size: 3, Root: tlog.Hash{1}, Time: time.Unix(1_700_000_000, 0)}.Text()
	swap := func(old, with string) string { return strings.Replace(good, old, with, 1) }
	tests := []struct {
		name, text, want string
	}{
		{"another log's", swap("teekms.test", "other.test"), `it is of "other.test/audit"`},
		{"another order of magnitude", swap("\n3\n", "\n99999999999999999\n"), "not a checkpoint"},
		{"a size written otherwise", swap("\n3\n", "\n03\n"), "written otherwise"},
		{"a negative size", swap("\n3\n", "\n-3\n"), "not a checkpoint"},
		{"a short hash", swap("AQAA", ""), "not a checkpoint"},
		{"no generation", swap("generation 0\n", ""), "4 lines, want 5"},
		{"another word", swap("generation", "gen"), "not a checkpoint"},
		{"a time of another zone", swap("2023-11-14T22:13:20Z", "2023-11-14T23:13:20+01:00"), "written otherwise"},
		{"a line too many", good + "x\n", "6 lines, want 5"},
	}
	if signed, v := checkpointNote(t, good); true {
		if _, err := audit.OpenCheckpoint(signed, v); err != nil {
			t.Fatalf("OpenCheckpoint() = %v, want nil", err)
		}
		if _, err := audit.OpenCheckpoint(strings.Replace(signed, "\n3\n", "\n4\n", 1), v); err == nil || !strings.Contains(err.Error(), "invalid signature") {
			t.Errorf("OpenCheckpoint() of a changed one = %v, want invalid signature", err)
		}
		if _, err := audit.OpenCheckpoint(strings.Repeat("x", 1<<17), v); err == nil || !strings.Contains(err.Error(), "more than") {
			t.Errorf("OpenCheckpoint() of a large one = %v, want a refusal", err)
		}
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			signed, v := checkpointNote(t, tt.text)
			if _, err := audit.OpenCheckpoint(signed, v); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("OpenCheckpoint() = %v, want %s", err, tt.want)
			}
		})
	}
}

func FuzzCheckpoint(f *testing.F) {
	good := audit.Checkpoint{Origin: "teekms.test/audit", Size: 3, Root: tlog.Hash{1}, Time: time.Unix(1_700_000_000, 0)}.Text()
	f.Add(good)
	f.Add(strings.Replace(good, "\n3\n", "\n0\n", 1))
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := audit.ParseCheckpoint(text)
		if err == nil && c.Text() != text {
			t.Errorf("Text() = %q, want %q", c.Text(), text)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	good := func() audit.Config {
		return audit.Config{Store: audittest.NewStore(), Identity: audittest.Identity(), Log: zap.NewNop()}
	}
	tests := []struct {
		name   string
		change func(*audit.Config)
		want   string
	}{
		{"no store", func(c *audit.Config) { c.Store = nil }, "Store is required"},
		{"a short key", func(c *audit.Config) { c.Key = keys.NewSecret([]byte{1}) }, "Key has 1 bytes, want 32"},
		{"a short signer", func(c *audit.Config) { c.Signer = keys.NewSecret([]byte{1}) }, "the signer has 1 bytes, want 32"},
		{"a name that notes cannot have", func(c *audit.Config) { c.Origin = "a b" }, "malformed verifier id"},
		{"no log", func(c *audit.Config) { c.Log = nil }, "Log is required"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := good()
			tt.change(&c)
			if _, err := audit.New(c); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New() = %v, want %s", err, tt.want)
			}
		})
	}
}
