package provision_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	provisionv1 "teekms/gen/provision/v1"
	"teekms/gen/provision/v1/provisionv1connect"
	"teekms/services/kms/provision"
)

// mutating are the REST routes and what they take.
func mutating(t testing.TB) map[string]string {
	return map[string]string{
		"/redis-findex": `{"url":"rediss://r","master_password":"p","findex_label":"l"}`, "/postgresql": `{"url":"postgresql://h"}`,
		"/mysql": `{"url":"mysql://h"}`, "/sqlite": `{"path":"/x"}`, "/sqlite-enc": `{"path":"/x"}`, "/sqlite-ec": `{"path":"/x"}`,
		"/pkcs12": string(p12(t, "", nil)), "/pkcs12-password": `{"password":"x"}`, "/start": `{}`,
	}
}

// send posts to a REST route with more headers.
func (w *world) send(client *http.Client, path, body string, more http.Header) (int, string) {
	w.t.Helper()
	header := jsonType()
	if path == "/pkcs12" {
		header.Set("Content-Type", "application/octet-stream")
	}
	for k, v := range more {
		header[k] = v
	}
	return w.doAs(client, http.MethodPost, path, header, strings.NewReader(body))
}

func bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

// clock is one that tests turn.
type clock struct{ at time.Time }

func (c *clock) now() time.Time {
	c.at = c.at.Add(time.Second) // no two tries within a second
	return c.at
}

func TestWithATokenItIsNeeded(t *testing.T) {
	turning := &clock{at: time.Now()}
	w := newWorld(t, func(c *provision.Config) { c.Token, c.Now = secret(marker), turning.now })
	for path, body := range mutating(t) {
		for _, tt := range []struct {
			header http.Header
			want   string
		}{
			{nil, `{"error":"a bearer token is required"}`},
			{http.Header{"Authorization": {"Basic " + marker}}, `{"error":"a bearer token is required"}`},
			{bearer("wrong"), `{"error":"the bearer token is wrong"}`},
			{bearer(marker + "x"), `{"error":"the bearer token is wrong"}`},
		} {
			if status, answer := w.send(w.client, path, body, tt.header); status != 401 || answer != tt.want {
				t.Errorf("POST %s with %v = %d %s, want 401 %s", path, tt.header, status, answer, tt.want)
			}
		}
		// Nothing of the body is looked at before the token.
		if status, _ := w.send(w.client, path, "not JSON", nil); status != 401 {
			t.Errorf("POST %s of noise without a token = %d, want 401", path, status)
		}
	}
	if _, answer := w.do(http.MethodGet, "/status", nil, nil); !strings.Contains(answer, `"database":null,"pkcs12_bytes":0,"pkcs12_password":false,"missing":["database"]`) ||
		!strings.Contains(answer, `"who_may_configure":"token"`) || strings.Contains(answer, "Anybody") {
		t.Errorf("GET /status = %s", answer)
	}
	if status, answer := w.send(w.client, "/sqlite", `{"path":"data"}`, bearer(marker)); status != 200 {
		t.Errorf("POST /sqlite with the token = %d %s", status, answer)
	}
	if _, answer := w.do(http.MethodGet, "/status", nil, nil); !strings.Contains(answer, `"database":null`) || !strings.Contains(answer, `"missing":[]`) {
		t.Errorf("GET /status without the token = %s, want no database shown", answer)
	}
	if _, answer := w.do(http.MethodGet, "/status", bearer(marker), nil); !strings.Contains(answer, `"database":{"type":"sqlite"`) {
		t.Errorf("GET /status with the token = %s", answer)
	}
	if status, answer := w.do(http.MethodGet, "/status", bearer("wrong"), nil); status != 401 {
		t.Errorf("GET /status with a wrong token = %d %s: tokens could be guessed there", status, answer)
	}
	if status, answer := w.send(w.client, "/start", `{}`, bearer(marker)); status != 200 {
		t.Errorf("POST /start with the token = %d %s", status, answer)
	}
	if got := w.settings().By; got.Means != "token" || !strings.HasPrefix(got.Peer, "127.0.0.1:") {
		t.Errorf("By = %+v", got)
	}
	if status, answer := w.send(w.client, "/start", `{}`, bearer(marker)); status != 400 || !strings.Contains(answer, "has been started") {
		t.Errorf("a second start with the token = %d %s: it is good for one", status, answer)
	}
}

func TestTokensAreNotGuessed(t *testing.T) {
	now := time.Now()
	w := newWorld(t, func(c *provision.Config) { c.Token, c.Now = secret(marker), func() time.Time { return now } })
	for range 3 {
		w.send(w.client, "/sqlite", `{"path":"/x"}`, bearer("wrong"))
	}
	// The fourth within the second is not looked at, on any route or protocol.
	for path, body := range mutating(t) {
		if status, answer := w.send(w.client, path, body, bearer(marker)); status != 401 || answer != `{"error":"too many wrong tokens: try again in a second"}` {
			t.Errorf("POST %s = %d %s", path, status, answer)
		}
	}
	if status, answer := w.send(w.client, "/prpc/Provision.Start?json", `{}`, bearer(marker)); status != 401 || !strings.Contains(answer, "too many wrong tokens") {
		t.Errorf("prpc = %d %s", status, answer)
	}
	if status, _ := w.do(http.MethodGet, "/status", bearer(marker), nil); status != 401 {
		t.Errorf("GET /status = %d, want 401", status)
	}
}

func TestWithAnAuthorityACertificateIsNeeded(t *testing.T) {
	good := issue(t, nil)
	pool := x509.NewCertPool()
	pool.AddCert(good.authority)
	// More certificates of the same authority need its key: issue makes one per
	// authority, so each has its own.
	nameless := issue(t, func(c *x509.Certificate) { c.Subject.CommonName = "" })
	unmarked := issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = nil })
	server := issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	expired := issue(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	for _, i := range []issued{nameless, unmarked, server, expired} {
		pool.AddCert(i.authority)
	}
	w := newWorld(t, func(c *provision.Config) { c.ClientCAs = pool })
	for path, body := range mutating(t) {
		for _, tt := range []struct {
			cert *tls.Certificate
			want string
		}{
			{nil, `{"error":"a client certificate of the configured authority is required"}`},
			{&nameless.leaf, `{"error":"the client certificate has no common name"}`},
			{&unmarked.leaf, `{"error":"the client certificate is not marked for client authentication"}`},
		} {
			if status, answer := w.send(w.newClient(tt.cert), path, body, nil); status != 401 || answer != tt.want {
				t.Errorf("POST %s = %d %s, want 401 %s", path, status, answer, tt.want)
			}
		}
	}
	stranger := issue(t, nil)
	for _, tt := range []struct {
		cert tls.Certificate
		want string
	}{
		{stranger.leaf, "certificate signed by unknown authority"}, {server.leaf, "incompatible key usage"}, {expired.leaf, "certificate has expired"},
	} {
		// A client that honors the list of authorities would send a stranger's
		// certificate not at all.
		client := w.newClient(nil)
		client.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tt.cert, nil }
		req := must(http.NewRequest(http.MethodPost, w.url("/start"), strings.NewReader("{}")))
		req.Header = jsonType()
		if res, err := client.Do(req); err == nil {
			res.Body.Close()
			t.Errorf("%s: status %d, want no connection", tt.want, res.StatusCode)
		}
		// The server logs it when the client may be gone already.
		for deadline := time.Now().Add(time.Minute); !strings.Contains(w.log.String(), tt.want); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the log does not say why: %s\n%s", tt.want, w.log)
			}
		}
	}
	if status, answer := w.do(http.MethodGet, "/status", nil, nil); status != 200 || !strings.Contains(answer, `"who_may_configure":"certificate"`) {
		t.Errorf("GET /status without a certificate = %d %s", status, answer)
	}
	if status, _ := w.do(http.MethodGet, "/health", nil, nil); status != 200 {
		t.Errorf("GET /health without a certificate = %d", status)
	}
	client := w.newClient(&good.leaf)
	w.send(client, "/sqlite", `{"path":"data"}`, nil)
	if _, answer := w.doAs(client, http.MethodGet, "/status", nil, nil); !strings.Contains(answer, `"type":"sqlite"`) {
		t.Errorf("GET /status with the certificate = %s", answer)
	}
	rpcs := provisionv1connect.NewProvisionClient(w.newClient(nil), w.url(""))
	_, err := rpcs.Start(t.Context(), &provisionv1.StartRequest{})
	wantError(t, err, connect.CodeUnauthenticated, "a client certificate of the configured authority is required")
	rpcs = provisionv1connect.NewProvisionClient(client, w.url(""), connect.WithGRPC())
	if _, err := rpcs.Start(t.Context(), &provisionv1.StartRequest{}); err != nil {
		t.Errorf("Start with the certificate: %v", err)
	}
	by := w.settings().By
	if by.Means != "certificate" || by.CommonName != "operator" || len(by.Certificate) != hex.EncodedLen(32) || !strings.Contains(by.String(), "certificate from 127.0.0.1:") {
		t.Errorf("By = %+v", by)
	}
}

func TestWithBothBothAreNeeded(t *testing.T) {
	id := issue(t, nil)
	pool := x509.NewCertPool()
	pool.AddCert(id.authority)
	w := newWorld(t, func(c *provision.Config) { c.ClientCAs, c.Token = pool, secret(marker) })
	certified := w.newClient(&id.leaf)
	if status, answer := w.send(certified, "/sqlite", `{"path":"/x"}`, nil); status != 401 || !strings.Contains(answer, "a bearer token is required") {
		t.Errorf("a certificate alone = %d %s", status, answer)
	}
	if status, answer := w.send(w.client, "/sqlite", `{"path":"/x"}`, bearer(marker)); status != 401 || !strings.Contains(answer, "a client certificate") {
		t.Errorf("a token alone = %d %s", status, answer)
	}
	if status, answer := w.send(certified, "/sqlite", `{"path":"/x"}`, bearer(marker)); status != 200 {
		t.Errorf("both = %d %s", status, answer)
	}
	if _, answer := w.do(http.MethodGet, "/status", nil, nil); !strings.Contains(answer, `"who_may_configure":"token and certificate"`) {
		t.Errorf("GET /status = %s", answer)
	}
}

func wantError(t *testing.T, err error, code connect.Code, text string) {
	t.Helper()
	var e *connect.Error
	if !errors.As(err, &e) || e.Code() != code || !strings.Contains(e.Message(), text) {
		t.Errorf("error = %v, want %v: %s", err, code, text)
	}
}

// TestTheSameByEveryProtocol configures and starts by Connect, gRPC and
// gRPC-Web.
func TestTheSameByEveryProtocol(t *testing.T) {
	for name, option := range map[string]connect.ClientOption{
		"Connect": connect.WithClientOptions(), "Connect in JSON": connect.WithProtoJSON(), "gRPC": connect.WithGRPC(), "gRPC-Web": connect.WithGRPCWeb(),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *provision.Config) { c.Token = secret(marker) })
			client := provisionv1connect.NewProvisionClient(w.client, w.url(""), option, connect.WithInterceptors(withToken(marker)))
			ctx := t.Context()
			naked := provisionv1connect.NewProvisionClient(w.client, w.url(""), option)
			_, err := naked.SetDatabase(ctx, &provisionv1.SetDatabaseRequest{})
			wantError(t, err, connect.CodeUnauthenticated, "a bearer token is required")
			_, err = client.Start(ctx, &provisionv1.StartRequest{})
			wantError(t, err, connect.CodeFailedPrecondition, "please provide database parameters")
			_, err = client.SetDatabase(ctx, &provisionv1.SetDatabaseRequest{})
			wantError(t, err, connect.CodeInvalidArgument, "database: is required")
			_, err = client.SetDatabase(ctx, &provisionv1.SetDatabaseRequest{Database: &provisionv1.SetDatabaseRequest_Mysql{
				Mysql: &provisionv1.MySql{Url: "mysql://u:" + marker + "@h:0/d"},
			}})
			wantError(t, err, connect.CodeInvalidArgument, "invalid database configuration: the URL's port is not a number")
			db, err := client.SetDatabase(ctx, &provisionv1.SetDatabaseRequest{Database: &provisionv1.SetDatabaseRequest_SqliteEnc{
				SqliteEnc: &provisionv1.SqliteEncrypted{Path: "data", MasterPassword: "given"},
			}})
			if err != nil || db.GetSuccess() != "Successfully received Sqlite Enc. configuration" {
				t.Fatal(db, err)
			}
			_, err = client.SetPkcs12(ctx, &provisionv1.SetPkcs12Request{Pkcs12: make([]byte, 256<<10+1)})
			wantError(t, err, connect.CodeInvalidArgument, "PKCS#12: it is larger than 262144 bytes")
			_, err = client.SetPkcs12(ctx, &provisionv1.SetPkcs12Request{Pkcs12: make([]byte, provision.MaxMessage+1)})
			wantError(t, err, connect.CodeResourceExhausted, "larger than configured max")
			if _, err := client.SetPkcs12(ctx, &provisionv1.SetPkcs12Request{Pkcs12: p12(t, marker, nil)}); err != nil {
				t.Fatal(err)
			}
			if _, err := client.SetPkcs12Password(ctx, &provisionv1.SetPkcs12PasswordRequest{Password: marker}); err != nil {
				t.Fatal(err)
			}
			status, err := client.GetStatus(ctx, &provisionv1.GetStatusRequest{})
			if err != nil || status.GetDatabase().GetType() != "sqlite-enc" || !status.GetPkcs12Password() {
				t.Error(status, err)
			}
			if status, err = naked.GetStatus(ctx, &provisionv1.GetStatusRequest{}); err != nil || status.GetDatabase() != nil || status.GetPhase() != "configuring" {
				t.Error(status, err)
			}
			started, err := client.Start(ctx, &provisionv1.StartRequest{ClearDatabase: true})
			if err != nil {
				t.Fatal(err)
			}
			want := &provisionv1.StartResponse{
				Success:  "Starting the KMS server with warnings: The KMS database will be erased.",
				Warnings: []string{"The KMS database will be erased."},
			}
			if diff := cmp.Diff(want, started, protocmp.Transform()); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			_, err = client.Start(ctx, &provisionv1.StartRequest{})
			wantError(t, err, connect.CodeFailedPrecondition, "the KMS has been started")
			got := w.settings()
			if !got.ClearDatabase || !got.Database.MasterPassword.Equal(secret("given")) {
				t.Errorf("settings = %+v", got)
			}
		})
	}
}

func withToken(token string) connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			req.Header().Set("Authorization", "Bearer "+token)
			return next(ctx, req)
		}
	}
}

func TestPrpc(t *testing.T) {
	w := newWorld(t, nil)
	file := p12(t, "", nil)
	tests := []struct{ method, body, want string }{
		{"SetDatabase", `{"mysql":{"url":"mysql://h"}}`, `{"success":"Successfully received MySql/MariaDB configuration"}`},
		{"Provision.SetDatabase", `{"sqlite":{"path":"data"}}`, `{"success":"Successfully received Sqlite configuration"}`},
		{"SetPkcs12", `{"pkcs12":"` + hex.EncodeToString(file) + `"}`, `{"success":"PKCS#12 of `},
		{"SetPkcs12Password", `{"password":""}`, `{"success":"PKCS#12 password received"}`},
		{"GetStatus", ``, `{"phase":"configuring","database":{"type":"sqlite","host":"",`},
		{"Start", `{}`, `{"success":"Starting the KMS server","warnings":[]}`},
		{"Start", `{}`, `{"error": "the KMS has been started: this server takes no more settings"}`},
	}
	for _, tt := range tests {
		if _, answer := w.post("/prpc/"+tt.method+"?json", tt.body); !strings.HasPrefix(answer, tt.want) {
			t.Errorf("%s = %s, want %s", tt.method, answer, tt.want)
		}
	}
}

func TestPagesOfOthersDoNotStart(t *testing.T) {
	w := newWorld(t, nil)
	w.post("/sqlite", `{"path":"data"}`)
	for _, path := range []string{"/start", "/prpc/Start?json", "/provision.v1.Provision/Start"} {
		for _, header := range []http.Header{
			{"Sec-Fetch-Site": {"cross-site"}}, {"Sec-Fetch-Site": {"same-site"}}, {"Origin": {"https://evil.example"}}, {"Origin": {"null"}}, {"Referer": {"https://evil.example/"}},
		} {
			if status, answer := w.send(w.client, path, `{}`, header); status != 403 || !strings.Contains(answer, "cross-origin request refused") {
				t.Errorf("POST %s with %v = %d %s, want 403", path, header, status, answer)
			}
		}
	}
	if w.started() {
		t.Error("another's page started the KMS")
	}
}

// TestTheTutorial runs the commands of the tutorial with the real curl, which
// differ from what is printed there by the host name alone.
func TestTheTutorial(t *testing.T) {
	w := newWorld(t, nil)
	dir, data := t.TempDir(), filepath.Join(t.TempDir(), "sqlite-data")
	if err := os.WriteFile(filepath.Join(dir, "kms-server.p12"), p12(t, "PKCS12password", nil), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ command, want string }{
		{` curl -k -X POST -H "Content-Type: application/json" -d '{"url": "redis://redis-server:6379", "master_password":"password","findex_label":"label"}' https://kms-server:9998/redis-findex`, `{"success":"Successfully received Redis-Findex configuration"}`},
		{`curl -k -X POST -H "Content-Type: application/json" -d '{"url": "postgresql://postgres-server:5432"}' https://kms-server:9998/postgresql`, `{"success":"Successfully received PostgreSQL configuration"}`},
		{`curl -k -X POST -H "Content-Type: application/json" -d '{"url": "mysql://mysql-server:3306"}' https://kms-server:9998/mysql`, `{"success":"Successfully received MySql/MariaDB configuration"}`},
		{`curl -k -X POST -H "Content-Type: application/json" -d '{"path": "/cosmian-kms/sqlite-data"}' https://kms-server:9998/sqlite-enc`, `{"success":"Successfully received Sqlite Enc. configuration"}`},
		{`curl -k -X POST -H "Content-Type: application/json" -d '{"path": "/cosmian-kms/sqlite-data"}' https://kms-server:9998/sqlite`, `{"success":"Successfully received Sqlite configuration"}`},
		{`curl -k -F name=pkcs12 -F file=@kms-server.p12 https://kms-server:9998/pkcs12`, `{"success":"PKCS#12 of `},
		{`curl -k -X POST -H "Content-Type: application/json" -d '{"password": "wrong"}' https://kms-server:9998/pkcs12-password`, `{"success":"PKCS#12 password received"}`},
		// Not in the tutorial: a directory that this test may write.
		{`curl -k -X POST -H "Content-Type: application/json" -d '{"path": "` + data + `"}' https://kms-server:9998/sqlite`, `{"success":"Successfully received Sqlite configuration"}`},
		{` curl -k -X POST -H "Content-Type: application/json" -d '{"clear_database": false}' https://kms-server:9998/start`, `{"error":"PKCS#12: wrong password, or the file was changed"}`},
		{`curl -k -X POST -H "Content-Type: application/json" -d '{"password": "PKCS12password"}' https://kms-server:9998/pkcs12-password`, `{"success":"PKCS#12 password received"}`},
		{` curl -k -X POST -H "Content-Type: application/json" -d '{"clear_database": false}' https://kms-server:9998/start`, `{"success":"Starting the KMS server"}`},
	}
	for _, tt := range tests {
		command := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(tt.command, "kms-server:9998", w.addr))
		command.Dir = dir
		var out, errs bytes.Buffer
		command.Stdout, command.Stderr = &out, &errs
		if err := command.Run(); err != nil {
			t.Fatalf("%s: %v\n%s", tt.command, err, errs.String())
		}
		if !strings.HasPrefix(out.String(), tt.want) || strings.Contains(out.String(), "\n") {
			t.Errorf("%s\n= %s, want %s", tt.command, out.String(), tt.want)
		}
	}
	if !w.started() {
		t.Error("the KMS was not started")
	}
}
