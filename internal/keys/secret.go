package keys

import (
	"bytes"
	"crypto/subtle"
	"fmt"
	"io"
)

// redacted is what a Secret shows instead of itself.
const redacted = "[redacted]"

// Secret holds key material. However it is printed, marshaled or logged it
// shows "[redacted]"; the bytes leave it only through [Secret.Bytes]. The zero
// value is an empty secret. Go cannot promise to erase every copy of it.
//
// The bytes stand behind a function, because fmt reaches into the unexported
// fields of an enclosing struct without asking their methods, follows pointers
// there when the verb is wrong, but cannot look into a closure. For the same
// reason a Secret is not comparable with ==: use [Secret.Equal].
type Secret struct{ open func() []byte }

// NewSecret returns a Secret holding a copy of b.
func NewSecret(b []byte) Secret {
	c := bytes.Clone(b)
	return Secret{open: func() []byte { return c }}
}

// Bytes returns a copy of the secret bytes.
func (s Secret) Bytes() []byte { return bytes.Clone(s.view()) }

// Len returns the number of secret bytes.
func (s Secret) Len() int { return len(s.view()) }

// Equal reports whether both secrets hold the same bytes. Its time depends on
// the lengths only.
func (s Secret) Equal(o Secret) bool {
	return subtle.ConstantTimeCompare(s.view(), o.view()) == 1
}

// String returns "[redacted]".
func (s Secret) String() string { return redacted }

// GoString returns "[redacted]".
func (s Secret) GoString() string { return redacted }

// Format writes "[redacted]" for every verb and flag.
func (s Secret) Format(f fmt.State, _ rune) {
	// A formatter has no way to report a failed write.
	_, _ = io.WriteString(f, redacted)
}

// MarshalText returns "[redacted]".
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON returns the JSON string "[redacted]".
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

func (s Secret) view() []byte {
	if s.open == nil {
		return nil
	}
	return s.open()
}
