package rpc

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// BearerConfig configures a [Bearer].
type BearerConfig struct {
	// Token is the secret. Empty switches the check off.
	Token string
	// Log gets a line for every wrong token. Required when Token is not empty.
	Log *zap.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Bearer checks "Authorization: Bearer TOKEN" (RFC 6750 §2.1). Its methods may
// be called from several goroutines. A nil Bearer lets everybody pass.
type Bearer struct {
	digest [sha256.Size]byte
	log    *zap.Logger
	now    func() time.Time

	mu    sync.Mutex
	tries Tries // guarded by mu
}

// NewBearer returns the check for one token, nil when the token is empty.
func NewBearer(c BearerConfig) *Bearer {
	if c.Token == "" {
		return nil
	}
	b := &Bearer{digest: sha256.Sum256([]byte(c.Token)), log: c.Log, now: c.Now}
	if b.log == nil {
		b.log = zap.NewNop()
	}
	if b.now == nil {
		b.now = time.Now //nolint:forbidigo // the default of an injected clock
	}
	return b
}

// Check returns nil when the header carries the token, otherwise [ErrNoToken],
// [ErrWrongToken] or [ErrTooManyTries], with which none was looked at, right or
// wrong: see [Tries]. peer is the address, with its port, that is logged.
func (b *Bearer) Check(header http.Header, peer string) error {
	if b == nil {
		return nil
	}
	token, ok := bearerToken(header)
	if !ok {
		return ErrNoToken
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	if !b.tries.Allow(peer, now) {
		return ErrTooManyTries
	}
	// Digests have one length, so the comparison does not tell the token's.
	got := sha256.Sum256([]byte(token))
	if subtle.ConstantTimeCompare(got[:], b.digest[:]) == 1 {
		return nil
	}
	b.tries.Wrong(peer, now)
	b.log.Warn("wrong bearer token", zap.String("peer", peer))
	return ErrWrongToken
}

// Require puts the check before a plain HTTP handler. A refusal is status 401
// with {"error": "..."}.
func (b *Bearer) Require(next http.Handler) http.Handler {
	if b == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := b.Check(r.Header, r.RemoteAddr); err != nil {
			w.Header().Set("WWW-Authenticate", "Bearer")
			WriteError(w, http.StatusUnauthorized, err.Error())
			return
		}
		next.ServeHTTP(w, r)
	})
}

// WriteError answers with the status and {"error": text} on one line, never to
// be cached. text goes to the client as it is.
func WriteError(w http.ResponseWriter, status int, text string) {
	quoted, err := json.Marshal(text)
	if err != nil { // a string always marshals
		quoted = []byte(`"error"`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(`{"error": ` + string(quoted) + `}`)) // the client may be gone
}

// bearerToken returns the token of exactly one Authorization header.
func bearerToken(header http.Header) (string, bool) {
	values := header["Authorization"]
	if len(values) != 1 {
		return "", false
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return "", false
	}
	token = strings.TrimSpace(token)
	return token, token != ""
}
