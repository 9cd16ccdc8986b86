package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"teekms/internal/keys"
)

// maxSecretFile bounds a file that holds a secret, in bytes.
const maxSecretFile = 4096

// readSecrets puts the contents of the *_file keys into the secrets that they
// stand for.
func (c *Config) readSecrets() []string {
	var problems []string
	for _, s := range []struct {
		path   string
		secret *keys.Secret
		file   string
	}{
		{"core.onboard.setup_token", &c.Core.Onboard.SetupToken, c.Core.Onboard.SetupTokenFile},
		{"core.auth_api.webhook.token", &c.Core.AuthAPI.Webhook.Token, c.Core.AuthAPI.Webhook.TokenFile},
		{"core.database.url", &c.Core.Database.URL, c.Core.Database.URLFile},
		{"core.database.master_password", &c.Core.Database.MasterPassword, c.Core.Database.MasterPasswordFile},
		{"core.bootstrap_server.token", &c.Core.BootstrapServer.Token, c.Core.BootstrapServer.TokenFile},
		{"core.admin.auth_token", &c.Core.Admin.AuthToken, c.Core.Admin.AuthTokenFile},
		{"rpc.tls.pkcs12_password", &c.RPC.TLS.PKCS12Password, c.RPC.TLS.PKCS12PasswordFile},
	} {
		if s.file == "" {
			continue
		}
		at := c.origins.place(s.path + "_file")
		if s.secret.Len() > 0 {
			problems = append(problems, fmt.Sprintf("%s: %s is set too; give one of the two", at, s.path))
			continue
		}
		text, err := readSecret(s.file)
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", at, err))
			continue
		}
		*s.secret = keys.NewSecret([]byte(text))
	}
	return problems
}

// readSecret reads a file that holds one secret on one line. One line feed at
// its end is not part of it.
func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return "", err
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	switch {
	case len(data) > maxSecretFile:
		return "", fmt.Errorf("%s is larger than %d bytes", path, maxSecretFile)
	case text == "":
		return "", fmt.Errorf("%s is empty", path)
	case strings.ContainsAny(text, "\r\n"):
		return "", errors.New(path + " has more than one line")
	}
	return text, nil
}
