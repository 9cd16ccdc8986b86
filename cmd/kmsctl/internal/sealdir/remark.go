package sealdir

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"

	"teekms/internal/keys/seal"
)

// platformAlone says whether nothing but this platform opens what is sealed to
// these kinds.
func platformAlone(kinds []seal.Kind) bool {
	return len(kinds) > 0 && !slices.Contains(kinds, seal.KindPassphrase) && !slices.Contains(kinds, seal.KindEscrow)
}

// platformWarning is what that means.
func platformWarning(kinds []seal.Kind) string {
	return fmt.Sprintf("only this platform opens the private keys (%s): the day it changes, by an update of firmware or kernel for example, they are lost; "+
		"add a passphrase, or escrow recipients", join(kinds))
}

// wiped says what became of plain files.
const wiped = "the plain private keys were overwritten and removed; that promises nothing " +
	"on SSDs, on file systems that copy on write, in snapshots and in backups: whoever has one of those may have the keys"

// remark says what is to be known about a change that was made.
func (d *Directory) remark(ctx context.Context, r *Result, target []seal.Seal) {
	kinds := kindsOf(target)
	var unused, lacking []seal.Kind
	for _, s := range d.cfg.Seals {
		if !slices.Contains(kinds, s.Kind()) {
			lacking = append(lacking, s.Kind())
		}
	}
	for _, k := range kinds {
		if !slices.ContainsFunc(d.cfg.Seals, func(s seal.Seal) bool { return s.Kind() == k }) {
			unused = append(unused, k)
		}
	}
	if len(lacking) > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("core.seal still configures %s, which the files are not sealed to: take it out of the configuration, or the next rotation seals to it", join(lacking)))
	}
	if len(unused) > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("core.seal does not configure %s, which the files stay sealed to: the next rotation drops it", join(unused)))
	}
	if who := d.otherOwner(); who != "" {
		r.Notes = append(r.Notes, "the files stay those of "+who)
	}
	if platformAlone(kinds) {
		r.Warnings = append(r.Warnings, platformWarning(kinds))
	}
	if slices.Contains(kinds, seal.KindTPM) {
		r.Warnings = append(r.Warnings, d.unmeasured(ctx)...)
	}
}

// unmeasured warns of PCRs that tell nothing.
func (d *Directory) unmeasured(ctx context.Context) []string {
	if d.cfg.Unmeasured == nil {
		return nil
	}
	return d.cfg.Unmeasured(ctx)
}

// otherTPM says whether the files are sealed to another TPM than before, by the
// name of its storage root key (docs/seal.md#format).
func otherTPM(before, after *seal.Header) bool {
	b, a := storageKey(before), storageKey(after)
	return b != "" && a != "" && b != a
}

// storageKey is the name of the key of a TPM below which the files' key is.
func storageKey(h *seal.Header) string {
	const name = 2 // the third of the arguments of a TPM's seal
	if h == nil {
		return ""
	}
	for _, d := range h.Seals {
		if d.Kind == seal.KindTPM && len(d.Args) > name {
			return d.Args[name]
		}
	}
	return ""
}

// otherOwner names the owner of the keys where that is not who runs this.
func (d *Directory) otherOwner() string {
	info, err := os.Stat(filepath.Join(d.cfg.Dir, ownerFile))
	if err != nil {
		return ""
	}
	who, err := ownerOf(info)
	if err != nil || who.isThis() {
		return ""
	}
	id := strconv.Itoa(who.uid)
	if u, err := user.LookupId(id); err == nil {
		return fmt.Sprintf("user %s (%s)", u.Username, id)
	}
	return "user " + id
}
