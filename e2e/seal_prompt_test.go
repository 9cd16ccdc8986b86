package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

// onTerminal starts a command of k on a terminal of its own.
func (term *terminal) onTerminal(t *testing.T, k *kmsDir, name string, env ...string) *process {
	t.Helper()
	cmd := command(t, env, name, "--config", k.Config)
	cmd.Stdin = term.tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	return startCmd(t, cmd)
}

// types waits for a question on the terminal, where what is typed must not be
// shown, and answers it.
func (term *terminal) types(t *testing.T, p *process, question, answer string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if strings.Contains(term.String(), question) && !term.echoes(t) {
			break
		}
		select {
		case <-p.ended:
			t.Fatalf("%s ended without asking %q: %q\n%s", p.Cmd, question, term, p.stderr)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not ask %q: %q\n%s", p.Cmd, question, term, p.stderr)
		}
	}
	if _, err := term.WriteString(answer); err != nil {
		t.Fatal(err)
	}
}

// TestPassphraseIsAskedFor has the operator at a real terminal, once to choose a
// passphrase, then at every start.
func TestPassphraseIsAskedFor(t *testing.T) {
	t.Parallel()
	const prompting = "[core.seal.passphrase]\nprompt = true\nwork_factor = 10\n"
	k := newKMS(t, "", prompting+devAuthority)
	auto := "DSTACK_KMS_CORE_ONBOARD_AUTO_BOOTSTRAP_DOMAIN=" + exampleDomain

	t.Run("two that differ", func(t *testing.T) {
		term := newTerminal(t)
		p := term.onTerminal(t, k, "dstack-onboard", auto)
		term.types(t, p, promptOpen, "canary one\n")
		term.types(t, p, promptAgain, "canary two\n")
		if code := p.wait(t, patience); code != 1 || !strings.Contains(lastLine(p.stderr.String()), "differ") {
			t.Errorf("exit status %d, want 1 and that the two differ\n%s", code, p.stderr)
		}
		if left := tree(t, k.Certs); len(left) > 1 {
			t.Errorf("left behind: %v", left)
		}
	})
	t.Run("without a terminal", func(t *testing.T) {
		cmd := command(t, []string{auto}, "dstack-onboard", "--config", k.Config)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		code, _, stderr := runCmd(t, cmd)
		if code != 1 || !strings.Contains(lastLine(stderr), "terminal") {
			t.Errorf("exit status %d, want 1 and that there is no terminal\n%s", code, stderr)
		}
		if left := tree(t, k.Certs); len(left) > 1 {
			t.Errorf("left behind: %v", left)
		}
	})
	term := newTerminal(t)
	p := term.onTerminal(t, k, "dstack-onboard", auto)
	term.types(t, p, promptOpen, passphraseCanary+"\n")
	term.types(t, p, promptAgain, passphraseCanary+"\n")
	if code := p.wait(t, patience); code != 0 {
		t.Fatalf("exit status %d\n%s", code, p.stderr)
	}
	k.checkSealed(t, "teekms-file", "teekms-passphrase")
	shown := term.String() + p.stdout.String() + p.stderr.String()

	t.Run("a wrong one", func(t *testing.T) {
		term := newTerminal(t)
		p := term.onTerminal(t, k, "dstack-kms")
		for _, question := range []string{promptOpen, promptSecond, promptThird} {
			term.types(t, p, question, "canary of another\n")
		}
		if code := p.wait(t, patience); code != 1 || !strings.Contains(lastLine(p.stderr.String()), "wrong passphrase") {
			t.Errorf("exit status %d, want 1 and that it is the wrong one\n%s", code, p.stderr)
		}
	})
	t.Run("at the start of a server, without a terminal", func(t *testing.T) {
		cmd := command(t, nil, "dstack-kms", "--config", k.Config)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		code, _, stderr := runCmd(t, cmd)
		if code != 1 || !strings.Contains(lastLine(stderr), "terminal") {
			t.Errorf("exit status %d, want 1 and that there is no terminal\n%s", code, stderr)
		}
	})
	t.Run("Ctrl-C", func(t *testing.T) {
		term := newTerminal(t)
		p := term.onTerminal(t, k, "dstack-kms")
		term.types(t, p, promptOpen, "half\x03")
		if code := p.wait(t, patience); code == 0 {
			t.Errorf("exit status %d, want another\n%s", code, p.stderr)
		}
		if !term.echoes(t) {
			t.Error("the terminal still hides what is typed")
		}
	})
	term = newTerminal(t)
	p = term.onTerminal(t, k, "dstack-kms")
	term.types(t, p, promptOpen, passphraseCanary+"\n")
	p.ready(t, k.trusting(t, exampleDomain), k.URL("https")+"/ready")
	if !term.echoes(t) {
		t.Error("the terminal still hides what is typed")
	}
	k.releases(t, 200, `"disk_crypt_key"`)
	if shown += term.String() + p.stderr.String(); strings.Contains(shown, "canary") {
		t.Errorf("the passphrase is shown:\n%s", shown)
	}
}
