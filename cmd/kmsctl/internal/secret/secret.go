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

	"teekms/cmd/internal/argfile"
	"teekms/cmd/internal/terminal"
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
func (r *Reader) Get(ctx context.Context, s Source) (secret keys.Secret, found bool, err error) {
	switch {
	case s.Given && s.File != "":
		return keys.Secret{}, false, fmt.Errorf("give --%s or --%[1]s-file, not both: %w", s.Flag, ErrBoth)
	case s.File != "":
		text, err := r.file(ctx, s)
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

func (r *Reader) file(ctx context.Context, s Source) ([]byte, error) {
	if s.File != "-" {
		return argfile.Read(ctx, s.File, MaxSize)
	}
	if r.stdinTaken != "" {
		return nil, fmt.Errorf("standard input holds that of --%s", r.stdinTaken)
	}
	r.stdinTaken = s.Flag + "-file"
	return argfile.Within(ctx, func() ([]byte, error) { return argfile.All(r.Stdin, "standard input", MaxSize) })
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
	return f, ok && terminal.Is(f)
}

// Prompt asks on the terminal, which does not show the answer.
func (r *Reader) Prompt(ctx context.Context, what string) (keys.Secret, error) {
	tty, ok := r.terminal()
	if !ok {
		return keys.Secret{}, errors.New("standard input is no terminal")
	}
	line, err := terminal.Question{TTY: tty, Out: r.Stderr, Text: what + ": "}.Ask(ctx)
	if err != nil {
		return keys.Secret{}, err
	}
	return oneLine(line)
}
