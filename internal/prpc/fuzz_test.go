package prpc_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
)

// FuzzRequest holds that whatever a client sends gets 200, or 400 and an error
// of one line in the encoding that was asked for.
func FuzzRequest(f *testing.F) {
	f.Add("POST", "KMS.GetAppEnvEncryptPubKey", "json", "", []byte(`{"app_id":"0x00"}`))
	f.Add("GET", "GetAppEnvEncryptPubKey", "app_id=0xff&json", "", []byte(nil))
	f.Add("GET", "GetAppEnvEncryptPubKey", "app_id=%zz&app_id=1", "", []byte(nil))
	f.Add("POST", "GetAppKey", "json=0&json=1", "application/json", []byte(`{"api_version":1e9,"vm_config":"\u0000"}`))
	f.Add("POST", "GetAppKey", "", "text/plain", []byte("\x08\x01\x12\x01a"))
	f.Add("PUT", "KMS.KMS.GetMeta", "json", ";;=", []byte("null"))
	f.Add("POST", "\xff\n/../x", "json", "", []byte{})
	h := newKMS(f)
	f.Fuzz(func(t *testing.T, method, name, query, contentType string, body []byte) {
		r := &http.Request{
			Method: method, URL: &url.URL{Path: "/prpc/" + name, RawQuery: query}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{"Content-Type": {contentType}}, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r.WithContext(t.Context()))
		if w.Code != http.StatusOK && w.Code != http.StatusBadRequest {
			t.Fatalf("status = %d, want 200 or 400", w.Code)
		}
		if w.Header().Get("Content-Type") != "application/json" {
			return
		}
		if bytes.ContainsAny(w.Body.Bytes(), "\n\r") || !json.Valid(w.Body.Bytes()) {
			t.Errorf("body = %q, want one line of JSON", w.Body)
		}
		var e struct {
			Error *string `json:"error"`
		}
		if err := json.Unmarshal(w.Body.Bytes(), &e); w.Code == http.StatusBadRequest && (err != nil || e.Error == nil) {
			t.Errorf("body = %s, want an error", w.Body)
		}
	})
}
