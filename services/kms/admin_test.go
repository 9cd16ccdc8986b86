package kms_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/crypto/bcrypt"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/gen/kms/v1/kmsv1connect"
	"teekms/internal/keys"
	"teekms/internal/osimage"
	"teekms/internal/rpc"
	"teekms/internal/serve"
	"teekms/services/kms"
)

const adminToken = "correct-horse-battery"

// cleared remembers what was to be forgotten.
type cleared struct {
	mu    sync.Mutex
	calls [][2]string
}

func (c *cleared) ClearCache(_ context.Context, imageHash, configHash string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if imageHash == "../x" {
		return fmt.Errorf("clearing images: %w", osimage.ErrCacheKey)
	}
	c.calls = append(c.calls, [2]string{imageHash, configHash})
	return nil
}

func htpasswdLine(tb testing.TB, name, password string) string {
	tb.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		tb.Fatal(err)
	}
	// Apache writes $2y$ for the same algorithm.
	return name + ":" + strings.Replace(string(hash), "$2a$", "$2y$", 1) + "\n"
}

func newCredentials(tb testing.TB, c kms.CredentialsConfig) *kms.Credentials {
	tb.Helper()
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	cr, err := kms.NewCredentials(c)
	if err != nil {
		tb.Fatal(err)
	}
	return cr
}

// adminMux is the handler of a listener of administrators.
func adminMux(tb testing.TB, c kms.AdminConfig, cr *kms.Credentials) http.Handler {
	tb.Helper()
	admin, err := kms.NewAdmin(c)
	if err != nil {
		tb.Fatal(err)
	}
	chain, err := rpc.New(rpc.Config{Log: zap.NewNop(), Access: kms.AdminAccess(), Errors: kms.AdminErrors()})
	if err != nil {
		tb.Fatal(err)
	}
	h, err := serve.NewMux(serve.MuxConfig{Service: admin.RPC(), Chain: chain})
	if err != nil {
		tb.Fatal(err)
	}
	return cr.Require(h)
}

// clock is a clock that tests turn.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) turn(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func TestAdminCredentials(t *testing.T) {
	htpasswd := "# people\n\n" + htpasswdLine(t, "root", "secret:with:colons") + htpasswdLine(t, "empty", "")
	basic := func(name, password string) func(*http.Request) {
		return func(r *http.Request) { r.SetBasicAuth(name, password) }
	}
	header := func(lines ...string) func(*http.Request) {
		return func(r *http.Request) {
			for i := 0; i < len(lines); i += 2 {
				r.Header.Add(lines[i], lines[i+1])
			}
		}
	}
	tests := []struct {
		name string
		show func(*http.Request)
		want bool
	}{
		{"nothing", header(), false},
		{"token in its own header", header("X-Admin-Token", adminToken), true},
		{"token as bearer", header("Authorization", "Bearer "+adminToken), true},
		{"scheme in lower case", header("Authorization", "bearer "+adminToken), true},
		{"token as password", basic("whoever", adminToken), true},
		{"token as password without a name", basic("", adminToken), true},
		{"token as name with an empty password", basic(adminToken, ""), true},
		{"token as name with a password", basic(adminToken, "x"), false},
		{"name and password", basic("root", "secret:with:colons"), true},
		{"wrong password", basic("root", "secret"), false},
		{"password of another", basic("empty", "secret:with:colons"), false},
		{"empty password that is right", basic("empty", ""), true},
		{"unknown name", basic("nobody", "secret:with:colons"), false},
		{"hash as password", basic("root", strings.Split(htpasswdLine(t, "root", "x"), ":")[1]), false},
		{"prefix of the token", header("X-Admin-Token", adminToken[:5]), false},
		{"empty token", header("X-Admin-Token", ""), false},
		{"empty bearer", header("Authorization", "Bearer "), false},
		{"password as bearer", header("Authorization", "Bearer secret:with:colons"), false},
		{"other scheme", header("Authorization", "Digest "+adminToken), false},
		{"token without scheme", header("Authorization", adminToken), false},
		{"basic that is no base64", header("Authorization", "Basic !!!"), false},
		{"two of one header", header("X-Admin-Token", adminToken, "X-Admin-Token", adminToken), false},
		{"two authorizations", header("Authorization", "Bearer "+adminToken, "Authorization", "Bearer x"), false},
		{"wrong one beside the right one", header("X-Admin-Token", "x", "Authorization", "Bearer "+adminToken), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cr := newCredentials(t, kms.CredentialsConfig{Token: keys.NewSecret([]byte(adminToken)), Htpasswd: []byte(htpasswd)})
			for _, path := range []string{"/prpc/Admin.ClearImageCache", "/kms.v1.Admin/ClearImageCache", "/health", "/", "/nowhere"} {
				passed := false
				h := cr.Require(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed = true }))
				r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, nil)
				tt.show(r)
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				if passed != tt.want {
					t.Errorf("%s: passed = %v, want %v", path, passed, tt.want)
				}
				if tt.want {
					continue
				}
				challenge := w.Header().Get("WWW-Authenticate")
				if w.Code != http.StatusUnauthorized || challenge != `Basic realm="dstack-kms admin"` || w.Body.Len() > 0 {
					t.Errorf("%s: status %d, challenge %q, body %q, want 401, the realm, nothing", path, w.Code, challenge, w.Body)
				}
			}
		})
	}
}

func TestAdminCredentialsWithoutTokenOrUsers(t *testing.T) {
	users := newCredentials(t, kms.CredentialsConfig{Htpasswd: []byte(htpasswdLine(t, "root", "pw"))})
	token := newCredentials(t, kms.CredentialsConfig{Token: keys.NewSecret([]byte(adminToken))})
	tests := []struct {
		name           string
		cr             *kms.Credentials
		user, password string
		want           int
	}{
		{"user alone", users, "root", "pw", http.StatusOK},
		{"empty password without a token", users, "", "", http.StatusUnauthorized},
		{"token alone", token, "", adminToken, http.StatusOK},
		{"no users", token, "root", "pw", http.StatusUnauthorized},
	}
	for _, tt := range tests {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.SetBasicAuth(tt.user, tt.password)
		w := httptest.NewRecorder()
		tt.cr.Require(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, r)
		if w.Code != tt.want {
			t.Errorf("%s: status %d, want %d", tt.name, w.Code, tt.want)
		}
	}
}

// TestAdminCredentialsSlowGuesses looks at three wrong tries a second in all, and
// then at nothing, the right token included; a second later, at two of the one that
// guessed.
func TestAdminCredentialsSlowGuesses(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	clk := &clock{now: time.Unix(1_700_000_000, 0)}
	cr := newCredentials(t, kms.CredentialsConfig{
		Token: keys.NewSecret([]byte(adminToken)), Htpasswd: []byte(htpasswdLine(t, "root", "pw")),
		Log: zap.New(core), Now: clk.Now,
	})
	h := cr.Require(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	tryFrom := func(peer string, show func(*http.Request)) int {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.RemoteAddr = peer
		show(r)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	const hostile, other = "192.0.2.1:1234", "192.0.2.2:1234"
	try := func(show func(*http.Request)) int { return tryFrom(hostile, show) }
	right := func(r *http.Request) { r.Header.Set("X-Admin-Token", adminToken) }
	for range 10 { // a browser's first request shows nothing and is no guess
		try(func(*http.Request) {})
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			try(func(r *http.Request) {
				if i%2 == 0 {
					r.SetBasicAuth("root", "canary-guess")
				} else {
					r.Header.Set("X-Admin-Token", "canary-guess")
				}
			})
		})
	}
	wg.Wait()
	if n := logs.Len(); n != 3 {
		t.Errorf("%d wrong tries were looked at, want 3", n)
	}
	for _, e := range logs.All() {
		if e.Message != "wrong admin credential" || e.ContextMap()["peer"] != "192.0.2.1:1234" || len(e.Context) != 1 {
			t.Errorf("log line %q %v, want the peer alone", e.Message, e.ContextMap())
		}
	}
	for peer, got := range map[string]int{hostile: try(right), other: tryFrom(other, right)} {
		if got != http.StatusUnauthorized {
			t.Errorf("right token of %s after three wrong ones: status %d, want 401", peer, got)
		}
	}
	clk.turn(1100 * time.Millisecond)
	for range 2 {
		try(func(r *http.Request) { r.Header.Set("X-Admin-Token", "canary-guess") })
	}
	if got := try(right); got != http.StatusUnauthorized || logs.Len() != 5 {
		t.Errorf("right token of the one that guesses: status %d, %d were looked at, want 401 and 5", got, logs.Len())
	}
	if got := tryFrom(other, right); got != http.StatusOK {
		t.Errorf("right token of another peer meanwhile: status %d, want 200", got)
	}
	clk.turn(1100 * time.Millisecond)
	for range 10 { // passwords that are right do not count
		if got := try(func(r *http.Request) { r.SetBasicAuth("root", "pw") }); got != http.StatusOK {
			t.Errorf("right password a second later: status %d, want 200", got)
		}
	}
	if got := try(right); got != http.StatusOK {
		t.Errorf("right token a second later: status %d, want 200", got)
	}
}

func TestNewCredentialsRefuses(t *testing.T) {
	line := htpasswdLine(t, "root", "pw")
	dear := strings.Replace(line, "$04$", "$15$", 1)
	tests := []struct {
		name, htpasswd, want string
	}{
		{"nothing", "", "making admin credentials: there is neither a token nor a user"},
		{"comments alone", "# none\n", "making admin credentials: there is neither a token nor a user"},
		{"no colon", "root\n", "reading htpasswd: line 1 is not NAME:HASH"},
		{"no name", line + ":$2y$", "reading htpasswd: line 2 is not NAME:HASH"},
		{"plain password", "root:canary\n", "reading htpasswd: line 1 holds no bcrypt hash (htpasswd -B makes one)"},
		{"MD5", "root:$apr1$abc$canary\n", "reading htpasswd: line 1 holds no bcrypt hash (htpasswd -B makes one)"},
		{"cut short", line[:40], "reading htpasswd: line 1 holds no bcrypt hash (htpasswd -B makes one)"},
		{"too dear", dear, "reading htpasswd: line 1 costs 15, more than 14"},
		{"twice", line + line, "reading htpasswd: line 2 names a user for the second time"},
		{"endless line", strings.Repeat("x", 1<<17), "reading htpasswd: bufio.Scanner: token too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := kms.NewCredentials(kms.CredentialsConfig{Htpasswd: []byte(tt.htpasswd), Log: zap.NewNop()})
			if err == nil || err.Error() != tt.want {
				t.Errorf("NewCredentials() = %v, want %s", err, tt.want)
			}
		})
	}
	if _, err := kms.NewCredentials(kms.CredentialsConfig{Token: keys.NewSecret([]byte("x"))}); err == nil {
		t.Error("NewCredentials() without a log = nil error, want a refusal")
	}
}

func TestClearImageCache(t *testing.T) {
	images := &cleared{}
	cr := newCredentials(t, kms.CredentialsConfig{Token: keys.NewSecret([]byte(adminToken))})
	address := start(t, adminMux(t, kms.AdminConfig{Images: images}, cr), nil)
	token := connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
			r.Header().Set("Authorization", "Bearer "+adminToken)
			return next(ctx, r)
		}
	}))
	h2c := &http.Transport{Protocols: new(http.Protocols)}
	h2c.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(h2c.CloseIdleConnections)
	for name, client := range map[string]kmsv1connect.AdminClient{
		"connect": kmsv1connect.NewAdminClient(http.DefaultClient, "http://"+address, token),
		"grpc":    kmsv1connect.NewAdminClient(&http.Client{Transport: h2c}, "http://"+address, token, connect.WithGRPC()),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := client.ClearImageCache(t.Context(), &kmsv1.ClearImageCacheRequest{ImageHash: name, ConfigHash: "all"})
			if err != nil {
				t.Errorf("ClearImageCache() = %v, want no error", err)
			}
			_, err = client.ClearImageCache(t.Context(), &kmsv1.ClearImageCacheRequest{ImageHash: "../x"})
			if connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "invalid cache key") {
				t.Errorf("ClearImageCache(../x) = %v, want invalid cache key", err)
			}
		})
	}
	t.Run("prpc", func(t *testing.T) {
		for _, tt := range []struct {
			body       string
			wantStatus int
			want       string
		}{
			{`{"image_hash": "prpc", "config_hash": ""}`, http.StatusOK, "null"},
			{`{"image_hash": "../x"}`, http.StatusBadRequest, `{"error": "invalid cache key"}`},
		} {
			for _, method := range []string{"Admin.ClearImageCache", "ClearImageCache"} {
				status, body := adminPost(t, "http://"+address+"/prpc/"+method+"?json", tt.body)
				if status != tt.wantStatus || body != tt.want {
					t.Errorf("%s(%s) = %d %s, want %d %s", method, tt.body, status, body, tt.wantStatus, tt.want)
				}
			}
		}
	})
	got := map[[2]string]bool{}
	for _, call := range images.calls {
		got[call] = true
	}
	want := map[[2]string]bool{{"connect", "all"}: true, {"grpc", "all"}: true, {"prpc", ""}: true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what was forgotten differs (-want +got):\n%s", diff)
	}
}

func adminPost(t *testing.T, url, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewBufferString(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Admin-Token", adminToken)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func TestAdminGetKmsKey(t *testing.T) {
	cr := newCredentials(t, kms.CredentialsConfig{Token: keys.NewSecret([]byte(adminToken))})
	t.Run("refused where it is not configured", func(t *testing.T) {
		address := start(t, adminMux(t, kms.AdminConfig{Images: &cleared{}}, cr), nil)
		status, body := adminPost(t, "http://"+address+"/prpc/Admin.GetKmsKey?json", `{"vm_config": "{}"}`)
		const want = `{"error": "root keys are not released here: core.kms_key_release is not \"admin\""}`
		if status != http.StatusBadRequest || body != want {
			t.Errorf("GetKmsKey() = %d %s, want 400 %s", status, body, want)
		}
	})
	t.Run("hands over what the KMS service releases", func(t *testing.T) {
		release := func(_ context.Context, r *kmsv1.GetKmsKeyRequest) (*kmsv1.GetKmsKeyResponse, error) {
			return &kmsv1.GetKmsKeyResponse{TempCaKey: r.GetVmConfig(), Keys: []*kmsv1.RootKeys{{CaKey: "ca", K256Key: []byte{1}}}}, nil
		}
		address := start(t, adminMux(t, kms.AdminConfig{Images: &cleared{}, ReleaseRoots: release}, cr), nil)
		status, body := adminPost(t, "http://"+address+"/prpc/Admin.GetKmsKey?json", `{"vm_config": "mine"}`)
		const want = `{"temp_ca_key":"mine","keys":[{"ca_key":"ca","k256_key":"01"}]}`
		if status != http.StatusOK || body != want {
			t.Errorf("GetKmsKey() = %d %s, want 200 %s", status, body, want)
		}
	})
}

func TestNewAdminRefuses(t *testing.T) {
	if _, err := kms.NewAdmin(kms.AdminConfig{}); err == nil || !strings.Contains(err.Error(), "Images is required") {
		t.Errorf("NewAdmin() = %v, want a refusal for want of Images", err)
	}
}
