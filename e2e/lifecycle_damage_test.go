package e2e

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/durable"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

// TestDamagedDirectory removes files and starts again.
func TestDamagedDirectory(t *testing.T) {
	original := newKMS(t, "", "")
	original.fill(t, "kms.example.com")
	all := map[string][]byte{}
	for name := range keyDirModes {
		all[name] = original.file(t, name)
	}
	// damaged returns a KMS of its own on a copy without some of the files.
	damaged := func(t *testing.T, onboard string, missing ...string) *kmsDir {
		k := newKMS(t, onboard, "")
		if err := os.Mkdir(k.Certs, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, content := range all {
			if err := os.WriteFile(filepath.Join(k.Certs, name), content, keyDirModes[name]); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range missing {
			if err := os.Remove(filepath.Join(k.Certs, name)); err != nil {
				t.Fatal(err)
			}
		}
		return k
	}

	for _, missing := range []string{"root-ca.key", "root-k256.key"} {
		t.Run("without "+missing+" it is refused", func(t *testing.T) {
			t.Parallel()
			k := damaged(t, `auto_bootstrap_domain = "kms.example.com"`, missing)
			before := tree(t, k.Certs)
			for _, name := range []string{"dstack-kms", "dstack-onboard"} {
				code, _, stderr := run(t, name, "--config", k.Config)
				last := stderr[strings.LastIndex(strings.TrimSuffix(stderr, "\n"), "\n")+1:]
				for _, want := range []string{"Error: ", k.Certs + "/" + missing + " missing", "restore from a backup"} {
					if code != 1 || !strings.Contains(last, want) {
						t.Errorf("%s: exit status %d, %s\nwant 1 and %q", name, code, last, want)
					}
				}
			}
			if diff := cmp.Diff(before, tree(t, k.Certs)); diff != "" {
				t.Errorf("the directory has changed:\n%s", diff)
			}
		})
	}
	const auto = `auto_bootstrap_domain = "kms.example.com"`
	tests := []struct {
		name, onboard string
		missing       []string
	}{
		{"rpc.crt", auto, []string{"rpc.crt"}},
		{"rpc.key", "", []string{"rpc.key"}},
		{"root-ca.crt", "", []string{"root-ca.crt"}},
		{"the temporary CA", "", []string{"tmp-ca.crt", "tmp-ca.key"}},
		{"the certificate of the temporary CA", "", []string{"tmp-ca.crt"}},
		{"all but the root keys and the record", auto, []string{"rpc.crt", "rpc.key", "root-ca.crt", "tmp-ca.crt", "tmp-ca.key"}},
	}
	for _, tt := range tests {
		t.Run("without "+tt.name+" it is made again", func(t *testing.T) {
			t.Parallel()
			k := damaged(t, tt.onboard, tt.missing...)
			p, client := k.serve(t, "kms.example.com")
			checkKeyDir(t, k.Certs)
			checkTutorialCommands(t, k.Certs)
			for _, name := range []string{"root-ca.key", "root-k256.key", "bootstrap-info.json"} {
				if string(k.file(t, name)) != string(all[name]) {
					t.Errorf("%s has changed", name)
				}
			}
			if !strings.Contains(p.stderr.String(), "made files of the key directory again") {
				t.Errorf("the log does not tell of the repair:\n%s", p.stderr)
			}
			if info := metaOf(t, client, k).BootstrapInfo; info == nil {
				t.Error("GetMeta tells no bootstrap_info")
			}
		})
	}
	t.Run("without rpc.crt and a domain it is refused", func(t *testing.T) {
		t.Parallel()
		k := damaged(t, "", "rpc.crt")
		code, _, stderr := run(t, "dstack-kms", "--config", k.Config)
		wantErrorLine(t, code, 1, stderr, k.Certs+"/rpc.crt has no name that could be read: "+
			"set core.onboard.auto_bootstrap_domain to the domain of this KMS")
	})
	t.Run("without bootstrap-info.json it serves and says so", func(t *testing.T) {
		t.Parallel()
		k := damaged(t, "", "bootstrap-info.json")
		p, client := k.serve(t, "kms.example.com")
		if info := metaOf(t, client, k).BootstrapInfo; info != nil {
			t.Errorf("bootstrap_info = %v, want null", info)
		}
		if !strings.Contains(p.stderr.String(), "WARN the key directory has no bootstrap-info.json") {
			t.Errorf("the log does not warn:\n%s", p.stderr)
		}
		if _, err := os.Stat(filepath.Join(k.Certs, "bootstrap-info.json")); !os.IsNotExist(err) {
			t.Errorf("bootstrap-info.json was made again (%v)", err)
		}
	})
	t.Run("a record of other keys is refused", func(t *testing.T) {
		t.Parallel()
		other := newKMS(t, "quote_enabled = false", "")
		other.fill(t, "kms.example.com")
		k := damaged(t, "")
		if err := os.WriteFile(filepath.Join(k.Certs, "bootstrap-info.json"), other.file(t, "bootstrap-info.json"), 0o644); err != nil {
			t.Fatal(err)
		}
		code, _, stderr := run(t, "dstack-kms", "--config", k.Config)
		wantErrorLine(t, code, 1, stderr, k.Certs+"/bootstrap-info.json is about other keys than root-ca.key and root-k256.key: "+
			"one of the three is not from this directory; restore it from a backup")
	})
	t.Run("the configured domain wins", func(t *testing.T) {
		t.Parallel()
		k := damaged(t, `auto_bootstrap_domain = "new.example.com"`)
		p, client := k.serve(t, "new.example.com")
		if info := metaOf(t, client, k).BootstrapInfo; info == nil {
			t.Error("GetMeta tells no bootstrap_info")
		}
		p.logs(t, `{"domain": "new.example.com"`)
	})
	t.Run("a peer's directory is taken over", func(t *testing.T) {
		t.Parallel()
		testAdoption(t, damaged(t, "", "bootstrap-info.json", "rpc.crt", "tmp-ca.crt"), all)
	})
	t.Run("read-only it serves", func(t *testing.T) {
		t.Parallel()
		testReadOnly(t, damaged(t, ""), all)
	})
}

// testAdoption gives k the form in which another KMS writes its directory:
// record in hex, the domain in a file, open modes.
func testAdoption(t *testing.T, k *kmsDir, all map[string][]byte) {
	var ours map[string][]byte // base64 in JSON is what []byte reads
	if err := json.Unmarshal(all["bootstrap-info.json"], &ours); err != nil {
		t.Fatal(err)
	}
	theirs := fmt.Sprintf(`{"ca_pubkey":"%x","k256_pubkey":"%x","quote":"%x","eventlog":"%x"}`,
		ours["ca_pubkey"], ours["k256_pubkey"], ours["quote"], ours["eventlog"])
	for name, content := range map[string]string{
		"bootstrap-info.json": theirs, "rpc-domain": "kms.peer.example", "tmp-ca.crt": string(all["tmp-ca.crt"]),
	} {
		if err := os.WriteFile(filepath.Join(k.Certs, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"root-ca.key", "root-k256.key", "rpc.key", "tmp-ca.key"} {
		if err := os.Chmod(filepath.Join(k.Certs, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p, client := k.serve(t, "kms.peer.example")
	info := metaOf(t, client, k).BootstrapInfo
	if info == nil || info.CAPubkey != hex.EncodeToString(ours["ca_pubkey"]) || info.Quote != hex.EncodeToString(ours["quote"]) {
		t.Errorf("bootstrap_info is not the peer's record: %.200v", info)
	}
	for _, name := range []string{"root-ca.key", "root-k256.key", "rpc.key", "tmp-ca.key"} {
		stat, err := os.Stat(filepath.Join(k.Certs, name))
		if err != nil || stat.Mode() != 0o600 {
			t.Errorf("%s has mode %v (%v), want 0600", name, stat.Mode(), err)
		}
		if string(k.file(t, name)) != string(all[name]) {
			t.Errorf("%s has changed", name)
		}
	}
	if got := string(k.file(t, "bootstrap-info.json")); got != theirs {
		t.Error("the peer's record was rewritten")
	}
	if !strings.Contains(p.stderr.String(), "a key file was open to other users") {
		t.Errorf("the log does not tell of the modes:\n%s", p.stderr)
	}
}

// testReadOnly serves from a directory that the process cannot write.
func testReadOnly(t *testing.T, k *kmsDir, all map[string][]byte) {
	for name := range all {
		path := filepath.Join(k.Certs, name)
		k.giveAway(t, path)
		if err := os.Chmod(path, keyDirModes[name]&^0o222); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(k.Certs, 0o555); err != nil {
		t.Fatal(err)
	}
	before := tree(t, k.Certs)
	p := startCmd(t, k.dropRoot(t, command(t, nil, "dstack-kms", "--config", k.Config)))
	client := k.trusting(t, "kms.example.com")
	p.ready(t, client, k.URL("https")+"/ready")
	served := get(t, client, k.URL("https")+"/health").TLS.PeerCertificates[0]
	if onDisk := parseCertificate(t, all["rpc.crt"]); served.Equal(onDisk) {
		t.Error("the certificate on disk is served, want one reissued in memory")
	}
	if diff := cmp.Diff(before, tree(t, k.Certs)); diff != "" {
		t.Errorf("the directory has changed:\n%s", diff)
	}
	p.logs(t, "WARN the RPC certificate is renewed in memory only")
}

// failing is a file system on which, from the moment that a file gets its final
// name, nothing can be moved or removed any more.
type failing struct {
	durable.OS
	at     string
	failed bool
}

var errPulled = errors.New("the plug is pulled")

func (f *failing) broken(name string) bool {
	f.failed = f.failed || filepath.Base(name) == f.at
	return f.failed
}

func (f *failing) Rename(from, to string) error {
	if f.broken(to) {
		return errPulled
	}
	return f.OS.Rename(from, to)
}

func (f *failing) RenameNew(from, to string) error {
	if f.broken(to) {
		return errPulled
	}
	return f.OS.RenameNew(from, to)
}

func (f *failing) Remove(name string) error {
	if f.failed {
		return errPulled
	}
	return f.OS.Remove(name)
}

// TestInterruptedBootstrap starts on what a bootstrap leaves that was cut off
// while its files got their names: it is completed, with the same keys.
func TestInterruptedBootstrap(t *testing.T) {
	for at := range keyDirModes {
		t.Run("at "+at, func(t *testing.T) {
			t.Parallel()
			k := newKMS(t, "", "")
			store, err := keystore.Open(t.Context(), keystore.Config{Dir: k.Certs, FS: &failing{at: at}})
			if err != nil {
				t.Fatal(err)
			}
			roots, err := keys.NewRoots()
			if err != nil {
				t.Fatal(err)
			}
			info := &keystore.Info{CAPublic: roots.CAPublic(), K256Public: roots.K256Public()}
			bundle, err := keystore.NewBundle(roots, exampleDomain, info, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if err := store.Commit(t.Context(), bundle); !errors.Is(err, errPulled) {
				t.Fatalf("Commit = %v, want %v", err, errPulled)
			}
			if len(tree(t, k.Certs)) == len(keyDirModes)+1 {
				t.Fatal("the bootstrap was not interrupted")
			}
			if at > "rpc" { // half of the cases each
				code, _, stderr := run(t, "dstack-onboard", "--config", k.Config)
				if code != 0 || !strings.Contains(stderr, "INFO Bootstrap already completed") {
					t.Errorf("dstack-onboard: exit status %d, want 0\n%s", code, stderr)
				}
				checkKeyDir(t, k.Certs)
			}
			_, client := k.serve(t, exampleDomain)
			checkKeyDir(t, k.Certs)
			if got, want := metaOf(t, client, k).BootstrapInfo, hex.EncodeToString(roots.CAPublic()); got == nil || got.CAPubkey != want {
				t.Errorf("bootstrap_info = %v, want the keys that were interrupted, %s", got, want)
			}
		})
	}
}

// TestRemainsOfAnInterruptedBootstrap starts on a stage that was never
// committed: it is as if nothing had been.
func TestRemainsOfAnInterruptedBootstrap(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	stage := filepath.Join(k.Certs, ".stage")
	if err := os.MkdirAll(stage, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(stage, "root-ca.key"), []byte("half a k"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := k.onboarding(t, "dstack-kms")
	p.logs(t, "INFO Bootstrap required - keys not found")
	if left := tree(t, k.Certs); len(left) != 1 {
		t.Errorf("the directory holds %v, want nothing", left)
	}
	checkBootstrapReply(t, k, post(t, k.URL("http")+bootstrapPath, exampleRequest).body)
	checkKeyDir(t, k.Certs)
}
