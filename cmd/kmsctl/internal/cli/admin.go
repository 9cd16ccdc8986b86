package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"teekms/cmd/internal/argfile"
	"teekms/cmd/kmsctl/internal/status"
	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/audit"
	"teekms/internal/keys"
	"teekms/internal/prpc"
	"teekms/internal/prpc/call"
	"teekms/internal/ratls"
)

// The environment variables that stand for flags which are not given.
const (
	envAdminURL   = "KMSCTL_ADMIN"
	envAdminToken = "KMSCTL_ADMIN_TOKEN" //nolint:gosec // the name of a variable
)

func adminService() protoreflect.ServiceDescriptor {
	return kmsv1.File_kms_v1_admin_proto.Services().ByName("Admin")
}

// adminFlags say which Admin service is called, and with which credential.
type adminFlags struct {
	url, tokenFile, caCert string
	insecurePlaintext      bool
	timeout                time.Duration
}

// register registers the flags, of cmd and of all commands below it.
func (f *adminFlags) register(cmd *cobra.Command) {
	fs := cmd.PersistentFlags()
	fs.SortFlags = false
	fs.StringVar(&f.url, "admin", "", "`URL` of the admin listener (default: $KMSCTL_ADMIN)")
	fs.StringVar(&f.tokenFile, "admin-token-file", "", "`file` with the admin token, - for standard input (without it, the token itself is taken from $KMSCTL_ADMIN_TOKEN)")
	fs.StringVar(&f.caCert, "ca-cert", "", "`file` of the root CA certificate that identifies the KMS (default: the system's authorities)")
	fs.BoolVar(&f.insecurePlaintext, "insecure-plaintext", false, "send the token over plain HTTP to another machine")
	fs.DurationVar(&f.timeout, "timeout", 30*time.Second, "give up a call after this `duration`")
	complete(cmd, "admin", valueOf("http://127.0.0.1:8001", "https://"))
	complete(cmd, "admin-token-file", file())
	complete(cmd, "ca-cert", file("crt", "pem"))
	complete(cmd, "timeout", valueOf("10s", "30s", "2m"))
}

// adminClient is the Admin service that is called.
type adminClient struct {
	*call.Service
	timeout time.Duration
}

// client reads the flags. Nothing is sent.
func (f *adminFlags) client(cmd *cobra.Command, env Environment) (*adminClient, error) {
	raw := f.url
	if raw == "" {
		raw = env.Getenv(envAdminURL)
	}
	switch {
	case raw == "":
		return nil, usagef(cmd, "--admin is required, or $%s", envAdminURL)
	case f.timeout <= 0:
		return nil, usagef(cmd, "--timeout must be positive")
	}
	base, err := call.ParseBase(raw)
	if err != nil {
		return nil, usagef(cmd, "--admin: %w", err)
	}
	if base.Scheme == "http" && !loopback(base) && !f.insecurePlaintext {
		return nil, usagef(cmd, "--admin: over plain HTTP anyone on the way reads the token; use https://, or --insecure-plaintext")
	}
	if f.caCert != "" && base.Scheme != "https" {
		return nil, usagef(cmd, "--ca-cert goes with https://")
	}
	config, err := f.tls(cmd.Context())
	if err != nil {
		return nil, err
	}
	token, err := f.token(cmd.Context(), env)
	if err != nil {
		return nil, fmt.Errorf("--admin-token-file: %w", err)
	}
	codec, err := prpc.NewCodec(adminService(), "")
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, TLSClientConfig: config, MaxResponseHeaderBytes: 64 << 10}
	return &adminClient{timeout: f.timeout, Service: &call.Service{
		Base: base, Codec: codec, Token: token,
		HTTP: &http.Client{
			Transport: transport,
			// The token is for this place alone.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}}, nil
}

func loopback(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// tls identifies the KMS by its root certificate, whatever name it was called
// by, or as any other server without one.
func (f *adminFlags) tls(ctx context.Context) (*tls.Config, error) {
	if f.caCert == "" {
		return &tls.Config{MinVersion: tls.VersionTLS12}, nil
	}
	text, err := argfile.Read(ctx, f.caCert, maxRootFile)
	if err != nil {
		return nil, fmt.Errorf("--ca-cert: %w", err)
	}
	root, err := keys.ParseCertificate(text)
	if err != nil {
		return nil, fmt.Errorf("--ca-cert: %s: %w", f.caCert, err)
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		InsecureSkipVerify:     true, //nolint:gosec // replaced: the root says who it is, not a name
		VerifyConnection:       func(cs tls.ConnectionState) error { return verifyKMS(cs, root) },
		SessionTicketsDisabled: true,
	}, nil
}

// verifyKMS checks that the server is a KMS of that root: what it gave to
// applications leads to the same root.
func verifyKMS(cs tls.ConnectionState, root *x509.Certificate) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the server presented no certificate")
	}
	leaf := cs.PeerCertificates[0]
	opts := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // RPC certificates have none
	}
	opts.Roots.AddCert(root)
	for _, c := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return fmt.Errorf("the server's certificate does not lead to --ca-cert: %w", err)
	}
	usage, err := ratls.Usage(leaf)
	if err != nil {
		return err
	}
	if usage != keys.UsageRPC {
		return fmt.Errorf("the server's certificate is not a KMS's: its usage is %q, want %s", usage, keys.UsageRPC)
	}
	return nil
}

// token reads the credential, "" where there is none: a listener may want none.
func (f *adminFlags) token(ctx context.Context, env Environment) (string, error) {
	switch f.tokenFile {
	case "":
		return strings.TrimSpace(env.Getenv(envAdminToken)), nil
	case "-":
		text, err := argfile.Within(ctx, func() ([]byte, error) { return argfile.All(env.stdin(), "standard input", maxToken) })
		token := strings.TrimSpace(string(text))
		if err == nil && (token == "" || strings.ContainsAny(token, "\r\n")) {
			err = errors.New("standard input does not hold one line")
		}
		return token, err
	default:
		return readToken(f.tokenFile)
	}
}

// do calls a method of the Admin service.
func (c *adminClient) do(ctx context.Context, method string, in, out proto.Message) error {
	limited, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	err := c.Call(limited, "Admin."+method, in, out)
	if err != nil && ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if refused, ok := errors.AsType[*call.Error](err); ok && refused.Status == http.StatusUnauthorized {
		if c.Token == "" {
			return fmt.Errorf("%w; give the admin token with --admin-token-file", err)
		}
		return fmt.Errorf("%w: the admin token is wrong", err)
	}
	if refused, ok := errors.AsType[*call.Error](err); ok && distrusted(refused.Text) {
		return status.WithCode(status.NotVerified, err)
	}
	return c.hint(gaveUp(limited, c.timeout, err))
}

// hint says what may be meant where the listener speaks otherwise than expected.
func (c *adminClient) hint(err error) error {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("%w; a KMS's own certificate is known by --ca-cert", err)
	}
	if refused, ok := errors.AsType[*call.Error](err); ok && refused.Status == http.StatusBadRequest && refused.Text == "" && c.Base.Scheme == "http" {
		return fmt.Errorf("%w; a listener with TLS is reached by https://", err)
	}
	return err
}

// distrusted tells whether a KMS says of its own log or rules that they are not
// what it wrote.
func distrusted(text string) bool {
	return strings.HasSuffix(text, " was tampered with") || text == audit.ErrRolledBack.Error() || text == audit.ErrForked.Error()
}
