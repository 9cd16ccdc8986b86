package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestKMSOverTLS looks at the handshake.
func TestKMSOverTLS(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	k.fill(t, exampleDomain)
	before := parseCertificate(t, k.file(t, "rpc.crt"))
	p, client := k.serve(t, exampleDomain)
	address := fmt.Sprintf("127.0.0.1:%d", k.Port)
	p.logs(t, "INFO KMS has launched from https://"+address)

	t.Run("TLS 1.3 and nothing older", func(t *testing.T) {
		config := k.tlsClient(t, exampleDomain)
		config.MaxVersion = tls.VersionTLS12
		conn, err := tls.Dial("tcp", address, config)
		if err == nil {
			conn.Close()
			t.Fatal("TLS 1.2 is accepted")
		}
		if !strings.Contains(err.Error(), "protocol version") {
			t.Errorf("TLS 1.2: %v, want an alert about the protocol version", err)
		}
		out := shell(t, fmt.Sprintf("openssl s_client -connect %s -servername %s -CAfile %s/root-ca.crt -verify_return_error -brief </dev/null 2>&1",
			address, exampleDomain, k.Certs))
		for _, want := range []string{"TLSv1.3", "Verification: OK"} {
			if !strings.Contains(out, want) {
				t.Errorf("openssl s_client does not say %q:\n%s", want, out)
			}
		}
	})
	t.Run("the certificate is reissued at start for the same key", func(t *testing.T) {
		chain := get(t, client, k.URL("https")+"/health").TLS.PeerCertificates
		if len(chain) != 1 {
			t.Fatalf("%d certificates are sent, want the leaf alone", len(chain))
		}
		leaf := chain[0]
		if onDisk := parseCertificate(t, k.file(t, "rpc.crt")); !leaf.Equal(onDisk) {
			t.Error("rpc.crt on disk is not the certificate that is served")
		}
		if leaf.Equal(before) || !leaf.PublicKey.(*ecdsa.PublicKey).Equal(before.PublicKey) {
			t.Error("want another certificate of the same key")
		}
		if len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != exampleDomain || leaf.Subject.String() != "CN="+exampleDomain {
			t.Errorf("subject %s, names %v", leaf.Subject, leaf.DNSNames)
		}
		if life := leaf.NotAfter.Sub(leaf.NotBefore); life < 90*24*time.Hour || life > 91*24*time.Hour {
			t.Errorf("it lives %v, want 90 days", life)
		}
	})
	t.Run("another name and another root are not accepted by clients", func(t *testing.T) {
		for _, config := range []*tls.Config{k.tlsClient(t, "other.example.com"), {ServerName: exampleDomain, RootCAs: x509.NewCertPool()}} {
			if conn, err := tls.Dial("tcp", address, config); err == nil {
				conn.Close()
				t.Errorf("the handshake for %s succeeded", config.ServerName)
			}
		}
	})
	t.Run("plain HTTP is told so", func(t *testing.T) {
		a := get(t, http.DefaultClient, k.URL("http")+"/health")
		if a.StatusCode != http.StatusBadRequest || !strings.Contains(a.body, "HTTP request to an HTTPS server") {
			t.Errorf("plain HTTP = %d %q", a.StatusCode, a.body)
		}
	})
	t.Run("the version is in every answer", func(t *testing.T) {
		for _, path := range []string{"/health", "/ready", "/metrics", "/nope", "/prpc/GetMeta", "/prpc/Nope"} {
			if v := get(t, client, k.URL("https")+path).Header.Get("X-App-Version"); v == "" {
				t.Errorf("%s: there is no X-App-Version", path)
			}
		}
	})
	t.Run("a large body is refused", func(t *testing.T) {
		large := `{"vm_config":"` + strings.Repeat("a", 1<<20) + `"}`
		wantRefusal(t, request(t, client, http.MethodPost, k.URL("https")+"/prpc/GetAppKey?json", large, nil), "request body: larger than 1048576 bytes")
		wantConnectError(t, connectPost(t, client, k.URL("https")+"/kms.v1.KMS/GetAppKey", large), "resource_exhausted", "larger than configured max 1048576")
	})
}

// TestConfiguredLimits has a KMS with limits of its own.
func TestConfiguredLimits(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "[core.limits]\nbody_bytes = 2048\nheader_bytes = 2048\n")
	k.fill(t, exampleDomain)
	_, client := k.serve(t, exampleDomain)
	body := `{"vm_config":"` + strings.Repeat("a", 2048) + `"}`
	wantRefusal(t, request(t, client, http.MethodPost, k.URL("https")+"/prpc/GetAppKey?json", body, nil), "request body: larger than 2048 bytes")
	wantConnectError(t, connectPost(t, client, k.URL("https")+"/kms.v1.KMS/GetAppKey", body), "resource_exhausted", "larger than configured max 2048")
	http1 := &http.Client{Transport: &http.Transport{TLSClientConfig: k.tlsClient(t, exampleDomain)}}
	a := request(t, http1, http.MethodGet, k.URL("https")+"/health", "", map[string]string{"X-Big": strings.Repeat("x", 8<<10)})
	if a.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header of 8 KiB = %d, want 431", a.StatusCode)
	}
}

// TestClientCertificates asks for one where the configuration says so.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "[rpc.tls.mutual]\nmandatory = true\nca_certs = \"/etc/kms/certs/tmp-ca.crt\"\n")
	k.fill(t, exampleDomain)
	p := start(t, "dstack-kms", "--config", k.Config)
	p.logs(t, "INFO KMS has launched from https://")
	url := k.URL("https") + "/health"
	// In TLS 1.3 a client is told after its own end of the handshake.
	conn, err := tls.Dial("tcp", strings.TrimPrefix(k.URL("https"), "https://"), k.tlsClient(t, exampleDomain))
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("without a certificate: %v, want an alert that one is required", err)
	}
	config := k.tlsClient(t, exampleDomain)
	config.Certificates = []tls.Certificate{selfSigned(t)}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	p.ready(t, client, url)
	if n := strings.Count(p.stderr.String(), `this setting has no effect {"key": "rpc.tls.mutual.ca_certs"}`); n != 1 {
		t.Errorf("it is said %d times that ca_certs has no effect, want once", n)
	}
}

func selfSigned(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestHealthAndMetrics(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	k.fill(t, exampleDomain)
	p, client := k.serve(t, exampleDomain)
	url := k.URL("https")
	for _, path := range []string{"/health", "/ready"} {
		if a := get(t, client, url+path); a.StatusCode != http.StatusOK || a.body != "OK" || !strings.HasPrefix(a.Header.Get("Content-Type"), "text/plain") {
			t.Errorf("%s = %d %q %s, want 200 OK as text", path, a.StatusCode, a.body, a.Header.Get("Content-Type"))
		}
	}
	get(t, client, url+"/prpc/GetMeta")
	if resp, err := client.Post(url+"/prpc/GetAppKey?json", "", strings.NewReader("{}")); err == nil {
		resp.Body.Close()
	}
	metrics := get(t, client, url+"/metrics")
	for _, want := range []string{
		`teekms_rpc_requests_total{code="ok",procedure="/kms.v1.KMS/GetMeta"} 1`,
		`teekms_rpc_requests_total{code="unavailable",procedure="/kms.v1.KMS/GetAppKey"} 1`,
		"dstack_kms_attestation_requests_total 1", "dstack_kms_attestation_failures_total 1",
		`teekms_certificate_not_after_seconds{certificate="root"} `, `teekms_certificate_not_after_seconds{certificate="rpc"} `,
		`teekms_certificates_issued_total{kind="rpc"} 1`, `teekms_authorizations_total{result="unreachable"} 1`,
		`teekms_collateral_age_seconds{ca="`, `teekms_collateral_not_after_seconds{ca="`,
		"teekms_appraisals_limited_total 0", "teekms_appraisal_duration_seconds_count 0",
		"go_goroutines ", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(metrics.body, want) {
			t.Errorf("/metrics does not say %s", want)
		}
	}
	if code := p.terminate(t); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	_, client = k.serve(t, exampleDomain, "DSTACK_KMS_CORE_METRICS_ENABLED=false")
	if a := get(t, client, url+"/metrics"); a.StatusCode != http.StatusNotFound {
		t.Errorf("/metrics switched off = %d, want 404", a.StatusCode)
	}
}

func TestDevelopmentAuthorizerIsTold(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "[core.auth_api]\ntype = \"dev\"\n[core.auth_api.dev]\ngateway_app_id = \"any\"\n")
	k.fill(t, exampleDomain)
	p, client := k.serve(t, exampleDomain)
	m := metaOf(t, client, k)
	if !m.IsDev || !m.AllowAnyUpgrade || m.GatewayAppID == nil || *m.GatewayAppID != "any" || m.KMSContractAddress != nil || m.ChainID != nil {
		t.Errorf("GetMeta = %+v, want a development KMS", m)
	}
	const setting = "core.auth_api.type"
	if !strings.Contains(strings.Join(m.InsecureSettings, " "), setting) {
		t.Errorf("insecure_settings = %v, want %s among them", m.InsecureSettings, setting)
	}
	p.logs(t, `WARN this setting weakens security {"key": "core.auth_api.type"}`)
}

// slowCall is a call whose body is half sent.
type slowCall struct {
	conn net.Conn
	rest string
}

// beginSlowCall sends the header of a call, and half of its body when the KMS reads
// for it.
func beginSlowCall(t testing.TB, k *kmsDir) *slowCall {
	t.Helper()
	conn, err := tls.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", k.Port), k.tlsClient(t, exampleDomain))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	const body = `{"vm_config":"0123456789"}`
	fmt.Fprintf(conn, "POST /prpc/GetKmsKey?json HTTP/1.1\r\nHost: kms\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", len(body))
	awaitContinue(t, conn)
	if _, err := io.WriteString(conn, body[:10]); err != nil {
		t.Fatal(err)
	}
	return &slowCall{conn, body[10:]}
}

// awaitContinue waits until the server reads the body of the call on conn, which
// expects to be told.
func awaitContinue(t testing.TB, conn net.Conn) {
	t.Helper()
	const want = "HTTP/1.1 100 Continue\r\n\r\n"
	got := make([]byte, len(want))
	if n, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("the call is answered with %q, %v, want %q", got[:n], err, want)
	}
}

// end sends the rest and reads the answer.
func (c *slowCall) end(t testing.TB) answer {
	t.Helper()
	if _, err := io.WriteString(c.conn, c.rest); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c.conn), nil)
	if err != nil {
		t.Fatalf("the call in flight got no answer: %v", err)
	}
	return read(t, resp)
}

// TestDrain ends a KMS that has every kind of connection open.
func TestDrain(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			quick(t, 2*time.Second, "ending after the last answer", func() time.Duration { return drain(t, signal) })
		})
	}
	t.Run("nothing in flight", func(t *testing.T) {
		t.Parallel()
		k := newKMS(t, "", "")
		k.fill(t, exampleDomain)
		quick(t, 2*time.Second, "ending", func() time.Duration {
			p, _ := k.serve(t, exampleDomain)
			dial(t, k)
			begin := time.Now()
			if code := p.terminate(t); code != 0 {
				t.Errorf("exit status %d, want 0", code)
			}
			return time.Since(begin)
		})
	})
	t.Run("a call that never ends is cut off", func(t *testing.T) {
		t.Parallel()
		k := newKMS(t, "", "[core.limits]\ndrain_timeout = \"500ms\"\n")
		k.fill(t, exampleDomain)
		p, _ := k.serve(t, exampleDomain)
		beginSlowCall(t, k)
		const want = "\nError: draining: calls still in flight after 500ms were cut off\n"
		if code := p.terminate(t); code != 1 || !strings.Contains(p.stderr.String(), want) {
			t.Errorf("exit status %d, want 1 and%s", code, want)
		}
	})
}

// drain ends a KMS while a call is in flight, and tells how long it took after that
// was answered.
func drain(t *testing.T, signal syscall.Signal) time.Duration {
	t.Helper()
	k := newKMS(t, "", "[core.limits]\nread_timeout = \"5m\"\ndrain_timeout = \"5m\"\n")
	k.fill(t, exampleDomain)
	p, http2 := k.serve(t, exampleDomain)
	address := fmt.Sprintf("127.0.0.1:%d", k.Port)
	// Never spoken, in the clear and after the handshake; idle, of both versions
	// of HTTP.
	dial(t, k)
	silent, err := tls.Dial("tcp", address, k.tlsClient(t, exampleDomain))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	http1 := &http.Client{Transport: &http.Transport{TLSClientConfig: k.tlsClient(t, exampleDomain)}}
	get(t, http1, k.URL("https")+"/health")
	get(t, http2, k.URL("https")+"/health")
	grpc := grpcConn(t, k, k.tlsClient(t, exampleDomain))
	testGRPCHealth(t, grpc, "kms.v1.KMS")

	call := beginSlowCall(t, k)
	if err := p.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			break
		}
		conn.Close()
		if time.Now().After(end) {
			t.Fatal("a new connection is accepted while draining")
		}
	}
	time.Sleep(400 * time.Millisecond) // it does not end by itself
	select {
	case <-p.ended:
		t.Fatal("it ended before the call in flight was answered")
	default:
	}
	wantRefusal(t, call.end(t), noAuthority)
	begin := time.Now()
	if code := p.wait(t, patience); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	return time.Since(begin)
}
