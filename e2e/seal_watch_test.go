package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// watcher reads every file below a directory as often as it can, from the moment
// that it is made, also after it was moved or removed: what stood in it once was
// on the disk.
type watcher struct {
	dir  string
	stop chan struct{}
	done chan struct{}
	// What follows is valid when done is closed.
	open     map[uint64]*os.File // by inode
	names    map[string]bool     // that a file had, relative to dir
	contents map[[32]byte][]byte
	rounds   int
}

// watch starts watching dir, which need not be there yet.
func watch(t testing.TB, dir string) *watcher {
	t.Helper()
	w := &watcher{
		dir: dir, stop: make(chan struct{}), done: make(chan struct{}),
		open: map[uint64]*os.File{}, names: map[string]bool{}, contents: map[[32]byte][]byte{},
	}
	go func() {
		defer close(w.done)
		for {
			w.look()
			select {
			case <-w.stop:
				w.look()
				for _, f := range w.open {
					_ = f.Close() // only read
				}
				return
			case <-time.After(50 * time.Microsecond): // the others need a core too
			}
		}
	}()
	t.Cleanup(w.end)
	return w
}

// end ends the watching; it may be called again.
func (w *watcher) end() {
	select {
	case <-w.stop:
	default:
		close(w.stop)
	}
	<-w.done
}

// look opens what is new and reads all that was ever opened.
func (w *watcher) look() {
	w.rounds++
	_ = filepath.WalkDir(w.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil //nolint:nilerr // it moved on
		}
		w.names[strings.TrimPrefix(path, w.dir+"/")] = true
		var stat unix.Stat_t
		if unix.Stat(path, &stat) == nil && w.open[stat.Ino] != nil {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return nil //nolint:nilerr // it moved on
		}
		if unix.Fstat(int(f.Fd()), &stat) != nil || w.open[stat.Ino] != nil {
			_ = f.Close() // only read
			return nil    //nolint:nilerr // another one has that name by now
		}
		w.open[stat.Ino] = f
		return nil
	})
	for _, f := range w.open {
		if b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20)); err == nil && len(b) > 0 {
			w.contents[sha256.Sum256(b)] = b
		}
	}
}

// secretsOf are all ways in which the keys of a plain key directory could stand in
// a file.
func secretsOf(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	add := func(name string, b []byte) {
		all[name] = b
		all[name+" in hex"] = []byte(hex.EncodeToString(b))
		all[name+" in upper hex"] = bytes.ToUpper(all[name+" in hex"])
		for shift := range 3 { // whatever stands before it
			text := base64.StdEncoding.EncodeToString(append(make([]byte, shift), b...))
			all[fmt.Sprintf("%s in base64 (%d)", name, shift)] = []byte(text[4 : len(text)-4])
		}
	}
	add("root-k256.key", mustRead(t, filepath.Join(dir, "root-k256.key")))
	for _, name := range []string{"root-ca.key", "rpc.key", "tmp-ca.key"} {
		block, _ := pem.Decode(mustRead(t, filepath.Join(dir, name)))
		if block == nil {
			t.Fatalf("%s of the plain copy is no PEM", name)
			return nil
		}
		add(name, block.Bytes)
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		scalar, err := key.(*ecdsa.PrivateKey).Bytes()
		if err != nil {
			t.Fatal(err)
		}
		add("the scalar of "+name, scalar)
	}
	return all
}

// plainKeys looks for keys in what was on the disk.
func plainKeys(contents map[[32]byte][]byte, secrets map[string][]byte) (found []string) {
	for _, b := range contents {
		if bytes.Contains(b, []byte("PRIVATE KEY")) {
			found = append(found, "a header of PEM")
		}
		joined := bytes.ReplaceAll(b, []byte("\n"), nil) // PEM has lines
		for name, secret := range secrets {
			if bytes.Contains(b, secret) || bytes.Contains(joined, secret) {
				found = append(found, name)
			}
		}
	}
	return found
}

// TestNoPlainKeyIsEverWritten watches the key directory and its stage while real
// processes bootstrap, onboard, rotate and repair. A plain bootstrap shows that
// the watcher sees what there is to see.
func TestNoPlainKeyIsEverWritten(t *testing.T) {
	t.Parallel()
	var staged atomic.Int64 // keys that the watchers saw in a stage
	t.Run("watched", func(t *testing.T) { watchEverything(t, &staged) })
	// On a busy machine a watcher may come too late for a stage, which lives for
	// milliseconds; not always.
	for try := 0; staged.Load() == 0 && try < 20; try++ {
		s, k := newSeals(t), newKMS(t, "", "")
		k.configure(t, s.passphrase(t), devAuthority)
		w := watch(t, k.Certs)
		k.fill(t, exampleDomain)
		w.end()
		staged.Add(w.staged(t))
		if found := plainKeys(w.contents, secretsOf(t, k.unsealed(t, s))); len(found) > 0 {
			t.Errorf("%q were on the disk", found)
		}
	}
	if staged.Load() == 0 {
		t.Error("the watchers saw no key in any stage")
	}
}

func watchEverything(t *testing.T, staged *atomic.Int64) {
	t.Helper()
	t.Run("a plain bootstrap, for comparison", func(t *testing.T) {
		t.Parallel()
		k := newKMS(t, "", devAuthority)
		w := watch(t, k.Certs)
		k.fill(t, exampleDomain)
		w.end()
		staged.Add(w.staged(t))
		found := strings.Join(plainKeys(w.contents, secretsOf(t, k.Certs)), ", ")
		for _, want := range []string{"a header of PEM", "root-k256.key", "root-ca.key in base64 (0)"} {
			if !strings.Contains(found, want) {
				t.Errorf("the watcher sees %s, want %s among it", found, want)
			}
		}
	})
	for _, how := range []string{"dstack-onboard", "dstack-kms", "the API"} {
		t.Run("a sealed bootstrap by "+how, func(t *testing.T) {
			t.Parallel()
			s := newSeals(t)
			k := newKMS(t, "", "")
			k.configure(t, s.passphrase(t), s.withTPM(t), s.escrow(t), devAuthority)
			w := watch(t, k.Certs)
			bootstraps[how](t, k, nil)
			w.end()
			staged.Add(w.staged(t))
			secrets := secretsOf(t, k.unsealed(t, s))
			if found := plainKeys(w.contents, secrets); len(found) > 0 {
				t.Errorf("%q were on the disk", found)
			}

			// The verbs, and the repair of a server.
			w = watch(t, k.Certs)
			k.kmsctlSeal(t, 0, "rotate")
			k.kmsctlSeal(t, 0, "remove", "tpm")
			k.kmsctlSeal(t, 0, "add", "tpm")
			if err := os.Remove(filepath.Join(k.Certs, "rpc.key")); err != nil {
				t.Fatal(err)
			}
			p, _ := k.serve(t, exampleDomain)
			p.logs(t, "made files of the key directory again")
			p.terminate(t)
			w.end()
			for name, secret := range secretsOf(t, k.unsealed(t, s)) {
				secrets[name+" afterwards"] = secret
			}
			if found := plainKeys(w.contents, secrets); len(found) > 0 {
				t.Errorf("%q were on the disk while seals changed", found)
			}
		})
	}
	t.Run("a replica", func(t *testing.T) {
		t.Parallel()
		s := newSeals(t)
		a := newKMS(t, "", devAuthority)
		a.fill(t, exampleDomain)
		a.serve(t, exampleDomain)
		b := newReplica(t, a, devAuthority)
		b.configure(t, s.passphrase(t), s.escrow(t), devAuthority)
		w := watch(t, b.Certs)
		b.onboarding(t, "dstack-onboard")
		if got := b.onboardFrom(t, a.URL("https")); got.StatusCode != http.StatusOK {
			t.Fatalf("Onboard = %d %s, want 200", got.StatusCode, got.body)
		}
		w.end()
		staged.Add(w.staged(t))
		if found := plainKeys(w.contents, secretsOf(t, a.Certs)); len(found) > 0 {
			t.Errorf("%q were on the disk", found)
		}
	})
}

// staged counts the private files that the watcher saw in the stage.
func (w *watcher) staged(t testing.TB) (n int64) {
	t.Helper()
	for name := range w.names {
		if strings.HasPrefix(name, ".stage/") && strings.HasSuffix(name, ".key") {
			n++
		}
	}
	t.Logf("in %d rounds the watcher saw %d contents of %d files, %d of them keys in the stage", w.rounds, len(w.contents), len(w.open), n)
	return n
}

// TestKilledSealedBootstrap kills bootstraps at random moments. Whatever is on the
// disk then, no key stands in it, and the next start completes.
func TestKilledSealedBootstrap(t *testing.T) {
	t.Parallel()
	s := newSeals(t)
	sections := []string{s.passphrase(t), s.escrow(t), devAuthority}
	var mu sync.Mutex
	outcomes := map[string]int{}
	const workers, each = 2, 12
	const longest = 8 * time.Millisecond // commits take about half of that
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for range each {
				outcome := killedBootstrap(t, s, sections, time.Duration(rand.Int64N(int64(longest))))
				mu.Lock()
				outcomes[outcome]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	// When exactly they die is the machine's; the key store's own tests kill at every
	// step.
	t.Logf("killed %d sealed bootstraps within %v of their first file: %v", workers*each, longest, outcomes)
}

// killedBootstrap says what a bootstrap that was killed after a while left behind.
func killedBootstrap(t *testing.T, s *seals, sections []string, after time.Duration) string {
	k := newKMS(t, "", strings.Join(sections, "\n"))
	env := []string{"DSTACK_KMS_CORE_ONBOARD_AUTO_BOOTSTRAP_DOMAIN=" + exampleDomain}
	p := startCmd(t, command(t, env, "dstack-onboard", "--config", k.Config))
	for writing := false; !writing; { // from when the key directory has something in it
		select {
		case <-p.ended: // it was quicker than whoever looks
			if p.err != nil {
				t.Errorf("the bootstrap ended with %v\n%s", p.err, p.stderr)
				return "failed"
			}
			writing = true
		case <-time.After(50 * time.Microsecond):
			entries, _ := os.ReadDir(k.Certs) // it may be missing
			writing = len(entries) > 0
		}
	}
	time.Sleep(after)
	_ = p.Process.Kill() // it may have ended
	<-p.ended
	left, staged := map[[32]byte][]byte{}, 0
	_ = filepath.WalkDir(k.Certs, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil //nolint:nilerr // the directory may be missing
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		left[sha256.Sum256(b)] = b
		if strings.Contains(path, ".stage") {
			staged++
		}
		return nil
	})
	secrets := opened(t, s, left)
	outcome := fmt.Sprintf("%d files, %t staged", len(left), staged > 0)
	if code, _, stderr := runCmd(t, command(t, env, "dstack-onboard", "--config", k.Config)); code != 0 {
		t.Errorf("killed after %v (%s), the next start ends with %d\n%s", after, outcome, code, stderr)
		return outcome
	}
	k.checkSealed(t, "teekms-file", "teekms-escrow", "teekms-passphrase", "X25519")
	for name, secret := range secretsOf(t, k.unsealed(t, s)) {
		secrets[name] = secret
	}
	if found := plainKeys(left, secrets); len(found) > 0 {
		t.Errorf("killed after %v (%s), %q are on the disk", after, outcome, found)
	}
	switch {
	case len(left) == 0:
		return "nothing was there"
	case staged > 0:
		return "a stage was there"
	}
	return "it was complete"
}

// opened is what escrow reads in the sealed files that were left behind, some of
// which may be half written.
func opened(t testing.TB, s *seals, left map[[32]byte][]byte) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, b := range left {
		if !bytes.HasPrefix(b, []byte(agePrefix)) {
			continue
		}
		cmd := exec.Command("age", "-d", "-i", s.identity)
		cmd.Stdin = bytes.NewReader(b)
		if out, err := cmd.Output(); err == nil && len(out) >= 32 {
			all[fmt.Sprintf("the payload of file %d", len(all))] = out
		}
	}
	return all
}
