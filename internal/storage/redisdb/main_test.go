package redisdb_test

import (
	"testing"

	"go.uber.org/goleak"

	"teekms/internal/storage/storagetest/server"
)

var servers server.Group //nolint:gochecknoglobals // The servers of this test binary.

func TestMain(m *testing.M) { goleak.VerifyTestMain(servers.Main(m)) }
