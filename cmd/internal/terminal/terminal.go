// Package terminal asks the person at a terminal for a secret, without showing
// what is typed.
package terminal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
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

// errEnded says that a signal came that ends the process.
var errEnded = errors.New("the process was told to end")

// terminate ends the process as a service manager does.
func terminate(ctx context.Context) error {
	if err := unix.Kill(unix.Getpid(), unix.SIGTERM); err != nil {
		return fmt.Errorf("prompting: %w (%w)", errEnded, err)
	}
	<-ctx.Done()
	return fmt.Errorf("prompting: %w", ctx.Err())
}

// errAgain says that what was typed is not to be believed.
var errAgain = errors.New("the process was stopped meanwhile")

// Ask returns the line that is typed, without its end, at most [MaxLine] bytes.
// What was typed before the question is not the answer, nor what was typed while
// the process was stopped, or until it could hide what is typed again: then it
// asks again. Ctrl-Z is a character of the answer. When it returns, also because
// ctx ended, the terminal is as it was.
//
// A hangup or quit (Ctrl-\) while it asks would end the process at once, with the
// echo off: it becomes a SIGTERM when the terminal is as it was. That must end ctx
// or the process.
func (q Question) Ask(ctx context.Context) (line []byte, err error) {
	if err := foreground(q.TTY); err != nil {
		return nil, fmt.Errorf("waiting for the terminal: %w", err)
	}
	before, err := state(q.TTY)
	if err != nil {
		return nil, fmt.Errorf("reading the state of the terminal: %w", err)
	}
	// Whoever stopped the process may have switched the echo on: a shell does.
	continued := make(chan os.Signal, 1)
	signal.Notify(continued, unix.SIGCONT)
	defer signal.Stop(continued)
	ended := make(chan os.Signal, 1)
	for _, s := range []os.Signal{unix.SIGHUP, unix.SIGQUIT} {
		if !signal.Ignored(s) { // as nohup wants it
			signal.Notify(ended, s)
		}
	}
	defer func() {
		signal.Stop(ended) // what has come is in it
		if len(ended) > 0 || errors.Is(err, errEnded) {
			clear(line)
			line, err = nil, terminate(ctx)
		}
	}()
	defer func() {
		if failed := setState(q.TTY, before); failed != nil {
			err = errors.Join(err, fmt.Errorf("showing again what is typed: %w", failed))
		}
	}()
	for {
		line, err = q.once(ctx, before, continued, ended)
		if !errors.Is(err, errAgain) {
			return line, err
		}
		clear(line)
	}
}

// once asks, and returns errAgain with a line that may have been seen.
func (q Question) once(ctx context.Context, before *unix.Termios, continued, ended <-chan os.Signal) ([]byte, error) {
	select {
	case <-continued: // before this question
	default:
	}
	if err := setState(q.TTY, hidden(before)); err != nil {
		return nil, fmt.Errorf("hiding what is typed: %w", err)
	}
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
	case <-ended:
		_ = q.TTY.SetReadDeadline(time.Unix(1, 0)) // as above
		return nil, errEnded
	case <-continued:
		if err := q.TTY.SetReadDeadline(time.Unix(1, 0)); err != nil {
			return nil, errors.New("prompting: the process was stopped while it asked")
		}
		a := <-answer
		return a.line, errors.Join(errAgain, q.TTY.SetReadDeadline(time.Time{}))
	case a := <-answer:
		if a.err != nil {
			return nil, fmt.Errorf("prompting: %w", a.err)
		}
		if now, err := state(q.TTY); err != nil || now.Lflag&unix.ECHO != 0 || len(continued) > 0 {
			return a.line, errAgain
		}
		return a.line, nil
	}
}

// hidden is a state in which what is typed is not shown.
func hidden(before *unix.Termios) *unix.Termios {
	quiet := *before
	quiet.Lflag &^= unix.ECHO
	quiet.Lflag |= unix.ICANON | unix.ISIG
	quiet.Iflag |= unix.ICRNL
	// A shell to which the process is stopped switches the echo on, and leaves it
	// on when the process goes on.
	quiet.Cc[unix.VSUSP] = 0
	return &quiet
}

// foreground has a process in the background stopped until it is in the foreground, as
// changing the terminal would. Before that its state is not that of this process:
// a shell in front reads its commands with the echo off. Throwing away what was
// typed is the least that stops it.
func foreground(f *os.File) error {
	return control(f, func(fd int) error { return unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCIFLUSH) })
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
