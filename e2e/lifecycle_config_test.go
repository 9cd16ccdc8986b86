package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestLogFormats(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"console", "json"} {
		k := newKMS(t, "", fmt.Sprintf("[log]\nformat = %q\nlevel = \"debug\"\n", format))
		k.fill(t, exampleDomain)
		p, client := k.serve(t, exampleDomain)
		get(t, client, k.URL("https")+"/prpc/GetMeta")
		get(t, client, k.URL("https")+"/prpc/Nope%0aINFO%20forged")
		p.terminate(t)
		line := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (DEBUG|INFO|WARN|ERROR) \S`)
		calls := 0
		for l := range strings.Lines(p.stderr.String()) {
			var entry struct{ TS, Level, Msg, Procedure string }
			switch {
			case format == "console" && !line.MatchString(l):
				t.Errorf("this is no line of the console format: %s", l)
			case format == "console" && strings.Contains(l, "DEBUG call {\"procedure\": \"/kms.v1.KMS/GetMeta\""):
				calls++
			case format == "json" && (json.Unmarshal([]byte(l), &entry) != nil || entry.TS == "" || entry.Level == "" || entry.Msg == ""):
				t.Errorf("this is no line of the JSON format: %s", l)
			case entry.Procedure == "/kms.v1.KMS/GetMeta":
				calls++
			}
		}
		if calls != 1 {
			t.Errorf("%s: %d lines tell of the call, want 1\n%s", format, calls, p.stderr)
		}
	}
}

// TestCommandLine is about everything before a server starts.
func TestCommandLine(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	t.Cleanup(func() {
		for _, dir := range []string{k.Certs, k.TD} {
			if left := tree(t, dir); len(left) != 0 {
				t.Errorf("looking at a configuration wrote %v", left)
			}
		}
	})
	bad := filepath.Join(k.Dir, "bad.toml")
	text := "[rpc]\nprot = 9100\naddress = 7\n\n[core.onboard]\nquote_enabledd = true\nport = \"x\"\n"
	if err := os.WriteFile(bad, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(k.Dir, "token")
	if err := os.WriteFile(token, []byte("from-a-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name           string
		env, args      []string
		code           int
		stdout, stderr []string // parts
	}{
		{"check", nil, []string{"--check", "--config", k.Config}, 0, []string{
			k.Config + ": core.attestation.provider weakens security\n", k.Config + ": unsealed_keys weakens security\n" + k.Config + ": valid\n",
		}, nil},
		{"check of a bad file tells all at once", nil, []string{"--check", "--config", bad}, 1, nil, []string{
			"Error: ", bad + ":2:1: unknown key rpc.prot; did you mean rpc.port?", bad + ":3:1: rpc.address: expected a string, found an integer",
			bad + ":6:1: unknown key core.onboard.quote_enabledd; did you mean core.onboard.quote_enabled?",
			bad + ":7:1: core.onboard.port: expected an integer, found a string",
		}},
		{
			"a limit that is none",
			[]string{"DSTACK_KMS_CORE_LIMITS_BODY_BYTES=0", "DSTACK_KMS_CORE_LIMITS_READ_TIMEOUT=-1s"},
			[]string{"--check", "--config", k.Config},
			1, nil,
			[]string{
				"DSTACK_KMS_CORE_LIMITS_BODY_BYTES: core.limits.body_bytes: must be from 1024 to 67108864",
				"DSTACK_KMS_CORE_LIMITS_READ_TIMEOUT: core.limits.read_timeout: must be more than 0s and at most 24h",
			},
		},
		{"a start with a bad file is refused alike", nil, []string{"--config", bad}, 1, nil, []string{"unknown key rpc.prot"}},
		{"the default path", nil, nil, 1, nil, []string{"Error: opening configuration /etc/kms/kms.toml: no such file; name one with --config"}},
		{"JSON", nil, []string{"--config", "kms.json"}, 1, nil, []string{"JSON is not read"}},
		{"version", nil, []string{"--version"}, 0, []string{"dstack-kms ", "go1."}, nil},
		{"help", nil, []string{"--help"}, 0, []string{"--config", "--check", "--version", "/etc/kms/kms.toml"}, nil},
		{"an unknown flag", nil, []string{"--nope"}, 2, nil, []string{"Error: unknown flag: --nope\nTry 'dstack-kms --help'.\n"}},
		{"an argument", nil, []string{"serve"}, 2, nil, []string{"Error: unexpected argument \"serve\"\nTry 'dstack-kms --help'.\n"}},
		{"a flag without its value", nil, []string{"--config"}, 2, nil, []string{"Error: flag needs an argument: --config"}},
		{
			"an override by the environment",
			[]string{"DSTACK_KMS_CORE_SITE_NAME=here", "DSTACK_KMS_RPC_INSECURE_PLAINTEXT=true"},
			[]string{"--check", "--config", k.Config},
			0,
			[]string{"rpc.insecure_plaintext weakens security"},
			nil,
		},
		{
			"a bad value in the environment",
			[]string{"DSTACK_KMS_RPC_PORT=99999"},
			[]string{"--check", "--config", k.Config},
			1, nil,
			[]string{"DSTACK_KMS_RPC_PORT: rpc.port: "},
		},
		{
			"an unknown variable",
			[]string{"DSTACK_KMS_RPC_PROT=1"},
			[]string{"--check", "--config", k.Config},
			1, nil,
			[]string{"unknown environment variable DSTACK_KMS_RPC_PROT; did you mean DSTACK_KMS_RPC_PORT?"},
		},
		{"what Kubernetes sets is ignored", []string{
			"DSTACK_KMS_SERVICE_HOST=10.0.0.1", "DSTACK_KMS_SERVICE_PORT=9100", "DSTACK_KMS_SERVICE_PORT_HTTPS=9100",
			"DSTACK_KMS_PORT=tcp://10.0.0.1:9100", "DSTACK_KMS_PORT_9100_TCP=tcp://10.0.0.1:9100", "DSTACK_KMS_PORT_9100_TCP_ADDR=10.0.0.1",
		}, []string{"--check", "--config", k.Config}, 0, []string{": valid\n"}, nil},
		{
			"an admin token by its old name",
			[]string{"ADMIN_API_TOKEN=t0ken", "DSTACK_KMS_CORE_ADMIN_ENABLED=true"},
			[]string{"--check", "--config", k.Config},
			0,
			[]string{": valid\n"},
			nil,
		},
		{
			"an admin without a token",
			[]string{"DSTACK_KMS_CORE_ADMIN_ENABLED=true"},
			[]string{"--check", "--config", k.Config},
			1, nil,
			[]string{"core.admin.enabled: needs core.admin.auth_token, auth_token_file or htpasswd_file"},
		},
		{
			"a secret from a file",
			[]string{"DSTACK_KMS_CORE_ADMIN_ENABLED=true", "DSTACK_KMS_CORE_ADMIN_AUTH_TOKEN_FILE=" + token},
			[]string{"--check", "--config", k.Config},
			0,
			[]string{": valid\n"},
			nil,
		},
		{
			"a secret file that is missing",
			[]string{"DSTACK_KMS_CORE_ONBOARD_SETUP_TOKEN_FILE=/nope"},
			[]string{"--check", "--config", k.Config},
			1, nil,
			[]string{"core.onboard.setup_token_file", "/nope: no such file"},
		},
		{
			"a secret twice",
			[]string{"DSTACK_KMS_CORE_ONBOARD_SETUP_TOKEN=s3cret", "DSTACK_KMS_CORE_ONBOARD_SETUP_TOKEN_FILE=" + token},
			[]string{"--check", "--config", k.Config},
			1, nil,
			[]string{"core.onboard.setup_token is set too; give one of the two"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := runCmd(t, command(t, tt.env, "dstack-kms", tt.args...))
			other, stdout2, stderr2 := runCmd(t, command(t, tt.env, "dstack-onboard", tt.args...))
			ours := strings.NewReplacer("dstack-onboard", "dstack-kms").Replace(stdout2 + stderr2)
			if other != code || tt.name != "help" && ours != stdout+stderr {
				t.Errorf("dstack-onboard: exit status %d, want %d and the same words\n%s", other, code, ours)
			}
			if code != tt.code {
				t.Errorf("exit status %d, want %d\n%s%s", code, tt.code, stdout, stderr)
			}
			for _, want := range tt.stdout {
				if !strings.Contains(stdout, want) {
					t.Errorf("standard output does not say %q:\n%s", want, stdout)
				}
			}
			for _, want := range tt.stderr {
				if !strings.Contains(stderr, want) {
					t.Errorf("standard error does not say %q:\n%s", want, stderr)
				}
			}
			if tt.code == 0 && stderr != "" {
				t.Errorf("standard error is not empty: %s", stderr)
			}
			for _, secret := range []string{"s3cret", "t0ken", "from-a-file"} {
				if strings.Contains(stdout+stderr, secret) {
					t.Errorf("the secret %s is shown:\n%s%s", secret, stdout, stderr)
				}
			}
		})
	}
}

// TestTheEnvironmentWins starts a server on the port of a variable, with the
// setup token of a file.
func TestTheEnvironmentWins(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	token := filepath.Join(k.Dir, "token")
	if err := os.WriteFile(token, []byte("from-a-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{fmt.Sprintf("DSTACK_KMS_CORE_ONBOARD_PORT=%d", k.movePort(t)), "DSTACK_KMS_CORE_ONBOARD_SETUP_TOKEN_FILE=" + token}
	p := startCmd(t, command(t, env, "dstack-onboard", "--config", k.Config))
	p.ready(t, http.DefaultClient, k.URL("http")+"/health")
	header := map[string]string{"Authorization": "Bearer from-a-file"}
	if a := request(t, http.DefaultClient, http.MethodPost, k.URL("http")+bootstrapPath, exampleRequest, header); a.StatusCode != http.StatusOK {
		t.Errorf("Bootstrap with the token of the file = %d %s", a.StatusCode, a.body)
	}
	if bytes.Contains([]byte(p.stderr.String()), []byte("from-a-file")) {
		t.Error("the token is in the log")
	}
}
