package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestHostileAuthorities has a running KMS ask a webhook that answers anything
// but a decision. No key is given, denied and undecided are told apart, and what
// the webhook said stays here.
func TestHostileAuthorities(t *testing.T) {
	t.Parallel()
	const undecided = "authorization service gave a malformed answer"
	const nobody = "authorization service unreachable"
	tests := []struct {
		name   string
		answer http.HandlerFunc
		want   string
	}{
		{"500", answering(http.StatusInternalServerError, `{"isAllowed":true,"gatewayAppId":"","reason":""}`), nobody},
		{"a redirect to itself", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}, undecided},
		{"late", func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-time.After(5 * time.Second):
			}
		}, nobody},
		{"huge", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"isAllowed":true,"gatewayAppId":"","reason":"%s"}`, strings.Repeat("secret", 4<<20))
		}, undecided},
		{"isAllowed is text", answering(200, `{"isAllowed":"true","gatewayAppId":"","reason":"secret"}`), undecided},
		{"isAllowed is 1", answering(200, `{"isAllowed":1,"gatewayAppId":"","reason":"secret"}`), undecided},
		{"isAllowed is missing", answering(200, `{"gatewayAppId":"","reason":"secret"}`), undecided},
		{"isAllowed twice", answering(200, `{"isAllowed":false,"isAllowed":true,"gatewayAppId":"","reason":"secret"}`), undecided},
		{"no JSON", answering(200, `<h1>secret</h1>`), undecided},
		{"two answers", answering(200, `{"isAllowed":true,"gatewayAppId":"","reason":""} {"isAllowed":true}`), undecided},
		{"a denial", answering(200, `{"isAllowed":false,"gatewayAppId":"","reason":"not\nthis\u0007 one"}`), "App not allowed: Boot denied: not this one"},
	}
	var current atomic.Pointer[http.HandlerFunc]
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/bootAuth/kms") { // the KMS itself is fine
			answering(200, `{"isAllowed":true,"gatewayAppId":"","reason":""}`)(w, r)
			return
		}
		(*current.Load())(w, r)
	}))
	defer server.Close()
	k := newKMS(t, "", "")
	k.fill(t, exampleDomain)
	k.write(t, "", askAuthority(server.URL))
	p, _ := k.serve(t, exampleDomain, authorityEnv(server.URL))
	client := k.workload(t, k.openTD(t))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			current.Store(&tt.answer)
			resp, err := client.Post(k.URL("https")+"/prpc/GetAppKey?json", "application/json", strings.NewReader(`{"api_version":1,"vm_config":"{}"}`))
			if err != nil {
				t.Fatal(err)
			}
			a := read(t, resp)
			if a.StatusCode != http.StatusBadRequest || !strings.Contains(a.body, tt.want) || strings.Contains(a.body, "secret") {
				t.Errorf("GetAppKey = %d %.300s, want 400 with %q", a.StatusCode, a.body, tt.want)
			}
		})
	}
	if log := p.stderr.String(); !strings.Contains(log, "GetAppKey") {
		t.Error("the log does not tell of the refusals")
	}
}

func answering(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		fmt.Fprint(w, body)
	}
}
