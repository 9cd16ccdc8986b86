package demo_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"teekms/cmd/kmsctl/internal/demo"
	"teekms/cmd/kmsctl/internal/terminal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The demonstration with its real programs is in e2e; here are the ways in
// which it fails.

func run(t *testing.T, change func(*demo.Config)) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	cfg := demo.Config{
		Exit: true, Stdout: &out, Stderr: &errs, Now: time.Now,
		Printer: terminal.New(&out, func(string) string { return "" }),
		Find:    func(name string) (string, error) { return program(t, name, "exit 3"), nil },
	}
	change(&cfg)
	err = demo.Run(t.Context(), cfg)
	return out.String(), errs.String(), err
}

// program writes a shell script in the place of a program.
func program(t *testing.T, name, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func temporaries(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(os.TempDir(), "kmsctl-demo-*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestAStepThatFailsEndsTheDemonstration(t *testing.T) {
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name           string
		change         func(*demo.Config)
		want, log, out string
	}{
		{
			"a missing program",
			func(c *demo.Config) { c.Find = func(string) (string, error) { return "", errors.New("it is nowhere") } },
			"find the programs: it is nowhere", "", "✗ find the programs",
		},
		{
			"a directory in use", func(c *demo.Config) { c.Dir = full },
			"write the configuration: " + full + " is not empty", "", "✗ write the configuration",
		},
		{
			"a program that cannot be started",
			func(c *demo.Config) { c.Find = func(string) (string, error) { return full, nil } },
			"start dstack-onboard: starting ", "", "✗ start dstack-onboard",
		},
		{
			"a server that ends",
			func(c *demo.Config) {
				c.Find = func(name string) (string, error) { return program(t, name, "echo out of luck >&2; exit 3"), nil }
			},
			"start dstack-onboard: dstack-onboard ended: exit status 3", "out of luck", "✗ start dstack-onboard",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			stdout, stderr, err := run(t, tt.change)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Run() = %v, want an error with %q", err, tt.want)
			}
			if !strings.Contains(stderr, tt.log) || !strings.Contains(stdout, tt.out) {
				t.Errorf("Run() shows %q and %q, want %q and %q", stdout, stderr, tt.out, tt.log)
			}
			if left := temporaries(t); len(left) > 0 {
				t.Errorf("Run() leaves %q", left)
			}
		})
	}
}

func TestStepsAsJSON(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	stdout, _, _ := run(t, func(c *demo.Config) { c.JSON = true })
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	var first struct {
		Simulated bool
		Meaning   string
	}
	if err := json.Unmarshal([]byte(lines[0]), &first); err != nil || !first.Simulated || first.Meaning != demo.Simulated {
		t.Errorf("first line = %s, %v, want that it is simulated", lines[0], err)
	}
	var steps []string
	for _, line := range lines[1:] {
		var s struct {
			Step, Error string
			OK          bool
			MS          *float64
		}
		if err := json.Unmarshal([]byte(line), &s); err != nil || s.MS == nil || s.OK == (s.Error != "") {
			t.Errorf("line = %s, %v, want a step with its time", line, err)
		}
		steps = append(steps, s.Step)
	}
	if got, want := strings.Join(steps, ", "), "find the programs, start a webhook, write the configuration, start dstack-onboard"; got != want {
		t.Errorf("steps = %s, want %s", got, want)
	}
}

func TestServersDoNotSeeSettingsOfTheCaller(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	t.Setenv("DSTACK_KMS_RPC_PORT", "1")
	t.Setenv("ADMIN_API_TOKEN", "x")
	_, stderr, _ := run(t, func(c *demo.Config) {
		c.Find = func(name string) (string, error) {
			return program(t, name, "env | grep -E '^(TMPDIR|DSTACK_|ADMIN_)'; exit 3"), nil
		}
	})
	if !strings.Contains(stderr, "TMPDIR=") || strings.Contains(stderr, "DSTACK_") || strings.Contains(stderr, "ADMIN_API_TOKEN") {
		t.Errorf("environment of a server = %s, want neither setting in it", stderr)
	}
}
