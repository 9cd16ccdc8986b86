package redisdb_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"teekms/internal/audit"
	"teekms/internal/registry"
	"teekms/internal/storage/redisdb"
	"teekms/internal/storage/storagetest/server"
)

// proxy stands between a client and its server and can lose answers.
type proxy struct {
	target string
	// lose is how many answers to scripts are still to be lost; the script is run
	// all the same.
	lose atomic.Int64
	lost atomic.Int64
}

// startProxy returns the URL that leads through the proxy.
func startProxy(t *testing.T, p *proxy, through string) string {
	t.Helper()
	u, err := url.Parse(through)
	if err != nil {
		t.Fatal("the URL of the test server does not parse")
	}
	p.target = u.Host
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	u.Host = l.Addr().String()
	return u.String()
}

func (p *proxy) serve(client net.Conn) {
	defer func() { _ = client.Close() }()
	upstream, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", p.target)
	if err != nil {
		return
	}
	defer func() { _ = upstream.Close() }()
	var losing atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		defer func() { _ = upstream.Close() }()
		buffer := make([]byte, 1<<20)
		for {
			n, err := client.Read(buffer)
			if err != nil {
				return
			}
			if bytes.Contains(bytes.ToLower(buffer[:n]), []byte("evalsha")) && p.lose.Load() > 0 {
				losing.Store(true)
			}
			if _, err := upstream.Write(buffer[:n]); err != nil {
				return
			}
		}
	})
	buffer := make([]byte, 1<<20)
	for {
		n, err := upstream.Read(buffer)
		if err != nil {
			break
		}
		if losing.Load() && p.lose.Add(-1) >= 0 {
			p.lost.Add(1)
			break
		}
		if _, err := io.Copy(client, bytes.NewReader(buffer[:n])); err != nil {
			break
		}
	}
	_ = client.Close()
	wg.Wait()
}

// TestCommitsWhoseAnswerIsLost are written once and known to be.
func TestCommitsWhoseAnswerIsLost(t *testing.T) {
	tests := []struct {
		name string
		lose int64
		with func(*audit.Batch)
	}{
		{"once", 1, nil},
		{"three times", 3, nil},
		{"with rules", 1, func(b *audit.Batch) { b.Edits, b.Revision = add(app("a")), 1 }},
		{"clearing", 1, func(b *audit.Batch) { b.Clear = true }},
		{"a head alone", 1, func(b *audit.Batch) { b.Rows = nil }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDatabase(t)
			p := &proxy{}
			c := d.config()
			c.URL = secret(startProxy(t, p, d.server.URL(d.number)))
			db := mustOpen(t, c)
			commit(t, db, 1)
			p.lose.Store(tt.lose)
			builds := 0
			err := db.Commit(t.Context(), func(head []byte) (audit.Batch, error) {
				builds++
				b, err := appending(2)(head)
				if tt.with != nil {
					tt.with(&b)
				}
				if b.Clear {
					b, err = appending(2)(nil)
					b.Clear = true
				}
				return b, err
			})
			if err != nil || builds != 1 {
				t.Errorf("Commit = %v after %d builds, want nil after 1", err, builds)
			}
			if p.lost.Load() != tt.lose {
				t.Errorf("%d answers were lost, want %d", p.lost.Load(), tt.lose)
			}
			want := 3
			switch tt.name {
			case "clearing":
				want = 2
			case "a head alone":
				want = 1
			}
			rows, err := db.Rows(t.Context(), 0, 10)
			if err != nil || len(rows) != want {
				t.Errorf("Rows = %d, %v, want %d", len(rows), err, want)
			}
		})
	}
}

func TestServersThatEvictAreRefused(t *testing.T) {
	s := servers.Own(t, server.Redis, server.Options{Durable: true})
	url := s.URL(s.NewDatabase(t))
	c := clientOf(t, url)
	if got := mustOpen(t, configFor(url)).Warnings(); len(got) != 0 {
		t.Errorf("Warnings = %q, want none", got)
	}
	for policy, want := range map[string]string{"allkeys-lru": "maxmemory-policy", "volatile-ttl": ""} {
		if err := c.ConfigSet(t.Context(), "maxmemory-policy", policy).Err(); err != nil {
			t.Fatal(err)
		}
		if want != "" {
			db, err := redisdb.Open(t.Context(), configFor(url))
			if err == nil {
				_ = db.Close()
			}
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Open with %s = %v, want %q in it", policy, err, want)
			}
			continue
		}
		if got := mustOpen(t, configFor(url)).Warnings(); len(got) != 1 || !strings.Contains(got[0], policy[:8]) && !strings.Contains(got[0], "noeviction") {
			t.Errorf("Warnings with %s = %q, want one", policy, got)
		}
	}
}

// TestAUserWithTheDocumentedPermissions can do everything, and one without
// CONFIG and INFO is warned.
func TestAUserWithTheDocumentedPermissions(t *testing.T) {
	s := servers.Own(t, server.Redis, server.Options{Durable: true})
	number := s.NewDatabase(t)
	admin := clientOf(t, s.URL(number))
	const minimal = "+hget +hset +hmget +hlen +hdel +hexists +exists +rename +unlink +scan +ping +select +eval +evalsha"
	for user, more := range map[string]string{"full": " +config|get +info", "blind": "", "info": " +info"} {
		args := []any{"ACL", "SETUSER", user, "on", ">pass", "~kms:*"}
		for _, rule := range strings.Fields(minimal + more) {
			args = append(args, rule)
		}
		if err := admin.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(s.URL(number))
		if err != nil {
			t.Fatal("the URL of the test server does not parse")
		}
		u.User = url.UserPassword(user, "pass")
		db := mustOpen(t, configFor(u.String()))
		commit(t, db, 1, add(app(user))...)
		if err := db.Commit(t.Context(), func([]byte) (audit.Batch, error) {
			b, err := appending(1)(nil)
			b.Clear = true
			return b, err
		}); err != nil {
			t.Errorf("clearing as %s: %v", user, err)
		}
		if got, want := len(db.Warnings()), map[string]int{"full": 0, "blind": 2, "info": 1}[user]; got != want {
			t.Errorf("Warnings of %s = %q, want %d", user, db.Warnings(), want)
		}
	}
}

// TestWhatWasWrittenTogetherSurvivesARestart on a server whose default user may
// do nothing: that drops transactions from its append-only file.
func TestWhatWasWrittenTogetherSurvivesARestart(t *testing.T) {
	s := servers.Own(t, server.Redis, server.Options{Durable: true})
	url := s.URL(s.NewDatabase(t))
	db := mustOpen(t, configFor(url))
	commit(t, db, 5, add(app("before"))...)
	if err := db.Commit(t.Context(), func([]byte) (audit.Batch, error) {
		b, err := appending(2, add(app("after"))...)(nil)
		b.Clear = true
		return b, err
	}); err != nil {
		t.Fatal(err)
	}
	commit(t, db, 3, add(app("later"))...)
	s.Kill()
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	rows, err := db.Rows(t.Context(), 0, 10)
	if err != nil || len(rows) != 5 {
		t.Errorf("Rows after the restart = %d, %v, want 5", len(rows), err)
	}
	if got := listAll(t, mustOpen(t, configFor(url)), registry.Query{Kind: registry.App}); len(got) != 2 {
		t.Errorf("List after the restart = %v, want 2 rules", got)
	}
}
