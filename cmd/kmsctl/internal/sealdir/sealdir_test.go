package sealdir_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"teekms/cmd/kmsctl/internal/sealdir"
	"teekms/cmd/kmsctl/internal/terminal"
	"teekms/internal/durable"
	"teekms/internal/keys"
	"teekms/internal/keys/seal"
	"teekms/internal/keys/seal/tpm"
)

func TestAddSealsPlainFiles(t *testing.T) {
	w := newWorld(t)
	_, chip := platform(t)
	pass := passphrase("correct horse")
	r := w.add(t, chip, pass, w.escrow(t))
	if !r.Changed || r.Before.Sealed || !r.After.Sealed || time.Since(*r.After.Made) > time.Minute {
		t.Errorf("Add() = %+v, want plain before and sealed now", r)
	}
	want := "sealed to tpm (PCRs 7, 11 of SHA-256), passphrase (scrypt, work factor 10), escrow (1 recipient)"
	if got := r.After.String(); got != want {
		t.Errorf("Add() = %s, want %s", got, want)
	}
	if diff := cmp.Diff([]seal.Kind{seal.KindTPM, seal.KindPassphrase}, r.OpenedAgain); diff != "" {
		t.Errorf("opened again (-want +got):\n%s", diff)
	}
	if notes := strings.Join(r.Notes, " "); !strings.Contains(notes, "promises nothing on SSDs") || len(r.Warnings) > 0 {
		t.Errorf("notes = %q, warnings = %q, want what overwriting does not promise and no warning", notes, r.Warnings)
	}
	w.wantNothingPlain(t)
	w.wantOpen(t, pass)
	w.wantOpen(t, chip)
	w.wantOpen(t, passphrase("another"), w.holder)
	w.wantClosed(t, passphrase("another"), "wrong passphrase")
}

func TestAddTakesWhatIsThereAlong(t *testing.T) {
	w := newWorld(t)
	pass, guest := passphrase("correct horse"), agent(t)
	w.add(t, pass)
	before := w.files(t)
	r := w.add(t, pass)
	if r.Changed || !r.After.Sealed || len(r.Added) > 0 || cmp.Diff(before, w.files(t)) != "" {
		t.Errorf("Add() with nothing to add = %+v, want nothing changed", r)
	}
	// Named: the escrow is configured and not added.
	r, err := w.directory(t, []seal.Seal{guest, pass, w.escrow(t)}).Add(t.Context(), []seal.Kind{seal.KindGuestAgent})
	if err != nil {
		t.Fatal(err)
	}
	if want := "sealed to guest-agent (path teekms/key-directory), passphrase (scrypt, work factor 10)"; r.After.String() != want {
		t.Errorf("Add(guest-agent) = %s, want %s", r.After, want)
	}
	if notes := strings.Join(r.Notes, " "); !strings.Contains(notes, "core.seal still configures escrow") || strings.Contains(notes, "plain") {
		t.Errorf("notes = %q, want that escrow is configured still", notes)
	}
	w.wantOpen(t, guest)
	w.wantOpen(t, pass)
	for name, old := range before {
		if string(old) == string(w.file(t, name)) {
			t.Errorf("%s was not written anew", name)
		}
	}
}

func TestAddKeepsTheRecipientsOfTheFiles(t *testing.T) {
	w := newWorld(t)
	second, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	pass := passphrase("correct horse")
	w.add(t, pass, w.escrow(t))
	other, err := seal.NewEscrow([]string{second.Recipient().String()})
	if err != nil {
		t.Fatal(err)
	}
	r := w.add(t, pass, other)
	escrow := r.After.Seals[len(r.After.Seals)-1]
	if diff := cmp.Diff([]string{w.holder.Recipient().String(), second.Recipient().String()}, escrow.Recipients); diff != "" {
		t.Errorf("recipients (-want +got):\n%s", diff)
	}
	for _, id := range []age.Identity{w.holder, second} {
		w.wantOpen(t, passphrase("another"), id)
	}
	// Exactly what is configured.
	r, err = w.directory(t, []seal.Seal{pass, other}).Rotate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := r.After.Seals[1].Recipients; len(got) != 1 || got[0] != second.Recipient().String() {
		t.Errorf("Rotate() keeps the recipients %q, want the configured one", got)
	}
}

func TestRemove(t *testing.T) {
	w := newWorld(t)
	machine, chip := platform(t)
	pass := passphrase("correct horse")
	w.add(t, chip, pass, w.escrow(t))
	// The platform changes: it opens nothing, and can be removed all the same.
	machine.Measure(11, "an update")
	w.wantClosed(t, chip, "is not what it was")
	r, err := w.directory(t, []seal.Seal{chip, pass}).Remove(t.Context(), []seal.Kind{seal.KindTPM})
	if err != nil {
		t.Fatal(err)
	}
	if want := "sealed to passphrase (scrypt, work factor 10), escrow (1 recipient)"; r.After.String() != want || len(r.Warnings) != 1 || !strings.HasPrefix(r.Warnings[0], "kept from the files, not configured: "+w.holder.Recipient().String()) {
		t.Errorf("Remove(tpm) = %s, %q, want %s", r.After, r.Warnings, want)
	}
	notes := strings.Join(r.Notes, " ")
	if strings.Contains(notes, "as it is now") {
		t.Errorf("notes = %q, want nothing of a seal that was removed", notes)
	}
	if !strings.Contains(notes, "core.seal still configures tpm") || !strings.Contains(notes, "core.seal does not configure escrow") {
		t.Errorf("notes = %q, want what differs from the configuration", notes)
	}
	w.wantOpen(t, pass)
	w.wantOpen(t, passphrase("another"), w.holder)
	w.wantClosed(t, chip, "not among the file's seals")
}

func TestOnlyThePlatformIsWarnedOf(t *testing.T) {
	w := newWorld(t)
	_, chip := platform(t)
	pass := passphrase("correct horse")
	w.add(t, chip, pass)
	r, err := w.directory(t, []seal.Seal{chip, pass}).Remove(t.Context(), []seal.Kind{seal.KindPassphrase})
	if err != nil {
		t.Fatal(err)
	}
	const want = "only this platform opens the private keys (tpm)"
	if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], want) {
		t.Errorf("Remove(passphrase) warns of %q, want %q", r.Warnings, want)
	}
	s, err := w.directory(t, []seal.Seal{chip}).Status(t.Context())
	if err != nil || !s.OK || len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], want) {
		t.Errorf("Status() = %+v, %v, want it to be well with the same warning", s, err)
	}
}

// After the platform has changed, the holder of the escrow opens, and everything
// is sealed to what the platform is now.
func TestRotateWithTheKeyOfAHolder(t *testing.T) {
	w := newWorld(t)
	machine, chip := platform(t)
	configured := []seal.Seal{chip, w.escrow(t)}
	w.add(t, configured...)
	machine.Measure(7, "another key")
	_, err := w.directory(t, configured).Rotate(t.Context())
	if err == nil || !strings.Contains(err.Error(), "cannot open root-ca.key: tpm: ") || !strings.Contains(err.Error(), "escrow: opens only with the key of its holder") {
		t.Fatalf("Rotate() = %v, want the reason of each seal", err)
	}
	w.wantClosed(t, chip, "PCR 7")
	if _, err := w.directory(t, configured, w.holder).Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.wantOpen(t, chip)
	w.wantNothingPlain(t)
}

func TestRotateTakesANewPassphrase(t *testing.T) {
	w := newWorld(t)
	_, chip := platform(t)
	w.add(t, chip, passphrase("old"))
	r, err := w.directory(t, []seal.Seal{chip, passphrase("new")}).Rotate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Added)+len(r.Removed) > 0 || !r.Changed {
		t.Errorf("Rotate() = %+v, want the same kinds", r)
	}
	w.wantOpen(t, passphrase("new"))
	w.wantClosed(t, passphrase("old"), "wrong passphrase")
}

func TestRefusalsChangeNothing(t *testing.T) {
	w := newWorld(t)
	_, chip := platform(t)
	absent, err := tpm.New(tpm.Config{Device: filepath.Join(t.TempDir(), "none"), PCRs: []int{7}})
	if err != nil {
		t.Fatal(err)
	}
	pass, gone := passphrase("correct horse"), seal.New(seal.KindTPM, absent)
	kinds := func(k ...seal.Kind) []seal.Kind { return k }
	type verb func(*sealdir.Directory) (*sealdir.Result, error)
	add := func(k ...seal.Kind) verb {
		return func(d *sealdir.Directory) (*sealdir.Result, error) { return d.Add(t.Context(), k) }
	}
	remove := func(k ...seal.Kind) verb {
		return func(d *sealdir.Directory) (*sealdir.Result, error) { return d.Remove(t.Context(), k) }
	}
	rotate := func(d *sealdir.Directory) (*sealdir.Result, error) { return d.Rotate(t.Context()) }
	tests := []struct {
		name       string
		files      []seal.Kind
		configured []seal.Seal
		do         verb
		want       string
	}{
		{"nothing is configured", nil, nil, add(), sealdir.ErrNothingConfigured.Error()},
		{"plain files have nothing to remove", nil, []seal.Seal{pass}, remove(seal.KindTPM), "are not sealed, so there is nothing to remove"},
		{"plain files are not rotated", nil, []seal.Seal{pass}, rotate, "`kmsctl seal add` seals them"},
		{"what is named is not configured", nil, []seal.Seal{pass}, add(seal.KindTPM), "core.seal does not configure tpm"},
		{"escrow alone", nil, []seal.Seal{pass, w.escrow(t)}, add(seal.KindEscrow), "escrow only encrypts: name a seal that opens here"},
		{"a TPM that is not there", nil, []seal.Seal{gone, pass}, add(), "sealing to tpm: "},
		{"a seal that the files do not have", kinds(seal.KindPassphrase), []seal.Seal{pass}, remove(seal.KindTPM), "are not sealed to tpm, but to passphrase (scrypt, work factor 10)"},
		{"the last seal", kinds(seal.KindPassphrase), []seal.Seal{pass}, remove(seal.KindPassphrase), "passphrase cannot be removed: no seal would be left that opens here"},
		{
			"the last seal beside an escrow", kinds(seal.KindPassphrase, seal.KindEscrow),
			[]seal.Seal{pass, w.escrow(t)},
			remove(seal.KindPassphrase),
			"what would remain is escrow, which opens only with the key of its holder",
		},
		{
			"a seal that stays and is not configured", kinds(seal.KindTPM, seal.KindPassphrase, seal.KindEscrow),
			[]seal.Seal{pass},
			remove(seal.KindEscrow),
			"sealed to tpm too, which core.seal does not configure",
		},
		{"another passphrase", kinds(seal.KindPassphrase), []seal.Seal{passphrase("another"), w.escrow(t)}, add(), "cannot open root-ca.key: passphrase: wrong passphrase, or the file is damaged; kmsctl seal status tells what would open it"},
		{"a seal that stays and is not there", kinds(seal.KindTPM, seal.KindPassphrase), []seal.Seal{gone, pass, w.escrow(t)}, add(), "sealing to tpm: "},
		{"a TPM that is not there when all is rotated", kinds(seal.KindPassphrase), []seal.Seal{gone, pass}, rotate, "sealing to tpm: "},
	}
	all := map[seal.Kind]seal.Seal{seal.KindTPM: chip, seal.KindPassphrase: pass, seal.KindEscrow: w.escrow(t)}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			var seals []seal.Seal
			for _, k := range tt.files {
				seals = append(seals, all[k])
			}
			if len(seals) > 0 {
				w.add(t, seals...)
			}
			before := w.files(t)
			r, err := tt.do(w.directory(t, tt.configured))
			if err == nil || !strings.Contains(err.Error(), tt.want) || r != nil {
				t.Errorf("= %+v, %v, want an error with %q", r, err, tt.want)
			}
			if diff := cmp.Diff(before, w.files(t)); diff != "" {
				t.Errorf("files were changed: %s", diff)
			}
			if entries, err := os.ReadDir(w.dir); err != nil || len(entries) != 7 {
				t.Errorf("the directory has %v, %v, want its seven files", entries, err)
			}
		})
	}
}

func TestDirectoriesWithoutKeys(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none")
	mixed := newWorld(t)
	mixed.add(t, passphrase("correct horse"))
	if err := os.WriteFile(filepath.Join(mixed.dir, "rpc.key"), mixed.plain["rpc.key"], 0o600); err != nil {
		t.Fatal(err)
	}
	two := newWorld(t)
	two.add(t, passphrase("correct horse"))
	old := two.file(t, "rpc.key")
	if _, err := two.directory(t, []seal.Seal{passphrase("correct horse")}).Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(two.dir, "rpc.key"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{
		missing:     "there is no key directory " + missing,
		t.TempDir(): "has no private keys: the KMS makes them, and seals what it makes",
		mixed.dir:   "root-ca.key is sealed and rpc.key is not",
		two.dir:     "root-ca.key and rpc.key are not of one sealing",
	} {
		d := sealdir.New(sealdir.Config{
			Dir: dir, Seals: []seal.Seal{passphrase("correct horse")}, Now: time.Now, Log: zap.NewNop(), Progress: func(string) {},
		})
		if _, err := d.Add(t.Context(), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Add() = %v, want an error with %q", err, want)
		}
		if _, err := d.Status(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Status() = %v, want an error with %q", err, want)
		}
	}
}

func TestAnInterruptBeforeTheCommitChangesNothing(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	d := sealdir.New(sealdir.Config{
		Dir: w.dir, Seals: []seal.Seal{passphrase("correct horse")}, Now: time.Now, Log: zap.NewNop(),
		Progress: func(string) { cancel() },
	})
	if r, err := d.Add(ctx, nil); !errors.Is(err, context.Canceled) || r != nil {
		t.Errorf("Add() = %+v, %v, want %v", r, err, context.Canceled)
	}
	if diff := cmp.Diff(w.plain, w.files(t)); diff != "" {
		t.Errorf("files were changed: %s", diff)
	}
}

func TestStatus(t *testing.T) {
	w := newWorld(t)
	machine, chip := platform(t)
	pass := passphrase("correct horse")
	s, err := w.directory(t, nil).Status(t.Context())
	if err != nil || !s.OK || s.Sealed || s.Err() != nil || len(s.Notes) != 1 {
		t.Errorf("Status() of plain files = %+v, %v, want it to be well", s, err)
	}
	s, err = w.directory(t, []seal.Seal{pass}).Status(t.Context())
	if err != nil || s.OK || s.Sealed || !strings.Contains(s.Err().Error(), "`kmsctl seal add` seals them") {
		t.Errorf("Status() of plain files that are to be sealed = %+v, %v, want what to do", s, err)
	}
	w.add(t, chip, passphrase("another"), w.escrow(t))
	machine.Measure(11, "an update")
	configured := []seal.Seal{agent(t), chip, pass}
	s, err = w.directory(t, configured).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.OK || !strings.Contains(s.Err().Error(), "nothing opens the private keys here: tpm (PCRs 7, 11 of SHA-256), passphrase") {
		t.Errorf("Status() = %+v, want that nothing opens", s)
	}
	type line struct {
		Kind                       string
		InFiles, Configured, Opens bool
	}
	lines := func(s *sealdir.Status) (out []line) {
		for _, one := range s.Seals {
			out = append(out, line{string(one.Kind), one.InFiles, one.Configured, one.Opens})
			if one.Opens != (one.Reason == "") {
				t.Errorf("%s opens %t, with the reason %q", one.Kind, one.Opens, one.Reason)
			}
		}
		return out
	}
	want := []line{{"tpm", true, true, false}, {"guest-agent", false, true, false}, {"passphrase", true, true, false}, {"escrow", true, false, false}}
	if diff := cmp.Diff(want, lines(s)); diff != "" {
		t.Errorf("Status() (-want +got):\n%s", diff)
	}
	if s, err = w.directory(t, configured, w.holder).Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want[3].Opens = true; !s.OK || cmp.Diff(want, lines(s)) != "" {
		t.Errorf("Status() with the key of the holder = %+v, want that it opens", s)
	}
	if s, err = w.directory(t, nil).Status(t.Context()); err != nil || s.OK || len(s.Seals) != 3 || s.Seals[0].Reason != "core.seal is not configured" {
		t.Errorf("Status() with nothing configured = %+v, %v, want all seals of the files", s, err)
	}
}

// TestStatusOfWhatIsNotWhole looks at what an operator finds at night.
func TestStatusOfWhatIsNotWhole(t *testing.T) {
	const anew = "restore them from one backup, or remove rpc.key, which the KMS makes anew at its next start"
	put := func(name string, data []byte) func(*testing.T, *world) {
		return func(t *testing.T, w *world) {
			if data == nil {
				data = w.file(t, "root-k256.key")
			}
			if err := os.WriteFile(filepath.Join(w.dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(names ...string) func(*testing.T, *world) {
		return func(t *testing.T, w *world) {
			for _, name := range names {
				if err := os.Remove(filepath.Join(w.dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	tests := []struct {
		name  string
		harm  func(*testing.T, *world)
		ok    bool
		lines []string // of the text
		want  string   // in the error, or in the notes where it is well
	}{
		{"whole", func(*testing.T, *world) {}, true, []string{"✓ passphrase   scrypt, work factor 10: opens here"}, ""},
		{
			"a key that is made anew is missing", remove("rpc.key"), true,
			[]string{"✗ rpc.key        missing", "– tmp-ca.key     sealed", "✓ passphrase   "},
			"rpc.key is missing: the KMS makes it anew at its next start, and seals all private keys to what core.seal configures",
		},
		{
			"a root key is missing", remove("root-ca.key"), false,
			[]string{"✗ root-ca.key    missing", "✓ passphrase   "},
			"root-ca.key is missing, and a root key is never made again: restore the key directory from a backup",
		},
		{"all private files are missing", remove("root-ca.key", "root-k256.key", "rpc.key", "tmp-ca.key"), false, nil, "and its root-ca.crt is there: restore the key directory from a backup"},
		{"an empty file", put("rpc.key", []byte{}), false, []string{"✗ rpc.key        damaged: it is empty"}, "root-ca.key is sealed and rpc.key is not: " + anew},
		{"a plain file", put("rpc.key", bytes.Repeat([]byte("plain"), 100)), false, []string{"– rpc.key        plain"}, "root-ca.key is sealed and rpc.key is not: " + anew},
		{"a plain root key", put("root-ca.key", bytes.Repeat([]byte("plain"), 100)), false, []string{"– root-ca.key    plain"}, "root-k256.key is sealed and root-ca.key is not: restore them from one backup"},
		{"no header", put("root-ca.key", []byte("age-encryption.org/v1\n"+strings.Repeat("x", 200))), false, []string{"✗ root-ca.key    damaged: "}, "its header is damaged or cut off: restore the key directory from a backup"},
		{"a file in the place of another", put("rpc.key", nil), false, []string{"✗ rpc.key        damaged: "}, "it holds root-k256.key: files were mixed up: remove rpc.key"},
		{"a file of another sealing", func(t *testing.T, w *world) {
			old := w.file(t, "rpc.key")
			if _, err := w.directory(t, []seal.Seal{passphrase("correct horse")}).Rotate(t.Context()); err != nil {
				t.Fatal(err)
			}
			put("rpc.key", old)(t, w)
		}, false, []string{"✗ rpc.key        damaged: sealed otherwise"}, "root-ca.key and rpc.key are not of one sealing: " + anew},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			pass := passphrase("correct horse")
			w.add(t, pass)
			tt.harm(t, w)
			s, err := w.directory(t, []seal.Seal{pass}).Status(t.Context())
			if s == nil || s.OK != tt.ok || (err == nil && s.Err() == nil) != tt.ok || tt.ok != (s.Error == "") {
				t.Fatalf("Status() = %+v, %v, want ok %t", s, err, tt.ok)
			}
			if err != nil && err.Error() != s.Error {
				t.Errorf("Status() = %v beside the error %q, want the same", err, s.Error)
			}
			if got := s.Error + strings.Join(s.Notes, "\n"); !strings.Contains(got, tt.want) || tt.want == "" && got != "" {
				t.Errorf("Status() says %q, want %q", got, tt.want)
			}
			var out bytes.Buffer
			s.WriteText(terminal.New(&out, func(string) string { return "" }))
			for _, line := range tt.lines {
				if !strings.Contains(out.String(), "\n  "+line) {
					t.Errorf("the text has no line %q:\n%s", line, &out)
				}
			}
			if listed := strings.Contains(out.String(), "Private keys"); listed != (len(tt.lines) > 0 && tt.name != "whole") {
				t.Errorf("the text lists the files: %t\n%s", listed, &out)
			}
			if text, err := json.Marshal(s); err != nil || strings.Contains(strings.ReplaceAll(string(text), `"made":null`, ""), "null") {
				t.Errorf("the JSON is %s, %v, want no missing lists", text, err)
			}
		})
	}
}

// unreadable are files of somebody else.
type unreadable struct{ durable.FS }

func (unreadable) ReadFile(path string, _ int64) ([]byte, error) {
	return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrPermission}
}

func TestStatusSaysWhoMayReadTheFiles(t *testing.T) {
	w := newWorld(t)
	d := w.directory(t, []seal.Seal{passphrase("correct horse")})
	d.Through(unreadable{sealdir.Owned(w.dir)})
	want := "Permission denied: " + filepath.Join(w.dir, "root-ca.key") + ": run this as root, or as the user of the KMS"
	if s, err := d.Status(t.Context()); err == nil || err.Error() != want || s == nil || s.Error != want {
		t.Errorf("Status() = %+v, %v, want %q", s, err, want)
	}
}

// Where nothing opens, nothing is advised that needs open files.
func TestStatusAdvisesWhatCanBeDone(t *testing.T) {
	w := newWorld(t)
	w.add(t, passphrase("correct horse"), w.escrow(t))
	s, err := w.directory(t, []seal.Seal{agent(t), w.escrow(t)}).Status(t.Context())
	if err != nil || s.OK || len(s.Notes) > 0 {
		t.Errorf("Status() = %+v, %v, want no notes", s, err)
	}
	nobody := seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{
		Read: func(context.Context) (keys.Secret, error) { return keys.Secret{}, os.ErrNotExist }, WorkFactor: 10,
	}))
	const identity = "; the holder of the escrow has the way in: kmsctl seal rotate --identity FILE"
	for _, tt := range []struct {
		pass seal.Seal
		want string
	}{
		{agent(t), "; who knows the passphrase has a way in: kmsctl seal rotate --old-passphrase-file FILE"},
		{passphrase("wrong"), "; where the passphrase is another one now, the old one opens: kmsctl seal rotate --old-passphrase-file FILE"},
		{nobody, "; see why the passphrase cannot be read: file does not exist"},
	} {
		s, err := w.directory(t, []seal.Seal{tt.pass}).Status(t.Context())
		if want := "nothing opens the private keys here: passphrase (scrypt, work factor 10), escrow (1 recipient) would have to" + tt.want + identity; err != nil || s.Error != want {
			t.Errorf("Status() with %s = %+v, %v, want %q", tt.pass, s, err, want)
		}
	}
}

// The JSON has lists where there may be several, and null nowhere but for times.
func TestJSONHasNoMissingLists(t *testing.T) {
	w := newWorld(t)
	d := w.directory(t, []seal.Seal{passphrase("correct horse")})
	r, err := d.Add(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := d.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []any{r, s} {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.ReplaceAll(string(text), `"made":null`, ""); strings.Contains(got, "null") {
			t.Errorf("%s has null, want empty lists", text)
		}
	}
}
