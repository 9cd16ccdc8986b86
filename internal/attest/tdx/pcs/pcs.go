// Package pcs fetches TDX collateral over HTTP: from Intel's Provisioning
// Certification Service, version 4, or from a caching service (PCCS) that
// answers the same paths (docs/evidence.md#pcs). It judges nothing of what it
// gets: wrap it in a [tdx.CachedSource].
package pcs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"teekms/internal/attest/tdx"
)

// IntelURL is the base URL of Intel's own service.
const IntelURL = "https://api.trustedservices.intel.com"

// intelRootCRL is where Intel's root publishes its revocation list; its service
// has no path for it, a PCCS has.
const (
	intelRootCRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
	pccsRootCRL  = "/sgx/certification/v4/rootcacrl"
)

const (
	defaultTimeout = 10 * time.Second
	// maxHeaderBytes holds a chain of two certificates many times over.
	maxHeaderBytes = 64 << 10
)

// Config says which service to ask. The zero value is Intel's.
type Config struct {
	// URL is the base URL of the service; [IntelURL] if empty. A trailing
	// /sgx/certification/v4, as other tools have it, is taken off.
	URL string
	// RootCRL is the URL of the root's revocation list. If empty it is that of
	// Intel's root for IntelURL, and /sgx/certification/v4/rootcacrl of the
	// service for any other.
	RootCRL string
	// Timeout bounds one attempt of one request; 10 seconds if zero.
	Timeout time.Duration
	// HTTP does the requests; if nil, a client of its own that limits headers.
	HTTP *http.Client
}

// Client is a CollateralSource over HTTP. It keeps nothing. It is safe for use
// by several goroutines.
type Client struct {
	base, rootCRL string
	timeout       time.Duration
	http          *http.Client
}

var _ tdx.CollateralSource = (*Client)(nil)

// New makes a Client. It makes no request.
func New(cfg Config) (*Client, error) {
	if cfg.URL == "" {
		cfg.URL = IntelURL
	}
	base, err := baseURL(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("making a PCS client: %w", err)
	}
	if cfg.RootCRL == "" {
		cfg.RootCRL = base + pccsRootCRL
		if base == IntelURL {
			cfg.RootCRL = intelRootCRL
		}
	} else if _, err := baseURL(cfg.RootCRL); err != nil {
		return nil, fmt.Errorf("making a PCS client: root CRL: %w", err)
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.HTTP == nil {
		cfg.HTTP = &http.Client{Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			ForceAttemptHTTP2:      true,
			MaxIdleConns:           4,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: maxHeaderBytes,
		}}
	}
	return &Client{base: base, rootCRL: cfg.RootCRL, timeout: cfg.Timeout, http: cfg.HTTP}, nil
}

// baseURL checks s and takes off what the paths bring themselves.
func baseURL(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil {
		// The error would show the URL, and a password in it.
		return "", errors.New("not a URL")
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Errorf("URL %q is neither http nor https", s)
	case u.Host == "":
		return "", fmt.Errorf("URL %q has no host", s)
	case u.User != nil:
		return "", errors.New("URL carries a user name: errors print the URL")
	case u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("URL %q has a query or a fragment", s)
	}
	return strings.TrimSuffix(strings.TrimRight(u.String(), "/"), "/sgx/certification/v4"), nil
}

// Close ends the idle connections. The Client stays usable.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Collateral makes four requests at once. Every error names the URL.
func (c *Client) Collateral(ctx context.Context, fmspc tdx.FMSPC, ca tdx.CA) (*tdx.Collateral, error) {
	if ca != tdx.PlatformCA && ca != tdx.ProcessorCA {
		return nil, fmt.Errorf("fetching collateral: no such CA %q", ca)
	}
	var out tdx.Collateral
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		out.TCBInfo, out.TCBInfoChain, err = c.signed(ctx, "/tdx/certification/v4/tcb?fmspc="+hex.EncodeToString(fmspc[:]), "TCB-Info-Issuer-Chain")
		return err
	})
	g.Go(func() (err error) {
		out.QEIdentity, out.QEIdentityChain, err = c.signed(ctx, "/tdx/certification/v4/qe/identity", "SGX-Enclave-Identity-Issuer-Chain")
		return err
	})
	g.Go(func() (err error) {
		out.PCKCRL, out.PCKCRLChain, err = c.signed(ctx, "/sgx/certification/v4/pckcrl?ca="+string(ca)+"&encoding=der", "SGX-PCK-CRL-Issuer-Chain")
		if err == nil {
			out.PCKCRL, err = decodeCRL(out.PCKCRL)
		}
		return err
	})
	g.Go(func() error {
		a, err := c.get(ctx, c.rootCRL)
		if err == nil {
			out.RootCRL, err = decodeCRL(a.body)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.rootCRL, err)
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("fetching collateral: %w", err)
	}
	return &out, nil
}

// signed gets a path whose answer has its signer's chain in a header.
func (c *Client) signed(ctx context.Context, path, header string) (body, chain []byte, err error) {
	address := c.base + path
	a, err := c.get(ctx, address)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", address, err)
	}
	if chain, err = decodeChain(a.header.Values(header)); err != nil {
		return nil, nil, fmt.Errorf("%s: header %s: %w", address, header, err)
	}
	return a.body, chain, nil
}
