package audit

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of a log. A nil *metrics counts nothing.
type metrics struct {
	appends, failures prometheus.Counter
	batch, seconds    prometheus.Histogram
	records           prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	if reg == nil {
		return nil, nil //nolint:nilnil // nil counts nothing
	}
	m := &metrics{
		appends:  prometheus.NewCounter(prometheus.CounterOpts{Name: "teekms_audit_appends_total", Help: "Records that are durable in the audit log."}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "teekms_audit_failures_total", Help: "Events that could not be recorded, so that nothing was released."}),
		batch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "teekms_audit_batch_size", Help: "Records in one transaction.", Buckets: prometheus.ExponentialBuckets(1, 2, 9),
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "teekms_audit_append_seconds", Help: "Time until a record is durable.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
		records: prometheus.NewGauge(prometheus.GaugeOpts{Name: "teekms_audit_records", Help: "Records in the audit log, as last seen when writing."}),
	}
	for _, c := range []prometheus.Collector{m.appends, m.failures, m.batch, m.seconds, m.records} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) appended(took time.Duration) {
	if m != nil {
		m.appends.Inc()
		m.seconds.Observe(took.Seconds())
	}
}

func (m *metrics) failed() {
	if m != nil {
		m.failures.Inc()
	}
}

func (m *metrics) committed(records int, size uint64) {
	if m != nil {
		m.batch.Observe(float64(records))
		m.records.Set(float64(size))
	}
}
