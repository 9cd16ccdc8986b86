package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"teekms/internal/storage"
)

// migrationLock is the number of the advisory lock: "teekms" in ASCII.
const migrationLock = 0x7465656b6d73

// maxMessage bounds what a server may send at once.
const maxMessage = 64 << 20

func postgresDialect() *dialect {
	const bytewise = `TEXT COLLATE "C"`
	return &dialect{
		name:     "PostgreSQL",
		goose:    goose.DialectPostgres,
		numbered: true,
		types: types{
			Int: "BIGINT", ID: "BYTEA", Bytes: "BYTEA", Short: bytewise, Text: bytewise, Long: bytewise,
		},
		lockRow:    " FOR UPDATE",
		onConflict: " ON CONFLICT DO NOTHING",
		after:      afterRow,
		afterArgs:  afterRowArgs,
		tables:     "SELECT COUNT(*) FROM pg_catalog.pg_class WHERE oid = to_regclass(CAST(? AS text)) AND relkind = 'r'",
		write:      &sql.TxOptions{Isolation: sql.LevelReadCommitted},
		snapshot:   &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true},
		lock:       lockPostgres,
		fault:      postgresFault,
		warnings:   warnPostgres,
	}
}

func (d *DB) connectPostgres(c *storage.Config) error {
	server, err := c.Server()
	if err != nil {
		return err
	}
	security, err := tlsConfig(server)
	if err != nil {
		return err
	}
	// The driver demands that its configuration comes from a text, and adds what
	// the environment says. All that this can be is replaced.
	config, err := pgx.ParseConfig("postgres://nobody:none@127.0.0.1:1/none?sslmode=disable")
	if err != nil {
		return errors.New("the environment has PG variables that cannot be read: unset them, they are of no use here")
	}
	config.Host, config.Port = server.Name, server.Port
	config.Database, config.User, config.Password = server.Database, server.User, string(server.Password.Bytes())
	config.TLSConfig, config.Fallbacks, config.SSLNegotiation = security, nil, ""
	config.DialFunc, config.ConnectTimeout, config.ValidateConnect = dialer(server).DialContext, d.timeout, nil
	config.RuntimeParams = map[string]string{"application_name": "teekms", "client_encoding": "UTF8"}
	config.MaxProtocolMessageBodyLen = maxMessage
	config.MinProtocolVersion, config.MaxProtocolVersion, config.ChannelBinding = "3.0", "3.0", "prefer"
	// Without TLS the password is never sent, nor what it can be guessed from.
	config.RequireAuth = "password,md5,scram-sha-256,none"
	if security == nil {
		config.RequireAuth = "scram-sha-256,none"
	}
	d.dialect = postgresDialect()
	d.db = sql.OpenDB(connector{Connector: stdlib.GetConnector(*config), timeout: d.timeout, setUp: postgresSession()})
	d.pool()
	d.warnings = warnPlaintext(server)
	return nil
}

// postgresSession are settings that an operator may have changed for all: what
// is committed is on the server's disk, and what a dead process began is ended.
func postgresSession() []string {
	return []string{
		"SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
		fmt.Sprintf("SET idle_in_transaction_session_timeout = %d", sessionIdle.Milliseconds()),
	}
}

func (d *DB) pool() {
	d.db.SetMaxOpenConns(maxConns)
	d.db.SetMaxIdleConns(maxIdleConns)
	d.db.SetConnMaxLifetime(maxConnAge)
	d.db.SetConnMaxIdleTime(maxConnIdle)
}

func warnPlaintext(s storage.Server) []string {
	if s.TLS || s.Loopback {
		return nil
	}
	return []string{"the connection to the database leaves this machine without TLS: anybody on the way reads and changes it"}
}

func lockPostgres(ctx context.Context, db *sql.DB) (unlock func(), err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock($1)", int64(migrationLock)); err != nil {
		// The first error is the one that tells what happened.
		_ = conn.Close()
		return nil, err
	}
	return func() { discard(conn) }, nil
}

// discard ends a connection, and what it holds.
func discard(conn *sql.Conn) {
	// The error makes the pool close the connection.
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = conn.Close()
}

func warnPostgres(ctx context.Context, db *sql.DB) ([]string, error) {
	var warnings []string
	for _, setting := range []string{"fsync", "full_page_writes"} {
		var value string
		if err := db.QueryRowContext(ctx, "SELECT current_setting($1)", setting).Scan(&value); err != nil {
			return nil, err
		}
		if value != "on" {
			warnings = append(warnings, fmt.Sprintf("PostgreSQL runs with %s = off: what was acknowledged is lost when its machine fails", setting))
		}
	}
	return warnings, nil
}

// postgresFault goes by the SQLSTATE.
func postgresFault(err error) *fault {
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return postgresClientFault(err)
	}
	f := func(k kind, text string) *fault { return &fault{text: text, code: sqlState(e.Code), kind: k} }
	switch e.Code {
	case "23505":
		return f(unique, "the row exists")
	case "40001", "40P01":
		return unavailable(conflict, e.Code, "another transaction had to go first")
	case "28P01":
		return f(other, "the server refused the user or the password")
	case "28000":
		return f(other, "the server does not let this user in from here in this way")
	case "3D000":
		return f(other, "the server has no database of this name")
	case "42501":
		return f(other, "the user lacks a permission on the database")
	case "25006":
		return f(other, "the database is read-only: it may be a standby")
	case "53100":
		return f(other, "the disk of the database is full")
	case "53300":
		return unavailable(lost, e.Code, "the server has too many connections")
	case "57P01", "57P02", "57P03", "57P05", "25P03":
		return unavailable(lost, e.Code, "the server is starting or stopping, or ended the connection")
	case "57014", "55P03":
		return unavailable(late, e.Code, "the server did not finish in time")
	case "XX001", "XX002":
		return f(other, "the server says that its data are damaged")
	}
	if strings.HasPrefix(e.Code, "08") {
		return unavailable(lost, sqlState(e.Code), "the connection to the database was lost")
	}
	return f(other, "the server refused a statement")
}

// sqlState returns a code that looks like one.
func sqlState(code string) string {
	odd := func(r rune) bool { return (r < '0' || r > '9') && (r < 'A' || r > 'Z') }
	if len(code) != 5 || strings.ContainsFunc(code, odd) {
		return ""
	}
	return "SQLSTATE " + code
}

// postgresClientFault is about what the driver says itself, for want of types by
// its words.
func postgresClientFault(err error) *fault {
	text := err.Error()
	switch {
	case strings.Contains(text, "server refused TLS"):
		return &fault{text: "the server does not offer TLS"}
	case strings.Contains(text, "require_auth"), strings.Contains(text, "authentication method"):
		return &fault{text: "the server asks for the password in a way that is not safe without TLS"}
	case errors.Is(err, pgconn.ErrConnClosed):
		return unavailable(lost, "", "the connection to the database was lost")
	default:
		return nil
	}
}

// untilTimeout bounds a server's own wait, a little longer than ours.
func untilTimeout(timeout time.Duration) int64 { return int64(timeout/time.Second) + 1 }
