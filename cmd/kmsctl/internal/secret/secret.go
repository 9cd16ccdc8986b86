// Package secret gets secrets from where an operator keeps them: a file,
// standard input, a prompt on the terminal, or, with a warning, the command
// line.
package secret

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"teekms/internal/keys"
)

// MaxSize bounds a secret, in bytes.
const MaxSize = 8 << 10

// Reader gets the secrets of one command. Make it with its fields; all of them
// are required.
type Reader struct {
	// Stdin is read for the file name "-", by one secret alone, and prompted on
	// where it is a terminal.
	Stdin io.Reader
	// Stderr gets prompts and warnings.
	Stderr io.Writer

	// stdinTaken is the flag whose secret standard input held.
	stdinTaken string
}

// Source says where one secret is.
type Source struct {
	// Flag is the flag that holds it, without dashes; the file is in Flag-file.
	Flag string
	// Value is what the command line holds; Given says whether it does.
	Value string
	Given bool
	// File is the file that holds it, "-" for standard input; "" for none.
	File string
	// Quiet warns of nothing: what the command line holds is no secret.
	Quiet bool
}

// ErrBoth says that a secret was given in two places.
var ErrBoth = errors.New("given twice")

// Get returns the secret, and whether there is one. [ErrBoth] is in the error
// when it is given twice.
func (r *Reader) Get(s Source) (secret keys.Secret, found bool, err error) {
	switch {
	case s.Given && s.File != "":
		return keys.Secret{}, false, fmt.Errorf("give --%s or --%[1]s-file, not both: %w", s.Flag, ErrBoth)
	case s.File != "":
		text, err := r.file(s)
		if err == nil {
			secret, err = oneLine(text)
		}
		if err != nil {
			return keys.Secret{}, false, fmt.Errorf("--%s-file: %w", s.Flag, err)
		}
		return secret, true, nil
	case !s.Given:
		return keys.Secret{}, false, nil
	}
	if !s.Quiet {
		// It is the reader's terminal or log that this goes to.
		fmt.Fprintf(r.Stderr, "Warning: --%s is in the command line, where ps and the shell's history show it; --%[1]s-file keeps it out\n", s.Flag) //nolint:errcheck // there is no one left to tell
	}
	if !utf8.ValidString(s.Value) {
		return keys.Secret{}, false, fmt.Errorf("--%s: not UTF-8 text", s.Flag)
	}
	return keys.NewSecret([]byte(s.Value)), true, nil
}

func (r *Reader) file(s Source) ([]byte, error) {
	from := r.Stdin
	if s.File == "-" {
		if r.stdinTaken != "" {
			return nil, fmt.Errorf("standard input holds that of --%s", r.stdinTaken)
		}
		r.stdinTaken = s.Flag + "-file"
	} else {
		// A pipe is as good as a file: shells write <(command) so.
		f, err := os.Open(s.File)
		if err != nil {
			return nil, err
		}
		defer f.Close() //nolint:errcheck // nothing was written
		from = f
	}
	text, err := io.ReadAll(io.LimitReader(from, MaxSize+1))
	if err == nil && len(text) > MaxSize {
		err = fmt.Errorf("more than %d bytes", MaxSize)
	}
	return text, err
}

// oneLine takes the end of the line off. Nothing else: a password may begin or
// end with a space.
func oneLine(text []byte) (keys.Secret, error) {
	line := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	switch {
	case line == "":
		return keys.Secret{}, errors.New("it is empty")
	case strings.ContainsAny(line, "\r\n"):
		return keys.Secret{}, errors.New("it holds more than one line")
	case !utf8.ValidString(line):
		return keys.Secret{}, errors.New("it is not UTF-8 text")
	}
	return keys.NewSecret([]byte(line)), nil
}

// CanPrompt says whether someone can be asked.
func (r *Reader) CanPrompt() bool {
	_, ok := r.terminal()
	return ok && r.stdinTaken == ""
}

func (r *Reader) terminal() (*os.File, bool) {
	f, ok := r.Stdin.(*os.File)
	if !ok {
		return nil, false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return f, err == nil
}

// Prompt asks on the terminal, which does not show the answer.
func (r *Reader) Prompt(ctx context.Context, what string) (_ keys.Secret, err error) {
	tty, ok := r.terminal()
	if !ok {
		return keys.Secret{}, errors.New("standard input is no terminal")
	}
	restore, err := hideInput(tty)
	if err != nil {
		return keys.Secret{}, err
	}
	defer func() { err = errors.Join(err, restore()) }()
	fmt.Fprintf(r.Stderr, "%s: ", what) //nolint:errcheck // there is no one left to tell
	defer fmt.Fprint(r.Stderr, "\n")    //nolint:errcheck // as above
	answer := make(chan typed, 1)       // the goroutine ends with the line, or with the process
	go func() { answer <- readLine(tty) }()
	select {
	case <-ctx.Done():
		return keys.Secret{}, fmt.Errorf("prompting: %w", ctx.Err())
	case t := <-answer:
		if t.err != nil {
			return keys.Secret{}, fmt.Errorf("prompting: %w", t.err)
		}
		return oneLine(t.text)
	}
}

// hideInput switches the echo of a terminal off, and returns what switches it
// on again.
func hideInput(tty *os.File) (restore func() error, err error) {
	fd := int(tty.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("reading the state of the terminal: %w", err)
	}
	quiet := *before
	quiet.Lflag &^= unix.ECHO
	quiet.Lflag |= unix.ICANON | unix.ISIG
	quiet.Iflag |= unix.ICRNL
	// What was typed before the question is not the answer.
	if err := unix.IoctlSetTermios(fd, unix.TCSETSF, &quiet); err != nil {
		return nil, fmt.Errorf("hiding what is typed: %w", err)
	}
	return func() error {
		if err := unix.IoctlSetTermios(fd, unix.TCSETSF, before); err != nil {
			return fmt.Errorf("showing again what is typed: %w", err)
		}
		return nil
	}, nil
}

type typed struct {
	text []byte
	err  error
}

// readLine reads to the end of a line, byte by byte so that nothing after it is
// taken.
func readLine(f *os.File) typed {
	var line []byte
	for b := make([]byte, 1); len(line) <= MaxSize; {
		n, err := f.Read(b)
		if n == 1 && b[0] == '\n' {
			return typed{text: line}
		}
		line = append(line, b[:n]...)
		if err != nil {
			return typed{err: errors.New("the input ended")}
		}
	}
	return typed{err: fmt.Errorf("more than %d bytes", MaxSize)}
}
