package seal_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/plugin"
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

// TestTheRightPassphraseIsToldFromADamagedStanza has the first file damaged, where
// no key is proven yet: another file tells.
func TestTheRightPassphraseIsToldFromADamagedStanza(t *testing.T) {
	files := sealed(t, newSet(t, passphrase("correct horse")))
	bit := func(field int) []byte {
		return reheader(t, files["root-ca.key"], func(s []string) []string {
			words := strings.Fields(s[1]) // teekms-passphrase v1 SCRYPTSALT 10 SALT BODY
			first := "A"
			if strings.HasPrefix(words[field], first) {
				first = "B"
			}
			words[field] = first + words[field][1:]
			s[1] = strings.Join(words[:5], " ") + "\n" + words[5]
			return s
		})
	}
	tests := []struct {
		name  string
		field int
		want  string
	}{
		{"salt of scrypt", 2, "cannot open root-ca.key: it is not sealed as root-k256.key is"},
		{"salt", 4, "cannot open root-ca.key: its teekms-passphrase stanza is damaged"},
		{"body", 5, "cannot open root-ca.key: its teekms-passphrase stanza is damaged"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			y := &typist{words: []string{"correct horse"}}
			set, err := seal.NewSet(seal.Config{Seals: []seal.Seal{y.seal()}, Again: true})
			if err != nil {
				t.Fatal(err)
			}
			damaged := with(files, "root-ca.key", bit(tt.field))
			wantRefusal(t, set, damaged, tt.want)
			if len(y.asked) > 1 {
				t.Errorf("it was asked for again, with %v tries left", y.asked)
			}
			if a := set.Try(t.Context(), damaged); a[0].Err == nil || a[0].Err.Error() != tt.want {
				t.Errorf("Try() = %v, want %q", a[0].Err, tt.want)
			}
		})
	}
}

// TestTheSealThatCannotBeSealedToIsNamed, by type, with the recipients of an escrow.
func TestTheSealThatCannotBeSealedToIsNamed(t *testing.T) {
	missing := plugin.EncodeRecipient("tknone", []byte("x"))
	id, _ := holder(t)
	tests := []struct {
		name string
		set  *seal.Set
		want *seal.SealingError
	}{
		{"a TPM", newSet(t, passphrase("p"), seal.New(seal.KindTPM, &device{broken: errors.New("none")})), &seal.SealingError{Kind: seal.KindTPM}},
		{"a guest agent that forgets", newSet(t, seal.New(seal.KindGuestAgent, forgetful{&device{}})), &seal.SealingError{Kind: seal.KindGuestAgent}},
		{
			"a recipient", newSet(t, passphrase("p"), escrow(t, id.Recipient().String(), missing)),
			&seal.SealingError{Kind: seal.KindEscrow, Recipients: []string{missing}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.set.Seal(t.Context(), plain())
			got, ok := errors.AsType[*seal.SealingError](err)
			if !ok || got.Kind != tt.want.Kind || !slices.Equal(got.Recipients, tt.want.Recipients) {
				t.Errorf("Seal() = %v (%+v), want one of %+v", err, got, tt.want)
			}
		})
	}
}
