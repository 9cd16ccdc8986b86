package sqldb

import (
	"time"

	"teekms/internal/storage"
)

// Describe returns what an error of a driver is called.
func Describe(t storage.Type, err error) error {
	l := sqliteDialect()
	switch t {
	case storage.PostgreSQL:
		l = postgresDialect()
	case storage.MySQL:
		l = mysqlDialect()
	default:
	}
	return describe(l, 10*time.Second, err)
}
