package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// stopGrace is how long a server may take to end by itself.
const stopGrace = 10 * time.Second

// process is a server that the demonstration started.
type process struct {
	name, log string
	cmd       *exec.Cmd
	// ended is closed when the process has; err, its result, is valid then.
	ended chan struct{}
	err   error
}

// start starts a program, its output going to a file of its name and suffix in
// dir. The kernel kills it when this process ends, however that happens.
func start(program, suffix, dir string, args ...string) (*process, error) {
	p := &process{name: filepath.Base(program), ended: make(chan struct{})}
	p.log = filepath.Join(dir, p.name+suffix+".log")
	out, err := os.Create(p.log)
	if err != nil {
		return nil, fmt.Errorf("making log: %w", err)
	}
	p.cmd = exec.Command(program, args...) //nolint:noctx // stop ends it in its own way
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = environment(os.Environ())
	// A group of its own: Ctrl-C is for this process, which ends the others in
	// their order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error, 1)
	go p.run(started, out)
	if err := <-started; err != nil {
		<-p.ended
		return nil, fmt.Errorf("starting %s: %w", program, err)
	}
	return p, nil
}

// run starts the process and waits for it. The death signal is bound to the
// thread that started it, so that thread is kept until the process has ended.
func (p *process) run(started chan<- error, out *os.File) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(p.ended)
	err := p.cmd.Start()
	started <- err
	if err == nil {
		p.err = p.cmd.Wait()
	}
	p.err = errors.Join(p.err, out.Close())
}

// environment leaves out what would change the configuration of the servers, or
// that of kmsctl.
func environment(environ []string) []string {
	var kept []string
	for _, e := range environ {
		name, _, _ := strings.Cut(e, "=")
		ours := name == "ADMIN_API_TOKEN"
		for _, prefix := range []string{"DSTACK_", "KMS_", "KMSCTL_"} {
			ours = ours || strings.HasPrefix(name, prefix)
		}
		if !ours {
			kept = append(kept, e)
		}
	}
	return kept
}

// stop ends the process, by force if it takes too long.
func (p *process) stop() error {
	select {
	case <-p.ended:
		return nil
	default:
	}
	// It may end at this moment; then the signal has no one to go to.
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
		return nil
	case <-time.After(stopGrace):
	}
	_ = p.cmd.Process.Kill()
	<-p.ended
	return fmt.Errorf("%s did not end within %v of being asked to", p.name, stopGrace)
}

// ending waits until the process ends by itself, which it must do well.
func (p *process) ending(ctx context.Context) error {
	select {
	case <-p.ended:
	case <-ctx.Done():
		return fmt.Errorf("%s does not end", p.name)
	}
	if p.err != nil {
		return fmt.Errorf("%s ended: %w", p.name, p.err)
	}
	return nil
}

// tail returns the last lines of the log.
func (p *process) tail() []string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return []string{err.Error()}
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	var last []string
	for _, l := range lines[max(0, len(lines)-20):] {
		last = append(last, string(l))
	}
	return last
}
