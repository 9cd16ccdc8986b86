package sealing_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age/plugin"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"teekms/cmd/internal/sealing"
	"teekms/internal/config"
	"teekms/internal/keys"
	"teekms/internal/keys/seal"
	"teekms/internal/keys/seal/tpm/swtpmtest"
)

func core(t *testing.T, doc string) config.Core {
	t.Helper()
	c, err := config.Parse("kms.toml", []byte("[core.seal.passphrase]\nwork_factor = 10\n"+doc), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c.Core
}

func write(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"

func TestSealsAreTriedInOrder(t *testing.T) {
	c := core(t, "prompt = true\n[core.seal.escrow]\nrecipients = ['"+recipient+"']\n[core.seal.guest_agent]\n[core.seal.tpm]\n")
	seals, err := sealing.Seals(c, sealing.From{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("[tpm guest-agent passphrase escrow]", fmt.Sprint(seals)); diff != "" {
		t.Errorf("Seals() differ (-want +got):\n%s", diff)
	}
	if set, err := sealing.NewSet(config.Default().Core, nil, nil); set != nil || err != nil {
		t.Errorf("NewSet() without core.seal = %v, %v, want nothing", set, err)
	}
}

// sealed seals a file with the passphrase of a configuration.
func sealed(t *testing.T, c config.Core, ask sealing.Asker) (map[string][]byte, error) {
	t.Helper()
	set, err := sealing.NewSet(c, ask, nil)
	if err != nil {
		t.Fatal(err)
	}
	return set.Seal(t.Context(), map[string]keys.Secret{"rpc.key": keys.NewSecret([]byte("key"))})
}

// opens says why files do not open, nil if they do.
func opens(t *testing.T, c config.Core, files map[string][]byte) error {
	t.Helper()
	set, err := sealing.NewSet(c, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = set.Open(t.Context(), files)
	return err
}

func TestPassphraseIsTheSameFromEverySource(t *testing.T) {
	files, err := sealed(t, core(t, "prompt = true"), func(context.Context, string) (keys.Secret, error) {
		return keys.NewSecret([]byte("correct horse")), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link") // as Kubernetes mounts secrets
	if err := os.Symlink(write(t, "correct horse\n"), link); err != nil {
		t.Fatal(err)
	}
	if err := opens(t, core(t, "file = '"+link+"'"), files); err != nil {
		t.Errorf("link to a file: %v", err)
	}
	for _, content := range []string{"correct horse", "correct horse\n", "correct horse\r\n"} {
		path := write(t, content)
		if err := opens(t, core(t, "file = '"+path+"'"), files); err != nil {
			t.Errorf("file of %q: %v", content, err)
		}
		t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(path))
		if err := opens(t, core(t, "credential = 'secret'"), files); err != nil {
			t.Errorf("credential of %q: %v", content, err)
		}
	}
	// What ends no line is part of it.
	for _, content := range []string{"correct horse \n", "correct horse\r", "correct horse\r\r\n"} {
		if err := opens(t, core(t, "file = '"+write(t, content)+"'"), files); err == nil || !strings.Contains(err.Error(), "wrong passphrase") {
			t.Errorf("file of %q = %v, want it refused as another passphrase", content, err)
		}
	}
}

func TestPromptOfAFirstSealingIsAskedTwice(t *testing.T) {
	var asked []string
	answer := func(differ string) sealing.Asker {
		asked = nil
		return func(_ context.Context, question string) (keys.Secret, error) {
			asked = append(asked, question)
			if len(asked) == 2 {
				return keys.NewSecret([]byte("horse" + differ)), nil
			}
			return keys.NewSecret([]byte("horse")), nil
		}
	}
	want := []string{"Passphrase of the key directory: ", "The same passphrase again: "}
	if _, err := sealed(t, core(t, "prompt = true"), answer("")); err != nil || !cmp.Equal(asked, want) {
		t.Errorf("sealing = %v after %q, want both questions", err, asked)
	}
	if _, err := sealed(t, core(t, "prompt = true"), answer("s")); err == nil || !strings.Contains(err.Error(), "the two passphrases differ") {
		t.Errorf("sealing = %v, want that they differ", err)
	}
}

// fifo makes one that nobody writes to: opening it would wait.
func fifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPassphraseRefusals(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	tests := []struct{ name, doc, want string }{
		{"missing file", "file = '/nonexistent'", "core.seal.passphrase.file: open /nonexistent: no such file or directory"},
		{"empty file", "file = '" + write(t, "\n") + "'", " is empty"},
		{"large file", "file = '" + write(t, strings.Repeat("a", 4097)) + "'", " is larger than 4096 bytes"},
		{"two lines", "file = '" + write(t, "a\nb\n") + "'", " has more than one line"},
		{"zeroed file", "file = '" + write(t, strings.Repeat("\x00", 16)+"\n") + "'", " has NUL bytes in it"},
		{"NUL byte at the end", "file = '" + write(t, "horse\x00") + "'", " has NUL bytes in it"},
		{"directory", "file = '" + t.TempDir() + "'", " is no regular file"},
		{"device", "file = '" + os.DevNull + "'", "core.seal.passphrase.file: /dev/null is no regular file"},
		{"FIFO", "file = '" + fifo(t) + "'", " is no regular file"},
		{"no credentials", "credential = 'kms.seal'", "$CREDENTIALS_DIRECTORY is not set: start this as a unit of systemd with LoadCredentialEncrypted=kms.seal:PATH, or by hand with systemd-run -p LoadCredentialEncrypted=kms.seal:PATH --pipe --wait"},
		{"nobody to ask", "prompt = true", "there is nobody to ask"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := sealed(t, core(t, tt.doc), nil); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("sealing = %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	for doc, want := range map[string]string{
		"prompt = true": "<nil>", "credential = 'kms.seal'": "<nil>", "file = '" + write(t, "x") + "'": "<nil>",
		"file = '/nonexistent'": "core.seal.passphrase.file: open /nonexistent: no such file or directory",
		"prompt = true\n[core.seal.escrow]\nrecipients = ['age1x']": "core.seal.escrow.recipients: escrow recipient 1: is malformed: a character is wrong or missing",
	} {
		if got := fmt.Sprint(sealing.Check(core(t, doc))); got != want {
			t.Errorf("Check(%q) = %s, want %s", doc, got, want)
		}
	}
}

func TestDifferencesFromTheFiles(t *testing.T) {
	file := "file = '" + write(t, "x") + "'\n"
	files, err := sealed(t, core(t, file), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := sealing.Differences(core(t, file), files); len(got) > 0 {
		t.Errorf("Differences() of what was configured = %v, want none", got)
	}
	if got, want := sealing.Described(files), "passphrase (scrypt, work factor 10)"; got != want {
		t.Errorf("Described() = %q, want %q", got, want)
	}
	other, err := config.Parse("kms.toml", []byte("core.seal = { tpm.pcrs = [11, 7], escrow.recipients = ['"+recipient+"'] }"), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []sealing.Difference{
		{Kind: seal.KindTPM, Configured: "7+11"},
		{Kind: seal.KindPassphrase, Files: "scrypt, work factor 10"},
		{Kind: seal.KindEscrow, Configured: recipient},
	}
	if diff := cmp.Diff(want, sealing.Differences(other.Core, files)); diff != "" {
		t.Errorf("Differences() differ (-want +got):\n%s", diff)
	}
}

func TestWarnings(t *testing.T) {
	observed, logs := observer.New(zapcore.WarnLevel)
	log := zap.New(observed)
	sealing.Warn(log, config.Seal{TPM: config.SealTPM{Enabled: true}})
	sealing.Warn(log, config.Seal{Passphrase: config.SealPassphrase{Enabled: true, WorkFactor: 14}})
	sealing.Warn(log, config.Seal{Passphrase: config.SealPassphrase{Enabled: true, WorkFactor: 15}})
	all := logs.All()
	if len(all) != 2 || !strings.HasPrefix(all[0].Message, "NOTHING BUT THIS PLATFORM") || !strings.Contains(all[1].Message, "makes guesses of the passphrase cheap") {
		t.Errorf("warnings = %v, want one of the platform and one of the work factor", all)
	}
}

func TestRehearsalTellsTheReason(t *testing.T) {
	failed := errors.New("no hands")
	set, err := sealing.NewSet(core(t, "prompt = true"), func(context.Context, string) (keys.Secret, error) { return keys.Secret{}, failed }, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := sealing.Rehearse(t.Context(), set); !errors.Is(err, failed) || err.Error() != "trying the seals of core.seal: sealing to passphrase: no hands" {
		t.Errorf("Rehearse() = %v, want %v in it", err, failed)
	}
	set, err = sealing.NewSet(core(t, "file = '"+write(t, "x")+"'\n[core.seal.escrow]\nrecipients = ['"+plugin.EncodeRecipient("teekmsnone", []byte("x"))+"']"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	const want = "trying the seals of core.seal: sealing root-ca.key: encrypting to escrow recipient 1: running age-plugin-teekmsnone: "
	t.Setenv("PATH", t.TempDir())
	if err := sealing.Rehearse(t.Context(), set); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("Rehearse() = %v, want %q before the reason", err, want)
	}
}

func TestWeakWorkFactors(t *testing.T) {
	cheap := core(t, "file = '"+write(t, "x")+"'")
	files, err := sealed(t, cheap, nil)
	if err != nil {
		t.Fatal(err)
	}
	dear := cheap
	dear.Seal.Passphrase.WorkFactor = 18
	for _, tt := range []struct {
		name  string
		core  config.Core
		files map[string][]byte
		want  []string
	}{
		{"both", cheap, files, []string{"the files are sealed with the work factor 10", "core.seal.passphrase.work_factor is 10"}},
		{"the files", dear, files, []string{"the files are sealed with the work factor 10"}},
		{"the configuration", cheap, map[string][]byte{"rpc.key": []byte("plain")}, []string{"core.seal.passphrase.work_factor is 10"}},
		{"nothing", dear, nil, nil},
	} {
		got := sealing.Weak(tt.core, tt.files)
		if len(got) != len(tt.want) {
			t.Errorf("Weak(%s) = %q, want %q", tt.name, got, tt.want)
			continue
		}
		for i, want := range tt.want {
			if !strings.HasPrefix(got[i], want) {
				t.Errorf("Weak(%s) = %q, want %q", tt.name, got[i], want)
			}
		}
	}
}

func TestWeaknesses(t *testing.T) {
	open := write(t, "x")
	if err := os.Chmod(open, 0o604); err != nil {
		t.Fatal(err)
	}
	device := filepath.Join(t.TempDir(), "device")
	if err := os.Symlink("/dev/zero", device); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		edit func(*config.Seal)
		want string
	}{
		{"a TPM alone", func(s *config.Seal) { s.TPM.Enabled = true }, "NOTHING BUT THIS PLATFORM OPENS THE KEY DIRECTORY"},
		{"a register that programs set back", func(s *config.Seal) {
			s.TPM.Enabled, s.TPM.PCRs, s.Passphrase.Enabled, s.Passphrase.WorkFactor = true, []int{7, 23}, true, 18
		}, "core.seal.tpm.pcrs has 16 or 23"},
		{"a file that everybody reads", func(s *config.Seal) {
			s.Passphrase.Enabled, s.Passphrase.File, s.Passphrase.WorkFactor = true, open, 18
		}, "core.seal.passphrase.file is open to every user of this machine (mode 0604)"},
		{"a link to a device", func(s *config.Seal) {
			s.Passphrase.Enabled, s.Passphrase.File, s.Passphrase.WorkFactor = true, device, 18
		}, ""},
		{"nothing", func(s *config.Seal) {
			s.Passphrase.Enabled, s.Passphrase.File, s.Passphrase.WorkFactor = true, write(t, "x"), 18
		}, ""},
	} {
		var s config.Seal
		tt.edit(&s)
		got := strings.Join(sealing.Weaknesses(s), "\n")
		if !strings.HasPrefix(got, tt.want) || tt.want == "" && got != "" {
			t.Errorf("Weaknesses(%s) = %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestThePlatformAlone(t *testing.T) {
	td := swtpmtest.Start(t)
	s := config.Seal{TPM: config.SealTPM{Enabled: true, Device: td.Socket(), PCRs: []int{7, 11}}}
	td.Measure(7, "secure boot")
	if got := strings.Join(sealing.Unmeasured(t.Context(), s), "\n"); !strings.HasPrefix(got, "nothing was measured into the PCRs 11:") {
		t.Errorf("Unmeasured() = %q, want PCR 11 in it", got)
	}
	td.Measure(11, "a kernel")
	if got := sealing.Unmeasured(t.Context(), s); got != nil {
		t.Errorf("Unmeasured() = %q, want nothing", got)
	}
	// Who shows that files open on this platform alone says so.
	c := config.Core{Seal: s}
	files, err := sealed(t, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := sealing.Weak(c, files); len(got) > 0 {
		t.Errorf("Weak() = %q of files that are sealed to the platform alone, want nothing", got)
	}
	if got := sealing.Weak(c, nil); len(got) != 1 || !strings.HasPrefix(got[0], "NOTHING BUT THIS PLATFORM") {
		t.Errorf("Weak() = %q of a configuration, want that it is about the platform alone", got)
	}
}

// TestOldPassphraseMayComeThroughAPipe is about what shells write <(command).
func TestOldPassphraseMayComeThroughAPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("correct horse\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	got, err := sealing.ReadOld(t.Context(), "--old-passphrase-file", fmt.Sprintf("/dev/fd/%d", r.Fd()), nil)
	if err != nil || string(got.Bytes()) != "correct horse" {
		t.Errorf("ReadOld(pipe) = %d bytes, %v, want the passphrase", got.Len(), err)
	}
}

func TestOldPassphraseIsNoDevice(t *testing.T) {
	for _, path := range []string{"/dev/zero", os.DevNull} {
		_, err := sealing.ReadOld(t.Context(), "--old-passphrase-file", path, nil)
		if want := "--old-passphrase-file: " + path + " is a device"; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ReadOld(%s) = %v, want %q in it", path, err, want)
		}
	}
}

func TestOldPassphraseIsWaitedForNoLongerThanTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, w := io.Pipe() // standard input of which nothing comes
	defer w.Close()
	for _, path := range []string{fifo(t), "-"} {
		if _, err := sealing.ReadOld(ctx, "--old-passphrase-file", path, r); !errors.Is(err, context.Canceled) || !strings.HasPrefix(err.Error(), "--old-passphrase-file: ") {
			t.Errorf("ReadOld(%s) = %v, want that of the context, and the flag", path, err)
		}
	}
}
