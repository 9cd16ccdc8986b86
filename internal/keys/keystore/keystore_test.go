package keystore_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"teekms/internal/durable/durabletest"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

func TestCommitWritesTheEightFiles(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o077} {
		t.Run(fmt.Sprintf("umask %03o", umask), func(t *testing.T) {
			old := unix.Umask(umask)
			defer unix.Umask(old)
			dir := filepath.Join(t.TempDir(), "etc", "kms", "certs")
			b := newBundle(t)
			s := open(t, dir, nil)
			if s.Complete() {
				t.Fatal("Complete of a missing directory = true, want false")
			}
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Open made the directory: %v", err)
			}
			if err := s.Commit(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(eightNames(), list(t, dir)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			for name, want := range theEight() {
				info, err := os.Stat(filepath.Join(dir, name))
				if err != nil || info.Mode().Perm() != want {
					t.Errorf("mode of %s = %v, %v, want %o", name, info.Mode(), err, want)
				}
			}
			for _, d := range []string{dir, filepath.Dir(dir)} {
				info, err := os.Stat(d)
				if err != nil || info.Mode().Perm() != 0o755 {
					t.Errorf("mode of %s = %v, %v, want 755", d, info.Mode(), err)
				}
			}
		})
	}
}

func TestCommitKeepsTheDirectorysMode(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir, nil).Commit(t.Context(), newBundle(t)); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode = %v, %v, want 700", info.Mode(), err)
	}
}

func TestContentsOfTheFiles(t *testing.T) {
	dir, b := filled(t)
	roots, err := keys.ParseRoots(readFile(t, dir, "root-ca.key"), readFile(t, dir, "root-k256.key"))
	if err != nil || !roots.Equal(b.Roots()) {
		t.Errorf("root keys on disk: %v, want the committed", err)
	}
	encode := base64.StdEncoding.EncodeToString
	want := fmt.Sprintf(`{"ca_pubkey":"%s","k256_pubkey":"%s","quote":"%s","eventlog":"%s"}`,
		encode(b.Info().CAPublic), encode(b.Info().K256Public), encode(b.Info().Quote), encode(b.Info().EventLog))
	if got := string(readFile(t, dir, "bootstrap-info.json")); got != want {
		t.Errorf("bootstrap-info.json = %s, want %s", got, want)
	}
	for _, pair := range [][2]string{{"rpc.crt", "rpc.key"}, {"tmp-ca.crt", "tmp-ca.key"}, {"root-ca.crt", "root-ca.key"}} {
		if _, err := tls.LoadX509KeyPair(filepath.Join(dir, pair[0]), filepath.Join(dir, pair[1])); err != nil {
			t.Errorf("%v: %v", pair, err)
		}
	}
}

func TestRecordWithoutQuoteHasEmptyStrings(t *testing.T) {
	dir, roots := t.TempDir(), newRoots(t)
	b, err := keystore.NewBundle(roots, testDomain, &keystore.Info{CAPublic: roots.CAPublic(), K256Public: roots.K256Public()}, clock())
	if err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir, nil).Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal(readFile(t, dir, "bootstrap-info.json"), &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 4 || got["quote"] != "" || got["eventlog"] != "" || got["ca_pubkey"] == "" {
		t.Errorf("bootstrap-info.json = %v, want four keys, quote and eventlog empty", got)
	}
	if info := open(t, dir, nil).Info(); info == nil || len(info.Quote) != 0 || !bytes.Equal(info.CAPublic, roots.CAPublic()) {
		t.Errorf("Info = %+v, want the keys without a quote", info)
	}
}

// TestOperatorsChecks runs what operators are told to run.
func TestOperatorsChecks(t *testing.T) {
	dir, roots := t.TempDir(), newRoots(t)
	b, err := keystore.NewBundle(roots, testDomain, &keystore.Info{CAPublic: roots.CAPublic(), K256Public: roots.K256Public()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir, nil).Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ command, want string }{
		{"openssl x509 -in $D/root-ca.crt -noout -subject", "subject=O = Dstack, CN = Dstack KMS CA\n"},
		{"openssl x509 -in $D/tmp-ca.crt -noout -subject", "subject=O = Dstack, CN = Dstack Client Temp CA\n"},
		{"openssl x509 -in $D/rpc.crt -noout -subject", "subject=CN = kms.example.com\n"},
		{"openssl x509 -in $D/rpc.crt -noout -ext subjectAltName", "X509v3 Subject Alternative Name: \n    DNS:kms.example.com\n"},
		{"openssl verify -CAfile $D/root-ca.crt $D/rpc.crt", dir + "/rpc.crt: OK\n"},
		{"openssl pkey -in $D/root-ca.key -noout -check", "Key is valid\n"},
		{"stat -c %s $D/root-k256.key", "32\n"},
		{"ls -1A $D | wc -l", "8\n"},
	}
	for _, tt := range tests {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", tt.command)
		cmd.Env = append(os.Environ(), "D="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != tt.want {
			t.Errorf("%s = %q, %v, want %q", tt.command, out, err, tt.want)
		}
	}
}

func TestOpenReturnsWhatWasCommitted(t *testing.T) {
	dir, b := filled(t)
	s := open(t, dir, nil)
	if !s.Complete() || s.RolledForward() {
		t.Errorf("Complete = %v, RolledForward = %v, want true, false", s.Complete(), s.RolledForward())
	}
	if !s.Roots().Equal(b.Roots()) || s.Domain() != testDomain {
		t.Errorf("roots or domain (%q) are not those committed", s.Domain())
	}
	if diff := cmp.Diff(b.Info(), s.Info()); diff != "" {
		t.Errorf("Info (-want +got):\n%s", diff)
	}
	if !bytes.Equal(s.RootCAPEM(), readFile(t, dir, "root-ca.crt")) || !bytes.Equal(s.TempCAPEM(), readFile(t, dir, "tmp-ca.crt")) {
		t.Error("RootCAPEM or TempCAPEM is not the file")
	}
	key, err := s.TempCAKeyPEM()
	if err != nil || !bytes.Equal(key.Bytes(), readFile(t, dir, "tmp-ca.key")) {
		t.Errorf("TempCAKeyPEM is not the file: %v", err)
	}
	cert := s.RPCCertificate()
	if len(cert.Certificate) != 1 || !bytes.Equal(keys.CertificatePEM(cert.Certificate[0]), readFile(t, dir, "rpc.crt")) {
		t.Error("RPCCertificate is not the file alone")
	}
	if got, want := s.RenewAt(), cert.Leaf.NotBefore.Add(60*24*time.Hour+40*time.Minute); !got.Equal(want) {
		t.Errorf("RenewAt = %v, want %v", got, want)
	}
}

func TestEmptyStore(t *testing.T) {
	dir := t.TempDir()
	// Other entries are no keys.
	if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, []byte("kms.example.com"), 0o644, dir, "rpc-domain")
	s := open(t, dir, nil)
	if s.Complete() || s.Roots() != nil || s.Info() != nil || s.Domain() != "" || s.RootCAPEM() != nil || s.TempCAPEM() != nil ||
		s.RPCCertificate().Certificate != nil || !s.RenewAt().IsZero() {
		t.Error("the empty store has contents")
	}
	if _, err := s.TempCAKeyPEM(); err == nil || err.Error() != "key directory is empty" {
		t.Errorf("TempCAKeyPEM = %v, want key directory is empty", err)
	}
	if _, err := s.RenewRPC(t.Context()); err == nil || err.Error() != "key directory is empty" {
		t.Errorf("RenewRPC = %v, want key directory is empty", err)
	}
	if err := s.Commit(t.Context(), newBundle(t)); err != nil {
		t.Fatal(err)
	}
	if got := list(t, dir); len(got) != 10 {
		t.Errorf("entries = %v, want the eight, lost+found and rpc-domain", got)
	}
}

func TestCommitRefusesADomainThatWouldNotLast(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, []byte("old.example.com\n"), 0o644, dir, "rpc-domain")
	s := open(t, dir, nil)
	if err := s.Commit(t.Context(), newBundle(t)); err == nil || err.Error() != dir+"/rpc-domain names another domain than kms.example.com: remove it first" {
		t.Errorf("Commit = %v, want rpc-domain refused", err)
	}
	if diff := cmp.Diff([]string{"rpc-domain"}, list(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	remove(t, dir, "rpc-domain")
	if err := s.Commit(t.Context(), newBundle(t)); err != nil {
		t.Errorf("Commit without rpc-domain = %v, want nil", err)
	}
}

func TestStoreIsNotPrinted(t *testing.T) {
	dir, b := filled(t)
	s := open(t, dir, nil)
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
		for what, v := range map[string]any{"Store": s, "*Bundle": b, "Bundle": *b} {
			got := fmt.Sprintf(format, v)
			if want := map[bool]string{true: "key directory " + dir, false: "[redacted]"}[what == "Store"]; got != want {
				t.Errorf("Sprintf(%q, %s) = %s, want %s", format, what, got, want)
			}
		}
	}
}

func TestCommitTwice(t *testing.T) {
	dir, b := filled(t)
	before := readFile(t, dir, "root-ca.key")
	for name, s := range map[string]*keystore.Store{"opened later": open(t, dir, nil), "opened before": nil} {
		if s == nil {
			empty := t.TempDir()
			s = open(t, empty, nil)
			other := open(t, empty, nil)
			if err := other.Commit(t.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
		err := s.Commit(t.Context(), newBundle(t))
		if !errors.Is(err, keystore.ErrAlreadyBootstrapped) || err.Error() != "Bootstrap already completed" {
			t.Errorf("%s: Commit = %v, want Bootstrap already completed", name, err)
		}
		if !s.Complete() || !s.Roots().Equal(b.Roots()) {
			t.Errorf("%s: the store does not have the keys that are there", name)
		}
	}
	if !bytes.Equal(before, readFile(t, dir, "root-ca.key")) {
		t.Error("root-ca.key has changed")
	}
}

func TestConcurrentCommits(t *testing.T) {
	// Stores of their own are as processes of their own: each locks with a
	// descriptor of its own.
	dir := filepath.Join(t.TempDir(), "certs")
	const n = 8
	var wg sync.WaitGroup
	errs, bundles := make([]error, n), make([]*keystore.Bundle, n)
	for i := range n {
		bundles[i] = newBundle(t)
		s := open(t, dir, nil)
		wg.Go(func() { errs[i] = s.Commit(context.Background(), bundles[i]) })
	}
	wg.Wait()
	var winner *keystore.Bundle
	for i, err := range errs {
		switch {
		case err == nil && winner == nil:
			winner = bundles[i]
		case !errors.Is(err, keystore.ErrAlreadyBootstrapped):
			t.Errorf("Commit = %v, want one nil and else %v", err, keystore.ErrAlreadyBootstrapped)
		}
	}
	if winner == nil || !open(t, dir, nil).Roots().Equal(winner.Roots()) {
		t.Error("the directory does not have the winner's keys")
	}
}

func TestLockedDirectory(t *testing.T) {
	disk := durabletest.NewDisk("/d")
	fsys := disk.FS(durabletest.Plan{})
	s := open(t, "/d", fsys)
	unlock, err := fsys.Lock(t.Context(), "/d")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	err = s.Commit(ctx, newBundle(t))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "locking key directory: ") {
		t.Errorf("Commit to a locked directory = %v, want locking key directory", err)
	}
	unlock()
	if err := s.Commit(t.Context(), newBundle(t)); err != nil {
		t.Errorf("Commit after unlock = %v, want nil", err)
	}
}

func TestLockIsNotWaitedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := durabletest.NewDisk("/d")
		fsys := disk.FS(durabletest.Plan{})
		unlock, err := fsys.Lock(t.Context(), "/d")
		if err != nil {
			t.Fatal(err)
		}
		defer unlock()
		begin := time.Now()
		_, err = keystore.Open(t.Context(), keystore.Config{Dir: "/d", FS: fsys})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 10*time.Second {
			t.Errorf("Open of a locked directory = %v after %v, want an error after 10s", err, time.Since(begin))
		}
	})
}

func TestFailedCommitLeavesNothing(t *testing.T) {
	tests := []struct {
		name string
		plan durabletest.Plan
		want string
	}{
		{"no space", durabletest.Plan{Step: 12, Fault: durabletest.FailBefore, Err: unix.ENOSPC}, "writing /etc/kms/certs/root-ca.key: no space left on device"},
		{"disk error", durabletest.Plan{Step: 30, Fault: durabletest.FailBefore, Err: unix.EIO}, "writing /etc/kms/certs/root-ca.crt: input/output error"},
		{"read-only", durabletest.Plan{Step: 2, Fault: durabletest.FailOn, Err: unix.EROFS}, "writing /etc/kms/certs/root-ca.key: read-only file system"},
		{"denied", durabletest.Plan{Step: 2, Fault: durabletest.FailOn, Err: unix.EACCES}, "Permission denied: /etc/kms/certs/root-ca.key"},
		{"immutable", durabletest.Plan{Step: 2, Fault: durabletest.FailOn, Err: unix.EPERM}, "Permission denied: /etc/kms/certs/root-ca.key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			disk := durabletest.NewDisk("/etc")
			fsys := disk.FS(tt.plan)
			s := open(t, crashDir, fsys)
			err := s.Commit(t.Context(), newBundle(t))
			if err == nil || err.Error() != tt.want || !errors.Is(err, tt.plan.Err) {
				t.Errorf("Commit = %v, want %s\ntrace: %v", err, tt.want, fsys.Trace())
			}
			if left := disk.Files("/etc"); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
			if s.Complete() {
				t.Error("Complete = true after a failed Commit")
			}
		})
	}
}

func TestCommitAgainAfterAFailure(t *testing.T) {
	disk := durabletest.NewDisk(crashDir)
	s := open(t, crashDir, disk.FS(durabletest.Plan{Step: 40, Fault: durabletest.FailBefore, Err: unix.ENOSPC}))
	if err := s.Commit(t.Context(), newBundle(t)); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("Commit = %v, want no space", err)
	}
	b := newBundle(t)
	if err := s.Commit(t.Context(), b); err != nil {
		t.Fatalf("Commit with space again = %v, want nil", err)
	}
	if !open(t, crashDir, disk.FS(durabletest.Plan{})).Roots().Equal(b.Roots()) {
		t.Error("the directory has other keys")
	}
}

func TestRootKeysAreNotOverwrittenByACommit(t *testing.T) {
	// Somebody who does not know the lock puts a key in place while the commit
	// is under way.
	disk := durabletest.NewDisk(crashDir)
	var once sync.Once
	fsys := durabletest.Observed{FS: disk.FS(durabletest.Plan{}), After: func(string) {}, Before: func(step string) {
		if step == "rename root-k256.key" {
			once.Do(func() { disk.Put(crashDir+"/root-ca.key", []byte("foreign"), 0o600) })
		}
	}}
	err := open(t, crashDir, fsys).Commit(t.Context(), newBundle(t))
	if err == nil || !strings.Contains(err.Error(), "writing /etc/kms/certs/root-ca.key: file exists") {
		t.Errorf("Commit = %v, want file exists", err)
	}
	if diff := cmp.Diff(map[string]string{"root-ca.key": "foreign"}, disk.Files(crashDir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestNewBundleRefuses(t *testing.T) {
	roots, other := newRoots(t), newRoots(t)
	tests := []struct {
		name, domain string
		info         *keystore.Info
		want         string
	}{
		{"bad domain", "a..b", nil, "domain: has an empty label"},
		{"record about other roots", testDomain, &keystore.Info{CAPublic: other.CAPublic(), K256Public: roots.K256Public()}, "bootstrap record is about other root keys"},
		{"record about nothing", testDomain, &keystore.Info{}, "bootstrap record is about other root keys"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := keystore.NewBundle(roots, tt.domain, tt.info, clock()); err == nil || err.Error() != tt.want {
				t.Errorf("NewBundle = %v, want %s", err, tt.want)
			}
		})
	}
}

func TestOpenRefusesItsConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	writeFile(t, nil, 0o644, file)
	tests := []struct {
		name string
		cfg  keystore.Config
		want string
	}{
		{"no directory", keystore.Config{}, "key directory: must not be empty"},
		{"bad domain", keystore.Config{Dir: t.TempDir(), Domain: "*.example"}, "core.onboard.auto_bootstrap_domain: domain: wildcards are not allowed"},
		{"a file", keystore.Config{Dir: file}, "not a directory"},
		{"below a file", keystore.Config{Dir: filepath.Join(file, "certs")}, "not a directory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := keystore.Open(t.Context(), tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v, want %s", err, tt.want)
			}
		})
	}
}
