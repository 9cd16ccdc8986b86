package cli

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"teekms/client"
	"teekms/cmd/internal/argfile"
	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/keys"
)

// certFlags are the flags of kmsctl app cert.
type certFlags struct {
	appFlags
	subject, org           string
	names                  []string
	serverAuth, clientAuth bool
	withEvidence, withInfo bool
	notAfter               string
	version                uint32
	key                    string
}

func newAppCert(env Environment) *cobra.Command {
	var f certFlags
	cmd := &cobra.Command{
		Use:   "cert --kms URL --app-id HEX --compose-hash HEX",
		Short: "Get a certificate of an application's CA",
		Long: `Attest as the application and get a certificate for a new key, or for that of
--key, from the application's own CA. Key and chain are written to files that
only their owner can read.`,
		Example: `  kmsctl app cert --kms https://kms.example.com:9100 --ca-cert root-ca.crt \
      --app-id 7f… --compose-hash 3c… --subject app --san app.example.com --out tls`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, env) },
	}
	f.registerKMS(cmd)
	f.registerWorkload(cmd)
	f.register(cmd)
	f.registerTrust(cmd, "write key and chain into this `directory`, made when missing (default: this one)")
	return cmd
}

func (f *certFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.subject, "subject", "app", "common `name` of the certificate")
	fs.StringVar(&f.org, "org", "", "`organization` of the certificate")
	fs.StringArrayVar(&f.names, "san", nil, "DNS `name` or address in the certificate; may be repeated")
	fs.BoolVar(&f.serverAuth, "server-auth", true, "for TLS servers")
	fs.BoolVar(&f.clientAuth, "client-auth", true, "for TLS clients")
	fs.BoolVar(&f.withEvidence, "with-evidence", false, "put the Evidence into the certificate (RA-TLS)")
	fs.BoolVar(&f.withInfo, "with-app-info", false, "put what was verified of the application into the certificate")
	fs.StringVar(&f.notAfter, "not-after", "", "end of its validity, a `time` (RFC 3339; default: as long as the KMS gives)")
	fs.Uint32Var(&f.version, "csr-version", 2, "`version` of the signing request; 1 for KMSs before 0.5.6")
	fs.StringVar(&f.key, "key", "", "`file` of the P-256 key to certify, PKCS#8 PEM (default: a new one)")
	complete(cmd, "subject", valueOf())
	complete(cmd, "org", valueOf())
	complete(cmd, "san", valueOf())
	complete(cmd, "not-after", valueOf())
	complete(cmd, "csr-version", valueOf("1", "2"))
	complete(cmd, "key", file("key", "pem"))
}

func (f *certFlags) run(cmd *cobra.Command, env Environment) error {
	req := client.CertRequest{
		Subject: f.subject, Organization: f.org, Names: f.names, ServerAuth: f.serverAuth, ClientAuth: f.clientAuth,
		WithEvidence: f.withEvidence, WithAppInfo: f.withInfo, VMConfig: f.vmConfig, Version: f.version,
	}
	if err := f.validate(cmd, &req); err != nil {
		return err
	}
	cfg, rootKeys, err := f.config(cmd, env)
	if err != nil {
		return err
	}
	if len(rootKeys) > 0 {
		return usagef(cmd, "%s cannot be compared: nothing in a certificate is of that key", rootKeyName)
	}
	if err := f.workload(cmd, &cfg, false); err != nil {
		return err
	}
	if req.Key, err = f.subjectKey(cmd.Context()); err != nil {
		return err
	}
	return f.with(cmd, cfg, func(ctx context.Context, c *client.Client) error {
		cert, err := c.SignCert(ctx, req)
		if err != nil {
			return err
		}
		return f.give(env, &req, cert)
	})
}

func (f *certFlags) validate(cmd *cobra.Command, req *client.CertRequest) error {
	if f.version != 1 && f.version != 2 {
		return usagef(cmd, "--csr-version: %d is neither 1 nor 2", f.version)
	}
	if f.version == 1 && (f.withInfo || f.notAfter != "") {
		return usagef(cmd, "--with-app-info and --not-after need --csr-version 2")
	}
	if f.notAfter == "" {
		return nil
	}
	var err error
	if req.NotAfter, err = time.Parse(time.RFC3339, f.notAfter); err != nil {
		return usagef(cmd, "--not-after: %q is not a time like 2026-01-31T12:00:00Z", f.notAfter)
	}
	return nil
}

// subjectKey reads the key to certify, or makes one.
func (f *certFlags) subjectKey(ctx context.Context) (*ecdsa.PrivateKey, error) {
	if f.key == "" {
		return keys.NewKey()
	}
	text, err := argfile.Read(ctx, f.key, maxRootFile)
	if err != nil {
		return nil, fmt.Errorf("--key: %w", err)
	}
	key, err := keys.ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("--key: reading %s: %w", f.key, err)
	}
	return key, nil
}

func (f *certFlags) give(env Environment, req *client.CertRequest, cert *client.Certificate) error {
	if f.json {
		text, err := prpcJSON(kmsService(), "", &kmsv1.SignCertResponse{CertificateChain: cert.PEM})
		if err != nil {
			return err
		}
		return env.write(text)
	}
	leaf := cert.Chain[0]
	p := env.printer()
	p.Line("Subject       %s", leaf.Subject)
	p.Line("Issuer        %s", leaf.Issuer)
	p.Line("Valid until   %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	if err := p.Err(); err != nil {
		return err
	}
	var files []secretFile
	if f.key == "" {
		text, err := keys.KeyPEM(req.Key)
		if err != nil {
			return err
		}
		files = append(files, secretFile{"app.key", text.Bytes()})
	}
	var chain strings.Builder
	for _, c := range cert.PEM {
		chain.WriteString(strings.TrimSpace(c) + "\n")
	}
	return f.writeFiles(env, append(files, secretFile{"app.crt", []byte(chain.String())})...)
}
