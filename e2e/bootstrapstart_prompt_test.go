package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is the operator's side of a terminal.
type terminal struct {
	*os.File
	tty *os.File

	mu    sync.Mutex // guards shown
	shown bytes.Buffer
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	operator, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(operator.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{File: operator, tty: tty}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 4096)
		for {
			n, err := operator.Read(b)
			term.mu.Lock()
			term.shown.Write(b[:n])
			term.mu.Unlock()
			if err != nil {
				return // the last one on the other side left
			}
		}
	}()
	t.Cleanup(func() {
		tty.Close()
		<-done
		operator.Close()
	})
	return term
}

func (term *terminal) String() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.shown.String()
}

// echoes says whether the terminal shows what is typed.
func (term *terminal) echoes(t *testing.T) bool {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(term.tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

// start runs kmsctl bootstrap-start on the terminal.
func (term *terminal) start(t *testing.T, w *waiting, args ...string) *process {
	t.Helper()
	cmd := command(t, nil, "kmsctl", slices.Concat([]string{"bootstrap-start"}, w.known(t), args)...)
	cmd.Stdin = term.tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	return startCmd(t, cmd)
}

// TestBootstrapStartPrompts types passwords at the prompts of kmsctl.
func TestBootstrapStartPrompts(t *testing.T) {
	t.Parallel()
	w := newWaiting(t, "")
	p12 := w.p12(t, "kms.p12", "MarkerOfP12 é")
	args := []string{
		"--database-type", "redis-findex", "--database-url", "redis://127.0.0.1:1/0", "--redis-findex-label", "label", "--https-p12-file", p12,
	}
	t.Run("two passwords", func(t *testing.T) {
		term := newTerminal(t)
		p := term.start(t, w, args...)
		// Prompts go to standard error, which is no terminal here.
		for _, answer := range [][2]string{{"Password of " + p12 + ": ", "MarkerOfP12 é\n"}, {"Redis master password: ", "MarkerOfMaster\n"}} {
			for deadline := time.Now().Add(patience); !strings.HasSuffix(p.stderr.String(), answer[0]); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("kmsctl does not ask %q: %s", answer[0], p.stderr)
				}
			}
			if term.echoes(t) {
				t.Error("the terminal shows what is typed")
			}
			if _, err := term.WriteString(answer[1]); err != nil {
				t.Fatal(err)
			}
		}
		// Nobody is at that Redis: the server has understood everything else.
		if code := p.wait(t, patience); code != 1 || !strings.Contains(p.stdout.String(), "  -> Successfully received Redis-Findex configuration\n") ||
			!strings.Contains(p.stderr.String(), "\nERROR: opening the database: ") {
			t.Errorf("kmsctl bootstrap-start = %d, %q, %q", code, p.stdout, p.stderr)
		}
		if !term.echoes(t) {
			t.Error("the terminal still hides what is typed")
		}
		w.hides(t, term.String()+p.stdout.String()+p.stderr.String(), "MarkerOf")
	})
	t.Run("Ctrl-C", func(t *testing.T) {
		term := newTerminal(t)
		p := term.start(t, w, args...)
		for deadline := time.Now().Add(patience); !strings.HasSuffix(p.stderr.String(), ": "); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("kmsctl does not ask: %s", p.stderr)
			}
		}
		if _, err := term.WriteString("half a pass\x03"); err != nil {
			t.Fatal(err)
		}
		if code := p.wait(t, patience); code != 1 || !strings.HasSuffix(p.stderr.String(), "\nERROR: interrupted\n") || p.stdout.String() != "" {
			t.Errorf("kmsctl bootstrap-start = %d, %q, %q, want 1 and that it was interrupted", code, p.stdout, p.stderr)
		}
		if !term.echoes(t) {
			t.Error("the terminal still hides what is typed")
		}
	})
	t.Run("a PKCS#12 file without a password", func(t *testing.T) {
		open := w.p12(t, "open.p12", "")
		term := newTerminal(t)
		p := term.start(t, w, "--database-type", "sqlite", "--sqlite-path", filepath.Join(w.Dir, "data"), "--https-p12-file", open)
		if code := p.wait(t, patience); code != 0 || p.stderr.String() != "" {
			t.Errorf("kmsctl bootstrap-start = %d, %q, %q, want 0 and no question", code, p.stdout, p.stderr)
		}
		w.serves(t, "operator.example.com")
	})
}
