package kms

import (
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"teekms/internal/ratls/csr"
	"teekms/internal/rpc"
)

// The bounds of what a request may have written into a certificate.
const (
	maxNames   = 64
	maxName    = 253
	maxLabel   = 63
	maxSubject = 256
)

// checkSubject refuses names that an application must not be certified under
// (docs/wire.md#names). domain is that of this KMS: a client that trusts the
// root and compares nothing but the name must not meet an application there.
func checkSubject(r *csr.Request, domain string) error {
	for _, text := range []string{r.Subject, r.Org} {
		if err := checkText(text); err != nil {
			return err
		}
	}
	if isOurs(r.Subject, domain) {
		return refuseName(r.Subject, "is a name of this KMS")
	}
	if len(r.SANs) > maxNames {
		return &rpc.FieldError{Field: "csr", Reason: fmt.Sprintf("%d alternative names, want at most %d", len(r.SANs), maxNames)}
	}
	for _, name := range r.SANs {
		if err := checkName(name, domain); err != nil {
			return err
		}
	}
	return nil
}

func refuseName(name, reason string) error {
	if len(name) > maxName {
		name = name[:maxName]
	}
	return &rpc.FieldError{Field: "csr", Reason: fmt.Sprintf("name %q %s", name, reason)}
}

// checkText checks the free text of a subject. It may be empty.
func checkText(text string) error {
	switch {
	case len(text) > maxSubject:
		return &rpc.FieldError{Field: "csr", Reason: fmt.Sprintf("subject of %d bytes, want at most %d", len(text), maxSubject)}
	case !utf8.ValidString(text) || strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) }):
		return &rpc.FieldError{Field: "csr", Reason: "subject has characters that cannot be printed"}
	default:
		return nil
	}
}

// checkName checks one alternative name: an IP address, or a DNS name whose
// first label may be a wildcard.
func checkName(name, domain string) error {
	if addr, err := netip.ParseAddr(name); err == nil {
		switch {
		case addr.Zone() != "":
			return refuseName(name, "has a zone")
		case isOurs(name, domain):
			return refuseName(name, "is a name of this KMS")
		}
		return nil
	}
	if len(name) > maxName {
		return refuseName(name, fmt.Sprintf("has %d bytes, want at most %d", len(name), maxName))
	}
	for label := range strings.SplitSeq(strings.TrimPrefix(name, "*."), ".") {
		if !isLabel(label) {
			return refuseName(name, "is neither a DNS name nor an IP address")
		}
	}
	if isOurs(name, domain) {
		return refuseName(name, "is a name of this KMS")
	}
	return nil
}

// isLabel takes what resolvers take, underscores too.
func isLabel(label string) bool {
	if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	return strings.Trim(strings.ToLower(label), "abcdefghijklmnopqrstuvwxyz0123456789-_") == ""
}

// isOurs says whether a name is, or as a wildcard covers, the domain of this
// KMS. A wildcard stands for one label.
func isOurs(name, domain string) bool {
	if domain == "" {
		return false
	}
	ours, err := netip.ParseAddr(domain)
	if theirs, err2 := netip.ParseAddr(name); err == nil || err2 == nil {
		return err == nil && err2 == nil && ours.Unmap() == theirs.WithZone("").Unmap()
	}
	if strings.EqualFold(strings.TrimSuffix(name, "."), domain) {
		return true
	}
	rest, wildcard := strings.CutPrefix(name, "*.")
	_, parent, _ := strings.Cut(domain, ".")
	return wildcard && strings.EqualFold(strings.TrimSuffix(rest, "."), parent)
}
