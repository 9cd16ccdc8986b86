// Package manual writes the manual pages of a command line, in roff with the
// man macros, from what the commands say of themselves. No program links it: a
// test keeps docs/man current.
package manual

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Section is a section that every page has besides its own.
type Section struct {
	// Title is its heading, in capitals by custom.
	Title string
	// Entries are pairs of a term and what it means.
	Entries [][2]string
}

// Pages returns a page for the command and for each below it that its help
// shows, by file name ("kmsctl-app-key.1"). product names what it is part of;
// sections stand before SEE ALSO.
func Pages(root *cobra.Command, product string, sections ...Section) map[string]string {
	pages := map[string]string{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		pages[fileName(c)] = page(c, product, sections)
		for _, child := range children(c) {
			walk(child)
		}
	}
	walk(root)
	return pages
}

func fileName(c *cobra.Command) string { return name(c) + ".1" }

// name is that of a page: the path of the command with dashes.
func name(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// children are the commands below c that its help shows.
func children(c *cobra.Command) []*cobra.Command {
	var all []*cobra.Command
	for _, child := range c.Commands() {
		if child.IsAvailableCommand() && child.Name() != "help" {
			all = append(all, child)
		}
	}
	return all
}

func page(c *cobra.Command, product string, sections []Section) string {
	w := &writer{}
	w.line(".TH %s 1 \"\" %s %s", quoted(strings.ToUpper(name(c))), quoted(product), quoted(c.Root().Name()+" manual"))
	w.heading("NAME")
	w.line(`%s \- %s`, escaped(name(c)), escaped(lowerFirst(c.Short)))
	w.heading("SYNOPSIS")
	w.synopsis(c)
	w.heading("DESCRIPTION")
	if c.Long != "" {
		w.prose(c.Long)
	} else {
		w.prose(c.Short + ".")
	}
	if below := children(c); len(below) > 0 {
		w.heading("COMMANDS")
		for _, child := range below {
			w.entry(bold(child.Name()), child.Short+". See "+name(child)+"(1).")
		}
	}
	w.options(c)
	if c.Example != "" {
		w.heading("EXAMPLES")
		w.literal(strings.Split(c.Example, "\n"))
	}
	for _, s := range sections {
		w.heading(s.Title)
		for _, e := range s.Entries {
			w.entry(bold(e[0]), e[1])
		}
	}
	w.seeAlso(c)
	return w.b.String()
}

// lowerFirst makes a sentence what stands behind a dash.
func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}

// writer writes roff.
type writer struct{ b strings.Builder }

func (w *writer) line(format string, args ...any) { fmt.Fprintf(&w.b, format+"\n", args...) }

func (w *writer) heading(title string) { w.line(".SH %s", quoted(title)) }

// synopsis writes the usage line, and that of commands below where there are
// any.
func (w *writer) synopsis(c *cobra.Command) {
	use := c.UseLine()
	if !c.HasParent() || len(children(c)) > 0 {
		use = c.CommandPath() + " command [flags]"
	}
	w.line(".nf\n%s\n.fi", strings.Replace(escaped(use), escaped(c.CommandPath()), bold(c.CommandPath()), 1))
}

// prose writes paragraphs; lines that are indented stay as they are.
func (w *writer) prose(text string) {
	for i, paragraph := range strings.Split(strings.Trim(text, "\n"), "\n\n") {
		if i > 0 {
			w.line(".PP")
		}
		lines := strings.Split(strings.Trim(paragraph, "\n"), "\n")
		for len(lines) > 0 {
			literal := indented(lines[0])
			end := slices.IndexFunc(lines, func(l string) bool { return indented(l) != literal })
			if end < 0 {
				end = len(lines)
			}
			if literal {
				w.literal(lines[:end])
			} else {
				for _, l := range lines[:end] {
					w.line("%s", escaped(l))
				}
			}
			lines = lines[end:]
		}
	}
}

func indented(line string) bool { return strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t") }

// literal writes lines as they are, indented by the page.
func (w *writer) literal(lines []string) {
	w.line(".RS 4\n.nf")
	for _, l := range lines {
		l = strings.TrimPrefix(strings.ReplaceAll(l, "\t", "    "), "  ")
		w.line("%s", escaped(l))
	}
	w.line(".fi\n.RE")
}

// entry writes a term, already in roff, and what it means.
func (w *writer) entry(term, text string) { w.line(".TP\n%s\n%s", term, escaped(text)) }

// options writes the flags of a command, in the order of its help.
func (w *writer) options(c *cobra.Command) {
	c.InitDefaultHelpFlag()
	c.InitDefaultVersionFlag()
	w.heading("OPTIONS")
	w.flags(c.LocalFlags())
	if inherited := c.InheritedFlags(); inherited.HasAvailableFlags() {
		w.line(".SS %s", quoted("Options of all these commands"))
		w.flags(inherited)
	}
}

func (w *writer) flags(flags *pflag.FlagSet) {
	flags.SortFlags = false
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, text := pflag.UnquoteUsage(f)
		term := bold("--" + f.Name)
		if f.Shorthand != "" {
			term = bold("-"+f.Shorthand) + ", " + term
		}
		if value != "" {
			term += ` \fI` + escaped(value) + `\fR`
		}
		switch f.DefValue {
		case "", "false", "[]", "0":
		default:
			text += " (default " + f.DefValue + ")"
		}
		w.entry(term, strings.ToUpper(text[:1])+text[1:]+".")
	})
}

func (w *writer) seeAlso(c *cobra.Command) {
	var names []string
	if c.HasParent() {
		names = append(names, name(c.Parent()))
		for _, sibling := range children(c.Parent()) {
			if sibling != c {
				names = append(names, name(sibling))
			}
		}
	}
	for _, child := range children(c) {
		names = append(names, name(child))
	}
	if len(names) == 0 {
		return
	}
	w.heading("SEE ALSO")
	for i, n := range names {
		end := ","
		if i == len(names)-1 {
			end = ""
		}
		w.line(".BR %s (1)%s", escaped(n), end)
	}
}

func bold(s string) string { return `\fB` + escaped(s) + `\fR` }

// quoted is one argument of a macro.
func quoted(s string) string { return `"` + strings.ReplaceAll(escaped(s), `"`, `""`) + `"` }

// escaped is text that is not taken for a request, and whose dashes can be
// copied into a shell.
func escaped(s string) string {
	s = strings.NewReplacer(`\`, `\e`, `-`, `\-`, `^`, `\(ha`, `~`, `\(ti`, "`", `\(ga`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}
