package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// person sits at the terminal of a process.
type person struct {
	operator *os.File
	cmd      *exec.Cmd

	mu    sync.Mutex // guards shown
	shown bytes.Buffer
	read  int // how much of what was shown has been waited for
	gone  chan struct{}
}

// atTerminal starts a verb with a terminal of its own, as a shell does.
func (v *victim) atTerminal(t *testing.T, args ...string) *person {
	t.Helper()
	return sit(t, child(t.Context(), "kmsctl", append([]string{"seal", args[0], "--config", v.config}, args[1:]...)...))
}

// sit starts a command with a terminal of its own.
func sit(t *testing.T, cmd *exec.Cmd) *person {
	t.Helper()
	operator, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	check(t, err)
	t.Cleanup(func() { _ = operator.Close() })
	check(t, unix.IoctlSetPointerInt(int(operator.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(operator.Fd()), unix.TIOCGPTN)
	check(t, err)
	tty, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	check(t, err)
	p := &person{operator: operator, cmd: cmd, gone: make(chan struct{})}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = tty, tty, tty
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	check(t, p.cmd.Start())
	check(t, tty.Close())
	go func() {
		defer close(p.gone)
		for b := make([]byte, 256); ; {
			n, err := operator.Read(b)
			p.mu.Lock()
			p.shown.Write(b[:n])
			p.mu.Unlock()
			if err != nil {
				return // the terminal has no other end any more
			}
		}
	}()
	return p
}

// answer waits for a question and types.
func (p *person) answer(t *testing.T, question, text string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		p.mu.Lock()
		at := bytes.Index(p.shown.Bytes()[p.read:], []byte(question))
		if at >= 0 {
			p.read += at + len(question)
		}
		p.mu.Unlock()
		if at >= 0 {
			_, err := p.operator.WriteString(text)
			check(t, err)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	t.Fatalf("after a minute the terminal shows %q, want %q", p.shown.String(), question)
}

// end waits for the process, and returns its exit code and all that was shown.
func (p *person) end(t *testing.T) (code int, shown string) {
	t.Helper()
	// A process that asks what nobody answers is ended.
	late := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
	_ = p.cmd.Wait() // the code tells
	late.Stop()
	<-p.gone
	if strings.Contains(p.shown.String(), "canary") {
		t.Errorf("the terminal shows a passphrase: %q", p.shown.String())
	}
	return p.cmd.ProcessState.ExitCode(), p.shown.String()
}

// A person is asked for passphrases, which are not shown.
func TestPassphrasesAreTyped(t *testing.T) {
	const ask, again, old = "Passphrase of the key directory: ", "The same passphrase again: ", "Old passphrase of the key directory: "
	v := newVictim(t)
	v.config = filepath.Join(filepath.Dir(v.config), "prompt.toml")
	check(t, os.WriteFile(v.config, fmt.Appendf(nil, "[core]\ncert_dir = %q\n[core.seal.passphrase]\nprompt = true\nwork_factor = 10\n", v.dir), 0o600))
	type line struct{ question, answer string }
	steps := []struct {
		name  string
		args  []string
		lines []line
		code  int
		want  string
	}{
		{"two that differ", []string{"add"}, []line{{ask, "canary"}, {again, "canary "}}, 1, "the two passphrases differ"},
		{"nothing typed", []string{"add"}, []line{{ask, ""}}, 1, "nothing was typed"},
		{"sealing", []string{"add"}, []line{{ask, "canary"}, {again, "canary"}}, 0, "Opened again   passphrase"},
		{"asked once to open", []string{"status"}, []line{{ask, "canary"}}, 0, "opens here"},
		{"another one opens nothing", []string{"status"}, []line{{ask, "canary 2"}, {ask, "canary 2"}, {ask, "canary 2"}}, 1, "wrong passphrase"},
		{"one that opened is not confirmed", []string{"rotate"}, []line{{ask, "canary"}}, 0, "Opened again   passphrase"},
		{"changed", []string{"rotate", "--old-passphrase-file", "-"}, []line{{old, "canary"}, {ask, "canary 2"}, {again, "canary 2"}}, 0, "Opened again   passphrase"},
		{"the new one opens", []string{"status"}, []line{{ask, "canary 2"}}, 0, "opens here"},
		{"the old one does not", []string{"status"}, []line{{ask, "canary"}, {ask, "canary"}, {ask, "canary"}}, 1, "wrong passphrase"},
	}
	for _, step := range steps {
		p := v.atTerminal(t, step.args...)
		for _, l := range step.lines {
			p.answer(t, l.question, l.answer+"\n")
		}
		if code, shown := p.end(t); code != step.code || !strings.Contains(shown, step.want) {
			t.Errorf("%s: kmsctl seal %q = %d, %q, want %d, %q", step.name, step.args, code, shown, step.code, step.want)
		}
	}
	if left := v.plainLeft(t); len(left) > 0 {
		t.Errorf("plain keys are on the disk: %s", left)
	}
}

// An interrupt at the question changes nothing, and the terminal shows again what
// is typed.
func TestInterruptAtTheQuestion(t *testing.T) {
	v := newVictim(t)
	v.config = filepath.Join(filepath.Dir(v.config), "prompt.toml")
	check(t, os.WriteFile(v.config, fmt.Appendf(nil, "[core]\ncert_dir = %q\n[core.seal.passphrase]\nprompt = true\nwork_factor = 10\n", v.dir), 0o600))
	p := v.atTerminal(t, "add")
	p.answer(t, "Passphrase of the key directory: ", "\x03") // Ctrl-C
	if code, shown := p.end(t); code != 1 || !strings.Contains(shown, "interrupted; nothing was changed") {
		t.Errorf("kmsctl seal add = %d, %q, want that nothing was changed", code, shown)
	} else if strings.Contains(shown, "directory: ^Ckmsctl") || strings.Contains(shown, "directory: kmsctl") || !strings.HasSuffix(shown, "\r\n") {
		t.Errorf("kmsctl seal add shows %q, want what it says on a line of its own", shown)
	}
	for name, data := range v.files(t) {
		if !bytes.Equal(data, v.plain[name]) {
			t.Errorf("%s was changed", name)
		}
	}
}

// What ends other processes at once leaves the terminal as it was, and shows nothing
// of what was typed.
func TestHangupAndQuitAtTheQuestion(t *testing.T) {
	v := newVictim(t)
	v.config = filepath.Join(filepath.Dir(v.config), "prompt.toml")
	check(t, os.WriteFile(v.config, fmt.Appendf(nil, "[core]\ncert_dir = %q\n[core.seal.passphrase]\nprompt = true\nwork_factor = 10\n", v.dir), 0o600))
	for _, tt := range []struct {
		name string
		end  func(p *person) error
	}{
		{"Ctrl-\\", func(p *person) error { _, err := p.operator.WriteString("\x1c"); return err }},
		{"SIGHUP", func(p *person) error { return p.cmd.Process.Signal(syscall.SIGHUP) }},
	} {
		p := v.atTerminal(t, "add")
		p.answer(t, "Passphrase of the key directory: ", "canary")
		check(t, tt.end(p))
		code, shown := p.end(t)
		if code != 1 || !strings.HasSuffix(shown, "directory: \r\nError: interrupted; nothing was changed\r\n") {
			t.Errorf("%s: kmsctl seal add = %d, %q, want that nothing was changed", tt.name, code, shown)
		}
		if state, err := unix.IoctlGetTermios(int(p.operator.Fd()), unix.TCGETS); err != nil || state.Lflag&unix.ECHO == 0 {
			t.Errorf("%s: the echo is off (%v)", tt.name, err)
		}
	}
}

// Who starts it in the background is asked, once, when it is in the foreground.
func TestAsksInTheForeground(t *testing.T) {
	v := newVictim(t)
	v.config = filepath.Join(filepath.Dir(v.config), "prompt.toml")
	check(t, os.WriteFile(v.config, fmt.Appendf(nil, "[core]\ncert_dir = %q\n[core.seal.passphrase]\nprompt = true\nwork_factor = 10\n", v.dir), 0o600))
	const ask = "Passphrase of the key directory: "
	cmd := child(t.Context(), "kmsctl", "seal", "add", "--config", v.config)
	const script = `export LC_ALL=C; set -m; "$0" "$@" & until jobs | grep -q Stopped; do sleep 0.05; done; fg >/dev/null`
	cmd.Path, cmd.Args = "/bin/bash", append([]string{"bash", "-c", script}, cmd.Args...)
	p := sit(t, cmd)
	p.answer(t, ask, "canary\n")
	p.answer(t, "The same passphrase again: ", "canary\n")
	code, shown := p.end(t)
	if code != 0 || strings.Count(shown, ask) != 1 {
		t.Errorf("kmsctl seal add = %d, %q, want one question", code, shown)
	}
}
