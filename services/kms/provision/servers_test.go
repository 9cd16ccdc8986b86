package provision_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"teekms/internal/storage"
	"teekms/internal/storage/storagetest/server"
	"teekms/services/kms/provision"
)

// TestRealServers configures with everything that a real server refuses, and
// then with what it takes, in one and the same configuration.
func TestRealServers(t *testing.T) {
	type try struct{ name, url, want string }
	for _, kind := range []server.Kind{server.PostgreSQL, server.MariaDB, server.Redis} {
		t.Run(string(kind), func(t *testing.T) {
			s := servers.Shared(t, kind)
			w := newWorld(t, func(c *provision.Config) {
				c.Defaults.Database.Timeout, c.Defaults.Database.CAFile = 30*time.Second, s.CAFile()
			})
			post := func(url string) {
				t.Helper()
				path, body := "/postgresql", map[string]string{"url": url}
				switch kind {
				case server.MariaDB:
					path = "/mysql"
				case server.Redis:
					path, body["master_password"], body["findex_label"] = "/redis-findex", marker, "label"
				default:
				}
				if status, answer := w.post(path, string(must(json.Marshal(body)))); status != 200 {
					t.Fatalf("POST %s = %d %s", path, status, answer)
				}
			}
			name := s.NewDatabase(t)
			good := s.TLSURL(name)
			_, rest, _ := strings.Cut(good, "@")
			scheme, _, _ := strings.Cut(good, "://")
			tries := []try{
				{"a wrong password", scheme + "://" + server.User + ":" + marker + "@" + rest, "the server refused the user"},
				{"a wrong user", scheme + "://nobody:" + marker + "@" + rest, "the server refused the user"},
				{"nobody listens", scheme + "://" + server.User + ":" + marker + "@" + closedPort(t) + "/1", "refused"},
			}
			if kind != server.Redis { // where they are numbers
				tries = append(tries, try{"a database that is not there", s.TLSURL("nowhere"), "the server has no database of this name"})
			}
			for _, tt := range tries {
				post(tt.url)
				status, answer := w.post("/start", `{}`)
				if status != 400 || !strings.Contains(answer, tt.want) {
					t.Errorf("%s: POST /start = %d %s, want 400: %s", tt.name, status, answer, tt.want)
				}
			}
			post(good)
			w.wantPost("/start", `{}`, 200, `{"success":"Starting the KMS server with warnings: No PKCS12 file has been supplied"}`)
			if got := w.settings().Database; got.Type == storage.SQLite || !got.URL.Equal(secret(good)) {
				t.Errorf("database = %+v", got)
			}
		})
	}
}
