package config

import (
	"net/netip"
	"time"

	"teekms/internal/keys"
)

// Ignored stands for a key that an existing dstack configuration may hold and
// that means nothing to this KMS. Any value is accepted, a table with any keys
// included; nothing of it is kept. Config.Ineffective names those that were set.
type Ignored struct{}

// Config is the whole of kms.toml. The tag kms:"idle" marks a key, or a section,
// that is checked like every other and has no effect.
type Config struct {
	// Default is a section of the peer that configures its web framework.
	Default WebFramework `toml:"default"`
	// RPC is the listener of the KMS service.
	RPC RPC `toml:"rpc"`
	// Core is everything about keys, Evidence and authorization.
	Core Core `toml:"core"`
	// Log says how much is logged and in which form.
	Log Log `toml:"log"`

	origins origins
}

// WebFramework are settings of the web framework of an existing dstack KMS.
// They may stand in every section that describes a listener.
type WebFramework struct {
	Workers     Ignored `toml:"workers"`
	MaxBlocking Ignored `toml:"max_blocking"`
	Ident       Ignored `toml:"ident"`
	TempDir     Ignored `toml:"temp_dir"`
	KeepAlive   Ignored `toml:"keep_alive"`
	LogLevel    Ignored `toml:"log_level"`
	Limits      Ignored `toml:"limits"`
}

// RPC is the listener of the KMS service: TLS 1.3 with rpc.crt of the key
// directory, whether a [rpc.tls] section is there or not.
type RPC struct {
	// Address is an IP address or localhost.
	Address string `toml:"address"`
	// Port is a TCP port; 0 lets the kernel choose.
	Port uint16 `toml:"port"`
	// InsecurePlaintext serves h2c and HTTP/1.1 without TLS.
	InsecurePlaintext bool `toml:"insecure_plaintext"`
	// TLS says what is asked of clients.
	TLS TLS `toml:"tls"`

	WebFramework
}

// TLS is [rpc.tls].
type TLS struct {
	// Key and Certs name files of the peer; the key directory's rpc.key and
	// rpc.crt are served whatever they say.
	Key   string `toml:"key" kms:"idle"`
	Certs string `toml:"certs" kms:"idle"`
	// PKCS12File is a PKCS#12 with a certificate and its key, which is served to
	// clients that do not ask for the domain of the KMS; empty is none.
	PKCS12File string `toml:"pkcs12_file"`
	// PKCS12PasswordFile is a file that holds its password, PKCS12Password what
	// stands there; without one the password is empty.
	PKCS12PasswordFile string `toml:"pkcs12_password_file"`
	PKCS12Password     keys.Secret
	// Mutual is about client certificates.
	Mutual Mutual `toml:"mutual"`
}

// Mutual is [rpc.tls.mutual].
type Mutual struct {
	// CACerts has no effect: clients are known by Evidence, not by a CA.
	CACerts string `toml:"ca_certs" kms:"idle"`
	// Mandatory refuses clients that show no certificate.
	Mandatory bool `toml:"mandatory"`
}

// Core is [core].
type Core struct {
	// CertDir is the key directory.
	CertDir string `toml:"cert_dir"`
	// SubjectPostfix is unused by the peer too.
	SubjectPostfix Ignored `toml:"subject_postfix"`
	// AdminTokenHash is the SHA-256 of the older peer's admin token, in hex.
	AdminTokenHash Ignored `toml:"admin_token_hash"`
	// PCCSURL is where collateral is fetched; Attestation.URLs.PCCS is its
	// newer name. Use [Core.PCCS].
	PCCSURL string `toml:"pccs_url"`
	// SiteName is the name under which this KMS shows itself on its page.
	SiteName string `toml:"site_name"`
	// EnforceSelfAuthorization asks core.auth_api whether this KMS itself may
	// hold root keys.
	EnforceSelfAuthorization bool `toml:"enforce_self_authorization"`
	// AttestRPCCert puts Evidence into rpc.crt.
	AttestRPCCert bool `toml:"attest_rpc_cert"`
	// KMSKeyRelease says where replicas can get the root keys: one of the
	// Release constants.
	KMSKeyRelease string `toml:"kms_key_release"`
	// SEVSNPKeyRelease and AWSNitroTPMKeyRelease are about platforms that this
	// KMS does not release keys to.
	SEVSNPKeyRelease      Ignored `toml:"sev_snp_key_release"`
	AWSNitroTPMKeyRelease Ignored `toml:"aws_nitro_tpm_key_release"`

	Limits          Limits          `toml:"limits"`
	Attestation     Attestation     `toml:"attestation"`
	Image           Image           `toml:"image"`
	AuthAPI         AuthAPI         `toml:"auth_api"`
	Onboard         Onboard         `toml:"onboard"`
	Seal            Seal            `toml:"seal"`
	Database        Database        `toml:"database"`
	BootstrapServer BootstrapServer `toml:"bootstrap_server"`
	Metrics         Metrics         `toml:"metrics"`
	Admin           Admin           `toml:"admin"`
}

// The values of core.kms_key_release.
const (
	// ReleasePublic serves KMS.GetKmsKey on the listener of the KMS.
	ReleasePublic = "public"
	// ReleaseAdmin serves it on the listener of administrators.
	ReleaseAdmin = "admin"
	// ReleaseOff serves it nowhere.
	ReleaseOff = "off"
)

// Limits is [core.limits]: what one listener bears. All are positive.
type Limits struct {
	// BodyBytes bounds one request body. The Onboard service takes 64 KiB at
	// most, whatever is set here.
	BodyBytes int64 `toml:"body_bytes"`
	// HeaderBytes bounds the header of one request.
	HeaderBytes int64 `toml:"header_bytes"`
	// HeaderTimeout bounds the TLS handshake and the reading of a header.
	HeaderTimeout time.Duration `toml:"header_timeout"`
	// ReadTimeout bounds the reading of a whole request.
	ReadTimeout time.Duration `toml:"read_timeout"`
	// WriteTimeout bounds a request from its header to the end of its reply.
	WriteTimeout time.Duration `toml:"write_timeout"`
	// IdleTimeout ends a connection that carries no request.
	IdleTimeout time.Duration `toml:"idle_timeout"`
	// DrainTimeout is how long calls in flight may finish on SIGTERM.
	DrainTimeout time.Duration `toml:"drain_timeout"`
	// Connections bounds open connections, Concurrency requests in work,
	// Streams those of one HTTP/2 connection.
	Connections int64 `toml:"connections"`
	Concurrency int64 `toml:"concurrency"`
	Streams     int64 `toml:"streams"`
	// AppraisalsPerSecond is how many pieces of Evidence one address may have
	// appraised on average, AppraisalsBurst how many at once.
	AppraisalsPerSecond int64 `toml:"appraisals_per_second"`
	AppraisalsBurst     int64 `toml:"appraisals_burst"`
}

// The values of core.attestation.provider.
const (
	ProviderAuto       = "auto"
	ProviderGuestAgent = "guest-agent"
	ProviderConfigfs   = "configfs"
	ProviderSimulator  = "simulator"
)

// Attestation is [core.attestation]: who makes Evidence here, and what Evidence
// of others is checked against.
type Attestation struct {
	// Provider is one of the Provider constants.
	Provider string `toml:"provider"`
	// AgentAddress is the guest agent's, unix:/path or http://host:port; empty
	// is the usual sockets. DSTACK_AGENT_ADDRESS sets it too.
	AgentAddress string `toml:"agent_address"`
	// Timeout bounds one quote, and one fetch of collateral.
	Timeout time.Duration `toml:"timeout"`
	// InsecureAllowExternalTrustAnchors lets RootCA name roots other than the
	// vendors'.
	InsecureAllowExternalTrustAnchors bool `toml:"insecure_allow_external_trust_anchors"`

	URLs      AttestationURLs `toml:"urls"`
	RootCA    RootCA          `toml:"root_ca"`
	Simulator Simulator       `toml:"simulator"`
}

// AttestationURLs is [core.attestation.urls].
type AttestationURLs struct {
	// PCCS is where TDX collateral is fetched; empty is Intel's own service,
	// or the simulator's directory.
	PCCS string `toml:"pccs"`
	// AMDKDS serves a platform that this KMS does not appraise.
	AMDKDS Ignored `toml:"amd_kds"`
}

// RootCA is [core.attestation.root_ca]: files of trust anchors, PEM or DER.
type RootCA struct {
	// TDX replaces Intel's SGX root.
	TDX string `toml:"tdx"`
	// The others are of platforms that this KMS does not appraise.
	GCPTPM          string `toml:"gcp_tpm" kms:"idle"`
	AWSNitroEnclave string `toml:"aws_nitro_enclave" kms:"idle"`
	AWSNitroTPM     string `toml:"aws_nitro_tpm" kms:"idle"`
	SEVSNPMilan     string `toml:"sev_snp_milan" kms:"idle"`
	SEVSNPGenoa     string `toml:"sev_snp_genoa" kms:"idle"`
	SEVSNPTurin     string `toml:"sev_snp_turin" kms:"idle"`
}

// Simulator is [core.attestation.simulator], a trust domain in software. The
// measurements are hex; empty is the simulator's own.
type Simulator struct {
	// Dir holds its PKI and its collateral; made when missing.
	Dir string `toml:"dir"`
	// Image names the operating system image; RTMR0 to RTMR2, and MRTD unless
	// given (48 bytes), follow from it.
	Image string `toml:"image"`
	MRTD  string `toml:"mrtd"`
	// AppID and InstanceID (20 bytes), ComposeHash and OSImageHash (32 bytes)
	// are in its event log, from which RTMR3 follows.
	AppID       string `toml:"app_id"`
	InstanceID  string `toml:"instance_id"`
	ComposeHash string `toml:"compose_hash"`
	OSImageHash string `toml:"os_image_hash"`
}

// Image is [core.image]: verification of OS images.
type Image struct {
	// Verify compares what was measured with what the image must measure as.
	Verify bool `toml:"verify"`
	// AllowlistFile lists images with their measurements; empty is none.
	AllowlistFile string `toml:"allowlist_file"`
	// CacheDir keeps images that were downloaded.
	CacheDir string `toml:"cache_dir"`
	// DownloadURL is where images are fetched, {OS_IMAGE_HASH} standing for
	// the hash; empty downloads none.
	DownloadURL string `toml:"download_url"`
	// DownloadTimeout and MaxDownload (bytes) bound one download.
	DownloadTimeout time.Duration `toml:"download_timeout"`
	MaxDownload     int64         `toml:"max_download"`
}

// The values of core.auth_api.type.
const (
	AuthDev      = "dev"
	AuthWebhook  = "webhook"
	AuthRegistry = "registry"
	AuthEthereum = "ethereum"
)

// AuthAPI is [core.auth_api]: who decides which workload may have keys.
type AuthAPI struct {
	// Type is one of the Auth constants.
	Type string `toml:"type"`
	// Webhook is for type webhook, Dev for type dev, Ethereum for type
	// ethereum.
	Webhook  AuthWebhookSection  `toml:"webhook"`
	Dev      AuthDevSection      `toml:"dev"`
	Ethereum AuthEthereumSection `toml:"ethereum"`
}

// AuthWebhookSection is [core.auth_api.webhook].
type AuthWebhookSection struct {
	// URL is the base of the service that decides.
	URL string `toml:"url"`
	// Timeout bounds one question.
	Timeout time.Duration `toml:"timeout"`
	// Token is presented as a bearer token; empty presents none. TokenFile is
	// a file that holds it.
	Token     keys.Secret `toml:"token"`
	TokenFile string      `toml:"token_file"`
	// CAFile holds the roots (PEM) that the service's certificate is checked
	// against, in place of the system's.
	CAFile string `toml:"ca_file"`
}

// The values of core.auth_api.ethereum.finality.
const (
	FinalityLatest    = "latest"
	FinalitySafe      = "safe"
	FinalityFinalized = "finalized"
)

// AuthEthereumSection is [core.auth_api.ethereum].
type AuthEthereumSection struct {
	// RPCURL is an Ethereum node's JSON-RPC; it may hold a password.
	RPCURL keys.Secret `toml:"rpc_url"`
	// KMSContractAddress is the contract that decides, 0x and 40 hex digits.
	KMSContractAddress string `toml:"kms_contract_address"`
	// ChainID is what the node must say its chain is.
	ChainID int64 `toml:"chain_id"`
	// Finality is the block that is read: latest, safe or finalized.
	Finality string `toml:"finality"`
	// Confirmations is how many blocks before the latest one is read.
	Confirmations int64 `toml:"confirmations"`
	// MaxBlockAge is how old that block may be; zero is any age.
	MaxBlockAge time.Duration `toml:"max_block_age"`
	// Timeout bounds one question.
	Timeout time.Duration `toml:"timeout"`
	// CAFile holds the roots (PEM) that the node's certificate is checked
	// against, in place of the system's.
	CAFile string `toml:"ca_file"`
}

// AuthDevSection is [core.auth_api.dev].
type AuthDevSection struct {
	GatewayAppID string `toml:"gateway_app_id"`
}

// Onboard is [core.onboard]: how an empty key directory gets its keys.
type Onboard struct {
	// Enabled says that it may; without it an empty directory is an error.
	Enabled bool `toml:"enabled"`
	// AutoBootstrapDomain bootstraps for this domain at start, without asking.
	AutoBootstrapDomain string `toml:"auto_bootstrap_domain"`
	// QuoteEnabled proves with a quote where the keys were made.
	QuoteEnabled bool `toml:"quote_enabled"`
	// Address and Port are the listener of the Onboard service and its page.
	Address string `toml:"address"`
	Port    uint16 `toml:"port"`
	// SetupToken is asked of callers; empty is off, [SetupTokenAuto] is made
	// at start and printed once. SetupTokenFile is a file that holds it.
	SetupToken     keys.Secret `toml:"setup_token"`
	SetupTokenFile string      `toml:"setup_token_file"`

	WebFramework
}

// SetupTokenIsAuto tells whether the token is to be made at start.
func (o Onboard) SetupTokenIsAuto() bool {
	return o.SetupToken.Equal(keys.NewSecret([]byte(SetupTokenAuto)))
}

// SetupTokenAuto is the value of core.onboard.setup_token, and of
// core.bootstrap_server.token, that asks for a token made at start.
const SetupTokenAuto = "auto"

// The values of core.database.type.
const (
	DatabaseSQLite          = "sqlite"
	DatabaseSQLiteEncrypted = "sqlite-enc"
	DatabasePostgreSQL      = "postgresql"
	DatabaseMySQL           = "mysql"
	DatabaseRedisFindex     = "redis-findex"
)

// Database is [core.database]: where the audit log and the registry are kept.
type Database struct {
	// Type is one of the Database constants.
	Type string `toml:"type"`
	// Path is the directory of an SQLite database; empty is a default.
	Path string `toml:"path"`
	// URL reaches a server. URLFile is a file that holds it.
	URL     keys.Secret `toml:"url"`
	URLFile string      `toml:"url_file"`
	// MasterPasswordFile is a file that holds MasterPassword, which encrypts what
	// is in Redis, and an encrypted SQLite database where it is set.
	MasterPasswordFile string `toml:"master_password_file"`
	MasterPassword     keys.Secret
	// FindexLabel separates the databases of one master password in Redis.
	FindexLabel string `toml:"findex_label"`
	// CAFile holds the roots (PEM) that the server's certificate is checked
	// against, in place of the system's.
	CAFile string `toml:"ca_file"`
	// InsecurePlaintext allows a server that is not on this machine without TLS.
	InsecurePlaintext bool `toml:"insecure_plaintext"`
}

// ChoosesDatabase tells whether somebody chose a database, be it the default one.
func (c *Config) ChoosesDatabase() bool {
	for _, key := range []string{"type", "path", "url", "url_file", "master_password_file", "findex_label"} {
		if c.Names("core.database." + key) {
			return true
		}
	}
	return false
}

// Server tells whether the database is a server, reached by a URL.
func (d Database) Server() bool {
	return d.Type != DatabaseSQLite && d.Type != DatabaseSQLiteEncrypted
}

// BootstrapServer is [core.bootstrap_server]: the server that takes the rest of
// the configuration before the KMS starts.
type BootstrapServer struct {
	// Enabled serves it.
	Enabled bool `toml:"enabled"`
	// Port is a TCP port of rpc.address; 0 lets the kernel choose.
	Port uint16 `toml:"port"`
	// CommonName is the name in its self-signed certificate. Subject is a
	// distinguished name (RFC 4514) whose CN is used in its place. Use
	// [BootstrapServer.Name].
	CommonName string `toml:"common_name"`
	Subject    string `toml:"subject"`
	// ExpirationDays is how long that certificate is good.
	ExpirationDays int64 `toml:"expiration_days"`
	// EnsureRATLS refuses to start where the certificate cannot carry Evidence.
	EnsureRATLS bool `toml:"ensure_ra_tls"`
	// Token is asked of callers; empty asks for none, [SetupTokenAuto] is made at
	// start and printed once. TokenFile is a file that holds it.
	Token     keys.Secret `toml:"token"`
	TokenFile string      `toml:"token_file"`
	// AuthorityCertFile holds the CA certificates (PEM) of client certificates
	// that may configure; empty asks for none.
	AuthorityCertFile string `toml:"authority_cert_file"`
}

// Name returns the common name of the certificate: CommonName, or the CN of
// Subject where that is set.
func (b BootstrapServer) Name() string {
	if cn, err := subjectCN(b.Subject); b.Subject != "" && err == nil {
		return cn
	}
	return b.CommonName
}

// Metrics is [core.metrics].
type Metrics struct {
	// Enabled serves Prometheus metrics at /metrics.
	Enabled bool `toml:"enabled"`
}

// Admin is [core.admin]: the listener of the Admin service.
type Admin struct {
	Enabled       bool        `toml:"enabled"`
	Address       string      `toml:"address"`
	Port          uint16      `toml:"port"`
	AuthToken     keys.Secret `toml:"auth_token"`
	AuthTokenFile string      `toml:"auth_token_file"`
	HtpasswdFile  string      `toml:"htpasswd_file"`
	// InsecureNoAuth serves the Admin service to everyone who reaches it.
	InsecureNoAuth bool `toml:"insecure_no_auth"`
	// TLS serves it with TLS on a loopback address too; elsewhere it always is,
	// unless InsecurePlaintext says otherwise. Use [Admin.WithTLS].
	TLS               bool `toml:"tls"`
	InsecurePlaintext bool `toml:"insecure_plaintext"`

	WebFramework
}

// WithTLS tells whether the listener speaks TLS: always, except on a loopback
// address, as existing operators' scripts know it, or where it was forbidden.
func (a Admin) WithTLS() bool {
	if a.InsecurePlaintext {
		return false
	}
	ip, err := netip.ParseAddr(a.Address)
	loopback := err == nil && ip.Unmap().IsLoopback() || a.Address == "localhost"
	return a.TLS || !loopback
}

// Log is [log].
type Log struct {
	// Level is debug, info, warn or error.
	Level string `toml:"level"`
	// Format is console or json.
	Format string `toml:"format"`
}
