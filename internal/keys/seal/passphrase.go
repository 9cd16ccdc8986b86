package seal

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"golang.org/x/crypto/scrypt"

	"teekms/internal/keys"
)

// Work factors of scrypt: its N is two to this power, its memory 1 KiB times N.
const (
	// DefaultWorkFactor costs about a second and 256 MiB.
	DefaultWorkFactor = 18
	// MinWorkFactor is the least that is written and read.
	MinWorkFactor = 10
	// MaxWorkFactor is the most: 4 GiB.
	MaxWorkFactor = 22
)

// labelScrypt stands before the salt.
const labelScrypt = "teekms/v1/seal/scrypt"

// maxTries is how often somebody is asked for the passphrase of a file.
const maxTries = 3

// PassphraseConfig says where a passphrase comes from.
type PassphraseConfig struct {
	// Read returns the passphrase; required. It is asked until it has answered
	// once. An empty passphrase and one with a line feed or a NUL byte are refused.
	Read func(ctx context.Context) (keys.Secret, error)
	// Confirm, where it is there, asks for the passphrase a second time before it
	// is used to seal, unless it has opened a file already.
	Confirm func(ctx context.Context) (keys.Secret, error)
	// Again, where it is there, asks anew after a passphrase that does not open a
	// file, with how many tries are left, this one among them: 2, then 1. Used
	// where [Config] lets it.
	Again func(ctx context.Context, left int) (keys.Secret, error)
	// WorkFactor is that of new files: 10 to 22, default 18.
	WorkFactor int
	// MaxWorkFactor bounds that of files that are read; default is the greater of
	// WorkFactor and 18. Each step doubles the time and the memory that whoever
	// writes a file can have this program spend.
	MaxWorkFactor int
}

// passphrase stretches a passphrase with scrypt:
//
//	-> teekms-passphrase v1 SCRYPTSALT WORKFACTOR SALT
type passphrase struct {
	cfg PassphraseConfig
	// raised says that cfg.MaxWorkFactor is more than the configuration allows.
	raised bool

	// mu guards what follows; it is held while the passphrase is asked for, so
	// that nobody is asked twice at once.
	mu sync.Mutex
	// secret is the passphrase once it was read.
	secret keys.Secret
	// confirmed is set when the passphrase was given twice or has opened a file.
	confirmed bool
	// tries is how many passphrases have not opened a file.
	tries int
}

// NewPassphrase returns the key source of [KindPassphrase]. It remembers the
// passphrase that was read.
func NewPassphrase(cfg PassphraseConfig) KeySource {
	if cfg.WorkFactor == 0 {
		cfg.WorkFactor = DefaultWorkFactor
	}
	allowed := max(cfg.WorkFactor, DefaultWorkFactor)
	raised := cfg.MaxWorkFactor > allowed
	cfg.MaxWorkFactor = max(cfg.MaxWorkFactor, allowed)
	return &passphrase{cfg: cfg, raised: raised}
}

// Make stretches the passphrase with a new salt.
func (p *passphrase) Make(ctx context.Context) (keys.Secret, []string, error) {
	if f := p.cfg.WorkFactor; f < MinWorkFactor || f > MaxWorkFactor {
		return keys.Secret{}, nil, fmt.Errorf("work factor %d is not within %d and %d", f, MinWorkFactor, MaxWorkFactor)
	}
	secret, err := p.read(ctx, true)
	if err != nil {
		return keys.Secret{}, nil, err
	}
	salt := make([]byte, saltSize)
	rand.Read(salt) // never fails: crypto/rand ends the program instead
	key, err := stretch(secret, salt, p.cfg.WorkFactor)
	return key, []string{encoding().EncodeToString(salt), strconv.Itoa(p.cfg.WorkFactor)}, err
}

// Find stretches the passphrase as the file says. The work factor is looked at
// before anything is asked or computed.
func (p *passphrase) Find(ctx context.Context, args []string) (keys.Secret, error) {
	salt, factor, err := parsePassphrase(args)
	if err != nil {
		return keys.Secret{}, err
	}
	if factor > p.cfg.MaxWorkFactor {
		return keys.Secret{}, &WorkFactorError{Factor: factor, Limit: p.cfg.MaxWorkFactor, Raised: p.raised}
	}
	secret, err := p.read(ctx, false)
	if err != nil {
		return keys.Secret{}, err
	}
	return stretch(secret, salt, factor)
}

// Describe names the work factor.
func (p *passphrase) Describe(args []string) string { return describePassphrase(args) }

// fits is told that the passphrase has opened a file.
func (p *passphrase) fits() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.confirmed = true
}

// again forgets a passphrase that did not open a file. It reports whether to try
// once more: somebody is asked then.
func (p *passphrase) again() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cfg.Again == nil || p.confirmed || p.tries+1 >= maxTries {
		return false
	}
	p.tries++
	p.secret = keys.Secret{}
	return true
}

// ask asks for the passphrase.
func (p *passphrase) ask(ctx context.Context) (keys.Secret, error) {
	if p.tries > 0 {
		return p.cfg.Again(ctx, maxTries-p.tries)
	}
	return p.cfg.Read(ctx)
}

// read returns the passphrase, asking for it where it is not known yet, and a
// second time where it shall be used for sealing.
func (p *passphrase) read(ctx context.Context, sealing bool) (keys.Secret, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	secret := p.secret
	if secret.Len() == 0 {
		var err error
		if secret, err = p.ask(ctx); err != nil {
			return keys.Secret{}, err //nolint:wrapcheck // the reader says from where
		}
		if err := checkPassphrase(secret); err != nil {
			return keys.Secret{}, err
		}
	}
	if sealing && !p.confirmed && p.cfg.Confirm != nil {
		again, err := p.cfg.Confirm(ctx)
		if err != nil {
			return keys.Secret{}, err //nolint:wrapcheck // as before
		}
		if !again.Equal(secret) {
			p.secret = keys.Secret{} // nobody knows which of them was meant
			return keys.Secret{}, errors.New("the two passphrases differ")
		}
		p.confirmed = true
	}
	p.secret = secret
	return secret, nil
}

// checkPassphrase refuses what was not meant as a passphrase.
func checkPassphrase(s keys.Secret) error {
	if s.Len() == 0 {
		return errors.New("the passphrase is empty")
	}
	for _, c := range s.Bytes() {
		switch c {
		case '\n':
			return errors.New("the passphrase has a line feed in it")
		case 0:
			// HMAC, on which scrypt stands, cannot tell them from nothing at the end.
			return errors.New("the passphrase has a NUL byte in it")
		}
	}
	return nil
}

// stretch is scrypt with r = 8 and p = 1.
func stretch(secret keys.Secret, salt []byte, factor int) (keys.Secret, error) {
	k, err := scrypt.Key(secret.Bytes(), append([]byte(labelScrypt), salt...), 1<<factor, 8, 1, keySize)
	if err != nil {
		return keys.Secret{}, fmt.Errorf("stretching the passphrase: %w", err)
	}
	return keys.NewSecret(k), nil
}

// parsePassphrase reads the arguments of a passphrase's stanza.
func parsePassphrase(args []string) (salt []byte, factor int, err error) {
	if len(args) != 2 {
		return nil, 0, errors.New("the stanza is malformed")
	}
	salt, err = encoding().DecodeString(args[0])
	if err != nil || len(salt) != saltSize {
		return nil, 0, errors.New("the salt of scrypt is malformed")
	}
	factor, err = strconv.Atoi(args[1])
	if err != nil || factor < MinWorkFactor || strconv.Itoa(factor) != args[1] {
		return nil, 0, errors.New("the work factor is malformed")
	}
	return salt, factor, nil
}

func describePassphrase(args []string) string {
	_, factor, err := parsePassphrase(args)
	if err != nil {
		return "malformed"
	}
	return fmt.Sprintf("scrypt, work factor %d", factor)
}
