package prpc_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/gen/kms/v1/kmsv1connect"
	onboardv1 "teekms/gen/onboard/v1"
	"teekms/gen/onboard/v1/onboardv1connect"
	"teekms/internal/prpc"
)

// maxBytes is the bound on bodies in these tests.
const maxBytes = 1024

// onboard answers with what the tests look for.
type onboard struct {
	onboardv1connect.UnimplementedOnboardHandler
	got *onboardv1.BootstrapRequest
}

func (o *onboard) Bootstrap(_ context.Context, req *onboardv1.BootstrapRequest) (*onboardv1.BootstrapResponse, error) {
	o.got = proto.CloneOf(req)
	switch req.GetDomain() {
	case "denied":
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("not this one"))
	case "token":
		return nil, connect.NewError(connect.CodeUnauthenticated, errors.New("a bearer token is required"))
	case "lines":
		return nil, connect.NewError(connect.CodeInternal, errors.New("one\ntwo \"<&>\""))
	}
	return &onboardv1.BootstrapResponse{CaPubkey: []byte{0x30, 0x59}, K256Pubkey: []byte{2, 0xab}, Eventlog: []byte("[]")}, nil
}

func (*onboard) Finish(context.Context, *onboardv1.FinishRequest) (*onboardv1.FinishResponse, error) {
	return &onboardv1.FinishResponse{}, nil
}

// kms tells what it was asked.
type kms struct {
	kmsv1connect.UnimplementedKMSHandler
}

func (kms) GetAppEnvEncryptPubKey(_ context.Context, req *kmsv1.GetAppEnvEncryptPubKeyRequest) (*kmsv1.GetAppEnvEncryptPubKeyResponse, error) {
	return &kmsv1.GetAppEnvEncryptPubKeyResponse{PublicKey: req.GetAppId(), Timestamp: 1 << 60}, nil
}

func (kms) GetAppKey(_ context.Context, req *kmsv1.GetAppKeyRequest) (*kmsv1.GetAppKeyResponse, error) {
	return &kmsv1.GetAppKeyResponse{CaCert: req.GetVmConfig(), DiskCryptKey: []byte{byte(req.GetApiVersion())}}, nil
}

func newOnboard(tb testing.TB, impl onboardv1connect.OnboardHandler) http.Handler {
	tb.Helper()
	sd := onboardv1.File_onboard_v1_onboard_proto.Services().ByName("Onboard")
	codec, err := prpc.NewCodec(sd, "0x")
	if err != nil {
		tb.Fatal(err)
	}
	_, next := onboardv1connect.NewOnboardHandler(impl, connect.WithCodec(codec), connect.WithReadMaxBytes(maxBytes))
	h, err := prpc.New(prpc.Config{Service: sd, Next: next, Codec: codec, MaxBytes: maxBytes})
	if err != nil {
		tb.Fatal(err)
	}
	return h
}

func newKMS(tb testing.TB) http.Handler {
	tb.Helper()
	sd := kmsv1.File_kms_v1_kms_proto.Services().ByName("KMS")
	codec, err := prpc.NewCodec(sd, "")
	if err != nil {
		tb.Fatal(err)
	}
	_, next := kmsv1connect.NewKMSHandler(kms{}, connect.WithCodec(codec), connect.WithReadMaxBytes(maxBytes))
	h, err := prpc.New(prpc.Config{Service: sd, Next: next, Codec: codec, MaxBytes: maxBytes})
	if err != nil {
		tb.Fatal(err)
	}
	return h
}

// answer is what came back for a request.
type answer struct {
	status int
	header http.Header
	body   string
}

// do sends one request to a real server around h.
func do(t *testing.T, h http.Handler, method, target, body string, header ...string) answer {
	t.Helper()
	s := httptest.NewServer(h)
	defer s.Close()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{status: res.StatusCode, header: res.Header, body: string(b)}
}

const bootstrapped = `{"ca_pubkey":"0x3059","k256_pubkey":"0x02ab","quote":"0x","eventlog":"0x5b5d"}`

func TestRequests(t *testing.T) {
	onboardHandler, kmsHandler := newOnboard(t, &onboard{}), newKMS(t)
	tests := []struct {
		name         string
		h            http.Handler
		method       string
		target, body string
		header       []string
		status       int
		want         string
	}{
		{"service prefix", onboardHandler, "POST", "/prpc/Onboard.Bootstrap?json", `{"domain":"a.b"}`, nil, 200, bootstrapped},
		{"no prefix", onboardHandler, "POST", "/prpc/Bootstrap?json", `{"domain":"a.b"}`, nil, 200, bootstrapped},
		{"repeated prefix", onboardHandler, "POST", "/prpc/Onboard.Onboard.Bootstrap?json", `{}`, nil, 200, bootstrapped},
		{"json=1", onboardHandler, "POST", "/prpc/Bootstrap?x=y&json=1", `{}`, nil, 200, bootstrapped},
		{"json=true", onboardHandler, "POST", "/prpc/Bootstrap?json=true", `{}`, nil, 200, bootstrapped},
		{"content type", onboardHandler, "POST", "/prpc/Bootstrap", `{}`, []string{"Content-Type", "application/json; charset=utf-8"}, 200, bootstrapped},
		{"unknown keys are ignored", onboardHandler, "POST", "/prpc/Bootstrap?json", `{"later":{"a":[1,{}]},"domain":"a.b"}`, nil, 200, bootstrapped},
		{"no body reads as {}", onboardHandler, "POST", "/prpc/Bootstrap?json", "", nil, 200, bootstrapped},
		{"an answer without fields is null", onboardHandler, "POST", "/prpc/Onboard.Finish?json", "null", nil, 200, "null"},
		{"a request without fields may hold anything", onboardHandler, "POST", "/prpc/Finish?json", strings.Repeat("}{", maxBytes), nil, 200, "null"},
		{"a binary answer without fields is empty", onboardHandler, "POST", "/prpc/Finish", "null", nil, 200, ""},
		{"hex with 0x", kmsHandler, "POST", "/prpc/GetAppEnvEncryptPubKey?json", `{"app_id":"0xAb01"}`, nil, 200, `{"public_key":"ab01","signature":"","timestamp":1152921504606846976,"signature_v1":""}`},
		{"GET of a reading method", kmsHandler, "GET", "/prpc/KMS.GetAppEnvEncryptPubKey?json&app%5fid=%30xab01", "", nil, 200, `{"public_key":"ab01","signature":"","timestamp":1152921504606846976,"signature_v1":""}`},
		{"GET is JSON without being asked", kmsHandler, "GET", "/prpc/GetAppEnvEncryptPubKey", "", nil, 200, `{"public_key":"","signature":"","timestamp":1152921504606846976,"signature_v1":""}`},
		{"GET of a method with side effects", onboardHandler, "GET", "/prpc/Onboard.Bootstrap", "", nil, 400, `{"error": "Bootstrap has side effects: use POST"}`},
		{"another verb", onboardHandler, "DELETE", "/prpc/Onboard.Bootstrap", "", nil, 400, `{"error": "Bootstrap is not served by DELETE: use POST"}`},
		{"query of a field given twice", kmsHandler, "GET", "/prpc/GetAppEnvEncryptPubKey?app_id=00&app_id=00", "", nil, 400, `{"error": "app_id: given twice"}`},
		{"query with wrong escapes", kmsHandler, "GET", "/prpc/GetAppEnvEncryptPubKey?app_id=%zz", "", nil, 400, `{"error": "app_id: wrong percent-encoding"}`},
		{"query with odd hex", kmsHandler, "GET", "/prpc/GetAppEnvEncryptPubKey?app_id=abc", "", nil, 400, `{"error": "app_id: not hexadecimal: odd number of digits"}`},
		{"unknown method", onboardHandler, "POST", "/prpc/Onboard.Nothing?json", "", nil, 400, `{"error": "Service not found: Nothing"}`},
		{"another service", onboardHandler, "POST", "/prpc/KMS.GetMeta?json", "", nil, 400, `{"error": "Service not found: KMS.GetMeta"}`},
		{"names mind their case", onboardHandler, "POST", "/prpc/onboard.bootstrap?json", "", nil, 400, `{"error": "Service not found: onboard.bootstrap"}`},
		{"no method", onboardHandler, "POST", "/prpc/?json", "", nil, 400, `{"error": "Service not found: "}`},
		{"denial is 400", onboardHandler, "POST", "/prpc/Bootstrap?json", `{"domain":"denied"}`, nil, 400, `{"error": "not this one"}`},
		{"missing token is 401", onboardHandler, "POST", "/prpc/Bootstrap?json", `{"domain":"token"}`, nil, 401, `{"error": "a bearer token is required"}`},
		{"an error is one line", onboardHandler, "POST", "/prpc/Bootstrap?json", `{"domain":"lines"}`, nil, 400, `{"error": "one\ntwo \"<&>\""}`},
		{"unimplemented is 400", kmsHandler, "POST", "/prpc/GetMeta?json", "", nil, 400, `{"error": "kms.v1.KMS.GetMeta is not implemented"}`},
		{"truncated JSON", onboardHandler, "POST", "/prpc/Bootstrap?json", `{"domain":"a`, nil, 400, `{"error": "request body: not JSON at byte 12: unexpected end of JSON input"}`},
		{"body over the bound", onboardHandler, "POST", "/prpc/Bootstrap?json", strings.Repeat(" ", maxBytes+1), nil, 400, `{"error": "request body: larger than 1024 bytes"}`},
		{"compressed body", onboardHandler, "POST", "/prpc/Bootstrap?json", zipped(`{"domain":"a.b"}`), []string{"Content-Encoding", "gzip"}, 400, `{"error": "request body: a compressed body is not accepted: send it without Content-Encoding"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := do(t, tt.h, tt.method, tt.target, tt.body, tt.header...)
			if got.status != tt.status || got.body != tt.want {
				t.Errorf("%s %s = %d %s, want %d %s", tt.method, tt.target, got.status, got.body, tt.status, tt.want)
			}
			if cc := got.header.Get("Cache-Control"); cc != "no-store" {
				t.Errorf("Cache-Control = %q, want no-store", cc)
			}
			wantType := "application/json"
			if tt.want == "" {
				wantType = "application/octet-stream"
			}
			if ct := got.header.Get("Content-Type"); ct != wantType {
				t.Errorf("Content-Type = %q, want %q", ct, wantType)
			}
		})
	}
}

func zipped(s string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, s)
	_ = w.Close()
	return b.String()
}

func TestRefusedVerbsSayWhichAreAllowed(t *testing.T) {
	tests := []struct {
		h            http.Handler
		target, want string
	}{
		{newOnboard(t, &onboard{}), "/prpc/Bootstrap", "POST"},
		{newKMS(t), "/prpc/GetMeta", "GET, HEAD, POST"},
	}
	for _, tt := range tests {
		if got := do(t, tt.h, http.MethodPut, tt.target, "").header.Get("Allow"); got != tt.want {
			t.Errorf("PUT %s: Allow = %q, want %q", tt.target, got, tt.want)
		}
	}
}

func TestBinary(t *testing.T) {
	impl := &onboard{}
	h := newOnboard(t, impl)
	want := &onboardv1.BootstrapRequest{Domain: "a.b", RequestId: "r"}
	body, err := proto.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got := do(t, h, http.MethodPost, "/prpc/Onboard.Bootstrap?json=0", string(body))
	if ct := got.header.Get("Content-Type"); got.status != http.StatusOK || ct != "application/octet-stream" {
		t.Errorf("status %d, Content-Type %q, want 200, application/octet-stream", got.status, ct)
	}
	var record onboardv1.BootstrapResponse
	if err := proto.Unmarshal([]byte(got.body), &record); err != nil || len(record.GetCaPubkey()) != 2 {
		t.Errorf("answer %x: %v, want a bootstrap response", got.body, err)
	}
	if diff := cmp.Diff(want, impl.got, protocmp.Transform()); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

func TestBinaryError(t *testing.T) {
	got := do(t, newOnboard(t, &onboard{}), http.MethodPost, "/prpc/Onboard.Nothing", "")
	field, typ, n := protowire.ConsumeTag([]byte(got.body))
	text, _ := protowire.ConsumeString([]byte(got.body)[max(n, 0):])
	if got.status != http.StatusBadRequest || field != 1 || typ != protowire.BytesType || text != "Service not found: Nothing" {
		t.Errorf("error = %d field %d %q, want 400 field 1 %q", got.status, field, text, "Service not found: Nothing")
	}
}

func TestChunkedBodyOverTheBound(t *testing.T) {
	s := httptest.NewServer(newOnboard(t, &onboard{}))
	defer s.Close()
	// A reader of unknown length is sent in chunks.
	body := io.MultiReader(strings.NewReader(strings.Repeat(" ", maxBytes)), strings.NewReader("{}"))
	res, err := s.Client().Post(s.URL+"/prpc/Bootstrap?json", "", body)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, _ := io.ReadAll(res.Body)
	if want := `{"error": "request body: larger than 1024 bytes"}`; res.StatusCode != http.StatusBadRequest || string(got) != want {
		t.Errorf("answer = %d %s, want 400 %s", res.StatusCode, got, want)
	}
}

func TestBodyThatBreaksOff(t *testing.T) {
	s := httptest.NewServer(newOnboard(t, &onboard{}))
	defer s.Close()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /prpc/Bootstrap?json HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{\"d"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(conn)
	if want := `{"error": "request body: could not be read to its end"}`; !strings.HasPrefix(string(got), "HTTP/1.1 400") || !strings.HasSuffix(string(got), want) {
		t.Errorf("answer = %s, want 400 %s", got, want)
	}
}

func TestHead(t *testing.T) {
	got := do(t, newKMS(t), http.MethodHead, "/prpc/GetAppEnvEncryptPubKey", "")
	if got.status != http.StatusOK || got.body != "" || got.header.Get("Content-Type") != "application/json" {
		t.Errorf("HEAD = %d %q %q, want 200, application/json and no body", got.status, got.header.Get("Content-Type"), got.body)
	}
}

func TestUnknownMethodIsNotRepeatedAtLength(t *testing.T) {
	got := do(t, newOnboard(t, &onboard{}), http.MethodPost, "/prpc/"+strings.Repeat("A", 5000)+"?json", "").body
	if want := `{"error": "Service not found: ` + strings.Repeat("A", 64) + `"}`; got != want {
		t.Errorf("answer = %s, want %s", got, want)
	}
}

func TestNewRefusesAnIncompleteConfig(t *testing.T) {
	if _, err := prpc.New(prpc.Config{}); err == nil || !strings.Contains(err.Error(), "Service, Next and Codec are required") {
		t.Errorf("New(zero) = %v, want a refusal that names what is required", err)
	}
}
