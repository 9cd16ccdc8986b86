// Package webhook asks an HTTP service who may have keys, in the protocol of
// dstack's auth APIs of both generations (docs/authz.md#webhook).
package webhook

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"go.uber.org/zap"

	"teekms/internal/authz"
	"teekms/internal/keys"
)

// DefaultTimeout bounds one question.
const DefaultTimeout = 5 * time.Second

// Bounds of an answer in bytes. A real one has less than 1 KB.
const (
	MaxAnswerSize = 64 << 10
	maxHeaderSize = 64 << 10
)

// Config says where the authority is.
type Config struct {
	// URL is its address, http or https. Facts are asked from exactly this
	// URL, decisions from URL/bootAuth/app and URL/bootAuth/kms. Required.
	URL string
	// Timeout bounds one question with all that is repeated of it;
	// DefaultTimeout when zero.
	Timeout time.Duration
	// Token, unless empty, goes along as "Authorization: Bearer TOKEN".
	Token keys.Secret
	// CAFile is a PEM file of the only authorities that an https URL's
	// certificate may be of; those of the system when empty.
	CAFile string
	// UserAgent is sent as it is; "dstack-kms" when empty.
	UserAgent string
	// Log gets failures to learn facts; required.
	Log *zap.Logger
	// Now is the clock of the facts' lifetime; time.Now when nil.
	Now func() time.Time
}

// Authorizer asks a webhook. It remembers no decision.
type Authorizer struct {
	cfg            Config
	client         *http.Client
	info, app, kms string
	facts          *authz.FactsCache
}

// New returns an authority at cfg.URL. It does not ask it anything yet.
func New(cfg Config) (*Authorizer, error) {
	info, app, kms, err := parseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = "dstack-kms"
	}
	client, err := newClient(cfg)
	if err != nil {
		return nil, err
	}
	a := &Authorizer{cfg: cfg, client: client, info: info, app: app, kms: kms}
	a.facts, err = authz.NewFactsCache(authz.FactsConfig{Fetch: a.fetchFacts, Log: cfg.Log, Now: cfg.Now})
	return a, err
}

// Close closes the connections that are idle.
func (a *Authorizer) Close() { a.client.CloseIdleConnections() }

// Authorize asks for a decision.
func (a *Authorizer) Authorize(ctx context.Context, r authz.Request) (authz.Decision, error) {
	url, err := a.decisionURL(r.Subject)
	if err != nil {
		return authz.Decision{}, err
	}
	body, err := marshalBootInfo(&r.BootInfo)
	if err != nil {
		return authz.Decision{}, err
	}
	answer, err := a.ask(ctx, http.MethodPost, url, body)
	if err != nil {
		return authz.Decision{}, fmt.Errorf("asking for a decision: %w", err)
	}
	d, err := parseDecision(answer)
	if err != nil {
		return authz.Decision{}, fmt.Errorf("reading a decision: %w", err)
	}
	return d, nil
}

func (a *Authorizer) decisionURL(s authz.Subject) (string, error) {
	switch s {
	case authz.App:
		return a.app, nil
	case authz.KMS:
		return a.kms, nil
	default:
		return "", errors.New("request for a subject that there is not")
	}
}

// Facts returns what the service says of itself, asked at most every
// authz.DefaultFactsLifetime.
func (a *Authorizer) Facts(ctx context.Context) (authz.Facts, error) {
	return a.facts.Get(ctx)
}

func (a *Authorizer) fetchFacts(ctx context.Context) (authz.Facts, error) {
	answer, err := a.ask(ctx, http.MethodGet, a.info, nil)
	if err != nil {
		return authz.Facts{}, fmt.Errorf("asking for facts: %w", err)
	}
	return parseFacts(answer)
}

// ask sends one question and returns the body of a successful answer.
func (a *Authorizer) ask(ctx context.Context, method, url string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Timeout)
	defer cancel()
	resp, err := retry(ctx, func() (*http.Response, error) {
		req, err := a.request(ctx, method, url, body)
		if err != nil {
			return nil, err
		}
		return a.client.Do(req)
	})
	if err != nil {
		return nil, authz.TransportError(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }() // reading has told all there is to tell
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, authz.StatusError(resp.StatusCode)
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, MaxAnswerSize+1))
	if err != nil {
		return nil, authz.TransportError(ctx, err)
	}
	if len(answer) > MaxAnswerSize {
		return nil, fmt.Errorf("%w: more than %d bytes", authz.ErrMalformed, MaxAnswerSize)
	}
	return answer, nil
}

func (a *Authorizer) request(ctx context.Context, method, url string, body []byte) (*http.Request, error) {
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, r)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", a.cfg.UserAgent)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
		// Not sent as it has no value: it tells net/http that a question which
		// met a kept connection just as it was closed may go over a new one.
		req.Header["Idempotency-Key"] = nil
	}
	if a.cfg.Token.Len() > 0 {
		req.Header.Set("Authorization", "Bearer "+string(a.cfg.Token.Bytes()))
	}
	return req, nil
}

// jsonBootInfo is the union of what both generations send. Bytes are lower-case
// hex without 0x.
type jsonBootInfo struct {
	TEEVariant      string   `json:"teeVariant"`
	MRTD            string   `json:"mrtd"`
	RTMR0           string   `json:"rtmr0"`
	RTMR1           string   `json:"rtmr1"`
	RTMR2           string   `json:"rtmr2"`
	RTMR3           string   `json:"rtmr3"`
	MRAggregated    string   `json:"mrAggregated"`
	OSImageHash     string   `json:"osImageHash"`
	MRSystem        string   `json:"mrSystem"`
	AppID           string   `json:"appId"`
	ComposeHash     string   `json:"composeHash"`
	InstanceID      string   `json:"instanceId"`
	DeviceID        string   `json:"deviceId"`
	KeyProviderInfo string   `json:"keyProviderInfo"`
	EventLog        string   `json:"eventLog"`
	TCBStatus       string   `json:"tcbStatus"`
	AdvisoryIDs     []string `json:"advisoryIds"`
}

func marshalBootInfo(b *authz.BootInfo) ([]byte, error) {
	log, err := b.EventLog.Marshal()
	if err != nil {
		return nil, fmt.Errorf("writing boot information: %w", err)
	}
	advisories := b.AdvisoryIDs
	if advisories == nil {
		advisories = []string{} // null is no list
	}
	return json.Marshal(jsonBootInfo{
		TEEVariant:      b.TEEVariant,
		MRTD:            hex.EncodeToString(b.MRTD[:]),
		RTMR0:           hex.EncodeToString(b.RTMR[0][:]),
		RTMR1:           hex.EncodeToString(b.RTMR[1][:]),
		RTMR2:           hex.EncodeToString(b.RTMR[2][:]),
		RTMR3:           hex.EncodeToString(b.RTMR[3][:]),
		MRAggregated:    hex.EncodeToString(b.MRAggregated[:]),
		OSImageHash:     hex.EncodeToString(b.OSImageHash),
		MRSystem:        hex.EncodeToString(b.MRSystem[:]),
		AppID:           hex.EncodeToString(b.AppID),
		ComposeHash:     hex.EncodeToString(b.ComposeHash),
		InstanceID:      hex.EncodeToString(b.InstanceID),
		DeviceID:        hex.EncodeToString(b.DeviceID[:]),
		KeyProviderInfo: hex.EncodeToString(b.KeyProviderInfo),
		EventLog:        string(log),
		TCBStatus:       b.TCBStatus,
		AdvisoryIDs:     advisories,
	})
}
