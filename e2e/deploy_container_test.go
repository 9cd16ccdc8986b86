package e2e

import (
	"crypto/x509"
	"debug/elf"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// instruction is one of a Containerfile.
type instruction struct {
	name string
	args []string
	rest string
}

// stage is what stands between two FROM.
type stage struct {
	base, name   string
	instructions []instruction
}

// containerStages reads the Containerfile: comments out, continuations joined.
func containerStages(t *testing.T) []stage {
	t.Helper()
	data, err := os.ReadFile("../deploy/Containerfile")
	if err != nil {
		t.Fatal(err)
	}
	var stages []stage
	for _, line := range strings.Split(strings.ReplaceAll(string(data), "\\\n", " "), "\n") {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name == "" || strings.HasPrefix(name, "#") {
			continue
		}
		args := strings.Fields(rest)
		switch {
		case name == "FROM":
			s := stage{base: args[0]}
			if len(args) == 3 && args[1] == "AS" {
				s.name = args[2]
			}
			stages = append(stages, s)
		case len(stages) > 0:
			last := &stages[len(stages)-1]
			last.instructions = append(last.instructions, instruction{name, args, rest})
		}
	}
	return stages
}

func (s stage) all(name string) []instruction {
	return slices.DeleteFunc(slices.Clone(s.instructions), func(i instruction) bool { return i.name != name })
}

// buildByHand does what the build stage does, with its directories /src and
// /image below dir, and without a network.
func (s stage) buildByHand(t *testing.T, dir string) {
	t.Helper()
	src, image := filepath.Join(dir, "src"), filepath.Join(dir, "image")
	if err := os.MkdirAll(src, 0o755); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "GOPROXY=off", "VERSION=v0.0.0-test")
	for _, i := range s.instructions {
		switch i.name {
		case "ENV":
			env = append(env, i.args...)
		case "COPY":
			to := i.args[len(i.args)-1]
			target := filepath.Join(src, to)
			if strings.HasPrefix(to, "/image/") {
				target = filepath.Join(dir, to)
			}
			for _, from := range i.args[:len(i.args)-1] {
				copyInto(t, filepath.Join("..", from), target, strings.HasSuffix(to, "/"))
			}
		case "RUN":
			cmd := exec.Command("/bin/sh", "-e", "-c", strings.ReplaceAll(i.rest, "/image/", image+"/"))
			cmd.Dir, cmd.Env = src, env
			outputOf(t, cmd)
		case "WORKDIR", "ARG":
		default:
			t.Fatalf("this test knows no %s in a build stage", i.name)
		}
	}
}

// copyInto copies as COPY does: the contents of a directory, or a file, which
// goes below a target that ends in a slash.
func copyInto(t *testing.T, from, to string, below bool) {
	t.Helper()
	info, err := os.Stat(from)
	if err != nil {
		t.Fatalf("COPY: %v", err)
	}
	if info.IsDir() {
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			t.Fatalf("COPY %s: %v", from, err)
		}
		return
	}
	if below {
		to = filepath.Join(to, filepath.Base(from))
	}
	copyFile(t, from, to, info.Mode().Perm())
}

func TestContainerImage(t *testing.T) {
	stages := containerStages(t)
	if len(stages) != 2 || stages[0].name != "build" || stages[1].base != "scratch" {
		t.Fatalf("stages = %v, want a build stage and one from scratch", stages)
	}
	dir := t.TempDir()
	stages[0].buildByHand(t, dir)
	root := filepath.Join(dir, "root")
	for _, i := range stages[1].all("COPY") {
		if !slices.Contains(i.args, "--from=build") {
			t.Errorf("COPY %s: the last stage copies from the build stage only", i.rest)
		}
		paths := slices.DeleteFunc(slices.Clone(i.args), func(a string) bool { return strings.HasPrefix(a, "--") })
		copyInto(t, filepath.Join(dir, paths[0]), filepath.Join(root, paths[1]), strings.HasSuffix(paths[1], "/"))
	}
	t.Run("holds nothing else", func(t *testing.T) { imageFiles(t, root) })
	t.Run("binaries are static", func(t *testing.T) {
		for _, name := range []string{"dstack-kms", "dstack-onboard"} {
			staticBinary(t, filepath.Join(root, "usr/local/bin", name))
		}
	})
	t.Run("CA roots are there", func(t *testing.T) {
		pem, err := os.ReadFile(filepath.Join(root, "etc/ssl/certs/ca-certificates.crt"))
		if err != nil || !x509.NewCertPool().AppendCertsFromPEM(pem) {
			t.Errorf("reading CA roots: %v, want a bundle", err)
		}
	})
	t.Run("configuration is valid", func(t *testing.T) {
		out := outputOf(t, exec.Command(filepath.Join(root, "usr/local/bin/dstack-kms"), "--check", "--config", filepath.Join(root, "etc/kms/kms.toml")))
		if !strings.Contains(out, "valid") {
			t.Errorf("--check = %q, want valid", out)
		}
	})
	t.Run("version is stamped", func(t *testing.T) {
		out := outputOf(t, exec.Command(filepath.Join(root, "usr/local/bin/dstack-onboard"), "--version"))
		if !strings.Contains(out, "v0.0.0-test") {
			t.Errorf("--version = %q, want v0.0.0-test", out)
		}
	})
	t.Run("runs without privileges", func(t *testing.T) { runtimeSettings(t, stages[1], root) })
}

func imageFiles(t *testing.T, root string) {
	var got []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			got = append(got, strings.TrimPrefix(path, root))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/etc/kms/kms.toml", "/etc/ssl/certs/ca-certificates.crt", "/usr/local/bin/dstack-kms", "/usr/local/bin/dstack-onboard"}
	if !slices.Equal(got, want) {
		t.Errorf("files = %q, want %q", got, want)
	}
	if info, err := os.Stat(filepath.Join(root, "etc/kms/certs")); err != nil || !info.IsDir() {
		t.Errorf("key directory: %v, want an empty directory", err)
	}
}

// staticBinary checks that a file needs no loader and no library.
func staticBinary(t *testing.T, path string) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Errorf("%s asks for a loader, want a static binary", path)
		}
	}
	if libraries, err := f.ImportedLibraries(); err != nil || len(libraries) > 0 {
		t.Errorf("%s needs %q (%v), want no library", path, libraries, err)
	}
}

func runtimeSettings(t *testing.T, last stage, root string) {
	user := last.all("USER")
	if len(user) != 1 || strings.HasPrefix(user[0].rest, "0") || strings.ContainsFunc(user[0].rest, func(r rune) bool { return (r < '0' || r > '9') && r != ':' }) {
		t.Errorf("USER = %v, want one user, by number, not root", user)
	}
	for _, i := range last.all("COPY") {
		if strings.HasSuffix(i.rest, "/etc/kms/certs/") && !slices.Contains(i.args, "--chown="+user[0].rest) {
			t.Errorf("COPY %s: the key directory must belong to %s", i.rest, user[0].rest)
		}
	}
	var entry, arguments []string
	if err := json.Unmarshal([]byte(last.all("ENTRYPOINT")[0].rest), &entry); err != nil {
		t.Fatalf("ENTRYPOINT: %v, want the exec form: there is no shell", err)
	}
	if err := json.Unmarshal([]byte(last.all("CMD")[0].rest), &arguments); err != nil {
		t.Fatalf("CMD: %v, want the exec form: there is no shell", err)
	}
	for _, path := range []string{entry[0], arguments[len(arguments)-1]} {
		if _, err := os.Stat(filepath.Join(root, path)); err != nil {
			t.Errorf("the image's command names %s: %v", path, err)
		}
	}
}
