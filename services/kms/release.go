package kms

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"teekms/gen/kms/v1/kmsv1connect"
	"teekms/internal/rpc"
)

// The kinds of release.
const (
	releaseAppKey      = "app_key"
	releaseRootKeys    = "root_keys"
	releaseCertificate = "certificate"
)

// event is a release: what leaves this KMS, to whom, and what allowed it.
type event struct {
	kind string
	*grant
	// serial is the serial number of a certificate, in hexadecimal.
	serial string
}

// release is called when everything is decided and made, and before any of it
// is answered. It is the one way out: if it fails, nothing leaves.
func (s *Service) release(ctx context.Context, e event) error {
	if err := ctx.Err(); err != nil {
		return err // nobody would get the answer
	}
	fields := []zap.Field{
		zap.String("kind", e.kind),
		zap.Stringer("subject", e.subject),
		zap.String("app_id", hex.EncodeToString(e.info.AppID)),
		zap.String("instance_id", hex.EncodeToString(e.info.InstanceID)),
		zap.String("compose_hash", hex.EncodeToString(e.info.ComposeHash)),
		zap.String("os_image_hash", hex.EncodeToString(e.info.OSImageHash)),
		zap.String("os_image_by", e.image.By),
		zap.String("tcb_status", e.info.TCBStatus),
		zap.String("request_id", rpc.RequestID(ctx)),
	}
	if e.serial != "" {
		fields = append(fields, zap.String("serial", e.serial))
	}
	s.log.Info("released", fields...)
	s.metrics.count(e)
	return nil
}

// metrics are the counters of the service. A nil *metrics counts nothing.
type metrics struct {
	releases           *prometheus.CounterVec
	requests, failures prometheus.Counter
}

// newMetrics registers the counters. The two that count attestations are named
// as dashboards of existing KMSs know them.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	if reg == nil {
		return nil, nil //nolint:nilnil // nil counts nothing
	}
	m := &metrics{
		releases: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "teekms_releases_total", Help: "Releases of keys and certificates, by kind and by what verified the OS image.",
		}, []string{"kind", "os_image_by"}),
		requests: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "dstack_kms_attestation_requests_total", Help: "Calls of GetAppKey, GetKmsKey and SignCert.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "dstack_kms_attestation_failures_total", Help: "Calls of GetAppKey, GetKmsKey and SignCert that failed.",
		}),
	}
	for _, c := range []prometheus.Collector{m.releases, m.requests, m.failures} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) count(e event) {
	if m != nil {
		m.releases.WithLabelValues(e.kind, e.image.By).Inc()
	}
}

// Observe counts the calls that need an attested caller, whatever became of
// them; it is rpc.Config.Observe.
func (s *Service) Observe(procedure string, failed bool) {
	if s.metrics == nil {
		return
	}
	switch procedure {
	case kmsv1connect.KMSGetAppKeyProcedure, kmsv1connect.KMSGetKmsKeyProcedure, kmsv1connect.KMSSignCertProcedure,
		kmsv1connect.AdminGetKmsKeyProcedure:
		s.metrics.requests.Inc()
		if failed {
			s.metrics.failures.Inc()
		}
	}
}
