package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/guestagent/guestagenttest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/ratls"
)

// devAuthority allows everybody, so that what is left is the wiring.
const devAuthority = "[core.auth_api]\ntype = \"dev\"\n[core.image]\nverify = false\n"

// openTD opens the software TD that the KMS of k runs in.
func (k *kmsDir) openTD(t testing.TB) *simtd.TD {
	t.Helper()
	td, err := simtd.Open(simtd.Config{Dir: k.TD})
	if err != nil {
		t.Fatal(err)
	}
	return td
}

// workload returns a client with a new RA-TLS certificate whose Evidence td
// made. It opens a connection of its own.
func (k *kmsDir) workload(t testing.TB, td *simtd.TD) *http.Client {
	t.Helper()
	certificate, err := ratls.NewCertificate(t.Context(), ratls.ClientCertConfig{Attester: td})
	if err != nil {
		t.Fatal(err)
	}
	return k.withCertificate(t, certificate)
}

func (k *kmsDir) withCertificate(t testing.TB, c tls.Certificate) *http.Client {
	t.Helper()
	config := k.tlsClient(t, exampleDomain)
	config.Certificates = []tls.Certificate{c}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// rpcCertificate is what the KMS of k shows in a handshake.
func (k *kmsDir) rpcCertificate(t testing.TB) *x509.Certificate {
	t.Helper()
	conn, err := tls.Dial("tcp", strings.TrimPrefix(k.URL("https"), "https://"), k.tlsClient(t, exampleDomain))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

// evidenceExtensions are the last arcs of the extensions of c that can carry
// Evidence.
func evidenceExtensions(c *x509.Certificate) []int {
	var arcs []int
	for _, e := range c.Extensions {
		prefix := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 62397, 1}
		if len(e.Id) == len(prefix)+1 && prefix.Equal(e.Id[:len(prefix)]) && slices.Contains([]int{1, 2, 8}, e.Id[len(prefix)]) {
			arcs = append(arcs, e.Id[len(prefix)])
		}
	}
	return arcs
}

func (k *kmsDir) appraiser(t testing.TB, td *simtd.TD) *ratls.Appraiser {
	t.Helper()
	anchor, err := tdx.LoadTrustAnchor(filepath.Join(k.TD, "root-ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := tdx.NewVerifier(tdx.Config{TrustAnchor: anchor, Collateral: td, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	appraiser, err := ratls.NewAppraiser(ratls.AppraiserConfig{Verifier: verifier})
	if err != nil {
		t.Fatal(err)
	}
	return appraiser
}

// TestRPCCertificateCarriesEvidence appraises what a client sees in the
// handshake, before and after a restart: the key stays, the quote is new.
func TestRPCCertificateCarriesEvidence(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	k.fill(t, exampleDomain)
	td := k.openTD(t)
	appraiser := k.appraiser(t, td)
	var keys [][]byte
	for range 2 {
		p, _ := k.serve(t, exampleDomain)
		p.logs(t, "INFO the RPC certificate carries Evidence of this KMS")
		c := k.rpcCertificate(t)
		if arcs := evidenceExtensions(c); !slices.Equal(arcs, []int{8}) {
			t.Errorf("the RPC certificate has Evidence extensions %v, want 8 alone", arcs)
		}
		attested, err := appraiser.AppraiseCertificate(t.Context(), c)
		if err != nil || attested == nil {
			t.Fatalf("appraising the RPC certificate = %v, %v, want an attested KMS", attested, err)
		}
		if string(parseCertificate(t, k.file(t, "rpc.crt")).Raw) != string(c.Raw) {
			t.Error("rpc.crt on disk is not what is served")
		}
		keys = append(keys, c.RawSubjectPublicKeyInfo)
		if code := p.terminate(t); code != 0 {
			t.Fatalf("exit status %d, want 0", code)
		}
	}
	if string(keys[0]) != string(keys[1]) {
		t.Error("the key of the RPC certificate changed with a restart")
	}
}

// TestQuotesAreMadeOnce counts what a guest agent is asked for: one quote for
// the RPC certificate, one more when this KMS is first authorized.
func TestQuotesAreMadeOnce(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", devAuthority)
	k.fill(t, exampleDomain)
	a := k.newAgent(t, guestagenttest.Current)
	quotes := 0
	count := a.Handler
	a.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/Attest") {
			a.mu.Lock()
			quotes++
			a.mu.Unlock()
		}
		count.ServeHTTP(w, r)
	})
	made := func() int {
		a.mu.Lock()
		defer a.mu.Unlock()
		return quotes
	}
	pcs := httptest.NewServer(k.openTD(t).Handler())
	t.Cleanup(pcs.Close)
	p := k.throughAgent(t, a, "dstack-kms", "DSTACK_KMS_CORE_ATTESTATION_URLS_PCCS="+pcs.URL)
	p.logs(t, "KMS has launched")
	for range 3 {
		k.rpcCertificate(t)
	}
	if n := made(); n != 1 {
		t.Errorf("%d quotes for the RPC certificate, want 1", n)
	}
	for range 3 {
		client := k.workload(t, k.openTD(t))
		for range 2 {
			if res := request(t, client, http.MethodPost, k.URL("https")+"/prpc/GetAppKey?json", "{}", nil); res.StatusCode != http.StatusOK {
				t.Errorf("GetAppKey = %d %s, want 200", res.StatusCode, res.body)
			}
		}
	}
	if n := made(); n != 2 {
		t.Errorf("%d quotes after six calls, want 2", n)
	}
}

// otherKey is an attester that always quotes the same key, whatever it is asked.
type otherKey struct{ *simtd.TD }

func (o otherKey) Attest(ctx context.Context, _ attest.ReportData) (*attest.Evidence, error) {
	return o.TD.Attest(ctx, attest.RATLSReportData([]byte("another key")))
}

func TestServingWithoutEvidence(t *testing.T) {
	t.Parallel()
	const noEvidence = "WARN the RPC certificate carries no Evidence"
	tests := []struct{ name, onboard, env, log string }{
		{"switched off", "", "DSTACK_KMS_CORE_ATTEST_RPC_CERT=false", noEvidence},
		{"no quotes at all", "quote_enabled = false", "", "WARN this KMS cannot authorize itself without quotes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			k := newKMS(t, tt.onboard, "")
			k.fill(t, exampleDomain)
			p, client := k.serve(t, exampleDomain, tt.env)
			p.logs(t, noEvidence)
			p.logs(t, tt.log)
			if arcs := evidenceExtensions(k.rpcCertificate(t)); len(arcs) > 0 {
				t.Errorf("the RPC certificate has Evidence extensions %v, want none", arcs)
			}
			metaOf(t, client, k)
		})
	}
}

// TestWithoutAttester has an agent that does not answer: the KMS refuses to
// start, writes nothing, and starts where it is told to do without.
func TestWithoutAttester(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	k.fill(t, exampleDomain)
	before := tree(t, k.Certs)
	env := []string{
		"DSTACK_KMS_CORE_ATTESTATION_PROVIDER=guest-agent", "DSTACK_AGENT_ADDRESS=unix:" + filepath.Join(k.Dir, "nobody.sock"),
	}
	code, _, stderr := runCmd(t, command(t, env, "dstack-kms", "--config", k.Config))
	last := lastLine(stderr)
	if code != 1 || !strings.HasPrefix(last, "Error: issuing the TLS certificate: making the Evidence of the RPC certificate: ") ||
		!strings.HasSuffix(last, "core.attest_rpc_cert = false serves without Evidence") {
		t.Errorf("exit status %d, last line %q, want 1 and a refusal that names core.attest_rpc_cert", code, last)
	}
	after := tree(t, k.Certs)
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("the key directory changed:\n%v\n%v", before, after)
	}
	_, client := k.serve(t, exampleDomain, append(env, "DSTACK_KMS_CORE_ATTEST_RPC_CERT=false")...)
	metaOf(t, client, k)
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	return lines[len(lines)-1]
}

func TestPlaintextAttestsNobody(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", devAuthority)
	k.fill(t, exampleDomain)
	p := startCmd(t, command(t, []string{
		"DSTACK_KMS_RPC_INSECURE_PLAINTEXT=true", "DSTACK_KMS_RPC_TLS_MUTUAL_MANDATORY=true",
	}, "dstack-kms", "--config", k.Config))
	p.ready(t, http.DefaultClient, k.URL("http")+"/ready")
	p.logs(t, `WARN without TLS no workload can attest itself: this listener gives keys to nobody {"key": "rpc.insecure_plaintext"}`)
	wantRefusal(t, post(t, k.URL("http")+"/prpc/GetAppKey?json", "{}"), "No attestation provided")
}

// TestRegistryIsNotDstackOnboards refuses an authority that is in a database,
// where the program has none.
func TestRegistryIsNotDstackOnboards(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "[core.auth_api]\ntype = \"registry\"\n")
	code, _, stderr := run(t, "dstack-onboard", "--config", k.Config)
	wantErrorLine(t, code, 1, stderr, `core.auth_api.type: "registry" is in the database of the KMS, which this program does not open; `+
		"dstack-kms does, and with an empty key directory it onboards too")
	if code, stdout, stderr := run(t, "dstack-kms", "--check", "--config", k.Config); code != 0 {
		t.Errorf("--check: exit status %d\n%s%s", code, stdout, stderr)
	}
}

// TestEthereumNodeThatIsNotThere serves facts without the chain and refuses the
// rest. dstack-onboard, which cannot read a chain, makes no keys that the contract
// was not asked about.
func TestEthereumNodeThatIsNotThere(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", fmt.Sprintf(`
[core.auth_api]
type = "ethereum"
[core.auth_api.ethereum]
rpc_url = "http://user:canary-password@127.0.0.1:%d"
kms_contract_address = "0x00112233445566778899aabbccddeeff00112233"
chain_id = 1337
timeout = "2s"
`, freePort(t)))
	env := []string{"DSTACK_KMS_CORE_ONBOARD_AUTO_BOOTSTRAP_DOMAIN=" + exampleDomain}
	code, _, stderr := runCmd(t, command(t, env, "dstack-onboard", "--config", k.Config))
	if code != 1 || !strings.Contains(stderr, "dstack-kms can, and with an empty key directory it onboards too") {
		t.Errorf("dstack-onboard: exit status %d, want 1 and what to do\n%s", code, stderr)
	}
	k.fill(t, exampleDomain, "DSTACK_KMS_CORE_ENFORCE_SELF_AUTHORIZATION=false")
	p, client := k.serve(t, exampleDomain)
	if m := metaOf(t, client, k); m.IsDev || m.AllowAnyUpgrade || m.KMSContractAddress == nil {
		t.Errorf("GetMeta = %+v, want one of a KMS that obeys a contract", m)
	}
	a := request(t, k.workload(t, k.openTD(t)), http.MethodPost, k.URL("https")+"/prpc/GetAppKey?json", "{}", nil)
	wantRefusal(t, a, noAuthority)
	if strings.Contains(p.stderr.String(), "canary") {
		t.Errorf("the log holds the password:\n%s", p.stderr)
	}
}

// TestBootstrapAsksTheNamedAuthority bootstraps only where the authority that the
// file names allows this trust domain to be a KMS.
func TestBootstrapAsksTheNamedAuthority(t *testing.T) {
	t.Parallel()
	answer := atomic.Pointer[string]{}
	asked := make(chan string, 8)
	authority := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path
		_, _ = io.WriteString(w, *answer.Load())
	}))
	defer authority.Close()
	k := newKMS(t, "", fmt.Sprintf(`
[core.auth_api]
type = "webhook"
[core.auth_api.webhook]
url = %q
`, authority.URL))
	p := k.onboarding(t, "dstack-kms")
	denial := `{"isAllowed":false,"gatewayAppId":"","reason":"aggregated MR not allowed"}`
	answer.Store(&denial)
	bootstrap := k.URL("http") + "/prpc/Onboard.Bootstrap?json"
	body := `{"domain":"` + exampleDomain + `"}`
	wantRefusal(t, post(t, bootstrap, body), "KMS is not allowed to bootstrap: aggregated MR not allowed")
	if _, err := os.Stat(k.Certs); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a denied bootstrap left a key directory")
	}
	allowed := `{"isAllowed":true,"gatewayAppId":"any","reason":""}`
	answer.Store(&allowed)
	if a := post(t, bootstrap, body); a.StatusCode != http.StatusOK {
		t.Fatalf("an allowed bootstrap = %d %s", a.StatusCode, a.body)
	}
	for range 2 {
		if path := <-asked; path != "/bootAuth/kms" {
			t.Errorf("the authority was asked at %s, want /bootAuth/kms", path)
		}
	}
	if a := get(t, http.DefaultClient, k.URL("http")+"/finish"); a.StatusCode != http.StatusOK {
		t.Fatalf("/finish = %d %s", a.StatusCode, a.body)
	}
	if code := p.wait(t, patience); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// TestAttestedWorkload has a software TD get its key, and looks at the metrics.
func TestAttestedWorkload(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", devAuthority)
	k.fill(t, exampleDomain)
	_, client := k.serve(t, exampleDomain)
	app := k.workload(t, k.openTD(t))
	var key struct {
		K256Key      string `json:"k256_key"`
		GatewayAppID string `json:"gateway_app_id"`
	}
	for range 3 {
		a := request(t, app, http.MethodPost, k.URL("https")+"/prpc/GetAppKey?json", `{"api_version":1}`, nil)
		if err := json.Unmarshal([]byte(a.body), &key); err != nil || a.StatusCode != http.StatusOK || len(key.K256Key) != 64 || key.GatewayAppID != "any" {
			t.Fatalf("GetAppKey = %d %.200s, want a key", a.StatusCode, a.body)
		}
	}
	// The certificate of one connection proves nothing to another: the same
	// Evidence around another key.
	stolen, err := ratls.NewCertificate(t.Context(), ratls.ClientCertConfig{Attester: otherKey{k.openTD(t)}})
	if err != nil {
		t.Fatal(err)
	}
	thief := k.withCertificate(t, stolen)
	for _, method := range []string{"GetAppKey", "GetMeta", "GetMeta"} {
		a := request(t, thief, http.MethodPost, k.URL("https")+"/prpc/"+method+"?json", "{}", nil)
		if a.StatusCode != http.StatusBadRequest || !strings.HasPrefix(a.body, `{"error": "invalid quote: report data`) {
			t.Errorf("%s with stolen Evidence = %d %s, want invalid quote", method, a.StatusCode, a.body)
		}
	}
	wantRefusal(t, request(t, client, http.MethodPost, k.URL("https")+"/prpc/GetAppKey?json", "{}", nil), "No attestation provided")
	metrics := get(t, client, k.URL("https")+"/metrics").body
	for _, want := range []string{
		`teekms_appraisals_total{result="ok"} 1`, `teekms_appraisals_total{result="report_data"} 1`,
		"teekms_appraisal_duration_seconds_count 2", "dstack_kms_attestation_requests_total 5",
		"dstack_kms_attestation_failures_total 2",
		`teekms_authorizations_total{result="allowed"} `, `teekms_releases_total{kind="app_key"`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics does not say %s", want)
		}
	}
}

// TestAppraisalsAreLimited gives an address two appraisals and no more.
func TestAppraisalsAreLimited(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", devAuthority+"[core.limits]\nappraisals_per_second = 1\nappraisals_burst = 2\n")
	k.fill(t, exampleDomain)
	_, client := k.serve(t, exampleDomain)
	const limited = `{"error": "too many attestations from this address: try again later"}`
	passed, refused := 0, 0
	td := k.openTD(t)
	workloads := make([]*http.Client, 12)
	for i := range workloads {
		workloads[i] = k.workload(t, td)
	}
	begin := time.Now()
	answers := make([]answer, len(workloads))
	var all sync.WaitGroup
	for i, w := range workloads {
		all.Go(func() {
			answers[i] = request(t, w, http.MethodPost, k.URL("https")+"/prpc/GetAppKey?json", "{}", nil)
		})
	}
	all.Wait()
	for _, a := range answers {
		switch {
		case a.StatusCode == http.StatusOK:
			passed++
		case a.body == limited:
			refused++
		default:
			t.Errorf("GetAppKey = %d %s, want a key or a refusal", a.StatusCode, a.body)
		}
	}
	if most := 3 + int(time.Since(begin).Seconds()); passed < 2 || passed > most || refused == 0 {
		t.Errorf("%d passed, %d were refused, want 2 to %d to pass and the rest refused", passed, refused, most)
	}
	if m := get(t, client, k.URL("https")+"/metrics").body; !strings.Contains(m, fmt.Sprintf("teekms_appraisals_limited_total %d\n", refused)) {
		t.Errorf("/metrics does not say teekms_appraisals_limited_total %d", refused)
	}
	time.Sleep(1100 * time.Millisecond)
	if a := request(t, workloads[len(workloads)-1], http.MethodPost, k.URL("https")+"/prpc/GetAppKey?json", "{}", nil); a.StatusCode != http.StatusOK {
		t.Errorf("GetAppKey a second later, on the same connection = %d %s, want a key", a.StatusCode, a.body)
	}
}
