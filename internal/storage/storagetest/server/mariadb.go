package server

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/go-sql-driver/mysql"
)

type mariaDB struct{}

func (mariaDB) account() string { return "mysql" }

func (mariaDB) install(ctx context.Context, r runner, dir string) error {
	install, err := program("mariadb-install-db")
	if err != nil {
		return err
	}
	// A server that starts removes what others have in a directory of temporary
	// files that it shares with them.
	return r.run(ctx, nil, install, "--no-defaults", "--datadir="+dir, "--tmpdir="+filepath.Dir(dir), "--skip-test-db", "--auth-root-authentication-method=normal",
		"--innodb-log-file-size=32M", "--innodb-flush-log-at-trx-commit=0")
}

func (mariaDB) command(s *Server) ([]string, error) {
	mariadbd, err := program("mariadbd")
	if err != nil {
		return nil, err
	}
	credential, err := s.group.credential(s.account())
	if err != nil {
		return nil, err
	}
	// Only the user who runs the server may read it: it holds the password.
	accounts := filepath.Join(s.dir, "accounts.sql")
	password := strings.ReplaceAll(literal(Password), `\`, `\\`)
	err = runner{credential: credential}.write(accounts, []byte(fmt.Sprintf(
		"CREATE USER IF NOT EXISTS '%[1]s'@'127.0.0.1' IDENTIFIED BY %[2]s;\nGRANT ALL ON `kms\\_%%`.* TO '%[1]s'@'127.0.0.1';\n", User, password)))
	if err != nil {
		return nil, err
	}
	flush := "2"
	if s.durable {
		flush = "1"
	}
	return []string{
		mariadbd, "--no-defaults", "--datadir=" + filepath.Join(s.dir, "data"), "--tmpdir=" + s.dir,
		"--bind-address=127.0.0.1", fmt.Sprintf("--port=%d", s.port), "--socket=" + filepath.Join(s.dir, "socket"),
		"--pid-file=" + filepath.Join(s.dir, "pid"), "--init-file=" + accounts, "--skip-name-resolve", "--max-connections=300",
		"--ssl-cert=" + filepath.Join(s.dir, certificateFile), "--ssl-key=" + filepath.Join(s.dir, keyFile),
		"--innodb-flush-log-at-trx-commit=" + flush, "--innodb-log-file-size=32M", "--innodb-buffer-pool-size=64M",
	}, nil
}

func (mariaDB) ping(ctx context.Context, s *Server) error { return s.execMariaDB(ctx, "DO 1") }

func (mariaDB) create(ctx context.Context, s *Server, database string) error {
	return s.execMariaDB(ctx, "CREATE DATABASE `"+database+"`")
}

// execMariaDB runs one statement on a connection of its own.
func (s *Server) execMariaDB(ctx context.Context, statement string) error {
	c := mysql.NewConfig()
	c.User, c.Passwd, c.Net, c.Addr = User, Password, "tcp", fmt.Sprintf("127.0.0.1:%d", s.port)
	// It tells standard error of a server that is not there yet.
	c.Logger = &mysql.NopLogger{}
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer func() { _ = db.Close() }()
	_, err = db.ExecContext(ctx, statement)
	return err
}
