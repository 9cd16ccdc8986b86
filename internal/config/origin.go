package config

import (
	"slices"
	"strings"
)

// origins remembers where each key that was set was set: "kms.toml:3:1", or the
// name of an environment variable. Tables that the file names are in it too.
type origins map[string]string

// place returns path with the place where it was set in front, if any.
func (o origins) place(path string) string {
	if at, ok := o[path]; ok {
		return at + ": " + path
	}
	return path
}

// names tells whether path or anything below it was set.
func (o origins) names(path string) bool {
	for key := range o {
		if key == path || strings.HasPrefix(key, path+".") {
			return true
		}
	}
	return false
}

// Names tells whether the file or the environment names a key or a section, or
// anything below it, whatever its value: Names("core.auth_api").
func (c *Config) Names(path string) bool { return c.origins.names(path) }

// Ineffective returns the keys that were set and have no effect in this
// version, sorted.
func (c *Config) Ineffective() []string {
	s := newSchema(c)
	var keys []string
	for path := range c.origins {
		if s.idle(path) {
			keys = append(keys, path)
		}
	}
	slices.Sort(keys)
	return keys
}

// UnsealedKeys is what InsecureSettings calls a key directory whose private files
// are not sealed. It names no key: a whole section is missing.
const UnsealedKeys = "unsealed_keys"

// InsecureSettings returns the keys whose values weaken security, in the order
// of the file's sections, and [UnsealedKeys]. Nothing of it is refused; it is for
// the log and for GetMeta.
func (c *Config) InsecureSettings() []string {
	var keys []string
	for _, s := range []struct {
		path string
		on   bool
	}{
		{"rpc.insecure_plaintext", c.RPC.InsecurePlaintext},
		{"core.enforce_self_authorization", !c.Core.EnforceSelfAuthorization},
		{"core.attestation.provider", c.Core.Attestation.Provider == ProviderSimulator},
		{"core.attestation.insecure_allow_external_trust_anchors", c.Core.Attestation.InsecureAllowExternalTrustAnchors},
		{"core.image.verify", !c.Core.Image.Verify},
		{"core.auth_api.type", c.Core.AuthAPI.Type == AuthDev},
		{"core.onboard.quote_enabled", !c.Core.Onboard.QuoteEnabled},
		{"core.database.insecure_plaintext", c.Core.Database.InsecurePlaintext},
		{"core.admin.insecure_no_auth", c.Core.Admin.InsecureNoAuth},
		{"core.admin.insecure_plaintext", c.Core.Admin.InsecurePlaintext},
		{UnsealedKeys, !c.Core.Seal.Configured()},
	} {
		if s.on {
			keys = append(keys, s.path)
		}
	}
	return keys
}
