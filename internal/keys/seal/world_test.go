package seal_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/plugin"
	"go.uber.org/goleak"

	"teekms/internal/keys"
	"teekms/internal/keys/seal"
)

// TestMain is also the main function of the age plugins that the tests put on
// the PATH under this program's file: age runs them by their name.
func TestMain(m *testing.M) {
	if name, ok := strings.CutPrefix(filepath.Base(os.Args[0]), "age-plugin-"); ok {
		os.Exit(pluginMain(name))
	}
	goleak.VerifyTestMain(m)
}

// plain are four files as a key directory has them.
func plain() map[string]keys.Secret {
	return map[string]keys.Secret{
		"root-ca.key":   keys.NewSecret([]byte("-----BEGIN PRIVATE KEY-----\nthis is the root of all\n-----END PRIVATE KEY-----\n")),
		"root-k256.key": keys.NewSecret(bytes.Repeat([]byte{0, 0xff, '\n', 7}, 8)),
		"rpc.key":       keys.NewSecret([]byte("the key of the listener")),
		"tmp-ca.key":    keys.NewSecret([]byte("the key of nobody")),
	}
}

// madeAt is the time of every sealing here.
var madeAt = time.Unix(1_760_000_000, 0).UTC()

func clock() time.Time { return madeAt.Add(300 * time.Millisecond) }

// said is a source of a passphrase that counts how often it is asked.
type said struct {
	text  string
	err   error
	asked atomic.Int32
}

func (s *said) read(context.Context) (keys.Secret, error) {
	s.asked.Add(1)
	return keys.NewSecret([]byte(s.text)), s.err
}

// passphrase is a seal with that passphrase and a cheap work factor.
func passphrase(text string) seal.Seal {
	return seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{
		Read: (&said{text: text}).read, WorkFactor: 10,
	}))
}

// device is a key source as a TPM is one: what it made before it finds again,
// as long as its state is what it was.
type device struct {
	secret string // of the device; its keys follow from it
	state  string
	broken error
	hang   chan struct{} // where it is there, Find waits for its end, whatever the context says
	finds  atomic.Int32
	makes  atomic.Int32
}

func (d *device) key(nonce, state string) keys.Secret {
	sum := sha256.Sum256([]byte(d.secret + "|" + nonce + "|" + state))
	return keys.NewSecret(sum[:])
}

func (d *device) Make(context.Context) (keys.Secret, []string, error) {
	d.makes.Add(1)
	if d.broken != nil {
		return keys.Secret{}, nil, d.broken
	}
	nonce := rand.Text()
	return d.key(nonce, d.state), []string{nonce, "s" + hex.EncodeToString([]byte(d.state))}, nil
}

func (d *device) Find(_ context.Context, args []string) (keys.Secret, error) {
	d.finds.Add(1)
	if d.hang != nil {
		<-d.hang
	}
	if d.broken != nil {
		return keys.Secret{}, d.broken
	}
	if len(args) != 2 {
		return keys.Secret{}, errors.New("malformed arguments")
	}
	if args[1] != "s"+hex.EncodeToString([]byte(d.state)) {
		return keys.Secret{}, errors.New("the policy does not hold")
	}
	return d.key(args[0], d.state), nil
}

func (d *device) Describe(args []string) string {
	if len(args) != 2 {
		return "malformed"
	}
	return "state " + args[1]
}

// agent is a guest agent with the keys of one app identity.
type agent struct {
	identity string
	err      error
	paths    []string
}

func (a *agent) Key(_ context.Context, path string) (keys.Secret, error) {
	a.paths = append(a.paths, path)
	sum := sha256.Sum256([]byte(a.identity + "|" + path))
	return keys.NewSecret(sum[:]), a.err
}

const agentPath = "teekms/key-directory"

func tpm() seal.Seal {
	return seal.New(seal.KindTPM, &device{secret: "this machine", state: "booted"})
}

func guestAgent(identity string) seal.Seal {
	return seal.New(seal.KindGuestAgent, seal.NewGuestAgent(&agent{identity: identity}, agentPath))
}

// holder is a new escrow holder.
func holder(t testing.TB) (*age.X25519Identity, seal.Seal) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatalf("GenerateX25519Identity() = %v, want an identity", err)
	}
	return id, escrow(t, id.Recipient().String())
}

func escrow(t testing.TB, recipients ...string) seal.Seal {
	t.Helper()
	s, err := seal.NewEscrow(recipients)
	if err != nil {
		t.Fatalf("NewEscrow(%q) = %v, want a seal", recipients, err)
	}
	return s
}

func newSet(t testing.TB, seals ...seal.Seal) *seal.Set {
	t.Helper()
	s, err := seal.NewSet(seal.Config{Seals: seals, Now: clock})
	if err != nil {
		t.Fatalf("NewSet(%v) = %v, want a set", seals, err)
	}
	return s
}

// withIdentities is a set that a holder of the escrow opens.
func withIdentities(t testing.TB, ids []age.Identity, seals ...seal.Seal) *seal.Set {
	t.Helper()
	s, err := seal.NewSet(seal.Config{Seals: seals, Identities: ids, Now: clock})
	if err != nil {
		t.Fatalf("NewSet(%v) = %v, want a set", seals, err)
	}
	return s
}

func sealed(t testing.TB, s *seal.Set) map[string][]byte {
	t.Helper()
	out, err := s.Seal(t.Context(), plain())
	if err != nil {
		t.Fatalf("Seal() = %v, want four files", err)
	}
	return out
}

// wantPlain fails unless got are the files of plain.
func wantPlain(t testing.TB, got map[string]keys.Secret, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("Open() = %v, want the files", err)
	}
	want := plain()
	if g, w := slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)); !slices.Equal(g, w) {
		t.Fatalf("Open() has files %v, want %v", g, w)
	}
	for name, content := range want {
		if !got[name].Equal(content) {
			t.Errorf("Open()[%s] has other bytes than were sealed", name)
		}
	}
}

// wantRefusal fails unless files are refused with an error of that text.
func wantRefusal(t testing.TB, s *seal.Set, files map[string][]byte, want string) {
	t.Helper()
	got, err := s.Open(t.Context(), files)
	if err == nil || err.Error() != want {
		t.Errorf("Open() = %v, want %q", err, want)
	}
	if got != nil {
		t.Errorf("Open() = %v beside an error, want nothing", got)
	}
}

// with returns a copy of files in which name is content.
func with(files map[string][]byte, name string, content []byte) map[string][]byte {
	c := maps.Clone(files)
	c[name] = content
	return c
}

// reheader returns a file with its header's stanzas changed and its MAC as it
// was: what somebody can do who opens nothing.
func reheader(t testing.TB, data []byte, change func(stanzas []string) []string) []byte {
	t.Helper()
	header, rest, ok := bytes.Cut(data, []byte("\n---"))
	intro, body, ok2 := strings.Cut(string(header), "\n-> ")
	if !ok || !ok2 {
		t.Fatalf("%.40q is no age file", data)
	}
	stanzas := change(strings.Split(body, "\n-> "))
	return []byte(intro + "\n-> " + strings.Join(stanzas, "\n-> ") + "\n---" + string(rest))
}

// pluginMain is an age plugin. Its recipients and identities carry the text of
// an X25519 identity, since nothing here is a secret.
func pluginMain(name string) int {
	switch name {
	case "tkhang", "tkstray":
		child := exec.Command("sleep", "60")
		child.Stdout = os.Stdout
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: name == "tkstray"}
		if err := child.Start(); err != nil {
			return 4
		}
		if err := os.WriteFile(os.Getenv("TK_PIDS"), fmt.Appendf(nil, "%d %d\n", os.Getpid(), child.Process.Pid), 0o600); err != nil {
			return 5
		}
		if name == "tkhang" {
			time.Sleep(time.Minute)
		}
		_, _ = os.Stdin.Read(make([]byte, 1)) // what it was told, or telling it fails
		return 1
	case "tkstay":
		if strings.HasSuffix(os.Args[1], "recipient-v1") {
			signal.Ignore(os.Interrupt)
			defer time.Sleep(time.Minute)
		}
	}
	p, err := plugin.New(name)
	if err != nil {
		return 3
	}
	p.HandleRecipient(func(data []byte) (age.Recipient, error) {
		id, err := age.ParseX25519Identity(string(data))
		if err != nil {
			return nil, err
		}
		return pluginRecipient{name, p, id.Recipient()}, nil
	})
	p.HandleIdentity(func(data []byte) (age.Identity, error) {
		id, err := age.ParseX25519Identity(string(data))
		return pluginIdentity{name, id}, err
	})
	return p.Main()
}

type pluginRecipient struct {
	name string
	p    *plugin.Plugin
	to   *age.X25519Recipient
}

func (r pluginRecipient) WrapWithLabels(fileKey []byte) ([]*age.Stanza, []string, error) {
	st, err := r.Wrap(fileKey)
	switch r.name {
	case "tklabel":
		return st, []string{"postquantum"}, err
	case "tkmany":
		return slices.Repeat(st, 62), nil, err
	case "tkodd":
		return st, []string{"odd"}, err
	}
	return st, nil, err
}

func (r pluginRecipient) Wrap(fileKey []byte) ([]*age.Stanza, error) {
	switch r.name {
	case "tkenv":
		return nil, fmt.Errorf("sees %q", slices.DeleteFunc(os.Environ(), func(v string) bool { return !strings.Contains(v, "tkenv") }))
	case "tkerror":
		return nil, errors.New("no \x1b[31mtoken\nis plugged in")
	case "tkask":
		pin, err := r.p.RequestValue("PIN?", true)
		return nil, fmt.Errorf("was told %q (%w)", pin, err)
	}
	st, err := r.to.Wrap(fileKey)
	if err != nil {
		return nil, err
	}
	st[0].Type = r.name
	if r.name == "tkours" {
		st[0].Type = "teekms-tpm"
	}
	return st, nil
}

type pluginIdentity struct {
	name string
	id   *age.X25519Identity
}

func (i pluginIdentity) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	var mine []*age.Stanza
	for _, s := range stanzas {
		if s.Type == i.name {
			mine = append(mine, &age.Stanza{Type: "X25519", Args: s.Args, Body: s.Body})
		}
	}
	return i.id.Unwrap(mine)
}

// installPlugin puts an age plugin of that name on the PATH and returns one of
// its recipients, with the identity.
func installPlugin(t *testing.T, name string) (recipient, identity string) {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "age-plugin-"+name)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return plugin.EncodeRecipient(name, []byte(id.String())), plugin.EncodeIdentity(name, []byte(id.String()))
}

// encode writes base64 as age does.
func encode(b []byte) string { return base64.RawStdEncoding.EncodeToString(b) }

// decode reads base64 as age writes it.
func decode(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
