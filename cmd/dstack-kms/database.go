package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"teekms/cmd/internal/node"
	"teekms/internal/audit"
	"teekms/internal/config"
	"teekms/internal/keys"
	"teekms/internal/storage"
	"teekms/internal/storage/redisdb"
	"teekms/internal/storage/sqldb"
)

// systemStateDir is where the database is kept unless configured.
const systemStateDir = "/var/lib/kms"

// stateDir returns the directory of a database that nobody chose a place for: the
// system's, or the user's where that cannot be written.
func stateDir() (string, error) {
	if writable(systemStateDir) {
		return systemStateDir, nil
	}
	own := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(own) { // as the specification of that variable wants
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("%s cannot be written and this user has no home: set core.database.path", systemStateDir)
		}
		own = filepath.Join(home, ".local", "state")
	}
	own = filepath.Join(own, "kms")
	if !writable(own) {
		return "", fmt.Errorf("neither %s nor %s can be written: set core.database.path", systemStateDir, own)
	}
	return own, nil
}

// writable tells whether files can be made in a directory, or the directory
// itself where it is missing. It makes nothing: whoever opens the database does.
func writable(dir string) bool {
	err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
	if errors.Is(err, unix.ENOENT) && dir != "/" {
		return writable(filepath.Dir(dir))
	}
	return err == nil
}

// databaseOf is the database that a configuration names.
func databaseOf(c config.Database) storage.Config {
	return storage.Config{
		Type: storage.Type(c.Type), Path: c.Path, URL: c.URL, CAFile: c.CAFile,
		MasterPassword: c.MasterPassword, Label: c.FindexLabel, InsecurePlaintext: c.InsecurePlaintext,
	}
}

// checkDatabase says what is wrong with the database of a configuration beyond
// its keys. Nothing is connected to.
func checkDatabase(cfg *config.Config) error {
	c := databaseOf(cfg.Core.Database)
	if c.Path == "" {
		c.Path = systemStateDir
	}
	if err := c.Validate(); err != nil {
		return fmt.Errorf("core.database: %w", err)
	}
	return nil
}

// openDatabase opens the database, which belongs to the root keys.
func openDatabase(ctx context.Context, c storage.Config, roots *keys.Roots, log *zap.Logger) (storage.DB, error) {
	key, err := roots.Own("storage")
	if err != nil {
		return nil, err
	}
	c.Root, c.Key, c.Log = sha256.Sum256(roots.CAPublic()), key, log
	if c.Type == storage.RedisFindex {
		db, err := redisdb.Open(ctx, c)
		if err != nil {
			return nil, err
		}
		return db, nil
	}
	db, err := sqldb.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	return db, nil
}

// logConfig is the configuration of the audit log of the root keys over a
// database.
func logConfig(db storage.DB, roots *keys.Roots, log *zap.Logger) (audit.Config, error) {
	identity, err := audit.IdentityOf(roots)
	if err != nil {
		return audit.Config{}, fmt.Errorf("deriving the keys of the audit log: %w", err)
	}
	return audit.Config{Store: db, Identity: identity, Log: log}, nil
}

// fileDatabase is the database of a start without a configuration server: the one
// that is configured, or the default one.
func fileDatabase(n *node.Node) (storage.Config, error) {
	c := databaseOf(n.Config.Core.Database)
	if c.Type != storage.SQLite && c.Type != storage.SQLiteEncrypted || c.Path != "" {
		return c, nil
	}
	dir, err := stateDir()
	if err != nil {
		return c, err
	}
	c.Path = dir
	n.Log.Info("the database is kept in a default place", zap.String("path", dir), zap.String("key", "core.database.path"))
	return c, nil
}

// refusedDatabase tells a database of other root keys, or one that is none, from
// one that cannot be reached.
func refusedDatabase(err error) bool {
	_, other := errors.AsType[*storage.OtherRootError](err)
	return other || errors.Is(err, storage.ErrWrongKey) || errors.Is(err, storage.ErrIntegrity) || errors.Is(err, storage.ErrConfig)
}
