package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"teekms/cmd/kmsctl/internal/status"
	kmsv1 "teekms/gen/kms/v1"
	onboardv1 "teekms/gen/onboard/v1"
	"teekms/internal/durable"
	"teekms/internal/prpc"
	"teekms/internal/prpc/call"
)

func kmsService() protoreflect.ServiceDescriptor {
	return kmsv1.File_kms_v1_kms_proto.Services().ByName("KMS")
}

func onboardService() protoreflect.ServiceDescriptor {
	return onboardv1.File_onboard_v1_onboard_proto.Services().ByName("Onboard")
}

// prpcJSON is the form in which a service answers existing clients, with the
// end of a line.
func prpcJSON(service protoreflect.ServiceDescriptor, hexPrefix string, m proto.Message) ([]byte, error) {
	codec, err := prpc.NewCodec(service, hexPrefix)
	if err != nil {
		return nil, err
	}
	text, err := codec.Marshal(m)
	if err != nil {
		return nil, err
	}
	return append(text, '\n'), nil
}

// write writes a result as it is.
func (e Environment) write(text []byte) error {
	_, err := e.Stdout.Write(text)
	return err
}

// setupFlags are the flags of the commands that set up a KMS.
type setupFlags struct {
	url, tokenFile string
	finish         bool
	timeout        time.Duration
	json           bool
}

func (f *setupFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&f.url, "url", "", "`URL` of the onboarding service of the new KMS (required)")
	fs.StringVar(&f.tokenFile, "setup-token-file", "", "`file` with the setup token, where the KMS wants one")
	complete(cmd, "url", valueOf("http://", "https://"))
	complete(cmd, "setup-token-file", file())
}

func (f *setupFlags) registerFinish(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.finish, "finish", false, "then end the onboarding service, so that the KMS can serve")
}

func (f *setupFlags) registerOutput(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&f.timeout, "timeout", time.Minute, "give up after this `duration`")
	cmd.Flags().BoolVar(&f.json, "json", false, "print the answer of the KMS as JSON")
	complete(cmd, "timeout", valueOf("30s", "1m", "2m"))
}

// caller is the onboarding service that is called.
type caller struct {
	*call.Service
	cmd     *cobra.Command
	timeout time.Duration
}

func (f *setupFlags) caller(cmd *cobra.Command) (*caller, error) {
	switch {
	case f.url == "":
		return nil, usagef(cmd, "--url is required")
	case f.timeout <= 0:
		return nil, usagef(cmd, "--timeout must be positive")
	}
	base, err := call.ParseBase(f.url)
	if err != nil {
		return nil, usagef(cmd, "--url: %w", err)
	}
	token, err := readToken(f.tokenFile)
	if err != nil {
		return nil, fmt.Errorf("--setup-token-file: %w", err)
	}
	codec, err := prpc.NewCodec(onboardService(), "0x")
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}
	return &caller{cmd: cmd, timeout: f.timeout, Service: &call.Service{
		Base: base, Codec: codec, Token: token,
		HTTP: &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}}, nil
}

// maxToken bounds a file of a token, in bytes.
const maxToken = 4096

// readToken reads a token, which is one line.
func readToken(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	text, err := durable.OS{}.ReadFile(path, maxToken)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(text))
	if token == "" || strings.ContainsAny(token, "\r\n") {
		return "", fmt.Errorf("%s does not hold one line", path)
	}
	return token, nil
}

// do calls a method of the onboarding service.
func (c *caller) do(method string, in, out proto.Message) error {
	ctx, cancel := context.WithTimeout(c.cmd.Context(), c.timeout)
	defer cancel()
	err := c.Call(ctx, "Onboard."+method, in, out)
	if err != nil && c.cmd.Context().Err() != nil {
		return errors.New("interrupted")
	}
	if refused, ok := errors.AsType[*call.Error](err); ok {
		if _, denied := refused.Denial(); denied {
			return status.WithCode(status.Denied, err)
		}
		if refused.Status == http.StatusUnauthorized && c.Token == "" {
			return fmt.Errorf("%w; give it with --setup-token-file", err)
		}
	}
	return gaveUp(ctx, c.timeout, err)
}

// finishing ends the onboarding service where that was asked for.
func (f *setupFlags) finishing(c *caller) error {
	if !f.finish {
		return nil
	}
	return c.do("Finish", &onboardv1.FinishRequest{}, &onboardv1.FinishResponse{})
}

// bootstrapFlags are the flags of kmsctl bootstrap.
type bootstrapFlags struct {
	setupFlags
	domain, out string
}

func newBootstrap(env Environment) *cobra.Command {
	var f bootstrapFlags
	cmd := &cobra.Command{
		Use:   "bootstrap --url URL --domain NAME",
		Short: "Have a new KMS make its root keys",
		Long: `Call Bootstrap of a KMS whose key directory is empty: it makes its root keys and
has them quoted. The record of that, public keys, quote and event log, is what
kmsctl verify --info verifies; keep it with --out.`,
		Example: `  kmsctl bootstrap --url http://10.0.0.5:9100 --domain kms.example.com --out bootstrap.json --finish
  kmsctl bootstrap --url http://10.0.0.5:9100 --domain kms.example.com --setup-token-file token --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, env) },
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.domain, "domain", "", "`name` or address of the KMS (required)")
	f.registerFinish(cmd)
	cmd.Flags().StringVar(&f.out, "out", "", "write the record to this `file`")
	f.registerOutput(cmd)
	complete(cmd, "domain", valueOf())
	complete(cmd, "out", file("json"))
	return cmd
}

func (f *bootstrapFlags) run(cmd *cobra.Command, env Environment) error {
	if f.domain == "" {
		return usagef(cmd, "--domain is required")
	}
	c, err := f.caller(cmd)
	if err != nil {
		return err
	}
	var answer onboardv1.BootstrapResponse
	if err := c.do("Bootstrap", &onboardv1.BootstrapRequest{Domain: f.domain}, &answer); err != nil {
		return err
	}
	text, err := prpcJSON(onboardService(), "0x", &answer)
	if err != nil {
		return err
	}
	if err := f.give(env, text, &answer); err != nil {
		return err
	}
	return f.finishing(c)
}

// give prints and keeps the record. It is the only one: nobody makes it again.
func (f *bootstrapFlags) give(env Environment, text []byte, r *onboardv1.BootstrapResponse) error {
	if f.json {
		if err := env.write(text); err != nil {
			return err
		}
	} else {
		p := env.printer()
		p.Line("Root CA key   %x", r.GetCaPubkey())
		p.Line("Root k256     %x", r.GetK256Pubkey())
		p.Line("Quote         %d bytes", len(r.GetQuote()))
		p.Line("Event log     %d bytes", len(r.GetEventlog()))
		if err := p.Err(); err != nil {
			return err
		}
	}
	if f.out == "" {
		return nil
	}
	if err := durable.WriteFile(durable.OS{}, f.out, text, 0o644); err != nil {
		return fmt.Errorf("writing the record: %w", err)
	}
	return nil
}

// onboardFlags are the flags of kmsctl onboard.
type onboardFlags struct {
	setupFlags
	source, domain string
}

func newOnboard(env Environment) *cobra.Command {
	var f onboardFlags
	cmd := &cobra.Command{
		Use:   "onboard --url URL --source URL --domain NAME",
		Short: "Have a new KMS fetch the root keys of a running one",
		Long: `Call Onboard of a KMS whose key directory is empty: it attests itself to the
running KMS at --source, appraises that one, and gets its root keys. Both then
derive the same keys.`,
		Example: `  kmsctl onboard --url http://10.0.0.6:9100 --source https://10.0.0.5:9100 --domain kms-2.example.com --finish`,
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.run(cmd, env) },
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.source, "source", "", "`URL` of the running KMS, as the new one reaches it (required)")
	cmd.Flags().StringVar(&f.domain, "domain", "", "`name` or address of the new KMS (required)")
	f.registerFinish(cmd)
	f.registerOutput(cmd)
	complete(cmd, "source", valueOf("https://"))
	complete(cmd, "domain", valueOf())
	return cmd
}

func (f *onboardFlags) run(cmd *cobra.Command, env Environment) error {
	switch {
	case f.source == "":
		return usagef(cmd, "--source is required")
	case f.domain == "":
		return usagef(cmd, "--domain is required")
	}
	c, err := f.caller(cmd)
	if err != nil {
		return err
	}
	var answer onboardv1.OnboardResponse
	if err := c.do("Onboard", &onboardv1.OnboardRequest{SourceUrl: f.source, Domain: f.domain}, &answer); err != nil {
		return err
	}
	if f.json {
		text, err := prpcJSON(onboardService(), "0x", &answer)
		if err == nil {
			err = env.write(text)
		}
		if err != nil {
			return err
		}
	} else {
		p := env.printer()
		p.Line("Root k256     %s", orDash(hex.EncodeToString(answer.GetK256Pubkey())))
		if err := p.Err(); err != nil {
			return err
		}
	}
	return f.finishing(c)
}

func newFinish(_ Environment) *cobra.Command {
	f := setupFlags{finish: true}
	cmd := &cobra.Command{
		Use:     "finish --url URL",
		Short:   "End the onboarding service of a KMS that has its keys",
		Long:    `Call Finish of an onboarding service. Its process ends, and the KMS can serve.`,
		Example: `  kmsctl finish --url http://10.0.0.5:9100`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.caller(cmd)
			if err != nil {
				return err
			}
			return f.finishing(c)
		},
	}
	f.register(cmd)
	cmd.Flags().DurationVar(&f.timeout, "timeout", time.Minute, "give up after this `duration`")
	complete(cmd, "timeout", valueOf("30s", "1m", "2m"))
	return cmd
}
