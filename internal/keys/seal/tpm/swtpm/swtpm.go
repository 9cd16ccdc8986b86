// Package swtpm runs the software TPM of that name on a unix socket, for tests
// and for showing: [Start], then [TPM.Socket].
package swtpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"

	"teekms/internal/keys/seal/tpm/device"
)

const (
	program = "swtpm"
	// maxSocketPath is what the kernel's address of a unix socket holds.
	maxSocketPath = 107
	timeout       = 20 * time.Second
)

// ErrNotInstalled says that there is no program swtpm.
var ErrNotInstalled = errors.New("swtpm is not installed (apt-get install swtpm)")

// TPM is a running swtpm. Its methods may be called from several goroutines.
type TPM struct {
	dir string

	mu      sync.Mutex // guards what follows
	process *exec.Cmd
	said    *bytes.Buffer // standard error, to be read when the process has ended
	ended   chan struct{}
}

// Available reports whether swtpm can be started here.
func Available() bool {
	_, err := exec.LookPath(program)
	return err == nil
}

// Start makes a TPM in dir, an existing directory, or starts again the one that
// is there: its seeds and keys are those of before, its PCRs are at their
// initial values. The path of dir is at most 90 bytes long.
func Start(dir string) (*TPM, error) {
	t := &TPM{dir: dir}
	if len(t.Socket()) > maxSocketPath {
		return nil, fmt.Errorf("starting swtpm: %q is too long a path for a socket", t.Socket())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.start(); err != nil {
		return nil, err
	}
	return t, nil
}

// Socket is the path of the unix socket.
func (t *TPM) Socket() string { return filepath.Join(t.dir, "tpm.sock") }

func (t *TPM) start() error {
	path, err := exec.LookPath(program)
	if err != nil {
		return ErrNotInstalled
	}
	if err := os.Remove(t.Socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the socket of before: %w", err)
	}
	//nolint:noctx // it lives until Stop
	cmd := exec.Command(path, "socket", "--tpm2",
		"--tpmstate", "dir="+t.dir,
		"--server", "type=unixio,path="+t.Socket(),
		"--flags", "not-need-init,startup-clear")
	t.said = new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = t.said, t.said
	// It must not outlive a test that was killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended, err := run(cmd)
	if err != nil {
		return fmt.Errorf("starting swtpm: %w", err)
	}
	t.process, t.ended = cmd, ended
	return t.listening()
}

// run starts cmd on a thread of its own, which lives as long as it does: the
// signal at the parent's death comes when the thread that started it ends.
func run(cmd *exec.Cmd) (ended chan struct{}, err error) {
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // it is killed
		}
	}()
	return ended, <-started
}

// listening waits until a connection is taken.
func (t *TPM) listening() error {
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	for {
		conn, err := net.Dial("unix", t.Socket()) //nolint:noctx // it is there or not
		if err == nil {
			return conn.Close() //nolint:wrapcheck // it names the path
		}
		select {
		case <-t.ended:
			return fmt.Errorf("starting swtpm: it ended: %s", bytes.TrimSpace(t.said.Bytes()))
		case <-deadline.C:
			t.kill()
			return fmt.Errorf("starting swtpm: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Stop ends the process. What it holds stays in the directory, for [Start] or
// [TPM.Reset].
func (t *TPM) Stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kill()
}

func (t *TPM) kill() {
	if t.process == nil {
		return
	}
	_ = t.process.Process.Kill() // it has ended already
	<-t.ended
	t.process = nil
}

// Reset does what a power cycle does: the process ends and starts again, seeds
// and keys stay, PCRs go back to their initial values.
func (t *TPM) Reset() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kill()
	return t.start()
}

// Extend extends a PCR of the SHA-256 bank by a digest.
func (t *TPM) Extend(ctx context.Context, pcr int, digest [32]byte) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := device.Open(ctx, t.Socket())
	if err != nil {
		return fmt.Errorf("extending PCR %d: %w", pcr, err)
	}
	defer func() { _ = conn.Close() }()
	_, err = tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{
			{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]},
		}},
	}.Execute(conn)
	if err != nil {
		return fmt.Errorf("extending PCR %d: %w", pcr, err)
	}
	return nil
}
