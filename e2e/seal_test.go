package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"teekms/internal/attest/guestagent/guestagenttest"
	"teekms/internal/attest/simtd"
	"teekms/internal/keys/seal/tpm/swtpmtest"
)

// privateFiles are those of a key directory that are sealed.
var privateFiles = []string{"root-ca.key", "root-k256.key", "rpc.key", "tmp-ca.key"}

// agePrefix begins every file of age.
const agePrefix = "age-encryption.org/v1\n"

const passphraseCanary = "canary of a passphrase, é"

// seals are what the private files of one KMS can be sealed with. What a test
// does not use is not made.
type seals struct {
	dir       string
	tpm       *swtpmtest.TPM
	agent     *agent
	identity  string // file with the secret key of escrow
	recipient string // and its public one
}

func newSeals(t testing.TB) *seals {
	t.Helper()
	return &seals{dir: t.TempDir()}
}

// passphrase is the section of a passphrase in a file. The work factor is as low
// as it gets, lest the tests of others wait.
func (s *seals) passphrase(t testing.TB) string {
	t.Helper()
	return passphraseIn(t, filepath.Join(s.dir, "passphrase"), passphraseCanary)
}

// passphraseIn writes a passphrase to a file, and returns the section that names
// it.
func passphraseIn(t testing.TB, file, passphrase string) string {
	t.Helper()
	if err := os.WriteFile(file, []byte(passphrase+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("[core.seal.passphrase]\nfile = %q\nwork_factor = 10\n", file)
}

// credential is the section of a passphrase that the service manager hands over,
// and the environment in which it does.
func (s *seals) credential(t testing.TB) (section, env string) {
	t.Helper()
	dir := filepath.Join(s.dir, "credentials")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kms-passphrase"), []byte(passphraseCanary), 0o400); err != nil {
		t.Fatal(err)
	}
	return "[core.seal.passphrase]\ncredential = \"kms-passphrase\"\nwork_factor = 10\n", "CREDENTIALS_DIRECTORY=" + dir
}

// withTPM is the section of a software TPM of its own.
func (s *seals) withTPM(t testing.TB) string {
	t.Helper()
	if s.tpm == nil {
		s.tpm = swtpmtest.Start(t)
	}
	return tpmAt(s.tpm.Socket())
}

func tpmAt(socket string) string {
	return fmt.Sprintf("[core.seal.tpm]\ndevice = %q\npcrs = [7, 11, 14]\n", socket)
}

// withAgent is the section of a guest agent, and the environment that tells where
// it is.
func (s *seals) withAgent(t testing.TB) (section, env string) {
	t.Helper()
	if s.agent == nil {
		s.agent = newSealAgent(t, filepath.Join(s.dir, "agent-td"), 1)
	}
	return "[core.seal.guest_agent]\npath = \"teekms/key-directory\"\n", agentEnv(s.agent.socket)
}

func agentEnv(socket string) string { return "DSTACK_AGENT_ADDRESS=unix:" + socket }

// newSealAgent plays the guest agent of an application.
func newSealAgent(t testing.TB, dir string, app byte) *agent {
	t.Helper()
	td, err := simtd.Open(simtd.Config{Dir: dir, Measurements: simtd.Measurements{AppID: bytes.Repeat([]byte{app}, 20)}})
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{Handler: guestagenttest.Handler(td, guestagenttest.Current)}
	a.socket = guestagenttest.Listen(t, a)
	return a
}

// escrow is the section of a recipient whose identity is somewhere else.
func (s *seals) escrow(t testing.TB) string {
	t.Helper()
	if s.identity == "" {
		s.identity = filepath.Join(s.dir, "escrow.txt")
		shell(t, "age-keygen -o "+s.identity+" 2>/dev/null")
		s.recipient = strings.TrimSpace(shell(t, "age-keygen -y "+s.identity))
	}
	return fmt.Sprintf("[core.seal.escrow]\nrecipients = [%q]\n", s.recipient)
}

// configure writes the configuration of k anew.
func (k *kmsDir) configure(t testing.TB, sections ...string) {
	t.Helper()
	k.write(t, "", strings.Join(sections, "\n"))
}

// unsealed wants to see a plain key directory in what the age command makes of k
// with the secret key of escrow, and returns it.
func (k *kmsDir) unsealed(t testing.TB, s *seals) string {
	t.Helper()
	dir := t.TempDir()
	for name, mode := range keyDirModes {
		path := filepath.Join(dir, name)
		data := k.file(t, name)
		if bytes.HasPrefix(data, []byte(agePrefix)) {
			data = decrypted(t, filepath.Join(k.Certs, name), s.identity)
		}
		if err := os.WriteFile(path, data, mode); err != nil {
			t.Fatal(err)
		}
	}
	checkKeyDir(t, dir)
	checkTutorialScript(t, dir)
	return dir
}

// decrypted is what the age command makes of a file.
func decrypted(t testing.TB, file, identity string) []byte {
	t.Helper()
	cmd := exec.Command("age", "-d", "-i", identity, file)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, &stderr)
	}
	return out
}

// checkSealed wants the eight files, the private ones being files of age for
// these kinds of recipients and nothing else.
func (k *kmsDir) checkSealed(t testing.TB, kinds ...string) {
	t.Helper()
	checkKeyDir(t, k.Certs)
	for _, name := range privateFiles {
		data := k.file(t, name)
		if got := stanzas(data); !bytes.HasPrefix(data, []byte(agePrefix)) || strings.Join(got, " ") != strings.Join(kinds, " ") {
			t.Errorf("%s begins %.22q with the stanzas %q, want a file of age with %q", name, data, got, kinds)
		}
		if bytes.Contains(data, []byte("PRIVATE KEY")) {
			t.Errorf("%s holds a plain key", name)
		}
	}
}

// stanzas are the types in the header of a file of age.
func stanzas(data []byte) []string {
	var types []string
	for line := range bytes.Lines(data) {
		if bytes.HasPrefix(line, []byte("---")) {
			break
		}
		if fields := strings.Fields(string(line)); len(fields) > 1 && fields[0] == "->" && !strings.HasSuffix(fields[1], "-grease") {
			types = append(types, fields[1])
		}
	}
	return types
}

// weakenings are the insecure_settings that a KMS tells of.
func weakenings(t testing.TB, client *http.Client, k *kmsDir) string {
	t.Helper()
	return strings.Join(metaOf(t, client, k).InsecureSettings, " ")
}

// refuses runs a command that must not start, nor change anything, and returns
// its last line.
func (k *kmsDir) refuses(t testing.TB, name string, env ...string) string {
	t.Helper()
	before := tree(t, k.Certs)
	code, _, stderr := runCmd(t, command(t, env, name, "--config", k.Config))
	last := lastLine(stderr)
	if code != 1 || !strings.HasPrefix(last, "Error: ") {
		t.Errorf("%s ends with status %d and %q, want 1 and an error", name, code, last)
	}
	if strings.Contains(stderr, "canary") {
		t.Errorf("%s shows a passphrase:\n%s", name, stderr)
	}
	if after := tree(t, k.Certs); fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("%s changed the key directory:\n%v\n%v", name, before, after)
	}
	return last
}
