package simtd_test

import (
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/verify"

	"teekms/internal/attest/simtd"
)

// pcsGetter gives go-tdx-guest, whose hosts are constants, the software TD's
// own service over HTTP.
type pcsGetter struct{ server *httptest.Server }

func (g pcsGetter) Get(address string) (map[string][]string, []byte, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, nil, err
	}
	resp, err := g.server.Client().Get(g.server.URL + u.RequestURI())
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("%s: %s", address, resp.Status)
	}
	return resp.Header, body, nil
}

func open(t *testing.T, cfg simtd.Config) *simtd.TD {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	td, err := simtd.Open(cfg)
	if err != nil {
		t.Fatalf("Open(%q) = %v", cfg.Dir, err)
	}
	return td
}

// secondOpinion has google/go-tdx-guest verify with collateral and revocation
// lists from td, at now.
func secondOpinion(t *testing.T, td *simtd.TD, quote []byte, now time.Time) error {
	t.Helper()
	server := httptest.NewServer(td.Handler())
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(td.Root())
	return verify.RawTdxQuote(quote, &verify.Options{
		GetCollateral: true, CheckRevocations: true, TrustedRoots: roots, Getter: pcsGetter{server},
		Now: &verify.TimeSet{PckCertChain: now, TcbInfo: now, QeIdentity: now, PckCrl: now, RootCaCrl: now},
	})
}

func TestSecondOpinionAcceptsEveryShape(t *testing.T) {
	td := open(t, simtd.Config{})
	for _, s := range []simtd.Shape{{}, {Version: 4}, {Version: 5}, {Version: 5, BodyType: simtd.BodyTDX10}, {Version: 5, BodyType: simtd.BodyTDX15}} {
		t.Run(fmt.Sprintf("version %d body %d", s.Version, s.BodyType), func(t *testing.T) {
			quote, err := td.Quote([64]byte{1, 2, 3}, s)
			if err != nil {
				t.Fatal(err)
			}
			if err := secondOpinion(t, td, quote, time.Now()); err != nil {
				t.Errorf("RawTdxQuote = %v, want nil", err)
			}
		})
	}
}
