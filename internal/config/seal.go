package config

import (
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// Seal is [core.seal]: what the private files of the key directory are encrypted
// to. A seal is on where its section is named, be it empty.
type Seal struct {
	// Named says that the file or the environment names the section, or one below
	// it.
	Named bool

	Passphrase SealPassphrase `toml:"passphrase"`
	TPM        SealTPM        `toml:"tpm"`
	GuestAgent SealGuestAgent `toml:"guest_agent"`
	Escrow     SealEscrow     `toml:"escrow"`
}

// SealPassphrase is [core.seal.passphrase].
type SealPassphrase struct {
	// Enabled says that the section is named.
	Enabled bool
	// File is a file that holds the passphrase. Credential is the name of one
	// below $CREDENTIALS_DIRECTORY. Prompt asks for it at the terminal. Exactly
	// one of the three is set.
	File       string `toml:"file"`
	Credential string `toml:"credential"`
	Prompt     bool   `toml:"prompt"`
	// WorkFactor is the binary logarithm of scrypt's N.
	WorkFactor int64 `toml:"work_factor"`
}

// SealTPM is [core.seal.tpm].
type SealTPM struct {
	// Enabled says that the section is named.
	Enabled bool
	// Device is a TPM 2.0: a character device or a Unix socket, an absolute path.
	Device string `toml:"device"`
	// PCRs are the registers of the SHA-256 bank that must be as they were.
	PCRs []int `toml:"pcrs"`
}

// SealGuestAgent is [core.seal.guest_agent].
type SealGuestAgent struct {
	// Enabled says that the section is named.
	Enabled bool
	// Path is what the guest agent derives the key for.
	Path string `toml:"path"`
}

// SealEscrow is [core.seal.escrow].
type SealEscrow struct {
	// Enabled says that the section is named.
	Enabled bool
	// Recipients are public keys of age or SSH. They only encrypt.
	Recipients []string `toml:"recipients"`
}

// Configured tells whether the private files are to be sealed.
func (s Seal) Configured() bool { return s.Named || s.Opens() || s.Escrow.Enabled }

// Opens tells whether a seal is configured that opens what it sealed.
func (s Seal) Opens() bool { return s.Passphrase.Enabled || s.TPM.Enabled || s.GuestAgent.Enabled }

// PlatformAlone tells whether nothing but the platform opens what is sealed: a
// day on which its measurements change locks the keys up for good.
func (s Seal) PlatformAlone() bool {
	return s.Configured() && !s.Passphrase.Enabled && !s.Escrow.Enabled
}

// The values that work_factor may have, its default, and below which one it is
// weak.
const (
	minWorkFactor     = 10
	maxWorkFactor     = 22
	defaultWorkFactor = 18
	weakWorkFactor    = 15
)

// Weak tells whether scrypt costs an attacker little enough to say so.
func (p SealPassphrase) Weak() bool { return p.Enabled && p.WorkFactor < weakWorkFactor }

func defaultSeal() Seal {
	return Seal{
		Passphrase: SealPassphrase{WorkFactor: defaultWorkFactor},
		TPM:        SealTPM{Device: "/dev/tpmrm0", PCRs: []int{7, 11, 14}},
		GuestAgent: SealGuestAgent{Path: "teekms/key-directory"},
		Escrow:     SealEscrow{Recipients: []string{}},
	}
}

// enable turns the seals on whose sections are named.
func (s *Seal) enable(names func(path string) bool) {
	const path = "core.seal"
	s.Named = names(path)
	s.Passphrase.Enabled = names(path + ".passphrase")
	s.TPM.Enabled = names(path + ".tpm")
	s.GuestAgent.Enabled = names(path + ".guest_agent")
	s.Escrow.Enabled = names(path + ".escrow")
}

// alternatives are the keys of which one only may be set beside path.
func alternatives(path string) []string {
	all := []string{"core.seal.passphrase.file", "core.seal.passphrase.credential", "core.seal.passphrase.prompt"}
	if i := slices.Index(all, path); i >= 0 {
		return slices.Delete(all, i, i+1)
	}
	return nil
}

// Bounds of [core.seal].
const (
	maxCredential = 255
	maxPCR        = 23
	maxAgentPath  = 256
	maxRecipients = 32
)

func (ch *checker) seal(s Seal) {
	ch.check(!s.Configured() || s.Opens(), "core.seal",
		"names no seal that can open: add core.seal.passphrase, core.seal.tpm or core.seal.guest_agent")
	ch.sealPassphrase(s.Passphrase)
	ch.sealTPM(s.TPM)
	agent := s.GuestAgent.Path
	printable := !strings.ContainsFunc(agent, func(r rune) bool { return r <= ' ' || r > '~' })
	ch.check(agent != "" && len(agent) <= maxAgentPath && printable, "core.seal.guest_agent.path",
		"must be from 1 to %d printable ASCII characters without spaces", maxAgentPath)
	ch.sealEscrow(s.Escrow)
}

func (ch *checker) sealPassphrase(p SealPassphrase) {
	const path = "core.seal.passphrase"
	given := 0
	for _, set := range []bool{p.File != "", p.Credential != "", p.Prompt} {
		if set {
			given++
		}
	}
	ch.check(!p.Enabled || given == 1, path, "set exactly one of file, credential and prompt = true")
	ch.check(p.Credential == "" || isFileName(p.Credential), path+".credential",
		"must be the plain name of a file in $CREDENTIALS_DIRECTORY")
	ch.check(p.WorkFactor >= minWorkFactor && p.WorkFactor <= maxWorkFactor, path+".work_factor",
		"must be from %d to %d", minWorkFactor, maxWorkFactor)
}

// isFileName tells a name from a path. systemd takes no other names for
// credentials.
func isFileName(name string) bool {
	odd := strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == ':' })
	return !odd && len(name) <= maxCredential && name != "." && name != ".."
}

func (ch *checker) sealTPM(t SealTPM) {
	const path = "core.seal.tpm."
	ch.check(filepath.IsAbs(t.Device) && !strings.ContainsRune(t.Device, 0), path+"device", "must be an absolute path")
	ch.check(len(t.PCRs) > 0, path+"pcrs", "name at least one PCR")
	seen := map[int]bool{}
	for _, pcr := range t.PCRs {
		if pcr < 0 || pcr > maxPCR {
			ch.check(false, path+"pcrs", "must be from 0 to %d each", maxPCR)
			break
		}
		if seen[pcr] {
			ch.check(false, path+"pcrs", "names PCR %d twice", pcr)
			break
		}
		seen[pcr] = true
	}
}

// sealEscrow leaves the form of recipients to those who encrypt to them. It does
// not quote them: somebody may have pasted a secret key.
func (ch *checker) sealEscrow(e SealEscrow) {
	const path = "core.seal.escrow.recipients"
	ch.check(!e.Enabled || len(e.Recipients) > 0, path, "name at least one recipient, or leave the section out")
	ch.check(len(e.Recipients) <= maxRecipients, path, "must be at most %d", maxRecipients)
	for i, r := range e.Recipients {
		odd := strings.ContainsFunc(r, func(r rune) bool { return r < ' ' || r == 0x7f || r == utf8.RuneError })
		ch.check(strings.TrimSpace(r) != "" && !odd, path, "recipient %d must be one line that is not empty", i+1)
	}
}
