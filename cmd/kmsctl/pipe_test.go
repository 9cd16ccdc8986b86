package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"teekms/cmd/kmsctl/internal/kmstest"
	"teekms/internal/attest/simtd"
)

// started is a process that reads a pipe.
type started struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

// waiting starts kmsctl, and returns when it waits for who writes to a pipe, or
// would have long since.
func waiting(t *testing.T, args ...string) *started {
	t.Helper()
	p := &started{cmd: child(t.Context(), "kmsctl", args...)}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	check(t, p.cmd.Start())
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", p.cmd.Process.Pid))
		check(t, err)
		for _, task := range tasks {
			if where, _ := os.ReadFile(task); string(where) == "wait_for_partner" {
				return p
			}
		}
	}
	return p
}

// end waits for it, and returns its exit code, -1 for one that a signal ended.
func (p *started) end(t *testing.T) int {
	t.Helper()
	late := time.AfterFunc(time.Minute, func() { _ = p.cmd.Process.Kill() })
	_ = p.cmd.Wait() // the code tells
	if !late.Stop() {
		t.Errorf("%q goes on for a minute", p.cmd.Args[1:])
	}
	return p.cmd.ProcessState.ExitCode()
}

// Nobody writes to the pipes.
func TestWaitingForAPipeIsInterrupted(t *testing.T) {
	v := newVictim(t)
	v.prepare(t, "passphrase")
	pipe := filepath.Join(t.TempDir(), "pipe")
	check(t, unix.Mkfifo(pipe, 0o600))
	url := "https://127.0.0.1:1"
	for _, args := range [][]string{
		{"seal", "rotate", "--config", v.config, "--old-passphrase-file", pipe},
		{"seal", "rotate", "--config", v.config, "--identity", pipe},
		{"seal", "status", "--config", pipe},
		{"verify", "--info", pipe},
		{"verify", "--dir", v.dir, "--trust-root", pipe, "--collateral", v.dir},
		{"verify", "--dir", v.dir, "--expect-file", pipe},
		{"registry", "import", pipe, "--admin", url},
		{"registry", "list", "--admin", url, "--ca-cert", pipe},
		{"audit", "verify", "--admin", url, "--root-ca", pipe},
		{"bootstrap-start", "--bootstrap-server-url", url, "--bootstrap-token-file", pipe, "--insecure-accept-any-measurement", "--expect-file", pipe},
	} {
		p := waiting(t, args...)
		check(t, p.cmd.Process.Signal(syscall.SIGTERM))
		if code := p.end(t); code != 1 || !strings.Contains(p.out.String(), "interrupted") {
			t.Errorf("kmsctl %q = %d, %q, want that it was interrupted", args, code, p.out.String())
		}
	}
}

// A key directory holds files; an export is read twice.
func TestPipesInThePlaceOfFilesAreRefused(t *testing.T) {
	v := newVictim(t)
	pipe := filepath.Join(v.dir, "bootstrap-info.json")
	_ = os.Remove(pipe)
	check(t, unix.Mkfifo(pipe, 0o600))
	for _, args := range [][]string{
		{"verify", "--dir", v.dir},
		{"audit", "verify", "--file", pipe, "--root-ca", filepath.Join(v.dir, "root-ca.crt")},
	} {
		p := &started{cmd: child(t.Context(), "kmsctl", args...)}
		p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
		check(t, p.cmd.Start())
		if code := p.end(t); code != 1 || !strings.Contains(p.out.String(), "regular file") {
			t.Errorf("kmsctl %q = %d, %q, want a refusal of what is no regular file", args, code, p.out.String())
		}
	}
}

// What a shell writes <(command) is a pipe in /dev/fd.
func TestPipesAreTaken(t *testing.T) {
	v := newVictim(t)
	v.prepare(t, "passphrase")
	file := filepath.Join(filepath.Dir(v.config), "passphrase")
	old, err := os.ReadFile(file)
	check(t, err)
	check(t, os.WriteFile(file, []byte("another\n"), 0o600))
	r, w, err := os.Pipe()
	check(t, err)
	defer r.Close()
	_, err = w.Write(old)
	check(t, err)
	check(t, w.Close())
	cmd, out := v.verb(t, "rotate", "--old-passphrase-file", "/dev/fd/3")
	cmd.ExtraFiles = []*os.File{r}
	if err := cmd.Run(); err != nil || !strings.Contains(out.String(), "the passphrase is another one than before") {
		t.Errorf("kmsctl seal rotate --old-passphrase-file /dev/fd/3 = %v, %s, want another passphrase", err, out)
	}
}

// The pipes are in a directory that a flag names, so that one signal does not do.
func TestASecondSignalEndsTheProcess(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	dir := t.TempDir()
	entries, err := os.ReadDir(filepath.Join(k.TDDir, "collateral"))
	check(t, err)
	for _, e := range entries {
		check(t, unix.Mkfifo(filepath.Join(dir, e.Name()), 0o600))
	}
	p := waiting(t, "verify", "--dir", k.Dir, "--trust-root", k.TD.RootPath(), "--collateral", dir)
	ended := make(chan int, 1)
	go func() { ended <- p.end(t) }()
	for {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case code := <-ended:
			if code != -1 {
				t.Errorf("kmsctl verify = %d, %q, want that a signal ended it", code, p.out.String())
			}
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}
