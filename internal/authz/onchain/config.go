package onchain

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"go.uber.org/zap"

	"teekms/internal/keys"
)

// DefaultTimeout bounds one decision.
const DefaultTimeout = 10 * time.Second

// MaxAnswerSize bounds one answer of the node in bytes. The largest that is
// asked for is a block with the hashes of its transactions.
const MaxAnswerSize = 4 << 20

// Finality is which block counts.
type Finality string

// The finalities (docs/authz.md#finality).
const (
	// Latest is the head, or Confirmations blocks before it.
	Latest Finality = "latest"
	// Safe is the newest block that a majority of validators attested.
	Safe Finality = "safe"
	// Finalized is the newest block that cannot be undone.
	Finalized Finality = "finalized"
)

// Config says where the contract is and which block counts.
type Config struct {
	// URL is a node's JSON-RPC address, http or https. It may hold a
	// credential and is in no error. Required.
	URL keys.Secret
	// Contract is the address of the KMS contract, 0x and 40 hex digits.
	// Required.
	Contract string
	// ChainID is the chain that the node must be of. Required.
	ChainID uint64
	// Finality is which block counts; Finalized when empty.
	Finality Finality
	// Confirmations is how many blocks before the head count, with Latest only.
	Confirmations uint64
	// MaxBlockAge is how old the block that counts may be; a node that
	// fell behind, or is held back, is unreachable. Zero is any age.
	MaxBlockAge time.Duration
	// Timeout bounds one decision; DefaultTimeout when zero.
	Timeout time.Duration
	// CAFile is a PEM file of the only authorities that an https URL's
	// certificate may be of; those of the system when empty.
	CAFile string
	// PublicURL is the node's address as Facts tell it; empty tells none.
	PublicURL string
	// Log gets failures to learn facts; required.
	Log *zap.Logger
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// complete sets the defaults and checks the rest.
func (c *Config) complete() (common.Address, error) {
	if c.Timeout <= 0 {
		c.Timeout = DefaultTimeout
	}
	if c.Now == nil {
		c.Now = time.Now //nolint:forbidigo // the documented default of an optional clock
	}
	if c.Finality == "" {
		c.Finality = Finalized
	}
	if len(c.Contract) != 2+2*common.AddressLength || !common.IsHexAddress(c.Contract) {
		return common.Address{}, errors.New("contract address: want 0x and 40 hex digits")
	}
	if c.ChainID == 0 {
		return common.Address{}, errors.New("chain id: required")
	}
	if c.Confirmations != 0 && c.Finality != Latest {
		return common.Address{}, fmt.Errorf("confirmations count back from the latest block, not from the %s one", c.Finality)
	}
	switch c.Finality {
	case Latest, Safe, Finalized:
	default:
		return common.Address{}, fmt.Errorf("finality %q: want latest, safe or finalized", c.Finality)
	}
	return common.HexToAddress(c.Contract), checkURL(string(c.URL.Bytes()))
}

// checkURL never repeats the URL: it may hold a credential.
func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return errors.New("URL of the node: want http://HOST or https://HOST")
	}
	return nil
}

// newClient returns an HTTP client that follows no redirect, uses no proxy and
// reads no more than it should.
func newClient(caFile string) (*http.Client, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("reading CA certificates: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("reading CA certificates: %s holds none", caFile)
		}
	}
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: bounded{&http.Transport{
			TLSClientConfig:        config,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true,
			MaxConnsPerHost:        64,
			MaxIdleConnsPerHost:    64,
			IdleConnTimeout:        90 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
		}},
	}, nil
}
