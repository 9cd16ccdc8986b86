package client

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"

	"teekms/internal/prpc/call"
)

// defaultTimeout is ample: the slowest thing is a quote, on either side.
const defaultTimeout = 60 * time.Second

// Config says which KMS to talk to, as whom, and what it must be.
type Config struct {
	// URL is https://HOST[:PORT], with or without /prpc. Required.
	URL string
	// CACert is the PEM of the root CA certificate that identifies the KMS; its
	// certificate must then be under it and be a KMS's (kms:rpc). Without it,
	// Evidence identifies the KMS, and Policy must say which is good enough.
	CACert []byte
	// ServerName is a name or address that the KMS's certificate must have;
	// empty is any. It needs CACert.
	ServerName string
	// Policy judges the Evidence of the KMS.
	Policy Policy
	// Trust says what its Evidence is verified against.
	Trust Trust
	// K256Root pins the root secp256k1 key, compressed (33 bytes); optional.
	K256Root []byte
	// Attester makes this workload's Evidence. Without one there is no client
	// certificate, which is enough for Meta and EnvPublicKey alone.
	Attester *Attester
	// Self, where its fields are not empty, is who this workload must be by its
	// own Evidence; Dial refuses to go on as another.
	Self Identity
	// Key is the key of the client certificate, over P-256; a new one when nil.
	Key *ecdsa.PrivateKey
	// TempCA has the client certificate issued by the temporary CA of the KMS,
	// which is asked for first: what existing dstack KMSs want. This KMS takes
	// a certificate that signs itself.
	TempCA bool
	// Timeout bounds the connection and each call; 60 seconds when 0.
	Timeout time.Duration
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// Identity is who a workload is, as its runtime events say.
type Identity struct {
	// AppID (20 bytes), ComposeHash (32) and InstanceID (20, or none).
	AppID, ComposeHash, InstanceID []byte
}

// resolved is a Config that has been looked through.
type resolved struct {
	Config
	base *url.URL
	root *x509.Certificate // nil without CACert
}

func (cfg Config) resolve() (*resolved, error) {
	r := &resolved{Config: cfg}
	var err error
	if r.base, err = call.ParseBase(cfg.URL); err != nil {
		return nil, err
	}
	switch {
	case r.base.Scheme != "https":
		return nil, errors.New("a KMS that gives keys is reached by https")
	case len(cfg.CACert) == 0 && cfg.ServerName != "":
		return nil, errors.New("ServerName means nothing without CACert")
	case len(cfg.CACert) == 0 && !cfg.Policy.identifies() && !cfg.Policy.AnyMeasurement:
		return nil, errors.New("neither CACert nor the policy says which KMS is meant, so that any would do")
	case cfg.TempCA && cfg.Attester == nil:
		return nil, errors.New("TempCA means nothing without Attester")
	case cfg.Key != nil && cfg.Key.Curve != elliptic.P256():
		return nil, errors.New("the key of the client certificate is not over P-256")
	case len(cfg.K256Root) != 0 && len(cfg.K256Root) != compressedSize:
		return nil, fmt.Errorf("K256Root of %d bytes, want %d", len(cfg.K256Root), compressedSize)
	}
	if err := cfg.Policy.validate(); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	if len(cfg.CACert) > 0 {
		if r.root, err = parseRoot(cfg.CACert); err != nil {
			return nil, fmt.Errorf("CACert: %w", err)
		}
	}
	if r.Timeout <= 0 {
		r.Timeout = defaultTimeout
	}
	if r.Now == nil {
		r.Now = time.Now //nolint:forbidigo // the documented default of an optional clock
	}
	return r, nil
}

// compressedSize is that of a compressed secp256k1 point.
const compressedSize = 33

// parseRoot reads exactly one certificate authority in PEM.
func parseRoot(text []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("not a PEM certificate")
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, errors.New("more than one PEM block")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	if !c.IsCA {
		return nil, errors.New("not the certificate of an authority")
	}
	return c, nil
}
