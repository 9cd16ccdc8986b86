package sealdir_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/plugin"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap/zaptest"

	"teekms/cmd/kmsctl/internal/privatefile"
	"teekms/cmd/kmsctl/internal/sealdir"
	"teekms/cmd/kmsctl/internal/terminal"
	"teekms/internal/keys"
	"teekms/internal/keys/seal"
	"teekms/internal/keys/seal/tpm"
)

// wantRefused sees that a verb was refused, for a reason, and changed nothing.
func (w *world) wantRefused(t *testing.T, before map[string][]byte, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("= %v, want an error with %q", err, want)
	}
	if diff := cmp.Diff(before, w.files(t)); diff != "" {
		t.Errorf("files were changed: %s", diff)
	}
}

// A passphrase that was typed wrongly does not become that of the files while
// another seal opens them.
func TestAddAndRemoveDoNotChangeThePassphrase(t *testing.T) {
	w := newWorld(t)
	_, chip := platform(t)
	w.add(t, chip, passphrase("right"))
	before := w.files(t)
	const refused = "the passphrase is another one than the files are sealed to: kmsctl seal rotate changes it"
	typed := []seal.Seal{chip, passphrase("wrong"), w.escrow(t)}
	_, err := w.directory(t, typed).Add(t.Context(), nil)
	w.wantRefused(t, before, err, refused)
	// Nor while the key store makes a file anew.
	if err := os.Remove(filepath.Join(w.dir, "rpc.key")); err != nil {
		t.Fatal(err)
	}
	_, err = w.directory(t, typed).Add(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), refused) {
		t.Errorf("Add() with a file missing = %v, want an error with %q", err, refused)
	}
	delete(before, "rpc.key")
	for name, data := range before {
		if !bytes.Equal(data, w.file(t, name)) {
			t.Errorf("%s was changed", name)
		}
	}
	w.add(t, chip, passphrase("right"), w.escrow(t))
	before = w.files(t)
	_, err = w.directory(t, typed).Remove(t.Context(), []seal.Kind{seal.KindEscrow})
	w.wantRefused(t, before, err, refused)
	// One that goes, or is not there yet, may be any.
	if _, err := w.directory(t, typed).Remove(t.Context(), []seal.Kind{seal.KindPassphrase}); err != nil {
		t.Error(err)
	}
	if _, err := w.directory(t, typed).Add(t.Context(), nil); err != nil {
		t.Error(err)
	}
	w.wantOpen(t, passphrase("wrong"))
}

func TestAPassphraseThatIsNotThereIsNotCalledAnother(t *testing.T) {
	w := newWorld(t)
	_, chip := platform(t)
	w.add(t, chip, passphrase("right"))
	before := w.files(t)
	nobody := seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{
		Read: func(context.Context) (keys.Secret, error) { return keys.Secret{}, os.ErrNotExist }, WorkFactor: 10,
	}))
	_, err := w.directory(t, []seal.Seal{chip, nobody, w.escrow(t)}).Add(t.Context(), nil)
	w.wantRefused(t, before, err, "trying the passphrase, which has to be the one that the files are sealed to (kmsctl seal rotate changes it): ")
}

func TestRotateSaysThatThePassphraseIsAnother(t *testing.T) {
	w := newWorld(t)
	_, chip := platform(t)
	w.add(t, chip, passphrase("old"))
	for _, want := range []bool{true, false} {
		r, err := w.directory(t, []seal.Seal{chip, passphrase("new")}).Rotate(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(strings.Join(r.Notes, " "), "the passphrase is another one than before"); got != want {
			t.Errorf("Rotate() notes %q, want that the passphrase is another one: %t", r.Notes, want)
		}
		w.wantOpen(t, passphrase("new"))
	}
}

// A seal that stays and does not open is sealed to as it is now, which is said.
func TestAStaleTPMIsSealedToAsItIs(t *testing.T) {
	w := newWorld(t)
	machine, chip := platform(t)
	pass := passphrase("correct horse")
	w.add(t, chip, pass)
	machine.Measure(7, "an update")
	r, err := w.directory(t, []seal.Seal{chip, pass}).Add(t.Context(), nil)
	if err != nil || r.Changed {
		t.Fatalf("Add() = %+v, %v, want nothing to add", r, err)
	}
	notes := strings.Join(r.Notes, " ")
	if !strings.Contains(notes, "tpm does not open the files here: ") || !strings.Contains(notes, "add does not renew a seal: `kmsctl seal rotate`") {
		t.Errorf("notes = %q, want that the TPM does not open and what renews", notes)
	}
	s, err := w.directory(t, []seal.Seal{chip, pass}).Status(t.Context())
	if err != nil || !s.OK || !strings.Contains(strings.Join(s.Notes, " "), "tpm does not open the files here any more, and another seal does: `kmsctl seal rotate`") {
		t.Errorf("Status() = %+v, %v, want what renews the seal", s, err)
	}
	r, err = w.directory(t, []seal.Seal{chip, pass, w.escrow(t)}).Add(t.Context(), nil)
	if err != nil || !strings.Contains(strings.Join(r.Notes, " "), "they are sealed to it as it is now") {
		t.Errorf("Add(escrow) = %+v, %v, want that the TPM is sealed to anew", r, err)
	}
	w.wantOpen(t, chip)
}

func TestAnotherTPMIsNoted(t *testing.T) {
	w := newWorld(t)
	_, first := platform(t)
	_, second := platform(t)
	pass := passphrase("correct horse")
	w.add(t, first, pass)
	const note = "this is another TPM than before"
	for _, step := range []struct {
		chip seal.Seal
		want bool
	}{{second, true}, {second, false}} {
		r, err := w.directory(t, []seal.Seal{step.chip, pass}).Rotate(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(strings.Join(r.Notes, " "), note); got != step.want {
			t.Errorf("Rotate() notes %q, want %q among them: %t", r.Notes, note, step.want)
		}
	}
}

// A program is run for a recipient of a plugin: the files alone do not say so.
func TestRecipientsOfPluginsAreKeptWhereConfigured(t *testing.T) {
	w := newWorld(t)
	name := plugin.EncodeRecipient("teekmstest", []byte("key"))
	escrow, err := seal.NewEscrow([]string{name})
	if err != nil {
		t.Fatal(err)
	}
	pass := passphrase("correct horse")
	w.add(t, pass)
	for file, data := range w.files(t) {
		// What the header says is not authenticated before it is opened.
		lines := bytes.SplitN(data, []byte("\n"), 4)
		forged := fmt.Appendf(nil, "%s\n%s\n\n-> teekms-escrow v1\n%s\n%s", lines[0], lines[1], wrapped(name), lines[3])
		if err := os.WriteFile(filepath.Join(w.dir, file), forged, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := w.files(t)
	_, chip := platform(t)
	_, err = w.directory(t, []seal.Seal{pass, chip}).Add(t.Context(), []seal.Kind{seal.KindTPM})
	w.wantRefused(t, before, err, "the files are sealed to the recipient "+name+", for which a program is run, and core.seal.escrow does not name it")
	// A header that was forged makes nobody believe that there is nothing to add.
	_, err = w.directory(t, []seal.Seal{pass, escrow}).Add(t.Context(), nil)
	w.wantRefused(t, before, err, "cannot open root-ca.key: its header was changed, or it is cut off: restore the key directory from a backup")
}

// A TPM that is gone can be removed while a file is to be made anew.
func TestATPMThatIsGoneIsRemovedFromADamagedDirectory(t *testing.T) {
	w := newWorld(t)
	_, chip := platform(t)
	pass := passphrase("correct horse")
	w.add(t, chip, pass)
	source, err := tpm.New(tpm.Config{Device: filepath.Join(t.TempDir(), "none"), PCRs: []int{7}})
	if err != nil {
		t.Fatal(err)
	}
	gone := seal.New(seal.KindTPM, source)
	if err := os.Remove(filepath.Join(w.dir, "rpc.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.directory(t, []seal.Seal{gone, pass}).Rotate(t.Context()); err == nil || !strings.HasSuffix(err.Error(), "taken out of core.seal (core.seal.tpm), or out of the files: kmsctl seal remove tpm") {
		t.Errorf("Rotate() = %v, want the way out", err)
	}
	r, err := w.directory(t, []seal.Seal{gone, pass}).Remove(t.Context(), []seal.Kind{seal.KindTPM})
	if err != nil {
		t.Fatal(err)
	}
	if want := "sealed to passphrase (scrypt, work factor 10)"; r.After.String() != want {
		t.Errorf("Remove(tpm) = %s, want %s", r.After, want)
	}
	var out bytes.Buffer
	r.WriteText(terminal.New(&out, func(string) string { return "" }))
	if want := "Dropped        tpm (PCRs 7, 11 of SHA-256)\n"; !strings.Contains(out.String(), want) {
		t.Errorf("the result is %q, want a line %q", out.String(), want)
	}
	w.wantOpen(t, pass)
}

// A holder whose key opens the new files no more is named, whether the escrow goes
// or stays for others.
func TestDroppedRecipientsAreNamed(t *testing.T) {
	w := newWorld(t)
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	pass := passphrase("correct horse")
	w.add(t, pass, w.escrow(t, other))
	mine, theirs := w.holder.Recipient().String(), other.Recipient().String()
	for _, step := range []struct {
		configured []seal.Seal
		want       []string
	}{
		{[]seal.Seal{pass, w.escrow(t)}, []string{theirs}},
		{[]seal.Seal{pass, w.escrow(t, other)}, []string{}},
		{[]seal.Seal{pass}, []string{mine, theirs}},
	} {
		r, err := w.directory(t, step.configured).Rotate(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(step.want, r.RemovedRecipients); diff != "" {
			t.Errorf("Rotate() to %v drops (-want +got):\n%s", step.configured, diff)
		}
		var out bytes.Buffer
		r.WriteText(terminal.New(&out, func(string) string { return "" }))
		for _, recipient := range []string{mine, theirs} {
			if got, want := strings.Contains(out.String(), "\nDropped        escrow recipient "+recipient+"\n"), slices.Contains(step.want, recipient); got != want {
				t.Errorf("the result names %s as dropped: %t, want %t\n%s", recipient, got, want, &out)
			}
		}
	}
}

// A work factor that is not read is told of with what reads it, whichever
// passphrase it is about.
func TestAHighWorkFactorHasAWayOut(t *testing.T) {
	w := newWorld(t)
	w.add(t, passphrase("old"))
	for file, data := range w.files(t) {
		if err := os.WriteFile(filepath.Join(w.dir, file), bytes.Replace(data, []byte(" 10 "), []byte(" 20 "), 1), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := w.files(t)
	const want = "kmsctl seal rotate --max-work-factor 20, which takes 1 GiB of memory"
	_, err := w.directory(t, []seal.Seal{passphrase("new")}).Rotate(t.Context())
	w.wantRefused(t, before, err, want)
	d := sealdir.New(sealdir.Config{
		Dir: w.dir, Seals: []seal.Seal{w.escrow(t), agent(t)}, Old: []seal.Seal{passphrase("old")}, Now: time.Now, Log: zaptest.NewLogger(t), Progress: func(string) {},
	})
	_, err = d.Rotate(t.Context())
	w.wantRefused(t, before, err, want)
}

// What cannot be opened by anybody is not sent to the holder of the escrow.
func TestDamagedFilesHaveAWayOut(t *testing.T) {
	pass := passphrase("correct horse")
	for name, want := range map[string]string{
		"rpc.key":       "remove rpc.key, and the KMS makes it anew at its next start",
		"tmp-ca.key":    "remove tmp-ca.key, and the KMS makes it anew at its next start",
		"root-k256.key": "restore the key directory from a backup",
	} {
		w := newWorld(t)
		configured := []seal.Seal{pass, w.escrow(t)}
		w.add(t, configured...)
		data := w.file(t, name)
		data[len(data)-1] ^= 1
		if err := os.WriteFile(filepath.Join(w.dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		before := w.files(t)
		_, err := w.directory(t, configured).Rotate(t.Context())
		w.wantRefused(t, before, err, want)
		s, err := w.directory(t, configured).Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Err(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "holder") {
			t.Errorf("Status() with %s damaged = %v, want %q and nobody else to ask", name, err, want)
		}
		if want != "restore the key directory from a backup" {
			if err := os.Remove(filepath.Join(w.dir, name)); err != nil {
				t.Fatal(err)
			}
			w.wantOpen(t, pass)
		}
	}
}

func TestStatusSaysWhatToConfigure(t *testing.T) {
	w := newWorld(t)
	w.add(t, passphrase("x"), w.escrow(t))
	for file, data := range w.files(t) {
		// The bound is looked at before anything is computed.
		higher := bytes.Replace(data, []byte(" 10 "), []byte(" 19 "), 1)
		if err := os.WriteFile(filepath.Join(w.dir, file), higher, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := w.directory(t, nil).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "configure in it one of the seals of the files, passphrase") || strings.Contains(strings.Join(s.Notes, ""), "rotate") {
		t.Errorf("Status() with nothing configured = %v, %q, want what to configure", err, s.Notes)
	}
	const want = "set core.seal.passphrase.work_factor = 19 to open them"
	low := []seal.Seal{passphrase("x"), w.escrow(t)}
	if s, err = w.directory(t, low).Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Status() = %v, want %q", err, want)
	}
	_, err = w.directory(t, low).Rotate(t.Context())
	w.wantRefused(t, w.files(t), err, want)
}

func TestPCRsThatTellNothingAreWarnedOf(t *testing.T) {
	w := newWorld(t)
	_, chip := platform(t)
	configured := []seal.Seal{chip, passphrase("correct horse")}
	d := sealdir.New(sealdir.Config{
		Dir: w.dir, Seals: configured, Now: time.Now, Log: zaptest.NewLogger(t), Progress: func(string) {},
		Unmeasured: func(context.Context) []string { return []string{"nothing was measured"} },
	})
	want := []string{"nothing was measured"}
	for range 2 { // the second has nothing to add
		if r, err := d.Add(t.Context(), nil); err != nil || cmp.Diff(want, r.Warnings) != "" {
			t.Errorf("Add() = %+v, %v, want the warning", r, err)
		}
	}
	if r, err := d.Rotate(t.Context()); err != nil || cmp.Diff(want, r.Warnings) != "" {
		t.Errorf("Rotate() = %+v, %v, want the warning", r, err)
	}
	if s, err := d.Status(t.Context()); err != nil || cmp.Diff(want, s.Warnings) != "" {
		t.Errorf("Status() = %+v, %v, want the warning", s, err)
	}
	if r, err := d.Remove(t.Context(), []seal.Kind{seal.KindTPM}); err != nil || len(r.Warnings) > 0 {
		t.Errorf("Remove(tpm) = %+v, %v, want no warning of a TPM that is not sealed to", r, err)
	}
}

func TestPlainKeysHaveNothingToRemoveWhateverIsConfigured(t *testing.T) {
	w := newWorld(t)
	_, err := w.directory(t, nil).Remove(t.Context(), []seal.Kind{seal.KindTPM})
	w.wantRefused(t, w.plain, err, "the private keys are plain files")
}

// wrapped is the body of a stanza.
func wrapped(text string) string {
	body := base64.RawStdEncoding.EncodeToString([]byte(text))
	if len(body) < 64 {
		return body
	}
	return body[:64] + "\n" + body[64:]
}

// What is advised is about the seal that failed.
func TestARecipientWhoseProgramIsMissingIsNamed(t *testing.T) {
	w := newWorld(t)
	pass := passphrase("correct horse")
	to := plugin.EncodeRecipient("tknone", []byte("x"))
	vault, err := seal.NewEscrow([]string{w.holder.Recipient().String(), to})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.directory(t, []seal.Seal{pass, vault}).Add(t.Context(), nil)
	want := "; nothing was changed: mend that, or take " + to + " out of core.seal.escrow.recipients and run kmsctl seal rotate"
	if err == nil || !strings.HasSuffix(err.Error(), want) || strings.Contains(err.Error(), "tpm") {
		t.Errorf("Add() = %v, want %q at its end", err, want)
	}
	differ := seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{
		Read:    func(context.Context) (keys.Secret, error) { return keys.NewSecret([]byte("one")), nil },
		Confirm: func(context.Context) (keys.Secret, error) { return keys.NewSecret([]byte("two")), nil },
	}))
	if _, err = w.directory(t, []seal.Seal{differ}).Add(t.Context(), nil); err == nil || !strings.HasSuffix(err.Error(), "the two passphrases differ; nothing was changed") {
		t.Errorf("Add() = %v, want nothing about other seals", err)
	}
}

// The recipients of the files cannot stand beside a new one.
func TestWhatAddCannotMixRotateReplaces(t *testing.T) {
	w := newWorld(t)
	pass := passphrase("correct horse")
	w.add(t, pass, w.escrow(t))
	quantum, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	vault, err := seal.NewEscrow([]string{quantum.Recipient().String()})
	if err != nil {
		t.Fatal(err)
	}
	d := w.directory(t, []seal.Seal{pass, vault})
	if _, err := d.Add(t.Context(), nil); err == nil || !strings.HasSuffix(err.Error(), "; `kmsctl seal rotate` seals to the configured recipients alone") {
		t.Errorf("Add() = %v, want that rotate is the way", err)
	}
	if _, err := d.Rotate(t.Context()); err != nil {
		t.Errorf("Rotate() = %v, want it", err)
	}
}

func TestStatusOfALinkThatLeadsNowhere(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(w.dir, "rpc.key")
	if err := errors.Join(os.Remove(path), os.Symlink("none", path)); err != nil {
		t.Fatal(err)
	}
	s, err := w.directory(t, nil).Status(t.Context())
	if want := "reading " + path + ": no such file or directory"; err == nil || err.Error() != want || s.OK || len(s.Notes) > 0 {
		t.Errorf("Status() = %+v, %v, want %q", s, err, want)
	}
	if f := s.Files[2]; f.State != privatefile.NotReadable || f.Error != "it is a link that leads nowhere" {
		t.Errorf("Status() says of rpc.key %+v, want that it cannot be read", f)
	}
}

// Nothing opens, and nobody is asked for another passphrase: the file is damaged.
func TestStatusNamesTheFileOfADamagedStanza(t *testing.T) {
	w := newWorld(t)
	w.add(t, passphrase("correct horse"))
	file := w.file(t, "root-ca.key")
	at := bytes.Index(file, []byte("teekms-passphrase"))
	body := at + bytes.IndexByte(file[at:], '\n') + 1
	if file[body] == 'A' {
		file[body] = 'B'
	} else {
		file[body] = 'A'
	}
	if err := os.WriteFile(filepath.Join(w.dir, "root-ca.key"), file, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := w.directory(t, []seal.Seal{passphrase("correct horse")}).Status(t.Context())
	want := "cannot open root-ca.key: its teekms-passphrase stanza is damaged: restore the key directory from a backup"
	if err != nil || s.OK || s.Error != want {
		t.Errorf("Status() = %+v, %v, want %q", s, err, want)
	}
}
