package ratls_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/keys"
	"teekms/internal/ratls"
)

// dial shakes hands with s as cfg says.
func dial(t testing.TB, s *server, cfg ratls.ClientConfig) error {
	t.Helper()
	c, err := ratls.ClientTLS(cfg)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := (&tls.Dialer{Config: c}).DialContext(t.Context(), "tcp", s.addr)
	if err == nil {
		_ = conn.Close()
	}
	return err
}

func wantRefusal(t testing.TB, s *server, cfg ratls.ClientConfig, want string) {
	t.Helper()
	if err := dial(t, s, cfg); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("Dial() = %v, want %q", err, want)
	}
}

func TestClientKnowsItsServer(t *testing.T) {
	td, appTD := openTD(t, simtd.Config{}), openTD(t, simtd.Config{})
	k := newKMS(t)
	cert := newCertificate(t, ratls.ClientCertConfig{Attester: appTD})
	for gen, name := range map[ratls.Generation]string{ratls.Gen8: "8", ratls.Gen1: "1"} {
		t.Run("generation "+name, func(t *testing.T) {
			rpc := k.rpc(t, newKey(t), td, gen)
			s := serve(t, ratls.ServerConfig{
				Appraiser:    appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierOf(t, appTD)}),
				Certificates: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &rpc, nil },
			}, false)
			var seen *ratls.Attested
			cfg, err := ratls.ClientTLS(ratls.ClientConfig{
				Roots: k.pool(), ServerName: "kms.test", Usage: keys.UsageRPC, RequireEvidence: true,
				Appraiser:   appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierOf(t, td)}),
				Appraise:    func(_ context.Context, p *ratls.Attested) error { seen = p; return nil },
				Certificate: cert,
			})
			if err != nil {
				t.Fatal(err)
			}
			c := s.clientWith(t, cfg)
			c.want(t, appText(appTD))
			if seen == nil || seen.Claims.MRTD != td.Measurements().MRTD || string(seen.PublicKey) != string(rpc.Leaf.RawSubjectPublicKeyInfo) {
				t.Errorf("policy saw %+v, want the server's trust domain and key", seen)
			}
		})
	}
}

func TestClientRefuses(t *testing.T) {
	td := openTD(t, simtd.Config{})
	k, other := newKMS(t), newKMS(t)
	key := newKey(t)
	with, without := k.rpc(t, key, td, 0), k.rpc(t, key, nil, 0)
	app := craft(t, newKey(t), keys.Extension(keys.ArcUsage, []byte("app:custom")))
	bare := craft(t, newKey(t))
	a := appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierOf(t, td)})
	pin := func(c *tls.Certificate) []byte {
		leaf := parse(t)(c.Certificate[0], nil)
		return leaf.RawSubjectPublicKeyInfo
	}
	deny := func(context.Context, *ratls.Attested) error { return errDenied }
	long := with
	for range 8 {
		long.Certificate = append(long.Certificate[:len(long.Certificate):len(long.Certificate)], with.Certificate[0])
	}
	tests := []struct {
		name string
		cert *tls.Certificate
		cfg  ratls.ClientConfig
		want string
	}{
		{"other root", &with, ratls.ClientConfig{Roots: other.pool()}, "verifying the server's certificate: x509: certificate signed by unknown authority"},
		{"expired certificate", &with, ratls.ClientConfig{Roots: k.pool(), Now: func() time.Time { return time.Now().AddDate(1, 0, 0) }}, "verifying the server's certificate: x509: certificate has expired"},
		{"other name", &with, ratls.ClientConfig{Roots: k.pool(), ServerName: "other.test"}, "verifying the server's certificate: x509: certificate is valid for kms.test, not other.test"},
		{"other key", &with, ratls.ClientConfig{PinnedKey: pin(bare)}, "server has another key than the pinned one"},
		{"other usage", app, ratls.ClientConfig{PinnedKey: pin(app), Usage: keys.UsageRPC}, `server's certificate has special usage "app:custom", want kms:rpc`},
		{"no usage", bare, ratls.ClientConfig{PinnedKey: pin(bare), Usage: keys.UsageRPC}, "server's certificate has no special usage, want kms:rpc"},
		{"no Evidence", &without, ratls.ClientConfig{Roots: k.pool(), RequireEvidence: true}, "appraising the server: certificate does not contain attestation"},
		{"denied by policy", &with, ratls.ClientConfig{Roots: k.pool(), Appraise: deny}, "appraising the server: denied"},
		{"nine certificates", &long, ratls.ClientConfig{Roots: k.pool()}, "server presented a chain of 9 certificates, want at most 8"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, ratls.ServerConfig{Appraiser: a, Certificates: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return tt.cert, nil }}, false)
			tt.cfg.Appraiser = a
			wantRefusal(t, s, tt.cfg, tt.want)
		})
	}
	t.Run("none of these", func(t *testing.T) {
		s := serve(t, ratls.ServerConfig{Appraiser: a, Certificates: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &without, nil }}, false)
		if err := dial(t, s, ratls.ClientConfig{Roots: k.pool(), PinnedKey: pin(&without), Usage: keys.UsageRPC, Appraiser: a, Appraise: deny}); err != nil {
			t.Errorf("Dial() = %v, want none: there is no Evidence to judge", err)
		}
	})
}

// A client has no cache of sessions, so every connection is appraised.
func TestClientAppraisesEveryConnection(t *testing.T) {
	td := openTD(t, simtd.Config{})
	v := verifierOf(t, td)
	k := newKMS(t)
	rpc := k.rpc(t, newKey(t), td, 0)
	s := serve(t, ratls.ServerConfig{
		Appraiser:    appraiserOf(t, ratls.AppraiserConfig{Verifier: v}),
		Certificates: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &rpc, nil },
	}, false)
	cfg := ratls.ClientConfig{Roots: k.pool(), Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: v})}
	for range 3 {
		if err := dial(t, s, cfg); err != nil {
			t.Fatal(err)
		}
	}
	if n := v.calls.Load(); n != 3 {
		t.Errorf("%d verifications, want 3", n)
	}
}

func TestAppraisalOfAServerHasADeadline(t *testing.T) {
	td := openTD(t, simtd.Config{})
	v := verifierOf(t, td)
	v.before = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	k := newKMS(t)
	rpc := k.rpc(t, newKey(t), td, 0)
	a := appraiserOf(t, ratls.AppraiserConfig{Verifier: v})
	s := serve(t, ratls.ServerConfig{Appraiser: a, Certificates: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &rpc, nil }}, false)
	if err := dial(t, s, ratls.ClientConfig{Roots: k.pool(), Appraiser: a, Timeout: time.Millisecond}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial() = %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestClientMustNameAServer(t *testing.T) {
	a := appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierOf(t, openTD(t, simtd.Config{}))})
	accept := func(context.Context, *ratls.Attested) error { return nil }
	tests := []struct {
		name string
		cfg  ratls.ClientConfig
		want string
	}{
		{"no appraiser", ratls.ClientConfig{Roots: x509.NewCertPool()}, "no appraiser"},
		{"nothing", ratls.ClientConfig{Appraiser: a}, "neither roots"},
		{"Evidence without a policy", ratls.ClientConfig{Appraiser: a, RequireEvidence: true}, "neither roots"},
		{"policy without required Evidence", ratls.ClientConfig{Appraiser: a, Appraise: accept}, "neither roots"},
		{"name without roots", ratls.ClientConfig{Appraiser: a, ServerName: "x", RequireEvidence: true, Appraise: accept}, "a server name means nothing without roots"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := ratls.ClientTLS(tt.cfg); err == nil || !strings.HasPrefix(err.Error(), "making an RA-TLS client: "+tt.want) {
				t.Errorf("ClientTLS() = %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := ratls.ClientTLS(ratls.ClientConfig{Appraiser: a, RequireEvidence: true, Appraise: accept}); err != nil {
		t.Errorf("ClientTLS(Evidence with a policy) = %v", err)
	}
}

func TestNewCertificate(t *testing.T) {
	td := openTD(t, simtd.Config{})
	k := newKMS(t)
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	key := newKey(t)
	cert := newCertificate(t, ratls.ClientCertConfig{Attester: td, Key: key, CommonName: "name", Issuer: &k.temp, Now: func() time.Time { return now }})
	leaf := cert.Leaf
	if got := fmt.Sprint(leaf.Subject, " by ", leaf.Issuer, leaf.IsCA, leaf.BasicConstraintsValid, leaf.ExtKeyUsage, leaf.DNSNames); got != "CN=name by CN=Dstack Client Temp CA,O=Dstack false false [] []" {
		t.Errorf("certificate = %s", got)
	}
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature || !leaf.NotBefore.Equal(now.Add(-time.Hour)) || !leaf.NotAfter.Equal(now.AddDate(0, 0, 30)) {
		t.Errorf("usage %v from %v to %v", leaf.KeyUsage, leaf.NotBefore, leaf.NotAfter)
	}
	if err := leaf.CheckSignatureFrom(k.temp.Certificate); err != nil {
		t.Errorf("CheckSignatureFrom(temporary CA) = %v", err)
	}
	self := newCertificate(t, ratls.ClientCertConfig{Attester: td})
	if self.Leaf.Subject.CommonName != "RA-TLS TEMP Cert" || key.PublicKey.Equal(self.Leaf.PublicKey) {
		t.Errorf("self-signed certificate is %v over the same key", self.Leaf.Subject)
	}
	if err := self.Leaf.CheckSignature(self.Leaf.SignatureAlgorithm, self.Leaf.RawTBSCertificate, self.Leaf.Signature); err != nil {
		t.Errorf("CheckSignature(itself) = %v", err)
	}

	if _, err := ratls.NewCertificate(t.Context(), ratls.ClientCertConfig{}); err == nil || err.Error() != "making RA-TLS certificate: no attester" {
		t.Errorf("NewCertificate(nothing) = %v, want its refusal", err)
	}
	failing := attester(func(context.Context, attest.ReportData) (*attest.Evidence, error) { return nil, attest.ErrNoAttester })
	if _, err := ratls.NewCertificate(t.Context(), ratls.ClientCertConfig{Attester: failing}); !errors.Is(err, attest.ErrNoAttester) {
		t.Errorf("NewCertificate(no attester here) = %v, want %v", err, attest.ErrNoAttester)
	}
}
