package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSealedDirectoryIsRefused damages or mixes up sealed files. The process ends
// with the file's name, and what is there stays as it is.
func TestSealedDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	s := newSeals(t)
	passphrase := s.passphrase(t)
	sealed := func(t *testing.T, sections ...string) *kmsDir {
		k := newKMS(t, `auto_bootstrap_domain = "kms.example.com"`, strings.Join(append(sections, devAuthority), "\n"))
		autoBootstrap(t, k)
		return k
	}
	original, other, plain := sealed(t, passphrase), sealed(t, passphrase), sealed(t)
	edit := func(name string, f func([]byte) []byte) func(*testing.T, *kmsDir) {
		return func(t *testing.T, k *kmsDir) { k.put(t, name, f(k.file(t, name))) }
	}
	flip := func(at func(size int) int) func([]byte) []byte {
		return func(b []byte) []byte {
			b = bytes.Clone(b)
			b[at(len(b))] ^= 1
			return b
		}
	}
	tests := []struct {
		name string
		// change works on a copy of a directory that is sealed with passphrase.
		change func(*testing.T, *kmsDir)
		want   []string
	}{
		{"a wrong passphrase", func(t *testing.T, k *kmsDir) {
			k.configure(t, passphraseIn(t, filepath.Join(k.Dir, "wrong"), "canary of another"), devAuthority)
		}, []string{"root-ca.key", "passphrase: ", "wrong passphrase"}},
		{"a passphrase file that is not there", func(t *testing.T, k *kmsDir) {
			k.configure(t, "[core.seal.passphrase]\nfile = \"/nonexistent/passphrase\"\n", devAuthority)
		}, []string{"/nonexistent/passphrase"}},
		{"an empty passphrase file", func(t *testing.T, k *kmsDir) {
			k.configure(t, passphraseIn(t, filepath.Join(k.Dir, "empty"), ""), devAuthority)
		}, []string{"empty"}},
		{"root-ca.key cut off in its header", edit("root-ca.key", func(b []byte) []byte { return b[:60] }), []string{"root-ca.key"}},
		{"root-k256.key cut off by a byte", edit("root-k256.key", func(b []byte) []byte { return b[:len(b)-1] }), []string{"root-k256.key"}},
		{"an empty tmp-ca.key", edit("tmp-ca.key", func([]byte) []byte { return nil }), []string{"tmp-ca.key"}},
		{"rpc.key with a byte more", edit("rpc.key", func(b []byte) []byte { return append(bytes.Clone(b), 0) }), []string{"rpc.key"}},
		{"a flipped byte in the payload of rpc.key", edit("rpc.key", flip(func(n int) int { return n - 5 })), []string{"rpc.key"}},
		{"a flipped byte in the first line of root-ca.key", edit("root-ca.key", flip(func(int) int { return 3 })), []string{"root-ca.key"}},
		{"a flipped byte in the header of root-k256.key", edit("root-k256.key", flip(func(int) int { return 60 })), []string{"root-k256.key"}},
		{"root keys under each other's name", func(t *testing.T, k *kmsDir) {
			a, b := k.file(t, "root-ca.key"), k.file(t, "root-k256.key")
			k.put(t, "root-ca.key", b)
			k.put(t, "root-k256.key", a)
		}, []string{"root-ca.key", "root-k256.key"}},
		{"a file of another directory with the same passphrase", func(t *testing.T, k *kmsDir) {
			k.put(t, "tmp-ca.key", other.file(t, "tmp-ca.key"))
		}, []string{"tmp-ca.key"}},
		{"all private files of another directory", func(t *testing.T, k *kmsDir) {
			for _, name := range privateFiles {
				k.put(t, name, other.file(t, name))
			}
		}, []string{"bootstrap-info.json is about other keys than root-ca.key and root-k256.key"}},
		{"a plain file among sealed ones", func(t *testing.T, k *kmsDir) {
			k.put(t, "rpc.key", plain.file(t, "rpc.key"))
		}, []string{"rpc.key", "root-ca.key"}},
		{"a sealed directory without core.seal", func(t *testing.T, k *kmsDir) { k.configure(t, devAuthority) }, []string{"root-ca.key", "core.seal"}},
		{"a plain directory with core.seal", func(t *testing.T, k *kmsDir) {
			for name := range keyDirModes {
				k.put(t, name, plain.file(t, name))
			}
		}, []string{"root-ca.key", "kmsctl seal add"}},
		{"without root-k256.key", func(t *testing.T, k *kmsDir) {
			if err := os.Remove(filepath.Join(k.Certs, "root-k256.key")); err != nil {
				t.Fatal(err)
			}
		}, []string{"root-k256.key missing", "restore from a backup"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			k := newKMS(t, "", "")
			k.configure(t, passphrase, devAuthority)
			if err := os.Mkdir(k.Certs, 0o755); err != nil {
				t.Fatal(err)
			}
			for name := range keyDirModes {
				k.put(t, name, original.file(t, name))
			}
			tt.change(t, k)
			for _, name := range []string{"dstack-kms", "dstack-onboard"} {
				last := k.refuses(t, name, "DSTACK_KMS_CORE_ONBOARD_AUTO_BOOTSTRAP_DOMAIN="+exampleDomain)
				wantReasons(t, last, tt.want...)
				if strings.Contains(last, "\\n") {
					t.Errorf("the reason has lines of its own: %s", last)
				}
			}
		})
	}
}

// put writes a file of the key directory with the mode that it has there.
func (k *kmsDir) put(t testing.TB, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(k.Certs, name), data, keyDirModes[name]); err != nil {
		t.Fatal(err)
	}
}

// TestSealedDirectoryIsRepaired loses what is made again: it is sealed again too.
func TestSealedDirectoryIsRepaired(t *testing.T) {
	t.Parallel()
	s := newSeals(t)
	k := newKMS(t, "", "")
	k.configure(t, s.passphrase(t), s.escrow(t), devAuthority)
	k.fill(t, exampleDomain)
	p, _ := k.serve(t, exampleDomain)
	keys := k.appKeys(t, exampleDomain, k)
	p.terminate(t)
	for _, name := range []string{"rpc.key", "tmp-ca.key", "root-ca.crt"} {
		if err := os.Remove(filepath.Join(k.Certs, name)); err != nil {
			t.Fatal(err)
		}
	}
	p, _ = k.serve(t, exampleDomain)
	p.logs(t, "made files of the key directory again")
	k.checkSealed(t, "teekms-file", "teekms-escrow", "teekms-passphrase", "X25519")
	got := k.appKeys(t, exampleDomain, k)
	for _, name := range []string{"k256_key", "env_crypt_key", "disk_crypt_key"} {
		if got[name] != keys[name] {
			t.Errorf("after the repair %s is another one", name)
		}
	}
	checkTutorialCommands(t, k.unsealed(t, s))

	// What a repair takes away is told: the configuration has no escrow any more.
	p.terminate(t)
	k.configure(t, s.passphrase(t), devAuthority)
	if err := os.Remove(filepath.Join(k.Certs, "rpc.key")); err != nil {
		t.Fatal(err)
	}
	p, _ = k.serve(t, exampleDomain)
	wantReasons(t, p.stderr.String(), "WARN the private files were sealed anew to what core.seal configures",
		`WARN the private files were sealed otherwise before {"seal": "escrow", "before": "age1`)
	k.checkSealed(t, "teekms-file", "teekms-passphrase")
}
