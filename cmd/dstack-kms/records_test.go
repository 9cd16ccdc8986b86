package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"teekms/internal/audit"
	"teekms/internal/keys"
	"teekms/internal/serve"
	"teekms/internal/storage"
	"teekms/internal/storage/storagetest/server"
)

// authority issues RPC certificates as a key directory does, without one.
type authority struct {
	roots  *keys.Roots
	ca     *x509.Certificate
	issued int
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	roots, err := keys.NewRoots()
	if err != nil {
		t.Fatal(err)
	}
	der, err := keys.NewRootCA(roots, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{roots: roots, ca: ca}
}

func (a *authority) issue(context.Context) (tls.Certificate, error) {
	a.issued++
	der, err := keys.IssueRPC(keys.RPCRequest{
		Roots: a.roots, CA: a.ca, Public: a.ca.PublicKey.(*ecdsa.PublicKey), Domain: "kms.example.com", Now: time.Now(),
	})
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, Leaf: leaf}, err
}

// openLog opens the audit log of the root keys in a database.
func (a *authority) openLog(t testing.TB, url string) *audit.Log {
	t.Helper()
	db, err := openDatabase(t.Context(), storage.Config{
		Type: storage.PostgreSQL, URL: keys.NewSecret([]byte(url)), Timeout: 10 * time.Second,
	}, a.roots, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	c, err := logConfig(db, a.roots, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	c.Timeout = time.Second
	log, err := audit.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(log.Close(context.Background()), db.Close()); err != nil {
			t.Error(err)
		}
	})
	return log
}

// certificates are the records of RPC certificates in a log, by the digest of the
// certificate.
func certificates(t testing.TB, log *audit.Log) []string {
	t.Helper()
	rows, _, err := log.Records(t.Context(), 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	var digests []string
	for _, row := range rows {
		r, err := audit.Parse(row.Body)
		if err != nil || r.Kind != audit.RPCCertificate || r.Fields["reason"] != "renewal" {
			t.Fatalf("record %d = %+v, %v, want a certificate and why", row.Seq, r, err)
		}
		digests = append(digests, r.Fields["certificate_sha256"])
	}
	return digests
}

func held(t testing.TB, c *serve.Certificate) string {
	t.Helper()
	cert, err := c.Get(nil)
	if err != nil {
		t.Fatal(err)
	}
	return fingerprint(cert.Certificate[0])
}

// TestRenewalIsRecordedFirst renews the certificate, then while the database is
// away, and then when it is back: none is held that is not in the log, and none
// that was issued is left out.
func TestRenewalIsRecordedFirst(t *testing.T) {
	s := servers.Own(t, server.PostgreSQL, server.Options{})
	a := newAuthority(t)
	log := a.openLog(t, s.URL(s.NewDatabase(t)))
	var certificate serve.Certificate
	renewal := recorded(serve.RenewConfig{Issue: a.issue, Log: zap.NewNop(), Now: time.Now}, log)
	if err := certificate.Renew(t.Context(), renewal); err != nil {
		t.Fatal(err)
	}
	first := held(t, &certificate)
	if diff := cmp.Diff([]string{first}, certificates(t, log)); diff != "" {
		t.Errorf("recorded (-want +got):\n%s", diff)
	}

	s.Kill()
	for range 2 {
		err := certificate.Renew(t.Context(), renewal)
		if !errors.Is(err, audit.ErrUnavailable) || !strings.HasPrefix(err.Error(), "issuing the TLS certificate: recording it in the audit log: ") {
			t.Errorf("Renew without a database = %v, want what is not available", err)
		}
		if got := held(t, &certificate); got != first {
			t.Errorf("the certificate that is held is %s, want the old one, %s", got, first)
		}
		b := &base{certificate: &certificate}
		if got := fingerprint(b.rpcLeaf().Raw); got != first {
			t.Errorf("readiness and metrics go by %s, want the certificate that is served", got)
		}
	}

	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	if err := certificate.Renew(t.Context(), renewal); err != nil {
		t.Fatal(err)
	}
	second := held(t, &certificate)
	if second == first || a.issued != 2 {
		t.Errorf("%d certificates were issued, and %s is held, want a second one", a.issued, second)
	}
	if diff := cmp.Diff([]string{first, second}, certificates(t, log)); diff != "" {
		t.Errorf("recorded (-want +got):\n%s", diff)
	}
	if err := certificate.Renew(t.Context(), renewal); err != nil || a.issued != 3 || len(certificates(t, log)) != 3 {
		t.Errorf("the next renewal = %v, %d issued, want another certificate and its record", err, a.issued)
	}
}
