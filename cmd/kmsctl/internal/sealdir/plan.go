package sealdir

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"teekms/cmd/kmsctl/internal/privatefile"
	"teekms/internal/keys/seal"
)

// plan is what a verb makes of the seals of a directory.
type plan struct {
	// target are the seals that the files get, nil where nothing is to be done.
	target []seal.Seal
	// added and removed are what that changes.
	added, removed []seal.Kind
	// anew says that what is configured counts, whatever it was before: else a
	// passphrase that stays is the one that the files have.
	anew bool
	// notes and warnings are what is to be known about it.
	notes, warnings []string
}

// planner decides with which seals the files go on.
type planner struct {
	// header says what the files are sealed to; nil where they are plain.
	header     *seal.Header
	configured []seal.Seal
}

// inFiles says whether the files are sealed to that kind.
func (p *planner) inFiles(k seal.Kind) bool {
	return p.header != nil && slices.ContainsFunc(p.header.Seals, func(d seal.Described) bool { return d.Kind == k })
}

// seal returns the configured seal of that kind.
func (p *planner) seal(k seal.Kind) (seal.Seal, bool) {
	i := slices.IndexFunc(p.configured, func(s seal.Seal) bool { return s.Kind() == k })
	if i < 0 {
		return seal.Seal{}, false
	}
	return p.configured[i], true
}

// add plans for what the files have and what is named; nothing named is all that
// is configured.
func (p *planner) add(named []seal.Kind) (*plan, error) {
	for _, k := range named {
		if _, ok := p.seal(k); !ok {
			return nil, fmt.Errorf("core.seal does not configure %s: nothing says what to seal to", k)
		}
	}
	if len(named) == 0 {
		named = kindsOf(p.configured)
	}
	out := &plan{}
	for _, k := range named {
		if !p.inFiles(k) || k == seal.KindEscrow && p.lacksRecipients() {
			out.added = append(out.added, k)
		}
	}
	if len(out.added) == 0 {
		return out, nil
	}
	var err error
	out.target, err = p.keep(nil, out.added)
	out.warnings = p.strangers(out.target)
	if err == nil && !opens(out.target) {
		err = errors.New("escrow only encrypts: name a seal that opens here as well, passphrase, tpm or guest-agent")
	}
	return out, err
}

// lacksRecipients says whether the files' escrow is without a configured
// recipient.
func (p *planner) lacksRecipients() bool {
	escrow, ok := p.seal(seal.KindEscrow)
	return ok && slices.ContainsFunc(escrow.Recipients(), func(r string) bool { return !slices.Contains(p.header.Recipients, r) })
}

// remove plans for what the files have without what is named.
func (p *planner) remove(named []seal.Kind) (*plan, error) {
	for _, k := range named {
		if !p.inFiles(k) {
			return nil, fmt.Errorf("the files are not sealed to %s, but to %s", k, privatefile.List(privatefile.Seals(p.header)))
		}
	}
	target, err := p.keep(named, nil)
	if err != nil {
		return nil, err
	}
	if !opens(target) {
		rest := ""
		if len(target) > 0 {
			rest = "; what would remain is escrow, which opens only with the key of its holder"
		}
		return nil, fmt.Errorf("%s cannot be removed: no seal would be left that opens here%s", join(named), rest)
	}
	return &plan{target: target, removed: named, warnings: p.strangers(target)}, nil
}

// rotate plans for exactly what is configured.
func (p *planner) rotate() *plan {
	out := &plan{target: p.configured}
	for _, s := range p.configured {
		if !p.inFiles(s.Kind()) {
			out.added = append(out.added, s.Kind())
		}
	}
	for _, d := range p.header.Seals {
		if _, ok := p.seal(d.Kind); !ok {
			out.removed = append(out.removed, d.Kind)
		}
	}
	return out
}

// keep returns the seals of the files without some, and with others. New files
// have new keys, so that a seal can be kept only where it is configured; escrow
// is kept for the recipients that the files name.
func (p *planner) keep(without, with []seal.Kind) ([]seal.Seal, error) {
	escrow, err := p.escrow(without, with)
	if err != nil {
		return nil, err
	}
	if p.header != nil {
		for _, d := range p.header.Seals {
			_, ok := p.seal(d.Kind)
			if !ok && d.Kind != seal.KindEscrow && !slices.Contains(without, d.Kind) {
				return nil, fmt.Errorf("the files are sealed to %s too, which core.seal does not configure, so that they cannot be sealed to it again: "+
					"configure it, or take it out of the files with `kmsctl seal remove %[1]s`", d.Kind)
			}
		}
	}
	var target []seal.Seal
	for _, s := range p.configured {
		k := s.Kind()
		if k != seal.KindEscrow && !slices.Contains(without, k) && (p.inFiles(k) || slices.Contains(with, k)) {
			target = append(target, s)
		}
	}
	return append(target, escrow...), nil
}

// escrow returns the escrow that the files go on with, as a list of one or none.
func (p *planner) escrow(without, with []seal.Kind) ([]seal.Seal, error) {
	var recipients []string
	if p.inFiles(seal.KindEscrow) && !slices.Contains(without, seal.KindEscrow) {
		if len(p.header.Recipients) == 0 {
			return nil, errors.New("the files do not say to which recipients of an escrow they are sealed: " +
				"`kmsctl seal rotate` seals them to the configured ones, `kmsctl seal remove escrow` to none")
		}
		recipients = slices.Clone(p.header.Recipients)
		for _, r := range recipients {
			if runsPlugin(r) && !p.names(r) {
				return nil, fmt.Errorf("the files are sealed to the recipient %s, for which a program is run, and core.seal.escrow does not name it: "+
					"configure it, or seal to what is configured alone with `kmsctl seal rotate`", r)
			}
		}
	}
	if slices.Contains(with, seal.KindEscrow) {
		configured, _ := p.seal(seal.KindEscrow)
		for _, r := range configured.Recipients() {
			if !slices.Contains(recipients, r) {
				recipients = append(recipients, r)
			}
		}
	}
	if len(recipients) == 0 {
		return nil, nil
	}
	s, err := seal.NewEscrow(recipients)
	if err != nil {
		return nil, fmt.Errorf("keeping the escrow of the files: %w; `kmsctl seal rotate` seals to the configured recipients alone", err)
	}
	return []seal.Seal{s}, nil
}

// names says whether the configured escrow names a recipient.
func (p *planner) names(recipient string) bool {
	escrow, _ := p.seal(seal.KindEscrow)
	return slices.Contains(escrow.Recipients(), recipient)
}

// strangers warns of the recipients that only the files name.
func (p *planner) strangers(target []seal.Seal) (warnings []string) {
	for _, s := range target {
		for _, r := range s.Recipients() {
			if !p.names(r) {
				warnings = append(warnings, "kept from the files, not configured: "+r+" (`kmsctl seal rotate` seals to what is configured alone)")
			}
		}
	}
	return warnings
}

// runsPlugin says whether a program is run to encrypt to a recipient: its name
// stands before the second 1, which the key itself cannot have.
func runsPlugin(recipient string) bool {
	recipient = strings.TrimSpace(recipient)
	return strings.HasPrefix(recipient, "age1") && !strings.HasPrefix(recipient, "age1pq1") && strings.Count(recipient, "1") > 1
}

// opens says whether one of the seals opens.
func opens(seals []seal.Seal) bool { return slices.ContainsFunc(seals, seal.Seal.Opens) }

func kindsOf(seals []seal.Seal) []seal.Kind {
	kinds := make([]seal.Kind, len(seals))
	for i, s := range seals {
		kinds[i] = s.Kind()
	}
	return kinds
}

func join(kinds []seal.Kind) string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = string(k)
	}
	return strings.Join(names, ", ")
}
