package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/pressly/goose/v3"

	"teekms/internal/storage"
)

func mysqlDialect() *dialect {
	const table = "ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
	return &dialect{
		name:  "MySQL",
		goose: goose.DialectMySQL,
		// Strings of bytes are compared bytewise and to their end; those of
		// characters, even in a binary collation, without the spaces at it.
		types: types{
			Int: "BIGINT", ID: "BINARY(16)", Bytes: "MEDIUMBLOB",
			Short: "VARBINARY(32)", Text: "VARBINARY(64)", Long: "VARBINARY(255)",
			Table: table, KeyedTable: table,
		},
		lockRow: " FOR UPDATE",
		// IGNORE would ignore other errors too.
		onConflict: " ON DUPLICATE KEY UPDATE kind = kms_rules.kind",
		after:      afterOr,
		afterArgs:  afterOrArgs,
		clearLimit: 10_000,
		tables:     "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?",
		snapshot:   &sql.TxOptions{ReadOnly: true},
		lock:       lockMySQL,
		fault:      mysqlFault,
		warnings:   warnMySQL,
	}
}

func (d *DB) connectMySQL(c *storage.Config) error {
	server, err := c.Server()
	if err != nil {
		return err
	}
	security, err := tlsConfig(server)
	if err != nil {
		return err
	}
	config := mysql.NewConfig()
	config.Net, config.Addr, config.DBName = "tcp", server.Host, server.Database
	config.User, config.Passwd = server.User, string(server.Password.Bytes())
	config.TLS, config.DialFunc, config.Logger = security, dialer(server).DialContext, &mysql.NopLogger{}
	// A COMMIT is bounded by these alone; all else by a context, a little earlier.
	config.ReadTimeout, config.WriteTimeout = d.timeout+time.Second, d.timeout+time.Second
	config.ParseTime = true
	config.Params = map[string]string{
		"sql_mode":                 "'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'",
		"wait_timeout":             strconv.FormatInt(int64(sessionIdle.Seconds()), 10),
		"innodb_lock_wait_timeout": strconv.FormatInt(untilTimeout(d.timeout), 10),
	}
	if err := config.Apply(mysql.Charset("utf8mb4", "utf8mb4_bin")); err != nil {
		return errors.New("the MySQL driver refused a setting")
	}
	made, err := mysql.NewConnector(config)
	if err != nil {
		return errors.New("the MySQL driver refused a setting")
	}
	d.dialect = mysqlDialect()
	d.db = sql.OpenDB(connector{Connector: made, timeout: d.timeout, setUp: []string{
		// An answer of one statement is of one moment; so is a transaction's.
		"SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
	}})
	d.pool()
	d.warnings = warnPlaintext(server)
	return nil
}

// lockWait is how many seconds the server waits for the lock at once: less than
// the driver waits for an answer.
const lockWait = 1

func lockMySQL(ctx context.Context, db *sql.DB) (unlock func(), err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	for {
		// Locks are of the whole server.
		var got sql.NullInt64
		err := conn.QueryRowContext(ctx, "SELECT GET_LOCK(CONCAT('teekms ', SHA1(DATABASE())), ?)", lockWait).Scan(&got)
		if err == nil && !got.Valid {
			err = &fault{text: "the server refused the lock for migrating"}
		}
		if err != nil {
			// The first error is the one that tells what happened.
			_ = conn.Close()
			return nil, err
		}
		if got.Int64 == 1 {
			return func() { discard(conn) }, nil
		}
	}
}

func warnMySQL(ctx context.Context, db *sql.DB) ([]string, error) {
	var flush int
	if err := db.QueryRowContext(ctx, "SELECT @@GLOBAL.innodb_flush_log_at_trx_commit").Scan(&flush); err != nil {
		return nil, err
	}
	if flush == 1 || flush == 3 {
		return nil, nil
	}
	return []string{fmt.Sprintf("the server runs with innodb_flush_log_at_trx_commit = %d: what was acknowledged is lost when its machine fails", flush)}, nil
}

// mysqlFault goes by the number of the error.
func mysqlFault(err error) *fault {
	e, ok := errors.AsType[*mysql.MySQLError](err)
	if !ok {
		return mysqlClientFault(err)
	}
	code := fmt.Sprintf("error %d", e.Number)
	f := func(k kind, text string) *fault { return &fault{text: text, code: code, kind: k} }
	switch e.Number {
	case 1062, 1586:
		return f(unique, "the row exists")
	case 1213, 1020, 1205:
		return unavailable(conflict, code, "another transaction had to go first")
	case 1045, 1698:
		return f(other, "the server refused the user or the password")
	case 1130:
		return f(other, "the server does not let anybody in from this machine")
	case 1044:
		return f(other, "the server has no database of this name, or this user may not use it")
	case 1049:
		return f(other, "the server has no database of this name")
	case 1142, 1143, 1227:
		return f(other, "the user lacks a permission on the database")
	case 1290, 1792, 1836:
		return f(other, "the database is read-only: it may be a replica")
	case 1021, 1114, 1030:
		return f(other, "the disk of the database is full, or fails")
	case 1040, 1203, 1226:
		return unavailable(lost, code, "the server has too many connections")
	case 1053, 1077, 1079, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 4031:
		return unavailable(lost, code, "the server is stopping, or ended the connection")
	case 1317, 3024, 1969:
		return unavailable(late, code, "the server did not finish in time")
	case 1153:
		return f(other, "the server's max_allowed_packet is too small: 16 MiB are needed")
	case 3159:
		return f(other, "the server demands TLS")
	default:
		return f(other, "the server refused a statement")
	}
}

func mysqlClientFault(err error) *fault {
	switch {
	case errors.Is(err, mysql.ErrNoTLS):
		return &fault{text: "the server does not offer TLS"}
	case errors.Is(err, mysql.ErrInvalidConn):
		return unavailable(lost, "", "the connection to the database was lost")
	case errors.Is(err, mysql.ErrMalformPkt), errors.Is(err, mysql.ErrPktSync), errors.Is(err, mysql.ErrPktSyncMul), errors.Is(err, mysql.ErrOldProtocol),
		strings.Contains(err.Error(), "unsupported protocol version"):
		return &fault{text: "the server does not answer as MySQL does"}
	case errors.Is(err, mysql.ErrCleartextPassword), errors.Is(err, mysql.ErrOldPassword), errors.Is(err, mysql.ErrUnknownPlugin), errors.Is(err, mysql.ErrNativePassword):
		return &fault{text: "the server asks for the password in a way that is not supported"}
	default:
		return nil
	}
}
