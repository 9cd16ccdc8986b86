package redisdb_test

import (
	"context"
	"testing"

	"teekms/internal/storage"
	"teekms/internal/storage/redisdb"
	"teekms/internal/storage/storagetest"
	"teekms/internal/storage/storagetest/server"
)

var servers server.Group

func open(ctx context.Context, c storage.Config) (storage.DB, error) {
	db, err := redisdb.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	return db, nil
}

func TestConformance(t *testing.T) {
	storagetest.Run(t, storagetest.Served(&servers, server.Redis, open))
}
