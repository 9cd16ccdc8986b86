package seal

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"filippo.io/age"
)

const (
	// pluginTimeout bounds one run of an age plugin.
	pluginTimeout = time.Minute
	// pluginGrace is what a plugin has to end by itself when all is said.
	pluginGrace = 2 * time.Second
	// maxPluginOutput bounds what one says, in bytes.
	maxPluginOutput = 1 << 20
	// bodyLine is the length of a line of a stanza's body that is not the last.
	bodyLine = 64
)

// runPlugin has the program of an age plugin wrap fileKey to a recipient, and
// returns what it says, with the label of its stanzas. It gets no answers to
// questions. When its time or ctx is over, it is killed with all programs that it
// has started and that are still of its process group; nothing of it is left
// running or waiting. The library's own client of plugins waits without end, and
// does not tell which process it waits for.
func runPlugin(ctx context.Context, name, recipient string, fileKey []byte) ([]*age.Stanza, []string, error) {
	limited, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	cmd := exec.CommandContext(limited, "age-plugin-"+name, "--age-plugin=recipient-v1")
	cmd.Dir = os.TempDir() // as age does
	cmd.Env = slices.DeleteFunc(os.Environ(), ours)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, fmt.Errorf("making its standard input: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, fmt.Errorf("making its standard output: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err //nolint:wrapcheck // the caller says what was started
	}
	hangUp := func() { _, _ = stdin.Close(), stdout.Close() }
	// A program that has left the group may hold the other end.
	stop := context.AfterFunc(limited, hangUp)
	stanzas, labels, err := converse(stdout, stdin, recipient, fileKey)
	late := limited.Err()
	stop()
	hangUp()
	_ = cmd.Process.Signal(os.Interrupt) // as age does
	grace := time.AfterFunc(pluginGrace, cancel)
	_ = cmd.Wait() // what it has said counts, not how it ends
	grace.Stop()
	switch {
	case err == nil:
		return stanzas, labels, nil
	case ctx.Err() != nil:
		return nil, nil, ctx.Err()
	case late != nil:
		return nil, nil, fmt.Errorf("it was killed since it did not answer within %v: %w", pluginTimeout, late)
	}
	return nil, nil, err
}

// ours reports whether a variable of the environment is one of this program, which
// a plugin has no business with: docs/seal.md#sealing.
func ours(variable string) bool {
	return slices.ContainsFunc([]string{"DSTACK_", "KMS_", "KMSCTL_", "CREDENTIALS_DIRECTORY=", "NOTIFY_SOCKET=", "WATCHDOG_", "LISTEN_"},
		func(prefix string) bool { return strings.HasPrefix(variable, prefix) })
}

// converse speaks recipient-v1 of https://c2sp.org/age-plugin: the recipient and
// the file key, with an offer of labels, then what the plugin has to say.
func converse(from io.Reader, to io.Writer, recipient string, fileKey []byte) (stanzas []*age.Stanza, labels []string, err error) {
	_, err = fmt.Fprintf(to, "-> add-recipient %s\n\n-> wrap-file-key\n%s\n-> extension-labels\n\n-> done\n\n",
		recipient, encoding().EncodeToString(fileKey))
	if err != nil {
		return nil, nil, fmt.Errorf("telling it what to do: %w", err)
	}
	r := bufio.NewReader(io.LimitReader(from, maxPluginOutput))
	for labelled := false; ; {
		s, err := readStanza(r)
		if err != nil {
			return nil, nil, err
		}
		reply := "ok"
		switch s.Type {
		case "recipient-stanza":
			if len(s.Args) < 2 || s.Args[0] != "0" {
				return nil, nil, errors.New("it returned a stanza for what it was not given")
			}
			stanzas = append(stanzas, &age.Stanza{Type: s.Args[1], Args: s.Args[2:], Body: s.Body})
		case "labels":
			if labelled {
				return nil, nil, errors.New("it returned labels twice")
			}
			labelled, labels = true, s.Args
		case "error":
			return nil, nil, errors.New(cmp.Or(string(s.Body), "it gave no reason"))
		case "done":
			if len(stanzas) == 0 || len(stanzas) > maxStanzas {
				return nil, nil, fmt.Errorf("it returned %d stanzas, not 1 to %d", len(stanzas), maxStanzas)
			}
			return stanzas, labels, nil
		case "msg", "confirm", "request-public", "request-secret":
			reply = "fail" // nobody is there to be asked
		default:
			reply = "unsupported"
		}
		if _, err := fmt.Fprintf(to, "-> %s\n\n", reply); err != nil {
			return nil, nil, fmt.Errorf("replying to it: %w", err)
		}
	}
}

// readStanza reads "-> TYPE ARGS…" and lines of base64, of which the last is
// shorter than the others, be it empty.
func readStanza(r *bufio.Reader) (*age.Stanza, error) {
	line, err := readLine(r)
	if err != nil {
		return nil, err
	}
	head, ok := strings.CutPrefix(line, "-> ")
	words := strings.Split(head, " ")
	for _, w := range words {
		ok = ok && w != "" && printable(w)
	}
	if !ok {
		return nil, errors.New("it said what is no stanza")
	}
	s := &age.Stanza{Type: words[0], Args: words[1:]}
	for {
		if line, err = readLine(r); err != nil {
			return nil, err
		}
		part, err := encoding().DecodeString(line)
		if err != nil || len(line) > bodyLine || strings.ContainsAny(line, "\r\n") {
			return nil, errors.New("it said what is no body of a stanza")
		}
		if s.Body = append(s.Body, part...); len(line) < bodyLine {
			return s, nil
		}
	}
}

// readLine returns a line without its end.
func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", errors.New("it ended without an answer, or said too much")
	}
	return line[:len(line)-1], nil
}
