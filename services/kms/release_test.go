package kms_test

import (
	"context"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/authz"
	"teekms/internal/keys"
	"teekms/internal/ratls"
)

// TestReleasesAreLoggedAndCounted holds that there is one line and one count for
// everything that leaves, and none for what does not.
func TestReleasesAreLoggedAndCounted(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	w := newWorld(t, func(w *world) { w.config.Log = zap.New(core) })
	m := vectorApp(t)
	td := w.workload(t, m)
	good := certificate(t, td, ratls.Gen8)
	a := newApplicant(t, td)
	ok := outcome{}
	getAppKey(good, &kmsv1.GetAppKeyRequest{})(t, w, "grpc").expect(t, "grpc", ok)
	getAppKey(good, &kmsv1.GetAppKeyRequest{})(t, w, "prpc json").expect(t, "prpc json", ok)
	getKmsKey(good)(t, w, "grpc").expect(t, "grpc", ok)
	res, end := signCert(t, w, "grpc", a.sign(t, 2, a.csr(t)))
	end.expect(t, "grpc", ok)
	leaf, err := keys.ParseCertificate([]byte(res.GetCertificateChain()[0]))
	if err != nil {
		t.Fatal(err)
	}
	w.authority.set(deny(authz.App, "no"))
	if getAppKey(good, &kmsv1.GetAppKeyRequest{})(t, w, "grpc") == ok {
		t.Fatal("GetAppKey is allowed, want it denied")
	}
	getAppKey(nil, &kmsv1.GetAppKeyRequest{ApiVersion: 2})(t, w, "prpc json")

	var kinds []string
	for _, e := range logs.FilterMessage("released").All() {
		f := e.ContextMap()
		kinds = append(kinds, f["kind"].(string)+" to "+f["subject"].(string))
		if f["app_id"] != hex.EncodeToString(m.AppID) || f["instance_id"] != hex.EncodeToString(m.InstanceID) ||
			f["os_image_by"] != "allowlist" || f["request_id"] == "" {
			t.Errorf("log line %v, want who and why", f)
		}
		if f["kind"] == "certificate" && f["serial"] != leaf.SerialNumber.Text(16) {
			t.Errorf("serial = %v, want %s", f["serial"], leaf.SerialNumber.Text(16))
		}
	}
	if diff := cmp.Diff([]string{"app_key to app", "app_key to app", "root_keys to kms", "certificate to app"}, kinds); diff != "" {
		t.Errorf("releases in the log (-want +got):\n%s", diff)
	}
	want := map[string]float64{
		"dstack_kms_attestation_requests_total": 6, "dstack_kms_attestation_failures_total": 2,
		"teekms_denials_unrecorded_total":              0,
		"teekms_releases_total{app_key,allowlist}":     2,
		"teekms_releases_total{root_keys,allowlist}":   1,
		"teekms_releases_total{certificate,allowlist}": 1,
	}
	if diff := cmp.Diff(want, counters(t, w)); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
}

// counters are those of the service, by name and labels.
func counters(t *testing.T, w *world) map[string]float64 {
	t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "teekms_rpc_") {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetValue())
			}
			name := f.GetName()
			if len(labels) > 0 {
				name += "{" + strings.Join(labels, ",") + "}"
			}
			out[name] = m.GetCounter().GetValue()
		}
	}
	return out
}

// TestNothingLeavesForNobody holds that a caller who has gone is given nothing,
// and that this is no release.
func TestNothingLeavesForNobody(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	w := newWorld(t, func(w *world) { w.config.Log = zap.New(core) })
	a := newApplicant(t, w.workload(t, vectorApp(t)))
	req := a.sign(t, 2, a.csr(t))
	ctx, cancel := context.WithCancel(t.Context())
	w.authority.set(func(authz.Request) (authz.Decision, error) {
		cancel()
		return authz.Decision{Allowed: true}, nil
	})
	res, err := w.service.SignCert(ctx, req)
	if res != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("SignCert for a caller who left = %v, %v, want nothing and context.Canceled", res, err)
	}
	if n := logs.FilterMessage("released").Len(); n != 0 {
		t.Errorf("%d releases in the log, want none", n)
	}
}

// TestCausesStayInTheLog holds that the cause of a refusal is logged, not sent.
func TestCausesStayInTheLog(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	w := newWorld(t, func(w *world) { w.config.Log = zap.New(core) })
	good := certificate(t, w.workload(t, vectorApp(t)), ratls.Gen8)
	fails(authz.ErrUnreachable)(w)
	end := getAppKey(good, &kmsv1.GetAppKeyRequest{})(t, w, "grpc")
	if strings.Contains(end.Text, "secret") {
		t.Errorf("text = %q, want no cause in it", end.Text)
	}
	lines := logs.FilterMessage("call").All()
	if len(lines) != 1 || !strings.Contains(lines[0].ContextMap()["err"].(string), "secret cause") {
		t.Errorf("access lines = %v, want one with the cause", lines)
	}
}
