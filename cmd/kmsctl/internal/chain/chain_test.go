package chain_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"teekms/cmd/kmsctl/internal/chain"
	"teekms/cmd/kmsctl/internal/expect"
	"teekms/cmd/kmsctl/internal/kmstest"
	"teekms/cmd/kmsctl/internal/status"
	"teekms/cmd/kmsctl/internal/subject"
	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/keys"
)

// config verifies k against its own root.
func config(k *kmstest.KMS) chain.Config {
	now := time.Now()
	return chain.Config{
		TrustAnchor: k.TD.Root(), Collateral: k.TD, CollateralFrom: "the trust domain itself",
		At: now, Now: now, AcceptTCB: []attest.TCBStatus{attest.UpToDate},
	}
}

func check(t *testing.T, k *kmstest.KMS, cfg chain.Config) *chain.Report {
	t.Helper()
	s, err := subject.FromDir(k.Dir)
	if err != nil {
		t.Fatal(err)
	}
	r, err := chain.Check(t.Context(), s, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// broken returns the links that were checked and do not hold.
func broken(r *chain.Report) map[string]string {
	out := map[string]string{}
	for _, l := range r.Links {
		if l.Checked && l.Err != nil {
			out[l.Name] = l.Err.Error()
		}
	}
	return out
}

func flip(hexText string, at int) string {
	b, err := hex.DecodeString(hexText)
	if err != nil {
		panic(err)
	}
	b[at] ^= 1
	return hex.EncodeToString(b)
}

func TestCheck(t *testing.T) {
	// links maps the links that must not hold to what must be said of them.
	type links map[string]string
	rewrite := func(edit func(map[string]string)) func(*testing.T, *kmstest.KMS, *chain.Config) {
		return func(t *testing.T, k *kmstest.KMS, _ *chain.Config) { k.Rewrite(t, edit) }
	}
	endorse := func(e simtd.Endorsements) func(*testing.T, *kmstest.KMS, *chain.Config) {
		return func(t *testing.T, k *kmstest.KMS, _ *chain.Config) {
			if err := k.TD.SetEndorsements(e); err != nil {
				t.Fatal(err)
			}
		}
	}
	at := func(d time.Duration) func(*testing.T, *kmstest.KMS, *chain.Config) {
		return func(_ *testing.T, _ *kmstest.KMS, c *chain.Config) { c.At = c.At.Add(d) }
	}
	other := kmstest.New(t, simtd.Config{})
	tests := []struct {
		name   string
		td     simtd.Config
		change func(*testing.T, *kmstest.KMS, *chain.Config)
		broken links
		code   int
	}{
		{"what a KMS wrote", simtd.Config{}, nil, nil, status.OK},
		{"a quote of version 5", simtd.Config{Shape: simtd.Shape{Version: 5}}, nil, nil, status.OK},
		{
			"a bit of MRTD flipped",
			simtd.Config{},
			rewrite(func(m map[string]string) { m["quote"] = flip(m["quote"], 0xb8) }),
			links{attest.LinkSignature: "does not verify"},
			status.NotVerified,
		},
		{
			"a bit of the report data flipped",
			simtd.Config{},
			rewrite(func(m map[string]string) { m["quote"] = flip(m["quote"], 0x238) }),
			links{attest.LinkSignature: "does not verify", attest.LinkReportData: "the digest of the record's two public keys is"},
			status.NotVerified,
		},
		{
			"a quote cut short",
			simtd.Config{},
			rewrite(func(m map[string]string) { m["quote"] = m["quote"][:1000] }),
			links{attest.LinkFormat: ""},
			status.NotVerified,
		},
		{
			"no quote",
			simtd.Config{},
			rewrite(func(m map[string]string) { m["quote"] = "" }),
			links{attest.LinkFormat: "quotes switched off"},
			status.NotVerified,
		},
		{
			"another CA key in the record",
			simtd.Config{},
			rewrite(func(m map[string]string) { m["ca_pubkey"] = hex.EncodeToString(other.Roots.CAPublic()) }),
			links{attest.LinkReportData: "the quote binds", chain.LinkRootCert: "of another key than the record"},
			status.NotVerified,
		},
		{
			"another secp256k1 key in the record",
			simtd.Config{},
			rewrite(func(m map[string]string) { m["k256_pubkey"] = hex.EncodeToString(other.Roots.K256Public()) }),
			links{attest.LinkReportData: "the quote binds"},
			status.NotVerified,
		},
		{
			"another event in the log",
			simtd.Config{},
			rewrite(func(m map[string]string) {
				m["eventlog"] = strings.Replace(m["eventlog"], hex.EncodeToString([]byte("app-id")), hex.EncodeToString([]byte("app-iD")), 1)
			}),
			links{attest.LinkEventLog: "not that of its name and payload"},
			status.NotVerified,
		},
		{
			"an empty list for a log",
			simtd.Config{},
			rewrite(func(m map[string]string) { m["eventlog"] = hex.EncodeToString([]byte("[]")) }),
			links{attest.LinkEventLog: "RTMR3 replays to"},
			status.NotVerified,
		},
		{
			"another digest of a boot event",
			simtd.Config{},
			rewrite(func(m map[string]string) {
				at := strings.Index(m["eventlog"], hex.EncodeToString([]byte(`"digest":"`))) / 2
				m["eventlog"] = flip(m["eventlog"], at+len(`"digest":"`))
			}),
			links{attest.LinkEventLog: "RTMR0 replays to"},
			status.NotVerified,
		},
		{"no event log", simtd.Config{}, rewrite(func(m map[string]string) { m["eventlog"] = "" }), nil, status.OK},
		{
			"an unreadable record",
			simtd.Config{},
			rewrite(func(m map[string]string) { m["quote"] = "0" }),
			links{chain.LinkRecord: "quote: encoding/hex: odd"},
			status.NotVerified,
		},
		{
			"another KMS's root certificate",
			simtd.Config{},
			func(t *testing.T, k *kmstest.KMS, _ *chain.Config) {
				k.Write(t, "root-ca.crt", keys.CertificatePEM(other.CA.Raw))
			},
			links{chain.LinkRootCert: "of another key than the record"},
			status.NotVerified,
		},
		{
			"a root certificate that is none",
			simtd.Config{},
			func(t *testing.T, k *kmstest.KMS, _ *chain.Config) { k.Write(t, "root-ca.crt", []byte("-----")) },
			links{chain.LinkRootCert: "not a PEM certificate"},
			status.NotVerified,
		},
		{
			"two root certificates",
			simtd.Config{},
			func(t *testing.T, k *kmstest.KMS, _ *chain.Config) {
				k.Write(t, "root-ca.crt", append(keys.CertificatePEM(k.CA.Raw), keys.CertificatePEM(other.CA.Raw)...))
			},
			links{chain.LinkRootCert: "more than one PEM block"},
			status.NotVerified,
		},
		{
			"a root certificate by another key",
			simtd.Config{},
			func(t *testing.T, k *kmstest.KMS, _ *chain.Config) {
				template := *k.CA
				der := issue(t, &template, other.CA, k.CA.PublicKey, other)
				k.Write(t, "root-ca.crt", keys.CertificatePEM(der))
			},
			links{chain.LinkRootCert: "not self-signed"},
			status.NotVerified,
		},
		{
			"another KMS's RPC certificate",
			simtd.Config{},
			func(t *testing.T, k *kmstest.KMS, _ *chain.Config) {
				k.Write(t, "rpc.crt", keys.CertificatePEM(other.RPC))
			},
			links{chain.LinkRPCCert: "signed by unknown authority"},
			status.NotVerified,
		},
		{
			"an application's certificate for the RPC certificate",
			simtd.Config{},
			func(t *testing.T, k *kmstest.KMS, _ *chain.Config) {
				k.Write(t, "rpc.crt", keys.CertificatePEM(appCertificate(t, k, "app:custom")))
			},
			links{chain.LinkRPCCert: `its usage is "app:custom", want "kms:rpc"`},
			status.NotVerified,
		},
		{
			"a certificate without a usage",
			simtd.Config{},
			func(t *testing.T, k *kmstest.KMS, _ *chain.Config) {
				k.Write(t, "rpc.crt", keys.CertificatePEM(appCertificate(t, k, "")))
			},
			links{chain.LinkRPCCert: "no usage extension"},
			status.NotVerified,
		},
		{
			"an RPC certificate that has expired in its directory",
			simtd.Config{},
			func(_ *testing.T, _ *kmstest.KMS, c *chain.Config) { c.Now = c.Now.AddDate(1, 0, 0) },
			nil, status.OK,
		},
		{
			"a debug TD",
			simtd.Config{Measurements: simtd.Measurements{Attributes: simtd.AttributeSEPTVEDisable | simtd.AttributeDebug}},
			nil,
			links{attest.LinkDebug: "bit 0 is debug"},
			status.NotVerified,
		},
		{
			"a platform out of date",
			simtd.Config{},
			endorse(simtd.Endorsements{Platform: simtd.Level{Status: attest.OutOfDate}}),
			links{attest.LinkTCB: "accepted is UpToDate"},
			status.NotVerified,
		},
		{
			"a platform out of date, accepted",
			simtd.Config{},
			func(t *testing.T, k *kmstest.KMS, c *chain.Config) {
				endorse(simtd.Endorsements{Platform: simtd.Level{Status: attest.OutOfDate}})(t, k, c)
				c.AcceptTCB = append(c.AcceptTCB, attest.OutOfDate)
				c.SecondOpinion = true
			},
			nil, status.OK,
		},
		{
			"a module out of date where the platform's status is accepted",
			simtd.Config{},
			func(t *testing.T, k *kmstest.KMS, c *chain.Config) {
				endorse(simtd.Endorsements{
					Platform: simtd.Level{Status: attest.SWHardeningNeeded},
					Module:   simtd.Level{Status: attest.OutOfDate},
				})(t, k, c)
				c.AcceptTCB = append(c.AcceptTCB, attest.SWHardeningNeeded)
			},
			links{attest.LinkTCB: "OutOfDate (platform SWHardeningNeeded, TDX module OutOfDate"},
			status.NotVerified,
		},
		{
			"a revoked TCB",
			simtd.Config{},
			endorse(simtd.Endorsements{QE: simtd.Level{Status: attest.Revoked}}),
			links{attest.LinkTCB: "revoked"},
			status.NotVerified,
		},
		{
			"a revoked PCK",
			simtd.Config{},
			endorse(simtd.Endorsements{RevokePCK: true}),
			links{attest.LinkRevocation: "is revoked"},
			status.NotVerified,
		},
		{
			"a revoked TCB signer",
			simtd.Config{},
			endorse(simtd.Endorsements{RevokeTCBSigner: true}),
			links{attest.LinkRevocation: "is revoked"},
			status.NotVerified,
		},
		{"collateral that will have expired", simtd.Config{}, at(40 * 24 * time.Hour), links{attest.LinkCollateral: "expired"}, status.NoCollateral},
		{"a PCK that will have expired", simtd.Config{}, at(20 * 365 * 24 * time.Hour), links{attest.LinkChain: "expired"}, status.NotVerified},
		{
			"a time before there was a PCK",
			simtd.Config{},
			at(-365 * 24 * time.Hour),
			links{attest.LinkChain: "not yet valid"},
			status.NotVerified,
		},
		{
			"collateral that was not there yet",
			simtd.Config{Now: func() time.Time { return time.Now().Add(-20 * 24 * time.Hour) }},
			func(t *testing.T, k *kmstest.KMS, c *chain.Config) {
				endorse(simtd.Endorsements{IssuedAt: time.Now().Add(-24 * time.Hour)})(t, k, c)
				c.At = c.At.Add(-10 * 24 * time.Hour)
			},
			links{attest.LinkCollateral: "for that time: "},
			status.NoCollateral,
		},
		{
			"forged collateral at a time before",
			simtd.Config{Now: func() time.Time { return time.Now().Add(-20 * 24 * time.Hour) }},
			func(_ *testing.T, _ *kmstest.KMS, c *chain.Config) {
				c.Collateral = other.TD
				c.At = c.At.Add(-10 * 24 * time.Hour)
			},
			links{attest.LinkCollateral: "root CRL: "},
			status.NotVerified,
		},
		{
			"no collateral, but a second opinion",
			simtd.Config{},
			func(_ *testing.T, _ *kmstest.KMS, c *chain.Config) {
				c.Collateral, c.SecondOpinion = noCollateral(t), true
			},
			links{attest.LinkCollateral: "no collateral to be had"},
			status.NoCollateral,
		},
		{
			"no collateral",
			simtd.Config{},
			func(_ *testing.T, _ *kmstest.KMS, c *chain.Config) { c.Collateral = noCollateral(t) },
			links{attest.LinkCollateral: "no collateral to be had"},
			status.NoCollateral,
		},
		{
			"no collateral and another key",
			simtd.Config{},
			func(t *testing.T, k *kmstest.KMS, c *chain.Config) {
				c.Collateral = noCollateral(t)
				k.Write(t, "root-ca.crt", keys.CertificatePEM(other.CA.Raw))
			},
			links{attest.LinkCollateral: "no collateral to be had", chain.LinkRootCert: "of another key"},
			status.NotVerified,
		},
		{
			"another root",
			simtd.Config{},
			func(_ *testing.T, _ *kmstest.KMS, c *chain.Config) { c.TrustAnchor = tdx.IntelRootCA() },
			links{attest.LinkChain: "unknown authority"},
			status.NotVerified,
		},
		{
			"what was expected",
			simtd.Config{},
			func(t *testing.T, k *kmstest.KMS, c *chain.Config) {
				mrtd, rtmr := k.TD.Measurements().MRTD, k.TD.RTMR()[3]
				c.Expect = expected(t, "mrtd", hex.EncodeToString(mrtd[:]), "rtmr3", hex.EncodeToString(rtmr[:]), "domain", kmstest.Domain,
					"app_id", hex.EncodeToString(k.TD.Measurements().AppID), "ca_pubkey", hex.EncodeToString(k.Roots.CAPublic()))
			},
			nil, status.OK,
		},
		{
			"another MRTD and domain than expected",
			simtd.Config{},
			func(t *testing.T, _ *kmstest.KMS, c *chain.Config) {
				c.Expect = expected(t, "mrtd", strings.Repeat("00", 48), "domain", "kms.example.org")
			},
			links{chain.LinkExpectations: "domain is kms.example.com, the test wants kms.example.org"},
			status.Unexpected,
		},
		{
			"an application expected of a record without a log",
			simtd.Config{},
			func(t *testing.T, k *kmstest.KMS, c *chain.Config) {
				k.Rewrite(t, func(m map[string]string) { m["eventlog"] = "" })
				c.Expect = expected(t, "app_id", hex.EncodeToString(k.TD.Measurements().AppID))
			},
			links{chain.LinkExpectations: "app_id there is none"},
			status.Unexpected,
		},
		{
			"a domain expected of another KMS's certificate",
			simtd.Config{},
			func(t *testing.T, k *kmstest.KMS, c *chain.Config) {
				k.Write(t, "rpc.crt", keys.CertificatePEM(other.RPC))
				c.Expect = expected(t, "domain", kmstest.Domain)
			},
			links{chain.LinkRPCCert: "unknown authority", chain.LinkExpectations: "domain there is none"},
			status.NotVerified,
		},
		{
			"a second opinion",
			simtd.Config{},
			func(_ *testing.T, _ *kmstest.KMS, c *chain.Config) { c.SecondOpinion = true },
			nil, status.OK,
		},
		{
			"a second opinion on version 5",
			simtd.Config{Shape: simtd.Shape{Version: 5}},
			func(_ *testing.T, _ *kmstest.KMS, c *chain.Config) { c.SecondOpinion = true },
			nil, status.OK,
		},
		{
			"a second opinion on a flipped bit",
			simtd.Config{},
			func(t *testing.T, k *kmstest.KMS, c *chain.Config) {
				c.SecondOpinion = true
				k.Rewrite(t, func(m map[string]string) { m["quote"] = flip(m["quote"], 0xb8) })
			},
			links{attest.LinkSignature: "does not verify", chain.LinkOpinion: "go-tdx-guest refuses: "},
			status.NotVerified,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := kmstest.New(t, tt.td)
			cfg := config(k)
			if tt.change != nil {
				tt.change(t, k, &cfg)
			}
			r := check(t, k, cfg)
			if r.ExitCode != tt.code || r.OK != (tt.code == status.OK) || status.Of(r.Err()) != tt.code {
				t.Errorf("Check() = ok %t, exit code %d, error %v, want %d", r.OK, r.ExitCode, r.Err(), tt.code)
			}
			got := broken(r)
			for name, why := range got {
				if want, ok := tt.broken[name]; !ok || !strings.Contains(why, want) {
					t.Errorf("link %q: %s, want it to hold or to say %q", name, why, want)
				}
			}
			for name := range tt.broken {
				if _, ok := got[name]; !ok {
					t.Errorf("link %q holds or was not checked, want it broken", name)
				}
			}
		})
	}
}

// TestNothingUncheckedPasses holds that a report is good only with every link
// that a key directory must have.
func TestNothingUncheckedPasses(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	r := check(t, k, config(k))
	var names []string
	for _, l := range r.Links {
		if !l.Checked {
			t.Errorf("link %q was not checked: %s", l.Name, l.Detail)
		}
		names = append(names, l.Name)
	}
	want := []string{
		"bootstrap record", "quote format", "PCK certificate chain", "QE report", "quote signature", "debug bit", "service TD",
		"collateral", "revocation", "TCB status", "report data", "event log", "root certificate", "RPC certificate",
	}
	if !slices.Equal(names, want) {
		t.Errorf("links = %q, want %q", names, want)
	}
}

func TestARecordAloneLeavesCertificatesOpen(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	for _, caFile := range []string{"", k.Dir + "/root-ca.crt"} {
		s, err := subject.FromInfo(t.Context(), k.Dir+"/bootstrap-info.json", caFile)
		if err != nil {
			t.Fatal(err)
		}
		r, err := chain.Check(t.Context(), s, config(k))
		if err != nil || !r.OK {
			t.Fatalf("Check() = %v, %v, want ok", r.Err(), err)
		}
		for _, l := range r.Links {
			want := l.Name != chain.LinkRPCCert && (l.Name != chain.LinkRootCert || caFile != "")
			if l.Checked != want {
				t.Errorf("with CA file %q, link %q checked = %t, want %t", caFile, l.Name, l.Checked, want)
			}
		}
	}
}

func TestCheckRefusesATrustAnchorThatIsNone(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	cfg := config(k)
	cfg.TrustAnchor = k.TD.PCK()
	s, err := subject.FromDir(k.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := chain.Check(t.Context(), s, cfg); err == nil || !strings.Contains(err.Error(), "trust anchor") {
		t.Errorf("Check() = %v, %v, want an error about the trust anchor", r, err)
	}
}

// TestSavedCollateralServesLater verifies a ceremony long after its collateral
// and its source have gone.
func TestSavedCollateralServesLater(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	saved := filepath.Join(t.TempDir(), "a", "collateral")
	cfg := config(k)
	cfg.SaveCollateral = saved
	if r := check(t, k, cfg); !r.OK || !slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, "--collateral "+saved) }) {
		t.Fatalf("Check() = %v, notes %q, want ok and how to verify later", r.Err(), r.Notes)
	}
	var err error
	if cfg.Collateral, err = tdx.NewDirSource(saved); err != nil {
		t.Fatal(err)
	}
	cfg.SaveCollateral = ""
	cfg.Now = cfg.Now.AddDate(3, 0, 0)
	if r := check(t, k, cfg); !r.OK {
		t.Errorf("Check() in three years as of now = %v, want ok", r.Err())
	}
	cfg.At = cfg.Now
	if r := check(t, k, cfg); r.ExitCode != status.NoCollateral {
		t.Errorf("Check() in three years as of then = %d, want %d", r.ExitCode, status.NoCollateral)
	}
}

func TestBadCollateralIsNotSaved(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	cfg := config(k)
	cfg.Collateral = kmstest.New(t, simtd.Config{}).TD
	cfg.SaveCollateral = filepath.Join(t.TempDir(), "collateral")
	if r := check(t, k, cfg); r.OK {
		t.Error("Check() with another trust domain's collateral = ok")
	}
	if _, err := os.Stat(cfg.SaveCollateral); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat(%s) = %v, want that it does not exist", cfg.SaveCollateral, err)
	}
}

func TestErrIsOneLineWithTheFirstReason(t *testing.T) {
	r := &chain.Report{ExitCode: status.NotVerified, Links: []chain.Link{
		{Name: "a", Checked: true},
		{Name: "b", Checked: true, Err: errors.New("first")},
		{Name: "c", Checked: true, Err: errors.New("second")},
	}}
	if got, want := r.Err().Error(), "Evidence does not verify: b: first (and 1 more)"; got != want {
		t.Errorf("Err() = %q, want %q", got, want)
	}
}

// expected makes expectations of name, value, name, value, ...
func expected(t *testing.T, pairs ...string) expect.Set {
	t.Helper()
	var s expect.Set
	for i := 0; i < len(pairs); i += 2 {
		if err := s.Add("the test", pairs[i], pairs[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func noCollateral(t *testing.T) tdx.CollateralSource {
	t.Helper()
	s, err := tdx.NewDirSource(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// issue signs a certificate with the root CA key of by.
func issue(t *testing.T, template, parent *x509.Certificate, public any, by *kmstest.KMS) []byte {
	t.Helper()
	key, err := keys.ParseKey(by.Roots.CAPEM().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	template.SignatureAlgorithm = 0
	der, err := x509.CreateCertificate(nil, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// appCertificate is one that an application of the KMS could have, for the
// KMS's own name.
func appCertificate(t *testing.T, k *kmstest.KMS, usage string) []byte {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: kmstest.Domain}, DNSNames: []string{kmstest.Domain},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	if usage != "" {
		template.ExtraExtensions = []pkix.Extension{keys.Extension(keys.ArcUsage, []byte(usage))}
	}
	return issue(t, template, k.CA, &k.RPCKey.PublicKey, k)
}
