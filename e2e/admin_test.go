package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/gen/kms/v1/kmsv1connect"
	"teekms/internal/keys"
)

const (
	adminToken   = "canary-admin-token"
	adminBearer  = "Bearer " + adminToken
	clearPath    = "/prpc/Admin.ClearImageCache?json"
	invalidKey   = "invalid cache key"
	adminSection = "[core.image]\ncache_dir = %q\n[core.admin]\nenabled = true\nport = %d\nauth_token = %q\n%s\n"
)

// adminKMS is a KMS with a listener of administrators.
type adminKMS struct {
	*kmsDir
	cache string
	port  int
}

// newAdminKMS prepares one; admin are more lines of [core.admin], extra more
// sections.
func newAdminKMS(t testing.TB, admin, extra string) *adminKMS {
	t.Helper()
	a := &adminKMS{cache: filepath.Join(t.TempDir(), "cache"), port: freePort(t)}
	a.kmsDir = newKMS(t, "", fmt.Sprintf(adminSection, a.cache, a.port, adminToken, admin)+extra)
	a.fill(t, exampleDomain)
	return a
}

func (a *adminKMS) admin(scheme string) string {
	return fmt.Sprintf("%s://127.0.0.1:%d", scheme, a.port)
}

// cached makes an image in the cache and returns its directory.
func (a *adminKMS) cached(t testing.TB, hash string) string {
	t.Helper()
	dir := filepath.Join(a.cache, "images", hash)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "metadata.json"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func gone(t testing.TB, path string) bool {
	t.Helper()
	_, err := os.Stat(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return err != nil
}

// basic is the value of an Authorization header (RFC 7617).
func basic(name, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))
}

// TestAdminListener clears the cache as existing scripts do, in plain HTTP on the
// loopback, with each kind of credential.
func TestAdminListener(t *testing.T) {
	t.Parallel()
	htpasswd := filepath.Join(t.TempDir(), "htpasswd")
	// bcrypt of "open sesame", as htpasswd -nbB -C 4 writes it.
	const line = "ali:$2y$04$nf47uZOgqAXbJw74NMLxtexaO3T9wd47CH8KbQo3ydxMqXA762lIS\n"
	if err := os.WriteFile(htpasswd, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	k := newAdminKMS(t, fmt.Sprintf("htpasswd_file = %q", htpasswd), "")
	p, client := k.serve(t, exampleDomain)
	p.logs(t, "INFO Admin has launched from "+k.admin("http"))
	hash := strings.Repeat("ab", 32)
	for name, header := range map[string]map[string]string{
		"own header":          {"X-Admin-Token": adminToken},
		"bearer":              {"Authorization": adminBearer},
		"token as password":   {"Authorization": basic("whoever", adminToken)},
		"token as name":       {"Authorization": basic(adminToken, "")},
		"name and password":   {"Authorization": basic("ali", "open sesame")},
		"bearer, by its name": {"authorization": adminBearer},
	} {
		dir := k.cached(t, hash)
		res := request(t, http.DefaultClient, http.MethodPost, k.admin("http")+clearPath, `{"image_hash":"`+hash+`","config_hash":""}`, header)
		if res.StatusCode != http.StatusOK || res.body != "null" || !gone(t, dir) {
			t.Errorf("%s: %d %s, image gone = %v, want 200 null and a cleared cache", name, res.StatusCode, res.body, gone(t, dir))
		}
	}
	token := map[string]string{"X-Admin-Token": adminToken}
	first, second := k.cached(t, hash), k.cached(t, strings.Repeat("cd", 32))
	for _, tt := range []struct {
		body, want string
		status     int
		gone       bool
	}{
		{`{}`, "null", http.StatusOK, false},
		{`{"image_hash":"../../x"}`, `{"error": "` + invalidKey + `"}`, http.StatusBadRequest, false},
		{`{"image_hash":"` + strings.ToUpper(hash) + `x"}`, `{"error": "` + invalidKey + `"}`, http.StatusBadRequest, false},
		{`{"image_hash":"all"}`, "null", http.StatusOK, true},
	} {
		res := request(t, http.DefaultClient, http.MethodPost, k.admin("http")+clearPath, tt.body, token)
		if res.StatusCode != tt.status || res.body != tt.want {
			t.Errorf("ClearImageCache(%s) = %d %s, want %d %s", tt.body, res.StatusCode, res.body, tt.status, tt.want)
		}
		if got := gone(t, first) && gone(t, second); got != tt.gone {
			t.Errorf("after ClearImageCache(%s) the images are gone = %v, want %v", tt.body, got, tt.gone)
		}
	}
	// The services do not meet: neither is served on the listener of the other.
	wantRefusal(t, request(t, client, http.MethodPost, k.URL("https")+clearPath, "{}", token), "Service not found: Admin.ClearImageCache")
	wantRefusal(t, request(t, http.DefaultClient, http.MethodPost, k.admin("http")+"/prpc/KMS.GetMeta?json", "{}", token), "Service not found: KMS.GetMeta")
	wantRefusal(t, request(t, http.DefaultClient, http.MethodPost, k.admin("http")+"/prpc/Admin.GetKmsKey?json", "{}", token),
		`root keys are not released here: core.kms_key_release is not "admin"`)
	if strings.Contains(p.stderr.String(), "canary") || strings.Contains(p.stderr.String(), "sesame") {
		t.Errorf("the log holds a secret:\n%s", p.stderr)
	}
	if code := p.terminate(t); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
}

// TestAdminListenerRefuses answers 401 on every path, and says no more.
func TestAdminListenerRefuses(t *testing.T) {
	t.Parallel()
	k := newAdminKMS(t, "", "")
	p, _ := k.serve(t, exampleDomain)
	for name, header := range map[string]map[string]string{
		"nothing": {}, "an empty pair": {"Authorization": basic("", "")}, "a wrong token": {"X-Admin-Token": "x"},
	} {
		for _, path := range []string{clearPath, "/kms.v1.Admin/ClearImageCache", "/health", "/nowhere"} {
			res := request(t, http.DefaultClient, http.MethodPost, k.admin("http")+path, "{}", header)
			if res.StatusCode != http.StatusUnauthorized || res.body != "" || res.Header.Get("WWW-Authenticate") != `Basic realm="dstack-kms admin"` {
				t.Errorf("%s at %s = %d %q %q, want 401, nothing, the realm", name, path, res.StatusCode, res.body, res.Header.Get("WWW-Authenticate"))
			}
		}
	}
	p.logs(t, `WARN wrong admin credential {"peer": "127.0.0.1:`)
	// The first three wrong ones within a second were looked at, at most.
	if n := strings.Count(p.stderr.String(), "wrong admin credential"); n > 6 {
		t.Errorf("%d wrong tries were looked at, want few", n)
	}
}

// TestAdminOverTLS releases the root keys to an attested peer on the listener of
// administrators, and only there.
func TestAdminOverTLS(t *testing.T) {
	t.Parallel()
	k := newAdminKMS(t, "tls = true", "[core.auth_api]\ntype = \"dev\"\n")
	p, client := k.serve(t, exampleDomain, "DSTACK_KMS_CORE_KMS_KEY_RELEASE=admin", "DSTACK_KMS_CORE_IMAGE_VERIFY=false")
	p.logs(t, "INFO Admin has launched from "+k.admin("https"))
	const path = "/prpc/Admin.GetKmsKey?json"
	token := map[string]string{"Authorization": adminBearer}
	peer := k.workload(t, k.openTD(t))
	if res := request(t, peer, http.MethodPost, k.admin("https")+path, "{}", nil); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("attested, without a credential = %d, want 401", res.StatusCode)
	}
	wantRefusal(t, request(t, client, http.MethodPost, k.admin("https")+path, "{}", token), "No attestation provided")
	wantRefusal(t, request(t, peer, http.MethodPost, k.URL("https")+"/prpc/GetKmsKey?json", "{}", token),
		"root keys are released on the admin listener alone (core.kms_key_release)")
	res := request(t, peer, http.MethodPost, k.admin("https")+path, "{}", token)
	var answer struct {
		Keys []struct {
			CAKey   string `json:"ca_key"`
			K256Key string `json:"k256_key"`
		} `json:"keys"`
	}
	if err := json.Unmarshal([]byte(res.body), &answer); err != nil || res.StatusCode != http.StatusOK || len(answer.Keys) != 1 {
		t.Fatalf("GetKmsKey = %d, want one pair of root keys", res.StatusCode)
	}
	got, err := keys.ParseKey([]byte(answer.Keys[0].CAKey))
	if err != nil {
		t.Fatal(err)
	}
	want, err := keys.ParseKey(k.file(t, "root-ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	if !got.Equal(want) || answer.Keys[0].K256Key != fmt.Sprintf("%x", k.file(t, "root-k256.key")) {
		t.Error("the released keys are not those of the key directory")
	}

	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", adminBearer)
	adminDir := *k.kmsDir
	adminDir.Port = k.port
	conn := grpcConn(t, &adminDir, k.tlsClient(t, exampleDomain))
	wantStatus(t, conn.Invoke(ctx, "/kms.v1.Admin/ClearImageCache", &kmsv1.ClearImageCacheRequest{ImageHash: "!"}, &kmsv1.ClearImageCacheResponse{}),
		codes.InvalidArgument, invalidKey)
	wantStatus(t, conn.Invoke(t.Context(), "/kms.v1.Admin/ClearImageCache", &kmsv1.ClearImageCacheRequest{}, &kmsv1.ClearImageCacheResponse{}),
		codes.Unauthenticated, "")
	call := connect.NewRequest(&kmsv1.ClearImageCacheRequest{ImageHash: "all"})
	call.Header().Set("X-Admin-Token", adminToken)
	if _, err := connect.NewClient[kmsv1.ClearImageCacheRequest, kmsv1.ClearImageCacheResponse](client,
		k.admin("https")+kmsv1connect.AdminClearImageCacheProcedure).CallUnary(t.Context(), call); err != nil {
		t.Errorf("ClearImageCache over Connect = %v, want no error", err)
	}
}

// TestRootKeysStay releases root keys nowhere.
func TestRootKeysStay(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", devAuthority)
	k.fill(t, exampleDomain)
	k.serve(t, exampleDomain, "DSTACK_KMS_CORE_KMS_KEY_RELEASE=off")
	a := request(t, k.workload(t, k.openTD(t)), http.MethodPost, k.URL("https")+"/prpc/GetKmsKey?json", "{}", nil)
	wantRefusal(t, a, "root keys are not released (core.kms_key_release)")
}

func TestAdminListenerThatCannotStart(t *testing.T) {
	t.Parallel()
	k := newAdminKMS(t, "", "")
	before := tree(t, k.Certs)
	bad := filepath.Join(k.Dir, "htpasswd")
	if err := os.WriteFile(bad, []byte("ali:canary\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, want string
		env        []string
	}{
		{
			"plain password", "core.admin: reading htpasswd: line 1 holds no bcrypt hash (htpasswd -B makes one)",
			[]string{"DSTACK_KMS_CORE_ADMIN_HTPASSWD_FILE=" + bad},
		},
		{
			"no file", "core.admin.htpasswd_file: open " + k.Dir + "/none: no such file or directory",
			[]string{"DSTACK_KMS_CORE_ADMIN_HTPASSWD_FILE=" + k.Dir + "/none"},
		},
		{
			"no credential", "core.admin.enabled: needs core.admin.auth_token, auth_token_file or htpasswd_file",
			[]string{"DSTACK_KMS_CORE_ADMIN_AUTH_TOKEN="},
		},
		{
			"port of the KMS", fmt.Sprintf("Address already in use (os error 98): 127.0.0.1:%d", k.Port),
			[]string{fmt.Sprintf("DSTACK_KMS_CORE_ADMIN_PORT=%d", k.Port)},
		},
	} {
		code, _, stderr := runCmd(t, command(t, tt.env, "dstack-kms", "--config", k.Config))
		last := lastLine(stderr)
		if code != 1 || !strings.HasSuffix(last, tt.want) {
			t.Errorf("%s: exit status %d, last line %q, want 1 and %q", tt.name, code, last, tt.want)
		}
		if strings.Contains(stderr, "canary") {
			t.Errorf("%s: the log holds a secret:\n%s", tt.name, stderr)
		}
	}
	if after := tree(t, k.Certs); fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("the key directory changed:\n%v\n%v", before, after)
	}
}
