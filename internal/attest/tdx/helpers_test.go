package tdx_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recordedDir finds the recorded quotes and collateral in the go-tdx-guest
// module.
var recordedDir = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/google/go-tdx-guest").Output()
	return filepath.Join(strings.TrimSpace(string(out)), "testing", "testdata"), err
})

// recorded reads one of them.
func recorded(tb testing.TB, name string) []byte {
	tb.Helper()
	dir, err := recordedDir()
	if err != nil {
		tb.Fatalf("finding go-tdx-guest: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// The recorded quotes.
const (
	quoteSPR = "tdx_prod_quote_SPR_E4.dat"
	quoteV5  = "quote_v5_sample.dat"
	quoteCOS = "ccel/cos-113-tdx-quote.dat"
)

// recordedQuote reads a quote. One of the files has a line of text after it,
// which is taken off: only zeros are padding.
func recordedQuote(tb testing.TB, name string) []byte {
	tb.Helper()
	return bytes.TrimSuffix(recorded(tb, name), []byte("\nextra bytes(only for testing purpose)\n"))
}

// clock is a settable clock.
type clock struct{ t time.Time }

func (c *clock) Now() time.Time { return c.t }

// simTime is when the software TDs of the tests live.
var simTime = time.Date(2026, 11, 21, 12, 30, 0, 0, time.UTC)

// openTD makes a software TD whose clock stands at simTime.
func openTD(tb testing.TB, cfg simtd.Config) *simtd.TD {
	tb.Helper()
	if cfg.Dir == "" {
		cfg.Dir = tb.TempDir()
	}
	if cfg.Now == nil {
		cfg.Now = (&clock{simTime}).Now
	}
	td, err := simtd.Open(cfg)
	if err != nil {
		tb.Fatalf("opening a software TD: %v", err)
	}
	return td
}

// verifierOf trusts td and takes its collateral, at simTime.
func verifierOf(tb testing.TB, td *simtd.TD) *tdx.Verifier {
	tb.Helper()
	return verifierAt(tb, td, simTime)
}

func verifierAt(tb testing.TB, td *simtd.TD, at time.Time) *tdx.Verifier {
	tb.Helper()
	return newVerifier(tb, tdx.Config{TrustAnchor: td.Root(), Collateral: td, Now: (&clock{at}).Now})
}

func newVerifier(tb testing.TB, cfg tdx.Config) *tdx.Verifier {
	tb.Helper()
	v, err := tdx.NewVerifier(cfg)
	if err != nil {
		tb.Fatalf("NewVerifier() = %v", err)
	}
	return v
}

// intelVerifier trusts Intel and has no collateral.
func intelVerifier(tb testing.TB, at time.Time) *tdx.Verifier {
	tb.Helper()
	return newVerifier(tb, tdx.Config{TrustAnchor: tdx.IntelRootCA(), Now: (&clock{at}).Now})
}

func attestBy(tb testing.TB, td *simtd.TD) *attest.Evidence {
	tb.Helper()
	ev, err := td.Attest(tb.Context(), attest.BootstrapReportData([]byte("ca"), []byte("k256")))
	if err != nil {
		tb.Fatalf("Attest() = %v", err)
	}
	return ev
}

func quoteOf(tb testing.TB, td *simtd.TD, s simtd.Shape) *attest.Evidence {
	tb.Helper()
	q, err := td.Quote([64]byte{1, 2, 3}, s)
	if err != nil {
		tb.Fatalf("Quote() = %v", err)
	}
	return &attest.Evidence{Quote: q}
}

// wantRefusal checks that err is of that link and says that reason.
func wantRefusal(tb testing.TB, err error, link, reason string) {
	tb.Helper()
	ve, ok := errors.AsType[*attest.VerifyError](err)
	if !ok {
		tb.Errorf("error = %v, want a VerifyError of link %q", err, link)
		return
	}
	if ve.Link != link || !strings.Contains(err.Error(), reason) {
		tb.Errorf("error = link %q: %q, want link %q and a reason with %q", ve.Link, err, link, reason)
	}
}
