package kms_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/rpc"
	"teekms/internal/serve"
	"teekms/services/kms"
)

// fill returns n bytes that depend on seed.
func fill(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)*7 + seed
	}
	return b
}

func sampleConfig() kms.Config {
	return kms.Config{
		RootCertificate: []byte("-----BEGIN CERTIFICATE-----\n" + strings.Repeat("MIIB", 150) + "\n-----END CERTIFICATE-----\n"),
		K256Public:      append([]byte{2}, fill(32, 1)...),
		Bootstrap: &onboardv1.BootstrapResponse{
			CaPubkey: fill(91, 2), K256Pubkey: fill(33, 3), Quote: fill(600, 4), Eventlog: []byte(`[{"imr":0}]`),
		},
		Facts:            kms.DevFacts("any"),
		TrustRootSHA256:  fill(32, 5),
		InsecureSettings: []string{"core.auth_api.type = dev"},
	}
}

func newService(tb testing.TB, c kms.Config) *kms.Service {
	tb.Helper()
	s, err := kms.New(c)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func newMux(tb testing.TB, s *kms.Service) http.Handler {
	tb.Helper()
	return newLoggedMux(tb, s, zap.NewNop())
}

func newLoggedMux(tb testing.TB, s *kms.Service, log *zap.Logger) http.Handler {
	tb.Helper()
	chain, err := rpc.New(rpc.Config{
		Log: log, Access: kms.Access(), Errors: kms.Errors(), Registry: prometheus.NewRegistry(),
	})
	if err != nil {
		tb.Fatal(err)
	}
	h, err := serve.NewMux(serve.MuxConfig{
		Service: s.RPC(), Chain: chain, Header: map[string]string{"X-App-Version": "v0.0.0 (git:test)"},
	})
	if err != nil {
		tb.Fatal(err)
	}
	return h
}

// start serves h on the loopback until the test ends and returns the address.
func start(tb testing.TB, h http.Handler, config *tls.Config) string {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l, err := serve.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- serve.Run(ctx, serve.Config{Listener: l, Handler: h, TLS: config, Log: zap.NewNop()})
	}()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("Run = %v, want nil", err)
		}
	})
	return l.Addr().String()
}

// newTLS returns a server's configuration and a client's that trusts it.
func newTLS(tb testing.TB) (server, client *tls.Config) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kms.localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"kms.localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	var holder serve.Certificate
	holder.Set(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf})
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return holder.TLSConfig(), &tls.Config{RootCAs: roots, ServerName: "kms.localhost", MinVersion: tls.VersionTLS13}
}
