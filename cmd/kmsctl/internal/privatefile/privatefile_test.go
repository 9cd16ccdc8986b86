package privatefile_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"teekms/cmd/kmsctl/internal/privatefile"
	"teekms/internal/keys"
	"teekms/internal/keys/seal"
	"teekms/internal/keys/seal/tpm"
	"teekms/internal/keys/seal/tpm/swtpmtest"
)

// childEnv names the directory that the test binary looks at, as a user who is not
// root, instead of testing.
const childEnv = "PRIVATEFILE_TEST_DIR"

const nobody = 65534

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if os.Geteuid() == 0 {
			if err := syscall.Setuid(nobody); err != nil {
				panic(err)
			}
		}
		fmt.Println(privatefile.Look(dir))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func plain() map[string]keys.Secret {
	out := map[string]keys.Secret{}
	for _, name := range privatefile.Names() {
		out[name] = keys.NewSecret([]byte("-----BEGIN PRIVATE KEY-----\n" + strings.Repeat("secret\n", 30)))
	}
	out["root-k256.key"] = keys.NewSecret(bytes.Repeat([]byte{7}, 32))
	return out
}

// sealed seals to a TPM, a passphrase and an escrow.
func sealed(t *testing.T) (files map[string][]byte, recipient string) {
	t.Helper()
	chip, err := tpm.New(tpm.Config{Device: swtpmtest.Start(t).Socket(), PCRs: []int{14, 7}})
	if err != nil {
		t.Fatal(err)
	}
	holder, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	recipient = holder.Recipient().String()
	escrow, err := seal.NewEscrow([]string{recipient})
	if err != nil {
		t.Fatal(err)
	}
	set, err := seal.NewSet(seal.Config{
		Seals: []seal.Seal{seal.New(seal.KindTPM, chip), seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{
			Read:       func(context.Context) (keys.Secret, error) { return keys.NewSecret([]byte("open sesame")), nil },
			WorkFactor: 10,
		})), escrow},
		Now: func() time.Time { return time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC) },
	})
	if err != nil {
		t.Fatal(err)
	}
	files, err = set.Seal(t.Context(), plain())
	if err != nil {
		t.Fatal(err)
	}
	return files, recipient
}

// directory writes files, which every user may find.
func directory(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "privatefile") //nolint:usetesting // that of testing is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestSealedFilesSayToWhat(t *testing.T) {
	files, recipient := sealed(t)
	dir := directory(t, files)
	r := privatefile.Look(dir)
	want := "sealed to tpm (PCRs 7, 14 of SHA-256), passphrase (scrypt, work factor 10), escrow (1 recipient) at 2026-01-31T12:00:00Z, as they say themselves"
	if got := r.String(); got != want {
		t.Errorf("Look() = %s, want %s", got, want)
	}
	if got := r.Seals[2].Recipients; len(got) != 1 || got[0] != recipient {
		t.Errorf("recipients = %q, want %s", got, recipient)
	}
	// What follows the header is not read.
	for name, data := range files {
		end := bytes.Index(data, []byte("\n---")) + len("\n--- ") + 43 + 1
		if err := os.Truncate(filepath.Join(dir, name), int64(end)); err != nil {
			t.Fatal(err)
		}
	}
	if got := privatefile.Look(dir).String(); got != want {
		t.Errorf("Look() of headers alone = %s, want %s", got, want)
	}
	// Nothing of it is a failure for a user who may not read them.
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	if os.Geteuid() != 0 {
		for name := range files {
			if err := os.Chmod(filepath.Join(dir, name), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	out, err := cmd.Output() // standard error may have complaints of the coverage tool
	if got := strings.TrimSpace(string(out)); err != nil || got != "not readable for this user" {
		t.Errorf("Look() as another user = %s, %v, want that they are not readable", got, err)
	}
}

func TestStates(t *testing.T) {
	files, _ := sealed(t)
	others, _ := sealed(t)
	raw := map[string][]byte{}
	for name, secret := range plain() {
		raw[name] = secret.Bytes()
	}
	with := func(files map[string][]byte, name string, data []byte) map[string][]byte {
		out := map[string][]byte{}
		for n, d := range files {
			out[n] = d
		}
		out[name] = data
		if data == nil {
			delete(out, name)
		}
		return out
	}
	tests := []struct {
		name  string
		files map[string][]byte
		state privatefile.State
		want  string
	}{
		{"plain", raw, privatefile.Plain, "plain, not sealed"},
		{"none", nil, privatefile.Missing, "none in this directory"},
		{"one is missing", with(files, "rpc.key", nil), privatefile.Mixed, "root-ca.key sealed, root-k256.key sealed, rpc.key missing, tmp-ca.key sealed"},
		{"one is plain", with(files, "root-k256.key", raw["root-k256.key"]), privatefile.Mixed, "root-k256.key plain"},
		{"one is empty", with(files, "rpc.key", []byte{}), privatefile.Mixed, "rpc.key damaged (it is empty)"},
		{"two were swapped", with(files, "rpc.key", files["tmp-ca.key"]), privatefile.Mixed, "rpc.key damaged (cannot open rpc.key: it holds tmp-ca.key"},
		{"one is of another sealing", with(files, "tmp-ca.key", others["tmp-ca.key"]), privatefile.Mixed, "tmp-ca.key damaged (sealed otherwise than the files before it)"},
		{"one is cut off", with(files, "rpc.key", files["rpc.key"][:200]), privatefile.Mixed, "rpc.key damaged (cannot open rpc.key: its header is damaged or cut off)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := privatefile.Look(directory(t, tt.files))
			if r.State != tt.state || !strings.Contains(r.String(), tt.want) {
				t.Errorf("Look() = %s, %s, want %s and %q", r.State, r, tt.state, tt.want)
			}
			if r.Made != nil || len(r.Seals) > 0 {
				t.Errorf("Look() = %+v, want no seals of files that are not sealed together", r)
			}
			var names []string
			for _, f := range r.Files {
				names = append(names, f.Name)
			}
			if diff := cmp.Diff(privatefile.Names(), names); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatIsNoFileHangsNothing(t *testing.T) {
	dir := directory(t, nil)
	if err := syscall.Mkfifo(filepath.Join(dir, "rpc.key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "tmp-ca.key"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := privatefile.Look(dir)
	for _, f := range r.Files[2:] {
		if f.State != privatefile.NotReadable || !strings.Contains(f.Error, "is not a regular file") {
			t.Errorf("Look() says that %s is %s (%s), want that it is not a file", f.Name, f.State, f.Error)
		}
	}
}
