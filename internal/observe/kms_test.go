package observe_test

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"teekms/internal/observe"
)

// counted returns every series of a registry: counters and gauges by value,
// histograms by the number of observations.
func counted(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			got[family.GetName()+"{"+strings.Join(labels, ",")+"}"] =
				m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return got
}

func TestKMSCounts(t *testing.T) {
	reg := prometheus.NewRegistry()
	m, err := observe.NewKMS(reg)
	if err != nil {
		t.Fatal(err)
	}
	m.Appraisal("ok", time.Millisecond)
	m.Appraisal("report_data", time.Millisecond)
	m.Limited()
	m.Authorization("denied")
	m.Certificate("app")
	m.Certificate("app")
	got := counted(t, reg)
	for name, want := range map[string]float64{
		"teekms_appraisals_total{result=ok}":          1,
		"teekms_appraisals_total{result=report_data}": 1,
		"teekms_appraisal_duration_seconds{}":         2,
		"teekms_appraisals_limited_total{}":           1,
		"teekms_authorizations_total{result=denied}":  1,
		"teekms_certificates_issued_total{kind=app}":  2,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s = %v (%v), want %v", name, v, ok, want)
		}
	}
	if len(got) != 6 {
		t.Errorf("%d series, want 6: %v", len(got), got)
	}
	if _, err := observe.NewKMS(reg); err == nil {
		t.Error("NewKMS() twice = no error, want a refusal")
	}
}

func TestNilKMSCountsNothing(*testing.T) {
	var m *observe.KMS
	m.Appraisal("ok", 0)
	m.Limited()
	m.Authorization("allowed")
	m.Certificate("app")
}

func TestCollateralTellsAgeAndExpiry(t *testing.T) {
	reg := prometheus.NewRegistry()
	now := time.Unix(1_700_000_000, 0)
	held := []observe.Collateral{
		{FMSPC: "00806f050000", CA: "platform", Fetched: now.Add(-time.Minute), Expires: now.Add(time.Hour)},
		{FMSPC: "ffffffffffff", CA: "processor"}, // nothing was ever fetched
	}
	clock := func() time.Time { return now }
	if err := observe.RegisterCollateral(reg, func() []observe.Collateral { return held }, clock); err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{
		"teekms_collateral_age_seconds{ca=platform,fmspc=00806f050000}":       60,
		"teekms_collateral_not_after_seconds{ca=platform,fmspc=00806f050000}": 1_700_003_600,
	}
	got := counted(t, reg)
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s = %v, want %v", name, got[name], v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("series = %v, want %v", got, want)
	}
	now = now.Add(time.Minute)
	if v := counted(t, reg)["teekms_collateral_age_seconds{ca=platform,fmspc=00806f050000}"]; v != 120 {
		t.Errorf("age a minute later = %v, want 120", v)
	}
	if err := observe.RegisterCollateral(reg, nil, nil); err == nil {
		t.Error("RegisterCollateral() twice = no error, want a refusal")
	}
}
