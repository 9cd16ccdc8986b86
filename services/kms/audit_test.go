package kms_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/attest/simtd"
	"teekms/internal/audit"
	"teekms/internal/audit/audittest"
	"teekms/internal/authz"
	"teekms/internal/keys"
	"teekms/internal/osimage"
	"teekms/internal/ratls"
	"teekms/services/kms"
)

// impatient has a log that gives up soon.
func impatient(t *testing.T) func(*world) {
	return func(w *world) {
		w.config.Audit = audittest.NewLog(t, w.store, func(c *audit.Config) { c.Timeout = 250 * time.Millisecond })
	}
}

var errDown = errors.New("the database is down")

const nothingReleased = "audit log unavailable: nothing was released"

// TestNothingLeavesUnrecorded holds, for everything that is released, that a log
// which cannot be written keeps it in: the caller gets the reason and nothing
// else, by every protocol.
func TestNothingLeavesUnrecorded(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	w := newWorld(t, impatient(t), func(w *world) { w.config.Log = zap.New(core) })
	td := w.workload(t, vectorApp(t))
	good := certificate(t, td, ratls.Gen8)
	a := newApplicant(t, td)
	signing := a.sign(t, 2, a.csr(t))
	w.store.Break(errDown)
	unrecorded := outcome{Code: connect.CodeUnavailable, Text: nothingReleased}
	t.Run("refused", func(t *testing.T) { // so that what follows waits for all of them
		for _, protocol := range protocols() {
			t.Run(protocol, func(t *testing.T) {
				t.Parallel()
				t.Run("application keys", func(t *testing.T) {
					res, end := invoke[kmsv1.GetAppKeyRequest, kmsv1.GetAppKeyResponse](t, w.client(t, good), w.url, protocol, "GetAppKey", &kmsv1.GetAppKeyRequest{})
					end.expect(t, protocol, unrecorded)
					if len(res.GetDiskCryptKey())+len(res.GetK256Key())+len(res.GetEnvCryptKey()) > 0 {
						t.Error("there is a key in the answer")
					}
				})
				t.Run("root keys", func(t *testing.T) {
					res, end := invoke[kmsv1.GetKmsKeyRequest, kmsv1.GetKmsKeyResponse](t, w.client(t, good), w.url, protocol, "GetKmsKey", &kmsv1.GetKmsKeyRequest{})
					end.expect(t, protocol, unrecorded)
					if len(res.GetKeys()) > 0 || res.GetTempCaKey() != "" {
						t.Error("there is a key in the answer")
					}
				})
				t.Run("a certificate", func(t *testing.T) {
					res, end := signCert(t, w, protocol, signing)
					end.expect(t, protocol, unrecorded)
					if len(res.GetCertificateChain()) > 0 {
						t.Error("there is a certificate in the answer")
					}
				})
			})
		}
	})
	for _, method := range []string{"KMS.GetAppKey", "KMS.GetKmsKey"} {
		status, body := call(t, w.client(t, good), http.MethodPost, w.url+"/prpc/"+method+"?json", "{}")
		if want := `{"error": "` + nothingReleased + `"}`; status != http.StatusBadRequest || string(body) != want {
			t.Errorf("%s = %d %s, want 400 %s", method, status, body, want)
		}
	}
	if n := logs.FilterMessage("released").Len(); n != 0 {
		t.Errorf("%d releases in the log, want none", n)
	}
	if c := counters(t, w); c["teekms_releases_total{app_key,allowlist}"] != 0 {
		t.Errorf("counters = %v, want no release", c)
	}
	// What is public is given all the same.
	getEnv(fill(20, 1))(t, w, "grpc").expect(t, "grpc", outcome{})
	w.store.Break(nil)
	getAppKey(good, &kmsv1.GetAppKeyRequest{})(t, w, "grpc").expect(t, "grpc", outcome{})
}

// TestRootKeysOfAdministratorsAreRecorded holds the same for the listener of
// administrators.
func TestRootKeysOfAdministratorsAreRecorded(t *testing.T) {
	w := newWorld(t, impatient(t), func(w *world) { w.config.KMSKeyRelease = kms.ReleaseAdmin })
	ctx := (&releaseBench{w: w, cert: certificate(t, w.workload(t, vectorApp(t)), ratls.Gen8)}).admitted(t)
	w.store.Break(errDown)
	res, err := w.service.ReleaseRoots(ctx, &kmsv1.GetKmsKeyRequest{})
	if code, text, _ := kms.AdminErrors().Lookup(err); res != nil || code != connect.CodeUnavailable || text != nothingReleased {
		t.Errorf("ReleaseRoots() = %v, %v, want nothing, Unavailable: %s", res, err, nothingReleased)
	}
	w.store.Break(nil)
	if _, err := w.service.ReleaseRoots(ctx, &kmsv1.GetKmsKeyRequest{}); err != nil {
		t.Fatal(err)
	}
	if records := w.store.Records(t); len(records) != 1 || records[0].Kind != audit.ReleaseRootKeys {
		t.Errorf("records = %v, want one of root keys", records)
	}
}

// TestReleasesAreRecorded holds what is kept of a release.
func TestReleasesAreRecorded(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	w := newWorld(t, func(w *world) { w.config.Log = zap.New(core) })
	m := vectorApp(t)
	td := w.workload(t, m)
	good := certificate(t, td, ratls.Gen8)
	a := newApplicant(t, td)
	getAppKey(good, &kmsv1.GetAppKeyRequest{})(t, w, "grpc").expect(t, "grpc", outcome{})
	getKmsKey(good)(t, w, "grpc").expect(t, "grpc", outcome{})
	request := a.csr(t)
	request.SANs = []string{"app.example.com", "192.0.2.7"}
	res, end := signCert(t, w, "grpc", a.sign(t, 2, request))
	end.expect(t, "grpc", outcome{})
	leaf, err := keys.ParseCertificate([]byte(res.GetCertificateChain()[0]))
	if err != nil {
		t.Fatal(err)
	}
	asked := w.authority.requests()
	records := w.store.Records(t)
	lines := logs.FilterMessage("released").All()
	if len(records) != 3 || len(lines) != 3 || len(asked) != 3 {
		t.Fatalf("%d records, %d lines, %d questions, want 3", len(records), len(lines), len(asked))
	}
	for i, kind := range []audit.Kind{audit.ReleaseAppKey, audit.ReleaseRootKeys, audit.Certificate} {
		info := asked[i].BootInfo
		want := map[string]string{
			"subject": []string{"app", "kms", "app"}[i], "app_id": hex.EncodeToString(m.AppID), "instance_id": hex.EncodeToString(m.InstanceID),
			"compose_hash": hex.EncodeToString(info.ComposeHash), "os_image_hash": hex.EncodeToString(info.OSImageHash), "os_image_by": "allowlist",
			"mr_aggregated": hex.EncodeToString(info.MRAggregated[:]), "device_id": hex.EncodeToString(info.DeviceID[:]),
			"tcb_status": info.TCBStatus, "advisory_ids": strings.Join(info.AdvisoryIDs, ","), "gateway_app_id": "gateway-1",
			"request_id": lines[i].ContextMap()["request_id"].(string),
		}
		if kind == audit.Certificate {
			digest := sha256.Sum256(leaf.Raw)
			want["serial"], want["certificate_sha256"] = leaf.SerialNumber.Text(16), hex.EncodeToString(digest[:])
			want["common_name"], want["names"] = leaf.Subject.CommonName, "app.example.com,192.0.2.7"
			want["not_before"], want["not_after"] = leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339)
		}
		for name, value := range want {
			if value == "" {
				delete(want, name)
			}
		}
		if diff := cmp.Diff(want, records[i].Fields); diff != "" || records[i].Kind != kind {
			t.Errorf("record %d of kind %s (-want +got):\n%s", i, records[i].Kind, diff)
		}
		if seq := lines[i].ContextMap()["audit_seq"]; seq != uint64(i) {
			t.Errorf("line %d has audit_seq %v", i, seq)
		}
	}
	secrets := append([][]byte{w.roots.K256Raw().Bytes()}, w.config.Keys.TempKey.Bytes())
	for _, row := range w.store.State().Rows {
		for _, secret := range secrets {
			if strings.Contains(string(row.Body), string(secret)) || strings.Contains(string(row.Body), hex.EncodeToString(secret)) {
				t.Errorf("record %d has a secret in it", row.Seq)
			}
		}
	}
}

// TestDenialsAreRecorded holds which refusals are kept, and with what.
func TestDenialsAreRecorded(t *testing.T) {
	w := newWorld(t, func(w *world) {
		w.config.Self = func(context.Context) (authz.BootInfo, error) {
			return authz.BootInfo{AppID: fill(20, 9), MRAggregated: [32]byte{7}}, nil
		}
	})
	m := vectorApp(t)
	td := w.workload(t, m)
	good := certificate(t, td, ratls.Gen8)
	a := newApplicant(t, td)
	callers := func(r authz.Request) bool { return string(r.BootInfo.AppID) == string(m.AppID) }
	denyCaller := decides(func(r authz.Request) (authz.Decision, error) {
		return authz.Decision{Allowed: !callers(r), Reason: "not on the list"}, nil
	})
	denySelf := decides(func(r authz.Request) (authz.Decision, error) {
		return authz.Decision{Allowed: callers(r), Reason: "too old"}, nil
	})
	key := getAppKey(good, &kmsv1.GetAppKeyRequest{})
	tests := []struct {
		name    string
		prepare func(*world)
		call    func(*testing.T, *world, string) outcome
		// subject and reason of the record; none where empty.
		subject, reason string
	}{
		{"an app is denied", denyCaller, key, "app", "Boot denied: not on the list"},
		{"a KMS is denied", denyCaller, getKmsKey(good), "kms", "Boot denied: not on the list"},
		{"a certificate is denied", denyCaller, getSigned(a.sign(t, 2, a.csr(t))), "app", "Boot denied: not on the list"},
		{"the image is another", func(w *world) { w.images.set(&osimage.MismatchError{Register: "RTMR1"}) }, key, "app", "Failed to verify os image hash: RTMR1 does not match"},
		{"this KMS is denied to an attested caller", denySelf, key, "kms", "KMS self authorization failed: KMS is not allowed: too old"},
		{"this KMS is denied to anybody", denySelf, getEnv(fill(20, 1)), "", ""},
		{"nobody could decide", fails(authz.ErrUnreachable), key, "", ""},
		{"the image is not to be had", func(w *world) { w.images.set(fmt.Errorf("x: %w", osimage.ErrUnavailable)) }, key, "", ""},
		{"no Evidence", nil, getAppKey(nil, &kmsv1.GetAppKeyRequest{}), "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w.authority.set(nil)
			w.images.set(nil)
			if tt.prepare != nil {
				tt.prepare(w)
			}
			before := len(w.store.Records(t))
			if end := tt.call(t, w, "grpc"); end == (outcome{}) {
				t.Fatal("the call is allowed, want it refused")
			}
			records := w.store.Records(t)[before:]
			if tt.reason == "" {
				if len(records) != 0 {
					t.Errorf("records = %v, want none", records[0])
				}
				return
			}
			if len(records) != 1 || records[0].Kind != audit.Denial {
				t.Fatalf("records = %v, want one denial", records)
			}
			f := records[0].Fields
			if f["subject"] != tt.subject || f["reason"] != tt.reason || f["request_id"] == "" {
				t.Errorf("fields = %v, want subject %s, reason %s", f, tt.subject, tt.reason)
			}
			appID, mr := hex.EncodeToString(m.AppID), f["mr_aggregated"]
			if strings.HasPrefix(tt.name, "this KMS") {
				appID = hex.EncodeToString(fill(20, 9))
			} else if len(f["compose_hash"]) != 64 || f["device_id"] == "" || f["tcb_status"] == "" {
				t.Errorf("fields = %v, want what was seen of the workload", f)
			}
			if f["app_id"] != appID || len(mr) != 64 {
				t.Errorf("fields = %v, want app_id %s and a measurement", f, appID)
			}
		})
	}
}

// TestDenialsThatCannotBeRecorded holds that they are denials all the same, with
// the same text, and are counted.
func TestDenialsThatCannotBeRecorded(t *testing.T) {
	core, logs := observer.New(zapcore.WarnLevel)
	w := newWorld(t, impatient(t), func(w *world) { w.config.Log = zap.New(core) })
	good := certificate(t, w.workload(t, vectorApp(t)), ratls.Gen8)
	w.store.Break(errDown)
	w.authority.set(deny(authz.App, "no"))
	getAppKey(good, &kmsv1.GetAppKeyRequest{})(t, w, "grpc").expect(t, "grpc", outcome{Code: connect.CodePermissionDenied, Text: "App not allowed: Boot denied: no"})
	if n := logs.FilterMessage("denial not recorded").Len(); n != 1 || counters(t, w)["teekms_denials_unrecorded_total"] != 1 {
		t.Errorf("%d lines, counters %v, want one of each", n, counters(t, w))
	}
}

// TestDenialOfACallerWhoLeft holds that hanging up leaves a trace.
func TestDenialOfACallerWhoLeft(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel((&releaseBench{w: w, cert: certificate(t, w.workload(t, vectorApp(t)), ratls.Gen8)}).admitted(t))
	w.authority.set(func(authz.Request) (authz.Decision, error) {
		cancel()
		return authz.Decision{Reason: "no"}, nil
	})
	if _, err := w.service.GetAppKey(ctx, &kmsv1.GetAppKeyRequest{}); err == nil || !strings.Contains(err.Error(), "Boot denied: no") {
		t.Errorf("GetAppKey() = %v, want it denied", err)
	}
	if records := w.store.Records(t); len(records) != 1 || records[0].Kind != audit.Denial {
		t.Errorf("records = %v, want the denial", records)
	}
}

// TestDenialsDoNotFillTheDatabase holds that somebody who has himself denied
// again and again is recorded at a bounded rate, and denied always.
func TestDenialsDoNotFillTheDatabase(t *testing.T) {
	clk := &clock{now: time.Unix(1_800_000_000, 0)}
	w := newWorld(t, func(w *world) { w.config.Now = clk.Now })
	w.authority.set(deny(authz.App, "no"))
	ctx := (&releaseBench{w: w, cert: certificate(t, w.workload(t, vectorApp(t)), ratls.Gen8)}).admitted(t)
	try := func(n int) {
		for range n {
			if _, err := w.service.GetAppKey(ctx, &kmsv1.GetAppKeyRequest{}); err == nil || !strings.Contains(err.Error(), "Boot denied: no") {
				t.Fatalf("GetAppKey() = %v, want it denied", err)
			}
		}
	}
	try(300)
	if n := len(w.store.Records(t)); n != 256 || counters(t, w)["teekms_denials_unrecorded_total"] != 44 {
		t.Errorf("%d records, counters %v, want 256 and 44 without", n, counters(t, w))
	}
	clk.turn(2 * time.Second)
	try(50)
	if n := len(w.store.Records(t)); n != 256+32 {
		t.Errorf("%d records two seconds later, want 288", n)
	}
}

// TestWorkloadCannotSpoilItsRecord holds that what a workload measures of itself,
// however odd, is recorded, so that it has its key and its record or neither.
func TestWorkloadCannotSpoilItsRecord(t *testing.T) {
	w := newWorld(t)
	long := fill(15<<10, 1)
	m := simtd.Measurements{Runtime: []simtd.RuntimeEvent{{Name: "app-id", Payload: fill(20, 2)}, {Name: "compose-hash", Payload: long}}}
	getAppKey(certificate(t, w.workload(t, m), ratls.Gen8), &kmsv1.GetAppKeyRequest{})(t, w, "grpc").expect(t, "grpc", outcome{})
	want := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(hex.EncodeToString(long))))
	if got := w.store.Records(t)[0].Fields["compose_hash"]; got != want {
		t.Errorf("compose_hash = %.80s, want %s", got, want)
	}
}
