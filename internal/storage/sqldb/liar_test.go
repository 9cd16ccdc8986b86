package sqldb_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"io"
	"testing"

	"teekms/internal/audit"
	"teekms/internal/registry"
	"teekms/internal/storage"
	"teekms/internal/storage/sqldb"
)

// liar is a database that answers every question with the same rows.
type liar [][]driver.Value

func (l liar) Connect(context.Context) (driver.Conn, error) { return l, nil }
func (l liar) Driver() driver.Driver                        { return l }
func (l liar) Open(string) (driver.Conn, error)             { return l, nil }
func (l liar) Prepare(string) (driver.Stmt, error)          { return l, nil }
func (l liar) Begin() (driver.Tx, error)                    { return nil, driver.ErrSkip }
func (l liar) Close() error                                 { return nil }
func (l liar) NumInput() int                                { return -1 }
func (l liar) Exec([]driver.Value) (driver.Result, error)   { return nil, driver.ErrSkip }
func (l liar) Query([]driver.Value) (driver.Rows, error)    { return &lies{l}, nil }

// lies are the rows that are left.
type lies struct{ rest liar }

func (l *lies) Columns() []string { return make([]string, len(l.rest[0])) }
func (l *lies) Close() error      { return nil }
func (l *lies) Next(dest []driver.Value) error {
	if len(l.rest) == 0 {
		return io.EOF
	}
	copy(dest, l.rest[0])
	l.rest = l.rest[1:]
	return nil
}

func TestDatabasesThatLie(t *testing.T) {
	id, other, nodes := eventID(1), eventID(2), make([]byte, 32)
	record := func(seq int64) []driver.Value { return []driver.Value{seq, id[:], []byte("x"), nodes} }
	asked := []registry.Rule{rule(registry.App, "", "x")}
	reading := func(f func(db *sqldb.DB) error) func(*sqldb.DB) error { return f }
	readRows := reading(func(db *sqldb.DB) error { _, err := db.Rows(t.Context(), 5, 2); return err })
	match := reading(func(db *sqldb.DB) error { _, _, err := db.Match(t.Context(), asked); return err })
	find := reading(func(db *sqldb.DB) error { _, _, err := db.Find(t.Context(), other); return err })
	readNodes := reading(func(db *sqldb.DB) error { _, err := db.Nodes(t.Context(), []uint64{5}); return err })
	list := reading(func(db *sqldb.DB) error {
		_, err := db.List(t.Context(), registry.Query{Kind: registry.App, After: rule(registry.App, "", "m")})
		return err
	})
	listOne := reading(func(db *sqldb.DB) error {
		_, err := db.List(t.Context(), registry.Query{Kind: registry.Compose, Subject: "a"})
		return err
	})
	const notAsked = "it answered what it was not asked"
	tests := []struct {
		name   string
		answer liar
		ask    func(*sqldb.DB) error
		want   string
	}{
		{"records from before", liar{record(4)}, readRows, notAsked},
		{"more records", liar{record(5), record(6), record(7)}, readRows, notAsked},
		{"a record twice", liar{record(5), record(5)}, readRows, notAsked},
		{"a negative place", liar{record(-1)}, readRows, "record -1 of the audit log is malformed"},
		{"a short id", liar{{int64(5), id[:15], []byte("x"), nodes}}, readRows, "record 5 of the audit log is malformed"},
		{"a large body", liar{{int64(5), id[:], make([]byte, 1<<20+1), nodes}}, readRows, "record 5 of the audit log is malformed"},
		{"many hashes", liar{{int64(5), id[:], []byte("x"), make([]byte, 66*32)}}, readRows, "record 5 of the audit log is malformed"},
		{"another event's record", liar{record(5)}, find, notAsked},
		{"another record's hashes", liar{{int64(6), nodes}}, readNodes, notAsked},
		{"hashes without end", liar{{int64(5), make([]byte, 66*32)}}, readNodes, notAsked},
		{"a rule that nobody asked for", liar{{int64(0), int64(1), nil}, {int64(2), int64(1), nodes}}, match, notAsked},
		{"a rule before the first", liar{{int64(-1), int64(1), nodes}}, match, notAsked},
		{"a rule without a revision of all", liar{{int64(1), int64(1), nodes}}, match, `the rule app "" "x" was not written by this KMS`},
		{"a negative revision", liar{{int64(0), int64(-1), nil}}, match, "the head of the audit log was removed"},
		{"rules from before", liar{{"", "a", int64(1), nodes}}, list, notAsked},
		{"another application's rules", liar{{"b", "z", int64(1), nodes}}, listOne, notAsked},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			db := sqldb.Over(sql.OpenDB(tt.answer))
			wantError(t, tt.ask(db), tt.want, storage.ErrIntegrity)
			if err := db.Close(); err != nil {
				t.Errorf("Close = %v, want nil", err)
			}
		})
	}
}

func TestPlaintextStaysOnThisMachine(t *testing.T) {
	here := storage.Server{Endpoint: storage.Endpoint{Loopback: true}}
	// An address of documentation: where it is dialed, there is no answer.
	_, err := sqldb.Dial(here).DialContext(t.Context(), "tcp", "192.0.2.1:5432")
	wantError(t, sqldb.Describe(storage.PostgreSQL, err), "is not of this machine, as a connection without TLS must be", nil)
	_, err = sqldb.Dial(here).DialContext(t.Context(), "tcp", "127.0.0.1:1")
	wantError(t, sqldb.Describe(storage.PostgreSQL, err), "nothing listens there", storage.ErrUnavailable)
}

func TestClosed(t *testing.T) {
	db, err := sqldb.Open(t.Context(), config(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = db.Head(t.Context())
	wantError(t, err, "the database was closed", nil)
	wantError(t, db.Commit(t.Context(), write(audit.Batch{})), "the database was closed", nil)
	wantError(t, db.Ping(t.Context()), "the database was closed", nil)
}
