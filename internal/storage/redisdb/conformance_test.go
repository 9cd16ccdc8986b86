package redisdb_test

import (
	"context"
	"os"
	"testing"

	"go.uber.org/goleak"

	"teekms/internal/storage"
	"teekms/internal/storage/redisdb"
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
	db, err := redisdb.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	return db, nil
}

func backend() storagetest.Backend { return storagetest.Served(&servers, server.Redis, openDB) }

func TestConformance(t *testing.T) { storagetest.Run(t, backend()) }

func TestKilled(t *testing.T) { storagetest.Kill(t, backend()) }
