package keystore

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"teekms/internal/durable"
	"teekms/internal/keys"
)

// lockWait is how long another process is waited for.
const lockWait = 10 * time.Second

// Config says where the key directory is and what to fill it with.
type Config struct {
	// Dir is the key directory. Required. It may be missing, and may be a mount
	// point.
	Dir string
	// Domain is the name for which the RPC certificate is issued again
	// (core.onboard.auto_bootstrap_domain). Optional: without it the directory
	// says it.
	Domain string
	// Sealer seals the private files and opens them. Optional: without it they
	// are plain.
	Sealer Sealer
	// FS is the file system. Default durable.Within the directory.
	FS durable.FS
	// Now is the clock. Default time.Now.
	Now func() time.Time
	// Log is where repairs are told. Default none.
	Log *zap.Logger
}

// Store is an open key directory. It holds no lock and no descriptor, and needs
// no closing. It is safe for concurrent use.
type Store struct {
	dir    string
	domain string
	fs     durable.FS
	now    func() time.Time
	log    *zap.Logger

	// writing serializes commits, resealing and renewals of this process.
	writing sync.Mutex
	// sealer is nil where the private files are plain. It changes only while
	// writing is held.
	sealer Sealer

	// mu guards the fields below.
	mu            sync.RWMutex
	contents      *contents // nil while the directory is empty
	rolledForward bool
}

// Open recovers, classifies and, where needed, repairs the directory under its
// lock. A directory that is missing or has none of our files is empty. Open
// never makes a root key: a directory with one root key missing or damaged is
// refused with the file's name and what to do. Errors are [*PermissionError]
// where access was denied.
//
// Private files that are sealed are opened with the Sealer while the lock is not
// held; where one of them cannot be opened, nothing is made anew. It is
// [ErrSealed] or [ErrNotSealed] where they are not as the Sealer says. ctx
// bounds the waiting for the lock, ten seconds at most, and for the Sealer.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Dir == "" {
		return nil, errors.New("key directory: must not be empty")
	}
	if cfg.Domain != "" {
		if err := keys.ValidateDomain(cfg.Domain); err != nil {
			return nil, fmt.Errorf("core.onboard.auto_bootstrap_domain: %w", err)
		}
	}
	s := &Store{dir: filepath.Clean(cfg.Dir), domain: cfg.Domain, fs: cfg.FS, now: cfg.Now, log: cfg.Log, sealer: cfg.Sealer}
	if s.fs == nil {
		s.fs = durable.NewWithin(s.dir)
	}
	if s.now == nil {
		s.now = time.Now //nolint:forbidigo // the default of an injected clock
	}
	if s.log == nil {
		s.log = zap.NewNop()
	}
	if _, err := s.fs.Stat(s.dir); errors.Is(err, fs.ErrNotExist) {
		return s, nil
	} else if err != nil {
		return nil, pathError("opening key directory", s.dir, err)
	}
	unlock, err := s.reload(ctx, false)
	if err != nil {
		return nil, err
	}
	unlock()
	return s, nil
}

// Format writes the directory, for every verb and flag: fmt would look into the
// private keys.
func (s *Store) Format(f fmt.State, _ rune) {
	// A formatter has no way to report a failed write.
	_, _ = io.WriteString(f, "key directory "+s.dir)
}

// Complete reports whether the directory has its keys; else it is empty.
func (s *Store) Complete() bool { return s.get() != nil }

// RolledForward reports whether Open completed a bootstrap that was interrupted
// after its commit.
func (s *Store) RolledForward() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.rolledForward
}

// Commit fills the empty directory: all of the bundle, durably, or nothing. It
// returns [ErrAlreadyBootstrapped] if the directory has keys by now, another
// process's too; the store then has those. With a Sealer the private files are
// sealed before anything is written. ctx bounds the wait for the Sealer and for
// the directory's lock, ten seconds at most; once begun the commit runs to its
// end.
//
// After any other error the directory is as it was, except where undoing failed
// too, which the error says: then the next Commit or Open finds out what is on
// disk, nothing or this whole bundle.
func (s *Store) Commit(ctx context.Context, b *Bundle) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.Complete() {
		return ErrAlreadyBootstrapped
	}
	files, err := b.files()
	if err != nil {
		return err
	}
	if files, err = s.seal(ctx, s.sealer, files); err != nil {
		return err
	}
	made, err := durable.MkdirAll(s.fs, s.dir, dirMode)
	if err != nil {
		err = s.writeError(rootCAKey, err)
	} else {
		err = s.commit(ctx, files, b.domain)
	}
	switch {
	case err == nil:
		c := b.contents
		c.onDisk = files.private().digests()
		s.set(&c)
	case !errors.Is(err, ErrAlreadyBootstrapped):
		s.removeDirs(made)
	}
	return err
}

// commit writes the files under the directory's lock, unless it has some.
func (s *Store) commit(ctx context.Context, files fileSet, domain string) error {
	unlock, err := s.reload(ctx, true)
	if err != nil {
		return err
	}
	defer unlock()
	if s.Complete() {
		return ErrAlreadyBootstrapped
	}
	if err := s.checkDomainFile(domain); err != nil {
		return err
	}
	return s.write(files)
}

// checkDomainFile refuses a domain that the next opening would not find: what
// another KMS left in rpc-domain goes before the name in rpc.crt.
func (s *Store) checkDomainFile(domain string) error {
	text, err := s.fs.ReadFile(s.path(domainFile), maxDomainFile)
	switch left := strings.TrimSpace(string(text)); {
	case errors.Is(err, fs.ErrNotExist), err == nil && (left == "" || left == domain):
		return nil
	case err != nil:
		return pathError("reading", s.path(domainFile), err)
	}
	return &DomainFileError{Path: s.path(domainFile), Domain: domain}
}

// write stages and publishes a bundle, and undoes it on an error.
func (s *Store) write(files fileSet) error {
	err := s.stage(files, marshalMarker(files))
	var moved []string
	if err == nil {
		moved, err = s.publish(files.names())
	}
	if err == nil {
		s.tidy()
		return nil
	}
	if undo := s.rollback(moved); undo != nil {
		return fmt.Errorf("%w (undoing it failed too: %w; what is on disk is found out when the directory is opened next)", err, undo)
	}
	return err
}

// removeDirs takes back directories that a failed commit made. What is not empty
// stays.
func (s *Store) removeDirs(made []string) {
	for i := len(made) - 1; i >= 0; i-- {
		if err := s.fs.Remove(made[i]); err != nil {
			s.log.Warn("a directory made for a failed bootstrap stays", zap.String("dir", made[i]), zap.NamedError("err", err))
			return
		}
	}
}

func (s *Store) lock(ctx context.Context) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	unlock, err = s.fs.Lock(ctx, s.dir)
	if err == nil {
		return unlock, nil
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, &PermissionError{Path: s.dir, Err: err}
	}
	return nil, fmt.Errorf("locking key directory: %w", err)
}

func (s *Store) get() *contents {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.contents
}

func (s *Store) set(c *contents) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.contents = c
}

// Roots returns the root keys, nil while the directory is empty.
func (s *Store) Roots() *keys.Roots {
	if c := s.get(); c != nil {
		return c.roots
	}
	return nil
}

// Info returns the record of the bootstrap, nil when the directory has none.
func (s *Store) Info() *Info {
	if c := s.get(); c != nil {
		return c.info.clone()
	}
	return nil
}

// Domain returns the name for which the RPC certificate is issued again, empty
// while the directory is empty.
func (s *Store) Domain() string {
	if c := s.get(); c != nil {
		return c.domain
	}
	return ""
}

// RootCAPEM returns the root certificate as it is on disk, nil while the
// directory is empty.
func (s *Store) RootCAPEM() []byte {
	if c := s.get(); c != nil {
		return bytes.Clone(c.rootCAPEM)
	}
	return nil
}

// TempCAPEM returns the temporary CA's certificate as it is on disk, nil while
// the directory is empty.
func (s *Store) TempCAPEM() []byte {
	if c := s.get(); c != nil {
		return bytes.Clone(c.tempCAPEM)
	}
	return nil
}

// TempCAKeyPEM returns the temporary CA's key as PKCS#8 PEM.
func (s *Store) TempCAKeyPEM() (keys.Secret, error) {
	c := s.get()
	if c == nil {
		return keys.Secret{}, errEmpty
	}
	return keys.KeyPEM(c.tempCAKey)
}

// RPCCertificate returns the current RPC certificate, leaf only, with its key;
// the zero value while the directory is empty.
func (s *Store) RPCCertificate() tls.Certificate {
	if c := s.get(); c != nil {
		return c.tlsCertificate()
	}
	return tls.Certificate{}
}
