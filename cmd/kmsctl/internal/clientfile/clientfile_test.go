package clientfile_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"teekms/cmd/kmsctl/internal/clientfile"
)

func load(vars map[string]string) (*clientfile.File, error) {
	return clientfile.Load(func(name string) string { return vars[name] })
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLoad(t *testing.T) {
	home := t.TempDir()
	usual, named := filepath.Join(home, ".cosmian", "kms.json"), filepath.Join(t.TempDir(), "other.json")
	if f, err := load(map[string]string{"HOME": home}); err != nil || f.Found || f.Path != usual {
		t.Errorf("Load() without a file = %+v, %v, want none at %s", f, err, usual)
	}
	if entries, err := os.ReadDir(home); err != nil || len(entries) != 0 {
		t.Errorf("Load() without a file makes %v, %v", entries, err)
	}
	if f, err := load(nil); err != nil || f.Found || f.Path != "" {
		t.Errorf("Load() without HOME = %+v, %v, want nothing", f, err)
	}
	if _, err := load(map[string]string{"HOME": home, clientfile.Variable: named}); err == nil ||
		!strings.Contains(err.Error(), named+" (KMS_CLI_CONF)") || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("Load() of a named file that is missing = %v, want an error", err)
	}
	write(t, usual, `{"kms_server_url":"http://usual:9998"}`)
	write(t, named, `{"bootstrap_server_url":"https://named:1","kms_server_url":"http://usual:9998"}`)
	for _, tt := range []struct {
		vars map[string]string
		want string
	}{
		{map[string]string{"HOME": home}, "https://usual:9998"},
		{map[string]string{"HOME": home, clientfile.Variable: named}, "https://named:1"},
	} {
		if f, err := load(tt.vars); err != nil || !f.Found || f.BootstrapServerURL != tt.want {
			t.Errorf("Load(%v) = %+v, %v, want %s", tt.vars, f, err, tt.want)
		}
	}
}

func TestParse(t *testing.T) {
	tests := []struct {
		name, text, url string
	}{
		{"its own URL", `{"bootstrap_server_url":"https://b","kms_server_url":"http://k"}`, "https://b"},
		{"its own URL as it is", `{"bootstrap_server_url":"http://b"}`, "http://b"},
		{"that of the KMS", `{"kms_server_url":"https://k:1"}`, "https://k:1"},
		{"that of the KMS over plain HTTP", `{"kms_server_url":"http://k:1"}`, "https://k:1"},
		{"neither", `{}`, ""},
		{"keys of other tools", `{"kms_server_url":"https://k","kms_database_secret":"x","tee_conf":{"mr_enclave":"00"}}`, "https://k"},
		{"null", `{"bootstrap_server_url":null,"kms_server_url":"https://k"}`, "https://k"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := clientfile.Parse("/d/kms.json", []byte(tt.text))
			if err != nil || f.BootstrapServerURL != tt.url {
				t.Errorf("Parse(%s) = %+v, %v, want %q", tt.text, f, err, tt.url)
			}
		})
	}
	f, err := clientfile.Parse("/d/kms.json", []byte(`{"kms_access_token":"the token","ssl_client_pkcs12_path":"c.p12","ssl_client_pkcs12_password":"the password",
		"bootstrap_expect_file":"expect.toml","bootstrap_trust_root":"/r.pem","bootstrap_collateral":"../td","bootstrap_pccs":"https://p","bootstrap_pin_spki":"00"}`))
	if err != nil {
		t.Fatal(err)
	}
	if string(f.AccessToken.Bytes()) != "the token" || string(f.PKCS12Password.Bytes()) != "the password" {
		t.Error("Parse() has other secrets")
	}
	got := []string{f.PKCS12Path, f.ExpectFile, f.TrustRoot, f.Collateral, f.PCCS, f.PinSPKI}
	if want := "c.p12 /d/expect.toml /r.pem /td https://p 00"; strings.Join(got, " ") != want {
		t.Errorf("Parse() = %q, want %s", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                                    "not JSON, from byte 0 on",
		`{"kms_access_token":"hunter2"`:       "not JSON, from byte",
		`{"kms_access_token":"hunter2"} more`: "not JSON, from byte",
		`["hunter2"]`:                         "not a JSON object",
		`{"kms_access_token":["hunter2"]}`:    "kms_access_token: want a string",
		`{"kms_server_url":1}`:                "kms_server_url: want a string",
	} {
		if _, err := clientfile.Parse("kms.json", []byte(text)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Parse(%s) = %v, want %q and no value", text, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"kms_server_url":"http://k","ssl_client_pkcs12_path":"a"}`))
	f.Add([]byte(`{"bootstrap_collateral":"../x"}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := clientfile.Parse("/d/kms.json", text)
		if err != nil {
			return
		}
		if strings.HasPrefix(file.BootstrapServerURL, "http://") && !strings.Contains(strings.ToLower(string(text)), "bootstrap_server_url") {
			t.Errorf("Parse(%q) has the URL %s, want https", text, file.BootstrapServerURL)
		}
		if file.Collateral != "" && !filepath.IsAbs(file.Collateral) {
			t.Errorf("Parse(%q) has the relative path %s", text, file.Collateral)
		}
	})
}
