package storage

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"teekms/internal/keys"
)

// Endpoint is where a database is: what may be shown and logged.
type Endpoint struct {
	// Host is "host:port" of a server, or the file of an SQLite database.
	Host string
	// Loopback says that Host is on this machine.
	Loopback bool
	// Database is the database's name on the server, empty for SQLite.
	Database string
	// TLS says that the connection is encrypted and the server's certificate is
	// checked; false for SQLite.
	TLS bool
}

// DefaultName is the user and the database of an SQL server whose URL names none.
const DefaultName = "kms"

// Server is a database server as its URL names it.
type Server struct {
	Endpoint
	// Name is the host without the port, for the certificate check.
	Name string
	// Port is 1 to 65535.
	Port uint16
	// User and Password may be empty for Redis.
	User     string
	Password keys.Secret
	// CAFile is [Config.CAFile] or the one that the URL names.
	CAFile string
}

// Endpoint returns where the database is. Its errors are those of
// [Config.Validate].
func (c *Config) Endpoint() (Endpoint, error) {
	if err := c.Validate(); err != nil {
		return Endpoint{}, err
	}
	if c.Type == SQLite || c.Type == SQLiteEncrypted {
		return Endpoint{Host: filepath.Join(c.Path, File), Loopback: true}, nil
	}
	s, err := c.Server()
	return s.Endpoint, err
}

// Server returns what the URL says. Its errors are those of [Config.Validate].
func (c *Config) Server() (Server, error) {
	s, err := c.server()
	if err != nil {
		return Server{}, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return s, nil
}

// scheme is what a URL scheme stands for.
type scheme struct {
	of   Type
	port uint16
	// tls is the scheme's own word on TLS: 1 yes, 0 no, -1 none.
	tls int
	// mode and ca are the parameters that may follow; empty where there are none.
	mode, ca string
	// verified and disabled are the values of mode.
	verified, disabled string
	// nameLimit is the length at which the server would cut a database's name.
	nameLimit int
}

func schemeOf(name string) (scheme, bool) {
	postgres := scheme{PostgreSQL, 5432, -1, "sslmode", "sslrootcert", "verify-full", "disable", 63}
	mysql := scheme{MySQL, 3306, -1, "ssl-mode", "ssl-ca", "VERIFY_IDENTITY", "DISABLED", 64}
	switch name {
	case "postgresql", "postgres":
		return postgres, true
	case "mysql", "mariadb":
		return mysql, true
	case "redis":
		return scheme{of: RedisFindex, port: 6379, tls: 0, nameLimit: 5}, true
	case "rediss":
		return scheme{of: RedisFindex, port: 6379, tls: 1, nameLimit: 5}, true
	default:
		return scheme{}, false
	}
}

const maxURLLength = 8192

// server parses the URL. net/url is no help: its errors quote what they could
// not parse, password and all, and it is generous where two readers of one URL
// must not differ.
func (c *Config) server() (Server, error) {
	text := string(c.URL.Bytes())
	switch {
	case text == "":
		return Server{}, errors.New("no URL is given")
	case len(text) > maxURLLength:
		return Server{}, fmt.Errorf("the URL is longer than %d bytes", maxURLLength)
	case !utf8.ValidString(text):
		return Server{}, errors.New("the URL is not UTF-8")
	case strings.ContainsFunc(text, func(r rune) bool { return isControl(r) || r == ' ' }):
		return Server{}, errors.New("the URL holds a space or a control character: write it in percent encoding")
	case strings.Contains(text, "#"):
		return Server{}, errors.New("the URL holds a #: write it in percent encoding, %23")
	}
	name, rest, ok := strings.Cut(text, "://")
	if !ok {
		return Server{}, errors.New("the URL does not begin with a scheme and ://")
	}
	sch, ok := schemeOf(name)
	if !ok || sch.of != c.Type {
		return Server{}, fmt.Errorf("the URL's scheme is not one of type %q: %s", c.Type, schemesOf(c.Type))
	}
	authority, path, query := split(rest)
	// More than one @, or one elsewhere, is a password that was not encoded: what
	// follows it could be taken for the host.
	if at := strings.Count(rest, "@"); at > 1 || at == 1 && !strings.Contains(authority, "@") {
		return Server{}, errors.New("the URL holds an @ that does not end the password: write @ / ? # and % in user and password in percent encoding")
	}
	return c.assemble(sch, authority, path, query)
}

// split cuts what follows the scheme at its first / and its first ?.
func split(rest string) (authority, path, query string) {
	rest, query, _ = strings.Cut(rest, "?")
	authority, path, _ = strings.Cut(rest, "/")
	return authority, path, query
}

func schemesOf(t Type) string {
	switch t {
	case PostgreSQL:
		return "postgresql:// or postgres://"
	case MySQL:
		return "mysql:// or mariadb://"
	case RedisFindex:
		return "rediss:// or redis://"
	default:
		return "it takes no URL"
	}
}

func (c *Config) assemble(sch scheme, authority, path, query string) (Server, error) {
	s := Server{CAFile: c.CAFile}
	userinfo, host, ok := strings.Cut(authority, "@")
	if !ok {
		userinfo, host = "", authority
	}
	if err := s.setUser(sch, userinfo); err != nil {
		return Server{}, err
	}
	if err := s.setHost(sch, host); err != nil {
		return Server{}, err
	}
	if err := s.setDatabase(sch, path); err != nil {
		return Server{}, err
	}
	mode, err := s.setParameters(sch, query)
	if err != nil {
		return Server{}, err
	}
	if err := s.setTLS(sch, mode, c.InsecurePlaintext); err != nil {
		return Server{}, err
	}
	return s, nil
}

func (s *Server) setUser(sch scheme, userinfo string) error {
	user, password, _ := strings.Cut(userinfo, ":")
	user, err := url.PathUnescape(user)
	if err != nil {
		return errors.New("the user in the URL has a % that no two hex digits follow: write it as %25")
	}
	password, err = url.PathUnescape(password)
	if err != nil {
		return errors.New("the password in the URL has a % that no two hex digits follow: write it as %25")
	}
	switch {
	case user == "" && userinfo != "" && sch.of != RedisFindex:
		return errors.New("the URL names no user")
	case !utf8.ValidString(user), strings.ContainsFunc(user, isControl):
		return errors.New("the user in the URL holds control characters or is not UTF-8")
	case strings.Contains(password, "\x00"):
		return errors.New("the password in the URL holds a zero byte")
	}
	if user == "" && sch.of != RedisFindex {
		user = DefaultName
	}
	s.User, s.Password = user, keys.NewSecret([]byte(password))
	return nil
}

func (s *Server) setHost(sch scheme, hostport string) error {
	host, port := hostport, ""
	if strings.HasPrefix(hostport, "[") {
		end := strings.Index(hostport, "]")
		if end < 0 {
			return errors.New("the URL's host has a [ without a ]")
		}
		host, port = hostport[1:end], hostport[end+1:]
		if ip, err := netip.ParseAddr(host); err != nil || !ip.Is6() || ip.Zone() != "" {
			return errors.New("the URL's host in brackets is not an IPv6 address")
		}
	} else if i := strings.IndexByte(hostport, ':'); i >= 0 {
		host, port = hostport[:i], hostport[i:]
	}
	s.Port = sch.port
	if port != "" {
		n, err := strconv.ParseUint(strings.TrimPrefix(port, ":"), 10, 16)
		if err != nil || n == 0 || port[0] != ':' {
			return errors.New("the URL's port is not a number from 1 to 65535")
		}
		s.Port = uint16(n)
	}
	if host == "" {
		return errors.New("the URL names no host")
	}
	loopback, err := checkHost(host)
	if err != nil {
		return err
	}
	s.Name, s.Loopback = host, loopback
	s.Host = net.JoinHostPort(host, strconv.Itoa(int(s.Port)))
	return nil
}

// checkHost takes an IP address or a DNS name. What looks like an IPv4 address
// in one of its old spellings is neither.
func checkHost(host string) (loopback bool, err error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback(), nil
	}
	if len(host) > 253 || strings.ContainsFunc(host, notInName) {
		return false, errors.New("the URL's host is neither a DNS name nor an IP address; several hosts and sockets are not supported")
	}
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 {
			return false, errors.New("the URL's host is not a DNS name")
		}
	}
	if _, err := strconv.ParseUint(labels[len(labels)-1], 0, 64); err == nil {
		return false, errors.New("the URL's host is a number, but not an IP address")
	}
	return strings.EqualFold(strings.TrimSuffix(host, "."), "localhost"), nil
}

func notInName(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '.', r == '_':
		return false
	default:
		return true
	}
}

func (s *Server) setDatabase(sch scheme, path string) error {
	name, err := url.PathUnescape(path)
	if err != nil || strings.Contains(path, "/") {
		return errors.New("the URL's path is not the name of a database")
	}
	switch {
	case sch.of == RedisFindex && name == "":
		name = "0"
	case sch.of == RedisFindex:
		if n, err := strconv.ParseUint(name, 10, 16); err != nil || strconv.FormatUint(n, 10) != name {
			return errors.New("the URL's path is not the number of a Redis database")
		}
	case name == "":
		name = DefaultName
	case len(name) > sch.nameLimit:
		return fmt.Errorf("the database's name is longer than %d bytes", sch.nameLimit)
	case !utf8.ValidString(name), strings.ContainsFunc(name, isControl):
		return errors.New("the database's name holds control characters or is not UTF-8")
	}
	s.Database = name
	return nil
}

// setParameters takes the two that are known and returns the value of the mode.
func (s *Server) setParameters(sch scheme, query string) (mode string, err error) {
	seen := make(map[string]bool)
	for part := range strings.SplitSeq(query, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		if name == "" || sch.mode == "" || name != sch.mode && name != sch.ca {
			return "", fmt.Errorf("the URL has the parameter %s, which is not supported", shownName(name))
		}
		if seen[name] {
			return "", fmt.Errorf("the URL has the parameter %s twice", name)
		}
		seen[name] = true
		value, err := url.PathUnescape(value)
		if err != nil {
			return "", fmt.Errorf("the URL's parameter %s is not well encoded", name)
		}
		if name == sch.mode {
			if mode = value; !strings.EqualFold(mode, sch.verified) && !strings.EqualFold(mode, sch.disabled) {
				return "", fmt.Errorf("the URL's parameter %s must be %s or %s: anything between does not check the server", name, sch.verified, sch.disabled)
			}
			continue
		}
		if err := s.setCA(name, value); err != nil {
			return "", err
		}
	}
	return mode, nil
}

func (s *Server) setCA(name, value string) error {
	if value == "" || len(value) > maxPathLength || strings.ContainsFunc(value, isControl) || !utf8.ValidString(value) {
		return fmt.Errorf("the URL's parameter %s is not the name of a file", name)
	}
	if s.CAFile != "" && s.CAFile != value {
		return fmt.Errorf("the URL's parameter %s and the CA file of the configuration differ", name)
	}
	s.CAFile = value
	return nil
}

// shownName quotes a parameter's name where it looks like one.
func shownName(name string) string {
	odd := func(r rune) bool { return notInName(r) || r == '.' }
	if name == "" || len(name) > 32 || strings.ContainsFunc(name, odd) {
		return "(not shown)"
	}
	return strconv.Quote(name)
}

// setTLS: off this machine the server is always authenticated, unless both the
// URL and the configuration say otherwise; on it, where the URL asks for it or a
// CA is named.
func (s *Server) setTLS(sch scheme, mode string, insecure bool) error {
	disabled := sch.tls == 0 || mode != "" && strings.EqualFold(mode, sch.disabled)
	s.TLS = !disabled && (sch.tls == 1 || mode != "" || s.CAFile != "" || !s.Loopback)
	switch {
	case disabled && s.CAFile != "":
		return errors.New("a CA file is named, but the URL turns TLS off")
	case disabled && !s.Loopback && !insecure:
		return errors.New("the URL turns TLS off, and the server is not on this machine: that needs insecure_plaintext")
	}
	return nil
}
