package redisdb_test

import (
	"context"
	"testing"

	"go.uber.org/goleak"

	"teekms/internal/storage"
	"teekms/internal/storage/redisdb"
	"teekms/internal/storage/storagetest"
	"teekms/internal/storage/storagetest/server"
)

var servers server.Group

func TestMain(m *testing.M) { goleak.VerifyTestMain(servers.Main(m)) }

func openDB(ctx context.Context, c storage.Config) (storage.DB, error) {
	db, err := redisdb.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	return db, nil
}

func TestConformance(t *testing.T) {
	storagetest.Run(t, storagetest.Served(&servers, server.Redis, openDB))
}
