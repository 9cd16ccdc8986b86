package onboard_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
	"teekms/internal/ratls"
)

// peer is a KMS to onboard from, over real TLS: it appraises its clients as a
// KMS does and answers what a test sets.
type peer struct {
	td     *simtd.TD
	bundle *keystore.Bundle
	dir    string // its key directory

	// keysAnswer and metaAnswer are the JSON of the two answers.
	keysAnswer, metaAnswer map[string]any
	// handle, if set, answers a method in the place of the peer.
	handle map[string]http.HandlerFunc
	// extensions makes the Evidence in the server's certificate.
	extensions func(spki []byte) []pkix.Extension
	// issue makes the server's certificate.
	issue func(key tls.Certificate, extensions []pkix.Extension) []byte
	// wantsIssuer has the peer insist on certificates of its temporary CA.
	wantsIssuer bool

	connections atomic.Int32
	mu          sync.Mutex
	attested    []string // the methods that were asked for by an attested client
	vmConfig    string   // of GetKmsKey
	url         string
}

// newPeer makes a peer in the same trust domain as f, with a record of its
// bootstrap.
func newPeer(t *testing.T, td *simtd.TD) *peer {
	t.Helper()
	roots, err := keys.NewRoots()
	if err != nil {
		t.Fatal(err)
	}
	evidence, err := td.Attest(t.Context(), attest.BootstrapReportData(roots.CAPublic(), roots.K256Public()))
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{td: td, dir: filepath.Join(t.TempDir(), "peer"), handle: map[string]http.HandlerFunc{}}
	p.bundle, err = keystore.NewBundle(roots, "peer.example.com", &keystore.Info{
		CAPublic: roots.CAPublic(), K256Public: roots.K256Public(), Quote: evidence.Quote, EventLog: evidence.EventLog,
	}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	store, err := keystore.Open(t.Context(), keystore.Config{Dir: p.dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Commit(t.Context(), p.bundle); err != nil {
		t.Fatal(err)
	}
	p.keysAnswer = map[string]any{
		"temp_ca_key": string(readFile(t, p.dir, "tmp-ca.key")),
		"keys": []any{map[string]any{
			"ca_key": string(roots.CAPEM().Bytes()), "k256_key": hex.EncodeToString(roots.K256Raw().Bytes()),
		}},
	}
	p.metaAnswer = map[string]any{
		"ca_cert": string(store.RootCAPEM()), "k256_pubkey": hex.EncodeToString(roots.K256Public()), "is_dev": true,
		"bootstrap_info": recordJSON(p.bundle.Info()),
	}
	p.extensions = func(spki []byte) []pkix.Extension { return evidenceOf(t, td, spki, ratls.Gen8) }
	p.issue = func(key tls.Certificate, extensions []pkix.Extension) []byte {
		return issueRPC(t, roots, store.RootCAPEM(), key, extensions)
	}
	return p
}

// recordJSON is a record as GetMeta tells it.
func recordJSON(i *keystore.Info) map[string]any {
	return map[string]any{
		"ca_pubkey": hex.EncodeToString(i.CAPublic), "k256_pubkey": hex.EncodeToString(i.K256Public),
		"quote": hex.EncodeToString(i.Quote), "eventlog": hex.EncodeToString(i.EventLog),
	}
}

func evidenceOf(t testing.TB, td *simtd.TD, spki []byte, generation ratls.Generation) []pkix.Extension {
	t.Helper()
	evidence, err := td.Attest(context.Background(), attest.RATLSReportData(spki))
	if err != nil {
		t.Fatal(err)
	}
	extensions, err := ratls.Extensions(evidence, generation)
	if err != nil {
		t.Fatal(err)
	}
	return extensions
}

func issueRPC(t testing.TB, roots *keys.Roots, caPEM []byte, key tls.Certificate, extensions []pkix.Extension) []byte {
	t.Helper()
	ca, err := keys.ParseCertificate(caPEM)
	if err != nil {
		t.Fatal(err)
	}
	der, err := keys.IssueRPC(keys.RPCRequest{
		Roots: roots, CA: ca, Public: publicOf(t, key), Domain: "peer.example.com", Extensions: extensions, Now: time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// serve starts the peer.
func (p *peer) serve(t *testing.T) {
	t.Helper()
	ecKey, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	certificate := tls.Certificate{PrivateKey: ecKey}
	spki, err := x509.MarshalPKIXPublicKey(&ecKey.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	certificate.Certificate = [][]byte{p.issue(certificate, p.extensions(spki))}
	appraiser, err := ratls.NewAppraiser(ratls.AppraiserConfig{Verifier: newVerifier(t, p.td.Root(), p.td)})
	if err != nil {
		t.Fatal(err)
	}
	gate, err := ratls.NewServer(ratls.ServerConfig{Appraiser: appraiser, Certificates: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return &certificate, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(p.handler(t, gate))
	server.TLS = gate.TLSConfig()
	server.TLS.Certificates = []tls.Certificate{certificate} // or httptest brings its own
	if p.wantsIssuer {
		server.TLS.ClientAuth, server.TLS.ClientCAs = tls.VerifyClientCertIfGiven, x509.NewCertPool()
		server.TLS.ClientCAs.AppendCertsFromPEM(readFile(t, p.dir, "tmp-ca.crt"))
	}
	server.Config.ConnContext = gate.ConnContext
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			p.connections.Add(1)
		}
	}
	server.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	server.StartTLS()
	t.Cleanup(server.Close)
	p.url = server.URL
}

func (p *peer) handler(t *testing.T, gate *ratls.Server) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, err := gate.Admit(r.Context())
		if err != nil {
			prpcError(w, err.Error())
			return
		}
		method := filepath.Base(r.URL.Path)
		if r.Method != http.MethodPost || r.URL.Path != "/prpc/"+method || r.URL.RawQuery != "json" {
			t.Errorf("the peer was asked for %s %s, want POST /prpc/METHOD?json", r.Method, r.URL)
		}
		if ratls.PeerFrom(ctx) != nil {
			p.mu.Lock()
			p.attested = append(p.attested, method)
			p.mu.Unlock()
		}
		if h := p.handle[method]; h != nil {
			h(w, r)
			return
		}
		p.answer(w, r, method, ratls.PeerFrom(ctx) != nil)
	})
}

func (p *peer) answer(w http.ResponseWriter, r *http.Request, method string, attested bool) {
	var answer any
	switch method {
	case "GetKmsKey":
		if !attested {
			prpcError(w, "No attestation provided")
			return
		}
		var request struct {
			VMConfig string `json:"vm_config"`
		}
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			prpcError(w, err.Error())
			return
		}
		p.mu.Lock()
		p.vmConfig = request.VMConfig
		p.mu.Unlock()
		answer = p.keysAnswer
	case "GetMeta":
		answer = p.metaAnswer
	case "GetTempCaCert":
		answer = map[string]any{"temp_ca_cert": p.text("tmp-ca.crt"), "temp_ca_key": p.text("tmp-ca.key"), "ca_cert": p.text("root-ca.crt")}
	default:
		prpcError(w, "Service not found: "+method)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // the client may be gone
}

// text reads a file of the peer; "" when it cannot.
func (p *peer) text(name string) string {
	b, err := os.ReadFile(filepath.Join(p.dir, name))
	if err != nil {
		return ""
	}
	return string(b)
}

func prpcError(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	_, _ = fmt.Fprintf(w, "{\n  \"error\": %q\n}", text) // the client may be gone
}
