package server

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// process is a running server.
type process struct {
	pid     int
	pidFile string
	log     string
	done    chan struct{} // closed when it has ended
}

type processConfig struct {
	// Dir is where it runs, Log what its output is appended to.
	Dir, Log string
	// PIDFile tells the watchdog of it.
	PIDFile string
	// Credential is nil for the user who runs the test.
	Credential *syscall.Credential
}

// environment is what servers see of the test's: nothing of the user's own.
func environment() []string {
	return []string{"PATH=" + os.Getenv("PATH") + ":/usr/local/sbin:/usr/sbin:/sbin", "LC_ALL=C.UTF-8", "TZ=UTC", "HOME=/nonexistent"}
}

func startProcess(args []string, c processConfig) (*process, error) {
	log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening its log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.CommandContext(context.Background(), args[0], args[1:]...)
	cmd.Dir, cmd.Env = c.Dir, environment()
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own: an interrupt from the terminal is for the test.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: c.Credential}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{pid: cmd.Process.Pid, pidFile: c.PIDFile, log: c.Log, done: make(chan struct{})}
	// Between the start and this line the watchdog does not know of it.
	if err := os.WriteFile(c.PIDFile, []byte(strconv.Itoa(p.pid)+"\n"), 0o644); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, fmt.Errorf("writing its pid file: %w", err)
	}
	go func() {
		// How it ended is in its log.
		_ = cmd.Wait()
		_ = os.Remove(c.PIDFile)
		close(p.done)
	}()
	return p, nil
}

func (p *process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *process) tail() string { return tail(p.log) }

// signalAll sends a signal to the process and all its children. Children of
// PostgreSQL are in groups of their own.
func (p *process) signalAll(signal syscall.Signal) []int {
	if p.exited() {
		return nil
	}
	if signal != syscall.SIGCONT {
		// Stopped, it makes no children while they are listed.
		_ = syscall.Kill(p.pid, syscall.SIGSTOP)
	}
	pids := children(p.pid)
	for _, pid := range append(pids, p.pid) {
		_ = syscall.Kill(pid, signal)
	}
	return pids
}

// kill ends the process and its children, and waits until they are gone.
func (p *process) kill() {
	pids := p.signalAll(syscall.SIGKILL)
	<-p.done
	for slices.ContainsFunc(pids, alive) {
		time.Sleep(time.Millisecond)
	}
}

// stop ends the process by a signal, and kills it where it does not follow.
func (p *process) stop(signal syscall.Signal, patience time.Duration) error {
	if p.exited() {
		return nil
	}
	if err := syscall.Kill(p.pid, signal); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(patience):
		p.kill()
		return fmt.Errorf("it did not end in %v", patience)
	}
}

// children lists the processes whose parent is pid.
func children(pid int) []int {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	var found []int
	for _, path := range stats {
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		if _, parent, ok := stat(child); ok && parent == pid {
			found = append(found, child)
		}
	}
	return found
}

func alive(pid int) bool {
	state, _, ok := stat(pid)
	return ok && state != 'Z' && state != 'X'
}

// stat returns state and parent of a process, proc(5).
func stat(pid int) (state byte, parent int, ok bool) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, false
	}
	// The name, in parentheses, may hold anything.
	fields := bytes.Fields(line[bytes.LastIndexByte(line, ')')+1:])
	if len(fields) < 2 {
		return 0, 0, false
	}
	parent, err = strconv.Atoi(string(fields[1]))
	return fields[0][0], parent, err == nil
}
