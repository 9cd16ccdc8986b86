package keys_test

import (
	"strings"
	"testing"

	"teekms/internal/keys"
)

func TestValidateDomain(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	name253 := strings.Repeat(label63+".", 3) + strings.Repeat("b", 61)
	tests := []struct {
		domain string
		want   string // empty: accepted
	}{
		{"kms.example.com", ""},
		{"kms", ""},
		{"localhost", ""},
		{"KMS.Example.COM", ""},
		{"a-b.c--d.e1", ""},
		{"1.example", ""},
		{"3com.1a", ""},
		{"xn--bcher-kva.example", ""},
		{label63 + ".example", ""},
		{name253, ""},
		{"192.0.2.1", ""},
		{"2001:db8::1", ""},
		{"::1", ""},
		{"::ffff:192.0.2.1", ""},

		{"", "domain: must not be empty"},
		{name253 + "b", "domain: is longer than 253 bytes"},
		{strings.Repeat("x", 100000), "domain: is longer than 253 bytes"},
		{label63 + "a.example", "domain: label \"" + label63 + "a\" is longer than 63 bytes"},
		{".", "domain: must not end with a dot"},
		{"kms.example.com.", "domain: must not end with a dot"},
		{".example.com", "domain: has an empty label"},
		{"kms..example", "domain: has an empty label"},
		{"-kms.example", `domain: label "-kms" begins or ends with a hyphen`},
		{"kms-.example", `domain: label "kms-" begins or ends with a hyphen`},
		{"*.example.com", "domain: wildcards are not allowed"},
		{"k_ms.example", "domain: character '_' is not allowed in a name"},
		{"kms example", "domain: character ' ' is not allowed in a name"},
		{" kms.example", "domain: character ' ' is not allowed in a name"},
		{"kms.example\n", `domain: character '\n' is not allowed in a name`},
		{"kms\x00.example", `domain: character '\x00' is not allowed in a name`},
		{"https://kms.example", "domain: character ':' is not allowed in a name"},
		{"kms.example:9100", "domain: character ':' is not allowed in a name"},
		{"[::1]", "domain: character '[' is not allowed in a name"},
		{"bücher.example", "domain: has a byte that is not ASCII; give an internationalized name as A-labels (xn--...)"},
		{"fe80::1%eth0", `domain: address "fe80::1%eth0" has a zone`},
		{"300.1.1.1", `domain: "300.1.1.1" ends in a number but is not an IP address`},
		{"192.0.2", `domain: "192.0.2" ends in a number but is not an IP address`},
		{"192.0.2.1.5", `domain: "192.0.2.1.5" ends in a number but is not an IP address`},
		{"192.0.2.01", `domain: "192.0.2.01" ends in a number but is not an IP address`},
		{"2130706433", `domain: "2130706433" ends in a number but is not an IP address`},
		{"0x7f000001", `domain: "0x7f000001" ends in a number but is not an IP address`},
		{"1.0x", `domain: "1.0x" ends in a number but is not an IP address`},
	}
	for _, tt := range tests {
		got := ""
		if err := keys.ValidateDomain(tt.domain); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("ValidateDomain(%.80q) = %q, want %q", tt.domain, got, tt.want)
		}
	}
}

func FuzzValidateDomain(f *testing.F) {
	for _, s := range []string{"kms.example.com", "::1", "1.2.3.4", "a..b", "x-.y", "0x1"} {
		f.Add(s)
	}
	r := vectorRoots(f)
	ca := rootCA(f, r)
	f.Fuzz(func(t *testing.T, domain string) {
		if keys.ValidateDomain(domain) != nil {
			return
		}
		// What is accepted can be issued, and a client that asks for it by this
		// name is satisfied.
		leaf := issue(t, r, ca, domain)
		if err := leaf.VerifyHostname(strings.ToLower(bracket(domain))); err != nil {
			t.Errorf("VerifyHostname(%q) = %v, want nil", domain, err)
		}
	})
}
