package observe

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// KMS counts what goes on around the decisions of a KMS; what it releases, its
// service counts. Its methods may be called from several
// goroutines. A nil *KMS counts nothing.
type KMS struct {
	appraisals, authorizations, certificates *prometheus.CounterVec
	appraisalSeconds                         prometheus.Histogram
	limited                                  prometheus.Counter
}

// NewKMS registers the metrics of a KMS. It errors when they are registered
// already.
func NewKMS(reg prometheus.Registerer) (*KMS, error) {
	vector := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m := &KMS{
		appraisals: vector("teekms_appraisals_total", "Appraisals of Evidence, by result: ok, or what failed.", "result"),
		appraisalSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "teekms_appraisal_duration_seconds", Help: "Time of an appraisal, fetching of collateral included.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .05, .1, .5, 1, 5, 30},
		}),
		limited: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "teekms_appraisals_limited_total",
			Help: "Appraisals refused before any work because their address had too many.",
		}),
		authorizations: vector("teekms_authorizations_total",
			"Decisions of the authority, by result: allowed, denied, unreachable, malformed or canceled.", "result"),
		certificates: vector("teekms_certificates_issued_total", "Certificates that were issued, by kind.", "kind"),
	}
	for _, c := range []prometheus.Collector{
		m.appraisals, m.appraisalSeconds, m.limited, m.authorizations, m.certificates,
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics of the KMS: %w", err)
		}
	}
	return m, nil
}

// Appraisal counts an appraisal. result must be one of few words; took is how
// long it took.
func (m *KMS) Appraisal(result string, took time.Duration) {
	if m == nil {
		return
	}
	m.appraisals.WithLabelValues(result).Inc()
	m.appraisalSeconds.Observe(took.Seconds())
}

// Limited counts an appraisal that was refused before any work.
func (m *KMS) Limited() {
	if m != nil {
		m.limited.Inc()
	}
}

// Authorization counts a decision. result must be one of few words.
func (m *KMS) Authorization(result string) {
	if m != nil {
		m.authorizations.WithLabelValues(result).Inc()
	}
}

// Certificate counts a certificate that was issued, for example "app". kind must
// be one of few words.
func (m *KMS) Certificate(kind string) {
	if m != nil {
		m.certificates.WithLabelValues(kind).Inc()
	}
}

// Collateral is what is kept for one family of platforms.
type Collateral struct {
	// FMSPC (hex) and CA name the family.
	FMSPC, CA string
	// Fetched is when it was last fetched, Expires when it ends to be valid.
	Fetched, Expires time.Time
}

// collateral reports what held returns at every scrape.
type collateral struct {
	age, notAfter *prometheus.Desc
	held          func() []Collateral
	now           func() time.Time
}

// RegisterCollateral adds teekms_collateral_age_seconds and
// teekms_collateral_not_after_seconds, for every family of platforms that held
// returns with dates. held and now are called at every scrape. It errors when the
// names are registered already.
func RegisterCollateral(reg prometheus.Registerer, held func() []Collateral, now func() time.Time) error {
	labels := []string{"fmspc", "ca"}
	return reg.Register(&collateral{
		age: prometheus.NewDesc("teekms_collateral_age_seconds",
			"Time since collateral was last fetched.", labels, nil),
		notAfter: prometheus.NewDesc("teekms_collateral_not_after_seconds",
			"Unix time at which the collateral at hand expires.", labels, nil),
		held: held, now: now,
	})
}

// Describe implements prometheus.Collector.
func (c *collateral) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.age
	ch <- c.notAfter
}

// Collect implements prometheus.Collector.
func (c *collateral) Collect(ch chan<- prometheus.Metric) {
	now := c.now()
	for _, h := range c.held() {
		if h.Fetched.IsZero() || h.Expires.IsZero() {
			continue
		}
		ch <- prometheus.MustNewConstMetric(c.age, prometheus.GaugeValue, now.Sub(h.Fetched).Seconds(), h.FMSPC, h.CA)
		ch <- prometheus.MustNewConstMetric(c.notAfter, prometheus.GaugeValue, float64(h.Expires.Unix()), h.FMSPC, h.CA)
	}
}
