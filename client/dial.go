package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/attest"
	"teekms/internal/attest/eventlog"
	"teekms/internal/attest/tdx"
	"teekms/internal/keys"
	"teekms/internal/prpc"
	"teekms/internal/prpc/call"
	"teekms/internal/ratls"
)

// Client is a connection to a KMS that was appraised. Make it with [Dial], end
// it with [Client.Close]. It may be used from several goroutines. A connection
// that was lost is made anew, and the KMS appraised again.
type Client struct {
	cfg       *resolved
	appraiser *ratls.Appraiser
	service   *call.Service
	transport *http.Transport

	// Of the client certificate, nil and empty without one.
	cert     *tls.Certificate
	identity eventlog.Identity
	vmConfig string

	mu sync.Mutex // guards what follows
	// pinned is the key that the KMS must have, nil while it was not met.
	pinned []byte
	first  *dialed
	// Of the last KMS that was appraised; facts is nil without Evidence.
	facts *Facts
	leaf  *x509.Certificate
}

// dialed is a connection that waits for its first call.
type dialed struct {
	conn *tls.Conn
	at   time.Time
}

// keepFirst is how long it may wait: servers close idle connections.
const keepFirst = 5 * time.Second

// Dial makes the client certificate with Evidence, connects and appraises the
// KMS. The error is an [*EvidenceError] or a [*MismatchError] when the KMS is
// not who it should be.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	r, err := cfg.resolve()
	if err != nil {
		return nil, fmt.Errorf("dialing a KMS: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	c, err := newClient(r)
	if err == nil {
		err = c.dial(ctx)
	}
	if err != nil {
		if c != nil {
			c.Close()
		}
		return nil, fmt.Errorf("dialing the KMS at %s: %w", r.base, err)
	}
	return c, nil
}

func newClient(r *resolved) (*Client, error) {
	anchor, collateral, err := r.Trust.open()
	if err != nil {
		return nil, fmt.Errorf("trust: %w", err)
	}
	cached, err := tdx.NewCachedSource(tdx.CachedConfig{Source: collateral, TrustAnchor: anchor, FetchTimeout: r.Timeout, Now: r.Now})
	if err != nil {
		return nil, err
	}
	verifier, err := tdx.NewVerifier(tdx.Config{TrustAnchor: anchor, Collateral: cached, Now: r.Now})
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: r}
	if c.appraiser, err = ratls.NewAppraiser(ratls.AppraiserConfig{Verifier: verifier, Now: r.Now}); err != nil {
		return nil, err
	}
	codec, err := prpc.NewCodec(kmsv1.File_kms_v1_kms_proto.Services().ByName("KMS"), "")
	if err != nil {
		return nil, err
	}
	c.transport = &http.Transport{
		DialTLSContext:         c.connection,
		ForceAttemptHTTP2:      true,
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: 64 << 10,
	}
	c.service = &call.Service{Base: r.base, Codec: codec, HTTP: &http.Client{
		Transport: c.transport, Timeout: r.Timeout,
		// Another place is another KMS.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	return c, nil
}

// dial makes the certificate and the first connection.
func (c *Client) dial(ctx context.Context) error {
	var issuer *ratls.Issuer
	if c.cfg.TempCA {
		var err error
		if issuer, err = c.tempCA(ctx); err != nil {
			return err
		}
	}
	if c.cfg.Attester != nil {
		if err := c.certify(ctx, issuer); err != nil {
			return err
		}
	}
	conn, err := c.handshake(ctx, "tcp", c.address())
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.first = &dialed{conn, c.cfg.Now()}
	return nil
}

// Close ends the connections. Calls in flight fail.
func (c *Client) Close() {
	c.mu.Lock()
	if c.first != nil {
		_ = c.first.conn.Close() // nothing was sent
		c.first = nil
	}
	c.mu.Unlock()
	c.transport.CloseIdleConnections()
}

// Facts returns what the Evidence of the KMS proves, nil when it showed none.
func (c *Client) Facts() *Facts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.facts
}

// Identity returns who this workload is by its own Evidence; empty without an
// attester.
func (c *Client) Identity() Identity {
	return Identity{
		AppID: bytes.Clone(c.identity.AppID), ComposeHash: bytes.Clone(c.identity.ComposeHash), InstanceID: bytes.Clone(c.identity.InstanceID),
	}
}

// call calls a method of the KMS.
func (c *Client) call(ctx context.Context, method string, in, out proto.Message) error {
	return refusal(method, c.service.Call(ctx, "KMS."+method, in, out))
}

// tempCA asks for the temporary CA, without a certificate of one's own, and pins
// the key of whoever answers for everything that follows.
func (c *Client) tempCA(ctx context.Context) (*ratls.Issuer, error) {
	var answer kmsv1.GetTempCaCertResponse
	if err := c.call(ctx, "GetTempCaCert", &kmsv1.GetTempCaCertRequest{}, &answer); err != nil {
		return nil, err
	}
	c.transport.CloseIdleConnections()
	cert, err := keys.ParseCertificate([]byte(answer.GetTempCaCert()))
	if err != nil {
		return nil, fmt.Errorf("GetTempCaCert: temp_ca_cert: %w", err)
	}
	key, err := keys.ParseKey([]byte(answer.GetTempCaKey()))
	if err != nil {
		return nil, fmt.Errorf("GetTempCaCert: temp_ca_key: %w", err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("GetTempCaCert: the key is not that of the certificate")
	}
	if err := c.checkRoot([]byte(answer.GetCaCert())); err != nil {
		return nil, fmt.Errorf("GetTempCaCert: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pinned = c.leaf.RawSubjectPublicKeyInfo
	return &ratls.Issuer{Certificate: cert, Key: key}, nil
}

// checkRoot compares a root certificate in an answer with the one that is
// pinned, by its key: it is issued anew now and then. Without one, the
// certificate that the KMS showed must be under it.
func (c *Client) checkRoot(text []byte) error {
	root, err := parseRoot(text)
	if err != nil {
		return fmt.Errorf("ca_cert: %w", err)
	}
	if pinned := c.cfg.root; pinned != nil {
		if !bytes.Equal(root.RawSubjectPublicKeyInfo, pinned.RawSubjectPublicKeyInfo) {
			return errors.New("ca_cert: another root than the one that was given")
		}
		return nil
	}
	c.mu.Lock()
	leaf := c.leaf
	c.mu.Unlock()
	if err := leaf.CheckSignatureFrom(root); err != nil {
		return fmt.Errorf("ca_cert: the KMS's own certificate is not under it: %w", err)
	}
	return nil
}

// recorder keeps the Evidence that an attester made.
type recorder struct {
	attest.Attester
	made *attest.Evidence
}

// Attest implements attest.Attester.
func (r *recorder) Attest(ctx context.Context, rd attest.ReportData) (ev *attest.Evidence, err error) {
	r.made, err = r.Attester.Attest(ctx, rd)
	return r.made, err
}

// certify makes the client certificate, and sees who this workload is. What
// older KMSs read is the older form.
func (c *Client) certify(ctx context.Context, issuer *ratls.Issuer) error {
	rec := &recorder{Attester: c.cfg.Attester.attester}
	cfg := ratls.ClientCertConfig{Attester: rec, Key: c.cfg.Key, Issuer: issuer, Generation: ratls.Gen8, Now: c.cfg.Now}
	if issuer != nil {
		cfg.Generation = ratls.Gen1
	}
	cert, err := ratls.NewCertificate(ctx, cfg)
	if err != nil {
		return err
	}
	c.cert, c.vmConfig = &cert, rec.made.VMConfig
	if len(rec.made.EventLog) > 0 {
		log, err := eventlog.Parse(rec.made.EventLog)
		if err == nil {
			c.identity, err = log.Identity()
		}
		if err != nil {
			return fmt.Errorf("reading the Evidence of this workload: %w", err)
		}
	}
	return c.checkSelf()
}

// checkSelf refuses to be another than the one who was meant.
func (c *Client) checkSelf() error {
	self := c.cfg.Self
	for _, f := range []struct {
		name      string
		got, want []byte
	}{
		{"app id", c.identity.AppID, self.AppID},
		{"compose hash", c.identity.ComposeHash, self.ComposeHash},
		{"instance id", c.identity.InstanceID, self.InstanceID},
	} {
		if len(f.want) > 0 && !bytes.Equal(f.got, f.want) {
			return fmt.Errorf("this trust domain has the %s %s, not %x", f.name, orNone(f.got), f.want)
		}
	}
	return nil
}

func orNone(b []byte) string {
	if len(b) == 0 {
		return "(none)"
	}
	return fmt.Sprintf("%x", b)
}

// address is where to connect to.
func (c *Client) address() string {
	port := c.cfg.base.Port()
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(c.cfg.base.Hostname(), port)
}

// connection gives the transport the connection that Dial made, or a new one.
func (c *Client) connection(ctx context.Context, network, address string) (net.Conn, error) {
	c.mu.Lock()
	first := c.first
	c.first = nil
	c.mu.Unlock()
	if first != nil {
		if c.cfg.Now().Sub(first.at) < keepFirst {
			return first.conn, nil
		}
		_ = first.conn.Close() // nothing was sent
	}
	return c.handshake(ctx, network, address)
}

// handshake connects, and appraises the KMS before it returns.
func (c *Client) handshake(ctx context.Context, network, address string) (*tls.Conn, error) {
	config, err := c.tlsConfig()
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	raw, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return conn, nil
}

// tlsConfig makes the configuration of one connection.
func (c *Client) tlsConfig() (*tls.Config, error) {
	c.mu.Lock()
	pinned := c.pinned
	c.mu.Unlock()
	var peer *ratls.Attested
	cfg := ratls.ClientConfig{
		PinnedKey: pinned, ServerName: c.cfg.ServerName, Usage: keys.UsageRPC, Appraiser: c.appraiser,
		RequireEvidence: c.cfg.root == nil || c.cfg.Policy.RequireEvidence || c.cfg.Policy.expects(),
		Appraise:        func(_ context.Context, a *ratls.Attested) error { peer = a; return nil },
		Certificate:     c.cert, Timeout: c.cfg.Timeout, Now: c.cfg.Now,
	}
	if c.cfg.root != nil {
		cfg.Roots = x509.NewCertPool()
		cfg.Roots.AddCert(c.cfg.root)
	}
	config, err := ratls.ClientTLS(cfg)
	if err != nil {
		return nil, err
	}
	config.NextProtos = []string{"h2", "http/1.1"}
	if config.ServerName == "" {
		config.ServerName = c.cfg.base.Hostname() // for SNI alone
	}
	verify := config.VerifyConnection
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verify(cs); err != nil {
			return notVerified(err)
		}
		return c.judge(peer, cs.PeerCertificates[0])
	}
	return config, nil
}

// notVerified says so, unless there was no time to tell.
func notVerified(err error) error {
	if errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, attest.ErrNoCollateral) {
		return err
	}
	return &EvidenceError{err}
}

// judge applies the policy to what was verified; peer is nil without Evidence.
func (c *Client) judge(peer *ratls.Attested, leaf *x509.Certificate) error {
	var facts *Facts
	if peer != nil {
		var err error
		if facts, err = newFacts(peer.Claims, peer.Log, leaf); err != nil {
			return err
		}
		if c.cfg.root != nil {
			facts.CAPublicKey = bytes.Clone(c.cfg.root.RawSubjectPublicKeyInfo)
		}
		if err := c.cfg.Policy.appraise(facts); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.facts, c.leaf = facts, leaf
	return nil
}
