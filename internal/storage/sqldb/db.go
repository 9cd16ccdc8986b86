package sqldb

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"teekms/internal/keys"
	"teekms/internal/storage"
)

// DB is an open database.
type DB struct {
	db      *sql.DB
	dialect *dialect
	steps   []migration
	timeout time.Duration
	log     *zap.Logger
	now     func() time.Time
	root    [32]byte
	// ruleKey and bindingKey authenticate rows.
	ruleKey, bindingKey []byte
	warnings            []string
	// place is that of SQLite's file; nil stands for a server.
	place *place
	// turn is held by the goroutine that commits: those that wait for it wait here
	// and not at the head row, each with a connection.
	turn chan struct{}

	// told is the second in which a lost connection was logged last.
	told atomic.Int64

	// mu guards statements.
	mu sync.Mutex
	// statements are prepared, by their text; there are a few dozen texts.
	statements map[string]*sql.Stmt
}

var _ storage.DB = (*DB)(nil)

// Names of the keys that are derived from [storage.Config.Key].
const (
	ruleKeyName    = "teekms/v1/storage-rule"
	bindingKeyName = "teekms/v1/storage-binding"
	pageKeyName    = "teekms/v1/storage-sqlite-pages"
)

// keySize is the size of [storage.Config.Key] and of what is derived from it.
const keySize = 32

// Open connects to the database of a KMS, brings its schema up to date and binds
// it to the KMS's root keys. A database of other root keys is refused with a
// [*storage.OtherRootError] before anything is written. Every wait within it is
// bounded by the Timeout.
func Open(ctx context.Context, c storage.Config) (*DB, error) {
	if err := checkConfig(&c); err != nil {
		return nil, err
	}
	d := &DB{
		timeout: c.Timeout, log: c.Log, now: c.Now, root: c.Root,
		turn: make(chan struct{}, 1), statements: make(map[string]*sql.Stmt),
	}
	var err error
	if d.ruleKey, err = derive(c.Key, ruleKeyName); err != nil {
		return nil, err
	}
	if d.bindingKey, err = derive(c.Key, bindingKeyName); err != nil {
		return nil, err
	}
	done, err := d.connect(ctx, &c)
	if err != nil {
		return nil, fmt.Errorf("opening %s database: %w", c.Type, err)
	}
	defer done()
	if err := d.start(ctx); err != nil {
		// The first error is the one that tells what happened.
		_ = d.Close()
		return nil, fmt.Errorf("opening %s database: %w", c.Type, err)
	}
	return d, nil
}

func checkConfig(c *storage.Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	switch {
	case c.Root == [32]byte{}:
		return fmt.Errorf("%w: no root key is given", storage.ErrConfig)
	case c.Key.Len() != keySize:
		return fmt.Errorf("%w: the key has %d bytes, not %d", storage.ErrConfig, c.Key.Len(), keySize)
	case c.Log == nil:
		return fmt.Errorf("%w: no logger is given", storage.ErrConfig)
	}
	if c.Timeout == 0 {
		c.Timeout = storage.DefaultTimeout
	}
	if c.Now == nil {
		c.Now = time.Now //nolint:forbidigo // the documented default of an optional clock
	}
	return nil
}

// connect makes the pool; done is to be called when the database is established.
func (d *DB) connect(ctx context.Context, c *storage.Config) (done func(), err error) {
	done = func() {}
	switch c.Type {
	case storage.SQLite, storage.SQLiteEncrypted:
		return d.connectSQLite(ctx, c)
	case storage.PostgreSQL:
		return done, d.connectPostgres(c)
	case storage.MySQL:
		return done, d.connectMySQL(c)
	default:
		return nil, fmt.Errorf("%w: not an SQL database", storage.ErrConfig)
	}
}

// start is what Open does once there is a pool. Its statements are many: all of
// them together have a few times the patience for one, and connecting has that
// for one.
func (d *DB) start(ctx context.Context) error {
	var err error
	if d.steps, err = d.dialect.migrations(); err != nil {
		return err
	}
	if err := d.Ping(ctx); err != nil {
		return err
	}
	patient, cancel := context.WithTimeout(ctx, openPatience*d.timeout)
	defer cancel()
	if err := d.establish(patient); err != nil {
		return err
	}
	if err := d.place.remember(); err != nil {
		return err
	}
	warnings, err := d.dialect.warnings(patient, d.db)
	if err != nil {
		return d.fault(ctx, err)
	}
	d.warnings = append(d.warnings, warnings...)
	return nil
}

// openPatience is how many Timeouts migrating may take, with the wait for
// another process that does it.
const openPatience = 6

// Ping tells whether the database answers.
func (d *DB) Ping(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	var one int
	if err := d.db.QueryRowContext(limited, "SELECT 1").Scan(&one); err != nil {
		return d.fault(ctx, err)
	}
	return nil
}

// Warnings are what the operator should know.
func (d *DB) Warnings() []string { return d.warnings }

// Close ends all connections.
func (d *DB) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.statements {
		// A statement ends with its connection in any case.
		_ = s.Close()
	}
	clear(d.statements)
	if err := d.db.Close(); err != nil {
		return describe(d.dialect, d.timeout, err)
	}
	return nil
}

// prepared returns the statement of a query, with question marks.
func (d *DB) prepared(ctx context.Context, query string) (*sql.Stmt, error) {
	d.mu.Lock()
	s := d.statements[query]
	d.mu.Unlock()
	if s != nil {
		return s, nil
	}
	s, err := d.db.PrepareContext(ctx, d.dialect.rebind(query))
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if first := d.statements[query]; first != nil {
		// Another goroutine was faster; nobody knows of this one.
		_ = s.Close()
		return first, nil
	}
	d.statements[query] = s
	return s, nil
}

// read runs f, which only reads, within the patience for one answer; again where
// the connection was lost on the way.
func (d *DB) read(ctx context.Context, f func(ctx context.Context) error) error {
	return d.retry(ctx, func() error {
		limited, cancel := context.WithTimeout(ctx, d.timeout)
		defer cancel()
		return f(limited)
	})
}

// Pauses between tries.
const (
	firstPause = 5 * time.Millisecond
	lastPause  = 250 * time.Millisecond
)

// retry runs f until it succeeds, fails for a reason that stays, or half the
// patience for one answer is over: a server that is started again is waited for,
// one that is down is reported soon enough.
func (d *DB) retry(ctx context.Context, f func() error) error {
	over := time.NewTimer(d.timeout / 2)
	defer over.Stop()
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := f()
		if err == nil || isOurs(err) {
			return err
		}
		fault := d.asFault(ctx, err)
		if fault.kind != lost && fault.kind != conflict {
			return fault
		}
		if fault.kind == lost {
			d.tell(fault)
		}
		select {
		case <-ctx.Done():
			return fault
		case <-over.C:
			return fault
		case <-time.After(pause):
		}
	}
}

// tell logs that a connection was lost, once a second at most.
func (d *DB) tell(f *fault) {
	second := d.now().Unix()
	if d.told.Swap(second) != second {
		d.log.Warn("trying the database again", zap.NamedError("err", f))
	}
}

// final is an error that is returned as it is.
type final struct{ error }

// Unwrap returns the error.
func (f final) Unwrap() error { return f.error }

// isOurs tells an error that was made above the driver from one of the driver.
func isOurs(err error) bool {
	_, done := errors.AsType[final](err)
	return done || errors.Is(err, storage.ErrIntegrity)
}

// derive makes a key for one purpose.
func derive(key keys.Secret, name string) ([]byte, error) {
	k, err := hkdf.Key(sha256.New, key.Bytes(), nil, name, keySize)
	if err != nil {
		return nil, fmt.Errorf("deriving %s: %w", name, err)
	}
	return k, nil
}

// mac is HMAC-SHA256 over the parts, each after its length (four bytes, big
// endian).
func mac(key []byte, domain string, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	write := func(part []byte) {
		var length [4]byte
		binary.BigEndian.PutUint32(length[:], uint32(len(part)))
		h.Write(length[:])
		h.Write(part)
	}
	write([]byte(domain))
	for _, part := range parts {
		write(part)
	}
	return h.Sum(nil)
}
