package provision_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/keys"
	"teekms/internal/rpc"
	"teekms/internal/storage"
	"teekms/services/kms/provision"
)

const noDatabase = `{"error":"The KMS will not start: please provide database parameters to the bootstrap server first."}`

// TestTheSeriesOfPosts posts everything that can be posted, over and over, and
// starts with what came last.
func TestTheSeriesOfPosts(t *testing.T) {
	w := newWorld(t, nil)
	dir := filepath.Join(t.TempDir(), "data")
	w.wantPost("/start", `{}`, 400, noDatabase)
	w.wantPost("/redis-findex", `{"url": "redis://redis-server:6379", "master_password":"password","findex_label":"label"}`, 200,
		`{"success":"Successfully received Redis-Findex configuration"}`)
	w.wantPost("/postgresql", `{"url": "postgresql://postgres-server:5432"}`, 200, `{"success":"Successfully received PostgreSQL configuration"}`)
	w.wantPost("/mysql", `{"url": "mysql://mysql-server:3306"}`, 200, `{"success":"Successfully received MySql/MariaDB configuration"}`)
	w.wantPost("/sqlite-enc", `{"path": "/cosmian-kms/sqlite-data"}`, 200, `{"success":"Successfully received Sqlite Enc. configuration"}`)
	w.wantPost("/sqlite-ec", `{"path": "/cosmian-kms/sqlite-data"}`, 200, `{"success":"Successfully received Sqlite Enc. configuration"}`)
	w.wantPost("/sqlite", `{"path": "`+dir+`"}`, 200, `{"success":"Successfully received Sqlite configuration"}`)
	first, second := p12(t, "another", nil), p12(t, marker, nil)
	w.upload(first)
	if status, answer := w.upload(second); status != 200 || answer != fmt.Sprintf(`{"success":"PKCS#12 of %d bytes received"}`, len(second)) {
		t.Errorf("POST /pkcs12 = %d %s", status, answer)
	}
	w.wantPost("/pkcs12-password", `{"password": "another"}`, 200, `{"success":"PKCS#12 password received"}`)
	w.wantPost("/start", `{"clear_database": false}`, 400, `{"error":"PKCS#12: wrong password, or the file was changed"}`)
	if w.started() {
		t.Fatal("a refused start started")
	}
	w.wantPost("/pkcs12-password", `{"password": "`+marker+`"}`, 200, `{"success":"PKCS#12 password received"}`)
	w.wantPost("/start", `{"clear_database": false}`, 200, `{"success":"Starting the KMS server"}`)
	if !w.started() {
		t.Fatal("the start was answered, and Done is open")
	}
	if _, err := os.Stat(filepath.Join(dir, storage.File)); err != nil {
		t.Error(err)
	}
	got := w.settings()
	if !got.PKCS12.Equal(keys.NewSecret(second)) || got.Database.Type != storage.SQLite || got.Database.Path != dir || got.Database.URL.Len() > 0 {
		t.Errorf("settings = %+v, want those posted last", got)
	}
}

func TestStartWarns(t *testing.T) {
	tests := []struct {
		name, body string
		warnings   []string
		want       string
	}{
		{"nothing said", `{}`, nil, "Starting the KMS server with warnings: No PKCS12 file has been supplied"},
		{"cleared", `{"clear_database":true}`, nil, "Starting the KMS server with warnings: No PKCS12 file has been supplied The KMS database will be erased."},
		{"and more", `{"clear_database":false}`, []string{"The disk is slow.", "So is the CPU."}, "Starting the KMS server with warnings: No PKCS12 file has been supplied The disk is slow. So is the CPU."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got provision.Settings
			w := newWorld(t, func(c *provision.Config) {
				c.Apply = func(_ context.Context, s provision.Settings) ([]string, error) { got = s; return tt.warnings, nil }
			})
			w.post("/sqlite", `{"path":"/data"}`)
			w.wantPost("/start", tt.body, 200, `{"success":"`+tt.want+`"}`)
			if want := strings.Contains(tt.body, "true"); got.ClearDatabase != want {
				t.Errorf("ClearDatabase = %v, want %v", got.ClearDatabase, want)
			}
		})
	}
}

func TestAfterTheStartNothingIsTaken(t *testing.T) {
	w := newWorld(t, nil)
	w.post("/sqlite", `{"path":"data"}`)
	if status, answer := w.post("/start", `{}`); status != 200 {
		t.Fatal(answer)
	}
	const started = `{"error":"the KMS has been started: this server takes no more settings"}`
	for path, body := range map[string]string{
		"/start": `{}`, "/sqlite": `{"path":"/x"}`, "/pkcs12-password": `{"password":"x"}`, "/postgresql": `{"url":"postgresql://h/d"}`,
	} {
		w.wantPost(path, body, 400, started)
	}
	if status, answer := w.upload(p12(t, "", nil)); status != 400 || answer != started {
		t.Errorf("POST /pkcs12 = %d %s", status, answer)
	}
	if status, answer := w.do(http.MethodGet, "/status", nil, nil); status != 200 ||
		answer != `{"phase":"started","database":null,"pkcs12_bytes":0,"pkcs12_password":false,"missing":[],"warnings":[],"last_error":"","who_may_configure":"anyone","attested":false}` {
		t.Errorf("GET /status = %d %s", status, answer)
	}
}

// TestOneOfManyStartsRuns has 16 callers start at once.
func TestOneOfManyStartsRuns(t *testing.T) {
	entered, proceed := make(chan struct{}), make(chan struct{})
	calls := 0
	w := newWorld(t, func(c *provision.Config) {
		c.Apply = func(context.Context, provision.Settings) ([]string, error) {
			calls++ // a second call at the same time is a data race
			close(entered)
			<-proceed
			return nil, nil
		}
	})
	w.post("/sqlite", `{"path":"/data"}`)
	var wg sync.WaitGroup
	answers := make(chan string, 16)
	for range cap(answers) {
		wg.Go(func() {
			status, answer := w.post("/start", `{}`)
			answers <- fmt.Sprint(status, answer)
		})
	}
	<-entered
	w.wantPost("/sqlite", `{"path":"/other"}`, 400, `{"error":"the KMS is being started: settings are not taken before that has failed"}`)
	w.wantPost("/pkcs12-password", `{"password":"other"}`, 400, `{"error":"the KMS is being started: settings are not taken before that has failed"}`)
	if status, answer := w.do(http.MethodGet, "/status", nil, nil); status != 200 || !strings.HasPrefix(answer, `{"phase":"starting",`) {
		t.Errorf("GET /status = %d %s", status, answer)
	}
	for range cap(answers) - 1 {
		if got, want := <-answers, `400{"error":"the KMS is being started by another request"}`; got != want {
			t.Errorf("POST /start = %s, want %s", got, want)
		}
	}
	close(proceed)
	if got := <-answers; got != `200{"success":"Starting the KMS server with warnings: No PKCS12 file has been supplied"}` {
		t.Errorf("POST /start = %s", got)
	}
	wg.Wait()
	if calls != 1 {
		t.Errorf("Apply was called %d times, want once", calls)
	}
}

// TestAFailedStartKeepsEverything fails in every way in which Apply can, and
// succeeds then without anything being posted again.
func TestAFailedStartKeepsEverything(t *testing.T) {
	var fail func(context.Context) error
	w := newWorld(t, func(c *provision.Config) {
		c.ApplyTimeout = 2 * time.Second
		c.Apply = func(ctx context.Context, s provision.Settings) ([]string, error) {
			if !s.PKCS12Password.Equal(secret(marker)) || s.Database.Path != "/data" {
				return nil, &provision.Refusal{Reason: "the settings are others"}
			}
			return nil, fail(ctx)
		}
	})
	w.post("/sqlite", `{"path":"/data"}`)
	w.post("/pkcs12-password", `{"password":"`+marker+`"}`)
	returns := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	tests := []struct {
		name   string
		fail   func(context.Context) error
		status int
		want   string
	}{
		{"a refusal", returns(&provision.Refusal{Reason: "the disk is full", Err: errors.New("secret cause")}), 400, "the disk is full"},
		{"the database does not answer", returns(fmt.Errorf("%w: connection refused", storage.ErrUnavailable)), 400, "the database is not available: connection refused"},
		{"a wrong key", returns(storage.ErrWrongKey), 400, "wrong key, or not the database of a KMS"},
		{"tampered with", returns(storage.ErrIntegrity), 400, "the database was tampered with"},
		{"another root", returns(&storage.OtherRootError{Database: [32]byte{1}, KMS: [32]byte{2}}), 400, "the database belongs to another KMS: it is bound to the root key 0100000000000000"},
		{"an error that nobody knows", returns(errors.New("insides")), 500, "internal error (id "},
		{"a panic", func(context.Context) error { panic("insides") }, 500, "internal error (id "},
		{"too slow", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, 400, "the settings could not be tried within 2s"},
		{"an error that repeats a secret", returns(fmt.Errorf("%w: password %q", storage.ErrUnavailable, marker)), 400, "the settings are refused; the reason is not shown because it repeats a secret"},
		{"a refusal that repeats a secret", returns(&provision.Refusal{Reason: "not " + marker}), 400, "the reason is not shown because it repeats a secret"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fail = tt.fail
			status, answer := w.post("/start", `{}`)
			if status != tt.status || !strings.Contains(answer, tt.want) || strings.Contains(answer, "insides") {
				t.Errorf("POST /start = %d %s, want %d %s", status, answer, tt.status, tt.want)
			}
			_, answer = w.do(http.MethodGet, "/status", nil, nil)
			if !strings.Contains(answer, `"phase":"configuring"`) || !strings.Contains(answer, `"path":"/data"`) || strings.Contains(answer, `"last_error":""`) {
				t.Errorf("GET /status = %s", answer)
			}
		})
	}
	fail = returns(nil)
	if status, answer := w.post("/start", `{}`); status != 200 {
		t.Errorf("POST /start = %d %s", status, answer)
	}
}

// TestTheStartOutlivesItsCaller cancels the call while Apply runs.
func TestTheStartOutlivesItsCaller(t *testing.T) {
	entered, proceed := make(chan struct{}), make(chan struct{})
	w := newWorld(t, func(c *provision.Config) {
		c.Apply = func(ctx context.Context, _ provision.Settings) ([]string, error) {
			close(entered)
			<-proceed
			return nil, ctx.Err()
		}
	})
	w.post("/sqlite", `{"path":"/data"}`)
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		req := must(http.NewRequestWithContext(ctx, http.MethodPost, w.url("/start"), strings.NewReader("{}")))
		req.Header = jsonType()
		res, err := w.client.Do(req)
		if err == nil {
			res.Body.Close()
		}
		gone <- err
	}()
	<-entered
	leave()
	if err := <-gone; err == nil {
		t.Fatal("the caller that left got an answer")
	}
	for deadline := time.Now().Add(time.Minute); !strings.Contains(w.log.String(), "the caller of Start left"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the server did not notice that the caller left")
		}
	}
	close(proceed)
	<-w.Done()
	if status, answer := w.post("/start", `{}`); status != 400 || !strings.Contains(answer, "the KMS has been started") {
		t.Errorf("POST /start = %d %s", status, answer)
	}
}

// TestTheAnswerComesThroughTheDrain ends the server as soon as Done is closed,
// as a KMS does.
func TestTheAnswerComesThroughTheDrain(t *testing.T) {
	w := newWorld(t, nil)
	w.post("/sqlite", `{"path":"data"}`)
	go func() {
		<-w.Done()
		w.stop()
	}()
	w.wantPost("/start", `{}`, 200, `{"success":"Starting the KMS server with warnings: No PKCS12 file has been supplied"}`)
	if err := <-w.ended; err != nil {
		t.Errorf("draining: %v", err)
	}
	w.ended <- nil // for the cleanup
}

// TestSecretsArriveAsTheyWere posts every character that a password may have.
func TestSecretsArriveAsTheyWere(t *testing.T) {
	var printable strings.Builder
	for c := rune(1); c < 0x180; c++ {
		printable.WriteRune(c)
	}
	for name, password := range map[string]string{
		"every character": printable.String(), "empty": "", "spaces": "  a b  ", "beyond the plane": "key 🔑", "JSON": `{"password":"x"}`,
		"a zero": "a\x00b", "replacement character": "a\uFFFDb", "quotes": `"'\"`, "percent": "100%41%zz", "1024 bytes": strings.Repeat("x", 1024),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *provision.Config) {
				apply := c.Apply
				c.Apply = func(ctx context.Context, s provision.Settings) ([]string, error) {
					_, _ = apply(ctx, s)
					return nil, &provision.Refusal{Reason: "seen"}
				}
			})
			body := must(json.Marshal(map[string]string{"password": password}))
			if status, answer := w.post("/pkcs12-password", string(body)); status != 200 {
				t.Fatal(status, answer)
			}
			if password != "" {
				w.post("/redis-findex", string(must(json.Marshal(map[string]string{"url": "rediss://r", "master_password": password, "findex_label": "l"}))))
			} else {
				w.post("/redis-findex", `{"url":"rediss://r","master_password":"x","findex_label":"l"}`)
			}
			w.post("/start", `{}`)
			got := w.settings()
			if !got.PKCS12Password.Equal(secret(password)) {
				t.Errorf("password = %q, want %q", got.PKCS12Password.Bytes(), password)
			}
			if password != "" && !got.Database.MasterPassword.Equal(secret(password)) {
				t.Errorf("master password = %q, want %q", got.Database.MasterPassword.Bytes(), password)
			}
		})
	}
}

// TestPasswordsInURLs posts URLs with passwords in percent encoding, and looks
// at what a driver would get.
func TestPasswordsInURLs(t *testing.T) {
	w := newWorld(t, func(c *provision.Config) {
		apply := c.Apply
		c.Apply = func(ctx context.Context, s provision.Settings) ([]string, error) {
			s2 := s
			s2.Database.Type = ""
			_, _ = apply(ctx, s2)
			return nil, &provision.Refusal{Reason: "seen"}
		}
	})
	for c := byte(0x20); c < 0x7f; c++ {
		url := fmt.Sprintf("postgresql://kms:a%%%02Xb@db.example.com/kms", c)
		w.wantPost("/postgresql", `{"url":"`+url+`"}`, 200, `{"success":"Successfully received PostgreSQL configuration"}`)
		w.wantPost("/start", `{}`, 400, `{"error":"seen"}`)
		got := w.settings().Database
		got.Type = storage.PostgreSQL
		if server := must(got.Server()); !server.Password.Equal(secret("a" + string(rune(c)) + "b")) {
			t.Errorf("password of %s = %q", url, server.Password.Bytes())
		}
	}
}

func TestStatusHoldsNoSecret(t *testing.T) {
	w := newWorld(t, func(c *provision.Config) { c.Attested = true })
	get := func() map[string]any {
		status, answer := w.do(http.MethodGet, "/status", nil, nil)
		var v map[string]any
		if err := json.Unmarshal([]byte(answer), &v); status != 200 || err != nil || strings.ContainsAny(answer, "\n ") && strings.Contains(answer, "\n") {
			t.Fatalf("GET /status = %d %s, %v", status, answer, err)
		}
		return v
	}
	open := "Anybody who can connect may configure and start this KMS."
	none := "No PKCS12 file has been supplied"
	want := map[string]any{
		"phase": "configuring", "database": nil, "pkcs12_bytes": 0.0, "pkcs12_password": false, "missing": []any{"database"},
		"warnings": []any{none, open}, "last_error": "", "who_may_configure": "anyone", "attested": true,
	}
	if diff := cmp.Diff(want, get()); diff != "" {
		t.Errorf("at the beginning (-want +got):\n%s", diff)
	}
	file := p12(t, marker, nil)
	w.upload(file)
	w.post("/pkcs12-password", `{"password":"`+marker+`"}`)
	w.post("/mysql", `{"url":"mysql://kms:`+marker+`@db.example.com/keys"}`)
	want["pkcs12_bytes"], want["pkcs12_password"], want["missing"], want["warnings"] = float64(len(file)), true, []any{}, []any{open}
	want["database"] = map[string]any{"type": "mysql", "host": "db.example.com:3306", "name": "keys", "tls": true, "path": "", "source": "posted"}
	if diff := cmp.Diff(want, get()); diff != "" {
		t.Errorf("with everything (-want +got):\n%s", diff)
	}
	w.post("/postgresql", `{"url":"postgresql://db.example.com"}`)
	want["database"] = map[string]any{"type": "postgresql", "host": "db.example.com:5432", "name": "kms", "tls": true, "path": "", "source": "posted"}
	got := get()
	if diff := cmp.Diff(want["database"], got["database"]); diff != "" {
		t.Errorf("a URL without user (-want +got):\n%s", diff)
	}
}

func TestStatusTellsWhatStartWillRefuse(t *testing.T) {
	w := newWorld(t, nil)
	const why = "the URL turns TLS off, and the server is not on this machine: that needs insecure_plaintext"
	w.post("/redis-findex", `{"url":"redis://redis-server:6379","master_password":"password","findex_label":"label"}`)
	if _, answer := w.do(http.MethodGet, "/status", nil, nil); !strings.Contains(answer, "Start will refuse the database: invalid database configuration: "+why) {
		t.Errorf("GET /status = %s", answer)
	}
	w.wantPost("/start", `{}`, 400, `{"error":"invalid database configuration: `+why+`"}`)
}

// TestWhatIsConfiguredHolds starts with what the command line named, and
// overrides it piece by piece.
func TestWhatIsConfiguredHolds(t *testing.T) {
	file := p12(t, "configured", nil)
	configured := func(c *provision.Config) {
		c.Defaults = provision.Settings{
			Database: storage.Config{
				Type: storage.PostgreSQL, URL: secret("postgresql://kms:" + marker + "@" + closedPort(t) + "/kms"),
				CAFile: "/etc/ca.pem", Timeout: 2 * time.Second, MasterPassword: keys.Secret{},
			},
			PKCS12: keys.NewSecret(file), PKCS12Password: secret("configured"),
		}
	}
	t.Run("as it is", func(t *testing.T) {
		w := newWorld(t, configured)
		if _, answer := w.do(http.MethodGet, "/status", nil, nil); !strings.Contains(answer, `"source":"configured"`) || !strings.Contains(answer, `"missing":[]`) {
			t.Errorf("GET /status = %s", answer)
		}
		status, answer := w.post("/start", `{}`)
		if status != 400 || !strings.Contains(answer, `{"error":"opening postgresql database: reading the CA file of the database: `) {
			t.Errorf("POST /start = %d %s", status, answer)
		}
		if got := w.settings(); !got.PKCS12.Equal(keys.NewSecret(file)) || got.Database.CAFile != "/etc/ca.pem" {
			t.Errorf("settings = %+v", got)
		}
	})
	t.Run("the database overridden", func(t *testing.T) {
		w := newWorld(t, configured)
		w.post("/sqlite", `{"path":"data"}`)
		if status, answer := w.post("/start", `{}`); status != 200 {
			t.Errorf("POST /start = %d %s", status, answer)
		}
		got := w.settings().Database
		if got.Type != storage.SQLite || got.URL.Len() != 0 || got.Timeout != 2*time.Second {
			t.Errorf("database = %+v", got)
		}
	})
	t.Run("the password overridden", func(t *testing.T) {
		w := newWorld(t, configured)
		w.post("/pkcs12-password", `{"password":""}`)
		w.wantPost("/start", `{}`, 400, `{"error":"PKCS#12: wrong password, or the file was changed"}`)
	})
}

func TestRelativePathsStayInTheStateDirectory(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, func(c *provision.Config) { c.StateDir = dir })
	for path, want := range map[string]string{
		"./sqlite-data": filepath.Join(dir, "sqlite-data"), "a/../b": filepath.Join(dir, "b"), "/x/../y/": "/y", "/kms data/ü": "/kms data/ü",
	} {
		w.post("/sqlite", `{"path":"`+path+`"}`)
		if _, answer := w.do(http.MethodGet, "/status", nil, nil); !strings.Contains(answer, `"path":"`+want+`"`) {
			t.Errorf("path %s: GET /status = %s, want %s", path, answer, want)
		}
	}
	w.wantPost("/sqlite", `{"path":"../elsewhere"}`, 400, `{"error":"path: is relative and leaves the state directory of the KMS: give an absolute path"}`)
	w = newWorld(t, func(c *provision.Config) { c.StateDir = "" })
	w.wantPost("/sqlite", `{"path":"data"}`, 400, `{"error":"path: must be absolute"}`)
}

func TestHealthInEveryPhase(t *testing.T) {
	w := newWorld(t, nil)
	for range 2 {
		if status, answer := w.do(http.MethodGet, "/health", nil, nil); status != 200 || answer != "OK" {
			t.Errorf("GET /health = %d %s", status, answer)
		}
		if status, answer := w.do(http.MethodGet, "/ready", nil, nil); status != 503 || answer != "waiting for configuration" {
			t.Errorf("GET /ready = %d %s", status, answer)
		}
		w.post("/sqlite", `{"path":"data"}`)
		w.post("/start", `{}`)
	}
}

func TestNoStartBeginsAtTheEnd(t *testing.T) {
	w := newWorld(t, nil)
	w.post("/sqlite", `{"path":"data"}`)
	w.Wait()
	w.wantPost("/start", `{}`, 400, `{"error":"this server is being stopped"}`)
}

func TestNewNeedsAnApply(t *testing.T) {
	if _, err := provision.New(provision.Config{}); err == nil || !strings.Contains(err.Error(), "Config.Apply is required") {
		t.Errorf("New = %v", err)
	}
	s := must(provision.New(provision.Config{Apply: func(context.Context, provision.Settings) ([]string, error) { return nil, nil }}))
	if _, err := s.Mount(rpc.Config{}); err == nil || !strings.Contains(err.Error(), "Log is required") {
		t.Errorf("Mount = %v", err)
	}
}
