package client

import (
	"fmt"

	"teekms/internal/keys"
)

// Secret is key material. It prints as [redacted] in every form; only Bytes
// gives it away. The zero value is empty.
type Secret struct{ s keys.Secret }

func newSecret(b []byte) Secret { return Secret{keys.NewSecret(b)} }

// Bytes returns a copy of the key material.
func (s Secret) Bytes() []byte { return s.s.Bytes() }

// Len returns its length in bytes.
func (s Secret) Len() int { return s.s.Len() }

// String returns "[redacted]".
func (s Secret) String() string { return s.s.String() }

// Format implements [fmt.Formatter]: every verb prints "[redacted]".
func (s Secret) Format(f fmt.State, verb rune) { s.s.Format(f, verb) }

// MarshalText implements [encoding.TextMarshaler]: it returns "[redacted]".
func (s Secret) MarshalText() ([]byte, error) { return s.s.MarshalText() }
