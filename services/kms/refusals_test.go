package kms_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/authz"
	"teekms/internal/osimage"
	"teekms/internal/ratls"
	"teekms/internal/ratls/csr"
	"teekms/services/kms"
)

// hostile is a call that is refused, and how.
type hostile struct {
	name string
	// prepare makes the KMS what it has to be; nil leaves it.
	prepare func(*world)
	call    func(t *testing.T, w *world, protocol string) outcome
	code    connect.Code
	text    string
}

// getAppKey calls GetAppKey with a certificate.
func getAppKey(c *tls.Certificate, req *kmsv1.GetAppKeyRequest) func(*testing.T, *world, string) outcome {
	return func(t *testing.T, w *world, protocol string) outcome {
		t.Helper()
		_, end := invoke[kmsv1.GetAppKeyRequest, kmsv1.GetAppKeyResponse](t, w.client(t, c), w.url, protocol, "GetAppKey", req)
		return end
	}
}

func getKmsKey(c *tls.Certificate) func(*testing.T, *world, string) outcome {
	return func(t *testing.T, w *world, protocol string) outcome {
		t.Helper()
		_, end := invoke[kmsv1.GetKmsKeyRequest, kmsv1.GetKmsKeyResponse](t, w.client(t, c), w.url, protocol, "GetKmsKey", &kmsv1.GetKmsKeyRequest{})
		return end
	}
}

func getEnv(appID []byte) func(*testing.T, *world, string) outcome {
	return func(t *testing.T, w *world, protocol string) outcome {
		t.Helper()
		_, end := invoke[kmsv1.GetAppEnvEncryptPubKeyRequest, kmsv1.GetAppEnvEncryptPubKeyResponse](t, w.client(t, nil), w.url, protocol,
			"GetAppEnvEncryptPubKey", &kmsv1.GetAppEnvEncryptPubKeyRequest{AppId: appID})
		return end
	}
}

func getSigned(req *kmsv1.SignCertRequest) func(*testing.T, *world, string) outcome {
	return func(t *testing.T, w *world, protocol string) outcome {
		t.Helper()
		_, end := signCert(t, w, protocol, req)
		return end
	}
}

// decides makes the authority decide so.
func decides(f func(authz.Request) (authz.Decision, error)) func(*world) {
	return func(w *world) { w.authority.set(f) }
}

func fails(err error) func(*world) {
	return decides(func(authz.Request) (authz.Decision, error) {
		return authz.Decision{}, fmt.Errorf("secret cause: %w", err)
	})
}

// refuse runs the table, by every protocol.
func refuse(t *testing.T, w *world, tests []hostile) {
	t.Helper()
	for _, tt := range tests {
		for _, protocol := range protocols() {
			t.Run(tt.name+"/"+protocol, func(t *testing.T) {
				w.authority.set(nil)
				w.images.set(nil)
				if tt.prepare != nil {
					tt.prepare(w)
				}
				tt.call(t, w, protocol).expect(t, protocol, outcome{Code: tt.code, Text: tt.text})
			})
		}
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	good := certificate(t, w.workload(t, vectorApp(t)), ratls.Gen8)
	boot := func(m simtd.Measurements, events ...simtd.RuntimeEvent) *tls.Certificate {
		m.Runtime = events
		return certificate(t, w.workload(t, m), ratls.Gen8)
	}
	event := func(name string, n int) simtd.RuntimeEvent {
		return simtd.RuntimeEvent{Name: name, Payload: fill(n, 3)}
	}
	mismatch := &osimage.MismatchError{Register: "RTMR1"}
	const denied, invalid, unavailable = connect.CodePermissionDenied, connect.CodeInvalidArgument, connect.CodeUnavailable
	refuse(t, w, []hostile{
		{"api_version 2", nil, getAppKey(good, &kmsv1.GetAppKeyRequest{ApiVersion: 2}), invalid, "Unsupported API version: 2"},
		{"api_version 2^32-1", nil, getAppKey(good, &kmsv1.GetAppKeyRequest{ApiVersion: 1<<32 - 1}), invalid, "Unsupported API version: 4294967295"},
		{"api_version comes before attestation", nil, getAppKey(nil, &kmsv1.GetAppKeyRequest{ApiVersion: 2}), invalid, "Unsupported API version: 2"},
		{"no certificate", nil, getAppKey(nil, &kmsv1.GetAppKeyRequest{}), denied, "No attestation provided"},
		{"certificate without Evidence", nil, getAppKey(plainCertificate(t), &kmsv1.GetAppKeyRequest{}), denied, "No attestation provided"},
		{"no certificate for root keys", nil, getKmsKey(nil), denied, "No attestation provided"},
		{"app id of 19 bytes", nil, getAppKey(boot(simtd.Measurements{}, event("app-id", 19)), &kmsv1.GetAppKeyRequest{}), denied, "App not allowed: app_id must be 20 bytes"},
		{"app id of 21 bytes", nil, getAppKey(boot(simtd.Measurements{}, event("app-id", 21)), &kmsv1.GetAppKeyRequest{}), denied, "App not allowed: app_id must be 20 bytes"},
		{"app id of 0 bytes", nil, getAppKey(boot(simtd.Measurements{}, event("app-id", 0)), &kmsv1.GetAppKeyRequest{}), denied, "App not allowed: app_id must be 20 bytes"},
		{"no app id", nil, getAppKey(boot(simtd.Measurements{}, event("compose-hash", 32)), &kmsv1.GetAppKeyRequest{}), denied, "App not allowed: app_id must be 20 bytes"},
		{"app id after system-ready", nil, getAppKey(boot(simtd.Measurements{}, event("system-ready", 0), event("app-id", 20)), &kmsv1.GetAppKeyRequest{}), denied, "App not allowed: app_id must be 20 bytes"},
		{"app id of a root key's peer", nil, getKmsKey(boot(simtd.Measurements{}, event("app-id", 19))), denied, "app_id must be 20 bytes"},
		{"instance id of 19 bytes", nil, getAppKey(boot(simtd.Measurements{}, event("app-id", 20), event("instance-id", 19)), &kmsv1.GetAppKeyRequest{}), denied, "App not allowed: instance_id must be empty or 20 bytes"},
		{"vm_config is not JSON", nil, getAppKey(good, &kmsv1.GetAppKeyRequest{VmConfig: "{"}), denied, "App not allowed: failed to decode VM config"},
		{"image hash with 0x", nil, getAppKey(good, &kmsv1.GetAppKeyRequest{VmConfig: `{"os_image_hash":"0x00"}`}), denied, "App not allowed: failed to decode VM config"},
		{"denied app", decides(deny(authz.App, "compose hash not allowed")), getAppKey(good, &kmsv1.GetAppKeyRequest{}), denied, "App not allowed: Boot denied: compose hash not allowed"},
		{"denied without a reason", decides(deny(authz.App, "")), getAppKey(good, &kmsv1.GetAppKeyRequest{}), denied, "App not allowed: Boot denied"},
		{"denied KMS", decides(deny(authz.KMS, "aggregated MR not allowed")), getKmsKey(good), denied, "Boot denied: aggregated MR not allowed"},
		{"authority unreachable", fails(authz.ErrUnreachable), getAppKey(good, &kmsv1.GetAppKeyRequest{}), unavailable, "authorization service unreachable"},
		{"authority malformed", fails(authz.ErrMalformed), getKmsKey(good), unavailable, "authorization service gave a malformed answer"},
		{"image does not match", func(w *world) { w.images.set(mismatch) }, getAppKey(good, &kmsv1.GetAppKeyRequest{}), denied, "App not allowed: Failed to verify os image hash: RTMR1 does not match"},
		{"image unknown", func(w *world) { w.images.set(fmt.Errorf("/secret/path: %w", osimage.ErrNotVerified)) }, getKmsKey(good), denied, "Failed to verify os image hash: OS image not verified"},
		{"image not to be had", func(w *world) { w.images.set(fmt.Errorf("/secret/path: %w", osimage.ErrUnavailable)) }, getAppKey(good, &kmsv1.GetAppKeyRequest{}), unavailable, "App not allowed: Failed to verify os image hash: OS image not available"},
		{"env key for 0 bytes", nil, getEnv(nil), invalid, "app_id: 0 bytes, want 20"},
		{"env key for 19 bytes", nil, getEnv(fill(19, 1)), invalid, "app_id: 19 bytes, want 20"},
		{"env key for 21 bytes", nil, getEnv(fill(21, 1)), invalid, "app_id: 21 bytes, want 20"},
	})
}

// plainCertificate is one without Evidence.
func plainCertificate(t *testing.T) *tls.Certificate {
	t.Helper()
	w := &world{roots: vectorRoots(t)}
	k := serviceKeys(t, w.roots)
	c, err := tls.X509KeyPair(k.TempCertificate, k.TempKey.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return &c
}

func TestSignCertRefusals(t *testing.T) {
	w := newWorld(t)
	a := newApplicant(t, w.workload(t, vectorApp(t)))
	stranger := newApplicant(t, a.td)
	// with changes a request before it is signed.
	with := func(change func(*csr.Request)) *kmsv1.SignCertRequest {
		r := a.csr(t)
		change(r)
		return a.sign(t, 2, r)
	}
	names := func(names ...string) *kmsv1.SignCertRequest {
		return with(func(r *csr.Request) { r.SANs = names })
	}
	raw := func(version uint32, edit func([]byte) []byte) *kmsv1.SignCertRequest {
		req := a.sign(t, min(version, 2), a.csr(t))
		req.ApiVersion, req.Csr = version, edit(req.GetCsr())
		req.Signature = a.signature(t, req.GetCsr())
		return req
	}
	version := func(v uint32) *kmsv1.SignCertRequest {
		req := a.sign(t, 2, a.csr(t))
		req.ApiVersion = v
		return req
	}
	past := now().Add(-time.Hour)
	theirs := with(func(r *csr.Request) { r.Evidence = stranger.csr(t).Evidence })
	swapped := a.sign(t, 2, a.csr(t))
	swapped.Signature = stranger.signature(t, swapped.GetCsr())
	const denied, invalid, unavailable = connect.CodePermissionDenied, connect.CodeInvalidArgument, connect.CodeUnavailable
	refuse(t, w, []hostile{
		{"api_version 0", nil, getSigned(version(0)), invalid, "Unsupported API version: 0"},
		{"api_version 3", nil, getSigned(version(3)), invalid, "Unsupported API version: 3"},
		{"api_version 2^32-1", nil, getSigned(version(1<<32 - 1)), invalid, "Unsupported API version: 4294967295"},
		{"no CSR", nil, getSigned(&kmsv1.SignCertRequest{ApiVersion: 2}), invalid, "Failed to parse csr: confirm word: ends too early"},
		{"trailing byte in version 1", nil, getSigned(raw(1, func(b []byte) []byte { return append(b, 0) })), invalid, "Failed to parse csr: 1 bytes after the end"},
		{"signature by another key", nil, getSigned(swapped), invalid, "Failed to verify csr signature: Invalid signature"},
		{"confirm word", nil, getSigned(raw(2, func(b []byte) []byte { b[1] = 'P'; return b })), invalid, "Failed to verify csr signature: Invalid confirm word"},
		{"Evidence for another key", nil, getSigned(theirs), denied, "Quote verification failed: report data: report data mismatch: the quote binds another key"},
		{"name of the KMS", nil, getSigned(names("app.example.com", "kms.localhost")), invalid, `csr: name "kms.localhost" is a name of this KMS`},
		{"name of the KMS in capitals", nil, getSigned(names("KMS.LocalHost")), invalid, `csr: name "KMS.LocalHost" is a name of this KMS`},
		{"name of the KMS with a dot", nil, getSigned(names("kms.localhost.")), invalid, `csr: name "kms.localhost." is neither a DNS name nor an IP address`},
		{"wildcard over the KMS", nil, getSigned(names("*.localhost")), invalid, `csr: name "*.localhost" is a name of this KMS`},
		{"wildcard over everything", nil, getSigned(names("*")), invalid, `csr: name "*" is neither a DNS name nor an IP address`},
		{"wildcard in the middle", nil, getSigned(names("a.*.example.com")), invalid, `csr: name "a.*.example.com" is neither a DNS name nor an IP address`},
		{"two wildcards", nil, getSigned(names("*.*.example.com")), invalid, `csr: name "*.*.example.com" is neither a DNS name nor an IP address`},
		{"partial wildcard", nil, getSigned(names("k*.localhost")), invalid, `csr: name "k*.localhost" is neither a DNS name nor an IP address`},
		{"empty name", nil, getSigned(names("")), invalid, `csr: name "" is neither a DNS name nor an IP address`},
		{"NUL in a name", nil, getSigned(names("kms.localhost\x00.example.com")), invalid, `csr: name "kms.localhost\x00.example.com" is neither a DNS name nor an IP address`},
		{"name that is not ASCII", nil, getSigned(names("kms.ℓocalhost")), invalid, `csr: name "kms.ℓocalhost" is neither a DNS name nor an IP address`},
		{"address with a zone", nil, getSigned(names("fe80::1%eth0")), invalid, `csr: name "fe80::1%eth0" has a zone`},
		{"65 names", nil, getSigned(names(strings.Split(strings.Repeat("a,", 64)+"a", ",")...)), invalid, "csr: 65 alternative names, want at most 64"},
		{"long name", nil, getSigned(names(strings.Repeat("a.", 126) + "aa")), invalid, `csr: name "` + strings.Repeat("a.", 126) + `a" has 254 bytes, want at most 253`},
		{"long label", nil, getSigned(names(strings.Repeat("a", 64))), invalid, `csr: name "` + strings.Repeat("a", 64) + `" is neither a DNS name nor an IP address`},
		{"subject that is the KMS", nil, getSigned(with(func(r *csr.Request) { r.Subject = "Kms.localhost" })), invalid, `csr: name "Kms.localhost" is a name of this KMS`},
		{"long subject", nil, getSigned(with(func(r *csr.Request) { r.Subject = strings.Repeat("a", 257) })), invalid, "csr: subject of 257 bytes, want at most 256"},
		{"line break in the subject", nil, getSigned(with(func(r *csr.Request) { r.Org = "a\nb" })), invalid, "csr: subject has characters that cannot be printed"},
		{"over already", nil, getSigned(with(func(r *csr.Request) { r.NotAfter = &past })), invalid, "csr: the certificate would never be valid"},
		{"denied", decides(deny(authz.App, "compose hash not allowed")), getSigned(version(2)), denied, "Boot denied: compose hash not allowed"},
		{"authority unreachable", fails(authz.ErrUnreachable), getSigned(version(2)), unavailable, "authorization service unreachable"},
		{"image does not match", func(w *world) { w.images.set(&osimage.MismatchError{Register: "MRTD"}) }, getSigned(version(2)), denied, "Failed to verify os image hash: MRTD does not match"},
	})
}

// TestNamesOfAKMSWithAnAddress holds the rule for a KMS that is known by address.
func TestNamesOfAKMSWithAnAddress(t *testing.T) {
	w := newWorld(t, func(w *world) { w.config.Keys.Domain = "192.0.2.7" })
	a := newApplicant(t, w.workload(t, vectorApp(t)))
	for _, name := range []string{"192.0.2.7", "::ffff:192.0.2.7", "::ffff:c000:207"} {
		r := a.csr(t)
		r.SANs = []string{name}
		_, end := signCert(t, w, "grpc", a.sign(t, 2, r))
		end.expect(t, "grpc", outcome{connect.CodeInvalidArgument, fmt.Sprintf("csr: name %q is a name of this KMS", name)})
	}
}

// TestInvalidEvidenceFailsEveryCall holds that on a connection whose
// certificate has Evidence that does not hold, nothing is answered.
func TestInvalidEvidenceFailsEveryCall(t *testing.T) {
	w := newWorld(t)
	if _, err := w.service.GetMeta(t.Context(), &kmsv1.GetMetaRequest{}); err != nil {
		t.Fatal(err)
	}
	call(t, w.client(t, nil), "GET", w.url+"/prpc/GetMeta", "") // there is an answer to keep now
	client := w.client(t, foreignEvidence(t, w))
	want := outcome{connect.CodePermissionDenied, "invalid quote: report data: report data mismatch: the quote binds another key"}
	for _, protocol := range protocols() {
		t.Run(protocol, func(t *testing.T) {
			_, end := invoke[kmsv1.GetMetaRequest, kmsv1.GetMetaResponse](t, client, w.url, protocol, "GetMeta", &kmsv1.GetMetaRequest{})
			end.expect(t, protocol, want)
			_, end = invoke[kmsv1.GetTempCaCertRequest, kmsv1.GetTempCaCertResponse](t, client, w.url, protocol, "GetTempCaCert", &kmsv1.GetTempCaCertRequest{})
			end.expect(t, protocol, want)
			_, end = invoke[kmsv1.GetAppKeyRequest, kmsv1.GetAppKeyResponse](t, client, w.url, protocol, "GetAppKey", &kmsv1.GetAppKeyRequest{})
			end.expect(t, protocol, want)
			_, end = invoke[kmsv1.GetKmsKeyRequest, kmsv1.GetKmsKeyResponse](t, client, w.url, protocol, "GetKmsKey", &kmsv1.GetKmsKeyRequest{})
			end.expect(t, protocol, want)
			_, end = invoke[kmsv1.SignCertRequest, kmsv1.SignCertResponse](t, client, w.url, protocol, "SignCert", &kmsv1.SignCertRequest{})
			end.expect(t, protocol, want)
			_, end = invoke[kmsv1.GetAppEnvEncryptPubKeyRequest, kmsv1.GetAppEnvEncryptPubKeyResponse](t, client, w.url, protocol,
				"GetAppEnvEncryptPubKey", &kmsv1.GetAppEnvEncryptPubKeyRequest{})
			end.expect(t, protocol, want)
		})
	}
	t.Run("prpc GET", func(t *testing.T) {
		status, body := call(t, client, "GET", w.url+"/prpc/GetMeta", "")
		if wantBody := `{"error": "` + want.Text + `"}`; status != http.StatusBadRequest || string(body) != wantBody {
			t.Errorf("GetMeta = %d %s, want 400 %s", status, body, wantBody)
		}
	})
}

// foreignEvidence is a certificate with Evidence for another key.
func foreignEvidence(t *testing.T, w *world) *tls.Certificate {
	t.Helper()
	td := w.workload(t, simtd.Measurements{})
	c, err := ratls.NewCertificate(t.Context(), ratls.ClientCertConfig{Attester: elsewhere{td}})
	if err != nil {
		t.Fatal(err)
	}
	return &c
}

// elsewhere is an attester whose Evidence is for another key.
type elsewhere struct{ td *simtd.TD }

func (e elsewhere) Attest(ctx context.Context, _ attest.ReportData) (*attest.Evidence, error) {
	return e.td.Attest(ctx, attest.RATLSReportData([]byte("another key")))
}

func TestRootKeysElsewhere(t *testing.T) {
	tests := []struct {
		release, text string
	}{
		{kms.ReleaseAdmin, "root keys are released on the admin listener alone (core.kms_key_release)"},
		{kms.ReleaseOff, "root keys are not released (core.kms_key_release)"},
		{"", "root keys are not released (core.kms_key_release)"},
	}
	for _, tt := range tests {
		t.Run("release "+tt.release, func(t *testing.T) {
			w := newWorld(t, func(w *world) { w.config.KMSKeyRelease = tt.release })
			good := certificate(t, w.workload(t, vectorApp(t)), ratls.Gen8)
			for _, protocol := range protocols() {
				getKmsKey(good)(t, w, protocol).expect(t, protocol, outcome{connect.CodePermissionDenied, tt.text})
			}
			if asked := w.authority.requests(); len(asked) != 0 {
				t.Errorf("the authority was asked %d times, want never", len(asked))
			}
		})
	}
}

// TestLimitedAppraisals holds that an address with too many appraisals is told
// so, on its connections and for its signing requests.
func TestLimitedAppraisals(t *testing.T) {
	w := newWorld(t, func(w *world) {
		limit, err := ratls.NewLimiter(ratls.LimiterConfig{PerSecond: 0.001, Burst: 1})
		if err != nil {
			t.Fatal(err)
		}
		w.limit = limit
	})
	good := certificate(t, w.workload(t, vectorApp(t)), ratls.Gen8)
	a := newApplicant(t, w.workload(t, vectorApp(t)))
	req := a.sign(t, 2, a.csr(t))
	getAppKey(good, &kmsv1.GetAppKeyRequest{})(t, w, "grpc").expect(t, "grpc", outcome{})
	want := outcome{connect.CodeResourceExhausted, "too many attestations from this address: try again later"}
	for _, protocol := range protocols() {
		getAppKey(good, &kmsv1.GetAppKeyRequest{})(t, w, protocol).expect(t, protocol, want)
		getSigned(req)(t, w, protocol).expect(t, protocol, want)
	}
}

func TestNoCollateral(t *testing.T) {
	w := newWorld(t)
	w.config.Appraiser = failing{fmt.Errorf("https://secret.example: %w", attest.ErrNoCollateral)}
	w.config.Metrics = nil
	s, err := kms.New(w.config)
	if err != nil {
		t.Fatal(err)
	}
	w.service = s
	a := newApplicant(t, w.workload(t, vectorApp(t)))
	w.serve(t)
	getSigned(a.sign(t, 2, a.csr(t)))(t, w, "grpc").expect(t, "grpc", outcome{connect.CodeUnavailable, "no collateral to be had"})
}

// failing is an appraiser that cannot say anything.
type failing struct{ err error }

func (f failing) Appraise(context.Context, *attest.Evidence, []byte) (*ratls.Attested, error) {
	return nil, f.err
}

// describeSelf describes this KMS, unless it is to fail, and counts.
func (w *world) describeSelf(fail *error) func(context.Context) (authz.BootInfo, error) {
	var calls int
	return func(context.Context) (authz.BootInfo, error) {
		calls++
		if *fail != nil {
			return authz.BootInfo{}, *fail
		}
		return authz.BootInfo{TEEVariant: fmt.Sprint("attested ", calls)}, nil
	}
}

func TestSelfAuthorization(t *testing.T) {
	noAgent := errors.New("secret cause")
	w := newWorld(t, func(w *world) { w.config.Self = w.describeSelf(&noAgent) })
	good := certificate(t, w.workload(t, vectorApp(t)), ratls.Gen8)
	a := newApplicant(t, w.workload(t, vectorApp(t)))
	getTemp := func(t *testing.T, w *world, protocol string) outcome {
		t.Helper()
		_, end := invoke[kmsv1.GetTempCaCertRequest, kmsv1.GetTempCaCertResponse](t, w.client(t, nil), w.url, protocol, "GetTempCaCert", &kmsv1.GetTempCaCertRequest{})
		return end
	}
	calls := map[string]func(*testing.T, *world, string) outcome{
		"GetAppKey": getAppKey(good, &kmsv1.GetAppKeyRequest{}), "GetKmsKey": getKmsKey(good), "GetTempCaCert": getTemp,
		"SignCert": getSigned(a.sign(t, 2, a.csr(t))), "GetAppEnvEncryptPubKey": getEnv(fill(20, 1)),
		"GetAppEnvEncryptPubKey of nobody": getEnv(nil), "SignCert of nothing": getSigned(&kmsv1.SignCertRequest{}),
	}
	for name, do := range calls {
		do(t, w, "grpc").expect(t, name, outcome{connect.CodeUnavailable, "KMS self authorization failed"})
	}
	noAgent = nil
	for name, do := range calls {
		for range 2 {
			w.authority.set(deny(authz.KMS, "KMS is not allowed to boot on this device"))
			want := outcome{connect.CodePermissionDenied, "KMS self authorization failed: KMS is not allowed: KMS is not allowed to boot on this device"}
			do(t, w, "grpc").expect(t, name, want)
			asked := w.authority.requests()
			if len(asked) != 1 || asked[0].Subject != authz.KMS || asked[0].BootInfo.TEEVariant != "attested 8" {
				t.Errorf("%s asks the authority %+v, want about this KMS, each time, as it was attested once", name, asked)
			}
		}
		fails(authz.ErrUnreachable)(w)
		do(t, w, "grpc").expect(t, name, outcome{connect.CodeUnavailable, "authorization service unreachable"})
	}
	w.authority.set(nil)
	calls["GetTempCaCert"](t, w, "grpc").expect(t, "grpc", outcome{})
	meta, end := invoke[kmsv1.GetMetaRequest, kmsv1.GetMetaResponse](t, w.client(t, nil), w.url, "grpc", "GetMeta", &kmsv1.GetMetaRequest{})
	if end.expect(t, "grpc", outcome{}); meta.GetCaCert() == "" {
		t.Error("GetMeta has no certificate")
	}
}
