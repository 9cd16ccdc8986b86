package e2e

import (
	"context"
	"crypto/tls"
	"database/sql"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	_ "github.com/ncruces/go-sqlite3/driver"
	"go.uber.org/zap"

	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/audit"
	"teekms/internal/authz"
	"teekms/internal/authz/dev"
	"teekms/internal/keys/keystore"
	"teekms/internal/observe"
	"teekms/internal/osimage"
	"teekms/internal/ratls"
	"teekms/internal/rpc"
	"teekms/internal/serve"
	"teekms/services/kms"
)

// unauditedEnv names the directory of a KMS that the test binary serves without
// writing an audit log: the path of a release without its commit.
const unauditedEnv = "TEEKMS_UNAUDITED_KMS"

// rest is about what one caller's request takes beside its commit.
const rest = 300 * time.Microsecond

// BenchmarkAuditedRelease measures what the audit log adds to a release:
// GetAppKey of a real dstack-kms on SQLite, the same path without a log, and a
// commit of one row by SQLite itself, all in one run on one disk. over-floor is
// the first by the sum of the two others. A commit that follows another at once
// finds disk and processor awake, which one between two requests does not:
// over-rested-floor takes commits with a rest before each.
func BenchmarkAuditedRelease(b *testing.B) {
	k := newKMS(b, `auto_bootstrap_domain = "kms.example.com"`, devAuthority+`
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
	audited := &workload{td: td, addr: fmt.Sprintf("127.0.0.1:%d", k.Port)}
	bare := &workload{td: td, addr: unaudited(b, k)}
	commit := committer(b, filepath.Join(k.Dir, "db", "floor.db"))
	for _, connections := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(connections), func(b *testing.B) {
			with, without := audited.clients(b, connections), bare.clients(b, connections)
			for b.Loop() {
				var audited1, bare1, commits, rested []time.Duration
				var elapsed time.Duration
				for range 64 { // by short turns, so that all see the same disk and the same neighbors
					begin := time.Now()
					audited1 = append(audited1, audited.latencies(b, with, max(32, connections))...)
					elapsed += time.Since(begin)
					bare1 = append(bare1, bare.latencies(b, without, max(32, connections))...)
					for range 16 {
						commits = append(commits, timed(commit))
					}
					for range 16 {
						time.Sleep(rest)
						rested = append(rested, timed(commit))
					}
				}
				floor, restedFloor := median(bare1)+median(commits), median(bare1)+median(rested)
				b.ReportMetric(micros(median(audited1)), "p50-us")
				b.ReportMetric(micros(quantile(audited1, 99)), "p99-us")
				b.ReportMetric(float64(len(audited1))/elapsed.Seconds(), "req/s")
				b.ReportMetric(micros(median(bare1)), "path-us")
				b.ReportMetric(micros(median(commits)), "commit-us")
				b.ReportMetric(micros(median(rested)), "rested-commit-us")
				b.ReportMetric(float64(median(audited1))/float64(floor), "over-floor")
				b.ReportMetric(float64(median(audited1))/float64(restedFloor), "over-rested-floor")
			}
		})
	}
}

// clients are connections that are kept, their handshakes over.
func (w *workload) clients(b *testing.B, n int) []*http.Client {
	b.Helper()
	all := make([]*http.Client, n)
	for i := range all {
		all[i] = w.client(w.certificate(b))
		b.Cleanup(all[i].CloseIdleConnections)
		w.getAppKey(b, all[i])
	}
	return all
}

func (w *workload) getAppKey(b *testing.B, client *http.Client) {
	post1(b, client, "https://"+w.addr+"/prpc/GetAppKey?json", []byte(`{"api_version":1}`))
}

// latencies are those of n calls of GetAppKey, spread over the clients.
func (w *workload) latencies(b *testing.B, clients []*http.Client, n int) []time.Duration {
	b.Helper()
	each := n / len(clients)
	took := make([]time.Duration, each*len(clients))
	var done sync.WaitGroup
	for i, client := range clients {
		done.Go(func() {
			for j := range each {
				took[i*each+j] = timed(func() { w.getAppKey(b, client) })
			}
		})
	}
	done.Wait()
	return took
}

func timed(f func()) time.Duration {
	begin := time.Now()
	f()
	return time.Since(begin)
}

func quantile(d []time.Duration, percent int) time.Duration {
	slices.Sort(d)
	return d[len(d)*percent/100]
}

func median(d []time.Duration) time.Duration { return quantile(d, 50) }

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// committer returns what commits one row of the size of a record, as durably as
// the KMS does.
func committer(b *testing.B, file string) func() {
	b.Helper()
	db, err := sql.Open("sqlite3", "file:"+file+"?_pragma=journal_mode(wal)&_pragma=synchronous(full)&_txlock=immediate")
	if err != nil {
		b.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	b.Cleanup(func() { _ = db.Close() })
	if _, err := db.Exec("CREATE TABLE row (id INTEGER PRIMARY KEY, body BLOB) STRICT"); err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 1024)
	return func() {
		if _, err := db.Exec("INSERT INTO row (body) VALUES (?)", body); err != nil {
			b.Error(err)
		}
	}
}

// unaudited starts the test binary as a KMS of k that records nothing, and
// returns its address.
func unaudited(b *testing.B, k *kmsDir) string {
	b.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^$")
	cmd.Env = append(os.Environ(), bareServerEnv+"=1", unauditedEnv+"="+k.Dir)
	cmd.Stderr = &output{}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	var addr string
	if _, err := fmt.Fscanln(stdout, &addr); err != nil {
		b.Fatal(err)
	}
	return addr
}

// nowhere is an audit log that keeps nothing.
type nowhere struct{}

func (nowhere) Append(context.Context, audit.Event) (audit.Receipt, error) {
	return audit.Receipt{}, nil
}

// serveUnaudited serves a KMS of the key directory and the software TD in dir, as
// dstack-kms does but for the audit log.
func serveUnaudited(dir string) error {
	store, err := keystore.Open(context.Background(), keystore.Config{Dir: filepath.Join(dir, "certs")})
	if err != nil {
		return err
	}
	td, err := simtd.Open(simtd.Config{Dir: filepath.Join(dir, "td")})
	if err != nil {
		return err
	}
	verifier, err := tdx.NewVerifier(tdx.Config{TrustAnchor: td.Root(), Collateral: td, Now: time.Now})
	if err != nil {
		return err
	}
	appraiser, err := ratls.NewAppraiser(ratls.AppraiserConfig{Verifier: verifier})
	if err != nil {
		return err
	}
	peers, err := ratls.NewServer(ratls.ServerConfig{
		Appraiser: appraiser, Certificates: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { c := store.RPCCertificate(); return &c, nil },
	})
	if err != nil {
		return err
	}
	log, err := observe.NewLogger(observe.Config{Level: "info", Format: "console", Out: os.Stderr})
	if err != nil {
		return err
	}
	handler, err := unauditedHandler(store, appraiser, peers, log)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	return serve.Run(context.Background(), serve.Config{
		Listener: listener, Handler: handler, TLS: peers.TLSConfig(), ConnContext: peers.ConnContext, Log: log,
	})
}

func unauditedHandler(store *keystore.Store, appraiser *ratls.Appraiser, peers *ratls.Server, log *zap.Logger) (http.Handler, error) {
	temp, err := store.TempCAKeyPEM()
	if err != nil {
		return nil, err
	}
	images, err := osimage.New(osimage.Config{Log: log})
	if err != nil {
		return nil, err
	}
	service, err := kms.New(kms.Config{
		Keys: kms.Keys{
			Roots: store.Roots(), RootCertificate: store.RootCAPEM(), TempCertificate: store.TempCAPEM(), TempKey: temp, Domain: store.Domain(),
		},
		Authorizer: dev.New("any"), Appraiser: appraiser, Images: images, Audit: nowhere{}, Log: log,
		Self: func(context.Context) (authz.BootInfo, error) { return authz.BootInfo{}, nil },
	})
	if err != nil {
		return nil, err
	}
	chain, err := rpc.New(rpc.Config{
		Log: log, ReadMaxBytes: 1 << 20, Timeout: time.Minute, Concurrency: 256, Now: time.Now,
		Access: kms.Access(), Errors: kms.Errors(), Admit: peers.Admit,
	})
	if err != nil {
		return nil, err
	}
	return serve.NewMux(serve.MuxConfig{Service: service.RPC(), Chain: chain})
}
