package sealdir

import (
	"slices"
	"time"

	"teekms/cmd/kmsctl/internal/privatefile"
	"teekms/cmd/kmsctl/internal/terminal"
)

// kindWidth is that of the longest name of a kind.
const kindWidth = len("guest-agent")

// WriteText writes the status for people.
func (s *Status) WriteText(p *terminal.Printer) {
	p.Line("Key directory  %s", s.Dir)
	switch {
	case s.Sealed:
		p.Line("Sealed         at %s", s.Made.Format(time.RFC3339))
	case s.plainFiles():
		p.Line("Sealed         no, the private keys are plain")
	}
	s.writeFiles(p)
	for _, t := range s.Seals {
		mark, text := t.line()
		p.Marked(mark, string(t.Kind), kindWidth, text)
		for _, r := range t.Recipients {
			p.Marked(terminal.None, "", kindWidth, r)
		}
	}
	for _, n := range s.Notes {
		p.Line("Note: %s.", n)
	}
}

// plainFiles says whether all private files that are there are plain.
func (s *Status) plainFiles() bool {
	plain := false
	for _, f := range s.Files {
		if f.State != privatefile.Plain && f.State != privatefile.Missing {
			return false
		}
		plain = plain || f.State == privatefile.Plain
	}
	return plain
}

// writeFiles lists the private files where they are not all the same.
func (s *Status) writeFiles(p *terminal.Printer) {
	odd := func(f privatefile.File) bool { return f.State == privatefile.Damaged || f.State != s.Files[0].State }
	if !slices.ContainsFunc(s.Files, odd) {
		return
	}
	p.Line("Private keys")
	for _, f := range s.Files {
		mark, text := terminal.Bad, string(f.State)
		switch {
		case f.State == privatefile.Sealed || f.State == privatefile.Plain:
			mark = terminal.Open
		case f.Error != "":
			text += ": " + f.Error
		}
		p.Marked(mark, f.Name, kindWidth+2, text)
	}
	if len(s.Seals) > 0 {
		p.Line("Seals")
	}
}

// line says of one seal what it is and whether it opens.
func (t *Tried) line() (terminal.Mark, string) {
	text := t.Detail
	if text != "" {
		text += ": "
	}
	switch {
	case t.Opens && t.Configured:
		return terminal.Good, text + "opens here"
	case t.Opens:
		return terminal.Good, text + "opens, not configured"
	case t.InFiles && t.Configured && len(t.Recipients) == 0:
		return terminal.Bad, text + "does not open: " + t.Reason
	default:
		return terminal.Open, text + t.Reason
	}
}

// dropped are the seals that the files had, as they were.
func (r *Result) dropped() []privatefile.Seal {
	return slices.DeleteFunc(slices.Clone(r.Before.Seals), func(s privatefile.Seal) bool { return !slices.Contains(r.Removed, s.Kind) })
}

// WriteText writes for people what a verb did, and what remains.
func (r *Result) WriteText(p *terminal.Printer) {
	if !r.Changed {
		p.Line("Nothing to add: the private keys of %s are %s", r.Dir, r.After)
		for _, n := range r.Notes {
			p.Line("Note: %s.", n)
		}
		return
	}
	p.Line("Key directory  %s", r.Dir)
	p.Line("Was            %s", r.Before)
	p.Line("Now            %s", r.After)
	if dropped := r.dropped(); len(dropped) > 0 {
		p.Line("Dropped        %s", privatefile.List(dropped))
	}
	for _, recipient := range r.RemovedRecipients {
		p.Line("Dropped        escrow recipient %s", recipient)
	}
	p.Line("Opened again   %s", join(r.OpenedAgain))
	for _, n := range r.Notes {
		p.Line("Note: %s.", n)
	}
}
