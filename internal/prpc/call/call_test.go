package call_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/prpc"
	"teekms/internal/prpc/call"
)

func service(t *testing.T, h http.HandlerFunc) *call.Service {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	codec, err := prpc.NewCodec(kmsv1.File_kms_v1_kms_proto.Services().ByName("KMS"), "")
	if err != nil {
		t.Fatal(err)
	}
	base, err := call.ParseBase(srv.URL + "/below/prpc/")
	if err != nil {
		t.Fatal(err)
	}
	return &call.Service{Base: base, HTTP: srv.Client(), Codec: codec, Token: "secret"}
}

func TestCallSpeaksTheDialect(t *testing.T) {
	s := service(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if got, want := r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("Authorization")+" "+string(body), `POST /below/prpc/KMS.GetAppKey?json Bearer secret {"api_version":1,"vm_config":"{}"}`; got != want {
			http.Error(w, got, http.StatusNotFound)
			return
		}
		fmt.Fprint(w, `{"disk_crypt_key":"0x0102","gateway_app_id":"any","of_a_newer_server":1}`)
	})
	var got kmsv1.GetAppKeyResponse
	if err := s.Call(t.Context(), "KMS.GetAppKey", &kmsv1.GetAppKeyRequest{ApiVersion: 1, VmConfig: "{}"}, &got); err != nil {
		t.Fatalf("Call() = %v", err)
	}
	want := &kmsv1.GetAppKeyResponse{DiskCryptKey: []byte{1, 2}, GatewayAppId: "any"}
	if diff := cmp.Diff(want, &got, protocmp.Transform()); diff != "" {
		t.Errorf("Call() (-want +got):\n%s", diff)
	}
}

func TestCallTellsWhatTheServerSaid(t *testing.T) {
	tests := []struct {
		name   string
		status int
		body   string
		want   string
	}{
		{"one line", 400, "{\n  \"error\": \"App not allowed: Boot denied: no\"\n}", "KMS.GetAppKey is answered with: App not allowed: Boot denied: no"},
		{"one cause of the older form", 400, `{"error":"App not allowed\n\nCaused by:\n    Boot denied: no"}`, "KMS.GetAppKey is answered with: App not allowed: Boot denied: no"},
		{"several causes of the older form", 400, `{"error":"a\n\nCaused by:\n    0: b\n    1: c: d\n\nStack backtrace:\n   0: main"}`, "KMS.GetAppKey is answered with: a: b: c: d"},
		{"another server", 404, `<html>`, "KMS.GetAppKey is answered with 404 Not Found"},
		{"no JSON", 200, `<html>`, "reading the answer of KMS.GetAppKey: not JSON at byte 1: invalid character '<' looking for beginning of value"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := service(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(tt.status)
				fmt.Fprint(w, tt.body)
			})
			err := s.Call(t.Context(), "KMS.GetAppKey", &kmsv1.GetAppKeyRequest{}, &kmsv1.GetAppKeyResponse{})
			if err == nil || err.Error() != tt.want {
				t.Fatalf("Call() = %v, want %s", err, tt.want)
			}
			if refused, ok := errors.AsType[*call.Error](err); ok != (tt.status != 200) || ok && refused.Status != tt.status {
				t.Errorf("Call() = %#v, want the status %d", err, tt.status)
			}
		})
	}
}

func TestCallReadsNoEndlessAnswer(t *testing.T) {
	s := service(t, func(w http.ResponseWriter, r *http.Request) {
		chunk := []byte(strings.Repeat(" ", 1<<20))
		for r.Context().Err() == nil {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	err := s.Call(t.Context(), "KMS.GetMeta", &kmsv1.GetMetaRequest{}, &kmsv1.GetMetaResponse{})
	if err == nil || !strings.Contains(err.Error(), "more than 12582912 bytes") {
		t.Errorf("Call() = %v, want that the answer is too large", err)
	}
}

func TestParseBaseTakesNoOtherURLs(t *testing.T) {
	for _, raw := range []string{"", "kms:9100", "ftp://a", "https://", "https://user@host", "https://host?q", "https://host#f", "https://a b"} {
		if u, err := call.ParseBase(raw); err == nil {
			t.Errorf("ParseBase(%q) = %v, want an error", raw, u)
		}
	}
}

func TestDenialIsToldFromOtherRefusals(t *testing.T) {
	tests := []struct {
		text, reason string
		denied       bool
	}{
		{"App not allowed: Boot denied: compose hash not allowed", "compose hash not allowed", true},
		{"App not allowed: Boot denied", "", true},
		{"KMS self authorization failed: KMS is not allowed: out of date", "out of date", true},
		{"App not allowed: Failed to verify os image hash: MRTD does not match", "Failed to verify os image hash: MRTD does not match", true},
		{"App not allowed: Failed to verify os image hash: OS image not available", "", false},
		{"App not allowed: authorization service unreachable", "", false},
		{"No attestation provided", "", false},
	}
	for _, tt := range tests {
		if reason, denied := (&call.Error{Text: tt.text}).Denial(); reason != tt.reason || denied != tt.denied {
			t.Errorf("Denial(%q) = %q, %t, want %q, %t", tt.text, reason, denied, tt.reason, tt.denied)
		}
	}
}
