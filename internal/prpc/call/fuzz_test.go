package call_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/prpc"
	"teekms/internal/prpc/call"
)

// roundTrip answers every request.
type roundTrip func(*http.Request) *http.Response

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

// Whatever a server answers, what it says fits on a line, and an answer is
// taken with status 200 alone.
func FuzzAnswer(f *testing.F) {
	f.Add(200, `{"ca_cert":"x","disk_crypt_key":"0x00"}`)
	f.Add(200, `{"disk_crypt_key":"zz"}`)
	f.Add(200, `null`)
	f.Add(400, "{\"error\":\"a\\n\\nCaused by:\\n    0: b\\n\\nStack backtrace:\\n\"}")
	f.Add(400, "{\"error\":\"a\\nb\\n\\nCaused by:\\n    c\"}")
	f.Add(404, `<html>`)
	codec, err := prpc.NewCodec(kmsv1.File_kms_v1_kms_proto.Services().ByName("KMS"), "")
	if err != nil {
		f.Fatal(err)
	}
	base, err := call.ParseBase("https://kms")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, status int, body string) {
		if status < 200 || status > 599 {
			return
		}
		s := &call.Service{Base: base, Codec: codec, HTTP: &http.Client{Transport: roundTrip(func(r *http.Request) *http.Response {
			return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body)), Header: http.Header{}, Request: r}
		}), CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
		err := s.Call(t.Context(), "KMS.GetAppKey", &kmsv1.GetAppKeyRequest{}, &kmsv1.GetAppKeyResponse{})
		if err == nil && status != http.StatusOK {
			t.Errorf("Call() = nil after status %d", status)
		}
		if refused, ok := errors.AsType[*call.Error](err); ok {
			if refused.Status != status || strings.ContainsAny(refused.Text, "\r\n") {
				t.Errorf("Call() = %+v, want status %d and one line", refused, status)
			}
			refused.Denial()
		}
	})
}
