package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// pinned returns a client that trusts the root of a key directory alone.
func pinned(t testing.TB, k *kmsDir) *http.Client {
	t.Helper()
	pem, err := os.ReadFile(k.Certs + "/root-ca.crt")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("root-ca.crt holds no certificate")
	}
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "kms.example.com"},
	}}
}

// autoBootstrap fills the key directory of k.
func autoBootstrap(t testing.TB, k *kmsDir) {
	t.Helper()
	if code, _, stderr := run(t, "dstack-onboard", "--config", k.Config); code != 0 {
		t.Fatalf("bootstrap: status %d\n%s", code, stderr)
	}
}

// BenchmarkStart starts dstack-kms on a complete directory: the time until
// /ready answers, and what the idle process then holds in memory.
func BenchmarkStart(b *testing.B) {
	k := newKMS(b, `auto_bootstrap_domain = "kms.example.com"`, "")
	autoBootstrap(b, k)
	var rss float64
	for b.Loop() {
		p := start(b, "dstack-kms", "--config", k.Config)
		// A client of its own each time: every start has a handshake of its own.
		waitReady(b, p, pinned(b, k), k.URL("https")+"/ready")
		b.StopTimer()
		time.Sleep(300 * time.Millisecond) // idle
		rss = residentMiB(b, p.Process.Pid)
		if code := p.terminate(b); code != 0 {
			b.Fatalf("exit status %d", code)
		}
		b.StartTimer()
	}
	b.ReportMetric(rss, "idle-RSS-MiB")
}

// waitReady polls faster than a test needs to.
func waitReady(b *testing.B, p *process, client *http.Client, url string) {
	b.Helper()
	for deadline := time.Now().Add(10 * time.Second); probe(client, url) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("%s does not answer\n%s", url, p.stderr)
		}
	}
}

// residentMiB reads VmRSS.
func residentMiB(b testing.TB, pid int) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmRSS:" {
			kib, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib / 1024
		}
	}
	b.Fatal("no VmRSS")
	return 0
}
