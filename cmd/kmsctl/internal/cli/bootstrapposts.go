package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"software.sslmate.com/src/go-pkcs12"

	"teekms/cmd/kmsctl/internal/bootstrapserver"
	"teekms/cmd/kmsctl/internal/secret"
	"teekms/internal/durable"
	"teekms/internal/keys"
	ownpkcs12 "teekms/internal/pkcs12"
)

// maxPKCS12 is how much of a PKCS#12 file a bootstrap server takes, in bytes.
const maxPKCS12 = 256 << 10

// posts is what will be sent, all of it read before the server is met.
type posts struct {
	// p12 is nil where no file is sent; password is sent where sendPassword
	// says so, also when it is empty.
	p12          []byte
	password     keys.Secret
	sendPassword bool
	// database is nil where the server's own counts.
	database      *bootstrapserver.Database
	clearDatabase bool
}

// each makes the calls in their order and tells of every success.
func (p *posts) each(ctx context.Context, c *bootstrapserver.Client, tell func(route, success string, silent bool)) error {
	type step struct {
		route  string
		wanted bool
		silent bool
		do     func() (string, error)
	}
	database := bootstrapserver.Database{}
	if p.database != nil {
		database = *p.database
	}
	for _, s := range []step{
		{"pkcs12-password", p.sendPassword, true, func() (string, error) { return c.PKCS12Password(ctx, p.password) }},
		{"pkcs12", p.p12 != nil, false, func() (string, error) { return c.PKCS12(ctx, p.p12) }},
		{database.Type, p.database != nil, false, func() (string, error) { return c.Database(ctx, database) }},
		{"start", true, false, func() (string, error) { return c.Start(ctx, p.clearDatabase) }},
	} {
		if !s.wanted {
			continue
		}
		success, err := s.do()
		if err != nil {
			return err
		}
		tell(s.route, success, s.silent)
	}
	return nil
}

// posts reads files and asks for what is missing.
func (f *bootstrapStartFlags) posts(cmd *cobra.Command, secrets *secret.Reader) (*posts, error) {
	p := &posts{clearDatabase: f.clearDatabase}
	if err := f.readPKCS12(cmd, secrets, p); err != nil {
		return nil, asUsage(cmd, err)
	}
	if f.databaseType == "" {
		return p, nil
	}
	p.database = &bootstrapserver.Database{Type: f.databaseType}
	var err error
	switch f.databaseType {
	case bootstrapserver.SQLite, bootstrapserver.SQLiteEnc:
		p.database.Path = f.sqlitePath
		p.database.MasterPassword, _, err = secrets.Get(cmd.Context(), secret.Source{Flag: "sqlite-master-password", File: f.sqlitePasswordFile})
	case bootstrapserver.RedisFindex:
		p.database.Label = f.redisLabel
		if p.database.MasterPassword, err = f.redisMasterPassword(cmd, secrets); err != nil {
			return nil, asUsage(cmd, err)
		}
		fallthrough
	default:
		p.database.URL, _, err = secrets.Get(cmd.Context(), secret.Source{
			Flag: "database-url", Value: f.databaseURL, Given: cmd.Flags().Changed("database-url"), File: f.databaseURLFile,
			Quiet: !holdsPassword(f.databaseURL),
		})
	}
	return p, asUsage(cmd, err)
}

// asUsage makes a usage error of a secret given twice.
func asUsage(cmd *cobra.Command, err error) error {
	if errors.Is(err, secret.ErrBoth) {
		return &usageError{cmd.CommandPath(), err}
	}
	return err
}

// holdsPassword says whether a URL may hold one; what is no URL may be anything.
func holdsPassword(raw string) bool {
	u, err := url.Parse(raw)
	if err != nil {
		return true
	}
	_, password := u.User.Password()
	return password || strings.Contains(strings.ToLower(u.RawQuery), "pass")
}

func (f *bootstrapStartFlags) redisMasterPassword(cmd *cobra.Command, secrets *secret.Reader) (keys.Secret, error) {
	password, found, err := secrets.Get(cmd.Context(), secret.Source{
		Flag: "redis-master-password", Value: f.redisPassword, Given: cmd.Flags().Changed("redis-master-password"), File: f.redisPasswordFile,
	})
	switch {
	case err != nil:
		return password, err
	case found && password.Len() == 0:
		return password, usagef(cmd, "--redis-master-password: empty")
	case found:
		return password, nil
	case secrets.CanPrompt():
		return secrets.Prompt(cmd.Context(), "Redis master password")
	}
	return password, usagef(cmd, "--database-type %s needs --redis-master-password-file or --redis-master-password", f.databaseType)
}

// readPKCS12 reads the file, and finds out whether a password is missing.
func (f *bootstrapStartFlags) readPKCS12(cmd *cobra.Command, secrets *secret.Reader, p *posts) error {
	password, found, err := secrets.Get(cmd.Context(), secret.Source{
		Flag: "https-p12-password", Value: f.p12Password, Given: cmd.Flags().Changed("https-p12-password"), File: f.p12PassFile,
	})
	if err != nil {
		return err
	}
	p.password, p.sendPassword = password, found
	if f.p12File == "" {
		return nil
	}
	if p.p12, err = (durable.OS{}).ReadFile(f.p12File, maxPKCS12); err != nil {
		return fmt.Errorf("--https-p12-file: %w", err)
	}
	p.sendPassword = true
	if found || !secrets.CanPrompt() || !wantsPassword(p.p12) {
		return nil
	}
	p.password, err = secrets.Prompt(cmd.Context(), "Password of "+f.p12File)
	return err
}

// wantsPassword says whether a PKCS#12 file is locked. Whatever else is wrong
// with it is for the server to say.
func wantsPassword(p12 []byte) bool {
	// It may ask for any amount of work, under its encryption too.
	if err := ownpkcs12.CheckWith(p12, keys.Secret{}); err != nil {
		return errors.Is(err, ownpkcs12.ErrPassword)
	}
	_, _, _, err := pkcs12.DecodeChain(p12, "")
	return errors.Is(err, pkcs12.ErrIncorrectPassword)
}

// checkReadyURL refuses what could not be asked.
func checkReadyURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil {
		return errors.New("not of the form https://HOST[:PORT]")
	}
	return nil
}

// waitReady asks until a KMS is ready. Nothing is sent and nothing believed, so
// nothing is verified: kmsctl verify does that.
func waitReady(ctx context.Context, raw string) error {
	client := &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: 64 << 10,
			TLSClientConfig: &tls.Config{
				MinVersion:         tls.VersionTLS12,
				InsecureSkipVerify: true, //nolint:gosec // see above
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := askReady(ctx, client, strings.TrimSuffix(raw, "/")+"/ready")
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err // and not that there is no more time
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the KMS at %s: %w", raw, last)
		case <-tick.C:
		}
	}
}

func askReady(ctx context.Context, client *http.Client, target string) error {
	// One that hangs must not take all of the time.
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // what it says does not matter
	if err := resp.Body.Close(); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}
