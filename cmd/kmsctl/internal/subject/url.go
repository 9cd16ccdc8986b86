package subject

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"teekms/cmd/kmsctl/internal/record"
	"teekms/cmd/kmsctl/internal/status"
)

// FromURL asks a running KMS, over http or https. The dstack dialect is spoken,
// which existing KMSs understand too. TLS is checked by no one here: the root
// that its certificate must lead to is in the answer itself, and whether that
// root is to be believed is what the quote says.
func FromURL(ctx context.Context, rawURL string) (*Subject, error) {
	return FromNamedURL(ctx, rawURL, "")
}

// FromNamedURL is [FromURL] of a KMS that is called by another name than the one
// in the URL, and whose certificate must have that name; "" insists on none.
func FromNamedURL(ctx context.Context, rawURL, serverName string) (*Subject, error) {
	base, err := parseURL(rawURL)
	if err != nil {
		return nil, status.WithCode(status.Usage, err)
	}
	s := &Subject{Kind: URL, Location: rawURL, Host: base.Hostname(), Live: true, Plaintext: base.Scheme == "http", ServerName: serverName}
	if serverName != "" && s.Plaintext {
		return nil, status.WithCode(status.Usage, errors.New("--server-name goes with https://: plain HTTP shows no certificate"))
	}
	body, err := s.getMeta(ctx, base)
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", base, err)
	}
	if err := s.readMeta(body, base.String()); err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", base, err)
	}
	return s, nil
}

func parseURL(rawURL string) (*url.URL, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("--url: %w", err)
	}
	if (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("--url: %q is not of the form https://HOST[:PORT]", rawURL)
	}
	u.Path = strings.TrimSuffix(strings.TrimSuffix(u.Path, "/"), "/prpc")
	return u, nil
}

// getMeta calls KMS.GetMeta and remembers what the TLS peer showed.
func (s *Subject) getMeta(ctx context.Context, base *url.URL) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath("prpc", "KMS.GetMeta").String()+"?json", http.NoBody)
	if err != nil {
		return nil, err
	}
	client, closeIdle := s.client()
	defer closeIdle()
	resp, err := client.Do(req)
	if err != nil {
		// The URL is in the caller's text already.
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // nothing was written
	body, err := io.ReadAll(io.LimitReader(resp.Body, record.MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	if len(body) > record.MaxSize {
		return nil, fmt.Errorf("the answer has more than %d bytes", record.MaxSize)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GetMeta is answered with %s%s", resp.Status, publicError(body))
	}
	return body, nil
}

func (s *Subject) client() (client *http.Client, closeIdle func()) {
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS12,
			ServerName:         s.ServerName,
			InsecureSkipVerify: true, //nolint:gosec // the certificate is checked against the root in the answer, and that against the quote
			VerifyConnection:   s.remember,
		},
		MaxResponseHeaderBytes: 64 << 10,
	}
	return &http.Client{
		Transport: transport,
		// Another place is another KMS.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, transport.CloseIdleConnections
}

func (s *Subject) remember(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the peer has no certificate")
	}
	s.Leaf = &Certificate{
		Certificate: state.PeerCertificates[0], Intermediates: state.PeerCertificates[1:],
		From: "TLS certificate",
	}
	return nil
}

// publicError quotes the text of an error answer.
func publicError(body []byte) string {
	var answer struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.Error == "" {
		return ""
	}
	return ": " + answer.Error
}

// meta is what is read of the answer of GetMeta.
type meta struct {
	CACert       string          `json:"ca_cert"`
	K256Public   string          `json:"k256_pubkey"`
	Record       json.RawMessage `json:"bootstrap_info"`
	TrustRoot    string          `json:"trust_root_sha256"`
	InsecureList []string        `json:"insecure_settings"`
}

func (s *Subject) readMeta(body []byte, from string) error {
	var m meta
	if err := json.Unmarshal(body, &m); err != nil {
		return fmt.Errorf("not the JSON of GetMeta: %w", err)
	}
	if len(m.Record) == 0 || bytes.Equal(m.Record, []byte("null")) {
		return status.WithCode(status.NotVerified, errors.New("there is nothing to verify: the KMS has no record of its bootstrap"))
	}
	var err error
	if s.K256Public, err = unhex(m.K256Public); err != nil {
		return fmt.Errorf("k256_pubkey: %w", err)
	}
	if s.TrustRoot, err = unhex(m.TrustRoot); err != nil {
		return fmt.Errorf("trust_root_sha256: %w", err)
	}
	s.CA = parseCertificate([]byte(m.CACert), "ca_cert of "+from)
	s.Insecure = m.InsecureList
	s.Record, s.RecordErr = record.Parse(m.Record)
	return nil
}

func unhex(s string) ([]byte, error) { return hex.DecodeString(strings.TrimPrefix(s, "0x")) }
