package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"teekms/internal/attest"
	"teekms/internal/keys"
	"teekms/internal/ratls"
)

const (
	onboardPath   = "/prpc/Onboard.Onboard?json"
	replicaDomain = "replica.example.com"
)

// newReplica is a place for a KMS whose software TD is under the same root as
// that of source.
func newReplica(t testing.TB, source *kmsDir, extra string) *kmsDir {
	t.Helper()
	k := newKMS(t, "", extra)
	k.TD = source.TD
	k.write(t, "", extra)
	return k
}

// onboardFrom asks the onboarding service of k to take over the keys of the KMS
// at source.
func (k *kmsDir) onboardFrom(t testing.TB, source string) answer {
	t.Helper()
	body, err := json.Marshal(map[string]string{"source_url": source, "domain": replicaDomain})
	if err != nil {
		t.Fatal(err)
	}
	return post(t, k.URL("http")+onboardPath, string(body))
}

// appKeys is what GetAppKey answers for a workload.
func (k *kmsDir) appKeys(t testing.TB, domain string, source *kmsDir) map[string]any {
	t.Helper()
	certificate := k.workload(t, source.openTD(t))
	certificate.Transport.(*http.Transport).TLSClientConfig.ServerName = domain
	resp, err := certificate.Post(k.URL("https")+"/prpc/GetAppKey?json", "application/json",
		strings.NewReader(`{"api_version":1,"vm_config":"{}"}`))
	if err != nil {
		t.Fatal(err)
	}
	a := read(t, resp)
	var got map[string]any
	if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.StatusCode != http.StatusOK {
		t.Fatalf("GetAppKey = %d %s, want the keys", a.StatusCode, a.body)
	}
	delete(got, "ca_cert")        // the same key, another certificate
	delete(got, "k256_signature") // compared below by being there
	return got
}

// TestReplicaHasTheKeysOfItsSource has a second KMS onboard from the first, and
// an application that gets the same keys from both, also when both were
// restarted.
func TestReplicaHasTheKeysOfItsSource(t *testing.T) {
	t.Parallel()
	a := newKMS(t, "", devAuthority)
	a.fill(t, exampleDomain)
	source, clientA := a.serve(t, exampleDomain)
	b := newReplica(t, a, devAuthority)
	replica := b.onboarding(t, "dstack-kms")

	got := b.onboardFrom(t, a.URL("https")+"/")
	var response struct {
		K256 string `json:"k256_pubkey"`
	}
	if err := json.Unmarshal([]byte(got.body), &response); err != nil || got.StatusCode != http.StatusOK || len(response.K256) != 2+66 {
		t.Fatalf("Onboard = %d %s, want k256_pubkey", got.StatusCode, got.body)
	}
	wantRefusal(t, b.onboardFrom(t, a.URL("https")), alreadyText)
	wantRefusal(t, post(t, b.URL("http")+bootstrapPath, exampleRequest), alreadyText)
	if finished := post(t, b.URL("http")+"/prpc/Onboard.Finish?json", ""); finished.StatusCode != http.StatusOK {
		t.Fatalf("Finish = %d %s, want 200", finished.StatusCode, finished.body)
	}
	if code := replica.wait(t, patience); code != 0 {
		t.Fatalf("exit status %d after Finish, want 0", code)
	}
	for _, name := range []string{"root-ca.key", "root-k256.key", "tmp-ca.key", "bootstrap-info.json"} {
		if !bytes.Equal(a.file(t, name), b.file(t, name)) {
			t.Errorf("%s of the replica is not the source's", name)
		}
	}

	replica, clientB := b.serve(t, replicaDomain)
	metaA, metaB := peerMeta(t, clientA, a), peerMeta(t, clientB, b)
	for _, field := range []string{"k256_pubkey", "bootstrap_info"} {
		if fmt.Sprint(metaA[field]) != fmt.Sprint(metaB[field]) {
			t.Errorf("GetMeta of the replica tells another %s", field)
		}
	}
	if "0x"+fmt.Sprint(metaA["k256_pubkey"]) != response.K256 {
		t.Errorf("Onboard answered %s, the source has %s", response.K256, metaA["k256_pubkey"])
	}
	want := a.appKeys(t, exampleDomain, a)
	for range 2 {
		if got := b.appKeys(t, replicaDomain, a); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Error("the replica derives other keys than its source")
		}
		if got := a.appKeys(t, exampleDomain, a); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Error("the source derives other keys than before")
		}
		for _, p := range []*process{source, replica} {
			if code := p.terminate(t); code != 0 {
				t.Fatalf("exit status %d, want 0", code)
			}
		}
		source, _ = a.serve(t, exampleDomain)
		replica, _ = b.serve(t, replicaDomain)
	}
}

func peerMeta(t testing.TB, client *http.Client, k *kmsDir) map[string]any {
	t.Helper()
	var m map[string]any
	a := get(t, client, k.URL("https")+"/prpc/KMS.GetMeta?json")
	if err := json.Unmarshal([]byte(a.body), &m); err != nil || a.StatusCode != http.StatusOK {
		t.Fatalf("GetMeta = %d %s, want facts", a.StatusCode, a.body)
	}
	return m
}

// newAuthority is a webhook that says the same to everybody.
func newAuthority(t testing.TB, allowed bool, reason string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"isAllowed":%t,"gatewayAppId":"","reason":%q}`, allowed, reason) // the KMS may be gone
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// askAuthority is the configuration that asks the webhook at url.
func askAuthority(url string) string {
	return fmt.Sprintf("[core.auth_api]\ntype = \"webhook\"\n[core.auth_api.webhook]\nurl = %q\ntimeout = \"1s\"\n[core.image]\nverify = false\n", url)
}

// authorityEnv is the same for [kmsDir.serve], which has an authority of its own
// unless it is told.
func authorityEnv(url string) string { return "DSTACK_KMS_CORE_AUTH_API_WEBHOOK_URL=" + url }

// sourceWithoutRelease is the one refusal that needs another [core].
const sourceWithoutRelease = "the source hands out no root keys"

// TestReplicationRefusals has sources and replicas that refuse each other. Each
// names its reason, and the replica's key directory stays empty.
func TestReplicationRefusals(t *testing.T) {
	t.Parallel()
	denying := newAuthority(t, false, "not on the list of KMSs")
	tests := []struct {
		name string
		// source and replica are appended to the two configurations; authority
		// is the URL of the source's.
		source, replica, authority string
		// between stands in front of the source, if not nil.
		between func(t *testing.T, source *kmsDir) string
		// stranger has the replica under a trust root of its own.
		stranger bool
		want     string
	}{
		{
			name: "the source's authority denies", source: askAuthority(denying), authority: denying,
			want: "source KMS denied: KMS self authorization failed",
		},
		{
			name: "the replica's authority denies", source: devAuthority, replica: askAuthority(newAuthority(t, false, "not a KMS of ours")),
			want: "source KMS refused: Boot denied: not a KMS of ours",
		},
		{
			name: sourceWithoutRelease, source: "",
			want: "source KMS denied: root keys are not released (core.kms_key_release)",
		},
		{
			name: "another trust root", source: devAuthority, stranger: true,
			want: "source KMS refused: invalid quote: PCK certificate chain",
		},
		{
			name: "a man in the middle without Evidence", source: devAuthority,
			between: func(t *testing.T, source *kmsDir) string { return relay(t, source, false) },
			want:    "Source KMS certificate does not contain attestation",
		},
		{
			name: "a man in the middle with the source's Evidence", source: devAuthority,
			between: func(t *testing.T, source *kmsDir) string { return relay(t, source, true) },
			want:    "source KMS refused: invalid quote: report data: report data mismatch",
		},
		{
			name: "an attested KMS that passes on another's keys", source: devAuthority,
			between: func(t *testing.T, source *kmsDir) string { return attestedRelay(t, source, false) },
			want:    "source KMS refused: its server certificate is not of the root key it handed over",
		},
		{
			name: "an attested KMS that swaps its keys between two answers", source: devAuthority,
			between: func(t *testing.T, source *kmsDir) string { return attestedRelay(t, source, true) },
			want:    "source KMS refused: its answers are about different root keys",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := newKMS(t, "", "")
			a.fill(t, exampleDomain) // before it has an authority
			if tt.name == sourceWithoutRelease {
				a.setCore(t, `kms_key_release = "off"`, devAuthority)
			} else {
				a.write(t, "", tt.source)
			}
			a.serve(t, exampleDomain, authorityEnv(tt.authority))
			b := newKMS(t, "", tt.replica)
			if !tt.stranger {
				b = newReplica(t, a, tt.replica)
			}
			b.onboarding(t, "dstack-kms")
			at := a.URL("https")
			if tt.between != nil {
				at = tt.between(t, a)
			}
			got := b.onboardFrom(t, at)
			if got.StatusCode != http.StatusBadRequest || !strings.Contains(got.body, tt.want) {
				t.Errorf("Onboard = %d %s, want 400 with %q", got.StatusCode, got.body, tt.want)
			}
			if entries, err := os.ReadDir(b.Certs); err == nil && len(entries) > 0 {
				t.Errorf("the refused replica has %d files", len(entries))
			}
			wantRefusal(t, post(t, b.URL("http")+"/prpc/Onboard.Finish?json", ""), notYetText)
		})
	}
}

// setCore writes the configuration with a line more under [core].
func (k *kmsDir) setCore(t testing.TB, line, extra string) {
	t.Helper()
	k.write(t, "", extra)
	text, err := os.ReadFile(k.Config)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("[core]\n"), []byte("[core]\n"+line+"\n"), 1)
	if err := os.WriteFile(k.Config, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestReplicaOfASourceWithoutEvidence has a source that was told to show none.
func TestReplicaOfASourceWithoutEvidence(t *testing.T) {
	t.Parallel()
	a := newKMS(t, "", devAuthority)
	a.fill(t, exampleDomain)
	a.setCore(t, "attest_rpc_cert = false", devAuthority)
	a.serve(t, exampleDomain)
	b := newReplica(t, a, "")
	b.onboarding(t, "dstack-onboard")
	wantRefusal(t, b.onboardFrom(t, a.URL("https")), "Source KMS certificate does not contain attestation")
}

// relay is a man in the middle with a key of its own, which passes on what it
// is asked for. With copied, its certificate has all extensions of the source's.
func relay(t *testing.T, source *kmsDir, copied bool) string {
	t.Helper()
	key, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	extensions := []pkix.Extension{keys.Extension(keys.ArcUsage, []byte(keys.UsageRPC))}
	if copied {
		extensions = nil
		for _, e := range source.rpcCertificate(t).Extensions {
			if strings.HasPrefix(e.Id.String(), "1.3.6.1.4.1.62397.1.") {
				extensions = append(extensions, e)
			}
		}
	}
	return relayWith(t, source, key, extensions, nil)
}

// attestedRelay is a relay that runs in a trust domain itself. With swap, it
// tells of another secp256k1 key in its second answer.
func attestedRelay(t *testing.T, source *kmsDir, swap bool) string {
	t.Helper()
	key, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	evidence, err := source.openTD(t).Attest(t.Context(), attest.RATLSReportData(spki))
	if err != nil {
		t.Fatal(err)
	}
	extensions, err := ratls.Extensions(evidence, ratls.Gen8)
	if err != nil {
		t.Fatal(err)
	}
	extensions = append(extensions, keys.Extension(keys.ArcUsage, []byte(keys.UsageRPC)))
	if !swap {
		return relayWith(t, source, key, extensions, nil)
	}
	return relayWith(t, source, key, extensions, func(resp *http.Response) error {
		text, err := io.ReadAll(resp.Body)
		if err != nil || !strings.HasSuffix(resp.Request.URL.Path, "/GetMeta") {
			resp.Body = io.NopCloser(bytes.NewReader(text))
			return err
		}
		text = regexp.MustCompile(`"k256_pubkey":"0[23]`).ReplaceAllFunc(text, func(b []byte) []byte {
			b[len(b)-1] ^= 1 // the other point of the same x
			return b
		})
		resp.Body = io.NopCloser(bytes.NewReader(text))
		return nil
	})
}

func relayWith(t *testing.T, source *kmsDir, key *ecdsa.PrivateKey, extensions []pkix.Extension, modify func(*http.Response) error) string {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: exampleDomain}, DNSNames: []string{exampleDomain},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtraExtensions: extensions,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	to, err := url.Parse(source.URL("https"))
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.ModifyResponse = modify
	proxy.Transport = source.workload(t, source.openTD(t)).Transport
	server := httptest.NewUnstartedServer(proxy)
	server.TLS = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13,
		ClientAuth: tls.RequestClientCert,
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL
}

// TestReplicaIsInterrupted kills a replica right after its Onboard was asked
// for, again and again: it ends up complete or empty, never in between.
func TestReplicaIsInterrupted(t *testing.T) {
	t.Parallel()
	a := newKMS(t, "", devAuthority)
	a.fill(t, exampleDomain)
	a.serve(t, exampleDomain)
	for _, after := range []time.Duration{5, 15, 25, 40} {
		b := newReplica(t, a, devAuthority)
		p := b.onboarding(t, "dstack-kms")
		done := make(chan struct{})
		go func() {
			defer close(done)
			body := fmt.Sprintf(`{"source_url":%q,"domain":%q}`, a.URL("https"), replicaDomain)
			resp, err := http.Post(b.URL("http")+onboardPath, "application/json", strings.NewReader(body))
			if err == nil {
				_ = resp.Body.Close()
			}
		}()
		time.Sleep(after * time.Millisecond)
		if err := p.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-p.ended
		<-done
		p = start(t, "dstack-onboard", "--config", b.Config)
		deadline := time.Now().Add(patience)
		for {
			if probe(http.DefaultClient, b.URL("http")+"/health") == nil {
				if got := b.onboardFrom(t, a.URL("https")); got.StatusCode != http.StatusOK {
					t.Errorf("killed after %v ms, Onboard again = %d %s, want 200", int(after), got.StatusCode, got.body)
				}
				break
			}
			select {
			case <-p.ended:
			case <-time.After(20 * time.Millisecond):
				if time.Now().After(deadline) {
					t.Fatalf("neither ended nor serving\n%s", p.stderr)
				}
				continue
			}
			if code := p.ProcessState.ExitCode(); code != 0 {
				t.Errorf("killed after %v ms, the next start ends with status %d, want 0\n%s", int(after), code, p.stderr)
			}
			break
		}
		if !bytes.Equal(a.file(t, "root-ca.key"), b.file(t, "root-ca.key")) {
			t.Error("the replica has other root keys than its source")
		}
		if _, err := os.Stat(filepath.Join(b.Certs, ".stage")); err == nil {
			t.Error("a stage was left behind")
		}
		_ = p.Process.Kill() // it may have ended
		<-p.ended
	}
}
