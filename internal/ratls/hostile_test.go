package ratls_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/versioned"
	"teekms/internal/keys"
	"teekms/internal/ratls"
)

// craft signs a certificate with any extensions.
func craft(t testing.TB, key *ecdsa.PrivateKey, extensions ...pkix.Extension) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "crafted"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtraExtensions: extensions,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// evidenceOf has a key quoted.
func evidenceOf(t testing.TB, a attest.Attester, key *ecdsa.PrivateKey) *attest.Evidence {
	t.Helper()
	ev, err := a.Attest(t.Context(), attest.RATLSReportData(spki(t, &key.PublicKey)))
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

// hostile is a peer that a server refuses.
type hostile struct {
	name string
	cfg  simtd.Config
	// change may change the trust domain, or what was issued for it, once it runs.
	change func(*testing.T, *simtd.TD)
	// attester, if not nil, is what the peer attests with.
	attester func(*simtd.TD) attest.Attester
	// log, if not nil, edits the event log of good Evidence.
	log  func(eventlog.Log) eventlog.Log
	want string
}

func hostiles() []hostile {
	return []hostile{
		{
			name: "wrong report data",
			attester: func(td *simtd.TD) attest.Attester {
				return attester(func(ctx context.Context, _ attest.ReportData) (*attest.Evidence, error) {
					return td.Attest(ctx, attest.NoReportData())
				})
			},
			want: "report data: report data mismatch: the quote binds another key",
		},
		{
			name: "report data changed after it was signed",
			attester: func(td *simtd.TD) attest.Attester {
				return attester(func(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
					ev, err := td.Attest(ctx, attest.NoReportData())
					if err == nil {
						b := rd.Bytes()
						copy(ev.Quote[568:], b[:])
					}
					return ev, err
				})
			},
			want: "quote signature: does not verify under the attestation key",
		},
		{
			name: "expired chain",
			cfg: simtd.Config{EditCertificate: func(which string, c *x509.Certificate) {
				if which == simtd.CertificatePCK {
					c.NotAfter = time.Now().Add(-time.Hour)
				}
			}},
			want: "PCK certificate chain: ",
		},
		{
			name:   "revoked platform",
			change: func(t *testing.T, td *simtd.TD) { endorse(t, td, simtd.Endorsements{RevokePCK: true}) },
			want:   `revocation: "Intel SGX PCK Certificate"`,
		},
		{
			name:   "revoked authority",
			change: func(t *testing.T, td *simtd.TD) { endorse(t, td, simtd.Endorsements{RevokePCKCA: true}) },
			want:   `revocation: "Intel SGX PCK Platform CA"`,
		},
		{
			name: "revoked TCB",
			change: func(t *testing.T, td *simtd.TD) {
				endorse(t, td, simtd.Endorsements{Platform: simtd.Level{Status: attest.Revoked}})
			},
			want: "TCB status: ",
		},
		{
			name: "debug TD",
			cfg:  simtd.Config{Measurements: simtd.Measurements{Attributes: simtd.AttributeDebug}},
			want: "debug bit: ",
		},
		{
			name: "log reordered",
			log: func(l eventlog.Log) eventlog.Log {
				n := len(l)
				l[n-1], l[n-2] = l[n-2], l[n-1]
				return l
			},
			want: "event log: RTMR3 replays to ",
		},
		{
			name: "log truncated",
			log:  func(l eventlog.Log) eventlog.Log { return l[:len(l)-1] },
			want: "event log: RTMR3 replays to ",
		},
		{
			name: "log without its run-time events",
			log: func(l eventlog.Log) eventlog.Log {
				return l[:len(l)-len(l.RuntimeEvents())]
			},
			want: "event log: RTMR3 replays to ",
		},
		{
			name: "payload of an event replaced",
			log: func(l eventlog.Log) eventlog.Log {
				for i := range l {
					if l[i].Name == eventlog.EventAppID {
						l[i].Payload, l[i].Digest = bytes.Repeat([]byte{1}, 20), nil
					}
				}
				return l
			},
			want: "event log: RTMR3 replays to ",
		},
		{
			name: "form of a digest replaced",
			log: func(l eventlog.Log) eventlog.Log {
				last := &l[len(l)-1]
				last.Version, last.Digest = 2, nil
				return l
			},
			want: "event log: RTMR3 replays to ",
		},
		{
			name: "duplicate app id",
			cfg: simtd.Config{Measurements: simtd.Measurements{Runtime: []simtd.RuntimeEvent{
				{Name: eventlog.EventAppID, Payload: bytes.Repeat([]byte{1}, 20)}, {Name: eventlog.EventAppID, Payload: bytes.Repeat([]byte{2}, 20)},
			}}},
			want: `event log: event 20: second event "app-id"`,
		},
	}
}

func endorse(t *testing.T, td *simtd.TD, e simtd.Endorsements) {
	t.Helper()
	if err := td.SetEndorsements(e); err != nil {
		t.Fatal(err)
	}
}

// certificate makes the peer's certificate, with the event log edited.
func (h *hostile) certificate(t *testing.T, td *simtd.TD, gen ratls.Generation) *tls.Certificate {
	t.Helper()
	var a attest.Attester = td
	if h.attester != nil {
		a = h.attester(td)
	}
	if h.log != nil {
		a = attester(func(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
			ev, err := td.Attest(ctx, rd)
			if err == nil {
				ev.EventLog, err = h.log(td.EventLog()).Marshal()
			}
			return ev, err
		})
	}
	return newCertificate(t, ratls.ClientCertConfig{Attester: a, Generation: gen})
}

func TestHostilePeers(t *testing.T) {
	for _, tt := range hostiles() {
		for gen, name := range map[ratls.Generation]string{ratls.Gen8: "8", ratls.Gen1: "1"} {
			t.Run(tt.name+", generation "+name, func(t *testing.T) {
				td := openTD(t, tt.cfg)
				if tt.change != nil {
					tt.change(t, td)
				}
				want := tt.want
				if gen == ratls.Gen8 {
					// Nothing but runtime events and ACPI marks are left of the log.
					want = strings.Replace(want, "event 20:", "event 4:", 1)
				}
				cert := tt.certificate(t, td, gen)

				// At the server.
				s := serve(t, ratls.ServerConfig{Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierOf(t, td)})}, false)
				c := s.client(t, cert, nil)
				c.want(t, "invalid quote: "+want)
				c.want(t, "invalid quote: "+want)

				// And at a client that such a server faces.
				back := serve(t, ratls.ServerConfig{
					Appraiser:    appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierOf(t, td)}),
					Certificates: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil },
				}, false)
				wantRefusal(t, back, ratls.ClientConfig{PinnedKey: spki(t, &key(cert).PublicKey), Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierOf(t, td)})},
					"appraising the server: invalid quote: "+want)
			})
		}
	}
}

func key(c *tls.Certificate) *ecdsa.PrivateKey { return c.PrivateKey.(*ecdsa.PrivateKey) }

func TestEvidenceOfAnotherConnection(t *testing.T) {
	td := openTD(t, simtd.Config{})
	v := verifierOf(t, td)
	s := serve(t, ratls.ServerConfig{Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: v})}, false)
	victim := newCertificate(t, ratls.ClientCertConfig{Attester: td})
	s.client(t, victim, nil).want(t, appText(td))
	var stolen []pkix.Extension
	for _, e := range victim.Leaf.Extensions {
		if e.Id.Equal(keys.ExtensionOID(keys.ArcAttestation)) {
			stolen = append(stolen, e)
		}
	}
	s.client(t, craft(t, newKey(t), stolen...), nil).want(t, "invalid quote: report data: report data mismatch")
	if n := v.calls.Load(); n != 1 {
		t.Errorf("%d verifications, want 1: none for the stolen quote", n)
	}
	// The certificate itself does not help without its key: TLS refuses it.
	thief := *victim
	thief.PrivateKey = newKey(t)
	other := serve(t, ratls.ServerConfig{Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierOf(t, td)})}, false)
	other.wantNoHandshake(t, other.client(t, &thief, nil), "invalid signature by the client certificate")
}

func TestPeersThatAreOddButGood(t *testing.T) {
	second := eventlog.Event{IMR: 3, Type: eventlog.RuntimeEventType, Name: "late", Payload: []byte{1}, Version: 2}
	tests := []struct {
		name   string
		cfg    simtd.Config
		change func(*testing.T, *simtd.TD)
		want   func(*simtd.TD) string
	}{
		{
			name: "event after system-ready is no identity",
			change: func(t *testing.T, td *simtd.TD) {
				if err := td.Extend(eventlog.EventAppID, bytes.Repeat([]byte{9}, 20)); err != nil {
					t.Fatal(err)
				}
			},
			want: appText,
		},
		{
			name: "event with a digest of the second form",
			change: func(t *testing.T, td *simtd.TD) {
				if err := td.ExtendEvent(second); err != nil {
					t.Fatal(err)
				}
			},
			want: appText,
		},
		{
			name: "nothing in RTMR3",
			cfg:  simtd.Config{Measurements: simtd.Measurements{Runtime: []simtd.RuntimeEvent{}}},
			want: func(*simtd.TD) string { return "app" },
		},
		{name: "quote of version 5", cfg: simtd.Config{Shape: simtd.Shape{Version: 5}}, want: appText},
		{
			name: "TCB out of date, for the policy to judge",
			change: func(t *testing.T, td *simtd.TD) {
				endorse(t, td, simtd.Endorsements{Platform: simtd.Level{Status: attest.OutOfDate}})
			},
			want: appText,
		},
	}
	for _, tt := range tests {
		for gen, name := range map[ratls.Generation]string{ratls.Gen8: "8", ratls.Gen1: "1"} {
			t.Run(tt.name+", generation "+name, func(t *testing.T) {
				td := openTD(t, tt.cfg)
				if tt.change != nil {
					tt.change(t, td)
				}
				s := serve(t, ratls.ServerConfig{Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierOf(t, td)})}, false)
				s.client(t, newCertificate(t, ratls.ClientCertConfig{Attester: td, Generation: gen}), nil).want(t, tt.want(td))
			})
		}
	}
}

// attestationOf encodes Evidence as extension 8, edited.
func attestationOf(t testing.TB, ev *attest.Evidence, edit func(*versioned.Attestation)) []byte {
	t.Helper()
	a, err := versioned.New(ev)
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(a)
	}
	b, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestHostileExtensions(t *testing.T) {
	td := openTD(t, simtd.Config{})
	k := newKey(t)
	ev := evidenceOf(t, td, k)
	quote, log := keys.Extension(keys.ArcQuote, ev.Quote), keys.Extension(keys.ArcEventLog, ev.EventLog)
	attestation := keys.Extension(keys.ArcAttestation, attestationOf(t, ev, nil))
	tooMany := append([]byte{0, 0, 0, 0x06, 0x00, 0x01, 0x00}, make([]byte, 4097*11)...)
	raw := func(arc int, value []byte) pkix.Extension {
		return pkix.Extension{Id: keys.ExtensionOID(arc), Value: value}
	}
	tests := []struct {
		name       string
		extensions []pkix.Extension
		want       string
	}{
		{"both generations", []pkix.Extension{quote, log, attestation}, "certificate has Evidence of both generations"},
		{"8 and 1", []pkix.Extension{attestation, quote}, "certificate has Evidence of both generations"},
		{"8 and 2", []pkix.Extension{log, attestation}, "certificate has Evidence of both generations"},
		{"1 without 2", []pkix.Extension{quote}, "extensions 1 and 2 come together or not at all"},
		{"2 without 1", []pkix.Extension{log}, "extensions 1 and 2 come together or not at all"},
		{"empty 8", []pkix.Extension{raw(keys.ArcAttestation, nil)}, "extension 8 is not an OCTET STRING"},
		{"8 without its own OCTET STRING", []pkix.Extension{raw(keys.ArcAttestation, []byte{0, 0, 0})}, "extension 8 is not an OCTET STRING"},
		{"8 with bytes after the OCTET STRING", []pkix.Extension{raw(keys.ArcAttestation, append(bytes.Clone(attestation.Value), 0))}, "extension 8 is not an OCTET STRING"},
		{"garbage in 8", []pkix.Extension{keys.Extension(keys.ArcAttestation, []byte("garbage"))}, "reading attestation: unknown format 0x67"},
		{"nothing in 8", []pkix.Extension{keys.Extension(keys.ArcAttestation, nil)}, "reading attestation: ends too early"},
		{"another platform in 8", []pkix.Extension{keys.Extension(keys.ArcAttestation, []byte{0, 3})}, "reading attestation: SEV-SNP is not supported, only TDX"},
		{"events over the bound in 8", []pkix.Extension{keys.Extension(keys.ArcAttestation, tooMany)}, "reading attestation: events: more than 4096"},
		{"two event lists in 8", []pkix.Extension{keys.Extension(keys.ArcAttestation, attestationOf(t, ev, func(a *versioned.Attestation) { a.RuntimeEvents[1].Payload = make([]byte, 20) }))}, "attestation: runtime event 1 of the event log is not that of the list"},
		{"other report data in 8", []pkix.Extension{keys.Extension(keys.ArcAttestation, attestationOf(t, ev, func(a *versioned.Attestation) { a.ReportData[0] ^= 1 }))}, "attestation: report data is not that of the quote"},
		{"garbage in 1", []pkix.Extension{keys.Extension(keys.ArcQuote, []byte("garbage")), log}, "quote: header of 48 bytes, 7 left"},
	}
	s := serve(t, ratls.ServerConfig{Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierOf(t, td)})}, false)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s.client(t, craft(t, k, tt.extensions...), nil).want(t, "invalid quote: quote format: reading Evidence from certificate: "+tt.want)
		})
	}
	t.Run("garbage in 2", func(t *testing.T) {
		s.client(t, craft(t, k, quote, keys.Extension(keys.ArcEventLog, []byte("garbage"))), nil).want(t, "invalid quote: event log: event log is not JSON")
	})
	t.Run("good ones", func(t *testing.T) {
		s.client(t, craft(t, k, quote, log), nil).want(t, appText(td))
		s.client(t, craft(t, k, attestation), nil).want(t, appText(td))
	})
}

func TestOversizedAndDuplicateExtensionsEndTheHandshake(t *testing.T) {
	td := openTD(t, simtd.Config{})
	k := newKey(t)
	ev := evidenceOf(t, td, k)
	attestation := keys.Extension(keys.ArcAttestation, attestationOf(t, ev, nil))
	quote := keys.Extension(keys.ArcQuote, ev.Quote)
	large := keys.Extension(keys.ArcEventLog, bytes.Repeat([]byte(" "), ratls.MaxCertificateSize))
	for reason, cert := range map[string]*tls.Certificate{
		"duplicate extension": craft(t, k, attestation, attestation),
		"want at most 65536":  craft(t, k, quote, large),
	} {
		s := serve(t, ratls.ServerConfig{Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierOf(t, td)})}, false)
		s.wantNoHandshake(t, s.client(t, cert, nil), reason)
	}
	// The same without crypto/x509 in front.
	for want, c := range map[string]*x509.Certificate{
		"extension 8 is there twice":      {Extensions: []pkix.Extension{attestation, attestation}},
		"extension 1 is there twice":      {Extensions: []pkix.Extension{quote, quote}},
		"65537 bytes, want at most 65536": {Raw: make([]byte, ratls.MaxCertificateSize+1), Extensions: []pkix.Extension{attestation}},
	} {
		if ev, err := ratls.FromCertificate(c); err == nil || err.Error() != "reading Evidence from certificate: "+want {
			t.Errorf("FromCertificate() = %v, %v, want %q", ev, err, want)
		}
	}
}
