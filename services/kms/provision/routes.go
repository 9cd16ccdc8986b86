package provision

import (
	"context"
	"io"

	provisionv1 "teekms/gen/provision/v1"
)

// jsonRoute binds the members of a JSON body to a request message, and calls its
// operation once they are filled in.
type jsonRoute func(m members) (call func(context.Context) (success string, err error))

// serve reads the body and makes the call.
func (j jsonRoute) serve(ctx context.Context, body io.Reader, _ string, _ map[string]string) (string, error) {
	m := members{}
	call := j(m)
	data, err := io.ReadAll(body)
	if err != nil {
		return "", err
	}
	if err := m.decode(data); err != nil {
		return "", err
	}
	return call(ctx)
}

// setDatabase is the call of the routes that set a database.
func (s *Server) setDatabase(req *provisionv1.SetDatabaseRequest) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		res, err := s.SetDatabase(ctx, req)
		return res.GetSuccess(), err
	}
}

func (s *Server) redisRoute(m members) func(context.Context) (string, error) {
	db := &provisionv1.RedisFindex{}
	m.text("url", &db.Url)
	m.text("master_password", &db.MasterPassword)
	m.text("findex_label", &db.FindexLabel)
	return s.setDatabase(&provisionv1.SetDatabaseRequest{Database: &provisionv1.SetDatabaseRequest_RedisFindex{RedisFindex: db}})
}

func (s *Server) postgresRoute(m members) func(context.Context) (string, error) {
	db := &provisionv1.PostgreSql{}
	m.text("url", &db.Url)
	return s.setDatabase(&provisionv1.SetDatabaseRequest{Database: &provisionv1.SetDatabaseRequest_Postgresql{Postgresql: db}})
}

func (s *Server) mysqlRoute(m members) func(context.Context) (string, error) {
	db := &provisionv1.MySql{}
	m.text("url", &db.Url)
	return s.setDatabase(&provisionv1.SetDatabaseRequest{Database: &provisionv1.SetDatabaseRequest_Mysql{Mysql: db}})
}

func (s *Server) sqliteRoute(m members) func(context.Context) (string, error) {
	db := &provisionv1.Sqlite{}
	m.text("path", &db.Path)
	return s.setDatabase(&provisionv1.SetDatabaseRequest{Database: &provisionv1.SetDatabaseRequest_Sqlite{Sqlite: db}})
}

func (s *Server) sqliteEncRoute(m members) func(context.Context) (string, error) {
	db := &provisionv1.SqliteEncrypted{}
	m.text("path", &db.Path)
	m.optionalText("master_password", &db.MasterPassword)
	return s.setDatabase(&provisionv1.SetDatabaseRequest{Database: &provisionv1.SetDatabaseRequest_SqliteEnc{SqliteEnc: db}})
}

func (s *Server) passwordRoute(m members) func(context.Context) (string, error) {
	req := &provisionv1.SetPkcs12PasswordRequest{}
	m.text("password", &req.Password)
	return func(ctx context.Context) (string, error) {
		res, err := s.SetPkcs12Password(ctx, req)
		return res.GetSuccess(), err
	}
}

func (s *Server) startRoute(m members) func(context.Context) (string, error) {
	req := &provisionv1.StartRequest{}
	m.optionalFlag("clear_database", &req.ClearDatabase)
	return func(ctx context.Context) (string, error) {
		res, err := s.Start(ctx, req)
		return res.GetSuccess(), err
	}
}
