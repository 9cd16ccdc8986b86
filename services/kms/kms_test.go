package kms_test

import (
	"crypto/tls"
	"encoding/json"
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
	"teekms/internal/authz"
	"teekms/internal/keys"
	"teekms/internal/rpc"
	"teekms/internal/serve"
	"teekms/services/kms"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wantMeta is what GetMeta answers in a world without changes.
func wantMeta(w *world) *kmsv1.GetMetaResponse {
	gateway := "any"
	return &kmsv1.GetMetaResponse{
		CaCert: string(w.config.Keys.RootCertificate), AllowAnyUpgrade: true, K256Pubkey: w.roots.K256Public(),
		BootstrapInfo: w.config.Bootstrap, IsDev: true, GatewayAppId: &gateway,
		TrustRootSha256: w.config.TrustRootSHA256, InsecureSettings: w.config.InsecureSettings,
	}
}

// plain serves the service of w without TLS.
func (w *world) plain(tb testing.TB, log *zap.Logger) (url string) {
	tb.Helper()
	chain, err := rpc.New(rpc.Config{Log: log, Access: kms.Access(), Errors: kms.Errors()})
	if err != nil {
		tb.Fatal(err)
	}
	h, err := serve.NewMux(serve.MuxConfig{Service: w.service.RPC(), Chain: chain})
	if err != nil {
		tb.Fatal(err)
	}
	return "http://" + start(tb, h, nil)
}

// listener is a server and a client for it.
type listener struct {
	url    string
	client *http.Client
}

// listeners are a server over TLS and one in plaintext, with a client for each
// version of HTTP.
func (w *world) listeners(t *testing.T) map[string]listener {
	t.Helper()
	plain := &http.Transport{Protocols: new(http.Protocols)}
	plain.Protocols.SetUnencryptedHTTP2(true)
	http1 := &http.Transport{TLSClientConfig: w.clientTLS(nil), TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}
	for _, tr := range []*http.Transport{plain, http1} {
		t.Cleanup(tr.CloseIdleConnections)
	}
	return map[string]listener{
		"h2":        {w.url, w.client(t, nil)},
		"https/1.1": {w.url, &http.Client{Transport: http1}},
		"h2c":       {w.plain(t, zap.NewNop()), &http.Client{Transport: plain}},
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
	w := newWorld(t)
	for listener, l := range w.listeners(t) {
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
					if diff := cmp.Diff(wantMeta(w), got, protocmp.Transform()); diff != "" {
						t.Errorf("GetMeta (-want +got):\n%s", diff)
					}
				}
			})
		}
	}
}

func TestGetMetaByPRPC(t *testing.T) {
	w := newWorld(t)
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
		want := wantMeta(w)
		if got.CACert != want.GetCaCert() || got.K256 != "0284bf7562262bbd6940085748f3be6afa52ae317155181ece31b66351ccffa4b0" || len(got.Bootstrap.CAPubkey) != 182 || got.ChainID != nil {
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
		if diff := cmp.Diff(wantMeta(w), got, protocmp.Transform()); diff != "" {
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
	for listener, l := range w.listeners(t) {
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
	url := newWorld(t).plain(t, zap.NewNop())
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
	url := newWorld(t).plain(t, zap.New(core))
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

func TestNoBootstrapRecord(t *testing.T) {
	w := newWorld(t, func(w *world) { w.config.Bootstrap = nil })
	w.authority.setFacts(authz.Facts{}, nil)
	status, body := call(t, w.client(t, nil), "GET", w.url+"/prpc/GetMeta", "")
	want := `"bootstrap_info":null,"is_dev":false,"gateway_app_id":"","kms_contract_address":"","chain_id":0,"app_auth_implementation":"",`
	if status != http.StatusOK || !strings.Contains(string(body), want) {
		t.Errorf("GetMeta = %d %s, want %s in it", status, body, want)
	}
}

func TestCallersBytesAreCopied(t *testing.T) {
	w := newWorld(t)
	want := proto.CloneOf(wantMeta(w))
	w.config.Bootstrap.Quote[0], w.config.TrustRootSHA256[0] = 9, 9
	got, err := w.service.GetMeta(t.Context(), &kmsv1.GetMetaRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("GetMeta after the caller changed its bytes (-want +got):\n%s", diff)
	}
}

func TestNewRefusals(t *testing.T) {
	other, err := keys.NewRoots()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	tests := []struct {
		name   string
		change func(*kms.Config)
		want   string
	}{
		{"no root keys", func(c *kms.Config) { c.Keys.Roots = nil }, "Keys.Roots is required"},
		{"no root certificate", func(c *kms.Config) { c.Keys.RootCertificate = nil }, "Keys.RootCertificate is required"},
		{"no temporary CA", func(c *kms.Config) { c.Keys.TempCertificate = nil }, "Keys.TempCertificate is required"},
		{"no key of the temporary CA", func(c *kms.Config) { c.Keys.TempKey = keys.Secret{} }, "Keys.TempKey is required"},
		{"no authority", func(c *kms.Config) { c.Authorizer = nil }, "Authorizer is required"},
		{"no appraiser", func(c *kms.Config) { c.Appraiser = nil }, "Appraiser is required"},
		{"no images", func(c *kms.Config) { c.Images = nil }, "Images is required"},
		{"no audit log", func(c *kms.Config) { c.Audit = nil }, "Audit is required"},
		{"no log", func(c *kms.Config) { c.Log = nil }, "Log is required"},
		{"another root", func(c *kms.Config) { c.Keys.Roots = other }, "the root certificate is not of the root key"},
		{"not PEM", func(c *kms.Config) { c.Keys.TempCertificate = []byte{0xff} }, "certificates are not PEM"},
		{"a release that is none", func(c *kms.Config) { c.KMSKeyRelease = "Public" }, `KMSKeyRelease is "Public", want public, admin or off`},
		{"metrics twice", func(*kms.Config) {}, "registering metrics: duplicate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := w.config
			tt.change(&c)
			if _, err := kms.New(c); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New = %v, want %s", err, tt.want)
			}
		})
	}
}
