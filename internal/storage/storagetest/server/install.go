package server

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// runner runs programs of a server's package as the server's user.
type runner struct {
	dir        string
	credential *syscall.Credential
}

// mkdir makes a directory that is the server's alone.
func (r runner) mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return r.own(dir)
}

// write makes a file that is the server's alone.
func (r runner) write(path string, data []byte) error {
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	return r.own(path)
}

func (r runner) own(path string) error {
	if r.credential == nil {
		return nil
	}
	return os.Chown(path, int(r.credential.Uid), int(r.credential.Gid))
}

// run runs a program to its end, with input.
func (r runner) run(ctx context.Context, input []byte, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = r.dir, environment()
	cmd.Stdin = bytes.NewReader(input)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: r.credential}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("running %s: %w\n%s", args[0], err, out)
	}
	return nil
}

// program finds a program on the PATH or where Debian keeps it.
func program(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	var found []string
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/local/sbin", "/usr/sbin", "/usr/local/bin", "/usr/bin"} {
		matches, err := filepath.Glob(filepath.Join(pattern, name))
		if err != nil {
			return "", err
		}
		found = append(found, matches...)
	}
	if len(found) == 0 {
		return "", fmt.Errorf("%s is not installed: run 'make deps'", name)
	}
	// Of several versions of PostgreSQL the newest; they have two digits.
	return slices.MaxFunc(found, strings.Compare), nil
}

func driverOf(kind Kind) (driver, error) {
	switch kind {
	case PostgreSQL:
		return postgreSQL{}, nil
	case MariaDB:
		return mariaDB{}, nil
	case Redis:
		return redisServer{}, nil
	default:
		return nil, fmt.Errorf("there is no server %q", kind)
	}
}
