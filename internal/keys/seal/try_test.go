package seal_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"teekms/internal/keys/seal"
)

// attempts puts attempts into lines.
func attempts(all []seal.Attempt) []string {
	var out []string
	for _, a := range all {
		out = append(out, fmt.Sprintf("%s (%s) files:%v configured:%v opens:%v %v", a.Kind, a.Detail, a.InFiles, a.Configured, a.Opens, a.Err))
	}
	return out
}

func TestTrySaysOfEachSealHowItFares(t *testing.T) {
	id, vault := holder(t)
	d := &device{secret: "this machine", state: "booted"}
	files := sealed(t, newSet(t, seal.New(seal.KindTPM, d), guestAgent("app"), passphrase("correct horse"), vault))
	moved := &device{secret: "this machine", state: "another kernel"}
	damaged := bytes.Clone(files["rpc.key"])
	damaged[len(damaged)-1] ^= 1
	unsealed := with(files, "rpc.key", []byte("plain"))
	tests := []struct {
		name  string
		set   *seal.Set
		files map[string][]byte
		want  []string
	}{
		{
			"all open", newSet(t, seal.New(seal.KindTPM, d), guestAgent("app"), passphrase("correct horse"), vault), files,
			[]string{
				"tpm (state s626f6f746564) files:true configured:true opens:true <nil>",
				"guest-agent (path teekms/key-directory) files:true configured:true opens:true <nil>",
				"passphrase (scrypt, work factor 10) files:true configured:true opens:true <nil>",
				"escrow (1 recipient) files:true configured:true opens:false opens only with the key of its holder",
			},
		},
		{
			"each alone, with its reason", newSet(t, passphrase("wrong"), seal.New(seal.KindTPM, moved)), files,
			[]string{
				"passphrase (scrypt, work factor 10) files:true configured:true opens:false wrong passphrase, or the file is damaged",
				"tpm (state s626f6f746564) files:true configured:true opens:false the policy does not hold",
				"guest-agent (path teekms/key-directory) files:true configured:false opens:false core.seal does not configure it",
				"escrow (1 recipient) files:true configured:false opens:false opens only with the key of its holder",
			},
		},
		{
			"identity of the holder", withIdentities(t, []age.Identity{id}, guestAgent("another app")), files,
			[]string{
				"guest-agent (path teekms/key-directory) files:true configured:true opens:false the key does not fit: the file was sealed with another (another application, or another KMS above it), or is damaged",
				"tpm () files:true configured:false opens:false core.seal does not configure it",
				"passphrase (scrypt, work factor 10) files:true configured:false opens:false core.seal does not configure it",
				"escrow (1 recipient) files:true configured:false opens:true <nil>",
			},
		},
		{
			"what the files lack", newSet(t, seal.New(seal.KindTPM, d), guestAgent("app"), vault), sealed(t, newSet(t, seal.New(seal.KindTPM, d))),
			[]string{
				"tpm (state s626f6f746564) files:true configured:true opens:true <nil>",
				"guest-agent () files:false configured:true opens:false not among the files' seals",
				"escrow () files:false configured:true opens:false not among the files' seals",
			},
		},
		{
			"a damaged file", newSet(t, seal.New(seal.KindTPM, d), guestAgent("app")), with(files, "rpc.key", damaged),
			[]string{
				"tpm (state s626f6f746564) files:true configured:true opens:false cannot open rpc.key: its content is damaged, cut off or has something after it",
				"guest-agent (path teekms/key-directory) files:true configured:true opens:false cannot open rpc.key: its content is damaged, cut off or has something after it",
				"passphrase (scrypt, work factor 10) files:true configured:false opens:false core.seal does not configure it",
				"escrow (1 recipient) files:true configured:false opens:false opens only with the key of its holder",
			},
		},
		{
			"a plain file", newSet(t, seal.New(seal.KindTPM, d)), unsealed,
			[]string{"tpm () files:false configured:true opens:false cannot open rpc.key: it is not sealed (no age file)"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := attempts(tt.set.Try(t.Context(), tt.files))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Try() (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOpenErrorHoldsTheReasonsInOrder(t *testing.T) {
	cause := errors.New("no such device")
	d := &device{secret: "this machine", state: "booted"}
	files := sealed(t, newSet(t, seal.New(seal.KindTPM, d), passphrase("correct horse"), guestAgent("app")))
	d.broken = cause
	_, err := newSet(t, seal.New(seal.KindTPM, d), passphrase("wrong")).Open(t.Context(), files)
	oe, ok := errors.AsType[*seal.OpenError](err)
	if !ok || oe.File != "root-ca.key" || !errors.Is(err, cause) {
		t.Fatalf("Open() = %v, want an OpenError of root-ca.key with its cause", err)
	}
	var kinds []seal.Kind
	for _, r := range oe.Reasons {
		kinds = append(kinds, r.Kind)
	}
	if diff := cmp.Diff([]seal.Kind{seal.KindTPM, seal.KindPassphrase, seal.KindGuestAgent}, kinds); diff != "" {
		t.Errorf("OpenError.Reasons (-want +got):\n%s", diff)
	}
	want := "cannot open root-ca.key: tpm: no such device; passphrase: wrong passphrase, or the file is damaged; " +
		"guest-agent: sealed to guest-agent, which core.seal does not configure"
	if err.Error() != want {
		t.Errorf("Open() = %q, want %q", err, want)
	}
	if got, want := (&seal.OpenError{File: "rpc.key"}).Error(), "cannot open rpc.key: it has no seal"; got != want {
		t.Errorf("OpenError without reasons = %q, want %q", got, want)
	}
}

// TestAFileThatTheProvenKeyDoesNotOpenIsDamaged does not ask for a passphrase
// that could not help.
func TestAFileThatTheProvenKeyDoesNotOpenIsDamaged(t *testing.T) {
	words := &said{text: "correct horse"}
	set := newSet(t, tpm(), seal.New(seal.KindPassphrase, source(words.read, nil, 10)))
	files := sealed(t, set)
	before := words.asked.Load()
	other := seal.New(seal.KindPassphrase, source(words.read, nil, 10))
	damaged := reheader(t, files["rpc.key"], func(s []string) []string {
		s[1] = s[1][:len(s[1])-43] + "AAAA" + s[1][len(s[1])-39:]
		return s
	})
	wantRefusal(t, newSet(t, set.Seals()[0], other), with(files, "rpc.key", damaged),
		"cannot open rpc.key: its teekms-tpm stanza is damaged")
	if got := words.asked.Load() - before; got != 0 {
		t.Errorf("the passphrase was asked for %d times, want never", got)
	}
}
