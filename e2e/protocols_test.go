package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/gen/kms/v1/kmsv1connect"
	onboardv1 "teekms/gen/onboard/v1"
	"teekms/gen/onboard/v1/onboardv1connect"
)

// grpcConn dials the service of k with the gRPC library of the protocol's own
// authors; a nil config means HTTP/2 without TLS.
func grpcConn(t testing.TB, k *kmsDir, config *tls.Config) *grpc.ClientConn {
	t.Helper()
	c := insecure.NewCredentials()
	if config != nil {
		c = credentials.NewTLS(config)
	}
	conn, err := grpc.NewClient(fmt.Sprintf("passthrough:///127.0.0.1:%d", k.Port), grpc.WithTransportCredentials(c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// plainHTTP2 returns a client that speaks HTTP/2 without TLS and nothing else.
func plainHTTP2(t testing.TB) *http.Client {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// meta is GetMeta in the prpc dialect.
type meta struct {
	CACert             string   `json:"ca_cert"`
	AllowAnyUpgrade    bool     `json:"allow_any_upgrade"`
	K256Pubkey         string   `json:"k256_pubkey"`
	BootstrapInfo      *record  `json:"bootstrap_info"`
	IsDev              bool     `json:"is_dev"`
	GatewayAppID       *string  `json:"gateway_app_id"`
	KMSContractAddress *string  `json:"kms_contract_address"`
	ChainID            *uint64  `json:"chain_id"`
	AppImplementation  *string  `json:"app_auth_implementation"`
	TrustRootSHA256    string   `json:"trust_root_sha256"`
	InsecureSettings   []string `json:"insecure_settings"`
}

// metaOf asks a KMS for its meta data, over TLS.
func metaOf(t testing.TB, client *http.Client, k *kmsDir) meta {
	t.Helper()
	a := get(t, client, k.URL("https")+"/prpc/KMS.GetMeta")
	var m meta
	if err := json.Unmarshal([]byte(a.body), &m); err != nil || a.StatusCode != http.StatusOK {
		t.Fatalf("GetMeta = %d %.300s (%v)", a.StatusCode, a.body, err)
	}
	return m
}

// wantMeta is what GetMeta must say of the key directory of k.
func wantMeta(t testing.TB, k *kmsDir) *kmsv1.GetMetaResponse {
	t.Helper()
	var info map[string][]byte
	if err := json.Unmarshal(k.file(t, "bootstrap-info.json"), &info); err != nil {
		t.Fatal(err)
	}
	root, err := os.ReadFile(filepath.Join(k.TD, "root-ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(parseCertificate(t, root).Raw)
	return &kmsv1.GetMetaResponse{
		CaCert:     string(k.file(t, "root-ca.crt")),
		K256Pubkey: info["k256_pubkey"],
		BootstrapInfo: &onboardv1.BootstrapResponse{
			CaPubkey: info["ca_pubkey"], K256Pubkey: info["k256_pubkey"], Quote: info["quote"], Eventlog: info["eventlog"],
		},
		// What a webhook that cannot be asked knows of itself: nothing, and
		// existing clients expect it to be said so.
		GatewayAppId: new(""), KmsContractAddress: new(""), ChainId: new(uint64(0)), AppAuthImplementation: new(""),
		TrustRootSha256:  digest[:],
		InsecureSettings: []string{"core.attestation.provider", "core.attestation.insecure_allow_external_trust_anchors", "unsealed_keys"},
	}
}

// metaText is the prpc JSON of wantMeta, written by hand.
func metaText(m *kmsv1.GetMetaResponse) string {
	pem, _ := json.Marshal(m.GetCaCert())
	b := m.GetBootstrapInfo()
	return fmt.Sprintf(`{"ca_cert":%s,"allow_any_upgrade":false,"k256_pubkey":"%x",`+
		`"bootstrap_info":{"ca_pubkey":"%x","k256_pubkey":"%x","quote":"%x","eventlog":"%x"},`+
		`"is_dev":false,"gateway_app_id":"","kms_contract_address":"","chain_id":0,"app_auth_implementation":"",`+
		`"trust_root_sha256":"%x","insecure_settings":["core.attestation.provider","core.attestation.insecure_allow_external_trust_anchors","unsealed_keys"]}`,
		pem, m.GetK256Pubkey(), b.GetCaPubkey(), b.GetK256Pubkey(), b.GetQuote(), b.GetEventlog(), m.GetTrustRootSha256())
}

// TestKMSProtocols asks one KMS the same in every protocol, with TLS and
// without.
func TestKMSProtocols(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	k.fill(t, exampleDomain)
	_, client := k.serve(t, exampleDomain)
	want := wantMeta(t, k)
	t.Run("TLS", func(t *testing.T) {
		http1 := &http.Client{Transport: &http.Transport{TLSClientConfig: k.tlsClient(t, exampleDomain)}}
		for _, c := range []*http.Client{client, http1} {
			testMeta(t, c, k.URL("https"), want)
			testUnknownNames(t, c, k.URL("https"))
		}
		testGRPC(t, grpcConn(t, k, k.tlsClient(t, exampleDomain)), want)
	})
	t.Run("plaintext", func(t *testing.T) {
		mesh := *k
		mesh.movePort(t)
		p := startCmd(t, command(t, []string{
			fmt.Sprintf("DSTACK_KMS_RPC_PORT=%d", mesh.Port), "DSTACK_KMS_RPC_INSECURE_PLAINTEXT=true",
		}, "dstack-kms", "--config", k.Config))
		p.ready(t, http.DefaultClient, mesh.URL("http")+"/ready")
		want := proto.CloneOf(want)
		want.InsecureSettings = append([]string{"rpc.insecure_plaintext"}, want.InsecureSettings...)
		for _, c := range []*http.Client{http.DefaultClient, plainHTTP2(t)} {
			m, err := kmsv1connect.NewKMSClient(c, mesh.URL("http")).GetMeta(t.Context(), &kmsv1.GetMetaRequest{})
			compare(t, "GetMeta", want, m, err)
		}
		testGRPC(t, grpcConn(t, &mesh, nil), want)
		p.logs(t, `WARN this setting weakens security {"key": "rpc.insecure_plaintext"}`)
	})
}

func compare(t testing.TB, what string, want, got proto.Message, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("%s (-want +got):\n%.2000s", what, diff)
	}
}

// testMeta calls GetMeta in the protocols that need nothing but HTTP.
func testMeta(t *testing.T, client *http.Client, url string, want *kmsv1.GetMetaResponse) {
	ctx := t.Context()
	for name, options := range map[string][]connect.ClientOption{
		"Connect proto":    nil,
		"Connect JSON":     {connect.WithProtoJSON()},
		"Connect GET":      {connect.WithHTTPGet()},
		"Connect GET JSON": {connect.WithHTTPGet(), connect.WithProtoJSON()},
		"gRPC-Web":         {connect.WithGRPCWeb()},
		"gRPC-Web JSON":    {connect.WithGRPCWeb(), connect.WithProtoJSON()},
	} {
		m, err := kmsv1connect.NewKMSClient(client, url, options...).GetMeta(ctx, &kmsv1.GetMetaRequest{})
		compare(t, name, want, m, err)
	}
	golden := metaText(want)
	for _, c := range []struct{ method, path, contentType, body string }{
		{"GET", "/prpc/KMS.GetMeta", "", ""},
		{"GET", "/prpc/GetMeta?json", "", ""},
		{"GET", "/prpc/KMS.KMS.GetMeta?json=0&x=%zz", "", ""},
		{"POST", "/prpc/GetMeta?json", "", "null"},
		{"POST", "/prpc/KMS.GetMeta?json=true", "", ""},
		{"POST", "/prpc/KMS.GetMeta?a=b&json=1", "text/plain", "{not json"},
		{"POST", "/prpc/KMS.GetMeta", "application/json", "{}"},
		{"POST", "/prpc/KMS.GetMeta", "application/json; charset=utf-8", "[]"},
	} {
		a := request(t, client, c.method, url+c.path, c.body, map[string]string{"Content-Type": c.contentType})
		if a.StatusCode != http.StatusOK || a.body != golden {
			t.Errorf("%s %s = %d\n%.600s\nwant\n%.600s", c.method, c.path, a.StatusCode, a.body, golden)
		}
		checkHeaders(t, a, "application/json")
	}
	if names := jsonKeys(t, golden); len(names) != 11 {
		t.Errorf("GetMeta has %d fields, want nine and two", len(names))
	}
	for _, path := range []string{"/prpc/GetMeta", "/prpc/KMS.GetMeta?json=0", "/prpc/KMS.GetMeta?json=false&json"} {
		a := request(t, client, http.MethodPost, url+path, "", nil)
		checkHeaders(t, a, "application/octet-stream")
		m := &kmsv1.GetMetaResponse{}
		compare(t, "prpc binary", want, m, proto.Unmarshal([]byte(a.body), m))
	}
	a := connectPost(t, client, url+"/kms.v1.KMS/GetMeta", "{}")
	var text map[string]any
	if err := json.Unmarshal([]byte(a.body), &text); err != nil {
		t.Fatal(err)
	}
	if got := text["k256Pubkey"]; got != base64.StdEncoding.EncodeToString(want.GetK256Pubkey()) {
		t.Errorf("Connect JSON has k256Pubkey = %v, want base64", got)
	}
}

// checkHeaders checks what every answer of the KMS in the prpc dialect carries.
func checkHeaders(t testing.TB, a answer, contentType string) {
	t.Helper()
	if got := a.Header.Get("Content-Type"); got != contentType {
		t.Errorf("Content-Type = %q, want %q", got, contentType)
	}
	if got := a.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control = %q, want no-store", got)
	}
	if a.Header.Get("X-App-Version") == "" {
		t.Error("there is no X-App-Version")
	}
}

// testUnknownNames calls what the KMS does not have.
func testUnknownNames(t *testing.T, client *http.Client, url string) {
	for _, c := range []struct{ method, path, text string }{
		{"GET", "/prpc/Nope", "Service not found: Nope"},
		{"POST", "/prpc/KMS.Nope?json", "Service not found: Nope"},
		{"POST", "/prpc/getmeta?json", "Service not found: getmeta"},
		{"POST", "/prpc/kms.GetMeta?json", "Service not found: kms.GetMeta"},
		{"POST", "/prpc/Onboard.Bootstrap?json", "Service not found: Onboard.Bootstrap"},
		{"POST", "/prpc/Bootstrap?json", "Service not found: Bootstrap"},
		{"POST", "/prpc/?json", "Service not found: "},
		{"POST", "/prpc/KMS.?json", "Service not found: "},
		{"POST", "/prpc/GetMeta/?json", "Service not found: GetMeta/"},
		{"POST", "/prpc/" + strings.Repeat("x", 300) + "?json", "Service not found: " + strings.Repeat("x", 64)},
		{"GET", "/prpc/GetAppKey", "GetAppKey has side effects: use POST"},
		{"GET", "/prpc/SignCert?api_version=1", "SignCert has side effects: use POST"},
		{"DELETE", "/prpc/GetMeta", "GetMeta is not served by DELETE: use POST"},
		{"PUT", "/prpc/GetAppKey", "GetAppKey is not served by PUT: use POST"},
		{"GET", "/prpc/GetAppEnvEncryptPubKey?app_id=0x0g", "app_id: not hexadecimal"},
		{"GET", "/prpc/GetAppEnvEncryptPubKey?app_id=00&app_id=01", "app_id: given twice"},
		{"GET", "/prpc/GetAppEnvEncryptPubKey?app_id=%zz", "app_id: wrong percent-encoding"},
		{"POST", "/prpc/GetAppKey?json", noAuthority},
		{"GET", "/prpc/KMS.GetAppEnvEncryptPubKey?app_id=0x00", noAuthority},
		{"POST", "/prpc/GetKmsKey?json", noAuthority},
		{"GET", "/prpc/GetTempCaCert", noAuthority},
		{"POST", "/prpc/SignCert?json", noAuthority},
	} {
		a := request(t, client, c.method, url+c.path, "", nil)
		wantRefusal(t, a, c.text)
		checkHeaders(t, a, "application/json")
	}
	for _, method := range []string{"GetAppKey", "GetAppEnvEncryptPubKey", "GetKmsKey", "GetTempCaCert", "SignCert"} {
		wantConnectError(t, connectPost(t, client, url+"/kms.v1.KMS/"+method, "{}"), "unavailable", noAuthority)
	}
	wantConnectError(t, connectPost(t, client, url+"/grpc.health.v1.Health/Check", `{"service":1}`), "invalid_argument",
		"request body: (line 1:12): invalid value for string field service: 1")
	for path, status := range map[string]int{"/kms.v1.KMS/Nope": 404, "/kms.v1.KMS/getmeta": 404, "/onboard.v1.Onboard/Bootstrap": 404, "/": 404, "/finish": 404} {
		a := connectPost(t, client, url+path, "{}")
		if a.StatusCode != status || leaks.MatchString(a.body) {
			t.Errorf("POST %s = %d %s, want %d", path, a.StatusCode, a.body, status)
		}
	}
	a := request(t, client, http.MethodPut, url+"/kms.v1.KMS/GetMeta", "", nil)
	if a.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("PUT of a procedure = %d, want 405", a.StatusCode)
	}
}

// noAuthority is what every call but GetMeta is told while nobody can be asked
// whether this KMS may serve.
const noAuthority = "authorization service unreachable"

// testGRPC calls the KMS, its health and its reflection.
func testGRPC(t *testing.T, conn *grpc.ClientConn, want *kmsv1.GetMetaResponse) {
	ctx := t.Context()
	m := &kmsv1.GetMetaResponse{}
	compare(t, "gRPC", want, m, conn.Invoke(ctx, "/kms.v1.KMS/GetMeta", &kmsv1.GetMetaRequest{}, m))
	wantStatus(t, conn.Invoke(ctx, "/kms.v1.KMS/SignCert", &kmsv1.SignCertRequest{}, &kmsv1.SignCertResponse{}),
		codes.Unavailable, noAuthority)
	wantStatus(t, conn.Invoke(ctx, "/kms.v1.KMS/Nope", &kmsv1.SignCertRequest{}, &kmsv1.SignCertResponse{}), codes.Unimplemented, "")
	testGRPCHealth(t, conn, "kms.v1.KMS")
	if got := reflected(t, conn); !slices.Contains(got, "kms.v1.KMS") || slices.Contains(got, "onboard.v1.Onboard") {
		t.Errorf("reflection lists %v, want kms.v1.KMS and not onboard.v1.Onboard", got)
	}
}

func testGRPCHealth(t testing.TB, conn *grpc.ClientConn, service string) {
	t.Helper()
	health := healthv1.NewHealthClient(conn)
	for _, name := range []string{"", service} {
		res, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: name})
		if err != nil || res.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("health of %q = %v, %v, want SERVING", name, res.GetStatus(), err)
		}
	}
	_, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "nope"})
	wantStatus(t, err, codes.NotFound, "unknown service")
}

// reflected lists the services that gRPC reflection tells, and asks for the
// descriptor of each.
func reflected(t testing.TB, conn *grpc.ClientConn) []string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(req *reflectionv1.ServerReflectionRequest) *reflectionv1.ServerReflectionResponse {
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
		res, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	var names []string
	list := ask(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{ListServices: "*"}})
	for _, s := range list.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
		file := ask(&reflectionv1.ServerReflectionRequest{
			MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: s.GetName()},
		})
		if len(file.GetFileDescriptorResponse().GetFileDescriptorProto()) == 0 {
			t.Errorf("reflection has no file for %s: %v", s.GetName(), file)
		}
	}
	return names
}

// TestOnboardProtocols bootstraps one KMS per protocol, and compares what each
// answers with what is on disk.
func TestOnboardProtocols(t *testing.T) {
	connectClient := func(client func(testing.TB) *http.Client, options ...connect.ClientOption) func(*testing.T, *kmsDir) *onboardv1.BootstrapResponse {
		return func(t *testing.T, k *kmsDir) *onboardv1.BootstrapResponse {
			c := onboardv1connect.NewOnboardClient(client(t), k.URL("http"), options...)
			info, err := c.GetAttestationInfo(t.Context(), &onboardv1.GetAttestationInfoRequest{})
			if err != nil || info.GetProvider() != "simulator" || len(info.GetRtmrs()) != 4 {
				t.Errorf("GetAttestationInfo = %v, %v", info, err)
			}
			r, err := c.Bootstrap(t.Context(), &onboardv1.BootstrapRequest{Domain: exampleDomain})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Bootstrap(t.Context(), &onboardv1.BootstrapRequest{Domain: exampleDomain}); connect.CodeOf(err) != connect.CodeAlreadyExists {
				t.Errorf("Bootstrap again: %v, want already_exists", err)
			}
			if _, err := c.Finish(t.Context(), &onboardv1.FinishRequest{}); err != nil {
				t.Error(err)
			}
			return r
		}
	}
	http1 := func(testing.TB) *http.Client { return http.DefaultClient }
	tests := []struct {
		name      string
		bootstrap func(*testing.T, *kmsDir) *onboardv1.BootstrapResponse
	}{
		{"Connect proto", connectClient(http1)},
		{"Connect JSON", connectClient(http1, connect.WithProtoJSON())},
		{"Connect with GET", connectClient(plainHTTP2, connect.WithHTTPGet())},
		{"gRPC-Web", connectClient(http1, connect.WithGRPCWeb())},
		{"gRPC", bootstrapByGRPC},
		{"prpc binary", bootstrapByBinary},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			k := newKMS(t, "", "")
			p := k.onboarding(t, "dstack-onboard")
			r := tt.bootstrap(t, k)
			if code := p.wait(t, patience); code != 0 {
				t.Errorf("exit status %d, want 0", code)
			}
			checkBootstrapReply(t, k, fmt.Sprintf(`{"ca_pubkey":"0x%x","k256_pubkey":"0x%x","quote":"0x%x","eventlog":"0x%x"}`,
				r.GetCaPubkey(), r.GetK256Pubkey(), r.GetQuote(), r.GetEventlog()))
		})
	}
}

func bootstrapByGRPC(t *testing.T, k *kmsDir) *onboardv1.BootstrapResponse {
	conn := grpcConn(t, k, nil)
	testGRPCHealth(t, conn, "onboard.v1.Onboard")
	if got := reflected(t, conn); !slices.Contains(got, "onboard.v1.Onboard") {
		t.Errorf("reflection lists %v, want onboard.v1.Onboard", got)
	}
	finish := func() error {
		return conn.Invoke(t.Context(), "/onboard.v1.Onboard/Finish", &onboardv1.FinishRequest{}, &onboardv1.FinishResponse{})
	}
	wantStatus(t, finish(), codes.FailedPrecondition, notYetText)
	r := &onboardv1.BootstrapResponse{}
	call := func(r *onboardv1.BootstrapResponse) error {
		return conn.Invoke(t.Context(), connectPath, &onboardv1.BootstrapRequest{Domain: exampleDomain}, r)
	}
	if err := call(r); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, call(&onboardv1.BootstrapResponse{}), codes.AlreadyExists, alreadyText)
	if err := finish(); err != nil {
		t.Error(err)
	}
	return r
}

func bootstrapByBinary(t *testing.T, k *kmsDir) *onboardv1.BootstrapResponse {
	url := k.URL("http") + "/prpc/"
	a := request(t, http.DefaultClient, http.MethodPost, url+"Finish", "", nil)
	if want := "\x0a" + string(rune(len(notYetText))) + notYetText; a.StatusCode != http.StatusBadRequest || a.body != want {
		t.Errorf("Finish = %d %q, want 400 %q", a.StatusCode, a.body, want)
	}
	body, err := proto.Marshal(&onboardv1.BootstrapRequest{Domain: exampleDomain})
	if err != nil {
		t.Fatal(err)
	}
	a = request(t, http.DefaultClient, http.MethodPost, url+"Onboard.Onboard.Bootstrap", string(body), nil)
	r := &onboardv1.BootstrapResponse{}
	if err := proto.Unmarshal([]byte(a.body), r); err != nil || a.StatusCode != http.StatusOK {
		t.Fatalf("Bootstrap = %d %.200q (%v)", a.StatusCode, a.body, err)
	}
	if got := a.Header.Get("Content-Type"); got != "application/octet-stream" {
		t.Errorf("Content-Type = %q, want application/octet-stream", got)
	}
	if a = request(t, http.DefaultClient, http.MethodPost, url+"Onboard.Finish", "", nil); a.StatusCode != http.StatusOK || a.body != "" {
		t.Errorf("Finish = %d %q, want 200 and nothing", a.StatusCode, a.body)
	}
	return r
}

// TestOnboardingPort looks at what else is on the port, and what is not.
func TestOnboardingPort(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	k.onboarding(t, "dstack-kms")
	url := k.URL("http")
	for _, c := range []struct {
		path, body string
		status     int
	}{
		{"/health", "OK", 200}, {"/ready", "OK", 200}, {"/nope", "not found\n", 404}, {"/../etc/passwd", "not found\n", 404},
	} {
		a := get(t, http.DefaultClient, url+c.path)
		if a.StatusCode != c.status || a.body != c.body {
			t.Errorf("GET %s = %d %q, want %d %q", c.path, a.StatusCode, a.body, c.status, c.body)
		}
		if v := a.Header.Get("X-App-Version"); v != "" {
			t.Errorf("GET %s tells the version %s before there are keys", c.path, v)
		}
	}
	for _, c := range []struct{ path, text string }{
		{"/prpc/GetMeta?json", "Service not found: GetMeta"},
		{"/prpc/KMS.GetMeta?json", "Service not found: KMS.GetMeta"},
		{"/prpc/bootstrap?json", "Service not found: bootstrap"},
		{"/prpc/onboard.Bootstrap?json", "Service not found: onboard.Bootstrap"},
	} {
		wantRefusal(t, post(t, url+c.path, "{}"), c.text)
	}
	get(t, http.DefaultClient, url+"/prpc/GetAttestationInfo")
	metrics := get(t, http.DefaultClient, url+"/metrics")
	if want := `teekms_rpc_requests_total{code="ok",procedure="/onboard.v1.Onboard/GetAttestationInfo"} 1`; !strings.Contains(metrics.body, want) {
		t.Errorf("/metrics does not say %s", want)
	}
	// The facts are told by every kind of GET and POST alike.
	facts := get(t, http.DefaultClient, url+"/prpc/Onboard.GetAttestationInfo")
	var info struct {
		Provider        string   `json:"provider"`
		TrustRootSHA256 string   `json:"trust_root_sha256"`
		Intel           bool     `json:"trust_root_is_intel"`
		ReportData      string   `json:"report_data"`
		RTMRs           []string `json:"rtmrs"`
	}
	if err := json.Unmarshal([]byte(facts.body), &info); err != nil {
		t.Fatal(err)
	}
	root, err := os.ReadFile(filepath.Join(k.TD, "root-ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(parseCertificate(t, root).Raw)
	if info.Provider != "simulator" || info.Intel || info.TrustRootSHA256 != "0x"+hex.EncodeToString(digest[:]) ||
		info.ReportData != "0x"+strings.Repeat("00", 64) || len(info.RTMRs) != 4 {
		t.Errorf("GetAttestationInfo = %+v", info)
	}
	if again := post(t, url+"/prpc/GetAttestationInfo?json", "garbage"); again.body != facts.body {
		t.Errorf("POST tells other facts than GET: %.300s", again.body)
	}
	// TLS is not spoken before there are keys.
	conn, err := tls.Dial("tcp", net.JoinHostPort("127.0.0.1", fmt.Sprint(k.Port)), &tls.Config{InsecureSkipVerify: true})
	if err == nil {
		conn.Close()
		t.Error("the onboarding port speaks TLS")
	}
}
