package provision

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"go.uber.org/zap"

	provisionv1 "teekms/gen/provision/v1"
	"teekms/internal/keys"
	"teekms/internal/pkcs12"
	"teekms/internal/rpc"
	"teekms/internal/storage"
)

// Bounds of single settings, in bytes.
const (
	maxURL      = 8192
	maxPath     = 4096
	maxPassword = 1024
	maxLabel    = 256
)

// bounded refuses a text that is too long.
func bounded(field, text string, limit int) error {
	if len(text) > limit {
		return &rpc.FieldError{Field: field, Reason: fmt.Sprintf("has %d bytes, at most %d are allowed", len(text), limit)}
	}
	return nil
}

// SetDatabase notes the database. Its form is checked, nothing is connected to.
func (s *Server) SetDatabase(_ context.Context, req *provisionv1.SetDatabaseRequest) (*provisionv1.SetDatabaseResponse, error) {
	db, name, err := s.database(req)
	if err != nil {
		return nil, err
	}
	if err := shape(db); err != nil {
		return nil, hidden(err, secretsOf(&Settings{Database: db}))
	}
	if err := s.change(func() { s.now.Database, s.posted = db, true }); err != nil {
		return nil, err
	}
	s.cfg.Log.Info("database received", zap.String("type", string(db.Type)))
	return &provisionv1.SetDatabaseResponse{Success: "Successfully received " + name + " configuration"}, nil
}

// shape checks the form of what was posted. Whether it is allowed, and whether it
// is complete, is for Start to say: until then more can be posted.
func shape(db storage.Config) error {
	db.InsecurePlaintext = true
	return db.Validate()
}

// database reads a request, and says what people call that database.
func (s *Server) database(req *provisionv1.SetDatabaseRequest) (db storage.Config, name string, err error) {
	base := s.cfg.Defaults.Database
	db = storage.Config{CAFile: base.CAFile, InsecurePlaintext: base.InsecurePlaintext, Timeout: base.Timeout}
	var url, master, path string
	switch d := req.GetDatabase().(type) {
	case *provisionv1.SetDatabaseRequest_RedisFindex:
		db.Type, name = storage.RedisFindex, "Redis-Findex"
		url, master, db.Label = d.RedisFindex.GetUrl(), d.RedisFindex.GetMasterPassword(), d.RedisFindex.GetFindexLabel()
	case *provisionv1.SetDatabaseRequest_Postgresql:
		db.Type, name, url = storage.PostgreSQL, "PostgreSQL", d.Postgresql.GetUrl()
	case *provisionv1.SetDatabaseRequest_Mysql:
		db.Type, name, url = storage.MySQL, "MySql/MariaDB", d.Mysql.GetUrl()
	case *provisionv1.SetDatabaseRequest_Sqlite:
		db.Type, name, path = storage.SQLite, "Sqlite", d.Sqlite.GetPath()
	case *provisionv1.SetDatabaseRequest_SqliteEnc:
		db.Type, name = storage.SQLiteEncrypted, "Sqlite Enc."
		path, master = d.SqliteEnc.GetPath(), d.SqliteEnc.GetMasterPassword()
	default:
		return db, "", &rpc.FieldError{Field: "database", Reason: "is required"}
	}
	err = cmp.Or(
		bounded("url", url, maxURL), bounded("path", path, maxPath),
		bounded("master_password", master, maxPassword), bounded("findex_label", db.Label, maxLabel))
	if err != nil {
		return db, "", err
	}
	if url != "" {
		db.URL = keys.NewSecret([]byte(url))
	}
	if master != "" {
		db.MasterPassword = keys.NewSecret([]byte(master))
	}
	if db.Type == storage.SQLite || db.Type == storage.SQLiteEncrypted {
		db.Path, err = s.path(path)
	}
	return db, name, err
}

// path makes the directory of an SQLite database absolute. One that is relative
// is below the state directory and stays there: the working directory of a
// service is no place that whoever posts it knows.
func (s *Server) path(path string) (string, error) {
	switch {
	case path == "":
		return "", &rpc.FieldError{Field: "path", Reason: "must not be empty"}
	case strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", &rpc.FieldError{Field: "path", Reason: "holds a control character"}
	case filepath.IsAbs(path):
		return filepath.Clean(path), nil
	case s.cfg.StateDir == "":
		return "", &rpc.FieldError{Field: "path", Reason: "must be absolute"}
	case !filepath.IsLocal(path):
		return "", &rpc.FieldError{Field: "path", Reason: "is relative and leaves the state directory of the KMS: give an absolute path"}
	}
	return filepath.Join(s.cfg.StateDir, path), nil
}

// SetPkcs12 notes the PKCS#12 file. Its form is checked, it is not opened.
func (s *Server) SetPkcs12(_ context.Context, req *provisionv1.SetPkcs12Request) (*provisionv1.SetPkcs12Response, error) {
	if err := pkcs12.CheckShape(req.GetPkcs12()); err != nil {
		return nil, err
	}
	file := keys.NewSecret(req.GetPkcs12())
	if err := s.change(func() { s.now.PKCS12 = file }); err != nil {
		return nil, err
	}
	s.cfg.Log.Info("PKCS#12 received", zap.Int("bytes", file.Len()))
	return &provisionv1.SetPkcs12Response{Success: fmt.Sprintf("PKCS#12 of %d bytes received", file.Len())}, nil
}
