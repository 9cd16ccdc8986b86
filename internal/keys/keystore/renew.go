package keystore

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"teekms/internal/durable"
	"teekms/internal/keys"
	"teekms/internal/keys/seal"
)

var errEmpty = errors.New("key directory is empty")

// RenewRPC issues a new RPC certificate for the same key, with the extensions
// added, and writes it durably. Where it cannot be written it is renewed in
// memory only, which is logged. The error is non-nil, and the old certificate
// stays, only if none could be issued, ctx ended, or the directory has other
// keys by now.
func (s *Store) RenewRPC(ctx context.Context, extensions ...pkix.Extension) (tls.Certificate, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	old := s.get()
	if old == nil {
		return tls.Certificate{}, errEmpty
	}
	renewed := *old
	cert, err := old.issueRPC(s.now(), extensions...)
	if err != nil {
		return tls.Certificate{}, err
	}
	renewed.rpc = cert
	err = s.replaceRPC(ctx, &renewed)
	switch {
	case err != nil && (errors.Is(err, errForeignRoots) || ctx.Err() != nil):
		return tls.Certificate{}, err
	case err != nil:
		s.log.Warn("the RPC certificate is renewed in memory only", zap.NamedError("err", err))
	}
	s.set(&renewed)
	return renewed.tlsCertificate(), nil
}

// RenewAt returns the time at which the current RPC certificate is due for
// renewal: when two thirds of its life are over.
func (s *Store) RenewAt() time.Time {
	c := s.get()
	if c == nil {
		return time.Time{}
	}
	return c.rpc.NotBefore.Add(c.rpc.NotAfter.Sub(c.rpc.NotBefore) * 2 / 3)
}

func (s *Store) replaceRPC(ctx context.Context, c *contents) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := s.recoverStage(); err != nil {
		return err
	}
	if err := s.checkSameKeys(c); err != nil {
		return err
	}
	if err := s.makeStage(); err != nil {
		return s.writeError(rpcCert, err)
	}
	// One file needs no marker: the rename decides.
	err = durable.Replace(s.fs, s.staged(rpcCert), s.path(rpcCert), keys.CertificatePEM(c.rpc.Raw), modeOf(rpcCert))
	s.tidy()
	if err != nil {
		return s.writeError(rpcCert, err)
	}
	return nil
}

// checkSameKeys compares the keys on disk with those in memory: another process
// may have emptied and filled the directory meanwhile.
func (s *Store) checkSameKeys(c *contents) error {
	files, err := c.files()
	if err != nil {
		return err
	}
	for _, name := range []string{rootCAKey, rpcKey} {
		text, err := s.fs.ReadFile(s.path(name), limitOf(name))
		if err != nil {
			return pathError("reading", s.path(name), err)
		}
		if seal.Sealed(text) {
			err = s.checkSameSealed(c, name, text)
		} else {
			err = s.checkSameKey(name, text, files[name])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkSameKey compares a P-256 key on disk with the one in memory, in PEM.
func (s *Store) checkSameKey(name string, text, want []byte) error {
	key, err := keys.ParseKey(text)
	if err != nil {
		return pathError("reading", s.path(name), err)
	}
	onDisk, err := keys.KeyPEM(key)
	if err != nil {
		return err
	}
	if !onDisk.Equal(keys.NewSecret(want)) {
		return fmt.Errorf("key directory %s: %w", s.dir, errForeignRoots)
	}
	return nil
}

// checkSameSealed compares without opening: a renewal asks no device and no
// person. A file that was sealed anew is judged by its certificate.
func (s *Store) checkSameSealed(c *contents, name string, sealed []byte) error {
	if sha256.Sum256(sealed) == c.onDisk[name] {
		return nil
	}
	certificate, want := rpcCert, c.rpcKey.Public()
	if name == rootCAKey {
		certificate, want = rootCACert, c.rootCA.PublicKey
	}
	text, err := s.fs.ReadFile(s.path(certificate), limitOf(certificate))
	if err != nil {
		return pathError("reading", s.path(certificate), err)
	}
	cert, err := keys.ParseCertificate(text)
	if err != nil {
		return pathError("reading", s.path(certificate), err)
	}
	if !sameKey(want, cert.PublicKey) {
		return fmt.Errorf("key directory %s: %w", s.dir, errForeignRoots)
	}
	return nil
}

func sameKey(a, b crypto.PublicKey) bool {
	key, ok := a.(*ecdsa.PublicKey)
	return ok && key.Equal(b)
}

func (c *contents) issueRPC(now time.Time, extensions ...pkix.Extension) (*x509.Certificate, error) {
	der, err := keys.IssueRPC(keys.RPCRequest{
		Roots:      c.roots,
		CA:         c.rootCA,
		Public:     &c.rpcKey.PublicKey,
		Domain:     c.domain,
		Extensions: extensions,
		Now:        now,
	})
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
