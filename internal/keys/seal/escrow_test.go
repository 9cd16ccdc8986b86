package seal_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/plugin"
	"golang.org/x/crypto/ssh"

	"teekms/internal/keys"
	"teekms/internal/keys/seal"
)

// sshKey returns a new key as ssh-keygen writes it: the line of the public key
// and the text of the private one.
func sshKey(t *testing.T, private any) (line string, text []byte) {
	t.Helper()
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "holder@vault")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))), pem.EncodeToMemory(block)
}

func ed25519Key(t *testing.T) (string, []byte) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return sshKey(t, private)
}

func rsaKey(t *testing.T, bits int) (string, []byte) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return sshKey(t, private)
}

// byCommand decrypts with the age command, which knows nothing of us.
func byCommand(t *testing.T, data, identity []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	file, key := filepath.Join(dir, "sealed"), filepath.Join(dir, "identity")
	if err := errors.Join(os.WriteFile(file, data, 0o600), os.WriteFile(key, identity, 0o600)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "age", "--decrypt", "--identity", key, file)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("age --decrypt = %v, want the content (scripts/deps installs age): %s", err, &stderr)
	}
	return out
}

// TestTheAgeCommandOpensAnEscrowCopy seals to all that opens here, and to
// holders of several kinds of key at once.
func TestTheAgeCommandOpensAnEscrowCopy(t *testing.T) {
	x25519, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	edLine, edKey := ed25519Key(t)
	rsaLine, rsaText := rsaKey(t, 2048)
	pluginTo, pluginKey := installPlugin(t, "tkvault")
	set := newSet(t, tpm(), guestAgent("app"), passphrase("correct horse"),
		escrow(t, x25519.Recipient().String(), edLine+" holder@vault", rsaLine, pluginTo))
	files := sealed(t, set)
	tests := []struct {
		name     string
		identity []byte
	}{
		{"X25519", []byte(x25519.String() + "\n")},
		{"ssh-ed25519", edKey},
		{"ssh-rsa", rsaText},
		{"plugin", []byte(pluginKey + "\n")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for name, content := range plain() {
				if got := byCommand(t, files[name], tt.identity); !bytes.Equal(got, content.Bytes()) {
					t.Errorf("age --decrypt %s = %q, want %q", name, got, content.Bytes())
				}
			}
		})
	}
}

// TestAHolderOfTheEscrowOpensWithItsIdentity is the way in on the day the
// platform changed: nothing configured opens.
func TestAHolderOfTheEscrowOpensWithItsIdentity(t *testing.T) {
	x25519, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	edLine, edKey := ed25519Key(t)
	pluginTo, pluginKey := installPlugin(t, "tkvault")
	sshID, err := agessh.ParseIdentity(edKey)
	if err != nil {
		t.Fatal(err)
	}
	pluginID, err := plugin.NewIdentity(pluginKey, &plugin.ClientUI{})
	if err != nil {
		t.Fatal(err)
	}
	d := &device{secret: "this machine", state: "booted"}
	vault := escrow(t, x25519.Recipient().String(), edLine, pluginTo)
	files := sealed(t, newSet(t, seal.New(seal.KindTPM, d), vault))
	d.state = "another kernel"
	asked := &said{text: "never asked"}
	words := seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{Read: asked.read, WorkFactor: 10}))
	for _, id := range []age.Identity{x25519, sshID, pluginID} {
		t.Run(fmt.Sprintf("%T", id), func(t *testing.T) {
			got, err := withIdentities(t, []age.Identity{other, id}, seal.New(seal.KindTPM, d), words).Open(t.Context(), files)
			wantPlain(t, got, err)
		})
	}
	wantRefusal(t, withIdentities(t, []age.Identity{other}, seal.New(seal.KindTPM, d), words), files,
		"cannot open root-ca.key: escrow: none of the identities given is a recipient of the file; "+
			"tpm: the policy does not hold; passphrase: not among the file's seals")
	wantRefusal(t, newSet(t, seal.New(seal.KindTPM, d), vault), files,
		"cannot open root-ca.key: tpm: the policy does not hold; escrow: opens only with the key of its holder")
	wantRefusal(t, withIdentities(t, []age.Identity{broken{}}, words), files,
		"cannot open root-ca.key: escrow: no  [31mtoken; passphrase: not among the file's seals; "+
			"tpm: sealed to tpm, which core.seal does not configure")
	if got := asked.asked.Load(); got != 0 {
		t.Errorf("the passphrase was asked for %d times, want never", got)
	}
	t.Setenv("AGEDEBUG", "plugin")
	wantRefusal(t, withIdentities(t, []age.Identity{pluginID}, words), files,
		"cannot open root-ca.key: escrow: AGEDEBUG=plugin is set, with which age prints file keys: unset it; "+
			"passphrase: not among the file's seals; tpm: sealed to tpm, which core.seal does not configure")
}

// broken is an identity that cannot be used.
type broken struct{}

func (broken) Unwrap([]*age.Stanza) ([]byte, error) { return nil, errors.New("no \x1b[31mtoken") }

func TestPostQuantumRecipientsStandBesideOurSeals(t *testing.T) {
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	second, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	vault := escrow(t, id.Recipient().String(), second.Recipient().String())
	set := newSet(t, tpm(), guestAgent("app"), passphrase("correct horse"), vault)
	files := sealed(t, set)
	got, err := set.Open(t.Context(), files)
	wantPlain(t, got, err)
	for _, id := range []age.Identity{id, second} {
		got, err := withIdentities(t, []age.Identity{id}, passphrase("never asked")).Open(t.Context(), files)
		wantPlain(t, got, err)
	}
	for _, one := range []seal.Seal{guestAgent("app"), passphrase("correct horse")} {
		got, err := newSet(t, one).Open(t.Context(), files)
		wantPlain(t, got, err)
	}
}

func TestPostQuantumAndClassicRecipientsAreNotMixed(t *testing.T) {
	pq, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	classic, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	p, c := pq.Recipient().String(), classic.Recipient().String()
	ed, _ := ed25519Key(t)
	for _, to := range [][]string{{c, p}, {p, c}, {ed, p}, {p, ed}} {
		_, err := seal.NewEscrow(to)
		want := "escrow recipient 2: post-quantum and classic recipients cannot be mixed: the classic ones would open the file to a quantum computer"
		if err == nil || err.Error() != want {
			t.Errorf("NewEscrow(post-quantum and classic) = %v, want %q", err, want)
		}
	}
	// Whether a plugin's key is classic is known when it runs.
	classicPlugin, _ := installPlugin(t, "tkvault")
	pqPlugin, _ := installPlugin(t, "tklabel")
	for _, to := range [][]string{{p, classicPlugin}, {c, pqPlugin}, {pqPlugin, classicPlugin}} {
		_, err := newSet(t, tpm(), escrow(t, to...)).Seal(t.Context(), plain())
		want := "sealing root-ca.key: encrypting to escrow recipient 2: post-quantum and classic recipients cannot be mixed: " +
			"the classic ones would open the file to a quantum computer"
		if err == nil || err.Error() != want {
			t.Errorf("Seal(post-quantum and classic) = %v, want %q", err, want)
		}
	}
	odd, _ := installPlugin(t, "tkodd")
	_, err = newSet(t, tpm(), escrow(t, c, odd)).Seal(t.Context(), plain())
	if want := "sealing root-ca.key: encrypting to escrow recipient 2: cannot be mixed with the recipients before it"; err == nil || err.Error() != want {
		t.Errorf("Seal(a plugin with a label of its own) = %v, want %q", err, want)
	}
	set := newSet(t, tpm(), escrow(t, p, pqPlugin))
	got, err := set.Open(t.Context(), sealed(t, set))
	wantPlain(t, got, err)
}

func TestEscrowRecipientsAreKeptAsText(t *testing.T) {
	id, _ := holder(t)
	line, _ := ed25519Key(t)
	pluginTo, _ := installPlugin(t, "tkvault")
	vault := escrow(t, " "+id.Recipient().String()+"\n", line+" holder@vault", pluginTo)
	want := []string{id.Recipient().String(), line, pluginTo}
	if got := vault.Recipients(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("Recipients() = %q, want %q", got, want)
	}
	if vault.Kind() != seal.KindEscrow || vault.Opens() {
		t.Errorf("escrow is %v and opens: %v, want escrow and false", vault.Kind(), vault.Opens())
	}
	files := sealed(t, newSet(t, tpm(), vault))
	h, err := seal.Inspect("rpc.key", files["rpc.key"])
	if err != nil {
		t.Fatalf("Inspect() = %v, want a header", err)
	}
	again := escrow(t, h.Recipients...)
	if got := again.Recipients(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("Recipients() by the file's header = %q, want %q", got, want)
	}
	if tpm().Recipients() != nil {
		t.Errorf("Recipients() of a TPM = %q, want none", tpm().Recipients())
	}
}

// TestRecipientErrorsNameThePositionAndNeverTheText pastes what does not belong
// there. Every case starts with a good recipient.
func TestRecipientErrorsNameThePositionAndNeverTheText(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	pq, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	good := id.Recipient().String()
	edLine, edText := ed25519Key(t)
	weak, _ := rsaKey(t, 1024)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecLine, _ := sshKey(t, ec)
	_, pluginKey := installPlugin(t, "tkvault")
	const secret = "is a secret key, not a recipient: remove it here and consider it known to others"
	const malformed = "is malformed: a character is wrong or missing"
	tests := []struct {
		name, text, want string
	}{
		{"secret key", id.String(), secret},
		{"secret key in small letters", strings.ToLower(id.String()), secret},
		{"post-quantum secret key", pq.String(), secret},
		{"identity of a plugin", pluginKey, secret},
		{"ssh private key", string(edText), secret},
		{"ssh private key on one line", strings.ReplaceAll(string(edText), "\n", " "), secret},
		{"body of an ssh private key", strings.Split(string(edText), "\n")[1], "is none: age1…, ssh-ed25519 … or ssh-rsa … is expected"},
		{"secret key after the prefix of a recipient", "age1" + id.String(), malformed},
		{"secret key without its first letter", id.String()[1:], "is none: age1…, ssh-ed25519 … or ssh-rsa … is expected"},
		{"secret key after ssh-ed25519", "ssh-ed25519 " + id.String(), "is no ssh public key"},
		{"empty", " ", "is empty"},
		{"a letter wrong", good[:20] + "b" + good[21:], malformed},
		{"a letter short", good[:len(good)-1], malformed},
		{"two lines", edLine + "\n" + edLine, "is too long, or not one line of printable ASCII"},
		{"long", "age1" + strings.Repeat("q", 9000), "is too long, or not one line of printable ASCII"},
		{"post-quantum, a letter short", pq.Recipient().String()[:100], malformed},
		{"ssh of another kind", ecLine, "is an ssh key of a kind that cannot be encrypted to: ssh-ed25519 and ssh-rsa can"},
		{"ssh of another kind, cut off", "ecdsa-sha2-nistp256 AAAA", "is no ssh public key"},
		{"ssh cut off", edLine[:40], "is no ssh public key"},
		{"weak ssh-rsa", weak, "cannot be encrypted to: RSA key size is too small"},
		{"plugin, a letter wrong", "age1tkvault1qqqqqqqq", malformed},
		{"point of low order", lowOrder(t), "this key cannot be encrypted to"},
		{"capitals", strings.ToUpper(id.Recipient().String()), "is in capitals: write it in lower case"},
		{"age's passphrase", "scrypt", "is none: age1…, ssh-ed25519 … or ssh-rsa … is expected"},
		{"the same again", good, "the same as recipient 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := seal.NewEscrow([]string{good, tt.text})
			if want := "escrow recipient 2: " + tt.want; err == nil || err.Error() != want {
				t.Fatalf("NewEscrow() = %v, want %q", err, want)
			}
			for i := 0; i+8 <= len(tt.text); i++ {
				if part := tt.text[i : i+8]; strings.Contains(err.Error(), part) && !strings.Contains("escrow recipient 2: "+tt.want, part) {
					t.Errorf("NewEscrow() = %q repeats %q of what was given", err, part)
				}
			}
			for _, part := range []string{tt.text, strings.TrimPrefix(id.String(), "AGE-SECRET-KEY-")} {
				if len(part) > 8 && strings.Contains(strings.ToUpper(err.Error()), strings.ToUpper(part)) {
					t.Errorf("NewEscrow() = %q repeats what was given", err)
				}
			}
		})
	}
	for _, many := range [][]string{nil, make([]string, 33)} {
		want := fmt.Sprintf("escrow has %d recipients, not 1 to 32", len(many))
		if _, err := seal.NewEscrow(many); err == nil || err.Error() != want {
			t.Errorf("NewEscrow(%d) = %v, want %q", len(many), err, want)
		}
	}
}

// TestEveryBadRecipientIsNamed has one of each among good ones: who corrects a list
// does it once.
func TestEveryBadRecipientIsNamed(t *testing.T) {
	one, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	two, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	pq, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	good := one.Recipient().String()
	_, err = seal.NewEscrow([]string{
		"", good, one.String(), good, lowOrder(t), pq.Recipient().String(), two.Recipient().String(), good[:30],
	})
	const want = "escrow recipient 1: is empty; " +
		"escrow recipient 3: is a secret key, not a recipient: remove it here and consider it known to others; " +
		"escrow recipient 4: the same as recipient 2; " +
		"escrow recipient 5: this key cannot be encrypted to; " +
		"escrow recipient 6: post-quantum and classic recipients cannot be mixed: the classic ones would open the file to a quantum computer; " +
		"escrow recipient 8: is malformed: a character is wrong or missing"
	if err == nil || err.Error() != want {
		t.Errorf("NewEscrow() = %v, want %q", err, want)
	}
	// So are those whose program does not do what it should.
	broken, _ := installPlugin(t, "tkerror")
	_, err = newSet(t, tpm(), escrow(t, plugin.EncodeRecipient("tknone", []byte("x")), good, broken)).Seal(t.Context(), plain())
	for _, want := range []string{"sealing root-ca.key: encrypting to escrow recipient 1: running age-plugin-tknone: ", "; encrypting to escrow recipient 3: running age-plugin-tkerror: "} {
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "recipient 2") {
			t.Errorf("Seal() = %v, want %q", err, want)
		}
	}
}

// lowOrder is a well-formed recipient that nobody can be.
func lowOrder(t *testing.T) string {
	t.Helper()
	pub, err := ecdh.X25519().NewPublicKey(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	text, err := plugin.EncodeX25519Recipient(pub)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestARecipientThatCannotBeEncryptedToSealsNothing(t *testing.T) {
	id, _ := holder(t)
	tests := []struct{ plugin, want string }{
		{"tkerror", "running age-plugin-tkerror: no  [31mtoken is plugged in"},
		{"tkask", "running age-plugin-tkask: was told \"\" (client failed to request value)"},
		{"tkours", "running age-plugin-tkours: it returned a stanza of ours"},
	}
	for _, tt := range tests {
		t.Run(tt.plugin, func(t *testing.T) {
			to, _ := installPlugin(t, tt.plugin)
			files, err := newSet(t, tpm(), escrow(t, id.Recipient().String(), to)).Seal(t.Context(), plain())
			if want := "sealing root-ca.key: encrypting to escrow recipient 2: " + tt.want; err == nil || err.Error() != want {
				t.Errorf("Seal() = %v, want %q", err, want)
			}
			if files != nil {
				t.Errorf("Seal() has %d files beside an error, want none", len(files))
			}
		})
	}
	t.Run("no such plugin", func(t *testing.T) {
		to := plugin.EncodeRecipient("tknone", []byte("x"))
		_, err := newSet(t, tpm(), escrow(t, to)).Seal(t.Context(), plain())
		want := `sealing root-ca.key: encrypting to escrow recipient 1: running age-plugin-tknone: exec: "age-plugin-tknone": executable file not found in $PATH`
		if err == nil || err.Error() != want {
			t.Errorf("Seal() = %v, want %q", err, want)
		}
	})
	t.Run("debugging", func(t *testing.T) {
		to, _ := installPlugin(t, "tkvault")
		t.Setenv("AGEDEBUG", "plugin")
		_, err := newSet(t, tpm(), escrow(t, to)).Seal(t.Context(), plain())
		want := "sealing root-ca.key: encrypting to escrow recipient 1: AGEDEBUG=plugin is set, with which age prints file keys: unset it"
		if err == nil || err.Error() != want {
			t.Errorf("Seal() = %v, want %q", err, want)
		}
	})
}

// TestAPluginThatHangsIsKilledWithTheContext has one that has started another
// program, which holds its output too. TestMain looks for what is left in here.
func TestAPluginThatHangsIsKilledWithTheContext(t *testing.T) {
	to, _ := installPlugin(t, "tkhang")
	pids := filepath.Join(t.TempDir(), "pids")
	t.Setenv("TK_PIDS", pids)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all []int
	go func() {
		defer cancel()
		all = waitForPIDs(t, pids)
	}()
	_, err := newSet(t, tpm(), escrow(t, to)).Seal(ctx, plain())
	if want := "sealing root-ca.key: encrypting to escrow recipient 1: running age-plugin-tkhang: context canceled"; !errors.Is(err, context.Canceled) || err.Error() != want {
		t.Fatalf("Seal(a plugin that hangs) = %v, want %q", err, want)
	}
	<-ctx.Done()
	if len(all) != 2 {
		t.Fatalf("the plugin has the processes %v, want two", all)
	}
	if runs(all[0]) {
		t.Error("the plugin runs on, want it killed")
	}
	for deadline := time.Now().Add(10 * time.Second); runs(all[1]); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("what the plugin has started runs on, want it killed")
		}
	}
}

// waitForPIDs returns what a plugin writes, its process and that of its child.
func waitForPIDs(t *testing.T, file string) (pids []int) {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		var plugin, child int
		data, _ := os.ReadFile(file)
		if n, _ := fmt.Sscanf(string(data), "%d %d\n", &plugin, &child); n == 2 && strings.HasSuffix(string(data), "\n") {
			return []int{plugin, child}
		}
	}
	t.Error("the plugin does not start")
	return nil
}

// runs says whether a process is there and no zombie.
func runs(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}

// TestAPluginNeedNotEnd has one that stays when it has answered, and one whose
// child holds its output for good, in a session of its own.
func TestAPluginNeedNotEnd(t *testing.T) {
	one := map[string]keys.Secret{"rpc.key": keys.NewSecret([]byte("x"))}
	t.Run("it stays", func(t *testing.T) {
		to, id := installPlugin(t, "tkstay")
		files, err := newSet(t, tpm(), escrow(t, to)).Seal(t.Context(), one)
		if err != nil {
			t.Fatalf("Seal() = %v, want the file", err)
		}
		if got := byCommand(t, files["rpc.key"], []byte(id+"\n")); string(got) != "x" {
			t.Errorf("age --decrypt = %q, want what was sealed", got)
		}
	})
	t.Run("its output does", func(t *testing.T) {
		to, _ := installPlugin(t, "tkstray")
		pids := filepath.Join(t.TempDir(), "pids")
		t.Setenv("TK_PIDS", pids)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := newSet(t, tpm(), escrow(t, to)).Seal(ctx, one)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Seal() = %v, want the deadline", err)
		}
		if all := waitForPIDs(t, pids); len(all) == 2 {
			if err := syscall.Kill(all[1], syscall.SIGKILL); err != nil {
				t.Errorf("ending what has left the group: %v, want it to be there", err)
			}
		}
	})
}

func TestTooManyRecipientsForAHeader(t *testing.T) {
	var to []string
	for range 32 {
		id, err := age.GenerateHybridIdentity()
		if err != nil {
			t.Fatal(err)
		}
		to = append(to, id.Recipient().String())
	}
	_, err := newSet(t, tpm(), escrow(t, to...)).Seal(t.Context(), plain())
	if err == nil || !strings.Contains(err.Error(), "is over the 65536 that one may have: fewer escrow recipients") {
		t.Errorf("Seal(32 post-quantum recipients) = %v, want the bound of the header", err)
	}
	many, _ := installPlugin(t, "tkmany")
	_, err = newSet(t, tpm(), escrow(t, many)).Seal(t.Context(), plain())
	if want := "sealing root-ca.key: its header of 65 stanzas is over the 64 that one may have: fewer escrow recipients"; err == nil || err.Error() != want {
		t.Errorf("Seal(a recipient of 62 stanzas) = %v, want %q", err, want)
	}
	set := newSet(t, tpm(), escrow(t, to[:14]...))
	got, err := set.Open(t.Context(), sealed(t, set))
	wantPlain(t, got, err)
}

// TestAPluginSeesNothingOfOurs has it say which variables it sees.
func TestAPluginSeesNothingOfOurs(t *testing.T) {
	to, _ := installPlugin(t, "tkenv")
	for _, name := range []string{
		"DSTACK_KMS_CORE_ADMIN_AUTH_TOKEN", "DSTACK_AGENT_ADDRESS", "KMS_CLI_CONF", "KMSCTL_ADMIN_TOKEN",
		"CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "LISTEN_FDS", "WATCHDOG_USEC", "TOKEN_SLOT",
	} {
		t.Setenv(name, "tkenv")
	}
	_, err := newSet(t, tpm(), escrow(t, to)).Seal(t.Context(), plain())
	if want := `running age-plugin-tkenv: sees ["TOKEN_SLOT=tkenv"]`; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("Seal() = %v, want %q", err, want)
	}
}
