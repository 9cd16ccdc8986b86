package redisdb_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"teekms/internal/audit"
	"teekms/internal/registry"
	"teekms/internal/storage"
	"teekms/internal/storage/redisdb"
)

// onlyKey is the key of the one database that is there.
func onlyKey(t *testing.T, c *redis.Client) string {
	t.Helper()
	names := c.Keys(t.Context(), "*").Val()
	if len(names) != 1 {
		t.Fatalf("the server keeps the keys %q, want one", names)
	}
	return names[0]
}

// set changes a field as a hostile server does.
func set(t *testing.T, c *redis.Client, key, field, value string) {
	t.Helper()
	if err := c.HSet(t.Context(), key, field, value).Err(); err != nil {
		t.Fatal(err)
	}
}

// refusedAs opens a database that must not open.
func refusedAs(t *testing.T, c storage.Config, want error) error {
	t.Helper()
	db, err := redisdb.Open(t.Context(), c)
	if err == nil {
		_ = db.Close()
	}
	if !errors.Is(err, want) {
		t.Errorf("Open = %v, want %v", err, want)
	}
	return err
}

func TestChangedHeadersAreRefused(t *testing.T) {
	d := newDatabase(t)
	mustOpen(t, d.config())
	c := d.client(t)
	key := onlyKey(t, c)
	good := c.HGet(t.Context(), key, "header").Val()
	if len(good) != redisdb.HeaderSize {
		t.Fatalf("the header has %d bytes, want %d", len(good), redisdb.HeaderSize)
	}
	flip := func(at int) string { return good[:at] + string([]byte{good[at] ^ 1}) + good[at+1:] }
	tests := []struct {
		name   string
		header string
		want   error
	}{
		{"magic", flip(0), storage.ErrWrongKey},
		{"version", flip(14), storage.ErrWrongKey},
		{"time", flip(19), storage.ErrIntegrity},
		{"memory", flip(23), storage.ErrIntegrity},
		{"threads", flip(27), storage.ErrIntegrity},
		{"salt", flip(28), storage.ErrIntegrity},
		{"salt is too", flip(28), storage.ErrWrongKey},
		{"nonce of the wrap", flip(76), storage.ErrIntegrity},
		{"wrapped key", flip(100), storage.ErrIntegrity},
		{"tag of the wrap", flip(147), storage.ErrIntegrity},
		{"tag", flip(179), storage.ErrIntegrity},
		{"truncated", good[:len(good)-1], storage.ErrWrongKey},
		{"extended", good + "x", storage.ErrWrongKey},
		{"empty", "", storage.ErrWrongKey},
		{"cost too low", good[:16] + "\x00\x00\x00\x01" + good[20:], storage.ErrIntegrity},
		{"memory without end", good[:20] + "\x7f\xff\xff\xff" + good[24:], storage.ErrIntegrity},
		{"time without end", good[:16] + "\xff\xff\xff\xff" + good[20:], storage.ErrIntegrity},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set(t, c, key, "header", tt.header)
			refusedAs(t, d.config(), tt.want)
		})
	}
	t.Run("root", func(t *testing.T) {
		set(t, c, key, "header", flip(44))
		db, err := redisdb.Open(t.Context(), d.config())
		if err == nil {
			_ = db.Close()
		}
		other, ok := errors.AsType[*storage.OtherRootError](err)
		if !ok || other.KMS != d.config().Root || other.Database == other.KMS {
			t.Errorf("Open with another root in the header = %v, want both roots named", err)
		}
	})
	set(t, c, key, "header", good)
	mustOpen(t, d.config())
}

func TestOnlyItsOwnKeysOpenADatabase(t *testing.T) {
	d := newDatabase(t)
	commit(t, mustOpen(t, d.config()), 1)
	tests := []struct {
		name   string
		change func(*storage.Config)
		want   string
	}{
		{"another password", func(c *storage.Config) { c.MasterPassword = secret("guess") }, "master password"},
		{"the password without the KMS's key", func(c *storage.Config) { c.Key = keyOf("thief") }, "does not authenticate"},
		{"another label", func(c *storage.Config) { c.Label = "mistyped" }, "another label"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := d.config()
			tt.change(&c)
			if err := refusedAs(t, c, storage.ErrWrongKey); !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v, want %q in it", err, tt.want)
			}
		})
	}
	t.Run("a KMS of other root keys has a label of its own", func(t *testing.T) {
		c := d.config()
		c.Label, c.Root, c.Key = "theirs", sha256.Sum256([]byte("their root")), keyOf("their key")
		mustOpen(t, c)
	})
}

func TestAHeaderUnderAnotherLabelIsRefused(t *testing.T) {
	d, other := newDatabase(t), newDatabase(t)
	mustOpen(t, d.config())
	moved := other.config()
	moved.Label = "another label"
	mustOpen(t, moved)
	from, to := d.client(t), other.client(t)
	set(t, to, onlyKey(t, to), "header", from.HGet(t.Context(), onlyKey(t, from), "header").Val())
	refusedAs(t, moved, storage.ErrWrongKey)
}

func TestMissingHeaderOrHeadIsNoNewDatabase(t *testing.T) {
	for _, field := range []string{"header", "head"} {
		t.Run(field, func(t *testing.T) {
			d := newDatabase(t)
			db := mustOpen(t, d.config())
			commit(t, db, 1)
			c := d.client(t)
			if n := c.HDel(t.Context(), onlyKey(t, c), field).Val(); n != 1 {
				t.Fatalf("HDEL removed %d fields", n)
			}
			if err := refusedAs(t, d.config(), storage.ErrIntegrity); !strings.Contains(err.Error(), "missing") {
				t.Errorf("Open = %v, want that it is missing", err)
			}
		})
	}
}

// rowFields returns the names of the fields of rows, found by their size, in the
// order of the commits that wrote them.
func rowFields(t *testing.T, db *redisdb.DB, c *redis.Client, n int) (rows, events []string) {
	t.Helper()
	key := onlyKey(t, c)
	known := c.HGetAll(t.Context(), key).Val()
	for range n {
		err := db.Commit(t.Context(), func(head []byte) (audit.Batch, error) {
			b, err := appending(1)(head)
			b.Rows[0].Body = bytes.Repeat([]byte("x"), 1000)
			return b, err
		})
		if err != nil {
			t.Fatal(err)
		}
		for field, value := range c.HGetAll(t.Context(), key).Val() {
			if _, ok := known[field]; ok {
				continue
			}
			known[field] = value
			if len(value) > 1000 {
				rows = append(rows, field)
			} else {
				events = append(events, field)
			}
		}
	}
	if len(rows) != n || len(events) != n {
		t.Fatalf("%d rows and %d events are stored, want %d", len(rows), len(events), n)
	}
	return rows, events
}

func TestChangedRowsAreNoticed(t *testing.T) {
	read := map[string]func(context.Context, *redisdb.DB) error{
		"Rows":  func(ctx context.Context, db *redisdb.DB) error { _, err := db.Rows(ctx, 0, 10); return err },
		"Find":  func(ctx context.Context, db *redisdb.DB) error { _, _, err := db.Find(ctx, eventID(1)); return err },
		"Nodes": func(ctx context.Context, db *redisdb.DB) error { _, err := db.Nodes(ctx, []uint64{1}); return err },
	}
	tests := []struct {
		name   string
		change func(t *testing.T, c *redis.Client, key string, rows, events []string)
		only   string
	}{
		{name: "removed", change: func(t *testing.T, c *redis.Client, key string, rows, _ []string) {
			t.Helper()
			if n := c.HDel(t.Context(), key, rows[1]).Val(); n != 1 {
				t.Fatalf("HDEL removed %d fields", n)
			}
		}},
		{name: "moved", change: func(t *testing.T, c *redis.Client, key string, rows, _ []string) {
			t.Helper()
			set(t, c, key, rows[1], c.HGet(t.Context(), key, rows[0]).Val())
		}},
		{name: "one bit", change: func(t *testing.T, c *redis.Client, key string, rows, _ []string) {
			t.Helper()
			value := []byte(c.HGet(t.Context(), key, rows[1]).Val())
			value[len(value)/2] ^= 1
			set(t, c, key, rows[1], string(value))
		}},
		{name: "events swapped", only: "Find", change: func(t *testing.T, c *redis.Client, key string, _, events []string) {
			t.Helper()
			set(t, c, key, events[1], c.HGet(t.Context(), key, events[0]).Val())
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDatabase(t)
			db := mustOpen(t, d.config())
			c := d.client(t)
			rows, events := rowFields(t, db, c, 3)
			tt.change(t, c, onlyKey(t, c), rows, events)
			for name, f := range read {
				if err := f(t.Context(), db); !errors.Is(err, storage.ErrIntegrity) && (tt.only == "" || tt.only == name) {
					t.Errorf("%s = %v, want %v", name, err, storage.ErrIntegrity)
				}
			}
		})
	}
}

// TestRemovedRulesCannotBeBroughtBack is what blind keys alone would not give:
// the server keeps what it once stored and puts it where it was.
func TestRemovedRulesCannotBeBroughtBack(t *testing.T) {
	d := newDatabase(t)
	db := mustOpen(t, d.config())
	c := d.client(t)
	commit(t, db, 1, add(app("allowed"), app("stays"))...)
	key := onlyKey(t, c)
	before := c.HGetAll(t.Context(), key).Val()
	commit(t, db, 1, registry.Edit{Op: registry.Remove, Rule: app("allowed")})
	after := c.HGetAll(t.Context(), key).Val()

	var oldNode, newNode string
	for field := range before {
		if _, ok := after[field]; !ok {
			oldNode = field
			set(t, c, key, field, before[field])
		}
	}
	if oldNode == "" {
		t.Fatal("the node of the removed rule is still there")
	}
	fresh := mustOpen(t, d.config())
	found, _, err := fresh.Match(t.Context(), []registry.Rule{app("allowed"), app("stays")})
	if err != nil || !slices.Equal(found, []bool{false, true}) {
		t.Errorf("Match with the old node in its place = %v, %v, want only the rule that stays", found, err)
	}
	// Which field is the node: the one whose loss Match notices.
	for field, value := range after {
		if before[field] != "" || field == "head" || field == "header" {
			continue
		}
		set(t, c, key, field, before[oldNode])
		if _, _, err := mustOpen(t, d.config()).Match(t.Context(), []registry.Rule{app("allowed")}); err != nil {
			newNode = field
			if !errors.Is(err, storage.ErrIntegrity) {
				t.Errorf("Match with the old node in the new one's place = %v, want %v", err, storage.ErrIntegrity)
			}
		}
		set(t, c, key, field, value)
	}
	if newNode == "" {
		t.Fatal("Match noticed no change")
	}
	c.HDel(t.Context(), key, newNode)
	hidden := mustOpen(t, d.config())
	if _, _, err := hidden.Match(t.Context(), []registry.Rule{app("stays")}); !errors.Is(err, storage.ErrIntegrity) {
		t.Errorf("Match with the node hidden = %v, want %v", err, storage.ErrIntegrity)
	}
	if _, err := hidden.List(t.Context(), registry.Query{Kind: registry.App}); !errors.Is(err, storage.ErrIntegrity) {
		t.Errorf("List with the node hidden = %v, want %v", err, storage.ErrIntegrity)
	}
}

func TestARunningKMSNoticesThatTheServerGoesBack(t *testing.T) {
	d := newDatabase(t)
	db := mustOpen(t, d.config())
	c := d.client(t)
	commit(t, db, 1)
	key := onlyKey(t, c)
	old := c.HGet(t.Context(), key, "head").Val()
	commit(t, db, 1)
	set(t, c, key, "head", old)
	if _, err := db.Head(t.Context()); !errors.Is(err, storage.ErrIntegrity) {
		t.Errorf("Head of before = %v, want %v", err, storage.ErrIntegrity)
	}
	if err := db.Commit(t.Context(), appending(1)); !errors.Is(err, storage.ErrIntegrity) {
		t.Errorf("Commit on the head of before = %v, want %v", err, storage.ErrIntegrity)
	}
}

func TestTheServerSeesNothingInPlain(t *testing.T) {
	d := newDatabase(t)
	db := mustOpen(t, d.config())
	c := d.client(t)
	value, subject := strings.Repeat("5ec2e7", 10), strings.Repeat("5ab1ec", 6)
	var edits []registry.Edit
	for _, kind := range []registry.Kind{registry.Gateway, registry.TCBStatus, registry.Advisory, registry.OSImage, registry.KMS, registry.KMSDevice, registry.App, registry.Compose, registry.Device} {
		for i := range 40 {
			edits = append(edits, add(registry.Rule{Kind: kind, Subject: subject, Value: fmt.Sprintf("%s%02d", value, i)})...)
		}
	}
	commit(t, db, 50, edits...)

	plain := []string{
		masterPassword, label, value, subject, "app_compose", "tcb_status", "advisory", "os_image", "kms_device", "app_device", "gateway",
		"body-of-record", "event-id", hex.EncodeToString([]byte("event-id")), string(d.config().Key.Bytes()), hex.EncodeToString(d.config().Key.Bytes()),
	}
	leaf := sha256.Sum256(body(7))
	plain = append(plain, string(leaf[:]))
	key := onlyKey(t, c)
	fields := c.HGetAll(t.Context(), key).Val()
	if len(fields) < 100+2+10 {
		t.Fatalf("the server keeps %d fields", len(fields))
	}
	everything := key
	for field, stored := range fields {
		everything += "\n" + field + "\n" + stored
	}
	for _, p := range plain {
		if n := strings.Count(everything, p); n != 0 {
			t.Errorf("%q is stored in plain %d times", p, n)
		}
	}
}

func TestRemovingAGroupRemovesItsNodes(t *testing.T) {
	d := newDatabase(t)
	db := mustOpen(t, d.config())
	c := d.client(t)
	commit(t, db, 1, add(app("before"), registry.Rule{Kind: registry.OSImage, Value: "after"})...)
	const rules = 4 * 4096
	for start := 0; start < rules; start += 4096 {
		var edits []registry.Edit
		for i := range 4096 {
			edits = append(edits, add(registry.Rule{Kind: registry.Compose, Subject: "s", Value: fmt.Sprintf("%x", sha256.Sum256([]byte{byte(i), byte(i >> 8), byte(start >> 12)}))})...)
		}
		commit(t, db, 0, edits...)
	}
	if got := listAll(t, db, registry.Query{Kind: registry.Compose, Limit: 1000}); len(got) != rules {
		t.Fatalf("List = %d rules, want %d", len(got), rules)
	}
	if err := mustOpen(t, d.config()).Commit(t.Context(), appending(0,
		registry.Edit{Op: registry.RemoveAll, Rule: registry.Rule{Kind: registry.Compose, Subject: "s"}},
		add(registry.Rule{Kind: registry.Compose, Subject: "s", Value: "new"})[0])); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	if got := listAll(t, db, registry.Query{Kind: registry.Compose}); len(got) != 1 || got[0].Value != "new" {
		t.Errorf("List after RemoveAll = %v, want the new rule", got)
	}
	found, _, err := db.Match(t.Context(), []registry.Rule{app("before"), {Kind: registry.OSImage, Value: "after"}})
	if err != nil || !slices.Equal(found, []bool{true, true}) {
		t.Errorf("Match of the neighbors = %v, %v, want both", found, err)
	}
	// Header, head, a row with its event, and a few nodes.
	if n := c.HLen(t.Context(), onlyKey(t, c)).Val(); n > 4+12 {
		t.Errorf("the server keeps %d fields, want the nodes of the removed rules gone", n)
	}
}

func TestOpenOfAClosedPortIsQuick(t *testing.T) {
	start := time.Now()
	refusedAs(t, configFor("redis://127.0.0.1:1/0"), storage.ErrUnavailable)
	if took := time.Since(start); took > 8*time.Second { // without an end it would be the ten of the default
		t.Errorf("Open took %v, want it at once", took)
	}
}
