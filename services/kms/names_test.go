package kms_test

import (
	"crypto/x509"
	"net"
	"net/netip"
	"strings"
	"testing"

	"teekms/internal/keys"
	"teekms/services/kms"
)

// FuzzNames holds that no name that an application may have is taken by a
// client for that of the KMS.
func FuzzNames(f *testing.F) {
	for _, domain := range []string{"kms.example.com", "kms", "192.0.2.7", "2001:db8::7", "KMS.Example.com"} {
		for _, name := range []string{
			"kms.example.com", "KMS.example.com", "*.example.com", "*.com", "kms", "*", "", "192.0.2.7", "::ffff:192.0.2.7",
			"2001:0db8::0007", "app.example.com", "*.app.example.com", "kms.example.com.", "192.0.2.007",
		} {
			f.Add(name, domain)
		}
	}
	f.Fuzz(func(t *testing.T, name, domain string) {
		if keys.ValidateDomain(domain) != nil || kms.CheckName(name, domain) != nil {
			return
		}
		c := x509.Certificate{}
		if addr, err := netip.ParseAddr(name); err == nil {
			c.IPAddresses = []net.IP{addr.Unmap().AsSlice()}
		} else {
			c.DNSNames = []string{name}
		}
		host := domain
		if strings.Contains(domain, ":") {
			host = "[" + domain + "]"
		}
		if c.VerifyHostname(host) == nil {
			t.Errorf("CheckName(%q, %q) = nil, and clients take its holder for the KMS", name, domain)
		}
	})
}
