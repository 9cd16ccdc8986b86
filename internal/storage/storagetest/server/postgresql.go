package server

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"path/filepath"
	"strings"

	_ "github.com/jackc/pgx/v5/stdlib" // registers "pgx"
)

type postgreSQL struct{}

func (postgreSQL) account() string { return "postgres" }

func (postgreSQL) install(ctx context.Context, r runner, dir string) error {
	initdb, err := program("initdb")
	if err != nil {
		return err
	}
	postgres, err := program("postgres")
	if err != nil {
		return err
	}
	pwfile := filepath.Join(r.dir, "password")
	if err := r.write(pwfile, []byte(rand.Text()+"\n")); err != nil {
		return err
	}
	err = r.run(ctx, nil, initdb, "--pgdata="+dir, "--username=postgres", "--auth=scram-sha-256", "--auth-local=scram-sha-256",
		"--pwfile="+pwfile, "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions")
	if err != nil {
		return err
	}
	// No superuser: the KMS must do without.
	role := fmt.Sprintf("CREATE ROLE %s LOGIN CREATEDB PASSWORD %s\n", User, literal(Password))
	return r.run(ctx, []byte(role), postgres, "--single", "-D", dir, "-c", "fsync=off", "postgres")
}

func (postgreSQL) command(s *Server) ([]string, error) {
	postgres, err := program("postgres")
	if err != nil {
		return nil, err
	}
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    fmt.Sprint(s.port),
		"unix_socket_directories": "",
		"ssl":                     "on",
		"ssl_cert_file":           filepath.Join(s.dir, certificateFile),
		"ssl_key_file":            filepath.Join(s.dir, keyFile),
		"max_connections":         "300",
		"shared_buffers":          "32MB",
	}
	if !s.durable {
		settings["fsync"], settings["synchronous_commit"], settings["full_page_writes"] = "off", "off", "off"
	}
	args := []string{postgres, "-D", filepath.Join(s.dir, "data")}
	for name, value := range settings {
		args = append(args, "-c", name+"="+value)
	}
	return args, nil
}

func (postgreSQL) ping(ctx context.Context, s *Server) error {
	return execute(ctx, "pgx", s.URL("postgres"), "SELECT 1")
}

func (postgreSQL) create(ctx context.Context, s *Server, database string) error {
	return execute(ctx, "pgx", s.URL("postgres"), `CREATE DATABASE "`+database+`" TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE "en-US"`)
}

// execute runs one statement on a connection of its own.
func execute(ctx context.Context, driver, url, statement string) error {
	db, err := sql.Open(driver, url)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	_, err = db.ExecContext(ctx, statement)
	return err
}

// literal quotes a string for SQL.
func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
