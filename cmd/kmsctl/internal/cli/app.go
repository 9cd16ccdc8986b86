package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"teekms/client"
	"teekms/cmd/internal/argfile"
	"teekms/cmd/kmsctl/internal/expect"
	"teekms/cmd/kmsctl/internal/status"
	"teekms/internal/prpc/call"
)

// The attesters of a workload.
const (
	providerAuto       = "auto"
	providerGuestAgent = "guest-agent"
	providerConfigfs   = "configfs"
	providerSimulator  = "simulator"
)

// appFlags are the flags that the commands of kmsctl app share.
type appFlags struct {
	kms, caCert, serverName        string
	appID, composeHash, instanceID string
	vmConfig                       string
	provider, simulatorDir         string
	tempCA                         bool
	trust                          trustFlags
	allowTCB                       []string
	expect                         expectFlags
	anyMeasurement                 bool
	out                            string
	timeout                        time.Duration
	json                           bool
}

func newApp(env Environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "app",
		Short: "Be an attested workload: get its keys and certificates from a KMS",
		Long: `Do what an application does in a trust domain: make Evidence, appraise the KMS,
and get the application's keys or a certificate from it.

With --ca-cert the KMS is identified by that root certificate, whatever its host
name is, and its Evidence must verify where it has some. Without it, the
Evidence identifies the KMS, and --expect-mrtd or --expect-file must say which
is meant.`,
		Example: `  kmsctl app key --help
  kmsctl app cert --help`,
		SuggestionsMinimumDistance: 2,
		Args:                       cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return unknownCommand(cmd, args[0])
		},
	}
	cmd.AddCommand(newAppKey(env), newAppCert(env), newAppEnv(env))
	return cmd
}

// registerKMS registers the flags that say which KMS is meant, and as whom.
func (f *appFlags) registerKMS(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringVar(&f.kms, "kms", "", "`URL` of the KMS (required)")
	fs.StringVar(&f.caCert, "ca-cert", "", "`file` of the root CA certificate that identifies the KMS")
	fs.StringVar(&f.serverName, "server-name", "", "with --ca-cert: `name` or address that the KMS's certificate must have")
	fs.StringVar(&f.appID, "app-id", "", "id of the application, 40 `hex` digits (required)")
	complete(cmd, "kms", valueOf("https://"))
	complete(cmd, "ca-cert", file("crt", "pem"))
	complete(cmd, "server-name", valueOf())
	complete(cmd, "app-id", valueOf())
}

// registerWorkload registers the flags that say who attests.
func (f *appFlags) registerWorkload(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.composeHash, "compose-hash", "", "hash of the application's compose file, 64 `hex` digits (required)")
	fs.StringVar(&f.instanceID, "instance-id", "", "id of the instance, 40 `hex` digits")
	fs.StringVar(&f.vmConfig, "vm-config", "", "`JSON` that describes the virtual machine (default: that of the Evidence)")
	fs.StringVar(&f.provider, "provider", "", "`name` of what makes the Evidence: auto, guest-agent, configfs or simulator (default: auto, or simulator with --simulator-dir)")
	fs.BoolVar(&f.tempCA, "temp-ca", false, "have the client certificate issued by the KMS's temporary CA, as other dstack KMSs want it")
	complete(cmd, "compose-hash", valueOf())
	complete(cmd, "instance-id", valueOf())
	complete(cmd, "vm-config", valueOf())
	complete(cmd, "provider", valueOf(providerAuto, providerGuestAgent, providerConfigfs, providerSimulator))
}

// registerTrust registers the flags that say how the KMS is judged, and where
// results go.
func (f *appFlags) registerTrust(cmd *cobra.Command, outUsage string) {
	fs := cmd.Flags()
	fs.StringVar(&f.simulatorDir, "simulator-dir", "", "`directory` of a software trust domain, which also gives trust root and collateral")
	f.trust.register(cmd)
	fs.StringArrayVar(&f.allowTCB, "allow-tcb-status", nil, "accept this TCB `status` of the KMS besides UpToDate; may be repeated")
	f.expect.register(cmd)
	fs.BoolVar(&f.anyMeasurement, "insecure-accept-any-measurement", false, "without --ca-cert: take any trust domain for the KMS")
	fs.StringVar(&f.out, "out", "", outUsage)
	fs.DurationVar(&f.timeout, "timeout", time.Minute, "give up after this `duration`")
	fs.BoolVar(&f.json, "json", false, "print the answer of the KMS as JSON instead of writing files")
	complete(cmd, "simulator-dir", directory())
	complete(cmd, "allow-tcb-status", valueOf(tcbStatuses()...))
	complete(cmd, "out", directory())
	complete(cmd, "timeout", valueOf("30s", "1m", "2m"))
}

// with dials the KMS and calls f with it. Whatever goes wrong gets its exit
// code.
func (f *appFlags) with(cmd *cobra.Command, cfg client.Config, call func(context.Context, *client.Client) error) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	c, err := client.Dial(ctx, cfg)
	if err == nil {
		defer c.Close()
		err = call(ctx, c)
	}
	if err != nil && cmd.Context().Err() != nil {
		return errors.New("interrupted")
	}
	return withAppCode(gaveUp(ctx, f.timeout, err))
}

// withAppCode gives an error of the client its exit code.
func withAppCode(err error) error {
	code := 0
	if _, ok := errors.AsType[*client.EvidenceError](err); ok {
		code = status.NotVerified
	}
	if refused, ok := errors.AsType[*client.ServerError](err); ok && evidenceRefused(refused.Message) {
		code = status.NotVerified
	}
	if errors.Is(err, client.ErrNoCollateral) {
		code = status.NoCollateral
	}
	if _, ok := errors.AsType[*client.MismatchError](err); ok {
		code = status.Unexpected
	}
	if _, ok := errors.AsType[*client.DeniedError](err); ok {
		code = status.Denied
	}
	if code == 0 {
		return err
	}
	return status.WithCode(code, err)
}

// evidenceRefused says whether a KMS says that the Evidence of this workload does
// not verify.
func evidenceRefused(message string) bool {
	return strings.Contains(message, "invalid quote: ") || strings.Contains(message, "Quote verification failed")
}

// config makes the configuration of the client, without attester. It returns
// what is expected besides what the client compares.
func (f *appFlags) config(cmd *cobra.Command, env Environment) (cfg client.Config, rootKeys expect.Set, err error) {
	cfg = client.Config{
		URL: f.kms, ServerName: f.serverName, Timeout: f.timeout, TempCA: f.tempCA, Now: env.Now,
		Trust: f.trust.client(f.simulatorDir),
	}
	switch {
	case f.kms == "":
		return cfg, nil, usagef(cmd, "--kms is required")
	case f.timeout <= 0:
		return cfg, nil, usagef(cmd, "--timeout must be positive")
	case !strings.HasPrefix(f.kms, "https://"):
		return cfg, nil, usagef(cmd, "--kms: a KMS that gives keys is reached by https://")
	case f.serverName != "" && f.caCert == "":
		return cfg, nil, usagef(cmd, "--server-name goes with --ca-cert")
	}
	if _, err := call.ParseBase(f.kms); err != nil {
		return cfg, nil, usagef(cmd, "--kms: %w", err)
	}
	if err := f.trust.validate(cmd); err != nil {
		return cfg, nil, err
	}
	if cfg.Policy.AcceptTCB, err = acceptTCB(cmd, f.allowTCB); err != nil {
		return cfg, nil, err
	}
	set, err := f.expect.set(cmd)
	if err != nil {
		return cfg, nil, err
	}
	ofEvidence, rootKeys := set.Without(rootKeyName)
	if f.caCert == "" && !f.anyMeasurement && !ofEvidence.Identifies() {
		return cfg, nil, usagef(cmd, "give --ca-cert, or say with --expect-mrtd or --expect-file which KMS is meant, or --insecure-accept-any-measurement")
	}
	cfg.Policy.AnyMeasurement = f.anyMeasurement
	if len(ofEvidence) > 0 {
		cfg.Policy.Check = func(facts *client.Facts) error { return mismatches(ofEvidence, factValues(facts)) }
	}
	if f.caCert != "" {
		if cfg.CACert, err = argfile.Read(cmd.Context(), f.caCert, maxRootFile); err != nil {
			return cfg, nil, fmt.Errorf("--ca-cert: %w", err)
		}
	}
	return cfg, rootKeys, nil
}

// rootKeyName is the expectation that is compared with a signature in an
// answer: no certificate names the root secp256k1 key.
const rootKeyName = "k256_pubkey"

// checkRootKey compares the key that signed an answer.
func checkRootKey(set expect.Set, key []byte) error {
	if err := mismatches(set, map[string][]string{rootKeyName: {hex.EncodeToString(key)}}); err != nil {
		return &client.MismatchError{Err: err}
	}
	return nil
}

// factValues are the facts that can be expected, by name.
func factValues(f *client.Facts) map[string][]string {
	values := map[string][]string{"domain": f.Names}
	for name, v := range map[string][]byte{
		"mrtd": f.MRTD[:], "rtmr0": f.RTMR[0][:], "rtmr1": f.RTMR[1][:], "rtmr2": f.RTMR[2][:], "rtmr3": f.RTMR[3][:],
		"mr_config_id": f.MRConfigID[:], "mr_owner": f.MROwner[:], "mr_owner_config": f.MROwnerConfig[:], "mr_seam": f.MRSeam[:],
		"device_id": f.DeviceID[:], "fmspc": f.FMSPC,
		"app_id": f.AppID, "compose_hash": f.ComposeHash, "instance_id": f.InstanceID, "os_image_hash": f.OSImageHash,
		"mr_system": f.MRSystem[:], "mr_aggregated": f.MRAggregated[:],
		"ca_pubkey": f.CAPublicKey, "trust_root_sha256": f.TrustRoot[:],
	} {
		if len(v) > 0 {
			values[name] = []string{hex.EncodeToString(v)}
		}
	}
	return values
}

func mismatches(set expect.Set, values map[string][]string) error {
	var errs []error
	for _, m := range set.Compare(values) {
		errs = append(errs, errors.New(m.String()))
	}
	return errors.Join(errs...)
}

// workload completes the configuration with who attests. Evidence of hardware
// says itself who the workload is, so there the flags are what it must say.
func (f *appFlags) workload(cmd *cobra.Command, cfg *client.Config, booting bool) error {
	var id client.Identity
	for _, v := range []struct {
		flag, value string
		dst         *[]byte
		size        int
		required    bool
	}{
		{"app-id", f.appID, &id.AppID, appIDSize, true},
		{"compose-hash", f.composeHash, &id.ComposeHash, 32, true},
		{"instance-id", f.instanceID, &id.InstanceID, 20, false},
	} {
		if v.value == "" && !v.required {
			continue
		}
		var err error
		if *v.dst, err = hexFlag(cmd, v.flag, v.value, v.size); err != nil {
			return err
		}
	}
	provider := f.provider
	if provider == "" && f.simulatorDir != "" {
		provider = providerSimulator
	}
	cfg.Self = id
	var err error
	switch provider {
	case "", providerAuto:
		cfg.Attester, err = client.Auto()
	case providerGuestAgent:
		cfg.Attester, err = client.GuestAgent("")
	case providerConfigfs:
		cfg.Attester = client.ConfigFS()
	case providerSimulator:
		if f.simulatorDir == "" {
			return usagef(cmd, "--provider simulator needs --simulator-dir")
		}
		cfg.Attester, err = client.Simulator(client.SimulatorConfig{
			Dir: f.simulatorDir, AppID: id.AppID, ComposeHash: id.ComposeHash, InstanceID: id.InstanceID, Booting: booting,
		})
	default:
		return usagef(cmd, "--provider: %q is not auto, guest-agent, configfs or simulator", provider)
	}
	return err
}

const appIDSize = 20

// hexFlag reads a required value of so many bytes.
func hexFlag(cmd *cobra.Command, flag, value string, size int) ([]byte, error) {
	if value == "" {
		return nil, usagef(cmd, "--%s is required", flag)
	}
	b, err := hex.DecodeString(trim0x(value))
	if err != nil || len(b) != size {
		return nil, usagef(cmd, "--%s: want %d hex digits", flag, 2*size)
	}
	return b, nil
}
