package sealing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"teekms/cmd/internal/argfile"
	"teekms/cmd/internal/terminal"
	"teekms/internal/config"
	"teekms/internal/keys"
	"teekms/internal/keys/seal"
)

// maxPassphrase bounds a file that holds a passphrase, in bytes.
const maxPassphrase = 4096

// credentials is the variable in which systemd names the directory of a unit's
// credentials.
const credentials = "CREDENTIALS_DIRECTORY"

// What is asked.
const (
	question      = "Passphrase of the key directory: "
	questionAgain = "The same passphrase again: "
	questionOld   = "Old passphrase of the key directory: "
)

// afterWrong asks question again after a passphrase that did not open.
func afterWrong(question string, left int) string {
	tries := "tries"
	if left == 1 {
		tries = "try"
	}
	return fmt.Sprintf("That is not the passphrase, or the files are damaged; %d %s left.\n%s", left, tries, question)
}

// passphrase says where the passphrase comes from.
func passphrase(p config.SealPassphrase, from From) seal.PassphraseConfig {
	c := seal.PassphraseConfig{WorkFactor: int(p.WorkFactor), MaxWorkFactor: from.MaxWorkFactor}
	asked := func(question string) func(context.Context) (keys.Secret, error) {
		return func(ctx context.Context) (keys.Secret, error) {
			if from.Ask == nil {
				return keys.Secret{}, errors.New("there is nobody to ask: set core.seal.passphrase.file or credential")
			}
			return from.Ask(ctx, question)
		}
	}
	switch {
	case p.Prompt:
		c.Read, c.Confirm = asked(question), asked(questionAgain)
		c.Again = func(ctx context.Context, left int) (keys.Secret, error) {
			return asked(afterWrong(question, left))(ctx)
		}
	case p.Credential != "":
		c.Read = func(context.Context) (keys.Secret, error) { return readCredential(p.Credential) }
	default:
		c.Read = func(context.Context) (keys.Secret, error) { return readFile("core.seal.passphrase.file", p.File) }
	}
	return c
}

// Terminal asks at the terminal of this process, whatever its standard input is.
func Terminal(ctx context.Context, question string) (keys.Secret, error) {
	tty, err := terminal.Open()
	if err != nil {
		return keys.Secret{}, fmt.Errorf("core.seal.passphrase.prompt has no terminal to ask at: start this where somebody can be asked, "+
			"or set core.seal.passphrase.file or credential instead (%w)", err)
	}
	return AskAt(ctx, tty, question)
}

// AskAt asks for a passphrase at an open terminal, which it closes.
func AskAt(ctx context.Context, tty *os.File, question string) (keys.Secret, error) {
	defer tty.Close() //nolint:errcheck // nothing is lost
	line, err := terminal.Question{TTY: tty, Out: tty, Text: question}.Ask(ctx)
	defer clear(line)
	switch {
	case err != nil:
		return keys.Secret{}, err
	case len(line) == 0:
		return keys.Secret{}, errors.New("nothing was typed: the passphrase is empty")
	}
	return keys.NewSecret(line), nil
}

// readCredential reads a credential that the service manager gave this process.
func readCredential(name string) (keys.Secret, error) {
	const key = "core.seal.passphrase.credential"
	dir := os.Getenv(credentials)
	if dir == "" {
		return keys.Secret{}, fmt.Errorf("%s: $%s is not set: start this as a unit of systemd with LoadCredentialEncrypted=%s:PATH, "+
			"or by hand with systemd-run -p LoadCredentialEncrypted=%[3]s:PATH --pipe --wait", key, credentials, name)
	}
	if !filepath.IsAbs(dir) {
		return keys.Secret{}, fmt.Errorf("%s: $%s is no absolute path", key, credentials)
	}
	return readFile(key, filepath.Join(dir, name))
}

// Old is a seal that opens what was sealed to a passphrase before, with what read
// returns; where that is nil, with what a person is asked for. Nothing is sealed
// to it. Its work factor is bounded as that of the configured passphrase is.
func Old(c config.Core, from From, read func(context.Context) (keys.Secret, error)) seal.Seal {
	p := seal.PassphraseConfig{Read: read, WorkFactor: int(c.Seal.Passphrase.WorkFactor), MaxWorkFactor: from.MaxWorkFactor}
	if read == nil {
		p.Read = func(ctx context.Context) (keys.Secret, error) { return from.Ask(ctx, questionOld) }
		p.Again = func(ctx context.Context, left int) (keys.Secret, error) {
			return from.Ask(ctx, afterWrong(questionOld, left))
		}
	}
	return seal.New(seal.KindPassphrase, seal.NewPassphrase(p))
}

// readFile reads a file that holds a passphrase, for which key stands. One line
// feed at its end, or carriage return and line feed, is not part of it. A link is
// followed, as a mounted secret may be one; what is no regular file is refused.
func readFile(key, path string) (keys.Secret, error) {
	secret, err := readRegular(path)
	if err != nil {
		return keys.Secret{}, fmt.Errorf("%s: %w", key, err)
	}
	return secret, nil
}

func readRegular(path string) (keys.Secret, error) {
	// Without waiting, or the writer of a FIFO would be waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) //nolint:gosec // the operator and the service manager name it
	if err != nil {
		return keys.Secret{}, err
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		return keys.Secret{}, err
	}
	if !info.Mode().IsRegular() {
		return keys.Secret{}, fmt.Errorf("%s is no regular file", path)
	}
	return read(path, f)
}

// ReadOld reads a passphrase that files were sealed to before, as that of the
// configuration is read: from the file that flag names, from stdin for "-".
func ReadOld(ctx context.Context, flag, path string, stdin io.Reader) (keys.Secret, error) {
	secret, err := argfile.Within(ctx, func() (keys.Secret, error) {
		if path == "-" {
			return read("standard input", stdin)
		}
		// A pipe is as good as a file: shells write <(command) so.
		f, err := os.Open(path)
		if err != nil {
			return keys.Secret{}, err
		}
		defer f.Close() //nolint:errcheck // only read
		// A terminal would show what is typed, and the others have no end.
		if info, err := f.Stat(); err == nil && info.Mode()&fs.ModeDevice != 0 {
			return keys.Secret{}, fmt.Errorf("%s is a device, neither a file nor a pipe", path)
		}
		return read(path, f)
	})
	if err != nil {
		return keys.Secret{}, fmt.Errorf("%s: %w", flag, err)
	}
	return secret, nil
}

// read reads a passphrase from what path names.
func read(path string, from io.Reader) (keys.Secret, error) {
	data, err := io.ReadAll(io.LimitReader(from, maxPassphrase+1))
	defer clear(data)
	if err != nil {
		return keys.Secret{}, err
	}
	text, ended := bytes.CutSuffix(data, []byte("\n"))
	if ended {
		text = bytes.TrimSuffix(text, []byte("\r"))
	}
	switch {
	case len(data) > maxPassphrase:
		return keys.Secret{}, fmt.Errorf("%s is larger than %d bytes", path, maxPassphrase)
	case len(text) == 0:
		return keys.Secret{}, fmt.Errorf("%s is empty", path)
	case bytes.ContainsAny(text, "\n"):
		return keys.Secret{}, fmt.Errorf("%s has more than one line", path)
	case bytes.IndexByte(text, 0) >= 0:
		return keys.Secret{}, fmt.Errorf("%s has NUL bytes in it, which no passphrase has: was it zeroed by a crash?", path)
	}
	return keys.NewSecret(text), nil
}
