package seal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/plugin"
	"golang.org/x/crypto/ssh"
)

const (
	maxRecipients = 32
	maxRecipient  = 8 << 10 // bytes of one, as text
)

// labelPostQuantum is age's label of recipients that withstand quantum
// computers.
const labelPostQuantum = "postquantum"

// recipient is one of an escrow.
type recipient struct {
	text string
	to   age.Recipient
	// plugin names the program that wraps, where to is nil; empty for a recipient
	// of the library.
	plugin string
}

// NewEscrow returns a seal that encrypts to age recipients and opens nothing:
// age1… (X25519), age1pq1… (post-quantum), ssh-ed25519 and ssh-rsa public keys,
// and age1NAME1… of a plugin, for which the program age-plugin-NAME is run at
// every sealing. The error names every
// recipient that cannot be used, by its position, which counts from 1, and never
// by its text: what was put there may be a secret.
func NewEscrow(recipients []string) (Seal, error) {
	if len(recipients) == 0 || len(recipients) > maxRecipients {
		return Seal{}, fmt.Errorf("escrow has %d recipients, not 1 to %d", len(recipients), maxRecipients)
	}
	s := Seal{kind: KindEscrow}
	var bad recipientErrors
	seen := map[string]int{}
	known := escrowLabels{}
	for i, text := range recipients {
		r, err := parseRecipient(strings.TrimSpace(text))
		if err == nil {
			if j, ok := seen[r.text]; ok {
				err = fmt.Errorf("the same as recipient %d", j+1)
			} else {
				seen[r.text] = i
				err = known.take(r)
			}
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("escrow recipient %d: %w", i+1, err))
		}
		s.escrow = append(s.escrow, r)
	}
	if len(bad) > 0 {
		return Seal{}, bad
	}
	return s, nil
}

// recipientErrors are what is wrong with each of the recipients that cannot be
// used.
type recipientErrors []error

// Error has all of them on one line.
func (e recipientErrors) Error() string {
	texts := make([]string, len(e))
	for i, err := range e {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

// Unwrap returns them.
func (e recipientErrors) Unwrap() []error { return e }

// escrowLabels are the labels of the recipients of an escrow, which all share.
type escrowLabels struct {
	known  bool
	labels []string
}

// take refuses a recipient that cannot be encrypted to, or not beside those before
// it. What a plugin can do is known only when it runs.
func (e *escrowLabels) take(r recipient) error {
	if r.plugin != "" {
		return nil
	}
	_, labels, err := wrapWithLabels(r.to, make([]byte, fileKeySize))
	if err != nil {
		return errors.New("this key cannot be encrypted to")
	}
	return e.agree(labels)
}

// agree takes the labels of one more recipient.
func (e *escrowLabels) agree(labels []string) error {
	if !e.known {
		e.known, e.labels = true, labels
		return nil
	}
	return sameLabels(e.labels, labels)
}

// parseRecipient reads a recipient. Its errors are fixed texts: those of the
// parsers quote what they were given.
func parseRecipient(text string) (recipient, error) {
	upper := strings.ToUpper(text)
	switch {
	case text == "":
		return recipient{}, errors.New("is empty")
	case strings.HasPrefix(upper, "AGE-SECRET-KEY-"), strings.HasPrefix(upper, "AGE-PLUGIN-"), strings.Contains(upper, "PRIVATE KEY"):
		return recipient{}, errors.New("is a secret key, not a recipient: remove it here and consider it known to others")
	case len(text) > maxRecipient || !printable(text):
		return recipient{}, errors.New("is too long, or not one line of printable ASCII")
	case strings.HasPrefix(text, "ssh-"), strings.HasPrefix(text, "ecdsa-"), strings.HasPrefix(text, "sk-"):
		return parseSSH(text)
	case strings.HasPrefix(text, "AGE1"):
		return recipient{}, errors.New("is in capitals: write it in lower case")
	case strings.HasPrefix(text, "age1pq1"):
		return native(age.ParseHybridRecipient(text))
	case strings.HasPrefix(text, "age1") && strings.Count(text, "1") > 1:
		return parsePlugin(text)
	case strings.HasPrefix(text, "age1"):
		return native(age.ParseX25519Recipient(text))
	}
	return recipient{}, errors.New("is none: age1…, ssh-ed25519 … or ssh-rsa … is expected")
}

// native returns a recipient of the library.
func native[R interface {
	age.Recipient
	fmt.Stringer
}](r R, err error) (recipient, error) {
	if err != nil {
		return recipient{}, errors.New("is malformed: a character is wrong or missing")
	}
	return recipient{text: r.String(), to: r}, nil
}

// parsePlugin returns a recipient of a plugin, which is not run yet.
func parsePlugin(text string) (recipient, error) {
	name, _, err := plugin.ParseRecipient(text)
	if err != nil {
		return recipient{}, errors.New("is malformed: a character is wrong or missing")
	}
	return recipient{text: text, plugin: name}, nil
}

// parseSSH returns a recipient of a line of an authorized_keys file without
// options.
func parseSSH(text string) (recipient, error) {
	pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(text))
	if err != nil {
		return recipient{}, errors.New("is no ssh public key")
	}
	var to age.Recipient
	switch pub.Type() {
	case ssh.KeyAlgoED25519:
		to, err = agessh.NewEd25519Recipient(pub)
	case ssh.KeyAlgoRSA:
		to, err = agessh.NewRSARecipient(pub)
	default:
		return recipient{}, errors.New("is an ssh key of a kind that cannot be encrypted to: ssh-ed25519 and ssh-rsa can")
	}
	if err != nil {
		return recipient{}, fmt.Errorf("cannot be encrypted to: %w", err)
	}
	line := strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(pub)), "\n")
	return recipient{text: line, to: to}, nil
}

// wrapEscrow wraps fileKey to all recipients and returns the label they share.
// Its error is of all that it cannot wrap to, as far as they take their time.
func (s Seal) wrapEscrow(ctx context.Context, fileKey []byte) ([]*age.Stanza, []string, error) {
	var stanzas []*age.Stanza
	var bad recipientErrors
	var which []string
	known := escrowLabels{}
	for i, r := range s.escrow {
		st, labels, err := r.wrap(ctx, fileKey)
		if err == nil {
			err = known.agree(labels)
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("encrypting to escrow recipient %d: %w", i+1, err))
			which = append(which, r.text)
		}
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			break // the next may take as long
		}
		stanzas = append(stanzas, st...)
	}
	if len(bad) > 0 {
		return nil, nil, &SealingError{Kind: KindEscrow, Recipients: which, Err: bad}
	}
	return stanzas, known.labels, nil
}

// wrap wraps fileKey to one recipient.
func (r recipient) wrap(ctx context.Context, fileKey []byte) ([]*age.Stanza, []string, error) {
	if r.plugin == "" {
		return wrapWithLabels(r.to, fileKey)
	}
	if err := checkDebug(); err != nil {
		return nil, nil, err
	}
	stanzas, labels, err := runPlugin(ctx, r.plugin, r.text, fileKey)
	if err != nil {
		return nil, nil, fmt.Errorf("running age-plugin-%s: %w", r.plugin, oneLine(err))
	}
	for _, s := range stanzas {
		if strings.HasPrefix(s.Type, stanzaPrefix) {
			return nil, nil, fmt.Errorf("running age-plugin-%s: it returned a stanza of ours", r.plugin)
		}
	}
	return stanzas, labels, nil
}

// checkDebug refuses to run a plugin where the library would print what it
// tells it.
func checkDebug() error {
	if os.Getenv("AGEDEBUG") == "plugin" {
		return errors.New("AGEDEBUG=plugin is set, with which age prints file keys: unset it")
	}
	return nil
}

// wrapWithLabels wraps as age does, with labels where there are some.
func wrapWithLabels(r age.Recipient, fileKey []byte) ([]*age.Stanza, []string, error) {
	if l, ok := r.(age.RecipientWithLabels); ok {
		return l.WrapWithLabels(fileKey)
	}
	st, err := r.Wrap(fileKey)
	return st, nil, err
}

// sameLabels refuses recipients that age would not put into one file.
func sameLabels(a, b []string) error {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	switch {
	case slices.Equal(a, b):
		return nil
	case slices.Contains(a, labelPostQuantum) != slices.Contains(b, labelPostQuantum):
		return errors.New("post-quantum and classic recipients cannot be mixed: the classic ones would open the file to a quantum computer")
	}
	return errors.New("cannot be mixed with the recipients before it")
}

// oneLine makes an error of another program fit to be shown.
func oneLine(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	text := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return ' '
		}
		return c
	}, err.Error())
	return errors.New(text[:min(len(text), 300)])
}
