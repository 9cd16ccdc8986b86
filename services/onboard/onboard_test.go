package onboard_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/authz"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
	"teekms/internal/ratls"
	"teekms/services/onboard"
)

const replicaDomain = "replica.example.com"

func (f *fixture) onboard(t *testing.T, url string) (*onboardv1.OnboardResponse, error) {
	t.Helper()
	return f.client.Onboard(t.Context(), &onboardv1.OnboardRequest{SourceUrl: url, Domain: replicaDomain})
}

func publicOf(t testing.TB, c tls.Certificate) *ecdsa.PublicKey {
	t.Helper()
	key, ok := c.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("private key is a %T", c.PrivateKey)
	}
	return &key.PublicKey
}

func readFile(t testing.TB, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// checkReplica wants the replica to have the peer's keys and a name and an RPC
// key of its own.
func checkReplica(t *testing.T, f *fixture, p *peer) {
	t.Helper()
	for _, name := range []string{"root-ca.key", "root-k256.key", "tmp-ca.key"} {
		if !bytes.Equal(readFile(t, f.dir, name), readFile(t, p.dir, name)) {
			t.Errorf("%s is not the source's", name)
		}
	}
	if bytes.Equal(readFile(t, f.dir, "rpc.key"), readFile(t, p.dir, "rpc.key")) {
		t.Error("rpc.key is the source's, want the replica's own")
	}
	stored, err := keystore.Open(t.Context(), keystore.Config{Dir: f.dir})
	if err != nil {
		t.Fatal(err)
	}
	if stored.Domain() != replicaDomain {
		t.Errorf("Domain = %q, want %q", stored.Domain(), replicaDomain)
	}
}

func TestOnboardTakesOverThePeersKeys(t *testing.T) {
	f := newFixture(t, nil)
	p := newPeer(t, f.td)
	p.serve(t)
	got, err := f.onboard(t, p.url+"/")
	if err != nil {
		t.Fatal(err)
	}
	if want := p.bundle.Roots().K256Public(); !bytes.Equal(got.GetK256Pubkey(), want) {
		t.Errorf("k256_pubkey = %x, want %x", got.GetK256Pubkey(), want)
	}
	checkReplica(t, f, p)
	if !bytes.Equal(readFile(t, f.dir, "bootstrap-info.json"), readFile(t, p.dir, "bootstrap-info.json")) {
		t.Error("bootstrap-info.json is not the source's")
	}
	if n := p.connections.Load(); n != 1 {
		t.Errorf("the source saw %d connections, want 1", n)
	}
	if want := []string{"GetKmsKey", "GetMeta"}; !slices.Equal(p.attested, want) {
		t.Errorf("asked for with attestation: %q, want %q", p.attested, want)
	}
	if p.vmConfig != f.td.VMConfig() {
		t.Errorf("GetKmsKey had vm_config %q, want %q", p.vmConfig, f.td.VMConfig())
	}

	_, err = f.onboard(t, p.url)
	wantError(t, err, connect.CodeAlreadyExists, "Bootstrap already completed")
	_, err = f.client.Bootstrap(t.Context(), request("kms.example.com", ""))
	wantError(t, err, connect.CodeAlreadyExists, "Bootstrap already completed")
	if _, err := f.client.Finish(t.Context(), &onboardv1.FinishRequest{}); err != nil {
		t.Errorf("Finish after Onboard: %v", err)
	}
}

func TestOnboardAfterABootstrapIsRefused(t *testing.T) {
	f := newFixture(t, nil)
	if _, err := f.client.Bootstrap(t.Context(), request("kms.example.com", "")); err != nil {
		t.Fatal(err)
	}
	_, err := f.onboard(t, "https://peer.example.com")
	wantError(t, err, connect.CodeAlreadyExists, "Bootstrap already completed")
}

// TestOnboardFromOlderSources has sources that write Evidence the old way, want
// certificates of their temporary CA, or tell their bootstrap otherwise.
func TestOnboardFromOlderSources(t *testing.T) {
	tests := []struct {
		name        string
		change      func(t *testing.T, p *peer)
		connections int32
		record      bool
	}{
		{"Evidence in extensions 1 and 2", func(t *testing.T, p *peer) {
			p.extensions = func(spki []byte) []pkix.Extension { return evidenceOf(t, p.td, spki, ratls.Gen1) }
		}, 1, true},
		{"client certificates of the temporary CA only", func(_ *testing.T, p *peer) { p.wantsIssuer = true }, 3, true},
		{"no record of the bootstrap", func(_ *testing.T, p *peer) { p.metaAnswer["bootstrap_info"] = nil }, 1, false},
		{"a record that cannot be read", func(_ *testing.T, p *peer) {
			p.metaAnswer["bootstrap_info"] = map[string]any{
				"ca_pubkey": hex.EncodeToString(p.bundle.Info().CAPublic), "k256_pubkey": hex.EncodeToString(p.bundle.Info().K256Public), "attestation": "ff",
			}
		}, 1, false},
		{"a record without a quote", func(_ *testing.T, p *peer) {
			record := recordJSON(p.bundle.Info())
			record["quote"], record["eventlog"] = "", ""
			p.metaAnswer["bootstrap_info"] = record
		}, 1, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, nil)
			p := newPeer(t, f.td)
			tt.change(t, p)
			p.serve(t)
			if _, err := f.onboard(t, p.url); err != nil {
				t.Fatal(err)
			}
			checkReplica(t, f, p)
			if _, err := os.Stat(filepath.Join(f.dir, "bootstrap-info.json")); (err == nil) != tt.record {
				t.Errorf("bootstrap-info.json: %v, want it there: %t", err, tt.record)
			}
			if n := p.connections.Load(); n != tt.connections {
				t.Errorf("the source saw %d connections, want %d", n, tt.connections)
			}
			if want := []string{"GetKmsKey", "GetMeta"}; !slices.Equal(p.attested, want) {
				t.Errorf("asked for with attestation: %q, want %q", p.attested, want)
			}
		})
	}
}

// TestOnboardRefusals has sources with something wrong about them. Each is
// refused with its reason, and nothing is written.
func TestOnboardRefusals(t *testing.T) {
	for _, tt := range slices.Concat(handshakeRefusals(), answerRefusals()) {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, func(c *onboard.Config, _ *simtd.TD) { c.PeerTimeout = 5 * time.Second })
			p := newPeer(t, f.td)
			tt.change(t, p)
			p.serve(t)
			_, err := f.onboard(t, p.url)
			wantError(t, err, tt.code, tt.want)
			if _, err := os.Stat(f.dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the refused peer left %s behind", f.dir)
			}
			if n := p.connections.Load(); n != 1 {
				t.Errorf("the source saw %d connections, want 1", n)
			}
			// The next call is free to succeed.
			good := newPeer(t, f.td)
			good.serve(t)
			if _, err := f.onboard(t, good.url); err != nil {
				t.Errorf("the next Onboard: %v", err)
			}
		})
	}
}

type refusalTest struct {
	name   string
	change func(t *testing.T, p *peer)
	code   connect.Code
	want   string
}

func handshakeRefusals() []refusalTest {
	const code = connect.CodeFailedPrecondition
	return []refusalTest{
		{"no Evidence", func(_ *testing.T, p *peer) {
			p.extensions = func([]byte) []pkix.Extension { return nil }
		}, code, "Source KMS certificate does not contain attestation"},
		{"Evidence of another connection's key", func(t *testing.T, p *peer) {
			theirs := evidenceOf(t, p.td, []byte("the key of somebody else"), ratls.Gen8)
			p.extensions = func([]byte) []pkix.Extension { return theirs }
		}, code, "source KMS refused: invalid quote: report data: report data mismatch"},
		{"Evidence under another trust root", func(t *testing.T, p *peer) {
			other, err := simtd.Open(simtd.Config{Dir: filepath.Join(t.TempDir(), "other")})
			if err != nil {
				t.Fatal(err)
			}
			p.extensions = func(spki []byte) []pkix.Extension { return evidenceOf(t, other, spki, ratls.Gen8) }
		}, code, "source KMS refused: invalid quote: PCK certificate chain"},
		{"a debug TD", func(t *testing.T, p *peer) {
			p.extensions = func(spki []byte) []pkix.Extension {
				e, err := p.td.Attest(context.Background(), attest.RATLSReportData(spki))
				if err != nil {
					t.Fatal(err)
				}
				e.Quote, err = p.td.Quote(attest.RATLSReportData(spki).Bytes(), simtd.Shape{EditSigned: func(b []byte) { b[0xa8] |= 1 }})
				if err != nil {
					t.Fatal(err)
				}
				extensions, err := ratls.Extensions(e, ratls.Gen8)
				if err != nil {
					t.Fatal(err)
				}
				return extensions
			}
		}, code, "source KMS refused: invalid quote: debug bit"},
		{"an application's certificate", func(t *testing.T, p *peer) {
			p.issue = func(key tls.Certificate, extensions []pkix.Extension) []byte {
				return selfSigned(t, key, append(extensions, keys.Extension(keys.ArcUsage, []byte("app:custom"))))
			}
		}, code, `special usage "app:custom", want kms:rpc`},
		{"a certificate of no usage", func(t *testing.T, p *peer) {
			p.issue = func(key tls.Certificate, extensions []pkix.Extension) []byte { return selfSigned(t, key, extensions) }
		}, code, "has no special usage, want kms:rpc"},
		{"a certificate of another root", func(t *testing.T, p *peer) {
			p.issue = func(key tls.Certificate, extensions []pkix.Extension) []byte {
				return selfSigned(t, key, append(extensions, keys.Extension(keys.ArcUsage, []byte(keys.UsageRPC))))
			}
		}, code, "its server certificate is not of the root key it handed over"},
	}
}

// selfSigned makes a server certificate outside of any PKI.
func selfSigned(t testing.TB, key tls.Certificate, extensions []pkix.Extension) []byte {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "peer.example.com"}, DNSNames: []string{"peer.example.com"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtraExtensions: extensions,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, publicOf(t, key), key.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func answerRefusals() []refusalTest {
	const code = connect.CodeFailedPrecondition
	oneKey := func(p *peer) map[string]any { return p.keysAnswer["keys"].([]any)[0].(map[string]any) }
	return []refusalTest{
		{"it denies", func(_ *testing.T, p *peer) {
			p.handle["GetKmsKey"] = func(w http.ResponseWriter, _ *http.Request) {
				prpcError(w, "App not allowed: Boot denied: not\n on the list")
			}
		}, connect.CodePermissionDenied, "source KMS denied: App not allowed: Boot denied: not on the list"},
		{"no keys", func(_ *testing.T, p *peer) { p.keysAnswer["keys"] = []any{} }, code, "source KMS refused: Invalid keys"},
		{"two sets of keys", func(_ *testing.T, p *peer) {
			p.keysAnswer["keys"] = append(p.keysAnswer["keys"].([]any), oneKey(p))
		}, code, "source KMS refused: Invalid keys"},
		{"a CA key that is none", func(_ *testing.T, p *peer) { oneKey(p)["ca_key"] = "-----BEGIN" }, code, "Invalid keys"},
		{"a short secp256k1 key", func(_ *testing.T, p *peer) { oneKey(p)["k256_key"] = "00" }, code, "Invalid keys"},
		{"a key that is not hex", func(_ *testing.T, p *peer) { oneKey(p)["k256_key"] = "zz" }, code, "its answer to GetKmsKey is not what a KMS answers"},
		{"a temporary CA key that is none", func(_ *testing.T, p *peer) { p.keysAnswer["temp_ca_key"] = "" }, code, "Invalid temporary CA key"},
		{"other k256 key in the second answer", func(t *testing.T, p *peer) {
			p.metaAnswer["k256_pubkey"] = hex.EncodeToString(newPeer(t, p.td).bundle.Roots().K256Public())
		}, code, "its answers are about different root keys"},
		{"other CA key in the second answer", func(t *testing.T, p *peer) {
			p.metaAnswer["ca_cert"] = newPeer(t, p.td).metaAnswer["ca_cert"]
		}, code, "its answers are about different root keys"},
		{"a swapped first answer", func(t *testing.T, p *peer) {
			p.keysAnswer = newPeer(t, p.td).keysAnswer
		}, code, "its answers are about different root keys"},
		{"both answers swapped", func(t *testing.T, p *peer) {
			other := newPeer(t, p.td)
			p.keysAnswer, p.metaAnswer = other.keysAnswer, other.metaAnswer
		}, code, "its server certificate is not of the root key it handed over"},
		{"no CA certificate", func(_ *testing.T, p *peer) { p.metaAnswer["ca_cert"] = "" }, code, "its CA certificate cannot be read"},
		{"a record of other keys", func(t *testing.T, p *peer) {
			p.metaAnswer["bootstrap_info"] = newPeer(t, p.td).metaAnswer["bootstrap_info"]
		}, code, "its record of the bootstrap is about other root keys"},
		{"a record whose quote binds other keys", func(t *testing.T, p *peer) {
			p.metaAnswer["bootstrap_info"].(map[string]any)["quote"] = hex.EncodeToString(newPeer(t, p.td).bundle.Info().Quote)
		}, code, "the quote in its record of the bootstrap binds other keys"},
		{"a record whose quote is none", func(_ *testing.T, p *peer) {
			p.metaAnswer["bootstrap_info"].(map[string]any)["quote"] = "00ff"
		}, code, "the quote in its record of the bootstrap cannot be read"},
		{"a huge answer", func(_ *testing.T, p *peer) {
			p.keysAnswer["temp_ca_key"] = strings.Repeat("x", 65<<10)
		}, code, "its answer to GetKmsKey is larger than 65536 bytes"},
		{"a compressed answer", func(_ *testing.T, p *peer) {
			p.handle["GetKmsKey"] = func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Encoding", "gzip")
				_, _ = w.Write([]byte{0x1f, 0x8b, 8, 0}) // the client may be gone
			}
		}, code, "its answer to GetKmsKey is not what a KMS answers"},
		{"a gateway in between", func(_ *testing.T, p *peer) {
			p.handle["GetMeta"] = func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<h1>Bad Gateway", http.StatusBadGateway) }
		}, code, "it answered GetMeta with status 502"},
		{"a redirect", func(_ *testing.T, p *peer) {
			p.handle["GetKmsKey"] = func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "https://127.0.0.1:1/prpc/GetKmsKey?json", http.StatusTemporaryRedirect)
			}
		}, code, "it answered GetKmsKey with status 307"},
		{"a connection for each answer", func(_ *testing.T, p *peer) {
			p.handle["GetKmsKey"] = func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Connection", "close")
				p.answer(w, r, "GetKmsKey", true)
			}
		}, connect.CodeUnavailable, "source KMS unreachable: it closed the connection before it had answered everything"},
		{"a connection that is cut", func(_ *testing.T, p *peer) {
			p.handle["GetMeta"] = func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
		}, connect.CodeUnavailable, "source KMS unreachable: it closed the connection before it had answered everything"},
		{"a header without end", func(_ *testing.T, p *peer) {
			p.handle["GetKmsKey"] = func(w http.ResponseWriter, _ *http.Request) {
				for i := range 4096 {
					w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 64))
				}
			}
		}, connect.CodeUnavailable, "source KMS unreachable: "},
	}
}

func TestOnboardGivesUpOnASilentSource(t *testing.T) {
	f := newFixture(t, func(c *onboard.Config, _ *simtd.TD) { c.PeerTimeout = 300 * time.Millisecond })
	p := newPeer(t, f.td)
	p.handle["GetKmsKey"] = func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // else the server does not notice that the client leaves
		<-r.Context().Done()
	}
	p.serve(t)
	_, err := f.onboard(t, p.url)
	wantError(t, err, connect.CodeUnavailable, "source KMS unreachable: it does not answer in time")
}

func TestOnboardWithoutAListener(t *testing.T) {
	f := newFixture(t, nil)
	_, err := f.onboard(t, "https://127.0.0.1:1")
	wantError(t, err, connect.CodeUnavailable, "source KMS unreachable: the connection was refused")
	_, err = f.onboard(t, strings.Replace(f.server.URL, "http://", "https://", 1))
	wantError(t, err, connect.CodeUnavailable, "source KMS unreachable: the TLS handshake failed")
}

func TestOnboardWithoutQuotesIsRefused(t *testing.T) {
	f := newFixture(t, func(c *onboard.Config, _ *simtd.TD) { c.Attester, c.Provider, c.Verifier = nil, "", nil })
	_, err := f.onboard(t, "https://peer.example.com")
	wantError(t, err, connect.CodeFailedPrecondition, "onboarding from a peer needs quotes: core.onboard.quote_enabled is false")
}

// authority decides as a test says, and keeps what it was asked.
type authority struct {
	decision authz.Decision
	err      error
	asked    []authz.Request
}

func (a *authority) Authorize(_ context.Context, r authz.Request) (authz.Decision, error) {
	a.asked = append(a.asked, r)
	return a.decision, a.err
}

func TestOnboardAsksTheAuthorityAboutTheSource(t *testing.T) {
	tests := []struct {
		name  string
		a     authority
		older bool
		code  connect.Code
		want  string
	}{
		{"allowed", authority{decision: authz.Decision{Allowed: true}}, false, 0, ""},
		{"allowed, without a machine description", authority{decision: authz.Decision{Allowed: true}}, true, 0, ""},
		{
			"denied",
			authority{decision: authz.Decision{Reason: "KMS is not allowed to boot\non this device"}},
			false,
			connect.CodeFailedPrecondition, "source KMS refused: Boot denied: KMS is not allowed to boot on this device",
		},
		{"unreachable", authority{err: authz.ErrUnreachable}, false, connect.CodeUnavailable, "authorization service unreachable"},
		{"malformed", authority{err: authz.ErrMalformed}, false, connect.CodeUnavailable, "authorization service gave a malformed answer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, func(c *onboard.Config, _ *simtd.TD) { c.Authorizer = &tt.a })
			p := newPeer(t, f.td)
			if tt.older {
				p.extensions = func(spki []byte) []pkix.Extension { return evidenceOf(t, p.td, spki, ratls.Gen1) }
			}
			p.serve(t)
			_, err := f.onboard(t, p.url)
			if tt.want == "" && err != nil {
				t.Error(err)
			}
			if tt.want != "" {
				wantError(t, err, tt.code, tt.want)
				if len(p.attested) != 0 {
					t.Errorf("the refused source was asked for %q", p.attested)
				}
			}
			if len(tt.a.asked) != 1 {
				t.Fatalf("the authority was asked %d times, want once", len(tt.a.asked))
			}
			got := tt.a.asked[0]
			if got.Subject != authz.KMS || len(got.BootInfo.AppID) != 20 || got.BootInfo.TCBStatus != "UpToDate" {
				t.Errorf("the authority was asked about %v %x %q, want a KMS with its app id and TCB status",
					got.Subject, got.BootInfo.AppID, got.BootInfo.TCBStatus)
			}
			if diff := cmp.Diff(f.td.VMConfig(), got.BootInfo.VMConfig); diff != "" {
				t.Errorf("vm_config (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBootstrapAsksTheAuthorityAboutThisTD(t *testing.T) {
	tests := []struct {
		name string
		a    authority
		self error
		code connect.Code
		want string
	}{
		{"allowed", authority{decision: authz.Decision{Allowed: true}}, nil, 0, ""},
		{"denied", authority{decision: authz.Decision{Reason: "OS image is not\nallowed"}}, nil, connect.CodePermissionDenied, "KMS is not allowed to bootstrap: OS image is not allowed"},
		{"unreachable", authority{err: authz.ErrUnreachable}, nil, connect.CodeUnavailable, "authorization service unreachable"},
		{"malformed", authority{err: authz.ErrMalformed}, nil, connect.CodeUnavailable, "authorization service gave a malformed answer"},
		{"no collateral", authority{}, attest.ErrNoCollateral, connect.CodePermissionDenied, "KMS is not allowed to bootstrap: there is no collateral"},
		{"no attester", authority{}, attest.ErrNoAttester, connect.CodeFailedPrecondition, "tappd socket not found"},
		{"no description", authority{}, errors.New("secret cause"), connect.CodePermissionDenied, "KMS is not allowed to bootstrap: it cannot be described"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t, func(c *onboard.Config, _ *simtd.TD) {
				c.Authorizer = &tt.a
				c.Self = func(context.Context) (authz.BootInfo, error) {
					return authz.BootInfo{AppID: make([]byte, 20)}, tt.self
				}
			})
			_, err := f.client.Bootstrap(t.Context(), request("kms.example.com", ""))
			if tt.want == "" {
				if err != nil || len(tt.a.asked) != 1 || tt.a.asked[0].Subject != authz.KMS {
					t.Errorf("error = %v, asked %v, want one question about a KMS", err, tt.a.asked)
				}
				return
			}
			wantError(t, err, tt.code, tt.want)
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the cause reached the client: %v", err)
			}
			if _, err := os.Stat(f.dir); !errors.Is(err, os.ErrNotExist) {
				t.Error("something was written")
			}
		})
	}
}

func TestSourceURLs(t *testing.T) {
	f := newFixture(t, nil)
	tests := []struct{ name, url, want string }{
		{"none", "", "source_url: must not be empty"},
		{"plain HTTP", "http://peer.example.com", "source_url: must begin with https://"},
		{"no scheme", "peer.example.com:9100", "source_url: is not a URL"},
		{"no host", "https://", "source_url: host must not be empty"},
		{"a password", "https://user:secret@peer.example.com", "source_url: must not hold a user name or password"},
		{"a query", "https://peer.example.com/?x=1", "source_url: must not have a query or a fragment"},
		{"an empty query", "https://peer.example.com/?", "source_url: must not have a query or a fragment"},
		{"a fragment", "https://peer.example.com/#", "source_url: must not have a query or a fragment"},
		{"a host with a space", "https://peer example.com", "source_url: is not a URL"},
		{"a host of two dots", "https://peer..example.com", "source_url: host has an empty label"},
		{"port 0", "https://peer.example.com:0", "source_url: port must be a number from 1 to 65535"},
		{"port 65536", "https://peer.example.com:65536", "source_url: port must be a number from 1 to 65535"},
		{"an empty port", "https://peer.example.com:", "source_url: port must be a number from 1 to 65535"},
		{"too long", "https://peer.example.com/" + strings.Repeat("x", 2048), "source_url: is longer than 2048 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := f.onboard(t, tt.url)
			wantError(t, err, connect.CodeInvalidArgument, tt.want)
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error repeats the password: %v", err)
			}
		})
	}
	_, err := f.client.Onboard(t.Context(), &onboardv1.OnboardRequest{SourceUrl: "https://peer.example.com", Domain: "a b"})
	wantError(t, err, connect.CodeInvalidArgument, "domain: character ' ' is not allowed")
}

// TestOnboardOutlivesItsCaller cancels the caller while the source takes its
// time.
func TestOnboardOutlivesItsCaller(t *testing.T) {
	f := newFixture(t, nil)
	p := newPeer(t, f.td)
	asked, proceed := make(chan struct{}), make(chan struct{})
	p.handle["GetMeta"] = func(w http.ResponseWriter, r *http.Request) {
		close(asked)
		<-proceed
		p.answer(w, r, "GetMeta", true)
	}
	p.serve(t)
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := f.client.Onboard(ctx, &onboardv1.OnboardRequest{SourceUrl: p.url, Domain: replicaDomain})
		gone <- err
	}()
	select {
	case <-asked:
	case err := <-gone:
		t.Fatalf("Onboard ended early: %v", err)
	}
	leave()
	if err := <-gone; err == nil {
		t.Fatal("the caller that left got an answer")
	}
	close(proceed)
	// A Bootstrap that comes now waits, and makes no second set of keys.
	_, err := f.client.Bootstrap(t.Context(), request("kms.example.com", ""))
	wantError(t, err, connect.CodeAlreadyExists, "Bootstrap already completed")
	checkReplica(t, f, p)
}
