package config

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"teekms/internal/keys"
)

// Validate checks the values and how they fit together. An [*Error] lists all
// problems. [Load] has done this.
func (c *Config) Validate() error {
	if problems := c.problems(); len(problems) > 0 {
		return &Error{Problems: problems}
	}
	return nil
}

// checker collects problems, each with the place and the path of its key.
type checker struct {
	origins  origins
	problems []string
}

func (ch *checker) check(ok bool, path, format string, args ...any) {
	if !ok {
		ch.problems = append(ch.problems, ch.origins.place(path)+": "+fmt.Sprintf(format, args...))
	}
}

func (c *Config) problems() []string {
	ch := &checker{origins: c.origins}
	ch.address("rpc.address", c.RPC.Address)
	ch.pkcs12(c.RPC)
	ch.check(c.Core.CertDir != "", "core.cert_dir", "a directory is required")
	ch.url("core.pccs_url", c.Core.PCCSURL)
	ch.oneOf("core.kms_key_release", c.Core.KMSKeyRelease, ReleasePublic, ReleaseAdmin, ReleaseOff)
	ch.check(c.Core.KMSKeyRelease != ReleaseAdmin || c.Core.Admin.Enabled && c.Core.Admin.WithTLS(), "core.kms_key_release",
		`"admin" needs core.admin.enabled = true and TLS there (core.admin.tls = true), which replicas prove themselves in`)
	ch.limits(c.Core.Limits)
	ch.attestation(c.Core.Attestation)
	both := c.Core.PCCSURL != "" && c.Core.Attestation.URLs.PCCS != ""
	ch.check(!both || c.Core.PCCSURL == c.Core.Attestation.URLs.PCCS, "core.pccs_url",
		"differs from core.attestation.urls.pccs, which means the same; set one of the two")
	ch.image(c.Core.Image)
	ch.authAPI(c.Core.AuthAPI)
	ch.onboard(c.Core.Onboard)
	ch.seal(c.Core.Seal)
	ch.database(c.Core.Database, c.Core.BootstrapServer.Enabled)
	ch.bootstrapServer(c.Core.BootstrapServer)
	ch.admin(c.Core.Admin)
	ch.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	ch.oneOf("log.format", c.Log.Format, "console", "json")
	return ch.problems
}

func (ch *checker) limits(l Limits) {
	const mib = 1 << 20
	for _, n := range []struct {
		path     string
		value    int64
		min, max int64
	}{
		{"core.limits.body_bytes", l.BodyBytes, 1 << 10, 64 * mib},
		{"core.limits.header_bytes", l.HeaderBytes, 1 << 10, mib},
		{"core.limits.connections", l.Connections, 1, 1 << 20},
		{"core.limits.concurrency", l.Concurrency, 1, 1 << 20},
		{"core.limits.streams", l.Streams, 1, 1 << 16},
		{"core.limits.appraisals_per_second", l.AppraisalsPerSecond, 1, 1 << 20},
		{"core.limits.appraisals_burst", l.AppraisalsBurst, 1, 1 << 20},
	} {
		ch.check(n.min <= n.value && n.value <= n.max, n.path, "must be from %d to %d", n.min, n.max)
	}
	for _, d := range []struct {
		path  string
		value time.Duration
	}{
		{"core.limits.header_timeout", l.HeaderTimeout},
		{"core.limits.read_timeout", l.ReadTimeout},
		{"core.limits.write_timeout", l.WriteTimeout},
		{"core.limits.idle_timeout", l.IdleTimeout},
		{"core.limits.drain_timeout", l.DrainTimeout},
	} {
		ch.duration(d.path, d.value)
	}
}

func (ch *checker) attestation(a Attestation) {
	ch.oneOf("core.attestation.provider", a.Provider, ProviderAuto, ProviderGuestAgent, ProviderConfigfs, ProviderSimulator)
	if a.AgentAddress != "" {
		path, isUnix := strings.CutPrefix(a.AgentAddress, "unix:")
		isHTTP := strings.HasPrefix(a.AgentAddress, "http://") && isHTTPURL(a.AgentAddress)
		ch.check(isUnix && path != "" || isHTTP, "core.attestation.agent_address",
			"must be unix:/path or http://host:port")
	}
	ch.duration("core.attestation.timeout", a.Timeout)
	ch.url("core.attestation.urls.pccs", a.URLs.PCCS)
	for _, root := range []struct{ path, value string }{
		{"core.attestation.root_ca.tdx", a.RootCA.TDX},
		{"core.attestation.root_ca.gcp_tpm", a.RootCA.GCPTPM},
		{"core.attestation.root_ca.aws_nitro_enclave", a.RootCA.AWSNitroEnclave},
		{"core.attestation.root_ca.aws_nitro_tpm", a.RootCA.AWSNitroTPM},
		{"core.attestation.root_ca.sev_snp_milan", a.RootCA.SEVSNPMilan},
		{"core.attestation.root_ca.sev_snp_genoa", a.RootCA.SEVSNPGenoa},
		{"core.attestation.root_ca.sev_snp_turin", a.RootCA.SEVSNPTurin},
	} {
		ch.check(root.value == "" || a.InsecureAllowExternalTrustAnchors, root.path,
			"needs core.attestation.insecure_allow_external_trust_anchors = true")
	}
	ch.check(a.Provider != ProviderSimulator || a.Simulator.Dir != "", "core.attestation.provider",
		`"simulator" needs core.attestation.simulator.dir`)
	ch.simulator(a.Simulator)
}

func (ch *checker) simulator(s Simulator) {
	for _, m := range []struct {
		path, value string
		size        int
	}{
		{"core.attestation.simulator.mrtd", s.MRTD, 48},
		{"core.attestation.simulator.app_id", s.AppID, 20},
		{"core.attestation.simulator.instance_id", s.InstanceID, 20},
		{"core.attestation.simulator.compose_hash", s.ComposeHash, 32},
		{"core.attestation.simulator.os_image_hash", s.OSImageHash, 32},
	} {
		b, err := hex.DecodeString(m.value)
		ch.check(m.value == "" || err == nil && len(b) == m.size, m.path, "must be %d hex digits", 2*m.size)
	}
}

func (ch *checker) image(i Image) {
	ch.check(!i.Verify || i.DownloadURL == "" || i.CacheDir != "", "core.image.cache_dir",
		"a directory is required when core.image.verify is true and core.image.download_url is set")
	ch.url("core.image.download_url", i.DownloadURL)
	ch.duration("core.image.download_timeout", i.DownloadTimeout)
	ch.check(i.MaxDownload >= 1<<20 && i.MaxDownload <= 1<<40, "core.image.max_download", "must be from %d to %d", 1<<20, int64(1)<<40)
}

func (ch *checker) authAPI(a AuthAPI) {
	ch.oneOf("core.auth_api.type", a.Type, AuthDev, AuthWebhook, AuthRegistry, AuthEthereum)
	ch.check(a.Type != AuthWebhook || a.Webhook.URL != "", "core.auth_api.webhook.url",
		`required when core.auth_api.type is "webhook"`)
	ch.url("core.auth_api.webhook.url", a.Webhook.URL)
	ch.duration("core.auth_api.webhook.timeout", a.Webhook.Timeout)
	ch.token("core.auth_api.webhook.token", a.Webhook.Token)
	ch.check(a.Webhook.CAFile == "" || !strings.HasPrefix(a.Webhook.URL, "http://"), "core.auth_api.webhook.ca_file",
		"has no meaning for an http URL")
	ch.ethereum(a.Ethereum, a.Type == AuthEthereum)
}

func (ch *checker) ethereum(e AuthEthereumSection, chosen bool) {
	const path, when = "core.auth_api.ethereum.", `required when core.auth_api.type is "ethereum"`
	ch.check(!chosen || e.RPCURL.Len() > 0, path+"rpc_url", when)
	ch.url(path+"rpc_url", string(e.RPCURL.Bytes()))
	ch.check(!chosen || e.KMSContractAddress != "", path+"kms_contract_address", when)
	digits, prefixed := strings.CutPrefix(e.KMSContractAddress, "0x")
	address, err := hex.DecodeString(digits)
	ch.check(e.KMSContractAddress == "" || prefixed && err == nil && len(address) == 20, path+"kms_contract_address",
		"must be 0x and 40 hex digits")
	ch.check(!chosen || e.ChainID > 0, path+"chain_id", when+", and positive")
	ch.oneOf(path+"finality", e.Finality, FinalityLatest, FinalitySafe, FinalityFinalized)
	ch.check(e.Confirmations >= 0 && e.Confirmations <= 1<<20, path+"confirmations", "must be from 0 to %d", 1<<20)
	ch.check(e.Confirmations == 0 || e.Finality == FinalityLatest, path+"confirmations",
		`counts back from the latest block: set core.auth_api.ethereum.finality = "latest"`)
	ch.check(e.MaxBlockAge >= 0 && e.MaxBlockAge <= 24*time.Hour, path+"max_block_age", "must be from 0s, any age, to 24h")
	ch.duration(path+"timeout", e.Timeout)
	ch.check(e.CAFile == "" || !bytes.HasPrefix(e.RPCURL.Bytes(), []byte("http://")), path+"ca_file", "has no meaning for an http URL")
}

func (ch *checker) onboard(o Onboard) {
	ch.address("core.onboard.address", o.Address)
	if o.AutoBootstrapDomain != "" {
		if err := keys.ValidateDomain(o.AutoBootstrapDomain); err != nil {
			ch.check(false, "core.onboard.auto_bootstrap_domain", "%s", strings.TrimPrefix(err.Error(), "domain: "))
		}
	}
	ch.token("core.onboard.setup_token", o.SetupToken)
}

func (ch *checker) admin(a Admin) {
	ch.address("core.admin.address", a.Address)
	ch.token("core.admin.auth_token", a.AuthToken)
	credentials := a.AuthToken.Len() > 0 || a.HtpasswdFile != ""
	ch.check(!a.Enabled || credentials || a.InsecureNoAuth, "core.admin.enabled",
		"needs core.admin.auth_token, auth_token_file or htpasswd_file")
	ch.check(!a.TLS || !a.InsecurePlaintext, "core.admin.insecure_plaintext", "contradicts core.admin.tls = true")
	ch.check(!credentials || !a.InsecureNoAuth, "core.admin.insecure_no_auth",
		"contradicts the credentials that are set beside it")
}

// token checks what can travel as "Authorization: Bearer TOKEN".
func (ch *checker) token(path string, s keys.Secret) {
	odd := bytes.ContainsFunc(s.Bytes(), func(r rune) bool { return r <= ' ' || r > '~' })
	ch.check(!odd, path, "must be printable ASCII without spaces")
}

func (ch *checker) oneOf(path, value string, allowed ...string) {
	ch.check(slices.Contains(allowed, value), path, "must be one of %s", strings.Join(allowed, ", "))
}

func (ch *checker) duration(path string, d time.Duration) {
	ch.check(d > 0 && d <= 24*time.Hour, path, "must be more than 0s and at most 24h")
}

func (ch *checker) address(path, address string) {
	_, err := netip.ParseAddr(address)
	ch.check(err == nil || address == "localhost", path, "must be an IP address or localhost")
}

// url takes an empty value for "not set"; it never quotes the value, which may
// hold a password.
func (ch *checker) url(path, value string) {
	ch.check(value == "" || isHTTPURL(value), path, "must be an absolute http or https URL")
}

func isHTTPURL(value string) bool {
	// {OS_IMAGE_HASH} is replaced before use and is no part of a host.
	u, err := url.Parse(strings.ReplaceAll(value, "{OS_IMAGE_HASH}", "0"))
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != ""
}
