package keystore

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"teekms/internal/keys"
)

// renewCABefore is how long before its end a CA certificate is made again.
const renewCABefore = 365 * 24 * time.Hour

// reload brings the store in line with the directory. It returns with the
// directory's lock held, which it lets go of while sealed files are opened: a
// device or a person may take longer than others wait. Where strict is false,
// the remains of a write that never was committed may stay in a directory that
// cannot be written.
func (s *Store) reload(ctx context.Context, strict bool) (unlock func(), err error) {
	var o *opened
	for tries := 0; ; tries++ {
		unlock, err := s.lock(ctx)
		if err != nil {
			return nil, err
		}
		private, err := s.load(ctx, o, strict)
		if err == nil && private == nil {
			return unlock, nil
		}
		unlock()
		if err != nil {
			return nil, err
		}
		if tries == openTries {
			return nil, fmt.Errorf("opening sealed key directory %s: other processes keep writing it", s.dir)
		}
		if o, err = s.unseal(ctx, private); err != nil {
			return nil, err
		}
	}
}

// load recovers, reads and parses the directory under its lock. Private files
// that are sealed and are not those in o it returns, to be opened.
func (s *Store) load(ctx context.Context, o *opened, strict bool) (sealed fileSet, err error) {
	rolled, err := s.recoverStage()
	if _, unlisted := errors.AsType[listError](err); err != nil && (strict || unlisted || !s.ignorable()) {
		return nil, err
	}
	if err != nil {
		s.log.Warn("the remains of an interrupted write stay", zap.String("dir", s.dir), zap.NamedError("err", err))
	}
	s.mu.Lock()
	s.rolledForward = s.rolledForward || rolled
	s.mu.Unlock()
	raw, err := s.readAll()
	if err != nil || len(raw) == 0 {
		return nil, err
	}
	if err := s.checkRootsThere(raw); err != nil {
		return nil, err
	}
	private := raw.private()
	isSealed, err := s.checkSealing(private)
	switch {
	case err != nil:
		return nil, err
	case isSealed && !o.of(private):
		return private, nil
	case isSealed:
		maps.Copy(raw, o.plain)
	}
	c, err := s.loadContents(ctx, raw, private)
	if err != nil {
		return nil, err
	}
	s.set(c)
	return nil, nil
}

// ignorable reports whether the stage can be read and has no valid marker: then
// it means nothing.
func (s *Store) ignorable() bool {
	text, err := s.fs.ReadFile(s.staged(markerFile), maxMarker)
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	_, marked := wholeMarker(text)
	return err == nil && !marked
}

// readAll reads those of our files that are there, and rpc-domain.
func (s *Store) readAll() (fileSet, error) {
	entries, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return nil, pathError("reading", s.dir, err)
	}
	raw := fileSet{}
	var foreign []string
	for _, e := range entries {
		switch name := e.Name(); {
		case isOurs(name):
			// A link that leads nowhere is an error here, not a missing file.
			if raw[name], err = s.fs.ReadFile(s.path(name), limitOf(name)); err != nil {
				return nil, pathError("reading", s.path(name), err)
			}
		case name != stageDir:
			foreign = append(foreign, name)
		}
	}
	if len(foreign) > 0 {
		s.log.Info("other entries in the key directory are left alone", zap.String("dir", s.dir), zap.Strings("entries", foreign))
	}
	if len(raw) > 0 && slices.Contains(foreign, domainFile) {
		if raw[domainFile], err = s.fs.ReadFile(s.path(domainFile), maxDomainFile); err != nil {
			return nil, pathError("reading", s.path(domainFile), err)
		}
	}
	return raw, nil
}

// loadContents parses the files, makes again what is missing or damaged and
// writes that in one commit. private are the private files as they are on disk.
func (s *Store) loadContents(ctx context.Context, raw, private fileSet) (*contents, error) {
	l := &loader{s: s, raw: raw, now: s.now(), renew: true}
	l.c.onDisk = private.digests()
	if err := l.load(); err != nil {
		return nil, err
	}
	s.closeModes(raw)
	if len(l.made) == 0 {
		return &l.c, nil
	}
	err := s.repair(ctx, l)
	if err == nil {
		return &l.c, nil
	}
	if l.damaged {
		return nil, err
	}
	s.log.Warn("a CA certificate that is about to expire stays", zap.NamedError("err", err))
	l = &loader{s: s, raw: raw, now: l.now, c: contents{onDisk: l.c.onDisk}}
	return &l.c, l.load()
}

func (s *Store) repair(ctx context.Context, l *loader) error {
	all, err := l.c.files()
	if err != nil {
		return err
	}
	if s.sealer != nil && slices.ContainsFunc(l.made, isPrivate) {
		return s.repairSealed(ctx, l, all)
	}
	files := all.only(l.made)
	if err := s.stage(files, marshalMarker(files)); err != nil {
		s.unstage()
		return err
	}
	if _, err := s.publish(files.names()); err != nil {
		return err
	}
	s.tidy()
	maps.Copy(l.c.onDisk, files.private().digests())
	s.tellRepaired(files)
	return nil
}

// repairSealed writes what was made again with all private files sealed anew:
// they are of one sealing, always.
func (s *Store) repairSealed(ctx context.Context, l *loader, all fileSet) error {
	files, err := s.seal(ctx, s.sealer, all.only(append(privateFiles(), l.made...)))
	if err != nil {
		return err
	}
	m := resealing(l.c.onDisk, files)
	if err := s.checkReplaceable(m); err != nil {
		return err
	}
	if err := s.stageResealed(m, files); err != nil {
		s.unstage()
		return err
	}
	if _, err := s.swap(m.moves()); err != nil {
		return err
	}
	if err := s.tidyResealed(m); err != nil {
		s.tellNotWiped(err)
	}
	l.c.onDisk = files.private().digests()
	s.tellRepaired(files.only(l.made))
	return nil
}

// unstage removes a stage that could not be written. Nothing is in place yet; a
// marker that may be there stays valid.
func (s *Store) unstage() {
	if s.ignorable() {
		s.tidy()
	}
}

func (s *Store) tellRepaired(files fileSet) {
	s.log.Warn("made files of the key directory again", zap.String("dir", s.dir), zap.Strings("files", files.names()))
}

// closeModes takes other users' access to key files away.
func (s *Store) closeModes(raw fileSet) {
	for _, name := range raw.names() {
		if modeOf(name) != secretMode {
			continue
		}
		info, err := s.fs.Stat(s.path(name))
		if err == nil && info.Mode()&othersMask == 0 {
			continue
		}
		if err == nil {
			err = s.fs.Chmod(s.path(name), secretMode)
		}
		if err != nil {
			s.log.Warn("a key file is open to other users and stays so", zap.String("file", s.path(name)), zap.NamedError("err", err))
			continue
		}
		s.log.Warn("a key file was open to other users", zap.String("file", s.path(name)), zap.String("mode", info.Mode().String()))
	}
}

// loader turns files into contents.
type loader struct {
	s     *Store
	raw   fileSet
	now   time.Time
	renew bool // make CA certificates again that are about to expire

	c       contents
	made    []string // what was made again, to be written
	damaged bool     // some of it was missing or damaged, not only old
}

func (l *loader) load() error {
	steps := []func() error{l.loadRoots, l.loadInfo, l.loadRootCA, l.loadTempCA, l.loadRPC}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// checkRootsThere refuses files without their root keys.
func (s *Store) checkRootsThere(raw fileSet) error {
	var missing []string
	for _, name := range []string{rootCAKey, rootK256} {
		if _, ok := raw[name]; !ok {
			missing = append(missing, s.path(name))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("key directory is incomplete: %s missing while %s is there; root keys are never made again: restore from a backup, or empty the directory if it never was in use",
			strings.Join(missing, " and "), strings.Join(raw.names(), ", "))
	}
	return nil
}

func (l *loader) loadRoots() error {
	roots, err := keys.ParseRoots(l.raw[rootCAKey], l.raw[rootK256])
	if err != nil {
		name := rootK256
		if _, failed := keys.ParseKey(l.raw[rootCAKey]); failed != nil {
			name = rootCAKey
		}
		return fmt.Errorf("%s: %w: restore the file from a backup", l.s.path(name), err)
	}
	l.c.roots = roots
	return nil
}

func (l *loader) loadInfo() error {
	path := l.s.path(infoFile)
	text, ok := l.raw[infoFile]
	if !ok {
		l.s.log.Warn("no record of the bootstrap", zap.String("file", path))
		return nil
	}
	info, err := ParseInfo(text)
	if info != nil && !info.matches(l.c.roots) {
		return fmt.Errorf("%s is about other keys than %s and %s: one of the three is not from this directory; restore it from a backup",
			path, rootCAKey, rootK256)
	}
	if err != nil {
		l.s.log.Error("the record of the bootstrap cannot be read and is not shown", zap.String("file", path), zap.NamedError("err", err))
		return nil
	}
	l.c.info = info
	return nil
}

func (l *loader) loadRootCA() error {
	cert, err := keys.ParseCertificate(l.raw[rootCACert])
	if err == nil {
		public, err := x509.MarshalPKIXPublicKey(cert.PublicKey)
		if err != nil || !bytes.Equal(public, l.c.roots.CAPublic()) {
			return fmt.Errorf("%s is the certificate of another key than %s: one of the two is not from this directory; restore it from a backup, or remove %s to have it made again",
				l.s.path(rootCACert), rootCAKey, rootCACert)
		}
		l.c.rootCA, l.c.rootCAPEM = cert, l.raw[rootCACert]
	}
	if l.keepCA(cert, err) {
		return nil
	}
	l.made = append(l.made, rootCACert)
	return l.c.makeRootCA(l.now)
}

func (l *loader) loadTempCA() error {
	key, err := keys.ParseKey(l.raw[tempCAKey])
	if err := l.mayMake(tempCAKey, err); err != nil {
		return err
	}
	if err != nil {
		l.tell(tempCAKey, err)
		l.made = append(l.made, tempCAKey, tempCACert)
		return l.c.makeTempCA(l.now)
	}
	l.c.tempCAKey = key
	cert, err := keys.ParseCertificate(l.raw[tempCACert])
	if err == nil && !key.PublicKey.Equal(cert.PublicKey) {
		err = errors.New("is not the certificate of " + tempCAKey)
	}
	if err == nil {
		l.c.tempCA, l.c.tempCAPEM = cert, l.raw[tempCACert]
	}
	if l.keepCA(cert, err) {
		return nil
	}
	l.made = append(l.made, tempCACert)
	return l.c.makeTempCA(l.now)
}

// keepCA reports whether a CA certificate serves on. Key usage and path length
// are not asked for: older KMSs wrote none.
func (l *loader) keepCA(cert *x509.Certificate, err error) bool {
	name := rootCACert
	if l.c.tempCAKey != nil {
		name = tempCACert
	}
	if err == nil && (!cert.IsCA || cert.CheckSignatureFrom(cert) != nil) {
		err = errors.New("is not a self-signed CA certificate")
	}
	if err != nil {
		l.tell(name, err)
		return false
	}
	return !l.renew || l.now.Before(cert.NotAfter.Add(-renewCABefore))
}

func (l *loader) loadRPC() error {
	cert, certErr := keys.ParseCertificate(l.raw[rpcCert])
	if err := l.findDomain(cert); err != nil {
		return err
	}
	key, err := keys.ParseKey(l.raw[rpcKey])
	if err := l.mayMake(rpcKey, err); err != nil {
		return err
	}
	if err != nil {
		l.tell(rpcKey, err)
		l.made = append(l.made, rpcKey, rpcCert)
		return l.c.makeRPC(l.now)
	}
	l.c.rpcKey = key
	switch {
	case certErr != nil:
	case !key.PublicKey.Equal(cert.PublicKey):
		certErr = errors.New("is not the certificate of " + rpcKey)
	case !bytes.Equal(cert.RawIssuer, l.c.rootCA.RawSubject) || cert.CheckSignatureFrom(l.c.rootCA) != nil:
		certErr = errors.New("is not issued by " + rootCACert)
	}
	if certErr == nil {
		l.c.rpc = cert
		return nil
	}
	l.tell(rpcCert, certErr)
	l.made = append(l.made, rpcCert)
	return l.c.makeRPC(l.now)
}

// findDomain takes the configured domain, else rpc-domain, else the name in the
// RPC certificate (nil if it cannot be read).
func (l *loader) findDomain(cert *x509.Certificate) error {
	const key = "core.onboard.auto_bootstrap_domain"
	source, domain := key, l.s.domain
	if domain == "" {
		source, domain = l.s.path(domainFile), strings.TrimSpace(string(l.raw[domainFile]))
	}
	if domain == "" {
		source, domain = l.s.path(rpcCert), certificateName(cert)
	}
	if domain == "" {
		return fmt.Errorf("%s has no name that could be read: set %s to the domain of this KMS", l.s.path(rpcCert), key)
	}
	if err := keys.ValidateDomain(domain); err != nil {
		return fmt.Errorf("%s: %w; set %s to the domain of this KMS", source, err, key)
	}
	l.c.domain = domain
	return nil
}

func certificateName(cert *x509.Certificate) string {
	switch {
	case cert == nil:
		return ""
	case len(cert.DNSNames) > 0:
		return cert.DNSNames[0]
	case len(cert.IPAddresses) > 0:
		return cert.IPAddresses[0].String()
	}
	return cert.Subject.CommonName
}

// mayMake refuses to make a key again in the place of a sealed file: what is
// whole and holds no key was never written by us.
func (l *loader) mayMake(name string, err error) error {
	if _, there := l.raw[name]; err == nil || !there || l.s.sealer == nil {
		return nil
	}
	return fmt.Errorf("sealed file %s: %w: restore it from a backup, or remove it to have it made again", l.s.path(name), err)
}

func (l *loader) tell(name string, err error) {
	l.damaged = true
	if _, ok := l.raw[name]; !ok {
		err = fs.ErrNotExist
	}
	l.s.log.Warn("a file of the key directory has to be made again", zap.String("file", l.s.path(name)), zap.NamedError("err", err))
}
