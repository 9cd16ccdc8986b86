package keystore_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

// nobody is a user who owns nothing; root would not be denied anything.
const nobody = 65534

// nobodyChild bootstraps a directory as another user and prints the error.
func nobodyChild(dir string) int {
	if os.Geteuid() == 0 {
		if err := dropRoot(); err != nil {
			return fail(err)
		}
	}
	s, err := keystore.Open(context.Background(), keystore.Config{Dir: dir})
	if err != nil {
		fmt.Println("open:", err)
		return 0
	}
	roots, err := keys.NewRoots()
	if err != nil {
		return fail(err)
	}
	b, err := keystore.NewBundle(roots, testDomain, nil, time.Now())
	if err != nil {
		return fail(err)
	}
	fmt.Println("commit:", s.Commit(context.Background(), b))
	return 0
}

// nobodySealChild seals, as another user, a directory of plain files that even
// their owner may only read.
func nobodySealChild(dir string) int {
	if os.Geteuid() == 0 {
		if err := dropRoot(); err != nil {
			return fail(err)
		}
	}
	here, err := newSet("here")
	if err != nil {
		return fail(err)
	}
	s, err := keystore.Open(context.Background(), keystore.Config{Dir: dir, Now: clock})
	if err != nil {
		return fail(err)
	}
	roots, err := keys.NewRoots()
	if err != nil {
		return fail(err)
	}
	b, err := keystore.NewBundle(roots, testDomain, nil, clock())
	if err != nil {
		return fail(err)
	}
	if err := s.Commit(context.Background(), b); err != nil {
		return fail(err)
	}
	for _, name := range privateNames() {
		if err := os.Chmod(filepath.Join(dir, name), 0o400); err != nil {
			return fail(err)
		}
	}
	fmt.Println("reseal:", s.Reseal(context.Background(), here))
	return 0
}

// TestSealingAsTheUserOfTheFiles seals as their owner, who may only read them,
// then as root, to whom the files would go.
func TestSealingAsTheUserOfTheFiles(t *testing.T) {
	dir := filepath.Join(openTempDir(t), "certs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	if got := asNobodyDoes(t, "nobody-seal", dir); got != "reseal: <nil>" {
		t.Fatalf("as another user: %s, want nil", got)
	}
	if left := list(t, dir); len(left) != 7 {
		t.Errorf("left in the directory: %v, want the seven", left)
	}
	if os.Geteuid() != 0 {
		return // root alone can be another user than the owner
	}
	here := sealTo(t, "here")
	s, err := keystore.Open(t.Context(), keystore.Config{Dir: dir, Now: clock, Sealer: here})
	if err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, dir)
	want := fmt.Sprintf("belongs to another user (%d) than the file in its place would (0)", nobody)
	if err := s.Reseal(t.Context(), here); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Reseal as root = %v, want %s", err, want)
	}
	if got := changed(t, dir, before); len(got) != 0 {
		t.Errorf("a refused resealing has changed %v", got)
	}
}

func dropRoot() error {
	if err := syscall.Setgroups(nil); err != nil {
		return err
	}
	if err := syscall.Setgid(nobody); err != nil {
		return err
	}
	return syscall.Setuid(nobody)
}

// openTempDir is a temporary directory that every user can enter: those of the
// testing package are closed.
func openTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "keystore") //nolint:usetesting // that of testing is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := exec.Command("chmod", "-R", "u+rwx", dir).Run(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func asNobody(t *testing.T, dir string) string {
	t.Helper()
	return asNobodyDoes(t, "nobody", dir)
}

func asNobodyDoes(t *testing.T, what, dir string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+what, dirEnv+"="+dir)
	// Standard error may have the coverage tool's complaints.
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("child = %s, %v", out, err)
	}
	return strings.TrimSpace(string(out))
}

func TestPermissionDenied(t *testing.T) {
	tests := []struct {
		name string
		make func(t *testing.T, dir string)
		want string // after DIR is put in
	}{
		{"a directory that cannot be written", func(t *testing.T, dir string) {
			if err := os.Mkdir(dir, 0o555); err != nil {
				t.Fatal(err)
			}
		}, "commit: Permission denied: DIR/root-ca.key"},
		{"a parent that cannot be written", func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Dir(dir), 0o555); err != nil {
				t.Fatal(err)
			}
		}, "commit: Permission denied: DIR/root-ca.key"},
		{"a directory that cannot be read", func(t *testing.T, dir string) {
			if err := os.Mkdir(dir, 0o311); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, 0o311); err != nil {
				t.Fatal(err)
			}
			if os.Geteuid() != 0 {
				// The owner keeps what the mode gives it.
				if err := os.Chmod(dir, 0o111); err != nil {
					t.Fatal(err)
				}
			}
		}, "open: Permission denied: DIR"},
		{"a root key that cannot be read", func(t *testing.T, dir string) {
			if err := open(t, dir, nil).Commit(t.Context(), newBundle(t)); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(filepath.Join(dir, "root-ca.key"), 0); err != nil {
				t.Fatal(err)
			}
		}, "open: Permission denied: DIR/root-ca.key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			parent := filepath.Join(openTempDir(t), "parent")
			if err := os.Mkdir(parent, 0o755); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(parent, "certs")
			tt.make(t, dir)
			if got, want := asNobody(t, dir), strings.ReplaceAll(tt.want, "DIR", dir); got != want {
				t.Errorf("as another user: %s, want %s", got, want)
			}
		})
	}
}
