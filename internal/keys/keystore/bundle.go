package keystore

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"teekms/internal/keys"
)

// contents are the parsed files of a complete directory.
type contents struct {
	roots  *keys.Roots
	info   *Info
	domain string

	rootCA    *x509.Certificate
	tempCA    *x509.Certificate
	tempCAKey *ecdsa.PrivateKey
	rpc       *x509.Certificate
	rpcKey    *ecdsa.PrivateKey

	// rootCAPEM and tempCAPEM are the texts as they are on disk: clients pin
	// them.
	rootCAPEM, tempCAPEM []byte

	// onDisk are the digests of the private files as they are on disk, sealed or
	// not.
	onDisk map[string][sha256.Size]byte
}

// Bundle is what a commit writes: root keys, the keys and certificates around
// them, and the record of the bootstrap.
type Bundle struct{ contents }

// NewBundle makes a temporary CA and an RPC key, and the three certificates. The
// domain is checked with keys.ValidateDomain. info is the record of the
// bootstrap; it must be about these roots, and may be nil.
func NewBundle(roots *keys.Roots, domain string, info *Info, now time.Time) (*Bundle, error) {
	return newBundle(Replica{Roots: roots, Domain: domain, Info: info}, nil, now)
}

// Replica is what a KMS got from its source.
type Replica struct {
	// Roots are the root keys. Required.
	Roots *keys.Roots
	// TempCAKey is the key of the source's temporary CA, in the PKCS#8 PEM that
	// keys.KeyPEM writes. Required.
	TempCAKey keys.Secret
	// Domain is the replica's own. Required.
	Domain string
	// Info is the source's record of the bootstrap, nil if it has none.
	Info *Info
}

// NewReplica is [NewBundle] for root keys that came from another KMS: the
// temporary CA keeps its key too, so that client certificates made for one
// replica serve at all of them. The RPC key is the replica's own.
func NewReplica(r Replica, now time.Time) (*Bundle, error) {
	key, err := keys.ParseKey(r.TempCAKey.Bytes())
	if err != nil {
		return nil, fmt.Errorf("reading the temporary CA's key: %w", err)
	}
	return newBundle(r, key, now)
}

func newBundle(r Replica, tempCAKey *ecdsa.PrivateKey, now time.Time) (*Bundle, error) {
	if err := keys.ValidateDomain(r.Domain); err != nil {
		return nil, err
	}
	b := &Bundle{contents{roots: r.Roots, domain: r.Domain, info: r.Info.clone(), tempCAKey: tempCAKey}}
	if r.Info != nil && !r.Info.matches(r.Roots) {
		return nil, errors.New("bootstrap record is about other root keys")
	}
	if err := b.makeRootCA(now); err != nil {
		return nil, err
	}
	if err := b.makeTempCA(now); err != nil {
		return nil, err
	}
	if err := b.makeRPC(now); err != nil {
		return nil, err
	}
	return b, nil
}

// Roots returns the root keys.
func (b *Bundle) Roots() *keys.Roots { return b.roots }

// Info returns the record of the bootstrap, nil without one.
func (b *Bundle) Info() *Info { return b.info.clone() }

// Domain returns the domain of the RPC certificate.
func (b *Bundle) Domain() string { return b.domain }

// makeRootCA makes the root certificate.
func (c *contents) makeRootCA(now time.Time) error {
	der, err := keys.NewRootCA(c.roots, now)
	if err != nil {
		return err
	}
	c.rootCAPEM = keys.CertificatePEM(der)
	c.rootCA, err = keys.ParseCertificate(c.rootCAPEM)
	return err
}

// makeTempCA makes the temporary CA's certificate, and its key if there is none.
func (c *contents) makeTempCA(now time.Time) (err error) {
	if c.tempCAKey == nil {
		if c.tempCAKey, err = keys.NewKey(); err != nil {
			return err
		}
	}
	der, err := keys.NewTempCA(c.tempCAKey, now)
	if err != nil {
		return err
	}
	c.tempCAPEM = keys.CertificatePEM(der)
	c.tempCA, err = keys.ParseCertificate(c.tempCAPEM)
	return err
}

// makeRPC issues the RPC certificate, after making its key if there is none.
func (c *contents) makeRPC(now time.Time) (err error) {
	if c.rpcKey == nil {
		if c.rpcKey, err = keys.NewKey(); err != nil {
			return err
		}
	}
	c.rpc, err = c.issueRPC(now)
	return err
}

// files encodes the contents as they are stored.
func (c *contents) files() (fileSet, error) {
	tempKey, err := keys.KeyPEM(c.tempCAKey)
	if err != nil {
		return nil, err
	}
	rpcKeyPEM, err := keys.KeyPEM(c.rpcKey)
	if err != nil {
		return nil, err
	}
	set := fileSet{
		rootCAKey:  c.roots.CAPEM().Bytes(),
		rootK256:   c.roots.K256Raw().Bytes(),
		rootCACert: c.rootCAPEM,
		tempCAKey:  tempKey.Bytes(),
		tempCACert: c.tempCAPEM,
		rpcKey:     rpcKeyPEM.Bytes(),
		rpcCert:    keys.CertificatePEM(c.rpc.Raw),
	}
	if c.info != nil {
		text, err := c.info.marshal()
		if err != nil {
			return nil, fmt.Errorf("encoding %s: %w", infoFile, err)
		}
		set[infoFile] = text
	}
	return set, nil
}

// tlsCertificate is the leaf alone: clients have the root.
func (c *contents) tlsCertificate() tls.Certificate {
	return tls.Certificate{
		Certificate: [][]byte{bytes.Clone(c.rpc.Raw)},
		PrivateKey:  c.rpcKey,
		Leaf:        c.rpc,
	}
}

// Format writes "[redacted]" for every verb and flag: fmt would look into the
// private keys.
func (b Bundle) Format(f fmt.State, _ rune) {
	// A formatter has no way to report a failed write.
	_, _ = io.WriteString(f, "[redacted]")
}
