package guestagent_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/google/go-cmp/cmp"

	"teekms/internal/attest/guestagent"
	"teekms/internal/attest/guestagent/guestagenttest"
	"teekms/internal/attest/simtd"
	"teekms/internal/keys"
)

const keyPath = "teekms/key-directory"

// openApp opens a trust domain that an application of this id runs in.
func openApp(t testing.TB, appID byte) *simtd.TD {
	t.Helper()
	td, err := simtd.Open(simtd.Config{
		Dir: t.TempDir(), Measurements: simtd.Measurements{AppID: bytes.Repeat([]byte{appID}, 20)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return td
}

// agentIn asks the agent of the trust domain, over its socket.
func agentIn(t testing.TB, td *simtd.TD) *guestagent.Agent {
	t.Helper()
	return newAgent(t, guestagent.Config{Sockets: []string{guestagenttest.Listen(t, guestagenttest.Handler(td, guestagenttest.Current))}})
}

func mustKey(t testing.TB, a *guestagent.Agent, path string) keys.Secret {
	t.Helper()
	key, err := a.Key(t.Context(), path)
	if err != nil {
		t.Fatalf("Key(%q) = %v", path, err)
	}
	return key
}

// kdf is KDF of docs/wire.md#derivation for 32 bytes, by the steps of RFC 5869.
func kdf(key []byte, context ...string) []byte {
	mac := func(key []byte, parts ...string) []byte {
		h := hmac.New(sha256.New, key)
		for _, p := range parts {
			h.Write([]byte(p))
		}
		return h.Sum(nil)
	}
	return mac(mac([]byte("RATLS"), string(key)), append(context, "\x01")...)
}

func TestKeyIsOfTheApplicationAndThePath(t *testing.T) {
	td := openApp(t, 1)
	a := agentIn(t, td)
	key := mustKey(t, a, keyPath)
	app := kdf(guestagenttest.RootKey(), string(td.Measurements().AppID), "app-key")
	if want := keys.NewSecret(kdf(app, keyPath)); !key.Equal(want) {
		t.Error("Key() is not what docs/wire.md#guest-agent derives")
	}
	if again := mustKey(t, a, keyPath); !again.Equal(key) {
		t.Error("Key() twice = two keys, want one")
	}
	if other := mustKey(t, a, "another/path"); other.Equal(key) {
		t.Error("Key(another path) = the same key")
	}
	if sibling := mustKey(t, agentIn(t, openApp(t, 1)), keyPath); !sibling.Equal(key) {
		t.Error("Key() on another machine of the same application = another key")
	}
	if stranger := mustKey(t, agentIn(t, openApp(t, 2)), keyPath); stranger.Equal(key) {
		t.Error("Key() of another application = the same key")
	}
}

// TestKeyAsksForThis: path, purpose and algorithm, and nothing else.
func TestKeyAsksForThis(t *testing.T) {
	type asked struct {
		Target, ContentType string
		Body                map[string]any
	}
	got := make(chan asked, 1)
	path := guestagenttest.Listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := asked{Target: r.Method + " " + r.URL.RequestURI(), ContentType: r.Header.Get("Content-Type")}
		if err := json.NewDecoder(r.Body).Decode(&a.Body); err != nil {
			t.Errorf("reading the request: %v", err)
		}
		got <- a
		io.WriteString(w, `{"key":"0x`+strings.Repeat("7F", 32)+`"}`)
	}))
	key := mustKey(t, newAgent(t, guestagent.Config{Sockets: []string{path}}), keyPath)
	if want := keys.NewSecret(bytes.Repeat([]byte{0x7f}, 32)); !key.Equal(want) {
		t.Error("Key() is not what the agent answered")
	}
	want := asked{"POST /GetKey?json", "application/json", map[string]any{
		"path": keyPath, "purpose": "teekms/v1/key-directory", "algorithm": "secp256k1",
	}}
	if diff := cmp.Diff(want, <-got); diff != "" {
		t.Errorf("request (-want +got)\n%s", diff)
	}
}

// TestSignatureChain: the agents of the tests sign as docs/wire.md#guest-agent
// has it.
func TestSignatureChain(t *testing.T) {
	td := openApp(t, 1)
	socket := guestagenttest.Listen(t, guestagenttest.Handler(td, guestagenttest.Current))
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	const purpose = guestagent.KeyPurpose
	resp, err := client.Post("http://localhost/GetKey?json", "application/json",
		strings.NewReader(`{"path":"`+keyPath+`","purpose":"`+purpose+`","algorithm":"secp256k1"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Key   string   `json:"key"`
		Chain []string `json:"signature_chain"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || len(answer.Chain) != 2 {
		t.Fatalf("GetKey = %d signatures, %v, want 2", len(answer.Chain), err)
	}
	public := func(scalar []byte) []byte {
		key, err := crypto.ToECDSA(scalar)
		if err != nil {
			t.Fatal(err)
		}
		return crypto.CompressPubkey(&key.PublicKey)
	}
	appID := td.Measurements().AppID
	root := guestagenttest.RootKey()
	app := kdf(root, string(appID), "app-key")
	for i, tt := range []struct {
		message string
		signer  []byte
	}{
		{purpose + ":" + hex.EncodeToString(public(unhex(answer.Key))), public(app)},
		{"dstack-kms-issued:" + string(appID) + string(public(app)), public(root)},
	} {
		signer, err := crypto.SigToPub(crypto.Keccak256([]byte(tt.message)), unhex(answer.Chain[i]))
		if err != nil {
			t.Fatalf("signature %d: %v", i, err)
		}
		if got := crypto.CompressPubkey(signer); !bytes.Equal(got, tt.signer) {
			t.Errorf("signature %d is by %x, want %x", i, got, tt.signer)
		}
	}
}

func TestKeyRefusesBadAnswers(t *testing.T) {
	const half = "5ec2e75ec2e75ec2" // of which no error may tell
	fakeHandler := guestagenttest.Handler(openTD(t), guestagenttest.Current)
	tests := []struct {
		name string
		h    http.Handler
		want string
	}{
		{"31 bytes", respond(200, `{"key":"`+half+half+half+half[:14]+`"}`), "GetKey: key of 31 bytes, want 32"},
		{"33 bytes", respond(200, `{"key":"`+half+half+half+half+`5e"}`), "GetKey: key of 33 bytes, want 32"},
		{"no key", respond(200, `{}`), "GetKey: key of 0 bytes, want 32"},
		{"not hex", respond(200, `{"key":"`+half+`zz"}`), "GetKey: key: want hex"},
		{"half a byte too many", respond(200, `{"key":"`+half+half+half+half+`5"}`), "GetKey: key: want hex"},
		{"nothing but zeros", respond(200, `{"key":"`+strings.Repeat("0", 64)+`"}`), "GetKey: key of nothing but zeros"},
		{"another type", respond(200, `{"key":["`+half+`"]}`), `GetKey: reading the answer: field "key" has type array`},
		{"not JSON", respond(200, half), "GetKey: reading the answer: not the JSON that was expected"},
		{"two answers", respond(200, `{"key":"`+half+`"}{"key":"`+half+`"}`), "GetKey: reading the answer: not the JSON that was expected"},
		{"huge answer", respond(200, `{"key":"`+strings.Repeat(half, 9<<16)+`"}`), "GetKey: answer of more than 8388608 bytes"},
		{"redirect", http.RedirectHandler("http://localhost/elsewhere", http.StatusTemporaryRedirect), "GetKey: status 307"},
		{"refusal", respond(500, "no app keys in this guest"), `GetKey: status 500: "no app keys in this guest"`},
		{"method that is not there", http.NotFoundHandler(), "GetKey: status 404"},
		{"connection cut", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), "GetKey: the connection ended without an answer"},
		{"agent that wants no such algorithm", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader(`{"path":"p","algorithm":"rsa"}`))
			fakeHandler.ServeHTTP(w, r)
		}), `GetKey: status 400: "{\"error\":\"Unsupported algorithm\"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			socket := guestagenttest.Listen(t, tt.h)
			key, err := newAgent(t, guestagent.Config{Sockets: []string{socket}}).Key(t.Context(), keyPath)
			want := "asking guest agent for a key: unix:" + socket + ": " + tt.want
			if err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Fatalf("Key() = %v, want %q", err, want)
			}
			if key.Len() != 0 {
				t.Error("Key() = a key beside its error")
			}
			if strings.Contains(err.Error(), half) {
				t.Errorf("Key() = %v, which tells what was answered", err)
			}
		})
	}
}

func TestKeyRefusesPaths(t *testing.T) {
	a := newAgent(t, guestagent.Config{Sockets: nowhere(), TappdSockets: nowhere()})
	for path, want := range map[string]string{
		"":                       "path of 0 bytes, want 1 to 256",
		strings.Repeat("a", 257): "path of 257 bytes, want 1 to 256",
		"a b":                    `path "a b": want printable ASCII without spaces`,
		"a\n":                    `path "a\n": want printable ASCII without spaces`,
		"ä":                      `path "ä": want printable ASCII without spaces`,
	} {
		if _, err := a.Key(t.Context(), path); err == nil || err.Error() != "asking guest agent for a key: "+want {
			t.Errorf("Key(%q) = %v, want %q", path, err, want)
		}
	}
	if _, err := a.Key(t.Context(), strings.Repeat("a", 256)); !errors.Is(err, guestagent.ErrSocketNotFound) {
		t.Errorf("Key() without an agent = %v, want %v", err, guestagent.ErrSocketNotFound)
	}
}

func TestKeyNeedsMoreThanTappd(t *testing.T) {
	tappd := guestagenttest.Listen(t, guestagenttest.Handler(openTD(t), guestagenttest.Tappd))
	_, err := newAgent(t, guestagent.Config{Sockets: nowhere(), TappdSockets: []string{tappd}}).Key(t.Context(), keyPath)
	const want = "tappd.sock has no GetKey: a key needs an agent that listens on dstack.sock"
	if err == nil || !strings.HasSuffix(err.Error(), want) || errors.Is(err, guestagent.ErrSocketNotFound) {
		t.Errorf("Key() = %v, want %q", err, want)
	}
}

func TestKeyMeetsTheDeadline(t *testing.T) {
	begin := time.Now()
	socket := guestagenttest.Listen(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // or the server does not see that the client leaves
		<-r.Context().Done()
	}))
	a := newAgent(t, guestagent.Config{Sockets: []string{socket}, Timeout: 20 * time.Millisecond})
	if _, err := a.Key(t.Context(), keyPath); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "GetKey") {
		t.Errorf("Key(silent agent) = %v, want %v of GetKey", err, context.DeadlineExceeded)
	}
	// One that begins to answer and goes on forever.
	socket = guestagenttest.Listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, `{"key":"`)
		for r.Context().Err() == nil {
			io.WriteString(w, "00")
			http.NewResponseController(w).Flush()
			time.Sleep(time.Millisecond)
		}
	}))
	a = newAgent(t, guestagent.Config{Sockets: []string{socket}, Timeout: time.Second})
	if _, err := a.Key(t.Context(), keyPath); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "GetKey: reading the answer") {
		t.Errorf("Key(dripping agent) = %v, want %v of GetKey", err, context.DeadlineExceeded)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("waits of 20ms and a second took %v", took)
	}
}

// TestKeyOfAnAgentThatRestarts: nothing of the connection is kept, and the key
// is of the application, not of the agent's process.
func TestKeyOfAnAgentThatRestarts(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	td := openApp(t, 1)
	start := func() (stop func()) {
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: guestagenttest.Handler(td, guestagenttest.Current)}
		done := make(chan struct{})
		go func() { defer close(done); server.Serve(l) }()
		return func() { server.Close(); <-done }
	}
	a := newAgent(t, guestagent.Config{Sockets: []string{socket}, TappdSockets: nowhere()})
	stop := start()
	key := mustKey(t, a, keyPath)
	stop()
	away := "there is no guest agent at " + socket + " (tappd socket not found)"
	if _, err := a.Key(t.Context(), keyPath); !errors.Is(err, guestagent.ErrSocketNotFound) || err.Error() != away {
		t.Errorf("Key() while the agent is away = %v, want %s", err, away)
	}
	// As an agent that was killed leaves it.
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	refused := "asking guest agent for a key: unix:" + socket + ": GetKey: cannot connect: connect: connection refused"
	if _, err := a.Key(t.Context(), keyPath); err == nil || err.Error() != refused {
		t.Errorf("Key() while nobody listens = %v, want %s", err, refused)
	}
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	stop = start()
	defer stop()
	if again := mustKey(t, a, keyPath); !again.Equal(key) {
		t.Error("Key() after the restart = another key")
	}
}
