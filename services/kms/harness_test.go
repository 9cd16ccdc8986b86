package kms_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"net/http"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/audit/audittest"
	"teekms/internal/authz"
	"teekms/internal/keys"
	"teekms/internal/osimage"
	"teekms/internal/ratls"
	"teekms/internal/rpc"
	"teekms/internal/serve"
	"teekms/services/kms"
)

const domain = "kms.localhost"

// fill returns n bytes that depend on seed.
func fill(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)*7 + seed
	}
	return b
}

func unhex(tb testing.TB, text string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// The root keys of the known-answer vectors (docs/wire.md#derivation).
const (
	vectorCA   = "f57527cea4ab7ffb49af99b158cdc0e3ec06398f528349ea236b7d2afe19cec1"
	vectorK256 = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"
)

// authority is an authority of which tests choose the answers.
type authority struct {
	mu    sync.Mutex
	asked []authz.Request
	// decide answers; nil allows everything.
	decide func(authz.Request) (authz.Decision, error)
	facts  func() (authz.Facts, error)
}

func (a *authority) Authorize(_ context.Context, r authz.Request) (authz.Decision, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, r)
	if a.decide == nil {
		return authz.Decision{Allowed: true, GatewayAppID: "gateway-1"}, nil
	}
	return a.decide(r)
}

func (a *authority) Facts(context.Context) (authz.Facts, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.facts == nil {
		return authz.Facts{Dev: true, GatewayAppID: "any"}, nil
	}
	return a.facts()
}

// set changes the answers.
func (a *authority) set(decide func(authz.Request) (authz.Decision, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.decide, a.asked = decide, nil
}

func (a *authority) setFacts(facts authz.Facts, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.facts = func() (authz.Facts, error) { return facts, err }
}

// requests are those since the last set.
func (a *authority) requests() []authz.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]authz.Request{}, a.asked...)
}

// deny refuses one kind of subject with a reason.
func deny(subject authz.Subject, reason string) func(authz.Request) (authz.Decision, error) {
	return func(r authz.Request) (authz.Decision, error) {
		if r.Subject == subject {
			return authz.Decision{Reason: reason}, nil
		}
		return authz.Decision{Allowed: true}, nil
	}
}

// images is a verifier of OS images of which tests choose the answer.
type images struct {
	mu    sync.Mutex
	asked []osimage.Subject
	err   error
}

func (i *images) Verify(_ context.Context, s osimage.Subject) (osimage.Result, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked = append(i.asked, s)
	return osimage.Result{By: osimage.ByAllowlist}, i.err
}

func (i *images) set(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked, i.err = nil, err
}

// world is a KMS on TLS, the authority it asks, and the platform whose quotes
// it trusts.
type world struct {
	platform  *simtd.TD
	dir       string
	roots     *keys.Roots
	root      *x509.Certificate
	config    kms.Config
	authority *authority
	images    *images
	appraiser *ratls.Appraiser
	limit     *ratls.Limiter
	registry  *prometheus.Registry
	store     *audittest.Store
	service   *kms.Service
	url, addr string
}

// platform makes a machine that can host software trust domains.
func platform(tb testing.TB) (td *simtd.TD, dir string) {
	tb.Helper()
	dir = tb.TempDir()
	td, err := simtd.Open(simtd.Config{Dir: dir})
	if err != nil {
		tb.Fatal(err)
	}
	return td, dir
}

func newAppraiser(tb testing.TB, td *simtd.TD, limit *ratls.Limiter) *ratls.Appraiser {
	tb.Helper()
	verifier, err := tdx.NewVerifier(tdx.Config{TrustAnchor: td.Root(), Collateral: td})
	if err != nil {
		tb.Fatal(err)
	}
	c := ratls.AppraiserConfig{Verifier: verifier}
	if limit != nil {
		c.Limit = limit.Allow
	}
	a, err := ratls.NewAppraiser(c)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

// vectorRoots are the root keys of the vectors.
func vectorRoots(tb testing.TB) *keys.Roots {
	tb.Helper()
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), unhex(tb, vectorCA))
	if err != nil {
		tb.Fatal(err)
	}
	pem, err := keys.KeyPEM(key)
	if err != nil {
		tb.Fatal(err)
	}
	roots, err := keys.ParseRoots(pem.Bytes(), unhex(tb, vectorK256))
	if err != nil {
		tb.Fatal(err)
	}
	return roots
}

func serviceKeys(tb testing.TB, roots *keys.Roots) kms.Keys {
	tb.Helper()
	rootDER, err := keys.NewRootCA(roots, now())
	if err != nil {
		tb.Fatal(err)
	}
	temp, err := keys.NewKey()
	if err != nil {
		tb.Fatal(err)
	}
	tempDER, err := keys.NewTempCA(temp, now())
	if err != nil {
		tb.Fatal(err)
	}
	tempKey, err := keys.KeyPEM(temp)
	if err != nil {
		tb.Fatal(err)
	}
	return kms.Keys{
		Roots: roots, RootCertificate: keys.CertificatePEM(rootDER),
		TempCertificate: keys.CertificatePEM(tempDER), TempKey: tempKey, Domain: domain,
	}
}

// newWorld serves a KMS until the test ends; change may adjust its
// configuration.
func newWorld(tb testing.TB, change ...func(*world)) *world {
	tb.Helper()
	w := &world{authority: &authority{}, images: &images{}, registry: prometheus.NewRegistry(), store: audittest.NewStore(), roots: vectorRoots(tb)}
	w.platform, w.dir = platform(tb)
	w.config = kms.Config{
		Keys: serviceKeys(tb, w.roots),
		Bootstrap: &onboardv1.BootstrapResponse{
			CaPubkey: fill(91, 2), K256Pubkey: fill(33, 3), Quote: fill(600, 4), Eventlog: []byte(`[{"imr":0}]`),
		},
		Authorizer: w.authority, Images: w.images, Audit: audittest.NewLog(tb, w.store), KMSKeyRelease: kms.ReleasePublic,
		TrustRootSHA256: fill(32, 5), InsecureSettings: []string{"core.auth_api.type = dev"},
		Log: zap.NewNop(), Metrics: w.registry,
	}
	for _, f := range change {
		f(w)
	}
	root, err := keys.ParseCertificate(w.config.Keys.RootCertificate)
	if err != nil {
		tb.Fatal(err)
	}
	w.root = root
	w.appraiser = newAppraiser(tb, w.platform, w.limit)
	w.config.Appraiser = w.appraiser
	if w.service, err = kms.New(w.config); err != nil {
		tb.Fatal(err)
	}
	w.serve(tb)
	return w
}

// serve opens the listener of the KMS service.
func (w *world) serve(tb testing.TB) {
	tb.Helper()
	certificate := w.rpcCertificate(tb)
	server, err := ratls.NewServer(ratls.ServerConfig{
		Appraiser:    w.appraiser,
		Certificates: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &certificate, nil },
	})
	if err != nil {
		tb.Fatal(err)
	}
	chain, err := rpc.New(rpc.Config{
		Log: w.config.Log, Access: kms.Access(), Errors: kms.Errors(), Registry: w.registry,
		Admit: server.Admit, Observe: w.service.Observe,
	})
	if err != nil {
		tb.Fatal(err)
	}
	h, err := serve.NewMux(serve.MuxConfig{
		Service: w.service.RPC(), Chain: chain, Header: map[string]string{"X-App-Version": "v0.0.0 (git:test)"},
	})
	if err != nil {
		tb.Fatal(err)
	}
	w.addr = start(tb, h, func(c *serve.Config) { c.TLS, c.ConnContext = server.TLSConfig(), server.ConnContext })
	w.url = "https://" + w.addr
}

func (w *world) rpcCertificate(tb testing.TB) tls.Certificate {
	tb.Helper()
	key, err := keys.NewKey()
	if err != nil {
		tb.Fatal(err)
	}
	der, err := keys.IssueRPC(keys.RPCRequest{Roots: w.roots, CA: w.root, Public: &key.PublicKey, Domain: domain, Now: now()})
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// clientTLS trusts the KMS by its root and shows it a certificate, if any.
func (w *world) clientTLS(certificate *tls.Certificate) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(w.root)
	c := &tls.Config{RootCAs: pool, ServerName: domain, MinVersion: tls.VersionTLS13}
	if certificate != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
	}
	return c
}

// client is an HTTP client for w, HTTP/2 where that is spoken.
func (w *world) client(tb testing.TB, certificate *tls.Certificate) *http.Client {
	tb.Helper()
	tr := &http.Transport{TLSClientConfig: w.clientTLS(certificate), ForceAttemptHTTP2: true}
	tb.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// workload opens another trust domain on the platform.
func (w *world) workload(tb testing.TB, m simtd.Measurements) *simtd.TD {
	tb.Helper()
	td, err := simtd.Open(simtd.Config{Dir: w.dir, Ephemeral: true, Measurements: m})
	if err != nil {
		tb.Fatal(err)
	}
	return td
}

// certificate makes an RA-TLS certificate of a workload.
func certificate(tb testing.TB, td *simtd.TD, generation ratls.Generation) *tls.Certificate {
	tb.Helper()
	c, err := ratls.NewCertificate(tb.Context(), ratls.ClientCertConfig{Attester: td, Generation: generation})
	if err != nil {
		tb.Fatal(err)
	}
	return &c
}

// attested is a client of w that shows the Evidence of a workload.
func (w *world) attested(tb testing.TB, m simtd.Measurements) *http.Client {
	tb.Helper()
	return w.client(tb, certificate(tb, w.workload(tb, m), ratls.Gen8))
}

// start serves h on the loopback until the test ends and returns the address.
func start(tb testing.TB, h http.Handler, change func(*serve.Config)) string {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l, err := serve.Listen(ctx, "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	c := serve.Config{Listener: l, Handler: h, Log: zap.NewNop()}
	if change != nil {
		change(&c)
	}
	done := make(chan error, 1)
	go func() { done <- serve.Run(ctx, c) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("Run = %v, want nil", err)
		}
	})
	return l.Addr().String()
}
