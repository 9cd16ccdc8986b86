package cli

import (
	"context"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"teekms/client"
	kmsv1 "teekms/gen/kms/v1"
	"teekms/internal/durable"
)

func trim0x(s string) string { return strings.TrimPrefix(s, "0x") }

func newAppKey(env Environment) *cobra.Command {
	var f appFlags
	cmd := &cobra.Command{
		Use:   "key --kms URL --app-id HEX --compose-hash HEX",
		Short: "Get the keys of an application",
		Long: `Attest as the application and get its keys: those of its disk, its encrypted
environment, and its secp256k1 key with the KMS's signature over it. They are
written to files that only their owner can read.`,
		Example: `  kmsctl app key --kms https://kms.example.com:9100 --ca-cert root-ca.crt \
      --app-id 7f… --compose-hash 3c… --out keys
  kmsctl app key --kms https://127.0.0.1:9100 --ca-cert certs/root-ca.crt \
      --app-id 7f… --compose-hash 3c… --provider simulator --simulator-dir td --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.runKey(cmd, env) },
	}
	f.registerKMS(cmd)
	f.registerWorkload(cmd)
	f.registerTrust(cmd, "write the keys into this `directory`, made when missing (default: this one)")
	return cmd
}

func (f *appFlags) runKey(cmd *cobra.Command, env Environment) error {
	cfg, rootKeys, err := f.config(cmd, env)
	if err != nil {
		return err
	}
	if err := f.workload(cmd, &cfg, true); err != nil {
		return err
	}
	return f.with(cmd, cfg, func(ctx context.Context, c *client.Client) error {
		keys, err := c.AppKey(ctx, f.vmConfig)
		if err != nil {
			return err
		}
		if err := checkRootKey(rootKeys, keys.K256Root); err != nil {
			return err
		}
		return f.giveKeys(env, c, keys)
	})
}

func (f *appFlags) giveKeys(env Environment, c *client.Client, k *client.AppKeys) error {
	text, err := prpcJSON(kmsService(), "", &kmsv1.GetAppKeyResponse{
		CaCert: string(k.CACert), DiskCryptKey: k.DiskKey.Bytes(), EnvCryptKey: k.EnvKey.Bytes(), K256Key: k.K256Key.Bytes(),
		K256Signature: k.K256Signature, TproxyAppId: k.GatewayAppID, GatewayAppId: k.GatewayAppID, OsImageHash: k.OSImageHash,
	})
	if err != nil {
		return err
	}
	if f.json {
		return env.write(text)
	}
	p := env.printer()
	p.Line("Application   %x", c.Identity().AppID)
	p.Line("Root key      %x", k.K256Root)
	p.Line("OS image      %s", orDash(hex.EncodeToString(k.OSImageHash)))
	p.Line("Gateway       %s", orDash(k.GatewayAppID))
	if err := p.Err(); err != nil {
		return err
	}
	return f.writeFiles(env,
		secretFile{"app-keys.json", text}, secretFile{"ca.crt", k.CACert},
		secretFile{"disk.key", k.DiskKey.Bytes()}, secretFile{"env.key", k.EnvKey.Bytes()}, secretFile{"k256.key", k.K256Key.Bytes()})
}

func orDash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}

// secretFile is a file that only its owner may read.
type secretFile struct {
	name string
	data []byte
}

// writeFiles writes files into the directory, each at once or not at all.
func (f *appFlags) writeFiles(env Environment, files ...secretFile) error {
	dir := f.out
	if dir == "" {
		dir = "."
	}
	if _, err := durable.MkdirAll(durable.OS{}, dir, 0o700); err != nil {
		return fmt.Errorf("making directory: %w", err)
	}
	p := env.printer()
	for _, file := range files {
		path := filepath.Join(dir, file.name)
		if err := durable.WriteFile(durable.OS{}, path, file.data, 0o600); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
		p.Line("Wrote         %s", path)
	}
	return p.Err()
}

func newAppEnv(env Environment) *cobra.Command {
	var f appFlags
	cmd := &cobra.Command{
		Use:   "env-pubkey --kms URL --app-id HEX",
		Short: "Get the public key to which an application's environment is encrypted",
		Long: `Get the X25519 public key of an application, and check both signatures of the
KMS's root secp256k1 key over it. Nothing secret is in it and nothing is
attested, so this works from anywhere.`,
		Example: `  kmsctl app env-pubkey --kms https://kms.example.com:9100 --ca-cert root-ca.crt --app-id 7f…`,
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.runEnv(cmd, env) },
	}
	f.registerKMS(cmd)
	// What the other two commands take is taken here, too; nobody attests.
	f.registerWorkload(cmd)
	f.registerTrust(cmd, "also write the answer into this `directory`, as env-pubkey.json")
	for _, flag := range []string{"compose-hash", "instance-id", "vm-config", "provider", "temp-ca"} {
		hide(cmd, flag)
	}
	return cmd
}

// hide keeps a flag that has no effect out of the help.
func hide(cmd *cobra.Command, flag string) {
	if err := cmd.Flags().MarkHidden(flag); err != nil {
		panic(err) // a flag that does not exist, which a test of every flag would see
	}
}

func (f *appFlags) runEnv(cmd *cobra.Command, env Environment) error {
	f.tempCA = false
	cfg, rootKeys, err := f.config(cmd, env)
	if err != nil {
		return err
	}
	appID, err := hexFlag(cmd, "app-id", f.appID, appIDSize)
	if err != nil {
		return err
	}
	return f.with(cmd, cfg, func(ctx context.Context, c *client.Client) error {
		key, err := c.EnvPublicKey(ctx, appID)
		if err != nil {
			return err
		}
		if err := checkRootKey(rootKeys, key.K256Root); err != nil {
			return err
		}
		return f.giveEnvKey(env, key)
	})
}

func (f *appFlags) giveEnvKey(env Environment, k *client.EnvKey) error {
	answer := &kmsv1.GetAppEnvEncryptPubKeyResponse{PublicKey: k.PublicKey, Signature: k.Signature, SignatureV1: k.SignatureV1}
	if !k.SignedAt.IsZero() {
		answer.Timestamp = uint64(k.SignedAt.Unix())
	}
	text, err := prpcJSON(kmsService(), "", answer)
	if err != nil {
		return err
	}
	if f.json {
		return env.write(text)
	}
	p := env.printer()
	p.Line("Public key    %x", k.PublicKey)
	p.Line("Signed by     %x", k.K256Root)
	if !k.SignedAt.IsZero() {
		p.Line("Signed at     %s", k.SignedAt.Format("2006-01-02T15:04:05Z"))
	}
	if err := p.Err(); err != nil || f.out == "" {
		return err
	}
	return f.writeFiles(env, secretFile{"env-pubkey.json", text})
}
