package cli

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"software.sslmate.com/src/go-pkcs12"

	"teekms/cmd/internal/argfile"
	"teekms/cmd/kmsctl/internal/bootstrapserver"
	"teekms/cmd/kmsctl/internal/chain"
	"teekms/cmd/kmsctl/internal/clientfile"
	"teekms/cmd/kmsctl/internal/secret"
	"teekms/internal/attest"
	"teekms/internal/durable"
	"teekms/internal/keys"
	ownpkcs12 "teekms/internal/pkcs12"
)

// serverFlags say where a bootstrap server is, how it is known, and who asks.
type serverFlags struct {
	url string

	expect         expectFlags
	anyMeasurement bool
	allowTCB       []string
	trust          trustFlags
	pin            string
	noAttestation  bool

	tokenFile                 string
	clientCert, clientKey     string
	clientP12, clientPassFile string
}

func (f *serverFlags) registerWhere(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.url, "bootstrap-server-url", "", "`URL` of the bootstrap server (default: that of the client file)")
	complete(cmd, "bootstrap-server-url", valueOf("https://"))
}

func (f *serverFlags) registerIdentity(cmd *cobra.Command) {
	fs := cmd.Flags()
	f.expect.register(cmd)
	fs.BoolVar(&f.anyMeasurement, "insecure-accept-any-measurement", false, "take any trust domain for the server")
	fs.StringArrayVar(&f.allowTCB, "allow-tcb-status", nil, "accept this TCB `status` of the server besides UpToDate; may be repeated")
	f.trust.register(cmd)
	fs.StringVar(&f.pin, "pin-spki", "", "the server has this key: SHA-256 of its SubjectPublicKeyInfo, as `HEX` or sha256:BASE64; it may then have no Evidence")
	fs.BoolVar(&f.noAttestation, "insecure-no-attestation", false, "give the configuration to whoever answers: neither Evidence nor a key is looked at")
	complete(cmd, "allow-tcb-status", valueOf(tcbStatuses()...))
	complete(cmd, "pin-spki", valueOf("sha256:"))
}

func (f *serverFlags) registerSelf(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.tokenFile, "bootstrap-token-file", "", "`file` with the token that the server wants; - is standard input (default: kms_access_token of the client file)")
	fs.StringVar(&f.clientCert, "client-cert", "", "`file` with the client certificate, PEM")
	fs.StringVar(&f.clientKey, "client-key", "", "`file` with its key, PEM")
	fs.StringVar(&f.clientP12, "client-p12-file", "", "PKCS#12 `file` with client certificate and key (default: ssl_client_pkcs12_path of the client file)")
	fs.StringVar(&f.clientPassFile, "client-p12-password-file", "", "`file` with its password; - is standard input")
	complete(cmd, "bootstrap-token-file", file())
	complete(cmd, "client-cert", file("pem", "crt"))
	complete(cmd, "client-key", file("pem", "key"))
	complete(cmd, "client-p12-file", file("p12", "pfx"))
	complete(cmd, "client-p12-password-file", file())
}

// validate looks at flags alone; no file is read but that of expectations.
func (f *serverFlags) validate(cmd *cobra.Command) error {
	given := cmd.Flags().Changed
	switch {
	case (f.clientCert == "") != (f.clientKey == ""):
		return usagef(cmd, "--client-cert and --client-key go together")
	case f.clientCert != "" && f.clientP12 != "":
		return usagef(cmd, "give --client-cert or --client-p12-file, not both")
	case f.clientPassFile != "" && f.clientP12 == "":
		return usagef(cmd, "--client-p12-password-file goes with --client-p12-file")
	}
	if f.noAttestation {
		for _, flag := range []string{
			"expect-mrtd", "expect-rtmr", "expect-file", "insecure-accept-any-measurement", "allow-tcb-status",
			"trust-root", "collateral", "pccs", "pin-spki",
		} {
			if given(flag) {
				return usagef(cmd, "--insecure-no-attestation looks at nothing, so --%s means nothing", flag)
			}
		}
	}
	return nil
}

// fillIn takes from the client file how the server is known, and what is
// trusted, each where no flag says anything of it.
func (f *serverFlags) fillIn(cmd *cobra.Command, shared *clientfile.File) error {
	type value struct{ flag, text string }
	for _, group := range []struct {
		flags []string
		from  []value
	}{
		{
			[]string{"expect-mrtd", "expect-rtmr", "expect-file", "pin-spki", "insecure-accept-any-measurement", "insecure-no-attestation"},
			[]value{{"expect-file", shared.ExpectFile}, {"pin-spki", shared.PinSPKI}},
		},
		{
			[]string{"trust-root", "collateral", "pccs", "insecure-no-attestation"},
			[]value{{"trust-root", shared.TrustRoot}, {"collateral", shared.Collateral}, {"pccs", shared.PCCS}},
		},
	} {
		if slices.ContainsFunc(group.flags, cmd.Flags().Changed) {
			continue
		}
		for _, v := range group.from {
			if v.text == "" {
				continue
			}
			if err := cmd.Flags().Set(v.flag, v.text); err != nil {
				return fmt.Errorf("%s: %w", shared.Path, err)
			}
		}
	}
	return nil
}

// identity says how the server is known.
func (f *serverFlags) identity(cmd *cobra.Command) (bootstrapserver.Identity, error) {
	id := bootstrapserver.Identity{AnyMeasurement: f.anyMeasurement, NoAttestation: f.noAttestation}
	if f.noAttestation {
		return id, nil
	}
	var err error
	if cmd.Flags().Changed("pin-spki") {
		if id.Pin, err = bootstrapserver.ParsePin(f.pin); err != nil {
			return id, usagef(cmd, "--pin-spki: %w", err)
		}
	}
	accept, err := acceptTCB(cmd, f.allowTCB)
	if err != nil {
		return id, err
	}
	for _, s := range accept {
		id.AcceptTCB = append(id.AcceptTCB, attest.TCBStatus(s))
	}
	if id.Expect, err = f.expect.set(cmd); err != nil {
		return id, err
	}
	if id.Pin == nil && !id.AnyMeasurement && !id.Expect.Identifies() {
		return id, usagef(cmd, "say which server may have the configuration: with --expect-mrtd or --expect-file what its Evidence must say, "+
			"or with --pin-spki its key; --insecure-accept-any-measurement takes any trust domain")
	}
	var trusted chain.Config
	if err := f.trust.apply(cmd, &trusted); err != nil {
		return id, err
	}
	id.TrustAnchor, id.Collateral = trusted.TrustAnchor, trusted.Collateral
	return id, nil
}

// config makes the configuration of the connection, from flags and the client
// file.
func (f *serverFlags) config(cmd *cobra.Command, env Environment, secrets *secret.Reader) (cfg bootstrapserver.Config, err error) {
	cfg = bootstrapserver.Config{Now: env.Now}
	shared, err := clientfile.Load(env.Getenv)
	if err != nil {
		return cfg, err
	}
	if err := f.fillIn(cmd, shared); err != nil {
		return cfg, err
	}
	if cfg.Identity, err = f.identity(cmd); err != nil {
		return cfg, err
	}
	raw, from := f.url, "--bootstrap-server-url"
	if raw == "" {
		raw, from = shared.BootstrapServerURL, shared.Path
	}
	if raw == "" {
		return cfg, nowhere(cmd, shared)
	}
	if cfg.URL, err = bootstrapserver.ParseURL(raw); err != nil {
		if f.url != "" {
			return cfg, usagef(cmd, "%s: %w", from, err)
		}
		return cfg, fmt.Errorf("the server's URL in %s: %w", from, err)
	}
	cfg.Token = shared.AccessToken
	if f.tokenFile != "" {
		if cfg.Token, _, err = secrets.Get(cmd.Context(), secret.Source{Flag: "bootstrap-token", File: f.tokenFile}); err != nil {
			return cfg, err
		}
	}
	cfg.Certificate, err = f.certificate(cmd, secrets, shared)
	return cfg, err
}

// nowhere explains what is missing where no server is named. No file is made:
// one that points nowhere would be found by the next command.
func nowhere(cmd *cobra.Command, shared *clientfile.File) error {
	switch {
	case shared.Found:
		return usagef(cmd, "%s names neither bootstrap_server_url nor kms_server_url; give --bootstrap-server-url", shared.Path)
	case shared.Path == "":
		return usagef(cmd, "--bootstrap-server-url is required: neither %s nor HOME is set, so there is no client file", clientfile.Variable)
	}
	return usagef(cmd, `--bootstrap-server-url is required: there is no %s, which could hold {"bootstrap_server_url": "https://HOST:9998"}`, shared.Path)
}

// certificate loads the client certificate, nil where there is none.
func (f *serverFlags) certificate(cmd *cobra.Command, secrets *secret.Reader, shared *clientfile.File) (*tls.Certificate, error) {
	switch {
	case f.clientCert != "":
		cert, err := argfile.Within(cmd.Context(), func() (tls.Certificate, error) { return tls.LoadX509KeyPair(f.clientCert, f.clientKey) })
		if err != nil {
			return nil, fmt.Errorf("--client-cert: %w", err)
		}
		return &cert, nil
	case f.clientP12 != "":
		password, found, err := secrets.Get(cmd.Context(), secret.Source{Flag: "client-p12-password", File: f.clientPassFile})
		if err != nil {
			return nil, err
		}
		p12, err := (durable.OS{}).ReadFile(f.clientP12, maxPKCS12)
		if err == nil && !found && secrets.CanPrompt() && wantsPassword(p12) {
			if password, err = secrets.Prompt(cmd.Context(), "Password of "+f.clientP12); err != nil {
				return nil, err
			}
		}
		cert, err := openPKCS12(p12, password, err)
		if err != nil {
			return nil, fmt.Errorf("--client-p12-file: %w", err)
		}
		return cert, nil
	case shared.PKCS12Path != "":
		p12, err := (durable.OS{}).ReadFile(shared.PKCS12Path, maxPKCS12)
		cert, err := openPKCS12(p12, shared.PKCS12Password, err)
		if err != nil {
			return nil, fmt.Errorf("ssl_client_pkcs12_path in %s: %w", shared.Path, err)
		}
		return cert, nil
	}
	return nil, nil //nolint:nilnil // none is an answer
}

// openPKCS12 takes certificate and key out of a PKCS#12 file; err is that of
// reading it.
func openPKCS12(p12 []byte, password keys.Secret, err error) (*tls.Certificate, error) {
	if err != nil {
		return nil, err
	}
	// The file says itself how much work it takes to open it, under its encryption
	// too.
	switch err := ownpkcs12.CheckWith(p12, password); {
	case errors.Is(err, ownpkcs12.ErrPassword):
		return nil, errors.New("another password opens it")
	case err != nil:
		return nil, err
	}
	key, leaf, others, err := pkcs12.DecodeChain(p12, string(password.Bytes()))
	if errors.Is(err, pkcs12.ErrIncorrectPassword) {
		return nil, errors.New("another password opens it")
	}
	if err != nil {
		return nil, fmt.Errorf("opening PKCS#12: %w", err)
	}
	cert := &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for _, c := range others {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}
