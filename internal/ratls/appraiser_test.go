package ratls_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/simtd"
	"teekms/internal/keys"
	"teekms/internal/ratls"
)

func TestAppraiseTellsWhatIsVerified(t *testing.T) {
	td := openTD(t, simtd.Config{})
	var outcomes outcomes
	a := appraiserOf(t, ratls.AppraiserConfig{
		Verifier: verifierOf(t, td), OnResult: outcomes.add,
		Limit: func(netip.Addr) error { return ratls.ErrLimited }, // not asked outside of a connection
	})
	k := newKey(t)
	ev, public := evidenceOf(t, td, k), spki(t, &k.PublicKey)
	got, err := a.Appraise(t.Context(), ev, public)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(td.EventLog(), got.Log, cmp.Comparer(func(a, b []byte) bool { return string(a) == string(b) })); diff != "" {
		t.Errorf("Log (-want +got)\n%s", diff)
	}
	if got.VMConfig != td.VMConfig() || got.Claims.MRTD != td.Measurements().MRTD || string(got.PublicKey) != string(public) || got.Evidence != ev {
		t.Errorf("Appraise() = %+v, want what the Evidence holds", got)
	}
	if _, err := a.Appraise(t.Context(), nil, public); err == nil || err.Error() != "invalid quote: quote format: no Evidence" {
		t.Errorf("Appraise(nil) = %v, want its refusal", err)
	}
	if _, err := a.Appraise(t.Context(), &attest.Evidence{Quote: []byte{1}}, public); err == nil || !strings.HasPrefix(err.Error(), "invalid quote: quote format: ") {
		t.Errorf("Appraise(garbage) = %v, want its refusal", err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Appraise(canceled, ev, public); !errors.Is(err, context.Canceled) || errors.As(err, new(*ratls.InvalidError)) {
		t.Errorf("Appraise(canceled) = %v, want %v", err, context.Canceled)
	}
	outcomes.want(t, ratls.OutcomeOK, "quote_format", "quote_format", ratls.OutcomeCanceled)
}

// A verifier that lets something through does not make it true.
func TestAppraiserDoesNotTrustItsVerifierAlone(t *testing.T) {
	td := openTD(t, simtd.Config{})
	k := newKey(t)
	ev, public := evidenceOf(t, td, k), spki(t, &k.PublicKey)
	good, err := verifierOf(t, td).Verify(t.Context(), ev)
	if err != nil {
		t.Fatal(err)
	}
	claims := func(edit func(*attest.Claims)) attest.Verifier {
		c := *good
		edit(&c)
		return verifierFunc(func(context.Context, *attest.Evidence) (*attest.Claims, error) { return &c, nil })
	}
	var invalid *ratls.InvalidError
	tests := []struct {
		name     string
		verifier attest.Verifier
		log      string
		want     string
	}{
		{"other report data", claims(func(c *attest.Claims) { c.ReportData[0] ^= 1 }), string(ev.EventLog), "invalid quote: report data: report data mismatch"},
		{"other RTMR3", claims(func(c *attest.Claims) { c.RTMR[3][0] ^= 1 }), string(ev.EventLog), "invalid quote: event log: RTMR3 replays to "},
		{"no log", claims(func(*attest.Claims) {}), "", "invalid quote: event log: RTMR3 replays to 000000"},
		{"log that is none", claims(func(*attest.Claims) {}), "x", "invalid quote: event log: event log is not JSON"},
		{"log that cannot be replayed", claims(func(*attest.Claims) {}), `[{"imr":0,"event_type":1,"event":"","event_payload":""}]`, "invalid quote: event log: event 0: digest of 0 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := appraiserOf(t, ratls.AppraiserConfig{Verifier: tt.verifier})
			_, err := a.Appraise(t.Context(), &attest.Evidence{Quote: ev.Quote, EventLog: []byte(tt.log)}, public)
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) || !errors.As(err, &invalid) {
				t.Errorf("Appraise() = %v, want %q", err, tt.want)
			}
		})
	}
	broken := verifierFunc(func(context.Context, *attest.Evidence) (*attest.Claims, error) { return nil, errDenied })
	if _, err := appraiserOf(t, ratls.AppraiserConfig{Verifier: broken}).Appraise(t.Context(), ev, public); !errors.Is(err, errDenied) || errors.As(err, &invalid) {
		t.Errorf("Appraise(broken verifier) = %v, want its error and no judgment", err)
	}
	if _, err := ratls.NewAppraiser(ratls.AppraiserConfig{}); err == nil || err.Error() != "making an appraiser: no verifier" {
		t.Errorf("NewAppraiser(nothing) = %v, want its refusal", err)
	}
}

func TestRememberedLogMustAgreeWithEveryQuote(t *testing.T) {
	td := openTD(t, simtd.Config{})
	k := newKey(t)
	ev, public := evidenceOf(t, td, k), spki(t, &k.PublicKey)
	claims, err := verifierOf(t, td).Verify(t.Context(), ev)
	if err != nil {
		t.Fatal(err)
	}
	a := appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierFunc(func(context.Context, *attest.Evidence) (*attest.Claims, error) { return claims, nil })})
	for range 200 { // more logs than are remembered
		if _, err := a.Appraise(t.Context(), ev, public); err != nil {
			t.Fatal(err)
		}
		ev.EventLog = append(ev.EventLog, ' ')
	}
	claims.RTMR[3][0] ^= 1
	if _, err := a.Appraise(t.Context(), ev, public); err == nil || !strings.HasPrefix(err.Error(), "invalid quote: event log: RTMR3 replays to ") {
		t.Errorf("Appraise(known log, other RTMR3) = %v, want its refusal", err)
	}
}

type verifierFunc func(context.Context, *attest.Evidence) (*attest.Claims, error)

func (f verifierFunc) Verify(ctx context.Context, ev *attest.Evidence) (*attest.Claims, error) {
	return f(ctx, ev)
}

func TestEvidenceSurvivesACertificate(t *testing.T) {
	td := openTD(t, simtd.Config{})
	k := newKey(t)
	ev := evidenceOf(t, td, k)

	first, err := ratls.Extensions(ev, ratls.Gen1)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ratls.FromCertificate(&x509.Certificate{Extensions: first})
	if diff := cmp.Diff(&attest.Evidence{Quote: ev.Quote, EventLog: ev.EventLog}, got); err != nil || diff != "" {
		t.Errorf("FromCertificate(generation 1) = %v, (-want +got)\n%s", err, diff)
	}

	eighth, err := ratls.Extensions(ev, ratls.Gen8)
	if err != nil {
		t.Fatal(err)
	}
	got, err = ratls.FromCertificate(&x509.Certificate{Extensions: eighth})
	if err != nil {
		t.Fatal(err)
	}
	log, err := eventlog.Parse(got.EventLog)
	if err != nil || string(got.Quote) != string(ev.Quote) || got.VMConfig != ev.VMConfig || len(log) != 3+9 {
		t.Errorf("FromCertificate(generation 8) = %d events, %v, want the quote, the machine, three ACPI marks and nine runtime events", len(log), err)
	}
	if len(eighth[0].Value) > len(ev.Quote)+2048 {
		t.Errorf("extension 8 has %d bytes for a quote of %d", len(eighth[0].Value), len(ev.Quote))
	}

	none, err := ratls.Extensions(&attest.Evidence{Quote: ev.Quote}, ratls.Gen1)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ratls.FromCertificate(&x509.Certificate{Extensions: none}); err != nil || string(got.EventLog) != "[]" {
		t.Errorf("FromCertificate(no log) = %+v, %v, want an empty log", got, err)
	}
	if got, err := ratls.FromCertificate(&x509.Certificate{}); got != nil || err != nil {
		t.Errorf("FromCertificate(nothing) = %v, %v, want neither", got, err)
	}
}

func TestExtensionsRefuses(t *testing.T) {
	td := openTD(t, simtd.Config{})
	ev := evidenceOf(t, td, newKey(t))
	large := &attest.Evidence{Quote: ev.Quote, EventLog: ev.EventLog, VMConfig: strings.Repeat(" ", 64<<10)}
	for name, tt := range map[string]struct {
		ev   *attest.Evidence
		gen  ratls.Generation
		want string
	}{
		"too large":     {large, ratls.Gen8, "bytes, want at most 61440"},
		"no quote":      {&attest.Evidence{}, ratls.Gen8, "making attestation: header of 48 bytes, 0 left"},
		"no generation": {ev, 7, "no generation 7"},
		"text not UTF-8": {
			&attest.Evidence{Quote: ev.Quote, VMConfig: "\xff"}, ratls.Gen8, "config is not UTF-8",
		},
	} {
		if _, err := ratls.Extensions(tt.ev, tt.gen); err == nil || !strings.HasPrefix(err.Error(), "writing Evidence for certificate: ") || !strings.HasSuffix(err.Error(), tt.want) {
			t.Errorf("%s: Extensions() = %v, want %q", name, err, tt.want)
		}
	}
}

func TestUsage(t *testing.T) {
	usage := keys.Extension(keys.ArcUsage, []byte("kms:rpc"))
	for want, c := range map[string]*x509.Certificate{
		"kms:rpc <nil>": {Extensions: []pkix.Extension{usage}},
		" <nil>":        {},
		" reading special usage: extension 4 is there twice":         {Extensions: []pkix.Extension{usage, usage}},
		" reading special usage: extension 4 is not an OCTET STRING": {Extensions: []pkix.Extension{{Id: usage.Id, Value: []byte("kms:rpc")}}},
	} {
		got, err := ratls.Usage(c)
		text := "<nil>"
		if err != nil {
			text = err.Error()
		}
		if got+" "+text != want {
			t.Errorf("Usage() = %q, %v, want %q", got, err, want)
		}
	}
}

func FuzzFromCertificate(f *testing.F) {
	td := openTD(f, simtd.Config{})
	k := newKey(f)
	ev, err := td.Attest(context.Background(), attest.RATLSReportData(spki(f, &k.PublicKey)))
	if err != nil {
		f.Fatal(err)
	}
	for _, gen := range []ratls.Generation{ratls.Gen1, ratls.Gen8} {
		e, err := ratls.Extensions(ev, gen)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(e[0].Value, e[len(e)-1].Value, gen == ratls.Gen8)
	}
	f.Add([]byte{4, 0}, []byte{4, 0x81, 1}, true)
	f.Fuzz(func(t *testing.T, a, b []byte, eight bool) {
		c := &x509.Certificate{Extensions: []pkix.Extension{
			{Id: keys.ExtensionOID(keys.ArcQuote), Value: a}, {Id: keys.ExtensionOID(keys.ArcEventLog), Value: b},
		}}
		gen := ratls.Gen1
		if eight {
			gen = ratls.Gen8
			c.Extensions = []pkix.Extension{{Id: keys.ExtensionOID(keys.ArcAttestation), Value: a}}
		}
		got, err := ratls.FromCertificate(c)
		if err != nil {
			return
		}
		if c.Extensions, err = ratls.Extensions(got, gen); err != nil {
			return // what is read may be larger than what is written
		}
		again, err := ratls.FromCertificate(c)
		if err != nil || string(again.Quote) != string(got.Quote) {
			t.Fatalf("FromCertificate(Extensions(%+v)) = %+v, %v", got, again, err)
		}
	})
}

func BenchmarkAppraise(b *testing.B) {
	td := openTD(b, simtd.Config{})
	a := appraiserOf(b, ratls.AppraiserConfig{Verifier: verifierOf(b, td)})
	for name, gen := range map[string]ratls.Generation{"gen8": ratls.Gen8, "gen1": ratls.Gen1} {
		cert, err := ratls.NewCertificate(b.Context(), ratls.ClientCertConfig{Attester: td, Generation: gen})
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.AppraiseCertificate(b.Context(), cert.Leaf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkAdmit is what an RPC on a warm connection pays.
func BenchmarkAdmit(b *testing.B) {
	td := openTD(b, simtd.Config{})
	s, ctx := admitted(b, td)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Admit(ctx); err != nil {
			b.Fatal(err)
		}
	}
}
