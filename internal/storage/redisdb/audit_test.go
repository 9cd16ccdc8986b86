package redisdb_test

import (
	"testing"

	"teekms/internal/audit"
	"teekms/internal/audit/audittest"
	"teekms/internal/storage"
	"teekms/internal/storage/storagetest"
	"teekms/internal/storage/storagetest/server"
)

// replicas opens a database three times.
func replicas(t *testing.T, c storage.Config) []audit.Store {
	t.Helper()
	var stores []audit.Store
	for range 3 {
		db, err := openDB(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := db.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
		stores = append(stores, db)
	}
	return stores
}

// TestAuditLogOfReplicas has three replicas append to one log under load.
func TestAuditLogOfReplicas(t *testing.T) {
	b := storagetest.Served(&servers, server.Redis, openDB)
	if failed := audittest.Replicas(t, replicas(t, b.Config(t)), audittest.Load{Writers: 8, Events: 60}); failed != 0 {
		t.Errorf("%d appends failed, want none", failed)
	}
}

// TestAuditLogOfReplicasOverARestart kills the server while they do. One that is
// not durable forgets what it has acknowledged, and the log says so.
func TestAuditLogOfReplicasOverARestart(t *testing.T) {
	s, c := storagetest.Served(&servers, server.Redis, openDB).Own(t, server.Options{Durable: true})
	failed := audittest.Replicas(t, replicas(t, c), audittest.Load{Writers: 8, Events: 60, Disturb: func() {
		s.Kill()
		if err := s.Start(); err != nil {
			t.Errorf("Start: %v", err)
		}
	}})
	if failed != 0 {
		t.Errorf("%d appends failed, want none: the server was back in time", failed)
	}
}
