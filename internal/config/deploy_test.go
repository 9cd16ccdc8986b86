package config_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/config"
)

// shipped is the annotated file that operators start from.
const shipped = "../../deploy/kms.toml"

func readText(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// enabled turns the keys and sections that are commented out ("#" and no space)
// into live ones.
func enabled(doc string) string {
	return regexp.MustCompile(`(?m)^#([a-z\[])`).ReplaceAllString(doc, "$1")
}

// sealable gives the two keys a value that have none which could be used: where a
// passphrase comes from, and who may open an escrow.
func sealable(doc string) string {
	return strings.NewReplacer("prompt = false", "prompt = true", "recipients = []", `recipients = ["age1"]`).Replace(doc)
}

func TestShippedFileIsDefault(t *testing.T) {
	doc := readText(t, shipped)
	if diff := cmp.Diff(config.Default(), parse(t, doc), compare()); diff != "" {
		t.Errorf("kms.toml differs from Default() (-want +got):\n%s", diff)
	}
	want := config.Default()
	seal := &want.Core.Seal
	seal.Named, seal.Passphrase.Enabled, seal.TPM.Enabled, seal.GuestAgent.Enabled, seal.Escrow.Enabled = true, true, true, true, true
	seal.Passphrase.Prompt, seal.Escrow.Recipients = true, []string{"age1"}
	if diff := cmp.Diff(want, parse(t, sealable(enabled(doc))), compare()); diff != "" {
		t.Errorf("all enabled: kms.toml differs from Default() (-want +got):\n%s", diff)
	}
	c := parse(t, doc)
	if got := c.Ineffective(); len(got) > 0 {
		t.Errorf("Ineffective() of the shipped file = %q, want none", got)
	}
	for _, section := range []string{"core.auth_api", "core.seal"} {
		if c.Names(section) {
			t.Errorf("the shipped file names %s, want it commented out", section)
		}
	}
}

// setting is a line of the shipped file that gives a key its default.
type setting struct{ path, value, above string }

// settings returns the keys of the shipped file, those commented out included,
// each with the line above it.
func settings(t *testing.T) []setting {
	t.Helper()
	key := regexp.MustCompile(`^#?([a-z0-9_]+) = (.*)$`)
	header := regexp.MustCompile(`^#?\[([a-z0-9_.]+)\]$`)
	var all []setting
	section, above := "", ""
	for _, line := range strings.Split(readText(t, shipped), "\n") {
		if m := header.FindStringSubmatch(line); m != nil {
			section = m[1]
		}
		if m := key.FindStringSubmatch(line); m != nil {
			all = append(all, setting{section + "." + m[1], m[2], above})
		}
		above = line
	}
	return all
}

func TestShippedFileHasEveryKeyOnce(t *testing.T) {
	want, _ := config.SchemaKeys()
	var got []string
	for _, s := range settings(t) {
		got = append(got, s.path)
		if s.above == "" {
			t.Errorf("%s has a blank line above it, want a line of why, a header or a key", s.path)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("keys of kms.toml differ from the schema (-want +got):\n%s", diff)
	}
}

// TestOnboardSectionReadsAsDocumented holds the five lines that operators are
// told to expect below the section's header.
func TestOnboardSectionReadsAsDocumented(t *testing.T) {
	const want = `[core.onboard]
enabled = true
auto_bootstrap_domain = ""
quote_enabled = true
address = "0.0.0.0"
port = 9100
`
	doc := readText(t, shipped)
	if n := strings.Count(doc, "[core.onboard]"); n != 1 || !strings.Contains(doc, want) {
		t.Errorf("kms.toml has [core.onboard] %d times, or not with the five lines below it", n)
	}
}

func TestEnvironmentNamesAreDistinct(t *testing.T) {
	keys, _ := config.SchemaKeys()
	seen := map[string]string{"DSTACK_KMS_ADMIN_TOKEN": "an alias", "DSTACK_KMS_PORT": "Kubernetes"}
	for _, k := range keys {
		name := config.EnvName(k)
		if other, ok := seen[name]; ok {
			t.Errorf("%s sets %s and %s", name, k, other)
		}
		seen[name] = k
	}
}

// TestReferenceHasEveryKey holds docs/config.md to the shipped file: one row a
// key, with its default and whether it has an effect.
func TestReferenceHasEveryKey(t *testing.T) {
	row := regexp.MustCompile("(?m)^\\| `([a-z0-9_.]+)` \\| `(.*?)` \\| (No effect|Not yet)?.*\\S")
	got, idle := map[string]string{}, map[string]bool{}
	for _, m := range row.FindAllStringSubmatch(readText(t, "../../docs/config.md"), -1) {
		if _, ok := got[m[1]]; ok {
			t.Errorf("docs/config.md describes %s twice", m[1])
		}
		got[m[1]], idle[m[1]] = m[2], m[3] != ""
	}
	want := map[string]string{}
	for _, s := range settings(t) {
		if isWebFramework(s.path) {
			continue
		}
		want[s.path] = s.value
		if effect := config.HasEffect(s.path); effect == idle[s.path] {
			t.Errorf("docs/config.md says that %s has no effect = %v, want %v", s.path, idle[s.path], !effect)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows of docs/config.md differ from kms.toml (-want +got):\n%s", diff)
	}
}

// isWebFramework tells the keys that stand in four sections and that the
// reference describes once.
func isWebFramework(key string) bool {
	return regexp.MustCompile(`^(default|rpc|core\.onboard|core\.admin)\.(workers|max_blocking|ident|temp_dir|keep_alive|log_level|limits)$`).MatchString(key)
}

// TestReadmeConfigurationStandsAlone parses the configuration that the README
// prints as a whole file.
func TestReadmeConfigurationStandsAlone(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(readme), "```toml\n")
	block, _, closed := strings.Cut(rest, "```")
	if !found || !closed {
		t.Fatal("the README prints no configuration")
	}
	c, err := config.Parse("README.md", []byte(block), nil)
	if err != nil {
		t.Fatal(err)
	}
	if a := c.Core.Attestation; a.Provider != config.ProviderSimulator || a.RootCA.TDX == "" || a.Simulator.Dir == "" {
		t.Errorf("attestation = %+v, want the simulator under its own root", a)
	}
}
