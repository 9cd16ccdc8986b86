package kms_test

import (
	"bytes"
	"encoding/hex"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/attest/simtd"
	"teekms/internal/authz"
	"teekms/internal/ratls"
	"teekms/services/kms"
)

// vectorApp is the application of the known-answer vectors.
func vectorApp(tb testing.TB) simtd.Measurements {
	tb.Helper()
	return simtd.Measurements{
		AppID:      unhex(tb, "000102030405060708090a0b0c0d0e0f10111213"),
		InstanceID: unhex(tb, "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff00010203"),
	}
}

// vectorKeys are the keys of vectorApp under vectorRoots.
func vectorKeys(t *testing.T, w *world, td *simtd.TD) *kmsv1.GetAppKeyResponse {
	t.Helper()
	return &kmsv1.GetAppKeyResponse{
		CaCert:        string(w.config.Keys.RootCertificate),
		DiskCryptKey:  unhex(t, "5d3df11a5f50e3d19c2ff41fdfa0b3ef61f989933935d33c739dca202c7d5c2a"),
		EnvCryptKey:   unhex(t, "23c369b81c99eb4031520ff5627b8243607ae43ff0befafab62bf142d3d709a2"),
		K256Key:       unhex(t, "b9717d48c557a952466ade9d6fd1848385de73ae256ade618fd9a472c56a5a66"),
		K256Signature: unhex(t, "cd2e1cac2363a2075e5627fff679db7477b7ca9dda3f084a05af2f555b66179c432c29320c7c1a702e6da0329e7a8ed625916968b3fec42872d30e1ae893f84c00"),
		TproxyAppId:   "gateway-1", GatewayAppId: "gateway-1",
		OsImageHash: td.Measurements().OSImageHash,
	}
}

func TestGetAppKey(t *testing.T) {
	w := newWorld(t)
	td := w.workload(t, vectorApp(t))
	want := vectorKeys(t, w, td)
	generations := map[string]ratls.Generation{"extension 8": ratls.Gen8, "extensions 1 and 2": ratls.Gen1}
	for name, generation := range generations {
		client := w.client(t, certificate(t, td, generation))
		for _, protocol := range protocols() {
			for version := range uint32(2) {
				t.Run(name+"/"+protocol, func(t *testing.T) {
					req := &kmsv1.GetAppKeyRequest{ApiVersion: version}
					if generation == ratls.Gen1 { // old certificates do not tell the image
						req.VmConfig = td.VMConfig()
					}
					got, end := invoke[kmsv1.GetAppKeyRequest, kmsv1.GetAppKeyResponse](t, client, w.url, protocol, "GetAppKey", req)
					end.expect(t, protocol, outcome{})
					if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
						t.Errorf("GetAppKey (-want +got):\n%s", diff)
					}
				})
			}
		}
	}
}

// TestGetAppKeyWithoutInstance holds the disk key that instances share.
func TestGetAppKeyWithoutInstance(t *testing.T) {
	w := newWorld(t)
	m := vectorApp(t)
	m.Runtime = []simtd.RuntimeEvent{
		{Name: "system-preparing"},
		{Name: "app-id", Payload: m.AppID},
		{Name: "compose-hash", Payload: fill(32, 9)},
		{Name: "instance-id"},
		{Name: "boot-mr-done"},
	}
	got, end := appKey(t, w, m)
	end.expect(t, "grpc", outcome{})
	if want := "dec15ef21ec90508f9c4b954d106bfea89fc4a47832afce48d4a01845b7189db"; hex.EncodeToString(got.GetDiskCryptKey()) != want {
		t.Errorf("disk key = %x, want %s", got.GetDiskCryptKey(), want)
	}
}

// appKey calls GetAppKey as the workload that m says.
func appKey(tb testing.TB, w *world, m simtd.Measurements) (*kmsv1.GetAppKeyResponse, outcome) {
	tb.Helper()
	return invoke[kmsv1.GetAppKeyRequest, kmsv1.GetAppKeyResponse](tb, w.attested(tb, m), w.url, "grpc", "GetAppKey",
		&kmsv1.GetAppKeyRequest{})
}

// TestWhatTheAuthorityIsAsked holds that a workload is described by what it
// measured, with its image as the request names it.
func TestWhatTheAuthorityIsAsked(t *testing.T) {
	w := newWorld(t)
	td := w.workload(t, vectorApp(t))
	client := w.client(t, certificate(t, td, ratls.Gen8))
	m := td.Measurements()
	tests := []struct {
		name, vmConfig string
		image          []byte
	}{
		{"the image in the Evidence", "", m.OSImageHash},
		{"the image in the request", `{"os_image_hash":"` + hex.EncodeToString(fill(32, 7)) + `"}`, fill(32, 7)},
		{"no image", "{}", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w.authority.set(nil)
			w.images.set(nil)
			got, end := invoke[kmsv1.GetAppKeyRequest, kmsv1.GetAppKeyResponse](t, client, w.url, "grpc", "GetAppKey",
				&kmsv1.GetAppKeyRequest{VmConfig: tt.vmConfig})
			end.expect(t, "grpc", outcome{})
			if !bytes.Equal(got.GetOsImageHash(), tt.image) {
				t.Errorf("os_image_hash = %x, want %x: the one that was authorized", got.GetOsImageHash(), tt.image)
			}
			asked := w.authority.requests()
			if len(asked) != 1 || asked[0].Subject != authz.App {
				t.Fatalf("the authority was asked %d times, want once about an app", len(asked))
			}
			info := asked[0].BootInfo
			if !bytes.Equal(info.AppID, m.AppID) || !bytes.Equal(info.InstanceID, m.InstanceID) ||
				!bytes.Equal(info.ComposeHash, m.ComposeHash) || info.MRTD != m.MRTD || string(info.KeyProviderInfo) != m.KeyProvider {
				t.Errorf("boot info = %+v, want what was measured", info)
			}
			if info.RTMR != td.RTMR() || !bytes.Equal(info.OSImageHash, tt.image) || info.TCBStatus != "UpToDate" {
				t.Errorf("boot info = %+v, want RTMRs, image and status", info)
			}
			if n := len(w.images.asked); n != 1 || !bytes.Equal(w.images.asked[0].OSImageHash, tt.image) {
				t.Errorf("the image was verified %d times, want once for %x", n, tt.image)
			}
		})
	}
}

func TestGetAppEnvEncryptPubKey(t *testing.T) {
	w := newWorld(t, func(w *world) { w.config.Now = func() time.Time { return time.Unix(1_700_000_000, 5) } })
	want := &kmsv1.GetAppEnvEncryptPubKeyResponse{
		PublicKey:   unhex(t, "d91e3f8d29423e75315020c59144cc7b2ca05777066b7d490f4208d54635e120"),
		Signature:   unhex(t, "b5dbf46222fc0ddbe482415d8d5916d1e313cb079378be92869ae7a3172944f96ec5097d735dd266353c089a81d3d1c2d07f95913fb67edad10c2825280bde1d00"),
		Timestamp:   1_700_000_000,
		SignatureV1: unhex(t, "b2f8ad5e49b62c9266ae7d4a0d3ad9ac1a41698c4633cb50de2af47c12fe167a27c9c914b52aa4386ddea4973cb96cc35b5fa23b8d5fa0ba34e5b095cd020c9000"),
	}
	client := w.client(t, nil) // who asks is nobody's business
	for _, protocol := range protocols() {
		t.Run(protocol, func(t *testing.T) {
			got, end := invoke[kmsv1.GetAppEnvEncryptPubKeyRequest, kmsv1.GetAppEnvEncryptPubKeyResponse](t, client, w.url, protocol,
				"GetAppEnvEncryptPubKey", &kmsv1.GetAppEnvEncryptPubKeyRequest{AppId: vectorApp(t).AppID})
			end.expect(t, protocol, outcome{})
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("GetAppEnvEncryptPubKey (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("prpc GET", func(t *testing.T) {
		status, body := call(t, client, "GET", w.url+"/prpc/GetAppEnvEncryptPubKey?app_id=000102030405060708090a0b0c0d0e0f10111213", "")
		wantBody, err := codec(t).Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if status != 200 || string(body) != string(wantBody) {
			t.Errorf("GET = %d %s, want 200 %s", status, body, wantBody)
		}
	})
}

func TestGetKmsKey(t *testing.T) {
	w := newWorld(t)
	want := &kmsv1.GetKmsKeyResponse{
		TempCaKey: string(w.config.Keys.TempKey.Bytes()),
		Keys:      []*kmsv1.RootKeys{{CaKey: string(w.roots.CAPEM().Bytes()), K256Key: unhex(t, vectorK256)}},
	}
	client := w.attested(t, simtd.Measurements{})
	for _, protocol := range protocols() {
		t.Run(protocol, func(t *testing.T) {
			w.authority.set(deny(authz.App, "not an app"))
			got, end := invoke[kmsv1.GetKmsKeyRequest, kmsv1.GetKmsKeyResponse](t, client, w.url, protocol, "GetKmsKey", &kmsv1.GetKmsKeyRequest{})
			end.expect(t, protocol, outcome{})
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Error("GetKmsKey gives other keys than the root keys") // a diff would show them
			}
			if asked := w.authority.requests(); len(asked) != 1 || asked[0].Subject != authz.KMS {
				t.Errorf("the authority was asked %d times, want once about a KMS", len(asked))
			}
		})
	}
}

func TestReleaseRoots(t *testing.T) {
	w := newWorld(t, func(w *world) { w.config.KMSKeyRelease = kms.ReleaseAdmin })
	_, err := w.service.ReleaseRoots(t.Context(), &kmsv1.GetKmsKeyRequest{})
	if err == nil || err.Error() != "No attestation provided" {
		t.Errorf("ReleaseRoots without a peer = %v, want No attestation provided", err)
	}
	public := newWorld(t)
	if _, err := public.service.ReleaseRoots(t.Context(), &kmsv1.GetKmsKeyRequest{}); err == nil || err.Error() != `root keys are not released here: core.kms_key_release is not "admin"` {
		t.Errorf("ReleaseRoots where the public listener does it = %v, want a refusal", err)
	}
}

func TestGetTempCaCert(t *testing.T) {
	w := newWorld(t)
	k := w.config.Keys
	want := &kmsv1.GetTempCaCertResponse{
		TempCaCert: string(k.TempCertificate), TempCaKey: string(k.TempKey.Bytes()), CaCert: string(k.RootCertificate),
	}
	client := w.client(t, nil)
	for _, protocol := range protocols() {
		t.Run(protocol, func(t *testing.T) {
			got, end := invoke[kmsv1.GetTempCaCertRequest, kmsv1.GetTempCaCertResponse](t, client, w.url, protocol, "GetTempCaCert", &kmsv1.GetTempCaCertRequest{})
			end.expect(t, protocol, outcome{})
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("GetTempCaCert (-want +got):\n%s", diff)
			}
		})
	}
}
