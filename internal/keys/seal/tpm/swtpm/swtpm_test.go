package swtpm_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"teekms/internal/keys/seal/tpm/swtpm"
)

// childEnv names the directory in which the child of a test starts a TPM.
const childEnv = "TEEKMS_SWTPM_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		_, err := swtpm.Start(dir)
		fmt.Println(err)
		select {} // until it is killed
	}
	goleak.VerifyTestMain(m)
}

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "swtpm") //nolint:usetesting // the name of a test makes a path longer than a socket may have
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// eventually waits until f is true.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited a minute in vain until %s", what)
		}
	}
}

func TestOutlivesTheThreadThatStartedIt(t *testing.T) {
	dir := shortDir(t)
	var p *swtpm.TPM
	var err error
	thread := make(chan int)
	var start func()
	start = func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this
		if unix.Gettid() == os.Getpid() {
			// The main thread never ends. While it is held here, another is taken.
			defer runtime.UnlockOSThread()
			go start()
			thread <- 0
			return
		}
		p, err = swtpm.Start(dir)
		thread <- unix.Gettid()
	}
	go start()
	tid := <-thread
	for tid == 0 {
		tid = <-thread
	}
	if err != nil {
		t.Fatalf("Start() = %v", err)
	}
	defer p.Stop()
	eventually(t, "the thread has ended", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid))
		return errors.Is(err, os.ErrNotExist)
	})
	for range 3 {
		if err := p.Extend(t.Context(), 7, [32]byte{1}); err != nil {
			t.Fatalf("Extend() = %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestEndsWithTheProcessThatStartedIt(t *testing.T) {
	dir := shortDir(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if said, err := bufio.NewReader(out).ReadString('\n'); err != nil || said != "<nil>\n" {
		t.Fatalf("Start() in a child = %q, %v, want nil", said, err)
	}
	listens := func() bool {
		conn, err := net.Dial("unix", filepath.Join(dir, "tpm.sock"))
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	if !listens() {
		t.Error("the TPM of the child does not listen")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the child ended by itself")
	}
	eventually(t, "the TPM has ended", func() bool { return !listens() })
}

func TestStartRefuses(t *testing.T) {
	// program is a folder with a program swtpm that holds this.
	program := func(content string) string {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "swtpm"), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	tests := []struct {
		name, dir, path string
		want            string
	}{
		{"no program", shortDir(t), t.TempDir(), "swtpm is not installed (apt-get install swtpm)"},
		{"a path that no socket can have", "/tmp/" + strings.Repeat("x", 98), os.Getenv("PATH"), "is too long a path for a socket"},
		{"a program that ends", shortDir(t), program("#!/bin/sh\necho bad state >&2; exit 1"), "starting swtpm: it ended: bad state"},
		{"a program that cannot be run", shortDir(t), program("\x00"), "starting swtpm: fork/exec"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("PATH", tt.path)
			if _, err := swtpm.Start(tt.dir); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Start() = %v, want %q", err, tt.want)
			}
		})
	}
	t.Setenv("PATH", t.TempDir())
	if swtpm.Available() {
		t.Error("Available() = true where there is none")
	}
}
