package secondopinion_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/attest/tdx/secondopinion"
)

var now = time.Date(2026, 11, 21, 12, 30, 0, 0, time.UTC)

func clock() time.Time { return now }

func openTD(t *testing.T, cfg simtd.Config) *simtd.TD {
	t.Helper()
	cfg.Dir, cfg.Now = t.TempDir(), clock
	td, err := simtd.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return td
}

func quoteOf(t *testing.T, td *simtd.TD, s simtd.Shape) *attest.Evidence {
	t.Helper()
	q, err := td.Quote([64]byte{1}, s)
	if err != nil {
		t.Fatal(err)
	}
	return &attest.Evidence{Quote: q}
}

// both asks our verifier and the library.
func both(t *testing.T, td *simtd.TD, ev *attest.Evidence) (ours, theirs error) {
	t.Helper()
	v, err := tdx.NewVerifier(tdx.Config{TrustAnchor: td.Root(), Collateral: anyCA{td}, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	_, ours = v.Verify(t.Context(), ev)
	return ours, opinion(t, td, ev)
}

// anyCA gives the collateral of a software TD, which knows one CA, for both.
type anyCA struct{ td *simtd.TD }

func (a anyCA) Collateral(ctx context.Context, fmspc tdx.FMSPC, _ tdx.CA) (*tdx.Collateral, error) {
	return a.td.Collateral(ctx, fmspc, tdx.PlatformCA)
}

func opinion(t *testing.T, td *simtd.TD, ev *attest.Evidence) error {
	t.Helper()
	return secondopinion.Verify(t.Context(), secondopinion.Config{TrustAnchor: td.Root(), Collateral: td, Now: clock}, ev)
}

func TestAgreesOnGoodQuotes(t *testing.T) {
	td := openTD(t, simtd.Config{})
	for _, s := range []simtd.Shape{{Version: 4}, {Version: 5, BodyType: tdx.BodyTDX10}, {Version: 5, BodyType: tdx.BodyTDX15}} {
		if ours, theirs := both(t, td, quoteOf(t, td, s)); ours != nil || theirs != nil {
			t.Errorf("V%d body %d: ours %v, theirs %v, want both to accept", s.Version, s.BodyType, ours, theirs)
		}
	}
}

func TestRecordedQuotes(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/google/go-tdx-guest").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "testing", "testdata")
	for _, name := range []string{"tdx_prod_quote_SPR_E4.dat", "quote_v5_sample.dat", "ccel/cos-113-tdx-quote.dat"} {
		t.Run(name, func(t *testing.T) {
			raw, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			// One file has text after the quote, which our verifier refuses.
			ev := &attest.Evidence{Quote: bytes.TrimSuffix(raw, []byte("\nextra bytes(only for testing purpose)\n"))}
			at := func() time.Time { return time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC) }
			v, err := tdx.NewVerifier(tdx.Config{TrustAnchor: tdx.IntelRootCA(), Now: at})
			if err != nil {
				t.Fatal(err)
			}
			_, ours := v.VerifyOffline(t.Context(), ev)
			theirs := secondopinion.Verify(t.Context(), secondopinion.Config{TrustAnchor: tdx.IntelRootCA(), Now: at}, ev)
			if ours != nil || theirs != nil {
				t.Errorf("ours %v, theirs %v, want both to accept", ours, theirs)
			}
		})
	}
}

// tdVariant changes how the software TD of a case is made or endorsed.
type tdVariant struct {
	config  simtd.Config
	endorse simtd.Endorsements
}

// TestKnownDifferences is the list of all cases in which the two are known to
// differ (docs/evidence.md#second-opinion). The empty string is acceptance.
func TestKnownDifferences(t *testing.T) {
	v4, v5 := simtd.Shape{Version: 4}, simtd.Shape{Version: 5, BodyType: tdx.BodyTDX15}
	edit := func(s simtd.Shape, off int, b byte) simtd.Shape {
		s.EditSigned = func(signed []byte) { signed[off] = b }
		return s
	}
	put32 := func(off int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[off:], v)
			return b
		}
	}
	tests := []struct {
		name         string
		td           tdVariant
		shape        simtd.Shape
		mangle       func([]byte) []byte
		ours, theirs string
	}{
		// What the library lets pass.
		{name: "debug TD", shape: edit(v4, 168, 1), ours: "debug bit"},
		{name: "service TD", shape: edit(v5, 54+600, 1), ours: "service TD"},
		{name: "platform level with a TDX 1.5 module: OutOfDate is not seen", td: tdVariant{endorse: simtd.Endorsements{Platform: simtd.Level{Status: attest.OutOfDate}}}},
		{name: "platform level with a TDX 1.5 module: Revoked is not seen", td: tdVariant{endorse: simtd.Endorsements{Platform: simtd.Level{Status: attest.Revoked}}}, ours: "TCB status"},
		{name: "collateral from the future", td: tdVariant{endorse: simtd.Endorsements{IssuedAt: now.Add(time.Hour)}}, ours: "collateral"},
		{name: "text after the quote", mangle: func(b []byte) []byte { return append(b, "text"...) }, ours: "quote format"},
		{name: "another QE vendor", shape: edit(v4, 12, 0), ours: "quote format"},
		// What the library refuses: our verifier makes it a claim, or has no
		// reason to.
		{name: "module OutOfDate is a claim", td: tdVariant{endorse: simtd.Endorsements{Module: simtd.Level{Status: attest.OutOfDate}}}, theirs: "it is now OutOfDate"},
		{name: "QE OutOfDate is a claim", td: tdVariant{endorse: simtd.Endorsements{QE: simtd.Level{Status: attest.OutOfDate}}}, theirs: "OutOfDate"},
		{name: "PCK by the processor CA", td: tdVariant{config: simtd.Config{EditCertificate: func(which string, c *x509.Certificate) {
			if which == simtd.CertificatePCKCA {
				c.RawSubject, c.Subject = nil, pkix.Name{CommonName: "Intel SGX PCK Processor CA"}
			}
		}}}, theirs: "certificate"},
		{name: "copy of the root in the quote", shape: simtd.Shape{EditChain: foreignRoot(t)}, theirs: "certificate"},
		// Where the library panics.
		{name: "V4 signed data of 0", mangle: put32(0x278, 0), ours: "quote format", theirs: secondopinion.ErrPanicked.Error()},
		{name: "V4 signed data of 10", mangle: put32(0x278, 10), ours: "quote format", theirs: secondopinion.ErrPanicked.Error()},
		{name: "V5 signed data of 4 GiB", shape: v5, mangle: put32(54+648, 1<<32-1), ours: "quote format", theirs: secondopinion.ErrPanicked.Error()},
		{name: "QE auth data of 65535", mangle: func(b []byte) []byte {
			b[0x4c2], b[0x4c3] = 0xff, 0xff
			return b
		}, ours: "quote format", theirs: secondopinion.ErrPanicked.Error()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			td := openTD(t, tt.td.config)
			if err := td.SetEndorsements(tt.td.endorse); err != nil {
				t.Fatal(err)
			}
			ev := quoteOf(t, td, tt.shape)
			if tt.mangle != nil {
				ev.Quote = tt.mangle(ev.Quote)
			}
			ours, theirs := both(t, td, ev)
			wantVerdict(t, "ours", ours, tt.ours)
			wantVerdict(t, "theirs", theirs, tt.theirs)
		})
	}
}

func wantVerdict(t *testing.T, whose string, got error, want string) {
	t.Helper()
	if want == "" && got != nil || want != "" && (got == nil || !strings.Contains(got.Error(), want)) {
		t.Errorf("%s = %v, want %q", whose, got, want)
	}
}

// foreignRoot replaces the last certificate of a chain with Intel's root.
func foreignRoot(*testing.T) func([]byte) []byte {
	return func(chain []byte) []byte {
		i := bytes.LastIndex(chain, []byte("-----BEGIN CERTIFICATE-----"))
		return append(chain[:i:i], pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tdx.IntelRootCA().Raw})...)
	}
}

// TestAgreesOnRefusals are the refusals on which both agree, each
// seeing its own reason.
func TestAgreesOnRefusals(t *testing.T) {
	tests := []struct {
		name         string
		endorse      simtd.Endorsements
		ours, theirs string
	}{
		{"PCK revoked", simtd.Endorsements{RevokePCK: true}, "revocation", "revoked"},
		{"PCK authority revoked", simtd.Endorsements{RevokePCKCA: true}, "revocation", "revoked"},
		{"TCB signer revoked", simtd.Endorsements{RevokeTCBSigner: true}, "revocation", "revoked"},
		{"expired collateral", simtd.Endorsements{IssuedAt: now.Add(-31 * 24 * time.Hour)}, "expired", "expired"},
		{"module revoked", simtd.Endorsements{Module: simtd.Level{Status: attest.Revoked}}, "TCB status", "Revoked"},
		{"QE revoked", simtd.Endorsements{QE: simtd.Level{Status: attest.Revoked}}, "TCB status", "Revoked"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			td := openTD(t, simtd.Config{})
			if err := td.SetEndorsements(tt.endorse); err != nil {
				t.Fatal(err)
			}
			ours, theirs := both(t, td, quoteOf(t, td, simtd.Shape{}))
			wantVerdict(t, "ours", ours, tt.ours)
			wantVerdict(t, "theirs", theirs, tt.theirs)
		})
	}
}

// TestMutants asks both about many damaged quotes, the same in every run. They
// must agree but for what the list above explains.
func TestMutants(t *testing.T) {
	const mutants = 600
	td := openTD(t, simtd.Config{})
	for _, s := range []simtd.Shape{{Version: 4}, {Version: 5, BodyType: tdx.BodyTDX15}} {
		truth := quoteOf(t, td, s).Quote
		end := len(truth)
		chainAt := bytes.Index(truth, []byte("-----BEGIN"))
		rootAt := bytes.LastIndex(truth, []byte("-----BEGIN"))
		r := rand.New(rand.NewPCG(uint64(s.Version), 7))
		panics, agreed := 0, 0
		for i := range mutants {
			quote, at := mutate(r, truth, chainAt)
			ours, theirs := both(t, td, &attest.Evidence{Quote: quote})
			switch {
			case errors.Is(theirs, secondopinion.ErrPanicked):
				panics++
				if ours == nil {
					t.Errorf("V%d mutant %d at %#x: the library panics and ours accepts", s.Version, i, at)
				}
			case (ours == nil) == (theirs == nil):
				agreed++
			case ours == nil && at >= rootAt && at < end:
				// "copy of the root in the quote"
			default:
				t.Errorf("V%d mutant %d at %#x: ours %v, theirs %v", s.Version, i, at, ours, theirs)
			}
		}
		t.Logf("V%d: %d mutants, %d agreed on, the library panicked on %d", s.Version, mutants, agreed, panics)
		if agreed < mutants/2 {
			t.Errorf("V%d: only %d of %d mutants agreed on", s.Version, agreed, mutants)
		}
	}
}

// mutate damages a quote in one of several ways and says where.
func mutate(r *rand.Rand, truth []byte, chainAt int) (quote []byte, at int) {
	quote = bytes.Clone(truth)
	switch r.IntN(5) {
	case 0: // a bit before the chain
		at = r.IntN(chainAt)
		quote[at] ^= 1 << r.IntN(8)
	case 1: // a bit anywhere
		at = r.IntN(len(quote))
		quote[at] ^= 1 << r.IntN(8)
	case 2: // four bytes anywhere before the chain, as a length might be
		at = r.IntN(chainAt - 4)
		binary.LittleEndian.PutUint32(quote[at:], []uint32{0, 1, 0x7fffffff, 0x80000000, 0xffffffff, uint32(len(quote))}[r.IntN(6)])
	case 3: // a length, counted back from the chain or on from the header
		size := 0x278
		if truth[0] == 5 {
			size = 54 + 648
		}
		at = []int{size, size + 4 + 128 + 2, chainAt - 4, chainAt - 6 - 32 - 2}[r.IntN(4)]
		binary.LittleEndian.PutUint16(quote[at:], uint16(r.Uint32()))
	default: // the end
		at = r.IntN(len(quote))
		quote = quote[:at]
	}
	return quote, at
}

// TestSilent has the library verify with standard output going to a pipe.
func TestSilent(t *testing.T) {
	td := openTD(t, simtd.Config{})
	good := quoteOf(t, td, simtd.Shape{})
	bad := &attest.Evidence{Quote: good.Quote[:100]}
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	saved, err := unix.Dup(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Dup3(int(pw.Fd()), 1, 0); err != nil {
		t.Fatal(err)
	}
	goodErr, badErr := opinion(t, td, good), opinion(t, td, bad)
	if err := unix.Dup3(saved, 1, 0); err != nil {
		t.Fatal(err)
	}
	pw.Close()
	said, err := io.ReadAll(pr)
	if err != nil || len(said) != 0 {
		t.Errorf("standard output = %q, %v, want nothing", said, err)
	}
	if goodErr != nil || badErr == nil {
		t.Errorf("opinions = %v, %v, want one good and one bad", goodErr, badErr)
	}
}

func TestRefusesWithoutTrustAnchor(t *testing.T) {
	err := secondopinion.Verify(t.Context(), secondopinion.Config{}, &attest.Evidence{})
	if err == nil || !strings.Contains(err.Error(), "no trust anchor") {
		t.Errorf("Verify() = %v, want no trust anchor", err)
	}
}

func TestRefusesTooMuch(t *testing.T) {
	td := openTD(t, simtd.Config{})
	err := opinion(t, td, &attest.Evidence{Quote: make([]byte, tdx.MaxQuoteSize+1)})
	if err == nil || !strings.Contains(err.Error(), "more than 65536") {
		t.Errorf("Verify() = %v, want a refusal of the size", err)
	}
}
