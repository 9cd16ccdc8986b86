package simtd_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
)

// openEnv makes the test binary open a directory and tell its root.
const openEnv = "SIMTD_TEST_OPEN"

func TestMain(m *testing.M) {
	if dir := os.Getenv(openEnv); dir != "" {
		fmt.Println(openAndVerify(dir))
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// openAndVerify returns the fingerprint of the root in dir, after a quote was
// verified under it with the collateral in the files.
func openAndVerify(dir string) string {
	td, err := simtd.Open(simtd.Config{Dir: dir})
	if err != nil {
		return err.Error()
	}
	source, err := simtd.OpenCollateral(dir)
	if err != nil {
		return err.Error()
	}
	verifier, err := tdx.NewVerifier(tdx.Config{TrustAnchor: td.Root(), Collateral: source})
	if err != nil {
		return err.Error()
	}
	ev, err := td.Attest(context.Background(), attest.NoReportData())
	if err != nil {
		return err.Error()
	}
	if _, err := verifier.Verify(context.Background(), ev); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("root %x", sha256.Sum256(td.Root().Raw))
}

// process starts the test binary on dir, as user uid where that is not 0.
func process(t *testing.T, dir string, uid int) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	if uid != 0 && os.Getuid() == 0 {
		// The binary is in a directory that only we can enter.
		cmd.Path = copyFile(t, exe)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	cmd.Dir = "/"
	cmd.Env = []string{openEnv + "=" + dir}
	return cmd
}

func copyFile(t *testing.T, path string) string {
	t.Helper()
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	to := filepath.Join(publicDir(t), "test-binary")
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return to
}

// publicDir is a directory that every user can enter.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "simtd-test-") //nolint:usetesting // nobody else can enter what t.TempDir makes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tree lists what is in dir: mode, path and, for files, a digest.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&b, "%v %s", info.Mode(), rel)
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %x", sha256.Sum256(data))
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
