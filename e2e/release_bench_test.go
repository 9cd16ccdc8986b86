package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/keys"
	"teekms/internal/ratls"
	"teekms/internal/ratls/csr"
)

// bareServerEnv makes the test binary a server that shakes hands and answers
// nothing else: the floor of a fresh connection.
const bareServerEnv = "TEEKMS_BARE_TLS_SERVER"

// BenchmarkRelease measures a real dstack-kms that releases keys and signs
// certificates, on connections that are kept and on new ones that each bring a
// quote of their own; and the primitives that this is made of. CPU is that of
// the server process.
func BenchmarkRelease(b *testing.B) {
	k := newKMS(b, `auto_bootstrap_domain = "kms.example.com"`, `
[core.auth_api]
type = "dev"

[core.image]
verify = false

[core.limits]
appraisals_per_second = 100000
appraisals_burst = 100000
`)
	autoBootstrap(b, k)
	p := start(b, "dstack-kms", "--config", k.Config)
	p.ready(b, pinned(b, k), k.URL("https")+"/health")
	td, err := simtd.Open(simtd.Config{Dir: k.TD, Ephemeral: true})
	if err != nil {
		b.Fatal(err)
	}
	w := &workload{td: td, addr: fmt.Sprintf("127.0.0.1:%d", k.Port), pid: p.Process.Pid}
	requests := map[string]func(testing.TB) []byte{
		"GetAppKey": func(testing.TB) []byte { return []byte(`{"api_version":1}`) },
		"SignCert":  w.signCert,
	}
	b.Run("floor", func(b *testing.B) { benchmarkFloor(b, td) })
	for _, method := range []string{"GetAppKey", "SignCert"} {
		for _, fresh := range []bool{false, true} {
			for _, connections := range []int{1, 8, 64} {
				name := fmt.Sprintf("%s/%s/%d", method, map[bool]string{false: "kept", true: "new"}[fresh], connections)
				b.Run(name, func(b *testing.B) {
					w.run(b, load{method: method, body: requests[method], fresh: fresh, connections: connections})
				})
			}
		}
	}
}

// workload is a software TD that calls a KMS.
type workload struct {
	td   *simtd.TD
	addr string
	pid  int
}

// load is what is sent.
type load struct {
	method      string
	body        func(testing.TB) []byte
	fresh       bool
	connections int
}

// total is how many calls one run makes.
func (l load) total() int {
	if l.fresh {
		return 512
	}
	return 2048
}

// run sends the load and reports rate, latencies and the server's CPU time.
func (w *workload) run(b *testing.B, l load) {
	perWorker := l.total() / l.connections
	bodies := make([][]byte, l.connections)
	certificates := make([]tls.Certificate, l.connections*perWorker)
	for i := range bodies {
		bodies[i] = l.body(b)
	}
	for i := range certificates { // a fresh quote for each, made before the clock starts
		if !l.fresh && i >= l.connections {
			break
		}
		certificates[i] = w.certificate(b)
	}
	for b.Loop() {
		var wg sync.WaitGroup
		took := make([]time.Duration, l.connections*perWorker)
		cpu, begin := cpuTime(b, w.pid), time.Now()
		for worker := range l.connections {
			wg.Go(func() {
				var client *http.Client
				for n := range perWorker {
					i := worker*perWorker + n
					if client == nil {
						index := worker
						if l.fresh {
							index = i
						}
						client = w.client(certificates[index])
					}
					started := time.Now()
					post1(b, client, "https://"+w.addr+"/prpc/"+l.method+"?json", bodies[worker])
					took[i] = time.Since(started)
					if l.fresh {
						client.CloseIdleConnections()
						client = nil
					}
				}
			})
		}
		wg.Wait()
		elapsed, used := time.Since(begin), cpuTime(b, w.pid)-cpu
		slices.Sort(took)
		b.ReportMetric(float64(len(took))/elapsed.Seconds(), "req/s")
		b.ReportMetric(float64(used.Microseconds())/float64(len(took)), "server-cpu-us/req")
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
	}
}

// certificate carries a quote of this TD over a key of its own.
func (w *workload) certificate(tb testing.TB) tls.Certificate {
	c, err := ratls.NewCertificate(tb.Context(), ratls.ClientCertConfig{Attester: w.td})
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// client keeps one connection. Whom it speaks to does not matter here.
func (w *workload) client(c tls.Certificate) *http.Client {
	return &http.Client{Transport: &http.Transport{
		MaxConnsPerHost: 1,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{c}},
	}}
}

// signCert is the body of a SignCert call.
func (w *workload) signCert(tb testing.TB) []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		tb.Fatal(err)
	}
	evidence, err := w.td.Attest(tb.Context(), attest.RATLSReportData(spki))
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := csr.Marshal(csr.Version2, &csr.Request{
		PublicKey: spki, Subject: "app", SANs: []string{"app.example.com"}, ServerAuth: true, WithEvidence: true, Evidence: evidence,
	})
	if err != nil {
		tb.Fatal(err)
	}
	digest := sha256.Sum256(raw)
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		tb.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{
		"api_version": 2, "csr": hex.EncodeToString(raw), "signature": hex.EncodeToString(signature), "vm_config": "",
	})
	if err != nil {
		tb.Fatal(err)
	}
	return body
}

// post1 sends one call, whose status must be 200.
func post1(tb testing.TB, client *http.Client, url string, body []byte) {
	resp, err := client.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		tb.Error(err)
		return
	}
	defer resp.Body.Close()
	if answer, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		tb.Errorf("status %d, %v: %.200s", resp.StatusCode, err, answer)
	}
}

// cpuTime is what a process has spent on a CPU, from its threads' schedstat.
func cpuTime(tb testing.TB, pid int) time.Duration {
	tb.Helper()
	files, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/schedstat")
	if err != nil || len(files) == 0 {
		tb.Fatalf("no schedstat of process %d: %v", pid, err)
	}
	var total time.Duration
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			tb.Fatal(err)
		}
		total += time.Duration(ns)
	}
	return total
}

// benchmarkFloor measures the parts: a mutual handshake with certificates of
// this size by a server that does nothing else, one P-256 verification, and the
// derivation of an application's keys.
func benchmarkFloor(b *testing.B, td *simtd.TD) {
	cmd := exec.Command(os.Args[0], "-test.run", "^$")
	cmd.Env = append(os.Environ(), bareServerEnv+"=1")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	var addr string
	if _, err := fmt.Fscanln(stdout, &addr); err != nil {
		b.Fatal(err)
	}
	w := &workload{td: td, addr: addr, pid: cmd.Process.Pid}
	const handshakes = 512
	certificates := make([]tls.Certificate, handshakes)
	for i := range certificates {
		certificates[i] = w.certificate(b)
	}
	for b.Loop() {
		cpu := cpuTime(b, w.pid)
		for i := range certificates {
			client := w.client(certificates[i])
			post1(b, client, "https://"+addr+"/", nil)
			client.CloseIdleConnections()
		}
		b.ReportMetric(float64((cpuTime(b, w.pid)-cpu).Microseconds())/handshakes, "handshake-cpu-us")
		b.ReportMetric(float64(timeOf(b, verifyP256(b)).Nanoseconds())/1e3, "p256-verify-us")
		b.ReportMetric(float64(timeOf(b, deriveKeys(b)).Nanoseconds())/1e3, "derivation-us")
	}
}

// timeOf is the mean of a few hundred calls on this thread.
func timeOf(tb testing.TB, f func() error) time.Duration {
	const calls = 500
	begin := time.Now()
	for range calls {
		if err := f(); err != nil {
			tb.Fatal(err)
		}
	}
	return time.Since(begin) / calls
}

func verifyP256(tb testing.TB) func() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		tb.Fatal(err)
	}
	return func() error {
		if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) {
			return fmt.Errorf("a good signature does not verify")
		}
		return nil
	}
}

func deriveKeys(tb testing.TB) func() error {
	roots, err := keys.NewRoots()
	if err != nil {
		tb.Fatal(err)
	}
	app, instance := make([]byte, 20), make([]byte, 20)
	return func() error {
		if _, err := roots.AppDisk(app, instance); err != nil {
			return err
		}
		if _, err := roots.Env(app); err != nil {
			return err
		}
		_, err := roots.AppK256(app)
		return err
	}
}

// serveBare is the bare server: TLS 1.3, any client certificate, an empty
// answer. It runs until it is killed.
func serveBare() error {
	if dir := os.Getenv(unauditedEnv); dir != "" {
		return serveUnaudited(dir)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := keys.NewTempCA(key, time.Now())
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	server := &http.Server{
		Handler:   http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
	}
	return server.ServeTLS(listener, "", "")
}
