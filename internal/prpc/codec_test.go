package prpc_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	kmsv1 "teekms/gen/kms/v1"
	onboardv1 "teekms/gen/onboard/v1"
	provisionv1 "teekms/gen/provision/v1"
	"teekms/internal/prpc"
)

var update = flag.Bool("update", false, "write the golden files")

func newCodec(tb testing.TB, sd protoreflect.ServiceDescriptor, prefix string) *prpc.Codec {
	tb.Helper()
	c, err := prpc.NewCodec(sd, prefix)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func kmsCodec(tb testing.TB) *prpc.Codec {
	tb.Helper()
	return newCodec(tb, kmsv1.File_kms_v1_kms_proto.Services().ByName("KMS"), "")
}

func onboardCodec(tb testing.TB) *prpc.Codec {
	tb.Helper()
	return newCodec(tb, onboardv1.File_onboard_v1_onboard_proto.Services().ByName("Onboard"), "0x")
}

// TestGolden holds the form of every answer of both services: full, and with
// every field at its default.
func TestGolden(t *testing.T) {
	text := func(s string) *string { return &s }
	chain := uint64(1<<63 + 1)
	record := &onboardv1.BootstrapResponse{CaPubkey: []byte{0x30, 0x59}, K256Pubkey: []byte{3, 0xff}, Quote: []byte{4, 0}, Eventlog: []byte("[]")}
	tests := []struct {
		codec *prpc.Codec
		full  proto.Message
	}{
		{onboardCodec(t), record},
		{onboardCodec(t), &onboardv1.OnboardResponse{K256Pubkey: []byte{2, 1}}},
		{onboardCodec(t), &onboardv1.FinishResponse{}},
		{onboardCodec(t), &onboardv1.GetAttestationInfoResponse{
			DeviceId: []byte{1}, MrAggregated: []byte{2}, OsImageHash: []byte{3}, TeeVariant: "dstack-tdx", SiteName: "s<i>te",
			EthRpcUrl: "http://e", KmsContractAddress: "0x1", Ppid: []byte{4}, Provider: "simulator", TrustRootSha256: []byte{5},
			TrustRootIsIntel: true, Mrtd: []byte{6}, Rtmrs: [][]byte{{7}, {8}, {}, {10}}, ReportData: []byte{11},
			SetupTokenRequired: true, InsecureSettings: []string{"a", "b"}, TcbStatus: "OutOfDate", AdvisoryIds: []string{"INTEL-SA-1"},
		}},
		{kmsCodec(t), &kmsv1.GetMetaResponse{
			CaCert: "-----BEGIN\n", AllowAnyUpgrade: true, K256Pubkey: []byte{2, 0xab}, BootstrapInfo: record, IsDev: true,
			GatewayAppId: text("any"), KmsContractAddress: text(""), ChainId: &chain, AppAuthImplementation: text("0x2"),
			TrustRootSha256: []byte{0xaa}, InsecureSettings: []string{"core.auth_api.type"},
		}},
		{kmsCodec(t), &kmsv1.GetAppKeyResponse{
			CaCert: "c", DiskCryptKey: []byte{1}, EnvCryptKey: []byte{2}, K256Key: []byte{3}, K256Signature: []byte{4},
			TproxyAppId: "t", GatewayAppId: "g", OsImageHash: []byte{5},
		}},
		{kmsCodec(t), &kmsv1.GetAppEnvEncryptPubKeyResponse{PublicKey: []byte{1}, Signature: []byte{2}, Timestamp: 1700000000, SignatureV1: []byte{3}}},
		{kmsCodec(t), &kmsv1.GetKmsKeyResponse{TempCaKey: "k", Keys: []*kmsv1.RootKeys{{CaKey: "r", K256Key: []byte{9}}}}},
		{kmsCodec(t), &kmsv1.GetTempCaCertResponse{TempCaCert: "t", TempCaKey: "k", CaCert: "c"}},
		{kmsCodec(t), &kmsv1.SignCertResponse{CertificateChain: []string{"leaf", "app", "root"}}},
	}
	for _, tt := range tests {
		name := string(tt.full.ProtoReflect().Descriptor().Name())
		t.Run(name, func(t *testing.T) {
			golden(t, tt.codec, name+".full.json", tt.full)
			golden(t, tt.codec, name+".default.json", tt.full.ProtoReflect().New().Interface())
		})
	}
}

func golden(t *testing.T, c *prpc.Codec, name string, m proto.Message) {
	t.Helper()
	got, err := c.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s = %s, want %s", name, got, want)
	}
	if string(got) == "null" {
		return
	}
	back := m.ProtoReflect().New().Interface()
	if err := c.Unmarshal(got, back); err != nil {
		t.Fatalf("reading %s back: %v", name, err)
	}
	if diff := cmp.Diff(m, back, protocmp.Transform()); diff != "" {
		t.Errorf("%s read back (-want +got):\n%s", name, diff)
	}
}

func TestUnmarshalRefusals(t *testing.T) {
	key, meta := &kmsv1.GetAppKeyRequest{}, &kmsv1.GetMetaResponse{}
	tests := []struct {
		name string
		into proto.Message
		body string
		want string
	}{
		{"array at the top", key, `[]`, "request body: want a JSON object, not an array"},
		{"null at the top", key, `null`, "request body: want a JSON object, not null"},
		{"two values", key, `{} {}`, "request body: not JSON at byte 4: invalid character '{' after top-level value"},
		{"trailing comma", key, `{"api_version":1,}`, "request body: not JSON at byte 18: invalid character '}' looking for beginning of object key string"},
		{"not UTF-8", key, "{\"vm_config\":\"\xff\"}", "request body: not UTF-8"},
		{"very deep", key, strings.Repeat("[", 20000), "request body: not JSON at byte 10001: invalid character '[' exceeded max depth"},
		{"string for a number", key, `{"api_version":"1"}`, "api_version: want a number, not a string"},
		{"fraction", key, `{"api_version":1.5}`, "api_version: want an integer from 0 to 4294967295"},
		{"exponent", key, `{"api_version":1e3}`, "api_version: want an integer from 0 to 4294967295"},
		{"negative", key, `{"api_version":-1}`, "api_version: want an integer from 0 to 4294967295"},
		{"too large", key, `{"api_version":4294967296}`, "api_version: want an integer from 0 to 4294967295"},
		{"too large for 64 bits", meta, `{"chain_id":18446744073709551616}`, "chain_id: want an integer from 0 to 18446744073709551615"},
		{"null for a number", key, `{"api_version":null}`, "api_version: want a number, not null"},
		{"null for a string", key, `{"vm_config":null}`, "vm_config: want a string, not null"},
		{"null for bytes", meta, `{"k256_pubkey":null}`, "k256_pubkey: want a string of hexadecimal digits, not null"},
		{"null for a list", meta, `{"insecure_settings":null}`, "insecure_settings: want an array, not null"},
		{"object for a string", key, `{"vm_config":{"a":1}}`, "vm_config: want a string, not an object"},
		{"text for a truth value", meta, `{"is_dev":"true"}`, "is_dev: want true or false, not a string"},
		{"array of bytes", meta, `{"k256_pubkey":[1,2]}`, "k256_pubkey: want a string of hexadecimal digits, not an array"},
		{"odd hex", meta, `{"k256_pubkey":"0xabc"}`, "k256_pubkey: not hexadecimal: odd number of digits"},
		{"base64", meta, `{"k256_pubkey":"AQI="}`, "k256_pubkey: not hexadecimal"},
		{"0x twice", meta, `{"k256_pubkey":"0x0xab"}`, "k256_pubkey: not hexadecimal"},
		{"0X", meta, `{"k256_pubkey":"0Xab"}`, "k256_pubkey: not hexadecimal"},
		{"inner field", meta, `{"bootstrap_info":{"quote":"zz"}}`, "bootstrap_info.quote: not hexadecimal"},
		{"inner value", meta, `{"bootstrap_info":"zz"}`, "bootstrap_info: want a JSON object, not a string"},
		{"element", meta, `{"insecure_settings":["a",1]}`, "insecure_settings[1]: want a string, not a number"},
		{"list", meta, `{"insecure_settings":"a"}`, "insecure_settings: want an array, not a string"},
		{"twice", key, `{"vm_config":"a","vm_config":"b"}`, "vm_config: given twice"},
		{"twice by escape", key, `{"vm_config":"a","vm\u005fconfig":"b"}`, "vm_config: given twice"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := kmsCodec(t).Unmarshal([]byte(tt.body), tt.into.ProtoReflect().New().Interface())
			if err == nil || err.Error() != tt.want {
				t.Errorf("Unmarshal(%.60s) = %v, want %s", tt.body, err, tt.want)
			}
		})
	}
}

func TestUnmarshalAccepts(t *testing.T) {
	text := "any"
	tests := []struct {
		name string
		body string
		want proto.Message
	}{
		{"nothing", "", &kmsv1.GetMetaResponse{}},
		{"spaces", " { } \n", &kmsv1.GetMetaResponse{}},
		{"null where a value may be missing", `{"bootstrap_info":null,"gateway_app_id":null,"chain_id":null}`, &kmsv1.GetMetaResponse{}},
		{"hex of both forms", `{"k256_pubkey":"0xAbCd","trust_root_sha256":"00"}`, &kmsv1.GetMetaResponse{K256Pubkey: []byte{0xab, 0xcd}, TrustRootSha256: []byte{0}}},
		{"unknown keys", `{"x":null,"GatewayAppId":1,"gatewayAppId":2,"gateway_app_id":"any"}`, &kmsv1.GetMetaResponse{GatewayAppId: &text}},
		{"unknown key twice", `{"x":1,"x":2}`, &kmsv1.GetMetaResponse{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.want.ProtoReflect().New().Interface()
			if err := kmsCodec(t).Unmarshal([]byte(tt.body), got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, protocmp.Transform()); diff != "" {
				t.Errorf("Unmarshal(%s) (-want +got):\n%s", tt.body, diff)
			}
		})
	}
}

func TestCodecThatRefusesUnknownFields(t *testing.T) {
	c := kmsCodec(t).RefuseUnknown()
	tests := []struct{ name, body, want string }{
		{"at the top", `{"gateway_app_id":"any","x":null}`, `request body: unknown field "x"`},
		{"before what is known", `{"x":1,"gateway_app_id":"any"}`, `request body: unknown field "x"`},
		{"nested", `{"bootstrap_info":{"quote":"","GatewayAppId":1}}`, `bootstrap_info: unknown field "GatewayAppId"`},
		{"at length and not printable", `{"\u001b` + strings.Repeat("é", 1<<10) + `":1}`, `request body: unknown field "\x1b` + strings.Repeat(`\u00e9`, 15) + `\xc3"`},
		{"none", `{"bootstrap_info":{"quote":"00"},"gateway_app_id":"any"}`, ""},
		{"nothing", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := c.Unmarshal([]byte(tt.body), &kmsv1.GetMetaResponse{})
			if got := fmt.Sprint(err); got != tt.want && (err != nil || tt.want != "") {
				t.Errorf("Unmarshal(%.60s) = %s, want %s", tt.body, got, tt.want)
			}
		})
	}
}

func TestCodecKnowsOnlyItsService(t *testing.T) {
	c := onboardCodec(t)
	if _, err := c.Marshal(&structpb.Struct{}); err == nil || !strings.Contains(err.Error(), "not a message of this service") {
		t.Errorf("Marshal(Struct) = %v, want a refusal", err)
	}
	if err := c.Unmarshal([]byte("{}"), 7); err == nil || !strings.Contains(err.Error(), "not a message") {
		t.Errorf("Unmarshal into an int = %v, want a refusal", err)
	}
}

// FuzzUnmarshal holds that what is accepted is written in one form, that
// reading that form gives the same message, and that nothing panics.
func FuzzUnmarshal(f *testing.F) {
	c := kmsCodec(f)
	strict := c.RefuseUnknown()
	for _, m := range []proto.Message{
		&kmsv1.GetMetaResponse{}, &kmsv1.GetMetaResponse{K256Pubkey: []byte{1}, BootstrapInfo: &onboardv1.BootstrapResponse{Quote: []byte{4}}},
	} {
		b, err := c.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"chain_id":1,"ca_cert":"\ud800\u0000\"","insecure_settings":["\n","\u007f",""]}`))
	f.Add([]byte(`{"k256_pubkey":"0x","x":[[[[{}]]]]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var m, known kmsv1.GetMetaResponse
		err := c.Unmarshal(data, &m)
		switch strictErr := strict.Unmarshal(data, &known); {
		case strictErr == nil && (err != nil || !proto.Equal(&m, &known)):
			t.Errorf("Unmarshal(%q) without unknown fields = %v, with them %v, %v", data, &known, &m, err)
		case strictErr != nil && err == nil && !strings.Contains(strictErr.Error(), ": unknown field "):
			t.Errorf("Unmarshal(%q) without unknown fields = %v, want it to name one", data, strictErr)
		}
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") {
				t.Errorf("Unmarshal(%q) = %q, want one line", data, err)
			}
			return
		}
		written, err := c.Marshal(&m)
		if err != nil {
			t.Fatal(err)
		}
		var back kmsv1.GetMetaResponse
		if err := c.Unmarshal(written, &back); err != nil {
			t.Fatalf("reading %s back: %v", written, err)
		}
		if diff := cmp.Diff(&m, &back, protocmp.Transform()); diff != "" {
			t.Errorf("read back (-want +got):\n%s", diff)
		}
	})
}

func TestUnmarshalRefusesTwoOfAOneof(t *testing.T) {
	codec := newCodec(t, provisionv1.File_provision_v1_provision_proto.Services().ByName("Provision"), "")
	var m provisionv1.SetDatabaseRequest
	err := codec.Unmarshal([]byte(`{"sqlite":{"path":"/a"},"mysql":{"url":"mysql://h"}}`), &m)
	if want := "mysql: excludes sqlite, which is given too"; err == nil || err.Error() != want {
		t.Errorf("Unmarshal = %v, want %s", err, want)
	}
	m.Reset()
	if err := codec.Unmarshal([]byte(`{"sqlite":null,"mysql":{"url":"mysql://h"}}`), &m); err != nil || m.GetMysql().GetUrl() != "mysql://h" {
		t.Errorf("Unmarshal beside null = %v, %v, want the other", &m, err)
	}
}
