package config_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/config"
	"teekms/internal/keys"
)

func TestFlagsOverEnvironmentOverFile(t *testing.T) {
	const file = "[core.bootstrap_server]\nport = 1\ncommon_name = 'file'\ntoken = 'file'\n"
	environ := []string{
		"KMS_USE_BOOTSTRAP_SERVER=true", "KMS_BOOTSTRAP_SERVER_PORT=2", "KMS_BOOTSTRAP_SERVER_COMMON_NAME=env",
		"KMS_BOOTSTRAP_SERVER_EXPIRATION_DAYS=7", "KMS_ENSURE_RA_TLS=true",
		"KMS_PORT=tcp://10.0.0.1:9998", "KMS_SERVICE_HOST=10.0.0.1", "KMS_DATABASE_URL=x", "KMS_BOOTSTRAP_SERVER_SUBJECT=",
	}
	token := writeFile(t, "from-flag\n")
	flags := []config.Flag{
		{Name: "--bootstrap-server-port", Path: "core.bootstrap_server.port", Value: "3"},
		{Name: "--bootstrap-token-file", Path: "core.bootstrap_server.token_file", Value: token},
	}
	c, err := config.Parse("kms.toml", []byte(file), environ, flags...)
	if err != nil {
		t.Fatal(err)
	}
	want := config.BootstrapServer{
		Enabled: true, Port: 3, CommonName: "env", ExpirationDays: 7, EnsureRATLS: true,
		Token: keys.NewSecret([]byte("from-flag")), TokenFile: token,
	}
	if diff := cmp.Diff(want, c.Core.BootstrapServer, compare()); diff != "" {
		t.Errorf("core.bootstrap_server differs (-want +got):\n%s", diff)
	}
	other := parse(t, file, "KMS_BOOTSTRAP_SERVER_TOKEN_FILE="+token, "KMS_BOOTSTRAP_SERVER_AUTHORITY_CERT_FILE=ca.pem").Core.BootstrapServer
	if !other.Token.Equal(want.Token) || other.AuthorityCertFile != "ca.pem" {
		t.Errorf("authority %q, or another token: want those of the environment", other.AuthorityCertFile)
	}
	got := parse(t, "", "KMS_BOOTSTRAP_SERVER_PORT=2", "DSTACK_KMS_CORE_BOOTSTRAP_SERVER_PORT=4").Core.BootstrapServer.Port
	if got != 4 {
		t.Errorf("port = %d, want 4: the exact name wins", got)
	}
}

func TestFlagProblems(t *testing.T) {
	_, err := config.Parse("kms.toml", nil, nil,
		config.Flag{Name: "--bootstrap-server-port", Path: "core.bootstrap_server.port", Value: "70000"},
		config.Flag{Name: "--x", Path: "core.x", Value: "1"})
	const want = "--bootstrap-server-port: core.bootstrap_server.port: expected an integer from 0 to 65535; --x: no such key: core.x"
	if err == nil || err.Error() != want {
		t.Errorf("Parse() = %v, want %s", err, want)
	}
}

func TestNameOfTheBootstrapServer(t *testing.T) {
	tests := []struct{ name, doc, want string }{
		{"default", "", "cosmian.kms"},
		{"common name", "common_name = 'kms.example.com'", "kms.example.com"},
		{"subject", "subject = 'CN=cosmian.kms,O=Cosmian Tech,C=FR,L=Paris,ST=Ile-de-France'", "cosmian.kms"},
		{"order and spaces", "subject = 'C=FR, O=Example\\, Inc. + cn=  kms.example.com  , L=Paris'", "kms.example.com"},
		{"escapes", `subject = 'CN=a\2cb\,c\\d\ '`, `a,b,c\d `},
		{"the same twice", "common_name = 'x'\nsubject = 'CN=x'", "x"},
		{"its number", "subject = '2.5.4.3=x'", "x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := parse(t, "[core.bootstrap_server]\n"+tt.doc+"\n").Core.BootstrapServer.Name(); got != tt.want {
				t.Errorf("Name() = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestDatabaseAndBootstrapServerProblems(t *testing.T) {
	const subject = "core.bootstrap_server.subject: must be a distinguished name (RFC 4514) with one CN"
	password := "core.database.master_password_file = '" + writeFile(t, "x") + "'\n"
	tests := []struct{ name, doc, want string }{
		{"type", "core.database.type = 'oracle'\ncore.database.url = 'x://y'", "core.database.type: must be one of sqlite, sqlite-enc, postgresql, mysql, redis-findex"},
		{"no URL", "core.database.type = 'postgresql'", `core.database.url: required when core.database.type is "postgresql", or url_file`},
		{"URL of a file", "core.database.url = 'postgresql://localhost'", `core.database.url: has no meaning for core.database.type = "sqlite"`},
		{"path of a server", "core.database = { type = 'mysql', url = 'mysql://localhost', path = '/x' }", `core.database.path: has no meaning for core.database.type = "mysql"`},
		{"password of a plain file", password, `core.database.master_password_file: has no meaning for core.database.type = "sqlite"`},
		{"label without Redis", "core.database.findex_label = 'x'", `core.database.findex_label: has no meaning for core.database.type = "sqlite"`},
		{"plaintext of a file", "core.database.insecure_plaintext = true", `core.database.insecure_plaintext: has no meaning for core.database.type = "sqlite"`},
		{"roots of a file", "core.database.ca_file = '/x'", `core.database.ca_file: has no meaning for core.database.type = "sqlite"`},
		{"Redis without a label", password + "core.database.type = 'redis-findex'\ncore.database.url = 'redis://localhost'", `core.database.findex_label: required when core.database.type is "redis-findex"`},
		{"Redis without a password", "core.database.type = 'redis-findex'\ncore.database.url = 'redis://localhost'\ncore.database.findex_label = 'x'", `core.database.master_password_file: required when core.database.type is "redis-findex"`},
		{"no name", "core.bootstrap_server.common_name = ''", "core.bootstrap_server.common_name: must be from 1 to 64 printable characters"},
		{"long name", "core.bootstrap_server.common_name = '" + strings.Repeat("é", 65) + "'", "core.bootstrap_server.common_name: must be from 1 to 64 printable characters"},
		{"two names", "core.bootstrap_server.subject = 'CN=a'\ncore.bootstrap_server.common_name = 'b'", "core.bootstrap_server.subject: has another CN than core.bootstrap_server.common_name; set one of the two"},
		{"no subject", "core.bootstrap_server.subject = 'kms'", subject},
		{"subject without CN", "core.bootstrap_server.subject = 'O=x'", subject},
		{"subject with two", "core.bootstrap_server.subject = 'CN=x,CN=y'", subject},
		{"subject with an empty one", "core.bootstrap_server.subject = 'CN= ,O=x'", subject},
		{"subject in BER", "core.bootstrap_server.subject = 'CN=#0c0161'", subject},
		{"subject cut off", `core.bootstrap_server.subject = 'CN=x\'`, subject},
		{"subject with a bad escape", `core.bootstrap_server.subject = 'CN=x\zz'`, subject},
		{"control character in the subject", `core.bootstrap_server.subject = 'CN=x\0a'`, "core.bootstrap_server.subject: its CN must be from 1 to 64 printable characters"},
		{"days", "core.bootstrap_server.expiration_days = 0", "core.bootstrap_server.expiration_days: must be from 1 to 3650"},
		{"token", "core.bootstrap_server.token = 'a b'", "core.bootstrap_server.token: must be printable ASCII without spaces"},
		{"PKCS#12 without TLS", "rpc.tls.pkcs12_file = '/x'\nrpc.insecure_plaintext = true", "rpc.tls.pkcs12_file: contradicts rpc.insecure_plaintext = true"},
		{"password of nothing", "rpc.tls.pkcs12_password_file = '" + writeFile(t, "x") + "'", "rpc.tls.pkcs12_password_file: needs rpc.tls.pkcs12_file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := problems(t, tt.doc)
			if len(got) != 1 || !strings.HasSuffix(": "+got[0], ": "+tt.want) {
				t.Errorf("Parse(%q) problems = %q, want %q, with its place", tt.doc, got, tt.want)
			}
		})
	}
}

func TestDatabasesThatAreFine(t *testing.T) {
	password := "master_password_file = '" + writeFile(t, "pass word\n") + "'\n"
	for _, doc := range []string{
		"", "path = '/x'", "type = 'sqlite-enc'", "type = 'sqlite-enc'\n" + password,
		"type = 'postgresql'\nurl = 'postgresql://user:p%40ss@host/kms'\nca_file = '/x'\ninsecure_plaintext = true",
		"type = 'mysql'\nurl_file = '" + writeFile(t, "mysql://host") + "'",
		"type = 'redis-findex'\nurl = 'rediss://host'\nfindex_label = 'label'\n" + password,
	} {
		c := parse(t, "[core.database]\n"+doc)
		if !c.Names("core.database") {
			t.Errorf("Names(core.database) of %q = false, want true", doc)
		}
		if c.Core.Database.Server() && c.Core.Database.URL.Len() == 0 {
			t.Errorf("%q has no URL", doc)
		}
		if strings.Contains(doc, password) && string(c.Core.Database.MasterPassword.Bytes()) != "pass word" {
			t.Errorf("%q has no master password", doc)
		}
	}
}

func TestWhoChoseADatabase(t *testing.T) {
	for doc, want := range map[string]bool{
		"":                                     false,
		"[core.database]":                      false,
		"core.database.type = 'sqlite'":        true,
		"core.database.path = '/x'":            true,
		"core.bootstrap_server.enabled = true": false,
		"core.bootstrap_server.enabled = true\ncore.database = { ca_file = '/x', insecure_plaintext = true }": false,
	} {
		if got := parse(t, doc).ChoosesDatabase(); got != want {
			t.Errorf("ChoosesDatabase() of %q = %v, want %v", doc, got, want)
		}
	}
	if !parse(t, "", "DSTACK_KMS_CORE_DATABASE_TYPE=sqlite").ChoosesDatabase() {
		t.Error("ChoosesDatabase() of the environment = false, want true")
	}
}

func TestWeakDatabaseIsListed(t *testing.T) {
	c := parse(t, "[core.database]\ntype = 'mysql'\nurl = 'mysql://host'\ninsecure_plaintext = true")
	if diff := cmp.Diff([]string{"core.database.insecure_plaintext", config.UnsealedKeys}, c.InsecureSettings()); diff != "" {
		t.Errorf("InsecureSettings() differs (-want +got):\n%s", diff)
	}
}

func FuzzSubject(f *testing.F) {
	for _, s := range []string{"CN=cosmian.kms,O=Cosmian Tech,C=FR,L=Paris,ST=Ile-de-France", `CN=a\2c\,b+O=x`, "CN=#00", `cn=\ `} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, subject string) {
		c := config.Default()
		c.Core.BootstrapServer.Subject = subject
		if err := c.Validate(); err == nil && subject != "" && c.Core.BootstrapServer.Name() == "" {
			t.Errorf("subject %q is valid and has no name", subject)
		}
	})
}
