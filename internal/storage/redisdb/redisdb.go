package redisdb

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
	"go.uber.org/zap"

	"teekms/internal/storage"
)

// DB is an open database in Redis. It implements [storage.DB].
type DB struct {
	client   *redis.Client
	log      *zap.Logger
	timeout  time.Duration
	patience time.Duration // for a server that restarts
	key      string
	header   []byte
	box      *box
	cache    *nodeCache
	warnings []string

	// writing is held by the one commit that this process has under way, so that
	// its goroutines wait for each other here and not at the server.
	writing chan struct{}
	// newest is the newest position of the head that was seen.
	newest atomic.Pointer[position]
	// lastRoot is the root of the rules where they were last looked up.
	lastRoot atomic.Pointer[nodeID]
}

var _ storage.DB = (*DB)(nil)

// Open connects to the Redis of c, refuses what is not this KMS's database, and
// makes a new one where there is none. It returns within c.Timeout. Besides the
// errors of package storage, [*storage.OtherRootError] names the KMS that the
// database belongs to. No error holds the URL, a password or the label.
func Open(ctx context.Context, c storage.Config) (*DB, error) {
	target, err := parseConfig(c)
	if err != nil {
		return nil, err
	}
	timeout := c.Timeout
	if timeout <= 0 {
		timeout = storage.DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	db := &DB{
		client: newClient(target, timeout),
		log:    c.Log,
		// Until it has answered once, see below.
		patience: shortPatience,
		timeout:  timeout,
		key:      keyName(c.Label),
		cache:    newNodeCache(),
		writing:  make(chan struct{}, 1),
	}
	if err := db.start(ctx, c); err != nil {
		_ = db.client.Close() // The first error is the one to report.
		return nil, err
	}
	// As long as the other databases have it: a restart is a pause for callers.
	db.patience = timeout / 2
	return db, nil
}

// start does what Open does once there is a client.
func (db *DB) start(ctx context.Context, c storage.Config) error {
	if err := db.Ping(ctx); err != nil {
		return err
	}
	var err error
	if db.warnings, err = db.checkServer(ctx); err != nil {
		return err
	}
	root, err := db.unlock(ctx, c)
	if err != nil {
		return err
	}
	if db.box, err = newBox(root, c.Label); err != nil {
		return err
	}
	if _, err = db.readHead(ctx); err != nil {
		return err
	}
	return nil
}

// newClient returns a client that has not connected yet.
func newClient(t target, timeout time.Duration) *redis.Client {
	// The library's own lines go to standard error past our log, and say nothing
	// that the errors of its calls do not.
	logging.Disable()
	return redis.NewClient(&redis.Options{
		Addr:     t.address,
		Username: t.username,
		Password: string(t.password.Bytes()),
		DB:       t.database,
		Dialer:   t.dial,
		Protocol: 2,
		// A write whose answer was lost may have been done: only Commit knows how
		// to find out.
		MaxRetries:               -1,
		DialerRetries:            1,
		DialTimeout:              timeout,
		ReadTimeout:              timeout,
		WriteTimeout:             timeout,
		ContextTimeoutEnabled:    true,
		PipelinePoolSize:         -1,
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}

// Ping tells whether the database answers.
func (db *DB) Ping(ctx context.Context) error {
	return db.askFor(ctx, shortPatience, "reaching", func(ctx context.Context) error {
		return db.client.Ping(ctx).Err()
	})
}

// Warnings are what the operator should know of how the server keeps data.
func (db *DB) Warnings() []string { return append([]string(nil), db.warnings...) }

// Close ends all connections. Closing again does nothing.
func (db *DB) Close() error {
	if err := db.client.Close(); err != nil && !errors.Is(err, redis.ErrClosed) {
		return fmt.Errorf("closing the Redis database: %w", describe(err))
	}
	return nil
}
