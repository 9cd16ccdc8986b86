// Package storage says what the database of a KMS is and how to reach it. The
// database holds the audit log and the registry; storage/sqldb keeps it in
// SQLite, PostgreSQL, MySQL or MariaDB, storage/redisdb in Redis, and
// storage/storagetest is the one suite that all of them pass (docs/storage.md).
package storage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"teekms/internal/audit"
	"teekms/internal/keys"
	"teekms/internal/registry"
)

// Type is a kind of database.
type Type string

// The kinds of databases, by the names that users write.
const (
	SQLite          Type = "sqlite"
	SQLiteEncrypted Type = "sqlite-enc"
	PostgreSQL      Type = "postgresql"
	MySQL           Type = "mysql"
	RedisFindex     Type = "redis-findex"
)

// File is the name of an SQLite database in its directory.
const File = "kms.db"

// Config says which database, and whose.
type Config struct {
	// Type is required.
	Type Type
	// Path is the directory of an SQLite database, made 0700 where it is
	// missing; the file is [File].
	Path string
	// URL reaches a server. It may hold a password.
	URL keys.Secret
	// CAFile holds the roots (PEM) that the server's certificate is checked
	// against, in place of the system's.
	CAFile string
	// MasterPassword encrypts what is in Redis; required there. For SQLiteEncrypted
	// it makes the key, where Key does without it.
	MasterPassword keys.Secret
	// Label separates the databases of one master password in Redis.
	Label string
	// InsecurePlaintext allows a server that is not on this machine without TLS.
	InsecurePlaintext bool
	// Root is the SHA-256 of the root CA's public key (DER SubjectPublicKeyInfo),
	// to which the database is bound at first use. Required to open.
	Root [32]byte
	// Key (32 bytes, derived from the root keys) authenticates rules and
	// encrypts where something is encrypted. Required to open.
	Key keys.Secret
	// Timeout bounds every wait for the database; 0 is 10 s.
	Timeout time.Duration
	// Log gets warnings. Required to open.
	Log *zap.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// DB is an open database: of the right KMS, with the current schema. Its
// methods may be called from several goroutines.
type DB interface {
	audit.Store
	registry.Store
	// Ping tells whether the database answers.
	Ping(ctx context.Context) error
	// Warnings are what the operator should know of the database, one sentence
	// each: for example that it does not write durably. Empty is usual.
	Warnings() []string
	// Close ends all connections.
	Close() error
}

// Errors of opening and using a database.
var (
	// ErrConfig says that a Config is wrong in itself; nothing was tried.
	ErrConfig = errors.New("invalid database configuration")
	// ErrWrongKey says that the database is encrypted with another key, or is
	// none of a KMS.
	ErrWrongKey = errors.New("wrong key, or not the database of a KMS")
	// ErrIntegrity says that something in the database was not written by a KMS
	// of these root keys. It is an [audit.ErrTampered]: trying again is no help.
	ErrIntegrity error = integrityError{}
	// ErrUnavailable says that the database gave no answer in time.
	ErrUnavailable = errors.New("the database is not available")
)

type integrityError struct{}

func (integrityError) Error() string { return "the database was tampered with" }

func (integrityError) Is(target error) bool { return target == audit.ErrTampered }

// OtherRootError says that the database belongs to a KMS with other root keys.
type OtherRootError struct {
	// Database and KMS are the SHA-256 of the root public keys of the two.
	Database, KMS [32]byte
}

// Error names both.
func (e *OtherRootError) Error() string {
	return fmt.Sprintf("the database belongs to another KMS: it is bound to the root key %x, this KMS has %x", e.Database, e.KMS)
}
