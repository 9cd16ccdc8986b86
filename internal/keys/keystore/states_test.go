package keystore_test

import (
	"bytes"
	"crypto/ecdsa"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"teekms/internal/durable/durabletest"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

// changed returns the names of the files that differ from before, or are new.
func changed(t *testing.T, dir string, before map[string][]byte) []string {
	t.Helper()
	var names []string
	for _, name := range list(t, dir) {
		if !bytes.Equal(before[name], readFile(t, dir, name)) {
			names = append(names, name)
		}
	}
	return names
}

func snapshot(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for _, name := range list(t, dir) {
		files[name] = readFile(t, dir, name)
	}
	return files
}

// checkWhole opens the directory once more, which must change nothing, and
// checks that certificates and keys belong together.
func checkWhole(t *testing.T, dir string, b *keystore.Bundle) {
	t.Helper()
	before := snapshot(t, dir)
	s := open(t, dir, nil)
	if got := changed(t, dir, before); len(got) != 0 {
		t.Errorf("opening again changed %v", got)
	}
	if !s.Roots().Equal(b.Roots()) {
		t.Error("other root keys")
	}
	root, err := keys.ParseCertificate(s.RootCAPEM())
	if err != nil {
		t.Fatal(err)
	}
	cert := s.RPCCertificate()
	if err := cert.Leaf.CheckSignatureFrom(root); err != nil {
		t.Errorf("RPC certificate: %v", err)
	}
	if !cert.PrivateKey.(*ecdsa.PrivateKey).PublicKey.Equal(cert.Leaf.PublicKey) {
		t.Error("RPC certificate is of another key")
	}
	temp, err := keys.ParseCertificate(s.TempCAPEM())
	if err != nil {
		t.Fatal(err)
	}
	key, err := keys.ParseKey(readFile(t, dir, "tmp-ca.key"))
	if err != nil || !key.PublicKey.Equal(temp.PublicKey) {
		t.Errorf("temporary CA certificate is of another key: %v", err)
	}
}

func TestDamageIsRepaired(t *testing.T) {
	foreign, _ := filled(t)
	truncate := func(names ...string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			for _, name := range names {
				writeFile(t, readFile(t, dir, name)[:100], 0o600, dir, name)
			}
		}
	}
	erase := func(names ...string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			for _, name := range names {
				remove(t, dir, name)
			}
		}
	}
	swap := func(names ...string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			for _, name := range names {
				writeFile(t, readFile(t, foreign, name), 0o600, dir, name)
			}
		}
	}
	tests := []struct {
		name   string
		damage func(t *testing.T, dir string)
		made   []string
	}{
		{"root certificate missing", erase("root-ca.crt"), []string{"root-ca.crt"}},
		{"root certificate torn", truncate("root-ca.crt"), []string{"root-ca.crt"}},
		{"root certificate no CA", func(t *testing.T, dir string) {
			writeFile(t, leafOfRoot(t, dir), 0o644, dir, "root-ca.crt")
		}, []string{"root-ca.crt"}},
		{"RPC certificate missing, the domain configured", erase("rpc.crt"), []string{"rpc.crt"}},
		{"RPC key missing", erase("rpc.key"), []string{"rpc.crt", "rpc.key"}},
		{"RPC key torn", truncate("rpc.key"), []string{"rpc.crt", "rpc.key"}},
		{"RPC certificate of another key", swap("rpc.crt"), []string{"rpc.crt"}},
		{"RPC pair of another root", swap("rpc.crt", "rpc.key"), []string{"rpc.crt", "rpc.key"}},
		{"temporary CA certificate missing", erase("tmp-ca.crt"), []string{"tmp-ca.crt"}},
		{"temporary CA key missing", erase("tmp-ca.key"), []string{"tmp-ca.crt", "tmp-ca.key"}},
		{"temporary CA key empty", func(t *testing.T, dir string) { writeFile(t, nil, 0o600, dir, "tmp-ca.key") }, []string{"tmp-ca.crt", "tmp-ca.key"}},
		{"temporary CA certificate of another key", swap("tmp-ca.crt"), []string{"tmp-ca.crt"}},
		{"everything but the root keys", erase("root-ca.crt", "rpc.crt", "rpc.key", "tmp-ca.crt", "tmp-ca.key"), []string{"root-ca.crt", "rpc.crt", "rpc.key", "tmp-ca.crt", "tmp-ca.key"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, b := filled(t)
			before := snapshot(t, dir)
			tt.damage(t, dir)
			core, logs := observer.New(zap.WarnLevel)
			s, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Domain: "new.example.com", Now: clock, Log: zap.New(core)})
			if err != nil {
				t.Fatal(err)
			}
			got := changed(t, dir, before)
			// The foreign pair is one of the files that are new against before.
			if diff := cmp.Diff(tt.made, got); diff != "" && tt.name != "RPC pair of another root" {
				t.Errorf("made again (-want +got):\n%s", diff)
			}
			if logs.FilterMessage("made files of the key directory again").Len() != 1 {
				t.Errorf("log = %v, want the repair told once", logs.All())
			}
			if slices.Contains(tt.made, "rpc.crt") && s.RPCCertificate().Leaf.Subject.CommonName != "new.example.com" {
				t.Errorf("RPC certificate is for %q, want the configured domain", s.RPCCertificate().Leaf.Subject.CommonName)
			}
			if diff := cmp.Diff(eightNames(), list(t, dir)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			checkWhole(t, dir, b)
		})
	}
}

// leafOfRoot makes a certificate of the root key that is no CA's.
func leafOfRoot(t *testing.T, dir string) []byte {
	t.Helper()
	roots, err := keys.ParseRoots(readFile(t, dir, "root-ca.key"), readFile(t, dir, "root-k256.key"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := keys.ParseCertificate(readFile(t, dir, "root-ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	der, err := keys.IssueRPC(keys.RPCRequest{Roots: roots, CA: ca, Public: ca.PublicKey.(*ecdsa.PublicKey), Domain: "x", Now: clock()})
	if err != nil {
		t.Fatal(err)
	}
	return keys.CertificatePEM(der)
}

func TestUnusableDirectoriesAreRefused(t *testing.T) {
	foreign, _ := filled(t)
	swap := func(name string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) { writeFile(t, readFile(t, foreign, name), 0o600, dir, name) }
	}
	keep := func(names ...string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			for _, name := range list(t, dir) {
				if !slices.Contains(names, name) {
					remove(t, dir, name)
				}
			}
		}
	}
	erase := func(name string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) { remove(t, dir, name) }
	}
	write := func(name, text string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) { writeFile(t, []byte(text), 0o600, dir, name) }
	}
	tests := []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   []string
	}{
		{"root CA key missing", erase("root-ca.key"), []string{"DIR/root-ca.key missing while", "root-k256.key", "restore from a backup"}},
		{"root secp256k1 key missing", erase("root-k256.key"), []string{"DIR/root-k256.key missing while", "restore from a backup"}},
		{"both root keys missing", keep("rpc.crt"), []string{"DIR/root-ca.key and DIR/root-k256.key missing while rpc.crt is there", "empty the directory"}},
		{"only the record of a bootstrap that stopped", keep("bootstrap-info.json"), []string{"DIR/root-ca.key and DIR/root-k256.key missing while bootstrap-info.json is there"}},
		{"root CA key torn", write("root-ca.key", "-----BEGIN PRIVATE KEY-----\nMIGH"), []string{"DIR/root-ca.key: parsing root CA key: ", "restore the file from a backup"}},
		{"root CA key empty", write("root-ca.key", ""), []string{"DIR/root-ca.key: parsing root CA key: does not begin with a PEM block"}},
		{"root secp256k1 key short", write("root-k256.key", "short"), []string{"DIR/root-k256.key: parsing root secp256k1 key: 5 bytes, want 32"}},
		{"root CA key of another directory", swap("root-ca.key"), []string{"DIR/bootstrap-info.json is about other keys than root-ca.key and root-k256.key"}},
		{"the same without a record", func(t *testing.T, dir string) {
			swap("root-ca.key")(t, dir)
			remove(t, dir, "bootstrap-info.json")
		}, []string{"DIR/root-ca.crt is the certificate of another key than root-ca.key", "restore it from a backup"}},
		{"root certificate of another directory", swap("root-ca.crt"), []string{"DIR/root-ca.crt is the certificate of another key than root-ca.key"}},
		{"secp256k1 key of another directory", swap("root-k256.key"), []string{"DIR/bootstrap-info.json is about other keys"}},
		{"record of another directory", swap("bootstrap-info.json"), []string{"DIR/bootstrap-info.json is about other keys"}},
		{"no domain anywhere", erase("rpc.crt"), []string{"DIR/rpc.crt has no name that could be read", "core.onboard.auto_bootstrap_domain"}},
		{"a domain that is none", write("rpc-domain", "kms_1.internal\n"), []string{"DIR/rpc-domain: domain: character '_' is not allowed", "set core.onboard.auto_bootstrap_domain"}},
		{"a root key that is a link to nothing", func(t *testing.T, dir string) {
			remove(t, dir, "root-ca.key")
			if err := os.Symlink("/nowhere/root-ca.key", filepath.Join(dir, "root-ca.key")); err != nil {
				t.Fatal(err)
			}
		}, []string{"reading DIR/root-ca.key: no such file"}},
		{"a key that is a directory", func(t *testing.T, dir string) {
			remove(t, dir, "rpc.key")
			if err := os.Mkdir(filepath.Join(dir, "rpc.key"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, []string{"reading DIR/rpc.key: ", "not a regular file"}},
		{"a certificate without end", func(t *testing.T, dir string) {
			writeFile(t, bytes.Repeat([]byte{'x'}, 2<<20), 0o644, dir, "rpc.crt")
		}, []string{"reading DIR/rpc.crt: ", "more than 1048576 bytes"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, _ := filled(t)
			tt.damage(t, dir)
			before := list(t, dir)
			_, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Now: clock})
			for _, want := range tt.want {
				if want = strings.ReplaceAll(want, "DIR", dir); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("Open = %v, want %q", err, want)
				}
			}
			if diff := cmp.Diff(before, list(t, dir)); diff != "" {
				t.Errorf("a refused directory has changed (-before +after):\n%s", diff)
			}
		})
	}
}

func TestReadErrorIsNoDamage(t *testing.T) {
	start, b := filledDisk(t, crashDir)
	dry := start.Clone().FS(durabletest.Plan{})
	open(t, crashDir, dry)
	tried := 0
	for i, call := range dry.Trace() {
		// What a stage has is looked at twice before it means anything.
		if !strings.HasPrefix(call, "read") || strings.Contains(call, "/.stage") {
			continue
		}
		d := start.Clone()
		_, err := keystore.Open(t.Context(), keystore.Config{Dir: crashDir, Now: clock, FS: d.FS(durabletest.Plan{Step: i + 1, Fault: durabletest.FailBefore, Err: syscall.EIO})})
		if err == nil || !strings.Contains(err.Error(), "input/output error") || !strings.Contains(err.Error(), crashDir) {
			t.Errorf("%s fails: Open = %v, want input/output error with the path", call, err)
		}
		if diff := cmp.Diff(start.Files(crashDir), d.Files(crashDir)); diff != "" {
			t.Errorf("%s fails: files (-before +after):\n%s", call, diff)
		}
		tried++
	}
	if tried != 10 || !open(t, crashDir, start.FS(durabletest.Plan{})).Roots().Equal(b.Roots()) {
		t.Errorf("%d reads failed, want ten: the directory twice and eight files", tried)
	}
}

func TestMissingRecordIsNoDamage(t *testing.T) {
	for name, text := range map[string]string{"missing": "-", "empty": "", "torn": `{"ca_pub`, "of an unknown encoding": `{"k256_pubkey":"0x"}`} {
		t.Run(name, func(t *testing.T) {
			dir, b := filled(t)
			remove(t, dir, "bootstrap-info.json")
			level := zapcore.WarnLevel
			if text != "-" {
				writeFile(t, []byte(text), 0o644, dir, "bootstrap-info.json")
				level = zapcore.ErrorLevel
			}
			before := snapshot(t, dir)
			core, logs := observer.New(zap.WarnLevel)
			s, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Now: clock, Log: zap.New(core)})
			if err != nil || s.Info() != nil || !s.Roots().Equal(b.Roots()) {
				t.Fatalf("Open = %v, want complete without a record", err)
			}
			if got := changed(t, dir, before); len(got) != 0 || len(list(t, dir)) != len(before) {
				t.Errorf("changed = %v, want nothing", got)
			}
			if logs.Len() != 1 || logs.All()[0].Level != level {
				t.Errorf("log = %v, want one line of level %v", logs.All(), level)
			}
		})
	}
}

func TestKeyModesAreClosed(t *testing.T) {
	dir, _ := filled(t)
	for name, mode := range map[string]fs.FileMode{"root-ca.key": 0o644, "rpc.key": 0o640, "root-k256.key": 0o400, "rpc.crt": 0o600} {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	core, logs := observer.New(zap.WarnLevel)
	if _, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Now: clock, Log: zap.New(core)}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"root-ca.key": 0o600, "rpc.key": 0o600, "root-k256.key": 0o400, "rpc.crt": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("mode of %s = %v, %v, want %o", name, info.Mode(), err, want)
		}
	}
	if got := logs.FilterMessage("a key file was open to other users").Len(); got != 2 {
		t.Errorf("told %d times, want twice: %v", got, logs.All())
	}
}

func TestModesThatCannotBeClosedAreTold(t *testing.T) {
	disk, b := filledDisk(t, crashDir)
	disk.Put(crashDir+"/root-ca.key", b.Roots().CAPEM().Bytes(), 0o644)
	core, logs := observer.New(zap.WarnLevel)
	_, err := keystore.Open(t.Context(), keystore.Config{Dir: crashDir, Now: clock, Log: zap.New(core), FS: readOnly{disk.FS(durabletest.Plan{})}})
	if err != nil || logs.FilterMessage("a key file is open to other users and stays so").Len() != 1 {
		t.Errorf("Open = %v, log = %v, want it served and told", err, logs.All())
	}
}

func TestReadOnlyDamageIsRefused(t *testing.T) {
	disk, _ := filledDisk(t, crashDir)
	disk.Delete(crashDir + "/tmp-ca.key")
	_, err := keystore.Open(t.Context(), keystore.Config{Dir: crashDir, Now: clock, FS: readOnly{disk.FS(durabletest.Plan{})}})
	if err == nil || err.Error() != "writing /etc/kms/certs/tmp-ca.key: read-only file system" {
		t.Errorf("Open = %v, want the file that cannot be made again", err)
	}
}

func TestExpiringCAIsMadeAgain(t *testing.T) {
	dir, b := filled(t)
	before := snapshot(t, dir)
	root, err := keys.ParseCertificate(before["root-ca.crt"])
	if err != nil {
		t.Fatal(err)
	}
	openAt := func(now time.Time) {
		t.Helper()
		if _, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Now: func() time.Time { return now }}); err != nil {
			t.Fatal(err)
		}
	}
	openAt(root.NotAfter.Add(-366 * 24 * time.Hour))
	if got := changed(t, dir, before); len(got) != 0 {
		t.Errorf("a year and a day before the end: changed %v, want nothing", got)
	}
	openAt(root.NotAfter.Add(-364 * 24 * time.Hour))
	if diff := cmp.Diff([]string{"root-ca.crt", "tmp-ca.crt"}, changed(t, dir, before)); diff != "" {
		t.Errorf("a year less a day before the end: changed (-want +got):\n%s", diff)
	}
	again, err := keys.ParseCertificate(readFile(t, dir, "root-ca.crt"))
	if err != nil || !bytes.Equal(again.RawSubject, root.RawSubject) || !bytes.Equal(again.RawSubjectPublicKeyInfo, root.RawSubjectPublicKeyInfo) {
		t.Errorf("the new root certificate has another name or key: %v", err)
	}
	rpc, err := keys.ParseCertificate(readFile(t, dir, "rpc.crt"))
	if err != nil || rpc.CheckSignatureFrom(again) != nil {
		t.Errorf("the old RPC certificate does not verify under the new root certificate: %v", err)
	}
	checkWhole(t, dir, b)
}

func TestExpiringCAStaysWhereNothingCanBeWritten(t *testing.T) {
	disk, b := filledDisk(t, crashDir)
	late := func() time.Time { return clock().Add(9*365*24*time.Hour + 24*time.Hour) }
	core, logs := observer.New(zap.WarnLevel)
	s, err := keystore.Open(t.Context(), keystore.Config{Dir: crashDir, Now: late, Log: zap.New(core), FS: readOnly{disk.FS(durabletest.Plan{})}})
	if err != nil || !s.Roots().Equal(b.Roots()) || string(s.RootCAPEM()) != disk.Files(crashDir)["root-ca.crt"] {
		t.Errorf("Open = %v, want the certificate on disk", err)
	}
	if logs.FilterMessage("a CA certificate that is about to expire stays").Len() != 1 {
		t.Errorf("log = %v, want it told", logs.All())
	}
}

func TestUnmarkedStageInAReadOnlyDirectoryIsPassedOver(t *testing.T) {
	disk, b := filledDisk(t, crashDir)
	if err := disk.FS(durabletest.Plan{}).Mkdir(crashDir+"/.stage", 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := keystore.Open(t.Context(), keystore.Config{Dir: crashDir, Now: clock, FS: readOnly{disk.FS(durabletest.Plan{})}})
	if err != nil || !s.Roots().Equal(b.Roots()) {
		t.Errorf("Open = %v, want complete", err)
	}
}

func TestDamagedStageIsRefused(t *testing.T) {
	// A whole stage: the process died after its commit.
	disk, b := durabletest.NewDisk(crashDir), newBundle(t)
	dry := disk.Clone().FS(durabletest.Plan{})
	if err := open(t, crashDir, dry).Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	first := slices.Index(dry.Trace(), "rename "+crashDir+"/bootstrap-info.json")
	// The error is the crash.
	_ = open(t, crashDir, disk.FS(durabletest.Plan{Step: first + 1, Fault: durabletest.CrashBefore})).Commit(t.Context(), b)
	disk = disk.Crash(durabletest.Lost())

	s := open(t, crashDir, disk.Clone().FS(durabletest.Plan{}))
	if !s.Complete() || !s.RolledForward() || !s.Roots().Equal(b.Roots()) {
		t.Fatalf("Open of the whole stage: complete = %v, rolled forward = %v", s.Complete(), s.RolledForward())
	}
	tests := []struct {
		name   string
		damage func(d *durabletest.Disk)
		want   string
	}{
		{"a staged root key has changed", func(d *durabletest.Disk) { d.Put(crashDir+"/.stage/root-ca.key", []byte("x"), 0o600) }, "recovering /etc/kms/certs/.stage/root-ca.key: damaged after it was written"},
		{"a staged root key is gone", func(d *durabletest.Disk) { d.Delete(crashDir + "/.stage/root-ca.key") }, "recovering /etc/kms/certs/root-ca.key: no such file"},
		{"a staged certificate is gone", func(d *durabletest.Disk) { d.Delete(crashDir + "/.stage/rpc.crt") }, "recovering /etc/kms/certs/rpc.crt: no such file"},
		{"another root key is in its place", func(d *durabletest.Disk) { d.Put(crashDir+"/root-ca.key", []byte("x"), 0o600) }, "recovering /etc/kms/certs/root-ca.key: another key is in its place already"},
		{"another root key came instead", func(d *durabletest.Disk) {
			d.Put(crashDir+"/root-ca.key", []byte("x"), 0o600)
			d.Delete(crashDir + "/.stage/root-ca.key")
		}, "recovering /etc/kms/certs/root-ca.key: not the key that was committed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := disk.Clone()
			tt.damage(d)
			before := d.Fingerprint()
			if _, err := keystore.Open(t.Context(), keystore.Config{Dir: crashDir, Now: clock, FS: d.FS(durabletest.Plan{})}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v, want %s", err, tt.want)
			}
			if d.Fingerprint() != before {
				t.Errorf("the refused directory has changed: %v", d.Files(crashDir))
			}
		})
	}
}

// readOnly refuses every change, as a file system mounted read-only does.
type readOnly struct{ *durabletest.FS }

func (readOnly) Mkdir(name string, _ fs.FileMode) error {
	return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.EROFS}
}

func (readOnly) Chmod(name string, _ fs.FileMode) error {
	return &fs.PathError{Op: "chmod", Path: name, Err: syscall.EROFS}
}

func (readOnly) Remove(name string) error {
	return &fs.PathError{Op: "remove", Path: name, Err: syscall.EROFS}
}

func (readOnly) Rename(_, name string) error {
	return &fs.PathError{Op: "rename", Path: name, Err: syscall.EROFS}
}
