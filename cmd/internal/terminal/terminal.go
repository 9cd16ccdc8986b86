// Package terminal asks the person at a terminal for a secret, without showing
// what is typed.
package terminal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// MaxLine bounds an answer, in bytes. A terminal keeps 4095 of a line and drops
// what follows without a word, so an answer of that size may be half of one.
const MaxLine = 4094

// Open opens the terminal that controls this process, whatever its standard
// input and output are. There is none below a service manager. Close it.
func Open() (*os.File, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, err //nolint:wrapcheck // it names the path
	}
	return tty, nil
}

// Is tells whether f is a terminal.
func Is(f *os.File) bool {
	_, err := state(f)
	return err == nil
}

// Question is what is asked, and where. All fields are required.
type Question struct {
	// TTY is the terminal that is read. Out gets Text, and a line feed in place of
	// the one that is not shown.
	TTY  *os.File
	Out  io.Writer
	Text string
}

// Ask returns the line that is typed, without its end, at most [MaxLine] bytes.
// What was typed before the question is not the answer. Until then the terminal
// stops no process: Ctrl-Z is a character of the answer. When it returns, also
// because ctx ended, the terminal is as it was.
func (q Question) Ask(ctx context.Context) (line []byte, err error) {
	restore, err := hide(q.TTY)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, restore()) }()
	fmt.Fprint(q.Out, q.Text)      //nolint:errcheck // there is no one left to tell
	defer fmt.Fprint(q.Out, "\n")  //nolint:errcheck // as above
	answer := make(chan answer, 1) // so that the goroutine can end when nobody waits
	go func() { answer <- readLine(q.TTY) }()
	select {
	case <-ctx.Done():
		// Standard input cannot be interrupted so: it is read on until the process
		// ends, and nobody looks at what comes.
		_ = q.TTY.SetReadDeadline(time.Unix(1, 0))
		return nil, fmt.Errorf("prompting: %w", ctx.Err())
	case a := <-answer:
		if a.err != nil {
			return nil, fmt.Errorf("prompting: %w", a.err)
		}
		return a.line, nil
	}
}

// hide switches the echo of a terminal off, and returns what switches it on
// again.
func hide(tty *os.File) (restore func() error, err error) {
	before, err := state(tty)
	if err != nil {
		return nil, fmt.Errorf("reading the state of the terminal: %w", err)
	}
	quiet := *before
	quiet.Lflag &^= unix.ECHO
	quiet.Lflag |= unix.ICANON | unix.ISIG
	quiet.Iflag |= unix.ICRNL
	// A shell to which the process is stopped switches the echo on, and leaves it
	// on when the process goes on.
	quiet.Cc[unix.VSUSP] = 0
	if err := setState(tty, &quiet); err != nil {
		return nil, fmt.Errorf("hiding what is typed: %w", err)
	}
	return func() error {
		if err := setState(tty, before); err != nil {
			return fmt.Errorf("showing again what is typed: %w", err)
		}
		return nil
	}, nil
}

func state(f *os.File) (s *unix.Termios, err error) {
	return s, control(f, func(fd int) error {
		s, err = unix.IoctlGetTermios(fd, unix.TCGETS)
		return err
	})
}

// setState throws away what was typed and not read.
func setState(f *os.File, s *unix.Termios) error {
	return control(f, func(fd int) error { return unix.IoctlSetTermios(fd, unix.TCSETSF, s) })
}

// control lends the descriptor of f. [os.File.Fd] would make reading it a wait
// that no deadline ends.
func control(f *os.File, do func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := conn.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil {
		return err
	}
	return failed
}

type answer struct {
	line []byte
	err  error
}

// readLine reads to the end of a line, byte by byte so that nothing after it is
// taken.
func readLine(f *os.File) answer {
	var line []byte
	for b := make([]byte, 1); len(line) <= MaxLine; {
		n, err := f.Read(b)
		if n == 1 && b[0] == '\n' {
			return answer{line: line}
		}
		line = append(line, b[:n]...)
		if err != nil {
			return answer{err: errors.New("the input ended")}
		}
	}
	return answer{err: fmt.Errorf("an answer may have %d bytes: the terminal would cut a longer one", MaxLine)}
}
