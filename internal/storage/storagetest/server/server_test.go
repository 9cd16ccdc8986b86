package server_test

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"teekms/internal/storage/storagetest/server"
)

var servers server.Group

func TestMain(m *testing.M) { goleak.VerifyTestMain(servers.Main(m)) }

func TestServerComesAndGoes(t *testing.T) {
	for _, kind := range []server.Kind{server.PostgreSQL, server.MariaDB, server.Redis} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			s := servers.Own(t, kind, server.Options{Durable: true})
			t.Logf("started in %v", time.Since(start))
			s.NewDatabase(t)
			start = time.Now()
			s.Kill()
			t.Logf("killed in %v", time.Since(start))
			start = time.Now()
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			t.Logf("started again in %v", time.Since(start))
			s.NewDatabase(t)
			start = time.Now()
			if err := s.Stop(); err != nil {
				t.Fatal(err)
			}
			t.Logf("stopped in %v", time.Since(start))
		})
	}
}
