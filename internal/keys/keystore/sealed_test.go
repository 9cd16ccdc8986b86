package keystore_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"teekms/internal/durable"
	"teekms/internal/durable/durabletest"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
	"teekms/internal/keys/seal"
)

func TestSealedDirectory(t *testing.T) {
	dir, b, here := t.TempDir(), newBundle(t), sealTo(t, "here")
	openHere := func() *keystore.Store {
		t.Helper()
		s, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Now: clock, Sealer: here})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if err := openHere().Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, dir)
	for name, mode := range theEight() {
		private := slices.Contains(privateNames(), name)
		if got := seal.Sealed(before[name]); got != private {
			t.Errorf("%s: sealed = %v, want %v", name, got, private)
		}
		if got := perm(t, dir, name); got != mode {
			t.Errorf("mode of %s = %o, want %o", name, got, mode)
		}
	}
	s := openHere()
	if !s.Roots().Equal(b.Roots()) || s.RolledForward() || len(changed(t, dir, before)) != 0 {
		t.Errorf("opening: other roots, or changed %v", changed(t, dir, before))
	}
	if err := s.Commit(t.Context(), newBundle(t)); !errors.Is(err, keystore.ErrAlreadyBootstrapped) {
		t.Errorf("Commit = %v, want already bootstrapped", err)
	}
	// What is sealed is exactly what would be there without seals.
	if diff := cmp.Diff(keystore.PlainFiles(b), plainOf(t, dir, nil, here)); diff != "" {
		t.Errorf("contents (-want +got):\n%s", diff)
	}
	if _, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Now: clock}); !errors.Is(err, keystore.ErrSealed) || !strings.Contains(err.Error(), dir+"/root-ca.key: the private keys are sealed: configure core.seal") {
		t.Errorf("Open without a sealer = %v, want ErrSealed", err)
	}
	plain, _ := filled(t)
	before = snapshot(t, plain)
	if _, err := keystore.Open(t.Context(), keystore.Config{Dir: plain, Now: clock, Sealer: here}); !errors.Is(err, keystore.ErrNotSealed) || !strings.Contains(err.Error(), "run kmsctl seal add") {
		t.Errorf("Open of plain files with a sealer = %v, want ErrNotSealed", err)
	}
	if got := changed(t, plain, before); len(got) != 0 {
		t.Errorf("a refused opening changed %v", got)
	}
}

func perm(t *testing.T, dir, name string) fs.FileMode {
	t.Helper()
	info, err := durable.OS{}.Stat(dir + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm()
}

func TestSealedDirectoryThatDoesNotOpenIsRefused(t *testing.T) {
	here := sealTo(t, "here")
	disk, _ := filledSealed(t, here)
	other, otherBundle := filledSealed(t, here)
	files, foreign := disk.Files(crashDir), other.Files(crashDir)
	flip := func(text string, at int) []byte {
		b := []byte(text)
		b[at] ^= 1
		return b
	}
	tests := []struct {
		name   string
		sealer keystore.Sealer
		damage map[string][]byte // nil contents: the file is missing
		want   []string
	}{
		{"sealed elsewhere", sealTo(t, "there"), nil, []string{"cannot open root-ca.key", "this is there"}},
		{"plain key among sealed", here, map[string][]byte{"rpc.key": keystore.PlainFiles(otherBundle)["rpc.key"]}, []string{"root-ca.key is sealed and", "rpc.key is not"}},
		{"plain root among sealed, no sealer", nil, map[string][]byte{"root-k256.key": keystore.PlainFiles(otherBundle)["root-k256.key"]}, []string{"root-ca.key is sealed and", "root-k256.key is not"}},
		{"empty key", here, map[string][]byte{"tmp-ca.key": {}}, []string{"tmp-ca.key is not"}},
		{"truncated rpc.key", here, map[string][]byte{"rpc.key": []byte(files["rpc.key"])[:len(files["rpc.key"])-1]}, []string{"rpc.key"}},
		{"changed tmp-ca.key", here, map[string][]byte{"tmp-ca.key": flip(files["tmp-ca.key"], len(files["tmp-ca.key"])-5)}, []string{"tmp-ca.key"}},
		{"changed root-k256.key", here, map[string][]byte{"root-k256.key": flip(files["root-k256.key"], len(files["root-k256.key"])-5)}, []string{"root-k256.key"}},
		{"swapped", here, map[string][]byte{"root-k256.key": []byte(files["root-ca.key"])}, []string{"root-k256.key"}},
		{"one of another directory", here, map[string][]byte{"rpc.key": []byte(foreign["rpc.key"])}, []string{"rpc.key"}},
		{"root key missing", here, map[string][]byte{"root-ca.key": nil}, []string{"key directory is incomplete: /etc/kms/certs/root-ca.key missing"}},
		{"root key missing, no sealer", nil, map[string][]byte{"root-k256.key": nil}, []string{"key directory is incomplete: /etc/kms/certs/root-k256.key missing"}},
		{"all of another directory", here, map[string][]byte{
			"root-ca.key": []byte(foreign["root-ca.key"]), "root-k256.key": []byte(foreign["root-k256.key"]),
			"rpc.key": []byte(foreign["rpc.key"]), "tmp-ca.key": []byte(foreign["tmp-ca.key"]),
		}, []string{"bootstrap-info.json is about other keys"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := disk.Clone()
			for name, data := range tt.damage {
				if data == nil {
					d.Delete(crashDir + "/" + name)
				} else {
					d.Put(crashDir+"/"+name, data, 0o600)
				}
			}
			before := d.Fingerprint()
			_, err := openSealed(d.FS(durabletest.Plan{}), tt.sealer)
			for _, want := range tt.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("Open = %v, want %s", err, want)
				}
			}
			if d.Fingerprint() != before {
				t.Error("the refused directory has changed")
			}
		})
	}
}

// sealing makes a sealer of functions.
type sealing struct {
	seal func(map[string]keys.Secret) (map[string][]byte, error)
	open func(map[string][]byte) (map[string]keys.Secret, error)
}

func (s sealing) Seal(_ context.Context, files map[string]keys.Secret) (map[string][]byte, error) {
	return s.seal(files)
}

func (s sealing) Open(_ context.Context, files map[string][]byte) (map[string]keys.Secret, error) {
	return s.open(files)
}

func TestSealedFileWithoutAKeyIsNotMadeAgain(t *testing.T) {
	here := sealTo(t, "here")
	for _, name := range []string{"rpc.key", "tmp-ca.key"} {
		disk, _ := filledSealed(t, here)
		before := disk.Fingerprint()
		strange := sealing{open: func(files map[string][]byte) (map[string]keys.Secret, error) {
			opened, err := here.Open(context.Background(), files)
			opened[name] = keys.NewSecret([]byte("whole, and no key"))
			return opened, err
		}}
		if _, err := openSealed(disk.FS(durabletest.Plan{}), strange); err == nil || !strings.Contains(err.Error(), "sealed file /etc/kms/certs/"+name) {
			t.Errorf("Open = %v, want %s refused", err, name)
		}
		forgetful := sealing{open: func(files map[string][]byte) (map[string]keys.Secret, error) {
			opened, err := here.Open(context.Background(), files)
			delete(opened, name)
			return opened, err
		}}
		if _, err := openSealed(disk.FS(durabletest.Plan{}), forgetful); err == nil || !strings.Contains(err.Error(), "no contents of "+name) {
			t.Errorf("Open = %v, want no contents of %s", err, name)
		}
		if disk.Fingerprint() != before {
			t.Error("the refused directory has changed")
		}
	}
}

func TestNothingIsWrittenThatWasNotSealed(t *testing.T) {
	here, failed := sealTo(t, "here"), errors.New("no such device")
	change := func(name string, to []byte) keystore.Sealer {
		return sealing{seal: func(files map[string]keys.Secret) (map[string][]byte, error) {
			sealed, err := here.Seal(context.Background(), files)
			sealed[name] = to
			return sealed, err
		}}
	}
	tests := []struct {
		name   string
		sealer keystore.Sealer
		want   string
	}{
		{"no device", sealing{seal: func(map[string]keys.Secret) (map[string][]byte, error) { return nil, failed }}, "sealing key directory /etc/kms/certs: no such device"},
		{"a plain file", change("rpc.key", []byte("-----BEGIN PRIVATE KEY-----")), "rpc.key was not sealed"},
		{"a missing file", change("root-k256.key", nil), "root-k256.key was not sealed"},
		{"a huge file", change("tmp-ca.key", append([]byte("age-encryption.org/v1\n"), make([]byte, 1<<20)...)), "tmp-ca.key has 1048598 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			disk := durabletest.NewDisk("/etc")
			s, err := openSealed(disk.FS(durabletest.Plan{}), tt.sealer)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Commit(t.Context(), newBundle(t)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Commit = %v, want %s", err, tt.want)
			}
			if left := disk.Files("/etc"); len(left) != 0 || s.Complete() {
				t.Errorf("complete = %v, left behind: %v", s.Complete(), left)
			}
			plain, _ := filledDisk(t, crashDir)
			before := plain.Fingerprint()
			if err := open(t, crashDir, plain.FS(durabletest.Plan{})).Reseal(t.Context(), tt.sealer); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Reseal = %v, want %s", err, tt.want)
			}
			if plain.Fingerprint() != before {
				t.Error("a failed sealing has changed the directory")
			}
		})
	}
}

func TestSealedRepairSealsAllAnew(t *testing.T) {
	here := sealTo(t, "here")
	for _, missing := range [][]string{{"rpc.key"}, {"tmp-ca.key", "tmp-ca.crt"}, {"rpc.key", "tmp-ca.key", "root-ca.crt", "rpc.crt", "tmp-ca.crt"}} {
		disk, b := filledSealed(t, here)
		before := disk.Files(crashDir)
		for _, name := range missing {
			disk.Delete(crashDir + "/" + name)
		}
		disk.Put(crashDir+"/root-k256.key", []byte(before["root-k256.key"]), 0o644)
		core, logs := observer.New(zap.WarnLevel)
		s, err := keystore.Open(t.Context(), keystore.Config{Dir: crashDir, Domain: testDomain, FS: disk.FS(durabletest.Plan{}), Now: clock, Sealer: here, Log: zap.New(core)})
		if err != nil {
			t.Fatal(err)
		}
		if err := completeWith(s, disk, b); err != nil {
			t.Error(err)
		}
		after := disk.Files(crashDir)
		for _, name := range privateNames() {
			if after[name] == before[name] {
				t.Errorf("%s was not sealed anew with the others", name)
			}
		}
		if logs.FilterMessage("made files of the key directory again").Len() != 1 || logs.FilterMessage("a key file was open to other users").Len() != 1 {
			t.Errorf("log = %v, want repair and mode told", logs.All())
		}
		plain, old := plainOf(t, crashDir, disk.FS(durabletest.Plan{}), here), keystore.PlainFiles(b)
		for _, name := range privateNames() {
			if same := string(plain[name]) == string(old[name]); same == slices.Contains(missing, name) {
				t.Errorf("missing %v: %s has the same contents = %v", missing, name, same)
			}
		}
		// The store knows what it wrote: it can go on.
		if err := s.Reseal(t.Context(), sealTo(t, "there")); err != nil {
			t.Errorf("Reseal after a repair = %v, want nil", err)
		}
	}
}

func TestSealedCertificateIsMadeAgainWithoutSealing(t *testing.T) {
	here := repeat(sealTo(t, "here"))
	disk, b := filledSealed(t, here)
	before := disk.Files(crashDir)
	disk.Delete(crashDir + "/rpc.crt")
	s, err := keystore.Open(t.Context(), keystore.Config{Dir: crashDir, Domain: testDomain, FS: disk.FS(durabletest.Plan{}), Now: clock, Sealer: here})
	if err != nil {
		t.Fatal(err)
	}
	if err := completeWith(s, disk, b); err != nil {
		t.Error(err)
	}
	after := disk.Files(crashDir)
	for _, name := range privateNames() {
		if after[name] != before[name] {
			t.Errorf("%s has changed", name)
		}
	}
	if seals, _ := here.counts(); seals != 1 {
		t.Errorf("sealed %d times, want once, at the bootstrap", seals)
	}
}

func TestReadOnlySealedDirectory(t *testing.T) {
	here := sealTo(t, "here")
	disk, b := filledSealed(t, here)
	s, err := openSealed(readOnly{disk.FS(durabletest.Plan{})}, here)
	if err != nil || !s.Roots().Equal(b.Roots()) {
		t.Fatalf("Open = %v, want complete", err)
	}
	if _, err := s.RenewRPC(t.Context()); err != nil {
		t.Errorf("RenewRPC = %v, want it done in memory", err)
	}
	if err := s.Reseal(t.Context(), sealTo(t, "there")); err == nil || !strings.Contains(err.Error(), "read-only file system") {
		t.Errorf("Reseal = %v, want read-only", err)
	}
	disk.Delete(crashDir + "/rpc.key")
	if _, err := openSealed(readOnly{disk.FS(durabletest.Plan{})}, here); err == nil || !strings.Contains(err.Error(), "read-only file system") {
		t.Errorf("Open of a damaged directory = %v, want read-only", err)
	}
}

func TestTheLockIsFreeWhileASealIsAsked(t *testing.T) {
	here := sealTo(t, "here")
	disk, b := filledSealed(t, here)
	fsys := disk.FS(durabletest.Plan{})
	asked := 0
	asking := sealing{open: func(files map[string][]byte) (map[string]keys.Secret, error) {
		asked++
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		unlock, err := fsys.Lock(ctx, crashDir)
		if err != nil {
			return nil, err
		}
		unlock()
		return here.Open(ctx, files)
	}}
	s, err := openSealed(fsys, asking)
	if err != nil || !s.Roots().Equal(b.Roots()) || asked != 1 {
		t.Errorf("Open = %v after %d askings, want it open after one", err, asked)
	}
}

func TestDirectoryThatIsResealedWhileItIsOpened(t *testing.T) {
	here := sealTo(t, "here")
	for times, wantErr := range map[int]string{1: "", 2: "", 3: "other processes keep writing it"} {
		disk, b := filledSealed(t, here)
		fsys, left := disk.FS(durabletest.Plan{}), times
		disturbed := sealing{open: func(files map[string][]byte) (map[string]keys.Secret, error) {
			if left--; left >= 0 {
				other, err := openSealed(fsys, here)
				if err != nil {
					return nil, err
				}
				if err := other.Reseal(context.Background(), here); err != nil {
					return nil, err
				}
			}
			return here.Open(context.Background(), files)
		}}
		s, err := openSealed(fsys, disturbed)
		switch {
		case wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)):
			t.Errorf("disturbed %d times: Open = %v, want %s", times, err, wantErr)
		case wantErr == "" && (err != nil || !s.Roots().Equal(b.Roots())):
			t.Errorf("disturbed %d times: Open = %v, want nil", times, err)
		}
	}
}

func TestCommitBesideAnotherSealedBootstrap(t *testing.T) {
	here := sealTo(t, "here")
	disk := durabletest.NewDisk(crashDir)
	fsys := disk.FS(durabletest.Plan{})
	first, err := openSealed(fsys, here)
	if err != nil {
		t.Fatal(err)
	}
	second, err := openSealed(fsys, here)
	if err != nil {
		t.Fatal(err)
	}
	b := newBundle(t)
	if err := first.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if err := second.Commit(t.Context(), newBundle(t)); !errors.Is(err, keystore.ErrAlreadyBootstrapped) || !second.Roots().Equal(b.Roots()) {
		t.Errorf("the second Commit = %v, want already bootstrapped, with the keys of the first", err)
	}
}

func TestReadPrivate(t *testing.T) {
	here := sealTo(t, "here")
	disk, _ := filledSealed(t, here)
	disk.Delete(crashDir + "/rpc.key")
	got, err := keystore.ReadPrivate(t.Context(), crashDir, disk.FS(durabletest.Plan{}))
	if names := slices.Sorted(maps.Keys(got)); err != nil || !slices.Equal(names, []string{"root-ca.key", "root-k256.key", "tmp-ca.key"}) {
		t.Errorf("ReadPrivate = %v, %v, want the three that are there", names, err)
	}
	for name, data := range got {
		if string(data) != disk.Files(crashDir)[name] {
			t.Errorf("%s is not as on disk", name)
		}
	}
	if _, err := keystore.ReadPrivate(t.Context(), "/none", disk.FS(durabletest.Plan{})); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadPrivate of nothing = %v, want ErrNotExist", err)
	}
}

func TestRenewRPCOfASealedDirectory(t *testing.T) {
	here, there := repeat(sealTo(t, "here")), sealTo(t, "there")
	renewable := func(s *keystore.Store, d *durabletest.Disk) error {
		before := d.Files(crashDir)["rpc.crt"]
		_, err := s.RenewRPC(context.Background())
		if err == nil && d.Files(crashDir)["rpc.crt"] == before {
			err = errors.New("renewed in memory only")
		}
		return err
	}
	other, _ := filledSealed(t, here)
	becomeOther := func(d *durabletest.Disk) {
		for name, text := range other.Files(crashDir) {
			d.Put(crashDir+"/"+name, []byte(text), 0o600)
		}
	}
	tests := []struct {
		name      string
		meanwhile func(t *testing.T, d *durabletest.Disk)
		want      string
	}{
		{"as it was opened", func(*testing.T, *durabletest.Disk) {}, ""},
		{"without certificates", func(_ *testing.T, d *durabletest.Disk) { d.Delete(crashDir + "/root-ca.crt") }, ""},
		{"resealed by another process", func(t *testing.T, d *durabletest.Disk) {
			s, _, err := openAny(d.FS(durabletest.Plan{}), here)
			if err == nil {
				err = s.Reseal(t.Context(), there)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, ""},
		{"of another KMS", func(_ *testing.T, d *durabletest.Disk) { becomeOther(d) }, "holds other keys than when it was opened"},
		{"resealed, the root certificate torn", func(t *testing.T, d *durabletest.Disk) {
			becomeOther(d)
			d.Put(crashDir+"/root-ca.crt", nil, 0o644)
		}, "renewed in memory only"},
	}
	for _, tt := range tests {
		for _, plain := range []bool{false, true} {
			t.Run(fmt.Sprint(tt.name, ", opened plain: ", plain), func(t *testing.T) {
				var d *durabletest.Disk
				var sealer keystore.Sealer
				if plain {
					d, _ = filledDisk(t, crashDir)
				} else {
					d, _ = filledSealed(t, here)
					sealer = here
				}
				s, err := openSealed(d.FS(durabletest.Plan{}), sealer)
				if err != nil {
					t.Fatal(err)
				}
				tt.meanwhile(t, d)
				_, opens := here.counts()
				err = renewable(s, d)
				if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
					t.Errorf("RenewRPC = %v, want %q", err, tt.want)
				}
				if _, now := here.counts(); now != opens {
					t.Error("the seals were opened for a renewal")
				}
			})
		}
	}
}

// A link that leads nowhere is not missing: what is missing is made again.
func TestReadPrivateRefusesALinkThatLeadsNowhere(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("none", filepath.Join(dir, "rpc.key")); err != nil {
		t.Fatal(err)
	}
	want := "reading " + filepath.Join(dir, "rpc.key") + ": no such file or directory"
	if files, err := keystore.ReadPrivate(t.Context(), dir, nil); err == nil || err.Error() != want || files != nil {
		t.Errorf("ReadPrivate = %d files, %v, want %q", len(files), err, want)
	}
}
