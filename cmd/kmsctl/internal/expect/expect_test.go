package expect_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/cmd/kmsctl/internal/expect"
)

var (
	register = strings.Repeat("ab", 48)
	other    = strings.Repeat("cd", 48)
	hash     = strings.Repeat("01", 32)
)

func TestAddText(t *testing.T) {
	want := expect.Set{
		{Name: "mrtd", AnyOf: []string{register}, Source: "f"},
		{Name: "rtmr3", AnyOf: []string{register, other}, Source: "f"},
		{Name: "device_id", AnyOf: []string{hash}, Source: "f"},
		{Name: "domain", AnyOf: []string{"kms.example.com"}, Source: "f"},
	}
	tests := []struct{ name, text string }{
		{"TOML", "# a comment\nmrtd = \"0x" + strings.ToUpper(register) + "\"\nrtmr3 = [\"" + register + "\", \"" + other + "\"]\n" +
			"device_id = '" + hash + "'\ndomain = \"KMS.example.com\"\n"},
		{"JSON", ` {"domain":"kms.example.com","mrtd":"` + register + `","rtmr3":["` + register + `","` + other + `"],"device_id":"` + hash + `"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got expect.Set
			if err := got.AddText("f", []byte(tt.text)); err != nil {
				t.Fatalf("AddText() = %v", err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("AddText() (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAddTextRefuses(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"nothing", "", "nothing is expected"},
		{"an empty object", "{}", "nothing is expected"},
		{"an unknown key of TOML", "mrdt = \"" + register + "\"", `unknown name "mrdt"`},
		{"an unknown key of JSON", `{"MRTD":"` + register + `"}`, `unknown name "MRTD"`},
		{"a section", "[tdx]\nmrtd = \"" + register + "\"", `unknown name "tdx"`},
		{"a key given twice in TOML", "domain = \"a\"\ndomain = \"b\"", "line 2"},
		{"a key given twice in JSON", `{"domain":"a","domain":"b"}`, "domain: given twice"},
		{"no TOML", "mrtd: yes", "line 1"},
		{"no JSON", `{"domain":`, "domain: "},
		{"text after JSON", `{"domain":"a"} x`, "text after the object"},
		{"an object without end", `{"domain":"a"`, "no end"},
		{"a number", "mrtd = 1", "mrtd: want a string"},
		{"a list of numbers", "mrtd = [1]", "mrtd: want a string"},
		{"an empty list", "mrtd = []", "mrtd: no value"},
		{"a short register", `mrtd = "ab"`, "mrtd: 2 hex digits, want 96"},
		{"no hex", `mrtd = "` + strings.Repeat("zz", 48) + `"`, "mrtd: want hex"},
		{"an empty value", `{"mrtd":""}`, "mrtd: 0 hex digits, want 96"},
		{"an empty domain", `domain = ""`, "domain: empty"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s expect.Set
			if err := s.AddText("f", []byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("AddText(%q) = %v, want an error with %q", tt.text, err, tt.want)
			}
		})
	}
}

func TestAddFile(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "expect.toml")
	if err := os.WriteFile(good, []byte(`domain = "a"`), 0o644); err != nil {
		t.Fatal(err)
	}
	var s expect.Set
	if err := s.AddFile(t.Context(), good); err != nil || len(s) != 1 || s[0].Source != "expect.toml" {
		t.Errorf("AddFile() = %v, set %v, want one expectation of expect.toml", err, s)
	}
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, make([]byte, 1<<20+1), 0o644); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{large: "more than 1048576 bytes", filepath.Join(dir, "none"): "no such file"} {
		if err := s.AddFile(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("AddFile(%s) = %v, want an error with %q", path, err, want)
		}
	}
}

func TestCompare(t *testing.T) {
	claims := map[string][]string{"mrtd": {register}, "domain": {"a.example.com", "192.0.2.1"}}
	tests := []struct {
		name, claim string
		anyOf       []string
		want        string
	}{
		{"the value", "mrtd", []string{register}, ""},
		{"one of the values", "mrtd", []string{other, register}, ""},
		{"another value", "mrtd", []string{other}, "mrtd is " + register + ", here wants " + other},
		{"a claim that is not there", "rtmr0", []string{register}, "rtmr0 there is none, here wants " + register},
		{"one of several names", "domain", []string{"A.example.com"}, ""},
		{"an address in another spelling", "domain", []string{"::ffff:192.0.2.1"}, ""},
		{"another name", "domain", []string{"b.example.com"}, "domain is a.example.com, 192.0.2.1, here wants b.example.com"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s expect.Set
			if err := s.Add("here", tt.claim, tt.anyOf...); err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, m := range s.Compare(claims) {
				got += m.String()
			}
			if got != tt.want {
				t.Errorf("Compare() = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestEveryNameHasASize(t *testing.T) {
	// A name without a size of its own is taken for a register; this test is
	// where a new name has to be thought about.
	sizes := map[string]int{
		"mrtd": 48, "rtmr0": 48, "rtmr1": 48, "rtmr2": 48, "rtmr3": 48,
		"mr_config_id": 48, "mr_owner": 48, "mr_owner_config": 48, "mr_seam": 48,
		"device_id": 32, "fmspc": 6, "app_id": 20, "compose_hash": 32, "instance_id": 20, "os_image_hash": 32,
		"mr_system": 32, "mr_aggregated": 32, "ca_pubkey": 91, "k256_pubkey": 33, "trust_root_sha256": 32,
	}
	for _, name := range expect.Names() {
		if name == "domain" {
			continue
		}
		var s expect.Set
		if err := s.Add("here", name, strings.Repeat("00", sizes[name])); err != nil {
			t.Errorf("Add(%s, %d bytes) = %v", name, sizes[name], err)
		}
	}
}

// FuzzAddText holds that what is accepted is accepted again in its own form.
func FuzzAddText(f *testing.F) {
	f.Add("mrtd = \"" + register + "\"")
	f.Add(`{"rtmr0":["0x` + register + `"],"domain":"a"}`)
	f.Add(`{"domain":"a","domain":"b"}`)
	f.Fuzz(func(t *testing.T, text string) {
		var s expect.Set
		if s.AddText("f", []byte(text)) != nil {
			return
		}
		if len(s) == 0 {
			t.Fatal("an accepted text expects nothing")
		}
		var again expect.Set
		for _, e := range s {
			if err := again.Add(e.Source, e.Name, e.AnyOf...); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(s, again); diff != "" {
			t.Errorf("Add() of what was added (-want +got):\n%s", diff)
		}
	})
}
