package onboard

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"time"

	"go.uber.org/zap"

	"teekms/internal/attest"
	"teekms/internal/attest/tdx"
	"teekms/internal/keys"
	"teekms/internal/keys/keystore"
)

// keyAnswer is the answer of GetKmsKey.
type keyAnswer struct {
	TempCAKey string `json:"temp_ca_key"`
	Keys      []struct {
		CAKey   string   `json:"ca_key"`
		K256Key hexBytes `json:"k256_key"`
	} `json:"keys"`
}

// metaAnswer is what is used of the answer of GetMeta.
type metaAnswer struct {
	CACert        string          `json:"ca_cert"`
	K256Public    hexBytes        `json:"k256_pubkey"`
	BootstrapInfo json.RawMessage `json:"bootstrap_info"`
}

// fetch takes over the root keys: GetKmsKey, then GetMeta for the record of
// their bootstrap. Nothing of the two answers is believed that the other or the
// server's certificate contradicts.
func (s *Service) fetch(ctx context.Context, src *source, vmConfig string) (keystore.Replica, error) {
	var handed keyAnswer
	request := map[string]string{"vm_config": vmConfig}
	if err := src.call(ctx, "GetKmsKey", request, &handed, maxKeyAnswer); err != nil {
		return keystore.Replica{}, err
	}
	replica, err := readKeys(&handed)
	if err != nil {
		return keystore.Replica{}, err
	}
	var meta metaAnswer
	if err := src.call(ctx, "GetMeta", struct{}{}, &meta, maxMetaAnswer); err != nil {
		return keystore.Replica{}, err
	}
	if err := checkMeta(&meta, replica.Roots, src.conn.ConnectionState().PeerCertificates[0], s.cfg.Now); err != nil {
		return keystore.Replica{}, err
	}
	replica.Info, err = s.readRecord(ctx, meta.BootstrapInfo, replica.Roots)
	return replica, err
}

// readKeys parses the one set of keys that there must be.
func readKeys(handed *keyAnswer) (keystore.Replica, error) {
	if len(handed.Keys) != 1 {
		return keystore.Replica{}, &SourceError{Reason: "Invalid keys"}
	}
	roots, err := keys.ParseRoots([]byte(handed.Keys[0].CAKey), handed.Keys[0].K256Key)
	if err != nil {
		return keystore.Replica{}, &SourceError{Reason: "Invalid keys", Err: err}
	}
	if _, err := keys.ParseKey([]byte(handed.TempCAKey)); err != nil {
		return keystore.Replica{}, &SourceError{Reason: "Invalid temporary CA key", Err: err}
	}
	return keystore.Replica{Roots: roots, TempCAKey: keys.NewSecret([]byte(handed.TempCAKey))}, nil
}

// checkMeta holds the second answer, and the certificate of the server, against
// the keys that were received. A peer that swaps its keys between two answers
// gets no replica.
func checkMeta(meta *metaAnswer, roots *keys.Roots, leaf *x509.Certificate, now func() time.Time) error {
	ca, err := keys.ParseCertificate([]byte(meta.CACert))
	if err != nil {
		return &SourceError{Reason: "its CA certificate cannot be read", Err: err}
	}
	public, err := x509.MarshalPKIXPublicKey(ca.PublicKey)
	if err != nil || !bytes.Equal(public, roots.CAPublic()) || !bytes.Equal(meta.K256Public, roots.K256Public()) {
		return &SourceError{Reason: "its answers are about different root keys", Err: err}
	}
	if !ca.IsCA {
		return &SourceError{Reason: "its CA certificate is none"}
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	_, err = leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return &SourceError{Reason: "its server certificate is not of the root key it handed over", Err: err}
	}
	return nil
}

// readRecord reads the record of the source's bootstrap, nil where the source
// has none. One that cannot be read is none, as in the key directory; one that
// is about other keys, or whose quote binds others, is a refusal. Whether its
// quote is signed by the right party is told in the log only: it may be of
// another day and another trust root than those of this KMS, and auditors judge
// it anyway.
func (s *Service) readRecord(ctx context.Context, text json.RawMessage, roots *keys.Roots) (*keystore.Info, error) {
	if len(text) == 0 || bytes.Equal(text, []byte("null")) {
		s.cfg.Log.Warn("the source KMS has no record of its bootstrap: this replica will have none")
		return nil, nil //nolint:nilnil // nil is "no record" to the key directory
	}
	info, err := keystore.ParseInfo(text)
	if info != nil && (!bytes.Equal(info.CAPublic, roots.CAPublic()) || !bytes.Equal(info.K256Public, roots.K256Public())) {
		return nil, &SourceError{Reason: "its record of the bootstrap is about other root keys"}
	}
	if err != nil {
		s.cfg.Log.Warn("the source KMS's record of its bootstrap cannot be read: this replica will have none", zap.NamedError("err", err))
		return nil, nil //nolint:nilnil // told above
	}
	if len(info.Quote) == 0 {
		return info, nil
	}
	quote, err := tdx.ParseQuote(info.Quote)
	if err != nil {
		return nil, &SourceError{Reason: "the quote in its record of the bootstrap cannot be read", Err: err}
	}
	if quote.ReportData() != attest.BootstrapReportData(info.CAPublic, info.K256Public).Bytes() {
		return nil, &SourceError{
			Reason: "the quote in its record of the bootstrap binds other keys",
			Err:    errors.New("report data is not the digest of the two public keys"),
		}
	}
	evidence := &attest.Evidence{Quote: info.Quote, EventLog: info.EventLog}
	if _, err := s.cfg.Verifier.VerifyOffline(ctx, evidence); err != nil {
		s.cfg.Log.Warn("the quote in the source KMS's record of its bootstrap does not verify here", zap.NamedError("err", err))
	}
	return info, nil
}
