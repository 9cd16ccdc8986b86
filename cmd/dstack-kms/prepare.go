package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"teekms/internal/audit"
	"teekms/internal/keys"
	"teekms/internal/observe"
	"teekms/internal/pkcs12"
	"teekms/internal/registry"
	"teekms/internal/storage"
	"teekms/services/kms"
)

// settings are what may come from the configuration file or from the
// configuration server.
type settings struct {
	database storage.Config
	// pkcs12 is a file, empty without one; password opens it.
	pkcs12, password keys.Secret
	// clear empties the database.
	clear bool
	// by is who said so, for the audit log.
	by string
}

// prepare makes a KMS of the settings. Until everything else has succeeded,
// nothing is changed that was there: the database is emptied last. After an error
// nothing is left open.
func (b *base) prepare(ctx context.Context, from settings) (s *kmsServer, warnings []string, err error) {
	s = &kmsServer{base: b, settings: from, attempt: prometheus.NewRegistry()}
	defer func() {
		if err != nil {
			s.abandon(ctx)
			s = nil
		}
	}()
	warnings, err = s.openPKCS12()
	if err != nil {
		return s, nil, err
	}
	if err := s.openSockets(ctx); err != nil {
		return s, nil, err
	}
	if err := s.openDatabase(ctx); err != nil {
		return s, nil, err
	}
	if err := s.openListeners(); err != nil {
		return s, nil, err
	}
	if from.clear {
		if _, err := s.audit.Clear(ctx, audit.Event{Fields: map[string]string{"by": from.by}}); err != nil {
			return s, nil, fmt.Errorf("clearing the database: %w", err)
		}
		s.Log.Warn("the database was cleared", zap.String("by", from.by))
	}
	return s, append(warnings, s.db.Warnings()...), nil
}

// abandon closes what prepare opened.
func (s *kmsServer) abandon(ctx context.Context) {
	s.close(ctx)
	for _, l := range s.opened {
		l.close()
	}
}

// openPKCS12 opens the file that clients of the HTTPS port see.
func (s *kmsServer) openPKCS12() (warnings []string, err error) {
	if s.settings.pkcs12.Len() == 0 {
		return nil, nil
	}
	certificate, warnings, err := pkcs12.Open(s.settings.pkcs12.Bytes(), s.settings.password, time.Now())
	if err != nil {
		return nil, err
	}
	s.pkcs12, s.settings.pkcs12, s.settings.password = &certificate, keys.Secret{}, keys.Secret{}
	leaf := certificate.Leaf
	if leaf == nil {
		return nil, errors.New("opening PKCS#12: it has no leaf")
	}
	s.Log.Info("whoever does not ask for the domain gets the certificate of the PKCS#12",
		zap.Stringer("subject", leaf.Subject), zap.Time("not_after", leaf.NotAfter), zap.String("sha256", fingerprint(certificate.Certificate[0])))
	return warnings, observe.RegisterCertificate(s.attempt, "pkcs12", func() time.Time { return leaf.NotAfter })
}

// fingerprint is the SHA-256 of a certificate in hex.
func fingerprint(der []byte) string {
	digest := sha256.Sum256(der)
	return hex.EncodeToString(digest[:])
}

// openDatabase opens database, audit log and registry.
func (s *kmsServer) openDatabase(ctx context.Context) error {
	db, err := openDatabase(ctx, s.settings.database, s.Keys.Roots(), s.Log)
	if err != nil {
		return fmt.Errorf("opening the database: %w", err)
	}
	s.db, s.alive = db, &pinger{ping: db.Ping, log: s.Log}
	if endpoint, err := s.settings.database.Endpoint(); err == nil {
		s.Log.Info("the database is open", zap.String("type", string(s.settings.database.Type)),
			zap.String("host", endpoint.Host), zap.String("name", endpoint.Database), zap.Bool("tls", endpoint.TLS))
	}
	c, err := logConfig(db, s.Keys.Roots(), s.Log)
	if err != nil {
		return err
	}
	c.Metrics, c.Now = s.attempt, time.Now
	if s.audit, err = audit.New(c); err != nil { //nolint:contextcheck // its appender outlives this start
		return err
	}
	// A log that is not as it was releases nothing, just as one that does not answer.
	s.alive.ping = s.audit.Check
	if !s.settings.clear { // else a log that is broken may go
		if err := s.audit.Check(ctx); err != nil {
			return fmt.Errorf("opening the audit log: %w", err)
		}
	}
	s.policy, err = registry.New(registry.Config{Store: db, Committer: kms.RegistryChanges(s.audit)})
	return err
}

// warnOf logs an error that changes nothing any more.
func (s *kmsServer) warnOf(what string, err error) {
	if err != nil {
		s.Log.Warn(what, zap.NamedError("err", err))
	}
}

// maxPKCS12 bounds rpc.tls.pkcs12_file, in bytes: what the configuration server
// takes.
const maxPKCS12 = 256 << 10

// readPKCS12 reads rpc.tls.pkcs12_file, where one is set.
func (b *base) readPKCS12() (keys.Secret, error) {
	path := b.Config.RPC.TLS.PKCS12File
	if path == "" {
		return keys.Secret{}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return keys.Secret{}, fmt.Errorf("rpc.tls.pkcs12_file: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxPKCS12 {
		return keys.Secret{}, fmt.Errorf("rpc.tls.pkcs12_file: %s is no file of at most %d bytes", path, maxPKCS12)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return keys.Secret{}, fmt.Errorf("rpc.tls.pkcs12_file: %w", err)
	}
	return keys.NewSecret(data), nil
}
