package terminal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"teekms/cmd/internal/terminal"
)

// pty opens a terminal and its operator's end.
func pty(t *testing.T) (tty, operator *os.File) {
	t.Helper()
	operator, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { operator.Close() })
	if err := unix.IoctlSetPointerInt(int(operator.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(operator.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return tty, operator
}

// typist is where the question goes; it types when it sees one.
type typist struct {
	operator *os.File
	typed    string
	shown    bytes.Buffer
}

func (w *typist) Write(p []byte) (int, error) {
	if bytes.HasSuffix(p, []byte(": ")) {
		if _, err := w.operator.WriteString(w.typed); err != nil {
			return 0, err
		}
	}
	return w.shown.Write(p)
}

func echoes(t *testing.T, operator *os.File) bool {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(operator.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

func TestAsk(t *testing.T) {
	tty, operator := pty(t)
	w := &typist{operator: operator, typed: " s3cret é \nrest"}
	line, err := terminal.Question{TTY: tty, Out: w, Text: "Name: "}.Ask(t.Context())
	if string(line) != " s3cret é " || err != nil || w.shown.String() != "Name: \n" {
		t.Errorf("Ask() = %q, %v, showing %q, want the line alone", line, err, w.shown.String())
	}
	if !echoes(t, operator) {
		t.Error("Ask() leaves the echo off")
	}
}

// TestAskIsNotCutByTheTerminal types as much as the terminal keeps of a line, and
// more, which it drops.
func TestAskIsNotCutByTheTerminal(t *testing.T) {
	for _, tt := range []struct {
		size int
		want string
	}{
		{terminal.MaxLine, "<nil>"},
		{terminal.MaxLine + 1, "prompting: an answer may have 4094 bytes: the terminal would cut a longer one"},
		{terminal.MaxLine + 100, "prompting: an answer may have 4094 bytes: the terminal would cut a longer one"},
	} {
		tty, operator := pty(t)
		w := &typist{operator: operator, typed: strings.Repeat("a", tt.size) + "\n"}
		line, err := terminal.Question{TTY: tty, Out: w, Text: "Name: "}.Ask(t.Context())
		if fmt.Sprint(err) != tt.want || err == nil && len(line) != tt.size {
			t.Errorf("Ask() with %d bytes typed = %d bytes, %v, want %s", tt.size, len(line), err, tt.want)
		}
	}
}

// TestAskIsNotSuspended looks at the terminal while the question is asked: a
// process that Ctrl-Z stops comes back to an echo that its shell switched on.
func TestAskIsNotSuspended(t *testing.T) {
	tty, operator := pty(t)
	suspends := func() uint8 {
		state, err := unix.IoctlGetTermios(int(operator.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return state.Cc[unix.VSUSP]
	}
	before := suspends()
	w := &typist{operator: operator, typed: "a\x1ab\n"}
	var during uint8 = 0xff
	line, err := terminal.Question{TTY: tty, Out: writer(func(p []byte) (int, error) {
		during = min(during, suspends())
		return w.Write(p)
	}), Text: "Name: "}.Ask(t.Context())
	if string(line) != "a\x1ab" || err != nil || before == 0 || during != 0 || suspends() != before {
		t.Errorf("Ask() = %q, %v; suspending character %d before, %d during, %d after, want it off in between", line, err, before, during, suspends())
	}
}

// TestAskAgainWhereTheAnswerWasSeen has the echo switched on while the question is
// asked, as a shell does to which the process is stopped.
func TestAskAgainWhereTheAnswerWasSeen(t *testing.T) {
	for _, tt := range []struct {
		name  string
		typed string
		// goOn is what the process is told.
		goOn bool
	}{
		{"a whole line", "seen\n", false},
		{"a whole line, and it goes on", "seen\n", true},
		{"half a line, and it goes on", "seen", true},
		{"nothing, and it goes on", "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tty, operator := pty(t)
			asked := 0
			ask := writer(func(p []byte) (int, error) {
				if !bytes.HasSuffix(p, []byte(": ")) {
					return len(p), nil
				}
				if asked++; asked > 1 {
					if echoes(t, operator) {
						t.Error("Ask() asks again, and shows what is typed")
					}
					_, err := operator.WriteString("hidden\n")
					return len(p), err
				}
				show(t, operator)
				if _, err := operator.WriteString(tt.typed); err != nil {
					return 0, err
				}
				// It has reached the terminal when it is seen.
				if _, err := io.ReadFull(operator, make([]byte, len(tt.typed))); err != nil {
					return 0, err
				}
				if tt.goOn {
					return len(p), unix.Kill(os.Getpid(), unix.SIGCONT)
				}
				return len(p), nil
			})
			line, err := terminal.Question{TTY: tty, Out: ask, Text: "Name: "}.Ask(t.Context())
			if string(line) != "hidden" || err != nil || asked < 2 {
				t.Errorf("Ask() = %q, %v after %d questions, want what was typed hidden", line, err, asked)
			}
			if !echoes(t, operator) {
				t.Error("Ask() leaves the echo off")
			}
		})
	}
}

// TestAskEndsWhereItCannotAskAgain has a descriptor that blocks, as standard input
// is: nothing interrupts who reads it.
func TestAskEndsWhereItCannotAskAgain(t *testing.T) {
	open, operator := pty(t)
	fd, err := unix.Open(open.Name(), unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	tty := os.NewFile(uintptr(fd), "blocking")
	ask := writer(func(p []byte) (int, error) {
		if bytes.HasSuffix(p, []byte(": ")) {
			show(t, operator)
			return len(p), unix.Kill(os.Getpid(), unix.SIGCONT)
		}
		return len(p), nil
	})
	const want = "prompting: the process was stopped while it asked"
	if line, err := (terminal.Question{TTY: tty, Out: ask, Text: "Name: "}).Ask(t.Context()); err == nil || err.Error() != want {
		t.Errorf("Ask() = %q, %v, want %s", line, err, want)
	}
	if _, err := operator.WriteString("\n"); err != nil { // for who still reads
		t.Error(err)
	}
}

// show switches the echo on.
func show(t *testing.T, operator *os.File) {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(operator.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	state.Lflag |= unix.ECHO
	if err := unix.IoctlSetTermios(int(operator.Fd()), unix.TCSETS, state); err != nil {
		t.Fatal(err)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func TestAskEndsWithItsContext(t *testing.T) {
	tty, operator := pty(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	w := &typist{operator: operator, typed: "half"}
	if _, err := (terminal.Question{TTY: tty, Out: w, Text: "Name: "}).Ask(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Ask() = %v, want that of the context", err)
	}
	if !echoes(t, operator) {
		t.Error("Ask() leaves the echo off")
	}
}

// TestAskEndsWithSignals that would end the process at once and leave the echo off.
// A context that SIGTERM ends stands for the process.
func TestAskEndsWithSignals(t *testing.T) {
	for _, tt := range []struct {
		name  string
		typed string
		sent  unix.Signal
	}{
		{"hangup", "half", unix.SIGHUP},
		{"quit", "half", unix.SIGQUIT},
		{"hangup beside an answer", "whole\n", unix.SIGHUP},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, stop := signal.NotifyContext(t.Context(), unix.SIGTERM)
			defer stop()
			tty, operator := pty(t)
			w := &typist{operator: operator, typed: tt.typed}
			ask := writer(func(p []byte) (int, error) {
				if bytes.HasSuffix(p, []byte(": ")) {
					defer unix.Kill(os.Getpid(), tt.sent)
				}
				return w.Write(p)
			})
			line, err := terminal.Question{TTY: tty, Out: ask, Text: "Name: "}.Ask(ctx)
			if !errors.Is(err, context.Canceled) || len(line) > 0 {
				t.Errorf("Ask() = %d bytes, %v, want none and that of the context", len(line), err)
			}
			if !echoes(t, operator) || w.shown.String() != "Name: \n" {
				t.Errorf("Ask() leaves the echo off, or shows %q", w.shown.String())
			}
		})
	}
}

func TestIs(t *testing.T) {
	tty, _ := pty(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if !terminal.Is(tty) || terminal.Is(null) {
		t.Errorf("Is() = %v of a terminal, %v of /dev/null, want true, false", terminal.Is(tty), terminal.Is(null))
	}
}
