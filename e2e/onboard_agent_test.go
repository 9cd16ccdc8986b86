package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"teekms/internal/attest/guestagent/guestagenttest"
	"teekms/internal/attest/simtd"
)

// agent is a guest agent that can be held back.
type agent struct {
	http.Handler
	socket string

	mu    sync.Mutex
	asked int           // how many quotes were asked for
	gate  chan struct{} // what a quote waits for; nil is nothing
}

// newAgent plays a guest agent over the software TD of k, which it makes.
func (k *kmsDir) newAgent(t testing.TB, g guestagenttest.Generation) *agent {
	t.Helper()
	td, err := simtd.Open(simtd.Config{Dir: k.TD})
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{Handler: guestagenttest.Handler(td, g)}
	a.socket = guestagenttest.Listen(t, a)
	return a
}

func (a *agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.asked++
	gate := a.gate
	a.mu.Unlock()
	if gate != nil {
		<-gate
	}
	a.Handler.ServeHTTP(w, r)
}

// hold makes quotes wait until release is called.
func (a *agent) hold(t testing.TB) (release func()) {
	t.Helper()
	gate := make(chan struct{})
	a.mu.Lock()
	a.gate, a.asked = gate, 0
	a.mu.Unlock()
	release = sync.OnceFunc(func() {
		a.mu.Lock()
		a.gate = nil
		a.mu.Unlock()
		close(gate)
	})
	t.Cleanup(release)
	return release
}

// waitAsked waits until somebody waits for a quote.
func (a *agent) waitAsked(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		a.mu.Lock()
		asked := a.asked
		a.mu.Unlock()
		if asked > 0 {
			return
		}
	}
	t.Fatal("nobody asked the agent for a quote")
}

// throughAgent starts a command that attests through a, with more environment.
func (k *kmsDir) throughAgent(t testing.TB, a *agent, name string, env ...string) *process {
	t.Helper()
	env = append([]string{"DSTACK_AGENT_ADDRESS=unix:" + a.socket, "DSTACK_KMS_CORE_ATTESTATION_PROVIDER=guest-agent"}, env...)
	return startCmd(t, command(t, env, name, "--config", k.Config))
}

func TestBootstrapThroughAGuestAgent(t *testing.T) {
	for name, g := range map[string]guestagenttest.Generation{
		"that attests": guestagenttest.Current, "that only quotes": guestagenttest.WithoutAttest,
	} {
		for _, provider := range []string{"auto", "guest-agent"} {
			t.Run(name+", provider "+provider, func(t *testing.T) {
				t.Parallel()
				k := newKMS(t, "", "")
				p := k.throughAgent(t, k.newAgent(t, g), "dstack-kms", "DSTACK_KMS_CORE_ATTESTATION_PROVIDER="+provider)
				p.ready(t, http.DefaultClient, k.URL("http")+"/health")
				info := get(t, http.DefaultClient, k.URL("http")+"/prpc/GetAttestationInfo")
				if !strings.Contains(info.body, `"provider":"guest-agent"`) {
					t.Errorf("GetAttestationInfo = %d %.900s, want provider guest-agent", info.StatusCode, info.body)
				}
				checkBootstrapReply(t, k, post(t, k.URL("http")+bootstrapPath, exampleRequest).body)
				code, stdout, stderr := run(t, "kmsctl", "verify", "--dir", k.Certs,
					"--trust-root", filepath.Join(k.TD, "root-ca.pem"), "--collateral", k.TD)
				if code != 0 {
					t.Errorf("kmsctl verify: exit status %d\n%s%s", code, stdout, stderr)
				}
			})
		}
	}
}

// TestWhileABootstrapRuns holds the quote back and does everything else.
func TestWhileABootstrapRuns(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	a := k.newAgent(t, guestagenttest.Current)
	p := k.throughAgent(t, a, "dstack-kms")
	url := k.URL("http")
	p.ready(t, http.DefaultClient, url+"/health")
	release := a.hold(t)

	const body = `{"domain":"kms.example.com","request_id":"lost"}`
	leaver := dial(t, k)
	fmt.Fprintf(leaver, "POST %s HTTP/1.1\r\nHost: kms\r\nContent-Length: %d\r\n\r\n%s", bootstrapPath, len(body), body)
	a.waitAsked(t)
	if err := leaver.Close(); err != nil {
		t.Fatal(err)
	}
	p.logs(t, "the caller of Bootstrap left")

	wantRefusal(t, get(t, http.DefaultClient, url+"/finish"), notYetText)
	wantRefusal(t, post(t, url+"/prpc/Finish?json", ""), notYetText)
	wantRefusal(t, post(t, url+bootstrapPath, `{"domain":"a_b"}`), "domain: character '_' is not allowed in a name")
	if left := tree(t, k.Certs); len(left) != 0 {
		t.Errorf("written before the quote is there: %v", left)
	}
	answers := make(chan answer, 3)
	for _, id := range []string{"lost", "other", ""} {
		go func() {
			answers <- post(t, url+bootstrapPath, fmt.Sprintf(`{"domain":"kms.example.com","request_id":%q}`, id))
		}()
	}
	select {
	case got := <-answers:
		t.Errorf("a caller did not wait: %d %.200s", got.StatusCode, got.body)
	case <-time.After(200 * time.Millisecond):
	}
	release()
	same := 0
	for range 3 {
		if got := <-answers; got.StatusCode == http.StatusOK {
			same++
			checkBootstrapReply(t, k, got.body)
		} else {
			wantRefusal(t, got, alreadyText)
		}
	}
	if same != 1 {
		t.Errorf("%d callers got the record, want the one with the same request_id", same)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked != 1 {
		t.Errorf("%d quotes were made, want 1", a.asked)
	}
}

func TestAnAgentThatFails(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "", "")
	a := k.newAgent(t, guestagenttest.Current)
	good := a.Handler
	a.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"error":"the host said no, see /var/log/host"}`)
	})
	p := k.throughAgent(t, a, "dstack-kms", "DSTACK_KMS_CORE_ATTESTATION_TIMEOUT=5s")
	url := k.URL("http")
	p.ready(t, http.DefaultClient, url+"/health")

	refused := post(t, url+bootstrapPath, exampleRequest)
	id := refused.Header.Get("X-Request-Id")
	wantRefusal(t, refused, "internal error (id "+id+")")
	p.logs(t, `ERROR call failed {"request_id": "`+id+`"`)
	p.logs(t, "the host said no")
	a.mu.Lock()
	a.Handler = good
	a.mu.Unlock()
	release := a.hold(t)
	if got := post(t, url+bootstrapPath, exampleRequest); got.StatusCode != http.StatusBadRequest {
		t.Errorf("Bootstrap with an agent that does not answer = %d %s, want 400", got.StatusCode, got.body)
	} else {
		wantRefusal(t, got, "the call took too long")
	}
	if left := tree(t, k.Certs); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	release()
	checkBootstrapReply(t, k, post(t, url+bootstrapPath, exampleRequest).body)
}

// TestSignalsWhileABootstrapRuns ends a process that waits for its quote: the
// bootstrap is completed, and told of.
func TestSignalsWhileABootstrapRuns(t *testing.T) {
	t.Run("called", func(t *testing.T) {
		t.Parallel()
		k := newKMS(t, "", "")
		a := k.newAgent(t, guestagenttest.Current)
		p := k.throughAgent(t, a, "dstack-kms")
		p.ready(t, http.DefaultClient, k.URL("http")+"/health")
		release := a.hold(t)
		conn := dial(t, k)
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: kms\r\nContent-Length: %d\r\n\r\n%s", bootstrapPath, len(exampleRequest), exampleRequest)
		a.waitAsked(t)
		p.signal(t, syscall.SIGTERM)
		time.Sleep(200 * time.Millisecond)
		release()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("the caller got no answer: %v", err)
		}
		checkBootstrapReply(t, k, read(t, resp).body)
		if code := p.wait(t, patience); code != 0 {
			t.Errorf("exit status %d, want 0", code)
		}
	})
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run("unattended, "+signal.String(), func(t *testing.T) {
			t.Parallel()
			k := newKMS(t, `auto_bootstrap_domain = "kms.example.com"`, "")
			a := k.newAgent(t, guestagenttest.Current)
			release := a.hold(t)
			p := k.throughAgent(t, a, "dstack-onboard")
			a.waitAsked(t)
			p.signal(t, signal)
			time.Sleep(200 * time.Millisecond)
			release()
			if code := p.wait(t, patience); code != 0 {
				t.Errorf("exit status %d, want 0", code)
			}
			checkKeyDir(t, k.Certs)
		})
	}
}

func (p *process) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := p.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// TestFinishBesideAStuckCall finishes while somebody holds a call open: setup
// is done, whatever becomes of that call.
func TestFinishBesideAStuckCall(t *testing.T) {
	t.Parallel()
	k := newKMS(t, "quote_enabled = false", "[core.limits]\ndrain_timeout = \"500ms\"\n")
	p := k.onboarding(t, "dstack-onboard")
	url := k.URL("http")
	if a := post(t, url+bootstrapPath, exampleRequest); a.StatusCode != http.StatusOK {
		t.Fatalf("Bootstrap = %d %s", a.StatusCode, a.body)
	}
	conn := dial(t, k)
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: kms\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n", bootstrapPath)
	awaitContinue(t, conn)
	if a := get(t, http.DefaultClient, url+"/finish"); a.body != "OK" {
		t.Fatalf("/finish = %d %s", a.StatusCode, a.body)
	}
	if code := p.wait(t, patience); code != 0 {
		t.Errorf("exit status %d, want 0\n%s", code, p.stderr)
	}
	p.logs(t, "WARN setup is finished, a call beside it was cut off")
}
