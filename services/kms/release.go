package kms

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"teekms/gen/kms/v1/kmsv1connect"
	"teekms/internal/audit"
	"teekms/internal/authz"
	"teekms/internal/rpc"
)

// event is a release: what leaves this KMS, to whom, and what allowed it.
type event struct {
	kind audit.Kind
	*grant
	// certificate is the leaf that leaves; nil where it is something else.
	certificate *x509.Certificate
}

// unrecorded refuses what could not be recorded.
const unrecorded = "audit log unavailable: nothing was released"

// release is called when everything is decided, and before any of it is
// answered. It is the one way out: it returns when the release is recorded,
// durably, and if it fails, nothing leaves.
func (s *Service) release(ctx context.Context, e event) error {
	if err := ctx.Err(); err != nil {
		return err // nobody would get the answer
	}
	fields := bootFields(e.subject, &e.info)
	fields["os_image_by"] = e.image.By
	fields["gateway_app_id"] = recordable(e.decision.GatewayAppID)
	fields["request_id"] = recordable(rpc.RequestID(ctx))
	if e.certificate != nil {
		certificateFields(fields, e.certificate)
	}
	receipt, err := s.audit.Append(ctx, audit.Event{Kind: e.kind, Fields: fields})
	if err != nil {
		return &refusal{code: connect.CodeUnavailable, text: unrecorded, cause: err}
	}
	line := []zap.Field{
		zap.String("kind", string(e.kind)),
		zap.Stringer("subject", e.subject),
		zap.Uint64("audit_seq", receipt.Seq),
	}
	for _, name := range []string{"app_id", "instance_id", "compose_hash", "os_image_hash", "os_image_by", "tcb_status", "request_id"} {
		line = append(line, zap.String(name, fields[name]))
	}
	if e.certificate != nil {
		line = append(line, zap.String("serial", fields["serial"]))
	}
	s.log.Info("released", line...)
	s.metrics.count(e)
	return nil
}

// bootFields are what the audit log keeps of a workload, under the names of
// docs/audit.md#fields.
func bootFields(subject authz.Subject, info *authz.BootInfo) map[string]string {
	fields := make(map[string]string, 16)
	fields["subject"] = subject.String()
	fields["app_id"] = hex.EncodeToString(info.AppID)
	fields["instance_id"] = recordable(hex.EncodeToString(info.InstanceID))
	fields["compose_hash"] = recordable(hex.EncodeToString(info.ComposeHash))
	fields["os_image_hash"] = recordable(hex.EncodeToString(info.OSImageHash))
	fields["mr_aggregated"] = hex.EncodeToString(info.MRAggregated[:])
	fields["device_id"] = hex.EncodeToString(info.DeviceID[:])
	fields["tcb_status"] = recordable(info.TCBStatus)
	fields["advisory_ids"] = recordable(strings.Join(info.AdvisoryIDs, ","))
	return fields
}

// certificateFields are what the audit log keeps of a certificate.
func certificateFields(fields map[string]string, c *x509.Certificate) {
	digest := sha256.Sum256(c.Raw)
	names := c.DNSNames
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	fields["serial"] = c.SerialNumber.Text(16)
	fields["certificate_sha256"] = hex.EncodeToString(digest[:])
	fields["common_name"] = recordable(c.Subject.CommonName)
	fields["names"] = recordable(strings.Join(names, ","))
	fields["not_before"] = c.NotBefore.UTC().Format(time.RFC3339)
	fields["not_after"] = c.NotAfter.UTC().Format(time.RFC3339)
}

// CertificateRecord is what the audit log keeps of a certificate that the KMS
// issues to itself, and why it did: "start" or "renewal".
func CertificateRecord(c *x509.Certificate, reason string) audit.Event {
	fields := map[string]string{"reason": reason}
	certificateFields(fields, c)
	return audit.Event{Kind: audit.RPCCertificate, Fields: fields}
}

// maxRecorded is the most bytes of a value in the audit log; all that existing
// guests measure is far smaller.
const maxRecorded = 20 << 10

// recordable is a value as the audit log keeps it: what a workload says of
// itself must not be able to keep its own record from being written.
func recordable(value string) string {
	if len(value) > maxRecorded {
		digest := sha256.Sum256([]byte(value))
		return fmt.Sprintf("sha256:%x", digest)
	}
	return strings.ToValidUTF8(value, "\uFFFD")
}

// metrics are the counters of the service. A nil *metrics counts nothing.
type metrics struct {
	releases           *prometheus.CounterVec
	unrecordedDenials  prometheus.Counter
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
		unrecordedDenials: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "teekms_denials_unrecorded_total", Help: "Denials that were logged but not recorded in the audit log: it failed, or there were too many.",
		}),
		requests: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "dstack_kms_attestation_requests_total", Help: "Calls of GetAppKey, GetKmsKey and SignCert.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "dstack_kms_attestation_failures_total", Help: "Calls of GetAppKey, GetKmsKey and SignCert that failed.",
		}),
	}
	for _, c := range []prometheus.Collector{m.releases, m.unrecordedDenials, m.requests, m.failures} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registering metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) count(e event) {
	if m != nil {
		m.releases.WithLabelValues(string(e.kind), e.image.By).Inc()
	}
}

func (m *metrics) unrecorded() {
	if m != nil {
		m.unrecordedDenials.Inc()
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
