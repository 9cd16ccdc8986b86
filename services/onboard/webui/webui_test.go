package webui_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"teekms/services/onboard/webui"
)

// assets are the files the page is made of, and what each must be served as.
var assets = map[string]string{
	"/":                  "text/html; charset=utf-8",
	"/assets/app.js":     "text/javascript; charset=utf-8",
	"/assets/api.js":     "text/javascript; charset=utf-8",
	"/assets/attempt.js": "text/javascript; charset=utf-8",
	"/assets/dom.js":     "text/javascript; charset=utf-8",
	"/assets/facts.js":   "text/javascript; charset=utf-8",
	"/assets/record.js":  "text/javascript; charset=utf-8",
	"/assets/app.css":    "text/css; charset=utf-8",
	"/assets/icon.svg":   "image/svg+xml",
}

func serve(t *testing.T, c webui.Config) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(webui.Handler(c))
	t.Cleanup(s.Close)
	return s
}

// answer is an HTTP answer whose body was read.
type answer struct {
	status int
	header http.Header
	length int64 // as announced
	body   string
}

func do(t *testing.T, method, url string, header http.Header) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	if err != nil {
		t.Fatalf("making the request: %v", err)
	}
	if header != nil {
		req.Header = header
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: reading the body: %v", method, url, err)
	}
	return answer{resp.StatusCode, resp.Header, resp.ContentLength, string(body)}
}

func TestEveryFileIsServedWithItsTypeAndTheHeaders(t *testing.T) {
	s := serve(t, webui.Config{})
	for path, contentType := range assets {
		t.Run(path, func(t *testing.T) {
			resp := do(t, http.MethodGet, s.URL+path, nil)
			if resp.status != http.StatusOK || resp.body == "" {
				t.Fatalf("GET %s = %d with %d bytes, want 200 with a body", path, resp.status, len(resp.body))
			}
			if got := resp.header.Get("Content-Type"); got != contentType {
				t.Errorf("GET %s: Content-Type = %q, want %q", path, got, contentType)
			}
			checkHeaders(t, resp, map[string]string{"Cache-Control": "no-cache"})
		})
	}
}

func checkHeaders(t *testing.T, resp answer, more map[string]string) {
	t.Helper()
	want := map[string]string{
		"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; " +
			"img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
			"require-trusted-types-for 'script'",
		"X-Content-Type-Options":       "nosniff",
		"X-Frame-Options":              "DENY",
		"Referrer-Policy":              "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
	}
	for name, value := range more {
		want[name] = value
	}
	for name, value := range want {
		if got := resp.header.Values(name); len(got) != 1 || got[0] != value {
			t.Errorf("%s = %q, want one %q", name, got, value)
		}
	}
}

func TestAnotherPathIsNotFoundInPlainText(t *testing.T) {
	s := serve(t, webui.Config{})
	tests := []string{
		"/index.html", "/assets", "/assets/", "/assets/none.js", "/favicon.ico", "/webui.go", "/assets/../webui.go",
		"/assets/%2e%2e/webui.go", "//", "/prpc/Onboard.Bootstrap", "/assets/app.js/", "/ASSETS/app.js",
	}
	for _, path := range tests {
		t.Run(path, func(t *testing.T) {
			resp := do(t, http.MethodGet, s.URL+path, nil)
			if resp.status != http.StatusNotFound || resp.body != "not found\n" {
				t.Errorf("GET %s = %d %q, want 404 %q", path, resp.status, resp.body, "not found\n")
			}
			checkHeaders(t, resp, map[string]string{"Content-Type": "text/plain; charset=utf-8"})
		})
	}
}

func TestOnlyGetAndHeadAreServed(t *testing.T) {
	s := serve(t, webui.Config{})
	for _, path := range []string{"/", "/assets/app.js"} {
		get := do(t, http.MethodGet, s.URL+path, nil)
		head := do(t, http.MethodHead, s.URL+path, nil)
		if head.status != http.StatusOK || head.body != "" || head.length != int64(len(get.body)) {
			t.Errorf("HEAD %s = %d, %d bytes, Content-Length %d; want 200, none, %d",
				path, head.status, len(head.body), head.length, len(get.body))
		}
		if head.header.Get("ETag") != get.header.Get("ETag") {
			t.Errorf("HEAD %s: ETag = %q, want that of GET, %q", path, head.header.Get("ETag"), get.header.Get("ETag"))
		}
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, "PROPFIND"} {
			resp := do(t, method, s.URL+path, nil)
			if resp.status != http.StatusMethodNotAllowed || resp.header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s = %d, Allow %q; want 405, %q",
					method, path, resp.status, resp.header.Get("Allow"), "GET, HEAD")
			}
			if resp.body != "method not allowed\n" {
				t.Errorf("%s %s: body = %q, want %q", method, path, resp.body, "method not allowed\n")
			}
			checkHeaders(t, resp, nil)
		}
	}
}

func TestAFileThatDidNotChangeIsNotSentAgain(t *testing.T) {
	s := serve(t, webui.Config{})
	seen := map[string]string{}
	for path := range assets {
		resp := do(t, http.MethodGet, s.URL+path, nil)
		etag := resp.header.Get("ETag")
		if !regexp.MustCompile(`^"[0-9a-f]{32}"$`).MatchString(etag) {
			t.Errorf("GET %s: ETag = %q, want a strong tag", path, etag)
		}
		if other, ok := seen[etag]; ok {
			t.Errorf("%s and %s have the same ETag %s, want different ones", path, other, etag)
		}
		seen[etag] = path
		again := do(t, http.MethodGet, s.URL+path, http.Header{"If-None-Match": {etag}})
		if again.status != http.StatusNotModified || again.body != "" {
			t.Errorf("GET %s with its ETag = %d with %d bytes, want 304 with none", path, again.status, len(again.body))
		}
	}
}

func TestTheETagOfThePageFollowsItsContent(t *testing.T) {
	one := do(t, http.MethodGet, serve(t, webui.Config{Version: "1"}).URL, nil)
	two := do(t, http.MethodGet, serve(t, webui.Config{Version: "2"}).URL, nil)
	if one.header.Get("ETag") == two.header.Get("ETag") {
		t.Errorf("ETag of versions 1 and 2 = %q, want different ones", one.header.Get("ETag"))
	}
}

func TestThePageSaysWhatItsConfigSays(t *testing.T) {
	tests := []struct {
		name   string
		config webui.Config
		want   []string
		not    []string
	}{
		{
			name: "nothing set", config: webui.Config{},
			want: []string{`data-setup-token-required="false"`}, not: []string{"Version"},
		},
		{
			name: "token required", config: webui.Config{SetupTokenRequired: true},
			want: []string{`data-setup-token-required="true"`},
		},
		{
			name: "version is text, never markup", config: webui.Config{Version: `1.2<script src="x">`},
			want: []string{`Version 1.2&lt;script`}, not: []string{`<script src="x"`},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			body := do(t, http.MethodGet, serve(t, tt.config).URL, nil).body
			for _, want := range tt.want {
				if !strings.Contains(body, want) {
					t.Errorf("the page lacks %q", want)
				}
			}
			for _, not := range tt.not {
				if strings.Contains(body, not) {
					t.Errorf("the page has %q, want it absent", not)
				}
			}
		})
	}
}

// TestNothingWorksAroundThePolicy reads the files as text: what the policy
// would block, or what would call for weakening it, is not there at all.
func TestNothingWorksAroundThePolicy(t *testing.T) {
	s := serve(t, webui.Config{})
	forbidden := map[string]*regexp.Regexp{
		"inline handler":       regexp.MustCompile(`(?i)<[^>]+\son[a-z]+\s*=`),
		"inline style":         regexp.MustCompile(`(?i)<style|<[^>]+\sstyle\s*=|setAttribute\('style'`),
		"inline script":        regexp.MustCompile(`(?i)<script(?:\s+type="module")?\s*>|javascript:`),
		"markup from a string": regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function`),
		"lasting storage":      regexp.MustCompile(`localStorage|indexedDB|document\.cookie`),
		"external file":        regexp.MustCompile(`(?i)(?:src|href|action)\s*=\s*"(?:https?:)?//|url\(\s*['"]?(?:https?:)?//|@import|fetch\(\s*['"\x60](?:https?:)?//`),
	}
	for path := range assets {
		body := do(t, http.MethodGet, s.URL+path, nil).body
		for what, re := range forbidden {
			if hit := re.FindString(body); hit != "" {
				t.Errorf("%s has an %s: %q", path, what, hit)
			}
		}
		for _, url := range regexp.MustCompile(`(?i)(?:https?|wss?)://[^\s'"<)]*`).FindAllString(body, -1) {
			if !allowedURL(url) {
				t.Errorf("%s names %q, want no URL but examples and namespaces", path, url)
			}
		}
	}
}

// allowedURL knows the URLs that are read by people and never fetched.
func allowedURL(url string) bool {
	switch url {
	case "http://www.w3.org/2000/svg", // namespace of the icon
		"https://",                     // told to leave away
		"https://kms.example.com:9100": // an example
		return true
	}
	return strings.HasPrefix(url, "http://localhost:9100/")
}

// TestEveryReferenceIsServed follows what the page and its scripts ask for.
func TestEveryReferenceIsServed(t *testing.T) {
	s := serve(t, webui.Config{})
	refs := regexp.MustCompile(`(?:src|href)="([^"]+)"|from '\./([^']+)'`)
	found := 0
	for path := range assets {
		body := do(t, http.MethodGet, s.URL+path, nil).body
		for _, m := range refs.FindAllStringSubmatch(body, -1) {
			ref := "/" + m[1]
			if m[2] != "" {
				ref = "/assets/" + m[2]
			}
			found++
			if _, ok := assets[ref]; !ok {
				t.Errorf("%s refers to %q, which is no file of the page", path, ref)
			}
		}
	}
	if found < 8 {
		t.Errorf("found %d references, want at least 8: the pattern misses them", found)
	}
}

func TestThePageWorksWithoutScripts(t *testing.T) {
	body := do(t, http.MethodGet, serve(t, webui.Config{}).URL, nil).body
	_, rest, ok := strings.Cut(body, "<noscript>")
	text, _, closed := strings.Cut(rest, "</noscript>")
	if !ok || !closed {
		t.Fatal("the page has no noscript text")
	}
	for _, want := range []string{
		"/prpc/Onboard.Bootstrap?json", `{"domain":"kms.example.com"}`, "/prpc/Onboard.GetAttestationInfo?json",
		"http://localhost:9100/finish", "Authorization: Bearer",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the noscript text lacks %q", want)
		}
	}
}
