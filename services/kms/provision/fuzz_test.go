package provision_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"

	"go.uber.org/zap"

	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/rpc"
	"teekms/internal/serve"
	"teekms/services/kms/provision"
)

func newVerifier(t testing.TB, td *simtd.TD) *tdx.Verifier {
	t.Helper()
	return must(tdx.NewVerifier(tdx.Config{TrustAnchor: td.Root(), Collateral: td}))
}

// newHandler serves without a socket, for fuzzing.
func newHandler(t testing.TB) http.Handler {
	t.Helper()
	s := must(provision.New(provision.Config{Apply: func(context.Context, provision.Settings) ([]string, error) {
		return nil, &provision.Refusal{Reason: "refused"}
	}}))
	return must(serve.NewMux(must(s.Mount(rpc.Config{Log: zap.NewNop()}))))
}

// answerOf checks the form that every answer has.
func answerOf(t *testing.T, h http.Handler, path, contentType string, body []byte) int {
	t.Helper()
	req := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body))
	req.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	var said map[string]string
	if err := json.Unmarshal(w.Body.Bytes(), &said); err != nil || len(said) != 1 {
		t.Errorf("answer = %d %q, want one member of JSON", w.Code, w.Body)
	}
	if _, ok := said["success"]; ok != (w.Code == http.StatusOK) || w.Code >= 500 {
		t.Errorf("answer = %d %s", w.Code, w.Body)
	}
	return w.Code
}

// FuzzJSON posts arbitrary bodies. What is taken is what encoding/json reads
// from it, too, and is text as it stands there.
func FuzzJSON(f *testing.F) {
	for _, r := range hostileJSON() {
		var b bytes.Buffer
		if _, err := b.ReadFrom(r.body); err != nil {
			f.Fatal(err)
		}
		if b.Len() < 1<<10 {
			f.Add(b.Bytes())
		}
	}
	f.Add([]byte(`{"password":"p\u00e4ss \ud83d\udd11 \\ \" \/"}`))
	f.Add([]byte("\r\n\t {\"password\" : \"x\"} \n"))
	h := newHandler(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		answerOf(t, h, "/start", "application/json", body)
		if answerOf(t, h, "/pkcs12-password", "application/json", body) != http.StatusOK {
			return
		}
		var other map[string]string
		if err := json.Unmarshal(body, &other); err != nil || len(other) != 1 || !utf8.Valid(body) {
			t.Errorf("taken: %q (%v)", body, err)
		}
		if strings.Contains(other["password"], "\uFFFD") && !bytes.Contains(bytes.ToLower(body), []byte(`\ufffd`)) && !bytes.Contains(body, []byte("\uFFFD")) {
			t.Errorf("changed on the way: %q", body)
		}
	})
}

// FuzzForm posts arbitrary forms.
func FuzzForm(f *testing.F) {
	good := p12(f, "", nil)
	for _, parts := range [][]part{
		nil,
		{curlFile(good)},
		{{name: "name", content: []byte("pkcs12")}, curlFile(good)},
		{curlFile(good), curlFile(good)},
		{{name: "x", contentType: "text/html", file: "x"}},
	} {
		body, contentType := form(parts...)
		f.Add(body, contentType)
	}
	f.Add(good, "application/octet-stream")
	f.Add([]byte("--x\r\n\r\n"), "multipart/form-data; boundary=x")
	f.Add([]byte("--x\r\nContent-Disposition: form-data; filename*=utf-8''%ff\r\n\r\nx\r\n--x--"), "multipart/form-data; boundary=x")
	h := newHandler(f)
	f.Fuzz(func(t *testing.T, body []byte, contentType string) {
		answerOf(t, h, "/pkcs12", contentType, body)
	})
}
