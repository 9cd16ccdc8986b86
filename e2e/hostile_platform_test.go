package e2e

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/simtd"
)

// TestHostilePlatforms has a KMS that takes its collateral from a service, which
// says that the platform of the caller is not to be believed any more.
func TestHostilePlatforms(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		says simtd.Endorsements
		want string
	}{
		{"a revoked platform", simtd.Endorsements{RevokePCK: true}, "invalid quote: revocation"},
		{"a revoked authority", simtd.Endorsements{RevokePCKCA: true}, "invalid quote: revocation"},
		{"a revoked TCB", simtd.Endorsements{Platform: simtd.Level{Status: attest.Revoked}}, "invalid quote: TCB status"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			k := newKMS(t, "", devAuthority)
			k.fill(t, exampleDomain)
			td := k.openTD(t)
			if err := td.SetEndorsements(tt.says); err != nil {
				t.Fatal(err)
			}
			service := httptest.NewServer(td.Handler())
			t.Cleanup(service.Close)
			_, plain := k.serve(t, exampleDomain, "DSTACK_KMS_CORE_PCCS_URL="+service.URL)
			resp, err := k.workload(t, td).Post(k.URL("https")+"/prpc/GetAppKey?json", "application/json", strings.NewReader(`{"api_version":1}`))
			if err != nil {
				t.Fatal(err)
			}
			if a := read(t, resp); a.StatusCode != http.StatusBadRequest || !strings.Contains(a.body, tt.want) {
				t.Errorf("GetAppKey = %d %s, want 400 with %q", a.StatusCode, a.body, tt.want)
			}
			if a := get(t, plain, k.URL("https")+"/prpc/GetMeta"); a.StatusCode != http.StatusOK {
				t.Errorf("GetMeta by another = %d, want 200", a.StatusCode)
			}
		})
	}
}

// TestEventsOfTheSecondForm are no fault: newer guests extend digests of another
// form, which only the newer encoding of Evidence can tell.
func TestEventsOfTheSecondForm(t *testing.T) {
	t.Parallel()
	k := newHostileKMS(t)
	td := k.another(t, simtd.Measurements{})
	event := eventlog.Event{IMR: eventlog.RuntimeIMR, Type: eventlog.RuntimeEventType, Name: "gpu-policy-hash", Payload: []byte{1, 2}, Version: 2}
	if err := td.ExtendEvent(event); err != nil {
		t.Fatal(err)
	}
	if a := k.call(t, k.workload(t, td), "GetAppKey", `{"api_version":1,"vm_config":"{}"}`); a.StatusCode != http.StatusOK {
		t.Errorf("GetAppKey = %d %s, want 200", a.StatusCode, a.body)
	}
}

// TestTooManyAppraisals opens more connections with Evidence than an address
// may: the last are refused before anything is verified, callers without Evidence
// are not, and the metric tells.
func TestTooManyAppraisals(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", devAuthority+"[core.limits]\nappraisals_per_second = 1\nappraisals_burst = 3\n")
	k.fill(t, exampleDomain)
	_, plain := k.serve(t, exampleDomain)
	td := k.openTD(t)
	const text = "too many attestations from this address: try again later"
	limited := 0
	for range 8 {
		resp, err := k.workload(t, td).Get(k.URL("https") + "/prpc/GetMeta")
		if err != nil {
			t.Fatal(err)
		}
		a := read(t, resp)
		switch {
		case a.StatusCode == http.StatusOK:
		case a.StatusCode == http.StatusBadRequest && strings.Contains(a.body, text):
			limited++
		default:
			t.Errorf("GetMeta = %d %s, want 200, or 400 with %q", a.StatusCode, a.body, text)
		}
	}
	if limited < 2 {
		t.Errorf("%d of 8 connections were limited, want most of those beyond 3", limited)
	}
	if a := get(t, plain, k.URL("https")+"/prpc/GetMeta"); a.StatusCode != http.StatusOK {
		t.Errorf("GetMeta without Evidence = %d %s, want 200", a.StatusCode, a.body)
	}
	metrics := get(t, plain, k.URL("https")+"/metrics").body
	if !strings.Contains(metrics, "\nteekms_appraisals_limited_total ") || strings.Contains(metrics, "\nteekms_appraisals_limited_total 0\n") {
		t.Error("teekms_appraisals_limited_total does not tell of it")
	}
}
