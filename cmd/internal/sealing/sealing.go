// Package sealing makes of core.seal the seals that the private files of the key
// directory are opened and written with: docs/operations.md#sealing.
package sealing

import (
	"context"
	"fmt"

	"teekms/internal/attest/guestagent"
	"teekms/internal/config"
	"teekms/internal/keys"
	"teekms/internal/keys/seal"
	"teekms/internal/keys/seal/tpm"
)

// Asker asks a person for a secret. [Terminal] is one.
type Asker func(ctx context.Context, question string) (keys.Secret, error)

// From says by what means passphrases are had.
type From struct {
	// Ask asks a person. Nil where nobody is there.
	Ask Asker
	// MaxWorkFactor is that of [seal.PassphraseConfig]: zero is what core.seal
	// allows.
	MaxWorkFactor int
}

// Seals returns the configured seals in the order in which they are tried: what
// needs nobody first, a prompt last, escrow, which opens nothing, at the end. It
// returns none where core.seal is not configured. Nothing is read, asked or
// reached before a seal is used.
func Seals(c config.Core, from From) ([]seal.Seal, error) {
	var seals []seal.Seal
	if s := c.Seal.TPM; s.Enabled {
		source, err := tpm.New(tpm.Config{Device: s.Device, PCRs: s.PCRs})
		if err != nil {
			return nil, fmt.Errorf("core.seal.tpm: %w", err)
		}
		seals = append(seals, seal.New(seal.KindTPM, source))
	}
	if s := c.Seal.GuestAgent; s.Enabled {
		agent, err := guestagent.New(guestagent.Config{Address: c.Attestation.AgentAddress, Timeout: c.Attestation.Timeout})
		if err != nil {
			return nil, fmt.Errorf("core.seal.guest_agent: %w", err)
		}
		seals = append(seals, seal.New(seal.KindGuestAgent, seal.NewGuestAgent(agent, s.Path)))
	}
	if s := c.Seal.Passphrase; s.Enabled {
		seals = append(seals, seal.New(seal.KindPassphrase, seal.NewPassphrase(passphrase(s, from))))
	}
	if s := c.Seal.Escrow; s.Enabled {
		escrow, err := seal.NewEscrow(s.Recipients)
		if err != nil {
			return nil, fmt.Errorf("core.seal.escrow.recipients: %w", err)
		}
		seals = append(seals, escrow)
	}
	return seals, nil
}

// NewSet returns the configured seals as one set, nil where core.seal is not
// configured. A person who types a wrong passphrase is asked again. told, which
// may be nil, hears how each fared ([seal.Config]).
func NewSet(c config.Core, ask Asker, told func(seal.Kind, error)) (*seal.Set, error) {
	if !c.Seal.Configured() {
		return nil, nil //nolint:nilnil // plain files are opened with no seal, which is no error
	}
	seals, err := Seals(c, From{Ask: ask})
	if err != nil {
		return nil, err
	}
	set, err := seal.NewSet(seal.Config{Seals: seals, Again: true, Told: told})
	if err != nil {
		return nil, fmt.Errorf("core.seal: %w", err)
	}
	return set, nil
}

// Check says what is wrong with core.seal that can be told without asking
// anybody, without TPM and guest agent, and without the key directory. A
// credential is not looked for: it is there only where the service manager starts
// the KMS.
func Check(c config.Core) error {
	if _, err := NewSet(c, nil, nil); err != nil {
		return err
	}
	if file := c.Seal.Passphrase.File; c.Seal.Passphrase.Enabled && file != "" {
		_, err := readFile("core.seal.passphrase.file", file)
		return err
	}
	return nil
}

// Rehearse seals something worthless and opens it again, as every sealing does.
// What a person is asked for, and whatever a seal has to say against being used,
// comes to light before there are keys to seal.
func Rehearse(ctx context.Context, set *seal.Set) error {
	const name = "root-ca.key" // in errors it must mean something to who reads them
	if _, err := set.Seal(ctx, map[string]keys.Secret{name: keys.NewSecret([]byte("nothing"))}); err != nil {
		return fmt.Errorf("trying the seals of core.seal: %w", err)
	}
	return nil
}
