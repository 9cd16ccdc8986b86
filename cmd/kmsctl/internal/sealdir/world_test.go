package sealdir_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"go.uber.org/zap/zaptest"

	"teekms/cmd/kmsctl/internal/sealdir"
	"teekms/internal/attest/guestagent"
	"teekms/internal/attest/guestagent/guestagenttest"
	"teekms/internal/attest/simtd"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
	"teekms/internal/keys/seal"
	"teekms/internal/keys/seal/tpm"
	"teekms/internal/keys/seal/tpm/swtpmtest"
)

// world is a plain key directory, and seals to be configured for it.
type world struct {
	dir   string
	roots *keys.Roots
	// holder is the holder of the escrow.
	holder *age.X25519Identity
	// plain are the private files as they were at first.
	plain map[string][]byte
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{dir: t.TempDir(), plain: map[string][]byte{}}
	var err error
	if w.roots, err = keys.NewRoots(); err != nil {
		t.Fatal(err)
	}
	if w.holder, err = age.GenerateX25519Identity(); err != nil {
		t.Fatal(err)
	}
	bundle, err := keystore.NewBundle(w.roots, "kms.example.com", nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	store, err := keystore.Open(t.Context(), keystore.Config{Dir: w.dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Commit(t.Context(), bundle); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"root-ca.key", "root-k256.key", "rpc.key", "tmp-ca.key"} {
		w.plain[name] = w.file(t, name)
	}
	return w
}

func (w *world) file(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// directory is the directory with what is configured, and identities of a
// holder.
func (w *world) directory(t *testing.T, configured []seal.Seal, ids ...age.Identity) *sealdir.Directory {
	t.Helper()
	return sealdir.New(sealdir.Config{
		Dir: w.dir, Seals: configured, Identities: ids, Now: time.Now, Log: zaptest.NewLogger(t), Progress: func(string) {},
	})
}

func passphrase(text string) seal.Seal {
	return seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{
		Read:       func(context.Context) (keys.Secret, error) { return keys.NewSecret([]byte(text)), nil },
		WorkFactor: 10,
	}))
}

func (w *world) escrow(t *testing.T, others ...*age.X25519Identity) seal.Seal {
	t.Helper()
	recipients := []string{w.holder.Recipient().String()}
	for _, id := range others {
		recipients = append(recipients, id.Recipient().String())
	}
	s, err := seal.NewEscrow(recipients)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// platform is a software TPM.
func platform(t *testing.T) (*swtpmtest.TPM, seal.Seal) {
	t.Helper()
	machine := swtpmtest.Start(t)
	source, err := tpm.New(tpm.Config{Device: machine.Socket(), PCRs: []int{7, 11}})
	if err != nil {
		t.Fatal(err)
	}
	return machine, seal.New(seal.KindTPM, source)
}

// agent is a guest agent, which speaks over a socket.
func agent(t *testing.T) seal.Seal {
	t.Helper()
	td, err := simtd.Open(simtd.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	a, err := guestagent.New(guestagent.Config{Address: "unix:" + guestagenttest.Listen(t, guestagenttest.Handler(td, guestagenttest.Current))})
	if err != nil {
		t.Fatal(err)
	}
	return seal.New(seal.KindGuestAgent, seal.NewGuestAgent(a, "teekms/key-directory"))
}

// add seals the directory.
func (w *world) add(t *testing.T, configured ...seal.Seal) *sealdir.Result {
	t.Helper()
	r, err := w.directory(t, configured).Add(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// wantOpen sees that one seal opens the directory, and that it has its keys.
func (w *world) wantOpen(t *testing.T, s seal.Seal, ids ...age.Identity) {
	t.Helper()
	set, err := seal.NewSet(seal.Config{Seals: []seal.Seal{s}, Identities: ids})
	if err != nil {
		t.Fatal(err)
	}
	store, err := keystore.Open(t.Context(), keystore.Config{Dir: w.dir, Sealer: set})
	if err != nil {
		t.Fatalf("opening with %s = %v, want the keys", s.Kind(), err)
	}
	if !bytes.Equal(store.Roots().CAPublic(), w.roots.CAPublic()) || !bytes.Equal(store.Roots().K256Public(), w.roots.K256Public()) {
		t.Errorf("opening with %s gives other root keys", s.Kind())
	}
}

// wantClosed sees that a seal does not open the directory, and why.
func (w *world) wantClosed(t *testing.T, s seal.Seal, want string) {
	t.Helper()
	set, err := seal.NewSet(seal.Config{Seals: []seal.Seal{s}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = keystore.Open(t.Context(), keystore.Config{Dir: w.dir, Sealer: set})
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("opening with %s = %v, want an error with %q", s.Kind(), err, want)
	}
}

// wantNothingPlain looks for the plain keys in all files of the directory.
func (w *world) wantNothingPlain(t *testing.T) {
	t.Helper()
	if found := plainIn(t, w.dir, w.plain); len(found) > 0 {
		t.Errorf("plain keys are on the disk: %s", found)
	}
}

// plainIn looks for secrets in every file below a directory, and tells where they
// are. It looks for what of a file is secret: of PEM the numbers, not the frame.
func plainIn(t *testing.T, dir string, plain map[string][]byte) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for name, secret := range plain {
			if bytes.Contains(data, core(secret)) {
				found = append(found, path+" has "+name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// core is a line of PEM that holds the private number, or the raw key.
func core(secret []byte) []byte {
	if block, _ := pem.Decode(secret); block != nil {
		return bytes.Split(secret, []byte("\n"))[1]
	}
	return secret
}

// files are the private files as they are.
func (w *world) files(t *testing.T) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for name := range w.plain {
		out[name] = w.file(t, name)
	}
	return out
}
