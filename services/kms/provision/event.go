package provision

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"strconv"

	"teekms/internal/audit"
)

// Event returns the record of a configuration: what was set, by whom, without
// secrets. leaf is the certificate in the PKCS#12 file, nil where there is none.
// settings_sha256 is that of the JSON object of all other fields but those on
// the caller, compact and sorted by name, with findex_label as what was posted.
func Event(s Settings, leaf *x509.Certificate) (audit.Event, error) {
	fields := map[string]string{
		"database_type":  string(s.Database.Type),
		"clear_database": strconv.FormatBool(s.ClearDatabase),
	}
	put := func(name, value string) {
		if value != "" {
			fields[name] = value
		}
	}
	if s.Database.URL.Len() > 0 {
		endpoint, err := s.Database.Endpoint()
		if err != nil {
			return audit.Event{}, err
		}
		put("database", endpoint.Host)
		put("database_name", endpoint.Database)
		put("database_tls", strconv.FormatBool(endpoint.TLS))
	}
	put("database_path", s.Database.Path)
	if leaf != nil {
		digest := sha256.Sum256(leaf.Raw)
		put("pkcs12_sha256", hex.EncodeToString(digest[:]))
	}
	canonical := make(map[string]string, len(fields)+1)
	for name, value := range fields {
		canonical[name] = value
	}
	canonical["findex_label"] = s.Database.Label
	encoded, err := json.Marshal(canonical) // sorted by name
	if err != nil {
		return audit.Event{}, err
	}
	digest := sha256.Sum256(encoded)
	put("settings_sha256", hex.EncodeToString(digest[:]))
	put("by", s.By.Means)
	put("peer", s.By.Peer)
	put("certificate_sha256", s.By.Certificate)
	put("certificate_name", s.By.CommonName)
	return audit.Event{Kind: audit.Configuration, Fields: fields}, nil
}
