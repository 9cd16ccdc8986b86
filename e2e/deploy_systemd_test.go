package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// systemdRoot is a file system with the units, the binaries where the units
// expect them, and empty targets to order by.
func systemdRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range []string{"kms.service", "kms-onboard.service"} {
		copyFile(t, filepath.Join("../deploy/systemd", name), filepath.Join(root, "etc/systemd/system", name), 0o644)
	}
	for _, name := range []string{"dstack-kms", "dstack-onboard"} {
		copyFile(t, binary(t, name), filepath.Join(root, "usr/local/bin", name), 0o755)
	}
	for _, name := range []string{"sysinit", "basic", "shutdown", "network", "network-online", "multi-user"} {
		write(t, filepath.Join(root, "usr/lib/systemd/system", name+".target"), "[Unit]\nDescription="+name+"\n", 0o644)
	}
	return root
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	write(t, to, string(data), mode)
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// verifyUnits runs systemd's own checker. With SYSTEMD_LOG_LEVEL=err it would
// say nothing and pass.
func verifyUnits(root string) (output string, ok bool) {
	cmd := exec.Command("systemd-analyze", "verify", "--recursive-errors=yes", "--root="+root, "kms.service", "kms-onboard.service")
	cmd.Env = append(os.Environ(), "SYSTEMD_LOG_LEVEL=info", "SYSTEMD_LOG_TARGET=console")
	out, err := cmd.CombinedOutput()
	return string(out), err == nil
}

func TestSystemdUnitsVerify(t *testing.T) {
	root := systemdRoot(t)
	if out, ok := verifyUnits(root); !ok || out != "" {
		t.Errorf("systemd-analyze verify: ok = %v, want true and nothing said:\n%s", ok, out)
	}
}

// TestSystemdUnitsVerifyWithSeals puts the drop-ins for sealed keys to both units.
func TestSystemdUnitsVerifyWithSeals(t *testing.T) {
	root := systemdRoot(t)
	for _, unit := range []string{"kms.service", "kms-onboard.service"} {
		for _, name := range []string{"seal-passphrase.conf", "seal-tpm.conf"} {
			copyFile(t, filepath.Join("../deploy/systemd", name), filepath.Join(root, "etc/systemd/system", unit+".d", name), 0o644)
		}
	}
	if out, ok := verifyUnits(root); !ok || out != "" {
		t.Errorf("systemd-analyze verify: ok = %v, want true and nothing said:\n%s", ok, out)
	}
}

// TestSystemdCheckerSees makes sure that the check above can fail.
func TestSystemdCheckerSees(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(t *testing.T, root string)
		want  string
	}{
		{"a missing binary", func(t *testing.T, root string) {
			if err := os.Remove(filepath.Join(root, "usr/local/bin/dstack-kms")); err != nil {
				t.Fatal(err)
			}
		}, "/usr/local/bin/dstack-kms is not executable"},
		{"an unknown setting", func(t *testing.T, root string) {
			write(t, filepath.Join(root, "etc/systemd/system/kms.service.d/x.conf"), "[Service]\nNoNewPrivs=yes\n", 0o644)
		}, "Unknown key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := systemdRoot(t)
			tt.spoil(t, root)
			if out, ok := verifyUnits(root); ok || !strings.Contains(out, tt.want) {
				t.Errorf("systemd-analyze verify: ok = %v, want false and %q in:\n%s", ok, tt.want, out)
			}
		})
	}
}

func TestSystemdUnitsAreHardened(t *testing.T) {
	for _, unit := range []string{"kms.service", "kms-onboard.service"} {
		path := filepath.Join("../deploy/systemd", unit)
		// The threshold is ten times the exposure level: 2.0 is "OK".
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", path).CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze security %s: %v, want an exposure of at most 2.0\n%s", unit, err, out)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{
			"NoNewPrivileges=yes", "ProtectSystem=strict", "MemoryDenyWriteExecute=yes", "LimitCORE=0", "User=kms",
			"SystemCallFilter=~@privileged",
		} {
			if !strings.Contains(string(data), "\n"+line+"\n") {
				t.Errorf("%s has no line %s", unit, line)
			}
		}
	}
}

func TestSystemdUserIsMade(t *testing.T) {
	root := t.TempDir()
	sysusers, err := filepath.Abs("../deploy/systemd/kms.sysusers")
	if err != nil {
		t.Fatal(err)
	}
	out := outputOf(t, exec.Command("systemd-sysusers", "--dry-run", "--root="+root, sysusers))
	if !strings.Contains(out, "Creating user 'kms'") {
		t.Errorf("systemd-sysusers --dry-run = %q, want the user kms made", out)
	}
	tmpfiles, err := os.ReadFile("../deploy/systemd/kms.tmpfiles")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(tmpfiles), "\nd /etc/kms/certs 0755 kms  kms  -\n") {
		t.Errorf("kms.tmpfiles makes no /etc/kms/certs for kms:\n%s", tmpfiles)
	}
}
