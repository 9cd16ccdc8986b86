package rpc

import (
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
)

// otherProcedure is the label of requests that reached no procedure: the path
// is the caller's, and a label must not be.
const otherProcedure = "other"

// metrics counts calls. A nil *metrics counts nothing.
type metrics struct {
	byProcedure map[string]*procedureMetrics
}

// procedureMetrics holds the series of one procedure, looked up once.
type procedureMetrics struct {
	calls   [connect.CodeUnauthenticated + 1]prometheus.Counter
	seconds prometheus.Observer
}

func newMetrics(reg prometheus.Registerer, access Access) (*metrics, error) {
	if reg == nil {
		return nil, nil
	}
	calls := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "teekms_rpc_requests_total", Help: "Requests, by procedure and outcome.",
	}, []string{"procedure", "code"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "teekms_rpc_duration_seconds", Help: "Time from the request's headers to the end of its answer.",
		Buckets: []float64{.0001, .0005, .001, .005, .01, .05, .1, .5, 1, 5, 30},
	}, []string{"procedure"})
	calls, err := register(reg, calls)
	if err != nil {
		return nil, err
	}
	if seconds, err = register(reg, seconds); err != nil {
		return nil, err
	}
	m := &metrics{byProcedure: make(map[string]*procedureMetrics, len(access)+1)}
	for procedure := range access {
		m.byProcedure[procedure] = newProcedureMetrics(calls, seconds, procedure)
	}
	m.byProcedure[otherProcedure] = newProcedureMetrics(calls, seconds, otherProcedure)
	return m, nil
}

// register registers c, or returns the collector of the same name that another
// listener's chain has registered before.
func register[C prometheus.Collector](reg prometheus.Registerer, c C) (C, error) {
	err := reg.Register(c)
	if err == nil {
		return c, nil
	}
	if already, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		if existing, ok := already.ExistingCollector.(C); ok {
			return existing, nil
		}
	}
	return c, fmt.Errorf("registering metrics: %w", err)
}

func newProcedureMetrics(calls *prometheus.CounterVec, seconds *prometheus.HistogramVec, procedure string) *procedureMetrics {
	p := &procedureMetrics{seconds: seconds.WithLabelValues(procedure)}
	for code := range p.calls {
		p.calls[code] = calls.WithLabelValues(procedure, codeName(connect.Code(code), code != 0))
	}
	return p
}

func (m *metrics) observe(call *call, failed bool, took time.Duration) {
	if m == nil {
		return
	}
	p, ok := m.byProcedure[call.procedure]
	if !ok {
		p = m.byProcedure[otherProcedure]
	}
	code := call.code
	if failed && (code == 0 || int(code) >= len(p.calls)) {
		code = connect.CodeUnknown
	}
	p.calls[code].Inc()
	p.seconds.Observe(took.Seconds())
}
