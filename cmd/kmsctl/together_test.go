package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"go.uber.org/zap"

	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
	"teekms/internal/keys/seal"
)

// rounds is how often two processes run at once, of each pair.
const rounds = 20

// tooLate is what the slower of two processes says where it lost.
const tooLate = "was written by another process since it was opened; nothing was changed: try again"

// TestTwoAtOnce runs two verbs on one directory. Each ends well or with a refusal
// that says what happened, and what is there is whole.
func TestTwoAtOnce(t *testing.T) {
	pairs := []struct {
		first, second []string
		// refusals are what may be said besides tooLate.
		refusals []string
	}{
		{[]string{"rotate"}, []string{"rotate"}, nil},
		{[]string{"add", "escrow"}, []string{"remove", "escrow"}, []string{"the files are not sealed to escrow, but to passphrase"}},
	}
	for _, tt := range pairs {
		t.Run(tt.first[0]+" and "+tt.second[0], func(t *testing.T) {
			t.Parallel()
			v := newVictim(t)
			v.prepare(t, "passphrase escrow")
			before := v.files(t)
			v.addRecipient(t) // so that there is something to add
			counts := map[string]int{}
			var late atomic.Int32
			end := time.Now().Add(time.Minute) // until two have met, which is the machine's
			for n := 0; n < rounds || late.Load() == 0 && time.Now().Before(end); n++ {
				v.restore(t, before)
				var all sync.WaitGroup
				for _, args := range [][]string{tt.first, tt.second} {
					cmd, out := v.verb(t, args...)
					check(t, cmd.Start())
					all.Go(func() {
						err := cmd.Wait()
						if strings.Contains(out.String(), tooLate) {
							late.Add(1)
						}
						if err != nil && !refusedCleanly(err, out.String(), append(tt.refusals, tooLate)) {
							t.Errorf("kmsctl seal %q = %v, %s, want success or a refusal", args, err, out)
						}
					})
				}
				all.Wait()
				counts[v.wantWhole(t)]++
			}
			t.Logf("left behind: %v; %d were too late", counts, late.Load())
			if late.Load() == 0 {
				t.Error("no two of them met, want that some did")
			}
		})
	}
}

// addRecipient configures an escrow with one more holder.
func (v *victim) addRecipient(t *testing.T) {
	t.Helper()
	holder, err := age.GenerateX25519Identity()
	check(t, err)
	text, err := os.ReadFile(v.config)
	check(t, err)
	text = bytes.Replace(text, []byte("recipients = ["), fmt.Appendf(nil, "recipients = [%q, ", holder.Recipient()), 1)
	check(t, os.WriteFile(v.config, text, 0o600))
}

// verb is a process of kmsctl seal, and what it says.
func (v *victim) verb(t *testing.T, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd := child(t.Context(), "kmsctl", append([]string{"seal", args[0], "--config", v.config}, args[1:]...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	return cmd, &out
}

// refusedCleanly says whether a process ended with 1 and one of the refusals.
func refusedCleanly(err error, out string, refusals []string) bool {
	exit, ok := errors.AsType[*exec.ExitError](err)
	return ok && exit.ExitCode() == 1 && slices.ContainsFunc(refusals, func(want string) bool { return strings.Contains(out, want) })
}

// wantWhole sees that the directory opens with its root keys, that nothing is left
// of a commit, and returns what it is sealed to.
func (v *victim) wantWhole(t *testing.T) string {
	t.Helper()
	got := open(v.dir)
	seals, ok := strings.CutSuffix(got, " "+v.roots)
	if !ok {
		t.Fatalf("the directory is %q, want the root keys %s", got, v.roots)
	}
	if entries, err := os.ReadDir(v.dir); err != nil || len(entries) != 7 {
		t.Fatalf("the directory has %v, %v, want its seven files", entries, err)
	}
	if left := v.plainLeft(t); len(left) > 0 {
		t.Fatalf("plain keys are on the disk: %s", left)
	}
	return seals
}

// busy is what a KMS says that starts while others rotate time and again: it
// opens files that are not there any more when it has opened them. The service
// manager starts it again.
const busy = "other processes keep writing it"

// TestBesideAKMS rotates without pause while KMSs start and renew their
// certificate.
func TestBesideAKMS(t *testing.T) {
	v := newVictim(t)
	v.prepare(t, "passphrase escrow")
	ctx, cancel := context.WithCancel(t.Context())
	var kms sync.WaitGroup
	var starts, refused, renewals atomic.Int32
	long := v.start(t) // was there before
	kms.Go(func() {
		for ctx.Err() == nil {
			switch got := open(v.dir); { //nolint:contextcheck // a KMS starts with a context of its own
			case strings.HasSuffix(got, " "+v.roots):
				starts.Add(1)
			case strings.HasSuffix(got, busy):
				refused.Add(1)
			default:
				t.Errorf("a KMS that starts finds %q, want the root keys %s", got, v.roots)
			}
		}
	})
	kms.Go(func() {
		for ctx.Err() == nil {
			cert, err := long.RenewRPC(ctx)
			if err != nil && ctx.Err() == nil || err == nil && len(cert.Certificate) == 0 {
				t.Errorf("RenewRPC() = %v, want a certificate", err)
			}
			renewals.Add(1)
			time.Sleep(5 * time.Millisecond) // the lock is for others too
		}
	})
	changed, tried := 0, 0
	// Who gets a core when is the machine's: until there was enough of each at once.
	enough := func() bool {
		return changed >= rounds/2 && starts.Load() >= rounds/2 && refused.Load() <= starts.Load() && renewals.Load() >= rounds/2
	}
	for end := time.Now().Add(time.Minute); tried < rounds || !enough() && time.Now().Before(end); tried++ {
		cmd, out := v.verb(t, "rotate")
		err := cmd.Run()
		if err == nil {
			changed++
		} else if !refusedCleanly(err, out.String(), []string{tooLate}) {
			t.Errorf("kmsctl seal rotate = %v, %s, want success or a refusal", err, out)
		}
	}
	cancel()
	kms.Wait()
	v.wantWhole(t)
	t.Logf("%d of %d rotations, %d starts and %d refused, %d renewals", changed, tried, starts.Load(), refused.Load(), renewals.Load())
	if !enough() {
		t.Error("want more of each at once")
	}
}

// start opens the directory as a KMS does that goes on running.
func (v *victim) start(t *testing.T) *keystore.Store {
	t.Helper()
	set, err := seal.NewSet(seal.Config{Seals: []seal.Seal{seal.New(seal.KindPassphrase, seal.NewPassphrase(seal.PassphraseConfig{
		Read: func(context.Context) (keys.Secret, error) { return keys.NewSecret([]byte(passphrase)), nil },
	}))}})
	check(t, err)
	store, err := keystore.Open(t.Context(), keystore.Config{Dir: v.dir, Sealer: set, Log: zap.NewNop()})
	check(t, err)
	return store
}

// TestTerminationBeforeTheCommit ends a process while it seals.
func TestTerminationBeforeTheCommit(t *testing.T) {
	v := newVictim(t)
	v.prepare(t, "passphrase escrow")
	// Sealing takes long enough to be interrupted.
	text, err := os.ReadFile(v.config)
	check(t, err)
	v.config = filepath.Join(filepath.Dir(v.config), "slow.toml")
	check(t, os.WriteFile(v.config, bytes.Replace(text, []byte("work_factor = 10"), []byte("work_factor = 18"), 1), 0o600))
	before := v.files(t)
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		cmd := child(t.Context(), "kmsctl", "seal", "rotate", "--config", v.config)
		said, err := cmd.StderrPipe()
		check(t, err)
		check(t, cmd.Start())
		out := readUntil(t, said, "sealing the private keys of")
		check(t, cmd.Process.Signal(signal))
		out += readUntil(t, said, "")
		err = cmd.Wait()
		if !refusedCleanly(err, out, []string{"Error: interrupted; nothing was changed"}) {
			t.Errorf("kmsctl seal rotate with %v = %v, %q, want that nothing was changed", signal, err, out)
		}
		for name, data := range v.files(t) {
			if !bytes.Equal(data, before[name]) {
				t.Errorf("%s was changed before %v", name, signal)
			}
		}
		v.wantWhole(t)
	}
}

// readUntil reads until a text was read; to the end for none.
func readUntil(t *testing.T, from interface{ Read(p []byte) (int, error) }, text string) string {
	t.Helper()
	var out strings.Builder
	for b := make([]byte, 1); text == "" || !strings.Contains(out.String(), text); {
		n, err := from.Read(b)
		out.Write(b[:n])
		if err != nil {
			if text != "" {
				t.Fatalf("%v after %q, want %q", err, out.String(), text)
			}
			break
		}
	}
	return out.String()
}
