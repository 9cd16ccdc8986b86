package onchain_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"teekms/internal/authz"
	"teekms/internal/authz/onchain"
	"teekms/internal/keys"
)

func fill(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n) }

func bootInfo() authz.BootInfo {
	return authz.BootInfo{
		TEEVariant:   "dstack-tdx",
		AppID:        fill(20, 0xa1),
		ComposeHash:  fill(32, 0xa2),
		InstanceID:   fill(20, 0xa3),
		DeviceID:     [32]byte(fill(32, 0xa4)),
		MRAggregated: [32]byte(fill(32, 0xa5)),
		MRSystem:     [32]byte(fill(32, 0xa6)),
		OSImageHash:  fill(32, 0xa7),
		TCBStatus:    "UpToDate",
		AdvisoryIDs:  []string{"INTEL-SA-00001", "INTEL-SA-00002"},
	}
}

func app() authz.Request { return authz.Request{Subject: authz.App, BootInfo: bootInfo()} }
func kms() authz.Request { return authz.Request{Subject: authz.KMS, BootInfo: bootInfo()} }

// allowAll makes the contract allow bootInfo, as an application and as a KMS.
func (c *chain) allowAll() {
	c.t.Helper()
	b := bootInfo()
	c.set("setOsImage", [32]byte(b.OSImageHash), true)
	c.set("setApp", common.Address(b.AppID), [32]byte(b.ComposeHash), true)
	c.set("setKms", b.MRAggregated, b.DeviceID, true)
	c.set("setGatewayAppId", "00112233445566778899aabbccddeeff00112233")
}

func (c *chain) config() onchain.Config {
	return onchain.Config{
		URL: keys.NewSecret([]byte(c.url)), Contract: c.address.Hex(), ChainID: chainID,
		Finality: onchain.Latest, Log: zap.NewNop(),
	}
}

func open(t *testing.T, cfg onchain.Config) *onchain.Authorizer {
	t.Helper()
	a, err := onchain.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

// outcome writes down what became of a question, for comparison.
func outcome(d authz.Decision, err error) string {
	switch {
	case errors.Is(err, authz.ErrUnreachable) == errors.Is(err, authz.ErrMalformed) && err != nil:
		return "neither or both: " + err.Error()
	case err != nil && d != authz.Decision{}:
		return "decision beside an error"
	case err != nil:
		return err.Error()
	case d.Allowed:
		return "allowed"
	default:
		return "denied: " + d.Reason
	}
}

func ask(t *testing.T, a *onchain.Authorizer, r authz.Request) string {
	t.Helper()
	return outcome(a.Authorize(t.Context(), r))
}

func TestTheContractDecides(t *testing.T) {
	c := newChain(t)
	a := open(t, c.config())
	b := bootInfo()
	steps := []struct {
		name     string
		function string
		args     []any
		app, kms string
	}{
		{"nothing is allowed", "setGatewayAppId", []any{"any"}, "denied: OS image is not allowed", "denied: OS image is not allowed"},
		{"image", "setOsImage", []any{[32]byte(b.OSImageHash), true}, "denied: App not registered", "denied: Aggregated MR not allowed"},
		{"app with another compose hash", "setApp", []any{common.Address(b.AppID), [32]byte{1}, true}, "denied: Compose hash not allowed", "denied: Aggregated MR not allowed"},
		{"app", "setApp", []any{common.Address(b.AppID), [32]byte(b.ComposeHash), true}, "allowed", "denied: Aggregated MR not allowed"},
		{"measurement on another device", "setKms", []any{b.MRAggregated, [32]byte{1}, true}, "allowed", "denied: KMS is not allowed to boot on this device"},
		{"device", "setKms", []any{[32]byte{1}, b.DeviceID, true}, "allowed", "allowed"},
		{"what was allowed is taken back", "setApp", []any{common.Address(b.AppID), [32]byte(b.ComposeHash), false}, "denied: App not registered", "allowed"},
		{"hostile reason", "setDenial", []any{"no\x1b[31m\n" + strings.Repeat("x", 2000)}, "denied: no [31m " + strings.Repeat("x", 504), "denied: no [31m " + strings.Repeat("x", 504)},
	}
	for _, s := range steps {
		c.set(s.function, s.args...)
		if got := ask(t, a, app()); got != s.app {
			t.Errorf("%s: Authorize(app) = %s, want %s", s.name, got, s.app)
		}
		if got := ask(t, a, kms()); got != s.kms {
			t.Errorf("%s: Authorize(kms) = %s, want %s", s.name, got, s.kms)
		}
	}
	old := kms()
	old.BootInfo.TCBStatus = "OutOfDate"
	if got, want := ask(t, a, old), "denied: TCB status is not up to date"; got != want {
		t.Errorf("Authorize(kms of an old TCB) = %s, want %s", got, want)
	}
}

func TestTheDecisionHasTheGateway(t *testing.T) {
	c := newChain(t)
	c.allowAll()
	got, err := open(t, c.config()).Authorize(t.Context(), app())
	want := authz.Decision{Allowed: true, GatewayAppID: "00112233445566778899aabbccddeeff00112233"}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Authorize() = %v, (-want +got)\n%s", err, diff)
	}
}

// What the contract reads is compared with hashes made here, member by member.
func TestTheContractReadsWhatWasPacked(t *testing.T) {
	c := newChain(t)
	b := bootInfo()
	// The contract's own ABI packs the same values here, so this holds the
	// order and the types of both interfaces together.
	type tuple struct {
		App          common.Address `abi:"appId"`
		ComposeHash  [32]byte
		Instance     common.Address `abi:"instanceId"`
		Device       [32]byte       `abi:"deviceId"`
		MrAggregated [32]byte
		MrSystem     [32]byte
		OsImageHash  [32]byte
		TcbStatus    string
		Advisories   []string `abi:"advisoryIds"`
	}
	packed, err := onchain.Pack(&b)
	if err != nil {
		t.Fatal(err)
	}
	_, parsed := readArtefact(t)
	want, err := parsed.Pack("isAppAllowed", tuple{
		common.Address(b.AppID), [32]byte(b.ComposeHash), common.Address(b.InstanceID), b.DeviceID,
		b.MRAggregated, b.MRSystem, [32]byte(b.OSImageHash), b.TCBStatus, b.AdvisoryIDs,
	})
	if err != nil || !bytes.Equal(packed, want) {
		t.Errorf("Pack() = %x, want %x, %v", packed, want, err)
	}
	digest, err := parsed.Pack("digest", tuple{App: common.Address(b.AppID)})
	if err != nil {
		t.Fatal(err)
	}
	// The same arguments for the function that gives back what it read.
	data := append(digest[:4:4], packed[4:]...)
	answer, err := c.backend.Client().CallContract(t.Context(), ethereum.CallMsg{To: &c.address, Data: data}, nil)
	if err != nil {
		t.Fatal(err)
	}
	read := crypto.Keccak256(b.AppID, b.ComposeHash, b.InstanceID, b.DeviceID[:], b.MRAggregated[:], b.MRSystem[:], b.OSImageHash,
		[]byte("UpToDate;INTEL-SA-00001;INTEL-SA-00002;"))
	if !bytes.Equal(answer, read) {
		t.Errorf("the contract read something of hash %x, want %x", answer, read)
	}
}

func TestSelectors(t *testing.T) {
	for name, want := range map[string]string{
		"isAppAllowed": "1e079198", "isKmsAllowed": "e067ec9d", "gatewayAppId": "95f51931", "appImplementation": "25a992da",
	} {
		got, err := onchain.Selector(name)
		if err != nil || fmt.Sprintf("%x", got) != want {
			t.Errorf("selector of %s = %x, %v, want %s", name, got, err, want)
		}
	}
}

func TestNothingIsFilledUp(t *testing.T) {
	c := newChain(t)
	c.allowAll()
	a := open(t, c.config())
	tests := []struct {
		name string
		edit func(*authz.BootInfo)
		want string
	}{
		{"all there", func(*authz.BootInfo) {}, "allowed"},
		{"app id of 19 bytes", func(b *authz.BootInfo) { b.AppID = b.AppID[1:] }, "denied: invalid authorization request: app id of 19 bytes, want 20"},
		{"app id of 21 bytes", func(b *authz.BootInfo) { b.AppID = fill(21, 1) }, "denied: invalid authorization request: app id of 21 bytes, want 20"},
		{"no app id", func(b *authz.BootInfo) { b.AppID = nil }, "denied: invalid authorization request: app id of 0 bytes, want 20"},
		{"compose hash of 31 bytes", func(b *authz.BootInfo) { b.ComposeHash = b.ComposeHash[1:] }, "denied: invalid authorization request: compose hash of 31 bytes, want 32"},
		{"no compose hash", func(b *authz.BootInfo) { b.ComposeHash = nil }, "denied: invalid authorization request: compose hash of 0 bytes, want 32"},
		{"image hash of 33 bytes", func(b *authz.BootInfo) { b.OSImageHash = fill(33, 1) }, "denied: invalid authorization request: OS image hash of 33 bytes, want 32"},
		{"no image hash", func(b *authz.BootInfo) { b.OSImageHash = nil }, "denied: invalid authorization request: OS image hash of 0 bytes, want 32"},
		{"instance id of 1 byte", func(b *authz.BootInfo) { b.InstanceID = fill(1, 1) }, "denied: invalid authorization request: instance id of 1 bytes, want 20"},
		{"no instance id is one", func(b *authz.BootInfo) { b.InstanceID = nil }, "allowed"},
		{
			"two at once", func(b *authz.BootInfo) { b.AppID, b.OSImageHash = nil, nil },
			"denied: invalid authorization request: app id of 0 bytes, want 20 OS image hash of 0 bytes, want 32",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := app()
			tt.edit(&r.BootInfo)
			calls := c.calls.Load()
			if got := ask(t, a, r); got != tt.want {
				t.Errorf("Authorize() = %s, want %s", got, tt.want)
			}
			if asked := c.calls.Load() != calls; asked != (tt.want == "allowed") {
				t.Errorf("asked the node: %v, want %v", asked, !asked)
			}
		})
	}
}

func TestFinality(t *testing.T) {
	c := newChain(t)
	c.allowAll() // blocks 2 to 5
	config := func(f onchain.Finality, confirmations uint64) onchain.Config {
		cfg := c.config()
		cfg.Finality, cfg.Confirmations = f, confirmations
		return cfg
	}
	latest, safe := open(t, config(onchain.Latest, 0)), open(t, config(onchain.Safe, 0))
	finalized, third := open(t, config("", 0)), open(t, config(onchain.Latest, 3))
	deep := open(t, config(onchain.Latest, 6))
	const none = "reading isAppAllowed: authorization service gave a malformed answer: empty, no such contract there"
	check := func(when string, a *onchain.Authorizer, want string) {
		t.Helper()
		if got := ask(t, a, app()); got != want {
			t.Errorf("%s: Authorize() = %s, want %s", when, got, want)
		}
	}
	check("latest sees what was allowed", latest, "allowed")
	check("so does safe", safe, "allowed")
	check("finalized is the first block", finalized, none)
	check("three blocks before, no application", third, "denied: App not registered")
	check("the chain is too short", deep, "authorization service unreachable: chain of 5 blocks, want 6 confirmations")

	c.commit(3)
	check("three blocks later", third, "allowed")
	c.commit(24) // block 32, which the simulation makes final
	check("finalized has arrived", finalized, "allowed")

	b := bootInfo()
	c.set("setApp", common.Address(b.AppID), [32]byte(b.ComposeHash), false)
	check("latest sees it taken back", latest, "denied: App not registered")
	check("three blocks before not yet", third, "allowed")
	check("finalized not yet", finalized, "allowed")
	c.commit(3)
	check("three blocks later taken back, too", third, "denied: App not registered")
	c.commit(28)
	check("and finalized", finalized, "denied: App not registered")
}

func TestAReorganizationIsSeen(t *testing.T) {
	c := newChain(t)
	c.allowAll()
	head, err := c.backend.Client().HeaderByNumber(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	b := bootInfo()
	c.set("setApp", common.Address(b.AppID), [32]byte(b.ComposeHash), false)
	a := open(t, c.config())
	if got := ask(t, a, app()); got != "denied: App not registered" {
		t.Fatalf("Authorize() = %s, want the application taken back", got)
	}
	// A longer chain without that block becomes the chain.
	if err := c.backend.Fork(head.Hash()); err != nil {
		t.Fatal(err)
	}
	c.backend.Rollback()
	c.commit(3)
	if got := ask(t, a, app()); got != "allowed" {
		t.Errorf("Authorize() after the reorganization = %s, want allowed", got)
	}
}

// The chain changes between the two questions of a decision: both read the block
// that was chosen before.
func TestOneDecisionReadsOneBlock(t *testing.T) {
	c := newChain(t)
	c.allowAll()
	a := open(t, c.config())
	b := bootInfo()
	fired := make(chan struct{}, 1)
	fired <- struct{}{}
	c.instead(func(_ http.ResponseWriter, method string) bool {
		if method == "eth_call" {
			select {
			case <-fired:
				c.set("setApp", common.Address(b.AppID), [32]byte(b.ComposeHash), false)
				c.set("setGatewayAppId", "another")
			default:
			}
		}
		return false
	})
	d, err := a.Authorize(t.Context(), app())
	if err != nil || !d.Allowed || d.GatewayAppID != "00112233445566778899aabbccddeeff00112233" {
		t.Errorf("Authorize() = %+v, %v, want allowed with the gateway of the same block", d, err)
	}
	if got := ask(t, a, app()); got != "denied: App not registered" {
		t.Errorf("Authorize() afterwards = %s, want a denial", got)
	}
}

func TestWhatIsNoDecision(t *testing.T) {
	c := newChain(t)
	c.allowAll()
	const unreachable, malformed = "authorization service unreachable", "authorization service gave a malformed answer"
	write := func(body string) func(http.ResponseWriter, string) bool {
		return func(w http.ResponseWriter, _ string) bool { _, _ = w.Write([]byte(body)); return true }
	}
	result := func(method, body string) func(http.ResponseWriter, string) bool {
		return func(w http.ResponseWriter, m string) bool {
			if m == method {
				_, _ = w.Write([]byte(`{"jsonrpc":"2.0","id":1,` + body + `}`))
			}
			return m == method
		}
	}
	silence := make(chan struct{})
	defer close(silence)
	status := func(code int) func(http.ResponseWriter, string) bool {
		return func(w http.ResponseWriter, _ string) bool { http.Error(w, "secret", code); return true }
	}
	tests := []struct {
		name string
		edit func(*onchain.Config)
		node func(w http.ResponseWriter, method string) bool
		want string
	}{
		{"another chain", func(cfg *onchain.Config) { cfg.ChainID = 1 }, nil, malformed + ": node is of chain 1337, want 1"},
		{"another contract", func(cfg *onchain.Config) { cfg.Contract = "0x" + strings.Repeat("01", 20) }, nil, malformed + ": empty, no such contract there"},
		{"block too old", func(cfg *onchain.Config) {
			cfg.MaxBlockAge = time.Minute
			cfg.Now = func() time.Time { return time.Now().Add(time.Hour) }
		}, nil, unreachable + ": latest block 5 is "},
		{"status 500", nil, status(500), unreachable + ": HTTP status 500"},
		{"status 429", nil, status(429), unreachable + ": HTTP status 429"},
		{"status 401", nil, status(401), malformed + ": HTTP status 401"},
		{"redirect", nil, func(w http.ResponseWriter, _ string) bool {
			w.Header().Set("Location", c.url)
			w.WriteHeader(http.StatusTemporaryRedirect)
			return true
		}, malformed + ": HTTP status 307"},
		{"page", nil, write("<html>"), malformed + ": invalid character"},
		{"nothing", nil, write(""), malformed + ": EOF"},
		{"no result", nil, write(`{"jsonrpc":"2.0","id":1}`), malformed + ": JSON-RPC response has no result"},
		{"endless answer", nil, func(w http.ResponseWriter, _ string) bool {
			_, _ = w.Write([]byte(`{"jsonrpc":"2.0","id":1,"result":"`))
			for range 5 << 10 {
				if _, err := w.Write(fill(1<<10, 'a')); err != nil {
					break
				}
			}
			return true
		}, malformed + ": more than 4194304 bytes"},
		{"no block", nil, result("eth_getBlockByNumber", `"result":null`), unreachable + ": the node has none"},
		{"block without a hash", nil, result("eth_getBlockByNumber", `"result":{"number":"0x1","timestamp":"0x1"}`), malformed + ": no hash, number or timestamp"},
		{"chain id as text", nil, result("eth_chainId", `"result":"dev"`), malformed + ": "},
		{"node that syncs", nil, result("eth_call", `"error":{"code":-32000,"message":"header not found"}`), unreachable + ": node answers error -32000: header not found"},
		{"decision of another type", nil, result("eth_call", `"result":"0x01"`), "reading isAppAllowed: " + malformed + ": abi: "},
		{"decision that is neither true nor false", nil, result("eth_call", `"result":"0x`+strings.Repeat("0", 63)+"2"+strings.Repeat("0", 62)+"40"+strings.Repeat("0", 64)+`"`), "reading isAppAllowed: " + malformed + ": abi: improperly encoded boolean value"},
		{"late", func(cfg *onchain.Config) { cfg.Timeout = 50 * time.Millisecond }, func(http.ResponseWriter, string) bool {
			<-silence
			return false
		}, unreachable + ": context deadline exceeded"},
		{"connection cut", nil, func(http.ResponseWriter, string) bool { panic(http.ErrAbortHandler) }, unreachable + ": EOF"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := c.config()
			if tt.edit != nil {
				tt.edit(&cfg)
			}
			c.instead(tt.node)
			got := ask(t, open(t, cfg), app())
			if !strings.Contains(got, tt.want) || strings.Contains(got, "secret") {
				t.Errorf("Authorize() = %s, want %s", got, tt.want)
			}
		})
	}
	c.instead(nil)
	c.set("setFailure", "out of order")
	if got, want := ask(t, open(t, c.config()), app()), "calling isAppAllowed: "+malformed+": the contract reverted: execution reverted: out of order"; got != want {
		t.Errorf("Authorize() = %s, want %s", got, want)
	}
	c.set("setFailure", "")
	c.set("setGatewayAppId", "any\n")
	if got, want := ask(t, open(t, c.config()), app()), "reading gatewayAppId: "+malformed+": gateway app id is not printable ASCII"; got != want {
		t.Errorf("Authorize() = %s, want %s", got, want)
	}
}

func TestTheNodeBehindTLS(t *testing.T) {
	c := newChain(t)
	c.allowAll()
	s := httptest.NewUnstartedServer(http.HandlerFunc(c.serve))
	s.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	s.StartTLS()
	t.Cleanup(s.Close)
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := c.config()
	cfg.URL = keys.NewSecret([]byte(s.URL))
	if got, want := ask(t, open(t, cfg), app()), "unreachable: tls: failed to verify certificate: x509: certificate signed by unknown authority"; !strings.Contains(got, want) {
		t.Errorf("Authorize() = %s, want %s", got, want)
	}
	// The block is new enough, too.
	cfg.CAFile, cfg.MaxBlockAge = file, time.Hour
	if got := ask(t, open(t, cfg), app()); got != "allowed" {
		t.Errorf("Authorize() = %s, want allowed", got)
	}
}

func TestAnotherBlockThanAskedForIsNone(t *testing.T) {
	c := newChain(t)
	c.instead(func(w http.ResponseWriter, method string) bool {
		if method == "eth_getBlockByNumber" {
			_, _ = w.Write([]byte(`{"jsonrpc":"2.0","id":1,"result":{"hash":"0x` + strings.Repeat("01", 32) + `","number":"0x64","timestamp":"0x1"}}`))
		}
		return method == "eth_getBlockByNumber"
	})
	cfg := c.config()
	cfg.Confirmations = 10
	if got, want := ask(t, open(t, cfg), app()), "authorization service gave a malformed answer: block 100, want 90"; got != want {
		t.Errorf("Authorize() = %s, want %s", got, want)
	}
}

func TestAnUnreachableNodeIsNamedByNobody(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	cfg := onchain.Config{
		URL: keys.NewSecret([]byte("http://user:password@" + l.Addr().String() + "/key-of-a-provider")), Contract: "0x" + strings.Repeat("01", 20), ChainID: 1,
		Log: zap.NewNop(),
	}
	got := ask(t, open(t, cfg), app())
	if !strings.Contains(got, "authorization service unreachable: ") || !strings.Contains(got, "connection refused") {
		t.Errorf("Authorize() = %s, want it unreachable", got)
	}
	if strings.Contains(got, "key-of-a-provider") || strings.Contains(got, "password") {
		t.Errorf("Authorize() = %s, which has the URL's secrets", got)
	}
}

func TestACallerWhoLeavesIsNoFailureOfTheNode(t *testing.T) {
	c := newChain(t)
	a := open(t, c.config())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var counted string
	_, err := authz.Instrument(a, func(r string) { counted = r }).Authorize(ctx, app())
	if !errors.Is(err, context.Canceled) || !errors.Is(err, authz.ErrUnreachable) || counted != authz.ResultCanceled {
		t.Errorf("Authorize() = %v, counted as %q, want %v counted as %q", err, counted, context.Canceled, authz.ResultCanceled)
	}
}

func TestFacts(t *testing.T) {
	c := newChain(t)
	c.allowAll()
	implementation := common.HexToAddress("0x00000000000000000000000000000000000000Ab")
	c.set("setAppImplementation", implementation)
	cfg := c.config()
	cfg.PublicURL = "https://node.example"
	now := time.Now()
	cfg.Now = func() time.Time { return now }
	a := open(t, cfg)
	want := authz.Facts{
		GatewayAppID: "00112233445566778899aabbccddeeff00112233", ContractAddress: c.address.Hex(), ChainID: chainID,
		AppImplementation: implementation.Hex(), EthRPCURL: "https://node.example",
	}
	for range 3 {
		got, err := a.Facts(t.Context())
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("Facts() = %v, (-want +got)\n%s", err, diff)
		}
	}
	if got := c.calls.Load(); got != 4 {
		t.Errorf("three times Facts() asked the node %d times, want 4", got)
	}
	c.instead(func(w http.ResponseWriter, _ string) bool { http.Error(w, "", 500); return true })
	want.GatewayAppID, want.AppImplementation = "", ""
	got, err := open(t, cfg).Facts(t.Context())
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Facts() of a node out of order = %v, (-want +got)\n%s", err, diff)
	}
}

func TestNewRefuses(t *testing.T) {
	good := onchain.Config{URL: keys.NewSecret([]byte("http://node")), Contract: "0x" + strings.Repeat("01", 20), ChainID: 1, Log: zap.NewNop()}
	tests := []struct {
		name string
		edit func(*onchain.Config)
		want string
	}{
		{"no URL", func(c *onchain.Config) { c.URL = keys.Secret{} }, "URL of the node: want http://HOST or https://HOST"},
		{"socket", func(c *onchain.Config) { c.URL = keys.NewSecret([]byte("/run/geth.ipc")) }, "URL of the node: want http://HOST or https://HOST"},
		{"URL that is none", func(c *onchain.Config) { c.URL = keys.NewSecret([]byte("http://key\x7f@")) }, "URL of the node: want http://HOST or https://HOST"},
		{"address without 0x", func(c *onchain.Config) { c.Contract = strings.Repeat("01", 20) }, "contract address: want 0x and 40 hex digits"},
		{"short address", func(c *onchain.Config) { c.Contract = "0x01" }, "contract address: want 0x and 40 hex digits"},
		{"no chain id", func(c *onchain.Config) { c.ChainID = 0 }, "chain id: required"},
		{"finality there is not", func(c *onchain.Config) { c.Finality = "pending" }, `finality "pending": want latest, safe or finalized`},
		{"confirmations of what is final", func(c *onchain.Config) { c.Confirmations = 1 }, "confirmations count back from the latest block, not from the finalized one"},
		{"no log", func(c *onchain.Config) { c.Log = nil }, "facts cache needs Fetch and Log"},
		{"CA file there is not", func(c *onchain.Config) { c.CAFile = "/nonexistent" }, "reading CA certificates: open /nonexistent: no such file or directory"},
		{"CA file without certificates", func(c *onchain.Config) { c.CAFile = "onchain.go" }, "reading CA certificates: onchain.go holds none"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := good
			tt.edit(&cfg)
			if _, err := onchain.New(cfg); err == nil || err.Error() != tt.want {
				t.Errorf("New() = %v, want %s", err, tt.want)
			}
		})
	}
	if _, err := open(t, good).Authorize(t.Context(), authz.Request{BootInfo: bootInfo()}); err == nil || err.Error() != "request for a subject that there is not" {
		t.Errorf("Authorize(no subject) = %v, want a refusal", err)
	}
}

func TestNothingIsLeftRunning(t *testing.T) {
	c := newChain(t)
	c.allowAll()
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	a, err := onchain.New(c.config())
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(t, a, app()); got != "allowed" {
		t.Errorf("Authorize() = %s, want allowed", got)
	}
	a.Close()
}

func FuzzAnswer(f *testing.F) {
	a, err := onchain.New(onchain.Config{URL: keys.NewSecret([]byte("http://node")), Contract: "0x" + strings.Repeat("01", 20), ChainID: 1, Log: zap.NewNop()})
	if err != nil {
		f.Fatal(err)
	}
	word := func(last byte) []byte { return append(make([]byte, 31), last) }
	text := func(s string) []byte {
		return append(append(word(32), word(byte(len(s)))...), append([]byte(s), make([]byte, 32-len(s))...)...)
	}
	f.Add(bytes.Join([][]byte{word(1), word(64), word(0)}, nil), text("any"))
	f.Add(bytes.Join([][]byte{word(0), word(64), word(3), append([]byte("no\n"), make([]byte, 29)...)}, nil), text(""))
	f.Add(bytes.Join([][]byte{word(2), fill(32, 0xff)}, nil), []byte{})
	f.Fuzz(func(t *testing.T, decision, gateway []byte) {
		d, err := a.ReadDecision(decision, gateway)
		switch {
		case err != nil && ((d != authz.Decision{}) || !errors.Is(err, authz.ErrMalformed)):
			t.Errorf("readDecision(%x, %x) = %+v, %v, want no decision and %v", decision, gateway, d, err, authz.ErrMalformed)
		case err == nil && d.Allowed != bytes.Equal(decision[:32], word(1)):
			t.Errorf("readDecision(%x, %x) = %+v, want what the first word says", decision, gateway, d)
		case len(d.Reason) > authz.MaxReasonSize || authz.CheckGatewayAppID(d.GatewayAppID) != nil:
			t.Errorf("readDecision(%x, %x) = %+v, want what can be handed on", decision, gateway, d)
		}
	})
}
