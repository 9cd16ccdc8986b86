package sqldb

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/driver"
	// The encrypting file system, named "adiantum".
	_ "github.com/ncruces/go-sqlite3/vfs/adiantum"
	"github.com/pressly/goose/v3"
	"golang.org/x/crypto/argon2"
	"golang.org/x/sys/unix"

	"teekms/internal/durable"
	"teekms/internal/storage"
)

// Argon2id's parameters, for a key from a master password: those of RFC 9106 §4
// for machines with little memory.
const (
	argonTime    = 3
	argonMemory  = 64 << 10
	argonThreads = 4
)

// pageSize is SQLite's and the size of what is encrypted at once.
const pageSize = 4096

func sqliteDialect() *dialect {
	return &dialect{
		name:  "SQLite",
		goose: goose.DialectSQLite3,
		types: types{
			Int: "INTEGER", ID: "BLOB", Bytes: "BLOB", Short: "TEXT", Text: "TEXT", Long: "TEXT",
			Table: "STRICT", KeyedTable: "STRICT, WITHOUT ROWID",
		},
		onConflict: " ON CONFLICT DO NOTHING",
		after:      afterRow,
		afterArgs:  afterRowArgs,
		tables:     "SELECT COUNT(*) FROM sqlite_schema WHERE type = 'table' AND name = ?",
		// The driver begins a serializable transaction with BEGIN IMMEDIATE, which
		// locks all that FOR UPDATE would.
		write:    &sql.TxOptions{Isolation: sql.LevelSerializable},
		snapshot: nil,
		// The file is locked as long as it is being opened.
		lock:  func(context.Context, *sql.DB) (func(), error) { return func() {}, nil },
		fault: sqliteFault,
		warnings: func(context.Context, *sql.DB) ([]string, error) {
			return nil, nil
		},
	}
}

// connectSQLite makes the directory and the file where they are missing, and
// holds a lock on the file until done.
func (d *DB) connectSQLite(ctx context.Context, c *storage.Config) (done func(), err error) {
	dir, err := filepath.Abs(c.Path)
	if err != nil {
		return nil, fmt.Errorf("finding the directory of the database: %w", err)
	}
	encrypted := c.Type == storage.SQLiteEncrypted
	file, warnings, err := makeFile(dir, encrypted)
	if err != nil {
		return nil, err
	}
	d.warnings = warnings
	limited, cancel := context.WithTimeout(ctx, openPatience*d.timeout)
	defer cancel()
	unlock, err := durable.OS{}.Lock(limited, file)
	if err != nil {
		return nil, &fault{text: "another process is opening the database and does not finish", kind: late, of: []error{storage.ErrUnavailable}}
	}
	d.dialect, d.place = sqliteDialect(), &place{path: file}
	query := url.Values{"modeof": {file}}
	hexKey := ""
	if encrypted {
		query.Set("vfs", "adiantum")
		if hexKey, err = pageKey(c); err != nil {
			unlock()
			return nil, err
		}
	}
	// SQLite reads a plus sign as one.
	name := url.URL{Scheme: "file", OmitHost: true, Path: file, RawQuery: strings.ReplaceAll(query.Encode(), "+", "%20")}
	timeout := d.timeout
	d.db, err = driver.Open(name.String(), func(conn *sqlite3.Conn) error { return setUp(conn, timeout, hexKey) })
	if err != nil {
		unlock()
		return nil, d.fault(ctx, err)
	}
	// One connection writes, the others read beside it.
	d.db.SetMaxOpenConns(max(4, runtime.GOMAXPROCS(0)))
	d.db.SetMaxIdleConns(max(4, runtime.GOMAXPROCS(0)))
	return unlock, nil
}

// pageKey returns the key of an encrypted file in hex.
func pageKey(c *storage.Config) (string, error) {
	if c.MasterPassword.Len() > 0 {
		key := argon2.IDKey(c.MasterPassword.Bytes(), c.Root[:], argonTime, argonMemory, argonThreads, keySize)
		return hex.EncodeToString(key), nil
	}
	key, err := derive(c.Key, pageKeyName)
	return hex.EncodeToString(key), err
}

// setUp prepares a new connection. The key comes first: nothing can be read
// before it. It is given in this way and not in the file's name, which others
// can ask for.
func setUp(conn *sqlite3.Conn, timeout time.Duration, hexKey string) error {
	if hexKey != "" {
		if err := conn.Exec("PRAGMA hexkey = '" + hexKey + "'"); err != nil {
			return err
		}
	}
	if err := conn.BusyTimeout(timeout); err != nil {
		return err
	}
	for _, pragma := range []string{
		// A commit is on the disk when it returns.
		"PRAGMA journal_mode = WAL",
		"PRAGMA synchronous = FULL",
		"PRAGMA journal_size_limit = 67108864",
		"PRAGMA temp_store = MEMORY",
		"PRAGMA trusted_schema = OFF",
		"PRAGMA cell_size_check = ON",
	} {
		if err := conn.Exec(pragma); err != nil {
			return err
		}
	}
	return nil
}

// makeFile makes what is missing and looks at what is there. A link in place of
// the file is not followed.
func makeFile(dir string, encrypted bool) (file string, warnings []string, err error) {
	if _, err := durable.MkdirAll(durable.OS{}, dir, 0o700); err != nil {
		return "", nil, fmt.Errorf("making the directory of the database: %w", err)
	}
	file = filepath.Join(dir, storage.File)
	info, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createFile(dir, file); err != nil {
			return "", nil, err
		}
		info, err = os.Lstat(file)
	}
	switch {
	case err != nil:
		return "", nil, fmt.Errorf("looking at the database: %w", err)
	case info.Mode()&fs.ModeSymlink != 0:
		return "", nil, fmt.Errorf("the database %q is a symbolic link: name the directory that it is in", file)
	case !info.Mode().IsRegular():
		return "", nil, fmt.Errorf("the database %q is not a file", file)
	case encrypted && info.Size()%pageSize != 0:
		// A file that is cut off in its first page would be taken for an empty one.
		return "", nil, fmt.Errorf("%w: the size of %q is not a multiple of %d bytes", storage.ErrWrongKey, file, pageSize)
	}
	if err := touch(file, 0); err != nil {
		return "", nil, fmt.Errorf("the database cannot be written: %w", err)
	}
	// SQLite would make it with the mode that the umask leaves; its log gets that of
	// the database.
	if err := touch(file+"-shm", os.O_CREATE); err != nil {
		return "", nil, fmt.Errorf("the directory of the database cannot be written: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		warnings = append(warnings, fmt.Sprintf("Others than its owner have access to the database %q: its mode is %#o.", file, mode))
	}
	return file, append(warnings, networkFile(dir)...), nil
}

// touch opens a file for writing and closes it.
func touch(file string, flags int) error {
	f, err := os.OpenFile(file, os.O_RDWR|unix.O_NOFOLLOW|flags, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func createFile(dir, file string) error {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("making the database: %w", err)
	}
	if err := errors.Join(f.Chmod(0o600), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("making the database: %w", err)
	}
	if err := (durable.OS{}).SyncDir(dir); err != nil {
		return fmt.Errorf("making the database: %w", err)
	}
	return nil
}

// networkFile warns of file systems on which processes cannot share memory and
// locks may not hold.
func networkFile(dir string) []string {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return nil
	}
	switch s.Type {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.V9FS_MAGIC, unix.AFS_SUPER_MAGIC, unix.CEPH_SUPER_MAGIC:
		return []string{fmt.Sprintf("the database is on a network file system, %q: SQLite loses data where two machines write it", dir)}
	default:
		return nil
	}
}

func sqliteFault(err error) *fault {
	var code sqlite3.ExtendedErrorCode
	if !errors.As(err, &code) {
		return nil
	}
	shown := fmt.Sprintf("SQLite error %d", code)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || code.Code() == sqlite3.FULL {
		return &fault{text: "the disk of the database is full", code: shown}
	}
	switch code {
	case sqlite3.CONSTRAINT_UNIQUE, sqlite3.CONSTRAINT_PRIMARYKEY, sqlite3.CONSTRAINT_ROWID:
		return &fault{text: "the row exists", code: shown, kind: unique}
	case sqlite3.IOERR_WRITE, sqlite3.IOERR_TRUNCATE, sqlite3.IOERR_SHMSIZE:
		return &fault{text: "writing to the database's disk failed: it may be full", code: shown}
	case sqlite3.IOERR_BADKEY:
		return &fault{text: "the key of the database has the wrong size", of: []error{storage.ErrWrongKey}}
	default:
	}
	switch code.Code() {
	case sqlite3.NOTADB:
		return &fault{text: storage.ErrWrongKey.Error(), code: shown, of: []error{storage.ErrWrongKey}}
	case sqlite3.CORRUPT:
		return &fault{text: storage.ErrIntegrity.Error() + ", or it is damaged", code: shown, of: []error{storage.ErrIntegrity}}
	case sqlite3.BUSY, sqlite3.LOCKED, sqlite3.PROTOCOL:
		return unavailable(conflict, shown, "another process holds the database")
	case sqlite3.INTERRUPT:
		return unavailable(late, shown, "the database did not finish in time")
	case sqlite3.READONLY, sqlite3.PERM, sqlite3.AUTH:
		return &fault{text: "the database, or its directory, cannot be written", code: shown}
	case sqlite3.CANTOPEN:
		return &fault{text: "the database cannot be opened", code: shown}
	case sqlite3.IOERR:
		return &fault{text: "reading or writing the database's disk failed", code: shown}
	default:
		return &fault{text: "the database refused a statement", code: shown}
	}
}
