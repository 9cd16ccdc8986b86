package observe

import (
	"encoding/hex"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// Build is what the running binary was made of.
type Build struct {
	// Version is the release, Revision the commit.
	Version, Revision string
}

// NewRegistry returns a registry with the metrics of the Go runtime and of the
// process, and teekms_build_info.
func NewRegistry(b Build) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "teekms_build_info",
		Help: "Always 1; the labels say what is running.",
		ConstLabels: prometheus.Labels{
			"version": b.Version, "revision": b.Revision, "go_version": runtime.Version(),
		},
	})
	info.Set(1)
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		info,
	)
	return reg
}

// RegisterCertificate adds teekms_certificate_not_after_seconds, the Unix time
// at which a certificate expires, under the label certificate. notAfter is
// called at every scrape; a zero time is reported as 0. It errors when the name
// is registered already.
func RegisterCertificate(reg prometheus.Registerer, name string, notAfter func() time.Time) error {
	return reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "teekms_certificate_not_after_seconds",
		Help:        "Unix time at which the certificate expires.",
		ConstLabels: prometheus.Labels{"certificate": name},
	}, func() float64 {
		t := notAfter()
		if t.IsZero() {
			return 0
		}
		return float64(t.Unix())
	}))
}

// RegisterTrustRoot adds teekms_trust_root_info, whose labels name the trust
// anchor that Evidence is verified against: the SHA-256 of its DER, and whether
// it is the vendor's own.
func RegisterTrustRoot(reg prometheus.Registerer, sha256 [32]byte, vendor bool) error {
	external := "true"
	if vendor {
		external = "false"
	}
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "teekms_trust_root_info",
		Help:        "Always 1; the labels name the trust anchor of Evidence.",
		ConstLabels: prometheus.Labels{"sha256": hex.EncodeToString(sha256[:]), "external": external},
	})
	g.Set(1)
	return reg.Register(g)
}
