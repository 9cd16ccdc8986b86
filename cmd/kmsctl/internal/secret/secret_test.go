package secret_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"teekms/cmd/kmsctl/internal/secret"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestGet(t *testing.T) {
	tests := []struct {
		name  string
		from  func(*testing.T) secret.Source
		stdin string
		want  string
		found bool
		warns bool
		err   string
	}{
		{"nowhere", func(*testing.T) secret.Source { return secret.Source{} }, "", "", false, false, ""},
		{"the command line", func(*testing.T) secret.Source { return secret.Source{Value: "s3cret", Given: true} }, "", "s3cret", true, true, ""},
		{"the command line, empty", func(*testing.T) secret.Source { return secret.Source{Given: true} }, "", "", true, true, ""},
		{"the command line, no secret", func(*testing.T) secret.Source { return secret.Source{Value: "s3cret", Given: true, Quiet: true} }, "", "s3cret", true, false, ""},
		{"the command line, not text", func(*testing.T) secret.Source { return secret.Source{Value: "s\xff", Given: true} }, "", "", false, true, "--pw: not UTF-8 text"},
		{"a file", func(t *testing.T) secret.Source { return secret.Source{File: write(t, "s3cret\n")} }, "", "s3cret", true, false, ""},
		{"a file without end of line", func(t *testing.T) secret.Source { return secret.Source{File: write(t, "s3cret")} }, "", "s3cret", true, false, ""},
		{"a file of another system", func(t *testing.T) secret.Source { return secret.Source{File: write(t, "s3cret\r\n")} }, "", "s3cret", true, false, ""},
		{"a file with spaces", func(t *testing.T) secret.Source { return secret.Source{File: write(t, " s3 cret \n")} }, "", " s3 cret ", true, false, ""},
		{"standard input", func(*testing.T) secret.Source { return secret.Source{File: "-"} }, "s3cret\n", "s3cret", true, false, ""},
		{"an empty file", func(t *testing.T) secret.Source { return secret.Source{File: write(t, "\n")} }, "", "", false, false, "--pw-file: it is empty"},
		{"a file of two lines", func(t *testing.T) secret.Source { return secret.Source{File: write(t, "s3cret\nother\n")} }, "", "", false, false, "--pw-file: it holds more than one line"},
		{"a file that is not text", func(t *testing.T) secret.Source { return secret.Source{File: write(t, "s\xff")} }, "", "", false, false, "--pw-file: it is not UTF-8 text"},
		{"a large file", func(t *testing.T) secret.Source { return secret.Source{File: write(t, strings.Repeat("a", 9000))} }, "", "", false, false, "/secret has more than 8192 bytes"},
		{"no file", func(t *testing.T) secret.Source { return secret.Source{File: filepath.Join(t.TempDir(), "none")} }, "", "", false, false, "no such file"},
		{"two places", func(t *testing.T) secret.Source {
			return secret.Source{Value: "s3cret", Given: true, File: "x"}
		}, "", "", false, false, "give --pw or --pw-file, not both"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stderr bytes.Buffer
			r := &secret.Reader{Stdin: strings.NewReader(tt.stdin), Stderr: &stderr}
			source := tt.from(t)
			source.Flag = "pw"
			got, found, err := r.Get(t.Context(), source)
			if string(got.Bytes()) != tt.want || found != tt.found || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Get() = %q, %t, %v, want %q, %t, %q", got.Bytes(), found, err, tt.want, tt.found, tt.err)
			}
			if warned := strings.Contains(stderr.String(), "Warning: --pw is in the command line, where ps and the shell's history show it; --pw-file keeps it out\n"); warned != tt.warns {
				t.Errorf("Get() writes %q, want a warning: %t", stderr.String(), tt.warns)
			}
			if all := stderr.String() + errorText(err); strings.Contains(all, "s3cret") {
				t.Errorf("Get() shows the secret: %s", all)
			}
			if r.CanPrompt() {
				t.Error("CanPrompt() = true without a terminal")
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestStandardInputHoldsOneSecret(t *testing.T) {
	r := &secret.Reader{Stdin: strings.NewReader("a\n"), Stderr: &bytes.Buffer{}}
	if _, _, err := r.Get(t.Context(), secret.Source{Flag: "one", File: "-"}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Get(t.Context(), secret.Source{Flag: "two", File: "-"}); err == nil || !strings.Contains(err.Error(), "--two-file: standard input holds that of --one-file") {
		t.Errorf("Get() = %v, want that standard input is taken", err)
	}
}

// A pipe is what a shell gives for <(command).
func TestAPipeIsAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	go os.WriteFile(path, []byte("s3cret\n"), 0)
	r := &secret.Reader{Stdin: strings.NewReader(""), Stderr: &bytes.Buffer{}}
	if got, _, err := r.Get(t.Context(), secret.Source{Flag: "pw", File: path}); err != nil || string(got.Bytes()) != "s3cret" {
		t.Errorf("Get() = %q, %v, want what comes through the pipe", got.Bytes(), err)
	}
}

// pty opens a terminal and its other end.
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

// echoes says whether a terminal shows what is typed.
func echoes(t *testing.T, tty *os.File) bool {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

// prompt asks, types what is to be typed once the echo is off, does what is to be
// done then, and returns what the operator saw.
func prompt(t *testing.T, ctx context.Context, typed string, then ...func()) (answer, seen string, err error) {
	t.Helper()
	tty, operator := pty(t)
	r := &secret.Reader{Stdin: tty, Stderr: tty}
	if !r.CanPrompt() || !echoes(t, tty) {
		t.Fatal("CanPrompt() = false on a terminal")
	}
	shown := make(chan string, 1)
	go func() {
		var all []byte
		b := make([]byte, 256)
		for !bytes.Contains(all, []byte("\r\n")) { // what was typed last may follow, when the echo is on again
			n, err := operator.Read(b)
			if err != nil {
				break
			}
			all = append(all, b[:n]...)
			if bytes.HasSuffix(all, []byte("Password: ")) {
				operator.WriteString(typed)
				for _, f := range then {
					f()
				}
			}
		}
		shown <- string(all)
	}()
	s, err := r.Prompt(ctx, "Password")
	if !echoes(t, tty) {
		t.Error("Prompt() leaves the echo off")
	}
	return string(s.Bytes()), <-shown, err
}

func TestPrompt(t *testing.T) {
	answer, seen, err := prompt(t, t.Context(), "s3cret é\n")
	if err != nil || answer != "s3cret é" || seen != "Password: \r\n" {
		t.Errorf("Prompt() = %q, %v, showing %q, want the answer and nothing of it shown", answer, err, seen)
	}
	if _, _, err := prompt(t, t.Context(), "\n"); err == nil || !strings.Contains(err.Error(), "it is empty") {
		t.Errorf("Prompt() of an empty line = %v, want an error", err)
	}
	if _, _, err := prompt(t, t.Context(), "\x04"); err == nil || !strings.Contains(err.Error(), "the input ended") {
		t.Errorf("Prompt() at the end of input = %v, want an error", err)
	}
}

func TestPromptIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, _, err := prompt(t, ctx, "half", cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("Prompt() = %v, want that of the context", err)
	}
}

func TestPromptNeedsATerminal(t *testing.T) {
	r := &secret.Reader{Stdin: strings.NewReader("x\n"), Stderr: &bytes.Buffer{}}
	if _, err := r.Prompt(t.Context(), "Password"); err == nil || !strings.Contains(err.Error(), "no terminal") {
		t.Errorf("Prompt() = %v, want that there is no terminal", err)
	}
}
