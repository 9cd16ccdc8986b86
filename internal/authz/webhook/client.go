package webhook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

// connections bounds what is open to the authority at once; more requests wait.
// A decision that waits too long runs out of its own time.
const connections = 64

// newClient returns a client that does nothing on its own: no redirect, no
// proxy, no decompression.
func newClient(cfg Config) (*http.Client, error) {
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		pool, err := readPool(cfg.CAFile)
		if err != nil {
			return nil, err
		}
		tlsConfig.RootCAs = pool
	}
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig:        tlsConfig,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true,
			MaxConnsPerHost:        connections,
			MaxIdleConnsPerHost:    connections,
			IdleConnTimeout:        90 * time.Second,
			MaxResponseHeaderBytes: maxHeaderSize,
		},
	}, nil
}

func readPool(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading CA certificates: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("reading CA certificates: %s holds none", file)
	}
	return pool, nil
}

// parseURL checks the authority's address and returns it with that of its
// decisions.
func parseURL(text string) (info, app, kms string, err error) {
	u, err := url.Parse(text)
	if err != nil {
		// The error would repeat the text, and with it a password.
		return "", "", "", errors.New("URL of the webhook cannot be parsed")
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return "", "", "", errors.New("URL of the webhook: want http://HOST or https://HOST")
	}
	if u.Fragment != "" {
		return "", "", "", errors.New("URL of the webhook: want no fragment")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	u.RawPath = ""
	return text, u.JoinPath("bootAuth", "app").String(), u.JoinPath("bootAuth", "kms").String(), nil
}

// refusals are the pauses before asking again when nobody listens: an
// authority that restarts is back within them.
func refusals() []time.Duration {
	return []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, 500 * time.Millisecond}
}

// retry calls do, and again as long as the connection is refused: nothing was
// sent then. What failed in any other way may have been asked already and is not
// asked again, although a decision changes nothing: a struggling authority is
// spared, and the caller can ask again.
func retry(ctx context.Context, do func() (*http.Response, error)) (*http.Response, error) {
	for _, pause := range refusals() {
		resp, err := do()
		if err == nil || !errors.Is(err, syscall.ECONNREFUSED) {
			return resp, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, err
		}
	}
	return do()
}
