package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"teekms/cmd/kmsctl/internal/bootstrapserver"
	"teekms/cmd/kmsctl/internal/secret"
	"teekms/cmd/kmsctl/internal/terminal"
)

// bootstrapStartFlags are the flags of kmsctl bootstrap-start.
type bootstrapStartFlags struct {
	server serverFlags

	databaseType             string
	databaseURL              string
	databaseURLFile          string
	sqlitePath               string
	sqlitePasswordFile       string
	redisPassword            string
	redisPasswordFile        string
	redisLabel               string
	clearDatabase            bool
	p12File                  string
	p12Password, p12PassFile string

	wait    string
	timeout time.Duration
	json    bool
}

func newBootstrapStart(env Environment) *cobra.Command {
	var f bootstrapStartFlags
	cmd := &cobra.Command{
		Use:   "bootstrap-start",
		Short: "Configure a KMS that waits for its configuration, and start it",
		Long: `Give the bootstrap server of a KMS its database and, as a PKCS#12 file, the
certificate and key of its HTTPS port, and have the KMS start with them.

The server is known before anything is sent: its Evidence is verified in the
TLS handshake of the very connection that carries the configuration, and must
say what --expect-mrtd, --expect-rtmr or --expect-file want. Nothing less than
--insecure-accept-any-measurement takes any trust domain for the server.

Where the server is: --bootstrap-server-url, else bootstrap_server_url or
kms_server_url of the client file, which KMS_CLI_CONF names, else
~/.cosmian/kms.json. That file may also say how the server is known.

Keep secrets out of the command line: every flag that takes one has a -file
beside it, where - is standard input, and what is missing is asked for on the
terminal.`,
		Example: `  kmsctl bootstrap-start --bootstrap-server-url https://10.0.0.5:9998 --expect-file kms-expect.toml \
      --database-type postgresql --database-url-file db.url \
      --https-p12-file kms.p12 --https-p12-password-file p12.password
  kmsctl bootstrap-start --expect-mrtd b24d… --database-type sqlite --sqlite-path /var/lib/kms
  pass show kms/redis | kmsctl bootstrap-start --expect-file kms-expect.toml \
      --database-type redis-findex --database-url rediss://redis.internal:6379 \
      --redis-master-password-file - --redis-findex-label label
  kmsctl bootstrap-start --bootstrap-server-url https://127.0.0.1:9998 \
      --trust-root td/root-ca.pem --collateral td --insecure-accept-any-measurement \
      --database-type sqlite`,
		Args:        noArgs,
		Annotations: map[string]string{errorPrefix: "ERROR"},
		RunE:        func(cmd *cobra.Command, _ []string) error { return f.run(cmd, env) },
	}
	cmd.Flags().SortFlags = false
	f.server.registerWhere(cmd)
	f.registerDatabase(cmd)
	f.registerPKCS12(cmd)
	f.server.registerIdentity(cmd)
	f.server.registerSelf(cmd)
	f.registerOutput(cmd)
	return cmd
}

func (f *bootstrapStartFlags) registerDatabase(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.databaseType, "database-type", "", "`type` of the database: "+strings.Join(bootstrapserver.DatabaseTypes(), ", ")+"; without it the server's own configuration counts")
	fs.StringVar(&f.databaseURL, "database-url", "", "`URL` of a PostgreSQL, MySQL, MariaDB or Redis server")
	fs.StringVar(&f.databaseURLFile, "database-url-file", "", "`file` with that URL, where a password is in it; - is standard input")
	fs.StringVar(&f.sqlitePath, "sqlite-path", "./sqlite-data", "`directory` of SQLite, as the server sees it")
	fs.StringVar(&f.sqlitePasswordFile, "sqlite-master-password-file", "", "`file` with a password from which the key of sqlite-enc is derived; - is standard input (default: from the root keys)")
	fs.StringVar(&f.redisPassword, "redis-master-password", "", "`password` from which the keys of what Redis stores are derived")
	fs.StringVar(&f.redisPasswordFile, "redis-master-password-file", "", "`file` with that password; - is standard input")
	fs.StringVar(&f.redisLabel, "redis-findex-label", "", "`label` of the indexes in Redis")
	fs.BoolVar(&f.clearDatabase, "clear-database", false, "empty the database before the KMS starts")
	complete(cmd, "database-type", valueOf(bootstrapserver.DatabaseTypes()...))
	complete(cmd, "database-url", valueOf("postgresql://", "mysql://", "redis://", "rediss://"))
	complete(cmd, "database-url-file", file())
	complete(cmd, "sqlite-path", directory())
	complete(cmd, "sqlite-master-password-file", file())
	complete(cmd, "redis-master-password", valueOf())
	complete(cmd, "redis-master-password-file", file())
	complete(cmd, "redis-findex-label", valueOf())
}

func (f *bootstrapStartFlags) registerPKCS12(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.p12File, "https-p12-file", "", "PKCS#12 `file` with the certificate and key of the KMS's HTTPS port")
	fs.StringVar(&f.p12Password, "https-p12-password", "", "`password` of the PKCS#12 file")
	fs.StringVar(&f.p12PassFile, "https-p12-password-file", "", "`file` with that password; - is standard input")
	complete(cmd, "https-p12-file", file("p12", "pfx"))
	complete(cmd, "https-p12-password", valueOf())
	complete(cmd, "https-p12-password-file", file())
}

func (f *bootstrapStartFlags) registerOutput(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.wait, "wait", "", "then wait until the KMS is ready at this `URL`, within the time of --timeout")
	fs.DurationVar(&f.timeout, "timeout", time.Minute, "give up after this `duration`; that of prompts does not count")
	fs.BoolVar(&f.json, "json", false, "print the result as JSON")
	complete(cmd, "wait", valueOf("https://", "http://"))
	complete(cmd, "timeout", valueOf("30s", "1m", "5m"))
}

// run looks at flags first, then at files and prompts, then at the server, and
// only then sends anything.
func (f *bootstrapStartFlags) run(cmd *cobra.Command, env Environment) error {
	if err := f.validate(cmd); err != nil {
		return err
	}
	err := f.readAndStart(cmd, env)
	if err != nil && cmd.Context().Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

func (f *bootstrapStartFlags) readAndStart(cmd *cobra.Command, env Environment) error {
	secrets := &secret.Reader{Stdin: env.stdin(), Stderr: env.Stderr}
	cfg, err := f.server.config(cmd, env, secrets)
	if err != nil {
		return err
	}
	posts, err := f.posts(cmd, secrets)
	if err != nil {
		return err
	}
	cfg.Timeout = f.timeout
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	err = f.start(ctx, env, cfg, posts)
	if refused, ok := errors.AsType[*bootstrapserver.AnswerError](err); ok && refused.Status == http.StatusUnauthorized && cfg.Token.Len() == 0 && cfg.Certificate == nil {
		return fmt.Errorf("%w; give the token with --bootstrap-token-file", err)
	}
	return gaveUp(ctx, f.timeout, err)
}

// result is what kmsctl bootstrap-start --json prints.
type result struct {
	OK     bool   `json:"ok"`
	Server server `json:"server"`
	// Responses are in the order of the calls.
	Responses []response `json:"responses"`
	Error     string     `json:"error"`
	// Ready is the URL of the KMS that was waited for, "" without --wait.
	Ready string `json:"ready"`
}

type server struct {
	URL string `json:"url"`
	// Key is the SHA-256 of the public key, hex.
	Key       string              `json:"public_key_sha256"`
	TCBStatus string              `json:"tcb_status"`
	Claims    map[string][]string `json:"claims"`
}

type response struct {
	Route   string `json:"route"`
	Success string `json:"success"`
}

// start sends the configuration and prints what the server says of it.
func (f *bootstrapStartFlags) start(ctx context.Context, env Environment, cfg bootstrapserver.Config, posts *posts) error {
	c, err := bootstrapserver.Dial(ctx, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	f.server.sayWho(env, c.Peer())
	p, r := env.printer(), &result{Responses: []response{}}
	r.Server = server{URL: cfg.URL.String(), Key: c.Peer().Key.String(), TCBStatus: c.Peer().TCBStatus, Claims: c.Peer().Claims}
	if !f.json {
		p.Line("Server response:")
	}
	err = posts.each(ctx, c, func(route, success string, silent bool) {
		r.Responses = append(r.Responses, response{route, success})
		if !f.json && !silent {
			p.Line("  -> %s", success)
		}
	})
	if err == nil && f.wait != "" {
		if err = waitReady(ctx, f.wait); err == nil {
			r.Ready = f.wait
		}
	}
	if f.json {
		if r.OK = err == nil; !r.OK {
			r.Error = terminal.Printable(oneLine(err.Error()))
		}
		return errors.Join(err, env.writeJSON(r))
	}
	if r.Ready != "" {
		p.Line("The KMS is ready: %s", r.Ready)
	}
	return errors.Join(err, p.Err())
}

// validate refuses flags that do not go together.
func (f *bootstrapStartFlags) validate(cmd *cobra.Command) error {
	if f.timeout <= 0 {
		return usagef(cmd, "--timeout must be positive")
	}
	if f.wait != "" {
		if err := checkReadyURL(f.wait); err != nil {
			return usagef(cmd, "--wait: %w", err)
		}
	}
	if err := f.validateDatabase(cmd); err != nil {
		return err
	}
	return f.server.validate(cmd)
}

// flagsOf are the flags that belong to a type of database.
func flagsOf(databaseType string) []string {
	switch databaseType {
	case bootstrapserver.SQLite:
		return []string{"sqlite-path"}
	case bootstrapserver.SQLiteEnc:
		return []string{"sqlite-path", "sqlite-master-password-file"}
	case bootstrapserver.PostgreSQL, bootstrapserver.MySQL:
		return []string{"database-url", "database-url-file"}
	case bootstrapserver.RedisFindex:
		return []string{"database-url", "database-url-file", "redis-master-password", "redis-master-password-file", "redis-findex-label"}
	}
	return nil
}

// validateDatabase has the type know its own flags and no others: a password
// that is quietly left out protects nothing.
func (f *bootstrapStartFlags) validateDatabase(cmd *cobra.Command) error {
	given := cmd.Flags().Changed
	known := f.databaseType == ""
	for _, t := range bootstrapserver.DatabaseTypes() {
		known = known || t == f.databaseType
	}
	if !known {
		return usagef(cmd, "--database-type: %q is none of %s", f.databaseType, strings.Join(bootstrapserver.DatabaseTypes(), ", "))
	}
	own := map[string]bool{}
	for _, flag := range flagsOf(f.databaseType) {
		own[flag] = true
	}
	for _, t := range []string{bootstrapserver.SQLiteEnc, bootstrapserver.RedisFindex} {
		for _, flag := range flagsOf(t) {
			switch {
			case !given(flag) || own[flag]:
			case f.databaseType == "":
				return usagef(cmd, "--%s needs --database-type", flag)
			default:
				return usagef(cmd, "--%s does not go with --database-type %s", flag, f.databaseType)
			}
		}
	}
	switch {
	case own["database-url"] && !given("database-url") && !given("database-url-file"):
		return usagef(cmd, "--database-type %s needs --database-url or --database-url-file", f.databaseType)
	case own["redis-findex-label"] && f.redisLabel == "":
		return usagef(cmd, "--database-type %s needs --redis-findex-label", f.databaseType)
	case f.databaseType != "" && own["sqlite-path"] && f.sqlitePath == "":
		return usagef(cmd, "--sqlite-path: empty")
	}
	return nil
}

// errorPrefix is the annotation of a command whose errors begin with another
// word than "Error".
const errorPrefix = "error-prefix"

// prefixOf returns the word before an error of a command.
func prefixOf(cmd *cobra.Command) string {
	if p := cmd.Annotations[errorPrefix]; p != "" {
		return p
	}
	return "Error"
}

// sayWho warns where the server was not known, and says how it could be.
func (f *serverFlags) sayWho(env Environment, peer *bootstrapserver.Peer) {
	warn := func(format string, args ...any) {
		fmt.Fprintf(env.Stderr, "Warning: %s\n", terminal.Printable(fmt.Sprintf(format, args...))) //nolint:errcheck // there is no one left to tell
	}
	switch {
	case f.noAttestation:
		warn("whoever answers gets the configuration: neither Evidence nor a key was looked at; the key is --pin-spki %s", &peer.Key)
	case f.anyMeasurement && f.expect.mrtd == "" && len(peer.Claims["mrtd"]) == 1:
		warn("any trust domain gets the configuration; this one is --expect-mrtd %s", peer.Claims["mrtd"][0])
	}
}
