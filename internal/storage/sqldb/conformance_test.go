package sqldb_test

import (
	"context"
	"os"
	"testing"

	"go.uber.org/goleak"

	"teekms/internal/storage"
	"teekms/internal/storage/sqldb"
	"teekms/internal/storage/storagetest"
	"teekms/internal/storage/storagetest/server"
)

var servers server.Group

func TestMain(m *testing.M) {
	if code, ok := storagetest.Client(openDB); ok {
		os.Exit(code)
	}
	goleak.VerifyTestMain(servers.Main(m))
}

func openDB(ctx context.Context, c storage.Config) (storage.DB, error) {
	db, err := sqldb.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	return db, nil
}

func backends() []storagetest.Backend {
	return []storagetest.Backend{
		storagetest.SQLite(storage.SQLite, openDB),
		storagetest.SQLite(storage.SQLiteEncrypted, openDB),
		storagetest.Served(&servers, server.PostgreSQL, openDB),
		storagetest.Served(&servers, server.MariaDB, openDB),
	}
}

func TestConformance(t *testing.T) {
	for _, b := range backends() {
		t.Run(b.Name, func(t *testing.T) { storagetest.Run(t, b) })
	}
}

func TestKilled(t *testing.T) {
	for _, b := range backends() {
		t.Run(b.Name, func(t *testing.T) {
			t.Parallel()
			storagetest.Kill(t, b)
		})
	}
}
