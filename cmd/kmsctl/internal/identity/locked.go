package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"
	"filippo.io/age/armor"
	"filippo.io/age/plugin"

	"teekms/internal/keys"
)

// lockedFile is an age identity file under a passphrase, which is asked for when
// there is something to open.
type lockedFile struct {
	text    []byte
	ask     func() (keys.Secret, error)
	plugins *plugin.ClientUI

	tried bool
	ids   []age.Identity
	err   error
}

var _ age.Identity = (*lockedFile)(nil)

// Unwrap implements age.Identity.
func (l *lockedFile) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	if !l.tried {
		l.tried = true
		l.ids, l.err = l.open()
	}
	if l.err != nil {
		return nil, l.err
	}
	for _, id := range l.ids {
		key, err := id.Unwrap(stanzas)
		if !errors.Is(err, age.ErrIncorrectIdentity) {
			return key, err
		}
	}
	return nil, age.ErrIncorrectIdentity
}

func (l *lockedFile) open() ([]age.Identity, error) {
	var in io.Reader = bytes.NewReader(l.text)
	if bytes.HasPrefix(bytes.TrimSpace(l.text), []byte(armor.Header)) {
		in = armor.NewReader(in)
	}
	var refused error
	out, err := age.Decrypt(in, passphrase(func() (keys.Secret, error) {
		answer, err := l.ask()
		refused = err
		return answer, err
	}))
	if refused != nil {
		return nil, refused
	}
	if _, other := errors.AsType[*age.NoIdentityMatchError](err); other {
		return nil, errors.New("the identity file opens with another passphrase, or with none: it may be encrypted to a key")
	}
	if err != nil {
		return nil, fmt.Errorf("opening the identity file: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(out, maxFile))
	if err != nil {
		return nil, fmt.Errorf("opening the identity file: %w", err)
	}
	return parseLines(text, l.plugins)
}

// passphrase is an age.Identity that asks where a passphrase is what is wanted.
type passphrase func() (keys.Secret, error)

// Unwrap implements age.Identity.
func (ask passphrase) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	if len(stanzas) != 1 || stanzas[0].Type != "scrypt" {
		return nil, age.ErrIncorrectIdentity
	}
	answer, err := ask()
	if err != nil {
		return nil, err
	}
	id, err := age.NewScryptIdentity(string(answer.Bytes()))
	if err != nil {
		return nil, err
	}
	id.SetMaxWorkFactor(maxWorkFactor)
	return id.Unwrap(stanzas)
}
