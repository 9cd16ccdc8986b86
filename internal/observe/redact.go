package observe

import (
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// redacted stands for a value that is not logged.
const redacted = "[redacted]"

// redactingCore replaces the values of fields that are named like secrets, those
// given to With included.
type redactingCore struct{ zapcore.Core }

// With implements zapcore.Core.
func (c *redactingCore) With(fields []zapcore.Field) zapcore.Core {
	return &redactingCore{Core: c.Core.With(redact(fields))}
}

// Check implements zapcore.Core.
func (c *redactingCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements zapcore.Core.
func (c *redactingCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	return c.Core.Write(e, redact(fields))
}

// redact returns fields with secret values replaced; the slice it was given is
// the caller's and is not changed.
func redact(fields []zapcore.Field) []zapcore.Field {
	for i := range fields {
		if namesSecret(fields[i].Key) {
			return redactFrom(fields, i)
		}
	}
	return fields
}

func redactFrom(fields []zapcore.Field, first int) []zapcore.Field {
	out := append([]zapcore.Field(nil), fields...)
	for i := first; i < len(out); i++ {
		if namesSecret(out[i].Key) {
			out[i] = zap.String(out[i].Key, redacted)
		}
	}
	return out
}

// namesSecret tells whether a key, or its last word, is one under which secrets
// travel: setup_token, db-password, Authorization.
func namesSecret(key string) bool {
	last := strings.ToLower(key)
	if whole := strings.NewReplacer("-", "_", ".", "_").Replace(last); isSecretName(whole) {
		return true
	}
	return isSecretName(last[strings.LastIndexAny(last, "_-.")+1:])
}

func isSecretName(name string) bool {
	switch name {
	case "token", "password", "passwd", "passphrase", "secret", "authorization", "cookie", "credentials",
		"pkcs12", "p12", "pfx", "dsn", "database_url", "private_key", "key_material", "root_key", "ca_key",
		"k256_key", "disk_crypt_key", "env_crypt_key", "mnemonic", "seed":
		return true
	default:
		return false
	}
}
