package keys

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

const (
	maxDomain = 253
	maxLabel  = 63
)

// ValidateDomain checks the shape of the name under which a KMS is reached: a
// DNS name (at most 253 bytes, labels of 1 to 63 letters, digits and hyphens,
// internationalized names as A-labels, no trailing dot, no wildcard) or an IPv4
// or IPv6 address without a zone. The error begins with "domain: " and says
// what is wrong.
func ValidateDomain(domain string) error {
	switch {
	case domain == "":
		return errors.New("domain: must not be empty")
	case len(domain) > maxDomain:
		return fmt.Errorf("domain: is longer than %d bytes", maxDomain)
	}
	if addr, err := netip.ParseAddr(domain); err == nil {
		if addr.Zone() != "" {
			return fmt.Errorf("domain: address %q has a zone", domain)
		}
		return nil
	}
	if strings.HasSuffix(domain, ".") {
		return errors.New("domain: must not end with a dot")
	}
	labels := strings.Split(domain, ".")
	for _, label := range labels {
		if err := validateLabel(label); err != nil {
			return err
		}
	}
	// A last label that is a number makes resolvers read an address.
	if last := labels[len(labels)-1]; isNumber(last) {
		return fmt.Errorf("domain: %q ends in a number but is not an IP address", domain)
	}
	return nil
}

func validateLabel(label string) error {
	if label == "" {
		return errors.New("domain: has an empty label")
	}
	for i := range len(label) {
		switch c := label[i]; {
		case c == '*':
			return errors.New("domain: wildcards are not allowed")
		case c >= 0x80:
			return errors.New("domain: has a byte that is not ASCII; give an internationalized name as A-labels (xn--...)")
		case !isAlphanumeric(c) && c != '-':
			return fmt.Errorf("domain: character %q is not allowed in a name", c)
		}
	}
	switch {
	case len(label) > maxLabel:
		return fmt.Errorf("domain: label %q is longer than %d bytes", label, maxLabel)
	case label[0] == '-' || label[len(label)-1] == '-':
		return fmt.Errorf("domain: label %q begins or ends with a hyphen", label)
	}
	return nil
}

func isAlphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// isNumber reports whether resolvers may take the label for a number: decimal
// digits, or 0x and hexadecimal digits.
func isNumber(label string) bool {
	if rest, ok := strings.CutPrefix(strings.ToLower(label), "0x"); ok {
		return strings.Trim(rest, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}
