package kms_test

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/gen/kms/v1/kmsv1connect"
	"teekms/services/kms"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wantMeta is what GetMeta answers for [sampleConfig].
func wantMeta() *kmsv1.GetMetaResponse {
	c, gateway := sampleConfig(), "any"
	return &kmsv1.GetMetaResponse{
		CaCert: string(c.RootCertificate), AllowAnyUpgrade: true, K256Pubkey: c.K256Public, BootstrapInfo: c.Bootstrap,
		IsDev: true, GatewayAppId: &gateway, TrustRootSha256: c.TrustRootSHA256, InsecureSettings: c.InsecureSettings,
	}
}

// listeners are a server over TLS and one in plaintext, each with its client.
func listeners(t *testing.T) map[string]struct {
	url    string
	client *http.Client
} {
	t.Helper()
	h := newMux(t, newService(t, sampleConfig()))
	serverTLS, clientTLS := newTLS(t)
	secure := &http.Transport{TLSClientConfig: clientTLS, ForceAttemptHTTP2: true}
	plain := &http.Transport{Protocols: new(http.Protocols)}
	plain.Protocols.SetUnencryptedHTTP2(true)
	http1 := &http.Transport{TLSClientConfig: clientTLS.Clone(), TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}
	for _, tr := range []*http.Transport{secure, plain, http1} {
		t.Cleanup(tr.CloseIdleConnections)
	}
	overTLS := "https://" + start(t, h, serverTLS)
	return map[string]struct {
		url    string
		client *http.Client
	}{
		"h2":        {overTLS, &http.Client{Transport: secure}},
		"https/1.1": {overTLS, &http.Client{Transport: http1}},
		"h2c":       {"http://" + start(t, h, nil), &http.Client{Transport: plain}},
	}
}

func TestGetMetaByConnectProtocols(t *testing.T) {
	protocols := map[string][]connect.ClientOption{
		"connect proto": nil,
		"connect json":  {connect.WithProtoJSON()},
		"connect GET":   {connect.WithHTTPGet()},
		"grpc":          {connect.WithGRPC()},
		"grpc-web":      {connect.WithGRPCWeb()},
	}
	for listener, l := range listeners(t) {
		for protocol, options := range protocols {
			if protocol == "grpc" && listener == "https/1.1" {
				continue // gRPC is HTTP/2
			}
			t.Run(listener+"/"+protocol, func(t *testing.T) {
				client := kmsv1connect.NewKMSClient(l.client, l.url, options...)
				for range 2 { // the second answer is the one that was kept
					got, err := client.GetMeta(t.Context(), &kmsv1.GetMetaRequest{})
					if err != nil {
						t.Fatal(err)
					}
					if diff := cmp.Diff(wantMeta(), got, protocmp.Transform()); diff != "" {
						t.Errorf("GetMeta (-want +got):\n%s", diff)
					}
				}
				_, err := client.GetAppKey(t.Context(), &kmsv1.GetAppKeyRequest{})
				e, ok := errors.AsType[*connect.Error](err)
				if !ok || e.Code() != connect.CodeUnimplemented || e.Message() != "GetAppKey is not implemented by this version" {
					t.Errorf("GetAppKey = %v, want unimplemented", err)
				}
			})
		}
	}
}

func TestGetMetaByPRPC(t *testing.T) {
	asJSON := func(t *testing.T, body []byte) {
		t.Helper()
		var got struct {
			CACert    string `json:"ca_cert"`
			K256      string `json:"k256_pubkey"`
			Bootstrap struct {
				CAPubkey string `json:"ca_pubkey"`
			} `json:"bootstrap_info"`
			ChainID *int `json:"chain_id"`
		}
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatal(err)
		}
		want := wantMeta()
		if got.CACert != want.GetCaCert() || !strings.HasPrefix(got.K256, "020108") || len(got.Bootstrap.CAPubkey) != 182 || got.ChainID != nil {
			t.Errorf("GetMeta = %s", body)
		}
		if !strings.HasSuffix(string(body), `,"insecure_settings":["core.auth_api.type = dev"]}`) {
			t.Errorf("GetMeta = %s, want our own fields last", body)
		}
	}
	asProto := func(t *testing.T, body []byte) {
		t.Helper()
		got := &kmsv1.GetMetaResponse{}
		if err := proto.Unmarshal(body, got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(wantMeta(), got, protocmp.Transform()); diff != "" {
			t.Errorf("GetMeta (-want +got):\n%s", diff)
		}
	}
	tests := []struct {
		name, method, path, body string
		check                    func(*testing.T, []byte)
	}{
		{"GET", "GET", "/prpc/KMS.GetMeta", "", asJSON},
		{"POST json", "POST", "/prpc/GetMeta?json", "null", asJSON},
		{"POST binary", "POST", "/prpc/GetMeta", "", asProto},
	}
	for listener, l := range listeners(t) {
		for _, tt := range tests {
			t.Run(listener+"/"+tt.name, func(t *testing.T) {
				for range 2 { // the second answer is the one that was kept
					status, body := call(t, l.client, tt.method, l.url+tt.path, tt.body)
					if status != http.StatusOK {
						t.Fatalf("status = %d: %s", status, body)
					}
					tt.check(t, body)
				}
			})
		}
	}
}

func call(t *testing.T, client *http.Client, method, url, body string, header ...string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, b
}

// TestKeptAnswerIsOnlyForPlainCalls holds that the short way for GetMeta takes
// nothing that Connect would refuse, once an answer is kept.
func TestKeptAnswerIsOnlyForPlainCalls(t *testing.T) {
	url := "http://" + start(t, newMux(t, newService(t, sampleConfig())), nil)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	const path = "/kms.v1.KMS/GetMeta"
	const contentJSON = "application/json"
	_, want := call(t, client, "POST", url+path, "{}", "Content-Type", contentJSON)
	tests := []struct {
		name, method, body string
		header             []string
		status             int
	}{
		{"plain", "POST", "{}", []string{"Content-Type", contentJSON}, 200},
		{"with its version", "POST", "{}", []string{"Content-Type", contentJSON, "Connect-Protocol-Version", "1"}, 200},
		{"with a timeout", "POST", "{}", []string{"Content-Type", contentJSON, "Connect-Timeout-Ms", "1000"}, 200},
		{"charset", "POST", "{}", []string{"Content-Type", contentJSON + "; charset=utf-8"}, 200},
		{"unknown field", "POST", `{"a":1}`, []string{"Content-Type", contentJSON}, 200},
		{"array", "POST", "[]", []string{"Content-Type", contentJSON}, 400},
		{"half an object", "POST", "{ ", []string{"Content-Type", contentJSON}, 400},
		{"nothing", "POST", "", []string{"Content-Type", contentJSON}, 400},
		{"wrong timeout", "POST", "{}", []string{"Content-Type", contentJSON, "Connect-Timeout-Ms", "x"}, 400},
		{"another version", "POST", "{}", []string{"Content-Type", contentJSON, "Connect-Protocol-Version", "2"}, 400},
		{"compressed", "POST", "{}", []string{"Content-Type", contentJSON, "Content-Encoding", "gzip"}, 501},
		{"another verb", "PUT", "{}", []string{"Content-Type", contentJSON}, 405},
		{"not protobuf", "POST", "\xff\xff", []string{"Content-Type", "application/proto"}, 400},
		{"another content type", "POST", "{}", []string{"Content-Type", "text/plain"}, 415},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, body := call(t, client, tt.method, url+path, tt.body, tt.header...)
			if status != tt.status {
				t.Errorf("status = %d: %s, want %d", status, body, tt.status)
			}
			if status == http.StatusOK && string(body) != string(want) {
				t.Errorf("body = %s, want %s", body, want)
			}
		})
	}
}

func TestKeptAnswersAreLogged(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	url := "http://" + start(t, newLoggedMux(t, newService(t, sampleConfig()), zap.New(core)), nil)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for range 3 {
		call(t, client, "GET", url+"/prpc/KMS.GetMeta", "")
	}
	call(t, client, "POST", url+"/kms.v1.KMS/GetMeta", "{}", "Content-Type", "application/json")
	call(t, client, "POST", url+"/kms.v1.KMS/GetMeta", "{}", "Content-Type", "application/json")
	call(t, client, "POST", url+"/kms.v1.KMS/GetMeta", "[]", "Content-Type", "application/json")
	lines := logs.FilterMessage("call").All()
	if len(lines) != 6 {
		t.Fatalf("%d access lines, want 6", len(lines))
	}
	if f := lines[5].ContextMap(); f["code"] != "invalid_argument" {
		t.Errorf("access line %v, want invalid_argument", f)
	}
	for _, line := range lines[:5] {
		if f := line.ContextMap(); f["procedure"] != kmsv1connect.KMSGetMetaProcedure || f["code"] != "ok" {
			t.Errorf("access line %v, want GetMeta and ok", f)
		}
	}
}

func TestUnimplementedByPRPC(t *testing.T) {
	url := "http://" + start(t, newMux(t, newService(t, sampleConfig())), nil)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for _, method := range []string{"GetAppKey", "GetAppEnvEncryptPubKey", "GetKmsKey", "GetTempCaCert", "SignCert"} {
		status, body := call(t, client, "POST", url+"/prpc/KMS."+method+"?json", "")
		if want := `{"error": "` + method + ` is not implemented by this version"}`; status != http.StatusBadRequest || string(body) != want {
			t.Errorf("%s = %d %s, want 400 %s", method, status, body, want)
		}
	}
}

func TestNoBootstrapRecord(t *testing.T) {
	c := sampleConfig()
	c.Bootstrap, c.Facts = nil, kms.Facts{}
	url := "http://" + start(t, newMux(t, newService(t, c)), nil)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	_, body := call(t, client, "GET", url+"/prpc/GetMeta", "")
	want := `"bootstrap_info":null,"is_dev":false,"gateway_app_id":null,"kms_contract_address":null,"chain_id":null,"app_auth_implementation":null`
	if !strings.Contains(string(body), want) {
		t.Errorf("GetMeta = %s, want %s in it", body, want)
	}
}

func TestCallersBytesAreCopied(t *testing.T) {
	c := sampleConfig()
	s := newService(t, c)
	c.K256Public[0], c.Bootstrap.Quote[0] = 9, 9
	got, err := s.GetMeta(t.Context(), &kmsv1.GetMetaRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantMeta(), got, protocmp.Transform()); diff != "" {
		t.Errorf("GetMeta after the caller changed its bytes (-want +got):\n%s", diff)
	}
}

func TestNewRefusals(t *testing.T) {
	tests := []struct {
		name   string
		change func(*kms.Config)
		want   string
	}{
		{"no root", func(c *kms.Config) { c.RootCertificate = nil }, "RootCertificate is required"},
		{"uncompressed key", func(c *kms.Config) { c.K256Public = make([]byte, 65) }, "K256Public has 65 bytes, want 33"},
		{"not UTF-8", func(c *kms.Config) { c.RootCertificate = []byte{0xff} }, "RootCertificate is not PEM"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := sampleConfig()
			tt.change(&c)
			if _, err := kms.New(c); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New = %v, want %s", err, tt.want)
			}
		})
	}
}
