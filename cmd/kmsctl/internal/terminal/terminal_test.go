package terminal_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"teekms/cmd/kmsctl/internal/terminal"
)

func none(string) string { return "" }

func TestMarkedAlignsAndIndents(t *testing.T) {
	var b bytes.Buffer
	p := terminal.New(&b, none)
	p.Marked(terminal.Good, "ä", 4, "one")
	p.Marked(terminal.Bad, "name", 4, "two")
	p.Indented(func(p *terminal.Printer) { p.Marked(terminal.Open, "long name", 4, "") })
	p.Bold(terminal.Good, "done %d", 3)
	want := "  ✓ ä     one\n  ✗ name  two\n      – long name\n✓ done 3\n"
	if b.String() != want || p.Err() != nil {
		t.Errorf("output = %q, %v, want %q", b.String(), p.Err(), want)
	}
}

func TestControlCharactersDoNotReachTheTerminal(t *testing.T) {
	var b bytes.Buffer
	p := terminal.New(&b, none)
	p.Line("%s", "a\x1b[2Jb\rc\u009bd\u202ee\nf")
	p.Marked(terminal.Good, "x\x07", 2, "y\x1b")
	if got := strings.Trim(b.String(), "\n"); strings.ContainsAny(got, "\x1b\r\x07\u009b\u202e") || strings.Count(b.String(), "\n") != 2 {
		t.Errorf("output = %q, want no control characters but two line ends", b.String())
	}
}

// TestColor writes to a pseudo-terminal, which is what decides.
func TestColor(t *testing.T) {
	tests := []struct {
		name string
		env  map[string]string
		want bool
	}{
		{"a terminal", nil, true},
		{"NO_COLOR", map[string]string{"NO_COLOR": "1"}, false},
		{"a dumb terminal", map[string]string{"TERM": "dumb"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			master, slave := openPTY(t)
			p := terminal.New(slave, func(name string) string { return tt.env[name] })
			p.Marked(terminal.Good, "link", 4, "")
			b := make([]byte, 256)
			n, err := master.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			if got := bytes.Contains(b[:n], []byte("\x1b[32m")); got != tt.want {
				t.Errorf("output = %q, colored %t, want %t", b[:n], got, tt.want)
			}
		})
	}
}

func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY)
	if errno != 0 {
		t.Fatal(errno)
	}
	slave = os.NewFile(fd, "pty")
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

type closed struct{}

func (closed) Write([]byte) (int, error) { return 0, errors.New("closed") }

func TestErrKeepsTheFirstError(t *testing.T) {
	p := terminal.New(closed{}, none)
	p.Line("a")
	p.Line("b")
	if p.Err() == nil || p.Err().Error() != "closed" {
		t.Errorf("Err() = %v, want closed", p.Err())
	}
}
