package onboard

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"teekms/internal/keys"
	"teekms/internal/rpc"
)

const (
	// maxSourceURL bounds OnboardRequest.source_url, in bytes.
	maxSourceURL = 2048
	// prpcPath is where a KMS has its procedures.
	prpcPath = "/prpc"
	// httpsPort is the port of a URL without one.
	httpsPort = "443"
)

// parseSourceURL checks the URL of a peer and gives it the form
// https://HOST[:PORT][/PATH]/prpc (docs/wire.md#onboarding-from-a-peer). The
// error is a [*rpc.FieldError] of source_url.
func parseSourceURL(text string) (*url.URL, error) {
	refuse := func(reason string) (*url.URL, error) {
		return nil, &rpc.FieldError{Field: "source_url", Reason: reason}
	}
	switch {
	case text == "":
		return refuse("must not be empty")
	case len(text) > maxSourceURL:
		return refuse("is longer than 2048 bytes")
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Opaque != "":
		return refuse("is not a URL")
	case u.Scheme != "https":
		return refuse("must begin with https://")
	case u.User != nil:
		return refuse("must not hold a user name or password")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(text, "#"):
		return refuse("must not have a query or a fragment")
	}
	if err := validateHost(u); err != nil {
		return nil, err
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), ""
	if !strings.HasSuffix(u.Path, prpcPath) {
		u.Path += prpcPath
	}
	return u, nil
}

// validateHost checks name and port.
func validateHost(u *url.URL) error {
	host := u.Hostname()
	if addr, err := netip.ParseAddr(host); err == nil && addr.Zone() != "" {
		host = addr.WithZone("").String() // a link-local peer is one
	}
	if err := keys.ValidateDomain(host); err != nil {
		return &rpc.FieldError{Field: "source_url", Reason: "host " + strings.TrimPrefix(err.Error(), "domain: ")}
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return &rpc.FieldError{Field: "source_url", Reason: "port must be a number from 1 to 65535"}
		}
	}
	return nil
}

// hostPort is the address to dial.
func hostPort(u *url.URL) string {
	if u.Port() == "" {
		return u.Host + ":" + httpsPort
	}
	return u.Host
}
