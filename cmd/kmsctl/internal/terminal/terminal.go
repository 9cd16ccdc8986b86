// Package terminal writes lines for people: marks, columns, and color where
// the reader is a terminal that wants it.
package terminal

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Mark stands before a line.
type Mark int

// The marks.
const (
	// None is no mark.
	None Mark = iota
	// Good is a green check mark.
	Good
	// Bad is a red cross.
	Bad
	// Open is a dash: neither good nor bad.
	Open
)

// Printer writes lines. It is not for several goroutines.
type Printer struct {
	w     io.Writer
	color bool
	// indent stands before every marked line.
	indent string
	err    error
}

// New returns a Printer that writes to w, in color if w is a terminal and the
// environment does not forbid it (https://no-color.org, TERM=dumb).
func New(w io.Writer, getenv func(string) string) *Printer {
	return &Printer{w: w, color: getenv("NO_COLOR") == "" && getenv("TERM") != "dumb" && IsTerminal(w)}
}

// IsTerminal says whether w is a terminal.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Line writes a formatted line.
func (p *Printer) Line(format string, args ...any) {
	p.write(Printable(fmt.Sprintf(format, args...)) + "\n")
}

// Marked writes a mark, a name padded to width characters, and text.
func (p *Printer) Marked(m Mark, name string, width int, text string) {
	pad := strings.Repeat(" ", max(0, width-utf8.RuneCountInString(name)))
	line := p.indent + "  " + p.paint(m) + " " + Printable(name) + pad + "  " + Printable(text)
	p.write(strings.TrimRight(line, " ") + "\n")
}

// Bold writes a line that is to be seen first.
func (p *Printer) Bold(m Mark, format string, args ...any) {
	text := Printable(fmt.Sprintf(format, args...))
	if p.color {
		text = "\x1b[1m" + text + "\x1b[0m"
	}
	if m != None {
		text = p.paint(m) + " " + text
	}
	p.write(text + "\n")
}

// Indented has f write its marked lines further to the right.
func (p *Printer) Indented(f func(*Printer)) {
	before := p.indent
	p.indent += "    "
	f(p)
	p.indent = before
}

// Err returns the first error of writing.
func (p *Printer) Err() error { return p.err }

func (p *Printer) paint(m Mark) string {
	sign, code := " ", ""
	switch m {
	case Good:
		sign, code = "✓", "32"
	case Bad:
		sign, code = "✗", "31"
	case Open:
		sign, code = "–", "33"
	case None:
		return sign
	}
	if !p.color {
		return sign
	}
	return "\x1b[" + code + "m" + sign + "\x1b[0m"
}

func (p *Printer) write(s string) {
	if p.err == nil {
		_, p.err = io.WriteString(p.w, s)
	}
}

// Printable replaces what could move a terminal's cursor or write over a line:
// much of what is printed comes from the one who is being checked.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, s)
}
