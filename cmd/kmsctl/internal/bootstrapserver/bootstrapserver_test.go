package bootstrapserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"teekms/cmd/kmsctl/internal/bootstrapserver"
	"teekms/cmd/kmsctl/internal/expect"
	"teekms/cmd/kmsctl/internal/kmstest"
	"teekms/cmd/kmsctl/internal/status"
	"teekms/internal/attest"
	"teekms/internal/attest/simtd"
	"teekms/internal/attest/tdx"
	"teekms/internal/keys"
	"teekms/internal/ratls"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a software trust domain, and a client that knows its measurements.
type world struct {
	dir  string
	td   *simtd.TD
	cert tls.Certificate
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{dir: t.TempDir()}
	var err error
	if w.td, err = simtd.Open(simtd.Config{Dir: w.dir}); err != nil {
		t.Fatal(err)
	}
	w.cert = kmstest.Certificate(t, w.td)
	return w
}

// identity is that of a server with the MRTD of the world.
func (w *world) identity(t testing.TB) bootstrapserver.Identity {
	t.Helper()
	source, err := tdx.NewDirSource(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	mrtd := w.td.Measurements().MRTD
	id := bootstrapserver.Identity{TrustAnchor: w.td.Root(), Collateral: source, AcceptTCB: []attest.TCBStatus{attest.UpToDate}}
	if err := id.Expect.Add("--expect-mrtd", "mrtd", hex.EncodeToString(mrtd[:])); err != nil {
		t.Fatal(err)
	}
	return id
}

func dial(t testing.TB, server string, id bootstrapserver.Identity, edit func(*bootstrapserver.Config)) (*bootstrapserver.Client, error) {
	t.Helper()
	u, err := bootstrapserver.ParseURL(server)
	if err != nil {
		t.Fatal(err)
	}
	cfg := bootstrapserver.Config{URL: u, Identity: id, Timeout: 10 * time.Second, Now: time.Now, Token: keys.NewSecret([]byte("the token"))}
	if edit != nil {
		edit(&cfg)
	}
	c, err := bootstrapserver.Dial(t.Context(), cfg)
	if c != nil {
		t.Cleanup(c.Close)
	}
	return c, err
}

// selfSigned makes a certificate with these extensions and this validity.
func selfSigned(t testing.TB, key *ecdsa.PrivateKey, notAfter time.Time, extensions ...pkix.Extension) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "cosmian.kms"}, DNSNames: []string{"kms.example.com"},
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: notAfter, ExtraExtensions: extensions,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := keys.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// evidence makes Evidence of a trust domain over a key.
func evidence(t testing.TB, td *simtd.TD, key *ecdsa.PrivateKey, gen ratls.Generation) []pkix.Extension {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := td.Attest(t.Context(), attest.RATLSReportData(spki))
	if err != nil {
		t.Fatal(err)
	}
	ext, err := ratls.Extensions(ev, gen)
	if err != nil {
		t.Fatal(err)
	}
	return ext
}

func pinOf(cert tls.Certificate, t testing.TB) *bootstrapserver.Pin {
	t.Helper()
	pin := bootstrapserver.Pin(sha256.Sum256(kmstest.Leaf(t, cert).RawSubjectPublicKeyInfo))
	return &pin
}

// An identity accepts the servers that it describes, and writes nothing to any
// other.
func TestDial(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	key, plainKey := newKey(t), newKey(t)
	tomorrow := time.Now().Add(24 * time.Hour)
	plain := selfSigned(t, plainKey, tomorrow)
	var elsewhere simtd.Config
	elsewhere.Dir, elsewhere.Ephemeral, elsewhere.Measurements.Image = w.dir, true, "another image"
	anotherImage, err := simtd.Open(elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	outdated := newWorld(t)
	if err := outdated.td.SetEndorsements(simtd.Endorsements{Platform: simtd.Level{Status: attest.OutOfDate}}); err != nil {
		t.Fatal(err)
	}
	copied := kmstest.Leaf(t, w.cert).Extensions
	copied = slices.DeleteFunc(slices.Clone(copied), func(e pkix.Extension) bool {
		return !e.Id.Equal(keys.ExtensionOID(keys.ArcAttestation))
	})
	expecting := w.identity(t)
	with := func(edit func(*bootstrapserver.Identity)) bootstrapserver.Identity {
		id := w.identity(t)
		edit(&id)
		return id
	}
	pinned := func(pin *bootstrapserver.Pin) func(*bootstrapserver.Identity) {
		return func(id *bootstrapserver.Identity) { id.Pin, id.Expect = pin, nil }
	}
	tests := []struct {
		name string
		cert tls.Certificate
		id   bootstrapserver.Identity
		code int
		want string
	}{
		{"the trust domain that is expected", w.cert, expecting, status.OK, ""},
		{"Evidence of the older generation", selfSigned(t, key, tomorrow, evidence(t, w.td, key, ratls.Gen1)...), expecting, status.OK, ""},
		{"any trust domain", w.cert, with(func(id *bootstrapserver.Identity) { id.AnyMeasurement, id.Expect = true, nil }), status.OK, ""},
		{"a status that is accepted", outdated.cert, func() bootstrapserver.Identity {
			id := outdated.identity(t)
			id.AcceptTCB = append(id.AcceptTCB, attest.OutOfDate)
			return id
		}(), status.OK, ""},
		{"its key", plain, with(pinned(pinOf(plain, t))), status.OK, ""},
		{"its key and its Evidence", w.cert, with(pinned(pinOf(w.cert, t))), status.OK, ""},
		{"nothing at all", plain, bootstrapserver.Identity{NoAttestation: true}, status.OK, ""},

		{"no Evidence", plain, expecting, status.NotVerified, "its certificate holds no Evidence"},
		{"no Evidence from any trust domain", plain, with(func(id *bootstrapserver.Identity) { id.AnyMeasurement, id.Expect = true, nil }), status.NotVerified, "its certificate holds no Evidence"},
		{"Evidence of another key", selfSigned(t, plainKey, tomorrow, copied...), expecting, status.NotVerified, "report data: report data mismatch: the quote binds another key"},
		{"the certificate of somebody else", tls.Certificate{Certificate: w.cert.Certificate, PrivateKey: plainKey}, expecting, status.NotVerified, "does not prove that the certificate it shows is its own"},
		{"Evidence of both generations", selfSigned(t, key, tomorrow, slices.Concat(evidence(t, w.td, key, ratls.Gen1), evidence(t, w.td, key, ratls.Gen8))...), expecting, status.NotVerified, "Evidence of both generations"},
		{"no status that is accepted", w.cert, with(func(id *bootstrapserver.Identity) { id.AcceptTCB = nil }), status.NotVerified, "TCB status: UpToDate, accepted is "},
		{"another trust root", other.cert, expecting, status.NotVerified, "PCK certificate chain: "},
		{"other software", kmstest.Certificate(t, anotherImage), expecting, status.Unexpected, "is not what was expected: mrtd is "},
		{"a platform that is out of date", outdated.cert, outdated.identity(t), status.NotVerified, "TCB status: OutOfDate, accepted is UpToDate"},
		{"a certificate that has expired", selfSigned(t, key, time.Now().Add(-time.Minute), evidence(t, w.td, key, ratls.Gen8)...), expecting, status.NotVerified, "its certificate is valid from "},
		{"a certificate of tomorrow", w.cert, expecting, status.NotVerified, "its certificate is valid from "},
		{"no collateral", w.cert, with(func(id *bootstrapserver.Identity) { id.Collateral = nothing{} }), status.NoCollateral, "no collateral to be had"},
		{"another name", w.cert, with(func(id *bootstrapserver.Identity) { expects(t, id, "domain", "kms.example.com") }), status.Unexpected, "domain there is none"},
		{"another key", plain, with(pinned(pinOf(w.cert, t))), status.Unexpected, "--pin-spki wants "},
		{"its key, without what is expected", plain, with(func(id *bootstrapserver.Identity) { id.Pin = pinOf(plain, t) }), status.NotVerified, "its certificate holds no Evidence"},
		{"its key, with Evidence that does not hold", selfSigned(t, plainKey, tomorrow, copied...), with(pinned(pinOf(plain, t))), status.NotVerified, "the quote binds another key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := kmstest.NewBootstrapServer(t, tt.cert, nil)
			c, err := dial(t, s.URL, tt.id, func(c *bootstrapserver.Config) {
				if tt.name == "a certificate of tomorrow" {
					c.Now = func() time.Time { return kmstest.Leaf(t, w.cert).NotBefore.Add(-time.Second) }
				}
			})
			if got := status.Of(err); got != tt.code || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("Dial() = %v, status %d, want %d and %q", err, got, tt.code, tt.want)
			}
			if err == nil {
				if _, err := c.Start(t.Context(), false); err != nil {
					t.Errorf("Start() = %v", err)
				}
			}
			if posts, _ := s.Posts(); len(posts) > 0 != (tt.code == status.OK) {
				t.Errorf("the server was sent %v", posts)
			}
		})
	}
}

type nothing struct{ tdx.CollateralSource }

func (nothing) Collateral(_ context.Context, _ tdx.FMSPC, _ tdx.CA) (*tdx.Collateral, error) {
	return nil, attest.ErrNoCollateral
}

func expects(t testing.TB, id *bootstrapserver.Identity, name, value string) {
	t.Helper()
	var set expect.Set
	if err := set.Add("a test", name, value); err != nil {
		t.Fatal(err)
	}
	id.Expect = append(id.Expect, set...)
}

func TestDialRefusesAnIdentityThatEverybodyHas(t *testing.T) {
	w := newWorld(t)
	id := w.identity(t)
	id.Expect = nil
	rtmr := w.identity(t)
	rtmr.Expect = nil
	expects(t, &rtmr, "rtmr3", strings.Repeat("00", 48))
	for name, tt := range map[string]struct {
		id   bootstrapserver.Identity
		want string
	}{
		"the zero value":             {bootstrapserver.Identity{}, "neither trust root nor collateral"},
		"a pin without a root":       {bootstrapserver.Identity{Pin: pinOf(w.cert, t)}, "neither trust root nor collateral"},
		"a root alone":               {id, "nothing says which one is meant"},
		"what run-time code extends": {rtmr, "nothing says which one is meant"},
	} {
		s := kmstest.NewBootstrapServer(t, w.cert, nil)
		if _, err := dial(t, s.URL, tt.id, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Dial() with %s = %v, want %q", name, err, tt.want)
		}
		if _, conns := s.Posts(); conns != 0 {
			t.Errorf("Dial() with %s made %d connections", name, conns)
		}
	}
}

func TestAServerMustSpeakTLS13(t *testing.T) {
	w := newWorld(t)
	s := kmstest.NewBootstrapServer(t, w.cert, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 })
	if _, err := dial(t, s.URL, w.identity(t), nil); err == nil || !strings.Contains(err.Error(), "protocol version") || status.Of(err) != status.Failed {
		t.Errorf("Dial() = %v, want an error about the protocol version", err)
	}
}

// All calls go over the connection that was verified; where it breaks, the next
// one must be to the same key.
func TestConnections(t *testing.T) {
	w := newWorld(t)
	second := kmstest.Certificate(t, w.td) // as good, and another
	certs := []tls.Certificate{w.cert}
	s := kmstest.NewBootstrapServer(t, w.cert, func(c *tls.Config) {
		c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
			config := c.Clone()
			config.GetConfigForClient = nil
			config.Certificates = []tls.Certificate{certs[0]}
			return config, nil
		}
	})
	c, err := dial(t, s.URL, w.identity(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := c.PKCS12Password(t.Context(), keys.NewSecret([]byte("p"))); err != nil {
			t.Fatal(err)
		}
	}
	if posts, conns := s.Posts(); len(posts) != 3 || conns != 1 {
		t.Errorf("%d posts over %d connections, want 3 over 1", len(posts), conns)
	}
	s.SetAnswer(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		w.Write([]byte(`{"success":"and goodbye"}`))
	})
	if _, err := c.PKCS12Password(t.Context(), keys.NewSecret([]byte("p"))); err != nil {
		t.Fatal(err)
	}
	if got, err := c.PKCS12Password(t.Context(), keys.NewSecret([]byte("p"))); err != nil || got != "and goodbye" {
		t.Errorf("a call on a new connection = %q, %v, want the same server again", got, err)
	}
	certs[0] = second
	before, _ := s.Posts()
	_, err = c.PKCS12Password(t.Context(), keys.NewSecret([]byte("p")))
	if status.Of(err) != status.NotVerified || !strings.Contains(err.Error(), "another server than the one that was verified") {
		t.Errorf("a call to another server = %v, status %d, want it refused", err, status.Of(err))
	}
	if after, _ := s.Posts(); len(after) != len(before) {
		t.Errorf("the other server was sent %v", after[len(before):])
	}
}

func TestBodies(t *testing.T) {
	w := newWorld(t)
	s := kmstest.NewBootstrapServer(t, w.cert, nil)
	c, err := dial(t, s.URL, w.identity(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	secret := func(s string) keys.Secret { return keys.NewSecret([]byte(s)) }
	database := func(d bootstrapserver.Database) func() (string, error) {
		return func() (string, error) { return c.Database(t.Context(), d) }
	}
	tests := []struct {
		do               func() (string, error)
		path, body, want string
	}{
		{func() (string, error) { return c.PKCS12Password(t.Context(), secret("")) }, "/pkcs12-password", `{"password":""}`, "PKCS#12 password received"},
		{func() (string, error) { return c.PKCS12Password(t.Context(), secret(`"<&é`)) }, "/pkcs12-password", `{"password":"\"<&é"}`, "PKCS#12 password received"},
		{database(bootstrapserver.Database{Type: "sqlite", Path: "d"}), "/sqlite", `{"path":"d"}`, "Successfully received Sqlite configuration"},
		{database(bootstrapserver.Database{Type: "sqlite-enc", Path: "d"}), "/sqlite-enc", `{"path":"d"}`, "Successfully received Sqlite Enc. configuration"},
		{database(bootstrapserver.Database{Type: "sqlite-enc", Path: "d", MasterPassword: secret("m")}), "/sqlite-enc", `{"master_password":"m","path":"d"}`, "Successfully received Sqlite Enc. configuration"},
		{database(bootstrapserver.Database{Type: "mysql", URL: secret("mysql://h")}), "/mysql", `{"url":"mysql://h"}`, "Successfully received MySql/MariaDB configuration"},
		{database(bootstrapserver.Database{Type: "postgresql", URL: secret("u")}), "/postgresql", `{"url":"u"}`, "Successfully received PostgreSQL configuration"},
		{database(bootstrapserver.Database{Type: "redis-findex", URL: secret("u"), MasterPassword: secret("m"), Label: "l"}), "/redis-findex", `{"findex_label":"l","master_password":"m","url":"u"}`, "Successfully received Redis-Findex configuration"},
		{func() (string, error) { return c.Start(t.Context(), true) }, "/start", `{"clear_database":true}`, "Starting the KMS server"},
	}
	for _, tt := range tests {
		got, err := tt.do()
		posts, _ := s.Posts()
		p := posts[len(posts)-1]
		if err != nil || got != tt.want || p.Path != tt.path || p.Body != tt.body || p.ContentType != "application/json" || p.Authorization != "Bearer the token" {
			t.Errorf("%s = %q, %v with the post %+v, want %q and the body %s", tt.path, got, err, p, tt.want, tt.body)
		}
	}
	if _, err := c.Database(t.Context(), bootstrapserver.Database{Type: "oracle"}); err == nil {
		t.Error(`Database("oracle") = nil, want an error`)
	}
	if _, err := c.PKCS12(t.Context(), []byte("\x30\x82file")); err != nil {
		t.Fatal(err)
	}
	posts, _ := s.Posts()
	p := posts[len(posts)-1]
	for _, want := range []string{`form-data; name="file"; filename="bootstrap.p12"`, "Content-Type: application/octet-stream\r\n", "\x30\x82file"} {
		if !strings.Contains(p.Body, want) {
			t.Errorf("/pkcs12 was sent %q, want %q in it", p.Body, want)
		}
	}
}

// What a server answers is shown as one printable line of bounded length, or is
// an error.
func TestAnswers(t *testing.T) {
	w := newWorld(t)
	s := kmstest.NewBootstrapServer(t, w.cert, nil)
	tests := []struct {
		name string
		code int
		body string
		want string // of the success
		err  string
	}{
		{"a success", 200, `{"success":"fine"}`, "fine", ""},
		{"control characters", 200, `{"success":"\u001b[2Jgone\u0007 \u202e x"}`, "\uFFFD[2Jgone\uFFFD \uFFFD x", ""},
		{"several lines", 200, `{"success":"a\r\n  -> b"}`, "a -> b", ""},
		{"a long text", 200, `{"success":"` + strings.Repeat("a", 5000) + `"}`, strings.Repeat("a", 2000) + "…", ""},
		{"an error", 400, `{"error":"no such\ndatabase"}`, "", "no such database"},
		{"an error of the older kind", 422, "Invalid Request: \x1b[31mno database", "", "Invalid Request: \uFFFD[31mno database"},
		{"an error without a text", 401, ``, "", "/start is answered with 401 Unauthorized"},
		{"another object", 500, `{}`, "", "/start is answered with 500 Internal Server Error"},
		{"no success", 200, `{"ok":true}`, "", "is not that of a bootstrap server"},
		{"another type", 200, `{"success":1}`, "", "is not that of a bootstrap server"},
		{"a page", 200, `<html>`, "", "is not that of a bootstrap server"},
		{"too much", 200, `{"success":"` + strings.Repeat("a", 70000) + `"}`, "", "has more than 65536 bytes"},
		{"another place", 307, ``, "", "is answered with 307 Temporary Redirect"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s.SetAnswer(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/elsewhere" {
					t.Error("the client goes elsewhere")
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(tt.code)
				w.Write([]byte(tt.body))
			})
			c, err := dial(t, s.URL, w.identity(t), nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.Start(t.Context(), false)
			if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Start() = %q, %v, want %q, %q", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestParseURL(t *testing.T) {
	for raw, want := range map[string]string{
		"https://h:9998": "", "https://h": "", "https://[::1]:9998/": "",
		"http://h": "reached by https:// alone", "h:9998": "not of the form", "https://": "not of the form", "https://u:pw@h": "not of the form",
		"https://h/path": "not of the form", "https://h?q": "not of the form", "https://h#f": "not of the form", "https://h:x": "not of the form",
	} {
		_, err := bootstrapserver.ParseURL(raw)
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "pw")) {
			t.Errorf("ParseURL(%q) = %v, want %q", raw, err, want)
		}
	}
}

func FuzzParsePin(f *testing.F) {
	digest := sha256.Sum256([]byte("x"))
	for _, seed := range []string{
		hex.EncodeToString(digest[:]), "0x" + strings.ToUpper(hex.EncodeToString(digest[:])), "sha256:" + base64.StdEncoding.EncodeToString(digest[:]),
		"sha256//" + base64.StdEncoding.EncodeToString(digest[:]), "", "sha256:", "00", "sha256:" + hex.EncodeToString(digest[:]),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		pin, err := bootstrapserver.ParsePin(text)
		if err != nil {
			return
		}
		for _, again := range []string{pin.String(), "sha256:" + base64.StdEncoding.EncodeToString(pin[:])} {
			if p, err := bootstrapserver.ParsePin(again); err != nil || *p != *pin {
				t.Errorf("ParsePin(%q) = %v, %v, want %v", again, p, err, pin)
			}
		}
	})
}

func TestParsePin(t *testing.T) {
	digest := sha256.Sum256([]byte("x"))
	want := hex.EncodeToString(digest[:])
	for _, text := range []string{want, "0x" + want, strings.ToUpper(want), "sha256:" + base64.StdEncoding.EncodeToString(digest[:]), "sha256//" + base64.StdEncoding.EncodeToString(digest[:])} {
		if pin, err := bootstrapserver.ParsePin(text); err != nil || pin.String() != want {
			t.Errorf("ParsePin(%q) = %v, %v, want %s", text, pin, err, want)
		}
	}
	for _, text := range []string{"", want[2:], want + "00", "sha256:" + want, "sha1:" + want, "sha256:" + base64.RawStdEncoding.EncodeToString(digest[:])} {
		if pin, err := bootstrapserver.ParsePin(text); err == nil {
			t.Errorf("ParsePin(%q) = %v, want an error", text, pin)
		}
	}
}
