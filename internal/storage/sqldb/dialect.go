package sqldb

import (
	"context"
	"database/sql"
	"strconv"
	"strings"

	"github.com/pressly/goose/v3"
)

// dialect is what the databases do differently.
type dialect struct {
	name  string
	goose goose.Dialect
	// numbered says that placeholders are $1, $2, not question marks.
	numbered bool
	// types are what the migrations' templates are filled in with.
	types types
	// lockRow ends the statement that reads the head in order to change it.
	lockRow string
	// onConflict ends an insert of rules that leaves those that are there.
	onConflict string
	// after selects (subject, value) after a pair, by afterArgs.
	after     string
	afterArgs func(subject, value string) []any
	// clearLimit bounds the rows that one statement deletes; 0 is no bound.
	clearLimit int64
	// tables counts the tables of a name that an unqualified name reaches.
	tables string
	// write are the options of a transaction that writes, snapshot of one that
	// reads with several statements.
	write, snapshot *sql.TxOptions
	// lock keeps other processes from migrating until unlock.
	lock func(ctx context.Context, db *sql.DB) (unlock func(), err error)
	// fault says what an error of the driver means; nil where it is none of its.
	fault func(err error) *fault
	// warnings look at what the operator should know.
	warnings func(ctx context.Context, db *sql.DB) ([]string, error)
}

// types are column types and table suffixes.
type types struct {
	// Int holds 64 bits, ID 16 bytes, Bytes up to 16 MiB; Short, Text and Long are
	// ordered bytewise and hold 32, 64 and 255 bytes.
	Int, ID, Bytes, Short, Text, Long string
	// Table ends the definition of a table, KeyedTable of one without a number as
	// its key.
	Table, KeyedTable string
}

// afterRow is the portable way; afterOr is for those that do not use an index
// for it.
const (
	afterRow = "(subject, value) > (?, ?)"
	afterOr  = "(subject > ? OR subject = ? AND value > ?)"
)

func afterRowArgs(subject, value string) []any { return []any{subject, value} }

func afterOrArgs(subject, value string) []any { return []any{subject, subject, value} }

// rebind writes the placeholders of a query the dialect's way. No query of this
// package has a question mark for anything else.
func (l *dialect) rebind(query string) string {
	if !l.numbered {
		return query
	}
	var b strings.Builder
	n := 0
	for part := range strings.SplitSeq(query, "?") {
		if n > 0 {
			b.WriteString("$" + strconv.Itoa(n))
		}
		b.WriteString(part)
		n++
	}
	return b.String()
}
