package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What the terminal says after a wrong passphrase.
const (
	promptSecond = "That is not the passphrase, or the files are damaged; 2 tries left."
	promptThird  = "That is not the passphrase, or the files are damaged; 1 try left."
	promptOld    = "Old passphrase of the key directory: "
)

// kmsctlSeal starts kmsctl seal on a terminal of its own.
func (term *terminal) kmsctlSeal(t *testing.T, k *kmsDir, args ...string) *process {
	t.Helper()
	cmd := command(t, nil, "kmsctl", append([]string{"seal", "--config", k.Config}, args...)...)
	cmd.Stdin = term.tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	return startCmd(t, cmd)
}

// TestAWrongPassphraseIsAskedForAgain mistypes it at real terminals. The TPM does
// not open either, and is asked once.
func TestAWrongPassphraseIsAskedForAgain(t *testing.T) {
	t.Parallel()
	const prompting = "[core.seal.passphrase]\nprompt = true\nwork_factor = 10\n"
	s := newSeals(t)
	k := newKMS(t, "", "")
	k.configure(t, s.passphrase(t), s.withTPM(t), devAuthority)
	k.fill(t, exampleDomain)
	k.configure(t, prompting, s.withTPM(t), devAuthority)
	s.tpm.Measure(7, "another firmware")

	shown := ""
	t.Run("three wrong ones", func(t *testing.T) {
		for _, p := range []func(*terminal) *process{
			func(term *terminal) *process { return term.onTerminal(t, k, "dstack-kms") },
			func(term *terminal) *process { return term.kmsctlSeal(t, k, "rotate") },
		} {
			before := tree(t, k.Certs)
			term := newTerminal(t)
			p := p(term)
			term.types(t, p, promptOpen, "canary one\n")
			term.types(t, p, promptSecond, "canary two\n")
			term.types(t, p, promptThird, "canary three\n")
			last := ""
			if code := p.wait(t, patience); code == 1 {
				last = lastLine(p.stderr.String())
			}
			for _, want := range []string{"tpm: ", "PCR 7", "passphrase: wrong passphrase, or the file is damaged"} {
				if !strings.Contains(last, want) {
					t.Errorf("%s ends with %q, want status 1 and %q", p.Cmd, last, want)
				}
			}
			if n := strings.Count(term.String(), promptOpen); n != 3 {
				t.Errorf("%s asked %d times, want 3\n%s", p.Cmd, n, term)
			}
			if after := tree(t, k.Certs); len(after) != len(before) {
				t.Errorf("left behind: %v, before %v", after, before)
			}
			shown += term.String() + p.stderr.String()
		}
	})
	t.Run("an empty one gives up", func(t *testing.T) {
		term := newTerminal(t)
		p := term.onTerminal(t, k, "dstack-kms")
		term.types(t, p, promptOpen, "canary\n")
		term.types(t, p, promptSecond, "\n")
		if code := p.wait(t, patience); code != 1 || !strings.Contains(lastLine(p.stderr.String()), "passphrase: nothing was typed") {
			t.Errorf("exit status %d, want 1 and that nothing was typed\n%s", code, p.stderr)
		}
	})
	t.Run("the old one", func(t *testing.T) {
		term := newTerminal(t)
		p := term.kmsctlSeal(t, k, "rotate", "--old-passphrase-file", "-")
		term.types(t, p, promptOld, "canary\n")
		term.types(t, p, promptSecond, passphraseCanary+"\n")
		// The configured one is new here, and no mistake.
		term.types(t, p, promptOld+"\r\n"+promptOpen, "new canary\n")
		term.types(t, p, promptAgain, "new canary\n")
		if code := p.wait(t, patience); code != 0 || !strings.Contains(p.stdout.String(), "the passphrase is another one than before") {
			t.Errorf("kmsctl seal rotate = %d, want another passphrase\n%s%s", code, p.stdout, p.stderr)
		}
		shown += term.String() + p.stdout.String() + p.stderr.String()
	})
	s.tpm.Measure(7, "a third firmware")
	term := newTerminal(t)
	p := term.onTerminal(t, k, "dstack-kms")
	term.types(t, p, promptOpen, "canary one\n")
	term.types(t, p, promptSecond, "canary two\n")
	term.types(t, p, promptThird, "new canary\n")
	p.ready(t, k.trusting(t, exampleDomain), k.URL("https")+"/ready")
	if shown += term.String() + p.stderr.String(); strings.Contains(shown, "canary") {
		t.Errorf("a passphrase is shown:\n%s", shown)
	}
}

// TestAStoppedPromptHidesAgain stops a server that asks, and switches the echo on
// as the shell does that is in front then.
func TestAStoppedPromptHidesAgain(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	s := newSeals(t)
	k.configure(t, s.passphrase(t), devAuthority)
	k.fill(t, exampleDomain)
	k.configure(t, "[core.seal.passphrase]\nprompt = true\nwork_factor = 10\n", devAuthority)
	term := newTerminal(t)
	p := term.onTerminal(t, k, "dstack-kms")
	term.types(t, p, promptOpen, "")
	signal := func(s syscall.Signal) {
		if err := p.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	signal(unix.SIGSTOP)
	state, err := unix.IoctlGetTermios(int(term.tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	state.Lflag |= unix.ECHO
	if err := unix.IoctlSetTermios(int(term.tty.Fd()), unix.TCSETS, state); err != nil {
		t.Fatal(err)
	}
	if _, err := term.WriteString("visible\n"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); !strings.Contains(term.String(), "visible"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the terminal shows %q, want what was typed", term)
		}
	}
	signal(unix.SIGCONT)
	// What was seen is no answer: it would have been a wrong one. It may ask twice,
	// for what was seen and for having been stopped.
	asked := 1
	for deadline := time.Now().Add(patience); !strings.Contains(p.stderr.String(), "the key directory was opened"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the key directory is not opened: %q\n%s", term, p.stderr)
		}
		if n := strings.Count(term.String(), promptOpen); n > asked && !term.echoes(t) {
			asked = n
			if _, err := term.WriteString(passphraseCanary + "\n"); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.ready(t, k.trusting(t, exampleDomain), k.URL("https")+"/ready")
	if shown := term.String() + p.stderr.String(); strings.Contains(shown, "canary") || strings.Contains(shown, "tries left") {
		t.Errorf("the passphrase is shown, or asked for again as a wrong one:\n%s", shown)
	}
}

// TestAWorkFactorIsLowered by who has nothing but the passphrase.
func TestAWorkFactorIsLowered(t *testing.T) {
	t.Parallel()
	s := newSeals(t)
	k := newKMS(t, "", "")
	low := s.passphrase(t)
	k.configure(t, strings.Replace(low, "work_factor = 10", "work_factor = 19", 1), devAuthority)
	k.fill(t, exampleDomain)
	k.configure(t, low, devAuthority)
	const way = "kmsctl seal rotate --max-work-factor 19, which takes 512 MiB of memory"
	for _, verb := range []string{"status", "rotate", "add"} {
		if _, stderr := k.kmsctlSeal(t, 1, verb); !strings.Contains(stderr, way) {
			t.Errorf("kmsctl seal %s says %q, want %q", verb, stderr, way)
		}
	}
	if _, stderr := k.kmsctlSeal(t, 2, "rotate", "--max-work-factor", "23"); !strings.Contains(stderr, "must be from 10 to 22") {
		t.Errorf("kmsctl seal rotate --max-work-factor 23 says %q, want its bounds", stderr)
	}
	if text, _ := k.kmsctlSeal(t, 0, "rotate", "--max-work-factor", "19"); !strings.Contains(text, "Now            sealed to passphrase (scrypt, work factor 10)") {
		t.Errorf("kmsctl seal rotate --max-work-factor 19 says %q, want the lower work factor", text)
	}
	k.kmsctlSeal(t, 0, "status")
}

// TestAServerAtItsQuestionEnds as it does everywhere, and the terminal is as it was.
func TestAServerAtItsQuestionEnds(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	s := newSeals(t)
	k.configure(t, s.passphrase(t), devAuthority)
	k.fill(t, exampleDomain)
	k.configure(t, "[core.seal.passphrase]\nprompt = true\nwork_factor = 10\n", devAuthority)
	for _, sent := range []syscall.Signal{unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT} {
		term := newTerminal(t)
		p := term.onTerminal(t, k, "dstack-kms")
		term.types(t, p, promptOpen, "half a canary")
		if err := p.Process.Signal(sent); err != nil {
			t.Fatal(err)
		}
		if code := p.wait(t, patience); code != 1 || !strings.HasPrefix(lastLine(p.stderr.String()), "Error: ") {
			t.Errorf("%v: exit status %d, want 1 and one line of why\n%s", sent, code, p.stderr)
		}
		if shown := term.String() + p.stderr.String(); !term.echoes(t) || strings.Contains(shown, "canary") || strings.Contains(shown, "goroutine") {
			t.Errorf("%v: the echo is %t, and it shows %q", sent, term.echoes(t), shown)
		}
	}
}
