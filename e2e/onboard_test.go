package e2e

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	onboardv1 "teekms/gen/onboard/v1"
)

const (
	bootstrapPath   = "/prpc/Onboard.Bootstrap?json"
	connectPath     = "/onboard.v1.Onboard/Bootstrap"
	exampleDomain   = "kms.example.com"
	exampleRequest  = `{"domain":"kms.example.com"}`
	alreadyText     = "Bootstrap already completed"
	notYetText      = "not bootstrapped yet: there is nothing to finish"
	crossOriginText = "cross-origin request refused"
)

// request sends one request with headers and returns the answer.
func request(t testing.TB, client *http.Client, method, url, body string, header map[string]string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, resp)
}

// leaks finds in a reply what only this machine should know.
var leaks = regexp.MustCompile(`goroutine \d|\.go:\d|runtime\.|/gen/|teekms/|panic|unmarshal into`)

// wantRefusal checks an error of the prpc dialect: 400 and one line of JSON.
func wantRefusal(t testing.TB, a answer, text string) {
	t.Helper()
	wantPlainError(t, a, http.StatusBadRequest, text)
}

func wantPlainError(t testing.TB, a answer, status int, text string) {
	t.Helper()
	var quoted strings.Builder
	encoder := json.NewEncoder(&quoted)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(text); err != nil {
		t.Fatal(err)
	}
	if want := `{"error": ` + strings.TrimSpace(quoted.String()) + `}`; a.StatusCode != status || a.body != want {
		t.Errorf("answer = %d %s, want %d %s", a.StatusCode, a.body, status, want)
	}
	if got := a.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("Content-Type = %q, want application/json", got)
	}
	if got := a.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control = %q, want no-store", got)
	}
	if leaks.MatchString(a.body) {
		t.Errorf("the reply shows the inside: %s", a.body)
	}
}

// wantConnectError checks an error of Connect JSON.
func wantConnectError(t testing.TB, a answer, code, text string) {
	t.Helper()
	var e struct{ Code, Message string }
	if err := json.Unmarshal([]byte(a.body), &e); err != nil || e.Code != code || !strings.Contains(e.Message, text) {
		t.Errorf("answer = %d %.300s, want %s: %s", a.StatusCode, a.body, code, text)
	}
	if leaks.MatchString(a.body) {
		t.Errorf("the reply shows the inside: %s", a.body)
	}
}

// connectPost calls a procedure with Connect JSON.
func connectPost(t testing.TB, client *http.Client, url, body string) answer {
	t.Helper()
	return request(t, client, http.MethodPost, url, body, map[string]string{"Content-Type": "application/json"})
}

func parseCertificate(t testing.TB, text []byte) *x509.Certificate {
	t.Helper()
	if block, rest := pem.Decode(text); block != nil && len(strings.TrimSpace(string(rest))) == 0 {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	t.Fatalf("want one PEM block, got\n%s", text)
	return nil
}

func TestBootstrapOverTheNetwork(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	p := k.onboarding(t, "dstack-kms")
	url := k.URL("http")

	for _, refuse := range []func() answer{
		func() answer { return post(t, url+"/prpc/Onboard.Finish?json", "") },
		func() answer { return get(t, http.DefaultClient, url+"/finish") },
	} {
		wantRefusal(t, refuse(), notYetText)
	}
	wantConnectError(t, connectPost(t, http.DefaultClient, url+"/onboard.v1.Onboard/Finish", "{}"), "failed_precondition", notYetText)

	first := post(t, url+bootstrapPath, `{"domain":"kms.example.com","request_id":"one"}`)
	checkBootstrapReply(t, k, first.body)
	if again := post(t, url+bootstrapPath, `{"domain":"kms.example.com","request_id":"one"}`); again.body != first.body {
		t.Errorf("the same request_id got another answer: %.300s", again.body)
	}
	for _, body := range []string{exampleRequest, `{"domain":"kms.example.com","request_id":"two"}`, `{"domain":""}`} {
		wantRefusal(t, post(t, url+bootstrapPath, body), alreadyText)
	}
	wantConnectError(t, connectPost(t, http.DefaultClient, url+connectPath, exampleRequest), "already_exists", alreadyText)
	wantRefusal(t, post(t, url+"/prpc/Onboard.Onboard?json", `{"source_url":"https://peer","domain":"kms.example.com"}`), alreadyText)

	if a := post(t, url+"/prpc/Onboard.Finish?json", "whatever"); a.StatusCode != http.StatusOK || a.body != "null" {
		t.Errorf("Finish = %d %q, want 200 null", a.StatusCode, a.body)
	}
	if code := p.wait(t, patience); code != 0 {
		t.Errorf("exit status %d after Finish, want 0", code)
	}
}

// TestConcurrentBootstraps has twenty callers, of three dialects.
func TestConcurrentBootstraps(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	k.onboarding(t, "dstack-onboard")
	const callers = 20
	answers := make([]answer, callers)
	var wg sync.WaitGroup
	for i := range callers {
		path := bootstrapPath
		if i%2 == 1 {
			path = connectPath
		}
		wg.Go(func() { answers[i] = post(t, k.URL("http")+path, exampleRequest) })
	}
	wg.Wait()
	succeeded := 0
	for i, a := range answers {
		switch {
		case a.StatusCode == http.StatusOK:
			succeeded++
		case i%2 == 1:
			wantConnectError(t, a, "already_exists", alreadyText)
		default:
			wantRefusal(t, a, alreadyText)
		}
	}
	if succeeded != 1 {
		t.Errorf("%d of %d callers bootstrapped, want 1", succeeded, callers)
	}
	checkKeyDir(t, k.Certs)
}

// TestTwoOnboardingServices has two on one directory: what one bootstraps the
// other finds done, and can finish.
func TestTwoOnboardingServices(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	first := k.onboarding(t, "dstack-kms")
	other := *k
	second := startCmd(t, command(t, []string{fmt.Sprintf("DSTACK_KMS_CORE_ONBOARD_PORT=%d", other.movePort(t))},
		"dstack-onboard", "--config", k.Config))
	second.ready(t, http.DefaultClient, other.URL("http")+"/health")
	checkBootstrapReply(t, k, post(t, k.URL("http")+bootstrapPath, exampleRequest).body)
	before := tree(t, k.Certs)
	wantRefusal(t, post(t, other.URL("http")+bootstrapPath, exampleRequest), alreadyText)
	for url, p := range map[string]*process{k.URL("http"): first, other.URL("http"): second} {
		if a := get(t, http.DefaultClient, url+"/finish"); a.body != "OK" {
			t.Errorf("/finish = %d %s", a.StatusCode, a.body)
		}
		if code := p.wait(t, patience); code != 0 {
			t.Errorf("exit status %d, want 0", code)
		}
	}
	if diff := cmp.Diff(before, tree(t, k.Certs)); diff != "" {
		t.Errorf("the second service changed the directory:\n%s", diff)
	}
}

// dial opens a plain connection to the service of k.
func dial(t testing.TB, k *kmsDir) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", k.Port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// logs waits until the process has logged a text.
func (p *process) logs(t testing.TB, text string) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if strings.Contains(p.stderr.String(), text) {
			return
		}
		select {
		case <-p.ended:
			if !strings.Contains(p.stderr.String(), text) {
				t.Fatalf("%s ended without saying %q:\n%s", p.Cmd, text, p.stderr)
			}
		default:
		}
	}
	t.Errorf("the log does not say %q:\n%s", text, p.stderr)
}

// TestCrossSiteRequests sends what a browser sends for another site's page.
func TestCrossSiteRequests(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	p := k.onboarding(t, "dstack-kms")
	url := k.URL("http")
	own := strings.TrimPrefix(url, "http://")
	foreign := []map[string]string{
		{"Sec-Fetch-Site": "cross-site"},
		{"Sec-Fetch-Site": "same-site"},
		{"Origin": "http://evil.example"},
		{"Origin": "null"},
		{"Referer": "http://evil.example/page"},
		{"Referer": "http://" + own + ".evil.example/"},
	}
	calls := []struct{ method, path, body string }{
		{http.MethodPost, bootstrapPath, exampleRequest},
		{http.MethodPost, connectPath, exampleRequest},
		{http.MethodPost, "/prpc/Onboard.Finish?json", ""},
		{http.MethodGet, "/finish", ""},
		{http.MethodHead, "/finish", ""},
	}
	refused := func() {
		for _, c := range calls {
			for _, h := range foreign {
				header := map[string]string{"Content-Type": "application/json"}
				for key, value := range h {
					header[key] = value
				}
				a := request(t, http.DefaultClient, c.method, url+c.path, c.body, header)
				if c.method == http.MethodHead {
					if a.StatusCode != http.StatusForbidden {
						t.Errorf("HEAD %s with %v = %d, want 403", c.path, h, a.StatusCode)
					}
					continue
				}
				wantPlainError(t, a, http.StatusForbidden, crossOriginText)
			}
		}
	}
	refused()
	if left := tree(t, k.Certs); len(left) != 0 {
		t.Errorf("a cross-site request wrote %v", left)
	}
	same := map[string]string{"Content-Type": "application/json", "Sec-Fetch-Site": "same-origin", "Origin": url, "Referer": url + "/"}
	if a := request(t, http.DefaultClient, http.MethodPost, url+bootstrapPath, exampleRequest, same); a.StatusCode != http.StatusOK {
		t.Errorf("the page's own Bootstrap = %d %s", a.StatusCode, a.body)
	}
	refused()
	for _, method := range []string{http.MethodHead, http.MethodPost, http.MethodPut} {
		if a := request(t, http.DefaultClient, method, url+"/finish", "", same); a.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s /finish = %d, want 405", method, a.StatusCode)
		}
	}
	if a := request(t, http.DefaultClient, http.MethodGet, url+"/finish", "", same); a.StatusCode != http.StatusOK {
		t.Errorf("the page's own /finish = %d %s", a.StatusCode, a.body)
	}
	if code := p.wait(t, patience); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
}

func TestSetupToken(t *testing.T) {
	t.Parallel()
	const token = "correct-horse-battery-staple"
	const wrong = "wr0ng-guess-of-somebody"
	k := newKMS(t, fmt.Sprintf("setup_token = %q", token), "")
	p := k.onboarding(t, "dstack-kms")
	url := k.URL("http")
	with := func(token string) map[string]string {
		return map[string]string{"Content-Type": "application/json", "Authorization": "Bearer " + token}
	}
	none := map[string]string{"Content-Type": "application/json"}
	calls := []struct {
		name, method, path, body string
		check                    func(a answer, text string)
	}{
		{"prpc", http.MethodPost, bootstrapPath, exampleRequest, func(a answer, text string) { wantPlainError(t, a, 401, text) }},
		{"prpc Finish", http.MethodPost, "/prpc/Finish?json", "", func(a answer, text string) { wantPlainError(t, a, 401, text) }},
		{"prpc Onboard", http.MethodPost, "/prpc/Onboard.Onboard?json", "{}", func(a answer, text string) { wantPlainError(t, a, 401, text) }},
		{"GET /finish", http.MethodGet, "/finish", "", func(a answer, text string) { wantPlainError(t, a, 401, text) }},
		{"Connect", http.MethodPost, connectPath, exampleRequest, func(a answer, text string) { wantConnectError(t, a, "unauthenticated", text) }},
	}
	for _, c := range calls {
		a := request(t, http.DefaultClient, c.method, url+c.path, c.body, none)
		c.check(a, "a bearer token is required")
		if got := a.Header.Get("WWW-Authenticate"); got != "Bearer" {
			t.Errorf("%s: WWW-Authenticate = %q, want Bearer", c.name, got)
		}
	}
	conn := grpcConn(t, k, nil)
	call := func(token string) error {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
		return conn.Invoke(ctx, connectPath, &onboardv1.BootstrapRequest{Domain: exampleDomain}, &onboardv1.BootstrapResponse{})
	}
	const tooMany = "too many wrong tokens: try again in a second"
	guesses := 0
	quick(t, time.Second, "guessing five times", func() time.Duration {
		time.Sleep(1100 * time.Millisecond) // a window without wrong tokens
		begin := time.Now()
		for range max(2, 3-guesses) { // of who has sent three within a minute, two a second are looked at
			wantPlainError(t, request(t, http.DefaultClient, http.MethodPost, url+bootstrapPath, exampleRequest, with(wrong)), 401, "the bearer token is wrong")
			guesses++
		}
		right := request(t, http.DefaultClient, http.MethodGet, url+"/finish", "", with(token))
		another := call(wrong)
		took := time.Since(begin)
		if took <= time.Second {
			wantPlainError(t, right, 401, tooMany)
			wantStatus(t, another, codes.Unauthenticated, tooMany)
		} else if status.Convert(another).Message() != tooMany { // that second is over
			guesses++
		}
		return took
	})
	time.Sleep(1100 * time.Millisecond)
	wantStatus(t, call(wrong), codes.Unauthenticated, "the bearer token is wrong")
	guesses++
	if left := tree(t, k.Certs); len(left) != 0 {
		t.Errorf("written without the token: %v", left)
	}
	// What needs no token: the page, the facts, health.
	if a := get(t, http.DefaultClient, url+"/prpc/GetAttestationInfo"); !strings.Contains(a.body, `"setup_token_required":true`) {
		t.Errorf("GetAttestationInfo = %d %.200s", a.StatusCode, a.body)
	}
	if err := call(token); err != nil {
		t.Errorf("Bootstrap over gRPC with the token: %v", err)
	}
	wantPlainError(t, request(t, http.DefaultClient, http.MethodPost, url+bootstrapPath, exampleRequest, with(token)), 400, alreadyText)
	wantConnectError(t, request(t, http.DefaultClient, http.MethodPost, url+connectPath, exampleRequest, with(token)), "already_exists", alreadyText)
	if a := request(t, http.DefaultClient, http.MethodGet, url+"/finish", "", with(token)); a.body != "OK" {
		t.Errorf("GET /finish with the token = %d %s", a.StatusCode, a.body)
	}
	p.wait(t, patience)
	log := p.stderr.String() + p.stdout.String()
	if strings.Contains(log, token) || strings.Contains(log, wrong) {
		t.Errorf("a token is in the log:\n%s", log)
	}
	if n := len(regexp.MustCompile(`WARN wrong bearer token \{"peer": "127\.0\.0\.1:\d+"\}`).FindAllString(log, -1)); n != guesses {
		t.Errorf("%d lines tell of a wrong token and its peer, want %d\n%s", n, guesses, log)
	}
}

// TestSetupTokenMadeAtStart finds the token on standard error once, outside of
// the log.
func TestSetupTokenMadeAtStart(t *testing.T) {
	t.Parallel()
	k := newKMS(t, `setup_token = "auto"`, "[log]\nformat = \"json\"\nlevel = \"debug\"\n")
	p := k.onboarding(t, "dstack-onboard")
	p.logs(t, "Onboarding service has launched")
	var token string
	for line := range strings.Lines(p.stderr.String()) {
		if rest, ok := strings.CutPrefix(line, "Setup token: "); ok && token == "" {
			token = strings.TrimSpace(rest)
			continue
		}
		if !json.Valid([]byte(line)) {
			t.Errorf("this line is neither JSON nor the token: %s", line)
		}
	}
	if len(token) != 32 {
		t.Fatalf("setup token = %q, want 32 characters\n%s", token, p.stderr)
	}
	url := k.URL("http")
	wantPlainError(t, post(t, url+bootstrapPath, exampleRequest), 401, "a bearer token is required")
	for _, literal := range []string{"auto", ""} {
		a := request(t, http.DefaultClient, http.MethodPost, url+bootstrapPath, exampleRequest, map[string]string{"Authorization": "Bearer " + literal})
		if a.StatusCode != http.StatusUnauthorized {
			t.Errorf("token %q = %d %s, want 401", literal, a.StatusCode, a.body)
		}
	}
	a := request(t, http.DefaultClient, http.MethodPost, url+bootstrapPath, exampleRequest, map[string]string{"Authorization": "Bearer " + token})
	checkBootstrapReply(t, k, a.body)
	if n := strings.Count(p.stderr.String(), token); n != 1 {
		t.Errorf("the token is %d times on standard error, want once", n)
	}
}

func TestUnprotectedAddressIsTold(t *testing.T) {
	t.Parallel()
	const warning = "whoever reaches this address can bootstrap this KMS"
	for _, tt := range []struct {
		address, token string
		want           bool
	}{
		{"0.0.0.0", "", true}, {"0.0.0.0", "secret", false}, {"127.0.0.1", "", false}, {"[::]", "", true},
	} {
		k := newKMS(t, "", "")
		env := []string{"DSTACK_KMS_CORE_ONBOARD_ADDRESS=" + strings.Trim(tt.address, "[]"), "DSTACK_KMS_CORE_ONBOARD_SETUP_TOKEN=" + tt.token}
		p := startCmd(t, command(t, env, "dstack-kms", "--config", k.Config))
		p.ready(t, http.DefaultClient, k.URL("http")+"/health")
		p.logs(t, fmt.Sprintf("Onboarding service has launched from http://%s:%d\n", tt.address, k.Port))
		if got := strings.Contains(p.stderr.String(), warning); got != tt.want {
			t.Errorf("address %s, token %q: warned = %v, want %v", tt.address, tt.token, got, tt.want)
		}
	}
}

// movePort gives k another port, for a second process.
func (k *kmsDir) movePort(t testing.TB) int {
	k.Port = freePort(t)
	return k.Port
}

// wantStatus checks a gRPC error.
func wantStatus(t testing.TB, err error, code codes.Code, text string) {
	t.Helper()
	s := status.Convert(err)
	if err == nil || s.Code() != code || !strings.Contains(s.Message(), text) {
		t.Errorf("error = %v, want %v: %s", err, code, text)
	}
	if leaks.MatchString(s.Message()) {
		t.Errorf("the reply shows the inside: %s", s.Message())
	}
}

// TestUnreadableKeyDirectory is one that belongs to somebody else altogether.
func TestUnreadableKeyDirectory(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	if err := os.Mkdir(k.Certs, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 { // then it is the owner
		if err := os.Chmod(k.Certs, 0); err != nil {
			t.Fatal(err)
		}
	}
	code, _, stderr := runCmd(t, k.dropRoot(t, command(t, nil, "dstack-kms", "--config", k.Config)))
	wantErrorLine(t, code, 1, stderr, "Permission denied: "+k.Certs)
}
