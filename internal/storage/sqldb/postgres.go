package sqldb

import (
	"teekms/internal/storage"
)

var errNotLoopback = storage.ErrConfig

func (d *DB) connectPostgres(c *storage.Config) error { return storage.ErrConfig }
func (d *DB) connectMySQL(c *storage.Config) error    { return storage.ErrConfig }
