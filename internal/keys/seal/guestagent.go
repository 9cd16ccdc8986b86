package seal

import (
	"context"
	"errors"
	"strings"

	"teekms/internal/keys"
)

// maxPath is the size in bytes that the path of an agent's key may have.
const maxPath = 256

// guestAgent asks the guest agent of the trust domain for a key.
type guestAgent struct {
	agent interface {
		Key(ctx context.Context, path string) (keys.Secret, error)
	}
	path string
}

// NewGuestAgent returns the key source of [KindGuestAgent]: the key that agent
// has for path, which is of printable ASCII without spaces, at most 256 bytes.
// The same app identity under the same KMS gets the same key.
func NewGuestAgent(agent interface {
	Key(ctx context.Context, path string) (keys.Secret, error)
}, path string,
) KeySource {
	return &guestAgent{agent: agent, path: path}
}

// Make returns the agent's key, and the path.
func (g *guestAgent) Make(ctx context.Context) (keys.Secret, []string, error) {
	args := []string{g.path}
	key, err := g.Find(ctx, args)
	return key, args, err
}

// Find returns the agent's key for the path that the file names: a path that
// was configured since does not hinder opening.
func (g *guestAgent) Find(ctx context.Context, args []string) (keys.Secret, error) {
	if len(args) != 1 || !validPath(args[0]) {
		return keys.Secret{}, errors.New("the path is malformed")
	}
	key, err := g.agent.Key(ctx, args[0])
	if err != nil {
		// That no agent is there is one reason among others, not the absence of an
		// attester, which callers know by its error.
		return keys.Secret{}, errors.New(err.Error())
	}
	return key, nil
}

// Describe names the path.
func (g *guestAgent) Describe(args []string) string { return describeGuestAgent(args) }

func describeGuestAgent(args []string) string {
	if len(args) != 1 || !validPath(args[0]) {
		return "malformed path"
	}
	return "path " + args[0]
}

// validPath reports whether p can be an argument of a stanza.
func validPath(p string) bool {
	return p != "" && len(p) <= maxPath && printable(p) && !strings.Contains(p, " ")
}
