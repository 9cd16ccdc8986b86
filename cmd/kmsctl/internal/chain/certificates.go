package chain

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"teekms/cmd/kmsctl/internal/subject"
	"teekms/internal/keys"
)

// certificates checks that the certificates at hand are of the keys in the
// record. They do not rest on the quote, and are checked whatever it says.
func (c *checker) certificates() {
	c.add(c.rootCertificate())
	c.add(c.rpcCertificate())
	if c.s.Kind == subject.URL {
		c.add(c.k256())
	}
}

func (c *checker) rootCertificate() Link {
	ca := c.s.CA
	switch {
	case ca == nil:
		return skipped(LinkRootCert, "a record alone has none; --ca-cert FILE gives it")
	case ca.Err != nil:
		return broken(LinkRootCert, fmt.Errorf("%s: %w", ca.From, ca.Err))
	case c.s.Record == nil:
		return skipped(LinkRootCert, "there is no readable record")
	case !bytes.Equal(ca.RawSubjectPublicKeyInfo, c.s.Record.CAPublic):
		return broken(LinkRootCert, fmt.Errorf("%s is of another key than the record: %x", ca.From, ca.RawSubjectPublicKeyInfo))
	}
	// CheckSignatureFrom also sees to it that it is an authority at all.
	if err := ca.CheckSignatureFrom(ca.Certificate); err != nil {
		return broken(LinkRootCert, fmt.Errorf("%s is not self-signed: %w", ca.From, err))
	}
	return held(LinkRootCert, "%q is of the key in the quote", ca.Subject.CommonName)
}

func (c *checker) rpcCertificate() Link {
	leaf := c.s.Leaf
	switch {
	case c.s.Plaintext:
		return skipped(LinkRPCCert, "plain HTTP shows none")
	case leaf == nil:
		return skipped(LinkRPCCert, "a record alone has none")
	case leaf.Err != nil:
		return broken(LinkRPCCert, fmt.Errorf("%s: %w", leaf.From, leaf.Err))
	case !c.r.holds(LinkRootCert):
		return skipped(LinkRPCCert, "it rests on %s", LinkRootCert)
	}
	if err := c.leadsToRoot(leaf); err != nil {
		return broken(LinkRPCCert, fmt.Errorf("%s: %w%s", leaf.From, err, c.foreign(err)))
	}
	if err := checkUsage(leaf.Certificate); err != nil {
		return broken(LinkRPCCert, fmt.Errorf("%s: %w", leaf.From, err))
	}
	if name := c.s.ServerName; name != "" {
		if err := leaf.VerifyHostname(name); err != nil {
			return broken(LinkRPCCert, fmt.Errorf("%s: it is not for --server-name: %w", leaf.From, err))
		}
	}
	names := namesOf(leaf.Certificate)
	if c.r.Claims != nil {
		c.r.Claims.Domain = names
	}
	return held(LinkRPCCert, "for %s, issued by that root, valid until %s%s", strings.Join(names, ", "),
		leaf.NotAfter.UTC().Format(time.DateOnly), c.remark(leaf))
}

// leadsToRoot checks the path from the leaf. One that lies in a directory may
// have expired: a KMS issues it anew when it starts.
func (c *checker) leadsToRoot(leaf *subject.Certificate) error {
	at := c.cfg.Now
	if !c.s.Live && at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	opts := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(),
		CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	opts.Roots.AddCert(c.s.CA.Certificate)
	for _, i := range leaf.Intermediates {
		opts.Intermediates.AddCert(i)
	}
	_, err := leaf.Verify(opts)
	return err
}

// foreign is a hint where a KMS shows a certificate of another root.
func (c *checker) foreign(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok || !c.s.Live {
		return ""
	}
	return "; a KMS with a PKCS#12 shows that to whoever does not call it by its domain"
}

func (c *checker) remark(leaf *subject.Certificate) string {
	switch {
	case !c.s.Live && c.cfg.Now.After(leaf.NotAfter):
		return " (expired: the KMS issues it anew when it starts)"
	case c.s.Live && c.s.ServerName == "" && leaf.VerifyHostname(c.s.Host) != nil:
		return fmt.Sprintf(" (it was called by another name, %s)", c.s.Host)
	default:
		return ""
	}
}

// checkUsage refuses certificates of applications: they lead to the same root,
// for names that the applications chose.
func checkUsage(leaf *x509.Certificate) error {
	for _, e := range leaf.Extensions {
		if !e.Id.Equal(keys.ExtensionOID(keys.ArcUsage)) {
			continue
		}
		var usage []byte
		if rest, err := asn1.Unmarshal(e.Value, &usage); err != nil || len(rest) != 0 {
			return errors.New("its usage extension is not an octet string")
		}
		if string(usage) != keys.UsageRPC {
			return fmt.Errorf("its usage is %q, want %q", usage, keys.UsageRPC)
		}
		return nil
	}
	return fmt.Errorf("it has no usage extension, want %q", keys.UsageRPC)
}

// namesOf are the names of a certificate, normalized like expectations.
func namesOf(leaf *x509.Certificate) []string {
	names := []string{}
	for _, n := range leaf.DNSNames {
		names = append(names, strings.ToLower(n))
	}
	for _, ip := range leaf.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			names = append(names, a.Unmap().String())
		}
	}
	return names
}

func (c *checker) k256() Link {
	switch {
	case c.s.Record == nil:
		return skipped(LinkK256, "there is no readable record")
	case !bytes.Equal(c.s.K256Public, c.s.Record.K256Public):
		return broken(LinkK256, fmt.Errorf("the KMS says %x, the record has %x", c.s.K256Public, c.s.Record.K256Public))
	default:
		return held(LinkK256, "the one the KMS says it has is the one in the record")
	}
}
