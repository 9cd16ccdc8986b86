package sealing

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"teekms/internal/config"
	"teekms/internal/keys/seal"
	"teekms/internal/keys/seal/tpm"
)

// platformAlone is said where a changed platform is the end of the keys.
const platformAlone = "NOTHING BUT THIS PLATFORM OPENS THE KEY DIRECTORY: an update of kernel, firmware or application that changes " +
	"what is measured locks the keys up for good; add core.seal.escrow or core.seal.passphrase, then run kmsctl seal add"

// Warn tells what is weak about core.seal itself.
func Warn(log *zap.Logger, s config.Seal) {
	for _, text := range Weaknesses(s) {
		log.Warn(text)
	}
}

// Weaknesses says what is weak about core.seal itself.
func Weaknesses(s config.Seal) []string {
	var out []string
	if s.PlatformAlone() {
		out = append(out, platformAlone)
	}
	if s.TPM.Enabled && (slices.Contains(s.TPM.PCRs, 16) || slices.Contains(s.TPM.PCRs, 23)) {
		out = append(out, "core.seal.tpm.pcrs has 16 or 23, which any program can set back: they guard nothing")
	}
	if p := s.Passphrase; p.Weak() {
		out = append(out, fmt.Sprintf("core.seal.passphrase.work_factor is %d, which makes guesses of the passphrase cheap", p.WorkFactor))
	}
	if p := s.Passphrase; p.Enabled && p.File != "" {
		// What is not there, or no file, is told of where it is read.
		if info, err := os.Stat(p.File); err == nil && info.Mode().IsRegular() && info.Mode()&0o007 != 0 {
			out = append(out, fmt.Sprintf("core.seal.passphrase.file is open to every user of this machine (mode %04o): chmod o= %s",
				info.Mode().Perm(), p.File))
		}
	}
	return out
}

// Unmeasured says which of core.seal.tpm.pcrs nothing was measured into: sealing
// to them guards against nobody who boots something else. A TPM that cannot be
// asked is told of where it is used.
func Unmeasured(ctx context.Context, s config.Seal) []string {
	if !s.TPM.Enabled {
		return nil
	}
	source, err := tpm.New(tpm.Config{Device: s.TPM.Device, PCRs: s.TPM.PCRs})
	if err != nil {
		return nil
	}
	list, err := source.Unmeasured(ctx)
	if err != nil || len(list) == 0 {
		return nil
	}
	return []string{"nothing was measured into the PCRs " + strings.ReplaceAll(pcrs(list), "+", ", ") +
		": they do not tell what this machine booted; choose core.seal.tpm.pcrs that do (kmsctl seal rotate seals to them)"}
}

// Weak says of the work factors with which files are sealed, and of core.seal,
// what is weak about them: not that files of which that is true open on this
// platform alone, which is for who shows their seals to say.
func Weak(c config.Core, files map[string][]byte) []string {
	var out []string
	weaknesses := Weaknesses(c.Seal)
	if h, ok := header(files); ok {
		if !slices.ContainsFunc(h.Seals, func(d seal.Described) bool { return d.Kind == seal.KindPassphrase || d.Kind == seal.KindEscrow }) {
			weaknesses = slices.DeleteFunc(weaknesses, func(text string) bool { return text == platformAlone })
		}
		for _, d := range h.Seals {
			if d.Kind != seal.KindPassphrase || len(d.Args) < 2 {
				continue
			}
			n, err := strconv.ParseInt(d.Args[1], 10, 64)
			if err == nil && (config.SealPassphrase{Enabled: true, WorkFactor: n}).Weak() {
				out = append(out, fmt.Sprintf("the files are sealed with the work factor %d: whoever has them guesses the passphrase cheaply; "+
					"set core.seal.passphrase.work_factor, then run kmsctl seal rotate", n))
			}
		}
	}
	return append(out, weaknesses...)
}

// Sealing is the random number of the sealing that private files are of, as they
// say; false where they are not sealed.
func Sealing(files map[string][]byte) ([16]byte, bool) {
	h, ok := header(files)
	if !ok {
		return [16]byte{}, false
	}
	return h.Set, true
}

// Difference is a seal that the key files and core.seal do not agree about.
type Difference struct {
	// Kind is the seal's.
	Kind seal.Kind
	// Files and Configured put in words what each has; empty is nothing.
	Files, Configured string
}

// Differences compares the private files of a key directory, by name, with
// core.seal. Files that are not sealed, or that cannot be read, differ in nothing:
// others refuse them.
func Differences(c config.Core, files map[string][]byte) []Difference {
	header, ok := header(files)
	want, err := describe(c)
	if !ok || err != nil {
		return nil
	}
	have := map[seal.Kind]string{}
	for _, d := range header.Seals {
		have[d.Kind] = inWords(d, header.Recipients)
	}
	var all []Difference
	for _, kind := range []seal.Kind{seal.KindTPM, seal.KindGuestAgent, seal.KindPassphrase, seal.KindEscrow} {
		if have[kind] != want[kind] {
			all = append(all, Difference{Kind: kind, Files: have[kind], Configured: want[kind]})
		}
	}
	return all
}

// WarnOf logs differences, each with what makes an end of it.
func WarnOf(log *zap.Logger, differences []Difference) {
	for _, d := range differences {
		text := "the key files are sealed otherwise than core.seal says: run kmsctl seal rotate"
		switch {
		case d.Files == "":
			text = "a seal that core.seal configures is not among those of the key files: run kmsctl seal add"
		case d.Configured == "":
			text = "the key files have a seal that core.seal does not configure: configure it, or run kmsctl seal rotate"
		}
		log.Warn(text, zap.String("seal", string(d.Kind)), zap.String("files", d.Files), zap.String("configured", d.Configured))
	}
}

// Described names the seals of the private files of a key directory, as in
// "tpm (PCRs 7 of SHA-256), escrow (1 recipient)"; empty where they have none.
func Described(files map[string][]byte) string {
	header, ok := header(files)
	if !ok {
		return ""
	}
	var words []string
	for _, d := range header.Seals {
		detail := d.Detail
		if d.Kind == seal.KindTPM && len(d.Args) > 0 {
			detail = tpm.Describe(d.Args)
		}
		words = append(words, string(d.Kind)+" ("+detail+")")
	}
	return strings.Join(words, ", ")
}

// header reads what the first file says of its seals. Those of one sealing say
// the same.
func header(files map[string][]byte) (*seal.Header, bool) {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h, err := seal.Inspect(name, files[name])
		return h, err == nil
	}
	return nil, false
}

// describe puts in words what core.seal configures, in those of inWords.
func describe(c config.Core) (map[seal.Kind]string, error) {
	words := map[seal.Kind]string{}
	if s := c.Seal.TPM; s.Enabled {
		words[seal.KindTPM] = pcrs(s.PCRs)
	}
	if s := c.Seal.GuestAgent; s.Enabled {
		words[seal.KindGuestAgent] = "path " + s.Path
	}
	if s := c.Seal.Passphrase; s.Enabled {
		words[seal.KindPassphrase] = "scrypt, work factor " + strconv.FormatInt(s.WorkFactor, 10)
	}
	if s := c.Seal.Escrow; s.Enabled {
		escrow, err := seal.NewEscrow(s.Recipients)
		if err != nil {
			return nil, err
		}
		words[seal.KindEscrow] = recipients(escrow.Recipients())
	}
	return words, nil
}

// inWords puts a seal of the files in words.
func inWords(d seal.Described, escrow []string) string {
	switch {
	case d.Kind == seal.KindEscrow:
		return recipients(escrow)
	case d.Kind == seal.KindTPM && len(d.Args) > 0:
		return strings.TrimPrefix(d.Args[0], "sha256:")
	}
	return d.Detail
}

// pcrs is how the seal of a TPM writes the registers: 7+11+14.
func pcrs(list []int) string {
	var words []string
	for _, pcr := range slices.Sorted(slices.Values(list)) {
		words = append(words, strconv.Itoa(pcr))
	}
	return strings.Join(words, "+")
}

// recipients does not depend on their order.
func recipients(list []string) string {
	return strings.Join(slices.Sorted(slices.Values(list)), ", ")
}
