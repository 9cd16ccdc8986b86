package ratls_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/keys"
	"teekms/internal/ratls"
)

func TestPeersOfBothGenerationsAreKnown(t *testing.T) {
	td := openTD(t, simtd.Config{})
	k := newKMS(t)
	s := serve(t, ratls.ServerConfig{Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierOf(t, td)})}, false)
	for _, gen := range []ratls.Generation{ratls.Gen8, ratls.Gen1} {
		for name, issuer := range map[string]*ratls.Issuer{"self-signed": nil, "temporary CA": &k.temp} {
			for protocol, edit := range map[string]func(*tls.Config){"HTTP/1.1": http1, "HTTP/2": nil} {
				t.Run(fmt.Sprintf("generation %d, %s, %s", gen, name, protocol), func(t *testing.T) {
					cert := newCertificate(t, ratls.ClientCertConfig{Attester: td, Issuer: issuer, Generation: gen})
					s.client(t, cert, edit).want(t, appText(td))
				})
			}
		}
	}
}

func TestWithoutEvidenceNobodyIsThere(t *testing.T) {
	td := openTD(t, simtd.Config{})
	a := appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierOf(t, td)})
	k := newKMS(t)
	without := k.rpc(t, newKey(t), nil, 0)
	s := serve(t, ratls.ServerConfig{Appraiser: a}, false)
	s.client(t, nil, nil).want(t, "nobody")
	s.client(t, &without, nil).want(t, "nobody")

	mandatory := serve(t, ratls.ServerConfig{Appraiser: a, Mandatory: true}, false)
	mandatory.wantNoHandshake(t, mandatory.client(t, nil, nil), "client didn't provide a certificate")
	mandatory.client(t, &without, nil).want(t, "nobody")
}

func TestPlaintextHasNoPeers(t *testing.T) {
	td := openTD(t, simtd.Config{})
	a := appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierOf(t, td)})
	for mandatory, want := range map[bool]string{false: "nobody", true: ratls.ErrNoCertificate.Error()} {
		s := serve(t, ratls.ServerConfig{Appraiser: a, Mandatory: mandatory}, true)
		c := s.client(t, nil, nil)
		c.url = "http://" + s.addr
		c.want(t, want)
	}
}

func TestAdmitNeedsItsConnection(t *testing.T) {
	td := openTD(t, simtd.Config{})
	s, err := ratls.NewServer(ratls.ServerConfig{Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierOf(t, td)})})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Admit(t.Context()); err == nil || err.Error() != "admitting a call: its connection is not known" {
		t.Errorf("Admit(no connection) = %v, want its refusal", err)
	}
	if ratls.PeerFrom(t.Context()) != nil {
		t.Error("PeerFrom(nothing) is somebody")
	}
}

func TestAppraisalIsOncePerConnection(t *testing.T) {
	td := openTD(t, simtd.Config{})
	v := verifierOf(t, td)
	s := serve(t, ratls.ServerConfig{Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: v})}, false)
	c := s.client(t, newCertificate(t, ratls.ClientCertConfig{Attester: td}), nil)
	c.want(t, appText(td)) // one connection from now on
	v.calls.Store(0)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { c.want(t, appText(td)) })
	}
	wg.Wait()
	if n := v.calls.Load(); n != 0 {
		t.Errorf("%d more verifications, want none", n)
	}
}

func TestCallsThatComeAtOnceShareAnAppraisal(t *testing.T) {
	td := openTD(t, simtd.Config{})
	v := verifierOf(t, td)
	release := make(chan struct{})
	v.before = func(ctx context.Context) error {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return ctx.Err()
	}
	s := serve(t, ratls.ServerConfig{Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: v})}, false)
	c := s.client(t, newCertificate(t, ratls.ClientCertConfig{Attester: td}), nil)
	var wg sync.WaitGroup
	wg.Go(func() { c.want(t, appText(td)) })
	waitFor(t, func() bool { return v.calls.Load() == 1 })
	for range 20 {
		wg.Go(func() { c.want(t, appText(td)) })
	}
	// One of those that wait has less time than the appraisal takes.
	if got, err := c.get(t.Context(), timeoutHeader, "20ms"); err != nil || got != "waiting for an appraisal: context deadline exceeded" {
		t.Errorf("GET(20 ms) = %q, %v, want its own deadline", got, err)
	}
	waitFor(t, func() bool { return s.calls.Load() == 22 })
	close(release)
	wg.Wait()
	if n := v.calls.Load(); n != 1 {
		t.Errorf("%d verifications, want 1", n)
	}
}

func TestCanceledAppraisalSaysNothingToOthers(t *testing.T) {
	td := openTD(t, simtd.Config{})
	v := verifierOf(t, td)
	var first atomic.Bool
	first.Store(true)
	v.before = func(ctx context.Context) error {
		if first.Swap(false) {
			<-ctx.Done()
			return &attest.VerifyError{Link: attest.LinkCollateral, Err: fmt.Errorf("%w: %w", attest.ErrNoCollateral, ctx.Err())}
		}
		return nil
	}
	var outcomes outcomes
	s := serve(t, ratls.ServerConfig{Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: v, OnResult: outcomes.add})}, false)
	c := s.client(t, newCertificate(t, ratls.ClientCertConfig{Attester: td}), nil)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if got, err := c.get(ctx); err == nil {
			t.Errorf("GET(canceled) = %q, want an error", got)
		}
	})
	waitFor(t, func() bool { return v.calls.Load() == 1 })
	wg.Go(func() { c.want(t, appText(td)) })
	waitFor(t, func() bool { return s.calls.Load() == 2 })
	cancel()
	wg.Wait()
	if n := v.calls.Load(); n != 2 {
		t.Errorf("%d verifications, want 2", n)
	}
	outcomes.want(t, ratls.OutcomeCanceled, ratls.OutcomeOK)
}

func TestUnfinishedAppraisalIsTriedAgain(t *testing.T) {
	td := openTD(t, simtd.Config{})
	v := verifierOf(t, td)
	var outage, damage atomic.Bool
	v.before = func(context.Context) error {
		switch {
		case outage.Load():
			return &attest.VerifyError{Link: attest.LinkCollateral, Err: attest.ErrNoCollateral}
		case damage.Load():
			return &attest.VerifyError{Link: attest.LinkCollateral, Err: errDenied}
		}
		return nil
	}
	var limited atomic.Bool
	limit := func(addr netip.Addr) error {
		if addr != localhost {
			t.Errorf("limit is asked for %v, want %v", addr, localhost)
		}
		if limited.Load() {
			return ratls.ErrLimited
		}
		return nil
	}
	var outcomes outcomes
	s := serve(t, ratls.ServerConfig{Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: v, Limit: limit, OnResult: outcomes.add})}, false)
	c := s.client(t, newCertificate(t, ratls.ClientCertConfig{Attester: td}), nil)
	limited.Store(true)
	c.want(t, ratls.ErrLimited.Error())
	if n := v.calls.Load(); n != 0 {
		t.Errorf("%d verifications over the limit, want none", n)
	}
	limited.Store(false)
	outage.Store(true)
	c.want(t, "appraising: collateral: no collateral to be had")
	outage.Store(false)
	damage.Store(true)
	c.want(t, "appraising: collateral: denied")
	damage.Store(false)
	c.want(t, appText(td))
	limited.Store(true) // no matter: it is known by now
	c.want(t, appText(td))
	outcomes.want(t, ratls.OutcomeLimited, ratls.OutcomeNoCollateral, ratls.OutcomeNoCollateral, ratls.OutcomeOK)
}

func TestPanicInAnAppraisalHoldsNobodyUp(t *testing.T) {
	td := openTD(t, simtd.Config{})
	v := verifierOf(t, td)
	v.before = func(context.Context) error {
		if v.calls.Load() == 1 {
			panic("for the test")
		}
		return nil
	}
	s := serve(t, ratls.ServerConfig{Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: v})}, false)
	c := s.client(t, newCertificate(t, ratls.ClientCertConfig{Attester: td}), nil)
	if got, err := c.get(t.Context()); err == nil {
		t.Errorf("GET = %q, want an error", got)
	}
	c.want(t, appText(td))
	if n := v.calls.Load(); n != 2 {
		t.Errorf("%d verifications, want 2", n)
	}
}

func TestInvalidEvidenceFailsEveryCall(t *testing.T) {
	td := openTD(t, simtd.Config{})
	other := openTD(t, simtd.Config{})
	v := verifierOf(t, td)
	s := serve(t, ratls.ServerConfig{Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: v})}, false)
	c := s.client(t, newCertificate(t, ratls.ClientCertConfig{Attester: other}), nil)
	for range 3 {
		c.want(t, "invalid quote: PCK certificate chain: ")
	}
	if n := v.calls.Load(); n != 1 {
		t.Errorf("%d verifications, want 1", n)
	}
}

// resuming is a client that resumes sessions where it can, with a count of
// those.
func resuming(t *testing.T, s *server, cert *tls.Certificate) (*client, *atomic.Int32) {
	t.Helper()
	resumed := new(atomic.Int32)
	return s.client(t, cert, func(c *tls.Config) {
		http1(c)
		c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
		c.ServerName = "kms.test"
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			if cs.DidResume {
				resumed.Add(1)
			}
			return nil
		}
	}), resumed
}

func TestSessionsAreNotResumed(t *testing.T) {
	td := openTD(t, simtd.Config{})
	v := verifierOf(t, td)
	s := serve(t, ratls.ServerConfig{Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: v})}, false)
	c, resumed := resuming(t, s, newCertificate(t, ratls.ClientCertConfig{Attester: td}))
	for range 3 {
		c.want(t, appText(td))
		c.http.CloseIdleConnections()
	}
	if n := resumed.Load(); n != 0 {
		t.Errorf("%d sessions resumed, want none", n)
	}
	if n := v.calls.Load(); n != 3 {
		t.Errorf("%d verifications, want 3: one for each connection", n)
	}
}

// Nothing rests on that: with tickets a resumed session has its certificate,
// and is appraised like any other.
func TestResumedSessionWouldBeAppraisedAgain(t *testing.T) {
	td := openTD(t, simtd.Config{})
	v := verifierOf(t, td)
	s := serveTLS(t, ratls.ServerConfig{Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: v})}, false, func(c *tls.Config) { c.SessionTicketsDisabled = false })
	c, resumed := resuming(t, s, newCertificate(t, ratls.ClientCertConfig{Attester: td}))
	for range 3 {
		c.want(t, appText(td))
		c.http.CloseIdleConnections()
	}
	if n := resumed.Load(); n != 2 {
		t.Errorf("%d sessions resumed, want 2", n)
	}
	if n := v.calls.Load(); n != 3 {
		t.Errorf("%d verifications, want 3: one for each connection", n)
	}
	// What has been revoked since is refused although the session is resumed.
	if err := td.SetEndorsements(simtd.Endorsements{RevokePCK: true}); err != nil {
		t.Fatal(err)
	}
	c.want(t, "invalid quote: revocation: ")
	if n := resumed.Load(); n != 3 {
		t.Errorf("%d sessions resumed, want 3", n)
	}
}

func TestAppraisalAges(t *testing.T) {
	td := openTD(t, simtd.Config{})
	v := verifierOf(t, td)
	var shift atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(shift.Load())) }
	s := serve(t, ratls.ServerConfig{Appraiser: appraiserOf(t, ratls.AppraiserConfig{Verifier: v}), Now: now}, false)
	c := s.client(t, newCertificate(t, ratls.ClientCertConfig{Attester: td}), nil)
	c.want(t, appText(td))
	if err := td.SetEndorsements(simtd.Endorsements{RevokePCK: true}); err != nil {
		t.Fatal(err)
	}
	shift.Store(int64(59 * time.Minute))
	c.want(t, appText(td))
	shift.Store(int64(61 * time.Minute))
	c.want(t, "invalid quote: revocation: ")
	if n := v.calls.Load(); n != 2 {
		t.Errorf("%d verifications, want 2", n)
	}
}

func TestLongChainsAreRefused(t *testing.T) {
	td := openTD(t, simtd.Config{})
	a := appraiserOf(t, ratls.AppraiserConfig{Verifier: verifierOf(t, td)})
	good := newCertificate(t, ratls.ClientCertConfig{Attester: td})
	plain := newKMS(t).rpc(t, newKey(t), nil, 0)
	chain := func(cert *tls.Certificate, n int) *tls.Certificate {
		long := *cert
		long.Certificate = nil
		for range n {
			long.Certificate = append(long.Certificate, cert.Certificate[0])
		}
		return &long
	}
	heavy := craft(t, newKey(t), keys.Extension(keys.ArcAppInfo, make([]byte, 14<<10)))
	tests := []struct {
		name   string
		cert   *tls.Certificate
		reason string
	}{
		{"nine certificates", chain(&plain, 9), "chain of 9 certificates, want at most 8"},
		{"nine with Evidence", chain(good, 9), "chain of 9 certificates, want at most 8"},
		{"eight certificates of 14 KiB", chain(heavy, 8), "want at most 98304"},
		{"ten thousand certificates", chain(&plain, 10_000), "exceeds maximum"},
		{"a thousand with Evidence", chain(good, 1000), "exceeds maximum"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, ratls.ServerConfig{Appraiser: a}, false)
			start := time.Now()
			s.wantNoHandshake(t, s.client(t, tt.cert, nil), tt.reason)
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("refusing took %v", took)
			}
		})
	}
	s := serve(t, ratls.ServerConfig{Appraiser: a}, false)
	s.client(t, chain(good, 8), nil).want(t, appText(td))
}

func TestNewServerNeedsAnAppraiser(t *testing.T) {
	if _, err := ratls.NewServer(ratls.ServerConfig{}); err == nil || err.Error() != "making an RA-TLS server: no appraiser" {
		t.Errorf("NewServer() = %v, want its refusal", err)
	}
}

// outcomes collects what is reported.
type outcomes struct {
	mu   sync.Mutex
	list []string
}

func (o *outcomes) add(r ratls.Result) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if (r.Err == nil) != (r.Outcome == ratls.OutcomeOK) || r.Took < 0 {
		r.Outcome += fmt.Sprintf(" with error %v after %v", r.Err, r.Took)
	}
	o.list = append(o.list, r.Outcome)
}

func (o *outcomes) want(t *testing.T, want ...string) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if got := strings.Join(o.list, ", "); got != strings.Join(want, ", ") {
		t.Errorf("outcomes = %s, want %s", got, strings.Join(want, ", "))
	}
}

func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("timed out")
		}
	}
}
