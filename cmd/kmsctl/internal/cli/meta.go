package cli

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/keys"
	"teekms/internal/prpc"
	"teekms/internal/prpc/call"
)

// metaFlags are the flags of kmsctl meta.
type metaFlags struct {
	url     string
	timeout time.Duration
	json    bool
}

func newMeta(env Environment) *cobra.Command {
	var f metaFlags
	cmd := &cobra.Command{
		Use:   "meta --url URL",
		Short: "Show what a KMS says of itself",
		Long: `Call GetMeta of a running KMS and show the answer. Nothing of it is verified:
kmsctl verify --url does that.`,
		Example: `  kmsctl meta --url https://kms.example.com:9100
  kmsctl meta --url https://kms.example.com:9100 --json | jq -r .ca_cert`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, env) },
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&f.url, "url", "", "`URL` of the KMS (required)")
	fs.DurationVar(&f.timeout, "timeout", 30*time.Second, "give up after this `duration`")
	fs.BoolVar(&f.json, "json", false, "print the answer of the KMS as JSON")
	complete(cmd, "url", valueOf("https://", "http://"))
	complete(cmd, "timeout", valueOf("10s", "30s", "2m"))
	return cmd
}

func (f *metaFlags) run(cmd *cobra.Command, env Environment) error {
	switch {
	case f.url == "":
		return usagef(cmd, "--url is required")
	case f.timeout <= 0:
		return usagef(cmd, "--timeout must be positive")
	}
	base, err := call.ParseBase(f.url)
	if err != nil {
		return usagef(cmd, "--url: %w", err)
	}
	codec, err := prpc.NewCodec(kmsService(), "")
	if err != nil {
		return err
	}
	transport := &http.Transport{
		Proxy:             http.ProxyFromEnvironment,
		DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS12,
			InsecureSkipVerify: true, //nolint:gosec // nothing is believed, which is said
		},
	}
	service := &call.Service{Base: base, Codec: codec, HTTP: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	var answer kmsv1.GetMetaResponse
	if err := service.Call(ctx, "KMS.GetMeta", &kmsv1.GetMetaRequest{}, &answer); err != nil {
		if cmd.Context().Err() != nil {
			return errors.New("interrupted")
		}
		return gaveUp(ctx, f.timeout, err)
	}
	if f.json {
		text, err := prpcJSON(kmsService(), "", &answer)
		if err != nil {
			return err
		}
		return env.write(text)
	}
	return showMeta(env, &answer)
}

func showMeta(env Environment, m *kmsv1.GetMetaResponse) error {
	p := env.printer()
	root := "not a certificate"
	if c, err := keys.ParseCertificate([]byte(m.GetCaCert())); err == nil {
		digest := sha256.Sum256(c.Raw)
		root = c.Subject.String() + ", SHA-256 " + hex.EncodeToString(digest[:])
	}
	p.Line("Root CA       %s", root)
	p.Line("Root k256     %s", orDash(hex.EncodeToString(m.GetK256Pubkey())))
	record := "none"
	if b := m.GetBootstrapInfo(); b != nil {
		record = "with a quote"
		if len(b.GetQuote()) == 0 {
			record = "without a quote"
		}
	}
	p.Line("Bootstrap     %s", record)
	p.Line("Trust root    %s", orDash(hex.EncodeToString(m.GetTrustRootSha256())))
	p.Line("Development   %s", yesNo(m.GetIsDev()))
	p.Line("Gateway       %s", orDash(m.GetGatewayAppId()))
	if m.GetKmsContractAddress() != "" {
		p.Line("Contract      %s on chain %d", m.GetKmsContractAddress(), m.GetChainId())
	}
	p.Line("Weakened by   %s", orDash(strings.Join(m.GetInsecureSettings(), ", ")))
	p.Line("Nothing of this is verified; kmsctl verify --url does that.")
	return p.Err()
}

func yesNo(b bool) string {
	if b {
		return "yes, every application is allowed"
	}
	return "no"
}
