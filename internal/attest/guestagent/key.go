package guestagent

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"teekms/internal/keys"
)

const (
	// KeySize is the size in bytes of what [Agent.Key] returns.
	KeySize = 32
	// KeyPurpose is what Key names as the purpose. It goes into the agent's
	// signature chain, not into the key (docs/wire.md#guest-agent).
	KeyPurpose = "teekms/v1/key-directory"

	// keyAlgorithm is asked for by name: an agent's default may change.
	keyAlgorithm = "secp256k1"
	maxKeyPath   = 256
)

// errNoGetKey: the predecessor derives keys too, but others from the same path.
var errNoGetKey = errors.New("tappd.sock has no GetKey: a key needs an agent that listens on dstack.sock")

// Key asks the first agent that is there for the key it derives for path, 32
// bytes: the same at each call in a guest of the same application, under the
// same KMS, and another in any other. Everything in the guest that reaches the
// agent's socket can ask for it. path is 1 to 256 bytes of printable ASCII.
//
// The signature chain of the answer is not looked at: it proves the key to
// others, and whoever answers on this socket knows the key anyway.
func (a *Agent) Key(ctx context.Context, path string) (keys.Secret, error) {
	if err := checkKeyPath(path); err != nil {
		return keys.Secret{}, fmt.Errorf("asking guest agent for a key: %w", err)
	}
	var key keys.Secret
	err := a.each(ctx, func(ctx context.Context, c client) error {
		if c.tappd {
			return errNoGetKey
		}
		var err error
		key, err = c.key(ctx, path)
		return err
	})
	switch {
	case errors.Is(err, ErrSocketNotFound):
		return keys.Secret{}, fmt.Errorf("there is no guest agent at %s (%w)", a.lookedAt(), err)
	case err != nil:
		return keys.Secret{}, fmt.Errorf("asking guest agent for a key: %w", err)
	}
	return key, nil
}

// lookedAt names where an agent that has keys would be.
func (a *Agent) lookedAt() string {
	var places []string
	for _, e := range a.endpoints {
		if !e.tappd {
			places = append(places, e.address)
		}
	}
	if len(places) == 0 {
		return "no socket at all"
	}
	return strings.Join(places, " or ")
}

func checkKeyPath(path string) error {
	if path == "" || len(path) > maxKeyPath {
		return fmt.Errorf("path of %d bytes, want 1 to %d", len(path), maxKeyPath)
	}
	if i := strings.IndexFunc(path, func(r rune) bool { return r <= ' ' || r > '~' }); i >= 0 {
		return fmt.Errorf("path %q: want printable ASCII without spaces", path)
	}
	return nil
}

type keyRequest struct {
	Path      string `json:"path"`
	Purpose   string `json:"purpose"`
	Algorithm string `json:"algorithm"`
}

func (c client) key(ctx context.Context, path string) (keys.Secret, error) {
	b, err := c.call(ctx, "GetKey", keyRequest{path, KeyPurpose, keyAlgorithm})
	if err != nil {
		return keys.Secret{}, err
	}
	defer clear(b)
	key, err := decodeKey(b)
	if err != nil {
		return keys.Secret{}, fmt.Errorf("GetKey: %w", err)
	}
	return key, nil
}

// decodeKey's errors tell lengths and types, never what the answer holds.
func decodeKey(body []byte) (keys.Secret, error) {
	var answer struct {
		Key string `json:"key"`
	}
	if err := decode(body, &answer); err != nil {
		return keys.Secret{}, err
	}
	b, err := hex.DecodeString(strings.TrimPrefix(answer.Key, "0x"))
	if err != nil {
		return keys.Secret{}, errors.New("key: want hex")
	}
	defer clear(b)
	if len(b) != KeySize {
		return keys.Secret{}, fmt.Errorf("key of %d bytes, want %d", len(b), KeySize)
	}
	key := keys.NewSecret(b)
	if key.Equal(keys.NewSecret(make([]byte, KeySize))) {
		return keys.Secret{}, errors.New("key of nothing but zeros")
	}
	return key, nil
}
