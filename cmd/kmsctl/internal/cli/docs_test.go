package cli_test

import (
	"flag"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/cmd/kmsctl/internal/status"
)

var update = flag.Bool("update", false, "write golden files")

// sections maps commands to the headings that document them.
func sections() map[string][]string {
	return map[string][]string{
		"verify": {"## verify"}, "meta": {"## meta"}, "bootstrap": {"## bootstrap"}, "onboard": {"## onboard"}, "finish": {"## finish"},
		"bootstrap-start": {"## bootstrap-start"},
		"app key":         {"## app"}, "app cert": {"## app"}, "app env-pubkey": {"## app"}, "simulator": {"## simulator"}, "demo": {"## demo"},
		"registry app add": {"## registry"}, "registry app remove": {"## registry"}, "registry app list": {"## registry"},
		"registry kms add": {"## registry"}, "registry image remove": {"## registry"}, "registry device add": {"## registry"},
		"registry gateway set": {"## registry"}, "registry list": {"## registry"}, "registry export": {"## registry"},
		"registry import": {"## registry"}, "registry explain": {"## registry"}, "registry verify": {"## registry"},
		"seal status": {"## seal"}, "seal add": {"## seal"}, "seal remove": {"## seal"}, "seal rotate": {"## seal"},
		"audit list": {"## audit"}, "audit verify": {"## audit"}, "audit checkpoint": {"## audit"}, "audit prove": {"## audit"}, "audit export": {"## audit"},
	}
}

// Every flag in the help of a command stands in its section of the manual, and
// every flag in the section in some command's help.
func TestTheManualHasEveryFlag(t *testing.T) {
	manual, err := os.ReadFile("../../../../docs/kmsctl.md")
	if err != nil {
		t.Fatal(err)
	}
	text := map[string]string{}
	for part := range strings.SplitSeq(string(manual), "\n## ") {
		heading, body, _ := strings.Cut(part, "\n")
		text["## "+heading] = body
	}
	// Those of systemd-run and systemd-creds are in an example.
	known := map[string]bool{"--help": true, "--version": true, "--pipe": true, "--name": true}
	for command, headings := range sections() {
		code, help, stderr := run(t.Context(), append(strings.Fields(command), "--help")...)
		if code != status.OK {
			t.Fatalf("kmsctl %s --help = %d, %q", command, code, stderr)
		}
		for _, flag := range flagsIn(help) {
			known[flag] = true
			if flag != "--help" && !strings.Contains(text[headings[0]], flag) {
				t.Errorf("docs/kmsctl.md%s does not mention %s of kmsctl %s", strings.TrimPrefix(headings[0], "##"), flag, command)
			}
		}
	}
	for _, flag := range flagsIn(string(manual)) {
		if !known[flag] && flag != "--expect-" {
			t.Errorf("docs/kmsctl.md mentions %s, which no command has", flag)
		}
	}
}

// flagsIn are the words of a text that look like flags.
func flagsIn(text string) []string {
	var flags []string
	for _, word := range strings.FieldsFunc(text, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-", r)
	}) {
		if strings.HasPrefix(word, "--") && strings.Trim(word, "-") != "" {
			flags = append(flags, word)
		}
	}
	return flags
}

// TestHelp compares the help of every command with testdata/help.golden; run
// with -update to write it.
func TestHelp(t *testing.T) {
	var all strings.Builder
	for _, command := range append([]string{"", "app", "audit", "seal"}, slices.Sorted(maps.Keys(sections()))...) {
		code, help, stderr := run(t.Context(), append(strings.Fields(command), "--help")...)
		if code != status.OK || stderr != "" {
			t.Fatalf("kmsctl %s --help = %d, %q", command, code, stderr)
		}
		all.WriteString("$ kmsctl " + strings.TrimSpace(command+" --help") + "\n" + help + "\n")
	}
	for i, line := range strings.Split(all.String(), "\n") {
		// Lines with examples and flags may be longer; prose may not.
		if len([]rune(line)) > 80 && !strings.HasPrefix(line, " ") {
			t.Errorf("line %d of the help has more than 80 characters: %s", i+1, line)
		}
	}
	const golden = "testdata/help.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(all.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), all.String()); diff != "" {
		t.Errorf("help (-%s +now)\n%s", golden, diff)
	}
}
