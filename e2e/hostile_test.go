package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/simtd"
	"teekms/internal/keys"
	"teekms/internal/ratls"
	"teekms/internal/ratls/csr"
)

// hostileKMS is a running dstack-kms that allows everybody, so that what is
// refused is refused for what it is; and one good TD under its root.
type hostileKMS struct {
	*kmsDir
	*process
	td    *simtd.TD
	plain *http.Client
}

func newHostileKMS(t *testing.T) *hostileKMS {
	t.Helper()
	k := newKMS(t, "", devAuthority+"[core.limits]\nread_timeout = \"2s\"\n")
	k.fill(t, exampleDomain)
	p, plain := k.serve(t, exampleDomain)
	return &hostileKMS{k, p, k.openTD(t), plain}
}

// another is another machine under the same trust root.
func (k *hostileKMS) another(t testing.TB, m simtd.Measurements) *simtd.TD {
	t.Helper()
	td, err := simtd.Open(simtd.Config{Dir: k.TD, Ephemeral: true, Measurements: m})
	if err != nil {
		t.Fatal(err)
	}
	return td
}

// alive wants the KMS to serve others as before.
func (k *hostileKMS) alive(t testing.TB) {
	t.Helper()
	select {
	case <-k.ended:
		t.Fatalf("the KMS ended: %v\n%s", k.err, k.stderr)
	default:
	}
	if a := get(t, k.plain, k.URL("https")+"/prpc/GetMeta"); a.StatusCode != http.StatusOK {
		t.Errorf("afterwards GetMeta = %d %s, want 200", a.StatusCode, a.body)
	}
}

// call posts JSON to a procedure.
func (k *hostileKMS) call(t testing.TB, client *http.Client, method, body string) answer {
	t.Helper()
	resp, err := client.Post(k.URL("https")+"/prpc/"+method+"?json", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return read(t, resp)
}

// attesterFunc is an attester made of a function.
type attesterFunc func(context.Context, attest.ReportData) (*attest.Evidence, error)

func (f attesterFunc) Attest(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
	return f(ctx, rd)
}

// evidenceFault is Evidence that does not hold, however it came about.
type evidenceFault struct {
	name   string
	attest func(t *testing.T, k *hostileKMS) attest.Attester
	want   string
}

// edited has the Evidence of the good TD changed after it was made.
func edited(change func(*attest.Evidence, *simtd.TD) error) func(*testing.T, *hostileKMS) attest.Attester {
	return func(_ *testing.T, k *hostileKMS) attest.Attester {
		return attesterFunc(func(ctx context.Context, rd attest.ReportData) (*attest.Evidence, error) {
			e, err := k.td.Attest(ctx, rd)
			if err != nil {
				return nil, err
			}
			return e, change(e, k.td)
		})
	}
}

// editedLog has its event log changed.
func editedLog(change func(eventlog.Log) eventlog.Log) func(*testing.T, *hostileKMS) attest.Attester {
	return edited(func(e *attest.Evidence, td *simtd.TD) (err error) {
		e.EventLog, err = change(td.EventLog()).Marshal()
		return err
	})
}

func evidenceFaults() []evidenceFault {
	return []evidenceFault{
		{"report data of another key", func(_ *testing.T, k *hostileKMS) attest.Attester {
			return attesterFunc(func(ctx context.Context, _ attest.ReportData) (*attest.Evidence, error) {
				return k.td.Attest(ctx, attest.RATLSReportData([]byte("the key of another connection")))
			})
		}, "invalid quote: report data: report data mismatch"},
		{"report data changed in the signed quote", edited(func(e *attest.Evidence, _ *simtd.TD) error {
			e.Quote[568+48] ^= 1
			return nil
		}), "invalid quote: report data: report data mismatch"},
		{"a measurement changed in the signed quote", edited(func(e *attest.Evidence, _ *simtd.TD) error {
			e.Quote[184] ^= 1
			return nil
		}), "invalid quote: quote signature"},
		{"a debug TD", func(t *testing.T, k *hostileKMS) attest.Attester {
			return k.another(t, simtd.Measurements{Attributes: simtd.AttributeDebug})
		}, "invalid quote: debug bit"},
		{"another trust root", func(t *testing.T, _ *hostileKMS) attest.Attester {
			other, err := simtd.Open(simtd.Config{Dir: filepath.Join(t.TempDir(), "other")})
			if err != nil {
				t.Fatal(err)
			}
			return other
		}, "invalid quote: PCK certificate chain"},
		{"an expired chain", func(t *testing.T, _ *hostileKMS) attest.Attester {
			other, err := simtd.Open(simtd.Config{
				Dir: filepath.Join(t.TempDir(), "other"),
				EditCertificate: func(_ string, c *x509.Certificate) {
					c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			return other
		}, "invalid quote: PCK certificate chain"},
		{"an event log out of order", editedLog(func(l eventlog.Log) eventlog.Log {
			l[len(l)-1], l[len(l)-2] = l[len(l)-2], l[len(l)-1]
			return l
		}), "invalid quote: event log: RTMR3"},
		{"a truncated event log", editedLog(func(l eventlog.Log) eventlog.Log { return l[:len(l)-1] }), "invalid quote: event log: RTMR3"},
		{"an app id that was not measured", editedLog(func(l eventlog.Log) eventlog.Log {
			for i := range l {
				if l[i].Name == eventlog.EventAppID {
					l[i].Payload, l[i].Digest = bytes.Repeat([]byte{1}, 20), nil
				}
			}
			return l
		}), "invalid quote: event log: RTMR3"},
		{"two app ids", func(t *testing.T, k *hostileKMS) attest.Attester {
			return k.another(t, simtd.Measurements{Runtime: []simtd.RuntimeEvent{
				{Name: eventlog.EventAppID, Payload: bytes.Repeat([]byte{1}, 20)}, {Name: eventlog.EventAppID, Payload: bytes.Repeat([]byte{2}, 20)},
			}})
		}, `second event \"app-id\"`},
	}
}

// TestHostileEvidence presents Evidence that does not hold to a running KMS. It
// fails every procedure on its connection, also those that need none, with a
// reason; the KMS serves others as before.
func TestHostileEvidence(t *testing.T) {
	t.Parallel()
	k := newHostileKMS(t)
	for _, tt := range evidenceFaults() {
		t.Run(tt.name, func(t *testing.T) {
			for _, generation := range []ratls.Generation{ratls.Gen8, ratls.Gen1} {
				certificate, err := ratls.NewCertificate(t.Context(), ratls.ClientCertConfig{Attester: tt.attest(t, k), Generation: generation})
				if err != nil {
					t.Fatal(err)
				}
				client := k.withCertificate(t, certificate)
				for _, method := range []string{"GetAppKey", "GetMeta", "GetTempCaCert", "GetKmsKey"} {
					a := k.call(t, client, method, `{"api_version":1}`)
					if a.StatusCode != http.StatusBadRequest || !strings.Contains(a.body, tt.want) {
						t.Errorf("generation %d: %s = %d %.300s, want 400 with %q", generation, method, a.StatusCode, a.body, tt.want)
					}
				}
			}
		})
	}
	k.alive(t)
}

// TestHostileExtensions shows Evidence that no program of ours would write: of
// both generations at once, of which readers believe one or the other, in pieces,
// or none at all under its name.
func TestHostileExtensions(t *testing.T) {
	t.Parallel()
	k := newHostileKMS(t)
	key, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	evidence, err := k.td.Attest(t.Context(), attest.RATLSReportData(spki))
	if err != nil {
		t.Fatal(err)
	}
	of := func(g ratls.Generation) []pkix.Extension {
		extensions, err := ratls.Extensions(evidence, g)
		if err != nil {
			t.Fatal(err)
		}
		return extensions
	}
	quote, text := keys.Extension(keys.ArcQuote, evidence.Quote), keys.Extension(keys.ArcEventLog, evidence.EventLog)
	tests := []struct {
		name       string
		extensions []pkix.Extension
		want       string // after "invalid quote: "
	}{
		{"both generations", append(of(ratls.Gen8), of(ratls.Gen1)...), "quote format: reading Evidence from certificate: certificate has Evidence of both generations"},
		{"attestation and event log", append(of(ratls.Gen8), text), "quote format: reading Evidence from certificate: certificate has Evidence of both generations"},
		{"event log without quote", []pkix.Extension{text}, "quote format: reading Evidence from certificate: extensions 1 and 2 come together or not at all"},
		{"half a quote", []pkix.Extension{keys.Extension(keys.ArcQuote, evidence.Quote[:2000]), text}, "quote format: reading Evidence from certificate: quote: signed data of"},
		{"an event log that is none", []pkix.Extension{quote, keys.Extension(keys.ArcEventLog, []byte("["))}, "event log: event log is not JSON"},
		{"an empty attestation", []pkix.Extension{keys.Extension(keys.ArcAttestation, nil)}, "reading attestation: ends too early"},
		{"an attestation of no known form", []pkix.Extension{keys.Extension(keys.ArcAttestation, []byte{0x42, 1, 2, 3})}, "reading attestation: unknown format 0x42"},
		{"an attestation that promises 4 GiB", []pkix.Extension{keys.Extension(keys.ArcAttestation, []byte{0, 0, 0xfe, 0xff, 0xff, 0xff})}, "reading attestation: quote: ends too early"},
		{"no octet string in the extension", []pkix.Extension{{Id: keys.ExtensionOID(keys.ArcAttestation), Value: []byte{1, 2, 3}}}, "extension 8 is not an OCTET STRING"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := k.call(t, k.withCertificate(t, crafted(t, key, tt.extensions)), "GetMeta", "{}")
			if a.StatusCode != http.StatusBadRequest || !strings.Contains(a.body, `"invalid quote: `) || !strings.Contains(a.body, tt.want) {
				t.Errorf("GetMeta = %d %s, want 400 with invalid quote: %s", a.StatusCode, a.body, tt.want)
			}
		})
	}
	k.alive(t)
}

// crafted signs a certificate with any extensions.
func crafted(t testing.TB, key *ecdsa.PrivateKey, extensions []pkix.Extension) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "crafted"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtraExtensions: extensions,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestOversizedCertificates ends handshakes before anything is appraised: a log
// of several megabytes, a chain of 10,000 certificates.
func TestOversizedCertificates(t *testing.T) {
	t.Parallel()
	k := newHostileKMS(t)
	key, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	large := crafted(t, key, []pkix.Extension{keys.Extension(keys.ArcEventLog, bytes.Repeat([]byte("["), 4<<20))})
	long := crafted(t, key, nil)
	for range 9_999 {
		long.Certificate = append(long.Certificate, long.Certificate[0])
	}
	for name, certificate := range map[string]tls.Certificate{"an event log of 4 MiB": large, "10,000 certificates": long} {
		t.Run(name, func(t *testing.T) {
			// What the client reads of it depends on how far it came with writing: an
			// alert, a reset connection, a broken pipe.
			config := k.tlsClient(t, exampleDomain)
			config.Certificates = []tls.Certificate{certificate}
			conn, err := net.Dial("tcp", strings.TrimPrefix(k.URL("https"), "https://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			client := tls.Client(conn, config)
			if err = client.Handshake(); err == nil { // of TLS 1.3; the server may yet read it
				_, err = client.Read(make([]byte, 1))
			}
			if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("error = %v, want the server to end the handshake", err)
			}
			k.alive(t)
		})
	}
}

// TestHostileRequests asks, attested or not, for what nobody gets.
func TestHostileRequests(t *testing.T) {
	t.Parallel()
	k := newHostileKMS(t)
	attested := k.workload(t, k.td)
	appID := func(n int) *http.Client {
		return k.workload(t, k.another(t, simtd.Measurements{Runtime: []simtd.RuntimeEvent{
			{Name: eventlog.EventAppID, Payload: bytes.Repeat([]byte{7}, n)},
			{Name: eventlog.EventComposeHash, Payload: bytes.Repeat([]byte{8}, 32)},
		}}))
	}
	hexID := func(n int) string { return fmt.Sprintf(`{"app_id":"%x"}`, bytes.Repeat([]byte{7}, n)) }
	tests := []struct {
		name   string
		client *http.Client
		method string
		body   string
		want   string
	}{
		{"GetAppKey by nobody", k.plain, "GetAppKey", `{"api_version":1}`, "No attestation provided"},
		{"GetKmsKey by nobody", k.plain, "GetKmsKey", `{}`, "No attestation provided"},
		{"GetAppKey version 2", attested, "GetAppKey", `{"api_version":2}`, "Unsupported API version: 2"},
		{"GetAppKey version 2^32-1", attested, "GetAppKey", `{"api_version":4294967295}`, "Unsupported API version: 4294967295"},
		{"SignCert version 0", attested, "SignCert", `{"api_version":0}`, "Unsupported API version: 0"},
		{"SignCert version 3", attested, "SignCert", `{"api_version":3}`, "Unsupported API version: 3"},
		{"SignCert version 2^32-1", attested, "SignCert", `{"api_version":4294967295}`, "Unsupported API version: 4294967295"},
		{"a measured app id of 0 bytes", appID(0), "GetAppKey", `{"api_version":1,"vm_config":"{}"}`, "App not allowed: app_id must be 20 bytes"},
		{"a measured app id of 19 bytes", appID(19), "GetAppKey", `{"api_version":1,"vm_config":"{}"}`, "App not allowed: app_id must be 20 bytes"},
		{"a measured app id of 21 bytes", appID(21), "GetAppKey", `{"api_version":1,"vm_config":"{}"}`, "App not allowed: app_id must be 20 bytes"},
		{"an app id of 0 bytes", k.plain, "GetAppEnvEncryptPubKey", hexID(0), "app_id: 0 bytes, want 20"},
		{"an app id of 19 bytes", k.plain, "GetAppEnvEncryptPubKey", hexID(19), "app_id: 19 bytes, want 20"},
		{"an app id of 21 bytes", k.plain, "GetAppEnvEncryptPubKey", hexID(21), "app_id: 21 bytes, want 20"},
		{"a machine description that is none", attested, "GetAppKey", `{"api_version":1,"vm_config":"["}`, "App not allowed: failed to decode VM config"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := k.call(t, tt.client, tt.method, tt.body)
			if a.StatusCode != http.StatusBadRequest || !strings.Contains(a.body, tt.want) {
				t.Errorf("%s %s = %d %.300s, want 400 with %q", tt.method, tt.body, a.StatusCode, a.body, tt.want)
			}
		})
	}
	k.alive(t)
}

// TestEventsAfterTheBootAreNobodys has an application extend another's id once
// its system is ready: it stays who it was.
func TestEventsAfterTheBootAreNobodys(t *testing.T) {
	t.Parallel()
	k := newHostileKMS(t)
	td := k.another(t, simtd.Measurements{})
	if err := td.Extend(eventlog.EventSystemReady, nil); err != nil {
		t.Fatal(err)
	}
	diskKey := func() string {
		a := k.call(t, k.workload(t, td), "GetAppKey", `{"api_version":1,"vm_config":"{}"}`)
		var got struct {
			DiskKey string `json:"disk_crypt_key"`
		}
		if err := json.Unmarshal([]byte(a.body), &got); err != nil || len(got.DiskKey) != 64 {
			t.Fatalf("GetAppKey = %d %.300s, want keys", a.StatusCode, a.body)
		}
		return got.DiskKey
	}
	before := diskKey()
	if err := td.Extend(eventlog.EventAppID, bytes.Repeat([]byte{9}, 20)); err != nil {
		t.Fatal(err)
	}
	if after := diskKey(); after != before {
		t.Error("an app id that was extended after system-ready changes the keys")
	}
}

// signingRequest is a good one, for the key and by the TD given.
func signingRequest(t testing.TB, k *hostileKMS, key *ecdsa.PrivateKey) *csr.Request {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	evidence, err := k.td.Attest(t.Context(), attest.RATLSReportData(spki))
	if err != nil {
		t.Fatal(err)
	}
	return &csr.Request{PublicKey: spki, Subject: "app.example.com", SANs: []string{"app.example.com"}, ServerAuth: true, Evidence: evidence}
}

// signCert sends a request as it is, signed by key.
func (k *hostileKMS) signCert(t testing.TB, version uint32, raw []byte, key *ecdsa.PrivateKey) answer {
	t.Helper()
	digest := sha256.Sum256(raw)
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	body := fmt.Sprintf(`{"api_version":%d,"csr":"%x","signature":"%x","vm_config":%q}`, version, raw, signature, k.td.VMConfig())
	return k.call(t, k.plain, "SignCert", body)
}

// TestHostileSigningRequests asks for certificates that nobody gets.
func TestHostileSigningRequests(t *testing.T) {
	t.Parallel()
	k := newHostileKMS(t)
	key, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	good := signingRequest(t, k, key)
	const kmsName = `csr: name \"` + exampleDomain + `\" is a name of this KMS`
	tests := []struct {
		name   string
		change func(r *csr.Request)
		raw    func(raw []byte) []byte
		signer *ecdsa.PrivateKey
		want   string
	}{
		{name: "a key that is not the quote's", change: func(r *csr.Request) {
			r.PublicKey, err = x509.MarshalPKIXPublicKey(&other.PublicKey)
		}, signer: other, want: "Quote verification failed: report data: report data mismatch"},
		{name: "trailing bytes", raw: func(b []byte) []byte { return append(b, 0) }, want: "Failed to parse csr"},
		{name: "a truncated request", raw: func(b []byte) []byte { return b[:len(b)-1] }, want: "Failed to parse csr"},
		{name: "signed by another key", signer: other, want: "Failed to verify csr signature: Invalid signature"},
		{name: "the KMS's name", change: func(r *csr.Request) { r.SANs = []string{exampleDomain} }, want: kmsName},
		{name: "the KMS's name in capitals", change: func(r *csr.Request) { r.SANs = []string{strings.ToUpper(exampleDomain)} }, want: `KMS.EXAMPLE.COM\" is a name of this KMS`},
		{name: "the KMS's name as subject", change: func(r *csr.Request) { r.Subject = exampleDomain }, want: kmsName},
	}
	for _, version := range []uint32{1, 2} {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("version %d: %s", version, tt.name), func(t *testing.T) {
				r, signer := *good, key
				if tt.change != nil {
					tt.change(&r)
				}
				raw, err := csr.Marshal(version, &r)
				if err != nil {
					t.Fatal(err)
				}
				if tt.raw != nil {
					raw = tt.raw(raw)
				}
				if tt.signer != nil {
					signer = tt.signer
				}
				a := k.signCert(t, version, raw, signer)
				if a.StatusCode != http.StatusBadRequest || !strings.Contains(a.body, tt.want) {
					t.Errorf("SignCert = %d %.300s, want 400 with %q", a.StatusCode, a.body, tt.want)
				}
			})
		}
		raw, err := csr.Marshal(version, good)
		if err != nil {
			t.Fatal(err)
		}
		wantLeaf(t, k.signCert(t, version, raw, key))
	}
	k.alive(t)
}

// wantLeaf wants a good request to get a certificate that can sign nothing.
func wantLeaf(t *testing.T, a answer) {
	t.Helper()
	var got struct {
		Chain []string `json:"certificate_chain"`
	}
	if err := json.Unmarshal([]byte(a.body), &got); err != nil || len(got.Chain) != 3 {
		t.Fatalf("SignCert = %d %.300s, want a chain of 3", a.StatusCode, a.body)
	}
	leaf := parseCertificate(t, []byte(got.Chain[0]))
	if leaf.IsCA || leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
		t.Error("the certificate of an application can sign others")
	}
}

// TestHostileBodies sends bodies that are too large, expand, or never end.
func TestHostileBodies(t *testing.T) {
	t.Parallel()
	k := newHostileKMS(t)
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	if _, err := io.CopyN(z, zeros{}, 256<<20); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	send := func(path, contentType, encoding string, body io.Reader) (answer, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, k.URL("https")+path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		if encoding != "" {
			req.Header.Set("Content-Encoding", encoding)
		}
		resp, err := k.plain.Do(req)
		if err != nil {
			return answer{}, err
		}
		return read(t, resp), nil
	}
	over := `{"vm_config":"` + strings.Repeat("x", 1<<20) + `"}`
	tests := []struct {
		name, path, contentType, encoding string
		body                              io.Reader
		status                            int
		want                              string
	}{
		{"prpc, over 1 MiB", "/prpc/GetAppKey?json", "application/json", "", strings.NewReader(over), 400, "request body: larger than 1048576 bytes"},
		{"Connect, over 1 MiB", "/kms.v1.KMS/GetAppKey", "application/json", "", strings.NewReader(over), 429, "resource_exhausted"},
		{"Connect, a gzip bomb", "/kms.v1.KMS/GetAppKey", "application/json", "gzip", bytes.NewReader(bomb.Bytes()), 501, "unknown compression"},
		{"prpc, a gzip bomb", "/prpc/GetAppKey?json", "application/json", "gzip", bytes.NewReader(bomb.Bytes()), 400, "a compressed body is not accepted"},
		{"prpc, nested JSON", "/prpc/GetAppKey?json", "application/json", "", strings.NewReader(strings.Repeat("[", 1<<19)), 400, "exceeded max depth"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := send(tt.path, tt.contentType, tt.encoding, tt.body)
			if err != nil {
				t.Fatal(err)
			}
			if a.StatusCode != tt.status || !strings.Contains(a.body, tt.want) {
				t.Errorf("POST %s = %d %.300s, want %d with %q", tt.path, a.StatusCode, a.body, tt.status, tt.want)
			}
		})
	}
	t.Run("a body that never ends", func(t *testing.T) {
		// core.limits.read_timeout is 2 s.
		quick(t, 6*time.Second, "waiting for a body", func() time.Duration {
			reader, writer := io.Pipe()
			go func() {
				for range 40 {
					if _, err := writer.Write([]byte(" ")); err != nil {
						return
					}
					time.Sleep(200 * time.Millisecond)
				}
				_ = writer.Close() // nobody reads it any more
			}()
			began := time.Now()
			a, err := send("/prpc/GetAppKey?json", "application/json", "", reader)
			_ = reader.Close() // ends the writer
			took := time.Since(began)
			if err == nil && (a.StatusCode != http.StatusBadRequest || !strings.Contains(a.body, "request body: ")) {
				t.Errorf("GetAppKey = %d %s, want 400 about the request body, or no answer", a.StatusCode, a.body)
			}
			return took
		})
	})
	k.alive(t)
}

// zeros reads as zero bytes without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestResumedSessionsAreAppraised wants every connection to prove its key: the second
// one of a client that offers to resume is a whole handshake, or is appraised
// all the same.
func TestResumedSessionsAreAppraised(t *testing.T) {
	t.Parallel()
	k := newHostileKMS(t)
	certificate, err := ratls.NewCertificate(t.Context(), ratls.ClientCertConfig{Attester: attesterFunc(
		func(ctx context.Context, _ attest.ReportData) (*attest.Evidence, error) {
			return k.td.Attest(ctx, attest.NoReportData())
		})})
	if err != nil {
		t.Fatal(err)
	}
	config := k.tlsClient(t, exampleDomain)
	config.Certificates = []tls.Certificate{certificate}
	config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	for i := range 3 {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, Timeout: patience}
		a := k.call(t, client, "GetMeta", "{}")
		if !strings.Contains(a.body, "invalid quote: report data") {
			t.Errorf("connection %d: GetMeta = %d %.200s, want invalid quote", i+1, a.StatusCode, a.body)
		}
	}
	k.alive(t)
}

// TestRapidReset opens and resets streams as fast as it can. The KMS ends that
// connection or bears it, and serves others meanwhile.
func TestRapidReset(t *testing.T) {
	t.Parallel()
	k := newHostileKMS(t)
	config := k.tlsClient(t, exampleDomain)
	config.NextProtos = []string{"h2"}
	raw, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(k.URL("https"), "https://"))
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, config)
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, raw) }() // the answers, as they are encrypted: nobody wants them
	headers := resetHeaders(t)
	sent, stream := 0, uint32(1)
	for ; sent < 20_000; sent++ {
		err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: headers, EndHeaders: true})
		if err == nil {
			err = framer.WriteRSTStream(stream, http2.ErrCodeCancel)
		}
		if err != nil {
			if errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "i/o timeout") {
				t.Errorf("after %d resets: %v, want the KMS to take or refuse them", sent, err)
			}
			break
		}
		stream += 2
		if sent%5_000 == 0 {
			k.alive(t)
		}
	}
	t.Logf("%d streams were opened and reset", sent)
	k.alive(t)
}

func resetHeaders(t testing.TB) []byte {
	t.Helper()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range [][2]string{
		{":method", "POST"},
		{":scheme", "https"},
		{":authority", exampleDomain},
		{":path", "/prpc/GetAppKey?json"},
		{"content-type", "application/json"},
	} {
		if err := encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	return bytes.Clone(block.Bytes())
}
