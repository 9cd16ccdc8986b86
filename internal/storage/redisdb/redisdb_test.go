package redisdb_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"teekms/internal/audit"
	"teekms/internal/keys"
	"teekms/internal/registry"
	"teekms/internal/storage"
	"teekms/internal/storage/redisdb"
	"teekms/internal/storage/storagetest/server"
)

const (
	masterPassword = "correct horse battery staple"
	label          = "production-label"
)

// database is an empty database of the shared server.
type database struct {
	server *server.Server
	number string
}

func newDatabase(t *testing.T) database {
	t.Helper()
	s := servers.Shared(t, server.Redis)
	return database{server: s, number: s.NewDatabase(t)}
}

// config opens it.
func (d database) config() storage.Config { return configFor(d.server.URL(d.number)) }

func configFor(url string) storage.Config {
	return storage.Config{
		Type: storage.RedisFindex, URL: secret(url), MasterPassword: secret(masterPassword), Label: label,
		Root: sha256.Sum256([]byte("root")), Key: keyOf("key"), Log: zap.NewNop(),
	}
}

// client reaches it as its server does.
func (d database) client(t *testing.T) *redis.Client {
	t.Helper()
	return clientOf(t, d.server.URL(d.number))
}

func clientOf(t *testing.T, url string) *redis.Client {
	t.Helper()
	o, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal("the URL of the test server does not parse")
	}
	c := redis.NewClient(o)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func secret(s string) keys.Secret { return keys.NewSecret([]byte(s)) }

func keyOf(name string) keys.Secret {
	sum := sha256.Sum256([]byte(name))
	return keys.NewSecret(sum[:])
}

func mustOpen(t *testing.T, c storage.Config) *redisdb.DB {
	t.Helper()
	db, err := redisdb.Open(t.Context(), c)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func eventID(n uint64) (id [audit.IDSize]byte) {
	copy(id[:], "event-id")
	binary.BigEndian.PutUint64(id[8:], n)
	return id
}

func body(seq uint64) []byte { return fmt.Appendf(nil, "body-of-record-%d", seq) }

// appending is a build that appends rows, whose head is their number, and edits.
func appending(n int, edits ...registry.Edit) func([]byte) (audit.Batch, error) {
	return func(head []byte) (audit.Batch, error) {
		var size, revision uint64
		if len(head) == 16 {
			size, revision = binary.BigEndian.Uint64(head), binary.BigEndian.Uint64(head[8:])
		}
		var b audit.Batch
		for range n {
			leaf := sha256.Sum256(body(size))
			b.Rows = append(b.Rows, audit.Row{Seq: size, EventID: eventID(size), Body: body(size), Nodes: leaf[:]})
			size++
		}
		if len(edits) > 0 {
			revision++
			b.Edits, b.Revision = edits, revision
		}
		b.Head = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, size), revision)
		return b, nil
	}
}

func commit(t *testing.T, db *redisdb.DB, n int, edits ...registry.Edit) {
	t.Helper()
	if err := db.Commit(t.Context(), appending(n, edits...)); err != nil {
		t.Fatalf("Commit: %v", err)
	}
}

func app(value string) registry.Rule { return registry.Rule{Kind: registry.App, Value: value} }

func add(rules ...registry.Rule) (edits []registry.Edit) {
	for _, r := range rules {
		edits = append(edits, registry.Edit{Op: registry.Add, Rule: r})
	}
	return edits
}

func TestRowsAreReadBackByAnotherProcess(t *testing.T) {
	d := newDatabase(t)
	db := mustOpen(t, d.config())
	commit(t, db, 3)
	commit(t, db, 150)
	other := mustOpen(t, d.config())
	rows, err := other.Rows(t.Context(), 1, 1000)
	if err != nil || len(rows) != 152 {
		t.Fatalf("Rows(1, 1000) = %d rows, %v, want 152", len(rows), err)
	}
	for i, r := range rows {
		if want := uint64(i) + 1; r.Seq != want || r.EventID != eventID(want) || !bytes.Equal(r.Body, body(want)) {
			t.Fatalf("Rows(1, 1000)[%d] = %+v", i, r)
		}
	}
	row, ok, err := other.Find(t.Context(), eventID(77))
	if err != nil || !ok || row.Seq != 77 {
		t.Errorf("Find(77) = %d, %v, %v, want row 77", row.Seq, ok, err)
	}
}

// TestRulesAgainstAMap runs random batches against a map of rules, with List and
// Match of this and of another process after each.
func TestRulesAgainstAMap(t *testing.T) {
	d := newDatabase(t)
	db, other := mustOpen(t, d.config()), mustOpen(t, d.config())
	model := make(map[registry.Rule]uint64)
	for round := range uint64(30) {
		edits := randomEdits(t, 400)
		commit(t, db, 1, edits...)
		applyTo(model, edits, round+1)
		for _, reader := range []*redisdb.DB{db, other} {
			compareWith(t, reader, model)
		}
	}
}

func randomInt(t *testing.T, n int) int {
	t.Helper()
	var b [4]byte
	_, _ = rand.Read(b[:])
	return int(binary.BigEndian.Uint32(b[:])) % n
}

func randomEdits(t *testing.T, n int) []registry.Edit {
	t.Helper()
	edits := make([]registry.Edit, n)
	for i := range edits {
		e := registry.Edit{Op: registry.Add}
		switch randomInt(t, 100) {
		case 0:
			e.Op = registry.RemoveAll
		case 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20:
			e.Op = registry.Remove
		}
		e.Rule.Kind = []registry.Kind{registry.App, registry.Compose, registry.Device, registry.OSImage}[randomInt(t, 4)]
		if e.Rule.Kind == registry.Compose || e.Rule.Kind == registry.Device {
			e.Rule.Subject = fmt.Sprintf("subject-%d", randomInt(t, 3))
		}
		if e.Op != registry.RemoveAll {
			e.Rule.Value = fmt.Sprintf("value-%04d", randomInt(t, 1500))
		}
		edits[i] = e
	}
	return edits
}

func applyTo(model map[registry.Rule]uint64, edits []registry.Edit, revision uint64) {
	for _, e := range edits {
		switch e.Op {
		case registry.Add:
			if model[e.Rule] == 0 {
				model[e.Rule] = revision
			}
		case registry.Remove:
			delete(model, e.Rule)
		case registry.RemoveAll:
			for r := range model {
				if r.Kind == e.Rule.Kind && r.Subject == e.Rule.Subject {
					delete(model, r)
				}
			}
		}
	}
}

func compareWith(t *testing.T, db *redisdb.DB, model map[registry.Rule]uint64) {
	t.Helper()
	var want, got []registry.Entry
	var rules []registry.Rule
	for r, revision := range model {
		want = append(want, registry.Entry{Rule: r, Revision: revision})
	}
	for _, kind := range []registry.Kind{registry.App, registry.Compose, registry.Device, registry.OSImage} {
		got = append(got, listAll(t, db, registry.Query{Kind: kind, Limit: 97})...)
		for i := range 60 {
			r := registry.Rule{Kind: kind, Value: fmt.Sprintf("value-%04d", i*25)}
			if kind == registry.Compose || kind == registry.Device {
				r.Subject = fmt.Sprintf("subject-%d", i%3)
			}
			rules = append(rules, r)
		}
	}
	less := func(a, b registry.Entry) bool {
		return fmt.Sprint(a.Kind, "\x00", a.Subject, "\x00", a.Value) < fmt.Sprint(b.Kind, "\x00", b.Subject, "\x00", b.Value)
	}
	if diff := cmp.Diff(want, got, cmpopts.SortSlices(less), cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("List differs (-want +got):\n%s", diff)
	}
	found, _, err := db.Match(t.Context(), rules)
	if err != nil {
		t.Fatalf("Match: %v", err)
	}
	for i, r := range rules {
		if _, want := model[r]; found[i] != want {
			t.Errorf("Match(%+v) = %v, want %v", r, found[i], want)
		}
	}
}

// listAll reads all pages and checks their order.
func listAll(t *testing.T, db *redisdb.DB, q registry.Query) []registry.Entry {
	t.Helper()
	var all []registry.Entry
	for {
		page, err := db.List(t.Context(), q)
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		for _, e := range page {
			if n := len(all); n > 0 && (all[n-1].Subject > e.Subject || all[n-1].Subject == e.Subject && all[n-1].Value >= e.Value) {
				t.Fatalf("List has %+v after %+v", e.Rule, all[n-1].Rule)
			}
			all = append(all, e)
		}
		if len(page) < q.Limit || q.Limit == 0 {
			return all
		}
		q.After = page[len(page)-1].Rule
	}
}

func TestListOfOneSubject(t *testing.T) {
	db := mustOpen(t, newDatabase(t).config())
	var edits []registry.Edit
	for s := range 5 {
		for v := range 100 {
			edits = append(edits, add(registry.Rule{Kind: registry.Compose, Subject: fmt.Sprint("s", s), Value: fmt.Sprintf("v%03d", v)})...)
		}
	}
	commit(t, db, 1, edits...)
	if got := listAll(t, db, registry.Query{Kind: registry.Compose, Subject: "s3", Limit: 30}); len(got) != 100 || got[0].Subject != "s3" || got[99].Value != "v099" {
		t.Errorf("List of s3 = %d entries, want its 100", len(got))
	}
	if got := listAll(t, db, registry.Query{Kind: registry.Compose, Limit: 77}); len(got) != 500 {
		t.Errorf("List of all subjects = %d entries, want 500", len(got))
	}
}

func TestLargeBatch(t *testing.T) {
	db := mustOpen(t, newDatabase(t).config())
	var edits []registry.Edit
	for i := range 4096 {
		edits = append(edits, add(app(fmt.Sprintf("%040x", i*7919)))...)
	}
	err := db.Commit(t.Context(), func(head []byte) (audit.Batch, error) {
		b, err := appending(256, edits...)(head)
		for i := range b.Rows {
			b.Rows[i].Body = bytes.Repeat([]byte{byte(i)}, 1024)
		}
		return b, err
	})
	if err != nil {
		t.Fatalf("Commit of 256 rows and 4096 edits: %v", err)
	}
	if got := listAll(t, db, registry.Query{Kind: registry.App, Limit: 1000}); len(got) != 4096 {
		t.Errorf("List = %d entries, want 4096", len(got))
	}
}

func TestClear(t *testing.T) {
	d := newDatabase(t)
	db, other := mustOpen(t, d.config()), mustOpen(t, d.config())
	commit(t, db, 20, add(app("a"), app("b"))...)
	if err := other.Commit(t.Context(), func([]byte) (audit.Batch, error) {
		b, err := appending(1, add(app("c"))...)(nil)
		b.Clear, b.Revision = true, 2
		return b, err
	}); err != nil {
		t.Fatalf("Commit with Clear: %v", err)
	}
	rows, err := db.Rows(t.Context(), 0, 100)
	if err != nil || len(rows) != 1 {
		t.Errorf("Rows after Clear = %d, %v, want 1", len(rows), err)
	}
	found, revision, err := db.Match(t.Context(), []registry.Rule{app("a"), app("b"), app("c")})
	if err != nil || revision != 2 || !cmp.Equal(found, []bool{false, false, true}) {
		t.Errorf("Match after Clear = %v, %d, %v, want only c at 2", found, revision, err)
	}
	c := d.client(t)
	names := c.Keys(t.Context(), "*").Val()
	if len(names) != 1 {
		t.Fatalf("the server keeps the keys %q, want one", names)
	}
	// Header, head, a row, its event and a node.
	if n := c.HLen(t.Context(), names[0]).Val(); n != 5 {
		t.Errorf("the server keeps %d fields, want 5", n)
	}
}

func TestCommitsOfEightWritersAreAllThereOnce(t *testing.T) {
	const writers, each = 8, 25
	d := newDatabase(t)
	errs := make(chan error, writers)
	for w := range writers {
		db := mustOpen(t, d.config())
		go func() {
			var err error
			for i := 0; i < each && err == nil; i++ {
				err = db.Commit(context.Background(), func(head []byte) (audit.Batch, error) {
					b, err := appending(1, add(app(fmt.Sprintf("%d-%d", w, i)))...)(head)
					b.Rows[0].EventID = eventID(uint64(w*1000 + i))
					return b, err
				})
			}
			errs <- err
		}()
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Errorf("Commit: %v", err)
		}
	}
	db := mustOpen(t, d.config())
	rows, err := db.Rows(t.Context(), 0, 1000)
	seen := make(map[[audit.IDSize]byte]bool)
	for _, r := range rows {
		seen[r.EventID] = true
	}
	if err != nil || len(rows) != writers*each || len(seen) != writers*each {
		t.Errorf("Rows = %d with %d events, %v, want %d of each", len(rows), len(seen), err, writers*each)
	}
	if got := listAll(t, db, registry.Query{Kind: registry.App, Limit: 50}); len(got) != writers*each {
		t.Errorf("List = %d rules, want %d", len(got), writers*each)
	}
}
