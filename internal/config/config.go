// Package config reads kms.toml: schema, defaults, strict decoding, environment
// and validation. docs/config.md describes every key.
//
// Call [Load] once at start; what it returns is valid. Nothing but the named
// file and the given environment is read, and no secret of either appears in an
// error.
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// maxFile bounds the configuration file, in bytes.
const maxFile = 1 << 20

// Error is everything that is wrong with a configuration.
type Error struct {
	// Problems are sentences that each name a place (kms.toml:3:1 or an
	// environment variable) and a key, in the order of the file.
	Problems []string
}

// Error returns all problems on one line.
func (e *Error) Error() string { return strings.Join(e.Problems, "; ") }

// Default returns the configuration of an empty file.
func Default() *Config {
	return &Config{
		RPC: RPC{
			Address: "0.0.0.0",
			Port:    9100,
			TLS: TLS{
				Key:    "/etc/kms/certs/rpc.key",
				Certs:  "/etc/kms/certs/rpc.crt",
				Mutual: Mutual{CACerts: "/etc/kms/certs/tmp-ca.crt"},
			},
		},
		Core: Core{
			CertDir:                  "/etc/kms/certs",
			EnforceSelfAuthorization: true,
			AttestRPCCert:            true,
			KMSKeyRelease:            ReleasePublic,
			Limits:                   defaultLimits(),
			Attestation:              Attestation{Provider: ProviderAuto, Timeout: 30 * time.Second},
			Image: Image{
				Verify:          true,
				CacheDir:        "/usr/share/dstack/images",
				DownloadURL:     "http://localhost:8000/{OS_IMAGE_HASH}.tar.gz",
				DownloadTimeout: 2 * time.Minute,
				MaxDownload:     1 << 30,
			},
			AuthAPI: AuthAPI{
				Type:     AuthWebhook,
				Webhook:  AuthWebhookSection{URL: "http://auth-api:8000", Timeout: 10 * time.Second},
				Dev:      AuthDevSection{GatewayAppID: "any"},
				Ethereum: AuthEthereumSection{Finality: FinalityFinalized, Timeout: 10 * time.Second},
			},
			Onboard:  Onboard{Enabled: true, QuoteEnabled: true, Address: "0.0.0.0", Port: 9100},
			Seal:     defaultSeal(),
			Database: Database{Type: DatabaseSQLite},
			BootstrapServer: BootstrapServer{
				Port: 9998, CommonName: "cosmian.kms", ExpirationDays: 365,
			},
			Metrics: Metrics{Enabled: true},
			Admin:   Admin{Address: "127.0.0.1", Port: 8001},
		},
		Log: Log{Level: "info", Format: "console"},
	}
}

func defaultLimits() Limits {
	return Limits{
		BodyBytes:     1 << 20,
		HeaderBytes:   16 << 10,
		HeaderTimeout: 5 * time.Second,
		ReadTimeout:   15 * time.Second,
		WriteTimeout:  time.Minute,
		IdleTimeout:   2 * time.Minute,
		DrainTimeout:  30 * time.Second,
		Connections:   1024,
		Concurrency:   256,
		Streams:       64,

		AppraisalsPerSecond: 50,
		AppraisalsBurst:     200,
	}
}

// Flag is a key that the command line sets.
type Flag struct {
	// Name is what errors call it: "--bootstrap-server-port".
	Name string
	// Path is the key, Value the text of its value.
	Path, Value string
}

// Load reads the file at path, lays environ, in the form of [os.Environ], over
// it, and the flags over both. The result is valid; an [*Error] lists all that is
// wrong. The files that *_file keys name are read, so that the secrets are in
// place.
func Load(path string, environ []string, flags ...Flag) (*Config, error) {
	if filepath.Ext(path) == ".json" {
		return nil, fmt.Errorf("opening configuration %s: JSON is not read; write the same keys as TOML", path)
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening configuration %s: no such file; name one with --config", path)
	}
	if err != nil {
		return nil, fmt.Errorf("opening configuration: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading configuration: %w", err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("reading configuration %s: larger than %d bytes", path, maxFile)
	}
	return Parse(path, data, environ, flags...)
}

// Parse is [Load] of a file that was already read; name is what errors call it.
func Parse(name string, data []byte, environ []string, flags ...Flag) (*Config, error) {
	c := Default()
	c.origins = origins{}
	s := newSchema(c)
	problems := s.decode(name, data, c.origins)
	problems = append(problems, s.applyEnviron(environ, c.origins)...)
	problems = append(problems, s.applyFlags(flags, c.origins)...)
	c.Core.Seal.enable(c.Names)
	if len(problems) == 0 {
		problems = append(problems, c.readSecrets()...)
		problems = append(problems, c.problems()...)
	}
	if len(problems) > 0 {
		return nil, &Error{Problems: problems}
	}
	return c, nil
}

// PCCS returns where collateral is fetched, by whichever of its two names it
// was set; empty is the default of the attestation.
func (c Core) PCCS() string {
	if c.Attestation.URLs.PCCS != "" {
		return c.Attestation.URLs.PCCS
	}
	return c.PCCSURL
}
