package sealdir

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"teekms/cmd/kmsctl/internal/privatefile"
	"teekms/internal/keys/seal"
)

// Status is what the private files are sealed to and what opens them
// (docs/kmsctl.md#seal-json).
type Status struct {
	// OK says that something opens the files here, or that they are plain and
	// nothing is configured.
	OK bool `json:"ok"`
	// Dir is the key directory.
	Dir string `json:"dir"`
	// Sealed is false for plain files. Made is when they were sealed, by the clock
	// of who did.
	Sealed bool       `json:"sealed"`
	Made   *time.Time `json:"made"`
	// Seals are those of the files and the configured ones, in the order in which
	// they are tried.
	Seals []Tried `json:"seals"`
	// Files are the private files as they are, without a look at their contents.
	Files []privatefile.File `json:"files"`
	// Error sums up what is not OK, and says what is to be done about it.
	Error string `json:"error"`
	// Notes are what else is to be done.
	Notes    []string `json:"notes"`
	Warnings []string `json:"warnings"`
}

// Tried is how one seal fares.
type Tried struct {
	privatefile.Seal
	// InFiles and Configured say where the seal is.
	InFiles    bool `json:"in_files"`
	Configured bool `json:"configured"`
	// Opens says that it opens all files here and now, Reason why it does not.
	Opens  bool   `json:"opens"`
	Reason string `json:"reason"`

	// err is Reason where the seal was tried.
	err error
}

// Err sums up a status that is not OK.
func (s *Status) Err() error {
	if s.OK {
		return nil
	}
	return errors.New(s.Error)
}

// Status looks at the files, and tries every seal. Beside an error is what there is
// to show, nil where the context has ended.
func (d *Directory) Status(ctx context.Context) (*Status, error) {
	s := &Status{Dir: d.cfg.Dir, Seals: []Tried{}, Notes: []string{}, Warnings: []string{}}
	files, err := d.read(ctx)
	var header *seal.Header
	if err == nil {
		header, err = inspect(files)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	s.Files = privatefile.Look(d.cfg.Dir).Files
	if err != nil {
		err = wayOut(err)
		s.Error = err.Error()
		return s, err
	}
	if header == nil {
		s.plain(d.cfg.Seals)
	} else {
		s.Sealed, s.Made = true, &header.Made
		if err := d.try(ctx, s, header, files); err != nil {
			return nil, err
		}
		s.judge(header)
	}
	s.missing()
	d.compare(s, files)
	if s.Sealed {
		s.Warnings = append(s.Warnings, d.unmeasured(ctx)...)
	}
	return s, nil
}

// missing says what it means that private files are not there.
func (s *Status) missing() {
	for _, f := range s.Files {
		switch {
		case f.State != privatefile.Missing:
		case madeAnew(f.Name):
			note := f.Name + " is missing: the KMS makes it anew at its next start"
			if s.Sealed {
				note += ", and seals all private keys to what core.seal configures"
			}
			s.Notes = append(s.Notes, note)
		default:
			s.OK, s.Error = false, f.Name+" is missing, and a root key is never made again: restore the key directory from a backup"
			return
		}
	}
}

// compare adds what the configuration has to say about the files.
func (d *Directory) compare(s *Status, files map[string][]byte) {
	if d.cfg.Compare == nil {
		return
	}
	notes, warnings := d.cfg.Compare(files)
	s.Notes, s.Warnings = append(s.Notes, notes...), append(s.Warnings, warnings...)
}

// plain is the status of plain files.
func (s *Status) plain(configured []seal.Seal) {
	for _, c := range configured {
		s.Seals = append(s.Seals, Tried{
			Seal:       privatefile.Seal{Kind: c.Kind(), Recipients: c.Recipients()},
			Configured: true, Reason: "the files are not sealed",
		})
	}
	s.sort()
	if s.OK = len(configured) == 0; s.OK {
		s.Notes = append(s.Notes, "the private keys are plain files; core.seal says what to seal them to, and `kmsctl seal add` does it")
		return
	}
	s.Error = "the private keys are not sealed, and core.seal is configured: `kmsctl seal add` seals them"
}

// try has every seal open the files.
func (d *Directory) try(ctx context.Context, s *Status, header *seal.Header, files map[string][]byte) error {
	if len(d.cfg.Seals) == 0 {
		for _, known := range privatefile.Seals(header) {
			s.Seals = append(s.Seals, Tried{Seal: known, InFiles: true, Reason: "core.seal is not configured"})
		}
		return nil
	}
	set, err := seal.NewSet(seal.Config{Seals: d.cfg.Seals, Identities: d.cfg.Identities, Again: true, Now: d.cfg.Now})
	if err != nil {
		return err
	}
	d.cfg.Progress("trying every seal")
	attempts := set.Try(ctx, files)
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, a := range attempts {
		t := Tried{
			Seal:    privatefile.Seal{Kind: a.Kind, Detail: a.Detail},
			InFiles: a.InFiles, Configured: a.Configured, Opens: a.Opens,
		}
		if a.Kind == seal.KindEscrow && a.InFiles {
			t.Recipients = header.Recipients
		}
		if t.Detail == "" && a.InFiles {
			t.Detail = detail(header, a.Kind)
		}
		if a.Err != nil {
			t.Reason, t.err = a.Err.Error(), a.Err
		}
		s.Seals = append(s.Seals, t)
	}
	return nil
}

// detail is what a header says of a seal.
func detail(h *seal.Header, k seal.Kind) string {
	for _, known := range privatefile.Seals(h) {
		if known.Kind == k {
			return known.Detail
		}
	}
	return ""
}

// judge sums up what was tried.
func (s *Status) judge(header *seal.Header) {
	s.sort()
	var lacking, unused, closed []seal.Kind
	for _, t := range s.Seals {
		s.OK = s.OK || t.Opens
		switch {
		case t.Configured && !t.InFiles:
			lacking = append(lacking, t.Kind)
		case t.InFiles && !t.Configured:
			unused = append(unused, t.Kind)
		case t.Kind != seal.KindEscrow && !t.Opens:
			closed = append(closed, t.Kind)
		}
	}
	if s.OK {
		s.advise(closed, lacking, unused)
	} else {
		s.Error = s.wayIn(header) // what else might be done needs open files
	}
	var kinds []seal.Kind
	for _, d := range header.Seals {
		kinds = append(kinds, d.Kind)
	}
	if platformAlone(kinds) {
		s.Warnings = append(s.Warnings, platformWarning(kinds))
	}
}

// advise says what to do about seals that do not open, that the files lack, and
// that are not configured, where another seal opens.
func (s *Status) advise(closed, lacking, unused []seal.Kind) {
	if len(closed) > 0 {
		s.Notes = append(s.Notes, fmt.Sprintf("%s does not open the files here any more, and another seal does: "+
			"`kmsctl seal rotate` seals to what is configured, as it is now", join(closed)))
	}
	if len(lacking) > 0 {
		s.Notes = append(s.Notes, fmt.Sprintf("core.seal configures %s, which the files are not sealed to: `kmsctl seal add` adds it", join(lacking)))
	}
	if len(unused) > 0 && len(unused) < len(s.Seals) {
		s.Notes = append(s.Notes, fmt.Sprintf("the files are sealed to %s, which core.seal does not configure: "+
			"`kmsctl seal rotate` seals to what is configured alone", join(unused)))
	}
}

// wayIn says what opens files that nothing opens here.
func (s *Status) wayIn(header *seal.Header) string {
	configured := false
	for _, t := range s.Seals {
		configured = configured || t.Configured
		// A file that is not whole is opened by nobody.
		if _, ok := errors.AsType[*seal.FileError](t.err); ok {
			return wayOut(t.err).Error()
		}
	}
	why := "nothing opens the private keys here: " + privatefile.List(privatefile.Seals(header)) + " would have to"
	if !configured {
		var opening []seal.Kind
		for _, t := range s.Seals {
			if t.Kind != seal.KindEscrow {
				opening = append(opening, t.Kind)
			}
		}
		return why + "; core.seal is not configured: configure in it one of the seals of the files, " + join(opening)
	}
	for _, t := range s.Seals {
		why += t.wayIn()
	}
	return why
}

// wayIn says what else one seal of the files may be opened with.
func (t *Tried) wayIn() string {
	switch {
	case !t.InFiles:
	case t.Kind == seal.KindEscrow:
		return "; the holder of the escrow has the way in: kmsctl seal rotate --identity FILE"
	case t.Kind != seal.KindPassphrase:
	case !t.Configured:
		return "; who knows the passphrase has a way in: kmsctl seal rotate --old-passphrase-file FILE"
	case errors.Is(t.err, seal.ErrWrongPassphrase):
		return "; where the passphrase is another one now, the old one opens: kmsctl seal rotate --old-passphrase-file FILE"
	case remedy(t.err) != "":
		return "; " + remedy(t.err)
	default:
		return "; see why the passphrase cannot be read: " + t.Reason
	}
	return ""
}

// sort brings the seals into the order in which they are tried, whether they are
// configured or not.
func (s *Status) sort() {
	order := []seal.Kind{seal.KindTPM, seal.KindGuestAgent, seal.KindPassphrase}
	rank := func(t Tried) int {
		if i := slices.Index(order, t.Kind); i >= 0 {
			return i
		}
		return len(order)
	}
	slices.SortStableFunc(s.Seals, func(a, b Tried) int { return rank(a) - rank(b) })
}
