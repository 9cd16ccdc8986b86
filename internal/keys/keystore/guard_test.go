package keystore_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"teekms/internal/durable"
	"teekms/internal/durable/durabletest"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

// TestALinkInThePlaceOfTheStageLeadsNowhere has what others could put in the
// place of the stage: nothing that it leads to is removed, moved or overwritten.
func TestALinkInThePlaceOfTheStageLeadsNowhere(t *testing.T) {
	here := sealTo(t, "here")
	tests := []struct {
		name   string
		marker func(files map[string][]byte) []byte
	}{
		// Whether it has one is not looked at: that would be to follow it.
		{"without a marker", nil},
		{"with the marker of a bootstrap", keystore.MarshalMarker},
		{"with the marker of a resealing", func(files map[string][]byte) []byte { return keystore.MarshalResealing(files, files) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, b := filled(t)
			victim, before := t.TempDir(), snapshot(t, dir)
			writeFile(t, []byte("precious"), 0o600, victim, "letters")
			if tt.marker != nil {
				writeFile(t, []byte("precious"), 0o600, victim, "root-ca.key.old")
				writeFile(t, tt.marker(keystore.PlainFiles(b)), 0o600, victim, "commit")
			}
			there := snapshot(t, victim)
			s := open(t, dir, nil)
			if err := os.Symlink(victim, filepath.Join(dir, ".stage")); err != nil {
				t.Fatal(err)
			}
			if err := s.Reseal(t.Context(), here); err == nil || !strings.Contains(err.Error(), ".stage is no directory") {
				t.Errorf("Reseal = %v, want the link refused", err)
			}
			if _, err := s.RenewRPC(t.Context()); err != nil {
				t.Errorf("RenewRPC = %v, want it done in memory", err)
			}
			for _, fsys := range []durable.FS{nil, durable.OS{}} {
				if _, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Now: clock, FS: fsys}); err == nil || !strings.Contains(err.Error(), ".stage is no directory") {
					t.Errorf("Open = %v, want the link refused", err)
				}
			}
			remove(t, dir, "rpc.crt") // what has to be written finds the link too
			if _, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Domain: testDomain, Now: clock}); err == nil {
				t.Error("Open of a damaged directory = nil, want a refusal")
			}
			if diff := cmp.Diff(there, snapshot(t, victim)); diff != "" {
				t.Errorf("behind the link (-want +got):\n%s", diff)
			}
			remove(t, dir, ".stage")
			writeFile(t, before["rpc.crt"], 0o644, dir, "rpc.crt")
			if got := changed(t, dir, before); len(got) != 0 {
				t.Errorf("changed: %v", got)
			}
		})
	}
}

// TestTheStageOfAnotherUserIsNotBelieved has a marked stage that another user
// made, who knows the sealed files (of a backup, say) but may not write them.
func TestTheStageOfAnotherUserIsNotBelieved(t *testing.T) {
	here := sealTo(t, "here")
	d, _ := filledSealed(t, here)
	other, _ := filledSealed(t, here)
	old, forged := map[string][]byte{}, map[string][]byte{}
	for _, name := range privateNames() {
		old[name], forged[name] = []byte(d.Files(crashDir)[name]), []byte(other.Files(crashDir)[name])
	}
	if err := d.FS(durabletest.Plan{}).Mkdir(crashDir+"/.stage", 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range forged {
		d.Put(crashDir+"/.stage/"+name, data, 0o600)
	}
	d.Put(crashDir+"/.stage/commit", keystore.MarshalResealing(old, forged), 0o600)
	trusted := d.Clone()
	d.Own(crashDir+"/.stage", 1234)
	before := d.Fingerprint()
	if _, err := openSealed(d.FS(durabletest.Plan{}), here); err == nil || !strings.Contains(err.Error(), ".stage belongs to another user") {
		t.Errorf("Open = %v, want the stage refused", err)
	}
	if d.Fingerprint() != before {
		t.Error("the refused directory has changed")
	}
	// The test of the test: the same stage of one's own is believed, and that of
	// the owner of the directory or of its keys.
	for _, whose := range []string{"", crashDir, crashDir + "/root-ca.key"} {
		d := trusted.Clone()
		if whose != "" {
			d.Own(crashDir+"/.stage", 1234)
			d.Own(whose, 1234)
			d.Own(crashDir+"/.stage/root-ca.key", 1234)
		}
		if _, err := openSealed(d.FS(durabletest.Plan{}), here); err == nil || !strings.Contains(err.Error(), "about other keys") {
			t.Errorf("Open = %v, want the forged keys in place", err)
		}
	}
}

func TestResealOfAnotherUsersFilesIsRefused(t *testing.T) {
	here := sealTo(t, "here")
	for _, sealed := range []bool{false, true} {
		d, _ := filledDisk(t, crashDir)
		var from keystore.Sealer
		if sealed {
			d, _ = filledSealed(t, here)
			from = here
		}
		s, err := openSealed(d.FS(durabletest.Plan{}), from)
		if err != nil {
			t.Fatal(err)
		}
		d.Own(crashDir+"/rpc.key", 990)
		before := d.Fingerprint()
		want := "/etc/kms/certs/rpc.key belongs to another user (990) than the file in its place would (0)"
		if err := s.Reseal(t.Context(), sealTo(t, "there")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Reseal = %v, want %s", err, want)
		}
		if d.Fingerprint() != before {
			t.Error("a refused resealing has changed the directory")
		}
		if !sealed {
			continue
		}
		d.Delete(crashDir + "/tmp-ca.key")
		before = d.Fingerprint()
		if _, err := openSealed(d.FS(durabletest.Plan{}), from); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open of a damaged directory = %v, want %s", err, want)
		}
		if d.Fingerprint() != before {
			t.Error("a refused repair has changed the directory")
		}
	}
}

// TestReadOnlyKeyFilesAreOverwritten seals files that their owner may only read.
func TestReadOnlyKeyFilesAreOverwritten(t *testing.T) {
	d, b := filledDisk(t, crashDir)
	for _, name := range privateNames() {
		d.Put(crashDir+"/"+name, keystore.PlainFiles(b)[name], 0o400)
	}
	d = d.Clone()
	if err := open(t, crashDir, d.FS(durabletest.Plan{})).Reseal(t.Context(), sealTo(t, "here")); err != nil {
		t.Errorf("Reseal = %v, want nil", err)
	}
	if found := secretsOf(keystore.PlainFiles(b)).in(d.Contents()); len(found) > 0 {
		t.Errorf("in the clear: %v", found)
	}
	if err := onlyOurs(d); err != nil {
		t.Error(err)
	}
}

func TestLinkedKeyFilesAreNotReplaced(t *testing.T) {
	here, there := sealTo(t, "here"), sealTo(t, "there")
	tests := []struct {
		name string
		link func(t *testing.T, file, elsewhere string)
		want string
	}{
		{"symlink", func(t *testing.T, file, elsewhere string) {
			if err := errors.Join(os.Rename(file, elsewhere), os.Symlink(elsewhere, file)); err != nil {
				t.Fatal(err)
			}
		}, "root-ca.key is a link"},
		{"hard link", func(t *testing.T, file, elsewhere string) {
			if err := os.Link(file, elsewhere); err != nil {
				t.Fatal(err)
			}
		}, "root-ca.key has 2 names (hard links)"},
	}
	for _, tt := range tests {
		for _, sealed := range []bool{false, true} {
			t.Run(tt.name, func(t *testing.T) {
				dir, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "backup")
				cfg := keystore.Config{Dir: dir, Now: clock}
				if sealed {
					cfg.Sealer = here
				}
				s, err := keystore.Open(t.Context(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Commit(t.Context(), newBundle(t)); err != nil {
					t.Fatal(err)
				}
				tt.link(t, filepath.Join(dir, "root-ca.key"), elsewhere)
				if s, err = keystore.Open(t.Context(), cfg); err != nil {
					t.Fatal(err)
				}
				before, kept := snapshot(t, dir), readFile(t, elsewhere)
				refused := func(what string, err error) {
					t.Helper()
					if err == nil || !strings.Contains(err.Error(), tt.want) {
						t.Errorf("%s = %v, want %s", what, err, tt.want)
					}
					if got := changed(t, dir, before); len(got) != 0 || string(readFile(t, elsewhere)) != string(kept) {
						t.Errorf("%s has changed %v", what, got)
					}
				}
				refused("Reseal", s.Reseal(t.Context(), there))
				if sealed {
					remove(t, dir, "rpc.key")
					before = snapshot(t, dir)
					_, err = keystore.Open(t.Context(), cfg)
					refused("Open of a damaged directory", err)
				}
			})
		}
	}
}

// interrupted returns a plain directory whose sealing has ended after the call
// that made path, and the sealed one that it becomes.
func interrupted(t *testing.T, to keystore.Sealer, call string) (*durabletest.Disk, *keystore.Bundle) {
	t.Helper()
	d, b := filledDisk(t, crashDir)
	dry := d.Clone().FS(durabletest.Plan{})
	if err := open(t, crashDir, dry).Reseal(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	for i, made := range dry.Trace() {
		if made == call {
			_ = open(t, crashDir, d.FS(durabletest.Plan{Step: i + 1, Fault: durabletest.CrashAfter})).Reseal(t.Context(), to) // the error is the crash
			return d.Crash(durabletest.Kept()), b
		}
	}
	t.Fatalf("no call %q in %v", call, dry.Trace())
	return nil, nil
}

// TestACopyOfAnOldKeyIsNotForgotten has an operator who copied an old file back
// while the resealing was interrupted: the copy is not left on the medium by
// being replaced.
func TestACopyOfAnOldKeyIsNotForgotten(t *testing.T) {
	here := sealTo(t, "here")
	d, b := interrupted(t, here, "rename "+crashDir+"/.stage/root-ca.key.old")
	d.Put(crashDir+"/root-ca.key", keystore.PlainFiles(b)["root-ca.key"], 0o600)
	before := d.Fingerprint()
	if _, err := openSealed(d.FS(durabletest.Plan{}), here); err == nil || !strings.Contains(err.Error(), "root-ca.key.old is another file with the same contents: remove one of them") {
		t.Errorf("Open = %v, want the copy refused", err)
	}
	if d.Fingerprint() != before {
		t.Error("the refused directory has changed")
	}
	// With it removed all goes on.
	d.Delete(crashDir + "/root-ca.key")
	s, err := openSealed(d.FS(durabletest.Plan{}), here)
	if err != nil {
		t.Fatal(err)
	}
	if found := secretsOf(keystore.PlainFiles(b)).in(d.Contents()); len(found) > 0 {
		t.Errorf("in the clear: %v", found)
	}
	if err := completeWith(s, d, b); err != nil {
		t.Error(err)
	}
}

// TestAFileInThePlaceOfAnOldOneIsKept has a file in the stage under the name
// that a replaced key would get: it may be the only copy of something.
func TestAFileInThePlaceOfAnOldOneIsKept(t *testing.T) {
	here := sealTo(t, "here")
	d, _ := interrupted(t, here, "rename "+crashDir+"/.stage/rpc.key.old")
	d.Put(crashDir+"/.stage/root-ca.key.old", []byte("precious"), 0o600)
	if _, err := openSealed(d.FS(durabletest.Plan{}), here); err == nil || !strings.Contains(err.Error(), "root-ca.key: file exists") {
		t.Errorf("Open = %v, want file exists", err)
	}
	if got := d.Files(crashDir)[".stage/root-ca.key.old"]; got != "precious" {
		t.Errorf("the file has %q, want it as it was", got)
	}
}

// TestAMarkerOfAnotherVersionIsLeftAlone has a whole marker that this version
// does not write: its stage may have the only copy of a key.
func TestAMarkerOfAnotherVersionIsLeftAlone(t *testing.T) {
	here := sealTo(t, "here")
	d, _ := filledSealed(t, here)
	if err := d.FS(durabletest.Plan{}).Mkdir(crashDir+"/.stage", 0o700); err != nil {
		t.Fatal(err)
	}
	d.Put(crashDir+"/.stage/root-ca.key", []byte("of another version"), 0o600)
	for _, body := range []string{"teekms reseal 2\nx\n", "teekms stage 1\n", "teekms reseal 1\n- " + strings.Repeat("0", 64) + " root-ca.key\n"} {
		d.Put(crashDir+"/.stage/commit", keystore.EndMarker(body), 0o600)
		before := d.Fingerprint()
		if _, err := openSealed(d.FS(durabletest.Plan{}), here); err == nil || !strings.Contains(err.Error(), ".stage/commit: whole, but not of a form that this version writes") {
			t.Errorf("%q: Open = %v, want the marker refused", body, err)
		}
		if _, err := keystore.ReadPrivate(t.Context(), crashDir, d.FS(durabletest.Plan{})); err == nil {
			t.Errorf("%q: ReadPrivate = nil, want the marker refused", body)
		}
		if d.Fingerprint() != before {
			t.Error("the refused directory has changed")
		}
	}
}

// TestACertificateThatWasReplacedMeanwhileStays has a sealed repair that could
// not tidy up, and a certificate that the operator then replaced.
func TestACertificateThatWasReplacedMeanwhileStays(t *testing.T) {
	here := sealTo(t, "here")
	d, _ := filledSealed(t, here)
	d.Delete(crashDir + "/rpc.key")
	core, logs := observer.New(zap.ErrorLevel)
	s, err := keystore.Open(t.Context(), keystore.Config{Dir: crashDir, FS: unwipeable{d.FS(durabletest.Plan{})}, Now: clock, Sealer: here, Log: zap.New(core)})
	if err != nil || logs.FilterMessage("old private keys are still on the disk").Len() != 1 {
		t.Fatalf("Open = %v, log = %v, want the old keys told", err, logs.All())
	}
	d.Put(crashDir+"/rpc.crt", []byte("replaced"), 0o644)
	again, err := keystore.Open(t.Context(), keystore.Config{Dir: crashDir, Domain: testDomain, FS: d.FS(durabletest.Plan{}), Now: clock, Sealer: here})
	if err != nil {
		t.Fatal(err)
	}
	if !again.Roots().Equal(s.Roots()) {
		t.Error("other root keys")
	}
	if err := onlyOurs(d); err != nil {
		t.Error(err)
	}
}

// late is a sealer that takes its time: another process is faster.
type late struct {
	keystore.Sealer
	meanwhile func()
}

func (l late) Seal(ctx context.Context, files map[string]keys.Secret) (map[string][]byte, error) {
	l.meanwhile()
	return l.Sealer.Seal(ctx, files)
}

// TestResealOfAnIncompleteSet has public files that went while the seal was
// asked: they are not its business, and are made again by the next opening.
func TestResealOfAnIncompleteSet(t *testing.T) {
	here, there := sealTo(t, "here"), sealTo(t, "there")
	d, b := filledSealed(t, here)
	s, err := openSealed(d.FS(durabletest.Plan{}), here)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Reseal(t.Context(), late{there, func() {
		for _, name := range []string{"root-ca.crt", "tmp-ca.crt"} {
			d.Delete(crashDir + "/" + name)
		}
	}})
	if err != nil {
		t.Fatalf("Reseal = %v, want nil", err)
	}
	again, err := openSealed(d.FS(durabletest.Plan{}), there)
	if err != nil {
		t.Fatal(err)
	}
	if err := completeWith(again, d, b); err != nil {
		t.Error(err)
	}
}

// TestAFileThatAppearsIsNotReplaced has somebody without the lock put a file into
// the place of a key while the old one is out of the way.
func TestAFileThatAppearsIsNotReplaced(t *testing.T) {
	d, b := filledDisk(t, crashDir)
	fsys := durabletest.Observed{FS: d.FS(durabletest.Plan{}), Before: func(string) {}, After: func(step string) {
		if step == "rename root-ca.key.old" {
			d.Put(crashDir+"/root-ca.key", []byte("precious"), 0o600)
		}
	}}
	if err := open(t, crashDir, fsys).Reseal(t.Context(), sealTo(t, "here")); err == nil || !strings.Contains(err.Error(), "root-ca.key: file exists") {
		t.Errorf("Reseal = %v, want file exists", err)
	}
	files := d.Files(crashDir)
	if files["root-ca.key"] != "precious" || files[".stage/root-ca.key.old"] != string(keystore.PlainFiles(b)["root-ca.key"]) {
		t.Error("the file that appeared or the old key is gone")
	}
}

// TestResealFinishesWhatAnotherBegan has another process that dies in the middle
// of a resealing while this one has the directory open.
func TestResealFinishesWhatAnotherBegan(t *testing.T) {
	here, there := sealTo(t, "here"), sealTo(t, "there")
	d, b := filledDisk(t, crashDir)
	s := open(t, crashDir, d.FS(durabletest.Plan{}))
	dry := d.Clone().FS(durabletest.Plan{})
	if err := open(t, crashDir, dry).Reseal(t.Context(), here); err != nil {
		t.Fatal(err)
	}
	for i, call := range dry.Trace() {
		if call == "rename "+crashDir+"/.stage/root-ca.key.old" {
			_ = open(t, crashDir, d.FS(durabletest.Plan{Step: i + 1, Fault: durabletest.CrashAfter})).Reseal(t.Context(), here) // the error is the crash
		}
	}
	if err := s.Reseal(t.Context(), there); err == nil || !strings.Contains(err.Error(), changedMeanwhile) {
		t.Errorf("Reseal = %v, want %s", err, changedMeanwhile)
	}
	again, err := openSealed(d.FS(durabletest.Plan{}), here)
	if err != nil {
		t.Fatal(err)
	}
	if err := completeWith(again, d, b); err != nil {
		t.Error(err)
	}
}
