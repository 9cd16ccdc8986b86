package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"

	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
	"teekms/internal/keys/seal"
)

const (
	// childEnv says what the test binary does instead of testing.
	childEnv = "KMSCTL_TEST_CHILD"
	dirEnv   = "KMSCTL_TEST_DIR"
	// kms is a user who is not root.
	kms = 65534
	// kills is how many processes of each verb are killed.
	kills = 120
)

func TestMain(m *testing.M) {
	if name, ok := strings.CutPrefix(filepath.Base(os.Args[0]), pluginPrefix); ok {
		os.Exit(pluginMain(name))
	}
	switch os.Getenv(childEnv) {
	case "kmsctl":
		os.Exit(run())
	case "open":
		os.Exit(openChild(os.Getenv(dirEnv)))
	}
	os.Exit(m.Run())
}

// child runs the test binary as something else.
func child(ctx context.Context, as string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "DSTACK_") || strings.HasPrefix(v, "KMS_") }),
		childEnv+"="+as)
	return cmd
}

// openChild is a KMS that starts as the owner of a directory. It prints what it
// finds there, or why it cannot.
func openChild(dir string) int {
	if os.Geteuid() == 0 {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(kms), syscall.Setuid(kms)); err != nil {
			panic(err)
		}
	}
	fmt.Println(open(dir))
	return 0
}

// open opens a directory, plain or sealed, and tells its seals and a digest of its
// root keys.
func open(dir string) string {
	ctx := context.Background()
	files, err := keystore.ReadPrivate(ctx, dir, nil)
	if err != nil {
		return err.Error()
	}
	cfg, seals := keystore.Config{Dir: dir}, "plain"
	if data := files["root-ca.key"]; seal.Sealed(data) {
		header, err := seal.Inspect("root-ca.key", data)
		if err != nil {
			return err.Error()
		}
		seals = ""
		for _, s := range header.Seals {
			seals += string(s.Kind) + " "
		}
		set, err := seal.NewSet(seal.Config{Seals: []seal.Seal{seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{
			Read: func(context.Context) (keys.Secret, error) { return keys.NewSecret([]byte(passphrase)), nil },
		}))}})
		if err != nil {
			return err.Error()
		}
		cfg.Sealer = set
	}
	store, err := keystore.Open(ctx, cfg)
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(seals) + " " + digest(store.Roots())
}

func digest(r *keys.Roots) string {
	sum := sha256.Sum256(append(r.CAPEM().Bytes(), r.K256Raw().Bytes()...))
	return fmt.Sprintf("%x", sum[:8])
}

const passphrase = "correct horse"

// victim is a key directory of another user, where this one may give it away, and
// a configuration.
type victim struct {
	dir, config string
	roots       string
	plain       map[string][]byte
}

func newVictim(t *testing.T) *victim {
	t.Helper()
	parent, err := os.MkdirTemp("", "kmsctl") //nolint:usetesting // that of testing is closed to other users
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(parent)) })
	check(t, os.Chmod(parent, 0o755))
	v := &victim{dir: filepath.Join(parent, "certs"), config: filepath.Join(parent, "kms.toml"), plain: map[string][]byte{}}
	roots, err := keys.NewRoots()
	check(t, err)
	v.roots = digest(roots)
	bundle, err := keystore.NewBundle(roots, "kms.example.com", nil, time.Now())
	check(t, err)
	store, err := keystore.Open(t.Context(), keystore.Config{Dir: v.dir})
	check(t, err)
	check(t, store.Commit(t.Context(), bundle))
	v.plain = v.files(t)
	holder, err := age.GenerateX25519Identity()
	check(t, err)
	secret := filepath.Join(parent, "passphrase")
	check(t, os.WriteFile(secret, []byte(passphrase+"\n"), 0o600))
	check(t, os.WriteFile(v.config, fmt.Appendf(nil, `
[core]
cert_dir = %q
[core.seal.passphrase]
file = %q
work_factor = 10
[core.seal.escrow]
recipients = [%q]
`, v.dir, secret, holder.Recipient()), 0o600))
	return v
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// files are the private files.
func (v *victim) files(t *testing.T) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, name := range []string{"root-ca.key", "root-k256.key", "rpc.key", "tmp-ca.key"} {
		data, err := os.ReadFile(filepath.Join(v.dir, name))
		check(t, err)
		out[name] = data
	}
	return out
}

// restore puts private files in their places, all of the directory another
// user's.
func (v *victim) restore(t *testing.T, files map[string][]byte) {
	t.Helper()
	for name, data := range files {
		check(t, os.WriteFile(filepath.Join(v.dir, name), data, 0o600))
	}
	if os.Geteuid() != 0 {
		return
	}
	check(t, filepath.WalkDir(v.dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, kms, kms))
	}))
}

// killed is what a killed process left behind.
type killed struct {
	// stage and marker are there, retired says that old files are in the stage.
	stage, marker, retired bool
	// alive says that it had ended before it was killed.
	ended bool
}

// kill runs a verb and kills it: some time after it has begun to write, or after
// a time of its life.
func (v *victim) kill(t *testing.T, n int, args ...string) killed {
	t.Helper()
	cmd := child(t.Context(), "kmsctl", append([]string{"seal", args[0], "--config", v.config}, args[1:]...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	check(t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	switch n % 6 {
	case 0:
		time.Sleep(time.Duration(n) * time.Millisecond / 2)
	case 1, 2:
		v.await(".stage", done)
		time.Sleep(rand.N(6 * time.Millisecond))
	default:
		v.await(".stage/commit", done)
		time.Sleep(rand.N(5 * time.Millisecond / 2))
	}
	_ = cmd.Process.Kill() // it may be gone already
	err := <-done
	var k killed
	if exit, ok := errors.AsType[*exec.ExitError](err); err == nil || ok && exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		if k.ended = true; err != nil {
			t.Fatalf("kmsctl seal %q = %v\n%s", args, err, out.String())
		}
	}
	there := func(pattern string) bool {
		found, err := filepath.Glob(filepath.Join(v.dir, ".stage", pattern))
		check(t, err)
		return len(found) > 0
	}
	_, err = os.Lstat(filepath.Join(v.dir, ".stage"))
	k.stage, k.marker, k.retired = err == nil, there("commit"), there("*.old")
	return k
}

// await returns when that file is there, or when the process has ended.
func (v *victim) await(name string, done chan error) {
	for len(done) == 0 {
		if _, err := os.Lstat(filepath.Join(v.dir, name)); err == nil {
			return
		}
	}
}

// wantOwned sees that a KMS that is not root can bring to its end what was begun.
func (v *victim) wantOwned(t *testing.T) {
	t.Helper()
	uid := uint32(os.Geteuid())
	if uid == 0 {
		uid = kms
	}
	for _, name := range []string{".stage", ".stage/commit"} {
		info, err := os.Lstat(filepath.Join(v.dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		check(t, err)
		if st := info.Sys().(*syscall.Stat_t); st.Uid != uid {
			t.Errorf("%s is of user %d, want %d", name, st.Uid, uid)
		}
	}
}

// plainLeft looks for plain keys in every file.
func (v *victim) plainLeft(t *testing.T) (found []string) {
	t.Helper()
	check(t, filepath.WalkDir(v.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		for name, secret := range v.plain {
			if block, _ := pem.Decode(secret); block != nil {
				secret = bytes.Split(secret, []byte("\n"))[1]
			}
			if bytes.Contains(data, secret) {
				found = append(found, path+" has "+name)
			}
		}
		return err
	}))
	return found
}

// TestSealIsSafeToKill kills each verb that writes at any moment. Then the KMS,
// which is another user, opens the directory under the old seals or under the
// new, with the same root keys, and nothing of what was begun is left.
func TestSealIsSafeToKill(t *testing.T) {
	verbs := []struct {
		args        []string
		before, now string
	}{
		{[]string{"add"}, "plain", "passphrase escrow"},
		{[]string{"add", "escrow"}, "passphrase", "passphrase escrow"},
		{[]string{"remove", "escrow"}, "passphrase escrow", "passphrase"},
		{[]string{"rotate"}, "passphrase escrow", "passphrase escrow"},
	}
	for _, tt := range verbs {
		t.Run(strings.Join(tt.args, " ")+" from "+tt.before, func(t *testing.T) {
			t.Parallel()
			v := newVictim(t)
			v.prepare(t, tt.before)
			before := v.files(t)
			counts := map[string]int{}
			// When exactly they die is the machine's: on a busy one more are needed.
			end := time.Now().Add(3 * time.Minute)
			for n := 0; counts["killed"] < kills || counts["in the commit"] < kills/3; n++ {
				if time.Now().After(end) {
					t.Fatalf("of %d processes only %d could be killed, %d of them in the commit", n, counts["killed"], counts["in the commit"])
				}
				v.restore(t, before)
				k := v.kill(t, n, tt.args...)
				v.wantOwned(t)
				if left := v.plainLeft(t); tt.before != "plain" && len(left) > 0 {
					t.Errorf("killed, plain keys are on the disk: %s", left)
				}
				got := v.opened(t, k)
				state := "new"
				switch {
				case got == tt.before+" "+v.roots && (tt.before != tt.now || bytes.Equal(before["rpc.key"], v.files(t)["rpc.key"])):
					state = "old"
				case got != tt.now+" "+v.roots:
					t.Fatalf("killed, the directory is %q (%+v), want %q or %q", got, k, tt.before+" "+v.roots, tt.now+" "+v.roots)
				}
				if left := v.plainLeft(t); len(left) > 0 && (state == "new" || tt.before != "plain") {
					t.Errorf("after the next opening plain keys are on the disk: %s", left)
				}
				if entries, err := os.ReadDir(v.dir); err != nil || len(entries) != 7 {
					t.Errorf("the next opening leaves %v, %v, want the seven files", entries, err)
				}
				count(counts, k, state)
			}
			t.Logf("%v", counts)
		})
	}
}

func count(counts map[string]int, k killed, state string) {
	counts[state]++
	for what, is := range map[string]bool{
		"ended": k.ended, "killed": !k.ended, "before the commit": !k.ended && !k.stage && state == "old", "after it": !k.ended && !k.stage && state == "new",
		"in the commit": k.stage, "marked": k.marker, "with old files in the stage": k.retired,
	} {
		if is {
			counts[what]++
		}
	}
}

// prepare brings the directory into a state.
func (v *victim) prepare(t *testing.T, state string) {
	t.Helper()
	v.restore(t, v.plain)
	if state == "plain" {
		return
	}
	if out, err := child(t.Context(), "kmsctl", append([]string{"seal", "add", "--config", v.config}, strings.Fields(state)...)...).CombinedOutput(); err != nil {
		t.Fatalf("kmsctl seal add = %v\n%s", err, out)
	}
	if left := v.plainLeft(t); len(left) > 0 {
		t.Fatalf("plain keys are on the disk: %s", left)
	}
}

// opened opens the directory as the KMS; where nothing is to be recovered, in
// this process.
func (v *victim) opened(t *testing.T, k killed) string {
	t.Helper()
	if !k.stage {
		return open(v.dir)
	}
	cmd := child(t.Context(), "open")
	cmd.Env = append(cmd.Env, dirEnv+"="+v.dir)
	out, err := cmd.Output() // standard error may have complaints of the coverage tool
	check(t, err)
	return strings.TrimSpace(string(out))
}
