package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"teekms/cmd/internal/buildinfo"
	"teekms/internal/audit"
	"teekms/internal/keys/keystore"
	"teekms/internal/serve"
	"teekms/internal/storage"
	"teekms/services/kms"
)

// recordStart records what is to be known before anything is released: how the
// keys came to be, what the KMS was configured with, the certificate that it
// shows, and that it starts. The first of a log is made later than it happened,
// because onboarding has no database.
func (s *kmsServer) recordStart(ctx context.Context) error {
	size, err := s.audit.Size(ctx)
	if err != nil {
		return fmt.Errorf("opening the audit log: %w", err)
	}
	var events []audit.Event
	if size == 0 || s.settings.clear {
		events = append(events, s.originEvent())
	}
	events = append(events, s.configurationEvent(), kms.CertificateRecord(s.rpcLeaf(), "start"),
		audit.Event{Kind: audit.Start, Fields: s.processFields()})
	for _, e := range events {
		if _, err := s.audit.Append(ctx, e); err != nil && !errors.Is(err, audit.ErrDuplicate) {
			return fmt.Errorf("recording %q in the audit log: %w", e.Kind, err)
		}
	}
	s.settings.database = storage.Config{} // nobody needs its secrets any more
	return nil
}

// originEvent says how the keys of this KMS came to be. Its id follows from the
// keys, so that of replicas which begin one log together one records it.
func (s *kmsServer) originEvent() audit.Event {
	roots, info := s.Keys.Roots(), s.Keys.Info()
	public := sha256.Sum256(roots.CAPublic())
	e := audit.Event{Kind: audit.Onboard, Fields: map[string]string{
		"recorded_later": "true", "domain": s.Keys.Domain(), "ca_pubkey_sha256": hex.EncodeToString(public[:]),
		"k256_pubkey": hex.EncodeToString(roots.K256Public()),
	}}
	if info != nil {
		e.Kind = audit.Bootstrap
		addInfo(e.Fields, info)
	}
	id := sha256.Sum256(append([]byte("teekms origin event v1\n"), public[:]...))
	copy(e.ID[:], id[:])
	return e
}

// addInfo names the proof of the bootstrap.
func addInfo(fields map[string]string, info *keystore.Info) {
	for name, value := range map[string][]byte{"quote_sha256": info.Quote, "eventlog_sha256": info.EventLog} {
		if len(value) > 0 {
			digest := sha256.Sum256(value)
			fields[name] = hex.EncodeToString(digest[:])
		}
	}
}

// configurationEvent says what this process was configured with: no secrets, and
// nothing that a secret could be guessed from. settings_sha256 is that of the JSON
// object of all fields but "by", and of findex_label, compact and sorted by name,
// without those that are empty.
func (s *kmsServer) configurationEvent() audit.Event {
	c := s.Config
	fields := map[string]string{
		"database_type": string(s.settings.database.Type), "auth_api": c.Core.AuthAPI.Type,
		"insecure_settings": strings.Join(s.insecure(), ","), "tls": strconv.FormatBool(!s.plaintext()),
		"trust_root_sha256": hex.EncodeToString(s.TrustRootSHA256()),
	}
	if endpoint, err := s.settings.database.Endpoint(); err == nil {
		fields["database"], fields["database_name"] = endpoint.Host, endpoint.Database
		fields["database_tls"] = strconv.FormatBool(endpoint.TLS)
	}
	if s.pkcs12 != nil {
		fields["pkcs12_sha256"] = fingerprint(s.pkcs12.Certificate[0])
	}
	settings := maps.Clone(fields)
	settings["findex_label"] = s.settings.database.Label
	maps.DeleteFunc(settings, func(_, value string) bool { return value == "" })
	if text, err := json.Marshal(settings); err == nil { // strings always can be
		digest := sha256.Sum256(text)
		fields["settings_sha256"] = hex.EncodeToString(digest[:])
	}
	fields["by"] = s.settings.by
	return audit.Event{Kind: audit.Configuration, Fields: fields}
}

// processFields say which process it is.
func (s *kmsServer) processFields() map[string]string {
	return map[string]string{"version": s.Version, "revision": buildinfo.Revision(revision), "domain": s.Keys.Domain()}
}

// recorded is a renewal whose certificates are in the audit log before they are
// put in use. One that cannot be recorded is kept, and recorded by the next try,
// so that none is issued without a record because the database was away.
func recorded(renewal serve.RenewConfig, log audit.Recorder) serve.RenewConfig {
	issue := renewal.Issue
	var waiting *tls.Certificate
	var event audit.Event
	renewal.Issue = func(ctx context.Context) (tls.Certificate, error) {
		if waiting == nil {
			issued, err := issue(ctx)
			if err != nil {
				return tls.Certificate{}, err
			}
			waiting, event = &issued, kms.CertificateRecord(issued.Leaf, "renewal")
			// The same event at every try: it may have been recorded all the same.
			event.Time = time.Now()
			_, _ = rand.Read(event.ID[:]) // never fails
		}
		if _, err := log.Append(ctx, event); err != nil {
			return tls.Certificate{}, fmt.Errorf("recording it in the audit log: %w", err)
		}
		issued := *waiting
		waiting = nil
		return issued, nil
	}
	return renewal
}
