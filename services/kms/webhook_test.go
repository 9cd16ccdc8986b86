package kms_test

import (
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/authz/webhook"
	"teekms/internal/osimage"
	"teekms/internal/ratls"
)

// hook is an authority of the kind that operators run.
type hook struct {
	mu     sync.Mutex
	answer string
	asked  []map[string]any
	paths  []string
}

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	h.mu.Lock()
	defer h.mu.Unlock()
	var question map[string]any
	if err := json.Unmarshal(body, &question); err == nil {
		h.asked, h.paths = append(h.asked, question), append(h.paths, r.URL.Path)
	}
	_, _ = io.WriteString(w, h.answer)
}

func (h *hook) set(answer string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer, h.asked, h.paths = answer, nil, nil
}

// only is the one question since set.
func (h *hook) only(t *testing.T) (path string, question map[string]any) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.asked) != 1 {
		t.Fatalf("the webhook was asked %d times, want once", len(h.asked))
	}
	return h.paths[0], h.asked[0]
}

// TestWithAWebhook runs releases with the parts that decide in production.
func TestWithAWebhook(t *testing.T) {
	h := &hook{}
	server := httptest.NewServer(h)
	defer server.Close()
	w := newWorld(t, func(w *world) {
		authority, err := webhook.New(webhook.Config{URL: server.URL, Timeout: 5 * time.Second, Log: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		unverified, err := osimage.New(osimage.Config{Log: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		w.config.Authorizer, w.config.Images = authority, unverified
	})
	td := w.workload(t, vectorApp(t))
	client := w.client(t, certificate(t, td, ratls.Gen8))
	a := newApplicant(t, td)
	const allow = `{"isAllowed":true,"gatewayAppId":"any","reason":""}`

	h.set(allow)
	got, end := invoke[kmsv1.GetAppKeyRequest, kmsv1.GetAppKeyResponse](t, client, w.url, "prpc json", "GetAppKey", &kmsv1.GetAppKeyRequest{})
	end.expect(t, "prpc json", outcome{})
	path, question := h.only(t)
	if path != "/bootAuth/app" || got.GetGatewayAppId() != "any" || got.GetTproxyAppId() != "any" {
		t.Errorf("asked at %s, gateway %q, want /bootAuth/app, any", path, got.GetGatewayAppId())
	}
	m := td.Measurements()
	atNow := question["mrAggregated"]
	if question["appId"] != hex.EncodeToString(m.AppID) || question["osImageHash"] != hex.EncodeToString(got.GetOsImageHash()) ||
		question["keyProviderInfo"] != hex.EncodeToString([]byte(m.KeyProvider)) {
		t.Errorf("question = %v, want what was measured", question)
	}

	h.set(allow)
	_, end = signCert(t, w, "prpc json", a.sign(t, 1, a.csr(t)))
	end.expect(t, "prpc json", outcome{})
	path, question = h.only(t)
	if path != "/bootAuth/app" || question["keyProviderInfo"] != "" || question["mrAggregated"] == atNow {
		t.Errorf("SignCert asks %s about %v, want the application as it was at boot", path, question)
	}

	h.set(allow)
	_, end = invoke[kmsv1.GetKmsKeyRequest, kmsv1.GetKmsKeyResponse](t, client, w.url, "prpc json", "GetKmsKey", &kmsv1.GetKmsKeyRequest{})
	end.expect(t, "prpc json", outcome{})
	if path, _ = h.only(t); path != "/bootAuth/kms" {
		t.Errorf("GetKmsKey asks %s, want /bootAuth/kms", path)
	}

	refusals := []struct {
		answer string
		want   outcome
	}{
		{`{"isAllowed":false,"gatewayAppId":"","reason":"compose hash\nnot allowed"}`, outcome{connect.CodePermissionDenied, "App not allowed: Boot denied: compose hash not allowed"}},
		{`{"isAllowed":"true","gatewayAppId":"","reason":""}`, outcome{connect.CodeUnavailable, "authorization service gave a malformed answer"}},
		{`{"isAllowed":true}`, outcome{connect.CodeUnavailable, "authorization service gave a malformed answer"}},
		{strings.Repeat(" ", 4<<20), outcome{connect.CodeUnavailable, "authorization service gave a malformed answer"}},
	}
	for _, r := range refusals {
		h.set(r.answer)
		_, end := invoke[kmsv1.GetAppKeyRequest, kmsv1.GetAppKeyResponse](t, client, w.url, "grpc", "GetAppKey", &kmsv1.GetAppKeyRequest{})
		end.expect(t, "grpc", r.want)
	}
	server.Close()
	_, end = invoke[kmsv1.GetAppKeyRequest, kmsv1.GetAppKeyResponse](t, client, w.url, "grpc", "GetAppKey", &kmsv1.GetAppKeyRequest{})
	end.expect(t, "grpc", outcome{connect.CodeUnavailable, "authorization service unreachable"})
}
