package storagetest_test

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/ncruces/go-sqlite3/driver"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"teekms/internal/audit"
	"teekms/internal/keys"
	"teekms/internal/registry"
	"teekms/internal/storage"
	"teekms/internal/storage/redisdb"
	"teekms/internal/storage/sqldb"
	"teekms/internal/storage/storagetest"
	"teekms/internal/storage/storagetest/server"
)

var servers server.Group

func TestMain(m *testing.M) { goleak.VerifyTestMain(servers.Main(m)) }

func openSQL(ctx context.Context, c storage.Config) (storage.DB, error) { return sqldb.Open(ctx, c) }

func openRedis(ctx context.Context, c storage.Config) (storage.DB, error) {
	return redisdb.Open(ctx, c)
}

func backends() []storagetest.Backend {
	return []storagetest.Backend{
		storagetest.SQLite(storage.SQLite, openSQL),
		storagetest.SQLite(storage.SQLiteEncrypted, openSQL),
		storagetest.Served(&servers, server.PostgreSQL, openSQL),
		storagetest.Served(&servers, server.MariaDB, openSQL),
		storagetest.Served(&servers, server.Redis, openRedis),
	}
}

func openDB(b *testing.B, backend storagetest.Backend, c storage.Config) storage.DB {
	b.Helper()
	db, err := backend.Open(b.Context(), c)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := db.Close(); err != nil {
			b.Error(err)
		}
	})
	return db
}

// event is what the release of an application's keys records.
func event() audit.Event {
	hash := fmt.Sprintf("%064x", 0xabcdef)
	return audit.Event{Kind: audit.ReleaseAppKey, Fields: map[string]string{
		"app_id": hash[:40], "instance_id": hash[:40], "compose_hash": hash, "os_image_hash": hash, "mr_aggregated": hash,
		"device_id": hash, "tcb_status": "UpToDate", "public_key": hash + hash, "peer": "192.0.2.1:12345", "context": "app_key",
	}}
}

// percentile returns one of durations, which it sorts, in milliseconds.
func percentile(durations []time.Duration, p float64) float64 {
	if len(durations) == 0 {
		return 0
	}
	slices.Sort(durations)
	return float64(durations[min(len(durations)-1, int(p*float64(len(durations))))]) / float64(time.Millisecond)
}

// BenchmarkAppend appends to the audit log on every back end, all of them
// writing to the disk before they answer. floor-ms is the median of the bare
// work in the same run: one row of the same size in a transaction of its own on
// the same server, floor-p99-ms its 99th percentile; fsync-ms the median of a write and an fsync of the same bytes.
func BenchmarkAppend(b *testing.B) {
	for _, backend := range backends() {
		b.Run(backend.Name, func(b *testing.B) {
			srv, c := backend.Own(b, server.Options{Durable: true})
			db := openDB(b, backend, c)
			row, flush := newFloor(b, srv, c), newFsync(b)
			for _, writers := range []int{1, 8, 64} {
				b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
					const tries = 100
					floor, fsync := measure(b, tries, row), measure(b, tries, flush)
					benchmarkAppend(b, db, writers)
					b.ReportMetric(percentile(floor, 0.5), "floor-ms")
					b.ReportMetric(percentile(floor, 0.99), "floor-p99-ms")
					b.ReportMetric(percentile(fsync, 0.5), "fsync-ms")
				})
			}
		})
	}
}

func benchmarkAppend(b *testing.B, db storage.DB, writers int) {
	key := keys.NewSecret(make([]byte, 32))
	log, err := audit.New(audit.Config{Store: db, Identity: audit.Identity{Origin: "bench", Key: key, Signer: key}, Log: zap.NewNop()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = log.Close(context.Background()) })
	if _, err := log.Append(b.Context(), event()); err != nil {
		b.Fatal(err)
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	latencies := make([][]time.Duration, writers)
	var wg sync.WaitGroup
	b.ResetTimer()
	for w := range writers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				start := time.Now()
				if _, err := log.Append(b.Context(), event()); err != nil {
					b.Error(err)
					return
				}
				latencies[w] = append(latencies[w], time.Since(start))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	all := slices.Concat(latencies...)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appends/s")
	b.ReportMetric(percentile(all, 0.5), "p50-ms")
	b.ReportMetric(percentile(all, 0.99), "p99-ms")
}

// measure times f.
func measure(b *testing.B, n int, f func() error) []time.Duration {
	b.Helper()
	durations := make([]time.Duration, n)
	for i := range durations {
		start := time.Now()
		if err := f(); err != nil {
			b.Fatal(err)
		}
		durations[i] = time.Since(start)
	}
	return durations
}

// rowSize is about that of an encoded event with its hashes.
const rowSize = 1000

// newFsync returns what a log in a plain file would do.
func newFsync(b *testing.B) func() error {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "file"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	row := make([]byte, rowSize)
	return func() error {
		if _, err := f.Write(row); err != nil {
			return err
		}
		return f.Sync()
	}
}

// newFloor returns what writes one row and commits, with the driver alone.
func newFloor(b *testing.B, srv *server.Server, c storage.Config) func() error {
	b.Helper()
	row := make([]byte, rowSize)
	if srv != nil && srv.Kind == server.Redis {
		options, err := redis.ParseURL(string(c.URL.Bytes()))
		if err != nil {
			b.Fatal("the server's URL is malformed")
		}
		client := redis.NewClient(options)
		b.Cleanup(func() { _ = client.Close() })
		n := 0
		return func() error {
			n++
			return client.Set(b.Context(), "floor-"+strconv.Itoa(n), row, 0).Err()
		}
	}
	db, blob, placeholder := rawSQL(b, srv, c)
	if _, err := db.Exec("CREATE TABLE floor (id BIGINT PRIMARY KEY, body " + blob + ")"); err != nil {
		b.Fatal(err)
	}
	insert, err := db.Prepare("INSERT INTO floor VALUES (" + placeholder + ")")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = insert.Close() })
	n := 0
	return func() error {
		n++
		_, err := insert.Exec(n, row)
		return err
	}
}

// rawSQL opens a database beside ours with nothing but the driver: on the same
// server, or in a file with the same settings, in plain.
func rawSQL(b *testing.B, srv *server.Server, c storage.Config) (db *sql.DB, blob, placeholder string) {
	b.Helper()
	var err error
	switch {
	case srv == nil:
		db, err = sql.Open("sqlite3", "file:"+filepath.Join(b.TempDir(), "floor.db")+"?_pragma=journal_mode(wal)&_pragma=synchronous(full)")
		blob, placeholder = "BLOB", "?, ?"
	case srv.Kind == server.PostgreSQL:
		db, err = sql.Open("pgx", string(c.URL.Bytes()))
		blob, placeholder = "BYTEA", "$1, $2"
	default:
		var s storage.Server
		if s, err = c.Server(); err != nil {
			break
		}
		m := mysql.NewConfig()
		m.User, m.Passwd, m.Net, m.Addr, m.DBName = s.User, string(s.Password.Bytes()), "tcp", s.Host, s.Database
		connector, connectorErr := mysql.NewConnector(m)
		if connectorErr != nil {
			b.Fatal("the server's URL is malformed")
		}
		db = sql.OpenDB(connector)
		blob, placeholder = "LONGBLOB", "?, ?"
	}
	if err != nil {
		b.Fatal("the server's URL is malformed")
	}
	db.SetMaxOpenConns(1)
	b.Cleanup(func() { _ = db.Close() })
	return db, blob, placeholder
}

// BenchmarkDecide asks the registry for decisions with more and more
// applications in the database: the time must not grow with them. round-ms is the
// median of one question that the server answers without looking anything up.
func BenchmarkDecide(b *testing.B) {
	for _, backend := range backends() {
		b.Run(backend.Name, func(b *testing.B) {
			_, c := backend.Own(b, server.Options{})
			c.Timeout = time.Minute
			db := openDB(b, backend, c)
			policy, err := registry.New(registry.Config{Store: db})
			if err != nil {
				b.Fatal(err)
			}
			f := filler{db: db}
			f.add(b, []registry.Rule{
				{Kind: registry.TCBStatus, Value: "UpToDate"},
				{Kind: registry.Advisory, Value: registry.Any},
				{Kind: registry.OSImage, Value: hash(0)},
				{Kind: registry.App, Value: hash(0)[:40]},
				{Kind: registry.Compose, Subject: hash(0)[:40], Value: hash(0)},
				{Kind: registry.Device, Subject: hash(0)[:40], Value: registry.Any},
			})
			apps := 1
			for _, n := range sizes(backend) {
				for apps < n {
					var more []registry.Rule
					for ; apps < n && len(more) < 4096; apps++ {
						more = append(more, registry.Rule{Kind: registry.App, Value: hash(apps)[:40]})
					}
					f.add(b, more)
				}
				b.Run(fmt.Sprintf("apps=%d", n), func(b *testing.B) { benchmarkDecide(b, db, policy) })
			}
		})
	}
}

// sizes are the numbers of applications. Putting in a million takes minutes: one
// server stands for all.
func sizes(backend storagetest.Backend) []int {
	if backend.Kind == server.PostgreSQL {
		return []int{10, 10_000, 1_000_000}
	}
	return []int{10, 10_000, 100_000}
}

func benchmarkDecide(b *testing.B, db storage.DB, policy *registry.Policy) {
	h, err := hex.DecodeString(hash(0))
	if err != nil {
		b.Fatal(err)
	}
	w := registry.Workload{
		Subject: registry.SubjectApp, AppID: h[:20], ComposeHash: h, OSImageHash: h, DeviceID: h, TCBStatus: "UpToDate",
	}
	round := measure(b, 100, func() error { return db.Ping(b.Context()) })
	var latencies []time.Duration
	for b.Loop() {
		start := time.Now()
		if d, err := policy.Decide(b.Context(), w); err != nil || !d.Allowed {
			b.Fatalf("Decide() = %+v, %v, want it allowed", d, err)
		}
		latencies = append(latencies, time.Since(start))
	}
	b.ReportMetric(percentile(latencies, 0.5), "p50-ms")
	b.ReportMetric(percentile(latencies, 0.99), "p99-ms")
	b.ReportMetric(percentile(round, 0.5), "round-ms")
}

// hash is 64 hex digits that spread.
func hash(n int) string {
	return fmt.Sprintf("%016x%048x", uint64(n+1)*0x9e3779b97f4a7c15, n)
}

// filler adds rules without an audit log.
type filler struct {
	db       storage.DB
	revision uint64
}

func (f *filler) add(b *testing.B, rules []registry.Rule) {
	b.Helper()
	f.revision++
	batch := audit.Batch{Head: []byte("head"), Revision: f.revision}
	for _, r := range rules {
		batch.Edits = append(batch.Edits, registry.Edit{Op: registry.Add, Rule: r})
	}
	if err := f.db.Commit(b.Context(), func([]byte) (audit.Batch, error) { return batch, nil }); err != nil {
		b.Fatal(err)
	}
}
