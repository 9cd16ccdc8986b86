package kms_test

import (
	"crypto/tls"
	"net/http"
	"testing"

	"connectrpc.com/connect"
	"go.uber.org/zap"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/gen/kms/v1/kmsv1connect"
	"teekms/internal/authz"
	"teekms/internal/keys"
	"teekms/internal/ratls"
	"teekms/internal/rpc"
	"teekms/internal/serve"
	"teekms/services/kms"
)

// serveAdmin opens a listener of administrators that knows its peers.
func (w *world) serveAdmin(t *testing.T) (url string) {
	t.Helper()
	leaf := w.rpcCertificate(t)
	server, err := ratls.NewServer(ratls.ServerConfig{
		Appraiser:    w.appraiser,
		Certificates: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &leaf, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	admin, err := kms.NewAdmin(kms.AdminConfig{Images: &cleared{}, ReleaseRoots: w.service.ReleaseRoots})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := rpc.New(rpc.Config{Log: zap.NewNop(), Access: kms.AdminAccess(), Errors: kms.AdminErrors(), Admit: server.Admit})
	if err != nil {
		t.Fatal(err)
	}
	h, err := serve.NewMux(serve.MuxConfig{Service: admin.RPC(), Chain: chain})
	if err != nil {
		t.Fatal(err)
	}
	guarded := newCredentials(t, kms.CredentialsConfig{Token: keys.NewSecret([]byte(adminToken))}).Require(h)
	return "https://" + start(t, guarded, func(c *serve.Config) { c.TLS, c.ConnContext = server.TLSConfig(), server.ConnContext })
}

// bearer adds the token of the administrator.
type bearer struct{ next http.RoundTripper }

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+adminToken)
	return b.next.RoundTrip(r)
}

// TestRootKeysOnTheAdminListener holds that there, too, a credential is not
// enough: the peer has to be attested and allowed.
func TestRootKeysOnTheAdminListener(t *testing.T) {
	w := newWorld(t, func(w *world) { w.config.KMSKeyRelease = kms.ReleaseAdmin })
	url := w.serveAdmin(t)
	client := func(c *tls.Certificate) kmsv1connect.AdminClient {
		h := w.client(t, c)
		h.Transport = bearer{h.Transport}
		return kmsv1connect.NewAdminClient(h, url)
	}
	good := client(certificate(t, w.workload(t, vectorApp(t)), ratls.Gen8))
	res, err := good.GetKmsKey(t.Context(), &kmsv1.AdminGetKmsKeyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if k := res.GetKeys(); len(k) != 1 || k[0].GetCaKey() != string(w.roots.CAPEM().Bytes()) || res.GetTempCaKey() != string(w.config.Keys.TempKey.Bytes()) {
		t.Error("GetKmsKey gives other keys than the root keys")
	}
	tests := []struct {
		name   string
		client kmsv1connect.AdminClient
		decide func(authz.Request) (authz.Decision, error)
		want   string
	}{
		{"no Evidence", client(nil), nil, "No attestation provided"},
		{"invalid Evidence", client(foreignEvidence(t, w)), nil, "invalid quote: report data: report data mismatch: the quote binds another key"},
		{"denied", good, deny(authz.KMS, "aggregated MR not allowed"), "Boot denied: aggregated MR not allowed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w.authority.set(tt.decide)
			_, err := tt.client.GetKmsKey(t.Context(), &kmsv1.AdminGetKmsKeyRequest{})
			if connect.CodeOf(err) != connect.CodePermissionDenied || err.Error() != "permission_denied: "+tt.want {
				t.Errorf("GetKmsKey = %v, want permission_denied: %s", err, tt.want)
			}
		})
	}
}
