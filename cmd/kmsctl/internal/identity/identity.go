// Package identity reads the private keys of escrow holders: age identity files,
// in the clear or under a passphrase, and SSH private keys (docs/kmsctl.md#seal).
package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"filippo.io/age/plugin"
	"golang.org/x/crypto/ssh"

	"teekms/cmd/internal/argfile"
	"teekms/internal/keys"
)

// maxFile bounds a file, in bytes.
const maxFile = 1 << 20

// maxWorkFactor bounds the scrypt of a file under a passphrase: age writes 18.
const maxWorkFactor = 20

// Reader reads identity files. All fields are required.
type Reader struct {
	// Ask asks the person at the terminal for a secret, which is not shown. It is called when the
	// secret is needed, not before, and once for each file.
	Ask func(ctx context.Context, what string) (keys.Secret, error)
	// Tell shows a line of a plugin that wants something of that person.
	Tell func(text string)
}

// Read returns the identities in a file. ctx bounds questions that they ask
// later. An error holds nothing of the file.
func (r Reader) Read(ctx context.Context, path string) ([]age.Identity, error) {
	text, err := argfile.Read(ctx, path, maxFile)
	if err != nil {
		return nil, err
	}
	ids, err := r.parse(ctx, path, text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ids, nil
}

func (r Reader) parse(ctx context.Context, path string, text []byte) ([]age.Identity, error) {
	ask := r.once(ctx, "Passphrase of "+path+": ")
	trimmed := bytes.TrimSpace(text)
	switch {
	case bytes.HasPrefix(text, []byte("age-encryption.org/")), bytes.HasPrefix(trimmed, []byte(armor.Header)):
		return []age.Identity{&lockedFile{text: text, ask: ask, plugins: r.plugins(ctx)}}, nil
	case bytes.HasPrefix(trimmed, []byte("-----BEGIN")):
		id, err := sshIdentity(ctx, path, text, ask)
		if err != nil {
			return nil, err
		}
		return []age.Identity{id}, nil
	default:
		return parseLines(text, r.plugins(ctx))
	}
}

// once remembers the answer, the refusal to give one too: four files are opened
// with it.
func (r Reader) once(ctx context.Context, what string) func() (keys.Secret, error) {
	var answer keys.Secret
	var failed error
	asked := false
	return func() (keys.Secret, error) {
		if !asked {
			asked = true
			answer, failed = r.Ask(ctx, what)
		}
		return answer, failed
	}
}

// parseLines reads age identities, one a line.
func parseLines(text []byte, ui *plugin.ClientUI) ([]age.Identity, error) {
	if !utf8.Valid(text) {
		return nil, errors.New("neither an age identity file nor an SSH private key")
	}
	var ids []age.Identity
	n := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		id, err := parseLine(line, ui)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return nil, errors.New("no identity in it")
	}
	return ids, nil
}

// parseLine keeps the errors of the library to itself: they quote the line.
func parseLine(line string, ui *plugin.ClientUI) (id age.Identity, err error) {
	kind := "secret key of age"
	switch {
	case strings.HasPrefix(line, "AGE-SECRET-KEY-PQ-1"):
		id, err = age.ParseHybridIdentity(line)
	case strings.HasPrefix(line, "AGE-SECRET-KEY-1"):
		id, err = age.ParseX25519Identity(line)
	case strings.HasPrefix(line, "AGE-PLUGIN-"):
		kind = "identity of an age plugin"
		id, err = plugin.NewIdentity(line, ui)
	case strings.HasPrefix(line, "age1"), strings.HasPrefix(line, "ssh-"):
		return nil, errors.New("a recipient, which only encrypts: the identity that belongs to it opens")
	default:
		return nil, errors.New("not an age identity")
	}
	if err != nil {
		return nil, fmt.Errorf("a damaged %s", kind)
	}
	return id, nil
}

// sshIdentity reads an SSH private key. Where it is under a passphrase, that is
// asked for when a file is sealed to the key.
func sshIdentity(ctx context.Context, path string, text []byte, ask func() (keys.Secret, error)) (age.Identity, error) {
	id, err := agessh.ParseIdentity(text)
	missing, locked := errors.AsType[*ssh.PassphraseMissingError](err)
	if err != nil && !locked {
		return nil, errors.New("not an SSH private key that age can use: want Ed25519 or RSA")
	}
	if !locked {
		return id, nil
	}
	public := missing.PublicKey
	if public == nil {
		// Formats before OpenSSH's own keep it elsewhere.
		if public, err = readPublic(ctx, path+".pub"); err != nil {
			return nil, fmt.Errorf("the SSH private key is under a passphrase, and its public key is needed beside it: %w", err)
		}
	}
	encrypted, err := agessh.NewEncryptedSSHIdentity(public, text, func() ([]byte, error) {
		answer, err := ask()
		return answer.Bytes(), err
	})
	if err != nil {
		return nil, errors.New("not an SSH private key that age can use: want Ed25519 or RSA")
	}
	return encrypted, nil
}

func readPublic(ctx context.Context, path string) (ssh.PublicKey, error) {
	text, err := argfile.Read(ctx, path, maxFile)
	if err != nil {
		return nil, err
	}
	public, _, _, _, err := ssh.ParseAuthorizedKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: not an SSH public key", path)
	}
	return public, nil
}

// plugins talks to the person for a plugin.
func (r Reader) plugins(ctx context.Context) *plugin.ClientUI {
	return &plugin.ClientUI{
		DisplayMessage: func(name, message string) error {
			r.Tell(fmt.Sprintf("age-plugin-%s: %s", name, message))
			return nil
		},
		RequestValue: func(name, prompt string, _ bool) (string, error) {
			answer, err := r.Ask(ctx, fmt.Sprintf("age-plugin-%s: %s: ", name, prompt))
			return string(answer.Bytes()), err
		},
		Confirm: func(name, prompt, yes, no string) (bool, error) {
			choice := fmt.Sprintf("age-plugin-%s: %s (%q: y", name, prompt, yes)
			if no != "" {
				choice += fmt.Sprintf(", %q: n", no)
			}
			answer, err := r.Ask(ctx, choice+"): ")
			return strings.EqualFold(string(answer.Bytes()), "y"), err
		},
		WaitTimer: func(name string) { r.Tell(fmt.Sprintf("waiting for age-plugin-%s", name)) },
	}
}
