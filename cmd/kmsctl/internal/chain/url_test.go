package chain_test

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"teekms/cmd/kmsctl/internal/chain"
	"teekms/cmd/kmsctl/internal/kmstest"
	"teekms/cmd/kmsctl/internal/status"
	"teekms/cmd/kmsctl/internal/subject"
	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx/pcs"
	"teekms/internal/keys"
)

// serve is a KMS that answers GetMeta of k, changed by edit, under the given
// certificate and key.
func serve(t *testing.T, k *kmstest.KMS, cert tls.Certificate, edit func(map[string]any)) string {
	t.Helper()
	var record map[string]any
	if err := json.Unmarshal(k.Record(t, hex.EncodeToString), &record); err != nil {
		t.Fatal(err)
	}
	meta := map[string]any{
		"ca_cert": string(keys.CertificatePEM(k.CA.Raw)), "k256_pubkey": hex.EncodeToString(k.Roots.K256Public()),
		"bootstrap_info": record, "insecure_settings": []string{},
	}
	edit(meta)
	body := kmstest.JSON(t, meta)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.URL
}

func certificate(k *kmstest.KMS, der []byte) tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k.RPCKey}
}

func TestCheckOfARunningKMS(t *testing.T) {
	other := kmstest.New(t, simtd.Config{})
	untouched := func(map[string]any) {}
	tests := []struct {
		name string
		cert func(*testing.T, *kmstest.KMS) tls.Certificate
		edit func(map[string]any)
		// change is made to the time of the check.
		change time.Duration
		broken map[string]string
		code   int
		note   string
	}{
		{
			"the KMS itself", func(_ *testing.T, k *kmstest.KMS) tls.Certificate { return certificate(k, k.RPC) }, untouched, 0,
			nil, status.OK, "believed for the quote alone",
		},
		{
			"someone in between, with a certificate of his own",
			func(*testing.T, *kmstest.KMS) tls.Certificate { return certificate(other, other.RPC) }, untouched, 0,
			map[string]string{chain.LinkRPCCert: "; a KMS with a PKCS#12 shows that"},
			status.NotVerified, "",
		},
		{
			"an application under the same root",
			func(t *testing.T, k *kmstest.KMS) tls.Certificate {
				return certificate(k, appCertificate(t, k, "app:custom"))
			},
			untouched, 0,
			map[string]string{chain.LinkRPCCert: `its usage is "app:custom"`},
			status.NotVerified, "",
		},
		{
			"an expired certificate", func(_ *testing.T, k *kmstest.KMS) tls.Certificate { return certificate(k, k.RPC) }, untouched,
			365 * 24 * time.Hour,
			map[string]string{chain.LinkRPCCert: "expired"},
			status.NotVerified, "",
		},
		{
			"another root certificate",
			func(*testing.T, *kmstest.KMS) tls.Certificate { return certificate(other, other.RPC) },
			func(m map[string]any) { m["ca_cert"] = string(keys.CertificatePEM(other.CA.Raw)) }, 0,
			map[string]string{chain.LinkRootCert: "of another key than the record"},
			status.NotVerified, "",
		},
		{
			"another secp256k1 key", func(_ *testing.T, k *kmstest.KMS) tls.Certificate { return certificate(k, k.RPC) },
			func(m map[string]any) { m["k256_pubkey"] = hex.EncodeToString(other.Roots.K256Public()) }, 0,
			map[string]string{chain.LinkK256: "the record has"},
			status.NotVerified, "",
		},
		{
			"an unreadable record", func(_ *testing.T, k *kmstest.KMS) tls.Certificate { return certificate(k, k.RPC) },
			func(m map[string]any) { m["bootstrap_info"] = map[string]any{} }, 0,
			map[string]string{chain.LinkRecord: "ca_pubkey: missing"},
			status.NotVerified, "",
		},
		{
			"a KMS that trusts another root and is weakened",
			func(_ *testing.T, k *kmstest.KMS) tls.Certificate { return certificate(k, k.RPC) },
			func(m map[string]any) {
				m["trust_root_sha256"], m["insecure_settings"] = strings.Repeat("ab", 32), []string{"rpc.insecure_x"}
			}, 0,
			nil, status.OK, "the KMS itself trusts another root: abab",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := kmstest.New(t, simtd.Config{})
			s, err := subject.FromURL(t.Context(), serve(t, k, tt.cert(t, k), tt.edit))
			if err != nil {
				t.Fatal(err)
			}
			cfg := config(k)
			cfg.Now = cfg.Now.Add(tt.change)
			r, err := chain.Check(t.Context(), s, cfg)
			if err != nil {
				t.Fatal(err)
			}
			if r.ExitCode != tt.code {
				t.Errorf("Check() = %d, %v, want %d", r.ExitCode, r.Err(), tt.code)
			}
			got := broken(r)
			for name, want := range tt.broken {
				if why, ok := got[name]; !ok || !strings.Contains(why, want) {
					t.Errorf("link %q says %q, want it broken for %q", name, why, want)
				}
			}
			if len(got) != len(tt.broken) {
				t.Errorf("broken links = %v, want %v", got, tt.broken)
			}
			if notes := strings.Join(r.Notes, "; "); !strings.Contains(notes, tt.note) {
				t.Errorf("notes = %q, want %q", notes, tt.note)
			}
		})
	}
}

func TestAnotherNameThanTheCertificatesIsRemarked(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	url := serve(t, k, certificate(k, k.RPC), func(map[string]any) {})
	s, err := subject.FromURL(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]bool{s.Host: true, kmstest.Domain: false} {
		s.Host = host
		r, err := chain.Check(t.Context(), s, config(k))
		if err != nil || !r.OK {
			t.Fatalf("Check() = %v, %v", r.Err(), err)
		}
		for _, l := range r.Links {
			if l.Name == chain.LinkRPCCert && strings.Contains(l.Detail, "called by another name") != want {
				t.Errorf("called %s: %s, want a remark %t", host, l.Detail, want)
			}
		}
	}
}

func TestAServerNameIsInsistedOn(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	url := serve(t, k, certificate(k, k.RPC), func(map[string]any) {})
	for name, want := range map[string]string{kmstest.Domain: "", "other.example.com": "it is not for --server-name: x509: certificate is valid for " + kmstest.Domain} {
		s, err := subject.FromNamedURL(t.Context(), url, name)
		if err != nil {
			t.Fatal(err)
		}
		r, err := chain.Check(t.Context(), s, config(k))
		if err != nil {
			t.Fatal(err)
		}
		if got := broken(r)[chain.LinkRPCCert]; !strings.Contains(got, want) || (want == "") != r.OK {
			t.Errorf("Check() with the name %s: ok %t, RPC certificate %q, want %q", name, r.OK, got, want)
		}
		for _, l := range r.Links {
			if l.Name == chain.LinkRPCCert && strings.Contains(l.Detail, "called by another name") {
				t.Errorf("with the name %s: %s, want no remark on the name of the URL", name, l.Detail)
			}
		}
	}
}

func TestNothingExpectedIsNoted(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	mrtd := k.TD.Measurements().MRTD
	cfg := config(k)
	for _, tt := range []struct {
		pairs []string
		want  bool
	}{
		{nil, true},
		{[]string{"domain", kmstest.Domain}, true},
		{[]string{"mrtd", hex.EncodeToString(mrtd[:])}, false},
	} {
		cfg.Expect = expected(t, tt.pairs...)
		r := check(t, k, cfg)
		if got := strings.Contains(strings.Join(r.Notes, ";"), "any trust domain would do"); got != tt.want || !r.OK {
			t.Errorf("expecting %q: ok %t, notes %q, want a note %t", tt.pairs, r.OK, r.Notes, tt.want)
		}
	}
}

// TestCheckObeysItsContext has collateral come from a server that says nothing.
func TestCheckObeysItsContext(t *testing.T) {
	k := kmstest.New(t, simtd.Config{})
	cfg := config(k)
	cfg.Collateral = silent(t)
	s, err := subject.FromDir(k.Dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	r, err := chain.Check(ctx, s, cfg)
	if err != nil || r.ExitCode != status.NoCollateral {
		t.Errorf("Check() = %v, %v, want %d", r.Err(), err, status.NoCollateral)
	}
	if why := broken(r)[attest.LinkCollateral]; !strings.Contains(why, "deadline exceeded") {
		t.Errorf("link %q says %q, want that time is over", attest.LinkCollateral, why)
	}
}

// silent is a source whose server accepts connections and never answers.
func silent(t *testing.T) *pcs.Client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c, err := pcs.New(pcs.Config{URL: "http://" + l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
