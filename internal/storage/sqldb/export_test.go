package sqldb

import (
	"database/sql"
	"time"

	"go.uber.org/zap"

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

// Over returns a database as if it had been opened and found to be ours.
func Over(db *sql.DB) *DB {
	return &DB{
		db: db, dialect: mysqlDialect(), timeout: 100 * time.Millisecond, log: zap.NewNop(), now: time.Now,
		ruleKey: make([]byte, keySize), bindingKey: make([]byte, keySize),
		turn: make(chan struct{}, 1), statements: make(map[string]*sql.Stmt),
	}
}

// Dial connects to an address as to a server.
var Dial = dialer
