package sqldb

import (
	"context"
	"crypto/hmac"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"teekms/internal/registry"
	"teekms/internal/storage"
)

// Sizes of the columns of a rule in bytes.
const (
	maxKind    = 32
	maxSubject = 64
	maxValue   = 255
)

// canExist tells whether a rule fits the table: every database would hold it and
// give it back as it is.
func canExist(r registry.Rule) bool {
	fits := func(s string, limit int) bool {
		return len(s) <= limit && utf8.ValidString(s) && !strings.Contains(s, "\x00")
	}
	return r.Kind != "" && r.Value != "" && fits(string(r.Kind), maxKind) && fits(r.Subject, maxSubject) && fits(r.Value, maxValue)
}

// ruleMAC authenticates a rule and the revision that it was added with.
func (d *DB) ruleMAC(e registry.Entry) []byte {
	revision := binary.BigEndian.AppendUint64(nil, e.Revision)
	return mac(d.ruleKey, "teekms registry rule v1", []byte(e.Kind), []byte(e.Subject), []byte(e.Value), revision)
}

func (d *DB) verify(e registry.Entry, mac []byte) error {
	if !hmac.Equal(mac, d.ruleMAC(e)) {
		return fmt.Errorf("%w: the rule %s %q %q was not written by this KMS", storage.ErrIntegrity, e.Kind, e.Subject, e.Value)
	}
	return nil
}

// maxRulesAtOnce bounds the rules of one statement; more are asked for in
// several, in one snapshot.
const maxRulesAtOnce = 64

// Match implements [registry.Store].
func (d *DB) Match(ctx context.Context, rules []registry.Rule) (found []bool, revision uint64, err error) {
	// A rule that no database would hold does not exist.
	var asked []int
	for i, r := range rules {
		if canExist(r) {
			asked = append(asked, i)
		}
	}
	err = d.read(ctx, func(ctx context.Context) error {
		found = make([]bool, len(rules))
		if len(asked) > maxRulesAtOnce {
			revision, err = d.matchInSnapshot(ctx, rules, asked, found)
			return err
		}
		s, err := d.prepared(ctx, matchQuery(len(asked)))
		if err != nil {
			return err
		}
		revision, err = d.match(ctx, s, rules, asked, found)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return found, revision, nil
}

// matchInSnapshot is Match with more rules than one statement takes.
func (d *DB) matchInSnapshot(ctx context.Context, rules []registry.Rule, asked []int, found []bool) (revision uint64, err error) {
	tx, err := d.db.BeginTx(ctx, d.dialect.snapshot)
	if err != nil {
		return 0, err
	}
	// There is nothing to commit.
	defer func() { _ = tx.Rollback() }()
	for len(asked) > 0 {
		n := min(len(asked), maxRulesAtOnce)
		s, err := d.prepared(ctx, matchQuery(n))
		if err != nil {
			return 0, err
		}
		if revision, err = d.match(ctx, tx.StmtContext(ctx, s), rules, asked[:n], found); err != nil {
			return 0, err
		}
		asked = asked[n:]
	}
	return revision, nil
}

// matchQuery asks for the revision and for n rules: one look-up in the primary
// key each, however many rules there are, and one statement, which sees one
// state of the database.
func matchQuery(n int) string {
	var b strings.Builder
	b.WriteString("SELECT 0, revision, NULL FROM kms_head WHERE id = 1")
	for i := range n {
		fmt.Fprintf(&b, " UNION ALL SELECT %d, revision, mac FROM kms_rules WHERE kind = ? AND subject = ? AND value = ?", i+1)
	}
	return b.String()
}

func (d *DB) match(ctx context.Context, s *sql.Stmt, rules []registry.Rule, asked []int, found []bool) (uint64, error) {
	args := make([]any, 0, 3*len(asked))
	for _, i := range asked {
		args = append(args, string(rules[i].Kind), rules[i].Subject, rules[i].Value)
	}
	rows, err := s.QueryContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	current := int64(-1)
	for err == nil && rows.Next() {
		var branch, revision int64
		var mac []byte
		if err = rows.Scan(&branch, &revision, &mac); err != nil {
			break
		}
		if branch == 0 {
			current = revision
			continue
		}
		if branch < 0 || branch > int64(len(asked)) {
			err = errNotAsked()
			break
		}
		i := asked[branch-1]
		found[i] = true
		err = d.verify(registry.Entry{Rule: rules[i], Revision: uint64(revision)}, mac)
	}
	if err := errors.Join(err, rows.Err(), rows.Close()); err != nil {
		return 0, err
	}
	if current < 0 {
		return 0, errNoHead()
	}
	return uint64(current), nil
}

// defaultPage is the Limit of a query that has none.
const defaultPage = 1000

// List implements [registry.Store].
func (d *DB) List(ctx context.Context, q registry.Query) ([]registry.Entry, error) {
	if q.Limit <= 0 {
		q.Limit = defaultPage
	}
	// What no database would hold selects nothing, and nothing comes after it.
	if !canExist(registry.Rule{Kind: q.Kind, Subject: q.Subject, Value: registry.Any}) {
		return nil, nil
	}
	query, args := d.listQuery(q)
	var found []registry.Entry
	err := d.read(ctx, func(ctx context.Context) error {
		found = nil
		return d.each(ctx, query, args, func(rows *sql.Rows) error {
			e := registry.Entry{Rule: registry.Rule{Kind: q.Kind}}
			var revision int64
			var mac []byte
			if err := rows.Scan(&e.Subject, &e.Value, &revision, &mac); err != nil {
				return err
			}
			e.Revision = uint64(revision)
			last := q.After
			if len(found) > 0 {
				last = found[len(found)-1].Rule
			}
			if len(found) == q.Limit || !follows(e.Rule, last, q) {
				return errNotAsked()
			}
			found = append(found, e)
			return d.verify(e, mac)
		})
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// follows tells whether a rule comes after another in the answer to a query.
func follows(r, last registry.Rule, q registry.Query) bool {
	if q.Subject != "" {
		return r.Subject == q.Subject && r.Value > last.Value
	}
	return r.Subject > last.Subject || r.Subject == last.Subject && r.Value > last.Value
}

func (d *DB) listQuery(q registry.Query) (query string, args []any) {
	query, args = "SELECT subject, value, revision, mac FROM kms_rules WHERE kind = ?", []any{string(q.Kind)}
	if q.Subject != "" {
		query, args = query+" AND subject = ? AND value > ?", append(args, q.Subject, q.After.Value)
	} else {
		query, args = query+" AND "+d.dialect.after, append(args, d.dialect.afterArgs(q.After.Subject, q.After.Value)...)
	}
	return query + " ORDER BY subject, value LIMIT ?", append(args, q.Limit)
}
