package storage_test

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/keys"
	"teekms/internal/storage"
)

// secret is in the password of every URL of these tests, and must be in no
// error.
const secret = "hunter2secret"

func server(t storage.Type, url string) storage.Config {
	c := storage.Config{Type: t, URL: keys.NewSecret([]byte(url))}
	if t == storage.RedisFindex {
		c.MasterPassword, c.Label = keys.NewSecret([]byte("master"+secret)), "label"
	}
	return c
}

func TestEndpoint(t *testing.T) {
	const loopback, remote = true, false
	tests := []struct {
		name   string
		config storage.Config
		change func(*storage.Config)
		want   storage.Endpoint
	}{
		{
			"SQLite is its file",
			storage.Config{Type: storage.SQLite, Path: "/var/lib/kms"},
			nil,
			storage.Endpoint{Host: "/var/lib/kms/kms.db", Loopback: loopback},
		},
		{
			"encrypted SQLite is its file",
			storage.Config{Type: storage.SQLiteEncrypted, Path: "data"},
			nil,
			storage.Endpoint{Host: "data/kms.db", Loopback: loopback},
		},
		{
			"PostgreSQL elsewhere is reached with TLS", server(storage.PostgreSQL, "postgresql://kms:"+secret+"@db.example.com/kms"), nil,
			storage.Endpoint{Host: "db.example.com:5432", Loopback: remote, Database: "kms", TLS: true},
		},
		{
			"the short scheme", server(storage.PostgreSQL, "postgres://kms:"+secret+"@db.example.com:6432/kms"), nil,
			storage.Endpoint{Host: "db.example.com:6432", Loopback: remote, Database: "kms", TLS: true},
		},
		{
			"here it is not", server(storage.PostgreSQL, "postgresql://kms:"+secret+"@localhost/kms"), nil,
			storage.Endpoint{Host: "localhost:5432", Loopback: loopback, Database: "kms"},
		},
		{
			"unless the URL asks for it", server(storage.PostgreSQL, "postgresql://kms:"+secret+"@localhost/kms?sslmode=verify-full"), nil,
			storage.Endpoint{Host: "localhost:5432", Loopback: loopback, Database: "kms", TLS: true},
		},
		{
			"or an authority is named", server(storage.PostgreSQL, "postgresql://kms:"+secret+"@127.0.0.1/kms?sslrootcert=%2Fetc%2Fca.pem"), nil,
			storage.Endpoint{Host: "127.0.0.1:5432", Loopback: loopback, Database: "kms", TLS: true},
		},
		{
			"in the URL or beside it", server(storage.PostgreSQL, "postgresql://kms:"+secret+"@127.0.0.1/kms"), func(c *storage.Config) { c.CAFile = "/etc/ca.pem" },
			storage.Endpoint{Host: "127.0.0.1:5432", Loopback: loopback, Database: "kms", TLS: true},
		},
		{
			"the same authority twice is one", server(storage.PostgreSQL, "postgresql://kms:"+secret+"@127.0.0.1/kms?sslrootcert=/etc/ca.pem"), func(c *storage.Config) { c.CAFile = "/etc/ca.pem" },
			storage.Endpoint{Host: "127.0.0.1:5432", Loopback: loopback, Database: "kms", TLS: true},
		},
		{
			"TLS is turned off elsewhere by two words only", server(storage.PostgreSQL, "postgresql://kms:"+secret+"@10.0.0.1/kms?sslmode=disable"), func(c *storage.Config) { c.InsecurePlaintext = true },
			storage.Endpoint{Host: "10.0.0.1:5432", Loopback: remote, Database: "kms"},
		},
		{
			"one of them is not enough", server(storage.PostgreSQL, "postgresql://kms:"+secret+"@10.0.0.1/kms"), func(c *storage.Config) { c.InsecurePlaintext = true },
			storage.Endpoint{Host: "10.0.0.1:5432", Loopback: remote, Database: "kms", TLS: true},
		},
		{
			"IPv6", server(storage.PostgreSQL, "postgresql://kms:"+secret+"@[2001:db8::1]:5433/kms"), nil,
			storage.Endpoint{Host: "[2001:db8::1]:5433", Loopback: remote, Database: "kms", TLS: true},
		},
		{
			"IPv6 loopback", server(storage.MySQL, "mysql://kms:"+secret+"@[::1]/kms"), nil,
			storage.Endpoint{Host: "[::1]:3306", Loopback: loopback, Database: "kms"},
		},
		{
			"IPv4 in IPv6 loopback", server(storage.MySQL, "mysql://kms:"+secret+"@[::ffff:127.0.0.1]/kms"), nil,
			storage.Endpoint{Host: "[::ffff:127.0.0.1]:3306", Loopback: loopback, Database: "kms"},
		},
		{
			"all addresses are not loopback", server(storage.MySQL, "mysql://kms:"+secret+"@0.0.0.0/kms"), nil,
			storage.Endpoint{Host: "0.0.0.0:3306", Loopback: remote, Database: "kms", TLS: true},
		},
		{
			"a name that begins like localhost is not", server(storage.MySQL, "mysql://kms:"+secret+"@localhost.example.com/kms"), nil,
			storage.Endpoint{Host: "localhost.example.com:3306", Loopback: remote, Database: "kms", TLS: true},
		},
		{
			"MariaDB by its own scheme", server(storage.MySQL, "mariadb://kms:"+secret+"@db/kms?ssl-mode=verify_identity&ssl-ca=ca.pem"), nil,
			storage.Endpoint{Host: "db:3306", Loopback: remote, Database: "kms", TLS: true},
		},
		{
			"MySQL without TLS here", server(storage.MySQL, "mysql://kms:"+secret+"@127.8.9.1/kms?ssl-mode=DISABLED"), nil,
			storage.Endpoint{Host: "127.8.9.1:3306", Loopback: loopback, Database: "kms"},
		},
		{
			"an encoded name of a database", server(storage.MySQL, "mysql://kms:"+secret+"@db/k%2Fm%3Fs%20%C3%A9"), nil,
			storage.Endpoint{Host: "db:3306", Loopback: remote, Database: "k/m?s é", TLS: true},
		},
		{
			"Redis with TLS", server(storage.RedisFindex, "rediss://:"+secret+"@redis.example.com/3"), nil,
			storage.Endpoint{Host: "redis.example.com:6379", Loopback: remote, Database: "3", TLS: true},
		},
		{
			"Redis here", server(storage.RedisFindex, "redis://localhost"), nil,
			storage.Endpoint{Host: "localhost:6379", Loopback: loopback, Database: "0"},
		},
		{
			"Redis without TLS elsewhere", server(storage.RedisFindex, "redis://user:"+secret+"@redis:6380"), func(c *storage.Config) { c.InsecurePlaintext = true },
			storage.Endpoint{Host: "redis:6380", Loopback: remote, Database: "0"},
		},
		{
			"a path says nothing to a server", server(storage.PostgreSQL, "postgresql://kms@localhost/kms"), func(c *storage.Config) { c.Path = "/var/lib/kms" },
			storage.Endpoint{Host: "localhost:5432", Loopback: loopback, Database: "kms"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.change != nil {
				tt.change(&tt.config)
			}
			got, err := tt.config.Endpoint()
			if err != nil {
				t.Fatalf("Endpoint = %v, want nil", err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("Endpoint differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPasswordsAreDecoded(t *testing.T) {
	var all strings.Builder
	for b := 1; b < 256; b++ {
		all.WriteByte(byte(b))
	}
	// What need not be encoded: everything printable but these.
	plain := strings.Map(func(r rune) rune {
		if strings.ContainsRune("%@/?#", r) {
			return -1
		}
		return r
	}, "!\"#$%&'()*+,-./0:;<=>?@A[\\]^_`a{|}~é€")
	tests := []struct{ name, written, want string }{
		{"every byte, encoded", url.QueryEscape(strings.ReplaceAll(all.String(), " ", "")), strings.ReplaceAll(all.String(), " ", "")},
		{"encoded as Go does", strings.TrimPrefix(url.UserPassword("", "p@ss w:/?#[]%&=+").String(), ":"), "p@ss w:/?#[]%&=+"},
		{"what is plain", plain, plain},
		{"a plus sign is one", "a+b", "a+b"},
		{"colons belong to it", ":a::b:", ":a::b:"},
		{"not UTF-8, encoded", "%ff%FE", "\xff\xfe"},
		{"none", "", ""},
	}
	for _, scheme := range []storage.Type{storage.PostgreSQL, storage.MySQL} {
		for _, tt := range tests {
			t.Run(string(scheme)+"/"+tt.name, func(t *testing.T) {
				c := server(scheme, fmt.Sprintf("%s://us%%40er:%s@db.example.com/kms", scheme, tt.written))
				got, err := c.Server()
				if err != nil {
					t.Fatalf("Server = %v, want nil", err)
				}
				if string(got.Password.Bytes()) != tt.want || got.User != "us@er" || got.Name != "db.example.com" {
					t.Errorf("Server = user %q, password %q, host %q, want us@er, %q, db.example.com", got.User, got.Password.Bytes(), got.Name, tt.want)
				}
			})
		}
	}
}

func TestValidateRefuses(t *testing.T) {
	pg := func(rest string) storage.Config { return server(storage.PostgreSQL, "postgresql://"+rest) }
	my := func(rest string) storage.Config { return server(storage.MySQL, "mysql://"+rest) }
	redis := func(url string) storage.Config { return server(storage.RedisFindex, url) }
	with := func(c storage.Config, change func(*storage.Config)) storage.Config {
		change(&c)
		return c
	}
	const at = "kms:" + secret + "@"
	tests := []struct {
		name   string
		config storage.Config
		want   string
	}{
		{"no type", storage.Config{}, "no type is given"},
		{"an unknown type", storage.Config{Type: secret}, "the type is unknown"},
		{"a type in capitals", storage.Config{Type: "SQLite", Path: "/x"}, "the type is unknown"},
		{"a negative timeout", storage.Config{Type: storage.SQLite, Path: "/x", Timeout: -1}, "timeout is out of range"},
		{"a timeout of a century", storage.Config{Type: storage.SQLite, Path: "/x", Timeout: 1 << 62}, "timeout is out of range"},
		{"SQLite without a path", storage.Config{Type: storage.SQLite}, "no path is given"},
		{"encrypted SQLite without a path", storage.Config{Type: storage.SQLiteEncrypted}, "no path is given"},
		{"a path with a zero byte", storage.Config{Type: storage.SQLite, Path: "/x\x00" + secret}, "the path holds control characters"},
		{"a path that is not UTF-8", storage.Config{Type: storage.SQLite, Path: "/x\xff"}, "the path holds control characters or is not UTF-8"},
		{"an endless path", storage.Config{Type: storage.SQLite, Path: strings.Repeat("/x", 4096)}, "the path is longer than 4096 bytes"},
		{"a master password that would encrypt nothing", storage.Config{Type: storage.SQLite, Path: "/x", MasterPassword: keys.NewSecret([]byte(secret))}, `use "sqlite-enc"`},
		{"a master password for a server", with(pg(at+"localhost/kms"), func(c *storage.Config) { c.MasterPassword = keys.NewSecret([]byte(secret)) }), "takes no master password"},
		{"Redis without a master password", with(redis("redis://localhost"), func(c *storage.Config) { c.MasterPassword = keys.Secret{} }), "needs a master password"},
		{"Redis without a label", with(redis("redis://localhost"), func(c *storage.Config) { c.Label = "" }), "needs a label"},
		{"an endless label", with(redis("redis://localhost"), func(c *storage.Config) { c.Label = strings.Repeat("x", 257) }), "label is longer"},
		{"a label with a newline", with(redis("redis://localhost"), func(c *storage.Config) { c.Label = "a\nb" }), "label holds control characters"},
		{"no URL", storage.Config{Type: storage.PostgreSQL}, "no URL is given"},
		{"an endless URL", pg(at + strings.Repeat("x", 8192) + "/kms"), "longer than 8192 bytes"},
		{"not UTF-8", pg("kms:" + secret + "\xff@localhost/kms"), "the URL is not UTF-8"},
		{"a space", pg("kms:" + secret + " x@localhost/kms"), "space or a control character"},
		{"a newline at the end", pg(at + "localhost/kms\n"), "space or a control character"},
		{"a zero byte", pg(at + "localhost/kms\x00"), "space or a control character"},
		{"no scheme", server(storage.PostgreSQL, at+"localhost/kms"), "does not begin with a scheme"},
		{"keywords and values", server(storage.PostgreSQL, "host=localhost,password="+secret), "does not begin with a scheme"},
		{"the driver's own form", server(storage.MySQL, "kms:"+secret+"@tcp(localhost:3306)/kms"), "does not begin with a scheme"},
		{"half a scheme", server(storage.PostgreSQL, "postgresql:/"+at+"localhost/kms"), "does not begin with a scheme"},
		{"an empty scheme", server(storage.PostgreSQL, "://"+at+"localhost/kms"), `scheme is not one of type "postgresql": postgresql:// or postgres://`},
		{"a scheme in capitals", server(storage.PostgreSQL, "POSTGRESQL://"+at+"localhost/kms"), "scheme is not one of type"},
		{"another type's scheme", server(storage.PostgreSQL, "mysql://"+at+"localhost/kms"), "scheme is not one of type"},
		{"the scheme of another program", server(storage.MySQL, "jdbc:mysql://"+at+"localhost/kms"), `scheme is not one of type "mysql": mysql:// or mariadb://`},
		{"http", server(storage.RedisFindex, "http://"+at+"localhost"), `scheme is not one of type "redis-findex": rediss:// or redis://`},
		{"Redis over a socket", server(storage.RedisFindex, "unix:///run/redis.sock"), "scheme is not one of type"},
		{"a # in the password", pg("kms:" + secret + "#x@localhost/kms"), "holds a #"},
		{"an @ in the password", pg("kms:" + secret + "@x@localhost/kms"), "an @ that does not end the password"},
		{"a / in the password", pg("kms:" + secret + "/x@localhost/kms"), "an @ that does not end the password"},
		{"a ? in the password", pg("kms:" + secret + "?x=y@localhost/kms"), "an @ that does not end the password"},
		{"a % in the password", pg("kms:" + secret + "%x@localhost/kms"), "the password in the URL has a %"},
		{"a % at its end", pg("kms:" + secret + "%@localhost/kms"), "the password in the URL has a %"},
		{"a % in the user", pg("k%ms:" + secret + "@localhost/kms"), "the user in the URL has a %"},
		{"a zero byte in the password", pg("kms:" + secret + "%00user=x@localhost/kms"), "holds a zero byte"},
		{"a zero byte in the user", pg("kms%00:" + secret + "@localhost/kms"), "the user in the URL holds control characters"},
		{"a user that is not UTF-8", pg("kms%ff:" + secret + "@localhost/kms"), "the user in the URL holds control characters or is not UTF-8"},
		{"a password without a user", my(":" + secret + "@localhost/kms"), "names no user"},
		{"a password without a host", my("kms:" + secret), "port is not a number"},
		{"no host", pg(at + "/kms"), "names no host"},
		{"a port without a host", pg(at + ":5432/kms"), "names no host"},
		{"nothing after the scheme", redis("redis://"), "names no host"},
		{"an empty port", pg(at + "localhost:/kms"), "port is not a number"},
		{"port 0", pg(at + "localhost:0/kms"), "port is not a number"},
		{"port 65536", pg(at + "localhost:65536/kms"), "port is not a number"},
		{"a negative port", pg(at + "localhost:-1/kms"), "port is not a number"},
		{"a port with a sign", pg(at + "localhost:+5432/kms"), "port is not a number"},
		{"a port by name", my(at + "localhost:mysql/kms"), "port is not a number"},
		{"IPv6 without brackets", pg(at + "::1/kms"), "port is not a number"},
		{"brackets that do not close", pg(at + "[::1/kms"), "[ without a ]"},
		{"brackets around a name", pg(at + "[localhost]/kms"), "not an IPv6 address"},
		{"brackets around IPv4", pg(at + "[127.0.0.1]/kms"), "not an IPv6 address"},
		{"an IPv6 zone", pg(at + "[fe80::1%25eth0]/kms"), "not an IPv6 address"},
		{"something after the brackets", pg(at + "[::1]5432/kms"), "port is not a number"},
		{"two hosts", pg(at + "a,b/kms"), "several hosts and sockets are not supported"},
		{"two hosts with ports", pg(at + "a:1,b:2/kms"), "port is not a number"},
		{"an encoded socket", pg(at + "%2Frun%2Fpostgresql/kms"), "several hosts and sockets are not supported"},
		{"the driver's form of a host", my(at + "tcp(localhost:3306)/kms"), "port is not a number"},
		{"a host with an empty label", pg(at + "a..b/kms"), "not a DNS name"},
		{"a host that is a dot", pg(at + "./kms"), "not a DNS name"},
		{"an endless host", pg(at + strings.Repeat("a.", 200) + "b/kms"), "neither a DNS name nor an IP address"},
		{"127.1, which some read as loopback", pg(at + "127.1/kms"), "a number, but not an IP address"},
		{"an address as one number", pg(at + "2130706433/kms"), "a number, but not an IP address"},
		{"an address in hex", pg(at + "0x7f.0.0.1/kms"), "a number, but not an IP address"},
		{"an address in hex throughout", pg(at + "0x7f000001/kms"), "a number, but not an IP address"},
		{"two databases", pg(at + "localhost/kms/kms"), "path is not the name of a database"},
		{"a badly encoded database", pg(at + "localhost/k%ms"), "path is not the name of a database"},
		{"a name that PostgreSQL would cut", pg(at + "localhost/" + strings.Repeat("x", 64)), "longer than 63 bytes"},
		{"a name that MySQL would refuse", my(at + "localhost/" + strings.Repeat("x", 65)), "longer than 64 bytes"},
		{"a database with a zero byte", pg(at + "localhost/kms%00"), "name holds control characters"},
		{"a Redis database by name", redis("redis://localhost/kms"), "not the number of a Redis database"},
		{"a Redis database with a leading zero", redis("redis://localhost/00"), "not the number of a Redis database"},
		{"a negative Redis database", redis("redis://localhost/-1"), "not the number of a Redis database"},
		{"TLS that checks nothing", pg(at + "db/kms?sslmode=require"), `sslmode must be verify-full or disable`},
		{"TLS that checks no name", pg(at + "db/kms?sslmode=verify-ca"), `sslmode must be verify-full or disable`},
		{"TLS where it is offered", pg(at + "localhost/kms?sslmode=prefer"), `sslmode must be verify-full or disable`},
		{"an empty mode", pg(at + "db/kms?sslmode="), "sslmode must be verify-full or disable"},
		{"a mode twice", pg(at + "db/kms?sslmode=verify-full&sslmode=disable"), "sslmode twice"},
		{"no TLS elsewhere", pg(at + "db/kms?sslmode=disable"), "needs insecure_plaintext"},
		{"no TLS elsewhere with MySQL", my(at + "db/kms?ssl-mode=DISABLED"), "needs insecure_plaintext"},
		{"no TLS elsewhere with Redis", redis("redis://:" + secret + "@db"), "needs insecure_plaintext"},
		{"an authority and no TLS", pg(at + "localhost/kms?sslmode=disable&sslrootcert=/ca.pem"), "a CA file is named, but the URL turns TLS off"},
		{"an authority and redis://", with(redis("redis://localhost"), func(c *storage.Config) { c.CAFile = "/ca.pem" }), "a CA file is named, but the URL turns TLS off"},
		{"two authorities", with(pg(at+"db/kms?sslrootcert=/a.pem"), func(c *storage.Config) { c.CAFile = "/b.pem" }), "CA file of the configuration differ"},
		{"an authority without a name", pg(at + "db/kms?sslrootcert="), "not the name of a file"},
		{"an authority with a zero byte", pg(at + "db/kms?sslrootcert=%00"), "not the name of a file"},
		{"a badly encoded parameter", pg(at + "db/kms?sslrootcert=%zz"), "not well encoded"},
		{"another host in a parameter", pg(at + "localhost/kms?host=evil.example.com"), `the parameter "host"`},
		{"another host for the same name", pg(at + "localhost/kms?hostaddr=192.0.2.1"), `the parameter "hostaddr"`},
		{"a password in a parameter", pg("kms@localhost/kms?password=" + secret), `the parameter "password"`},
		{"a service file", pg(at + "localhost/kms?servicefile=/tmp/x&service=y"), `the parameter "servicefile"`},
		{"settings of the server", pg(at + "localhost/kms?options=-csynchronous_commit=off"), `the parameter "options"`},
		{"an encoded name of a parameter", pg(at + "localhost/kms?ssl%6Dode=disable"), "(not shown)"},
		{"a name in capitals", pg(at + "localhost/kms?SSLMODE=disable"), `the parameter "SSLMODE"`},
		{"files of the client for the server", my(at + "localhost/kms?allowAllFiles=true"), `the parameter "allowAllFiles"`},
		{"TLS that checks nothing, MySQL", my(at + "localhost/kms?tls=skip-verify"), `the parameter "tls"`},
		{"TLS that checks no name, MySQL", my(at + "localhost/kms?ssl-mode=REQUIRED"), "ssl-mode must be VERIFY_IDENTITY or DISABLED"},
		{"passwords in the clear", my(at + "localhost/kms?allowCleartextPasswords=1"), `the parameter "allowCleartextPasswords"`},
		{"a parameter for Redis", redis("rediss://:" + secret + "@db?skip_verify=true"), `the parameter "skip_verify"`},
		{"a parameter that may be anything", pg(at + "localhost/kms?" + strings.Repeat("x", 33) + "=1"), "(not shown)"},
		{"a parameter without a name", pg(at + "localhost/kms?=1"), "(not shown)"},
	}
	if len(tests) < 60 {
		t.Errorf("the table has %d rows, want 60 or more", len(tests))
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.config.Validate()
			if !errors.Is(err, storage.ErrConfig) {
				t.Fatalf("Validate = %v, want ErrConfig", err)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Validate = %v, want %q", err, tt.want)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("Validate = %v shows the password", err)
			}
			if _, again := tt.config.Endpoint(); again == nil || again.Error() != err.Error() {
				t.Errorf("Endpoint = %v, want %v", again, err)
			}
		})
	}
}

func FuzzServer(f *testing.F) {
	for _, seed := range []string{
		"postgresql://kms:p%40ss@db.example.com:5432/kms?sslmode=verify-full", "postgres://u@[::1]:1/d", "postgres://u:@127.0.0.1/%00",
		"postgres://u:p@h/d?sslrootcert=%2Fca", "postgres://u:p@h:99999/d", "postgres://@/", "postgres://u:p@localhost/d?sslmode=disable",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c := server(storage.PostgreSQL, text)
		s, err := c.Server()
		if err != nil {
			if !errors.Is(err, storage.ErrConfig) {
				t.Errorf("Server(%q) = %v, want ErrConfig", text, err)
			}
			return
		}
		if !s.TLS && !s.Loopback {
			t.Errorf("Server(%q) is elsewhere without TLS", text)
		}
		// What is written from the parts reads as the parts.
		u := url.URL{Scheme: "postgresql", User: url.UserPassword(s.User, string(s.Password.Bytes())), Host: s.Host, RawQuery: "sslmode=disable"}
		if s.TLS {
			u.RawQuery = "sslmode=verify-full"
		}
		if s.CAFile != "" {
			u.RawQuery += "&sslrootcert=" + strings.ReplaceAll(url.QueryEscape(s.CAFile), "+", "%20")
		}
		database := "/" + strings.ReplaceAll(url.QueryEscape(s.Database), "+", "%20")
		again := server(storage.PostgreSQL, strings.Replace(u.String(), "?", database+"?", 1))
		got, err := again.Server()
		if err != nil {
			t.Fatalf("Server(%q) of %q = %v, want nil", again.URL.Bytes(), text, err)
		}
		if got.Endpoint != s.Endpoint || got.User != s.User || !got.Password.Equal(s.Password) || got.CAFile != s.CAFile {
			t.Errorf("Server(%q) = %+v, want %+v", again.URL.Bytes(), got, s)
		}
		if host, _, err := net.SplitHostPort(s.Host); err != nil || host != s.Name {
			t.Errorf("Server(%q) has host %q of %q", text, s.Name, s.Host)
		}
	})
}

// URLs that name nothing but a server are what tutorials print.
func TestURLsThatNameNoUserAndNoDatabase(t *testing.T) {
	for url, typ := range map[string]storage.Type{
		"postgresql://postgres-server:5432": storage.PostgreSQL, "postgres://localhost/": storage.PostgreSQL,
		"mysql://mysql-server:3306": storage.MySQL, "mariadb://localhost": storage.MySQL,
	} {
		c := storage.Config{Type: typ, URL: keys.NewSecret([]byte(url))}
		s, err := c.Server()
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		if s.User != "kms" || s.Database != "kms" || s.Password.Len() != 0 {
			t.Errorf("%s: user %q, database %q, want kms twice and no password", url, s.User, s.Database)
		}
	}
}
