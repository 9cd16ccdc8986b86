// Package seal keeps private files readable only where they belong: each is an
// age file whose recipients are the configured seals, a passphrase, a TPM, the
// guest agent of a trust domain, and an escrow that only encrypts.
//
// The format, what each seal is bound to and what it is worth: docs/seal.md.
package seal

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"teekms/internal/keys"
)

// Kind names a kind of seal. It is also part of the stanza's type and of the
// label of its key: docs/seal.md#format.
type Kind string

// The kinds of seal.
const (
	// KindPassphrase opens with what an operator knows.
	KindPassphrase Kind = "passphrase"
	// KindTPM opens with a TPM 2.0 whose PCRs are what they were.
	KindTPM Kind = "tpm"
	// KindGuestAgent opens in a trust domain of the same app identity.
	KindGuestAgent Kind = "guest-agent"
	// KindEscrow opens nothing here: it encrypts to somebody else's age key.
	KindEscrow Kind = "escrow"
)

// KeySource makes the key of one sealing and finds it again. Its methods may be
// called by several goroutines.
type KeySource interface {
	// Make returns a key of 32 bytes and the public arguments that Find needs:
	// at most 12, printable ASCII without spaces, 4096 bytes each.
	Make(ctx context.Context) (key keys.Secret, args []string, err error)
	// Find returns the key that Make returned with args. They come from a file
	// that nobody has vouched for yet: Find bounds what it does with them. The
	// error says why not, for people, and holds no secret.
	Find(ctx context.Context, args []string) (keys.Secret, error)
	// Describe puts args in words without opening anything, as in "scrypt, work
	// factor 18". Args that Make would not return must not harm it.
	Describe(args []string) string
}

// Seal is one configured seal. The zero value is none and is refused by
// [NewSet].
type Seal struct {
	kind   Kind
	source KeySource
	escrow []recipient
}

// New returns a seal of a kind that opens, with its source of keys.
func New(kind Kind, source KeySource) Seal { return Seal{kind: kind, source: source} }

// Kind returns the kind of the seal.
func (s Seal) Kind() Kind { return s.kind }

// Opens reports whether the seal can open what it sealed; escrow cannot.
func (s Seal) Opens() bool { return s.source != nil }

// Recipients returns the age recipients of an escrow as text, ssh keys without
// their comments; nil for other kinds.
func (s Seal) Recipients() []string {
	var out []string
	for _, r := range s.escrow {
		out = append(out, r.text)
	}
	return out
}

// String returns the kind.
func (s Seal) String() string { return string(s.kind) }

// Format writes the kind whatever the verb is: a key source may hold a secret.
func (s Seal) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// names lists the kinds of seals, as in "tpm, passphrase".
func names(seals []Seal) string {
	var b strings.Builder
	for i, s := range seals {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(s.kind))
	}
	return b.String()
}

// opensHere reports whether k is a kind of seal with a key source.
func opensHere(k Kind) bool {
	return slices.Contains([]Kind{KindPassphrase, KindTPM, KindGuestAgent}, k)
}
