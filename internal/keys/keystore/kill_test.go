package keystore_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"teekms/internal/durable"
	"teekms/internal/durable/durabletest"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

const (
	// childEnv names what the test binary does instead of testing.
	childEnv = "KEYSTORE_TEST_CHILD"
	dirEnv   = "KEYSTORE_TEST_DIR"
	// stopEnv is the number of the step at which the child waits to be killed.
	stopEnv = "KEYSTORE_TEST_STOP"
)

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "commit":
		os.Exit(commitChild(os.Getenv(dirEnv), os.Getenv(stopEnv)))
	case "seal":
		os.Exit(sealChild(os.Getenv(dirEnv), os.Getenv(stopEnv)))
	case "bootstrap", "replica", "repair", "contend":
		os.Exit(sealedChild(os.Getenv(childEnv), os.Getenv(dirEnv), os.Getenv(stopEnv)))
	case "nobody":
		os.Exit(nobodyChild(os.Getenv(dirEnv)))
	case "nobody-seal":
		os.Exit(nobodySealChild(os.Getenv(dirEnv)))
	}
	os.Exit(m.Run())
}

// commitChild bootstraps a directory and tells of it on standard output:
//
//	keys FINGERPRINT   before it begins
//	STEP               each change of the file system, before and after it
//	stop               it waits to be killed
//	done               Commit has returned nil
func commitChild(dir, stop string) int {
	stopAt, err := strconv.Atoi(stop)
	if err != nil {
		return fail(err)
	}
	roots, err := keys.NewRoots()
	if err != nil {
		return fail(err)
	}
	b, err := keystore.NewBundle(roots, testDomain, &keystore.Info{CAPublic: roots.CAPublic(), K256Public: roots.K256Public()}, time.Now())
	if err != nil {
		return fail(err)
	}
	fmt.Printf("keys %x\n", roots.CAPublic())
	s, err := keystore.Open(context.Background(), keystore.Config{Dir: dir, FS: told(dir, stopAt)})
	if err != nil {
		return fail(err)
	}
	if err := s.Commit(context.Background(), b); err != nil {
		return fail(err)
	}
	fmt.Println("done")
	return 0
}

// sealChild seals a directory that is plain or sealed here to there, and tells
// of it as commitChild does.
func sealChild(dir, stop string) int {
	stopAt, err := strconv.Atoi(stop)
	if err != nil {
		return fail(err)
	}
	here, err := newSet("here")
	if err != nil {
		return fail(err)
	}
	there, err := newSet("there")
	if err != nil {
		return fail(err)
	}
	cfg := keystore.Config{Dir: dir, FS: told(dir, stopAt), Now: clock}
	s, err := keystore.Open(context.Background(), cfg)
	if errors.Is(err, keystore.ErrSealed) {
		cfg.Sealer = here
		s, err = keystore.Open(context.Background(), cfg)
	}
	if err != nil {
		return fail(err)
	}
	if err := s.Reseal(context.Background(), there); err != nil {
		return fail(err)
	}
	fmt.Println("done")
	return 0
}

// told is the real file system, which tells of each step and at one of them waits
// to be killed.
func told(dir string, stopAt int) durable.FS {
	steps := 0
	tell := func(when string) func(string) {
		return func(step string) {
			fmt.Println(when, step)
			if steps++; steps == stopAt {
				fmt.Println("stop")
				time.Sleep(time.Minute)
			}
		}
	}
	return durabletest.Observed{FS: durable.NewWithin(dir), Before: tell("before"), After: tell("after")}
}

func fail(err error) int {
	fmt.Println("error", err)
	return 1
}

// life is what a child told before it ended.
type life struct {
	keys   string
	steps  []string
	done   bool
	killed bool
}

// runChild runs a commit in a process of its own and kills it: when it stops by
// itself at a step, or after a time.
func runChild(t *testing.T, dir string, stopAt int, after time.Duration) life {
	t.Helper()
	return runChildAs(t, "commit", dir, stopAt, after)
}

func runChildAs(t *testing.T, what, dir string, stopAt int, after time.Duration) life {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+what, dirEnv+"="+dir, stopEnv+"="+strconv.Itoa(stopAt))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var l life
	for lines := bufio.NewScanner(out); lines.Scan(); {
		switch word, rest, _ := strings.Cut(lines.Text(), " "); word {
		case "keys":
			l.keys = rest
			if after > 0 {
				// It may be gone already.
				time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
			}
		case "before", "after":
			l.steps = append(l.steps, lines.Text())
		case "stop":
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		case "done":
			l.done = true
		default:
			t.Errorf("child: %s", lines.Text())
		}
	}
	var exit *exec.ExitError
	if errors.As(cmd.Wait(), &exit) {
		l.killed = exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
	}
	return l
}

// staging reports whether the child was killed between its first write to the
// stage and the sync that ends the commit.
func (l life) staging() bool {
	begun, ended := false, false
	for _, s := range l.steps {
		begun = begun || s == "before create root-ca.key"
		// The sync before the marker goes makes everything durable; removing the
		// marker is the first thing after it.
		ended = ended || s == "before remove commit"
	}
	return begun && !ended
}

// TestKilled kills real processes on a real file system, at each step of the
// commit and at random times, and looks what the next process finds.
func TestKilled(t *testing.T) {
	const (
		wantKills, wantStaging = 300, 100
		workers                = 4
	)
	base := t.TempDir()
	begin := time.Now()
	whole := runChild(t, filepath.Join(base, "whole"), 0, 0)
	took := time.Since(begin)
	if !whole.done || len(whole.steps) < 60 {
		t.Fatalf("unhindered child: done = %v after %d steps", whole.done, len(whole.steps))
	}
	var count tally
	jobs := make(chan int)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for n := range jobs {
				dir := filepath.Join(base, strconv.Itoa(n), "certs")
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Error(err)
				}
				stopAt, after := 1+n%len(whole.steps), time.Duration(0)
				if n%4 == 3 {
					stopAt, after = 0, time.Duration(rand.Int64N(int64(took)))
				}
				l := runChild(t, dir, stopAt, after)
				if !l.killed {
					count.add("ended before the kill")
				} else {
					count.add("kills")
				}
				if l.killed && l.staging() {
					count.add("kills between the first staged write and the last sync")
				}
				findAfterKill(t, dir, l, &count)
				if err := os.RemoveAll(filepath.Dir(dir)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for n := 0; n < 2000 && (count.get("kills") < wantKills || count.get("kills between the first staged write and the last sync") < wantStaging); n++ {
		jobs <- n
	}
	close(jobs)
	wg.Wait()
	killResealing(t, &count)
	killSealed(t, &count)
	count.floor(t, map[string]int{
		"kills of a sealed bootstrap": 80, "kills of a sealed replica": 80, "kills of a sealed repair": 80,
		"found empty, sealed": 50, "found complete, sealed": 20, "found repaired, sealed": 80,
		"kills while sealing": 190, "found resealed": 50, "found not resealed": 50,
		"kills": wantKills, "kills between the first staged write and the last sync": wantStaging,
		"found empty": 50, "found complete": 50, "rolled forward": 20,
	})
}

// killResealing kills processes at each step of sealing a plain directory and of
// sealing a sealed one anew.
func killResealing(t *testing.T, count *tally) {
	here, there := sealTo(t, "here"), sealTo(t, "there")
	for _, from := range []keystore.Sealer{nil, here} {
		template, b := t.TempDir(), newBundle(t)
		s, err := keystore.Open(t.Context(), keystore.Config{Dir: template, Now: clock, Sealer: from})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		secret, files := secretsOf(keystore.PlainFiles(b)), snapshot(t, template)
		for stopAt := 1; ; stopAt++ {
			dir := t.TempDir()
			for name, mode := range theEight() {
				writeFile(t, files[name], mode, dir, name)
			}
			l := runChildAs(t, "seal", dir, stopAt, 0)
			if !l.killed {
				if !l.done {
					t.Errorf("a child that was not killed has not finished: %v", l.steps)
				}
				break
			}
			count.add("kills while sealing")
			if _, err := keystore.ReadPrivate(t.Context(), dir, nil); err != nil {
				t.Fatalf("after %s: ReadPrivate = %v, want nil", l.steps[len(l.steps)-1], err)
			}
			found := "found resealed"
			s, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Now: clock, Sealer: there})
			if err != nil {
				found = "found not resealed"
				s, err = keystore.Open(t.Context(), keystore.Config{Dir: dir, Now: clock, Sealer: from})
			}
			if err != nil || !s.Roots().Equal(b.Roots()) || len(list(t, dir)) != 8 {
				t.Fatalf("after %s: Open = %v with %v, want old or new, whole", l.steps[len(l.steps)-1], err, list(t, dir))
			}
			if leaked := secret.in(below(t, dir)); found == "found resealed" && len(leaked) > 0 {
				t.Errorf("after %s: in the clear: %v", l.steps[len(l.steps)-1], leaked)
			}
			count.add("%s", found)
		}
	}
}

func findAfterKill(t *testing.T, dir string, l life, count *tally) {
	s, err := keystore.Open(context.Background(), keystore.Config{Dir: dir})
	if err != nil {
		t.Errorf("Open after %q = %v, want empty or complete", l.steps[max(0, len(l.steps)-1):], err)
		return
	}
	left := list(t, dir)
	switch {
	case s.Complete():
		count.add("found complete")
		if got := fmt.Sprintf("%x", s.Roots().CAPublic()); got != l.keys {
			t.Errorf("found complete with %s, want %s", got, l.keys)
		}
		if len(left) != 8 {
			t.Errorf("left in the complete directory: %v", left)
		}
		if s.RolledForward() {
			count.add("rolled forward")
		}
	case l.done:
		t.Errorf("found empty after the keys were announced")
	default:
		count.add("found empty")
		if len(left) != 0 {
			t.Errorf("left in the empty directory: %v", left)
		}
	}
}
