package config

import (
	"strings"
	"unicode/utf8"
)

// database checks how the keys fit together. What a URL may say is checked by
// those who open it. later says that another database may be given after the
// start, for which the two keys about TLS hold too.
func (ch *checker) database(d Database, later bool) {
	const path = "core.database."
	ch.oneOf(path+"type", d.Type, DatabaseSQLite, DatabaseSQLiteEncrypted, DatabasePostgreSQL, DatabaseMySQL, DatabaseRedisFindex)
	redis := d.Type == DatabaseRedisFindex
	for _, key := range []struct {
		name       string
		set, means bool
	}{
		{"path", d.Path != "", !d.Server()},
		{"url", d.URL.Len() > 0, d.Server()},
		{"ca_file", d.CAFile != "", d.Server() || later},
		{"insecure_plaintext", d.InsecurePlaintext, d.Server() || later},
		{"master_password_file", d.MasterPasswordFile != "", redis || d.Type == DatabaseSQLiteEncrypted},
		{"findex_label", d.FindexLabel != "", redis},
	} {
		ch.check(!key.set || key.means, path+key.name, "has no meaning for core.database.type = %q", d.Type)
	}
	ch.check(!d.Server() || d.URL.Len() > 0, path+"url", "required when core.database.type is %q, or url_file", d.Type)
	ch.check(!redis || d.MasterPasswordFile != "", path+"master_password_file", "required when core.database.type is %q", d.Type)
	ch.check(!redis || d.FindexLabel != "", path+"findex_label", "required when core.database.type is %q", d.Type)
}

// maxExpirationDays is the longest life of the certificate of the bootstrap
// server.
const maxExpirationDays = 3650

func (ch *checker) bootstrapServer(b BootstrapServer) {
	const path = "core.bootstrap_server."
	ch.check(isCommonName(b.CommonName), path+"common_name", "must be from 1 to 64 printable characters")
	cn, err := subjectCN(b.Subject)
	switch {
	case b.Subject == "":
	case err != nil:
		ch.check(false, path+"subject", "%v", err)
	case ch.origins[path+"common_name"] != "" && cn != b.CommonName:
		ch.check(false, path+"subject", "has another CN than core.bootstrap_server.common_name; set one of the two")
	default:
		ch.check(isCommonName(cn), path+"subject", "its CN must be from 1 to 64 printable characters")
	}
	ch.check(b.ExpirationDays >= 1 && b.ExpirationDays <= maxExpirationDays, path+"expiration_days", "must be from 1 to %d", maxExpirationDays)
	ch.token(path+"token", b.Token)
}

func (ch *checker) pkcs12(r RPC) {
	ch.check(r.TLS.PKCS12File == "" || !r.InsecurePlaintext, "rpc.tls.pkcs12_file", "contradicts rpc.insecure_plaintext = true")
	ch.check(r.TLS.PKCS12PasswordFile == "" || r.TLS.PKCS12File != "", "rpc.tls.pkcs12_password_file", "needs rpc.tls.pkcs12_file")
}

// maxCommonName is the longest common name (RFC 5280, ub-common-name).
const maxCommonName = 64

func isCommonName(name string) bool {
	printable := !strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == utf8.RuneError })
	return name != "" && utf8.RuneCountInString(name) <= maxCommonName && printable
}
