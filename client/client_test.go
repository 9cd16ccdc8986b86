package client_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	"teekms/client"
	kmsv1 "teekms/gen/kms/v1"
	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/attest"
	"teekms/internal/attest/guestagent/guestagenttest"
	"teekms/internal/attest/simtd"
	"teekms/internal/keys"
	"teekms/internal/ratls"
)

func TestAppKeyGetsTheKeysOfTheApplication(t *testing.T) {
	k := newKMS(t, kmsOptions{})
	env, err := k.roots.Env(appID())
	if err != nil {
		t.Fatal(err)
	}
	disk, err := k.roots.AppDisk(appID(), instanceID())
	if err != nil {
		t.Fatal(err)
	}
	app, err := k.roots.AppK256(appID())
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		edit func(*client.Config)
	}{
		{"by the root certificate", func(*client.Config) {}},
		{"by name too", func(c *client.Config) { c.ServerName = domain }},
		{"with the path of the dialect", func(c *client.Config) { c.URL += "/prpc" }},
		{"by measurement", func(c *client.Config) {
			mrtd := k.td.Measurements().MRTD
			c.CACert, c.Policy.MRTD = nil, [][]byte{make([]byte, 48), mrtd[:]}
		}},
		{"by nothing, which is said", func(c *client.Config) { c.CACert, c.Policy.AnyMeasurement = nil, true }},
		{"with a certificate of the temporary CA", func(c *client.Config) { c.TempCA = true }},
		{"the same without a root certificate", func(c *client.Config) { c.CACert, c.TempCA, c.Policy.AnyMeasurement = nil, true, true }},
		{"with the root key pinned", func(c *client.Config) { c.K256Root = k.roots.K256Public() }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := k.config(t)
			tt.edit(&cfg)
			c := dial(t, cfg)
			got, err := c.AppKey(t.Context(), "")
			if err != nil {
				t.Fatalf("AppKey() = %v", err)
			}
			if !bytes.Equal(got.DiskKey.Bytes(), disk.Bytes()) || !bytes.Equal(got.EnvKey.Bytes(), env.Private.Bytes()) || !bytes.Equal(got.K256Key.Bytes(), app.Private.Bytes()) {
				t.Error("AppKey() has other keys than those that are derived")
			}
			if !bytes.Equal(got.K256Root, k.roots.K256Public()) || got.GatewayAppID != "any" || !bytes.Equal(got.CACert, k.caPEM) {
				t.Errorf("AppKey() = %v, want the root key %x, any gateway and the root certificate", got, k.roots.K256Public())
			}
			// The machine's description came from the Evidence.
			if want := fmt.Sprintf("%x", k.td.Measurements().OSImageHash); string(got.OSImageHash) != want {
				t.Errorf("AppKey() authorized the OS image %s, want %s", got.OSImageHash, want)
			}
			if id := c.Identity(); !bytes.Equal(id.AppID, appID()) || !bytes.Equal(id.InstanceID, instanceID()) {
				t.Errorf("Identity() = %x, want %x", id, appID())
			}
			if text := fmt.Sprintf("%v %+v %#v %s", *got, got, *got, got.DiskKey); strings.Contains(text, hex.EncodeToString(disk.Bytes())) || !strings.Contains(text, "[redacted]") {
				t.Errorf("the keys print as %s, want them redacted", text)
			}
		})
	}
}

func TestAKMSThatWantsItsTemporaryCAGetsIt(t *testing.T) {
	k := newKMS(t, kmsOptions{chain: true})
	cfg := k.config(t)
	if _, err := dial(t, cfg).AppKey(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "not of the temporary CA") {
		t.Errorf("AppKey() with a certificate of one's own = %v, want that it is refused", err)
	}
	cfg.TempCA = true
	if _, err := dial(t, cfg).AppKey(t.Context(), ""); err != nil {
		t.Errorf("AppKey() = %v", err)
	}
}

func TestDialRefusesAKMSThatIsNotTheOne(t *testing.T) {
	good, bare := newKMS(t, kmsOptions{}), newKMS(t, kmsOptions{bare: true})
	app := newKMS(t, kmsOptions{application: true})
	borrowed, swapping := newKMS(t, kmsOptions{borrowed: true}), newKMS(t, kmsOptions{swap: true})
	outdated := newKMS(t, kmsOptions{endorse: &simtd.Endorsements{Platform: simtd.Level{Status: attest.OutOfDate}}})
	register := [][]byte{make([]byte, 48)}
	refuse := errors.New("not in this house")
	type kind int
	const (
		evidence kind = iota
		mismatch
	)
	tests := []struct {
		name string
		k    *kms
		edit func(*client.Config)
		kind kind
		want string
	}{
		{"another root", good, func(c *client.Config) { c.CACert = bare.caPEM }, evidence, "certificate signed by unknown authority"},
		{"another name", good, func(c *client.Config) { c.ServerName = "other.example.com" }, evidence, "certificate is valid for kms.example.com"},
		{"an application under the same root", app, func(*client.Config) {}, evidence, `special usage "app:custom", want kms:rpc`},
		{"no Evidence, no root", bare, func(c *client.Config) { c.CACert, c.Policy.AnyMeasurement = nil, true }, evidence, "does not contain attestation"},
		{"no Evidence where measurements are expected", bare, func(c *client.Config) { c.Policy.MRTD = register }, evidence, "does not contain attestation"},
		{"no Evidence where it is required", bare, func(c *client.Config) { c.Policy.RequireEvidence = true }, evidence, "does not contain attestation"},
		{"the Evidence of another key", borrowed, func(*client.Config) {}, evidence, "report data mismatch"},
		{"another key between two calls", swapping, func(c *client.Config) { c.TempCA = true }, evidence, "another key than the pinned one"},
		{"Intel's root", good, func(c *client.Config) { c.Trust.RootFile = "" }, evidence, "PCK certificate chain"},
		{"another MRTD", good, func(c *client.Config) { c.Policy.MRTD = register }, mismatch, "MRTD is "},
		{"another RTMR", good, func(c *client.Config) { c.Policy.RTMR[2] = register }, mismatch, "RTMR2 is "},
		{"what the caller refuses", good, func(c *client.Config) { c.Policy.Check = func(*client.Facts) error { return refuse } }, mismatch, refuse.Error()},
		{"a platform that is out of date", outdated, func(*client.Config) {}, evidence, "TCB status: OutOfDate, accepted is UpToDate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := tt.k.config(t)
			tt.edit(&cfg)
			c, err := client.Dial(t.Context(), cfg)
			if err == nil {
				c.Close()
			}
			_, isEvidence := errors.AsType[*client.EvidenceError](err)
			_, isMismatch := errors.AsType[*client.MismatchError](err)
			if err == nil || !strings.Contains(err.Error(), tt.want) || isEvidence != (tt.kind == evidence) || isMismatch != (tt.kind == mismatch) {
				t.Errorf("Dial() = %v, want kind %d with %q", err, tt.kind, tt.want)
			}
		})
	}
}

func TestPolicyTellsWhatItIsGiven(t *testing.T) {
	k := newKMS(t, kmsOptions{endorse: &simtd.Endorsements{Platform: simtd.Level{Status: attest.OutOfDate}}})
	cfg := k.config(t)
	var got *client.Facts
	cfg.Policy = client.Policy{AcceptTCB: []string{"OutOfDate"}, Check: func(f *client.Facts) error { got = f; return nil }}
	c := dial(t, cfg)
	m := k.td.Measurements()
	if got == nil || got.MRTD != m.MRTD || got.TCBStatus != "OutOfDate" || !bytes.Equal(got.AppID, m.AppID) || !slices.Equal(got.Names, []string{domain}) || !bytes.Equal(got.CAPublicKey, k.ca.RawSubjectPublicKeyInfo) {
		t.Errorf("the policy was given %+v, want what the KMS is", got)
	}
	if c.Facts() != got {
		t.Errorf("Facts() = %p, want %p", c.Facts(), got)
	}
	if bare := newKMS(t, kmsOptions{bare: true}); dial(t, bare.config(t)).Facts() != nil {
		t.Error("Facts() of a KMS without Evidence = something, want nil")
	}
}

func TestNoCollateralIsNeitherGoodNorBad(t *testing.T) {
	k := newKMS(t, kmsOptions{})
	cfg := k.config(t)
	cfg.Trust = client.Trust{RootFile: k.td.RootPath(), PCCS: "http://127.0.0.1:1"}
	c, err := client.Dial(t.Context(), cfg)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, client.ErrNoCollateral) {
		t.Errorf("Dial() = %v, want %v", err, client.ErrNoCollateral)
	}
}

func TestDialRefusesWhatMeansNothing(t *testing.T) {
	k := newKMS(t, kmsOptions{})
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		edit func(*client.Config)
		want string
	}{
		{"no URL", func(c *client.Config) { c.URL = "" }, "is not of the form"},
		{"plain HTTP", func(c *client.Config) { c.URL = "http://kms" }, "reached by https"},
		{"nothing identifies the KMS", func(c *client.Config) { c.CACert = nil }, "any would do"},
		{"registers that anything may extend", func(c *client.Config) { c.CACert, c.Policy.RTMR[3] = nil, [][]byte{make([]byte, 48)} }, "any would do"},
		{"a name without a root", func(c *client.Config) { c.CACert, c.Policy.AnyMeasurement, c.ServerName = nil, true, "a" }, "ServerName means nothing"},
		{"a root that is none", func(c *client.Config) { c.CACert = []byte("root") }, "CACert: not a PEM certificate"},
		{"two roots", func(c *client.Config) { c.CACert = append(slices.Clone(c.CACert), c.CACert...) }, "CACert: more than one"},
		{"a temporary CA for nobody", func(c *client.Config) { c.TempCA, c.Attester = true, nil }, "TempCA means nothing"},
		{"a key over another curve", func(c *client.Config) { c.Key = p384 }, "not over P-256"},
		{"a short root key", func(c *client.Config) { c.K256Root = []byte{2} }, "K256Root of 1 bytes"},
		{"a short register", func(c *client.Config) { c.Policy.RTMR[3] = [][]byte{{1}} }, "RTMR3 of 1 bytes"},
		{"Revoked", func(c *client.Config) { c.Policy.AcceptTCB = []string{"Revoked"} }, "Revoked cannot be accepted"},
		{"two sources", func(c *client.Config) { c.Trust.PCCS = "https://a" }, "both given"},
		{"a root without a source", func(c *client.Config) { c.Trust.CollateralDir = "" }, "needs CollateralDir or PCCS"},
		{"another application", func(c *client.Config) { c.Self.AppID = make([]byte, 20) }, "this trust domain has the app id 6161"},
		{"another instance", func(c *client.Config) { c.Self.InstanceID = make([]byte, 20) }, "this trust domain has the instance id 6969"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := k.config(t)
			tt.edit(&cfg)
			if c, err := client.Dial(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Dial() = %v, %v, want an error with %q", c, err, tt.want)
			}
		})
	}
}

func TestRefusalsSayWhy(t *testing.T) {
	tests := []struct {
		text           string
		denied, reason string
	}{
		{"App not allowed: Boot denied: compose hash not allowed", "yes", "compose hash not allowed"},
		{"App not allowed\n\nCaused by:\n    Boot denied: no", "yes", "no"},
		{"KMS self authorization failed: KMS is not allowed: out of date", "yes", "out of date"},
		{"App not allowed: Failed to verify os image hash: MRs do not match", "yes", "Failed to verify os image hash: MRs do not match"},
		{"App not allowed: authorization service unreachable", "", "App not allowed: authorization service unreachable"},
		{"Failed to decode VM config", "", "Failed to decode VM config"},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			k := newKMS(t, kmsOptions{deny: tt.text})
			c := dial(t, k.config(t))
			_, keyErr := c.AppKey(t.Context(), "")
			_, certErr := c.SignCert(t.Context(), client.CertRequest{Key: newKey(t)})
			for _, err := range []error{keyErr, certErr} {
				denied, ok := errors.AsType[*client.DeniedError](err)
				if ok != (tt.denied != "") || ok && denied.Reason != tt.reason {
					t.Errorf("the error is %v, want one that is denied: %q with %q", err, tt.denied, tt.reason)
				}
				if other, ok := errors.AsType[*client.ServerError](err); ok && other.Message != tt.reason {
					t.Errorf("the KMS said %q, want %q", other.Message, tt.reason)
				}
			}
		})
	}
}

func TestWithoutAnAttesterThereAreNoKeys(t *testing.T) {
	k := newKMS(t, kmsOptions{})
	cfg := k.config(t)
	cfg.Attester = nil
	c := dial(t, cfg)
	_, err := c.AppKey(t.Context(), "{}")
	if refused, ok := errors.AsType[*client.ServerError](err); !ok || refused.Message != "No attestation provided" {
		t.Errorf("AppKey() = %v, want that no attestation was provided", err)
	}
	if _, err := c.SignCert(t.Context(), client.CertRequest{Key: newKey(t)}); err == nil || !strings.Contains(err.Error(), "Attester is required") {
		t.Errorf("SignCert() = %v, want that an attester is required", err)
	}
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := keys.NewKey()
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func TestSignCertGetsAChain(t *testing.T) {
	k := newKMS(t, kmsOptions{})
	c := dial(t, k.config(t))
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	tests := []struct {
		name string
		req  client.CertRequest
	}{
		{"version 2", client.CertRequest{NotAfter: until, WithEvidence: true}},
		{"version 1", client.CertRequest{Version: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req := tt.req
			req.Key, req.Subject, req.Organization, req.Names = newKey(t), "app", "Example", []string{"app.example.com", "192.0.2.1"}
			req.ServerAuth, req.ClientAuth = true, true
			got, err := c.SignCert(t.Context(), req)
			if err != nil {
				t.Fatalf("SignCert() = %v", err)
			}
			roots, others := x509.NewCertPool(), x509.NewCertPool()
			roots.AddCert(k.ca)
			others.AddCert(got.Chain[1])
			leaf := got.Chain[0]
			for _, name := range req.Names {
				if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, DNSName: name}); err != nil {
					t.Errorf("Verify(%s) = %v", name, err)
				}
			}
			if !req.Key.PublicKey.Equal(leaf.PublicKey) || leaf.Subject.CommonName != "app" || len(got.PEM) != 3 {
				t.Errorf("SignCert() = %v of %d certificates, want one for app and its key", leaf.Subject, len(got.PEM))
			}
			if !tt.req.NotAfter.IsZero() && !leaf.NotAfter.Equal(until) {
				t.Errorf("the certificate is valid until %v, want %v", leaf.NotAfter, until)
			}
			if ev, err := ratls.FromCertificate(leaf); err != nil || (ev != nil) != tt.req.WithEvidence {
				t.Errorf("FromCertificate() = %v, %v, want Evidence: %v", ev, err, tt.req.WithEvidence)
			}
		})
	}
}

// Answers that no honest KMS gives are refused, by what is wrong with them.
func TestAnswersAreNotBelieved(t *testing.T) {
	other := newKMS(t, kmsOptions{})
	ctx := context.Background()
	keyOf := func(c *client.Client) error { _, err := c.AppKey(ctx, ""); return err }
	env := func(c *client.Client) error { _, err := c.EnvPublicKey(ctx, appID()); return err }
	meta := func(c *client.Client) error { _, err := c.Meta(ctx); return err }
	cert := func(c *client.Client) error {
		_, err := c.SignCert(ctx, client.CertRequest{Key: newKey(t)})
		return err
	}
	tests := []struct {
		name string
		edit func(proto.Message)
		call func(*client.Client) error
		want string
	}{
		{"a short disk key", func(m proto.Message) { m.(*kmsv1.GetAppKeyResponse).DiskCryptKey = []byte{1} }, keyOf, "disk key of 1 bytes"},
		{"no environment key", func(m proto.Message) { m.(*kmsv1.GetAppKeyResponse).EnvCryptKey = nil }, keyOf, "environment key of 0 bytes"},
		{"a key that is no scalar", func(m proto.Message) { m.(*kmsv1.GetAppKeyResponse).K256Key = make([]byte, 32) }, keyOf, "the secp256k1 key is none"},
		{"another root", func(m proto.Message) { m.(*kmsv1.GetAppKeyResponse).CaCert = string(other.caPEM) }, keyOf, "ca_cert: another root"},
		{"a short signature", func(m proto.Message) { m.(*kmsv1.GetAppKeyResponse).K256Signature = []byte{1} }, keyOf, "k256_signature: 1 bytes"},
		{"a signature over another key", func(m proto.Message) { m.(*kmsv1.GetAppKeyResponse).K256Key = bytes.Repeat([]byte{1}, 32) }, keyOf, "k256_signature is by the key"},
		{"another environment key", func(m proto.Message) {
			m.(*kmsv1.GetAppEnvEncryptPubKeyResponse).PublicKey = make([]byte, 32)
		}, env, "signature is by the key"},
		{"another time", func(m proto.Message) { m.(*kmsv1.GetAppEnvEncryptPubKeyResponse).Timestamp++ }, env, "signature_v1 is not by the key of signature"},
		{"no signature", func(m proto.Message) { m.(*kmsv1.GetAppEnvEncryptPubKeyResponse).Signature = nil }, env, "signature: 0 bytes"},
		{"another root in GetMeta", func(m proto.Message) { m.(*kmsv1.GetMetaResponse).CaCert = string(other.caPEM) }, meta, "ca_cert: another root"},
		{"another root key in GetMeta", func(m proto.Message) { m.(*kmsv1.GetMetaResponse).K256Pubkey = other.roots.K256Public() }, meta, "k256_pubkey is by the key"},
		{"no chain", func(m proto.Message) { m.(*kmsv1.SignCertResponse).CertificateChain = nil }, cert, "0 certificates"},
		{"a chain without its end", func(m proto.Message) {
			r := m.(*kmsv1.SignCertResponse)
			r.CertificateChain = r.CertificateChain[:2]
		}, cert, "ca_cert: another root"},
		{"a chain without its middle", func(m proto.Message) {
			r := m.(*kmsv1.SignCertResponse)
			r.CertificateChain = []string{r.CertificateChain[0], r.CertificateChain[2]}
		}, cert, "certificate 0 is not by the next one"},
		{"a certificate for another key", func(m proto.Message) {
			r := m.(*kmsv1.SignCertResponse)
			r.CertificateChain = r.CertificateChain[1:]
		}, cert, "for another key"},
		{"text", func(m proto.Message) { m.(*kmsv1.SignCertResponse).CertificateChain[0] = "leaf" }, cert, "certificate 0 is not PEM"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := newKMS(t, kmsOptions{edit: tt.edit})
			cfg := k.config(t)
			cfg.K256Root = k.roots.K256Public()
			if err := tt.call(dial(t, cfg)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the call = %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestEnvPublicKeyIsCheckedByTheClock(t *testing.T) {
	tests := []struct {
		name string
		skew time.Duration
		want string
	}{
		{"now", 0, ""},
		{"four minutes ago", -4 * time.Minute, ""},
		{"six minutes ago", -6 * time.Minute, "which is not now"},
		{"a little ahead", 30 * time.Second, ""},
		{"two minutes ahead", 2 * time.Minute, "which is not now"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := newKMS(t, kmsOptions{skew: tt.skew})
			cfg := k.config(t)
			cfg.Attester, cfg.K256Root = nil, k.roots.K256Public()
			got, err := dial(t, cfg).EnvPublicKey(t.Context(), appID())
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("EnvPublicKey() = %v, want an error with %q", err, tt.want)
				}
				return
			}
			want, _ := k.roots.Env(appID())
			if err != nil || !bytes.Equal(got.PublicKey, want.Public) || !bytes.Equal(got.K256Root, k.roots.K256Public()) || got.SignedAt.IsZero() {
				t.Errorf("EnvPublicKey() = %+v, %v, want %x", got, err, want.Public)
			}
		})
	}
}

func TestAnOlderKMSSignsWithoutATime(t *testing.T) {
	k := newKMS(t, kmsOptions{edit: func(m proto.Message) {
		r := m.(*kmsv1.GetAppEnvEncryptPubKeyResponse)
		r.Timestamp, r.SignatureV1 = 0, nil
	}})
	cfg := k.config(t)
	cfg.Attester = nil
	got, err := dial(t, cfg).EnvPublicKey(t.Context(), appID())
	if err != nil || !got.SignedAt.IsZero() || !bytes.Equal(got.K256Root, k.roots.K256Public()) {
		t.Errorf("EnvPublicKey() = %+v, %v, want a key without a time", got, err)
	}
}

func TestALostConnectionIsMadeAnew(t *testing.T) {
	k := newKMS(t, kmsOptions{})
	cfg := k.config(t)
	appraised := 0
	cfg.Policy.Check = func(*client.Facts) error { appraised++; return nil }
	c := dial(t, cfg)
	for range 3 {
		if _, err := c.AppKey(t.Context(), ""); err != nil {
			t.Fatalf("AppKey() = %v", err)
		}
	}
	if appraised != 1 {
		t.Errorf("after three calls the KMS was appraised %d times, want once", appraised)
	}
	c.Close()
	if _, err := c.AppKey(t.Context(), ""); err != nil || appraised != 2 {
		t.Errorf("AppKey() after Close = %v with %d appraisals, want it to connect and appraise again", err, appraised)
	}
}

func TestAttesters(t *testing.T) {
	k := newKMS(t, kmsOptions{})
	cfg := k.config(t)
	t.Run("one of the caller's own", func(t *testing.T) {
		cfg := cfg
		cfg.Attester = client.Custom(func(ctx context.Context, reportData [64]byte) (*client.Evidence, error) {
			return nil, errors.New("no quote today")
		})
		if c, err := client.Dial(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "no quote today") {
			t.Errorf("Dial() = %v, %v, want the attester's error", c, err)
		}
		cfg.Attester = client.Custom(func(context.Context, [64]byte) (*client.Evidence, error) { return nil, nil })
		if c, err := client.Dial(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "made no Evidence") {
			t.Errorf("Dial() = %v, %v, want that there is no Evidence", c, err)
		}
	})
	t.Run("none on this machine", func(t *testing.T) {
		t.Setenv("DSTACK_AGENT_ADDRESS", "")
		auto, err := client.Auto()
		if err != nil {
			t.Fatal(err)
		}
		cfg := cfg
		cfg.Attester = auto
		if c, err := client.Dial(t.Context(), cfg); !errors.Is(err, client.ErrNoAttester) {
			t.Errorf("Dial() = %v, %v, want %v", c, err, client.ErrNoAttester)
		}
	})
	t.Run("a simulator that is not there", func(t *testing.T) {
		if _, err := client.Simulator(client.SimulatorConfig{Dir: t.TempDir() + "/none"}); err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("Simulator() = %v, want that there is none", err)
		}
	})
}

// Guest agents of every age make Evidence with which a workload gets its keys
// and a certificate, in both forms of the client certificate.
func TestGuestAgentsOfEveryAge(t *testing.T) {
	k := newKMS(t, kmsOptions{})
	guest, err := simtd.Open(simtd.Config{Dir: k.dir, Ephemeral: true, Measurements: simtd.Measurements{AppID: appID(), ComposeHash: composeHash()}})
	if err != nil {
		t.Fatal(err)
	}
	want, err := k.roots.Env(appID())
	if err != nil {
		t.Fatal(err)
	}
	for name, g := range map[string]guestagenttest.Generation{
		"current": guestagenttest.Current, "before Attest": guestagenttest.WithoutAttest,
	} {
		for _, tempCA := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, temporary CA %t", name, tempCA), func(t *testing.T) {
				agent, err := client.GuestAgent("unix:" + guestagenttest.Listen(t, guestagenttest.Handler(guest, g)))
				if err != nil {
					t.Fatal(err)
				}
				cfg := k.config(t)
				cfg.Attester, cfg.TempCA = agent, tempCA
				cfg.Self = client.Identity{AppID: appID(), ComposeHash: composeHash()}
				c := dial(t, cfg)
				got, err := c.AppKey(t.Context(), "")
				if err != nil || !bytes.Equal(got.EnvKey.Bytes(), want.Private.Bytes()) {
					t.Errorf("AppKey() = %v, %v, want the keys of the application", got, err)
				}
				if _, err := c.SignCert(t.Context(), client.CertRequest{Key: newKey(t), Subject: "app"}); err != nil {
					t.Errorf("SignCert() = %v", err)
				}
			})
		}
	}
}

func TestATemporaryCAThatIsNoneIsRefused(t *testing.T) {
	other := newKMS(t, kmsOptions{})
	otherKey, err := keys.KeyPEM(other.tempKey)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		edit func(*kmsv1.GetTempCaCertResponse)
		want string
	}{
		{"no certificate", func(r *kmsv1.GetTempCaCertResponse) { r.TempCaCert = "" }, "temp_ca_cert: "},
		{"no key", func(r *kmsv1.GetTempCaCertResponse) { r.TempCaKey = "" }, "temp_ca_key: "},
		{"another key", func(r *kmsv1.GetTempCaCertResponse) { r.TempCaKey = string(otherKey.Bytes()) }, "the key is not that of the certificate"},
		{"another root", func(r *kmsv1.GetTempCaCertResponse) { r.CaCert = string(other.caPEM) }, "ca_cert: "},
		{"no root", func(r *kmsv1.GetTempCaCertResponse) { r.CaCert = "" }, "ca_cert: not a PEM certificate"},
	}
	for _, tt := range tests {
		for _, pinned := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, root pinned %t", tt.name, pinned), func(t *testing.T) {
				k := newKMS(t, kmsOptions{edit: func(m proto.Message) { tt.edit(m.(*kmsv1.GetTempCaCertResponse)) }})
				cfg := k.config(t)
				cfg.TempCA = true
				if !pinned {
					cfg.CACert, cfg.Policy.AnyMeasurement = nil, true
				}
				if c, err := client.Dial(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "GetTempCaCert: "+tt.want) {
					t.Errorf("Dial() = %v, %v, want an error with %q", c, err, tt.want)
				}
			})
		}
	}
}

func TestMetaTellsWhatTheKMSSays(t *testing.T) {
	gateway := "gateway"
	k := newKMS(t, kmsOptions{edit: func(m proto.Message) {
		r := m.(*kmsv1.GetMetaResponse)
		r.GatewayAppId, r.InsecureSettings = &gateway, []string{"core.image.verify"}
		r.BootstrapInfo = &onboardv1.BootstrapResponse{CaPubkey: []byte{1}, K256Pubkey: []byte{2}, Quote: []byte{3}, Eventlog: []byte("[]")}
	}})
	cfg := k.config(t)
	cfg.Attester, cfg.K256Root = nil, k.roots.K256Public()
	got, err := dial(t, cfg).Meta(t.Context())
	if err != nil {
		t.Fatalf("Meta() = %v", err)
	}
	want := &client.Meta{
		CACert: k.caPEM, K256Root: k.roots.K256Public(), IsDev: true, GatewayAppID: gateway, InsecureSettings: []string{"core.image.verify"},
		Bootstrap: &client.Bootstrap{CAPublicKey: []byte{1}, K256PublicKey: []byte{2}, Quote: []byte{3}, EventLog: []byte("[]")},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("Meta() (-want +got)\n%s", diff)
	}
}

// Servers close connections on which nothing happens: one that waited too long
// for its first call is not used.
func TestAConnectionThatWaitedIsMadeAnew(t *testing.T) {
	k := newKMS(t, kmsOptions{})
	cfg := k.config(t)
	var later atomic.Int64
	cfg.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	appraised := 0
	cfg.Policy.Check = func(*client.Facts) error { appraised++; return nil }
	c := dial(t, cfg)
	later.Store(int64(6 * time.Second))
	if _, err := c.AppKey(t.Context(), ""); err != nil || appraised != 2 {
		t.Errorf("AppKey() = %v with %d appraisals, want a second connection", err, appraised)
	}
}

func TestErrorsPrintTheirReason(t *testing.T) {
	for want, err := range map[string]error{
		"denied by the KMS: no":                      &client.DeniedError{Reason: "no"},
		"denied by the KMS, without a reason":        &client.DeniedError{},
		"GetAppKey: the KMS answers: no":             &client.ServerError{Method: "GetAppKey", Message: "no"},
		"the KMS does not verify: no":                &client.EvidenceError{Err: errors.New("no")},
		"the KMS is not what was expected: no":       &client.MismatchError{Err: errors.New("no")},
		"the KMS does not verify: " + noCollateral(): &client.EvidenceError{Err: client.ErrNoCollateral},
	} {
		if err.Error() != want {
			t.Errorf("Error() = %q, want %q", err, want)
		}
	}
}

func noCollateral() string { return client.ErrNoCollateral.Error() }
